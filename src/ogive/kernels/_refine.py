"""Refinement of a grid of displacements on the images: sub-pixel position, strain, and an error for every vector.

1. Each chip is registered by itself (`_icgn`), from its correlation peak.
2. Its neighbours say how it is deformed (`_strain`). A deformed chip answers with the texture-weighted mean of its
   displacements. How far that is from its centre's is known to first order, and where more matters the chip is
   registered again, sheared. On alpine texture this takes two thirds of the error of a 32 px chip, five sixths of a
   64 px chip's.
3. What the chip leaves unexplained gives its error (`_sigma`).

A cell's answer depends on the pixels of its chip in image 1 and `STENCIL` around them, on those of the displaced chip
in image 2 and `PIXELS` around them, and on the cells within `reach`.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from . import _strain
from ._affine import SMALLEST, icgn_affine
from ._icgn import (
    CHIP,
    GXX,
    MOVE,
    PAD,
    STILL,
    STRAIGHT,
    STRETCH,
    UNKNOWN,
    A,
    U,
    cut,
    fits,
    icgn,
    icgn_fixed,
    offset,
    offsets,
    products,
    residual,
    shift,
    stretch,
    template,
    weigh,
)  # fmt: skip
from ._sigma import variances
from ._tables import eroded, integral
from .subpixel import JIT

Mode = Literal["translation", "fixed", "affine"]
TRANSLATION, FIXED, AFFINE = range(3)
STENCIL = 3
"""Reach of the gradients [px]."""
TAPS = 8
"""Reach of the spline's prefilter [px]; what is cut off is 3e-5 of the value."""
PIXELS = math.ceil(MOVE + STRETCH) + 2 + TAPS
"""Pixels beyond chip and start displacement that an answer may depend on: move, shear, spline taps and prefilter."""
SHEAR = 0.25
"""Displacement between chip centre and corner from which a chip is registered sheared [px]. On truth cases, 0 (always)
gains 1 % of accuracy, 0.5 loses 2 % (32 px) to 11 % (64 px), and never 57 % on alpine texture at 64 px."""
CURVED = 48
"""Chip width from which displacements are corrected for curvature of the field [px]; narrower ones would gain noise."""
NOISIER = 1.46
"""Variance with a correction for curvature per variance without. The chips of neighbours overlap, so a chip's own noise
looks like curvature. This and the next three follow from white noise in chips of which a fourth is new every time."""
SHARED = 0.23
"""Variance of vectors that is seen as `_strain.scatter`; the rest is common to chips that overlap."""
SLOPE = 0.34
"""Variance of the strain that neighbours say, times their spacing², per `_strain.scatter`."""
WAVY = 0.62
"""Variance of the curvature (Laplacian) that neighbours say, times their spacing^4, per `_strain.scatter`."""
FLOOR = 0.0027
"""Error of interpolation, the least error of a vector [px]: what truth case P1 has beyond its noise, at 32 and
64 px alike. The bias between the pixels is 0.0035 px, root mean square."""
_POLE = 3**0.5 - 2
_PREFILTER = tuple(float(w) for w in _POLE ** np.arange(TAPS + 1) / (2 * (_POLE ** np.arange(TAPS + 1)).sum() - 1))


@dataclass(frozen=True)
class Scene:
    """One filtered scene window and what is made of it once for all pairs, when first asked for.

    `image` is (h, w) float32, 0 where masked; `valid` (h, w) bool or None where every pixel is.
    """

    image: NDArray[np.float32]
    valid: NDArray[np.bool_] | None = None

    @cached_property
    def gradients(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Along y and x, for the role of image 1."""
        return gradients(self.image)

    @cached_property
    def coefficients(self) -> NDArray[np.float32]:
        """Spline coefficients, for the role of image 2."""
        return spline(self.image)

    @cached_property
    def usable(self) -> NDArray[np.bool_] | None:
        """Valid pixels whose gradient and spline support is valid."""
        if self.valid is None or self.valid.all():
            return None
        return np.asarray(eroded(self.valid, STENCIL))

    @cached_property
    def invalid(self) -> NDArray[np.int32] | None:
        """Integral image of the pixels that are not usable."""
        if self.usable is None:
            return None
        return np.asarray(integral(self.usable))


def prepare(image: NDArray[np.float32], valid: NDArray[np.bool_] | None = None) -> Scene:
    """A scene window for `refine`: filtered image, 0 where masked, and its mask."""
    return Scene(np.ascontiguousarray(image, np.float32), valid)


def gradients(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Derivatives along y and x: central differences over 7 pixels; 0 where those leave the window.

    Examples
    --------
    >>> gy, gx = gradients(np.add.outer(2 * np.arange(9.0), np.arange(9.0)).astype("f4"))
    >>> float(gy[4, 4]), float(gx[4, 4]), float(gx[4, 1])
    (2.0, 1.0, 0.0)
    """
    gy, gx = np.zeros_like(image), np.zeros_like(image)
    if min(image.shape) > 2 * STENCIL:
        _gradients(image, gy, gx)
    return gy, gx


def spline(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coefficients of the cubic B-spline through the pixels.

    The inverse of the spline's (1, 4, 1) / 6 is cut off after `TAPS` pixels, so that a coefficient depends on its
    surroundings alone; Unser, Aldroubi & Eden (1993), doi:10.1109/78.193220. Edges are mirrored.

    Examples
    --------
    >>> image = np.random.default_rng(0).standard_normal((32, 32)).astype("f4")
    >>> from scipy import ndimage
    >>> back = ndimage.convolve1d(ndimage.convolve1d(spline(image), [1 / 6, 4 / 6, 1 / 6], 0), [1 / 6, 4 / 6, 1 / 6], 1)
    >>> bool(np.abs(back - image)[1:-1, 1:-1].max() < 1e-3)
    True
    """
    padded = np.pad(image, TAPS, mode="reflect")
    rows = np.empty((image.shape[0], padded.shape[1]), np.float32)
    out = np.empty(image.shape, np.float32)
    _prefilter(padded, rows, out, _PREFILTER)
    return out


def reach(chip: int, step: int) -> int:
    """Cells around a cell on which its refined displacement depends."""
    return _strain.HALF * int(_strain.stride(chip, step))


def refine(
    first: Scene, second: Scene, dy: NDArray[Any], dx: NDArray[Any], accepted: NDArray[np.bool_],
    chip: int | NDArray[np.integer[Any]], *, centre: float, step: int, mode: Mode = "translation", edge: int = 0,
) -> dict[str, NDArray[Any]]:  # fmt: skip
    """Displacements refined on the images, with strain and errors.

    Parameters
    ----------
    first, second : Scene
        Image 1 and 2, from `prepare`.
    dy, dx : (ny, nx)
        Start: displacement of each cell's chip [px], right to about a pixel; NaN = leave out.
    accepted : (ny, nx) bool
        Cells that may say how their neighbours are sheared.
    chip : int or (ny, nx) int array
        Chip width [px]; 0 = leave out.
    centre : float
        Position of the centre of cell (0, 0) in the window [px], in y and in x.
    step : int
        Distance between the cells [px].
    mode : {"translation", "fixed", "affine"}
        "translation": chips are corrected for the strain of their neighbourhood, and registered sheared where it is
        large. "fixed": all are registered sheared. "affine": each chip of at least 24 px also fits its own strain, as
        in any mode where too few neighbours are known.
    edge : int
        Cells along the edge of the grid that only serve their neighbours: they are registered, but not corrected.

    Returns
    -------
    dict of (ny, nx) arrays
        `dy`, `dx` [px; the start where the refinement failed], `corr` at the solution, `dy_error`, `dx_error` [px, 1
        sigma], `dxdx`, `dxdy`, `dydx`, `dydy` (velocity gradient [px/px]), float32, NaN where there is none;
        `iterations` uint8, 0 = failed.
    """
    shape = first.image.shape
    chips = np.ascontiguousarray(np.broadcast_to(chip, dy.shape), np.int64)
    images = (first.image.ravel(), *(g.ravel() for g in first.gradients))
    coefficients = second.coefficients.ravel()
    masks = None
    if first.usable is not None or second.usable is not None:
        masks = tuple(
            (np.ones(shape, bool) if s.usable is None else s.usable).ravel() for s in (first, second)
        ) + tuple(
            np.zeros((shape[0] + 1, shape[1] + 1), np.int32) if s.invalid is None else s.invalid
            for s in (first, second)
        )  # fmt: skip
    found = np.stack([dy, dx, np.full(dy.shape, np.nan)]).astype(np.float64)
    iterations = np.zeros(dy.shape, np.uint8)
    place = (round(2 * centre), step)
    leverage = np.zeros((2, 4, *dy.shape), np.float32)
    _translate(images, coefficients, masks, shape, place, chips, found, leverage, iterations)
    known = accepted & (iterations > 0)
    strain, error = (np.full((n, *dy.shape), np.nan, np.float32) for n in (4, 2))
    kind = {"translation": TRANSLATION, "fixed": FIXED, "affine": AFFINE}[mode]
    field = found[:2].copy()
    _correct(
        images,
        coefficients,
        masks,
        shape,
        place,
        chips,
        kind,
        iterations,
        known,
        leverage,
        field,
        found,
        strain,
        error,
        edge,
    )
    names = ("dxdx", "dxdy", "dydx", "dydy")
    return {
        "dy": found[0].astype(np.float32),
        "dx": found[1].astype(np.float32),
        "corr": found[2].astype(np.float32),
        "dy_error": error[0],
        "dx_error": error[1],
        **dict(zip(names, strain)),
        "iterations": iterations,
    }


@njit(**JIT)
def _gradients(image: Any, gy: Any, gx: Any) -> Any:
    a, b, c = np.float32(45 / 60), np.float32(9 / 60), np.float32(1 / 60)
    h, w = image.shape
    for y in range(h):
        for x in range(U(w)):
            if y >= STENCIL and y < h - STENCIL:
                gy[y, x] = (
                    a * (image[y + 1, x] - image[y - 1, x])
                    - b * (image[y + 2, x] - image[y - 2, x])
                    + c * (image[y + 3, x] - image[y - 3, x])
                )
        for x in range(U(3), U(w - 3)):
            gx[y, x] = (
                a * (image[y, x + U(1)] - image[y, x - U(1)])
                - b * (image[y, x + U(2)] - image[y, x - U(2)])
                + c * (image[y, x + U(3)] - image[y, x - U(3)])
            )


@njit(**JIT)
def _prefilter(padded: Any, rows: Any, out: Any, weights: Any) -> Any:
    h, w = out.shape
    for y in range(h):
        for x in range(U(w + 2 * TAPS)):
            s = np.float32(weights[0]) * padded[y + TAPS, x]
            for k in range(1, TAPS + 1):
                s += np.float32(weights[k]) * (padded[y + TAPS - k, x] + padded[y + TAPS + k, x])
            rows[y, x] = s
        for x in range(U(w)):
            m = x + U(TAPS)
            s = np.float32(weights[0]) * rows[y, m]
            for k in range(U(1), U(TAPS + 1)):
                s += np.float32(weights[k]) * (rows[y, m - k] + rows[y, m + k])
            out[y, x] = s


@njit(**JIT)
def _planes(chips: Any) -> Any:
    """The planes of one chip, for the widest."""
    widest = 0
    for i in range(chips.shape[0]):
        for j in range(chips.shape[1]):
            widest = max(widest, chips[i, j])
    return np.zeros((GXX + 1, (widest + PAD) * (widest + 2 * PAD)), np.float32)


@njit(**JIT)
def _clear(masks: Any, shape: Any, y0: Any, x0: Any, chip: Any, dy: Any, dx: Any, e: Any) -> Any:
    """Whether no pixel that this chip may touch in image 1 or 2 is masked."""
    _, _, count1, count2 = masks
    if _total(count1, y0, y0 + chip, x0, x0 + chip) > 0:
        return False
    ry, rx = stretch(chip, e)
    ry, rx = ry + MOVE, rx + MOVE
    low_y, high_y = max(0, y0 + int(np.floor(dy - ry))), min(shape[0], y0 + int(np.floor(dy + ry)) + chip)
    low_x, high_x = max(0, x0 + int(np.floor(dx - rx))), min(shape[1], x0 + int(np.floor(dx + rx)) + chip)
    return low_y < high_y and low_x < high_x and _total(count2, low_y, high_y, low_x, high_x) == 0


@njit(**JIT)
def _total(count: Any, y0: Any, y1: Any, x0: Any, x1: Any) -> Any:
    return count[y1, x1] - count[y0, x1] - count[y1, x0] + count[y0, x0]


@njit(**JIT)
def _within(shape: Any, y0: Any, x0: Any, chip: Any) -> Any:
    return y0 >= 0 and x0 >= 0 and y0 + chip <= shape[0] and x0 + chip <= shape[1]


@njit(**JIT)
def _translate(
    images: Any, coefficients: Any, masks: Any, shape: Any, place: Any, chips: Any, found: Any, leverage: Any,
    iterations: Any,
) -> Any:  # fmt: skip
    """Register every chip from its start; found = dy, dx, corr in place; leverage = what a unit of strain adds."""
    zero, one = np.float32(0), np.float32(1)
    units = ((one, zero, zero, zero), (zero, one, zero, zero), (zero, zero, one, zero), (zero, zero, zero, one))
    work, last = _planes(chips), 0
    for i in range(chips.shape[0]):
        for j in range(chips.shape[1]):
            chip, dy, dx = chips[i, j], found[0, i, j], found[1, i, j]
            y0, x0 = (place[0] - chip + 1) // 2 + i * place[1], (place[0] - chip + 1) // 2 + j * place[1]
            if chip == 0 or not np.isfinite(dy + dx) or not _within(shape, y0, x0, chip):
                continue
            if chip != last:
                offsets(chip, work)
                last = chip
            clear, count, about = True, 0, UNKNOWN
            if masks is not None:
                clear = _clear(masks, shape, y0, x0, chip, dy, dx, STILL)
            if clear:
                dy, dx, corr, count, about = icgn(images, coefficients, None, None, shape, y0, x0, chip, dy, dx, work)
            elif masks is not None:
                dy, dx, corr, count, about = icgn(
                    images, coefficients, masks[0], masks[1], shape, y0, x0, chip, dy, dx, work
                )
                last = 0  # its weights are no longer those of a whole chip
            if count > 0:
                found[0, i, j], found[1, i, j], found[2, i, j], iterations[i, j] = dy, dx, corr, count
                for k in range(4):
                    leverage[0, k, i, j], leverage[1, k, i, j] = offset(
                        chip * (chip + PAD), about, units[k], STRAIGHT, work
                    )


@njit(**CHIP)
def _correct_chip(
    images: Any, coefficients: Any, valid1: Any, valid2: Any, shape: Any, y0: Any, x0: Any, chip: Any, dy: Any, dx: Any,
    corr: Any, e: Any, bend: Any, kind: Any, work: Any, h: Any, r: Any,
) -> Any:  # fmt: skip
    """One chip after its neighbours are known: `((dy, dx), corr, e, (variance of dy, of dx), e is the chip's own)`."""
    n, pitch, ld = chip * (chip + PAD), chip + PAD, shape[1]
    if kind == AFFINE and chip >= SMALLEST:
        y, x, own, c, about, growth = icgn_affine(
            images, coefficients, valid1, valid2, shape, y0, x0, chip, dy, dx, work, h, r
        )
        if growth[0] > 0:
            qy, qx = offset(n, about, STILL, bend, work)
            residual(chip, about, products(n, work), qy, qx, STILL, bend, work)
            vy, vx = variances(chip, work)
            return (y - qy, x - qx), c, own, (vy * growth[0], vx * growth[1]), True
    if not fits(shape, y0, x0, chip, dy, dx, e):
        return (dy, dx), corr, e, (np.nan, np.nan), False
    if valid1 is not None:
        weigh(valid1, valid2, ld, y0, x0, chip, dy, dx, e, work)
    about = template(images, ld, y0, x0, chip, work)
    ky, kx = offset(n, about, e, STRAIGHT, work)
    qy, qx = offset(n, about, STILL, bend, work)
    if kind == FIXED or max(stretch(chip, e)) > SHEAR:
        y, x, c, py, px, sums = icgn_fixed(
            about, coefficients, shape, y0, x0, chip, dy - ky, dx - kx, e, 2 if kind == FIXED else 1, work
        )
        if c > -2.0:
            residual(chip, about, sums, np.float32(py) + qy, np.float32(px) + qx, STILL, bend, work)
            return (y - qy, x - qx), c, e, variances(chip, work), False
    oy, ox = int(np.floor(dy)), int(np.floor(dx))
    level = coefficients[(y0 + oy + chip // 2) * ld + x0 + ox + chip // 2]
    cut(coefficients, ld, y0 + oy - 1, x0 + ox - 1, pitch, pitch, pitch, level, work[A])
    shift(chip, dy - oy, dx - ox, work)
    residual(chip, about, products(n, work), ky + qy, kx + qx, e, bend, work)
    return (dy - ky - qy, dx - kx - qx), corr, e, variances(chip, work), False


@njit(**JIT)
def _left(
    field: Any, leverage: Any, i: Any, j: Any, chip: Any, step: Any, slope: Any, second: Any, variance: Any, curved: Any
) -> Any:  # fmt: skip
    """What the field around a chip adds to the variances of its dy and dx [px²].

    The error of its strain, by the lever of its texture. Of a chip that is not corrected for curvature all of its
    effect, less what noise alone would show. Of one that is, the noise that the correction brings, and by how much its
    nearest neighbours are off the quadratic surface: higher derivatives.
    """
    space = _strain.stride(chip, step)
    width = float(space * step)
    off = _strain.scatter(field, leverage, i, j, space, step, slope, second, 1 if curved else _strain.HALF)
    mean = (chip * chip - 1) / 24.0
    noise = WAVY / width**4
    lever_y = lever_x = 0.0
    for k in range(4):
        lever_y += leverage[0, k, i, j] ** 2
        lever_x += leverage[1, k, i, j] ** 2
    vy, vx = SLOPE / width**2 * lever_y * off[0], SLOPE / width**2 * lever_x * off[1]
    if curved:
        more = NOISIER - 1.0
        vy += more * variance[0] + max(off[0] - SHARED * variance[0], 0.0)
        vx += more * variance[1] + max(off[1] - SHARED * variance[1], 0.0)
    else:
        y, x = second[3] + second[5], second[0] + second[2]
        vy += mean * mean * max(y * y - noise * off[0], 0.0)
        vx += mean * mean * max(x * x - noise * off[1], 0.0)
    return vy, vx


@njit(**JIT)
def _correct(
    images: Any, coefficients: Any, masks: Any, shape: Any, place: Any, chips: Any, kind: Any, iterations: Any,
    known: Any, leverage: Any, field: Any, found: Any, strain: Any, error: Any, edge: Any,
) -> Any:  # fmt: skip
    """Take strain and curvature out of every registered chip (`field` to `found`), and give strain and errors."""
    work, last = _planes(chips), 0
    h, r = np.empty((6, 6)), np.empty(6)
    for i in range(edge, chips.shape[0] - edge):
        for j in range(edge, chips.shape[1] - edge):
            if iterations[i, j] == 0:
                continue
            chip, dy, dx, corr = chips[i, j], field[0, i, j], field[1, i, j], found[2, i, j]
            y0, x0 = (place[0] - chip + 1) // 2 + i * place[1], (place[0] - chip + 1) // 2 + j * place[1]
            slope, second = _strain.surface(field, known, leverage, i, j, _strain.stride(chip, place[1]), place[1])
            e = (np.float32(slope[0]), np.float32(slope[1]), np.float32(slope[2]), np.float32(slope[3]))
            known_e, how = max(stretch(chip, e)) <= STRETCH, kind
            if not known_e:  # alone, a chip must find its strain itself
                e, how = STILL, AFFINE
            curved = known_e and chip >= CURVED and np.isfinite(second[0])
            bend = STRAIGHT
            if curved:
                bend = (np.float32(second[0]), np.float32(second[1]), np.float32(second[2]), np.float32(second[3]),
                        np.float32(second[4]), np.float32(second[5]))  # fmt: skip
            if chip != last:
                offsets(chip, work)
                last = chip
            clear, out = True, ((dy, dx), corr, e, (np.nan, np.nan), False)
            if masks is not None:
                clear = _clear(masks, shape, y0, x0, chip, dy, dx, e)
            if clear:
                out = _correct_chip(
                    images, coefficients, None, None, shape, y0, x0, chip, dy, dx, corr, e, bend, how, work, h, r
                )
            elif masks is not None:
                out = _correct_chip(
                    images, coefficients, masks[0], masks[1], shape, y0, x0, chip, dy, dx, corr, e, bend, how, work,
                    h, r,
                )  # fmt: skip
                last = 0
            position, found[2, i, j], own, variance, fitted = out
            for k in range(4):
                strain[k, i, j] = own[k] if known_e or fitted else np.nan
            left = (0.0, 0.0)
            if np.isfinite(second[0]):
                left = _left(field, leverage, i, j, chip, place[1], slope, second, variance, curved)
            for k in range(2):
                found[k, i, j] = position[k]
                error[k, i, j] = np.sqrt(variance[k] + left[k] + FLOOR * FLOOR)
