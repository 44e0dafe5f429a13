"""The estimator of TICOI in banded form: cumulative displacement on the days of the images, one coefficient to choose.

Both components are inverted apart. On the sorted days of all images of a pixel the cumulative displacement P solves

    min |W (A P - d)|^2 + coef^2 |mu P - a|^2,

one row of A for each pair (P at the second day less P at the first), one row of mu for each step of the daily
velocity (or each curvature, regularisation "2"), a the steps of a prior velocity or zero. A row has two, three or four
non-zeros, so the normal matrix is banded and a solve is one factorisation. The weights W start from the short pairs
and are then Tukey's, from the residuals of the last solution. Where a pixel has fewer pairs than intervals the first
solution stays. Velocities of windows are differences of a cubic spline through P.

Times are whole days: a window edge at midnight means the images of that day. The displacement before the second day
of images of a pixel is not in the series, because the spline starts there.

The published program cuts baselines to whole days after the difference of the times, so that a second image earlier in
the day than the first loses a day of displacement; here a baseline is the difference of the days. It also averages its
prior over 3 x 3 pixels; here a pixel stands alone, since a value must not depend on the block that it is computed in,
and the prior is noisier. With outliers "1accelnotnull" then needs a filter (`delete_outliers`): on the synthetic cube
of 500 pairs the RMSE of the vector is 62 m/yr without and 11 with "mz_score". Regularisation "directionxy" is left
out: it fixes the velocity along the prior and nothing across it, so an interval without a pair has no solution.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError
from ._observations import Method, Observations, Variable
from ._prior import calendar
from ._series import COMMON, ONE, speed
from ._ticoi import ticoi_pixels
from .screening import Screening, rules_of

Float = NDArray[np.float64]

REGULARISATIONS = {"1": (-1.0, 1.0), "1accelnotnull": (-1.0, 1.0), "2": (1.0, -2.0, 1.0)}
"""Coefficients of the daily velocities of neighbouring intervals in one row of mu."""
FILTERS = (None, "mz_score", "median_angle")

_XCOUNT = "sum of the weights of the pairs over each interval between images, interpolated as a displacement,"
VARIABLES: dict[str, Variable] = {
    **COMMON,
    "xcount_x": Variable("t", np.float32, {**ONE, "long_name": f"{_XCOUNT} x"}),
    "xcount_y": Variable("t", np.float32, {**ONE, "long_name": f"{_XCOUNT} y"}),
    "n_prior": Variable("", np.uint32, {**ONE, "long_name": "number of pairs behind the prior; 0 = none, zero steps"}),
    "passes": Variable("", np.uint8, {**ONE, "long_name": "number of solutions; the most allowed = not converged"}),
}
"""What the method returns."""


@dataclass(frozen=True)
class TicoiOptions:
    """Parameters in the names of TICOI, with its defaults.

    Parameters
    ----------
    coef : float
        Weight of the regularisation [day]. 100; the best value differs by a factor of ten between glaciers.
    regu : str
        "1": velocity changes little; "1accelnotnull": it changes as the prior does; "2": it changes evenly.
    delete_outliers : str, optional
        Drop pairs before: "mz_score" by the modified z-score (3.5) of either component, which also drops a surge;
        "median_angle" by the direction, 45 degrees from the median vector where that is above 10 m/yr, else by the
        speed, 3 standard deviations from the mean.
    detect_temporal_decorrelation : bool
        Only pairs of at most 180 d in the first solution. Where there are none, all.
    apriori_weight : bool
        Weights 1 - (e - min e) / (max e - min e) from the errors e in the first solution; 1 where all are equal.
    apriori_weight_in_second_iteration : bool
        The same weights in all later solutions, on top of those from the residuals.
    threshold_it : float
        Stop when the displacements between images change by less in the mean, in both components [m].
    nb_max_iteration : int
        Most solutions.
    select_baseline : float
        Only shorter pairs make the prior [day].
    t_win, order : int
        Window [day] and degree of the Savitzky-Golay filter of the prior. Where the pairs span fewer days, or where no
        pair is short enough, the steps of the prior are zero, as with "1".
    error_propagation : bool
        Errors, at more than the cost of all else where windows are many. False: NaN.
    min_pairs : int
        Fewer pairs at a pixel give NaN. 10, as in `AdaptiveOptions`.
    min_count : float
        A window whose sum of weights is below is a gap. 1.5, as in `AdaptiveOptions`.

    Examples
    --------
    >>> TicoiOptions(regu="1", delete_outliers="mz_score").coef
    100.0
    """

    coef: float = 100.0
    regu: str = "1accelnotnull"
    delete_outliers: str | None = None
    detect_temporal_decorrelation: bool = True
    apriori_weight: bool = False
    apriori_weight_in_second_iteration: bool = False
    threshold_it: float = 0.1
    nb_max_iteration: int = 10
    select_baseline: float = 180.0
    t_win: int = 90
    order: int = 3
    error_propagation: bool = True
    min_pairs: int = 10
    min_count: float = 1.5

    def __post_init__(self) -> None:
        for name, allowed in (("regu", tuple(REGULARISATIONS)), ("delete_outliers", FILTERS)):
            value = getattr(self, name)
            if value not in allowed:
                rule = f"must be one of {', '.join(map(repr, allowed))}"
                raise ParameterError(f"TicoiOptions.{name}", rule=rule, value=repr(value))
        for name in ("coef", "threshold_it", "nb_max_iteration", "select_baseline", "min_pairs"):
            if not getattr(self, name) > 0:
                raise ParameterError(f"TicoiOptions.{name}", rule="must be positive", value=getattr(self, name))
        if not 0 <= self.order < self.t_win:
            rule = "must hold more days than the degree of the polynomial"
            raise ParameterError("TicoiOptions.t_win", rule=rule, value=self.t_win)


def ticoi(
    observations: Observations, edges: Float, options: TicoiOptions, screening: Screening | None = None
) -> dict[str, NDArray[np.generic]]:
    """Window-mean velocities of many pixels.

    Parameters
    ----------
    observations : Observations
        N pairs at P pixels.
    edges : (W, 2) float64
        Start and end of each window [day], on the same axis as the dates.
    options : TicoiOptions
    screening : Screening, optional
        Which pairs may enter.

    Returns
    -------
    dict
        `VARIABLES`. Velocities in meter/year; `count` is the sum over the pairs that overlap a window of their weights,
        mean of x and y; a pair is rejected where both are 0.

    Notes
    -----
    Charrier et al. (2025), TICOI, doi:10.5194/egusphere-2024-3409; the displacement network and its regularisation:
    Charrier et al. (2022), doi:10.1109/TGRS.2021.3117545. The error of a window with the row g on P is the root of
    g^T N A^T W^2 S W^2 A N g, where N is the inverse normal matrix and S holds the larger of the given variance and
    the squared residual of each pair: what the noise of the pairs does, not what the regularisation smooths away.

    Examples
    --------
    >>> start = np.arange(0.0, 200.0, 10.0)
    >>> speed = np.full((20, 1), 100.0)
    >>> pairs = Observations(start, start + 30, speed, -speed, np.full((20, 1), 5.0), np.full((20, 1), 5.0))
    >>> series = ticoi(pairs, np.array([[30.0, 60.0]]), TicoiOptions())
    >>> series["vx"].round(3).tolist(), series["vy"].round(3).tolist()
    ([[100.0]], [[-100.0]])
    """
    c = options
    network = _network(observations)
    windows, pixels = len(edges), observations.vx.shape[1]
    in_time = {
        name: np.full((windows, pixels), np.nan)
        for name in ("vx", "vy", "vx_error", "vy_error", "count", "xcount_x", "xcount_y")
    }
    flag = np.zeros((windows, pixels), np.uint16)
    counts = {name: np.zeros(pixels, np.uint32) for name in ("n_pairs", "n_screened", "n_rejected", "n_prior")}
    passes, longest = np.zeros(pixels, np.uint8), np.full(pixels, np.nan, np.float32)
    ticoi_pixels(
        (observations.arrays, network, rules_of(screening, observations)),
        calendar(observations, c.select_baseline, c.t_win, c.order),
        (np.ascontiguousarray(edges), *(np.searchsorted(network[2], e, side) for e, side in _sides(edges))),
        (np.array(REGULARISATIONS[c.regu]), c.coef**2, c.threshold_it, c.nb_max_iteration, c.min_pairs, c.min_count),
        (FILTERS.index(c.delete_outliers), c.detect_temporal_decorrelation, c.apriori_weight,
         c.apriori_weight_in_second_iteration, c.regu == "1accelnotnull", c.error_propagation),
        (tuple(in_time.values()), flag, tuple(counts.values()), passes, longest),
    )  # fmt: skip
    v, v_error = speed(*(in_time[name] for name in ("vx", "vy", "vx_error", "vy_error")))
    return {
        **in_time, **counts, "v": v, "v_error": v_error, "flag": flag, "passes": passes, "dt_max": longest,
    }  # fmt: skip


def _sides(edges: Float) -> tuple[tuple[Float, Any], ...]:
    """A pair overlaps a window where its first day is before the end and its second after the start."""
    return (edges[:, 0], "right"), (edges[:, 1], "left")


def _network(o: Observations) -> tuple[NDArray[Any], ...]:
    """Order of the pairs by middle date, positions of their whole days in all days, these days, baselines, ranks.

    Pairs of the same two dates have the same rank: nothing may depend on their order.
    """
    order = np.lexsort((o.t2, o.t1, np.round(o.t1 + o.t2, 6)))
    day1, day2 = np.floor(o.t1), np.floor(o.t2)
    days, positions = np.unique(np.concatenate([day1, day2]), return_inverse=True)
    new = np.diff(o.t1[order], prepend=np.nan) != 0
    new |= np.diff(o.t2[order], prepend=np.nan) != 0
    rank = np.empty(len(order), np.int64)
    rank[order] = np.cumsum(new)
    return order, positions.reshape(2, -1).astype(np.int64), days, day2 - day1, rank


TICOI = Method(ticoi, TicoiOptions, VARIABLES)
"""TICOI's estimator, for comparison and for those who know its parameters."""
