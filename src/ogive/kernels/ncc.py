"""Normalised cross-correlation: parameters, geometry, and the choice of the backend.

The science is in the sibling files: `_ncc_reference.py` (slow, obvious), `_ncc_numba.py` (CPU), `_ncc_cupy.py` (GPU).
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import enhance, flags
from ..errors import ParameterError
from . import _ncc_cupy, _ncc_numba, _ncc_reference

log = logging.getLogger("ogive")
MIN_VALID = 0.5
"""Least share of a chip's pixels that must be valid, in image 1 and, at each displacement, in both images."""
MIN_SEARCHED = 0.5
"""Least share of the displacements that must have so many pixels. On the synthetic glacier, 43 % of the matches whose
place in image 2 is mostly masked are gross errors, 0.7 % of the others."""
_CACHE_BYTES = 8_000_000
"""Working set of one strip of points. Strips of the second-level cache's 1 MB are too narrow for a wide search: with
8 MB a search of 8 px is as fast and one of 25 px 2.2 times (benchmarks/ncc.py)."""


@dataclass(frozen=True)
class Scene:
    """One scene window, prepared: filtered image, mask, integral image of invalid pixels, and tables (numba)."""

    image: NDArray[np.float32]
    valid: NDArray[np.bool_]
    invalid: NDArray[np.int32] | None
    tables: tuple[NDArray[np.float32], NDArray[np.float32]] | None


@dataclass(frozen=True)
class NCC:
    """Zero-mean normalised cross-correlation with both images' masks, and a quadric sub-pixel peak.

    Parameters
    ----------
    chip : int
        Width of the square chip cut from image 1 [px]. 32 px is where noise and strain balance on alpine texture.
    search : int
        Largest displacement searched, in each direction [px]. Must exceed maximum speed x days / resolution: a peak on
        the rim of the window is flagged, never trusted.
    step : int
        Grid step between vectors [px]; the output cell.
    enhance : str
        Pre-filter, a name in `ogive.enhance.FILTERS`.
    min_correlation : float
        Lower peaks are flagged LOW_CORRELATION [1]. 0.2 is the usual floor and no proof: unrelated 32 px chips reach
        it in half of the searches of 8 px (0.33 in one of a hundred), 64 px chips in 0.3 %. The rest is for
        `max_peak_ratio` and the neighbour tests of `ogive.filters`.
    max_peak_ratio : float
        Second peak / first peak above which a match is AMBIGUOUS [1].
    backend : {"auto", "numba", "cupy", "reference"}
        "auto" takes the GPU when there is one.

    Raises
    ------
    ParameterError
        A value out of range, or chip and step of different parity (the chip could not be centred on its cell).

    Notes
    -----
    Masked form: Padfield (2012), doi:10.1109/TIP.2011.2181402; the order of the loops is described in `_ncc_numba`.
    A chip needs half of its pixels valid in image 1, a displacement needs half of them valid in both images, and half
    of all displacements must have that: else the true one may lie under a cloud, and the best of the rest is returned.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> image = rng.standard_normal((96, 96)).astype("f4")
    >>> kernel = NCC(chip=16, search=4, step=8, enhance="none")
    >>> every = np.ones(image.shape, bool)
    >>> moved = kernel.match(kernel.prepare(image, every), kernel.prepare(np.roll(image, (2, -3), (0, 1)), every))
    >>> float(np.rint(np.median(moved["dy"]))), float(np.rint(np.median(moved["dx"])))
    (2.0, -3.0)
    """

    chip: int = 32
    search: int = 16
    step: int = 8
    enhance: str = "high_pass"
    min_correlation: float = 0.2
    max_peak_ratio: float = 0.8
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("chip", 4), ("search", 1), ("step", 1)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < least:
                raise ParameterError(
                    name, rule=f"must be a whole number of pixels, at least {least}", value=value,
                    fix="search = maximum speed [m/yr] x days / 365 / resolution [m]" if name == "search" else "",
                )  # fmt: skip
        if (self.chip - self.step) % 2:
            raise ParameterError(
                "chip and step", rule="must both be even or both be odd, so that chips are centred on their cells",
                value=f"chip={self.chip}, step={self.step}", fix=f"chip={self.chip + 1}",
            )  # fmt: skip
        for name in ("min_correlation", "max_peak_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ParameterError(name, rule="must lie in 0 ... 1", value=getattr(self, name))
        if self.backend not in ("auto", "numba", "cupy", "reference"):
            raise ParameterError("backend", rule="must be auto, numba, cupy or reference", value=repr(self.backend))
        enhance.get(self.enhance)

    def halo(self) -> int:
        """Pixels needed beyond the output cells: half a chip, the search window, the reach of the filter."""
        return max(0, (self.chip - self.step) // 2) + self.search + enhance.get(self.enhance).halo

    def prepare(self, image: NDArray[np.float32], valid: NDArray[np.bool_]) -> Scene:
        """Filter one window (h, w) and make what all its pairs share.

        Raises
        ------
        ParameterError
            The window is smaller than one cell with its halo.
        """
        least = 2 * self.halo() + self.step
        if min(image.shape) < least:
            raise ParameterError(
                "image", rule=f"must be at least {least} px wide for chip {self.chip}, search {self.search} and filter "
                f"{self.enhance!r}", value=image.shape, fix="use a smaller chip or search, or a larger area",
            )  # fmt: skip
        valid = valid & np.isfinite(image)
        filtered, valid = enhance.get(self.enhance).apply(np.where(valid, image, 0).astype(np.float32), valid)
        filtered, valid = np.ascontiguousarray(filtered), np.ascontiguousarray(valid)
        invalid = None
        if not valid.all():
            invalid = np.zeros((valid.shape[0] + 1, valid.shape[1] + 1), np.int32)
            np.cumsum(np.cumsum(~valid, 0, dtype=np.int32), 1, out=invalid[1:, 1:])
        return Scene(filtered, valid, invalid, self._tables(filtered) if self._backend() == "numba" else None)

    def match(self, first: Scene, second: Scene) -> dict[str, NDArray[Any]]:
        """Displacements of the cells between two prepared windows.

        Returns
        -------
        dict of (ny, nx) arrays
            `dy`, `dx` [px, dy down; NaN where invalid], `corr` (peak), `snr` (peak / mean |r|), `peak_ratio` (second
            peak / peak), all float32, and `flag` uint16 (`ogive.flags`).
        """
        kind = self._classes(first, second)
        run = {"numba": self._numba, "cupy": self._cupy, "reference": self._reference}[self._backend()]
        dy, dx, corr, second_peak, mean, rim, refined, searched = run(first, second, kind)
        empty = kind == _ncc_numba.EMPTY
        # Where most displacements have no common pixels the true one may hide under the mask: no answer is better.
        none = (corr <= -1.5) | (searched < MIN_SEARCHED)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(corr > 0, np.maximum(second_peak, 0) / corr, np.float32(1)).astype(np.float32)
            snr = np.where(mean > 0, corr / mean, np.float32(0)).astype(np.float32)
        flag = np.zeros(kind.shape, np.uint16)
        flat = ~empty & ~none & (mean <= 0)
        matched = ~(empty | none | flat)
        flag[empty | none] |= flags.NO_DATA
        flag[flat] |= flags.FLAT
        flag[matched & (rim > 0)] |= flags.RIM
        flag[matched & (corr < self.min_correlation)] |= flags.LOW_CORRELATION
        flag[matched & (ratio > self.max_peak_ratio)] |= flags.AMBIGUOUS
        flag[matched & (rim == 0) & (refined == 0)] |= flags.NOT_REFINED
        good = ~flags.invalid(flag)
        nan = np.float32(np.nan)
        return {
            "dy": np.where(good, dy, nan),
            "dx": np.where(good, dx, nan),
            "corr": np.where(matched, corr, nan),
            "snr": np.where(matched, snr, nan),
            "peak_ratio": np.where(matched, ratio, nan),
            "flag": flag,
        }

    # Geometry: every chip is a whole number of blocks, blocks are anchored to the cells and so to the cube's grid.

    @property
    def _block(self) -> int:
        return math.gcd(self.chip, self.step)

    def _origin(self) -> int:
        return self.halo() + (self.step - self.chip) // 2

    def _cells(self, scene: Scene) -> tuple[int, int]:
        h, w = scene.image.shape
        return (h - 2 * self.halo()) // self.step, (w - 2 * self.halo()) // self.step

    def _backend(self) -> str:
        if self.backend != "auto":
            return self.backend
        return "cupy" if _ncc_cupy.available() else "numba"

    def _tables(self, image: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Tables in polyphase order: contiguous along a row of points for any displacement."""
        s, start = self.step, self._origin() - self.search
        w = self._block
        t, q = _ncc_numba.tables(np.ascontiguousarray(image[start:, start:]), self.chip, w, self.chip // w)
        out = []
        for table in (t, q):
            rows, columns = (-(-n // s) for n in table.shape)
            padded = np.zeros((rows * s, columns * s), np.float32)
            padded[: table.shape[0], : table.shape[1]] = table
            out.append(np.ascontiguousarray(padded.reshape(rows, s, columns, s).transpose(1, 3, 0, 2)))
        return out[0], out[1]

    def _classes(self, first: Scene, second: Scene) -> NDArray[np.uint8]:
        """CLEAN, MASKED or EMPTY for each cell, from its own chip and search window only."""
        ny, nx = self._cells(first)
        kind = np.zeros((ny, nx), np.uint8)
        o, r, c = self._origin(), self.search, self.chip
        in_chip = _count(first.invalid, o, c, self.step, (ny, nx))
        in_window = _count(second.invalid, o - r, c + 2 * r, self.step, (ny, nx))
        kind[(in_chip > 0) | (in_window > 0)] = _ncc_numba.MASKED
        kind[in_chip > (1 - MIN_VALID) * c * c] = _ncc_numba.EMPTY
        return kind

    @property
    def _min_pixels(self) -> int:
        return max(16, int(MIN_VALID * self.chip * self.chip))

    def _numba(self, first: Scene, second: Scene, kind: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert first.tables is not None
        assert second.tables is not None
        ny, nx = kind.shape
        s, r, w = self.step, self.search, self._block
        j, p = divmod(r, s)
        ta, qa = (table[p, p, j : j + ny, j : j + nx] for table in first.tables)
        tb, qb = second.tables
        masked = bool((kind == _ncc_numba.MASKED).any())
        a, b = (_planes(scene, masked) for scene in (first, second))
        out = np.empty((8, ny, nx), np.float32)
        blocks, stride = self.chip // w, s // w
        strip = max(16, _CACHE_BYTES // (4 * (2 * r + 1) ** 2 * (blocks * stride + 1)))
        for x in range(0, nx, strip):
            cut = slice(x, min(nx, x + strip))
            part = np.empty((8, ny, cut.stop - cut.start), np.float32)
            _ncc_numba.match(
                a, b, self._origin(), self._origin() + x * s, r, blocks, stride, s,
                np.ascontiguousarray(ta[:, cut]), np.ascontiguousarray(qa[:, cut]),
                tb[:, :, :, x:], qb[:, :, :, x:], np.ascontiguousarray(kind[:, cut]),
                float(self._min_pixels), (0,) * w, part,
            )  # fmt: skip
            out[:, :, cut] = part
        return out

    def _cupy(self, first: Scene, second: Scene, kind: NDArray[np.uint8]) -> NDArray[np.float32]:
        geometry = (self._origin(), self.search, self.chip, self.step, self._block)
        return _ncc_cupy.match(
            first.image, first.valid, second.image, second.valid, kind.shape, geometry, self._min_pixels
        )

    def _reference(self, first: Scene, second: Scene, kind: NDArray[np.uint8]) -> NDArray[np.float32]:
        out = np.full((8, *kind.shape), np.nan, np.float32)
        o, r, c = self._origin(), self.search, self.chip
        for (i, j), value in np.ndenumerate(kind):
            if value == _ncc_numba.EMPTY:
                out[2:, i, j] = -2
                continue
            y, x = o + i * self.step, o + j * self.step
            chip, window = np.s_[y : y + c, x : x + c], np.s_[y - r : y + c + r, x - r : x + c + r]
            surface = _ncc_reference.surface(
                first.image[chip], first.valid[chip], second.image[window], second.valid[window], self._min_pixels
            )
            out[:, i, j] = _ncc_reference.peak(surface) if np.isfinite(surface).any() else -2
        return out


def _count(invalid: NDArray[np.int32] | None, origin: int, width: int, step: int, shape: tuple[int, int]) -> Any:
    """Invalid pixels in the square of each cell, from the integral image."""
    if invalid is None:
        return np.zeros(shape, np.int32)
    y, x = (origin + step * np.arange(n) for n in shape)
    corner = np.ix_
    return (
        invalid[corner(y + width, x + width)] - invalid[corner(y, x + width)]
        - invalid[corner(y + width, x)] + invalid[corner(y, x)]
    )  # fmt: skip


def _planes(scene: Scene, masked: bool) -> NDArray[np.float32]:
    """The image alone, or with its mask and its square where masked points need six sums."""
    if not masked:
        return scene.image[None]
    return np.stack([scene.image, scene.valid.astype(np.float32), scene.image * scene.image])
