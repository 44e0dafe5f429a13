"""Annual means, trend and season of one pixel, robust: the adaptive fit on half months, read with a sinusoid beside it.

Constants per year and one sinusoid cannot follow a short pulse or a surge, and then robust weights reject the pairs
that saw it. So the displacement has a knot at every half month of the calendar year, and an annual mean is a difference
of two knots, exactly. With the sinusoid beside the walk a year of few months borrows the season of the others, and
the season is not damped.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .. import flags
from ..grid import YEAR_DAYS
from ._banded import PIVOTS, VECTOR, factorise, solve, stride_of
from ._pixel import fit_pixel, workspace
from ._season import JULIAN_YEAR, OMEGA, harmonic, join, read
from ._shared import FOUR, cap
from .screening import MISSING

Float = NDArray[np.float64]

KNOTS = 24
"""Knots in a year: with 12, pulses of fast ice alias into the amplitude (1 %)."""
SPACING = JULIAN_YEAR / KNOTS
_TOO_FEW, _GAP, _SCREENED = (np.uint16(bit) for bit in (flags.TOO_FEW_PAIRS, flags.GAP, flags.SCREENED))


def answers_of(lengths: Float, begin: float, end: float) -> tuple[Float, Float]:
    """What is read, in factors of P at the knots and of the cosine and sine: each year's mean, then the season.

    Parameters
    ----------
    lengths : (Y,) float64
        Days of the calendar years.
    begin, end : float
        From when to when the season is taken [year since the first knot]; NaN where this is less than a year.

    Examples
    --------
    >>> knots = np.arange(2 * KNOTS + 1) * SPACING
    >>> p = np.sin(OMEGA * knots) / OMEGA / 365 + 3 * knots / JULIAN_YEAR
    >>> rows, beta = answers_of(np.array([365.0, 365.0]), 0.0, 2.0)
    >>> (rows @ p).round(6) + 0.0
    array([3., 3., 1., 0.])
    >>> beta.tolist()
    [[0.0, 0.0], [0.0, 0.0], [365.0, 0.0], [0.0, 365.0]]
    """
    years = len(lengths)
    rows, beta = np.zeros((years + 2, years * KNOTS + 1)), np.zeros((years + 2, 2))
    for k in range(years):
        # A sinusoid has no mean over a year.
        rows[k, k * KNOTS], rows[k, (k + 1) * KNOTS] = -YEAR_DAYS / lengths[k], YEAR_DAYS / lengths[k]
    beta[years:] = YEAR_DAYS * np.eye(2)
    rows[years:] = np.nan
    if end - begin >= 1:
        knots = np.arange(years * KNOTS + 1.0) * SPACING
        rows[years:] = YEAR_DAYS * harmonic(knots, begin * JULIAN_YEAR, end * JULIAN_YEAR)
    return rows, beta


@njit(nogil=True, cache=True, error_model="numpy")
def robust_pixels(
    data: Any, network: Any, images: Any, probes: Any, wave: Any, years: Any, settings: Any, out: Any
) -> Any:
    """Loop over pixels: fit, read years, line and season. Tuples as made in `annual`."""
    inside, lengths, since, chosen, wanted = years
    order = network[2]
    constants, passes, kappas, rules, months = settings
    annual, flag, climate, counts, shares, longest = out
    count_of_years = lengths.size
    space = workspace(network, images, count_of_years * KNOTS)
    (reasons, use, _, columns), typical, buffers, border = space[0], space[1][2], space[3], space[4]
    means, covariance = np.empty((count_of_years + 2, 2)), np.empty((count_of_years + 2, count_of_years + 2))
    covered, weights = np.empty(count_of_years * KNOTS + 1, np.int64), np.empty(count_of_years)
    good, model = np.empty(count_of_years, np.bool_), np.empty((4, 2))
    for pixel in range(flag.shape[1]):
        fitted, middle, errors, seen = fit_pixel(
            data, pixel, network, images, probes, (constants, passes, kappas, rules), space
        )
        (pairs, work, system), (scale, part, kappa, unit), (valid, count, longest[pixel]) = fitted, errors, seen
        counts[0, pixel], counts[2, pixel] = valid, valid - count
        cap(pairs, work, (scale, part, typical))
        if not (
            np.isfinite(scale)
            and join(images, pairs, work, system, wave[0], (kappas, kappa, scale, unit), (buffers[0], border), model)
        ):
            flag[:, pixel] = _SCREENED if count < passes[0] <= valid else _TOO_FEW
            continue
        read(images, pairs, work, system, wave, (scale, part, typical), (buffers[0], border), model, means, covariance)
        asked, used = 0, 0
        for j in range(reasons.size):
            asked += not reasons[j] & MISSING and chosen[j]
        for m in range(pairs[0].size):
            counts[1, pixel] += columns[0, m] == 0.0
            used += columns[0, m] > 0.0 and chosen[order[use[m]]]
        shares[0, pixel], shares[1, pixel] = used, 100.0 * (1.0 - used / asked) if asked else np.nan
        _cover(images[0], pairs, work[0], covered, weights)
        for k in range(count_of_years):
            held = 0
            for i in range(k * KNOTS, (k + 1) * KNOTS):
                held += covered[i] > 0
            good[k] = inside[k] and 12 * held >= months * KNOTS and weights[k] >= constants[6]
            annual[6, k, pixel] = weights[k]
            flag[k, pixel] = 0 if good[k] else _GAP
            if good[k]:
                annual[0, k, pixel], annual[1, k, pixel] = means[k, 0] + middle[0], means[k, 1] + middle[1]
                annual[3, k, pixel] = annual[4, k, pixel] = np.sqrt(covariance[k, k])
        _line(np.flatnonzero(good & wanted), covariance, since, annual[:, :, pixel], climate[:, :, pixel])
        _season(means[count_of_years:], covariance[count_of_years:, count_of_years:], middle, climate[:, :, pixel])


@njit(nogil=True, cache=True)
def _cover(knot: Any, pairs: Any, weight: Any, covered: Any, weights: Any) -> Any:
    """How many pairs of some weight lie over each half month, and the sum of robust weights over each year."""
    one, two, _, _, precision, _ = pairs
    covered[:] = 0
    weights[:] = 0.0
    for j in range(one.size):
        if weight[j] > 0.0:
            first, last = knot[one[j]], knot[two[j]]
            covered[first] += 1
            covered[last + 1] -= 1
            for k in range(first // KNOTS, last // KNOTS + 1):
                weights[k] += weight[j] / precision[j]
    for i in range(1, covered.size):
        covered[i] += covered[i - 1]


@njit(nogil=True, cache=True, error_model="numpy")
def _line(picked: Any, covariance: Any, since: Any, annual: Any, climate: Any) -> Any:
    """Velocity at the intercept and trend: generalised least squares through the annual means with all covariances."""
    count = picked.size
    if count == 0:
        return
    stride = stride_of(count)
    matrix, given = np.zeros(count * stride + VECTOR), np.zeros((2 * count + PIVOTS, 4))
    for a in range(count):
        k = picked[a]
        for b in range(a, count):
            matrix[a * stride + b - a] = covariance[k, picked[b]]
        given[a, 0], given[a, 1], given[a, 2], given[a, 3] = 1.0, since[k], annual[0, k], annual[1, k]
    if np.isnan(factorise(matrix, count, count, stride)):
        return
    weighted = given.copy()
    solve(matrix, count, count, stride, weighted.ravel(), FOUR)
    products = weighted[:count].T @ given[:count]
    s, m, q = products[0, 0], products[0, 1], products[1, 1]
    centre, spread = m / s, q - m * m / s
    between = given[:count, 1].min() <= 0.0 <= given[:count, 1].max()
    misfit, variance = 0.0, 1.0 / s
    for c in range(2):
        mean = products[0, 2 + c] / s
        climate[0, c] = mean
        if count > 1:
            slope = (products[1, 2 + c] - m * mean) / spread
            climate[2, c] = slope
            if between:
                climate[0, c] = mean - slope * centre
            misfit += products[2 + c, 2 + c] - s * mean**2 - spread * slope**2
    if count > 1 and between:
        variance += centre**2 / spread
    if count > 2:
        # Years that lie off the line by more than their errors make the line less certain.
        variance *= max(1.0, misfit / (2 * (count - 2)))
    climate[1, 0] = climate[1, 1] = np.sqrt(variance)


@njit(nogil=True, cache=True, error_model="numpy")
def _season(means: Any, covariance: Any, flow: Any, climate: Any) -> Any:
    """Amplitude, its error and the day of the maximum: the annual harmonic of walk and sinusoid together.

    Along the median velocity: v0 may be small, or beyond a surge.
    """
    length = np.hypot(flow[0], flow[1])
    x, y = flow[0] / length, flow[1] / length
    climate[2, 2] = climate[2, 0] * x + climate[2, 1] * y
    for c in range(3):
        if c < 2:
            cosine, sine = means[0, c], means[1, c]
        else:
            cosine, sine = means[0, 0] * x + means[0, 1] * y, means[1, 0] * x + means[1, 1] * y
        size = np.hypot(sine, cosine)
        variance = cosine**2 * covariance[0, 0] + 2 * sine * cosine * covariance[0, 1] + sine**2 * covariance[1, 1]
        climate[3, c], climate[4, c] = size, np.sqrt(variance) / size
        climate[5, c] = np.arctan2(sine, cosine) / OMEGA % JULIAN_YEAR
