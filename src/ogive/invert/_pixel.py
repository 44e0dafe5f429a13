"""What estimators of a smooth displacement share: images in time, and the fit of one pixel with the size of its errors.

Knots are regular on an axis of the estimator's choice, days or calendar years; between them lies the displacement less
that of the median velocity.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .._median import median
from ..grid import YEAR_DAYS
from ._banded import PIVOTS, VECTOR, stride_of
from ._observations import Observations
from ._shared import share, signs, unseen
from ._walk import fit, kept_scale, residuals
from .screening import displacement_sigma, gather

Float = NDArray[np.float64]

MEMORY_DAYS = 30.0
"""kappa is the relative change of velocity over the square root of this many days."""


def by_time(o: Observations) -> tuple[Float, tuple[Any, ...], tuple[Float, Float]]:
    """Times of the images, ascending; the pairs as positions in them, with their order; probes for `share`."""
    number = np.concatenate([o.image1, o.image2])
    held, position = np.unique(number, return_inverse=True)
    times = np.bincount(position, np.concatenate([o.t1, o.t2])) / np.bincount(position)
    order = np.argsort(times, kind="stable")
    rank = np.empty(len(held), np.int64)
    rank[order] = np.arange(len(held))
    one, two = rank[position[: len(o.t1)]], rank[position[len(o.t1) :]]
    pairs = (one, two, np.lexsort([o.t2, o.t1, o.source, two, one]), o.source, len(o.sources))
    probes = (np.stack([signs(len(one), k) for k in (0, 1)], 1), np.stack([signs(len(times), k) for k in (2, 3)], 1))
    return times[order], pairs, probes


def locate(t: Float, first: float, spacing: float, intervals: int) -> tuple[NDArray[np.int64], Float]:
    """Knot interval and fraction inside it, so that P(t) = (1 - f) P[i] + f P[i + 1].

    Examples
    --------
    >>> [a.tolist() for a in locate(np.array([5.0, 20.0]), 0.0, 10.0, 2)]
    [[0, 1], [0.5, 1.0]]
    """
    u = (t - first) / spacing
    i = np.clip(np.floor(u), 0, intervals - 1).astype(np.int64)
    return i, u - i


@njit(nogil=True, cache=True, error_model="numpy")
def workspace(network: Any, images: Any, n: Any) -> Any:
    """Arrays of one thread, used for one pixel after the other.

    Parameters
    ----------
    network : (one, two, order, source, sources)
    images : (knot, fraction)
    n : int
        Knot intervals.

    Returns
    -------
    pairs : tuple
        Reasons, positions, images, sources, and six columns of numbers.
    by_image : tuple
        Sums, positions, and the typical variance of an image.
    by_knot : tuple
        Matrices and vectors of the system.
    buffers : tuple
        For `share`, `variances` and `join`.
    """
    one, two, _, _, _ = network
    knot = images[0]
    count, size, widest = one.size, knot.size, 2
    for j in range(count):
        widest = max(widest, knot[two[j]] - knot[one[j]] + 1)
    widest = min(widest, n - 1) + 1
    length, rows = (n + 1) * stride_of(widest) + VECTOR, n + 1 + widest + PIVOTS
    pairs = (
        np.empty(count, np.uint8), np.empty(count, np.int32), np.empty((3, count), np.int32), np.empty((6, count))
    )  # fmt: skip
    by_image = (np.empty((size, 3)), np.empty((size, 2)), np.empty(size))
    by_knot = (np.zeros(length), np.zeros(length), np.zeros(2 * rows), np.zeros(2 * rows), np.zeros(2 * rows), n)
    buffers = (np.zeros(VECTOR * rows), np.empty(VECTOR * size), np.empty(VECTOR * size), np.empty(VECTOR * size))
    return pairs, by_image, by_knot, buffers, np.zeros(4 * rows)


@njit(nogil=True, cache=True, error_model="numpy")
def fit_pixel(data: Any, pixel: Any, network: Any, images: Any, probes: Any, settings: Any, space: Any) -> Any:
    """Gather the pairs of a pixel, fit, and measure its errors.

    Parameters
    ----------
    data : tuple
        `Observations.arrays`.
    settings : (constants, passes, kappas, rules)
    space : tuple
        From `workspace`.

    Returns
    -------
    pairs, work, system : tuple
        As `fit` takes and leaves them; pairs of the same images and source are one.
    middle : (x, y)
        Median velocity [meter/year].
    scale, share, kappa, unit : float
        Of the residuals (NaN: too few pairs, or singular), of errors that come with images, smoothness, strength.
    valid, count : int
        Pairs with a velocity and an error; those that may enter.
    longest : float
        Longest baseline let in [day].
    """
    t1, t2, vx, vy, _, _, _ = data
    image1, image2, order, source, sources = network
    constants, passes, kappas, rules = settings
    (reasons, use, numbers, columns), (sums, at, typical), (normal, band, rhs, p, best, n), buffers, _ = space
    knot, spacing, slowest = images[0], constants[0], constants[5]
    valid, entered, longest = gather(data, pixel, rules, reasons, columns[0])
    count, width = 0, 2
    if entered >= passes[0]:
        for s in range(order.size):
            j = order[s]
            if reasons[j] == 0:
                use[count] = s
                columns[4, count], columns[5, count] = vx[j, pixel], vy[j, pixel]
                count += 1
    columns[0, :count] = columns[4, :count]
    x = median(columns[0], count) if count else 0.0
    columns[0, :count] = columns[5, :count]
    y = median(columns[0], count) if count else 0.0
    entries, repeats, count = count, 0, 0
    for m in range(entries):
        j = order[use[m]]
        years = (t2[j] - t1[j]) / YEAR_DAYS
        a, b = displacement_sigma(data, rules, j, pixel)
        precision, dx, dy = 2.0 / (a * a + b * b), (columns[4, m] - x) * years, (columns[5, m] - y) * years
        k = count - 1
        if k >= 0 and numbers[0, k] == image1[j] and numbers[1, k] == image2[j] and numbers[2, k] == source[j]:
            # Overlapping tiles repeat a pair of images. That is one witness still: means, not sums.
            repeats += 1
            columns[3, k] += (precision - columns[3, k]) / repeats
            columns[4, k] += (dx - columns[4, k]) / repeats
            columns[5, k] += (dy - columns[5, k]) / repeats
            continue
        use[count], repeats = use[m], 1
        numbers[0, count], numbers[1, count], numbers[2, count] = image1[j], image2[j], source[j]
        columns[3, count], columns[4, count], columns[5, count] = precision, dx, dy
        width = max(width, knot[image2[j]] - knot[image1[j]] + 1)
        count += 1
    if count < passes[0]:
        count = 0
    width = min(width, n - 1) + 1
    pace = max(np.hypot(x, y) / YEAR_DAYS, slowest)
    # The prior variance of one velocity step is (kappa speed)^2 spacing / 30 d; the penalty acts on second
    # differences of P, which are velocity steps times the spacing.
    unit = MEMORY_DAYS / (pace * pace * spacing**3)
    pairs = (
        numbers[0, :count], numbers[1, :count], columns[4, :count], columns[5, :count], columns[3, :count],
        numbers[2, :count],
    )  # fmt: skip
    work = (columns[0], columns[1], columns[2], sums, at)
    system = (normal, band, rhs, p, best, n, width, stride_of(width))
    scale, part, kappa = np.nan, 0.0, np.nan
    if count:
        scale, kappa, _ = fit(images, pairs, work, system, (constants, passes, kappas, unit, sources))
    if np.isfinite(scale):
        residuals(images, pairs, work, system)
        scale, kept = kept_scale(columns[1], columns[0], columns[2], count)
        part, freedom = share(images, pairs, work, system, (probes[0], probes[1], use, *buffers), scale, typical)
        # The fit has taken its degrees of freedom out of the residuals.
        scale *= np.sqrt(kept / max(kept - freedom, 0.5 * kept))
        part += unseen(scale)
    return (pairs, work, system), (x, y), (scale, part, kappa, unit), (valid, entered, longest)
