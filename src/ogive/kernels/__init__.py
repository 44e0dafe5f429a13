"""Matching kernels: the contract, the registry, and the wrapper for a user's own function.

A kernel turns two windows of a scene pair into displacements. It never sees a date, a coordinate system or a Dask
array: `blocks.map_overlapping` cuts the windows, `track` turns pixels into meter/year. A kernel is a frozen dataclass
of its parameters with a few members (`Kernel`); whatever is in `KERNELS` is run through the contract tests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .. import flags
from ..errors import ParameterError
from ..quality import finite
from ._memory import PREPARE, Footprint
from .flow import HornSchunck, HornSchunckReference
from .flow_net import FlowNet
from .ncc import GRADIENT, NCC
from .orientation import OrientationCorrelation
from .phase import PhaseCorrelation
from .raft import Raft

Displacements = dict[str, NDArray[Any]]
"""What `match` returns, each (ny, nx): `dy`, `dx` [px; NaN where invalid], `dy_error`, `dx_error` [px, 1 sigma; NaN
where not estimated], `corr`, `snr`, `peak_ratio`, `valid_fraction`, all float32; `chip` uint16 [px; 0 = none], `flag`
uint16; and the kernel's `extras`, float32."""


@runtime_checkable
class Kernel(Protocol):
    """The contract of a matching kernel.

    Windows carry `halo()` pixels on each side of the `ny * step` by `nx * step` pixels of the output cells. Cell (i, j)
    covers pixels `halo + step * i ... halo + step * (i + 1) - 1`; the displacement is that of the cell's centre, in
    pixels, dy positive down: a feature at (y, x) in image 1 is at (y + dy, x + dx) in image 2.
    """

    @property
    def step(self) -> int:
        """Grid step between output points [px]."""

    @property
    def chip(self) -> int | tuple[int, ...]:
        """Width, or widths, of the image chip behind one vector [px]."""

    @property
    def extras(self) -> tuple[str, ...]:
        """What `match` returns beside `blocks.OUTPUTS`."""

    def halo(self) -> int:
        """Pixels needed beyond the output cells, on each side."""

    def memory(self, cells: tuple[int, int], pairs: int = 1) -> Footprint:
        """Upper bound of the memory of a block of (ny, nx) cells, whose layers are made of so many pairs each."""

    def prepare(self, image: NDArray[np.float32], valid: NDArray[np.bool_]) -> Any:
        """Everything that belongs to one scene window and is shared by all its pairs (filters, tables)."""

    def match(self, first: Any, second: Any) -> Displacements:
        """Displacements between two prepared windows, each array of shape (ny, nx)."""


@runtime_checkable
class Guided(Kernel, Protocol):
    """A kernel that can search round a prior, and match stacks of pairs.

    `match(first, second, prior)` takes displacements (2, ny + 2 margin, nx + 2 margin) [px].
    """

    @property
    def margin(self) -> int:
        """Cells beyond the output that take part in its judgement."""

    def match(self, first: Any, second: Any, prior: NDArray[np.float32] | None = None) -> Displacements:
        """Displacements between two prepared windows, searched round the prior."""

    def match_stack(self, pairs: Sequence[tuple[Any, Any]]) -> Displacements:
        """Displacements common to several pairs of like time spans."""


@runtime_checkable
class Multiband(Kernel, Protocol):
    """A kernel that compares several bands at once: its windows are (h, w) or (bands, h, w), with one mask."""

    @property
    def multiband(self) -> bool:
        """True."""

    def memory(self, cells: tuple[int, int], pairs: int = 1, bands: int = 1) -> Footprint:
        """Upper bound of the memory of a block, as in `Kernel`, for images of so many bands."""


@dataclass(frozen=True)
class Custom:
    """A user's own matching function behind the kernel contract.

    Parameters
    ----------
    function : callable
        `function(image1, image2, valid1, valid2)` with windows of shape (h, w); images of a cube of several bands are
        (bands, h, w), and what is valid is so in all. Returns `(dy, dx)` or
        `(dy, dx, corr)`, each (ny, nx) with `ny = (h - 2 margin) // step`, NaN where there is no match.
    step, chip, margin : int
        Grid step, width of the area behind one vector, and halo [px].

    Examples
    --------
    >>> still = Custom(lambda a, b, va, vb: (np.zeros((4, 4)), np.zeros((4, 4))), step=8, chip=8, margin=0)
    >>> window = still.prepare(np.ones((32, 32), "f4"), np.ones((32, 32), bool))
    >>> still.match(window, window)["dy"].shape
    (4, 4)
    """

    function: Callable[..., Any]
    step: int = 8
    chip: int = 32
    margin: int = 32

    def __post_init__(self) -> None:
        for name, least in (("step", 1), ("chip", 1), ("margin", 0)):
            if getattr(self, name) < least:
                raise ParameterError(name, rule=f"must be at least {least} px", value=getattr(self, name))

    @property
    def extras(self) -> tuple[str, ...]:
        """None."""
        return ()

    def halo(self) -> int:
        """Pixels needed beyond the output cells."""
        return self.margin

    @property
    def multiband(self) -> bool:
        """True: what becomes of the bands is the function's business."""
        return True

    def memory(self, cells: tuple[int, int], pairs: int = 1, bands: int = 1) -> Footprint:
        """Image, mask and answers; what the function itself takes nobody knows."""
        height, width = (n * self.step + 2 * self.margin for n in cells)
        n = height * width
        return Footprint(scene=(4 * bands + 1) * n, prepare=PREPARE * bands * n, match=64 * cells[0] * cells[1])

    def prepare(self, image: NDArray[np.float32], valid: NDArray[np.bool_]) -> Any:
        """The window as it is, NaN where masked or, in any band, missing."""
        valid = valid & finite(image)
        return np.where(valid, image, np.float32(np.nan)), valid

    def match(self, first: Any, second: Any) -> Displacements:
        """Call the function and check what it returned."""
        shape = tuple((n - 2 * self.margin) // self.step for n in first[1].shape)
        result = [np.asarray(r, np.float32) for r in self.function(first[0], second[0], first[1], second[1])]
        if len(result) not in (2, 3) or any(r.shape != shape for r in result):
            raise ParameterError(
                "kernel function", rule=f"must return (dy, dx) or (dy, dx, corr), each of shape {shape}",
                value=[r.shape for r in result], fix="check step and margin",
            )  # fmt: skip
        dy, dx = result[:2]
        good = np.isfinite(dy) & np.isfinite(dx)
        nothing = np.full(shape, np.nan, np.float32)
        return {
            "dy": np.where(good, dy, np.float32(np.nan)),
            "dx": np.where(good, dx, np.float32(np.nan)),
            "corr": result[2] if len(result) == 3 else nothing,
            **dict.fromkeys(("dy_error", "dx_error", "snr", "peak_ratio", "valid_fraction"), nothing),
            "chip": np.where(good, self.chip, 0).astype(np.uint16),
            "flag": np.where(good, 0, flags.NO_DATA).astype(np.uint16),
        }


KERNELS: dict[str, Callable[..., Kernel]] = {
    "ncc": NCC,
    "orientation": OrientationCorrelation,
    "phase": PhaseCorrelation,
    "hs_robust": HornSchunck,
    "hs_reference": HornSchunckReference,
    "flow_net": FlowNet,
    "raft": Raft,
}
"""Kernels by the name they have in a run file."""

__all__ = [
    "GRADIENT",
    "KERNELS",
    "NCC",
    "Custom",
    "Displacements",
    "FlowNet",
    "Footprint",
    "Guided",
    "HornSchunck",
    "HornSchunckReference",
    "Kernel",
    "Multiband",
    "OrientationCorrelation",
    "PhaseCorrelation",
    "Raft",
]
