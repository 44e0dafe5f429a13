"""Pairs predicted from other pairs: the one score that needs neither truth nor stakes."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..errors import ParameterError
from ..invert import Screening, invert
from ._scores import Float, coverage

_DEFAULT = Screening()
_DAY = np.timedelta64(86400, "s")


def pairs_hold_out(
    velocity: xr.Dataset,
    fraction: float = 0.2,
    seed: int = 0,
    *,
    dt_max: float = 128.0,
    span: tuple[float, float] = (0.02, 0.96),
    method: str = "adaptive",
    options: Any = None,
    screening: Screening | None = _DEFAULT,
) -> dict[str, float]:
    """Invert some of the pairs and predict the others, each over exactly its own interval.

    All pairs between the same two dates (UTC) are held out together: tiles that overlap repeat a pair, and a repeated
    pair would predict itself.

    Parameters
    ----------
    velocity : xr.Dataset
        As for `ogive.invert`. All its pixels are scored, each with all windows in memory: select some.
    fraction : float
        Share of the date pairs held out.
    seed : int
        Of the draw.
    dt_max : float
        Longest baseline scored [day]; held out are all. 128: longer pairs decorrelate and say little of the truth.
    span : (float, float)
        Quantiles of the first dates within which a scored pair begins and ends, away from the ends of the series.
    method, options, screening
        As in `ogive.invert`.

    Returns
    -------
    dict
        `pairs_training`, `pairs_held_out` (repeats included), `count` of the values scored, `predicted` (share of the
        valid ones held out in range), `median` and `p75` of the length of the vector difference [meter/year], and
        `coverage_68`, `coverage_95` of the components with the sum of the variances of prediction and held-out pair.
        NaN without any value. The held-out pairs carry their own noise and outliers: compare methods, not numbers.

    Raises
    ------
    ParameterError
        `fraction` is not between 0 and 1, or nothing is left to invert or to score.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> score = pairs_hold_out(velocity_cube("500")[0].isel(y=[3, 6], x=[5]))
    >>> score["pairs_held_out"], score["predicted"], score["median"] < 40
    (100.0, 1.0, True)
    """
    if not 0 < fraction < 1:
        raise ParameterError("fraction", rule="must lie between 0 and 1", value=fraction, fix="use 0.2")
    velocity = velocity.transpose("mid_date", ...)
    t1, t2 = (velocity[f"acquisition_date_img{k}"].values.astype("M8[ns]") for k in (1, 2))
    held_out = draw(t1, t2, fraction, seed)
    if held_out.all() or not held_out.any():
        raise ParameterError("velocity", rule="needs more date pairs", value=t1.size, fix="use a larger cube")
    # Quantiles of integers, because those of dates are not defined.
    first, last = (np.quantile(t1.astype(np.int64), q) for q in span)
    inside = (t1.astype(np.int64) >= first) & (t2.astype(np.int64) <= last) & ((t2 - t1) / _DAY <= dt_max)
    scored = held_out & inside
    if not scored.any():
        raise ParameterError("dt_max, span", rule="leave no held-out pair to score", value=(dt_max, span))
    intervals, number = np.unique(np.stack([t1, t2], 1)[scored], axis=0, return_inverse=True)
    training = velocity.isel(mid_date=~held_out)
    series = invert(training, method=method, every=intervals, options=options, screening=screening).compute()
    one = velocity[["vx", "vy", "vx_error", "vy_error"]].isel(mid_date=scored).compute()
    difference = [_pairs(one, c) - _windows(series, c, number) for c in ("vx", "vy")]
    sigma = [np.hypot(_pairs(one, c), _windows(series, c, number)) for c in ("vx_error", "vy_error")]
    observed = np.isfinite(_pairs(one, "vx")) & np.isfinite(_pairs(one, "vy"))
    good = np.isfinite(difference[0]) & np.isfinite(difference[1])
    length = np.hypot(*(d[good] for d in difference))
    median, p75 = np.percentile(length, (50, 75)) if length.size else (np.nan, np.nan)
    return {
        "pairs_training": float((~held_out).sum()),
        "pairs_held_out": float(held_out.sum()),
        "count": float(good.sum()),
        "predicted": float(good.sum() / observed.sum()) if observed.any() else float("nan"),
        "median": float(median),
        "p75": float(p75),
        **coverage(*(np.concatenate([a[good] for a in both]) for both in (difference, sigma))),
    }


def draw(t1: NDArray[np.datetime64], t2: NDArray[np.datetime64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which pairs are held out: all or none of those between the same two dates.

    Examples
    --------
    >>> t1 = np.array(["2020-01-01T10:20:07", "2020-01-01T10:20:31", "2020-01-06T10:20:07"], "M8[s]")
    >>> draw(t1, t1 + np.timedelta64(10, "D"), 0.5, seed=0).tolist()
    [True, True, False]
    """
    days = np.stack([t1, t2], 1).astype("M8[D]")
    dates, number = np.unique(days, axis=0, return_inverse=True)
    chosen = np.random.default_rng(seed).permutation(len(dates)) < round(fraction * len(dates))
    return np.asarray(chosen[number.ravel()], bool)


def _pairs(one: xr.Dataset, name: str) -> Float:
    """A variable of the held-out pairs as (mid_date, y, x); errors may have no y and x."""
    values = one[name].broadcast_like(one["vx"]).transpose("mid_date", "y", "x").values
    return np.asarray(values, np.float64)


def _windows(series: xr.Dataset, name: str, number: NDArray[np.int64]) -> Float:
    """The same of the prediction, one window for each pair."""
    return np.asarray(series[name].values[number.ravel()], np.float64)
