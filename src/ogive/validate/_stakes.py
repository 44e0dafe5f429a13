"""A series against velocities measured on the ice, each over its own interval."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyproj
import xarray as xr
from dask.base import compute
from numpy.typing import NDArray

from .. import flags, grid
from ..errors import ParameterError
from ..invert import METHODS, Screening, invert
from ..invert._series import speed
from ._scores import WIDTH_95, coverage, mean, nmad, rms
from ._tables import INTERVALS, dates, find, need, numbers, read_table

Float = NDArray[np.float64]
Dates = NDArray[np.datetime64]

_DAY = np.timedelta64(86400, "s")
_MODELLED = ("vx", "vy", "vx_error", "vy_error")


def stakes(
    series: xr.Dataset, table: str | Path | pd.DataFrame, *, velocity: xr.Dataset | None = None, cells: int = 1
) -> pd.DataFrame:
    """Differences between a series and point velocities (stakes, GPS).

    Parameters
    ----------
    series : xr.Dataset
        Result of `ogive.invert`, dims (time, y, x).
    table : path or pd.DataFrame
        One row per measurement, columns under the usual spellings: `x`, `y` in the coordinate system of the series,
        or `lon`, `lat` [degree, WGS 84]; `t1`, `t2` (or date1, date2; ISO 8601); `vx`, `vy` along its axes, or only
        the speed `v` [meter/year], or the second position `x1`, `y1` (`lon1`, `lat1`) of a stake that was at `x`, `y`
        first: its velocity then is the way over the time, and its place the middle of the way. If there: `name`, and
        the errors `vx_error`, `vy_error` or `v_error`.
    velocity : xr.Dataset, optional
        What the series was inverted from. Then the cell of each stake is inverted again with the method, options and
        screening of the series, with windows that are exactly the intervals of the stakes: nothing is interpolated.
        Without it, the windows of the series are averaged, weighted by their overlap with [t1, t2].
    cells : int
        Odd side of the square of cells around the stake whose components are averaged; less at the rim of the grid.

    Returns
    -------
    pd.DataFrame
        The index of the table; velocities in meter/year. `name`, `x`, `y`, `t1`, `t2`; the speeds `measured` and
        `modelled` (of the mean vector), `difference` (modelled minus measured) and its `sigma`, from both errors as
        far as they are known; `z` = difference / sigma; `inside_95`; `measured_error`, `modelled_error`; `vx_modelled`,
        `vy_modelled`, and where the stake has components `vx_measured`, `vx_difference`, `vx_sigma`, ... `covered`:
        share of the interval that valid windows, or with `velocity` valid pairs, cover. `reason`: why there is no
        difference, or what leaves a part of the interval uncovered.

    Raises
    ------
    ParameterError
        A column is missing or holds something that is no number or date, `cells` is even, the series does not say
        how it was made. A row without a date or a velocity, with t2 before t1 or off the grid stays, with a reason.

    Notes
    -----
    Errors of windows, and of neighbouring cells, are taken as fully correlated: the sigma of a mean is the mean of the
    sigmas, an upper bound. The windows of a series share pairs and the smoothness prior; cells share chips.
    That a window only partly inside the interval is not its mean there is in no sigma: give `velocity`, which has
    neither weakness.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> velocity = velocity_cube("100")[0].isel(y=[5], x=[5])
    >>> series = invert(velocity, every="90D")
    >>> at = {"x": float(series.x[0]), "y": float(series.y[0]), "date1": "2017-06-01", "date2": "2018-06-01", "v": 220}
    >>> row = stakes(series, pd.DataFrame([at]), velocity=velocity).iloc[0]
    >>> bool(abs(row["difference"]) < 20), float(row["covered"]), row["reason"]
    (True, 1.0, '')
    """
    if cells < 1 or cells % 2 == 0:
        raise ParameterError("cells", rule="must be odd and positive", value=cells, fix="use 1 or 3")
    source = series if velocity is None else velocity
    geobox = grid.geobox_of(source)
    out, measured = _read(table, str(geobox.crs))
    rows, columns, reason = _places(out, geobox)
    found: dict[str, NDArray[Any]] = {name: np.full(len(out), np.nan) for name in _MODELLED}
    found |= {"covered": np.zeros(len(out)), "reason": reason}
    good = np.flatnonzero(reason == "")
    places, place_of = np.unique(np.stack([rows, columns], 1)[good], axis=0, return_inverse=True)
    used = {*_MODELLED, *(("flag",) if velocity is None else ())}
    slim = source.drop_vars([n for n, a in source.data_vars.items() if {"y", "x"} <= set(a.dims) and n not in used])
    # All at once, so that a chunk that holds many stakes is read once.
    blocks = compute(*(_around(slim, int(i), int(j), cells // 2) for i, j in places))
    again = None if velocity is None else _settings(series)
    for number, block in enumerate(blocks):
        these = good[place_of.ravel() == number]
        intervals = np.stack([out[name].to_numpy("M8[ns]")[these] for name in ("t1", "t2")], 1)
        for name, values in _modelled(block, intervals, again).items():
            found[name][these] = values
    return _compared(out, measured, found)


def read_stakes(table: str | Path | pd.DataFrame, crs: str) -> pd.DataFrame:
    """Point velocities under plain names: `name`, `x`, `y` [m], `t1`, `t2`, `v`, `v_error` [meter/year], components.

    Of stakes with two positions also `x0`, `y0`, `x1`, `y1`; `x`, `y` is the middle.

    Parameters
    ----------
    table : path or pd.DataFrame
        As in `stakes`.
    crs : str
        Coordinate system of `x`, `y` in the result, and in the table where it has no `lon`, `lat`.

    Raises
    ------
    ParameterError
        A column is missing or holds something that is no number or date.

    Examples
    --------
    >>> row = {"Stake": "A1", "lon": 9.0, "lat": 45.0, "date1": "2020-06-01", "date2": "2020-09-01", "v": 120}
    >>> read_stakes(pd.DataFrame([row]), "EPSG:32632")[["name", "x", "v"]].values.tolist()
    [['A1', 500000.0, 120.0]]
    """
    out, measured = _read(table, crs)
    return out.assign(**measured)


def _read(table: str | Path | pd.DataFrame, crs: str) -> tuple[pd.DataFrame, dict[str, Float]]:
    """What is known of the stakes: name, place and interval; and the measured velocities with their errors."""
    given = read_table(table)
    x, y = _positions(given, crs, "")
    ends = need(given, "t1, t2", *(list(pair) for pair in INTERVALS if set(pair) <= set(given.columns)))
    components, one = find(given, "vx", "vy"), find(given, "v")
    moved = find(given, "x1", "y1") or find(given, "lon1", "lat1")
    need(given, "vx, vy or v, or x1, y1", components, one, moved)
    name = find(given, "name")
    out = pd.DataFrame({"name": given[name[0]].astype(str) if name else given.index.astype(str)}, index=given.index)
    out["x"], out["y"], out["t1"], out["t2"] = x, y, *(dates(given, c) for c in ends)
    if moved:
        out["x0"], out["y0"], (out["x1"], out["y1"]) = x, y, _positions(given, crs, "1")
        out["x"], out["y"] = (out["x0"] + out["x1"]) / 2, (out["y0"] + out["y1"]) / 2
    unknown = np.full(len(given), np.nan)
    error = numbers(given, *find(given, "v_error")) if find(given, "v_error") else unknown
    if one and not components:
        return out, {"v": numbers(given, *one), "v_error": error}
    if components:
        vx, vy = (numbers(given, c) for c in components)
    else:
        years = (out["t2"].to_numpy() - out["t1"].to_numpy()) / _DAY / grid.YEAR_DAYS
        vx, vy = (((out[f"{c}1"] - out[f"{c}0"]) / years).to_numpy() for c in ("x", "y"))
    errors = find(given, "vx_error", "vy_error")
    ex, ey = (numbers(given, c) for c in errors) if errors else (error, error)
    v, v_error = speed(vx, vy, ex, ey)
    return out, {"vx": vx, "vy": vy, "v": v, "vx_error": ex, "vy_error": ey, "v_error": v_error}


def _positions(given: pd.DataFrame, crs: str, which: str) -> tuple[Float, Float]:
    """x, y of the stakes [m], from columns x, y or lon, lat with this ending."""
    flat, round_ = find(given, f"x{which}", f"y{which}"), find(given, f"lon{which}", f"lat{which}")
    x, y = (numbers(given, c) for c in need(given, f"x{which}, y{which} or lon{which}, lat{which}", flat, round_))
    if not flat:
        x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(x, y)
    return x, y


def _places(stake: pd.DataFrame, geobox: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.object_]]:
    """Row and column of the cell of each stake, and why it cannot be used; "" if it can."""
    x, y = (stake[name].to_numpy(np.float64) for name in ("x", "y"))
    placed = np.isfinite(x) & np.isfinite(y)
    column, row = (np.floor(a) for a in ~geobox.affine @ (np.where(placed, x, np.nan), np.where(placed, y, np.nan)))
    inside = (row >= 0) & (row < geobox.shape.y) & (column >= 0) & (column < geobox.shape.x)
    dated = (stake["t1"].notna() & stake["t2"].notna()).to_numpy()
    ordered = (stake["t1"] < stake["t2"]).to_numpy()
    reasons = ["no position", "off the grid", "no date", "t2 is not later than t1"]
    reason = np.select([~placed, ~inside, ~dated, ~ordered], reasons, "").astype(object)
    return np.where(inside, row, 0).astype(np.int64), np.where(inside, column, 0).astype(np.int64), reason


def _around(source: xr.Dataset, row: int, column: int, reach: int) -> xr.Dataset:
    """The cells around one; at the rim fewer on both sides, so that a steady gradient does not bias their mean."""
    near = {}
    for name, k in (("y", row), ("x", column)):
        half = min(reach, k, source.sizes[name] - 1 - k)
        near[name] = slice(k - half, k + half + 1)
    return source.isel(near).transpose(..., "y", "x")


def _modelled(block: xr.Dataset, intervals: Dates, again: dict[str, Any] | None) -> dict[str, NDArray[Any]]:
    """Velocity, errors, share covered and reason for each interval; from pairs if there is something to invert with."""
    if again is None:
        windows, spans = block, block["time_bnds"].values
        weights = _overlap(spans, intervals)
    else:
        windows, weights = invert(block, every=intervals, **again), np.eye(len(intervals))
        spans = np.stack([block[f"acquisition_date_img{k}"].values for k in (1, 2)], 1)
    valid = (np.isfinite(block["vx"].values) & np.isfinite(block["vy"].values)).any((1, 2))
    return {**_means(windows, weights), "covered": _covered(spans[valid], intervals)}


def _settings(series: xr.Dataset) -> dict[str, Any]:
    """Method, options and screening of a series, as `invert` takes them."""
    try:
        method = series.attrs["method"]
        given = json.loads(series.attrs["parameters"], object_hook=_frozen)
        options = type(METHODS[method].options())
        screening = None if given["screening"] is None else Screening(**given["screening"])
        chosen = options(**{f.name: given[f.name] for f in fields(options)})
    except (KeyError, TypeError, ValueError) as error:
        rule, fix = f"does not say how it was made ({error})", "give the result of ogive.invert, or no velocity"
        raise ParameterError("series", rule=rule, fix=fix) from error
    return {"method": method, "options": chosen, "screening": screening}


def _frozen(options: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples, options know no lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _overlap(spans: Dates, intervals: Dates) -> Float:
    """Common days of each of S intervals with each of T spans, (S, T).

    Examples
    --------
    >>> spans = np.array([["2020-01-01", "2020-01-11"], ["2020-01-11", "2020-01-21"]], "M8[D]")
    >>> _overlap(spans, np.array([["2020-01-09", "2020-01-14"]], "M8[D]")).tolist()
    [[2.0, 3.0]]
    """
    start = np.maximum(intervals[:, None, 0], spans[None, :, 0])
    days: Float = (np.minimum(intervals[:, None, 1], spans[None, :, 1]) - start) / _DAY
    return np.maximum(days, 0)


def _covered(spans: Dates, intervals: Dates) -> Float:
    """Share of each interval that the union of the spans covers.

    Examples
    --------
    >>> spans = np.array([["2020-01-01", "2020-01-16"], ["2020-01-02", "2020-01-05"], ["2020-01-09", "2020-01-11"]])
    >>> _covered(spans.astype("M8[D]"), np.array([["2020-01-01", "2020-01-31"]], "M8[D]")).tolist()
    [0.5]
    """
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reached = np.maximum.accumulate(spans[:, 1])
    first = np.append(True, spans[1:, 0] > reached[:-1])[: len(spans)]
    last = np.append(first[1:], True)[: len(spans)]
    days = _overlap(np.stack([spans[first, 0], reached[last]], 1), intervals).sum(1)
    share: Float = days / ((intervals[:, 1] - intervals[:, 0]) / _DAY)
    return share


def _means(windows: xr.Dataset, weights: Float) -> dict[str, NDArray[Any]]:
    """Weighted means (S,) over cells and windows, and what the windows without a velocity say; weights (S, T)."""
    values = {name: np.asarray(windows[name].values, np.float64) for name in _MODELLED if name in windows}
    cells = np.isfinite(values["vx"]) & np.isfinite(values["vy"])
    valid = cells.any((1, 2))
    used = weights * valid
    total = used.sum(1)
    out: dict[str, NDArray[Any]] = {}
    for name, a in values.items():
        over_cells = np.where(cells, a, 0.0).sum((1, 2)) / np.maximum(cells.sum((1, 2)), 1)
        sums = np.where(used > 0, used * over_cells, 0.0).sum(1)
        out[name] = np.divide(sums, total, out=np.full(total.size, np.nan), where=total > 0)
    bits = windows["flag"].values if "flag" in windows else np.zeros(cells.shape, np.uint16)
    bits = np.where(valid, 0, np.bitwise_or.reduce(bits.reshape(valid.size, -1), 1))
    met = [np.bitwise_or.reduce(bits[row], initial=0) if row.any() else None for row in weights > 0]
    words = ["outside the series" if m is None else ", ".join(flags.explain(m)).replace("_", " ") for m in met]
    return {**out, "reason": np.array(words, object)}


def _compared(out: pd.DataFrame, measured: dict[str, Float], found: dict[str, NDArray[Any]]) -> pd.DataFrame:
    """The table of `stakes`: the speed, the rest, the components."""
    unmeasured = (found["reason"] == "") & np.isnan(measured["v"])
    v, v_error = speed(*(found[name] for name in _MODELLED))
    modelled = {"v": v, "v_error": v_error, **found}
    for name, prefix in (("v", ""), ("vx", "vx_"), ("vy", "vy_")):
        if name in measured:
            out[f"{prefix}measured"], out[f"{prefix}measured_error"] = measured[name], measured[f"{name}_error"]
        out[f"{prefix}modelled"], out[f"{prefix}modelled_error"] = modelled[name], modelled[f"{name}_error"]
        if name in measured:
            out[f"{prefix}difference"] = modelled[name] - measured[name]
            out[f"{prefix}sigma"] = np.hypot(modelled[f"{name}_error"], np.nan_to_num(measured[f"{name}_error"]))
        if name == "v":
            out["z"] = out["difference"] / out["sigma"]
            out["inside_95"] = (out["z"].abs() <= WIDTH_95).astype("boolean").mask(out["z"].isna())
            out["covered"], out["reason"] = (
                found["covered"],
                np.where(unmeasured, "no measured velocity", found["reason"]),
            )
    return out


def summary(table: pd.DataFrame) -> dict[str, float]:
    """What a table of `validate.stakes` says as a whole.

    Parameters
    ----------
    table : pd.DataFrame
        Of `stakes`; select rows before to leave some out, e.g. `table[table["covered"] > 0.9]`.

    Returns
    -------
    dict
        `rows`, `count` (rows with a difference); of the speeds `bias`, `mae`, `rmse`, `nmad` [meter/year], shares
        `coverage_68`, `coverage_95` of the differences within 1 and 1.96 sigma, and the correlation `r`; where the
        stakes have components the same but r of both: `vx_bias`, ... NaN where there is nothing to count.

    Raises
    ------
    ParameterError
        The table is not that of `stakes`.

    Examples
    --------
    >>> columns = {"measured": [10.0, 20.0], "modelled": [11.0, 23.0], "difference": [1.0, 3.0], "sigma": [1.0, 1.0]}
    >>> score = summary(pd.DataFrame(columns))
    >>> score["bias"], score["mae"], score["coverage_68"], score["r"]
    (2.0, 2.0, 0.5, 1.0)
    """
    missing = {"measured", "modelled", "difference", "sigma"} - set(table.columns)
    if missing:
        raise ParameterError(
            "table", rule=f"lacks {', '.join(sorted(missing))}", fix="pass what validate.stakes returns"
        )
    scored = table[np.isfinite(table["difference"])]
    out: dict[str, float] = {"rows": len(table), "count": len(scored)}
    for prefix in ("", "vx_", "vy_"):
        if f"{prefix}difference" not in table:
            continue
        d, sigma = (scored[f"{prefix}{name}"].to_numpy(np.float64) for name in ("difference", "sigma"))
        score = {"bias": mean(d), "mae": mean(np.abs(d)), "rmse": rms(d), "nmad": nmad(d), **coverage(d, sigma)}
        out |= {f"{prefix}{name}": value for name, value in score.items()}
    a, b = scored["measured"].to_numpy(np.float64), scored["modelled"].to_numpy(np.float64)
    out["r"] = float(np.corrcoef(a, b)[0, 1]) if a.size > 1 and np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")
    return out
