"""RAFT (Teed & Deng, 2020) for glaciers: features, correlations of all pairs of cells, an update that is repeated.

Written from the paper's description, with four differences: features have 1/2 and cells 1/4 of the pixels instead of
1/8, since the ice moves by a few pixels; no layer normalises by a figure of a tile; the update sees of the flow only
what differs from its neighbours; and all weights are those of convolutions that know no direction (`nets`). It answers
an error for each vector besides.
"""

from functools import partial
from typing import Any, cast

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional

from ..kernels._flow_features import features
from ..kernels._raft_lookup import CELL, NODES, RADIUS, SCALES, SPACINGS
from .nets import ANSWER, Convolution, Kind, hidden, scalars, vector
from .samples import START, Sample

FEATURES, MOTION = 24, 64
"""Channels of the features, and of what is made of the correlations."""
SIZE, FARTHEST = 128, 10
"""Of a sample so much is shown [px], the second image moved by up to so much more [px]."""
SOFT, SCALE = 0.1, (-5, 3)
"""Errors below the first hardly count [px]; limits of the logarithm of an error."""
NOISE = 0.1
"""Share of samples that are noise, moved as a whole."""
IMAGE = Kind.of(vector(), scalars(1))
"""Features of an image (`_flow_features`), and where they are known."""


def around(reach: int) -> Kind:
    """Values at the positions around, row by row."""
    shifts = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)]
    places = [[shifts.index((x, y)) for y, x in shifts], [shifts.index((-y, x)) for y, x in shifts]]
    return Kind(np.array(places), np.ones((2, len(shifts))))


def encode(operations: Any, x: Any) -> tuple[Any, Any, Any]:
    """An image (n, 3, h, w) -> its features at half the pixels; the update's state and context at a quarter."""
    y = operations.relu(operations.convolve("image", x))
    y = operations.relu(operations.add(y, operations.convolve("image2", y)))
    found = operations.add(operations.convolve("plain", x), operations.convolve("feature", y))
    state = operations.tanh(operations.convolve("state", y))
    return found, state, operations.relu(operations.convolve("context", y))


def update(operations: Any, state: Any, context: Any, seen: Any, flow: Any) -> tuple[Any, Any]:
    """State, context, correlations and relative flow of the cells -> the next state, and the answer (n, 4, h, w)."""
    motion = operations.relu(operations.convolve("motion", seen))
    rest = operations.join(context, motion, flow, *operations.centres(seen))
    both = operations.join(state, rest)
    kept = operations.sigmoid(operations.convolve("keep", both))
    opened = operations.sigmoid(operations.convolve("open", both))
    new = operations.tanh(operations.convolve("new", operations.join(operations.multiply(opened, state), rest)))
    state = operations.add(state, operations.multiply(kept, operations.subtract(new, state)))
    y = operations.relu(operations.convolve("head", state))
    return state, operations.convolve("answer", y)


OFFSETS = torch.stack(torch.meshgrid(*[torch.arange(-RADIUS, RADIUS + 1.0)] * 2, indexing="ij")).flatten(1)
"""Of the positions that are looked up, row by row (y, x)."""
REACH = 3
"""Cells on each side that an update depends on, beside those of the flow's mean."""


def relative(flow: Tensor) -> Tensor:
    """The flow less the mean of 3 x 3 cells."""
    return flow - functional.avg_pool2d(functional.pad(flow, (1, 1, 1, 1), mode="replicate"), 3, 1)


class Plain:
    """Operations on tensors, with plain weights."""

    add, subtract, multiply = torch.add, torch.subtract, torch.multiply
    relu, tanh, sigmoid = torch.relu, torch.tanh, torch.sigmoid

    def __init__(self, weights: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.weights = weights

    def convolve(self, name: str, x: Tensor) -> Tensor:
        """A convolution; of width 4 it halves the pixels."""
        weight, bias = self.weights[name]
        wide = weight.shape[-1]
        return functional.conv2d(x, weight, bias, padding=(wide - 1) // 2, stride=2 if wide == 4 else 1)

    def join(self, *parts: Tensor) -> Tensor:
        """Channels one after the other."""
        return torch.cat(parts, 1)

    def centres(self, seen: Tensor) -> list[Tensor]:
        """Where the correlations of each level have their centre, in steps of the level (y, x)."""
        to = OFFSETS.to(seen.device)[:, :, None, None]
        return [functional.conv2d(torch.softmax(level, 1), to) for level in seen.chunk(len(SPACINGS), 1)]


class Raft(nn.Module):
    """The network in training.

    Parameters
    ----------
    width : int
        Channels of the state, a multiple of 8.

    Examples
    --------
    >>> [(flow, _)] = Raft(8)(torch.zeros(1, 3, 16, 24), torch.zeros(1, 3, 16, 24), passes=1)
    >>> flow.shape
    torch.Size([1, 2, 4, 6])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        kind, found, motion = hidden(width), hidden(FEATURES), hidden(MOTION)
        seen = Kind.of(*(around(RADIUS) for _ in SPACINGS))
        both = Kind.of(kind, kind, motion, vector(), *(vector() for _ in SPACINGS))
        self.parts = nn.ModuleDict({
            "image": Convolution(IMAGE, found, wide=4), "image2": Convolution(found, found),
            "plain": Convolution(IMAGE, found, wide=4), "feature": Convolution(found, found, zero=True),
            "state": Convolution(found, kind, wide=4), "context": Convolution(found, kind, wide=4),
            "motion": Convolution(seen, motion, wide=1), "keep": Convolution(both, kind),
            "open": Convolution(both, kind), "new": Convolution(both, kind), "head": Convolution(kind, kind),
            "answer": Convolution(kind, ANSWER, wide=1, zero=True),
        })  # fmt: skip

    def plain(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Weights and bias of every plain convolution."""
        return {name: part() for name, part in self.parts.items()}

    def forward(self, one: Tensor, two: Tensor, passes: int) -> list[tuple[Tensor, Tensor]]:
        """Flow [px] and the logarithm of its error after each update, each (n, 2, h, w)."""
        net = Plain(self.plain())
        half = partial(torch.autocast, one.device.type, torch.bfloat16, enabled=self.training)
        with half():
            fine, state, context = encode(net, one)
            fine2 = encode(net, two)[0]
        volumes = [Volume(level) for level in correlations(fine.float(), fine2.float())]
        flow = torch.zeros_like(state[:, :2], dtype=torch.float32)
        out = []
        for _ in range(passes):
            flow = flow.detach()
            seen = torch.cat([looked_up(v, flow, s) for v, s in zip(volumes, SPACINGS)], 1)
            with half():
                state, answer = update(net, state, context, seen, relative(flow))
            flow = flow + CELL * answer[:, :2].float()
            out.append((flow, answer[:, 2:].float()))
        return out


def correlations(fine: Tensor, fine2: Tensor) -> list[Tensor]:
    """Of all cells of image 1 with all positions of image 2 (n, h, w, positions along y and x), at each level.

    Positions of the finest level are where a patch begins; beyond the image is zero.
    """
    n, _, h, w = fine.shape
    h, w = h // 2, w // 2
    cells, cells2 = functional.avg_pool2d(fine, 2), functional.avg_pool2d(fine2, 2)
    binomial = torch.tensor([1.0, 2.0, 1.0], device=fine.device) / 4
    filters = (binomial[:, None] * binomial).expand(cells2.shape[1], 1, 3, 3)
    coarse2 = functional.conv2d(cells2, filters, padding=1, groups=cells2.shape[1])
    patches, patches2 = functional.unfold(fine, 2, stride=2), functional.unfold(functional.pad(fine2, (0, 1, 0, 1)), 2)
    pairs = [(patches, patches2), (cells.flatten(2), cells2.flatten(2)), (cells.flatten(2), coarse2.flatten(2))]
    found = [scale * (one.transpose(1, 2) @ two) for (one, two), scale in zip(pairs, SCALES)]
    return [volume.view(n, h, w, c * h, c * w) for volume, c in zip(found, (2, 1, 1))]


class Volume:
    """Correlations that are looked up again and again; their gradients are gathered in one place, not added up."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.lookups = values, 0
        self.gradient: Tensor | None = None

    def __call__(self, at: Tensor) -> Tensor:
        """The values at indices of each cell's positions."""
        self.lookups += 1
        return cast(Tensor, _Lookup.apply(self.values, at, self))  # type: ignore[no-untyped-call]


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, at: Tensor, volume: Volume) -> Tensor:
        ctx.save_for_backward(at)
        ctx.volume, ctx.shape = volume, values.shape
        return values.flatten(3).gather(3, at)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        volume: Volume = ctx.volume
        if volume.gradient is None:
            volume.gradient = torch.zeros(ctx.shape, device=gradient.device)
        volume.gradient.flatten(3).scatter_add_(3, ctx.saved_tensors[0], gradient)
        volume.lookups -= 1
        return (None if volume.lookups else volume.gradient), None, None


def looked_up(volume: Volume, flow: Tensor, spacing: int) -> Tensor:
    """Correlations of one level round where the flow leads (n, positions, h, w), row by row."""
    n, h, w, height, width = volume.values.shape
    whole = torch.floor(flow / spacing)
    part = (flow / spacing - whole)[..., None, None]
    apart = spacing * height // (h * CELL)
    nodes = apart * torch.arange(-RADIUS, NODES - RADIUS, device=flow.device)
    y = height // h * torch.arange(h, device=flow.device)[:, None] + apart * whole[:, 0].long()
    x = width // w * torch.arange(w, device=flow.device) + apart * whole[:, 1].long()
    y, x = y[..., None, None] + nodes[:, None], x[..., None, None] + nodes
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    at = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(3)
    found = volume(at).view(n, h, w, NODES, NODES) * inside
    found = found[..., :-1] + part[:, 1] * found.diff(dim=-1)
    found = found[..., :-1, :] + part[:, 0] * found.diff(dim=-2)
    return found.flatten(3).permute(0, 3, 1, 2)


def shown(one: Sample, rng: np.random.Generator) -> tuple[Any, ...]:
    """Part of a sample, image 2 moved: both images, the true motion of the cells and its weight."""
    spare = len(one.one.known) - SIZE
    sy, sx = (int(s) for s in np.rint(rng.random() * rng.uniform(-FARTHEST, FARTHEST, 2)))
    shift = np.array([sy, sx], np.float32)[:, None, None]
    if rng.random() < NOISE:
        wide = rng.standard_normal((SIZE + 2 * FARTHEST,) * 2).astype(np.float32)
        wide = gaussian_filter(wide, rng.uniform(0, 1.5))
        planes, known = features(wide, np.ones(wide.shape, bool), START.bound)
        windows, at = [(planes, known)] * 2, [FARTHEST] * 2
        truth = np.zeros((2, SIZE // CELL, SIZE // CELL), np.float32)
        weight = np.ones(truth.shape[1:], np.float32)
    else:
        windows = [(level.planes, level.known) for level in (one.one, one.two)]
        at = [CELL * int(rng.integers(-(-FARTHEST // CELL), (spare - FARTHEST) // CELL + 1)) for _ in range(2)]
        cells = np.s_[..., at[0] // CELL : (at[0] + SIZE) // CELL, at[1] // CELL : (at[1] + SIZE) // CELL]
        truth, weight = one.truth[cells], one.weight[cells]
    images = []
    for (planes, known), (y, x) in zip(windows, (at, [at[0] + sy, at[1] + sx])):
        cut = np.s_[..., y : y + SIZE, x : x + SIZE]
        images.append(np.concatenate([planes[cut], known[cut][None]]).astype(np.float32))
    truth = truth - shift
    ends = CELL * np.mgrid[: SIZE // CELL, : SIZE // CELL] + truth
    inside = ((ends >= 0) & (ends <= SIZE - CELL)).all(0)
    return *images, truth.astype(np.float32), (weight * (0.05 + 0.95 * inside)).astype(np.float32)


def loss(
    net: Raft, samples: list[Sample], passes: int, device: str, rng: np.random.Generator
) -> tuple[Tensor, list[float]]:
    """What is minimised, the last update counting most; and the mean error before and after the updates [px]."""
    arrays = [torch.from_numpy(np.stack(part)).to(device) for part in zip(*(shown(s, rng) for s in samples))]
    one, two, truth, weight = arrays
    weight = weight / weight.sum()
    total, errors = torch.zeros((), device=device), [float((truth.norm(dim=1) * weight).sum())]
    for k, (flow, scale) in enumerate(net(one, two, passes)):
        error = flow - truth
        length = (error.square().sum(1) + SOFT**2).sqrt()
        scale = scale.clamp(*SCALE)
        likelihood = (error.detach().abs() * torch.exp(-scale) + scale).sum(1)
        total = total + 0.8 ** (passes - 1 - k) * ((length + 0.2 * likelihood) * weight).sum()
        errors.append(float((length.detach() * weight).sum()))
    return total, errors
