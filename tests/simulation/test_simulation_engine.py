"""Whole runs on a tiny model: every file of a run, what is claimed of it, and that nobody's test text trains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load_file

import client.learner
import client.own_training
import client.train
import confide
import simulation.work
from client.model import Cached
from privacy.adapter import merge_cores
from privacy.audit.replay import audit_run
from privacy.errors import ConfigError, ReleaseInvalid
from privacy.ledger import LedgerView, public_key_of, read_ledger
from privacy.plan import Campaign as Planned
from privacy.plan import plan
from privacy.query import Query
from privacy.release import verify_release
from privacy.wire import Answer, decode
from server.registry import write_release
from simulation.evaluate_run import evaluate_run
from simulation.mechanism.code import code_sha256
from simulation.population import load_people
from simulation.progress import Progress
from simulation.run import simulate

FILES = (
    "run.json report.json report.html audit.html ledger/federation.jsonl ledger/federation.pub ledger/policy.json "
    "release/release.json release/release.sig release/basis.safetensors release/global/adapter_config.json "
    "release/global/adapter_model.safetensors checkpoints"
)
ARM_KEYS = {"bits_per_token", "tokens", "users", "users_improved", "relative_gain", "low", "high"}
PRIVACY_KEYS = {"unit", "adjacency", "rho", "epsilon", "participations", "cohort_floor", "noise_multiplier", "snr"}
COST_KEYS = {"seconds", "tokens_per_second", "peak_memory_bytes", "bytes_up_per_device", "bytes_down_per_device"}


@dataclass
class Seen:
    """Which documents were trained on, and for what."""

    shared: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Note every document that reaches the one function that trains shared cores, or the one for own adapters."""
        core_update, train_own = client.train.core_update, client.own_training.train_own

        def shared(model: Any, documents: list[Cached], *rest: Any) -> Any:
            self.shared |= {d.encoded.document for d in documents}
            return core_update(model, documents, *rest)

        def own(model: Any, documents: list[Cached], *rest: Any) -> Any:
            self.own |= {d.encoded.document for d in documents}
            return train_own(model, documents, *rest)

        patch.setattr(client.learner, "core_update", shared)
        patch.setattr(simulation.work, "train_own", own)


@dataclass
class Finished:
    """A run that is over: its folder, report, the calls on its hosts, and what trained."""

    folder: Path
    report: dict[str, Any]
    calls: list[tuple[str, str, tuple[Any, ...], Any]]
    seen: Seen

    @property
    def federation(self) -> LedgerView:
        return read_ledger(self.folder / "ledger" / "federation.jsonl")

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        return tensors_of(self.folder)


def tensors_of(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return every tensor of a release by file and name."""
    files = sorted((folder / "release").rglob("*.safetensors"))
    return {f"{f.relative_to(folder)}:{name}": t for f in files for name, t in load_file(f).items()}


def same_bits(a: Mapping[str, np.ndarray[Any, Any]], b: Mapping[str, np.ndarray[Any, Any]]) -> bool:
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """Return the runs of this module, each made by the first test that needs it."""
    return {}


@pytest.fixture
def finished(kept: dict[str, Finished], run: Any, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return `finished(name)`: the run of that name."""
    settings = {
        "plain": ["own.people=2"],
        "personas": ["personas=2", "dropout=0.2", "compare_without_noise=false"],
        "off": [f'people="{few}"', "privacy.transport=off", "evaluation.held_out=2", "rounds=1", "scrub=true"],
        "replayed": ["compare_without_noise=false"],
        "three workers": ["compare_without_noise=false", "workers=3"],
    }

    def get(name: str) -> Finished:
        if name not in kept:
            folder, seen = tmp_path_factory.mktemp("runs") / name.replace(" ", "-"), Seen()
            hosts: list[Any] = []
            with pytest.MonkeyPatch.context() as patch:
                seen.watch(patch)
                replay = name in ("replayed", "three workers")
                report = run(folder, *settings[name], replay=replay, hosts=hosts)
            kept[name] = Finished(folder, report, hosts[0].log, seen)
        return kept[name]

    return get


@pytest.fixture
def plain(finished: Any) -> Finished:
    """Return the run that has everything but personas: two rounds, comparison, own adapters, fresh noise."""
    found: Finished = finished("plain")
    return found


def test_a_run_leaves_the_files_that_others_rely_on(plain: Finished) -> None:
    missing = [name for name in FILES.split() if not (plain.folder / name).exists()]
    assert not missing
    devices = {p.stem for p in (plain.folder / "ledger" / "devices").glob("*.jsonl")}
    assert len(devices) == 18
    assert devices == {p.stem for p in (plain.folder / "ledger" / "devices").glob("*.pub")}


def test_the_manifest_says_what_ran_and_holds_no_secret(plain: Finished) -> None:
    manifest = json.loads((plain.folder / "run.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["config"]["adapter.rank"] == 4
    assert {"python", "torch", "opacus", "dp-accounting"} <= set(manifest["versions"])
    assert {"people", "model", "basis", "policy", "release"} <= set(manifest["hashes"])
    assert manifest["code_sha256"] == code_sha256()
    assert manifest["replayed_noise"] is False
    keys = json.loads((plain.folder / "checkpoints" / "keys.json").read_text())
    public = "".join(p.read_text(errors="ignore") for p in plain.folder.glob("*.*"))
    assert not [name for name, raw in keys.items() if raw in public]


def test_with_the_run_its_noise_root_and_bare_updates_are_gone(plain: Finished) -> None:
    left = {path.name for path in (plain.folder / "checkpoints").iterdir()}
    assert not left & {"noise.root", "answers", "updates"}
    assert (plain.folder / "checkpoints" / "keys.json").stat().st_mode & 0o777 == 0o600


def test_the_report_has_what_scripts_read(plain: Finished) -> None:
    report = json.loads((plain.folder / "report.json").read_text())
    arms = {"base", "global", "global_noiseless", "own", "own_record_dp", "retrieval", "all", "wrong_person"}
    assert set(report["arms"]) == arms
    assert all(set(arm) >= ARM_KEYS for arm in report["arms"].values())
    assert set(report["privacy"]) >= PRIVACY_KEYS
    assert len(report["privacy"]["epsilon"]) == 3
    assert set(report["cost"]) >= COST_KEYS
    assert [row["round"] for row in report["rounds"]] == [0, 1]
    assert len(report["people"]) == 18
    assert len(report["lines"]) == 3
    assert report["not_private"] == []
    assert report["arms"]["own"]["users"] == 2


def test_every_arm_is_scored_on_the_same_tokens_of_a_person(plain: Finished) -> None:
    tokens: dict[str, set[tuple[tuple[str, int], ...]]] = {}
    for user, method, _, result in plain.calls:
        if method in ("score", "score_person"):
            for rows in result.values():
                tokens.setdefault(user, set()).add(tuple((document, n) for document, _, n in rows))
    assert len(tokens) == 18
    assert all(len(different) == 1 for different in tokens.values())


def test_training_beats_the_base_model_it_started_from(plain: Finished) -> None:
    """Favourite words are easy to learn; a run in which nothing is learned would pass every other test here."""
    report = plain.report
    assert report["arms"]["global_noiseless"]["relative_gain"] > 0
    assert report["arms"]["own"]["bits_per_token"] < report["arms"]["own"]["base_bits_per_token"]


def test_the_audit_of_a_run_holds(plain: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    assert confide.run(confide.confide, ["audit", "run", str(plain.folder)]) == 0
    assert "holds" in capsys.readouterr().out
    assert "<html" in (plain.folder / "audit.html").read_text()


def test_stock_peft_loads_the_release(plain: Finished, tiny_model_dir: Path) -> None:
    """The released folder in plain PEFT gives the scores that the report gives for global."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from client.model import LanguageModel

    text = "I like the bread I carry the lamp."
    ids = AutoTokenizer.from_pretrained(tiny_model_dir)(text, return_tensors="pt")["input_ids"]
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        plain_logits = base(ids).logits
        released = PeftModel.from_pretrained(base, plain.folder / "release" / "global")(ids).logits
    release = verify_release(plain.folder / "release", _federation_key(plain.folder))
    ours = LanguageModel.load(tiny_model_dir, top_layers=2)
    ours.attach(release.basis)
    ours.set_cores(release.adapters["global"])
    with torch.no_grad():
        wanted = ours.net(ids).logits
    assert float((released - wanted).abs().max()) < 1e-3
    assert float((released - plain_logits).abs().max()) > 1e-2


def test_no_test_conversation_trains_anything(plain: Finished, run: Any) -> None:
    people = load_people(str(run.people), None).people
    history = {d.id for p in people for d in p.history}
    test = {d.id for p in people for d in p.test}
    assert plain.seen.shared and plain.seen.own
    assert plain.seen.shared <= history
    assert plain.seen.own <= history
    assert not (plain.seen.shared | plain.seen.own) & test


def test_the_plan_foresees_the_noise_that_a_run_measures(plain: Finished) -> None:
    """Every update is longer than the clip here, which is what the plan's formula assumes."""
    for row in plain.report["rounds"]:
        assert row["clip_fraction"] == 1.0
        asked = Planned(
            people=row["invited"],
            noise_multiplier=Fraction(1),
            rounds=2,
            dropout=0.0,
            dim=plain.report["what"]["shared_numbers"],
            alpha=row["alpha"],
        )
        assert plan(asked).noise_ratio == pytest.approx(row["noise_ratio"], rel=0.05)


def test_the_noise_in_a_sum_is_as_large_as_claimed(finished: Any) -> None:
    """Sum minus the exact clipped updates, over 2 rounds of 224 numbers: deviation within 15 %, 4 deviations of it."""
    replayed = finished("replayed")
    errors = []
    updates: dict[tuple[str, int], np.ndarray[Any, Any]] = {}
    for user, method, arguments, result in replayed.calls:
        if method == "observe":
            updates[user, arguments[1]] = result
    for reserved in replayed.federation.account.charged():
        query, clip = reserved.query, float(reserved.query.clip_norm)
        exact = [updates[user, query.round] for user in reserved.invited]
        exact = [u * min(1, clip / np.linalg.norm(u)) for u in exact]
        total = sum_on_disk(replayed.folder, query.round) / query.scale
        errors.append((total - np.sum(exact, axis=0)) / (query.sigma * np.sqrt(len(exact)) / query.scale))
    assert 0.85 < np.std(np.concatenate(errors)) < 1.15


def sum_on_disk(folder: Path, number: int) -> np.ndarray[Any, Any]:
    from safetensors.numpy import load

    facts = json.loads((folder / "checkpoints" / "rounds" / f"round-{number:05d}-0.sum").read_bytes())
    return load(bytes.fromhex(facts["sum"]))["total"]


def test_dropout_costs_the_share_of_those_who_drop_and_nothing_else(finished: Any, plain: Finished) -> None:
    dropped = finished("personas")
    reserved = list(dropped.federation.account.charged())
    assert [row["survivors"] for row in dropped.report["rounds"]] == [15, 15]
    for event in reserved:
        survivors = event.facts["survivors"]
        assert len(survivors) == 15
        assert set(survivors) < set(event.invited)
        total = np.zeros(event.query.dim, dtype=np.uint32)
        for message in answers_of(dropped, event.query.sha256):
            if message.device_id in survivors:
                total += message.vector
        assert np.array_equal(total.view(np.int32), sum_on_disk(dropped.folder, event.query.round))
    assert dropped.report["privacy"]["epsilon"] == plain.report["privacy"]["epsilon"]
    lost = set(reserved[0].invited) - set(reserved[0].facts["survivors"])
    for device in lost:  # it answered: what it spent stays spent
        assert read_ledger(dropped.folder / "ledger" / "devices" / f"{device}.jsonl").account.spent_rho() == 1


def answers_of(run: Finished, query_sha256: str) -> Iterator[Answer]:
    for _, method, _, result in run.calls:
        if method == "relay":
            message = decode(result)
            if isinstance(message, Answer) and message.query_sha256 == query_sha256:
                yield message


def test_personas_get_slots_noisy_counts_and_an_assignment(finished: Any) -> None:
    run = finished("personas")
    queries = [event.query for event in run.federation.account.charged()]
    assert [(q.purpose, q.slots) for q in queries] == [("train.global", 1), ("train.persona", 2)]
    personas = run.report["personas"]
    assert personas["k"] == 2
    assert set(personas["assignment"]) == {f"u5x{i:02d}" for i in range(18)}
    assert set(personas["assignment"].values()) <= {0, 1}
    for row, query in zip(run.report["rounds"], queries, strict=True):
        assert row["noise_ratio"] == pytest.approx(noise_ratio_of(run, query))
    counts = [row["noisy_count"] for row in personas["rows"]]
    assert all(count != round(count) for count in counts)
    published = {row["name"] for row in personas["rows"] if row["published"]}
    folders = {p.name for p in (run.folder / "release").iterdir() if p.name.startswith("persona-")}
    assert folders == published
    assert run.report["arms"]["persona"]["users"] == 18


def noise_ratio_of(run: Finished, query: Query) -> float:
    """Return |noise| / |signal| of a round from what each device clipped into its slot, and where that slot lies."""
    clip, rows = float(query.clip_norm), []
    for _, method, arguments, update in run.calls:
        if method == "observe" and arguments[1] == query.round:
            assert np.count_nonzero(np.linalg.norm(update.reshape(query.slots, -1), axis=1)) == 1
            rows.append(update * min(1, clip / np.linalg.norm(update)))
    noise = clip * float(query.noise_multiplier) * np.sqrt(query.dim / (query.cohort.honest * 15))
    return float(noise / np.linalg.norm(np.mean(rows, axis=0)))


def test_without_noise_everything_says_so(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    off = finished("off")
    report, release = off.report, json.loads((off.folder / "release" / "release.json").read_text())
    assert report["not_private"] == ["transport off: no noise was added"]
    assert report["privacy"]["private"] is False
    assert set(report["privacy"]["epsilon"].values()) == {None}
    assert any("NOT PRIVATE" in line for line in report["lines"])
    assert release["private"] is False
    assert release["stamp"] == "NOT PRIVATE"
    for page in ("report.html", "audit.html"):
        assert "NOT PRIVATE" in (off.folder / page).read_text()
    assert confide.run(confide.confide, ["audit", "run", str(off.folder)]) == 0
    assert "NOT PRIVATE" in capsys.readouterr().out


def test_held_out_people_are_scored_and_never_asked(finished: Any, few: Path) -> None:
    off = finished("off")
    everybody = load_people(str(few), None).by_user
    held_out = {row["user"] for row in off.report["people"]}
    assert len(held_out) == 2
    assert off.report["what"]["people"] == 6
    assert not {p.stem for p in (off.folder / "ledger" / "devices").iterdir()} & held_out
    asked = {user for user, method, _, _ in off.calls if method in ("relay", "without_noise", "observe")}
    assert asked == set(everybody) - held_out
    assert not {document.rsplit(".", 1)[0] for document in off.seen.shared} & held_out


def test_scrubbing_is_reported_with_its_cost(finished: Any) -> None:
    scrub = finished("off").report["scrub"]
    assert scrub["documents"] == 6 * 8  # history of all eight, two of them held out
    assert scrub["raw_bits_per_token"] > 0
    assert scrub["scrubbed_bits_per_token"] > 0


def test_replayed_noise_is_stamped_everywhere(finished: Any) -> None:
    replayed = finished("replayed")
    assert replayed.report["not_private"] == ["noise replayed from a key file"]
    assert json.loads((replayed.folder / "release" / "release.json").read_text())["stamp"] == "NOT PRIVATE"
    assert all(event.query.replayed_noise for event in replayed.federation.account.charged())
    assert json.loads((replayed.folder / "run.json").read_text())["replayed_noise"] is True


def test_the_number_of_workers_changes_no_bit_of_the_release(finished: Any) -> None:
    assert same_bits(finished("replayed").tensors(), finished("three workers").tensors())


def test_fresh_noise_differs_from_run_to_run(finished: Any, plain: Finished) -> None:
    """The comparison that the bit-identical tests rest on must be able to fail."""
    assert not same_bits(finished("replayed").tensors(), plain.tensors())


def test_the_verdict_names_an_answer_that_was_taken_out(finished: Any, tmp_path: Path) -> None:
    """An audit that holds on every run of this module does not hold on one that was changed afterwards."""
    copy = tmp_path / "copy"
    shutil.copytree(finished("replayed").folder, copy)
    victim = sorted((copy / "ledger" / "devices").glob("*.jsonl"))[0]
    lines = victim.read_bytes().splitlines(keepends=True)
    victim.write_bytes(b"".join(lines[:-2]))
    assert not audit_run(copy).holds


def test_people_never_seen_are_scored_against_the_release(plain: Finished, strangers: Path, hosts_here: Any) -> None:
    arms = ["base", "global", "own", "retrieval", "all", "wrong_person"]
    card = evaluate_run(plain.folder, str(strangers), arms, Progress(quiet=True), open_hosts=hosts_here)
    assert set(card["arms"]) == set(arms)
    assert all(set(arm) >= ARM_KEYS and arm["users"] == 4 for arm in card["arms"].values())
    assert {row["user"] for row in card["people"]} == {f"u11x{i:02d}" for i in range(4)}
    assert (card["people_scored"], card["people_in_training"], card["not_private"]) == (4, 0, [])
    assert card["privacy"]["rho"] == "1.0"
    assert card["release"] == plain.report["hashes"]["release"]
    assert not any("u11x" in path.name for path in plain.folder.rglob("*"))


def test_the_runs_own_people_get_the_figures_of_its_report(plain: Finished, hosts_here: Any) -> None:
    card = evaluate_run(plain.folder, None, ["base", "global"], Progress(quiet=True), open_hosts=hosts_here)
    assert card["people_in_training"] == 18
    for arm in ("base", "global"):
        assert card["arms"][arm]["bits_per_token"] == pytest.approx(plain.report["arms"][arm]["bits_per_token"])


def test_a_release_that_was_changed_is_not_evaluated(plain: Finished, strangers: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(plain.folder, copy)
    core = copy / "release" / "global" / "core.safetensors"
    data = bytearray(core.read_bytes())
    data[-1] ^= 1
    core.write_bytes(data)
    with pytest.raises(ReleaseInvalid):
        evaluate_run(copy, str(strangers), ["base"], Progress(quiet=True))


@pytest.mark.parametrize(("arms", "said"), [(["base", "nothing"], "unknown arm nothing; known: base, global")])
def test_an_arm_that_does_not_exist_is_refused(plain: Finished, arms: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        evaluate_run(plain.folder, None, arms, Progress(quiet=True))


def test_a_person_is_scored_under_the_persona_that_fits_their_history(
    plain: Finished, strangers: Path, hosts_here: Any, tmp_path: Path
) -> None:
    """Of two published personas, one is the global core away from what was learned: nobody may choose it."""
    copy = tmp_path / "copy"
    shutil.copytree(plain.folder, copy)
    key = json.loads((copy / "checkpoints" / "keys.json").read_text())["federation"]
    release = verify_release(copy / "release", _federation_key(copy))
    core = release.adapters["global"]
    adapters = {"global": core, "persona-0": merge_cores([(-2.0, core)]), "persona-1": merge_cores([(0.0, core)])}
    signer = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key))
    write_release(copy / "release", release.basis, adapters, release.facts, signer)
    arms = ["global", "persona"]
    card = evaluate_run(copy, str(strangers), arms, Progress(quiet=True), open_hosts=hosts_here)
    assert set(card["assignment"].values()) == {"persona-1"}
    assert card["arms"]["persona"]["bits_per_token"] == card["arms"]["global"]["bits_per_token"]


@pytest.fixture
def command(hosts_here: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return what runs `confide`, without worker processes, and returns what it prints."""
    for function in (simulate, evaluate_run):
        defaults = {**(function.__kwdefaults__ or {}), "open_hosts": hosts_here}
        monkeypatch.setattr(function, "__kwdefaults__", defaults)

    def get(*arguments: object) -> str:
        capsys.readouterr()
        assert confide.run(confide.confide, [str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return get


def test_the_command_prints_a_scorecard(plain: Finished, strangers: Path, command: Any) -> None:
    arguments = ["evaluate", plain.folder, "--people", strangers, "--own-people", 0]
    assert set(json.loads(command(*arguments, "--json"))["arms"]) == {"base", "global"}
    shown = command(*arguments)
    assert "4 people of strangers.jsonl, none of them took part in the run" in shown
    assert "global, released" in shown


def test_the_command_prints_the_report_and_nothing_else(run: Any, command: Any, tmp_path: Path) -> None:
    arguments = run.arguments("rounds=1", "compare_without_noise=false", "workers=1")
    printed = command("simulate", "--json", "--out", tmp_path / "run", *arguments)
    assert json.loads(printed) == json.loads((tmp_path / "run" / "report.json").read_text())
    shown = command("simulate", "--overwrite", "--out", tmp_path / "run", *arguments)
    assert "global, epsilon" in shown
    assert "against the server itself: epsilon" in shown


def _federation_key(folder: Path) -> Any:
    return public_key_of(folder / "ledger" / "federation.jsonl")
