"""The privacy officer's report on one RUN: statement, records for the law, budgets, mechanism, limits, integrity.

Built from the verdict of `confide audit run`, which recomputes every figure from ledgers and release, and from files of
evidence that lie beside. What nobody gave is an empty line and not a guess. Structure after NIST SP 800-226 (guarantee,
unit and epsilon first; then what they rest on); sections 2 and 3 hold what GDPR Art. 30(1) and 35(7) ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from privacy.audit.document import Block, Bullets, Document, Facts, Section, Table, Text
from privacy.audit.html import LIMITS, adversaries, date_text, delta_text, figure, odds, strength
from privacy.audit.officer_evidence import Numbered, evidence_section, fairness_blocks
from privacy.audit.verdict import Verdict

HEADLINE: Final = "1e-06"

# What only the controller knows: keys of about.json, and where they stand.
ABOUT: Final = {
    "controller": "controller, and who speaks for it",
    "officer": "data protection officer",
    "legal_basis": "legal basis (Art. 6), and consent where it is one",
    "recipients": "recipients beyond those who run the federation",
    "transfers": "transfers to third countries",
    "retention": "when ledgers, releases and adapters are erased",
    "access": "who may log in to server and devices",
    "necessity": "why no less data would do",
    "opinion": "the officer’s opinion",
}


@dataclass(frozen=True)
class Given:
    """What lies beside the verdict: report.json and run.json of the RUN, evidence by name, about.json, files' hashes.

    `evidence` may hold "mechanism", "bugs", "attacks" and "scrub", each the JSON of its command.
    """

    report: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    files: tuple[tuple[str, str], ...] = ()
    code_sha256: str = ""
    extra: tuple[tuple[str, str, str], ...] = ()  # more evidence: title, outcome, detail


def officer_document(verdict: Verdict, given: Given) -> Document:
    """Return the report; the same files give the same report."""
    facts: dict[str, Any] = dict(verdict.facts)
    numbered = Numbered.of(verdict, given.evidence, given.extra, given.code_sha256)
    holds = numbered.holds
    stamp = (
        "" if not facts or facts.get("private") else "NOT PRIVATE: charges without fresh noise. No figure is claimed."
    )
    made = [
        Section("statement", "1. Statement", tuple(_statement(facts, numbered, holds))),
        Section("processing", "2. Record of processing", tuple(_processing(facts, given))),
        Section("assessment", "3. For the impact assessment", tuple(_assessment(facts, given, numbered))),
        Section("budget", "4. Budgets", tuple(_budget(facts, given))),
        Section("mechanism", "5. Mechanism", tuple(_mechanism(facts, given))),
        evidence_section(numbered, given.evidence, given.code_sha256),
        Section("deployment", "7. Deployment", tuple(_deployment(facts, given, numbered))),
        Section("limits", "8. Limits", (*fairness_blocks(given.report), *_limits())),
        Section("integrity", "9. Integrity", tuple(_integrity(facts, given, numbered))),
    ]
    ended = f" Ledgers up to {date_text(int(facts['ended_ms']))}." if facts else ""
    return Document(
        title=f"Privacy report: {verdict.subject}",
        subtitle=f"What one person’s text can change in what others see, and what shows it.{ended}",
        holds=holds,
        line=numbered.line,
        stamp=stamp,
        sections=tuple(made),
    )


def per_unit(value: float | None, facts: Mapping[str, Any]) -> str:
    """Return an epsilon with its unit, which always stand together; "not claimed" without fresh noise."""
    if not facts.get("private"):
        return "not claimed"
    return f"{figure(value)} per {facts['statement']['unit']}"


def _statement(facts: Mapping[str, Any], numbered: Numbered, holds: bool) -> list[Block]:
    if not facts:
        return [Text("The federation’s ledger cannot be read to its end, so nothing can be stated.", "lead")]
    s, blocks = facts["statement"], list[Block]()
    epsilon = (s["epsilon"] or {}).get(HEADLINE)
    if facts["private"]:
        blocks.append(Text(_plain_words(epsilon, str(s["unit"])), "lead"))
    blocks.append(
        Text(
            ("Everything that was checked holds" if holds else "Something that was checked DOES NOT HOLD")
            + f" ({numbered.count('holds')} hold, {numbered.count('violated')} violated, "
            f"{numbered.count('unchecked')} could not be checked; section 6)."
        )
    )
    deltas = [str(delta) for delta in facts["deltas"]]
    rows = [
        (
            f"{who}: {sees}",
            *(per_unit((s[key] or {}).get(delta), facts) for delta in deltas),
            strength((s[key] or {}).get(HEADLINE)) if facts["private"] else "none",
            numbered.refer("accountants", "claims.release"),
        )
        for key, who, sees in adversaries(facts)
    ]
    head = ("against", *(f"ε at δ = {delta_text(delta)}" for delta in deltas), "protection", "evidence")
    widths = (0.35, *(0.135 for _ in deltas), 0.13, 0.115)
    blocks.append(Table("How much one person’s text can change in what each of them sees.", head, tuple(rows), widths))
    blocks.append(
        Facts(
            (
                ("protected unit", f"one {s['unit']}: everything that one device contributes, in all rounds"),
                ("adjacency", f"{s['adjacency']}: the person’s contribution against none"),
                ("answers of one person", f"{s['participations']} at most in this campaign"),
                ("amplification claimed", f"{s['amplification']}"),
                ("releases", f"{'1' if facts['integrity'].get('release_sha256') else 'none'}"),
            )
        )
    )
    return blocks


def _plain_words(epsilon: float | None, unit: str) -> str:
    return (
        f"Somebody who holds the released adapters, and thinks it as likely as not that a given {unit} took part, can "
        f"become {odds(epsilon)} sure at most, whatever else they know (ε = {figure(epsilon)} per {unit}, "
        f"δ = {delta_text(HEADLINE)}). What many people share is learnt all the same, as it is meant to be."
    )


def _about(given: Given, *names: str) -> tuple[tuple[str, str], ...]:
    return tuple((ABOUT[name], str(given.about.get(name, ""))) for name in names)


def _processing(facts: Mapping[str, Any], given: Given) -> list[Block]:
    purposes = sorted({str(row["purpose"]) for row in facts.get("rounds", ())})
    devices = facts.get("devices", {})
    rows = (
        *_about(given, "controller", "officer", "legal_basis"),
        ("purposes (b)", ", ".join(_purpose(each) for each in purposes) or "none was asked for"),
        ("people concerned (c)", f"the owners of {devices.get('count', 0)} devices"),
        (
            "data (c)",
            "text a person wrote on their own device; it does not leave it. What leaves: one clipped, noised "
            "vector a round; the device’s name; that and when it took part",
        ),
        *_about(given, "recipients", "transfers", "retention"),
        ("recipients (d)", "the server that adds; whoever gets the release"),
        (
            "measures (g)",
            "clip and noise on the device; masked sums; a budget that refuses; signed, chained ledgers; "
            "scrubbing before training (section 7)",
        ),
    )
    return [
        Text("For the record under GDPR Art. 30(1). Empty lines are the controller’s to fill in.", "note"),
        Facts(rows),
    ]


def _purpose(name: str) -> str:
    words = {"train.global": "training of an adapter that all share", "train.persona": "training of persona adapters"}
    return f"{words.get(name, name)} ({name})"


def _assessment(facts: Mapping[str, Any], given: Given, numbered: Numbered) -> list[Block]:
    server = (
        "covered by the masked sum and its noise" if _masked(facts) else "NOT covered: answers are added in the clear"
    )
    rows = (
        (
            "that somebody took part can be told from the release (membership)",
            "clip and noise",
            "bounded by ε, section 1",
            numbered.refer("claims.release", "layer:one run", "attack:membership"),
        ),
        (
            "text is rebuilt from an update or from the release",
            "masks, clip, noise",
            f"from one update: {server}",
            numbered.refer("layer:sensitivity", "attack:inversion", "attack:extraction"),
        ),
        (
            "a persona or a trait is inferred",
            "the slot lies under the same clip and noise",
            "bounded by ε; traits that a group shares are learnt",
            numbered.refer("layer:residuals", "attack:persona"),
        ),
        (
            "a secret is repeated by a model",
            "scrubbing, clip and noise",
            "scrubbing misses some (section 7)",
            numbered.refer("attack:exposure", "scrub"),
        ),
        (
            "a server asks too often or for too little noise",
            "policy and budget on the device",
            "refused there",
            numbered.refer("policy.bounds", "round.charged"),
        ),
        (
            "records are changed afterwards",
            "signed chains, checkpoints, witness",
            "shows, if somebody kept a checkpoint",
            numbered.refer("ledger.federation", "ledger.checkpoints", "ledger.witness"),
        ),
        ("false devices spoil the model (poisoning)", "the clip bounds each answer", "NOT prevented", "–"),
        ("who took part, when, from where", "none", "NOT prevented: the server and the network see it", "–"),
    )
    return [
        Text("For GDPR Art. 35(7): (a) description: sections 2 and 5; (b) necessity; (c) risks; (d) measures.", "note"),
        Facts(_about(given, "necessity")),
        Table(
            "Risks, measures, and what is left.",
            ("risk", "measure", "what is left", "evidence"),
            rows,
            (0.34, 0.24, 0.29, 0.13),
        ),
        Facts((*_about(given, "opinion"), ("date, name and signature", ""))),
    ]


def _masked(facts: Mapping[str, Any]) -> bool:
    return bool(facts) and list(facts["statement"].get("transport", ())) == ["masked"]


def _budget(facts: Mapping[str, Any], given: Given) -> list[Block]:
    devices, blocks = facts.get("devices") or {}, list[Block]()
    if not devices.get("rho"):
        return [Text("No charge can be read.")]
    names = {
        "min": "least",
        "p25": "a quarter has at most",
        "median": "half have at most",
        "p75": "three quarters have at most",
        "p95": "95 of 100 have at most",
        "max": "most",
    }
    rows = tuple(
        (
            words,
            figure(devices["rho"][name]),
            per_unit(devices["epsilon"][name], facts),
            figure(devices["participations"][name]),
        )
        for name, words in names.items()
        if name in devices["rho"]
    )
    whose = "their own ledgers" if devices["by_own_ledgers"] else "whom the federation invited"
    blocks.append(
        Table(
            f"Spent by person, over {devices['count']} devices, by {whose}.",
            ("", "ρ (zCDP)", f"ε at δ = {delta_text(HEADLINE)}", "answers"),
            rows,
            (0.4, 0.2, 0.25, 0.15),
        )
    )
    allowed, unit = devices.get("budget_rho"), facts["statement"]["unit"]
    lines = (
        [
            (
                "allowed in a lifetime",
                f"ρ = {figure(allowed)}, that is ε = {figure(devices['budget_epsilon'])} per "
                f"{unit}; past it a device refuses, and no switch turns that off",
            )
        ]
        if allowed
        else []
    )
    if devices.get("yearly_rho") is not None:
        lines.append(
            (
                "of it in any 365 days",
                f"ρ = {figure(devices['yearly_rho'])}, ε = {figure(devices['yearly_epsilon'])} per {unit}",
            )
        )
    if allowed:
        lines.append(("left to whoever spent most", f"ρ = {figure(allowed - devices['rho']['max'])}"))
    lines.append(("refused requests", "are not in the ledgers: a refusal costs nothing and says one code"))
    lines.append(("data set", str((given.report.get("what") or {}).get("data", "text on the devices"))))
    blocks.append(Facts(tuple(lines)))
    rounds = tuple(
        (
            f"{row['round']}{'.' + str(row['attempt']) if row['attempt'] else ''}",
            str(row["purpose"]),
            str(row["state"]),
            f"{row['survivors'] if row['survivors'] is not None else '–'} of {row['invited']}",
            figure(row["noise_multiplier"]),
            figure(row["rho_total"]) if facts["private"] else "–",
            per_unit(row["epsilon_total"], facts),
        )
        for row in facts["rounds"]
    )
    head = ("round", "purpose", "state", "answers", "z", "ρ so far", f"ε so far, δ = {delta_text(HEADLINE)}")
    blocks.append(
        Table(
            "Each question of the campaign, for a person invited to all.",
            head,
            rounds,
            (0.08, 0.18, 0.16, 0.14, 0.1, 0.12, 0.22),
        )
    )
    if facts["record"]:
        lines_ = tuple(
            (row["device"], row["artefact"], f"{figure(row['epsilon'])} per document", str(row["delta"]))
            for row in facts["record"][:20]
        )
        blocks.append(
            Table(
                "A second unit, one document of one device; never added to the figures above.",
                ("device", "what", "ε", "δ"),
                lines_,
                (0.3, 0.3, 0.25, 0.15),
            )
        )
    return blocks


def _code(given: Given) -> str:
    """Return the hash of the code that ran, and whether it is the code that reports (and that evidence must be of)."""
    ran = str(given.manifest.get("code_sha256") or "unknown when the run ended")
    return f"{ran}, " + ("which also made this report" if ran == given.code_sha256 else "NOT the code of this report")


def _mechanism(facts: Mapping[str, Any], given: Given) -> list[Block]:
    m = facts.get("mechanism")
    if not m:
        return [Text("No query is in the ledger.")]
    rows = (
        ("mechanism", str(facts["statement"]["mechanism"])),
        ("numbers in an answer", f"{m['dim']:,} in {m['slots']} slot(s), modulo 2^32"),
        ("clip", f"L2 norm {m['clip_norm']}, in integers S = {m['integer_clip']:,}, checked exactly"),
        ("noise of a sum", f"z = {figure(m['noise_multiplier'])}: deviation z S over {m['honest']} honest devices"),
        ("noise of a device", f"discrete Gaussian, deviation {m['sigma']:,.0f}, exact sampler"),
        ("source of randomness", "AES-256-CTR under a key of the operating system, never a seed; HKDF-SHA256 by event"),
        (
            "cohort",
            f"{m['invited']} invited, no sum below {m['min_survivors']}, up to {m['max_colluding']} may collude",
        ),
        ("transport", str(m["transport"])),
        ("accountant", "zCDP in exact fractions (enforced); exact Gaussian DP and PLD beside it"),
        ("code", _code(given)),
        (
            "versions",
            ", ".join(f"{k} {v}" for k, v in sorted((given.report.get("versions") or {}).items())) or "unknown",
        ),
    )
    return [Text("As the first query of the ledger has it.", "note"), Facts(rows)]


def _deployment(facts: Mapping[str, Any], given: Given, numbered: Numbered) -> list[Block]:
    scrub = given.report.get("scrub") or {}
    found = ", ".join(f"{name} {count}" for name, count in sorted((scrub.get("entities") or {}).items()))
    rows = (
        (
            "trust",
            "each device’s own code; a directory of keys that the server does not write; up to the named number "
            "of colluding devices. The server is not trusted with an answer"
            if _masked(facts)
            else "each device’s own code, and the server, which sees every answer",
        ),
        ("policy", f"signed: {numbered.refer('policy.signature')}"),
        ("witness", numbered.detail("ledger.witness")),
        ("what else the server sees", "who took part and when, sizes that follow from the question, refusal codes"),
        ("side channels", "training time depends on the text, unless answers are held to a fixed time"),
        ("scrubbed before training", found or "not noted for this run"),
        ("recall of scrubbing", numbered.detail("scrub")),
        *_about(given, "access"),
    )
    return [Facts(rows)]


def _limits() -> tuple[Block, ...]:
    return Text("What this report does not show:"), Bullets(LIMITS)


def _integrity(facts: Mapping[str, Any], given: Given, numbered: Numbered) -> list[Block]:
    known = tuple(
        (name.replace("_", " "), str(value)) for name, value in (facts.get("integrity") or {}).items() if value
    )
    return [
        Text("Keep these: whoever holds an older head can show that a ledger was cut or rewritten.", "note"),
        Facts(
            (
                *known,
                ("seen before", numbered.detail("ledger.checkpoints")),
                ("accountants", numbered.detail("accountants")),
            )
        ),
        Table("SHA-256 of the files that this was made from.", ("file", "SHA-256"), given.files, (0.3, 0.7)),
        Text("Rebuilt, byte for byte, from these files by: confide audit report RUN"),
    ]
