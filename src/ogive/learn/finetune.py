"""Fine-tuning on scenes of one's own, whose motion nobody knows: what their pairs say about each other, and beside it,
in every step, synthetic glaciers whose motion is known.

Without the second part closure improves while the bias comes back: what stands still agrees best with itself. The
best state by closure on scenes that were held out, among those whose synthetic bias holds, is what is kept
(docs/finetune.md).
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from safetensors.torch import load_file
from torch import Tensor

from ..errors import OgiveError, PairError, ParameterError
from ..kernels._flow_weights import SUFFIXES, Card, card, network
from ..kernels.flow import HornSchunck
from . import losses
from .card import publish
from .judge import Judge, Score, best, fields, within
from .nets import FlowNetwork
from .progress import Progress
from .samples import Sample
from .scenes import CHAPTER, LEGS, REPEATS, Scenes, Split, Tile
from .train import Recipe, batch, supervised

FADE = 0.8
"""Weight of a pass by that of the next one."""
FRESH = 1 << 20
"""Seeds of synthetic samples: beyond those that the network was trained on."""
SAMPLES, USED = 16, 4
"""So many synthetic samples are made, each is used so many times; then come new ones."""
JUDGED = 6
"""Tiles of held-out triplets."""
LEARNED, HELD = 0, 1
"""Streams of random numbers."""


@dataclass(frozen=True)
class Tuning:
    """How it is learned.

    Parameters
    ----------
    steps : int
        At most so many steps of the optimiser.
    seed : int
        Seed of tiles, samples and their order.
    rate : float
        Learning rate.
    synthetic : int
        Synthetic samples beside the tile of each step, a divisor of 64; 0 to see the bias come back.
    census, consistency, closure : float
        Weights of what the scenes say, beside the error on synthetic samples [px]: likeness of the images, motion there
        and back, motion over three dates.
    size : int
        Width of a tile [px].
    search : int
        Largest displacement [px].
    every : int
        Steps between two looks at what was held out.
    patience : int
        Stop after so many looks that bring nothing better.
    """

    steps: int = 200
    seed: int = 0
    rate: float = 2e-4
    synthetic: int = 4
    census: float = 0.25
    consistency: float = 0.2
    closure: float = 0.5
    size: int = 192
    search: int = 8
    every: int = 20
    patience: int = 4

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("synthetic", 0), ("every", 1), ("patience", 1)):
            if getattr(self, name) < least:
                raise ParameterError(name, rule=f"must be at least {least}", value=getattr(self, name))
        if self.synthetic and SAMPLES * USED % self.synthetic:
            raise ParameterError(
                "synthetic", rule=f"must divide {SAMPLES * USED}, or be 0", value=self.synthetic, fix="4"
            )


@dataclass(frozen=True)
class Finetuned:
    """What came out.

    Parameters
    ----------
    weights : str
        For the kernel `flow_net`: the new card, or what was given, where nothing was better.
    before, after : dict
        `median` and `rms` of closure on held-out scenes [px], `bias` along the flow at each synthetic level, `step`.
    """

    weights: str
    before: Score
    after: Score

    @property
    def improved(self) -> bool:
        """Whether there are new weights."""
        return bool(self.after["step"])


def finetune(
    cube: xr.Dataset, pairs: pd.DataFrame, output: str | Path, *, weights: str = "flow-net-1",
    tuning: Tuning | None = None, held_out: Sequence[str] | None = None, minutes: float = np.inf, device: str = "cpu",
    report: Callable[[str], Any] = print,
) -> Finetuned | None:  # fmt: skip
    """Fit the learned matcher to the scenes of a cube; no displacement need be known.

    Parameters
    ----------
    cube : xr.Dataset
        From `open_cube`, of one band or several.
    pairs : pd.DataFrame
        From `make_pairs(cube)`; among them must be triplets, A with B, B with C and A with C.
    output : path
        Name of the new network: OUTPUT.json, .safetensors and .onnx, which appear when all is done, and meanwhile
        OUTPUT.checkpoint, from which the same call goes on after an interruption, to the same bits.
    weights : str
        What to start from, as in `FlowNet`.
    tuning : Tuning, optional
    held_out : sequence of str, optional
        Ids of the scenes that are judged by and never learned from; default: a run of dates, a fourth of them.
    minutes : float
        Stop after so long; call again to go on.
    device : str
        Where PyTorch computes.
    report : callable
        Is given a line at each look at what was held out.

    Returns
    -------
    Finetuned or None
        None where the time was not enough.

    Raises
    ------
    PairError
        No triplet can be held out with a pair left to learn from, or none of its pixels is usable.
    ParameterError
        Weights or scenes that do not exist.
    GridError
        The cube is too small.
    OgiveError
        The output exists, or was begun with other scenes, weights or parameters.
    """
    torch.set_num_threads(1)
    tuning, stem, about = tuning or Tuning(), Path(output), card(weights, "flow_net")
    if not stem.parent.is_dir():
        raise ParameterError("output", rule="its folder must exist", value=str(stem.parent), fix="make it")
    ids = [str(name) for name in cube["scene_id"].values]
    scenes, split = Scenes(cube, tuning.size, tuning.search), Split.of(pairs, _positions(held_out, ids))
    net, recipe = loaded(about)
    told = {
        "parent": {"name": about.path.stem, "sha256": dict(about.sha256)}, "tuning": asdict(tuning),
        "scenes": ids, "held out": [ids[k] for k in split.held_out],
        "learned from": [[ids[k] for k in dates] for dates in split.learned],
        "grid": [*scenes.shape, float(cube["y"][0]), float(cube["x"][0])],
        "bands": [str(name) for name in cube["band"].values] if "band" in cube.dims else [],
    }  # fmt: skip
    run = Progress(net.to(device), tuning.rate, told, stem.with_name(stem.name + ".checkpoint"))
    made = stem.with_name(stem.name + ".json")
    if made.exists() and not run.path.exists():
        raise OgiveError(str(made), rule="exists", fix="choose another name")
    run.resume()
    if not _over(run, tuning):
        judge = judged(scenes, split, tuning, about.passes)
        samples, until = _samples(recipe, tuning), time.monotonic() + 60 * minutes
        tiles = _tiles(scenes, split, tuning)
        _look(run, judge, tuning, report)
        while not _over(run, tuning):
            if time.monotonic() > until:
                run.save()
                return None
            run.step(partial(_loss, net, tiles(run.done), samples(run.done), scenes, tuning, about.passes, device))
            _look(run, judge, tuning, report)
    before, after = run.scores[0], best(run.scores)
    if not after["step"]:
        report(f"nothing was better on the scenes held out: {weights} stays as it is")
        return Finetuned(weights, before, before)
    if not made.exists():
        run.restore()
        _publish(net, recipe, stem, about, told | {"steps": run.done, "before": before, "after": after})
    return Finetuned(str(made), before, after)


def _loss(
    net: FlowNetwork, part: Tile, known: list[Sample], scenes: Scenes, tuning: Tuning, passes: int, device: str
) -> Tensor:
    loss = unsupervised(net, part, scenes.kernel, tuning, passes, device)
    return loss + supervised(net, known, passes, device)[0] if known else loss


def unsupervised(net: FlowNetwork, part: Tile, kernel: HornSchunck, tuning: Tuning, passes: int, device: str) -> Tensor:
    """What the dates of a tile say about the network's motion, the last pass counting most."""
    one, two = (list(k) for k in zip(*LEGS[len(part.images)]))
    images, valid = torch.from_numpy(part.images).to(device), torch.from_numpy(part.valid).to(device)
    inner, forward = within(part.valid.shape[1:]).to(device), len(one) // 2
    total = torch.zeros((), device=device)
    for k, flow in enumerate(fields(net, part, kernel, passes, device, half=True)):
        back, usable = flow.roll(forward, 0), valid[one] & inner & losses.shown(valid[two], flow)
        apart, seen = losses.consistency(flow, back, usable)
        loss = tuning.consistency * apart
        loss = loss + tuning.census * losses.census(images[one], images[two], seen, valid[two], flow)
        if forward == 3:
            ab, bc, ac = flow[:3, None]
            around = seen[:1] & seen[2:3] & losses.shown(seen[1:2], ab)
            loss = loss + tuning.closure * losses.mean(losses.length(losses.closure(ab, bc, ac)), around)
        total = total + FADE ** (passes - 1 - k) * loss
    return total


def _over(run: Progress, tuning: Tuning) -> bool:
    """All steps are done, or too many brought nothing."""
    if not run.scores or run.scores[-1]["step"] != run.done:
        return False
    return run.done >= tuning.steps or run.done - best(run.scores)["step"] >= tuning.patience * tuning.every


def _look(run: Progress, judge: Judge, tuning: Tuning, report: Callable[[str], Any]) -> None:
    """Judge the present state where its turn has come, and keep it if it is the best."""
    if (run.done % tuning.every and run.done < tuning.steps) or (run.scores and run.scores[-1]["step"] == run.done):
        return
    score = judge(run.net, run.done)
    run.scores.append(score)
    is_best = best(run.scores) is score
    if is_best:
        run.keep()
    run.save()
    bias = ", ".join(f"{level} {100 * value:+.1f} %" for level, value in score["bias"].items())
    report(
        f"step {run.done} of {tuning.steps}: closure median {score['median']:.3f} px, rms {score['rms']:.3f} px; "
        f"bias {bias}{' (best)' if is_best else ''}"
    )


def _positions(names: Sequence[str] | None, ids: list[str]) -> list[int] | None:
    """Where these scenes stand in the cube."""
    unknown = sorted(set(names or ()) - set(ids))
    if unknown:
        raise ParameterError("held_out", rule="must be ids of the cube's scenes", value=unknown[0], fix=ids[0])
    return None if names is None else [ids.index(name) for name in names]


def loaded(about: Card) -> tuple[FlowNetwork, Recipe]:
    """A network as it can be trained, and the recipe that it was made by."""
    network(about, "torch")  # whose checksum this is
    told = json.loads(about.path.read_text())["recipe"]
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in told.items()}
    recipe = Recipe(**settings)
    net, arrays = FlowNetwork(recipe.width, recipe.apart), load_file(about.path.with_suffix(SUFFIXES["torch"]))
    with torch.no_grad():
        for name, p in net.named_parameters():
            layer, kind = name.removeprefix("parts.").split(".")
            p.copy_(arrays[f"{layer}.{kind[0]}"].reshape(p.shape))
    return net, recipe


def judged(scenes: Scenes, split: Split, tuning: Tuning, passes: int) -> Judge:
    chosen = np.random.default_rng((tuning.seed, HELD)).permutation(len(split.judged))
    tiles = [
        scenes.tile(
            split.judged[chosen[k % len(chosen)]], np.random.default_rng((tuning.seed, HELD, k + 1)), back=False
        )
        for k in range(JUDGED)
    ]
    judge = Judge(tiles, scenes.kernel, passes)
    if not judge.pixels:
        raise PairError("held_out", rule="must share usable pixels", value=0, fix="hold out clearer scenes")
    return judge


def _samples(recipe: Recipe, tuning: Tuning) -> Callable[[int], list[Sample]]:
    """The synthetic samples of a step."""
    if not tuning.synthetic:
        return lambda step: []
    return partial(
        batch, replace(recipe, seed=FRESH + tuning.seed, chapter=SAMPLES, repeats=USED, batch=tuning.synthetic)
    )


def _tiles(scenes: Scenes, split: Split, tuning: Tuning) -> Callable[[int], Tile]:
    """The tile of a step: those of its chapter in an order of their own for each repeat."""

    @lru_cache(maxsize=1)
    def chapter(number: int) -> list[Tile]:
        made = []
        for k in range(CHAPTER):
            rng = np.random.default_rng((tuning.seed, LEARNED, number, k + 1))
            made.append(scenes.tile(split.learned[rng.integers(len(split.learned))], rng, back=True))
        return made

    def tile(step: int) -> Tile:
        number, k = divmod(step, CHAPTER * REPEATS)
        rng = np.random.default_rng((tuning.seed, LEARNED, number))
        order = np.concatenate([rng.permutation(CHAPTER) for _ in range(REPEATS)])
        made: Tile = chapter(number)[order[k]]
        return made

    return tile


def _publish(net: FlowNetwork, recipe: Recipe, stem: Path, about: Card, told: dict[str, Any]) -> None:
    """Files and card, which comes last: without it there is no network."""
    with tempfile.TemporaryDirectory(dir=stem.parent) as folder:
        made = publish(net, recipe, Path(folder) / stem.name)
        content = json.loads(made.read_text()) | {
            "command": f"ogive finetune RUN.yaml --weights {about.path.stem} --steps {told['tuning']['steps']} "
                       f"--seed {told['tuning']['seed']} --output {stem.name}",
            "data": f"Fine-tuned from {about.path.stem} on the scenes listed here, whose motion is not known, and on "
                    f"synthetic glaciers.",
            "fine-tuning": told,
        }  # fmt: skip
        made.write_text(json.dumps(content, indent=2) + "\n")
        for suffix in (*SUFFIXES.values(), ".json"):
            made.with_suffix(suffix).replace(stem.with_name(stem.name + suffix))
