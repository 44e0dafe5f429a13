"""NCC for sparse grids: one point at a time, by the Fourier transform of its chip and its search window.

Where chips hardly overlap there is nothing to share, and the transform takes fewer operations than the products of all
displacements. Chip and window are taken less their means, so float32 is enough. Means and deviations are those of
`_tables.tables`, made of the point's own window: tables of the whole scene would mostly be of places that no point
looks at. Points go in batches of one size, padded with zeros, so that the transform takes the same steps for each.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import fft

from ._geometry import Scene
from ._ncc_numba import CLEAN, U
from ._peaks import peaks
from ._tables import tables
from .subpixel import JIT

_BATCH = 32
"""Points of one batch: a multiple of any register's length, and their spectra stay within the cache."""


def search_fft(first: Scene, second: Scene, kind: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Search the CLEAN points; (sizes, 8, ny, nx) as in `_search`, NaN elsewhere."""
    g = first.geometry
    out = np.full((kind.shape[0], 8, *kind.shape[1:]), np.nan, np.float32)
    for m, chip in enumerate(g.chips):
        window = chip + 2 * g.search
        points = np.nonzero(kind[m] == CLEAN)
        for k in range(0, points[0].size, _BATCH):
            i, j = (index[k : k + _BATCH] for index in points)
            y, x = (g.first(chip) + g.step * index for index in (i, j))
            one = _windows(first.image, y, x, chip)
            two = _windows(second.image, y - g.search, x - g.search, window)
            found = np.empty((1, 8, 1, _BATCH), np.float32)
            _read(_products(one, two), _levels(one, chip), _levels(two, chip), found)
            out[m][:, i, j] = found[0, :, 0, : i.size]
    return out


def _windows(image: NDArray[np.float32], y: NDArray[np.int64], x: NDArray[np.int64], width: int) -> NDArray[np.float32]:
    """Squares of an image, each less its mean: (_BATCH, width, width), 0 for the points that are not there."""
    out = np.zeros((_BATCH, width, width), np.float32)
    found = sliding_window_view(image, (width, width))[y, x]
    out[: y.size] = found - found.mean((1, 2), np.float64, keepdims=True)
    return out


def _products(one: NDArray[np.float32], two: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of chip * window at all displacements: (_BATCH, size, size)."""
    n = fft.next_fast_len(two.shape[1], real=True)
    spectrum = fft.rfft2(two, (n, n))
    spectrum *= fft.rfft2(one, (n, n)).conj()
    size = two.shape[1] - one.shape[1] + 1
    return np.ascontiguousarray(fft.irfft2(spectrum, (n, n))[:, :size, :size])


def _levels(windows: NDArray[np.float32], chip: int) -> NDArray[np.float32]:
    """`tables` of each window: (_BATCH, 2, 1, 1, size, size)."""
    size = windows.shape[1] - chip + 1
    out = np.empty((len(windows), 2, 1, 1, size, size), np.float32)
    _tables(windows, chip, out)
    return out


@njit(**JIT)
def _tables(windows: Any, chip: Any, out: Any) -> Any:
    for k in range(len(windows)):
        tables(windows[k], chip, out[k])


@njit(**JIT)
def _read(products: Any, one: Any, two: Any, out: Any) -> Any:
    """Correlations of all points of a batch, and their peaks into out (1, 8, 1, _BATCH)."""
    points, size = products.shape[0], products.shape[1]
    c = np.empty(size * size * points, np.float32)
    for k in range(points):
        mean, inverse = one[k, 0, 0, 0, 0, 0], one[k, 1, 0, 0, 0, 0]
        for oy in range(size):
            for ox in range(size):
                r = (products[k, oy, ox] - mean * two[k, 0, 0, 0, oy, ox]) * (inverse * two[k, 1, 0, 0, oy, ox])
                c[(oy * size + ox) * points + k] = r
    origin = (-float(size // 2), -float(size // 2))
    peaks(c, U(0), size, points, False, np.zeros((4, 0, 0), np.int32), origin, out, 0, 0)
