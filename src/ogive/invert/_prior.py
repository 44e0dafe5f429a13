"""The prior of TICOI: how the velocity of the short pairs changes, smoothed in time, pixel by pixel.

The velocities of short pairs, on the whole days of their middles, are interpolated to every day, smoothed by a
Savitzky-Golay filter, and read in the middle of the intervals between the images of a pixel.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..grid import YEAR_DAYS
from ._banded import FASTMATH
from ._observations import Observations

Float = NDArray[np.float64]

MOMENT = 1e-6
"""Times of day in float64 days since 1970 are good to about this [day]."""


def calendar(o: Observations, select_baseline: float, t_win: int, order: int) -> tuple[Any, ...]:
    """Days of the prior: which pairs, the day of each, the middle of each interval between images, the filter."""
    short = np.floor(o.t2) - np.floor(o.t1) < select_baseline
    middle, images = 0.5 * (o.t1 + o.t2), np.unique(np.concatenate([o.t1, o.t2]))
    between = 0.5 * (images[:-1] + images[1:])
    origin = middle[short].min() if short.any() else between[0]
    # The dates of ITS_LIVE pairs lie a fraction of a second after their middle, those of intervals do not.
    origin += min(np.floor(between[0] - origin - MOMENT), 0.0)
    day = np.floor(middle - origin + MOMENT).astype(np.int64)
    wanted = np.floor(between - origin - MOMENT).astype(np.int64)
    length = max(wanted[-1], day[short].max(initial=0)) + 1
    return short, day, between, wanted, length, *savitzky_golay(t_win, order)


def savitzky_golay(window: int, order: int) -> tuple[Float, Float]:
    """Weights of a Savitzky-Golay filter: at each place of the window, and in its middle.

    The middle of an even window lies between two places. Savitzky and Golay (1964), doi:10.1021/ac60214a047.

    Examples
    --------
    >>> every, middle = savitzky_golay(5, 2)
    >>> (middle * 35).round(9).tolist()
    [-3.0, 12.0, 17.0, 12.0, -3.0]
    """
    powers = np.vander((np.arange(window) - (window - 1) / 2) / window, order + 1)
    fit = np.linalg.pinv(powers)
    return powers @ fit, np.ascontiguousarray(fit[-1])


@njit(nogil=True, cache=True)
def steps(use: Any, v: Any, calendars: Any, t: Any, daily: Any, step: Any) -> Any:
    """Steps of the smoothed velocity from interval to interval [m/day]; returns the number of pairs behind them."""
    (_, _, _, _, rank), (short, day, between, wanted, length, every, middle) = calendars
    count = 0
    for k in range(use.size):
        count += short[use[k]]
    if count == 0 or length < middle.size:
        return 0
    for c in range(2):
        _daily(use, v[c], short, day, rank, daily)
        nearest, before = 0, 0.0
        for k in range(t.size - 1):
            centre = t[k] + (t[k + 1] - t[k]) // 2
            while nearest + 1 < between.size and abs(between[nearest + 1] - centre) <= abs(between[nearest] - centre):
                nearest += 1
            u = _smoothed(daily, wanted[nearest], every, middle) / YEAR_DAYS
            if k > 0:
                step[c, k - 1] = u - before
            before = u
    return count


@njit(nogil=True, cache=True)
def _daily(use: Any, v: Any, short: Any, day: Any, rank: Any, daily: Any) -> Any:
    """Linear interpolation of the short pairs to days.

    Of several pairs in the middle of one day the first stands on that day, and the last at the start of the line to
    the next one. Pairs of the same dates are averaged.
    """
    here, last_day, last, k = 0, -1, 0.0, 0
    while k < use.size:
        j = use[k]
        total, same = 0.0, 0
        while k < use.size and rank[use[k]] == rank[j]:
            total += v[k]
            same += 1
            k += 1
        if not short[j]:
            continue
        value = total / same
        if last_day < 0:
            daily[: day[j] + 1] = value
            here = day[j] + 1
        while here <= day[j]:
            daily[here] = last + (value - last) * (here - last_day) / (day[j] - last_day)
            here += 1
        last_day, last = day[j], value
    daily[here:] = last


@njit(nogil=True, cache=True, fastmath=FASTMATH)
def _smoothed(daily: Any, i: Any, every: Any, middle: Any) -> Any:
    """Savitzky-Golay filter at day i; within half a window of an end the polynomial of the outermost window."""
    window = middle.size
    half = window // 2
    if i < half:
        start, weights = 0, every[i]
    elif i >= daily.size - half:
        start, weights = daily.size - window, every[i - daily.size + window]
    else:
        start, weights = i - (window - 1) // 2, middle
    total = 0.0
    for k in range(window):
        total += weights[k] * daily[start + k]
    return total
