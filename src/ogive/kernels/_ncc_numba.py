"""NCC on the CPU, displacement-major: one displacement at a time serves every chip of a row of points.

Neighbouring chips share most of their pixels. So the loops are turned inside out: for one displacement the two images
are multiplied once, the products are summed over small blocks (as wide as the greatest common divisor of chip and grid
step), and every chip's numerator is a sum of blocks. Only the last rows of blocks are kept, in a ring that fits the
cache. Means and variances are look-ups in tables made once per scene (`tables`).

Chips that see a masked pixel need six sums instead of one (Padfield, 2012), made by the same block kernel from the
images, their squares and their masks, and only in the rows that have such chips. Which formula a point gets depends on
its own window alone, every sum has a fixed order, and nothing is re-associated: any tiling gives the same bits.

Indices in the hot loops are unsigned: signed ones make numba emit wrap-around selects, and the loop does not vectorise.
"""

from typing import Any

import numpy as np
from numba import njit

from .subpixel import JIT, PRODUCTS, quadric

U = np.uint64
CLEAN, MASKED, EMPTY = 0, 1, 2
"""Classes of points: all pixels valid; some masked; too few to match."""


@njit(**JIT)
def add_squares(s: Any, q: Any, row: Any) -> Any:
    """s += row, q += row squared."""
    for x in range(U(row.size)):
        value = float(row[x])
        s[x] += value
        q[x] += value * value


@njit(**JIT)
def add_both(s: Any, q: Any, more_s: Any, more_q: Any) -> Any:
    """s += more_s, q += more_q."""
    for x in range(U(s.size)):
        s[x] += more_s[x]
        q[x] += more_q[x]


@njit(**JIT)
def normalise(s: Any, q: Any, n: Any, mean: Any, inverse: Any) -> Any:
    """Sums over n pixels to what `tables` returns."""
    root = 1.0 / np.sqrt(n)
    for x in range(U(mean.size)):
        variance = q[x] - s[x] * s[x] / n
        scale = 1.0 / np.sqrt(variance)
        mean[x] = s[x] * root
        # A variance at the level of rounding is none.
        inverse[x] = scale if variance > 1e-12 * q[x] else 0.0


@njit(**JIT)
def tables(image: Any, chip: Any, block: Any, blocks: Any) -> Any:
    """`(mean * sqrt(n), 1 / sqrt(sum of squared deviations))` of the chip that starts at each pixel; 0 where flat.

    `image` is (h, w) float32, contiguous; the sums are float64. Rows of a block first, then rows of blocks, the same
    along the rows: block + blocks additions for a chip of block * blocks, in a fixed order.
    """
    h, w = image.shape
    height, width = h - chip + 1, w - chip + 1
    mean = np.empty((height, width), np.float32)
    inverse = np.empty((height, width), np.float32)
    ring = np.empty((2, chip, w))  # block sums of the last `chip` rows
    rows, part, total = np.empty((2, w)), np.empty((2, w - block + 1)), np.empty((2, width))
    for y in range(h - block + 1):
        slot = y % chip
        ring[:, slot] = 0.0
        for k in range(block):
            add_squares(ring[0, slot], ring[1, slot], image[y + k])
        first = y - chip + block
        if first < 0:
            continue
        rows[:] = 0.0
        part[:] = 0.0
        total[:] = 0.0
        for k in range(blocks):
            slot = (first + k * block) % chip
            add_both(rows[0], rows[1], ring[0, slot], ring[1, slot])
        for k in range(block):
            add_both(part[0], part[1], rows[0, k:], rows[1, k:])
        for k in range(0, chip, block):
            add_both(total[0], total[1], part[0, k:], part[1, k:])
        normalise(total[0], total[1], float(chip * chip), mean[first], inverse[first])
    return mean, inverse


@njit(**PRODUCTS)
def products4(
    a: Any, b: Any, ia: Any, ib: Any, ld: Any, width: Any, c0: Any, c1: Any, c2: Any, c3: Any, block: Any
) -> Any:
    """Column sums over one block row of a * b, for four neighbouring displacements (one load of `a` feeds four)."""
    for x in range(width):
        s0 = s1 = s2 = s3 = np.float32(0)
        for k in range(U(len(block))):
            v = a[ia + k * ld + x]
            p = ib + k * ld + x
            s0 += v * b[p]
            s1 += v * b[p + U(1)]
            s2 += v * b[p + U(2)]
            s3 += v * b[p + U(3)]
        c0[x] = s0
        c1[x] = s1
        c2[x] = s2
        c3[x] = s3


@njit(**PRODUCTS)
def products1(a: Any, b: Any, ia: Any, ib: Any, ld: Any, width: Any, c0: Any, block: Any) -> Any:
    """Column sums over one block row of a * b, for one displacement."""
    for x in range(width):
        s0 = np.float32(0)
        for k in range(U(len(block))):
            s0 += a[ia + k * ld + x] * b[ib + k * ld + x]
        c0[x] = s0


@njit(**JIT)
def fold(c: Any, p: Any, block: Any) -> Any:
    """Sums of neighbouring columns: p[i] = c[w i] + ... + c[w i + w - 1]."""
    for i in range(U(p.size)):
        k = U(len(block)) * i
        s = c[k]
        for j in range(U(1), U(len(block))):
            s += c[k + j]
        p[i] = s


@njit(**JIT)
def block_row(a: Any, b: Any, y: Any, x: Any, ld: Any, radius: Any, p: Any, work: Any, block: Any) -> Any:
    """Block sums of one row of blocks, p[displacement, block]; (y, x): first pixel of the row in image 1.

    `block` is a tuple as long as the block is wide: its length is a constant for the compiler, which unrolls the loops.
    """
    size = 2 * radius + 1
    width = U(p.shape[1] * len(block))
    for oy in range(size):
        ia = U(y * ld + x)
        ib = U((y + oy - radius) * ld + x - radius)
        for ox in range(0, size - 3, 4):
            products4(a, b, ia, ib + U(ox), U(ld), width, work[0], work[1], work[2], work[3], block)
            for j in range(4):
                fold(work[j], p[oy * size + ox + j], block)
        for ox in range(size // 4 * 4, size):
            products1(a, b, ia, ib + U(ox), U(ld), width, work[0], block)
            fold(work[0], p[oy * size + ox], block)


@njit(**JIT)
def add(t: Any, r: Any) -> Any:
    """t += r, as a function of its own so that the loop vectorises."""
    for i in range(U(t.size)):
        t[i] += r[i]


@njit(**JIT)
def chip_sums(ring: Any, d: Any, row: Any, blocks: Any, stride: Any, t: Any) -> Any:
    """Sums over blocks x blocks for every point of a row, into the front of `t`."""
    depth = ring.shape[0]
    t[:] = ring[row % depth, d]
    for k in range(1, blocks):
        add(t, ring[(row + k) % depth, d])
    n = t.size
    if blocks & (blocks - 1) == 0:
        k = 1
        while k < blocks:
            n -= k
            for i in range(U(n)):
                t[i] = t[i] + t[i + U(k)]
            k *= 2
    else:
        for i in range(U(n - blocks + 1)):
            s = t[i]
            for k in range(U(1), U(blocks)):
                s += t[i + k]
            t[i] = s
    if stride > 1:
        for i in range((n - 1) // stride + 1):
            t[i] = t[i * stride]


@njit(**JIT)
def clean_row(t: Any, ta: Any, qa: Any, tb: Any, qb: Any, c: Any) -> Any:
    """Correlation of every point of a row at one displacement, all pixels valid."""
    for i in range(U(c.size)):
        c[i] = (t[i] - ta[i] * tb[i]) * (qa[i] * qb[i])


@njit(**JIT)
def masked_row(sums: Any, kind: Any, min_pixels: Any, c: Any) -> Any:
    """The same for the points that see masked pixels; -2 where image 1 and 2 share too few.

    sums[0 ... 5] = a b, n, a, b, a a, b b over the pixels valid in both images.
    """
    for i in range(c.size):
        if kind[i] != MASKED:
            continue
        n = float(sums[1, i])
        if n < min_pixels:
            c[i] = np.float32(-2)
            continue
        sa, sb, qa, qb = float(sums[2, i]), float(sums[3, i]), float(sums[4, i]), float(sums[5, i])
        va, vb = qa - sa * sa / n, qb - sb * sb / n
        flat = va <= 1e-6 * qa or vb <= 1e-6 * qb
        c[i] = 0.0 if flat else (float(sums[0, i]) - sa * sb / n) / np.sqrt(va * vb)


@njit(**JIT)
def statistics(c: Any, size: Any, best: Any, arg: Any, second: Any, mean: Any, count: Any, py: Any, px: Any) -> Any:
    """Peak, its index, second peak outside a 5x5 box, mean |r| and number of values; c[displacement, point]."""
    n = best.size
    count[:] = np.float32(0)
    best[:] = np.float32(-2)
    second[:] = np.float32(-2)
    mean[:] = np.float32(0)
    for d in range(size * size):
        r = c[d]
        for i in range(U(n)):
            value = r[i]
            allowed = value > np.float32(-1.5)
            mean[i] += abs(value) if allowed else np.float32(0)
            count[i] += np.float32(1) if allowed else np.float32(0)
            if value > best[i]:
                best[i] = value
                arg[i] = d
    for i in range(n):
        py[i] = np.float32(arg[i] // size)
        px[i] = np.float32(arg[i] % size)
        mean[i] = mean[i] / max(count[i], np.float32(1))
    for oy in range(size):
        fy = np.float32(oy)
        for ox in range(size):
            fx = np.float32(ox)
            r = c[oy * size + ox]
            for i in range(U(n)):
                far = max(abs(py[i] - fy), abs(px[i] - fx)) > np.float32(2)
                second[i] = max(second[i], r[i] if far else np.float32(-2))


@njit(**JIT)
def match(
    a: Any,
    b: Any,
    y0: Any,
    x0: Any,
    radius: Any,
    blocks: Any,
    stride: Any,
    step: Any,
    ta: Any,
    qa: Any,
    tb: Any,
    qb: Any,
    kind: Any,
    min_pixels: Any,
    block: Any,
    out: Any,
) -> Any:
    """Match a strip of points; fills out[0 ... 7] = dy, dx, corr, second peak, mean |r|, rim, refined, share searched.

    Parameters
    ----------
    a, b : (k, h, w) float32
        Image, and where any point is MASKED (k = 3) also its valid mask and its square; 0 where masked.
    y0, x0 : int
        First pixel of the first chip, in image 1.
    radius : int
        Search half-width [px].
    blocks, stride, step : int
        Chip width in blocks, grid step in blocks, grid step in px.
    ta, qa : (ny, nx) float32
        `tables` of image 1 at the points.
    tb, qb : (step, step, J, I) float32
        `tables` of image 2 in polyphase order: position y0 - radius + step * J + phase.
    kind : (ny, nx) uint8
        CLEAN, MASKED or EMPTY.
    min_pixels : float
        Least number of common pixels of a masked chip.
    block : tuple
        As long as the block is wide.
    out : (8, ny, nx) float32
    """
    ny, nx = kind.shape
    planes, ld = a.shape[0], a.shape[2]
    size = 2 * radius + 1
    nb = (nx - 1) * stride + blocks
    ring = np.empty((1 if planes == 1 else 6, blocks, size * size, nb), np.float32)
    work = np.empty((4, nb * len(block)), np.float32)
    t = np.empty((6, nb), np.float32)
    c = np.empty((size * size, nx), np.float32)
    best, second, mean = np.empty(nx, np.float32), np.empty(nx, np.float32), np.empty(nx, np.float32)
    py, px, arg = np.empty(nx, np.float32), np.empty(nx, np.float32), np.zeros(nx, np.int64)
    count = np.empty(nx, np.float32)
    nine = np.empty(9, np.float32)
    af, bf = a.reshape(planes, -1), b.reshape(planes, -1)
    # Which image of each role makes which sum: a b, n, a, b, a a, b b.
    role_a, role_b = (0, 1, 0, 1, 2, 1), (0, 1, 1, 0, 1, 2)
    done = np.zeros(6, np.int64)
    for g in range(ny):
        masked = planes > 1 and np.any(kind[g] == MASKED)
        first = g * stride
        for k in range(6 if masked else 1):
            for row in range(max(done[k], first), first + blocks):
                y = y0 + row * len(block)
                block_row(af[role_a[k]], bf[role_b[k]], y, x0, ld, radius, ring[k, row % blocks], work, block)
            done[k] = first + blocks
        for d in range(size * size):
            oy, ox = d // size, d % size
            chip_sums(ring[0], d, first, blocks, stride, t[0])
            j, i = g + oy // step, ox // step
            clean_row(t[0], ta[g], qa[g], tb[oy % step, ox % step, j, i : i + nx],
                      qb[oy % step, ox % step, j, i : i + nx], c[d])  # fmt: skip
            if masked:
                for k in range(1, 6):
                    chip_sums(ring[k], d, first, blocks, stride, t[k])
                masked_row(t, kind[g], min_pixels, c[d])
        statistics(c, size, best, arg, second, mean, count, py, px)
        for i in range(nx):
            oy, ox = arg[i] // size, arg[i] % size
            rim = oy == 0 or ox == 0 or oy == size - 1 or ox == size - 1
            dy, dx, refined = 0.0, 0.0, False
            if not rim:
                whole = True
                for j in range(-1, 2):
                    for k in range(-1, 2):
                        nine[4 + 3 * j + k] = c[arg[i] + j * size + k, i]
                        whole = whole and nine[4 + 3 * j + k] > np.float32(-1.5)
                if whole:
                    dy, dx, refined = quadric(nine, 4, 3)
                else:  # beside displacements that the masks forbid: the rim of what could be searched
                    rim = True
            out[0, g, i] = oy - radius + dy
            out[1, g, i] = ox - radius + dx
            out[2, g, i] = best[i]
            out[3, g, i] = second[i]
            out[4, g, i] = mean[i]
            out[5, g, i] = rim
            out[6, g, i] = refined
            out[7, g, i] = count[i] / np.float32(size * size)
