"""Scores: how far velocities lie from still ground and from a known truth."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ..errors import GridError, ParameterError

Float = NDArray[np.float64]

WIDTH_95 = 1.96
"""Half width of the 95 % interval of a normal distribution [sigma]."""


def nmad(values: ArrayLike) -> float:
    """Normalised median absolute deviation: 1.4826 median |a - median a|; NaN values do not count.

    Robust standard deviation; NaN without any value (Höhle & Höhle 2009, doi:10.1016/j.isprsjprs.2009.02.003).

    Examples
    --------
    >>> nmad([1.0, 2.0, 3.0, 1000.0, np.nan])
    1.4826
    """
    a = np.asarray(values, np.float64)
    a = a[np.isfinite(a)]
    return 1.4826 * float(np.median(np.abs(a - np.median(a)))) if a.size else float("nan")


def static_ground(velocity: xr.Dataset, mask: xr.DataArray) -> pd.DataFrame:
    """What each pair says of ground that does not move.

    Parameters
    ----------
    velocity : xr.Dataset
        dims (mid_date, y, x). Read one pair at a time.
    mask : xr.DataArray
        bool (y, x), True on stable ground.

    Returns
    -------
    pd.DataFrame
        One row per pair: `pair_id` (if there), `count`, `valid` (share of the stable cells), `vx_median`, `vy_median`,
        `vx_nmad`, `vy_nmad` [meter/year].

    Raises
    ------
    GridError
        The mask has another shape.
    ParameterError
        The mask holds no stable cell.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> velocity, _ = velocity_cube("100")
    >>> table = static_ground(velocity, xr.ones_like(velocity["vx"][0], bool))
    >>> len(table), int(table["count"].max())
    (100, 143)
    """
    shape = (velocity.sizes["y"], velocity.sizes["x"])
    if mask.shape != shape:
        raise GridError("mask", rule=f"must have the shape {shape} of the velocity", value=mask.shape)
    still = np.asarray(mask.values, bool)
    if not still.any():
        raise ParameterError("mask", rule="must hold at least one stable cell", value=0, fix="use ogive.masks.stable")
    rows = []
    for k in range(velocity.sizes["mid_date"]):
        pair = velocity[["vx", "vy"]].isel(mid_date=k).transpose("y", "x").compute()
        vx, vy = pair["vx"].values[still], pair["vy"].values[still]
        good = np.isfinite(vx) & np.isfinite(vy)
        row: dict[str, Any] = {"count": int(good.sum()), "valid": float(good.mean())}
        for name, a in (("vx", vx[good]), ("vy", vy[good])):
            row |= {f"{name}_median": float(np.median(a)) if a.size else np.nan, f"{name}_nmad": nmad(a)}
        rows.append(row)
    table = pd.DataFrame(rows)
    if "pair_id" in velocity.coords:
        table.insert(0, "pair_id", velocity["pair_id"].values)
    return table


def against_truth(
    estimate_vx: ArrayLike,
    estimate_vy: ArrayLike,
    truth_vx: ArrayLike,
    truth_vy: ArrayLike,
    *,
    error_vx: ArrayLike | None = None,
    error_vy: ArrayLike | None = None,
    where: ArrayLike | None = None,
    scale: float | None = None,
) -> dict[str, float]:
    """Differences to a known velocity.

    Parameters
    ----------
    estimate_vx, estimate_vy : array_like
        Estimates, NaN where there is none.
    truth_vx, truth_vy : array_like
        The truth, broadcast against the estimates.
    error_vx, error_vy : array_like, optional
        1 sigma of the estimates; both together add the coverage of the 68 and 95 % intervals.
    where : array_like of bool, optional
        What is scored; default everything.
    scale : float, optional
        Multiplies all differences, e.g. days / 365 / pixel size turns meter/year into pixels.

    Returns
    -------
    dict
        `count`, `valid` (share of the scored cells that have an estimate), `rmse` of the vectors, and per component
        `vx_bias`, `vx_rmse`, `vx_nmad`, ...; with errors `coverage_68`, `coverage_95` over both components. NaN
        without any estimate.

    Raises
    ------
    ParameterError
        Nothing is scored, or only one of the errors is given.

    Examples
    --------
    >>> score = against_truth([3.0, np.nan], [4.0, 1.0], 0.0, 0.0)
    >>> score["rmse"], score["valid"]
    (5.0, 0.5)
    """
    if (error_vx is None) != (error_vy is None):
        raise ParameterError("error_vx, error_vy", rule="must be given together", fix="give both")
    given = (estimate_vx, estimate_vy, truth_vx, truth_vy, *(np.nan if e is None else e for e in (error_vx, error_vy)))
    values = [np.asarray(a, np.float64) for a in given]
    arrays = np.broadcast_arrays(*values, np.asarray(True if where is None else where, bool))
    vx, vy, true_vx, true_vy, sigma_vx, sigma_vy, scored = arrays
    good = scored & np.isfinite(vx + vy + true_vx + true_vy)
    if not scored.any():
        raise ParameterError("where", rule="must select something", value=0)
    factor = 1.0 if scale is None else scale
    difference = {"vx": (vx - true_vx)[good] * factor, "vy": (vy - true_vy)[good] * factor}
    score = {"count": float(good.sum()), "valid": float(good.sum() / scored.sum())}
    score["rmse"] = rms(np.hypot(difference["vx"], difference["vy"]))
    for name, d in difference.items():
        score |= {f"{name}_bias": mean(d), f"{name}_rmse": rms(d), f"{name}_nmad": nmad(d)}
    if error_vx is not None:
        sigma = np.concatenate([sigma_vx[good], sigma_vy[good]]) * abs(factor)
        score |= coverage(np.concatenate([difference["vx"], difference["vy"]]), sigma)
    return score


def coverage(difference: Float, sigma: Float) -> dict[str, float]:
    """Shares of the differences inside the 68 and 95 % intervals of a normal distribution, where sigma is known.

    Examples
    --------
    >>> coverage(np.array([1.0, -1.9, 3.0, 7.0]), np.array([1.0, 1.0, 1.0, np.nan]))
    {'coverage_68': 0.3333333333333333, 'coverage_95': 0.6666666666666666}
    """
    z = np.abs(difference[np.isfinite(sigma)]) / sigma[np.isfinite(sigma)]
    return {"coverage_68": mean(z <= 1.0), "coverage_95": mean(z <= WIDTH_95)}


def mean(a: NDArray[Any]) -> float:
    """Mean of an array, NaN without any value."""
    return float(a.mean()) if a.size else float("nan")


def rms(a: Float) -> float:
    """Root mean square of an array, NaN without any value."""
    return float(np.sqrt(mean(a * a)))
