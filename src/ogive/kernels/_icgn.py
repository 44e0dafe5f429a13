"""Registration of one chip on the images: inverse-compositional Gauss-Newton (Baker & Matthews, 2004).

The chip of image 1 stays where it is, with its gradients; image 2 is sampled through its cubic B-spline at the place
displaced, and the squared difference of the two normalised chips is made least. Gain and offset of either image drop
out; doi:10.1023/B:VISI.0000011205.11775.fd.

Every plane of `work` holds one chip, flat, with rows of chip + `PAD` pixels. Weight, template and gradients are 0 in
the padding, so a whole chip is one long loop that vectorises for any width, pixels up to two apart may be multiplied
without looking at edges, and masked pixels are just more zeros. Sums run over one chip from its first pixel and never
see the tile, so here they may be re-associated.
"""

from typing import Any

import numpy as np
from numba import njit

from .subpixel import JIT

CHIP: dict[str, Any] = {**JIT, "fastmath": {"contract", "reassoc", "nsz", "arcp"}, "forceinline": True}
"""Options of loops inside one chip. Always inlined: a function of its own exists once for each caller, compiled a
little differently, and which one runs, and so how its sums are associated, would depend on what came from the cache of
the compiler. Processes that compile and processes that load would then give different last bits.
"""
U = np.uint64
PAD = 3
"""Padding of a chip's rows [px]: what four spline taps need, and one more than the widest lag of the error model."""
T, GY, GX, W, G, Y, X, A, B, GYY, GYX, GXY, GXX = range(13)
"""Planes of `work`: template, its gradients, weight, image 2 sampled; offsets from the centre; two for passing use (A
is the residual after a fit); gradients times offsets, for the affine fit alone."""
# What the functions below return before they know better, and chips that are not deformed.
UNKNOWN, NONE = (np.float32(0),) * 9, (np.float32(0),) * 5
STILL, STRAIGHT = (np.float32(0),) * 4, (np.float32(0),) * 6
ITERATIONS = 10
TOLERANCE = 1e-7
"""Squared step at which the iteration has settled [px²]."""
MOVE = 1.5
"""Farthest a refined position may be from where it started, in each direction [px]."""
STRETCH = 4.0
"""Most that a chip's corners may move against its centre, in each direction [px]; more is no strain of ice."""
MIN_PIXELS, MIN_SHARE = 32, 0.25
"""Least number of pixels, and least share of the chip, that must be valid in both images."""


@njit(**CHIP)
def taps(t: Any) -> Any:
    """Cubic B-spline weights of the coefficients at -1, 0, 1, 2 for the position t in 0 ... 1."""
    one, s = np.float32(1), np.float32(1 / 6)
    r = one - t
    return (
        r * r * r * s,
        (np.float32(4) - np.float32(6) * t * t + np.float32(3) * t * t * t) * s,
        (np.float32(4) - np.float32(6) * r * r + np.float32(3) * r * r * r) * s,
        t * t * t * s,
    )


@njit(**CHIP)
def cut(image: Any, ld: Any, y: Any, x: Any, rows: Any, columns: Any, pitch: Any, level: Any, out: Any) -> Any:
    """Copy `rows` x `columns` pixels from (y, x) less `level` into rows of `pitch`; `image` is flat, `ld` wide."""
    for j in range(rows):
        start, q = U((y + j) * ld + x), U(j * pitch)
        for i in range(U(columns)):
            out[q + i] = image[start + i] - level


@njit(**CHIP)
def offsets(chip: Any, work: Any) -> Any:
    """Begin with chips of this width: clear all planes, set offsets from the centre and the weight of every pixel."""
    work[:] = 0
    for j in range(chip):
        for i in range(chip):
            q = j * (chip + PAD) + i
            work[W, q] = 1
            work[Y, q] = j - 0.5 * (chip - 1)
            work[X, q] = i - 0.5 * (chip - 1)


@njit(**CHIP)
def weigh(valid1: Any, valid2: Any, ld: Any, y0: Any, x0: Any, chip: Any, dy: Any, dx: Any, e: Any, work: Any) -> Any:
    """Set the weights to the pixels valid in both images, image 2 displaced by (dy, dx) and sheared by `e`."""
    for j in range(chip):
        for i in range(chip):
            q = j * (chip + PAD) + i
            v, u = work[Y, q], work[X, q]
            y = y0 + j + int(np.floor(dy + e[3] * v + e[2] * u))
            x = x0 + i + int(np.floor(dx + e[1] * v + e[0] * u))
            work[W, q] = valid1[(y0 + j) * ld + x0 + i] and valid2[y * ld + x]


@njit(**CHIP)
def centre(n: Any, work: Any) -> Any:
    """Remove the means of template and gradients and return what the iteration needs of them.

    Returns `(pixels, va, hyy, hyx, hxx, ty, tx, my, mx)`: number of pixels, squared template, squared gradients,
    template times gradients, mean gradients.
    """
    count = s = sy = sx = np.float32(0)
    for q in range(U(n)):
        w = work[W, q]
        count += w
        s += w * work[T, q]
        sy += w * work[GY, q]
        sx += w * work[GX, q]
    m, my, mx = s / count, sy / count, sx / count
    va = hyy = hyx = hxx = ty = tx = np.float32(0)
    for q in range(U(n)):
        w = work[W, q]
        t, v, u = w * (work[T, q] - m), w * (work[GY, q] - my), w * (work[GX, q] - mx)
        work[T, q], work[GY, q], work[GX, q] = t, v, u
        va += t * t
        hyy += v * v
        hyx += v * u
        hxx += u * u
        ty += t * v
        tx += t * u
    return count, va, hyy, hyx, hxx, ty, tx, my, mx


@njit(**CHIP)
def template(first: Any, ld: Any, y0: Any, x0: Any, chip: Any, work: Any) -> Any:
    """Cut template and gradients of one chip, under the weights that are set, and return what `centre` does."""
    image, gy, gx = first
    pitch = chip + PAD
    # Of the order of the mean, so that nothing is lost on bright snow.
    level = image[(y0 + chip // 2) * ld + x0 + chip // 2]
    cut(image, ld, y0, x0, chip, chip, pitch, level, work[T])
    cut(gy, ld, y0, x0, chip, chip, pitch, np.float32(0), work[GY])
    cut(gx, ld, y0, x0, chip, chip, pitch, np.float32(0), work[GX])
    return centre(chip * pitch, work)


@njit(**CHIP)
def shift(chip: Any, ty: Any, tx: Any, work: Any) -> Any:
    """Sample the window of coefficients in plane A at one fraction (ty, tx) of a pixel: rows, then columns."""
    pitch = U(chip + PAD)
    a, b, c, d = taps(np.float32(tx))
    for q in range(pitch * pitch):
        work[B, q] = a * work[A, q] + b * work[A, q + U(1)] + c * work[A, q + U(2)] + d * work[A, q + U(3)]
    a, b, c, d = taps(np.float32(ty))
    p2, p3 = U(2) * pitch, U(3) * pitch
    for q in range(U(chip) * pitch):
        work[G, q] = a * work[B, q] + b * work[B, q + pitch] + c * work[B, q + p2] + d * work[B, q + p3]


@njit(**CHIP)
def products(n: Any, work: Any) -> Any:
    """Weighted sums of G, G², G T, G GY, G GX."""
    s = ss = st = sy = sx = np.float32(0)
    for q in range(U(n)):
        g = work[G, q]
        w = work[W, q] * g
        s += w
        ss += w * g
        st += g * work[T, q]
        sy += g * work[GY, q]
        sx += g * work[GX, q]
    return s, ss, st, sy, sx


@njit(**CHIP)
def stretch(chip: Any, e: Any) -> Any:
    """Most that `e` moves a corner of the chip against its centre: (y, x) [px]."""
    h = 0.5 * (chip - 1)
    return h * (abs(e[2]) + abs(e[3])), h * (abs(e[0]) + abs(e[1]))


@njit(**CHIP)
def fits(shape: Any, y0: Any, x0: Any, chip: Any, dy: Any, dx: Any, e: Any) -> Any:
    """Whether the chip, displaced by (dy, dx) and sheared by `e`, lies in the window with its spline taps."""
    ry, rx = stretch(chip, e)
    return (
        y0 + np.floor(dy - ry) >= 1
        and x0 + np.floor(dx - rx) >= 1
        and y0 + np.floor(dy + ry) + chip + 2 <= shape[0]
        and x0 + np.floor(dx + rx) + chip + 2 <= shape[1]
    )


@njit(**CHIP)
def step(about: Any, sums: Any) -> Any:
    """One Gauss-Newton step: `(py, px, corr)` from the template's and the sample's sums; corr < -1 if there is none."""
    count, va, hyy, hyx, hxx, ty, tx, _, _ = about
    s, ss, st, sy, sx = sums
    vb = ss - s * s / count
    det = hyy * hxx - hyx * hyx
    if not (vb > 0 and det > 0 and va > 0):
        return 0.0, 0.0, -2.0
    scale = np.sqrt(va / vb)
    ry, rx = scale * sy - ty, scale * sx - tx
    return (hxx * ry - hyx * rx) / det, (hyy * rx - hyx * ry) / det, st / np.sqrt(va * vb)


@njit(**CHIP)
def icgn(
    first: Any, second: Any, valid1: Any, valid2: Any, shape: Any, y0: Any, x0: Any, chip: Any, dy: Any, dx: Any,
    work: Any,
) -> Any:  # fmt: skip
    """Displacement of one chip from a start within `MOVE` px.

    Parameters
    ----------
    first : tuple of three flat arrays
        Image 1 and its gradients along y and x.
    second : flat array
        Spline coefficients of image 2.
    valid1, valid2 : flat bool arrays, or None
        Eroded masks; None if no pixel in reach is masked.
    shape : (int, int)
    y0, x0, chip : int
        First pixel and width of the chip.
    dy, dx : float
        Start.
    work : (13, size) float32
        Planes, begun with `offsets`.

    Returns
    -------
    dy, dx, corr, iterations, about
        iterations = 0: failed. `about` is what `template` returned, whose planes are left in `work`.
    """
    start_y, start_x = dy, dx
    oy = ox = 0
    pitch, ld = chip + PAD, shape[1]
    about = UNKNOWN
    for k in range(ITERATIONS):
        fy, fx = int(np.floor(dy)), int(np.floor(dx))
        if k == 0 or fy != oy or fx != ox:
            oy, ox = fy, fx
            if not fits(shape, y0, x0, chip, dy, dx, STILL):
                return start_y, start_x, 0.0, 0, about
            if valid1 is not None:
                weigh(valid1, valid2, ld, y0, x0, chip, dy, dx, STILL, work)
            if k == 0 or valid1 is not None:
                about = template(first, ld, y0, x0, chip, work)
                if not about[0] >= max(MIN_PIXELS, MIN_SHARE * chip * chip):
                    return start_y, start_x, 0.0, 0, about
            level = second[(y0 + oy + chip // 2) * ld + x0 + ox + chip // 2]
            cut(second, ld, y0 + oy - 1, x0 + ox - 1, pitch, pitch, pitch, level, work[A])
        shift(chip, dy - oy, dx - ox, work)
        py, px, corr = step(about, products(chip * pitch, work))
        dy -= py
        dx -= px
        if not (corr >= -1.001 and abs(dy - start_y) <= MOVE and abs(dx - start_x) <= MOVE):
            break
        if py * py + px * px < TOLERANCE or k == ITERATIONS - 1:
            return dy, dx, float(corr), k + 1, about
    return start_y, start_x, 0.0, 0, about


@njit(**CHIP)
def warp_row(image: Any, ld: Any, first: Any, q: Any, n: Any, y: Any, x: Any, e: Any, box: Any, oy: Any, ox: Any,
             level: Any, offset: Any, out: Any) -> Any:  # fmt: skip
    """Sample one row of a sheared chip where the whole-pixel part of its displacement is (oy, ox).

    `first` is the coefficient up and left of the row's first pixel displaced by (oy, ox); (y, x) the displacement at
    the middle of the row. Reading along the row stays contiguous, so the loop vectorises.
    """
    low_y, high_y, low_x, high_x = box
    for i in range(U(n)):
        v = y + e[2] * offset[i]
        u = x + e[0] * offset[i]
        fy = min(max(np.floor(v), low_y), high_y)
        fx = min(max(np.floor(u), low_x), high_x)
        y0, y1, y2, y3 = taps(v - fy)
        x0, x1, x2, x3 = taps(u - fx)
        k = first + i
        s = y0 * (x0 * image[k] + x1 * image[k + U(1)] + x2 * image[k + U(2)] + x3 * image[k + U(3)])
        k += ld
        s += y1 * (x0 * image[k] + x1 * image[k + U(1)] + x2 * image[k + U(2)] + x3 * image[k + U(3)])
        k += ld
        s += y2 * (x0 * image[k] + x1 * image[k + U(1)] + x2 * image[k + U(2)] + x3 * image[k + U(3)])
        k += ld
        s += y3 * (x0 * image[k] + x1 * image[k + U(1)] + x2 * image[k + U(2)] + x3 * image[k + U(3)])
        # Both read first, and no `and`: a branch here would keep the loop from being vectorised.
        old, new = out[q + i], s - level
        out[q + i] = new if (fy == oy) & (fx == ox) else old


@njit(**CHIP)
def warp(second: Any, shape: Any, y0: Any, x0: Any, chip: Any, dy: Any, dx: Any, e: Any, work: Any) -> Any:
    """Sample image 2 at the chip displaced by (dy, dx) and sheared by `e`; False if that leaves the window.

    Along a row the displacement passes few whole pixels: each row is sampled once for each of them.
    """
    h = 0.5 * (chip - 1)
    if not fits(shape, y0, x0, chip, dy, dx, e):
        return False
    ld = shape[1]
    level = second[(y0 + int(dy) + chip // 2) * ld + x0 + int(dx) + chip // 2]
    along_y, along_x = h * abs(e[2]), h * abs(e[0])
    offset, out = work[X], work[G]
    for j in range(chip):
        y, x = dy + e[3] * (j - h), dx + e[1] * (j - h)
        low_y, high_y = int(np.floor(y - along_y)), int(np.floor(y + along_y))
        low_x, high_x = int(np.floor(x - along_x)), int(np.floor(x + along_x))
        box = (np.float32(low_y), np.float32(high_y), np.float32(low_x), np.float32(high_x))
        for oy in range(low_y, high_y + 1):
            for ox in range(low_x, high_x + 1):
                first = U((y0 + j + oy - 1) * ld + x0 + ox - 1)
                warp_row(second, U(ld), first, U(j * (chip + PAD)), chip, np.float32(y), np.float32(x), e, box,
                         np.float32(oy), np.float32(ox), level, offset, out)  # fmt: skip
    return True


@njit(**CHIP)
def dot(n: Any, work: Any, k: Any, m: Any) -> Any:
    """Sum of the products of two planes."""
    s = np.float32(0)
    for q in range(U(n)):
        s += work[k, q] * work[m, q]
    return s


@njit(**CHIP)
def bent(e: Any, bend: Any, y: Any, x: Any) -> Any:
    """Displacement (dy, dx) relative to the centre at the offset (y, x): e times it, and second derivatives."""
    half = np.float32(0.5)
    return (
        e[2] * x + e[3] * y + half * (bend[3] * x * x + bend[5] * y * y) + bend[4] * x * y,
        e[0] * x + e[1] * y + half * (bend[0] * x * x + bend[2] * y * y) + bend[1] * x * y,
    )


@njit(**CHIP)
def offset(n: Any, about: Any, e: Any, bend: Any, work: Any) -> Any:
    """`(dy, dx)` by which the translation of a deformed chip differs from its centre's: the texture-weighted mean.

    Of a displacement field with gradient `e` and second derivatives `bend`, float32, to first order.
    """
    _, _, hyy, hyx, hxx, _, _, my, mx = about
    sy = sx = np.float32(0)
    for q in range(U(n)):
        w = work[W, q]
        dy, dx = bent(e, bend, work[Y, q], work[X, q])
        f = (work[GY, q] + w * my) * dy + (work[GX, q] + w * mx) * dx
        sy += work[GY, q] * f
        sx += work[GX, q] * f
    det = hyy * hxx - hyx * hyx
    return (hxx * sy - hyx * sx) / det, (hyy * sx - hyx * sy) / det


@njit(**CHIP)
def residual(chip: Any, about: Any, sums: Any, cy: Any, cx: Any, e: Any, bend: Any, work: Any) -> Any:
    """Plane A = normalised difference of the chips, less what a displacement of (cy, cx) - bent explains of it."""
    scale = np.sqrt(about[1] / (sums[1] - sums[0] * sums[0] / about[0]))
    mean = sums[0] / about[0]
    pitch = U(chip + PAD)
    for q in range(pitch * pitch):  # the rows below the chip become 0
        dy, dx = bent(e, bend, work[Y, q], work[X, q])
        seen = work[GY, q] * (cy - dy) + work[GX, q] * (cx - dx)
        work[A, q] = scale * work[W, q] * (work[G, q] - mean) - work[T, q] - seen


@njit(**CHIP)
def icgn_fixed(about: Any, second: Any, shape: Any, y0: Any, x0: Any, chip: Any, dy: Any, dx: Any, e: Any, rounds: Any,
               work: Any) -> Any:  # fmt: skip
    """As `icgn`, of a chip sheared by the given `e`, in a few rounds from a good start, under the weights that are set.

    `about` is what `template` returned. Returns `(dy, dx, corr, py, px, sums)`: displacement, correlation (-2: failed),
    and the last step with the products before it, which leave the residual.
    """
    start_y, start_x, corr, py, px = dy, dx, -2.0, 0.0, 0.0
    sums = NONE
    for _ in range(rounds):
        if not warp(second, shape, y0, x0, chip, dy, dx, e, work):
            return start_y, start_x, -2.0, py, px, sums
        sums = products(chip * (chip + PAD), work)
        py, px, corr = step(about, sums)
        dy -= e[2] * px + (1.0 + e[3]) * py
        dx -= (1.0 + e[0]) * px + e[1] * py
        if not (corr >= -1.001 and abs(dy - start_y) <= MOVE and abs(dx - start_x) <= MOVE):
            return start_y, start_x, -2.0, py, px, sums
        if py * py + px * px < TOLERANCE:
            break
    return dy, dx, float(corr), py, px, sums
