"""Image pre-filters: window in, window out, same shape, same pixel grid.

Each filter is a pure function `(image, valid) -> (filtered, valid)` of a 2-D float32 window and the mask of its usable
pixels. None of them looks at statistics of the window, so a pixel's value does not depend on how the image was cut into
tiles; pixels closer to the window's edge than the filter's `halo` are computed with what is there and belong to the
block's own halo. Where the mask is False the result is 0, and a filter that needs neighbours uses normalised
convolution: masked pixels have no weight.

The default is the Gaussian high-pass with sigma 3 px: on truth pairs it has 7-21 % less error than the 5x5 box that
most trackers use, and is as robust (docs/assumptions.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .errors import ParameterError

Image: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]

SIGMA = 3.0
"""Standard deviation of the Gaussian high-pass [px]."""
WALLIS_WIDTH = 21
"""Width of the Wallis window [px]; 5 px, common elsewhere, doubles the error in noise."""


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
    return _significant(image, _mean(image, valid, _gaussian), valid), valid


def wallis(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """Local standardisation: (image - mean) / standard deviation in a 21 px box (Wallis, 1976).

    Pixels where the window has no contrast become invalid.
    """
    # In float32 the difference of the two means would leave little of a low contrast on bright snow.
    exact = np.where(valid, image, 0).astype(np.float64)
    mean = _mean(exact, valid, _box)
    square = _mean(exact * exact, valid, _box)
    n = WALLIS_WIDTH * WALLIS_WIDTH
    variance = np.maximum(square - mean * mean, 0) * (n / (n - 1))
    ok = valid & (variance > 1e-10 * np.maximum(square, 1e-30))
    out = np.where(ok, (exact - mean) / np.sqrt(np.where(ok, variance, 1)), 0)
    return out.astype(np.float32), ok


def sobel_x(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """Sobel derivative along x (columns)."""
    return _stencil(image, valid, lambda im: ndimage.sobel(im, 1, mode="nearest"))


def sobel_y(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """Sobel derivative along y (rows)."""
    return _stencil(image, valid, lambda im: ndimage.sobel(im, 0, mode="nearest"))


def sobel(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """Gradient magnitude of the two Sobel derivatives."""
    return _stencil(
        image, valid, lambda im: np.hypot(ndimage.sobel(im, 0, mode="nearest"), ndimage.sobel(im, 1, mode="nearest"))
    )


def orientation(image: Image, valid: Mask) -> tuple[Image, Mask]:
    """Near-anisotropic orientation filter (NAOF; Van Wyk de Vries & Wickert, 2021), after a Gaussian of 0.7 px.

    The cosine and sine of the local orientation in the axis and diagonal directions, summed: it keeps the direction of
    the gradient and drops its strength, so it matches through thin cloud and changed sunlight. Without the Gaussian it
    fails in noise (20 % gross errors on the weak-texture truth case).
    """
    im = ndimage.gaussian_filter(np.where(valid, image, 0), 0.7, truncate=3.0, mode="nearest").astype(np.float32)
    h = _second(im, 0, 1)
    v = _second(im, 1, 0)
    p = _second(im, 1, 1)
    q = _second(im, 1, -1)
    axis, diagonal = np.hypot(h, v), np.hypot(p, q)
    # A gradient at the level of float32 rounding has no direction.
    floor = np.float32(1e-5) * np.abs(im)
    ok = _eroded(valid, 4) & (axis > floor) & (diagonal > floor)
    one = np.float32(1)
    out = (h + v) / np.where(ok, axis, one) + (p + q) / np.where(ok, diagonal, one)
    return np.where(ok, out, np.float32(0)).astype(np.float32), ok


FILTERS: dict[str, Filter] = {
    "none": Filter(none, 0),
    "high_pass": Filter(high_pass, int(3 * SIGMA + 0.5)),
    "wallis": Filter(wallis, WALLIS_WIDTH // 2),
    "sobel_x": Filter(sobel_x, 1),
    "sobel_y": Filter(sobel_y, 1),
    "sobel": Filter(sobel, 1),
    "orientation": Filter(orientation, 4),
}


def get(name: str) -> Filter:
    """The filter of that name.

    Raises
    ------
    ParameterError
        No filter has that name.

    Examples
    --------
    >>> get("high_pass").halo
    9
    """
    if name not in FILTERS:
        raise ParameterError(
            "enhance", rule=f"must be one of {', '.join(FILTERS)}", value=repr(name), fix="'high_pass'"
        )
    return FILTERS[name]


def _gaussian(im: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(ndimage.gaussian_filter(im, SIGMA, truncate=3.0, mode="constant"), np.float32)


def _box(im: NDArray[Any]) -> NDArray[Any]:
    # correlate1d sums each window afresh; uniform_filter's running sum would depend on where the window starts.
    weights = np.full(WALLIS_WIDTH, 1 / WALLIS_WIDTH)
    rows = ndimage.correlate1d(im, weights, 0, mode="constant")
    return np.asarray(ndimage.correlate1d(rows, weights, 1, mode="constant"))


def _mean(image: NDArray[Any], valid: Mask, smooth: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
    """Normalised convolution: mean over the valid pixels of the window only, in the precision of the image."""
    one = image.dtype.type(1)
    weight = smooth(valid.astype(image.dtype))
    total = smooth(np.where(valid, image, 0 * one))
    return np.asarray(total / np.where(weight > 1e-6, weight, one))


def _significant(image: Image, mean: Image, valid: Mask) -> Image:
    """image - mean, exactly 0 where the difference is only rounding: a constant area then has no texture at all."""
    difference = image - mean
    keep = valid & (np.abs(difference) > np.float32(2e-6) * np.abs(mean))
    return np.where(keep, difference, np.float32(0))


def _stencil(image: Image, valid: Mask, derivative: Callable[[Image], Image]) -> tuple[Image, Mask]:
    ok = _eroded(valid, 1)
    out = derivative(np.where(valid, image, np.float32(0)))
    return np.where(ok, out, np.float32(0)).astype(np.float32), ok


def _second(im: Image, dy: int, dx: int) -> Image:
    """2 I - I(+d) - I(-d), edges repeated."""
    kernel = np.zeros((3, 3), np.float32)
    kernel[1 + dy, 1 + dx] -= 1
    kernel[1 - dy, 1 - dx] -= 1
    kernel[1, 1] = 2
    return np.asarray(ndimage.correlate(im, kernel, mode="nearest"), np.float32)


def _eroded(valid: Mask, by: int) -> Mask:
    if valid.all():
        return valid
    # Outside the window counts as valid: those pixels belong to the halo anyway.
    return np.asarray(ndimage.minimum_filter(valid, size=2 * by + 1, mode="nearest"), bool)
