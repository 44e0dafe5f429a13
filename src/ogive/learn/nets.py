"""The network of `flow_net`: convolutions that know no direction.

A turned or mirrored pair of images has the turned or mirrored motion. A network could learn that from eight times as
many samples; here its weights are averaged over the eight turns and mirrorings of the square, so that it holds by
construction (Cohen & Welling, 2016). Hidden channels come in groups of eight, one for each; what the average leaves is
a plain convolution, and as such it is stored and run.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..kernels._flow_volume import BOXES, SHIFTS

TRANSPOSED, FLIPPED = 0, 1
"""The two motions of the square that all others are made of: y and x swapped, y turned round."""


class Kind:
    """How channels change places and signs when the image is transposed, or turned upside down.

    Parameters
    ----------
    places, signs : (2, channels) arrays
        Channel k of the moved image is `signs[motion, k]` times channel `places[motion, k]` of the image.
    """

    def __init__(self, places: NDArray[Any], signs: NDArray[Any]) -> None:
        self.places = torch.from_numpy(np.asarray(places, np.int64))
        self.signs = torch.from_numpy(np.asarray(signs, np.float32))

    def __len__(self) -> int:
        return self.places.shape[1]

    @classmethod
    def of(cls, *parts: "Kind") -> "Kind":
        """Channels of one kind after those of another."""
        before = np.cumsum([0] + [len(part) for part in parts])
        places = [part.places.numpy() + n for part, n in zip(parts, before)]
        return cls(np.concatenate(places, 1), np.concatenate([part.signs.numpy() for part in parts], 1))


def scalars(n: int) -> Kind:
    """Channels without a direction."""
    return Kind(np.tile(np.arange(n), (2, 1)), np.ones((2, n)))


def swapped() -> Kind:
    """A size along y and one along x."""
    return Kind(np.array([[1, 0], [0, 1]]), np.ones((2, 2)))


def vector() -> Kind:
    """Components along y and x."""
    return Kind(np.array([[1, 0], [0, 1]]), np.array([[1, 1], [-1, 1]]))


def tensor() -> Kind:
    """Components yy, yx, xx."""
    return Kind(np.array([[2, 1, 0], [0, 1, 2]]), np.array([[1, 1, 1], [1, -1, 1]]))


def beside(reach: int) -> Kind:
    """Values at whole-pixel shifts around, row by row, without the middle one."""
    shifts = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1) if (y, x) != (0, 0)]
    places = [[shifts.index((x, y)) for y, x in shifts], [shifts.index((-y, x)) for y, x in shifts]]
    return Kind(np.array(places), np.ones((2, len(shifts))))


def hidden(n: int) -> Kind:
    """Channels in groups of eight: the same thing seen from each side."""
    sides = [np.array(m).reshape(2, 2) for m in ((1, 0, 0, 1), (0, 1, 1, 0))]
    sides = [np.diag(s) @ m for m in sides for s in ((1, 1), (-1, 1), (1, -1), (-1, -1))]
    motions = np.array([[0, 1], [1, 0]]), np.array([[-1, 0], [0, 1]])
    turned = [[next(k for k in range(8) if (motion @ sides[k] == side).all()) for side in sides] for motion in motions]
    return Kind.of(*(Kind(np.array(turned), np.ones((2, 8))) for _ in range(n // 8)))


VOLUME = Kind.of(
    scalars(3), tensor(), vector(), beside(SHIFTS), scalars(1), *(vector() for _ in BOXES), vector()
)  # fmt: skip
"""What `_flow_volume.volume` gives."""
ANSWER = Kind.of(vector(), swapped())
"""What the network answers: what the field lacks (y, x) [px], and the logarithm of its error (y, x)."""


def symmetric(weight: Tensor, out: Kind, into: Kind) -> Tensor:
    """Mean of a convolution's weights (out, in, k, k) over the eight motions of the square."""

    def moved(w: Tensor, motion: int) -> Tensor:
        signs = out.signs[motion][:, None] * into.signs[motion]
        w = w[out.places[motion]][:, into.places[motion]] * signs[..., None, None].to(w.device)
        return w.transpose(-1, -2) if motion == TRANSPOSED else w.flip(-2)

    def turned(w: Tensor) -> Tensor:
        return moved(moved(w, TRANSPOSED), FLIPPED)

    weight = (weight + turned(weight)) / 2
    weight = (weight + turned(turned(weight))) / 2
    return (weight + moved(weight, FLIPPED)) / 2


class Operations(Protocol):
    """What a network is made of; training, running in PyTorch and ONNX each have their own."""

    def convolve(self, name: str, x: Any, apart: int) -> Any:
        """The convolution of that name over 3 x 3 cells, so far apart; beyond the array is zero."""

    def relu(self, x: Any) -> Any:
        """Zero where x is negative."""

    def add(self, x: Any, y: Any) -> Any:
        """The sum."""


def answer(operations: Operations, x: Any, apart: Sequence[int]) -> Any:
    """Volume (n, channels, h, w) -> answer (n, 4, h, w): residual blocks of two convolutions each."""
    x = operations.relu(operations.convolve("first", x, 1))
    for k, d in enumerate(apart):
        y = operations.relu(operations.convolve(f"block{k}a", x, d))
        x = operations.relu(operations.add(x, operations.convolve(f"block{k}b", y, d)))
    return operations.convolve("last", x, 1)


def reach(apart: Sequence[int]) -> int:
    """Cells on each side that an answer depends on."""
    return 2 + 2 * sum(apart)


class Plain:
    """The network as it is stored: plain convolutions."""

    def __init__(self, weights: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.weights = weights

    def convolve(self, name: str, x: Tensor, apart: int) -> Tensor:
        """A plain convolution."""
        return functional.conv2d(x, *self.weights[name], padding=apart, dilation=apart)

    def relu(self, x: Tensor) -> Tensor:
        """Zero where x is negative."""
        return torch.relu(x)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum."""
        return x + y


class Convolution(nn.Module):
    """The weights of a convolution that knows no direction."""

    def __init__(self, into: Kind, out: Kind, *, wide: int = 3, zero: bool = False) -> None:
        super().__init__()
        self.into, self.out = into, out
        # The mean over eight independent weights is smaller than each.
        deviation = 0.0 if zero else (2 * 8 / (wide**2 * len(into))) ** 0.5
        self.weight = nn.Parameter(deviation * torch.randn(len(out), len(into), wide, wide))
        self.bias = nn.Parameter(torch.zeros(len(out), 1, 1, 1))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Weights and bias of the plain convolution."""
        bias = symmetric(self.bias, self.out, scalars(1))
        return symmetric(self.weight, self.out, self.into), bias[:, 0, 0, 0]


class FlowNetwork(nn.Module):
    """The network in training.

    Parameters
    ----------
    width : int
        Hidden channels, a multiple of 8.
    apart : sequence of int
        Distance of the cells in the convolutions of each block.

    Examples
    --------
    >>> FlowNetwork(width=8, apart=(1,))(torch.zeros(1, len(VOLUME), 6, 7)).shape
    torch.Size([1, 4, 6, 7])
    """

    def __init__(self, width: int, apart: Sequence[int]) -> None:
        super().__init__()
        kind, self.apart = hidden(width), tuple(apart)
        self.parts = nn.ModuleDict({"first": Convolution(VOLUME, kind), "last": Convolution(kind, ANSWER, zero=True)})
        for k in range(len(self.apart)):
            self.parts[f"block{k}a"] = Convolution(kind, kind)
            self.parts[f"block{k}b"] = Convolution(kind, kind, zero=True)

    def plain(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Weights and bias of every plain convolution."""
        return {name: part() for name, part in self.parts.items()}

    def forward(self, x: Tensor) -> Tensor:
        """What the field lacks, and the logarithm of its error."""
        return cast(Tensor, answer(Plain(self.plain()), x, self.apart))
