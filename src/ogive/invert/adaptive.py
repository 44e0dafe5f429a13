"""The adaptive estimator: cumulative displacement on regular knots, robust, with the smoothness chosen by the data.

An image pair measures a displacement between two dates, not a velocity at one. For the cumulative displacement P(t),
piecewise linear between knots, a pair is a row with at most four non-zeros, so the normal matrix is banded (half-
bandwidth = the longest pair in knots) and a pixel costs a few band factorisations:

1. start from the component-wise median velocity;
2. re-weight (two Huber passes, then Tukey) with *one* weight per pair for both components: one factorisation; errors
   of several data sources are brought to the scatter of each;
3. once, choose the strength kappa of the random walk of the velocity by the marginal likelihood (evidence);
4. solve with the final weights; window means, displacements and the effective number of pairs come from that solution;
5. estimate from the residuals how much of the error is shared by all pairs of one image, and give the sigma of the
   solution under such errors;
6. fit random walk and sinusoid together for amplitude and phase of the season.

Not modelled: decorrelated long pairs, which robust weights cannot outvote; `Screening` keeps them out.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .. import flags
from ..errors import ParameterError
from ..grid import YEAR_DAYS
from ._guide import together
from ._observations import Method, Observations, Variable
from ._pixel import by_time, fit_pixel, locate, workspace
from ._season import JULIAN_YEAR, OMEGA, harmonic, season
from ._series import COMMON, ONE, RATE, speed
from ._shared import variances
from .screening import Screening, rules_of

Float = NDArray[np.float64]

_TOO_FEW, _GAP, _SCREENED = (np.uint16(bit) for bit in (flags.TOO_FEW_PAIRS, flags.GAP, flags.SCREENED))

_LENGTH: dict[str, Any] = {"units": "meter", "grid_mapping": "mapping"}
_DAY: dict[str, Any] = {"units": "day of year", "grid_mapping": "mapping"}
_SINCE = "since the start of the first window, at the end of the window"

VARIABLES: dict[str, Variable] = {
    **COMMON,
    "dx": Variable("t", np.float32, {**_LENGTH, "long_name": f"displacement along x {_SINCE}"}),
    "dy": Variable("t", np.float32, {**_LENGTH, "long_name": f"displacement along y {_SINCE}"}),
    "d_error": Variable("t", np.float32, {**_LENGTH, "long_name": "error of dx and of dy, 1 sigma"}),
    "kappa": Variable("", np.float32, {**ONE, "long_name": "relative change of velocity per square root of 30 days"}),
    "residual": Variable("", np.float32, {**ONE, "long_name": "robust scale of the residuals, in given errors"}),
    "shared": Variable(
        "", np.float32, {**ONE, "long_name": "share of the variance of a pair that comes with its two images"}
    ),
    "v_amp": Variable("", np.float32, {**RATE, "long_name": "amplitude of the season along flow"}),
    "vx_amp": Variable("", np.float32, {**RATE, "long_name": "amplitude of the season of vx"}),
    "vy_amp": Variable("", np.float32, {**RATE, "long_name": "amplitude of the season of vy"}),
    "v_amp_error": Variable("", np.float32, {**RATE, "long_name": "error of v_amp, vx_amp and vy_amp, 1 sigma"}),
    "v_phase": Variable("", np.float32, {**_DAY, "long_name": "day of the maximum of the season along flow"}),
    "vx_phase": Variable("", np.float32, {**_DAY, "long_name": "day of the maximum of the season of vx"}),
    "vy_phase": Variable("", np.float32, {**_DAY, "long_name": "day of the maximum of the season of vy"}),
}
"""What the method returns."""
_ALONG, _FIXED = ("vx", "vy", "vx_error", "count", "dx", "dy", "d_error"), ("kappa", "residual", "shared", "dt_max")
_COUNTS = ("n_pairs", "n_screened", "n_rejected")


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
        Stop when the mean change of the weights is below. 0.02: with 0.005 nothing changes that truth can see.
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
    surge : float
        No season where kappa is at least this. 0.5: the surge of the synthetic glacier; its seasons reach 0.25.
    season_years : float
        No season is given for data of fewer years. 1.5: below, a trend passes for a season.
    """

    knot_spacing: float = 10.0
    min_pairs: int = 10
    huber: float = 1.5
    tukey: float = 5.0
    huber_passes: int = 2
    max_passes: int = 10
    tolerance: float = 0.02
    kappas: tuple[float, ...] = field(default=tuple(0.25 * 2 ** (k / 2) for k in range(-10, 7)))
    start_kappa: float = 0.25
    slowest: float = 20.0
    min_count: float = 1.5
    surge: float = 0.5
    season_years: float = 1.5

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


def adaptive(
    observations: Observations, edges: Float, options: AdaptiveOptions, screening: Screening | None = None
) -> dict[str, NDArray[np.generic]]:
    """Window-mean velocities of many pixels.

    Parameters
    ----------
    observations : Observations
        N pairs at P pixels.
    edges : (W, 2) float64
        Start and end of each window [day], on the same axis as the dates.
    options : AdaptiveOptions
    screening : Screening, optional
        Which pairs may enter.

    Returns
    -------
    dict
        `VARIABLES`. Velocities in meter/year; `residual` is the robust residual scale in units of the given errors
        (1 = the errors are right); `count` is the sum of the robust weights of the pairs that overlap a window. The
        error is the same for both components, because they share weights.

    Notes
    -----
    Regularised displacement inversion with a Gaussian random-walk prior of the velocity, iteratively re-weighted;
    the prior strength maximises the marginal likelihood (MacKay 1992, doi:10.1162/neco.1992.4.3.415). The sigma is
    that of the posterior with errors shared by images, exact for windows of any length.

    Examples
    --------
    >>> start = np.arange(0.0, 200.0, 10.0)
    >>> speed = np.full((20, 1), 100.0)
    >>> pairs = Observations(start, start + 30, speed, -speed, np.full((20, 1), 5.0), np.full((20, 1), 5.0))
    >>> series = adaptive(pairs, np.array([[30.0, 60.0]]), AdaptiveOptions())
    >>> series["vx"].round(3).tolist(), series["vy"].round(3).tolist()
    ([[100.0]], [[-100.0]])
    >>> round(float(series["dx"][0, 0]), 2)
    8.22
    """
    o, c = observations, options
    first, last = np.floor(o.t1.min()), np.ceil(o.t2.max())
    intervals = max(int(np.ceil((o.t2.max() - first) / c.knot_spacing)), 2)
    times, network, probes = by_time(o)
    knot, fraction = locate(times, first, c.knot_spacing, intervals)
    windows, pixels = len(edges), o.vx.shape[1]
    # What is read from P: the displacement within every window, then from the first start to every end.
    spans = np.concatenate([edges, np.stack([np.full(windows, edges[0, 0]), edges[:, 1]], 1)])
    defined = ((spans >= first) & (spans <= last)).all(axis=1)
    inside = np.clip(spans, first, first + intervals * c.knot_spacing)
    knots, fractions = locate(inside, first, c.knot_spacing, intervals)
    nodes, entries = _nodes(knots, fractions, intervals)
    along = np.full((len(_ALONG), windows, pixels), np.nan, np.float32)
    fixed, waves = np.full((len(_FIXED), pixels), np.nan, np.float32), np.full((9, pixels), np.nan)
    flag, counts = np.zeros((windows, pixels), np.uint16), np.zeros((3, pixels), np.uint32)
    seasonal = last - first >= c.season_years * JULIAN_YEAR
    _pixels(
        o.arrays,
        network,
        (times, knot, fraction, intervals),
        (spans, knots, fractions, defined),
        (nodes, *entries, knots, fractions),
        probes,
        (np.stack([np.sin(OMEGA * times), -np.cos(OMEGA * times)], 1) / OMEGA,
         harmonic(first + c.knot_spacing * np.arange(intervals + 1)), np.eye(2)),
        (
            (c.knot_spacing, c.huber, c.tukey, c.tolerance, c.start_kappa, c.slowest / YEAR_DAYS, c.min_count),
            (c.min_pairs, c.huber_passes, c.max_passes),
            np.array(c.kappas),
            rules_of(screening, o),
            c.surge if seasonal else 0.0,
            np.asarray(o.kappa, np.float64),
        ),
        (along, fixed, flag, counts, waves),
    )  # fmt: skip
    out: dict[str, NDArray[np.generic]] = {
        **dict(zip(_ALONG, along)), **dict(zip(_FIXED, fixed)), **dict(zip(_COUNTS, counts)), "flag": flag,
        "vy_error": along[2].copy(),
    }  # fmt: skip
    out["v"], out["v_error"] = speed(along[0], along[1], along[2], along[2])
    return out | _seasons(together(waves, o.season))


def _seasons(waves: Float) -> dict[str, NDArray[np.generic]]:
    """Amplitudes and phases from cosine and sine of x, y [m/day], their covariance, and the flow direction."""
    ax, bx, ay, by, variance_a, covariance, variance_b, east, north = waves
    out: dict[str, NDArray[np.generic]] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        length = np.hypot(east, north)
        components = {"v": (east * ax + north * ay, east * bx + north * by), "vx": (ax, bx), "vy": (ay, by)}
        components["v"] = (components["v"][0] / length, components["v"][1] / length)
        for name, (a, b) in components.items():
            size = np.hypot(a, b)
            out[f"{name}_amp"] = (size * YEAR_DAYS).astype(np.float32)
            out[f"{name}_phase"] = (np.arctan2(b, a) / OMEGA % JULIAN_YEAR).astype(np.float32)
            if name == "v":
                variance = (a * a * variance_a + 2 * a * b * covariance + b * b * variance_b) / (size * size)
                out["v_amp_error"] = (np.sqrt(variance) * YEAR_DAYS).astype(np.float32)
    return out


def _nodes(
    knots: NDArray[np.int64], fractions: Float, intervals: int
) -> tuple[tuple[NDArray[np.int64], Float], tuple[NDArray[np.int64], NDArray[np.int64], Float]]:
    """Times from which the displacements between `knots + fractions` (F, 2) can be read, and how.

    The knots around the starts and ends, or these themselves where they are fewer. Returns the nodes as knots and
    fractions, then the entries by node: where those of each begin, the displacement, its factor.

    Examples
    --------
    >>> knots, fractions = np.array([[0, 3], [3, 6]]), np.array([[0.0, 0.5], [0.5, 0.0]])
    >>> (at, fraction), (begin, spans, factors) = _nodes(knots, fractions, 10)
    >>> (at + fraction).tolist(), begin.tolist(), spans.tolist(), factors.tolist()
    ([0.0, 3.5, 6.0], [0, 1, 3, 4], [0, 0, 1, 1], [-1.0, 1.0, -1.0, 1.0])
    """
    at = knots + fractions
    times, around = np.unique(at), np.unique([knots, knots + 1]).astype(float)
    nodes = times if 1 < len(times) < len(around) else around
    before = np.clip(np.searchsorted(nodes, at, side="right") - 1, 0, len(nodes) - 2)
    after = (at - nodes[before]) / (nodes[before + 1] - nodes[before])
    number = np.stack([before, before + 1])
    factors = np.stack([1 - after, after]) * np.array([-1.0, 1.0])
    spans = np.broadcast_to(np.arange(len(at))[:, None], number.shape)
    held = factors != 0
    order = np.argsort(number[held], kind="stable")
    begin = np.searchsorted(number[held][order], np.arange(len(nodes) + 1))
    return locate(nodes, 0.0, 1.0, intervals), (begin, spans[held][order], factors[held][order])


@njit(nogil=True, cache=True, error_model="numpy")
def _pixels(
    data: Any, network: Any, dates: Any, windows: Any, reads: Any, probes: Any, wave: Any, settings: Any, out: Any
) -> Any:
    """Loop over pixels: gather the valid pairs, fit, read the windows. Tuples as made in `adaptive`."""
    times, knot, fraction, n = dates
    constants, passes, kappas, rules, surge, known = settings
    along, fixed, flag, counts, waves = out
    images, min_count = (knot, fraction), constants[6]
    space = workspace(network, images, n)
    (_, _, _, columns), typical, buffers, border = space[0], space[1][2], space[3], space[4]
    spread = np.empty(windows[0].shape[0])
    for pixel in range(flag.shape[1]):
        candidates = known[pixel : pixel + 1] if known[pixel] > 0.0 else kappas
        fitted, middle, errors, seen = fit_pixel(
            data, pixel, network, images, probes, (constants, passes, candidates, rules), space
        )
        (pairs, work, system), (scale, part, kappa, unit), (valid, count, fixed[3, pixel]) = fitted, errors, seen
        counts[0, pixel], counts[1, pixel] = valid, valid - count
        if not np.isfinite(scale):
            flag[:, pixel] = _SCREENED if count < passes[0] <= valid else _TOO_FEW
            continue
        fixed[0, pixel], fixed[1, pixel], fixed[2, pixel] = kappa, scale, 2.0 * part / max(scale, 1.0) ** 2
        for j in range(pairs[0].size):
            if columns[0, j] == 0.0:
                counts[2, pixel] += 1
        variances(images, pairs, work, system, reads, (scale, part, typical), buffers, spread)
        _read(
            windows,
            (times, pairs[0], pairs[1], columns[0], columns[3]),
            (system[3], middle, spread),
            min_count,
            along[:, :, pixel],
            flag[:, pixel],
        )
        if kappa < surge:
            season(
                images,
                pairs,
                work,
                system,
                wave,
                (kappas, kappa, scale, unit),
                (scale, part, typical),
                (buffers[0], border),
                waves[:, pixel],
            )
            waves[7, pixel], waves[8, pixel] = middle


@njit(nogil=True, cache=True, error_model="numpy")
def _read(windows: Any, observed: Any, solution: Any, min_count: Any, along: Any, flag: Any) -> Any:
    """Window means, displacements, their sigma and the effective number of pairs of one pixel."""
    spans, knots, fractions, defined = windows
    times, one, two, weight, precision = observed
    p, middle, spread = solution
    count = flag.size
    begun, ended = np.zeros(times.size + 1), np.zeros(times.size + 1)
    for j in range(one.size):
        omega = weight[j] / precision[j]
        begun[one[j] + 1] += omega
        ended[two[j] + 1] += omega
    for i in range(times.size):
        begun[i + 1] += begun[i]
        ended[i + 1] += ended[i]
    for w in range(count):
        # Pairs begun before the end, less those ended before the start.
        pairs = begun[np.searchsorted(times, spans[w, 1])] - ended[np.searchsorted(times, spans[w, 0], side="right")]
        along[3, w] = pairs if pairs > 1e-9 else 0.0
        if not defined[w] or pairs < min_count:
            flag[w] = _GAP
            continue
        for span in (w, count + w):
            if not defined[span]:
                continue
            days = spans[span, 1] - spans[span, 0]
            to_year = YEAR_DAYS / days if span == w else 1.0
            for c in range(2):
                moved = middle[c] / YEAR_DAYS * days
                for end in range(2):
                    k, f = knots[span, end], fractions[span, end]
                    a, b = p[2 * k + c], p[2 * k + 2 + c]
                    moved += (2 * end - 1) * (a + f * (b - a))
                along[c if span == w else 4 + c, w] = moved * to_year
            along[2 if span == w else 6, w] = np.sqrt(spread[span]) * to_year


ADAPTIVE = Method(adaptive, AdaptiveOptions, VARIABLES, guided=True)
"""Adaptive smoothness; the default."""
