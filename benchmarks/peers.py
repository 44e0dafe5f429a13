"""The peers: image matchers that pip installs, each as its own documentation would use it, on one thread.

All find the displacement of a chip of `chip` px in a window of `search` px more on each side. They know no masks, no
second chip size, no quality and no error; that is outside of their clock, and inside of ours.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from cases import Image, Vectors
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import fft

Corners = tuple[NDArray[np.int64], NDArray[np.int64]]
"""First pixels (y, x) of the chips."""
Match = Callable[[Image, Image, Corners, int, int], Vectors]

BATCH = 256
"""Points in one FFT batch: windows and spectra stay within the cache."""
OPENPIV_STRIDE = 8
"""OpenPIV makes its own grid, of this step [px]."""

HAS_OPENCV = find_spec("cv2") is not None
HAS_SKIMAGE = find_spec("skimage") is not None
HAS_OPENPIV = find_spec("openpiv") is not None
if HAS_OPENCV:
    import cv2

    cv2.setNumThreads(1)
if HAS_SKIMAGE:
    from skimage.feature import match_template
if HAS_OPENPIV:
    from openpiv import pyprocess


def opencv_whole(one: Image, two: Image, corners: Corners, chip: int, search: int) -> Vectors:
    """A loop of `cv2.matchTemplate` and `cv2.minMaxLoc`, whole pixels: the yardstick of all ratios."""
    whole = np.empty((2, corners[0].size))
    for k, (y, x) in enumerate(zip(*(c.tolist() for c in corners), strict=True)):
        window = two[y - search : y + chip + search, x - search : x + chip + search]
        surface = cv2.matchTemplate(window, one[y : y + chip, x : x + chip], cv2.TM_CCOEFF_NORMED)
        _, _, _, (i, j) = cv2.minMaxLoc(surface)
        whole[:, k] = j - search, i - search
    return whole[0], whole[1]


def opencv(one: Image, two: Image, corners: Corners, chip: int, search: int) -> Vectors:
    """The same with a parabola through the peak and its neighbours."""
    return _loop(
        lambda window, cut: cv2.matchTemplate(window, cut, cv2.TM_CCOEFF_NORMED), one, two, corners, chip, search
    )


def skimage(one: Image, two: Image, corners: Corners, chip: int, search: int) -> Vectors:
    """`skimage.feature.match_template` and the same parabola."""
    return _loop(match_template, one, two, corners, chip, search)


def openpiv(one: Image, two: Image, corners: Corners, chip: int, search: int) -> Vectors:
    """`openpiv.pyprocess.extended_search_area_piv` with its Gaussian peak."""
    # It counts rows of windows upwards, and positions from the first pixel that it is given.
    first = [int(c.min()) - search for c in corners]
    last = [int(c.max()) + chip + search for c in corners]
    cut = np.s_[first[0] : last[0], first[1] : last[1]]
    width = chip + 2 * search
    u, v, _ = pyprocess.extended_search_area_piv(
        one[cut], two[cut], window_size=chip, search_area_size=width, overlap=width - OPENPIV_STRIDE,
        subpixel_method="gaussian", sig2noise_method=None,
    )  # fmt: skip
    return v.ravel(), u.ravel()


def numpy_fft(one: Image, two: Image, corners: Corners, chip: int, search: int) -> Vectors:
    """Batches of points through the FFT of SciPy, variances from integral images, and the same parabola."""
    size, n = 2 * search + 1, fft.next_fast_len(chip + 2 * search, real=True)
    chips = sliding_window_view(one, (chip, chip))
    windows = sliding_window_view(two, (chip + 2 * search, chip + 2 * search))
    sums = [np.pad(im.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0))) for im in (two, two * two)]
    total, square = (t[chip:, chip:] - t[:-chip, chip:] - t[chip:, :-chip] + t[:-chip, :-chip] for t in sums)
    variance = sliding_window_view((square - total * total / chip**2).astype(np.float32), (size, size))
    surfaces = []
    for k in range(0, corners[0].size, BATCH):
        y, x = (c[k : k + BATCH] for c in corners)
        cut = chips[y, x] - chips[y, x].mean((1, 2), keepdims=True)
        spectrum = fft.rfft2(windows[y - search, x - search], (n, n)) * fft.rfft2(cut, (n, n)).conj()
        energy = variance[y - search, x - search] * (cut * cut).sum((1, 2))[:, None, None]
        surfaces.append(fft.irfft2(spectrum, (n, n))[:, :size, :size] / np.sqrt(energy))
    return _parabolas(np.concatenate(surfaces))


def _loop(
    surface: Callable[[Image, Image], Any], one: Image, two: Image, corners: Corners, chip: int, search: int
) -> Vectors:
    surfaces = np.empty((corners[0].size, 2 * search + 1, 2 * search + 1), np.float32)
    for k, (y, x) in enumerate(zip(*(c.tolist() for c in corners), strict=True)):
        window = two[y - search : y + chip + search, x - search : x + chip + search]
        surfaces[k] = surface(window, one[y : y + chip, x : x + chip])
    return _parabolas(surfaces)


def _parabolas(surfaces: NDArray[Any]) -> Vectors:
    """Peaks of correlation surfaces (points, 2 search + 1, 2 search + 1); NaN on the rim."""
    points, size, _ = surfaces.shape
    j, i = np.unravel_index(surfaces.reshape(points, -1).argmax(1), (size, size))
    inside = (j > 0) & (j < size - 1) & (i > 0) & (i < size - 1)
    n, y, x = np.arange(points), j.clip(1, size - 2), i.clip(1, size - 2)
    middle = 2 * surfaces[n, y, x]
    moved = []
    for whole, before, after in (
        (y, surfaces[n, y - 1, x], surfaces[n, y + 1, x]), (x, surfaces[n, y, x - 1], surfaces[n, y, x + 1])
    ):  # fmt: skip
        curvature = np.where(inside, before + after - middle, -1)
        moved.append(np.where(inside, whole + 0.5 * (before - after) / curvature - size // 2, np.nan))
    return moved[0], moved[1]


PEERS: dict[str, tuple[Match, bool, int]] = {
    "OpenCV loop + parabola": (opencv, HAS_OPENCV, 1),
    "scikit-image loop + parabola": (skimage, HAS_SKIMAGE, 4),
    "OpenPIV, Gaussian peak": (openpiv, HAS_OPENPIV, 1),
    "NumPy and SciPy, batched FFT + parabola": (numpy_fft, True, 1),
}
"""Name: program, whether it is installed, and the share of points (every n-th along both axes) that it is asked for."""
