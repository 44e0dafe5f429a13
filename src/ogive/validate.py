"""Validation: numbers that say how good a velocity is, against still ground, against truth, against stakes.

Small pure functions; reports and notebooks put them together. Components are compared, never speeds alone: the speed
of a noisy vector is biased high.
"""

from typing import Any

import numpy as np
import pandas as pd
import pyproj
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from . import grid
from .errors import GridError, ParameterError

_DAY = np.timedelta64(86400, "s")


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
    score["rmse"] = _rms(np.hypot(difference["vx"], difference["vy"]))
    for name, d in difference.items():
        score |= {f"{name}_bias": _mean(d), f"{name}_rmse": _rms(d), f"{name}_nmad": nmad(d)}
    if error_vx is not None:
        sigma = np.concatenate([sigma_vx[good], sigma_vy[good]]) * abs(factor)
        away = np.abs(np.concatenate([difference["vx"], difference["vy"]]))
        known = np.isfinite(sigma)
        for percent, width in (("68", 1.0), ("95", 1.96)):
            score[f"coverage_{percent}"] = _mean((away <= width * sigma)[known].astype(float))
    return score


def _mean(a: NDArray[np.float64]) -> float:
    return float(a.mean()) if a.size else float("nan")


def _rms(a: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(a * a))) if a.size else float("nan")


def gps_velocity(lon: ArrayLike, lat: ArrayLike, time: ArrayLike, *, crs: Any = None) -> pd.DataFrame:
    """Velocity between consecutive positions of a stake or a station.

    Parameters
    ----------
    lon, lat : (N,) array_like
        Positions on WGS 84 [degree]; rows with NaN are left out.
    time : (N,) array_like of dates
        In increasing order.
    crs : optional
        Projected coordinate system of the velocities to compare with: adds x, y [m] of the middle and vx, vy along
        its axes. Projected lengths, as satellite displacements are.

    Returns
    -------
    pd.DataFrame
        N - 1 rows: `t1`, `t2`, `lon`, `lat` (middle), `distance` [m, on the ellipsoid], `azimuth` [degree from north],
        `v` [meter/year of 365 d]; with crs also `x`, `y`, `vx`, `vy`.

    Raises
    ------
    ParameterError
        Fewer than two positions, or times that do not increase.

    Examples
    --------
    >>> table = gps_velocity([0.0, 0.001], [0.0, 0.0], ["2020-01-01", "2020-12-31"])
    >>> round(float(table["v"][0]), 2), round(float(table["azimuth"][0]), 1)
    (111.32, 90.0)
    """
    position = np.stack([np.asarray(lon, np.float64), np.asarray(lat, np.float64)])
    when = pd.DatetimeIndex(np.asarray(time)).values.astype("M8[ns]")
    good = np.isfinite(position).all(0)
    position, when = position[:, good], when[good]
    if when.size < 2:
        raise ParameterError("positions", rule="needs at least two", value=when.size)
    years = (when[1:] - when[:-1]) / _DAY / grid.YEAR_DAYS
    if not (years > 0).all():
        raise ParameterError("time", rule="must increase", fix="sort the positions by time")
    (lon1, lon2), (lat1, lat2) = ((a[:-1], a[1:]) for a in position)
    azimuth, _, distance = pyproj.Geod(ellps="WGS84").inv(lon1, lat1, lon2, lat2)
    table = pd.DataFrame(
        {
            "t1": when[:-1],
            "t2": when[1:],
            "lon": (lon1 + lon2) / 2,
            "lat": (lat1 + lat2) / 2,
            "distance": distance,
            "azimuth": np.asarray(azimuth) % 360,
            "v": distance / years,
        }
    )
    if crs is not None:
        x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(*position)
        table["x"], table["y"] = (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2
        table["vx"], table["vy"] = np.diff(x) / years, np.diff(y) / years
    return table


def stakes(series: xr.Dataset, table: pd.DataFrame) -> pd.DataFrame:
    """Differences between a series and point velocities (stakes, GPS).

    Parameters
    ----------
    series : xr.Dataset
        Result of `ogive.invert`, dims (time, y, x).
    table : pd.DataFrame
        One row per measurement: `x`, `y` in the coordinate system of the series, or `lon`, `lat`; `t1`, `t2`; `vx`,
        `vy` along its axes, or only the speed `v` [meter/year].

    Returns
    -------
    pd.DataFrame
        The index of the table: `vx`, `vy`, `v` of the series in the cell of the stake, averaged over the windows that
        overlap [t1, t2], weighted by the overlap; `covered` (share of the interval with a valid window; 0 off the
        grid); `vx_difference`, `vy_difference`, `v_difference`, series minus stake.

    Raises
    ------
    ParameterError
        A column is missing.

    Examples
    --------
    >>> from ogive.invert import invert
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> series = invert(velocity_cube("100")[0].isel(y=[5], x=[5]), every="90D")
    >>> at = {"x": float(series.x[0]), "y": float(series.y[0]), "t1": "2017-06-01", "t2": "2018-06-01", "v": 200.0}
    >>> stakes(series, pd.DataFrame([at]))["covered"].tolist()
    [1.0]
    """
    components = {"vx", "vy"} <= set(table.columns)
    projected = {"x", "y"} <= set(table.columns)
    for names, there in (("x, y or lon, lat", projected or {"lon", "lat"} <= set(table.columns)),
                         ("t1, t2", {"t1", "t2"} <= set(table.columns)),
                         ("vx, vy or v", components or "v" in table.columns)):  # fmt: skip
        if not there:
            raise ParameterError("table", rule=f"needs columns {names}", value=", ".join(map(str, table.columns)))
    geobox = grid.geobox_of(series)
    if projected:
        x, y = table["x"].to_numpy(float), table["y"].to_numpy(float)
    else:
        transformer = pyproj.Transformer.from_crs("EPSG:4326", str(geobox.crs), always_xy=True)
        x, y = transformer.transform(table["lon"].to_numpy(float), table["lat"].to_numpy(float))
    columns, lines = ~geobox.affine * (np.asarray(x), np.asarray(y))
    bounds = series["time_bnds"].values
    starts, ends = (pd.DatetimeIndex(pd.to_datetime(table[name])).values.astype("M8[ns]") for name in ("t1", "t2"))
    rows = []
    for i, j, t1, t2 in zip(np.floor(lines), np.floor(columns), starts, ends, strict=True):
        if not (0 <= i < series.sizes["y"] and 0 <= j < series.sizes["x"]):
            rows.append((np.nan, np.nan, 0.0))
            continue
        cell = series[["vx", "vy"]].isel(y=int(i), x=int(j)).compute()
        vx, vy = cell["vx"].values.astype(float), cell["vy"].values.astype(float)
        overlap = np.clip((np.minimum(bounds[:, 1], t2) - np.maximum(bounds[:, 0], t1)) / _DAY, 0, None)
        overlap = np.where(np.isfinite(vx) & np.isfinite(vy), overlap, 0.0)
        total = overlap.sum()
        share = total / ((t2 - t1) / _DAY)
        mean = [float((np.nan_to_num(a) * overlap).sum() / total) if total else np.nan for a in (vx, vy)]
        rows.append((mean[0], mean[1], share))
    out = pd.DataFrame(rows, index=table.index, columns=["vx", "vy", "covered"])
    out.insert(2, "v", np.hypot(out["vx"], out["vy"]))
    for name in ("vx", "vy") if components else ():
        out[f"{name}_difference"] = out[name] - table[name]
    out["v_difference"] = out["v"] - (np.hypot(table["vx"], table["vy"]) if components else table["v"])
    return out
