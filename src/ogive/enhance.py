"""Image pre-filters: window in, window out, same shape, same pixel grid.

Each filter is a pure function `(image, valid) -> (filtered, valid)` of a 2-D float32 window and the mask of its usable
pixels. None of them looks at statistics of the window, so a pixel's value does not depend on how the image was cut into
tiles; pixels closer to the window's edge than the filter's `halo` are computed with what is there and belong to the
block's own halo. Where the mask is False the result is 0, and a filter that needs neighbours uses normalised
convolution: masked pixels have no weight.

A filter reads the image once, row by row, and keeps only the rows that it reaches, so its work stays in the cache.
Every sum adds its taps in one order, from the centre outwards. All taps are multiples of one power of two: a window
without masked pixels then has exactly the same weight in any arithmetic, and weights are worked out only in rows that
see a masked pixel, without changing a bit of the others.

The default is the Gaussian high-pass with sigma 3 px: on truth pairs it has 7-21 % less error than the 5x5 box that
most trackers use, and is as robust (docs/assumptions.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtri

from .errors import ParameterError

Image: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]

SIGMA = 3.0
"""Standard deviation of the Gaussian high-pass [px]."""
NARROW_SIGMA = 0.5
"""Standard deviation of the narrow mean of the band-pass [px]; 0.7 px gains less."""
BOX_WIDTH = 9
"""Width of the box high-pass [px]; as exact as the Gaussian, where 5 px, common elsewhere, is not."""
WALLIS_WIDTH = 21
"""Width of the Wallis window [px]; 5 px, common elsewhere, doubles the error in noise."""
ORIENTATION_SIGMA = 0.7
"""Standard deviation of the Gaussian before the orientation filter [px]."""

ALONG_X, ALONG_Y, SUM, MAGNITUDE, ORIENTATION = range(5)
"""What a 3x3 stencil makes of its nine pixels."""
U = np.uint64
_NO_SMOOTHING = np.ones(1, np.float32)
"""Unsigned indices: signed ones would be checked for wrap-around, and the rows would not vectorise."""
JIT: dict[str, Any] = {"error_model": "numpy", "boundscheck": False, "nogil": True, "cache": True}
"""Strict arithmetic: the vectorised body and the remainder of a row then round alike, wherever the row starts."""


@dataclass(frozen=True)
class Filter:
    """A pre-filter: its function and how far it looks."""

    apply: Callable[[Image, Mask], tuple[Image, Mask]]
    halo: int


def none(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """The image itself, 0 where masked."""
    return np.where(valid, image, np.float32(0)), valid


def high_pass(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """Image minus its Gaussian mean (sigma 3 px, cut at 9 px).

    Parameters
    ----------
    image : (h, w) float32
    valid : (h, w) bool

    Returns
    -------
    filtered : (h, w) float32
        Same unit as the image, 0 where masked.
    valid : (h, w) bool

    Examples
    --------
    >>> ramp = np.add.outer(np.arange(40.0), np.arange(40.0)).astype("f4")
    >>> filtered, _ = high_pass(ramp, np.ones(ramp.shape, bool))
    >>> bool(np.abs(filtered[10:-10, 10:-10]).max() < 1e-4)
    True
    """
    return _run(_less_mean, image, valid, _gaussian(SIGMA), _NO_SMOOTHING)


def band_pass(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """Gaussian mean of sigma 0.5 px minus that of sigma 3 px (difference of Gaussians).

    For noisy images: the narrow mean takes out what no sensor resolves. With white noise refined vectors have less
    error than with `high_pass` (tests/test_ncc.py); on real Landsat scenes, whose errors are shadows and melt and not
    noise, they have more (tests/test_yahtse.py), so it is not the default.

    Examples
    --------
    >>> ramp = np.add.outer(np.arange(40.0), np.arange(40.0)).astype("f4")
    >>> filtered, _ = band_pass(ramp, np.ones(ramp.shape, bool))
    >>> bool(np.abs(filtered[10:-10, 10:-10]).max() < 1e-4)
    True
    """
    return _run(_less_mean, image, valid, _gaussian(SIGMA), _gaussian(NARROW_SIGMA))


def box_high_pass(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """Image minus its mean in a 9 px box."""
    return _run(_less_mean, image, valid, _box(BOX_WIDTH), _NO_SMOOTHING)


def wallis(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """Local standardisation: (image - mean) / standard deviation in a 21 px box (Wallis, 1976).

    Pixels where the window has no contrast become invalid.
    """
    return _run(_standardised, image, valid, _box(WALLIS_WIDTH))


def sobel_x(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """Sobel derivative along x (columns)."""
    return _run(_stencil, image, valid, _box(1), ALONG_X)


def sobel_y(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """Sobel derivative along y (rows)."""
    return _run(_stencil, image, valid, _box(1), ALONG_Y)


def sobel_sum(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """Sum of the two Sobel derivatives: the derivative along the diagonal; edges along it are lost."""
    return _run(_stencil, image, valid, _box(1), SUM)


def sobel(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """Gradient magnitude of the two Sobel derivatives."""
    return _run(_stencil, image, valid, _box(1), MAGNITUDE)


def orientation(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """Near-anisotropic orientation filter (NAOF; Van Wyk de Vries & Wickert, 2021), after a Gaussian of 0.7 px.

    The cosine and sine of the local orientation in the axis and diagonal directions, summed: it keeps the direction of
    the gradient and drops its strength, so it matches through thin cloud and changed sunlight. Without the Gaussian it
    fails in noise (20 % gross errors on the weak-texture truth case).
    """
    return _run(_stencil, image, valid, _gaussian(ORIENTATION_SIGMA), ORIENTATION)


FILTERS: dict[str, Filter] = {
    "none": Filter(none, 0),
    "band_pass": Filter(band_pass, int(3 * SIGMA + 0.5)),
    "high_pass": Filter(high_pass, int(3 * SIGMA + 0.5)),
    "box_high_pass": Filter(box_high_pass, BOX_WIDTH // 2),
    "wallis": Filter(wallis, WALLIS_WIDTH // 2),
    "sobel_x": Filter(sobel_x, 1),
    "sobel_y": Filter(sobel_y, 1),
    "sobel_sum": Filter(sobel_sum, 1),
    "sobel": Filter(sobel, 1),
    "orientation": Filter(orientation, int(3 * ORIENTATION_SIGMA + 0.5) + 1),
}


def get(name: str) -> Filter:
    """The filter of that name, or several one after the other: `"wallis+sobel_x"`.

    Raises
    ------
    ParameterError
        No filter has that name.

    Examples
    --------
    >>> get("high_pass").halo, get("wallis+sobel_x").halo
    (9, 11)
    """
    if not set(name.split("+")) <= set(FILTERS):
        rule = f"must be one of {', '.join(FILTERS)}, or several joined by +"
        raise ParameterError("enhance", rule=rule, value=repr(name), fix="'high_pass'")
    parts = [FILTERS[part] for part in name.split("+")]
    return parts[0] if len(parts) == 1 else Filter(partial(_chained, parts), sum(part.halo for part in parts))


def _chained(parts: list[Filter], image: Image, valid: Mask) -> tuple[Image, Mask]:
    """One filter after the other; what one cannot answer is masked for the next."""
    for part in parts:
        image, valid = part.apply(image, valid)
    return image, valid


def fill_gaps(filtered: Image, valid: Mask, seed: int, origin: tuple[int, int]) -> Image:
    """Standard normal noise in place of masked pixels.

    After `wallis` this is the scan-line trick of other trackers. It is here to compare with them: noise lowers the
    correlation and leaves the bias of a gap's border, while the masked correlation of `ogive.kernels` needs no filling.

    Parameters
    ----------
    filtered : (h, w) float32
    valid : (h, w) bool
    seed : int
        One number for each scene.
    origin : (int, int)
        Row and column of the window's first pixel in the cube: the noise belongs to the pixel, whatever the tiling.

    Returns
    -------
    (h, w) float32

    Examples
    --------
    >>> empty = np.zeros((4, 6), "f4"), np.zeros((4, 6), bool)
    >>> part = np.zeros((2, 3), "f4"), np.zeros((2, 3), bool)
    >>> whole = fill_gaps(*empty, seed=7, origin=(100, 200))
    >>> bool((fill_gaps(*part, seed=7, origin=(102, 203)) == whole[2:, 3:]).all())
    True
    """
    out = np.array(filtered, np.float32)
    y, x = (part.astype(np.int64) + start for part, start in zip(np.nonzero(~valid), origin, strict=True))
    number = np.full(y.size, seed, np.int64).view(np.uint64)
    for coordinate in (y, x):
        number = _mixed(number + coordinate.view(np.uint64))
    # 53 bits at the centres of their intervals: never 0 or 1, where the normal quantile is infinite.
    out[~valid] = ndtri(((number >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)
    return out


def _mixed(number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea & Flood, 2014, doi:10.1145/2660193.2660195): a counter to independent bits."""
    number = number + np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


def _run(compiled: Callable[..., Any], image: Image, valid: Mask, *options: Any) -> tuple[Image, Mask]:
    filtered, ok = compiled(np.ascontiguousarray(image, np.float32), np.ascontiguousarray(valid, np.bool_), *options)
    return filtered, ok


def _gaussian(sigma: float) -> Image:
    """Half a Gaussian from the centre outwards, cut at 3 sigma: multiples of 2^-23; the whole sums to 1 exactly."""
    half = np.exp(-0.5 * (np.arange(int(3 * sigma + 0.5) + 1) / sigma) ** 2)
    taps = np.round(2.0**23 * half / (2 * half.sum() - half[0]))
    taps[0] = 2.0**23 - 2 * taps[1:].sum()
    return np.asarray(taps * 2.0**-23, np.float32)


def _box(width: int) -> Image:
    """Half a box from the centre outwards."""
    return np.ones(width // 2 + 1, np.float32)


@njit(**JIT)
def _scaled(out: Any, tap: Any, row: Any) -> Any:
    """out = tap * row."""
    for x in range(U(out.size)):
        out[x] = tap * row[x]


@njit(**JIT)
def _add_pair(out: Any, tap: Any, one: Any, two: Any) -> Any:
    """out += tap * (one + two), as a function of its own so that the loop vectorises."""
    for x in range(U(out.size)):
        out[x] += tap * (one[x] + two[x])


@njit(**JIT)
def _convolved(ring: Any, y: Any, taps: Any, columns: Any, out: Any) -> Any:
    """Row y of the convolution with taps x taps: down the columns, then along the row.

    `ring` holds row y in its slot y modulo its depth; `columns` is scratch as long as its rows.
    """
    depth, n = ring.shape[0], out.size
    left = (columns.size - n) // 2
    _scaled(columns, taps[0], ring[y % depth])
    for k in range(1, taps.size):
        _add_pair(columns, taps[k], ring[(y - k) % depth], ring[(y + k) % depth])
    _scaled(out, taps[0], columns[left : left + n])
    for k in range(1, taps.size):
        _add_pair(out, taps[k], columns[left - k : left - k + n], columns[left + k : left + k + n])


@njit(**JIT)
def _enter(image: Any, valid: Any, y: Any, row: Any, keep: Any) -> Any:
    """Copy row y, 0 under the mask, and its mask as 0 and 1, between the margins. True if all of it is valid."""
    w = image.shape[1]
    left = (row.size - w) // 2
    pixels, weights, count = row[left : left + w], keep[left : left + w], 0
    for x in range(U(w)):
        ok = valid[y, x]
        pixels[x] = image[y, x] if ok else np.float32(0)
        weights[x] = ok
        count += ok
    return count == w


@njit(**JIT)
def _divided(total: Any, weight: Any, keep: Any) -> Any:
    """total / weight, in place, where the pixel is valid."""
    for x in range(U(total.size)):
        total[x] = total[x] / weight[x] if keep[x] > 0 else np.float32(0)


@njit(**JIT)
def _difference(centre: Any, keep: Any, total: Any, weight: Any, out: Any) -> Any:
    """Pixel - mean, exactly 0 where that is only rounding: a constant area then has no texture at all."""
    for x in range(U(out.size)):
        mean = total[x] / weight[x]
        difference = centre[x] - mean
        significant = abs(difference) > np.float32(2e-6) * abs(mean)
        out[x] = difference if significant and keep[x] > 0 else np.float32(0)


@njit(**JIT)
def _less_mean(image: Any, valid: Any, taps: Any, fine: Any) -> Any:
    """Image, or its narrow weighted mean with the taps `fine`, minus its mean over the valid pixels of the window."""
    h, w = image.shape
    reach = taps.size - 1
    depth = 2 * reach + 1
    ring = np.zeros((2, depth, w + 2 * reach), np.float32)
    columns = np.empty(w + 2 * reach, np.float32)
    total, weight, full = np.empty(w, np.float32), np.empty(w, np.float32), np.empty(w, np.float32)
    smooth, near = np.empty(w, np.float32), np.empty(w, np.float32)
    ring[1, :, reach : reach + w] = 1.0
    _convolved(ring[1], 0, taps, columns, full)
    ring[1] = 0.0
    out = np.empty((h, w), np.float32)
    gap = -1  # the last row with a masked pixel; what is outside the window is masked
    for new in range(h + reach):
        slot, y = new % depth, new - reach
        if new >= h:
            ring[:, slot] = 0.0
            gap = new
        elif not _enter(image, valid, new, ring[0, slot], ring[1, slot]):
            gap = new
        if y < 0:
            continue
        slot = y % depth
        centre, keep = ring[0, slot, reach : reach + w], ring[1, slot, reach : reach + w]
        _convolved(ring[0], y, taps, columns, total)
        if gap >= y - reach:
            _convolved(ring[1], y, taps, columns, weight)
        else:
            weight[:] = full
        if fine.size > 1:
            _convolved(ring[0], y, fine, columns, smooth)
            _convolved(ring[1], y, fine, columns, near)
            _divided(smooth, near, keep)
            centre = smooth
        _difference(centre, keep, total, weight, out[y])
    return out, valid


@njit(**JIT)
def _square(row: Any, out: Any) -> Any:
    """out = row squared."""
    for x in range(U(row.size)):
        out[x] = row[x] * row[x]


@njit(**JIT)
def _standard(centre: Any, keep: Any, total: Any, squares: Any, count: Any, n: Any, out: Any, ok: Any) -> Any:
    """(pixel - mean) / standard deviation; not ok where the window has no contrast."""
    for x in range(U(out.size)):
        mean, square = total[x] / count[x], squares[x] / count[x]
        variance = (square - mean * mean) * (n / (n - 1.0))
        contrast = keep[x] > 0 and variance > 1e-10 * max(square, 1e-30)
        out[x] = (centre[x] - mean) / np.sqrt(variance) if contrast else 0.0
        ok[x] = contrast


@njit(**JIT)
def _standardised(image: Any, valid: Any, taps: Any) -> Any:
    """Image in standard deviations from its mean over the valid pixels of the box.

    In float32 the difference of the two means would leave little of a low contrast on bright snow.
    """
    h, w = image.shape
    reach = taps.size - 1
    depth = 2 * reach + 1
    ring = np.zeros((3, depth, w + 2 * reach))
    columns, sums, full = np.empty(w + 2 * reach), np.empty((3, w)), np.empty(w)
    ring[1, :, reach : reach + w] = 1.0
    _convolved(ring[1], 0, taps, columns, full)
    ring[1] = 0.0
    out, ok = np.empty((h, w), np.float32), np.empty((h, w), np.bool_)
    gap = -1
    for new in range(h + reach):
        slot, y = new % depth, new - reach
        if new >= h:
            ring[:, slot] = 0.0
            gap = new
        else:
            if not _enter(image, valid, new, ring[0, slot], ring[1, slot]):
                gap = new
            _square(ring[0, slot], ring[2, slot])
        if y < 0:
            continue
        _convolved(ring[0], y, taps, columns, sums[0])
        _convolved(ring[2], y, taps, columns, sums[2])
        if gap >= y - reach:
            _convolved(ring[1], y, taps, columns, sums[1])
        else:
            sums[1] = full
        slot = y % depth
        centre, keep = ring[0, slot, reach : reach + w], ring[1, slot, reach : reach + w]
        _standard(centre, keep, sums[0], sums[2], sums[1], float(depth * depth), out[y], ok[y])
    return out, ok


@njit(**JIT)
def _along_x(up: Any, mid: Any, low: Any, out: Any) -> Any:
    """Sobel derivative of three rows along x."""
    for x in range(U(out.size)):
        right = up[x + U(2)] + low[x + U(2)] + np.float32(2) * mid[x + U(2)]
        out[x] = right - (up[x] + low[x] + np.float32(2) * mid[x])


@njit(**JIT)
def _along_y(up: Any, low: Any, out: Any) -> Any:
    """Sobel derivative of three rows along y."""
    for x in range(U(out.size)):
        below = low[x] + low[x + U(2)] + np.float32(2) * low[x + U(1)]
        out[x] = below - (up[x] + up[x + U(2)] + np.float32(2) * up[x + U(1)])


@njit(**JIT)
def _magnitude(out: Any, other: Any) -> Any:
    """out = length of (out, other)."""
    for x in range(U(out.size)):
        out[x] = np.sqrt(out[x] * out[x] + other[x] * other[x])


@njit(**JIT)
def _directions(up: Any, mid: Any, low: Any, out: Any) -> Any:
    """Sum of the four direction cosines of the second differences; NaN where there is no direction."""
    for x in range(U(out.size)):
        twice = np.float32(2) * mid[x + U(1)]
        h, v = twice - (mid[x] + mid[x + U(2)]), twice - (up[x + U(1)] + low[x + U(1)])
        p, q = twice - (up[x] + low[x + U(2)]), twice - (up[x + U(2)] + low[x])
        axis, diagonal = np.sqrt(h * h + v * v), np.sqrt(p * p + q * q)
        # A gradient at the level of float32 rounding has no direction.
        directed = min(axis, diagonal) > np.float32(1e-5) * abs(mid[x + U(1)])
        out[x] = (h + v) / axis + (p + q) / diagonal if directed else np.float32(np.nan)


@njit(**JIT)
def _settled(out: Any, count: Any, full: Any, ok: Any) -> Any:
    """What is not a number, or saw a masked pixel, becomes 0 and not ok."""
    for x in range(U(out.size)):
        ok[x] = count[x] == full and out[x] == out[x]
        out[x] = out[x] if ok[x] else np.float32(0)


@njit(**JIT)
def _stencil(image: Any, valid: Any, taps: Any, kind: Any) -> Any:
    """A 3x3 stencil of the smoothed image, where all pixels it sees are valid; beyond the window its rim goes on.

    Outside the window counts as valid: those pixels belong to the halo anyway.
    """
    h, w = image.shape
    reach = taps.size
    depth = 2 * reach + 1
    ring = np.empty((2, depth, w + 2 * reach), np.float32)
    columns, smooth = np.empty(w + 2 * reach, np.float32), np.empty((3, w + 2), np.float32)
    count, other, box = np.empty(w, np.float32), np.empty(w, np.float32), np.ones(reach + 1, np.float32)
    full = np.float32(depth * depth)
    out, ok = np.empty((h, w), np.float32), np.empty((h, w), np.bool_)
    gap = -depth
    for new in range(-reach, h + reach):
        slot, y = new % depth, new - reach
        if not _enter(image, valid, min(max(new, 0), h - 1), ring[0, slot], ring[1, slot]):
            gap = new
        for row in ring[:, slot]:
            row[:reach] = row[reach]
            row[reach + w :] = row[reach + w - 1]
        if y < -2:
            continue
        _convolved(ring[0], y + 1, taps, columns, smooth[(y + 1) % 3])
        if y < 0:
            continue
        up, mid, low = smooth[(y - 1) % 3], smooth[y % 3], smooth[(y + 1) % 3]
        if kind == ORIENTATION:
            _directions(up, mid, low, out[y])
        elif kind == ALONG_Y:
            _along_y(up, low, out[y])
        else:
            _along_x(up, mid, low, out[y])
        if kind in (SUM, MAGNITUDE):
            _along_y(up, low, other)
        if kind == SUM:
            out[y] += other
        elif kind == MAGNITUDE:
            _magnitude(out[y], other)
        count[:] = full
        if gap >= y - reach:
            _convolved(ring[1], y, box, columns, count)
        _settled(out[y], count, full, ok[y])
    return out, ok
