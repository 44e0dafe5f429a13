"""The adaptive estimator: cumulative displacement on regular knots, robust, with the smoothness chosen by the data.

An image pair measures a displacement between two dates, not a velocity at one. For the cumulative displacement P(t),
piecewise linear between knots, a pair is a row with at most four non-zeros, so the normal matrix is banded (half-
bandwidth = the longest pair in knots) and a pixel costs a few band factorisations:

1. start from the component-wise median velocity;
2. re-weight (two Huber passes, then Tukey) with *one* weight per pair for both components: one factorisation;
3. once, choose the strength kappa of the random walk of the velocity by the marginal likelihood (evidence);
4. solve with the final weights; window means, their sigma and the effective number of pairs come from that solution.

Not modelled: errors shared by all pairs of one image (the sigma is too small where they dominate), a seasonal harmonic
in the same system, and screening of decorrelated long pairs, which robust weights do not replace: drop those pairs
before, by position: `velocity.isel(mid_date=(velocity.date_dt <= 180).values)`.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .. import flags
from .._median import median
from ..errors import ParameterError
from ..grid import YEAR_DAYS
from ._banded import FASTMATH, factorise, inverse_form, solve
from ._observations import Observations

Float = NDArray[np.float64]

RAYLEIGH_MEDIAN = 1.1774
"""Median of the length of a 2-D standard normal vector: turns a median residual length into a sigma."""
SCALE_FLOOR = 1e-6
"""Smallest robust scale: a consistent network has residuals of zero."""
MEMORY_DAYS = 30.0
"""kappa is the relative change of velocity over the square root of this many days."""
_TOO_FEW, _GAP = np.uint16(flags.TOO_FEW_PAIRS), np.uint16(flags.GAP)


@dataclass(frozen=True)
class AdaptiveOptions:
    """Constants of the adaptive estimator; none needs tuning to a glacier.

    Parameters
    ----------
    knot_spacing : float
        Days between knots. 10: with 5, 10 and 15 the error is the same, the cost falls with the spacing.
    min_pairs : int
        Fewer valid pairs at a pixel give NaN. 10: below, the scale of the residuals cannot be told from the walk.
    huber : float
        Huber constant of the first passes [sigma]. 1.5: 96 % efficient on Gaussian errors in one component.
    tukey : float
        Tukey constant of the later passes [sigma]; residuals beyond get weight 0. 5: a little
        above the usual 4.685 (95 % efficient in one component), because the length of two components is longer.
    huber_passes : int
        2: the redescending weights need a start that outliers no longer pull.
    max_passes : int
        Most passes of the robust loop. 10: the loop has usually stopped before.
    tolerance : float
        Stop when the mean change of the weights is below. 0.005: more passes move nothing that the sigma can see.
    kappas : tuple of float
        Candidates of the relative velocity change per square root of 30 days. 0.03 is a
        glacier without seasons, 2 a surge; steps of 2, because averaging over neighbouring candidates brings no gain.
    start_kappa : float
        Used before the choice. 0.25: the middle of the candidates, a strong season.
    slowest : float
        Median speeds below count as this one in the prior [meter/year]. 20: keeps the prior of static ground proper.
    min_count : float
        A window whose sum of weights is below is a gap. 1.5: a window that one pair alone covers cannot be checked; on
        the synthetic glacier such windows have an RMSE of 30 m/yr, those with more at most 12.
    """

    knot_spacing: float = 10.0
    min_pairs: int = 10
    huber: float = 1.5
    tukey: float = 5.0
    huber_passes: int = 2
    max_passes: int = 10
    tolerance: float = 0.005
    kappas: tuple[float, ...] = field(default=(0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0))
    start_kappa: float = 0.25
    slowest: float = 20.0
    min_count: float = 1.5

    def __post_init__(self) -> None:
        positive = ("knot_spacing", "min_pairs", "huber", "tukey", "tolerance", "start_kappa", "slowest")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ParameterError(f"AdaptiveOptions.{name}", rule="must be positive", value=getattr(self, name))
        if not self.kappas or min(self.kappas) <= 0:
            raise ParameterError("AdaptiveOptions.kappas", rule="needs positive candidates", value=self.kappas)
        if self.max_passes < self.huber_passes + 2 or self.huber_passes < 0:
            raise ParameterError(
                "AdaptiveOptions.max_passes", rule="must be at least huber_passes + 2", value=self.max_passes
            )


def adaptive(observations: Observations, edges: Float, options: AdaptiveOptions) -> dict[str, NDArray[np.generic]]:
    """Window-mean velocities of many pixels.

    Parameters
    ----------
    observations : Observations
        N pairs at P pixels.
    edges : (W, 2) float64
        Start and end of each window [day], on the same axis as the dates.
    options : AdaptiveOptions

    Returns
    -------
    dict
        `vx`, `vy`, `vx_error`, `vy_error`, `count` (W, P) float32 and `flag` (W, P) uint16; `kappa`, `residual` (P,)
        float32, `n_pairs`, `n_rejected` (P,) uint32. Velocities in meter/year; `residual` is the robust residual
        scale in units of the given errors (1 = the errors are right); `count` is the sum of the robust weights of the
        pairs that overlap a window. The error is the same for both components, because they share weights.

    Notes
    -----
    Regularised displacement inversion with a Gaussian random-walk prior of the velocity, iteratively re-weighted;
    the prior strength maximises the marginal likelihood (MacKay 1992, doi:10.1162/neco.1992.4.3.415). The sigma is
    that of the posterior, by one forward substitution per window, hence exact for windows of any length.

    Examples
    --------
    >>> start = np.arange(0.0, 200.0, 10.0)
    >>> speed = np.full((20, 1), 100.0)
    >>> pairs = Observations(start, start + 30, speed, -speed, np.full((20, 1), 5.0), np.full((20, 1), 5.0))
    >>> series = adaptive(pairs, np.array([[30.0, 60.0]]), AdaptiveOptions())
    >>> series["vx"].round(3).tolist(), series["vy"].round(3).tolist()
    ([[100.0]], [[-100.0]])
    """
    o = observations
    first = np.floor(o.t1.min())
    intervals = max(int(np.ceil((o.t2.max() - first) / options.knot_spacing)), 2)
    span = (first, np.ceil(o.t2.max()))
    knots, coefficients = design(o.t1, o.t2, first, options.knot_spacing, intervals)
    ends = [_locate(edges[:, k], first, options.knot_spacing, intervals) for k in (0, 1)]
    window_knots = np.stack([ends[0][0], ends[1][0]], 1)
    fractions = np.stack([ends[0][1], ends[1][1]], 1)
    inside = (edges[:, 0] >= span[0]) & (edges[:, 1] <= span[1])
    windows, pixels = len(edges), o.vx.shape[1]
    out = {name: np.full((windows, pixels), np.nan, np.float32) for name in ("vx", "vy", "vx_error", "count")}
    flag = np.zeros((windows, pixels), np.uint16)
    scales = np.full((2, pixels), np.nan, np.float32)
    counts = np.zeros((2, pixels), np.uint32)
    c = options
    constants = (c.knot_spacing, c.huber, c.tukey, c.tolerance, c.start_kappa, c.slowest / YEAR_DAYS, c.min_count)
    passes = (c.min_pairs, c.huber_passes, c.max_passes)
    _pixels(
        (o.t1, o.t2, o.vx, o.vy, o.ex, o.ey),
        (knots, coefficients, intervals),
        (edges, window_knots, fractions, inside),
        (constants, passes, np.array(options.kappas)),
        (out["vx"], out["vy"], out["vx_error"], out["count"], flag, scales, counts),
    )
    return {
        **out,
        "vy_error": out["vx_error"].copy(),
        "flag": flag,
        "kappa": scales[0],
        "residual": scales[1],
        "n_pairs": counts[0],
        "n_rejected": counts[1],
    }


def _locate(t: Float, first: float, spacing: float, intervals: int) -> tuple[NDArray[np.int64], Float]:
    """Knot interval and fraction inside it, so that P(t) = (1 - f) P[i] + f P[i + 1]."""
    u = (t - first) / spacing
    i = np.clip(np.floor(u), 0, intervals - 1).astype(np.int64)
    return i, u - i


def design(
    t1: Float, t2: Float, first: float, spacing: float, intervals: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of the design matrix: knots (N, 4) ascending and their coefficients (N, 4).

    Coefficients that fall on the same knot are added; knot 0, where P = 0, gets coefficient 0.

    Examples
    --------
    >>> knots, c = design(np.array([12.0]), np.array([25.0]), 0.0, 10.0, 3)
    >>> knots.tolist(), c.round(1).tolist()
    ([[1, 2, 2, 3]], [[-0.8, 0.3, 0.0, 0.5]])
    """
    i1, f1 = _locate(t1, first, spacing, intervals)
    i2, f2 = _locate(t2, first, spacing, intervals)
    knots = np.stack([i1, i1 + 1, i2, i2 + 1], 1)
    c = np.stack([f1 - 1, -f1, 1 - f2, f2], 1)
    same, next_ = i1 == i2, i1 + 1 == i2
    c[same, 0] += c[same, 2]
    c[same, 1] += c[same, 3]
    c[same, 2:] = 0
    c[next_, 1] += c[next_, 2]
    c[next_, 2] = 0
    c[knots == 0] = 0
    return knots, c


@njit(nogil=True, cache=True)
def _pixels(data: Any, rows: Any, windows: Any, settings: Any, out: Any) -> Any:
    """Loop over pixels: gather the valid pairs, fit, read the windows. Tuples as made in `adaptive`."""
    t1, t2, vx, vy, ex, ey = data
    knots, coefficients, n = rows
    constants, passes, _ = settings
    pairs, pixels = vx.shape
    widest = 1
    for j in range(pairs):
        widest = max(widest, knots[j, 3] - knots[j, 0])
    widest = min(max(widest, 2), n - 1)
    use = np.empty(pairs, np.int64)
    d = np.empty((2, pairs))  # observed displacements [m]
    sigma, weight, omega, rho, scratch = (
        np.empty(pairs),
        np.empty(pairs),
        np.empty(pairs),
        np.empty(pairs),
        np.empty(pairs),
    )
    normal, band = np.empty(n * (widest + 1)), np.empty(n * (widest + 1))
    rhs, p, g = np.empty((2, n)), np.empty((2, n)), np.empty(n)
    for pixel in range(pixels):
        count, width = 0, 2
        for j in range(pairs):
            x, y = vx[j, pixel], vy[j, pixel]
            a, b = ex[j, pixel % ex.shape[1]], ey[j, pixel % ey.shape[1]]
            if np.isfinite(x) and np.isfinite(y) and np.isfinite(a * b) and a > 0 and b > 0:
                years = (t2[j] - t1[j]) / YEAR_DAYS
                use[count] = j
                d[0, count], d[1, count] = x * years, y * years
                sigma[count] = np.sqrt(0.5 * (a * a + b * b)) * years
                width = max(width, knots[j, 3] - knots[j, 0])
                count += 1
        width = min(width, n - 1) + 1
        out[6][0, pixel] = count
        if count < passes[0]:
            out[4][:, pixel] = _TOO_FEW
            continue
        scale, kappa = _fit(
            (t1, t2, knots, coefficients, use[:count]),
            (d, sigma, weight, omega, rho, scratch),
            (normal[: n * width].reshape(n, width), band[: n * width].reshape(n, width), rhs, p),
            settings,
        )
        if not np.isfinite(scale):
            out[4][:, pixel] = _TOO_FEW
            continue
        out[5][0, pixel], out[5][1, pixel] = kappa, scale
        for j in range(count):
            if omega[j] == 0.0:
                out[6][1, pixel] += 1
        _read_windows(
            windows,
            (t1, t2, use[:count], omega),
            (band[: n * width].reshape(n, width), p, g, scale),
            constants[6],
            (out, pixel),
        )


@njit(nogil=True, cache=True)
def _read_windows(windows: Any, observed: Any, solution: Any, min_count: Any, target: Any) -> Any:
    """Window means, sigma and effective number of pairs of one pixel."""
    edges, window_knots, fractions, inside = windows
    t1, t2, use, omega = observed
    band, p, g, scale = solution
    out, pixel = target
    n = band.shape[0]
    for w in range(edges.shape[0]):
        count = 0.0
        for j in range(use.size):
            if t1[use[j]] < edges[w, 1] and t2[use[j]] > edges[w, 0]:
                count += omega[j]
        out[3][w, pixel] = count
        if not inside[w] or count < min_count:
            out[4][w, pixel] = _GAP
            continue
        g[:] = 0.0
        for end in range(2):
            sign = 2.0 * end - 1.0
            i, f = window_knots[w, end], fractions[w, end]
            if i > 0:
                g[i - 1] += sign * (1.0 - f)
            g[i] += sign * f
        to_year = YEAR_DAYS / (edges[w, 1] - edges[w, 0])
        vx, vy = 0.0, 0.0
        for i in range(n):
            vx += g[i] * p[0, i]
            vy += g[i] * p[1, i]
        first = max(window_knots[w, 0] - 1, 0)
        out[0][w, pixel], out[1][w, pixel] = vx * to_year, vy * to_year
        out[2][w, pixel] = scale * np.sqrt(inverse_form(band, g, first)) * to_year


@njit(nogil=True, cache=True)
def _fit(design: Any, work: Any, matrices: Any, settings: Any) -> Any:
    """The robust loop of one pixel; leaves P, the factorised band and the weights, all of the same pass.

    Returns the robust scale (NaN: the matrix is singular) and the kappa chosen.
    """
    t1, t2, _, _, use = design
    d, sigma, weight, omega, rho, scratch = work
    normal, band, rhs, p = matrices
    constants, passes, kappas = settings
    spacing, huber, tukey, tolerance, start_kappa, slowest, _ = constants
    count = use.size
    middle = np.empty(2)
    for c in range(2):
        for j in range(count):
            scratch[j] = d[c, j] / (t2[use[j]] - t1[use[j]])
        middle[c] = median(scratch, count)
    speed = max(np.hypot(middle[0], middle[1]), slowest)
    # The prior variance of one velocity step is (kappa speed)^2 spacing / 30 d; the penalty acts on second
    # differences of P, which are velocity steps times the spacing.
    unit = MEMORY_DAYS / (speed * speed * spacing**3)
    for j in range(count):
        days = t2[use[j]] - t1[use[j]]
        rho[j] = np.hypot(d[0, j] - middle[0] * days, d[1, j] - middle[1] * days) / sigma[j]
    scale = _scale(rho, scratch, count)
    for j in range(count):
        omega[j] = 1.0 / max(1.0, rho[j] / (huber * scale))
    kappa, damping = start_kappa, 1.0
    for turn in range(passes[2]):
        _assemble(design, d, sigma, omega, weight, normal, rhs)
        if np.isnan(_solve(normal, band, rhs, p, damping * unit / kappa**2)):
            return np.nan, kappa
        _residuals(design, d, sigma, p, rho)
        scale = _scale(rho, scratch, count)
        change = 0.0
        for j in range(count):
            z = rho[j] / scale
            if turn < passes[1]:
                new = 1.0 / max(1.0, z / huber)
            elif z < tukey:
                new = (1.0 - (z / tukey) ** 2) ** 2
            else:
                new = 0.0
            change += abs(new - omega[j])
            omega[j] = new
        # Inflated errors must not over-smooth the early passes: the redescending weights would reject the signal
        # and never recover. Hence min(1, s)^2 until kappa is chosen.
        damping = min(1.0, scale) ** 2 if turn <= passes[1] else scale**2
        if turn == passes[1] + 1:
            _assemble(design, d, sigma, omega, weight, normal, rhs)
            kappa = _choose(design, (d, sigma, weight, rho), matrices, (scale, unit), kappas)
        if turn >= passes[1] + 3 and change < tolerance * count:
            break
    _assemble(design, d, sigma, omega, weight, normal, rhs)
    if np.isnan(_solve(normal, band, rhs, p, scale**2 * unit / kappa**2)):
        return np.nan, kappa
    return scale, kappa


@njit(nogil=True, cache=True)
def _scale(rho: Any, scratch: Any, count: Any) -> Any:
    scratch[:count] = rho[:count]
    return max(median(scratch, count) / RAYLEIGH_MEDIAN, SCALE_FLOOR)


@njit(nogil=True, cache=True, fastmath=FASTMATH)
def _assemble(design: Any, d: Any, sigma: Any, omega: Any, weight: Any, normal: Any, rhs: Any) -> Any:
    """Normal matrix (without the prior) and right-hand sides from the weights."""
    _, _, knots, coefficients, use = design
    normal[:] = 0.0
    rhs[:] = 0.0
    for j in range(use.size):
        weight[j] = omega[j] / (sigma[j] * sigma[j])
        if weight[j] == 0.0:
            continue
        row = use[j]
        for a in range(4):
            ca = coefficients[row, a] * weight[j]
            if ca == 0.0:
                continue
            i = knots[row, a] - 1  # unknown 0 belongs to knot 1
            rhs[0, i] += ca * d[0, j]
            rhs[1, i] += ca * d[1, j]
            for b in range(a, 4):
                if coefficients[row, b] != 0.0:
                    normal[i, knots[row, b] - 1 - i] += ca * coefficients[row, b]


@njit(nogil=True, cache=True, fastmath=FASTMATH)
def _solve(normal: Any, band: Any, rhs: Any, p: Any, strength: Any) -> Any:
    """P of both components for a prior strength; leaves the factorised band. Returns log det H or NaN."""
    n = band.shape[0]
    band[:] = normal
    band[0, 0] += 4.0 * strength  # the first second difference is -2 P1 + P2, because P0 = 0
    band[0, 1] -= 2.0 * strength
    band[1, 0] += strength
    for k in range(n - 2):
        band[k, 0] += strength
        band[k, 1] -= 2.0 * strength
        band[k, 2] += strength
        band[k + 1, 0] += 4.0 * strength
        band[k + 1, 1] -= 2.0 * strength
        band[k + 2, 0] += strength
    log_det = factorise(band)
    p[:] = rhs
    solve(band, p[0])
    solve(band, p[1])
    return log_det


@njit(nogil=True, cache=True, fastmath=FASTMATH)
def _residuals(design: Any, d: Any, sigma: Any, p: Any, rho: Any) -> Any:
    """Normalised residual lengths."""
    _, _, knots, coefficients, use = design
    for j in range(use.size):
        row = use[j]
        x, y = d[0, j], d[1, j]
        for a in range(4):
            c = coefficients[row, a]
            if c != 0.0:
                x -= c * p[0, knots[row, a] - 1]
                y -= c * p[1, knots[row, a] - 1]
        rho[j] = np.sqrt(x * x + y * y) / sigma[j]


@njit(nogil=True, cache=True)
def _choose(design: Any, work: Any, matrices: Any, scales: Any, kappas: Any) -> Any:
    """The kappa with the largest evidence, weights and scale frozen."""
    d, sigma, weight, rho = work
    normal, band, rhs, p = matrices
    scale, unit = scales
    n, count = band.shape[0], design[4].size
    best, chosen = -np.inf, kappas[0]
    for kappa in kappas:
        strength = scale**2 * unit / kappa**2
        log_det = _solve(normal, band, rhs, p, strength)
        _residuals(design, d, sigma, p, rho)
        misfit = 0.0
        for j in range(count):
            misfit += weight[j] * (rho[j] * sigma[j]) ** 2
        rough = 0.0
        for c in range(2):
            rough += (p[c, 1] - 2.0 * p[c, 0]) ** 2
            for k in range(n - 2):
                rough += (p[c, k] - 2.0 * p[c, k + 1] + p[c, k + 2]) ** 2
        evidence = -(misfit + strength * rough) / (2.0 * scale**2) - (log_det - (n - 1) * np.log(strength))
        if evidence > best:
            best, chosen = evidence, kappa
    return chosen
