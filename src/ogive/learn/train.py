"""Training: every step is seeded, so that a run that was interrupted ends with the same bits as one that was not."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW

from ..errors import OgiveError, ParameterError
from ..kernels._flow_field import RIM, spread
from ..kernels._flow_volume import CELL, volume
from . import files, raft, raft_files
from .nets import FlowNetwork, reach
from .samples import START, Sample, sample

CHECKPOINT = "checkpoint.safetensors"
SOFT = 0.05
"""Errors below this hardly count [px]."""
WARMED = 0.05
"""Share of the steps in which the learning rate rises; then it falls as a cosine."""
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Recipe:
    """All that the weights of a network depend on.

    Parameters
    ----------
    net : {"flow_net", "raft"}
        What is trained.
    seed : int
        Seed of weights, samples and their order.
    steps : int
        Steps of the optimiser.
    chapter, repeats, batch : int
        So many samples are made, each is used so many times, so many in a step; then come new ones.
    passes : int
        How often the network is run on a sample.
    rate : float
        Largest learning rate.
    width : int
        Hidden channels, a multiple of 8.
    apart : tuple of int
        Distance of the cells in the convolutions of each block; of `flow_net` alone.
    size : int
        Width of a sample [px].
    rough : (float, float)
        Range of the exponents of the spectrum of textures of the second kind: 0 is white noise.
    """

    net: str = "flow_net"
    seed: int = 0
    steps: int = 1600
    chapter: int = 48
    repeats: int = 6
    batch: int = 4
    passes: int = 2
    rate: float = 2e-3
    width: int = 64
    apart: tuple[int, ...] = (1, 2, 2)
    size: int = 192
    rough: tuple[float, float] = (0.0, 2.6)

    def __post_init__(self) -> None:
        if self.net not in TASKS:
            raise ParameterError("net", rule=f"must be one of {', '.join(TASKS)}", value=repr(self.net))
        if self.chapter * self.repeats % self.batch:
            raise ParameterError("batch", rule="must divide chapter times repeats", value=self.batch)


class Task(NamedTuple):
    """What training must know of a network."""

    build: Callable[[Recipe], Any]
    loss: Callable[..., tuple[Tensor, list[float]]]
    """Of network, samples, passes, device and random numbers: what is minimised, and mean errors to report [px]."""
    write: Callable[[Any, Path], dict[str, str]]
    """Puts a network into files that begin like the path; returns their checksums by suffix."""
    reach: Callable[[Any], int]
    """Cells on each side that an answer depends on."""
    recipe: dict[str, Any]
    """Where its recipe differs from the others'."""
    scored: dict[str, Any]
    """Parameters of the kernel in the scores of its card."""


def recipe_of(net: str, **changes: Any) -> Recipe:
    """The recipe of a shipped network, with changes.

    Examples
    --------
    >>> recipe_of("raft", seed=3).passes
    6
    """
    return Recipe(net=net, **{**(TASKS[net].recipe if net in TASKS else {}), **changes})


def train(
    recipe: Recipe, folder: Path, *, minutes: float = np.inf, device: str = "cpu", report: Callable[[str], Any] = print
) -> Any:
    """Train for so long, from where the folder's checkpoint stands; returns the network when all steps are done.

    Parameters
    ----------
    recipe : Recipe
    folder : path
        Of the checkpoint.
    minutes : float
        Stop after so long; call again to go on.
    device : str
        Where PyTorch computes; what the network is shown is made on the CPU.
    report : callable
        Is given a line now and then.

    Raises
    ------
    OgiveError
        The checkpoint there was made by another recipe.
    """
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    task = TASKS[recipe.net]
    net = task.build(recipe).to(device)
    optimiser = AdamW(net.parameters(), recipe.rate, weight_decay=1e-3)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CHECKPOINT
    done = _resumed(path, recipe, net, optimiser) if path.exists() else 0
    until = time.monotonic() + 60 * minutes
    every = recipe.chapter * recipe.repeats // recipe.batch
    recent = []
    while done < recipe.steps and time.monotonic() < until:
        for group in optimiser.param_groups:
            group["lr"] = _rate(recipe, done)
        optimiser.zero_grad()
        rng = np.random.default_rng((recipe.seed, done, 1))
        loss, errors = task.loss(net, batch(recipe, done), recipe.passes, device, rng)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        recent.append(errors)
        done += 1
        if done % every == 0 or done == recipe.steps:
            told = ", ".join(f"{e:.4f}" for e in np.mean(recent, axis=0))
            report(f"step {done} of {recipe.steps}: mean error before and after each pass {told} px")
            recent.clear()
            _save(path, recipe, net, optimiser, done)
    _save(path, recipe, net, optimiser, done)
    return net if done == recipe.steps else None


@lru_cache(maxsize=1)
def _chapter(seed: int, chapter: int, samples: int, size: int, rough: tuple[float, float]) -> list[Sample]:
    return [sample((seed, chapter, k), size, rough) for k in range(samples)]


def batch(recipe: Recipe, step: int) -> list[Sample]:
    """The samples of a step: those of its chapter in an order of their own for each repeat."""
    chapter, k = divmod(step, recipe.chapter * recipe.repeats // recipe.batch)
    samples = _chapter(recipe.seed, chapter, recipe.chapter, recipe.size, recipe.rough)
    rng = np.random.default_rng((recipe.seed, chapter))
    order = np.concatenate([rng.permutation(recipe.chapter) for _ in range(recipe.repeats)])
    return [samples[i] for i in order[k * recipe.batch : (k + 1) * recipe.batch]]


def supervised(
    net: FlowNetwork, samples: list[Sample], passes: int, device: str, rng: np.random.Generator | None = None
) -> tuple[Tensor, list[float]]:
    """What is minimised, the last pass counting most; and the mean error before and after each pass [px].

    Of the field: the length of its error. Of the network's guess b at this error: the likelihood of Laplace's
    distribution, |error| / b + log b for each component, from which the field itself learns nothing.
    """
    flows = [s.start for s in samples]
    truth, weight = (torch.from_numpy(np.stack(part)).to(device) for part in list(zip(*samples))[-2:])
    weight = weight / weight.sum()
    total, errors = torch.zeros((), device=device), []
    for k in range(passes):
        seen = np.stack([volume(s.one, s.two, f, START.limit(), START.fall) for s, f in zip(samples, flows)])
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            found = net(torch.from_numpy(seen).to(device)).float()
        before = torch.from_numpy(np.stack([_cells(f) for f in flows])).to(device) - truth
        error = before + found[:, :2]
        length = (error.square().sum(1) + SOFT**2).sqrt()
        scale = found[:, 2:].clamp(-5, 3)
        likelihood = (error.detach().abs() * torch.exp(-scale) + scale).sum(1)
        total = total + 0.8 ** (passes - 1 - k) * ((length + 0.2 * likelihood) * weight).sum()
        errors += [float((before.norm(dim=1) * weight).sum())] if k == 0 else []
        errors.append(float((length.detach() * weight).sum()))
        steps = found[:, :2].detach().cpu().numpy()
        flows = [f + spread(s, 0, CELL, 1, (f.shape[1] - 2 * RIM, f.shape[2] - 2 * RIM)) for f, s in zip(flows, steps)]
    return total, errors


def _cells(flow: Any) -> Any:
    """The mean of a field over each cell."""
    inside = flow[:, RIM:-RIM, RIM:-RIM]
    return inside.reshape(2, inside.shape[1] // CELL, CELL, -1, CELL).mean((2, 4))


def _rate(recipe: Recipe, step: int) -> float:
    rise = (step + 1) / (WARMED * recipe.steps)
    return recipe.rate * min(rise, 0.5 * (1 + float(np.cos(np.pi * step / recipe.steps))))


def _save(path: Path, recipe: Recipe, net: nn.Module, optimiser: AdamW, done: int) -> None:
    """The whole state, or what was there before."""
    arrays = {name: p.detach() for name, p in net.named_parameters()}
    for name, p in net.named_parameters():
        arrays |= {f"{name}:{key}": value for key, value in optimiser.state[p].items()}
    part = path.with_suffix(".part")
    save_file(arrays, part, {"recipe": json.dumps(asdict(recipe)), "done": str(done)})
    part.replace(path)


def _resumed(path: Path, recipe: Recipe, net: nn.Module, optimiser: AdamW) -> int:
    """Steps done, with network and optimiser as they were."""
    with safe_open(path, "pt") as file:
        about = file.metadata()
        if about["recipe"] != json.dumps(asdict(recipe)):
            raise OgiveError(
                str(path), rule="was made by another recipe", value=about["recipe"], fix="choose another folder"
            )
        with torch.no_grad():
            for name, p in net.named_parameters():
                p.copy_(file.get_tensor(name))
                if about["done"] != "0":
                    state = {key: file.get_tensor(f"{name}:{key}") for key in MOMENTS}
                    optimiser.state[p] = {key: t if key == "step" else t.to(p.device) for key, t in state.items()}
    return int(about["done"])


TASKS = {
    "flow_net": Task(
        lambda recipe: FlowNetwork(recipe.width, recipe.apart), supervised, files.write, lambda net: reach(net.apart),
        {}, {},
    ),
    "raft": Task(
        lambda recipe: raft.Raft(recipe.width), raft.loss, raft_files.write, lambda net: raft.REACH,
        {"passes": 6, "width": 48, "apart": (), "repeats": 12, "steps": 1000, "rate": 2.5e-3, "rough": (1.2, 2.6)},
        {"finish": False},
    ),
}  # fmt: skip
"""Networks by their names."""
