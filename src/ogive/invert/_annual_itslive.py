"""The annual and seasonal composite of ITS_LIVE at one pixel: constants per year and one sinusoid, least squares.

Their formulas to the letter, weaknesses included, so that series compare: one cut against a running median is the only
protection against outliers, errors are formal, and the line through the annual means puts each at the month and day of
the intercept.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .. import flags
from .._median import median
from ._banded import PIVOTS, VECTOR, factorise, solve, stride_of
from ._season import JULIAN_YEAR
from .screening import MISSING, gather

Float = NDArray[np.float64]

MAD_TO_SIGMA = 1.4826
FASTEST, LARGEST = 20_000.0, 10_000.0
"""Speeds and amplitudes above are no ice [meter/year]."""
NEIGHBOURS = 15
"""Observations in the running median."""
CUT = 12.0
"""Robust sigmas from the running median at which an observation goes."""
LEAST_AT_START, LEAST = 5, 30
"""Observations without which there is no fit, before and after the cut."""
_TOO_FEW, _GAP, _SCREENED = (np.uint16(bit) for bit in (flags.TOO_FEW_PAIRS, flags.GAP, flags.SCREENED))


def waves(t1: Float, t2: Float) -> Float:
    """Integrals of the annual sin and cos between decimal years: (N, 2) [year].

    Examples
    --------
    >>> waves(np.array([2020.0]), np.array([2020.5])).round(3).tolist()
    [[0.318, 0.0]]
    """
    # Whole years make no difference but cost digits.
    a, b = (2 * np.pi * (t - np.floor(t1)) for t in (t1, t2))
    return np.stack([np.cos(a) - np.cos(b), np.sin(b) - np.sin(a)], 1) / (2 * np.pi)


@njit(nogil=True, cache=True)
def itslive_pixels(data: Any, dates: Any, years: Any, settings: Any, out: Any) -> Any:
    """Loop over pixels. Tuples as made in `annual`."""
    _, _, vx, vy, ex, ey, group = data
    chosen = years[3]
    offset, inland, sentinel, rules = settings
    annual, flag, climate, counts, shares, longest = out
    pairs, pixels = vx.shape
    reasons, keep = np.empty(pairs, np.uint8), np.empty(pairs, np.bool_)
    v, e, work = np.empty((2, pairs)), np.empty((2, pairs)), np.empty((5, pairs))
    first = (np.empty(annual.shape[:2]), np.empty(climate.shape[:2]), np.empty((2, 2)))
    second = (np.empty(annual.shape[:2]), np.empty(climate.shape[:2]), np.empty((2, 2)))
    for pixel in range(pixels):
        valid, count, limit = gather(data, pixel, rules, reasons, work[0])
        counts[0, pixel], counts[2, pixel] = valid, valid - count
        asked = 0
        for j in range(pairs):
            asked += not reasons[j] & MISSING and chosen[j]
            keep[j] = reasons[j] == 0
            v[0, j], v[1, j] = vx[j, pixel], vy[j, pixel]
            e[0, j], e[1, j] = ex[j, pixel % ex.shape[1]] + offset, ey[j, pixel % ey.shape[1]] + offset
        longest[pixel] = limit
        answer, fitted = first, _composite(v, e, keep, dates, years, work, first)
        if fitted and inland and sentinel >= 0:
            for j in range(pairs):
                keep[j] = keep[j] and group[j] != sentinel
            _composite(v, e, keep, dates, years, work, second)
            with_it, without = first[1][3, 2], second[1][3, 2]
            if with_it > 2.0 * without and with_it - without > 2.0:
                answer = second
        if not fitted:
            flag[:, pixel] = _SCREENED if count < LEAST <= valid else _TOO_FEW
            continue
        annual[:, :, pixel], climate[:, :, pixel] = answer[0], answer[1]
        used = answer[2]
        counts[1, pixel] = count - np.int64(np.ceil(0.5 * (used[0, 0] + used[0, 1])))
        shares[0, pixel] = np.ceil(0.5 * (used[1, 0] + used[1, 1]))
        shares[1, pixel] = 100.0 * (1.0 - shares[0, pixel] / asked) if asked else np.nan
        for k in range(flag.shape[0]):
            flag[k, pixel] = 0 if np.isfinite(annual[2, k, pixel]) else _GAP


@njit(nogil=True, cache=True)
def _composite(v: Any, e: Any, keep: Any, dates: Any, years: Any, work: Any, out: Any) -> Any:
    """Steps 3 to 6. Returns whether both components have a fit."""
    annual, climate, used = out
    annual[:], climate[:], used[:] = np.nan, np.nan, 0.0
    annual[6] = 0.0
    chosen = np.empty(keep.size, np.bool_)
    for c in range(2):
        count = _cut(v[c], keep, dates[3], chosen, work)
        if count < LEAST:
            return False
        used[0, c] = count
        if not _means(v[c], e[c], chosen, dates, (annual[c], annual[3 + c], annual[6])):
            return False
        _line(annual[c], annual[3 + c], years, climate[:, c])
        for j in range(chosen.size):
            chosen[j] = chosen[j] and years[3][j]
        used[1, c] = _season(v[c], e[c], chosen, dates, annual.shape[1], climate[:, c])
    _magnitudes(annual, climate)
    return True


@njit(nogil=True, cache=True)
def _cut(v: Any, keep: Any, order: Any, chosen: Any, work: Any) -> Any:
    """Observations, in the order of their middle, not too far from the running median; the ends are mirrored."""
    series, away, scratch = work[0], work[1], work[2]
    count = 0
    for j in order:
        if keep[j]:
            series[count] = v[j]
            count += 1
    chosen[:] = False
    if count < LEAST_AT_START:
        return 0
    half = NEIGHBOURS // 2
    for i in range(count):
        for k in range(NEIGHBOURS):
            at = (i + k - half) % (2 * count)
            scratch[k] = series[at if at < count else 2 * count - 1 - at]
        away[i] = abs(series[i] - median(scratch, NEIGHBOURS))
    scratch[:count] = away[:count]
    limit = CUT * MAD_TO_SIGMA * median(scratch, count)
    i, left = 0, 0
    for j in order:
        if keep[j]:
            chosen[j] = not away[i] > limit
            left += chosen[j]
            i += 1
    return left


@njit(nogil=True, cache=True)
def _overlap(a: Any, b: Any, year: Any) -> Any:
    return max(min(b, year + 1.0) - max(a, year), 0.0)


@njit(nogil=True, cache=True)
def _least_squares(v: Any, e: Any, chosen: Any, dates: Any, p: Any) -> Any:
    """Means of K years, then the coefficients of sin and cos; zero for a year without a pair. False if singular."""
    y1, y2, wave, _, first = dates
    size = p.size
    stride = stride_of(size)
    band, row, right = np.zeros(size * stride + VECTOR), np.zeros(size), np.zeros(2 * size + PIVOTS)
    for j in range(v.size):
        if not chosen[j]:
            continue
        span = y2[j] - y1[j]
        weight = 1.0 / (e[j] * span) ** 2
        begin, end = int(y1[j]) - first, min(int(y2[j]) - first, size - 3)
        for k in range(begin, end + 1):
            row[k] = _overlap(y1[j], y2[j], first + k)
        row[size - 2], row[size - 1] = wave[j, 0], wave[j, 1]
        for a in range(begin, size):
            if row[a] != 0.0:
                right[a] += weight * row[a] * v[j] * span
                for b in range(a, size):
                    band[a * stride + b - a] += weight * row[a] * row[b]
        row[begin : end + 1] = 0.0
    for k in range(size):
        if band[k * stride] == 0.0:
            band[k * stride] = 1.0
    if np.isnan(factorise(band, size, size, stride)):
        return False
    solve(band, size, size, stride, right, (0,))
    p[:] = right[:size]
    return True


@njit(nogil=True, cache=True)
def _means(v: Any, e: Any, chosen: Any, dates: Any, out: Any) -> Any:
    """Step 3 after the cut: annual means, their formal error, half the number of pairs."""
    mean, error, count = out
    y1, y2, _, _, first = dates
    p = np.empty(mean.size + 2)
    if not _least_squares(v, e, chosen, dates, p):
        return False
    for k in range(mean.size):
        total, held = 0.0, 0
        for j in range(v.size):
            m = _overlap(y1[j], y2[j], first + k) if chosen[j] else 0.0
            if m > 0.0:
                total += m / (e[j] * e[j])
                held += 1
        if held:
            mean[k], error[k] = p[k], 1.0 / np.sqrt(total)
            count[k] += 0.5 * held
    return True


@njit(nogil=True, cache=True)
def _line(mean: Any, error: Any, years: Any, climate: Any) -> Any:
    """Step 5: weighted line through the means of the climatology years."""
    _, _, since, _, wanted = years
    s, sx, sy, sxx, sxy, squares, count, before, after = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, False, False
    for k in range(mean.size):
        if wanted[k] and np.isfinite(mean[k]):
            w, x = 1.0 / error[k] ** 2, since[k]
            s, sx, sy, sxx, sxy = s + w, sx + w * x, sy + w * mean[k], sxx + w * x * x, sxy + w * x * mean[k]
            squares += error[k] ** 2
            count, before, after = count + 1, before or x < 0.0, after or x >= 0.0
    if count == 0:
        return
    climate[0] = sy / s
    if before and after:
        climate[2] = (s * sxy - sx * sy) / (s * sxx - sx * sx)
        climate[0] = (sy - climate[2] * sx) / s
    if count > 1:
        climate[1] = np.sqrt(squares) / (count - 1)


@njit(nogil=True, cache=True)
def _season(v: Any, e: Any, chosen: Any, dates: Any, years: Any, climate: Any) -> Any:
    """Step 4: amplitude, its error and day of the maximum, from the pairs of the climatology. Returns their number."""
    y1, y2, wave, _, first = dates
    p, used = np.empty(years + 2), 0
    for j in range(chosen.size):
        used += chosen[j]
    if used == 0 or not _least_squares(v, e, chosen, dates, p):
        return used
    squares, held = 0.0, 0
    for k in range(years):
        s, sr, srr, st = 0.0, 0.0, 0.0, 0.0
        for j in range(v.size):
            if chosen[j] and _overlap(y1[j], y2[j], first + k) > 0.0:
                span = y2[j] - y1[j]
                r, w = v[j] * span - wave[j, 0] * p[years] - wave[j, 1] * p[years + 1], 1.0 / (e[j] * span)
                for m in range(years):
                    r -= _overlap(y1[j], y2[j], first + m) * p[m]
                s, sr, srr, st = s + w, sr + w * r, srr + w * r * r, st + w * span
        if s > 0.0:
            squares += max(srr / s - (sr / s) ** 2, 0.0) / (st / s) ** 2
            held += 1
    climate[3] = np.hypot(p[years], p[years + 1])
    if held > 1:
        climate[4] = np.sqrt(squares) / (held - 1)
    climate[5] = JULIAN_YEAR * ((0.25 - np.arctan2(p[years + 1], p[years]) / (2 * np.pi)) % 1.0)
    return used


@njit(nogil=True, cache=True)
def _magnitudes(annual: Any, climate: Any) -> Any:
    """Step 6: speeds, and the climatology along the unit vector of v0."""
    for k in range(annual.shape[1]):
        x, y = annual[0, k], annual[1, k]
        annual[2, k] = np.hypot(x, y)
        annual[5, k] = np.hypot(annual[3, k] * x, annual[4, k] * y) / annual[2, k]
        annual[6, k] = np.ceil(annual[6, k])
        if annual[2, k] > FASTEST:
            annual[:6, k] = np.nan
    speed = np.hypot(climate[0, 0], climate[0, 1])
    if not speed < FASTEST:
        climate[:] = np.nan
        return
    ux, uy = climate[0, 0] / speed, climate[0, 1] / speed
    climate[0, 2] = speed
    climate[2, 2] = climate[2, 0] * ux + climate[2, 1] * uy
    for q in (1, 4):
        climate[q, 2] = climate[q, 0] * abs(ux) + climate[q, 1] * abs(uy)
    turn_x, turn_y = 2 * np.pi * climate[5, 0] / JULIAN_YEAR, 2 * np.pi * climate[5, 1] / JULIAN_YEAR
    cosine = climate[3, 0] * ux * np.cos(turn_x) + climate[3, 1] * uy * np.cos(turn_y)
    sine = climate[3, 0] * ux * np.sin(turn_x) + climate[3, 1] * uy * np.sin(turn_y)
    climate[3, 2] = np.hypot(sine, cosine)
    climate[5, 2] = JULIAN_YEAR * ((np.arctan2(sine, cosine) / (2 * np.pi)) % 1.0)
    for c in range(3):
        if climate[3, c] > LARGEST:
            climate[3:, c] = np.nan
