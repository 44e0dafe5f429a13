"""Does a vector fit its neighbours? Compiled tests of displacement fields, each in one pass.

A row of points is tested at once: its neighbours are gathered into one row for each of the 24 places, and every further
step, sorting included, treats all points alike, so that the processor does many of them in one instruction.

A test looks at the 5 x 5 points around a point, taken at a stride: neighbours whose chips overlap see the same cloud
edge and are wrong together, so they are no independent witnesses. What is beyond the field, or NaN, is no witness
either. Each verdict depends on those 25 points alone, so any tiling whose halo is twice the stride gives the same.

Fields are `(..., y, x)` float32 or float64 with NaN where there is no vector; thresholds are in their unit.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

PASSED, REJECTED, ALONE = 0, 1, 2
"""Verdicts: fits, or nothing to test; does not fit; passed because there are too few neighbours to ask."""
AGREEMENT, NORMALISED, MAD, VECTOR = range(4)
"""Tests."""
MIN_NEIGHBOURS = 5
"""A median of fewer is one vote."""
U = np.uint64
JIT: dict[str, Any] = {"error_model": "numpy", "boundscheck": False, "nogil": True, "cache": True}

Field = NDArray[np.floating[Any]]
Verdict = NDArray[np.uint8]


def agreement(
    dy: Field, dx: Field, stride: ArrayLike, tolerance: float, *, share: float = 0.32, few: int = MIN_NEIGHBOURS
) -> Verdict:
    """Normalised displacement coherence: enough of the points around lie within a tolerance, in y *and* in x.

    Parameters
    ----------
    dy, dx : (..., y, x) float
        Displacements, NaN where there are none.
    stride : int or (..., y, x) int
        Spacing of the neighbours [points].
    tolerance : float
        Largest difference of a component [unit of the field].
    share : float
        Least share of the vectors in the window, the point itself included: 8 of 25.
    few : int
        With fewer neighbours a point passes as ALONE.

    Returns
    -------
    (..., y, x) uint8
        PASSED, REJECTED or ALONE.

    Examples
    --------
    >>> d = np.zeros((5, 5)); d[2, 2] = 3.0
    >>> agreement(d, d, 1, tolerance=1.6)[2].tolist()
    [0, 0, 1, 0, 0]
    """
    return _verdicts(dy, dx, stride, 2, AGREEMENT, tolerance, share, few)


def normalised_median(
    dy: Field, dx: Field, stride: ArrayLike, threshold: float, noise: float, *, half: int = 2, few: int = MIN_NEIGHBOURS
) -> Verdict:
    """Rejected where |d - median| > threshold * (MAD + noise) in either component, the centre excluded.

    Westerweel & Scarano (2005), doi:10.1007/s00348-005-0016-6. `half` is 2 for 5 x 5 points.
    """
    return _verdicts(dy, dx, stride, half, NORMALISED, threshold, noise, few)


def mad(
    dy: Field, dx: Field, stride: ArrayLike, threshold: float, noise: float, *, half: int = 2, few: int = MIN_NEIGHBOURS
) -> Verdict:
    """Rejected where |d - median| > max(threshold * MAD, noise) in either component; MAD unscaled, centre excluded."""
    return _verdicts(dy, dx, stride, half, MAD, threshold, noise, few)


def vector_median(
    dy: Field, dx: Field, stride: ArrayLike, threshold: float, noise: float, *, half: int = 2, few: int = MIN_NEIGHBOURS
) -> Verdict:
    """Rejected where the distance to the vector median exceeds threshold * (the neighbours' median distance) + noise.

    The vector median is the neighbour with the least sum of distances to the others (Astola, Haavisto & Neuvo, 1990,
    doi:10.1109/5.54807). It asks both components at once, so it knows no axes.
    """
    return _verdicts(dy, dx, stride, half, VECTOR, threshold, noise, few)


def medians(d: Field, other: Field, *, least: int = MIN_NEIGHBOURS, half: int = 1, own: bool = False) -> Field:
    """Median of `d` over those of the points around that have both `d` and `other`; NaN with fewer than `least`.

    `half` is 1 for the eight points around; with `own` the point itself counts, too.

    Examples
    --------
    >>> d = np.arange(9.0).reshape(3, 3); d[1, 1] = np.nan
    >>> medians(d, d)[1].tolist()
    [nan, 4.0, nan]
    """
    missing = ~(np.isfinite(d) & np.isfinite(other))
    field = np.ascontiguousarray(np.where(missing, np.inf, d)).reshape(-1, *d.shape[-2:])
    out = np.empty_like(field)
    for m in range(len(out)):
        _smooth(field[m], half, own, least, out[m])
    return out.reshape(d.shape)


def _verdicts(
    dy: Field, dx: Field, stride: ArrayLike, half: int, test: int, first: float, second: float, few: int
) -> Verdict:
    number = np.result_type(dy, dx, np.float32).type
    shape = (-1, *dy.shape[-2:])
    missing = ~(np.isfinite(dy) & np.isfinite(dx))
    fields = [np.ascontiguousarray(np.where(missing, np.inf, d), number).reshape(shape) for d in (dy, dx)]
    steps = np.ascontiguousarray(np.broadcast_to(stride, dy.shape), np.int64).reshape(shape)
    out = np.empty(steps.shape, np.uint8)
    for m in range(len(out)):
        _judge(fields[0][m], fields[1][m], steps[m], half, test, number(first), number(second), few, out[m])
    return out.reshape(dy.shape)


@njit(**JIT)
def _gather(field: Any, y: Any, stride: Any, half: Any, near: Any) -> Any:
    """The neighbours of a row of points, near[neighbour, point]; infinite where there is none."""
    height, width = field.shape
    k = 0
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            if i == 0 and j == 0:
                continue
            for x in range(width):
                v, u = y + j * stride[x], x + i * stride[x]
                inside = v >= 0 and v < height and u >= 0 and u < width
                near[k, x] = field[v, u] if inside else np.inf
            k += 1


@njit(**JIT)
def _count(near: Any, count: Any) -> Any:
    """Number of neighbours of every point."""
    count[:] = 0
    for row in near:
        for x in range(U(count.size)):
            count[x] += row[x] < np.inf


@njit(**JIT)
def _exchange(low: Any, high: Any) -> Any:
    """Sort two rows, point by point."""
    for x in range(U(low.size)):
        one, two = low[x], high[x]
        low[x], high[x] = min(one, two), max(one, two)


@njit(**JIT)
def _sort(rows: Any) -> Any:
    """Sort the rows, point by point: Batcher's network (Knuth, The Art of Computer Programming 3, 5.2.2, M).

    It compares the same rows whatever is in them, so that many points are sorted at once.
    """
    top = 1
    while 2 * top < len(rows):
        top *= 2
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while d > 0:
            for i in range(len(rows) - d):
                if i & p == r:
                    _exchange(rows[i], rows[i + d])
            d, q, r = q - p, q // 2, p
        p //= 2


@njit(**JIT)
def _median(rows: Any, count: Any, out: Any) -> Any:
    """Median over the rows of the `count` finite values of every point; sorts the rows."""
    _sort(rows)
    for x in range(out.size):
        out[x] = (rows[(count[x] - 1) // 2, x] + rows[count[x] // 2, x]) / 2 if count[x] > 0 else np.inf


@njit(**JIT)
def _agree(dy: Any, dx: Any, near: Any, tolerance: Any, agreeing: Any) -> Any:
    """How many points lie within the tolerance, the point itself included."""
    agreeing[:] = 1
    for k in range(near.shape[1]):
        v, u = near[0, k], near[1, k]
        for x in range(U(dy.size)):
            agreeing[x] += abs(v[x] - dy[x]) <= tolerance and abs(u[x] - dx[x]) <= tolerance


@njit(**JIT)
def _absolute(rows: Any, centre: Any) -> Any:
    """rows = |rows - centre|."""
    for row in rows:
        for x in range(U(centre.size)):
            row[x] = abs(row[x] - centre[x])


@njit(**JIT)
def _distances(v: Any, u: Any, y: Any, x: Any, out: Any) -> Any:
    """Distances of two rows of vectors; infinite where one is missing."""
    for i in range(U(out.size)):
        squared = (v[i] - y[i]) ** 2 + (u[i] - x[i]) ** 2
        # Two missing vectors differ by NaN.
        out[i] = np.sqrt(squared) if squared < np.inf else np.inf


@njit(**JIT)
def _beyond_agreement(dy: Any, dx: Any, near: Any, count: Any, tolerance: Any, share: Any, excess: Any) -> Any:
    """How many points are lacking."""
    agreeing = np.empty(count.size, np.int64)
    _agree(dy, dx, near, tolerance, agreeing)
    for x in range(U(excess.size)):
        # 0.28 of 25 is 7 points, though its nearest binary number is more than 7/25.
        excess[x] = share * (count[x] + 1) - agreeing[x] - 1e-3


@njit(**JIT)
def _beyond_median(d: Any, near: Any, count: Any, scaled: Any, threshold: Any, noise: Any, excess: Any) -> Any:
    """How far one component is beyond its limit, if that is more than the excess so far."""
    middle, spread = np.empty_like(d), np.empty_like(d)
    _median(near, count, middle)
    _absolute(near, middle)
    _median(near, count, spread)
    for x in range(U(excess.size)):
        limit = threshold * (spread[x] + noise) if scaled else max(threshold * spread[x], noise)
        excess[x] = max(excess[x], abs(d[x] - middle[x]) - limit)


@njit(**JIT)
def _beyond_vector_median(dy: Any, dx: Any, near: Any, count: Any, threshold: Any, noise: Any, excess: Any) -> Any:
    """How far the vector is beyond its limit."""
    total, apart = np.zeros(near.shape[1:], dy.dtype), np.empty_like(dy)
    least, y, x = np.full_like(dy, np.inf), np.full_like(dy, np.inf), np.full_like(dx, np.inf)
    for k in range(len(total)):
        for i in range(k):
            _distances(near[0, k], near[1, k], near[0, i], near[1, i], apart)
            _add_finite(total[k], total[i], apart)
    for k in range(len(total)):
        _keep_least(near[0, k], near[1, k], total[k], least, y, x)
    for k in range(len(total)):
        _distances(near[0, k], near[1, k], y, x, total[k])
    _median(total, count, least)
    _distances(dy, dx, y, x, apart)
    for i in range(U(excess.size)):
        excess[i] = apart[i] - (threshold * least[i] + noise)


@njit(**JIT)
def _add_finite(one: Any, two: Any, apart: Any) -> Any:
    """Add the distances between two neighbours to the sums of both, where both are there."""
    for x in range(U(apart.size)):
        more = apart[x] if apart[x] < np.inf else 0
        one[x] += more
        two[x] += more


@njit(**JIT)
def _keep_least(v: Any, u: Any, total: Any, least: Any, y: Any, x: Any) -> Any:
    """Keep the vector (v, u) where it is there and its sum of distances is less than the least so far."""
    for i in range(U(least.size)):
        better = v[i] < np.inf and total[i] < least[i]
        y[i] = v[i] if better else y[i]
        x[i] = u[i] if better else x[i]
        least[i] = total[i] if better else least[i]


@njit(**JIT)
def _judge(dy: Any, dx: Any, stride: Any, half: Any, test: Any, first: Any, second: Any, few: Any, out: Any) -> Any:
    """One test of one field, row by row; `first` and `second` are the numbers of the test."""
    height, width = dy.shape
    near = np.empty((2, (2 * half + 1) ** 2 - 1, width), dy.dtype)
    count, excess = np.empty(width, np.int64), np.empty(width, dy.dtype)
    for y in range(height):
        _gather(dy, y, stride[y], half, near[0])
        _gather(dx, y, stride[y], half, near[1])
        _count(near[0], count)
        if test == AGREEMENT:
            _beyond_agreement(dy[y], dx[y], near, count, first, second, excess)
        elif test == VECTOR:
            _beyond_vector_median(dy[y], dx[y], near, count, first, second, excess)
        else:
            excess[:] = -np.inf
            _beyond_median(dy[y], near[0], count, test == NORMALISED, first, second, excess)
            _beyond_median(dx[y], near[1], count, test == NORMALISED, first, second, excess)
        for x in range(width):
            if dy[y, x] == np.inf:
                out[y, x] = PASSED
            elif count[x] < few:
                out[y, x] = ALONE
            else:
                out[y, x] = REJECTED if excess[x] > 0 else PASSED


@njit(**JIT)
def _smooth(field: Any, half: Any, own: Any, least: Any, out: Any) -> Any:
    """Median of the points around each, and of itself if `own`; NaN where there are fewer than `least`."""
    width, around = field.shape[1], (2 * half + 1) ** 2 - 1
    near, stride = np.empty((around + (1 if own else 0), width), field.dtype), np.ones(width, np.int64)
    count = np.empty(width, np.int64)
    for y in range(len(field)):
        _gather(field, y, stride, half, near)
        if own:
            near[around] = field[y]
        _count(near, count)
        _median(near, count, out[y])
        out[y][count < least] = np.nan
