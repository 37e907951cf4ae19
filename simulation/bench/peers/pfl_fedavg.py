"""pfl-research (torch) with federated averaging over stock PEFT LoRA: `python pfl_fedavg.py JOB.json`, JSON out."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import small_text
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel


class Losses(torch.nn.Module):
    """The model with the methods that pfl asks for; what each user's step began from is noted."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self.seen: list[float] = []

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """Return a user's mean loss."""
        found: torch.Tensor = small_text.mean_loss(self.net, ids)
        self.seen.append(float(found.detach()))
        return found

    def metrics(self, ids: torch.Tensor) -> dict[str, Any]:
        """Return nothing: no evaluation is asked for."""
        del ids
        return {}


class Rounds(TrainingProcessCallback):  # type: ignore[misc]
    """Keeps the mean loss of each round."""

    def __init__(self, model: Losses) -> None:
        self.model, self.losses = model, list[float]()

    def after_central_iteration(self, *_arguments: Any, **_settings: Any) -> tuple[bool, Any]:
        """Note the round's mean and go on."""
        self.losses.append(float(np.mean(self.model.seen)))
        self.model.seen.clear()
        return False, Metrics()


def main(path: str) -> None:
    """Run the job and print what was found, as the last line."""
    job = small_text.read_job(path)
    model = Losses(small_text.adapted_model(job))
    rows = small_text.token_rows(job)
    users = FederatedDataset(
        lambda user: Dataset([rows[user]], user_id=str(user)),
        get_user_sampler("minimize_reuse", list(range(job["count"]))),
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    wrapped = PyTorchModel(
        model=model,
        local_optimizer_create=lambda _all, lr: torch.optim.SGD(trained, lr=lr),
        central_optimizer=torch.optim.SGD(trained, lr=1.0),
    )
    rounds = Rounds(model)
    begun = time.perf_counter()
    FederatedAveraging().run(
        # An evaluation every so many rounds, and never before the last: the first is at 0 and takes no metrics.
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=job["rounds"],
            evaluation_frequency=job["rounds"] + 1,
            train_cohort_size=job["count"],
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=users, val_data=users),
        model=wrapped,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=job["learning_rate"], local_batch_size=None
        ),
        callbacks=[rounds],
    )
    numbers = sum(p.numel() for p in trained)
    found = {"rounds_s": time.perf_counter() - begun, "losses": rounds.losses, "numbers": numbers}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
