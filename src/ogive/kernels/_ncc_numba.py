"""NCC on the CPU, displacement-major: one displacement at a time serves every chip, of every size, of a row of points.

Neighbouring chips share most of their pixels. So the loops are turned inside out: for one displacement the two images
are multiplied once, the products are summed over small blocks, and every chip's numerator is a sum of blocks. Only the
last rows of blocks are kept, in a ring that fits the cache. Means and variances are look-ups in tables made once for a
scene (`_tables`). A larger chip is a smaller one and the blocks around it: sums grow from the centre outwards, so that
all sizes come from one pass and each has the bits that it would have alone.

Chips that see a masked pixel need six sums instead of one (Padfield, 2012), made by the same block sums from the
images, their squares and their masks, and only for the blocks that such chips touch. Which formula a point gets depends
on its own window alone, every sum has a fixed order, and nothing is re-associated: any tiling gives the same bits.

Arrays are flat and positions are unsigned in the hot loops: a view costs an atomic count, and a signed index makes the
compiler emit wrap-around selects, so that the loop does not vectorise.
"""

from typing import Any

import numpy as np
from numba import njit

from ._peaks import NOTHING, peaks
from ._simd import LANES, block_sums
from .subpixel import JIT

U = np.uint64
F = np.float32
CLEAN, MASKED, EMPTY = 0, 1, 2
"""Classes of points: all pixels valid; some masked; too few to match."""


# --- surfaces of one row of points ---


@njit(**JIT)
def block_row(
    a: Any, b: Any, at_a: Any, at_b: Any, layout: Any, need: Any, size: Any, phase: Any, ring: Any, to: Any,
    columns: Any, block: Any, group: Any, single: Any,
) -> Any:  # fmt: skip
    """Block sums of one row of blocks: ring[to + displacement * columns + block], where `need` has the sixteen.

    `at_a` is the first pixel of the row in image 1; `at_b` and `phase` pixels more is the first one in image 2, at the
    first displacement. `layout` is the distance between planes and between rows of the two images in polyphase order.
    One pass takes as many displacements as `group` is long; what is left goes one by one.
    """
    w = len(block)
    plane_a, row_a, plane_b, row_b = U(layout[0]), U(layout[1]), U(layout[2]), U(layout[3])
    whole = size - size % len(group)
    for oy in range(size):
        for ox in range(size):
            if ox < whole and ox % len(group):
                continue
            x = phase + ox
            from_b, p = at_b + U(oy * layout[3] + x // w), U(x % w)
            out = to + U((oy * size + ox) * columns)
            if ox < whole:
                for k in range(need.size):
                    if need[k]:
                        i = U(k * LANES)
                        block_sums(a, at_a + i, plane_a, row_a, b, from_b + i, plane_b, row_b, p, ring, out + i,
                                   U(columns), block, group)  # fmt: skip
            else:
                for k in range(need.size):
                    if need[k]:
                        i = U(k * LANES)
                        block_sums(a, at_a + i, plane_a, row_a, b, from_b + i, plane_b, row_b, p, ring, out + i,
                                   U(columns), block, single)  # fmt: skip


@njit(**JIT)
def add(x: Any, one: Any, two: Any, to: Any, n: Any) -> Any:
    """x[to] = x[one] + x[two], n values."""
    for i in range(U(n)):
        x[to + i] = x[one + i] + x[two + i]


@njit(**JIT)
def start(x: Any, to: Any, ring: Any, one: Any, two: Any, n: Any) -> Any:
    """x[to] = ring[one] + ring[two], n values."""
    for i in range(U(n)):
        x[to + i] = ring[one + i] + ring[two + i]


@njit(**JIT)
def extend(x: Any, to: Any, ring: Any, one: Any, two: Any, n: Any) -> Any:
    """x[to] += ring[one] + ring[two], n values."""
    for i in range(U(n)):
        x[to + i] += ring[one + i] + ring[two + i]


@njit(**JIT)
def copy(x: Any, to: Any, ring: Any, at: Any, n: Any) -> Any:
    """x[to] = ring[at], n values."""
    for i in range(U(n)):
        x[to + i] = ring[at + i]


@njit(**JIT)
def grow(
    x: Any, to: Any, ring: Any, at: Any, slot: Any, first: Any, depth: Any, inner: Any, outer: Any, n: Any
) -> Any:  # fmt: skip
    """Sums of block rows, from the `inner` in the middle of `depth` outwards to `outer` of them, in place in x[to].

    `at` is where the displacement lies in a slot of the ring, `slot` the length of one; block row r is in slot
    r % depth, the upmost of the chips is `first`.
    """
    half, odd = depth // 2, depth % 2
    if inner == 0 and odd:
        copy(x, to, ring, U((first + half) % depth * slot) + at, n)
    for k in range(inner // 2, outer // 2):
        upper = U((first + half - 1 - k) % depth * slot) + at
        lower = U((first + half + odd + k) % depth * slot) + at
        if k == 0 and not odd:
            start(x, to, ring, upper, lower, n)
        else:
            extend(x, to, ring, upper, lower, n)


@njit(**JIT)
def across(x: Any, at: Any, one: Any, length: Any, count: Any, n: Any) -> Any:
    """Sums of `count` neighbours among n values; returns where in x they are. The last count - 1 are of no use.

    `one` is the first of two spare rows to work in, each of that length.
    """
    two, here = one + length, at
    if count & (count - 1) == 0:
        width = 1
        while width < count:
            n -= width
            add(x, here, here + U(width), one, n)
            # To and fro between two rows: in place the compiler could not tell what is read from what is written.
            here, one, two = one, two, one
            width *= 2
        return here
    n -= count - 1
    add(x, at, at + U(1), one, n)
    for k in range(2, count):
        add(x, one, at + U(k), two, n)
        one, two = two, one
    return one


@njit(**JIT)
def thin(x: Any, at: Any, stride: Any, n: Any) -> Any:
    """Every stride-th value to the front, in place."""
    for i in range(U(n)):
        x[at + i] = x[at + i * U(stride)]


@njit(**JIT)
def clean(x: Any, at: Any, one: Any, at_one: Any, gap_one: Any, two: Any, at_two: Any, gap_two: Any, c: Any, to: Any,
          n: Any) -> Any:  # fmt: skip
    """Correlation of n points at one displacement, all pixels valid: c = (ab - a b) * (inverse a * inverse b).

    `one` and `two` hold the means of images 1 and 2, and a gap further on the inverses.
    """
    for i in range(U(n)):
        product = one[at_one + i] * two[at_two + i]
        c[to + i] = (x[at + i] - product) * (one[at_one + gap_one + i] * two[at_two + gap_two + i])


@njit(**JIT)
def masked(x: Any, at: Any, kind: Any, at_kind: Any, least: Any, c: Any, to: Any, n: Any) -> Any:
    """The same for the points that see masked pixels; NOTHING where the images share too few.

    `at` says where in x the sums of a b, 1, a, b, a a, b b over the pixels valid in both images are.
    """
    ab, count, a, b, aa, bb = at
    for i in range(U(n)):
        m = float(x[count + i])
        sa, sb, qa, qb = float(x[a + i]), float(x[b + i]), float(x[aa + i]), float(x[bb + i])
        share = 1.0 / max(m, 1.0)
        va, vb = qa - sa * sa * share, qb - sb * sb * share
        textured = va > 1e-6 * qa and vb > 1e-6 * qb
        r = (float(x[ab + i]) - sa * sb * share) / np.sqrt(va * vb if textured else 1.0)
        r = (r if textured else 0.0) if m >= least else -2.0
        c[to + i] = F(r) if kind[at_kind + i] == MASKED else c[to + i]


@njit(**JIT)
def forbid(c: Any, at: Any, size: Any, columns: Any, limits: Any, row: Any) -> Any:
    """NOTHING at the displacements outside of each point's own window; `limits` as in `match`."""
    n = limits.shape[2]
    for oy in range(size):
        for ox in range(size):
            to = at + U((oy * size + ox) * columns)
            for i in range(n):
                low, high = limits[0, row, i], limits[1, row, i]
                left, right = limits[2, row, i], limits[3, row, i]
                if oy < low or oy > high or ox < left or ox > right:
                    c[to + U(i)] = NOTHING


# --- a strip of points ---


@njit(**JIT)
def wanted(kind: Any, value: Any, counts: Any, stride: Any, rows: Any, chunks: Any) -> Any:
    """Which sixteen blocks of which row of blocks the points of that class need, for all chip sizes: (rows, chunks).

    kind is (sizes, ny, nx), counts the chips' widths in blocks.
    """
    need = np.zeros((rows, chunks), np.bool_)
    sizes, ny, nx = kind.shape
    depth = counts.max()
    for m in range(sizes):
        margin = (depth - counts[m]) // 2
        for g in range(ny):
            for i in range(nx):
                if kind[m, g, i] == value:
                    left = i * stride + margin
                    for row in range(g * stride + margin, g * stride + margin + counts[m]):
                        need[row, left // LANES] = True
                        need[row, (left + counts[m] - 1) // LANES] = True
                        # A chip wider than sixteen blocks covers what lies between.
                        for k in range(left // LANES + 1, (left + counts[m] - 1) // LANES):
                            need[row, k] = True
    return need


@njit(**JIT)
def runs(kind: Any, m: Any, g: Any, value: Any, start: Any, stop: Any) -> Any:
    """Where the points of that class lie in row g: bounds of runs, sixteen apart at least; returns how many."""
    count, last = 0, -LANES - 1
    for i in range(kind.shape[2]):
        if kind[m, g, i] == value:
            if i - last > LANES:
                start[count] = i
                count += 1
            last = i
            stop[count - 1] = i + 1
    return count


@njit(**JIT)
def surfaces(
    a: Any, b: Any, place: Any, layout: Any, geometry: Any, counts: Any, points1: Any, tables2: Any, origins: Any,
    kind: Any, least: Any, g: Any, needs: Any, ring: Any, done: Any, work: Any, c: Any, block: Any, group: Any,
    single: Any,
) -> Any:  # fmt: skip
    """All correlation surfaces of row g of points into c[chip, displacement, point], flat; arguments as in `match`."""
    radius, step, stride, columns = geometry
    sizes, ny, nx = kind.shape
    size, depth, w = 2 * radius + 1, counts.max(), len(block)
    first = g * stride
    slot = size * size * columns
    starts, stops = np.empty((sizes, nx), np.int64), np.empty((sizes, nx), np.int64)
    spans = np.array([runs(kind, m, g, MASKED, starts[m], stops[m]) for m in range(sizes)])
    products = 6 if spans.max() else 1
    # Block sums that no earlier row of points made: a b, 1, a, b, a a, b b from the planes image, mask and square.
    for k in range(products):
        one, two = (0, 1, 0, 1, 2, 1)[k], (0, 1, 1, 0, 1, 2)[k]
        for row in range(max(done[k], first), first + depth):
            block_row(
                a, b, U(one * layout[4] + place[0] + row * w * layout[1]),
                U(two * layout[5] + place[1] + row * w * layout[3]), layout, needs[min(k, 1), row], size, place[2],
                ring, U((k * depth + row % depth) * slot), columns, block, group, single,
            )  # fmt: skip
        done[k] = first + depth
    tables = tables2.reshape(-1)
    gap = step * step * tables2.shape[4] * tables2.shape[5]
    flat1, flat_kind = points1.reshape(-1), kind.reshape(-1)
    line = size * columns  # all displacements along x at once: they are neighbours in the ring
    spare = U(line + LANES)
    here = np.empty(6, np.uint64)
    for oy in range(size):
        inner = 0
        for m in range(sizes):
            margin = U((depth - counts[m]) // 2)
            for k in range(products):
                v = U(3 * k) * spare
                grow(work, v, ring, U(k * depth * slot + oy * line), slot, first, depth, inner, counts[m], line)
                here[k] = across(work, v + margin, v + spare, spare, counts[m], line)
            inner = counts[m]
            y = origins[m, 0] + g * step + oy
            for ox in range(size):
                x = origins[m, 1] + ox
                at = ((y % step * step + x % step) * tables2.shape[4] + y // step) * tables2.shape[5] + x // step
                to, column = U((m * size * size + oy * size + ox) * nx), U(ox * columns)
                if stride > 1:
                    for k in range(products):
                        thin(work, here[k] + column, stride, nx)
                clean(
                    work, here[0] + column, flat1, U((2 * m * ny + g) * nx), U(ny * nx), tables, U(2 * m * gap + at),
                    U(gap), c, to, nx,
                )  # fmt: skip
                for span in range(spans[m]):
                    i = U(starts[m, span])
                    j = column + i
                    masked(
                        work, (here[0] + j, here[1] + j, here[2] + j, here[3] + j, here[4] + j, here[5] + j),
                        flat_kind, U((m * ny + g) * nx) + i, least[m], c, to + i, stops[m, span] - starts[m, span],
                    )  # fmt: skip


@njit(**JIT)
def begin(kind: Any, geometry: Any, counts: Any) -> Any:
    """What `surfaces` keeps from row to row: blocks wanted, ring of block sums, block rows done, rows to work in."""
    radius, _, stride, columns = geometry
    size, depth = 2 * radius + 1, counts.max()
    rows, chunks = (kind.shape[1] - 1) * stride + depth, columns // LANES
    any_masked = np.any(kind == MASKED)
    needs = np.zeros((2, rows, chunks), np.bool_)
    if any_masked:
        needs[1] = wanted(kind, MASKED, counts, stride, rows, chunks)
    needs[0] = wanted(kind, CLEAN, counts, stride, rows, chunks) | needs[1]
    ring = np.zeros((6 if any_masked else 1) * depth * size * size * columns, np.float32)
    work = np.zeros((18 if any_masked else 3) * (size * columns + LANES), np.float32)
    return needs, ring, np.zeros(6, np.int64), work


@njit(**JIT)
def match(
    a: Any, b: Any, place: Any, layout: Any, geometry: Any, counts: Any, points1: Any, tables2: Any, origins: Any,
    kind: Any, least: Any, limits: Any, origin: Any, block: Any, group: Any, single: Any, out: Any,
) -> Any:  # fmt: skip
    """Match a strip of points.

    Parameters
    ----------
    a, b : float32, flat
        Planes of images 1 and 2, each in polyphase order (`phases`): the image, and where any point is MASKED also its
        valid mask and its square; 0 where masked.
    place : (int, int, int)
        First pixel of the first block: position in a; position of its row in b, and its column there in pixels, at the
        first displacement.
    layout : tuple of int
        Distances in a and b: between phases and between rows of a, the same of b, between planes of a and of b.
    geometry : tuple of int
        Search half-width [px], grid step [px], grid step in blocks, length of a row of blocks (a multiple of LANES).
    counts : (sizes,) int64
        Chip widths in blocks, rising, all even or all odd.
    points1 : (sizes, 2, ny, nx) float32
        `tables` of image 1 at the points.
    tables2 : (sizes, 2, step, step, J, I) float32
        `tables` of image 2.
    origins : (sizes, 2) int64
        Place (y, x) in `tables2` of the first point at the first displacement.
    kind : (sizes, ny, nx) uint8
        CLEAN, MASKED or EMPTY.
    least : (sizes,) float64
        Least number of common pixels of a masked chip.
    limits : (4, ny, nx) int32
        First and last displacement index along y, then x, that each point may have; (4, 0, 0): all.
    origin : (float, float)
        The first displacement (y, x) [px].
    block, group, single : tuple
        As long as the block is wide; as the displacements of one pass are many; one.
    out : (sizes, 8, ny, nx) float32
        dy, dx, corr, second peak, mean |r|, rim, refined, share searched.
    """
    sizes, ny, nx = kind.shape
    size = 2 * geometry[0] + 1
    needs, ring, done, work = begin(kind, geometry, counts)
    c = np.empty(sizes * size * size * nx, np.float32)
    for g in range(ny):
        if np.all(kind[:, g] == EMPTY):
            out[:, :, g] = np.nan
            continue
        surfaces(
            a, b, place, layout, geometry, counts, points1, tables2, origins, kind, least, g, needs, ring, done, work,
            c, block, group, single,
        )  # fmt: skip
        gaps = np.any(kind[:, g] == MASKED) or limits.size > 0
        for m in range(sizes):
            at = U(m * size * size * nx)
            if limits.size:
                forbid(c, at, size, nx, limits, g)
            peaks(c, at, size, nx, gaps, limits, origin, out, m, g)


@njit(**JIT)
def accumulate(c: Any, kind: Any, g: Any, total: Any, count: Any) -> Any:
    """Add the surfaces of one pair to the sums of a stack; all flat, [chip, displacement, point]."""
    sizes, _, nx = kind.shape
    displacements = c.size // (sizes * nx)
    for m in range(sizes):
        for d in range(displacements):
            at = (m * displacements + d) * nx
            for i in range(nx):
                r = c[at + i]
                some = kind[m, g, i] != EMPTY and r > F(-1.5)
                total[at + i] += r if some else F(0)
                count[at + i] += F(1) if some else F(0)


@njit(**JIT)
def average(total: Any, count: Any, sizes: Any, nx: Any) -> Any:
    """Sums to means, in place; NOTHING where less than half of the pairs that say anything of a point have a value."""
    displacements = total.size // (sizes * nx)
    for m in range(sizes):
        most = np.zeros(nx, np.float32)
        for d in range(displacements):
            at = (m * displacements + d) * nx
            for i in range(nx):
                most[i] = max(most[i], count[at + i])
        for d in range(displacements):
            at = (m * displacements + d) * nx
            for i in range(nx):
                n = count[at + i]
                total[at + i] = total[at + i] / n if n > F(0) and n >= F(0.5) * most[i] else NOTHING


def match_stack(
    pairs: Any, geometry: Any, counts: Any, least: Any, origin: Any, block: Any, group: Any, out: Any
) -> None:
    """Match the mean surface of several pairs; `pairs` holds the arguments of `surfaces` in which they differ.

    Each is (a, b, place, layout, points1, tables2, origins, kind), as in `match`; all have the same points.
    """
    sizes, _, ny, nx = out.shape
    size = 2 * geometry[0] + 1
    c, total, count = (np.empty(sizes * size * size * nx, np.float32) for _ in range(3))
    everywhere = np.zeros((4, 0, 0), np.int32)
    states = [begin(pair[-1], geometry, counts) for pair in pairs]
    for g in range(ny):
        total[:], count[:] = 0, 0
        for (a, b, place, layout, points1, tables2, origins, kind), (needs, ring, done, work) in zip(
            pairs, states, strict=True
        ):
            surfaces(
                a, b, place, layout, geometry, counts, points1, tables2, origins, kind, least, g, needs, ring, done,
                work, c, block, group, (0,),
            )  # fmt: skip
            accumulate(c, kind, g, total, count)
        average(total, count, sizes, nx)
        for m in range(sizes):
            peaks(total, U(m * size * size * nx), size, nx, True, everywhere, origin, out, m, g)
