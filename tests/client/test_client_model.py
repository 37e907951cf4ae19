"""The model cut in two is the model; targets are the owner's own words; adapters are what their algebra says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from client.documents import Document, Span
from client.model import GLOBAL, OWN, Cached, Encoded, LanguageModel, batches_by_length, padded
from privacy.adapter import Basis
from privacy.errors import ModelError

NewModel = Callable[..., LanguageModel]
CachedDialogues = Callable[..., list[Cached]]


def plain_nats(model: LanguageModel, encoded: Encoded) -> Tensor:
    """Return the target nats by one ordinary forward pass of the whole network."""
    with torch.no_grad():
        logits = model.net(input_ids=encoded.ids[None]).logits[0].float()
    nats = F.cross_entropy(logits[:-1], encoded.ids[1:], reduction="none")
    return nats[encoded.target[1:]]


# -- the two halves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_layers", [1, 3, 6, 40])
def test_prefix_top_and_head_are_the_plain_forward_pass(
    new_model: NewModel, cached: CachedDialogues, top_layers: int
) -> None:
    model = new_model(top_layers)
    assert model.first == max(0, 6 - top_layers)
    documents = cached(model, 5)
    for document, nats in zip(documents, model.document_nats(documents), strict=True):
        torch.testing.assert_close(nats, plain_nats(model, document.encoded), rtol=0, atol=1e-4)


def test_caching_is_exact_to_the_bit(new_model: NewModel, cached: CachedDialogues) -> None:
    model = new_model(2)
    document = cached(model, 1)[0]
    with torch.no_grad():
        whole = model.inner(input_ids=document.encoded.ids[None], output_hidden_states=True)
        again = model.top(document.hidden[None])
    assert torch.equal(document.hidden, whole.hidden_states[4][0])
    assert torch.equal(again, whole.last_hidden_state)


def test_the_network_is_whole_again_after_a_half_has_run(new_model: NewModel, cached: CachedDialogues) -> None:
    model = new_model(2)
    norm = model.inner.norm
    cached(model, 1)
    with pytest.raises(IndexError):
        model.prefix(Encoded("bad", torch.tensor([10**6]), torch.tensor([True])))
    assert len(model.inner.layers) == 6 and model.inner.norm is norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_does_not_change_a_document(new_model: NewModel, cached: CachedDialogues, dtype: torch.dtype) -> None:
    model = new_model(3, dtype)
    documents = cached(model, 8)
    together = model.document_nats(documents, batch_tokens=10_000)
    alone = [model.document_nats([document])[0] for document in documents]
    assert len({len(d.encoded.ids) for d in documents}) > 4, "the batch is padded"
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.15)


def test_a_pad_never_reaches_a_document(new_model: NewModel, cached: CachedDialogues) -> None:
    model = new_model(3)
    rows = padded(cached(model, 6))
    lengths = [len(d.encoded.ids) for d in cached(model, 6)]
    spoilt = rows.hidden.clone()
    for i, length in enumerate(lengths):
        spoilt[i, length:] = 1e3
    with torch.no_grad():
        assert torch.equal(model.top(rows.hidden)[rows.where], model.top(spoilt)[rows.where])


def test_documents_without_own_words_cost_nothing_and_break_nothing(new_model: NewModel) -> None:
    model = new_model()
    silent = Document("silent", (Span("only the partner", own=False),), "history", 0)
    document = model.prefix(model.encode(silent, 64))
    assert document.encoded.own_tokens == 0
    assert [len(n) for n in model.document_nats([document, document])] == [0, 0]


def test_labels_stand_one_after_the_state_that_predicts_them(new_model: NewModel, cached: CachedDialogues) -> None:
    documents = cached(new_model(), 4)
    rows = padded(documents)
    at = 0
    for i, document in enumerate(documents):
        targets = document.encoded.target.nonzero()[:, 0]
        part = slice(at, at + len(targets))
        assert torch.equal(rows.where[0][part], torch.full_like(targets, i))
        assert torch.equal(rows.where[1][part], targets - 1)
        assert torch.equal(rows.labels[part], document.encoded.ids[targets])
        at += len(targets)
    assert at == len(rows.labels)


@given(st.lists(st.integers(0, 200), max_size=40), st.integers(1, 500))
def test_batches_hold_every_document_once_and_keep_to_their_size(lengths: list[int], batch_tokens: int) -> None:
    batches = batches_by_length(lengths, batch_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= batch_tokens


# -- targets ------------------------------------------------------------------------------------------------------


def merging_tokenizer(begin: bool) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer that joins "bc", " b" and "b>"; with `begin` it puts <s> before every text."""
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: index for index, name in enumerate([*names[:-3], "bc", "Ġb", "b>", "<s>", "</s>", "<pad>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", "c"), ("Ġ", "b"), ("b", ">")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def model_with(new_model: NewModel, tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    model = new_model()
    return LanguageModel(model.net, tokenizer, 3, "merging")


def targets(model: LanguageModel, spans: Sequence[Span], max_tokens: int = 64) -> list[str]:
    """Return the text of every target token."""
    encoded = model.encode(Document("d", tuple(spans), "history", 0), max_tokens)
    assert len(encoded.ids) == len(encoded.target) <= max_tokens
    return [str(model.tokenizer.decode([int(i)])) for i in encoded.ids[encoded.target]]


def test_a_token_that_touches_the_partners_words_is_no_target(new_model: NewModel) -> None:
    model = model_with(new_model, merging_tokenizer(begin=False))
    assert targets(model, [Span("xab", own=False), Span("cd", own=True)]) == ["d"]
    assert targets(model, [Span("x", own=False), Span("bcd", own=True)]) == ["bc", "d"]
    assert targets(model, [Span("xb", own=True), Span("cd", own=False)]) == []  # the first token is never one


def test_a_token_that_touches_a_placeholder_is_no_target(new_model: NewModel) -> None:
    model = model_with(new_model, merging_tokenizer(begin=False))
    spans = [Span("x", own=False), Span("ab", own=True), Span("<A>", own=True, loss=False), Span("b", own=True)]
    assert targets(model, spans) == ["a", "b", "b"]
    spans[2] = Span("><A", own=True, loss=False)
    assert targets(model, spans) == ["a", "b"]  # "b>" reaches into the placeholder


def test_white_space_before_own_words_may_be_anyones(new_model: NewModel) -> None:
    model = model_with(new_model, merging_tokenizer(begin=False))
    assert targets(model, [Span("x ", own=False), Span("bye", own=True)]) == [" b", "y", "e"]


def test_nothing_but_own_words_is_ever_a_target(new_model: NewModel) -> None:
    model = new_model()
    spans = [Span("Ann: ", own=False), Span("I héard 雨", own=True), Span(" [NAME]", own=True, loss=False)]
    encoded = model.encode(Document("d", tuple(spans), "history", 0), 64)
    assert model.tokenizer.decode(encoded.ids[encoded.target].tolist()) == "I héard 雨"


@pytest.mark.parametrize("begin", [False, True])
def test_the_first_token_and_special_tokens_are_no_targets(new_model: NewModel, begin: bool) -> None:
    model = model_with(new_model, merging_tokenizer(begin))
    encoded = model.encode(Document("d", (Span("axbc", own=True),), "history", 0), 64)
    special = [int(i) in model.tokenizer.all_special_ids for i in encoded.ids]
    assert special == [True, False, False, False] if begin else [False, False, False]
    assert encoded.target.tolist() == ([False, True, True, True] if begin else [False, True, True])


def test_documents_are_cut_to_their_first_tokens(new_model: NewModel) -> None:
    model = new_model()
    encoded = model.encode(Document("d", (Span("abcdef", own=True),), "history", 0), 4)
    assert model.tokenizer.decode(encoded.ids.tolist()) == "abcd" and encoded.own_tokens == 3


@pytest.mark.parametrize("begin", [False, True])
def test_context_goes_in_front_and_leaves_the_very_same_targets(new_model: NewModel, begin: bool) -> None:
    model = model_with(new_model, merging_tokenizer(begin))
    document = Document("d", (Span("a:", own=False), Span("bc de", own=True)), "test", 0)
    encoded, context = model.encode(document, 64), model.context_ids("memory", 64)
    longer = model.with_context(encoded, context)
    assert torch.equal(longer.ids[longer.target], encoded.ids[encoded.target])
    assert longer.document == "d" and len(longer.ids) == len(encoded.ids) + len(context)
    start = int(begin)
    assert torch.equal(longer.ids[:start], encoded.ids[:start])
    assert model.tokenizer.decode(longer.ids[start : start + len(context)].tolist()) == "memory\n\n"


def test_context_is_the_end_of_what_was_found_or_nothing(new_model: NewModel) -> None:
    model = new_model()
    assert model.tokenizer.decode(model.context_ids("a memory", 5).tolist()) == "ory\n\n"
    assert len(model.context_ids("", 5)) == 0
    encoded = model.encode(Document("d", (Span("bc de", own=True),), "test", 0), 64)
    assert torch.equal(model.with_context(encoded, model.context_ids("", 5)).ids, encoded.ids)


# -- adapters -----------------------------------------------------------------------------------------------------


def some_cores(basis: Basis, scale: float = 0.3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    flat = scale * torch.randn(basis.layout.dim, generator=generator, dtype=torch.float64)
    return dict(basis.layout.unflatten(flat.numpy()))


def test_zero_cores_change_nothing(new_model: NewModel, cored: LanguageModel, cached: CachedDialogues) -> None:
    documents, bare = cached(cored, 3), new_model()
    for nats, wanted in zip(cored.document_nats(documents), bare.document_nats(documents), strict=True):
        torch.testing.assert_close(nats, wanted, rtol=0, atol=1e-6)


def test_a_core_is_the_weight_change_b_r_a(
    new_model: NewModel, cored: LanguageModel, tiny_basis: Basis, cached: CachedDialogues
) -> None:
    cores = some_cores(tiny_basis)
    cored.set_cores(cores)
    merged = new_model()
    for name, (a, b) in tiny_basis.factors.items():
        merged.net.get_submodule(name).weight += torch.tensor(b @ cores[name] @ a)
    documents = cached(cored, 3)
    for nats, wanted in zip(cored.document_nats(documents), merged.document_nats(documents), strict=True):
        torch.testing.assert_close(nats, wanted, rtol=0, atol=1e-3)
    moved = torch.cat(cored.document_nats(documents)) - torch.cat(new_model().document_nats(documents))
    assert moved.abs().max() > 0.05, "cores this large must show"


def test_cores_come_back_in_the_layouts_order(cored: LanguageModel, tiny_basis: Basis) -> None:
    cores = some_cores(tiny_basis)
    cored.set_cores(cores)
    assert list(cored.cores()) == [site.module for site in tiny_basis.layout.sites]
    assert all(torch.equal(linear.weight, torch.tensor(cores[name])) for name, linear in cored.cores().items())


def test_a_new_basis_replaces_the_old_one(cored: LanguageModel, tiny_basis: Basis, cached: CachedDialogues) -> None:
    cored.set_cores(some_cores(tiny_basis))
    name = next(iter(tiny_basis.factors))
    cored.attach(Basis({name: tiny_basis.factors[name]}))
    assert list(cored.cores()) == [name]
    assert sorted(n for n, _ in cored.net.named_parameters() if ".lora_A." in n) == [
        f"{name}.lora_A.{GLOBAL}.basis.weight",
        f"{name}.lora_A.{GLOBAL}.core.weight",
    ]
    document = cached(cored, 1)[0]
    torch.testing.assert_close(cored.document_nats([document])[0], plain_nats(cored, document.encoded))


@pytest.mark.parametrize("layer", [0, 2, 17])
def test_a_basis_below_the_adapted_layers_or_of_another_model_is_refused(
    new_model: NewModel, tiny_basis: Basis, layer: int
) -> None:
    factors = {name.replace("layers.3", f"layers.{layer}"): pair for name, pair in tiny_basis.factors.items()}
    with pytest.raises(ModelError, match=rf"does not fit this model at model\.layers\.{layer}\."):
        new_model().attach(Basis(factors))


def test_a_basis_of_another_shape_is_refused(new_model: NewModel, tiny_basis: Basis) -> None:
    name = "model.layers.5.self_attn.q_proj"
    a, b = tiny_basis.factors[name]
    with pytest.raises(ModelError, match="does not fit"):
        new_model().attach(Basis({name: (a[:, :-1], b)}))


def test_what_is_trained_is_float32_over_a_bfloat16_base(new_model: NewModel, tiny_basis: Basis) -> None:
    model = new_model(3, torch.bfloat16)
    model.attach(tiny_basis)
    model.add_own(2, ["q_proj"])
    types = {(".core." in n or f".{OWN}." in n, p.dtype) for n, p in model.net.named_parameters()}
    assert types == {(False, torch.bfloat16), (True, torch.float32)}, "the basis is frozen, and of the base's type"


def test_in_float32_a_core_gives_the_bits_of_pefts_own_path(cored: LanguageModel, tiny_basis: Basis) -> None:
    cored.set_cores(some_cores(tiny_basis))
    documents = [cored.prefix(cored.encode_text("I walk to the sea.", [(0, 18)], "d", 64))]
    (ours,) = cored.document_nats(documents)
    for name in cored.cores():
        layer: Any = cored.net.get_submodule(name)
        del layer.lora_variant[GLOBAL]
    assert torch.equal(ours, cored.document_nats(documents)[0])


def test_pefts_own_merge_of_a_core_is_the_core(cored: LanguageModel, tiny_basis: Basis) -> None:
    cored.set_cores(some_cores(tiny_basis))
    documents = [cored.prefix(cored.encode_text("I walk to the sea.", [(0, 18)], "d", 64))]
    wanted = cored.document_nats(documents)
    layer: Any = cored.net.get_submodule(next(iter(cored.cores())))
    before = layer.base_layer.weight.detach().clone()
    for safe in (True, False):
        layer.merge(safe_merge=safe)
        assert not torch.equal(layer.base_layer.weight, before)
        for nats, each in zip(cored.document_nats(documents), wanted, strict=True):
            torch.testing.assert_close(nats, each, rtol=1e-4, atol=1e-4)
        layer.unmerge()
        torch.testing.assert_close(layer.base_layer.weight.detach(), before)


def test_own_adapters_sit_on_any_linear_module_of_the_adapted_layers(new_model: NewModel, tiny_basis: Basis) -> None:
    model = new_model()
    name = "model.layers.5.self_attn.q_proj"
    model.attach(Basis({name: tiny_basis.factors[name]}))
    before = set(model.linear_modules())
    model.add_own(2, ["q_proj", "o_proj"])
    found = {n.split(".lora_A.")[0] for n, _ in model.net.named_parameters() if f".lora_A.{OWN}." in n}
    assert found == {f"model.layers.{i}.self_attn.{m}_proj" for i in (3, 4, 5) for m in "qo"}
    assert set(model.linear_modules()) == before, "adapters are not modules that adapters may sit on"


def test_an_own_adapter_may_keep_to_the_top_layers(new_model: NewModel) -> None:
    model = new_model(3)
    model.add_own(2, ("q_proj",), top_layers=1)
    adapted = {name for name, _ in model.net.named_modules() if name.endswith("lora_A.own")}
    assert len(adapted) == 1 and f".{model.depth - 1}." in next(iter(adapted))


def test_an_own_adapter_on_no_module_is_refused(cored: LanguageModel) -> None:
    with pytest.raises(ModelError, match="none of the modules key_proj"):
        cored.add_own(2, ["key_proj"])


def test_everything_is_frozen_unless_it_trains(cored: LanguageModel) -> None:
    cored.add_own(2, ["q_proj"])
    cored.activate(GLOBAL, OWN)
    assert not any(p.requires_grad for p in cored.net.parameters())


# -- architectures ------------------------------------------------------------------------------------------------


def seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make()


def test_switching_counts_again_where_an_adapter_came_back(cored: LanguageModel, cached: CachedDialogues) -> None:
    """What PEFT was told last is remembered; an adapter that is dropped and added anew is another one."""
    documents = cached(cored, 2)
    for _ in range(2):
        cored.add_own(4, ("q_proj", "v_proj"))
        cored.activate(GLOBAL)
        without = torch.cat(cored.document_nats(documents))
        with torch.no_grad():
            for name, parameter in cored.net.named_parameters():
                if f"lora_B.{OWN}" in name:
                    parameter.fill_(0.5)
        cored.activate(GLOBAL, OWN)
        assert not torch.allclose(torch.cat(cored.document_nats(documents)), without)
        cored.activate(GLOBAL)
        assert torch.equal(torch.cat(cored.document_nats(documents)), without)
        cored.activate(GLOBAL, OWN)
        cored.drop_own()


def test_a_core_that_was_replaced_is_the_one_that_is_found(cored: LanguageModel) -> None:
    name, core = next(iter(cored.cores().items()))
    other = torch.nn.Linear(core.in_features, core.out_features, bias=False)
    cored.net.get_submodule(name).lora_A[GLOBAL].core = other
    assert cored.cores()[name] is other


def test_a_model_whose_prefix_does_not_replay_is_run_whole(new_model: NewModel) -> None:
    config = GPT2Config(vocab_size=259, n_positions=64, n_embd=32, n_layer=3, n_head=2)
    net = seeded(lambda: GPT2LMHeadModel(config))
    torch.nn.init.normal_(net.transformer.wpe.weight, std=2.0, generator=torch.Generator().manual_seed(0))
    model = LanguageModel(net, new_model().tokenizer, 1, "gpt2")
    assert model.first == 0, "positions are added twice when its upper half is fed alone"
    document = model.prefix(model.encode_text("I walk.", [(0, 7)], "d", 64))
    torch.testing.assert_close(model.document_nats([document])[0], plain_nats(model, document.encoded))


def test_scaled_logits_are_refused(new_model: NewModel) -> None:
    config = GraniteConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=8.0,
        initializer_range=0.5,
    )
    with pytest.raises(ModelError, match="granite: this architecture's logits are not head"):
        LanguageModel(seeded(lambda: GraniteForCausalLM(config)), new_model().tokenizer, 1, "granite")


def test_layers_that_cannot_be_found_are_refused(new_model: NewModel) -> None:
    config = OPTConfig(vocab_size=259, hidden_size=32, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2)
    with pytest.raises(ModelError, match="no list of 2 layers in OPTModel"):
        LanguageModel(seeded(lambda: OPTForCausalLM(config)), new_model().tokenizer, 1, "opt")


def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as refused:
        LanguageModel.load(tmp_path)
    assert "\n" not in str(refused.value)


def test_the_owners_words_behind_a_long_text_are_read(new_model: NewModel) -> None:
    """A headline behind an article of any length is a target; without the rule it is cut off."""
    model = new_model()
    for length in (10, 47, 48, 49, 200, 1000):
        encoded = model.encode(Document("d", (Span("x" * length, own=False), Span("abcd", own=True)), "test", 0), 64)
        assert model.tokenizer.decode(encoded.ids[encoded.target].tolist()) == "abcd"
        assert len(encoded.ids) <= 64


def test_a_long_text_of_the_owners_own_is_read_from_its_beginning(new_model: NewModel) -> None:
    model = new_model()
    spans = (Span("x" * 20, own=False), Span("y" * 500, own=True))
    encoded = model.encode(Document("d", spans, "test", 0), 64)
    assert str(model.tokenizer.decode(encoded.ids.tolist())).startswith("x" * 20)
    assert len(encoded.ids) == 64
