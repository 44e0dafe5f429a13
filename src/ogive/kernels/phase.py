"""Phase correlation: the sub-pixel displacement as the slope of a plane, the phase of the cross-power spectrum.

Whole pixels come from NCC, with its masks and its reasons for giving no answer. Then two equal windows are cut, the
second at the displaced place, tapered, transformed, and a plane k . d is fitted to the phase of A* B at the frequencies
below 0.8 Nyquist, each weighted by its power |A* B|. On truth pairs that has a third to a half of the error of the
maximum of the normalised spectrum (plain phase correlation), whose many weak frequencies are mostly noise.

The taper travels with the feature: image 2 is tapered around the *sub-pixel* place where the quadric of NCC sees the
chip. Both tapered windows then show the same thing, displaced, and the bias towards whole pixels that fixed tapers
cause is gone: 0.001 px is left of the 0.03 px of a quadric.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import fft

from .. import flags
from ..errors import ParameterError
from ._geometry import Scene
from ._memory import Footprint
from ._ncc_numba import U
from .ncc import NCC, Prepared
from .subpixel import JIT

_BATCH = 64
"""Windows transformed together; always so many, so that a window's bits do not depend on how many there are."""
_BAND = 0.8
"""Highest frequency used / Nyquist. Above it are aliases, which cause what bias is left, and noise."""
_STEPS = 3
"""Newton steps of one fit; it starts within 0.1 px."""
_FARTHEST = 0.75
"""A fit that ends farther from NCC's own sub-pixel place [px] has lost it."""
_LEAST_WEIGHT = 0.25
"""Least share of the taper's weight that masks must leave."""
_CHIP: dict[str, Any] = {**JIT, "fastmath": {"reassoc", "contract", "nsz", "arcp"}, "forceinline": True}
"""For loops inside one window: always of the same length, so that re-association changes nothing from tile to tile.
Always inlined, see `_icgn.CHIP`."""


@dataclass(frozen=True)
class PhaseCorrelation:
    """Whole pixels by NCC, sub-pixels by the phase of the cross-power spectrum.

    Parameters
    ----------
    chip : int
        Width of the square windows [px]. The tapers make them act like windows of two thirds of that width.
    search : int
        Largest displacement searched, in each direction [px]; a peak on the rim is flagged, never trusted.
    step : int
        Grid step between vectors [px]; the output cell.
    enhance : str
        Pre-filter, a name in `ogive.enhance.FILTERS`.
    min_correlation, max_peak_ratio : float
        Limits of the whole-pixel search [1], as in `NCC`.

    Raises
    ------
    ParameterError
        A value out of range, or chip and step of different parity (the chip could not be centred on its cell).

    Notes
    -----
    Plane fit to the phase: Leprince et al. (2007), doi:10.1109/TGRS.2006.888937. Where the fit fails, or masks leave
    less than a quarter of the window, the NCC quadric stays and the flag is NOT_REFINED.

    Examples
    --------
    >>> from ogive.testing.pairs import truth_pair
    >>> pair, kernel = truth_pair("S05", 128), PhaseCorrelation(chip=32, search=4)
    >>> every = np.ones((128, 128), bool)
    >>> moved = kernel.match(*(kernel.prepare(im.astype("f4"), every) for im in (pair.image1, pair.image2)))
    >>> round(float(moved["dy"].mean()), 2), round(float(moved["dx"].mean()), 2)
    (0.3, 0.31)
    """

    chip: int = 64
    search: int = 16
    step: int = 8
    enhance: str = "high_pass"
    min_correlation: float = 0.2
    max_peak_ratio: float = 0.8

    def __post_init__(self) -> None:
        if self._whole.chips[0] < 16:
            raise ParameterError("chip", rule="must be at least 16 px, for the tapers", value=self.chip, fix="use NCC")

    @property
    def _whole(self) -> NCC:
        return NCC(
            self.chip, self.search, self.step, self.enhance, "quadric", min_correlation=self.min_correlation,
            max_peak_ratio=self.max_peak_ratio,
        )  # fmt: skip

    @property
    def extras(self) -> tuple[str, ...]:
        """None."""
        return ()

    def halo(self) -> int:
        """Pixels needed beyond the output cells, as NCC."""
        return self._whole.halo()

    def memory(self, cells: tuple[int, int], pairs: int = 1) -> Footprint:
        """Upper bound of the memory of one block of so many cells: NCC, then a batch of windows and their spectra."""
        batch = 2 * _BATCH * self.chip * self.chip
        return self._whole.memory(cells, pairs) + Footprint(match=12 * batch + 120 * cells[0] * cells[1])

    def prepare(self, image: NDArray[np.float32], valid: NDArray[np.bool_]) -> Prepared:
        """Filter one window (h, w).

        Raises
        ------
        ParameterError
            The window is smaller than one cell with its halo.
        """
        return self._whole.prepare(image, valid)

    def match(self, first: Prepared, second: Prepared) -> dict[str, NDArray[Any]]:
        """Displacements of the cells between two prepared windows.

        Returns
        -------
        dict of (ny, nx) arrays
            `dy`, `dx` [px, dy down; NaN where invalid], `dy_error`, `dx_error` (NaN: not estimated), `corr`, `snr`,
            `peak_ratio` of the whole-pixel search, `valid_fraction` (of the chip in image 1), all float32, `chip` [px,
            0 where nothing matched] and `flag` (`ogive.flags`), both uint16.
        """
        found = self._whole.match(first, second)
        flag = found["flag"].copy()
        cells = np.nonzero(np.isfinite(found["dy"]))
        corner = first.search.geometry.origin + self.step * np.stack(cells).astype(np.int64)
        coarse = np.stack([found["dy"][cells], found["dx"][cells]]).astype(np.float64)
        fine, fitted = refine(first.search, second.search, corner.T, coarse.T, self.chip)
        flag[cells] = np.where(fitted, flag[cells] & ~np.uint16(flags.NOT_REFINED), flag[cells] | flags.NOT_REFINED)
        dy, dx = found["dy"].copy(), found["dx"].copy()
        dy[cells], dx[cells] = fine.T
        return {**found, "dy": dy, "dx": dx, "flag": flag}


def refine(
    first: Scene, second: Scene, corner: NDArray[np.int64], start: NDArray[np.float64], chip: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Displacements from the phase of the cross-power spectrum.

    Parameters
    ----------
    first, second : Scene
        Prepared windows; image and mask are used.
    corner : (n, 2) int64
        First pixel of each chip in image 1, y before x.
    start : (n, 2) float64
        Displacements (dy, dx) to start from [px].
    chip : int
        Width of the windows [px].

    Returns
    -------
    displacement : (n, 2) float64
        The start itself where the fit failed.
    fitted : (n,) bool
    """
    whole = np.rint(start).astype(np.int64)
    fraction, fitted = start - whole, np.zeros(len(start), bool)
    masks = None if first.valid.all() and second.valid.all() else (first.valid, second.valid)
    windows = np.zeros((2, _BATCH, chip, chip), np.float32)
    for k in range(0, len(start), _BATCH):
        part = slice(k, k + _BATCH)
        _windows((first.image, second.image), masks, corner[part], whole[part], fraction[part], windows, fitted[part])
        _fit(*fft.rfft2(windows), fraction[part], fitted[part])
    fitted &= np.abs(whole + fraction - start).max(1) <= _FARTHEST
    return np.where(fitted[:, None], whole + fraction, start), fitted


@njit(**_CHIP)
def _taper(shift: Any, w: Any) -> None:
    """Root of a Hann window around the middle + shift; two of them multiplied are a Hann window."""
    for i in range(w.size):
        w[i] = np.cos(np.pi * (i - 0.5 * (w.size - 1) - shift) / w.size)


@njit(**_CHIP)
def _spline(shift: Any, w: Any) -> None:
    """Cubic B-spline, moved by `shift`, at the whole pixels -2 ... 2."""
    for i in range(w.size):
        t = abs(i - 2 - shift)
        w[i] = 2.0 / 3.0 - t * t + 0.5 * t * t * t if t < 1.0 else max(0.0, 2.0 - t) ** 3 / 6.0


@njit(**_CHIP)
def _feather(core: Any, dy: Any, dx: Any, weight: Any) -> None:
    """weight *= the unmasked area with soft edges, moved by (dy, dx).

    A sum of B-splines on the pixels of `core`, three away from any masked one: a smooth function that can be evaluated
    at any displacement and, moved by less than 1 px, is still 0 on every masked pixel.
    """
    c = core.shape[0]
    wy, wx = np.empty(5, np.float32), np.empty(5, np.float32)
    _spline(dy, wy)
    _spline(dx, wx)
    rows = np.empty((c, c), np.float32)
    for y in range(c):
        for x in range(c):
            s = np.float32(0)
            for k in range(5):
                s += wy[k] * core[min(max(y + 2 - k, 0), c - 1), x]
            rows[y, x] = s
    for y in range(c):
        for x in range(c):
            s = np.float32(0)
            for k in range(5):
                s += wx[k] * rows[y, min(max(x + 2 - k, 0), c - 1)]
            weight[y, x] *= s


@njit(**JIT)
def _core(masks: Any, y1: Any, x1: Any, y2: Any, x2: Any, core: Any) -> Any:
    """1 on the pixels three away from any pixel masked in either window; returns whether any is masked."""
    c = core.shape[0]
    core[:] = np.float32(1)
    masked = False
    for j in range(c):
        for i in range(c):
            if not (masks[0][y1 + j, x1 + i] and masks[1][y2 + j, x2 + i]):
                masked = True
                core[max(j - 2, 0) : j + 3, max(i - 2, 0) : i + 3] = np.float32(0)
    return masked


@njit(**_CHIP)
def _weighted(weight: Any, row: Any) -> Any:
    """Sum of the weights, and of weight x pixel, along a row."""
    total, s = np.float32(0), np.float32(0)
    for i in range(U(row.size)):
        total += weight[i]
        s += weight[i] * row[i]
    return total, s


@njit(**_CHIP)
def _deviations(weight: Any, row: Any, mean: Any, out: Any) -> None:
    for i in range(U(row.size)):
        out[i] = weight[i] * (row[i] - mean)


@njit(**JIT)
def _cut(image: Any, y: Any, x: Any, weight: Any, out: Any) -> Any:
    """Pixels less their weighted mean, times the weight; returns the sum of the weights."""
    c = out.shape[0]
    total, s = np.float32(0), np.float32(0)
    for j in range(c):
        more = _weighted(weight[j], image[y + j, x : x + c])
        total += more[0]
        s += more[1]
    mean = s / max(total, np.float32(1e-9))
    for j in range(c):
        _deviations(weight[j], image[y + j, x : x + c], mean, out[j])
    return total


@njit(**JIT)
def _windows(images: Any, masks: Any, corner: Any, whole: Any, fraction: Any, out: Any, enough: Any) -> None:
    """Tapered windows of a batch, out[image, point]; `enough`: the masks leave a share of both tapers."""
    c = out.shape[2]
    core, weight = np.empty((c, c), np.float32), np.empty((c, c), np.float32)
    wy, wx = np.empty(c, np.float32), np.empty(c, np.float32)
    for n in range(len(corner)):
        y1, x1 = corner[n]
        y2, x2 = y1 + whole[n, 0], x1 + whole[n, 1]
        masked = masks is not None and _core(masks, y1, x1, y2, x2, core)
        enough[n] = True
        for k in range(2):
            dy, dx = fraction[n, 0] * k, fraction[n, 1] * k
            _taper(dy, wy)
            _taper(dx, wx)
            for j in range(c):
                for i in range(U(c)):
                    weight[j, i] = wy[j] * wx[i]
            if masked:
                _feather(core, dy, dx, weight)
            total = _cut(images[k], y2 if k else y1, x2 if k else x1, weight, out[k, n])
            # The mean of the taper is 2 / pi along each axis.
            enough[n] &= total >= _LEAST_WEIGHT * (2 * c / np.pi) ** 2


@njit(**_CHIP)
def _cross(a: Any, b: Any, re: Any, im: Any) -> None:
    """Cross-power spectrum A* B of one row."""
    for i in range(U(re.size)):
        re[i] = a[i].real * b[i].real + a[i].imag * b[i].imag
        im[i] = a[i].real * b[i].imag - a[i].imag * b[i].real


@njit(**_CHIP)
def _row_sums(re: Any, im: Any, co: Any, si: Any, cy: Any, sy: Any, last: Any) -> Any:
    """Along one row of frequencies: sums of odd, kx odd, even, kx even, kx kx even for 0 < kx <= last."""
    s0 = s1 = h0 = h1 = h2 = np.float32(0)
    for i in range(U(1), U(last + 1)):
        c, s = co[i] * cy - si[i] * sy, si[i] * cy + co[i] * sy
        even, odd = re[i] * c - im[i] * s, re[i] * s + im[i] * c
        kx = np.float32(i)
        s0 += odd
        s1 += kx * odd
        h0 += even
        h1 += kx * even
        h2 += kx * kx * even
    return s0, s1, h0, h1, h2


@njit(**JIT)
def _sums(re: Any, im: Any, dy: Any, dx: Any, sums: Any) -> None:
    """Slope and curvature at (dy, dx) of sum |C| cos(phase + k . d): g_y, g_x, h_yy, h_xx, h_xy, k in whole waves.

    Stored is the half plane kx >= 0, of which the axis kx = 0 is there twice.
    """
    c, m = re.shape
    unit = 2 * np.pi / c
    co, si = np.empty(m, np.float32), np.empty(m, np.float32)
    for i in range(m):
        co[i], si[i] = np.cos(unit * i * dx), np.sin(unit * i * dx)
    sums[:] = 0.0
    radius = 0.5 * _BAND * c
    for ky in range(-int(radius), int(radius) + 1):
        j = ky % c
        cy, sy = np.float32(np.cos(unit * ky * dy)), np.float32(np.sin(unit * ky * dy))
        last = int(np.sqrt(radius * radius - ky * ky))
        s0, s1, h0, h1, h2 = _row_sums(re[j], im[j], co, si, cy, sy, last)
        s0 += np.float32(0.5) * (re[j, 0] * sy + im[j, 0] * cy)
        h0 += np.float32(0.5) * (re[j, 0] * cy - im[j, 0] * sy)
        sums[0] += ky * s0
        sums[1] += s1
        sums[2] += ky * ky * h0
        sums[3] += h2
        sums[4] += ky * h1


@njit(**JIT)
def _fit(a: Any, b: Any, fraction: Any, fitted: Any) -> None:
    """Newton's method on the plane's slope, from `fraction` and into it; `fitted` &= there is a maximum."""
    c, m = a.shape[1:]
    re, im = np.empty((c, m), np.float32), np.empty((c, m), np.float32)
    s = np.empty(5)
    unit = 2 * np.pi / c
    for n in range(len(fraction)):
        for j in range(c):
            _cross(a[n, j], b[n, j], re[j], im[j])
        for _ in range(_STEPS):
            _sums(re, im, fraction[n, 0], fraction[n, 1], s)
            determinant = unit * (s[2] * s[3] - s[4] * s[4])
            dy, dx = (s[3] * s[0] - s[4] * s[1]) / determinant, (s[2] * s[1] - s[4] * s[0]) / determinant
            if not (s[3] > 0.0 and determinant > 0.0 and abs(dy) < 1.0 and abs(dx) < 1.0):
                fitted[n] = False
                break
            fraction[n, 0] -= dy
            fraction[n, 1] -= dx
