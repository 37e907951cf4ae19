"""Flower's simulation (Ray) with plain FedAvg over stock PEFT LoRA: `python flower_fedavg.py JOB.json`, JSON out.

A worker loads the model and everybody's tokens once and keeps them, which is the most that Flower lets a client save.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import time
from typing import Any

import small_text
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peft import get_peft_model_state_dict, set_peft_model_state_dict

client, server = ClientApp(), ServerApp()
JOB = "CONFIDE_BENCH_JOB"
found: dict[str, Any] = {}


@functools.cache
def kept() -> tuple[Any, list[torch.Tensor]]:
    """Return this worker's model and tokens."""
    job = small_text.read_job(os.environ[JOB])
    return small_text.adapted_model(job), small_text.token_rows(job)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Take one step on the person's documents from the adapter in the message, and send the new one."""
    job = small_text.read_job(os.environ[JOB])
    model, rows = kept()
    ids = rows[int(context.node_config["partition-id"])]
    set_peft_model_state_dict(model, message.content.array_records["arrays"].to_torch_state_dict())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=job["learning_rate"])
    loss = small_text.mean_loss(model, ids)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    metrics = MetricRecord({"loss": float(loss.detach()), "num-examples": len(ids)})
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, _context: Context) -> None:
    """Run FedAvg over all nodes, every round."""
    job = small_text.read_job(os.environ[JOB])
    state = get_peft_model_state_dict(small_text.adapted_model(job))
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=job["count"], min_train_nodes=job["count"])
    begun = time.perf_counter()
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(state), num_rounds=job["rounds"])
    found["rounds_s"] = time.perf_counter() - begun
    metrics: Any = sorted(result.train_metrics_clientapp.items())
    found["losses"] = [float(m["loss"]) for _, m in metrics]
    found["numbers"] = sum(t.numel() for t in state.values())


def run(path: str) -> None:
    """Run the job and print what was found, as the last line."""
    job = small_text.read_job(path)
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=job["count"],
        backend_config={
            "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0},
            "init_args": {"num_cpus": job["workers"], "include_dashboard": False, "log_to_driver": False},
        },
    )
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    os.environ[JOB] = sys.argv[1]
    # Imported under its own name, so that Ray's workers find it as a module and keep what it caches.
    importlib.import_module("flower_fedavg").run(sys.argv[1])
