"""Direct preference optimisation under record-level privacy: what is learned tells little of any one choice.

    loss(choice) = mean over its pairs of - log sigmoid(beta margin(pair))            see `client.dpo`

One record is a choice: a prompt with all that its person preferred behind it, one pair or several. Opacus gives a
gradient for each row, and a pair is two rows; a choice's loss depends on its own rows alone, so the sum over them is
its gradient, which is clipped and noised as a document's is in `client.train`. With demonstrations a document of the
person's own is a choice as well: their words against the model's.

What a reply quoted of a document stands in as many choices as it was quoted in: the guarantee is one of choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from opacus import PrivacyEngine
from opacus.grad_sample import GradSampleModule
from torch import Tensor

from client.dpo import DPO, Preferred, dpo_loss, reference
from client.model import GLOBAL, OWN, LanguageModel, padded
from client.own import CHOICE, RecordPrivacy, own_modules
from client.own_training import noise_for
from client.train import DocumentLoss, Records, StepPlan, private_steps, quiet

DELTA, CLIP, MOST_STEPS, LEARNING_RATE = 1e-5, 1.0, 50, 1e-3


@dataclass(frozen=True)
class Choice:
    """The pairs of one choice and what the model said of them before it was trained, float32 [pairs, 2]."""

    pairs: tuple[Preferred, ...]
    before: Tensor

    @property
    def tokens(self) -> int:
        """Return the tokens of its rows, padding within the choice included."""
        texts = [text for pair in self.pairs for text in (pair.chosen, pair.rejected)]
        return len(texts) * max(len(text.encoded.ids) for text in texts)


@dataclass
class Choices(Sequence[Choice]):
    """Choices that are made when they are first drawn, with the own adapter off: what the model was before."""

    model: LanguageModel
    makers: Sequence[Callable[[], Sequence[Preferred]]]
    made: dict[int, Choice] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.makers)

    def __getitem__(self, at: int) -> Choice:  # type: ignore[override]
        if at not in self.made:
            trained = [p for module in own_modules(self.model) for p in module.parameters() if p.requires_grad]
            self.model.activate(GLOBAL)
            pairs = tuple(self.makers[at]())
            self.made[at] = Choice(pairs, reference(self.model, pairs))
            self.model.activate(GLOBAL, OWN)
            for p in trained:
                p.requires_grad_(True)
        return self.made[at]


def choice_gradients(beta: float) -> Callable[[GradSampleModule, Sequence[Choice]], None]:
    """Return what leaves each choice's gradient in every trained parameter's `grad_sample`, [choices, ...]."""

    def gradients(loss: GradSampleModule, choices: Sequence[Choice]) -> None:
        texts = [t for choice in choices for pair in choice.pairs for t in (pair.chosen, pair.rejected)]
        rows = padded(texts)
        counts = torch.bincount(rows.row, minlength=len(texts))
        now = -(loss(rows.hidden, *rows.where, rows.labels) * counts).reshape(-1, 2)
        of = torch.tensor([i for i, choice in enumerate(choices) for _ in choice.pairs], device=now.device)
        share = 1 / torch.bincount(of, minlength=len(choices))[of]
        losses = dpo_loss(now, torch.cat([choice.before for choice in choices]), beta) * share
        (losses.sum() / len(texts)).backward()  # Opacus takes a loss for the mean over rows, and undoes it
        row_of = of.repeat_interleave(2)
        for p in loss.parameters():
            if isinstance(rows_of_p := getattr(p, "grad_sample", None), Tensor):
                of_choices = torch.zeros((len(choices), *p.shape), device=rows_of_p.device, dtype=rows_of_p.dtype)
                p.grad_sample = of_choices.index_add(0, row_of, rows_of_p)

    return gradients


def train_private_dpo(
    model: LanguageModel,
    choices: Sequence[Choice],
    settings: DPO,
    epsilon: float,
    generator: torch.Generator,
    report: Callable[[int, int], None] = lambda _done, _steps: None,
) -> RecordPrivacy:
    """Train the active, fresh own adapter on choices, in place, and return what it tells of any one of them at most.

    (epsilon, `DELTA`) by the RDP accountant of Opacus, add or remove one choice; the noise is float Gaussian, so the
    bound is that of the real-number mechanism. `generator` draws batches and noise: it must be secret. An adapter that
    was trained before on the same choices would make the bound false.
    """
    rate = 1.0 / math.ceil(len(choices) / min(len(choices), settings.batch_pairs))
    steps = max(1, min(MOST_STEPS, settings.epochs * round(1.0 / rate)))
    noise = noise_for(epsilon, DELTA, rate, steps)
    loss = DocumentLoss(model, own_modules(model))
    optimizer = torch.optim.AdamW(loss.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    plan = StepPlan(steps, rate, CLIP, noise, seconds=settings.seconds)
    records = Records(choice_gradients(settings.beta), lambda choice: choice.tokens)

    def after(done: int, _engine: PrivacyEngine) -> None:
        report(done, steps)

    engine = private_steps(loss, optimizer, choices, plan, generator, after, records=records)
    with quiet():
        spent = float(engine.get_epsilon(DELTA))
    if not math.isinf(settings.seconds):  # when the clock ended it may tell of the text: the whole plan is charged
        spent = max(spent, epsilon)
    return RecordPrivacy(spent, DELTA, noise, rate, steps, CHOICE)
