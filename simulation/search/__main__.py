"""`python -m simulation.search WORK DATA NAME key=value …`: run one campaign, or go on with it, and report it.

WORK holds `bases/`, `prefix/` and a folder a run; it holds personal text in another form and is never committed.
DATA holds `pool.jsonl` (who trains) and `others.jsonl` (who selects and is reported), or two names given by
`SEARCH_POOL` and `SEARCH_OTHERS`. Values are JSON; `local.steps=2`, `noise.epsilon=8` reach inside.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from client.base_model import base_model_path
from client.model import LanguageModel
from privacy.adapter import Basis
from simulation.datasets.jsonl import load
from simulation.search.campaign import Folder, report, run_campaign
from simulation.search.recipe import recipe_of
from simulation.search.slices import cached, score_documents, slices_of, train_parts

REPORTED = 100


def main(arguments: list[str]) -> None:
    """Run the recipe of the command line and write WORK/NAME/."""
    work, data, name = Path(arguments[0]), Path(arguments[1]), arguments[2]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    recipe = recipe_of(_values(arguments[3:]) | {"name": name})
    folder = Folder(work / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    recipe.save(folder.path / "recipe.json")
    pool = load(data / os.environ.get("SEARCH_POOL", "pool.jsonl"), 1).people
    others = load(data / os.environ.get("SEARCH_OTHERS", "others.jsonl"), 1).people
    slices = slices_of(pool, others, REPORTED)
    model = LanguageModel.load(base_model_path("smollm2-135m"), top_layers=recipe.layers)
    kept = work / "prefix"
    train = train_parts(model, slices.train[: recipe.people], recipe.documents, recipe.tokens)
    scored = [slices.select[: recipe.select], slices.report]
    select, reported = (
        cached(model, score_documents(people), 256, kept / f"{slot}-{recipe.layers}.safetensors")
        for slot, people in zip(("select", "report"), scored, strict=True)
    )
    model.attach(Basis.load(work / "bases" / f"{recipe.basis}.safetensors"))
    weights = run_campaign(recipe, folder, model, train, select)
    final = report(model, weights, reported)
    (folder.path / "report.json").write_text(json.dumps(final) + "\n")
    sys.stdout.write(json.dumps({"name": name, **{k: final[k] for k in ("gain", "low", "high", "better")}}) + "\n")


def _values(settings: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *outer, last = key.split(".")
        tree = values
        for part in outer:
            tree = tree.setdefault(part, {})
        tree[last] = value
    return values


if __name__ == "__main__":
    main(sys.argv[1:])
