"""Amplitude and phase of the season from the joint model: random walk and sinusoid in one system, compiled.

Afterwards a sinusoid finds only what the smoothness prior has left of it. Here each pair also holds the integral of
a cos + b sin over its interval, without a prior; the band factorisation stays and is bordered by two columns. The
smoothness is chosen again, because a walk beside a sinusoid is stiffer. The amplitude is that of the annual
harmonic of the whole model.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ._banded import VECTOR, factorise, solve
from ._shared import EIGHT, FOUR, to_knots
from ._walk import penalise

Float = NDArray[np.float64]

JULIAN_YEAR = 365.25
OMEGA = 2 * np.pi / JULIAN_YEAR


def harmonic(knots: Float, begin: float = -np.inf, end: float = np.inf) -> Float:
    """Annual cosine and sine [m/day] of a motion on knots [day]: (2, n + 1), to be multiplied with P.

    Least squares from `begin` to `end` together with a constant and a trend.

    Examples
    --------
    >>> knots = np.arange(0.0, 1470.0, 10.0)
    >>> p = 3 * knots + 0.5 * np.sin(OMEGA * knots) / OMEGA
    >>> (harmonic(knots) @ p).round(3) + 0.0
    array([0.5, 0. ])
    """
    edges = np.clip(knots, begin, end)
    used = np.diff(edges) > 0
    start, stop = edges[:-1][used], edges[1:][used]
    part, middle = stop - start, 0.5 * (start + stop)
    damping = np.sinc(OMEGA * part / 2 / np.pi)  # of a mean over an interval
    cosine, sine = damping * np.cos(OMEGA * middle), damping * np.sin(OMEGA * middle)
    root = np.sqrt(part)[:, None]
    rows = root * np.stack([cosine, sine, np.ones_like(middle), middle - middle.mean()], 1)
    weights = np.zeros((2, knots.size - 1))
    weights[:, used] = np.linalg.pinv(rows)[:2] * root[:, 0] / np.diff(knots)[used]
    functional = np.zeros((2, knots.size))
    functional[:, 1:] += weights
    functional[:, :-1] -= weights
    return functional


@njit(nogil=True, cache=True, error_model="numpy")
def season(
    images: Any, pairs: Any, work: Any, system: Any, wave: Any, settings: Any, errors: Any, buffers: Any, out: Any
) -> Any:
    """Fill the first seven of `out`: cosine and sine of x and of y [m/day]; variance, covariance, variance.

    Parameters
    ----------
    wave : (position, functional, beta)
        Integrals of cos and sin at every image (M, 2), `harmonic`, and the unit matrix.
    settings, errors, buffers
        As for `join` and `read`.
    """
    model, means, covariance = np.empty((4, 2)), np.empty((2, 2)), np.empty((2, 2))
    if not join(images, pairs, work, system, wave[0], settings, buffers, model):
        out[:] = np.nan
        return
    read(images, pairs, work, system, wave, errors, buffers, model, means, covariance)
    for h in range(2):
        out[h], out[2 + h] = means[h]
        for c in range(h, 2):
            out[4 + h + c] = covariance[h, c]


@njit(nogil=True, cache=True, error_model="numpy")
def join(images: Any, pairs: Any, work: Any, system: Any, at: Any, settings: Any, buffers: Any, model: Any) -> Any:
    """Fit walk and sinusoid, the walk at least as stiff as alone. Returns whether there is a solution.

    Parameters
    ----------
    at : (M, 2) float64
        Integrals of cos and sin at every image.
    settings : (kappas, kappa, scale, unit)
    buffers : (rhs, columns)
        `columns` is left with Z (2 columns) and H^-1 f, row by row.
    model : (4, 2) float64
        Left with the first row of K, beta of x and y, the second row of K.
    """
    one, two, dx, dy, _, _ = pairs
    weight = work[0]
    _, _, fixed, _, _, n, _, _ = system
    kappas, kappa, scale, unit = settings
    rhs, columns = buffers
    s = np.zeros((2, 4))  # S^T W S and S^T W y
    power, size = 0.0, at.shape[0]
    sums = np.zeros(4 * size)
    for j in range(one.size):
        w = weight[j]
        if w == 0.0:
            continue
        i, k = one[j], two[j]
        a, b = at[k, 0] - at[i, 0], at[k, 1] - at[i, 1]
        s[0, 0] += w * a * a
        s[0, 1] += w * a * b
        s[1, 1] += w * b * b
        s[0, 2] += w * a * dx[j]
        s[0, 3] += w * a * dy[j]
        s[1, 2] += w * b * dx[j]
        s[1, 3] += w * b * dy[j]
        power += w * (dx[j] * dx[j] + dy[j] * dy[j])
        sums[4 * i] -= w * a
        sums[4 * k] += w * a
        sums[4 * i + 1] -= w * b
        sums[4 * k + 1] += w * b
    s[1, 0] = s[0, 1]
    columns[:] = 0.0
    to_knots(images, sums, columns, 4)
    for k in range(1, n + 1):
        columns[4 * k + 2], columns[4 * k + 3] = fixed[2 * k], fixed[2 * k + 1]
    highest = -np.inf
    for index in range(kappas.size - 1, -1, -1):
        if kappas[index] > 1.001 * kappa:  # a kappa from a guide was rounded
            continue
        value = _bordered(system, columns, s, scale**2 * unit / kappas[index] ** 2, scale**2, power, rhs, model)
        if not value > highest:
            break
        highest, kappa = value, kappas[index]
    strength = scale**2 * unit / kappa**2
    found = _bordered(system, columns, s, strength, scale**2, power, rhs, model)
    columns[:] = rhs[: columns.size]
    return np.isfinite(found)


@njit(nogil=True, cache=True, error_model="numpy")
def read(
    images: Any,
    pairs: Any,
    work: Any,
    system: Any,
    wave: Any,
    errors: Any,
    buffers: Any,
    model: Any,
    means: Any,
    covariance: Any,
) -> Any:
    """F linear functionals of walk and sinusoid after `join`, and their covariance.

    Parameters
    ----------
    wave : (position, functional, beta)
        Integrals of cos and sin at every image (M, 2); factors of P (F, n + 1), and of the cosine and sine (F, 2).
    errors : (scale, share, typical)
        After `cap`.
    means : (F, 2) float64
        To be filled, x and y.
    covariance : (F, F) float64
        To be filled, for one component.
    """
    one, two, _, _, _, _ = pairs
    weight, taken = work[0], work[2]
    _, band, _, _, _, n, width, stride = system
    at, functional, beta = wave
    scale, part, typical = errors
    rhs, z = buffers
    size, count = typical.size, functional.shape[0]
    det = model[0, 0] * model[3, 1] - model[0, 1] * model[3, 0]
    left, gain = beta.copy(), np.empty((count, 2))  # beta - Z^T g, and K^-1 of it
    for f in range(count):
        means[f] = 0.0
        for k in range(1, n + 1):
            for c in range(2):
                left[f, c] -= functional[f, k] * z[4 * k + c]
                means[f, c] += functional[f, k] * z[4 * k + 2 + c]
        for c in range(2):
            means[f, c] += left[f, 0] * model[1 + c, 0] + left[f, 1] * model[1 + c, 1]
        gain[f, 0] = (model[3, 1] * left[f, 0] - model[0, 1] * left[f, 1]) / det
        gain[f, 1] = (model[0, 0] * left[f, 1] - model[3, 0] * left[f, 0]) / det
    response = np.empty((size, count))
    for start in range(0, count, VECTOR):
        lanes = min(VECTOR, count - start)
        rhs[:] = 0.0
        for k in range(1, n + 1):
            for lane in range(lanes):
                rhs[VECTOR * k + lane] = functional[start + lane, k]
        solve(band[stride:], n, width, stride, rhs[VECTOR:], EIGHT)
        for lane in range(lanes):
            f = start + lane
            for g in range(count):
                total = left[f, 0] * gain[g, 0] + left[f, 1] * gain[g, 1]
                for k in range(1, n + 1):
                    total += functional[g, k] * rhs[VECTOR * k + lane]
                covariance[f, g] = scale**2 * total
            for k in range(1, n + 1):
                rhs[VECTOR * k + lane] -= gain[f, 0] * z[4 * k] + gain[f, 1] * z[4 * k + 1]
        _respond(images, rhs, at, gain[start : start + lanes], response[:, start : start + lanes])
    if part == 0.0:
        return
    sums, change = np.zeros((size, count)), np.empty(count)
    for j in range(one.size):
        if weight[j] == 0.0:
            continue
        for f in range(count):
            change[f] = response[two[j], f] - response[one[j], f]
            sums[one[j], f] -= weight[j] * change[f]
            sums[two[j], f] += weight[j] * change[f]
        _add_square(covariance, change, taken[j])
    for i in range(size):
        _add_square(covariance, sums[i], part * typical[i])


@njit(nogil=True, cache=True, error_model="numpy")
def _respond(images: Any, knots: Any, at: Any, gain: Any, response: Any) -> Any:
    """Walk and sinusoid of each functional at the images."""
    knot, fraction = images
    for i in range(knot.size):
        k = VECTOR * knot[i]
        for f in range(gain.shape[0]):
            walk = knots[k + f] + fraction[i] * (knots[k + VECTOR + f] - knots[k + f])
            response[i, f] = walk + gain[f, 0] * at[i, 0] + gain[f, 1] * at[i, 1]


@njit(nogil=True, cache=True, error_model="numpy")
def _add_square(matrix: Any, vector: Any, factor: Any) -> Any:
    """`matrix` += factor vector vector^T."""
    for f in range(vector.size):
        for g in range(vector.size):
            matrix[f, g] += factor * vector[f] * vector[g]


@njit(nogil=True, cache=True, error_model="numpy")
def _bordered(system: Any, columns: Any, s: Any, strength: Any, variance: Any, power: Any, rhs: Any, model: Any) -> Any:
    """Evidence of the joint model; leaves Z and H^-1 f in `rhs`, beta of x and y in `model`."""
    normal, band, _, _, _, n, width, stride = system
    band[: (n + 1) * stride] = normal[: (n + 1) * stride]
    penalise(band, n, stride, strength)
    log_det = factorise(band[stride:], n, width, stride)
    if np.isnan(log_det):
        return np.nan
    rhs[: columns.size] = columns
    solve(band[stride:], n, width, stride, rhs[4:], FOUR)
    k = s.copy()
    misfit = power
    for row in range(4, 4 * (n + 1), 4):
        for c in range(2):
            for d in range(4):
                k[c, d] -= columns[row + c] * rhs[row + d]
            misfit -= columns[row + 2 + c] * rhs[row + 2 + c]
    det = k[0, 0] * k[1, 1] - k[0, 1] * k[1, 0]
    if not det > 0.0:
        return np.nan
    for c in range(2):
        model[1 + c, 0] = (k[1, 1] * k[0, 2 + c] - k[0, 1] * k[1, 2 + c]) / det
        model[1 + c, 1] = (k[0, 0] * k[1, 2 + c] - k[1, 0] * k[0, 2 + c]) / det
        misfit -= model[1 + c, 0] * k[0, 2 + c] + model[1 + c, 1] * k[1, 2 + c]
    model[0, 0], model[0, 1], model[3, 0], model[3, 1] = k[0, 0], k[0, 1], k[1, 0], k[1, 1]
    return -misfit / (2.0 * variance) - (log_det + np.log(det) - (n - 1) * np.log(strength))
