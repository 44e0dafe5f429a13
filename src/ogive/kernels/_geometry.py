"""Where the chips of the output cells lie in a window, and how a window is prepared for the search.

Every chip is centred on its cell and a whole number of blocks wide; blocks are anchored to the cells and so to the
cube's grid. One geometry serves all chip sizes: the origin is that of the largest.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError
from . import _tables

MAX_BLOCK = 8
"""Widest block [px]: the sums of wider ones do not fit the registers. Narrow blocks cost more sums."""


def check_centred(chips: tuple[int, ...], step: int) -> None:
    """Refuse chips that cannot be centred on their cells.

    Raises
    ------
    ParameterError
        Chip and step of different parity.
    """
    if any((chip - step) % 2 for chip in chips):
        raise ParameterError(
            "chip and step", rule="must both be even or both be odd, so that chips are centred on their cells",
            value=f"chip={chips[0] if len(chips) == 1 else chips}, step={step}", fix="add 1 to the chip",
        )  # fmt: skip


def check_limits(min_correlation: float, max_peak_ratio: float) -> None:
    """Refuse thresholds that no correlation can meet.

    Raises
    ------
    ParameterError
        One outside of 0 ... 1.
    """
    for name, value in (("min_correlation", min_correlation), ("max_peak_ratio", max_peak_ratio)):
        if not 0 <= value <= 1:
            raise ParameterError(name, rule="must lie in 0 ... 1", value=value)


def check_window(image: NDArray[np.float32], halo: int, step: int, about: str) -> None:
    """Refuse a window smaller than one cell with its halo.

    Raises
    ------
    ParameterError
        With the least width, and what it is for (`about`).
    """
    least = 2 * halo + step
    if min(image.shape[-2:]) < least:
        raise ParameterError(
            "image", rule=f"must be at least {least} px wide for {about}", value=image.shape,
            fix="use a smaller chip or search, or a larger area",
        )  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """Chips and search of a matching run.

    Parameters
    ----------
    chips : tuple of int
        Chip widths [px], rising, all of the parity of the step.
    step : int
        Grid step [px].
    search : int
        Largest displacement that may be asked for [px].
    origin : int
        First pixel of the largest chip of cell (0, 0), in y and x.
    """

    chips: tuple[int, ...]
    step: int
    search: int
    origin: int

    @property
    def block(self) -> int:
        """Width of a block [px]: it divides the step, every chip, and what a larger chip has on each side."""
        largest = self.chips[-1]
        common = math.gcd(self.step, *self.chips, *((largest - c) // 2 for c in self.chips))
        narrow = max(w for w in range(1, MAX_BLOCK + 1) if common % w == 0)
        # A prime width would leave blocks of one pixel.
        return narrow if narrow > 2 or common > 2 * MAX_BLOCK else common

    @property
    def counts(self) -> NDArray[np.int64]:
        """Chip widths in blocks."""
        return np.array(self.chips, np.int64) // self.block

    def corners(self, chip: int, shape: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First pixels of the chips of all cells: y (ny, 1) and x (1, nx)."""
        y, x = (self.first(chip) + self.step * np.arange(n) for n in shape)
        return y[:, None], x[None]

    def first(self, chip: int) -> int:
        """First pixel of a chip of cell (0, 0)."""
        return self.origin + (self.chips[-1] - chip) // 2


@dataclass(frozen=True)
class Scene:
    """One scene window, prepared for the search: filtered image (0 where masked), mask, and tables made when needed."""

    image: NDArray[np.float32]
    valid: NDArray[np.bool_]
    geometry: Geometry

    @cached_property
    def invalid(self) -> NDArray[np.int32] | None:
        """Integral image of the masked pixels, one row and column larger; None where nothing is masked."""
        if self.valid.all():
            return None
        return np.asarray(_tables.integral(self.valid))

    def masked(self, y: NDArray[np.int64], x: NDArray[np.int64], width: int) -> NDArray[np.int32]:
        """Masked pixels in the squares of that width that begin at (y, x); both broadcast."""
        if self.invalid is None:
            return np.zeros(np.broadcast_shapes(y.shape, x.shape), np.int32)
        table = self.invalid
        far_y, far_x = y + width, x + width
        return np.asarray(table[far_y, far_x] - table[y, far_x] - table[far_y, x] + table[y, x])

    @property
    def before(self) -> int:
        """Pixels put to the left of the window so that blocks begin in the first column."""
        return -self.geometry.origin % self.geometry.block

    @cached_property
    def plain(self) -> NDArray[np.float32]:
        """The image in polyphase order (1, block, h, columns)."""
        return np.asarray(_tables.phases(self.image, self.geometry.block, self.before)[None])

    def planes(self, y: int, x: int, height: int, width: int) -> NDArray[np.float32]:
        """Image, mask and square of a part that begins at (y, x), in polyphase order (3, block, height, columns).

        Made for each tile: masked pixels are few, and three planes of the whole window would not be.
        """
        part = np.s_[y : y + height, x : x + width]
        image = _tables.phases(self.image[part], self.geometry.block, 0)
        return np.stack([image, _tables.phases(self.valid[part], self.geometry.block, 0), image * image])

    @cached_property
    def tables(self) -> NDArray[np.float32]:
        """Means and inverse deviations of all chips (sizes, 2, step, step, J, I), from the first place searched on."""
        g = self.geometry
        start = g.origin - g.search
        cells = [-(-(n - start - g.chips[0] + 1) // g.step) for n in self.image.shape]
        out = np.zeros((len(g.chips), 2, g.step, g.step, *cells), np.float32)
        _tables.tables_of(self.image, np.array(g.chips), start, out)
        return out

    @cached_property
    def _points(self) -> list[NDArray[np.float32]]:
        """The tables of each chip at all cells whose chips lie in the window, (2, ny, nx)."""
        g = self.geometry
        shape = [(n - g.origin - g.chips[-1]) // g.step + 1 for n in self.image.shape]
        found = []
        for m, chip in enumerate(g.chips):
            if "tables" in self.__dict__:
                j, p = divmod(g.first(chip) - (g.origin - g.search), g.step)
                found.append(self.tables[m, :, p, p, j : j + shape[0], j : j + shape[1]])
            else:
                out = np.empty((2, 1, 1, *shape), np.float32)
                _tables.point_tables(self.image, chip, g.first(chip), g.step, out)
                found.append(out[:, 0, 0])
        return found

    def points(self, m: int, shape: tuple[int, int]) -> NDArray[np.float32]:
        """The tables of chip m at the cells themselves, (2, ny, nx)."""
        return self._points[m][:, : shape[0], : shape[1]]
