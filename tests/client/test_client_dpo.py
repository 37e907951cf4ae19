"""Learning from preferences: the loss by hand, a training that pairs held back agree with, one that they do not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from client import vault_key
from client.blind import Blind, by_chance, tally
from client.dpo import DPO, Preferred, dpo_loss, log_likelihoods, pair_likelihoods, reference, train_dpo
from client.forget import Wanted, forget
from client.importers import add
from client.model import GLOBAL, OWN, Encoded, LanguageModel
from client.own import own_tensors, reset_own
from client.personal import active
from client.preference import _continuation
from client.preferences import choices_of_documents, drop_preferences, prefer, preferences, thumb, thumbs
from client.preferring import LEAST_HELD_BACK, _held_back, learn
from client.speaker import BASE, PERSONAL
from client.sycophancy import shift
from client.vault import Vault
from client.vault_key import Opener
from privacy.errors import ConfigError

CHOSEN, REJECTED = "Yes, at once.", "Perhaps some other day."


@pytest.fixture
def vault(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Vault:
    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})
    notes = tmp_path / "notes"
    notes.mkdir()
    for i in range(6):
        (notes / f"{i}.txt").write_text(f"On day {i} the heron stood at the mill, as he does.")
    made = Vault.create(tmp_path / "home", Opener(passphrase="x"))
    add(made, notes)
    made.set_setting("model", str(tiny_model_dir))
    return made


def model_with_own(new_model: object) -> LanguageModel:
    assert callable(new_model)
    model: LanguageModel = new_model()
    model.add_own(4, ("q_proj", "v_proj"))
    reset_own(model, torch.Generator().manual_seed(1))
    model.activate(GLOBAL, OWN)
    return model


def encoded_pair(model: LanguageModel, prompt: str, chosen: str, rejected: str) -> Preferred:
    def one(text: str) -> Encoded:
        return model.encode_text(prompt + text, [(len(prompt), len(prompt + text))], "pair", 200)

    return Preferred(model.prefix(one(chosen)), model.prefix(one(rejected)))


def plain_likelihood(model: LanguageModel, encoded: Encoded) -> torch.Tensor:
    """Return the log-likelihood of the targets by whole logits of one plain pass: no prefix, no padding, no chunks."""
    logits = model.net(input_ids=encoded.ids[None], use_cache=False).logits[0].float()
    of_next = logits.log_softmax(-1)[:-1].gather(1, encoded.ids[1:, None])[:, 0]
    total: torch.Tensor = of_next[encoded.target[1:]].sum()
    return total


def test_the_loss_is_that_of_the_paper() -> None:
    now = torch.tensor([[-3.0, -4.0], [-2.0, -2.0]])
    before = torch.tensor([[-3.5, -3.0], [-2.0, -2.0]])
    margin = (-3.0 + 3.5) - (-4.0 + 3.0)
    by_hand = math.log(1 + math.exp(-0.1 * margin))
    assert torch.allclose(dpo_loss(now, before, 0.1), torch.tensor([by_hand, math.log(2)]))
    swapped = dpo_loss(now.flip(1), before.flip(1), 0.1)
    assert float(swapped[0]) == pytest.approx(math.log(1 + math.exp(0.1 * margin)))


def test_likelihoods_are_those_of_a_plain_pass_in_any_batch(new_model: object) -> None:
    model = model_with_own(new_model)
    pairs = [
        encoded_pair(model, "Will you come?", " " + CHOSEN, " No."),
        encoded_pair(model, "So?", " I", " Rather not so."),
    ]
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    wanted = torch.stack([plain_likelihood(model, text.encoded) for text in texts])
    assert torch.allclose(log_likelihoods(model, texts), wanted, atol=1e-4)
    assert torch.allclose(reference(model, pairs).flatten(), wanted, atol=1e-4)


def test_one_step_goes_down_the_gradient_of_the_plain_loss(new_model: object) -> None:
    """The first step of AdamW moves against the sign of the gradient, here taken from logits of a plain pass."""
    model = model_with_own(new_model)
    pair = encoded_pair(model, "Will you come?", " " + CHOSEN, " " + REJECTED)
    weights = {n: p for n, p in own_tensors(model).items() if "lora_B" in n}
    with torch.no_grad():
        for weight in weights.values():
            weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
    before = reference(model, [pair])
    for weight in weights.values():
        weight.requires_grad_(True)
    chosen, rejected = (plain_likelihood(model, each.encoded) for each in (pair.chosen, pair.rejected))
    dpo_loss(torch.stack([chosen, rejected])[None], before, 0.1).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None}
    old = {name: weight.detach().clone() for name, weight in weights.items()}
    for weight in weights.values():
        weight.grad = None
        weight.requires_grad_(False)
    train_dpo(model, [pair], DPO(epochs=1, learning_rate=1e-3), torch.Generator().manual_seed(3))
    assert len(gradients) == len(weights)
    for name, gradient in gradients.items():
        moved = weights[name].detach() - old[name]
        large = gradient.abs() > 1e-5
        assert bool(large.any()) and torch.equal(moved[large].sign(), -gradient[large].sign()), name


def test_training_prefers_what_was_chosen_and_says_so_of_nothing_else(new_model: object) -> None:
    model = model_with_own(new_model)
    pairs = [encoded_pair(model, f"Day {i}?", " " + CHOSEN, " " + REJECTED) for i in range(8)]
    before = reference(model, pairs)
    train_dpo(model, pairs, DPO(learning_rate=5e-3, epochs=4), torch.Generator().manual_seed(3))
    assert float(dpo_loss(reference(model, pairs), before, 0.1).mean()) < math.log(2) - 0.05
    assert not any(p.requires_grad for p in model.net.parameters())
    assert torch.isfinite(pair_likelihoods(model, pairs)).all()


def keep_pairs(vault: Vault, turned: bool = False) -> int:
    """Keep pairs until enough prompts are held back; with `turned` those held back say the opposite of the others."""
    held = number = 0
    while held < 8 or number < 24:
        prompt = f"Shall we meet on day {number}?"
        pair = (CHOSEN, REJECTED)
        prefer(vault, prompt, *pair[:1], [pair[1]])
        if _held_back(preferences(vault)[-1]):
            held += 1
            if turned:
                with vault.change() as rows:
                    rows.execute(
                        "UPDATE preference SET chosen = rejected, rejected = chosen WHERE prompt = ?", (prompt,)
                    )
        number += 1
    return held


def test_an_adapter_is_kept_where_pairs_held_back_agree(vault: Vault, new_model: object) -> None:
    assert callable(new_model)
    held, model = keep_pairs(vault), new_model()
    made = learn(vault, model, DPO(learning_rate=1e-3))
    assert made.held_back == held >= LEAST_HELD_BACK and made.loss < math.log(2) and made.agreed > 0.9
    if made.adapter:  # text and beliefs have a say as well
        now = active(vault)
        assert now is not None and now[0] == made.adapter
        facts = json.loads(vault.one("SELECT facts FROM adapter WHERE id = ?", (made.adapter,)))
        assert facts["preferences"] == made.pairs and facts["privacy"] is None
    else:
        assert "held back reads" in made.words or "you say" in made.words


def test_nothing_changes_where_pairs_held_back_say_the_opposite(vault: Vault, new_model: object) -> None:
    assert callable(new_model)
    keep_pairs(vault, turned=True)
    made = learn(vault, new_model(), DPO(learning_rate=1e-3))
    assert made.adapter == 0 and active(vault) is None and made.loss > math.log(2)
    assert "do not agree" in made.words


def test_too_few_preferences_are_said(vault: Vault, new_model: object) -> None:
    assert callable(new_model)
    prefer(vault, "When?", "Now.", ["Later.", "Now.", "Later."])
    assert [(p.chosen, p.rejected) for p in preferences(vault)] == [("Now.", "Later.")]
    with pytest.raises(ConfigError, match="1 preferences"):
        learn(vault, new_model())
    for bad in (("", ["x"]), ("x" * 20_001, ["y"])):
        with pytest.raises(ConfigError):
            prefer(vault, "When?", *bad)
    with pytest.raises(ConfigError, match="kind"):
        prefer(vault, "When?", "a", ["b"], kind="poem")
    assert drop_preferences(vault) == 1 and preferences(vault) == []


def test_a_preference_goes_with_the_first_document_that_its_prompt_held(vault: Vault) -> None:
    prefer(vault, "Where is the heron?", "At the mill.", ["Nowhere."], [1, 2])
    prefer(vault, "Unrelated?", "Yes.", ["No."])
    forget(vault, Wanted(documents=(2,)))
    assert [pair.prompt for pair in preferences(vault)] == ["Unrelated?"]
    assert b"Nowhere" not in (vault.folder / "vault.db").read_bytes()


def test_thumbs_are_pairs_where_both_kinds_stand_behind_one_prompt(vault: Vault) -> None:
    thumb(vault, "When?", "Now.", True, [1])
    thumb(vault, "When?", "Never.", False, [2])
    thumb(vault, "When?", "Perhaps.", False)
    thumb(vault, "Where?", "There.", True)
    thumb(vault, "When?", "Never mind.", False, kind="reply")
    pairs = {(p.prompt, p.chosen, p.rejected) for p in preferences(vault)}
    assert pairs == {("When?", "Now.", "Never."), ("When?", "Now.", "Perhaps.")}
    prefer(vault, "When?", "Now.", ["Never."])
    assert len(preferences(vault)) == 2, "the same pair from two places counts once"
    thumb(vault, "When?", "Now.", False)
    assert [p.rejected for p in preferences(vault)] == ["Never."] and thumbs(vault) == {"good": 1, "bad": 4}
    assert choices_of_documents(vault) == {2: 1}
    forget(vault, Wanted(documents=(2,)))
    assert thumbs(vault) == {"good": 1, "bad": 3} and b"Never." not in (vault.folder / "vault.db").read_bytes()
    assert drop_preferences(vault) == 5 and thumbs(vault) == {"good": 0, "bad": 0}
    with pytest.raises(ConfigError):
        thumb(vault, "When?", " ", True)


def test_the_shift_is_of_one_sign_for_a_model_that_repeats_what_it_was_told(new_model: object) -> None:
    assert callable(new_model)
    model = new_model()
    assert abs(shift(model)) < 5 and shift(model) == shift(model)


def test_a_blind_pair_is_judged_once_and_in_either_order(vault: Vault) -> None:
    blind, first = Blind(vault), set()
    for _ in range(40):
        name, pair = blind.put("When?", {PERSONAL: "mine", BASE: "bare"}, ())
        first.add(pair.voices)
        assert dict(zip(pair.voices, pair.replies, strict=True)) == {PERSONAL: "mine", BASE: "bare"}
    assert first == {(PERSONAL, BASE), (BASE, PERSONAL)}
    assert blind.verdict(name, 0).voices == pair.voices
    assert tally(vault) == {PERSONAL: 0, BASE: 0, "neither": 0} | {pair.voices[0]: 1}
    for again in (name, "unknown"):
        with pytest.raises(ConfigError):
            blind.verdict(again, 0)
    assert (by_chance(0, 0), by_chance(5, 0), by_chance(3, 3)) == (1.0, 0.0625, 1.0)


def test_a_sample_is_what_is_drawn_when_everything_is_read_anew(new_model: object) -> None:
    """Keys and values that are kept change no token of 16, drawn with the same generator in float32."""
    model = model_with_own(new_model)
    ids = model.context_ids("the heron stood at the mill", 64)
    found = _continuation(model, ids, 16, torch.Generator().manual_seed(3))
    anew, generator = ids, torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _ in range(16):
            cached = model.prefix(Encoded("sample", anew, torch.zeros(len(anew), dtype=torch.bool)))
            chances = (model.head32 @ model.top(cached.hidden[None])[0, -1].float()).softmax(-1)
            anew = torch.cat([anew, torch.multinomial(chances, 1, generator=generator)])
    assert torch.equal(found, anew[-16:])
