"""Is a network better on scenes that it has not seen, and still without bias where the truth is known?"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels import _flow_field as field
from ..kernels._flow_volume import CELL, volume
from ..kernels.flow import HornSchunck
from ..testing.flow_pairs import LEVELS, flow_pair
from ..testing.flow_scores import EDGE, FASTER
from . import losses
from .nets import FlowNetwork
from .samples import START
from .scenes import LEGS, Tile, tile

SEEDS = range(200, 206)
"""Pairs of each level on which bias is watched: neither those of training, nor of a card, nor of the benchmark."""
SIZE = 192
"""Width of these pairs [px]."""
WITHIN, WORSE = 0.03, 0.01
"""Bias along the flow may be so large, and so much larger than it was."""
Score = dict[str, Any]


def fields(
    net: FlowNetwork, part: Tile, kernel: HornSchunck, passes: int, device: str, *, half: bool = False
) -> Iterator[Tensor]:
    """The motion of a tile's legs (n, 2, h, w) after each pass; gradients reach the weights through the last one."""
    legs, flow = LEGS[len(part.images)][: len(part.starts)], part.starts
    shape = part.valid.shape[1:]
    inside = np.s_[..., field.RIM : -field.RIM, field.RIM : -field.RIM]
    for _ in range(passes):
        seen = [volume(part.levels[i], part.levels[j], f, kernel.limit(), kernel.fall) for (i, j), f in zip(legs, flow)]
        with torch.autocast(device, torch.bfloat16, enabled=half):
            found = net(torch.from_numpy(np.stack(seen)).to(device))[:, :2].float()
        yield torch.from_numpy(flow[inside].copy()).to(device) + losses.spread(found)
        steps = found.detach().cpu().numpy()
        flow = np.stack([f + field.spread(s, 0, CELL, 1, shape) for f, s in zip(flow, steps)])


def within(shape: Sequence[int]) -> Tensor:
    """Pixels that are not close to an edge of the tile, beyond which the network sees nothing."""
    inner = torch.zeros(tuple(shape), dtype=torch.bool)
    inner[..., EDGE:-EDGE, EDGE:-EDGE] = True
    return inner


class Judge:
    """Scores of a network: closure of triplets of dates, bias on synthetic glaciers.

    Parameters
    ----------
    tiles : sequence of Tile
        Of three dates each.
    kernel : HornSchunck
        That made them.
    passes : int
        How often the network is run.
    """

    def __init__(self, tiles: Sequence[Tile], kernel: HornSchunck, passes: int) -> None:
        self.tiles = [(part, _usable(part)) for part in tiles]
        self.kernel, self.passes = kernel, passes
        self.known = {level: [_known(level, seed) for seed in SEEDS] for level in LEVELS}

    @property
    def pixels(self) -> int:
        """By which closure is judged: the same for every network."""
        return sum(int(part.sum()) for _, part in self.tiles)

    def __call__(self, net: FlowNetwork, step: int) -> Score:
        """What a network reaches: `median` and `rms` of closure [px], `bias` along the flow at each level."""
        found = [
            losses.closure(*self._last(net, part, self.kernel)[:, None])[0][:, usable] for part, usable in self.tiles
        ]
        size = torch.cat(found, 1).norm(dim=0).numpy()
        bias = {level: float(np.mean([self._bias(net, *one) for one in some])) for level, some in self.known.items()}
        rms = float(np.sqrt((size.astype(np.float64) ** 2).mean()))
        return {"step": step, "median": float(np.median(size)), "rms": rms, "bias": bias}

    def _last(self, net: FlowNetwork, part: Tile, kernel: HornSchunck) -> Tensor:
        with torch.no_grad():
            return [*fields(net, part, kernel, self.passes, next(net.parameters()).device.type)][-1].cpu()

    def _bias(self, net: FlowNetwork, part: Tile, truth: Any, where: Any) -> float:
        found = self._last(net, part, START)[0].numpy()[:, where]
        speed = np.hypot(*truth)
        return float(((found - truth) * truth).sum(0).dot(1 / speed) / speed.sum())


def _usable(part: Tile) -> Tensor:
    """Pixels (h, w) of date A that B shows, and C on both ways, by the field that the network starts from."""
    ok = torch.from_numpy(part.valid)
    ab, bc, ac = torch.from_numpy(part.starts[:, None, :, field.RIM : -field.RIM, field.RIM : -field.RIM])
    around = losses.shown(ok[1:2] & losses.shown(ok[2:], bc), ab) & losses.shown(ok[2:], ac)
    return (ok[:1] & around & within(ok[:1].shape))[0]


def _known(level: str, seed: int) -> tuple[Tile, Any, Any]:
    """A synthetic pair as a tile; the motion (2, n) of its fast ice, and where that is."""
    pair, halo = flow_pair(level, seed, SIZE), START.halo()
    images = [np.pad(image.astype(np.float32), halo) for image in (pair.image1, pair.image2)]
    valid = np.pad(np.ones(pair.image1.shape, bool), halo)
    truth = np.stack(pair.displacement(*np.mgrid[:SIZE, :SIZE].astype(np.float64)))
    where = pair.scored & within(pair.scored.shape).numpy() & (np.hypot(*truth) > FASTER)
    return tile(START, images, [valid, valid], back=False), truth[:, where], where


def best(scores: Sequence[Score]) -> Score:
    """The score with the smallest closure among those whose bias holds; the first if none is better.

    A bias holds that is not larger than it was by more than 1 %, and within 3 % unless it was already beyond that. With
    its median the closure's root mean square must not grow: a few gross errors are no price for smoothness.

    Examples
    --------
    >>> first = {"step": 0, "median": 0.2, "rms": 0.4, "bias": {"annual": -0.02}}
    >>> best([first, first | {"median": 0.1, "bias": {"annual": -0.2}}, first | {"step": 9, "median": 0.15}])["step"]
    9
    """
    first = scores[0]

    def holds(score: Score) -> bool:
        return score["rms"] <= first["rms"] and all(
            abs(bias) <= min(abs(was) + WORSE, max(WITHIN, abs(was)))
            for bias, was in zip(score["bias"].values(), first["bias"].values())
        )

    return min((score for score in scores if score is first or holds(score)), key=lambda score: score["median"])
