"""The robust loop of the adaptive estimator at one pixel, compiled.

A pair is the difference of the positions of two images, and a position lies between two knots. So everything per pair
is done with positions of images, and knots are met once per image: sums over the pairs of an image first, then their
share in its two knots. Displacements are relative to the median velocity, which the prior does not see.
"""

from typing import Any

import numpy as np
from numba import njit

from .._median import median
from ._banded import FASTMATH, factorise, solve

TWO = (0, 0)
"""Right-hand sides of a solve: x and y."""
RAYLEIGH_MEDIAN = 1.1774
"""Median of the length of a 2-D standard normal vector: turns a median residual length into a sigma."""
SCALE_FLOOR = 1e-3
"""Smallest robust scale: a consistent network has residuals of zero, and months without pairs still need a prior that
does not drown in rounding."""
MIN_SOURCE = 20
"""Pairs of one source at a pixel from which its own error scale can be told."""


@njit(nogil=True, cache=True, error_model="numpy")
def fit(images: Any, pairs: Any, work: Any, system: Any, settings: Any) -> Any:
    """Leave the solution, its factorised matrix and its weights, all of the same pass.

    Parameters
    ----------
    images : (knot, fraction)
        Position of every image: P = (1 - fraction) P[knot] + fraction P[knot + 1].
    pairs : (one, two, dx, dy, precision, source)
        Images of the pairs that may enter, displacements [m] less the median velocity, 1 / sigma^2, data source.
    work : (weight, rho, scratch, sums, at)
        To be filled: weights [1/m^2], which are robust weights times precision, normalised residuals; sums and
        positions by image.
    system : (normal, band, rhs, p, best, n, width, stride)
        Matrices of n + 1 knots, the first of which is fixed.
    settings : (constants, passes, kappas, unit, sources)
        `unit` is the strength of the prior for kappa = 1.

    Returns
    -------
    scale, kappa, strength : float
        Robust scale of the residuals (NaN: the matrix is singular), smoothness, strength of the prior.
    """
    one, _, dx, dy, precision, source = pairs
    weight, rho, scratch, _, _ = work
    constants, (_, huber_passes, max_passes), kappas, unit, sources = settings
    _, huber, tukey, tolerance, kappa, _, _ = constants
    count = one.size
    for j in range(count):
        rho[j] = np.sqrt((dx[j] * dx[j] + dy[j] * dy[j]) * precision[j])
    scale = _scale(rho, scratch, count)
    reweigh(rho[:count], precision, weight[:count], scale, huber, 0.0)
    strength = unit / kappa**2
    for turn in range(max_passes):
        # The pass that chose kappa has left its solution.
        if turn != huber_passes + 2:
            assemble(images, pairs, work, system)
            if np.isnan(solve_walk(system, strength)):
                return np.nan, kappa, strength
        residuals(images, pairs, work, system)
        if sources > 1 and turn in (huber_passes - 1, huber_passes + 1):
            _balance(source, precision, rho, scratch, sources)
        scale = _scale(rho, scratch, count)
        change = reweigh(rho[:count], precision, weight[:count], scale, huber, 0.0 if turn < huber_passes else tukey)
        # Inflated errors must not over-smooth the early passes: the redescending weights would reject the signal
        # and never recover. Hence min(1, s)^2 until kappa is chosen.
        strength = unit / kappa**2 * (min(1.0, scale) if turn <= huber_passes else scale) ** 2
        if turn == huber_passes + 1:
            assemble(images, pairs, work, system)
            kappa = _choose(pairs, work, system, kappas, kappa, scale**2, unit)
        if turn >= huber_passes + 3 and change < tolerance:
            break
    assemble(images, pairs, work, system)
    strength = scale**2 * unit / kappa**2
    if np.isnan(solve_walk(system, strength)):
        return np.nan, kappa, strength
    return scale, kappa, strength


@njit(nogil=True, cache=True, error_model="numpy")
def _scale(rho: Any, scratch: Any, count: Any) -> Any:
    scratch[:count] = rho[:count]
    return max(median(scratch, count) / RAYLEIGH_MEDIAN, SCALE_FLOOR)


@njit(nogil=True, cache=True, error_model="numpy")
def kept_scale(rho: Any, weight: Any, scratch: Any, count: Any) -> Any:
    """The scale of the pairs that keep weight, and their number: outliers shift the median of all."""
    kept = 0
    for j in range(count):
        if weight[j] > 0.0:
            scratch[kept] = rho[j]
            kept += 1
    return max(median(scratch, kept) / RAYLEIGH_MEDIAN, SCALE_FLOOR), kept


@njit(nogil=True, cache=True, error_model="numpy")
def _balance(source: Any, precision: Any, rho: Any, scratch: Any, sources: Any) -> Any:
    """Bring the errors of every source to its own scatter, relative to that of all pairs."""
    total = _scale(rho, scratch, source.size)
    for number in range(sources):
        count = 0
        for j in range(source.size):
            if source[j] == number:
                scratch[count] = rho[j]
                count += 1
        if count < MIN_SOURCE:
            continue
        ratio = max(median(scratch, count) / RAYLEIGH_MEDIAN, SCALE_FLOOR) / total
        for j in range(source.size):
            if source[j] == number:
                precision[j] /= ratio * ratio
                rho[j] /= ratio


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FASTMATH)
def reweigh(rho: Any, precision: Any, weight: Any, scale: Any, huber: Any, tukey: Any) -> Any:
    """Robust weights from residuals (Huber where `tukey` is 0), and the mean change of them."""
    change, inverse = 0.0, 1.0 / scale
    for j in range(np.uint64(rho.size)):
        z = rho[j] * inverse
        left = max(1.0 - (z / tukey) * (z / tukey), 0.0)
        new = left * left if tukey > 0.0 else 1.0 / max(1.0, z / huber)
        change += abs(new - weight[j] / precision[j])
        weight[j] = new * precision[j]
    return change / rho.size


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FASTMATH)
def assemble(images: Any, pairs: Any, work: Any, system: Any) -> Any:
    """Normal matrix (without the prior) and right-hand sides from the weights."""
    knot, fraction = images
    one, two, dx, dy, _, _ = pairs
    weight, _, _, sums, _ = work
    normal, _, rhs, _, _, n, _, stride = system
    normal[: (n + 1) * stride] = 0.0
    rhs[:] = 0.0
    sums[:] = 0.0
    for j in range(one.size):
        w = weight[j]
        if w == 0.0:
            continue
        i, k = one[j], two[j]
        x, y = w * dx[j], w * dy[j]
        sums[i, 0] += w
        sums[i, 1] -= x
        sums[i, 2] -= y
        sums[k, 0] += w
        sums[k, 1] += x
        sums[k, 2] += y
        a, b, f, g = knot[i], knot[k], fraction[i], fraction[k]
        at, wf = a * stride + b - a, w * f
        if b > a + 1:
            normal[at] -= (w - wf) * (1.0 - g)
            normal[at + 1] -= (w - wf) * g
            normal[at + stride - 1] -= wf * (1.0 - g)
            normal[at + stride] -= wf * g
        elif b > a:
            normal[at] -= (w - wf) * (1.0 - g)
            normal[at + 1] -= (w - wf) * g
            normal[at + stride - 1] -= 2.0 * wf * (1.0 - g)
            normal[at + stride] -= wf * g
        else:
            normal[at] -= 2.0 * (w - wf) * (1.0 - g)
            normal[at + 1] -= (w - wf) * g + wf * (1.0 - g)
            normal[at + stride] -= 2.0 * wf * g
    for i in range(knot.size):
        k, f, w = knot[i], fraction[i], sums[i, 0]
        normal[k * stride] += w * (1.0 - f) * (1.0 - f)
        normal[k * stride + 1] += w * f * (1.0 - f)
        normal[(k + 1) * stride] += w * f * f
        for c in range(2):
            rhs[2 * k + c] += (1.0 - f) * sums[i, 1 + c]
            rhs[2 * k + 2 + c] += f * sums[i, 1 + c]


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FASTMATH)
def penalise(band: Any, n: Any, stride: Any, strength: Any) -> Any:
    """Add the prior: second differences of P, the first of which is -2 P1 + P2 because P0 = 0."""
    for k in range(n - 1):
        row = k * stride
        band[row] += strength
        band[row + 1] -= 2.0 * strength
        band[row + 2] += strength
        band[row + stride] += 4.0 * strength
        band[row + stride + 1] -= 2.0 * strength
        band[row + 2 * stride] += strength


@njit(nogil=True, cache=True, error_model="numpy")
def solve_walk(system: Any, strength: Any) -> Any:
    """P of both components for a prior strength; leaves the factorised band. Returns log det H or NaN."""
    normal, band, rhs, p, _, n, width, stride = system
    band[: (n + 1) * stride] = normal[: (n + 1) * stride]
    penalise(band, n, stride, strength)
    log_det = factorise(band[stride:], n, width, stride)
    p[:] = rhs
    p[0] = p[1] = 0.0  # knot 0 is where displacement is counted from
    solve(band[stride:], n, width, stride, p[2:], TWO)
    return log_det


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FASTMATH)
def residuals(images: Any, pairs: Any, work: Any, system: Any) -> Any:
    """Normalised residual lengths."""
    knot, fraction = images
    one, two, dx, dy, precision, _ = pairs
    rho, at, p = work[1], work[4], system[3]
    for i in range(knot.size):
        for c in range(2):
            a, b = p[2 * knot[i] + c], p[2 * knot[i] + 2 + c]
            at[i, c] = a + fraction[i] * (b - a)
    for m in range(np.uint64(one.size)):
        first, second = np.uint64(one[m]), np.uint64(two[m])
        x = dx[m] - (at[second, 0] - at[first, 0])
        y = dy[m] - (at[second, 1] - at[first, 1])
        rho[m] = np.sqrt((x * x + y * y) * precision[m])


@njit(nogil=True, cache=True, error_model="numpy")
def _choose(pairs: Any, work: Any, system: Any, kappas: Any, start: Any, variance: Any, unit: Any) -> Any:
    """The kappa with the largest evidence, weights and scale frozen; leaves its solution.

    The evidence has one maximum, so the search climbs from `start`.
    """
    _, _, dx, dy, _, _ = pairs
    weight = work[0]
    _, _, _, p, best, _, _, _ = system
    power = 0.0
    for j in range(dx.size):
        power += weight[j] * (dx[j] * dx[j] + dy[j] * dy[j])
    chosen = 0
    for k in range(kappas.size):
        if abs(np.log(kappas[k] / start)) < abs(np.log(kappas[chosen] / start)):
            chosen = k
    highest = _evidence(system, variance, variance * unit / kappas[chosen] ** 2, power)
    best[:] = p
    for step in (1, -1):
        moved = False
        while 0 <= chosen + step < kappas.size:
            value = _evidence(system, variance, variance * unit / kappas[chosen + step] ** 2, power)
            if not value > highest:
                break
            highest, chosen, moved = value, chosen + step, True
            best[:] = p
        if moved:
            break
    p[:] = best
    return kappas[chosen]


@njit(nogil=True, cache=True, error_model="numpy")
def _evidence(system: Any, variance: Any, strength: Any, power: Any) -> Any:
    """Log marginal likelihood of both components, but for a constant; -inf where the matrix is singular."""
    _, _, rhs, p, _, n, _, _ = system
    log_det = solve_walk(system, strength)
    if np.isnan(log_det):
        return -np.inf
    # At the solution misfit and roughness together are what the data hold less what the solution explains.
    misfit = power
    for k in range(2, 2 * (n + 1)):
        misfit -= rhs[k] * p[k]
    return -misfit / (2.0 * variance) - (log_det - (n - 1) * np.log(strength))
