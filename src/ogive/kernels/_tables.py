"""What belongs to one scene and serves all its pairs: tables of chips, and the image in polyphase order.

A table holds mean and deviation of the chip that starts at each pixel. Both orders put what a row of points needs at
one displacement side by side in memory.
"""

from typing import Any

import numpy as np
from numba import njit

from ._simd import LANES
from .subpixel import JIT

U = np.uint64
F = np.float32
WIDE = 512
"""Columns of a strip [px], about."""


@njit(**JIT)
def join(sums: Any, squares: Any, one: Any, two: Any, three: Any, odd: Any, to: Any, n: Any) -> Any:
    """Row `to` = row `one` + row `two`, and + row `three` if odd, of both arrays."""
    if odd:
        for x in range(U(n)):
            sums[to + x] = (sums[one + x] + sums[two + x]) + sums[three + x]
            squares[to + x] = (squares[one + x] + squares[two + x]) + squares[three + x]
    else:
        for x in range(U(n)):
            sums[to + x] = sums[one + x] + sums[two + x]
            squares[to + x] = squares[one + x] + squares[two + x]


@njit(**JIT)
def pixels(image: Any, at: Any, sums: Any, squares: Any, to: Any, n: Any) -> Any:
    """One row of the image and of its squares."""
    for x in range(U(n)):
        value = float(image[at + x])
        sums[to + x] = value
        squares[to + x] = value * value


@njit(**JIT)
def normalise(sums: Any, squares: Any, at: Any, count: Any, mean: Any, inverse: Any) -> Any:
    """Sums over `count` pixels to what `tables` returns, one row."""
    root, part = 1.0 / np.sqrt(count), 1.0 / count
    for x in range(U(mean.size)):
        s, q = sums[at + x], squares[at + x]
        variance = q - s * s * part
        mean[x] = s * root
        # A variance at the level of rounding is none.
        inverse[x] = F(1) / np.sqrt(F(variance)) if variance > 1e-12 * q else F(0)


@njit(**JIT)
def spread(row: Any, table: Any, y: Any, x: Any, step: Any) -> Any:
    """Part of a row of a table, from column x, a multiple of `step`, into polyphase order."""
    for p in range(min(step, row.size)):
        to = table[y % step, p, y // step, x // step :]
        for i in range(U((row.size - p + step - 1) // step)):
            to[i] = row[U(p) + i * U(step)]


@njit(**JIT)
def tables(image: Any, chip: Any, out: Any) -> Any:
    """`(mean * sqrt(n), 1 / sqrt(sum of squared deviations))` of the chip that starts at each pixel; 0 where flat.

    `image` is (h, w) float32, contiguous. `out` is (2, step, step, J, I): pixel (y, x) goes to [:, y % step, x % step,
    y // step, x // step], so that the values of a row of points are neighbours whatever the displacement. Sums are
    float64, from halves: first of rows, then along the rows, each in an order that no tile changes.
    """
    tables_of(image, np.array([chip]), 0, out.reshape((1, *out.shape)))


@njit(**JIT)
def tables_of(image: Any, chips: Any, first: Any, out: Any) -> Any:
    """`tables` of several chips, rising, in one go: they share their sums of rows.

    They begin at pixel (`first`, `first`); `out` is (sizes, 2, step, step, J, I).
    """
    h, w = image.shape
    step = out.shape[2]
    wide = max(1, WIDE // step) * step
    for x in range(first, w - chips[0] + 1, wide):
        columns, counts = np.minimum(wide, w - chips + 1 - x), h - chips + 1 - first
        strip(image.reshape(-1), h, w, x, columns, chips, (first, 1), counts, 1, step, x - first, out)


@njit(**JIT)
def point_tables(image: Any, chip: Any, first: Any, step: Any, out: Any) -> Any:
    """What `tables` gives, to the bit, for a grid of points alone; `out` is (2, 1, 1, ny, nx).

    `first` is where the chip of point (0, 0) starts, in y and x. Only the rows of sums that some point needs are made:
    a scene that is only ever image 1 of its pairs needs no more.
    """
    h, w = image.shape
    ny, nx = out.shape[3:]
    wide = max(1, WIDE // step)
    for i in range(0, nx, wide):
        columns = np.array([(min(wide, nx - i) - 1) * step + 1])
        strip(
            image.reshape(-1), h, w, first + i * step, columns, np.array([chip]), (first, step), np.array([ny]), step,
            1, i, out.reshape((1, *out.shape)),
        )  # fmt: skip


@njit(**JIT)
def widths_of(chips: Any) -> Any:
    """Widths of the sums that the chips need, rising.

    Every sum is two of half its width, and one pixel more where that is odd: 1, 3, 7, 15, 31 or 1, 2, 4, ..., 32.
    """
    needed = np.zeros(chips.max() + 1, np.bool_)
    for chip in chips:
        while chip:
            needed[chip] = True
            chip //= 2
    return np.nonzero(needed)[0]


@njit(**JIT)
def rows_needed(widths: Any, chips: Any, h: Any, rows: Any, counts: Any) -> Any:
    """Which rows of sums (width, first row of the image) the rows of the tables are made of."""
    need = np.zeros((widths.size, h), np.bool_)
    for chip, count in zip(chips, counts):
        for g in range(count):
            need[np.searchsorted(widths, chip), rows[0] + g * rows[1]] = True
    for level in range(widths.size - 1, 0, -1):
        half = widths[level] // 2
        below = np.searchsorted(widths, half)
        for y in range(h):
            if need[level, y]:
                need[below, y] = True
                need[below, y + half] = True
    return need


@njit(**JIT)
def strip(
    image: Any, h: Any, w: Any, x: Any, columns: Any, chips: Any, rows: Any, counts: Any, pick: Any, step: Any, to: Any,
    out: Any,
) -> Any:  # fmt: skip
    """Some columns of the tables, from x on: narrow enough that all rows in use stay in the cache.

    `columns` and `counts` are the columns and rows of each chip's table, `rows` the first row and the distance of rows;
    of each every `pick`-th value goes to the tables in polyphase order of `step`, from their column `to` on.
    """
    widths = widths_of(chips)
    need = rows_needed(widths, chips, h, rows, counts)
    # One ring of rows for each width, as deep as the next one looks back, and two rows to work in.
    halves = np.searchsorted(widths, widths // 2)
    depth = np.ones(widths.size, np.int64)
    for level in range(1, widths.size):
        depth[halves[level]] = widths[halves[level]] + 2
    start = np.zeros(widths.size + 1, np.int64)
    start[1:] = np.cumsum(depth)
    n = (columns + chips).max() - 1
    sums, squares = np.empty((start[-1] + 2) * n), np.empty((start[-1] + 2) * n)
    mean, inverse = np.empty(columns.max(), np.float32), np.empty(columns.max(), np.float32)
    for y in range(rows[0], ((counts - 1) * rows[1] + chips).max() + rows[0]):
        newest = U((start[0] + y % depth[0]) * n)
        pixels(image, U(y * w + x), sums, squares, newest, n)
        for level in range(1, widths.size):
            row, below, half = y - widths[level] + 1, halves[level], widths[level] // 2
            if row < rows[0] or not need[level, row]:
                continue
            upper = U((start[below] + row % depth[below]) * n)
            lower = U((start[below] + (row + half) % depth[below]) * n)
            join(sums, squares, upper, lower, newest, widths[level] % 2, U((start[level] + row % depth[level]) * n), n)
        for m in range(chips.size):
            chip, row = chips[m], y - chips[m] + 1
            g = (row - rows[0]) // rows[1]
            if columns[m] < 1 or row < rows[0] or (row - rows[0]) % rows[1] or g >= counts[m]:
                continue
            level = np.searchsorted(widths, chip)
            from_row = U((start[level] + row % depth[level]) * n)
            here = along(sums, squares, from_row, U(start[-1] * n), U((start[-1] + 1) * n), chip, columns[m])
            normalise(sums, squares, here, float(chip * chip), mean[: columns[m]], inverse[: columns[m]])
            count = (columns[m] - 1) // pick + 1
            if pick > 1:
                for i in range(count):
                    mean[i], inverse[i] = mean[i * pick], inverse[i * pick]
            spread(mean[:count], out[m, 0], g, to, step)
            spread(inverse[:count], out[m, 1], g, to, step)


@njit(**JIT)
def along(sums: Any, squares: Any, at: Any, there: Any, other: Any, chip: Any, n: Any) -> Any:
    """Sums of `chip` neighbours in a row of both arrays, n of them; returns where they are.

    To and fro between two rows, `there` and `other`: in place the compiler could not tell what is read from what is
    written.
    """
    here, width, level = at, 1, 0
    while chip >> (level + 1):
        level += 1
    while level:
        level -= 1
        half, width = width, chip >> level
        join(sums, squares, here, here + U(half), at + U(2 * half), width % 2, there, n + chip - width)
        here, there, other = there, other, there
    return here


@njit(**JIT)
def phases(image: Any, width: Any, before: Any) -> Any:
    """The image in polyphase order (width, h, columns): pixel (y, x - before) at [x % width, y, x // width].

    Rows are padded with zeros, `before` pixels on the left, and on the right so that sixteen blocks can be read
    anywhere.
    """
    h, w = image.shape
    columns = (w + before + width - 1) // width + 2 * LANES
    out = np.zeros((width, h, columns), np.float32)
    for y in range(h):
        for p in range(width):
            skip = (before - p + width - 1) // width if before > p else 0
            row, to = image[y, p + skip * width - before :], out[p, y, skip:]
            for i in range(U((row.size + width - 1) // width)):
                to[i] = row[i * U(width)]
    return out


@njit(**JIT)
def eroded(valid: Any, reach: Any) -> Any:
    """The pixels without a masked one in the square of that reach around them; beyond the image nothing is masked."""
    h, w = valid.shape
    mask, out = valid.view(np.uint8), np.empty((h, w), np.uint8)
    columns = np.ones(w + 2 * reach, np.uint8)
    for y in range(h):
        middle = columns[reach : reach + w]
        middle[:] = 1
        for row in mask[max(0, y - reach) : y + reach + 1]:
            both(middle, row)
        out[y] = 1
        for k in range(2 * reach + 1):
            both(out[y], columns[k : k + w])
    return out.view(np.bool_)


@njit(**JIT)
def both(out: Any, row: Any) -> Any:
    """out = out and row."""
    for x in range(U(out.size)):
        out[x] &= row[x]


@njit(**JIT)
def integral(valid: Any) -> Any:
    """Integral image of the pixels that are not valid: one row and column larger, int32."""
    h, w = valid.shape
    out = np.zeros((h + 1, w + 1), np.int32)
    for y in range(h):
        count = np.int32(0)
        for x in range(w):
            count += np.int32(not valid[y, x])
            out[y + 1, x + 1] = out[y, x + 1] + count
    return out


@njit(**JIT)
def reduced(image: Any, valid: Any, factor: Any) -> Any:
    """Means over factor x factor pixels, of the valid ones; valid where half of them are."""
    h, w = image.shape[0] // factor, image.shape[1] // factor
    out, usable = np.zeros((h, w), np.float32), np.zeros((h, w), np.bool_)
    for y in range(h):
        for x in range(w):
            total, count = np.float32(0), 0
            for j in range(factor):
                for i in range(factor):
                    if valid[y * factor + j, x * factor + i]:
                        total += image[y * factor + j, x * factor + i]
                        count += 1
            if 2 * count >= factor * factor:
                out[y, x], usable[y, x] = total / np.float32(count), True
    return out, usable
