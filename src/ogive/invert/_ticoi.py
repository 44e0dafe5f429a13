"""The estimator of TICOI at one pixel, compiled: filter, solve and weight in turn, read the windows."""

from typing import Any

import numpy as np
from numba import njit

from .. import flags
from .._median import median
from ..grid import YEAR_DAYS
from ._banded import FASTMATH, PIVOTS, factorise, solve, stride_of
from ._prior import steps
from ._spline import bends, factorise_spline, row_of_window, value
from .screening import displacement_sigma, gather

SHORT = 180.0
"""Longest pair in the first solution where decorrelation is to be detected [day]."""
TUKEY = 4.685
"""Tukey's constant: 95 % efficient on Gaussian errors."""
NORMAL_MEDIAN = 0.6745
"""Median of |z| for a standard normal z."""
SCALE_FLOOR = 1e-6
"""Residual scales below [m] are rounding: all pairs agree."""
LEAST_NODES = 4
"""A cubic spline that is not a knot at its second node needs as many."""
_LANES = (0,) * 8  # windows whose errors are solved together: one vector register
_TOO_FEW, _GAP, _SCREENED = (np.uint16(bit) for bit in (flags.TOO_FEW_PAIRS, flags.GAP, flags.SCREENED))


@njit(nogil=True, cache=True)
def ticoi_pixels(data: Any, calendar: Any, windows: Any, settings: Any, switches: Any, out: Any) -> Any:
    """Loop over pixels: gather and filter the pairs, solve, read the windows. Tuples as made in `ticoi`."""
    arrays, network, rules = data
    order, ends, days, baseline, _ = network
    _, _, vx, vy, _, _, _ = arrays
    stencil, _, _, _, min_pairs, _ = settings
    in_time, flag, (n_pairs, n_screened, n_rejected, n_prior), passes, longest = out
    pairs, nodes = order.size, days.size
    reasons, use, node = np.empty(pairs, np.uint8), np.empty(pairs, np.int64), np.empty(nodes, np.int64)
    d, e, weight, first_weight = np.empty((2, pairs)), np.empty((2, pairs)), np.empty((2, pairs)), np.empty((2, pairs))
    scratch, between = np.empty(pairs), np.empty((2, pairs), np.int64)
    widest = max(stencil.size, np.max(ends[1] - ends[0]))
    bands, p = np.empty((2, nodes * stride_of(widest + 1))), np.zeros((2, nodes))
    t, step, prior = np.empty(nodes), np.empty((2, nodes)), np.empty((nodes - 1, stencil.size + 1))
    daily = np.empty(calendar[4])
    for pixel in range(vx.shape[1]):
        valid, kept, longest[pixel] = gather(arrays, pixel, rules, reasons, scratch)
        n_pairs[pixel], n_screened[pixel] = valid, valid - kept
        flag[:, pixel] = _TOO_FEW if valid < min_pairs else _SCREENED
        if kept < min_pairs:
            continue
        count = 0
        for j in order:
            if reasons[j] == 0 and ends[1, j] > ends[0, j]:
                use[count] = j
                d[0, count], d[1, count] = vx[j, pixel], vy[j, pixel]
                a, b = displacement_sigma(arrays, rules, j, pixel)
                e[0, count], e[1, count] = a * YEAR_DAYS / baseline[j], b * YEAR_DAYS / baseline[j]
                count += 1
        count = _delete_outliers(switches[0], use[:count], d, e, scratch)
        n_screened[pixel] = valid - count
        if count < min_pairs:
            continue
        last = _nodes(use[:count], ends, days, node, between, t)
        if last < LEAST_NODES:
            flag[:, pixel] = _TOO_FEW
            continue
        step[:], p[:] = 0.0, 0.0
        if switches[4]:
            n_prior[pixel] = steps(use[:count], d, (network, calendar), t[: last + 1], daily, step)
        for k in range(count):
            for c in range(2):
                d[c, k] *= baseline[use[k]] / YEAR_DAYS
        _first_weights(use[:count], baseline, e, switches, first_weight, weight)
        passes[pixel], width = _invert(
            (d, between, t[: last + 1], count),
            (first_weight, weight, switches[3], scratch),
            (bands, p, step, prior),
            settings,
        )
        if width == 0:
            flag[:, pixel] = _TOO_FEW
            continue
        flag[:, pixel] = 0
        for k in range(count):
            n_rejected[pixel] += weight[0, k] == 0.0 and weight[1, k] == 0.0
            for c in range(2):
                e[c, k] *= baseline[use[k]] / YEAR_DAYS
        _read_windows(
            windows,
            (use[:count], ends, between, d, e, weight),
            (bands, width, p, t[: last + 1], switches[5]),
            settings[5],
            (in_time, flag, pixel),
        )


@njit(nogil=True, cache=True)
def _delete_outliers(kind: Any, use: Any, v: Any, e: Any, scratch: Any) -> Any:
    """Move the pairs that the filter keeps to the front; returns how many."""
    count = use.size
    if kind == 0 or count == 0:
        return count
    middle, spread = np.empty(2), np.empty(2)
    for c in range(2):
        scratch[:count] = v[c, :count]
        middle[c] = median(scratch, count)
        for k in range(count):
            scratch[k] = abs(v[c, k] - middle[c])
        spread[c] = median(scratch, count)
    for k in range(count):
        scratch[k] = np.hypot(v[0, k], v[1, k])
    norm, mean, deviation = np.hypot(middle[0], middle[1]), np.mean(scratch[:count]), np.std(scratch[:count])
    kept = 0
    for k in range(count):
        if kind == 1:
            good = True
            for c in range(2):
                good &= NORMAL_MEDIAN * abs(v[c, k] - middle[c]) < 3.5 * spread[c]
        elif norm > 10.0:
            along = v[0, k] * middle[0] + v[1, k] * middle[1]
            good = along > np.sqrt(0.5) * scratch[k] * norm
        else:
            good = abs(scratch[k] - mean) < 3.0 * deviation
        if good:
            use[kept] = use[k]
            for c in range(2):
                v[c, kept], e[c, kept] = v[c, k], e[c, k]
            kept += 1
    return kept


@njit(nogil=True, cache=True)
def _nodes(use: Any, ends: Any, days: Any, node: Any, between: Any, t: Any) -> Any:
    """Days of the images of the pairs in use, and each pair's positions in them; returns the last position."""
    node[:] = -1
    for k in range(use.size):
        node[ends[0, use[k]]] = node[ends[1, use[k]]] = 0
    count = 0
    for i in range(node.size):
        if node[i] == 0:
            t[count], node[i] = days[i], count
            count += 1
    for k in range(use.size):
        between[0, k], between[1, k] = node[ends[0, use[k]]], node[ends[1, use[k]]]
    return count - 1


@njit(nogil=True, cache=True)
def _first_weights(use: Any, baseline: Any, e: Any, switches: Any, prior: Any, weight: Any) -> Any:
    """Weights from the errors (`prior`), and those of the first solution (`weight`)."""
    count = use.size
    _, detect, from_errors, _, _, _ = switches
    any_short = False
    for k in range(count):
        any_short |= baseline[use[k]] <= SHORT
    for c in range(2):
        low, high = np.min(e[c, :count]), np.max(e[c, :count])
        differ = high > low * (1.0 + 1e-9)  # by more than rounding
        for k in range(count):
            q = 1.0 - (e[c, k] - low) / (high - low) if from_errors and differ else 1.0
            prior[c, k] = q
            weight[c, k] = 0.0 if detect and any_short and baseline[use[k]] > SHORT else q


@njit(nogil=True, cache=True)
def _invert(observed: Any, weights: Any, solution: Any, settings: Any) -> Any:
    """Solve and weight in turn; leaves P, the factorised bands and the weights of the same solution.

    Returns the number of solutions and the width of the bands (0: the matrix is singular).
    """
    d, between, t, count = observed
    prior_weight, weight, weight_again, scratch = weights
    bands, p, step, prior = solution
    stencil, strength, threshold, most, _, _ = settings
    last = t.size - 1
    _regularise(t, stencil, strength, prior[:last])
    solutions, width = 0, 0
    while True:
        change = 0.0
        if solutions > 0:
            for c in range(2):
                _reweigh(d[c, :count], between, p[c], prior_weight[c], weight_again, weight[c], scratch)
        width = _width(between, weight, count, stencil.size)
        for c in range(2):
            matrices = (bands[c], width, p[c], step[c], prior[:last])
            moved = _solve(d[c, :count], between, weight[c], matrices, (t, stencil, strength))
            if np.isnan(moved):
                return solutions, 0
            change = max(change, moved)
        solutions += 1
        if solutions == most or (solutions > 1 and change <= threshold) or count < last:
            return solutions, width


@njit(nogil=True, cache=True)
def _width(between: Any, weight: Any, count: Any, least: Any) -> Any:
    """Width of the band: the pairs with weight, and the regularisation."""
    width = least
    for k in range(count):
        if weight[0, k] != 0.0 or weight[1, k] != 0.0:
            width = max(width, between[1, k] - between[0, k])
    return width + 1


@njit(nogil=True, cache=True)
def _regularise(t: Any, stencil: Any, strength: Any, prior: Any) -> Any:
    """Band of strength mu^T mu; row k of mu has its first node at k, and node 0, where P = 0, drops out."""
    prior[:] = 0.0
    row = np.empty(stencil.size + 1)
    for k in range(t.size - stencil.size):
        _row(t, stencil, k, row)
        for a in range(row.size):
            for b in range(a, row.size):
                if k + a > 0:
                    prior[k + a - 1, b - a] += strength * row[a] * row[b]


@njit(nogil=True, cache=True)
def _row(t: Any, stencil: Any, k: Any, row: Any) -> Any:
    """Coefficients on P of one combination of daily velocities."""
    row[:] = 0.0
    for m in range(stencil.size):
        c = stencil[m] / (t[k + m + 1] - t[k + m])
        row[m] -= c
        row[m + 1] += c


@njit(nogil=True, cache=True)
def _solve(d: Any, between: Any, weight: Any, matrices: Any, rows: Any) -> Any:
    """One component; returns the mean change of the displacements between images [m], or NaN."""
    band, width, p, step, prior = matrices
    t, stencil, strength = rows
    last, stride = t.size - 1, stride_of(width)
    rhs, row = np.zeros(last + width + PIVOTS), np.empty(stencil.size + 1)
    band[: last * stride] = 0.0
    for k in range(last):
        for m in range(prior.shape[1]):
            band[k * stride + m] = prior[k, m]
    for k in range(last + 1 - stencil.size):
        if step[k] != 0.0:
            _row(t, stencil, k, row)
            for a in range(row.size):
                if k + a > 0:
                    rhs[k + a - 1] += strength * step[k] * row[a]
    for k in range(d.size):
        w = weight[k] * weight[k]
        if w == 0.0:
            continue
        a, b = between[0, k], between[1, k]
        band[(b - 1) * stride] += w
        rhs[b - 1] += w * d[k]
        if a > 0:
            band[(a - 1) * stride] += w
            band[(a - 1) * stride + b - a] -= w
            rhs[a - 1] -= w * d[k]
    if np.isnan(factorise(band, last, width, stride)):
        return np.nan
    solve(band, last, width, stride, rhs, (0,))
    change, before = 0.0, 0.0
    for k in range(last):
        moved = rhs[k] - p[k + 1]
        change += abs(moved - before)
        before = moved
        p[k + 1] = rhs[k]
    return change / last


@njit(nogil=True, cache=True)
def _reweigh(d: Any, between: Any, p: Any, prior: Any, again: Any, weight: Any, scratch: Any) -> Any:
    """Tukey's weights from the residuals of one component."""
    count = d.size
    for k in range(count):
        weight[k] = d[k] - (p[between[1, k]] - p[between[0, k]])
        scratch[k] = weight[k]
    middle = median(scratch, count)
    for k in range(count):
        scratch[k] = abs(weight[k] - middle)
    scale = median(scratch, count) / NORMAL_MEDIAN
    for k in range(count):
        z = weight[k] / (TUKEY * scale) if scale > SCALE_FLOOR else 0.0
        w = (1.0 - z * z) ** 2 if abs(z) <= 1.0 else 0.0
        weight[k] = w * prior[k] if again else w


@njit(nogil=True, cache=True)
def _read_windows(windows: Any, observed: Any, solution: Any, min_count: Any, target: Any) -> Any:
    """Velocities, weights and errors of one pixel's windows."""
    edges, opened, closed = windows
    use, ends, between, d, e, weight = observed
    bands, width, p, t, propagate = solution
    in_time, flag, pixel = target
    vx, vy, ex, ey, counts, xcount, ycount = in_time
    last = t.size - 1
    x = t[1:]
    spline = np.empty((4, last))
    factorise_spline(x, spline)
    curves, second = np.zeros((4, last)), np.empty((4, last))
    curves[:2] = p[:, 1 : last + 1]
    _cover(between, weight, use.size, curves[2:])
    for c in range(4):
        bends(x, spline, curves[c], second[c])
    starts, stops = _weights_until(use, ends, weight)
    good = np.empty(edges.shape[0], np.int64)
    found = 0
    for w in range(edges.shape[0]):
        start, end = edges[w, 0], edges[w, 1]
        count = starts[closed[w]] - stops[opened[w]]
        counts[w, pixel] = max(count, 0.0)
        if start < x[0] or end > x[last - 1] or count < min_count or count <= 0.0:
            flag[w, pixel] = _GAP
            continue
        good[found] = w
        found += 1
        i, j = np.searchsorted(x[1:-1], start, "right"), np.searchsorted(x[1:-1], end, "right")
        to_year = YEAR_DAYS / (end - start)
        for c in range(4):
            gained = value(x, curves[c], second[c], j, end) - value(x, curves[c], second[c], i, start)
            if c == 0:
                vx[w, pixel] = gained * to_year
            elif c == 1:
                vy[w, pixel] = gained * to_year
            elif c == 2:
                xcount[w, pixel] = max(gained, 0.0)
            else:
                ycount[w, pixel] = max(gained, 0.0)
    if propagate:
        noise = np.empty((2, use.size))
        for c in range(2):
            for k in range(use.size):
                r = d[c, k] - (p[c, between[1, k]] - p[c, between[0, k]])
                noise[c, k] = weight[c, k] ** 4 * max(e[c, k] * e[c, k], r * r)
        solved = (bands, width, between, noise)
        _errors(edges, good[:found], (x, spline), solved, (ex, ey, pixel))


@njit(nogil=True, cache=True)
def _weights_until(use: Any, ends: Any, weight: Any) -> Any:
    """Sum of the weights, mean of x and y, of the pairs whose first and whose second day come before each day."""
    starts, stops = np.zeros(ends.max() + 2), np.zeros(ends.max() + 2)
    for k in range(use.size):
        w = 0.5 * (weight[0, k] + weight[1, k])
        starts[ends[0, use[k]] + 1] += w
        stops[ends[1, use[k]] + 1] += w
    for i in range(1, starts.size):
        starts[i] += starts[i - 1]
        stops[i] += stops[i - 1]
    return starts, stops


@njit(nogil=True, cache=True)
def _cover(between: Any, weight: Any, count: Any, curves: Any) -> Any:
    """Weights of the pairs over each interval between images, summed like displacements at its end."""
    for c in range(2):
        for k in range(count):
            # the first interval ends at node 1, which is position 0 here
            curves[c, between[0, k]] += weight[c, k]
            if between[1, k] < curves.shape[1]:
                curves[c, between[1, k]] -= weight[c, k]
        for _ in range(2):
            for i in range(1, curves.shape[1]):
                curves[c, i] += curves[c, i - 1]


@njit(nogil=True, cache=True, fastmath=FASTMATH)
def _errors(edges: Any, good: Any, spline: Any, solved: Any, target: Any) -> Any:
    """Errors of the windows in `good`: their rows through the inverse normal matrix, then through the pairs."""
    bands, width, between, noise = solved
    ex, ey, pixel = target
    n, lanes, stride = spline[0].size, len(_LANES), stride_of(width)
    g, z, rows = np.empty(n), np.empty(n), np.zeros(n * lanes)
    h = np.zeros((1 + n + width + PIVOTS) * lanes)  # its first row is P = 0
    for first in range(0, good.size, lanes):
        part = good[first : first + lanes]
        for lane in range(part.size):
            row_of_window(spline, edges[part[lane]], z, g)
            for i in range(n):
                rows[i * lanes + lane] = g[i]
        for c in range(2):
            h[lanes : (n + 1) * lanes] = rows
            solve(bands[c], n, width, stride, h[lanes:], _LANES)
            for lane in range(part.size):
                variance = 0.0
                for k in range(noise.shape[1]):
                    gained = h[between[1, k] * lanes + lane] - h[between[0, k] * lanes + lane]
                    variance += noise[c, k] * gained * gained
                w = part[lane]
                error = np.sqrt(variance) * YEAR_DAYS / (edges[w, 1] - edges[w, 0])
                if c == 0:
                    ex[w, pixel] = error
                else:
                    ey[w, pixel] = error
