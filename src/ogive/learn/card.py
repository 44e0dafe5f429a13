"""A trained network is published: its files, and a card that says what it is and how good."""

import json
import platform
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..kernels import KERNELS
from ..testing.flow_pairs import LEVELS, flow_pair
from ..testing.flow_scores import figures
from .samples import FIRST_SEED
from .train import TASKS, Recipe

SEEDS = range(100, 108)
"""Pairs of the card's scores: neither the samples of training nor the pairs of the benchmark."""
DATA = (
    "Made on the fly by ogive.learn.samples from ogive.testing.flow_pairs: synthetic valley glaciers with exact motion "
    "of up to 5.5 px, everything from noise alone to a little beyond the level 'annual', half of them on a second kind "
    f"of texture, a third with masks; seeds from {FIRST_SEED} on. No image of a satellite."
)


def publish(net: Any, recipe: Recipe, stem: Path) -> Path:
    """Write STEM.safetensors, STEM.onnx and STEM.json; returns the path of the last, the card.

    The factor of the errors is fitted here, on pairs that were not trained on: one number for the network.
    """
    task = TASKS[recipe.net]
    command = f"ogive train FOLDER --net {recipe.net} --seed {recipe.seed} --steps {recipe.steps} --name {stem.name}"
    made = {
        "name": stem.name, "kernel": recipe.net, "passes": recipe.passes, "reach": task.reach(net), "spread": 1.0,
        "sha256": task.write(net, stem), "licence": "BSD-3-Clause",
        "command": command, "recipe": asdict(recipe), "data": DATA,
        "made with": {name: version(name) for name in ("ogive", "torch", "numpy", "numba", "scipy", "onnx")}
        | {"python": platform.python_version(), "machine": platform.machine()},
    }  # fmt: skip
    pairs = {level: [flow_pair(level, seed) for seed in SEEDS] for level in LEVELS}
    with tempfile.TemporaryDirectory() as folder:
        # Cards are read once in a process: the one without a fitted factor must have another path.
        plain = Path(folder) / "plain.json"
        task.write(net, plain.with_suffix(""))
        plain.write_text(json.dumps(made))
        kernel = KERNELS[recipe.net](search=6, weights=str(plain), **task.scored)
        scores = {level: figures(kernel, some) for level, some in pairs.items()}
    spread = float(np.exp(np.mean([np.log(score["z"]) for score in scores.values()])))
    table: dict[str, Any] = {}
    for level, score in scores.items():
        table[level] = {key: round(float(value), 4) for key, value in (score | {"z": score["z"] / spread}).items()}
    made |= {"spread": round(spread, 4), "seeds of the scores": f"{SEEDS[0]} to {SEEDS[-1]}", "scores": table}
    card = stem.with_name(stem.name + ".json")
    card.write_text(json.dumps(made, indent=2) + "\n")
    return card
