"""Annual means, trend and season: the ITS_LIVE composite in its own names, and a robust estimator of the same things.

ITS_LIVE fits one constant per calendar year and one sinusoid by least squares. With 15 % outliers its annual means are
8 - 10 % too slow, and its errors know nothing of it. The robust estimator (`_annual_robust.py`) answers the same
questions with the adaptive fit: joint robust weights for both components, a velocity that may also change within a
year, and errors from the full covariance, that of errors shared by images included. `AnnualOptions(robust=False)` is
the composite itself (`_annual_itslive.py`).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import flags
from ..errors import ParameterError
from ..grid import YEAR_DAYS
from ._annual_itslive import itslive_pixels, waves
from ._annual_robust import KNOTS, SPACING, answers_of, robust_pixels
from ._observations import Method, Observations, Variable
from ._pixel import by_time, locate
from ._season import JULIAN_YEAR, OMEGA
from ._series import COMMON, ONE, RATE, speed
from .adaptive import AdaptiveOptions
from .screening import ITS_LIVE, Screening, rules_of

Float = NDArray[np.float64]

REFERENCE_GROUP = "S2A_S2B"
"""Satellites against which ITS_LIVE judges the others."""
_OF = {"vx": "vx", "vy": "vy", "v": "the velocity along flow"}
_DAY: dict[str, Any] = {"units": "day of year", "grid_mapping": "mapping"}
_CLIMATE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("{}0", "{} at the intercept date, from the line through the annual means", RATE),
    ("{}0_error", "error of {} at the intercept date, 1 sigma", RATE),
    ("d{}_dt", "trend of {}", {"units": "meter/year^2", "grid_mapping": "mapping"}),
    ("{}_amp", "amplitude of the annual harmonic of {}", RATE),
    ("{}_amp_error", "error of the amplitude of {}, 1 sigma", RATE),
    ("{}_phase", "day of the year at which the annual harmonic of {} is largest", _DAY),
)
VARIABLES: dict[str, Variable] = {
    **COMMON,
    **{
        pattern.format(name): Variable("", np.float32, {**attrs, "long_name": long_name.format(_OF[name])})
        for pattern, long_name, attrs in _CLIMATE
        for name in _OF
    },
    "count0": Variable("", np.float32, {**ONE, "long_name": "number of pairs used, middle in the climatology"}),
    "outlier_percent": Variable(
        "",
        np.float32,
        {"units": "percent", "grid_mapping": "mapping", "long_name": "pairs of the climatology that were not used"},
    ),
}
"""What the method returns."""


@dataclass(frozen=True)
class AnnualOptions:
    """How annual means, trend and season are made.

    Parameters
    ----------
    robust : bool
        False: the formulas of ITS_LIVE, for comparison with its composites.
    climatology : (int, int), optional
        First and last year of trend and season; default all whole years of data, or all years if none is
        whole. ITS_LIVE: (2014, 2022).
    intercept : str
        Date of vx0, vy0 and v0, or "middle" of the climatology. Where the annual means do not reach it, these are
        weighted means. ITS_LIVE: "2018-01-01".
    error_offset : float, optional
        Added to the errors of all pairs [meter/year]. Default 0, and 5 if not `robust`, which is what ITS_LIVE adds to
        pairs that were shifted to stable ground (20 if to the slowest quarter of the scene, 100 if not at all).
    inland : bool
        ITS_LIVE only: more than 2 km within the ice Sentinel-2 itself is left out where it doubles the amplitude;
        elsewhere other satellites are left out where they are slower.
    partial : bool
        Robust only: also give years that reach beyond the first or the last image; the rest comes from other years.
    min_pairs : int
        Robust only: fewer pairs give nothing. 10: below, the scale of the residuals is a guess. ITS_LIVE: 30.
    min_months : int
        Robust only: a year with fewer months under accepted pairs is a gap. 6: a polar night is bridged by the
        season of the other years, with a larger error; less is no annual mean.
    min_count : float
        Robust only: a year with a smaller sum of weights is a gap. 1.5: one pair alone cannot be checked.

    Raises
    ------
    ParameterError
        A value that makes no sense.
    """

    robust: bool = True
    climatology: tuple[int, int] | None = None
    intercept: str = "2018-01-01"
    error_offset: float | None = None
    inland: bool = False
    partial: bool = False
    min_pairs: int = 10
    min_months: int = 6
    min_count: float = 1.5

    def __post_init__(self) -> None:
        def check(name: str, good: bool, rule: str) -> None:
            if not good:
                raise ParameterError(f"AnnualOptions.{name}", rule=rule, value=getattr(self, name))

        check("min_pairs", self.min_pairs > 0, "must be positive")
        check("min_months", 1 <= self.min_months <= 12, "must be 1 to 12")
        check("error_offset", self.error_offset is None or self.error_offset >= 0, "must not be negative")
        years = self.climatology
        check("climatology", years is None or years[0] <= years[1], "needs a first and a last year")
        if self.intercept != "middle":
            try:
                date = np.datetime64(self.intercept, "D").astype(str)
            except ValueError:
                date = "NaT"
            check("intercept", date[5:] not in ("", "02-29"), 'must be a date of every year, or "middle"')


def decimal_year(days: Float) -> Float:
    """Calendar year plus the fraction of it that has passed, from days since 1970-01-01.

    As in ITS_LIVE the length of a year is less by one second, so that its last second is the first of the next.

    Examples
    --------
    >>> decimal_year(np.array([0.0, 365.0, 547.5])).round(4).tolist()
    [1970.0, 1971.0, 1971.5]
    """
    year = np.floor(days).astype("M8[D]").astype("M8[Y]")
    start, end = _start(year), _start(year + 1)
    return np.asarray(year.astype(np.int64) + 1970 + (days - start) / (end - start - 1 / 86400), np.float64)


def _start(year: NDArray[np.datetime64]) -> NDArray[np.int64]:
    return year.astype("M8[Y]").astype("M8[D]").astype(np.int64)


def annual(
    observations: Observations, edges: Float, options: AnnualOptions, screening: Screening | None = None
) -> dict[str, NDArray[np.generic]]:
    """Annual means, trend and season of many pixels.

    Parameters
    ----------
    observations : Observations
        N pairs at P pixels.
    edges : (W, 2) float64
        First day of a calendar year and of the next [day since 1970-01-01].
    options : AnnualOptions
    screening : Screening, optional
        Which pairs may enter.

    Returns
    -------
    dict
        `VARIABLES`, in meter/year of 365 d (ITS_LIVE's own formulas: of the calendar year). Errors of the robust
        estimator are calibrated sigmas from the full covariance of the annual means.

    Raises
    ------
    ParameterError
        A window is not a calendar year.

    Notes
    -----
    The composite of ITS_LIVE is described by Greene et al. 2020 (doi:10.5194/tc-14-4365-2020) and Gardner et al. 2024
    (doi:10.5067/JQ6337239C96). The robust estimator re-weights as Huber and Tukey and chooses the smoothness of the
    walk by its marginal likelihood (MacKay 1992, doi:10.1162/neco.1992.4.3.415).

    Examples
    --------
    >>> start = np.arange(17532.0, 18262.0, 20.0)
    >>> e = np.full((start.size, 1), 5.0)
    >>> v = np.full((start.size, 1), 100.0)
    >>> series = annual(Observations(start, start + 40, v, -v, e, e), np.array([[17532.0, 17897.0]]), AnnualOptions())
    >>> series["vx"].round(3).tolist(), series["vy"].round(3).tolist()
    ([[100.0]], [[-100.0]])
    """
    o, c = observations, options
    asked = _calendar_years(edges)
    y1, y2 = decimal_year(o.t1), decimal_year(o.t2)
    first = int(np.floor(y1.min()))
    count = max(int(np.ceil(y2.max())) - first, 1)
    years = np.arange(first, first + count)
    starts = _start((np.arange(first, first + count + 1) - 1970).astype("M8[Y]"))
    inside = (starts[:-1] >= np.floor(o.t1.min())) & (starts[1:] <= np.ceil(o.t2.max()))
    wanted = inside if c.climatology is None else (years >= c.climatology[0]) & (years <= c.climatology[1])
    wanted = wanted if wanted.any() or c.climatology is not None else np.ones(count, bool)
    middle = 0.5 * (y1 + y2)
    chosen = (middle >= years[wanted].min(initial=9999)) & (middle < years[wanted].max(initial=0) + 1)
    pixels = o.vx.shape[1]
    fitted, climate = np.full((7, count, pixels), np.nan), np.full((6, 3, pixels), np.nan)
    flag = np.zeros((count, pixels), np.uint16)
    counts, shares = np.zeros((3, pixels), np.uint32), np.full((2, pixels), np.nan)
    longest = np.full(pixels, np.nan)
    out = (fitted, flag, climate, counts, shares, longest)
    rules = rules_of(screening, o)
    since = _since(years, years[wanted], c.intercept, c.robust)
    table = (inside | c.partial, np.diff(starts).astype(np.float64), since, chosen, wanted)
    if c.robust:
        span = (y1.min(), y2.max())
        if c.climatology is not None:
            span = max(span[0], c.climatology[0]), min(span[1], c.climatology[1] + 1)
        _robust(o, (first, *span), table, c, rules, out)
        _speeds(fitted, climate)
    else:
        sentinel = o.groups.index(REFERENCE_GROUP) if REFERENCE_GROUP in o.groups and len(o.groups) > 1 else -1
        order = np.lexsort((o.group, o.t1, middle))
        offset = 5.0 if c.error_offset is None else c.error_offset
        itslive_pixels(o.arrays, (y1, y2, waves(y1, y2), order, first), table, (offset, c.inland, sentinel, rules), out)
    return _named(out, asked - first)


def _robust(
    o: Observations,
    span: tuple[float, float, float],
    table: tuple[NDArray[Any], ...],
    options: AnnualOptions,
    rules: Any,
    out: tuple[NDArray[Any], ...],
) -> None:
    """Fill `out`; the span is the year of the first knot, and begin and end of the season."""
    if options.error_offset:
        ex, ey = (np.where(e > 0, e + options.error_offset, e) for e in (o.ex, o.ey))
        o = replace(o, ex=ex, ey=ey)
    times, network, probes = by_time(o)
    first, begin, end = span
    t = (decimal_year(times) - first) * JULIAN_YEAR
    position = np.stack([np.sin(OMEGA * t), -np.cos(OMEGA * t)], 1) / OMEGA
    w = AdaptiveOptions()
    robust_pixels(
        o.arrays,
        network,
        locate(t, 0.0, SPACING, KNOTS * len(table[1])),
        probes,
        (position, *answers_of(table[1], begin - first, end - first)),
        table,
        (
            (SPACING, w.huber, w.tukey, w.tolerance, w.start_kappa, w.slowest / YEAR_DAYS, options.min_count),
            (options.min_pairs, w.huber_passes, w.max_passes),
            np.array(w.kappas),
            rules,
            options.min_months,
        ),
        out,
    )


def _calendar_years(edges: Float) -> NDArray[np.int64]:
    """Which calendar years the windows are."""
    year = np.floor(edges[:, 0]).astype("M8[D]").astype("M8[Y]")
    if not (np.stack([_start(year), _start(year + 1)], 1) == edges).all():
        fix = 'use every="YS", and a start and an end on 1 January'
        raise ParameterError("every", rule="windows of method 'annual' must be whole calendar years", fix=fix)
    return year.astype(np.int64) + 1970


def _since(years: NDArray[np.int64], wanted: NDArray[np.int64], intercept: str, centred: bool) -> Float:
    """Time of each annual mean since the intercept [year].

    An annual mean belongs to the middle of its year. ITS_LIVE puts it at the month and day of the intercept.
    """
    if intercept == "middle":
        half = int(wanted.min(initial=9999) + wanted.max(initial=0) + 1)
        intercept = f"{half // 2}-{'07-02' if half % 2 else '01-01'}"
    date = np.datetime64(intercept, "D").astype(str)
    zero = decimal_year(np.array([np.datetime64(date).astype(np.float64)]))
    if centred:
        return years + 0.5 - zero
    dates = np.array([f"{year:04d}{date[4:]}" for year in years], "M8[D]")
    return decimal_year(dates.astype(np.float64)) - zero


def _speeds(fitted: Float, climate: Float) -> None:
    """Speeds of the annual means and of the intercept, with their errors."""
    fitted[2], fitted[5] = speed(fitted[0], fitted[1], fitted[3], fitted[4])
    climate[0, 2], climate[1, 2] = speed(climate[0, 0], climate[0, 1], climate[1, 0], climate[1, 1])


def _named(out: tuple[NDArray[Any], ...], position: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
    """The variables of the windows asked for, from those of all years of data."""
    fitted, flag, climate, counts, shares, longest = out
    held = (position >= 0) & (position < flag.shape[0])
    # Where a pixel as a whole has no answer, a year beyond the data has none for the same reason.
    gap = np.where((flag & ~np.uint16(flags.GAP)).any(0), flag[0], flags.GAP).astype(np.uint16)
    position = np.where(held, position, 0)
    known = (flag[position] == 0) & held[:, None]
    names = ("vx", "vy", "v", "vx_error", "vy_error", "v_error")
    answers = {name: np.where(known, fitted[i][position], np.nan) for i, name in enumerate(names)}
    return {
        **answers,
        "count": np.where(held[:, None], fitted[6][position], np.where(counts[0] > 0, 0.0, np.nan)),
        "flag": np.where(held[:, None], flag[position], gap),
        **{
            pattern.format(name): climate[q, c]
            for q, (pattern, _, _) in enumerate(_CLIMATE)
            for c, name in enumerate(_OF)
        },
        "count0": shares[0],
        "outlier_percent": shares[1],
        "n_pairs": counts[0],
        "n_rejected": counts[1],
        "n_screened": counts[2],
        "dt_max": longest,
    }


def default_screening(options: AnnualOptions) -> Screening:
    """ITS_LIVE's rules belong to ITS_LIVE's formulas.

    Examples
    --------
    >>> default_screening(AnnualOptions(robust=False)).dt_max
    'itslive'
    """
    return Screening() if options.robust else replace(ITS_LIVE, compare_groups=not options.inland)


ANNUAL = Method(annual, AnnualOptions, VARIABLES, "YS", default_screening)
"""Calendar years."""
