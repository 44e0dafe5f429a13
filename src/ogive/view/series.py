"""Graphs: speed through time, speed along a line, the network of pairs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .. import flags, grid
from ..errors import ParameterError
from ..export import locate, map_at, median_valid, time_dimension
from . import style
from .maps import time_text

_TRUTH, _STAKE = "#D55E00", "black"


def plot_series(
    series: xr.Dataset,
    points: Mapping[str, tuple[float, float]],
    *,
    pairs: xr.Dataset | None = None,
    truth: xr.Dataset | Mapping[str, pd.Series] | None = None,
    stakes: pd.DataFrame | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Speed through time at points: the series with its 1- and 2-sigma bands, and what lies behind it.

    One panel for each point. Times with an invalid flag (a gap, too few pairs) are shaded and interrupt the line.

    Parameters
    ----------
    series : xr.Dataset
        dims (time, y, x), with `v` or `vx` and `vy`, `v_error` [meter/year], `flag`.
    points : mapping name -> (x, y)
        Map coordinates [m]; each is read from the cell that holds it.
    pairs : xr.Dataset, optional
        The velocity that was inverted: each valid pair is a thin bar from date 1 to date 2 at its speed.
    truth : xr.Dataset or mapping name -> Series, optional
        Known speed [meter/year]: `vx`, `vy` (time, y, x) on the same coordinates, or Series with dates as index.
    stakes : DataFrame, optional
        Measured on the ground: columns `name` (as in `points`), `t1`, `t2`, `v` or `vx`, `vy` and, if known,
        `v_error` [meter/year]; for a table of `validate.stakes` use `stakes_series`.
    path : path, optional
        Save the figure there.

    Raises
    ------
    ParameterError
        No point, a point outside the grid, stakes without the columns.
    """
    rows, columns = locate(series, points)
    if stakes is not None:
        given = set(stakes.columns)
        if not ({"name", "t1", "t2"} <= given and ("v" in given or {"vx", "vy"} <= given)):
            raise ParameterError("stakes", rule="need the columns name, t1, t2 and v or vx, vy", value=sorted(given))
    count = len(points)
    figure = style.new_figure(7.5, 0.9 + 2.1 * count)
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for ax, name, row, column in zip(axes, points, rows, columns):
        tops = [_draw_series(ax, series.isel(y=row, x=column).compute())]
        if pairs is not None:
            tops.append(_draw_pairs(ax, pairs, name, points[name]))
        known = _truth_at(truth, name, points[name])
        if known is not None:
            dates = style.day_number(known.index)
            ax.plot(dates, known.to_numpy(), color=_TRUTH, lw=1.2, ls="--", label="truth", zorder=4)
            tops.append(float(known.max()))
        if stakes is not None:
            tops.append(_draw_stakes(ax, stakes[stakes["name"] == name]))
        finite = [t for t in tops if np.isfinite(t)]
        ax.set_ylim(0, 1.08 * max(finite) if finite and max(finite) > 0 else 1.0)
        ax.set_title(f"{name}", fontsize=9, loc="left")
        ax.grid(color="0.9", lw=0.6)
        ax.tick_params(labelsize=8)
    style.date_axis(axes[-1])
    figure.supylabel(f"Surface speed ({style.SPEED_UNIT})", fontsize=9)
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=len(entries),
        fontsize=8,
        frameon=False,
    )
    return style.save(figure, path)


def _draw_series(ax: Axes, one: xr.Dataset) -> float:
    """Line, bands and shaded gaps; returns the highest speed that the axis must show."""
    v = np.hypot(one["vx"].values, one["vy"].values) if "vx" in one else one["v"].values
    if "flag" in one:
        v = np.where(flags.invalid(one["flag"].values), np.nan, v)
    v = v.astype(np.float64)
    time = style.day_number(one["time"].values)
    top = v
    if "v_error" in one:
        error = one["v_error"].values.astype(np.float64)
        for sigma, alpha in ((2, 0.15), (1, 0.25)):
            low, high = np.maximum(v - sigma * error, 0), v + sigma * error
            label = f"{sigma}-sigma band"
            ax.fill_between(time, low, high, color=style.LINES[0], alpha=alpha, lw=0, zorder=3, label=label)
        top = np.where(np.isfinite(error), v + 2 * error, v)
    # A marker as well: a single time between two gaps has no line.
    ax.plot(time, v, color=style.LINES[0], lw=1.4, marker=".", ms=3.5, label="series", zorder=5)
    edges = _edges(one, time)
    for i, (start, stop) in enumerate(_runs(~np.isfinite(v))):
        label = "no valid speed" if i == 0 else "_"
        ax.axvspan(edges[start, 0], edges[stop - 1, 1], color="0.93", lw=0, zorder=0, label=label)
    ax.set_xlim(edges[0, 0], edges[-1, 1])
    return float(np.nanmax(top)) if np.isfinite(top).any() else np.nan


def _edges(one: xr.Dataset, time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Start and end of each window as matplotlib dates (time, 2): `time_bnds`, or half way to the neighbours."""
    if "time_bnds" in one.variables:
        return style.day_number(one["time_bnds"].values)
    half = np.diff(time) / 2 if time.size > 1 else np.array([0.5])
    return np.stack([time - np.append(half[:1], half), time + np.append(half, half[-1:])], -1)


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open ranges in which mask is True.

    Examples
    --------
    >>> _runs(np.array([True, False, True, True]))
    [(0, 1), (2, 4)]
    """
    steps = np.diff(np.concatenate(([0], mask.astype(np.int8), [0])))
    return [(int(a), int(b)) for a, b in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1))]


def _draw_pairs(ax: Axes, pairs: xr.Dataset, name: str, point: tuple[float, float]) -> float:
    (row,), (column,) = locate(pairs, {name: point})
    used = [n for n in ("vx", "vy", "flag", "acquisition_date_img1", "acquisition_date_img2") if n in pairs.variables]
    one = pairs[used].isel(y=row, x=column).compute()
    v = np.hypot(one["vx"].values, one["vy"].values).astype(np.float64)
    valid = np.isfinite(v) & (~flags.invalid(one["flag"].values) if "flag" in one else True)
    if not valid.any():
        return np.nan
    start, stop = (style.day_number(one[f"acquisition_date_img{i}"].values)[valid] for i in (1, 2))
    v = v[valid]
    lines = [[(a, s), (b, s)] for a, b, s in zip(start, stop, v)]
    alpha = float(np.clip(12 / v.size**0.6, 0.08, 0.6))
    ax.add_collection(LineCollection(lines, colors="0.35", linewidths=0.6, alpha=alpha, zorder=2, label="pairs"))
    # One pair in ten may be wild and must not squash the series.
    return float(np.percentile(v, 90))


def _truth_at(
    truth: xr.Dataset | Mapping[str, pd.Series] | None, name: str, point: tuple[float, float]
) -> pd.Series | None:
    if truth is None:
        return None
    if not isinstance(truth, xr.Dataset):
        return truth.get(name)
    one = truth[["vx", "vy"]].sel(x=point[0], y=point[1], method="nearest").compute()
    return pd.Series(np.hypot(one["vx"].values, one["vy"].values), index=pd.DatetimeIndex(one["time"].values))


def _draw_stakes(ax: Axes, stakes: pd.DataFrame) -> float:
    if stakes.empty:
        return np.nan
    start, stop = (style.day_number(pd.DatetimeIndex(pd.to_datetime(stakes[c]))) for c in ("t1", "t2"))
    parts = [stakes[c].to_numpy(np.float64) for c in (("v",) if "v" in stakes else ("vx", "vy"))]
    v = np.hypot(*parts) if len(parts) == 2 else parts[0]
    error = stakes["v_error"].to_numpy(np.float64) if "v_error" in stakes else None
    middle, half = (start + stop) / 2, (stop - start) / 2
    kind: dict[str, Any] = {"fmt": "none", "ecolor": _STAKE, "elinewidth": 1.5, "capsize": 2.0, "zorder": 6}
    ax.errorbar(middle, v, xerr=half, yerr=error, label="stakes", **kind)
    return float(np.nanmax(v + (error if error is not None else 0)))


def pair_network(
    pairs: pd.DataFrame | xr.Dataset, *, title: str | None = None, path: str | Path | None = None
) -> Figure:
    """The pairs in time: one bar from date 1 to date 2 for each, a tick for each scene.

    The number of networks matters for inversion: velocities of two unconnected networks share no image, so only
    regularisation ties them together.

    Parameters
    ----------
    pairs : DataFrame or xr.Dataset
        Table of pairs (`t1`, `t2`), or a velocity.
    title : str, optional
        Default: number of scenes, pairs and networks.
    path : path, optional
        Save the figure there.

    Raises
    ------
    ParameterError
        No pairs.
    """
    names = ("acquisition_date_img1", "acquisition_date_img2") if isinstance(pairs, xr.Dataset) else ("t1", "t2")
    dates = np.stack([np.asarray(pairs[n].values, "datetime64[ns]") for n in names])
    count = dates.shape[1]
    if not count:
        raise ParameterError("pairs", rule="needs at least one pair", fix="widen the rules of make_pairs")
    scenes, index = np.unique(dates, return_inverse=True)
    index = index.reshape(2, count)
    graph = coo_array((np.ones(count), (index[0], index[1])), shape=(scenes.size, scenes.size))
    networks = int(connected_components(graph, directed=False)[0])
    days = (dates[1] - dates[0]) / np.timedelta64(1, "D")
    row = np.empty(count)
    row[np.lexsort((days, dates[0]))] = np.arange(1, count + 1)
    figure = style.new_figure(7.5, float(np.clip(1.6 + 0.12 * count, 2.6, 7.0)))
    ax = figure.add_subplot()
    x = style.day_number(dates)
    bars = LineCollection(
        [[(x[0, i], row[i]), (x[1, i], row[i])] for i in range(count)],
        array=days,
        cmap="cividis_r",
        linewidths=float(np.clip(300 / count, 0.6, 4.0)),
    )
    ax.add_collection(bars)
    low = -0.04 * count - 1.5
    ax.plot(style.day_number(scenes), np.full(scenes.size, low), "|", color="black", ms=8, label="scenes")
    margin = 0.02 * float(np.ptp(x)) or 1.0
    ax.set_xlim(float(x.min()) - margin, float(x.max()) + margin)
    ax.set_ylim(low - 0.03 * count - 1, count + 1)
    style.date_axis(ax)
    ax.set_ylabel("Pair, by date of image 1", fontsize=9)
    ax.set_yticks([t for t in MaxNLocator(5, integer=True).tick_values(1, count) if 1 <= t <= count])
    bar = figure.colorbar(bars, ax=ax, pad=0.02)
    bar.set_label("Separation (days)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    plural = "network" if networks == 1 else "separate networks"
    ax.set_title(
        title if title is not None else f"{scenes.size} scenes, {count} pairs, {networks} {plural}", fontsize=10
    )
    return style.save(figure, path)


def sample_bilinear(values: NDArray[Any], row: NDArray[Any], column: NDArray[Any]) -> NDArray[np.float64]:
    """Values between pixel centres; NaN outside and where a pixel that contributes is NaN.

    Parameters
    ----------
    values : array (y, x)
    row, column : float array (n,)
        Positions in pixel centres: 0 = centre of the first pixel.

    Examples
    --------
    >>> sample_bilinear(np.array([[0.0, 2.0], [np.nan, 4.0]]), np.array([0.0, 0.5]), np.array([0.5, 1.0])).tolist()
    [1.0, 3.0]
    """
    height, width = values.shape
    inside = (row >= 0) & (row <= height - 1) & (column >= 0) & (column <= width - 1)
    r, c = np.where(inside, row, 0.0), np.where(inside, column, 0.0)
    r0, c0 = np.floor(r).astype(int), np.floor(c).astype(int)
    total = np.zeros(r.shape)
    for dr in (0, 1):
        for dc in (0, 1):
            weight = np.abs(1 - dr - (r - r0)) * np.abs(1 - dc - (c - c0))
            pixel = values[np.minimum(r0 + dr, height - 1), np.minimum(c0 + dc, width - 1)]
            # A neighbour with weight 0 must not make the sum NaN.
            total += np.where(weight > 0, weight * pixel, 0.0)
    return np.where(inside, total, np.nan)


def speed_profile(
    velocity: xr.Dataset,
    line: Any,
    *,
    when: int | None = None,
    spacing: float | None = None,
    title: str | None = None,
    path: str | Path | None = None,
) -> tuple[Figure, pd.DataFrame]:
    """Speed along a line, for example a flowline from the divide to the front.

    Parameters
    ----------
    velocity : xr.Dataset
        velocity, series or single map.
    line : shapely.LineString or sequence of (x, y)
        In the coordinate system of the grid [m].
    when : int, optional
        Position in time: the band is the 1-sigma error of the speed. None: median over time: the band is the spread of
        the components in time (1.4826 times the median absolute deviation), which holds noise *and* real change.
    spacing : float, optional
        Distance between samples [m]; default one pixel.
    title, path
        As in `speed_map`.

    Returns
    -------
    Figure
    DataFrame
        `distance`, `x`, `y` [m]; `vx`, `vy`, `v` and `v_error` or `v_spread` [meter/year].

    Raises
    ------
    ParameterError
        A line without length or outside the grid, a spacing that is not positive, `when` out of range.
    """
    time = time_dimension(velocity)
    if when is None and time is not None and velocity.sizes[time] == 1:
        when = 0  # one pair has an error, and no spread in time
    curve = line if isinstance(line, shapely.LineString) else shapely.LineString(list(line))
    maps = map_at(velocity, ["vx", "vy"], when=when)
    geobox = grid.geobox_of(maps)
    spacing = abs(geobox.resolution.x) if spacing is None else spacing
    if spacing <= 0 or curve.length <= 0:
        raise ParameterError("line and spacing", rule="must have a length above 0", value=(curve.length, spacing))
    distance = np.append(np.arange(0.0, curve.length, spacing), curve.length)
    x, y = shapely.get_coordinates(shapely.line_interpolate_point(curve, distance)).T
    column, row = ~geobox.affine * (x, y)
    sampled = {n: sample_bilinear(a, row - 0.5, column - 0.5) for n, a in _profile_maps(velocity, maps, when).items()}
    vx, vy = sampled["vx"], sampled["vy"]
    v = np.hypot(vx, vy)
    table = pd.DataFrame({"distance": distance, "x": x, "y": y, "vx": vx, "vy": vy, "v": v})
    if not np.isfinite(v).any():
        box = tuple(round(b) for b in geobox.boundingbox.bbox)
        raise ParameterError("line", rule="must cross valid pixels", value=curve.bounds, fix=f"use x, y inside {box}")
    band = "v_spread" if when is None and time is not None else "v_error"
    if "ex" in sampled:
        safe = np.where(v > 0, v, 1.0)
        table[band] = np.hypot(sampled["ex"] * vx / safe, sampled["ey"] * vy / safe)
    figure = style.new_figure(7.0, 3.4)
    ax = figure.add_subplot()
    if band in table:
        label = "1-sigma error" if band == "v_error" else "spread in time (1.48 MAD)"
        low, high = np.maximum(v - table[band], 0), v + table[band]
        ax.fill_between(distance / 1000, low, high, color=style.LINES[0], alpha=0.22, lw=0, label=label)
    ax.plot(distance / 1000, v, color=style.LINES[0], lw=1.4, label="speed")
    ax.set_xlim(0, curve.length / 1000)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("Distance along the line (km)", fontsize=9)
    ax.set_ylabel(f"Surface speed ({style.SPEED_UNIT})", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(color="0.9", lw=0.6)
    ax.legend(fontsize=8, frameon=False)
    ax.set_title(title if title is not None else time_text(velocity, when), fontsize=10)
    return style.save(figure, path), table


def _profile_maps(velocity: xr.Dataset, maps: xr.Dataset, when: int | None) -> dict[str, NDArray[Any]]:
    """Components and, under `ex`, `ey`, their error or spread, as arrays (y, x)."""
    out = {name: maps[name].values for name in ("vx", "vy")}
    time = time_dimension(velocity)
    for component, name in (("vx", "ex"), ("vy", "ey")):
        if time is not None and when is None:
            values = velocity[component]
            if "flag" in velocity:
                values = values.where(~flags.invalid(velocity["flag"]))
            values = values.sel(y=maps["y"]).transpose("y", "x", time)
            stack = np.asarray(values.values, np.float64)
            out[name] = 1.4826 * median_valid(np.abs(stack - out[component][..., None]))
        elif f"{component}_error" in velocity:
            error = velocity[f"{component}_error"]
            error = error.isel({time: when}) if time is not None and time in error.dims else error
            error = error.sel(y=maps["y"]) if "y" in error.dims else error
            out[name] = np.broadcast_to(error.values.astype(np.float64), out[component].shape)
    return out
