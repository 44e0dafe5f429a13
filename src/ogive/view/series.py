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
from ..flowline import sample_bilinear
from ..invert._series import with_speed_error
from . import style
from .maps import time_text

_TRUTH, _STAKE = "#D55E00", "black"


def plot_series(
    series: xr.Dataset | Mapping[str, xr.Dataset],
    points: Mapping[str, tuple[float, float]],
    *,
    pairs: xr.Dataset | None = None,
    truth: xr.Dataset | Mapping[str, pd.Series] | None = None,
    stakes: pd.DataFrame | None = None,
    together: bool = False,
    path: str | Path | None = None,
) -> Figure:
    """Speed through time at points: the series with its 1- and 2-sigma bands, and what lies behind it.

    One panel for each point. Times with an invalid flag (a gap, too few pairs) are shaded and interrupt the line. Of
    several sources in one panel each has a colour and its 1-sigma band; a velocity of pairs is drawn as bars from date
    1 to date 2 with the error of each.

    Parameters
    ----------
    series : xr.Dataset or mapping name -> Dataset
        dims (time, y, x), with `v` or `vx` and `vy`, `v_error` [meter/year], `flag`; or several sources by name, also
        velocities (mid_date, y, x) and those of others. Speeds are shown as each source gives them.
    points : mapping name -> (x, y)
        Map coordinates [m] of the first source; each is read from the cell that holds it, in every source.
    pairs : xr.Dataset, optional
        The velocity that was inverted: each valid pair is a thin bar from date 1 to date 2 at its speed.
    truth : xr.Dataset or mapping name -> Series, optional
        Known speed [meter/year]: `vx`, `vy` (time, y, x) on the same coordinates, or Series with dates as index.
    stakes : DataFrame, optional
        Measured on the ground: columns `name` (as in `points`), `t1`, `t2`, `v` or `vx`, `vy` and, if known,
        `v_error` [meter/year]; for a table of `validate.stakes` use `stakes_series`.
    together : bool
        All points in one panel.
    path : path, optional
        Save the figure there.

    Raises
    ------
    ParameterError
        No source, no point, a point outside the grid of the first source, stakes without the columns.
    """
    sources = {"series": series} if isinstance(series, xr.Dataset) else dict(series)
    if not sources:
        raise ParameterError("series", rule="needs at least one source", fix="pass a series or {'name': series}")
    first = next(iter(sources.values()))
    locate(first, points)
    if stakes is not None:
        given = set(stakes.columns)
        if not ({"name", "t1", "t2"} <= given and ("v" in given or {"vx", "vy"} <= given)):
            raise ParameterError("stakes", rule="need the columns name, t1, t2 and v or vx, vy", value=sorted(given))
    panels = {"": list(points)} if together else {name: [name] for name in points}
    figure = style.new_figure(7.5, (3.4 if together else 0.9 + 2.1 * len(panels)))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (title, names) in zip(axes, panels.items()):
        tops = _draw_sources(ax, sources, {name: points[name] for name in names})
        for name in names:
            if pairs is not None:
                place = grid.points_on({name: points[name]}, grid.geobox_of(first), grid.geobox_of(pairs))
                tops.append(_draw_pairs(ax, pairs, name, place[name]))
            known = _truth_at(truth, name, points[name])
            if known is not None:
                dates = style.day_number(known.index)
                ax.plot(dates, known.to_numpy(), color=_TRUTH, lw=1.2, ls="--", label="truth", zorder=4)
                tops.append(float(known.max()))
            if stakes is not None:
                tops.append(_draw_stakes(ax, stakes[stakes["name"] == name]))
        finite = [t for t in tops if np.isfinite(t)]
        ax.set_ylim(0, 1.08 * max(finite) if finite and max(finite) > 0 else 1.0)
        ax.set_title(f"{title}", fontsize=9, loc="left")
        ax.grid(color="0.9", lw=0.6)
        ax.tick_params(labelsize=8)
    style.date_axis(axes[-1])
    figure.supylabel(f"Surface speed ({style.SPEED_UNIT})", fontsize=9)
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=min(len(entries), 5),
        fontsize=8,
        frameon=False,
    )
    return style.save(figure, path)


def _draw_sources(
    ax: Axes, sources: Mapping[str, xr.Dataset], points: Mapping[str, tuple[float, float]]
) -> list[float]:
    """All sources at all points in one panel; the highest speeds that its axis must show."""
    home = grid.geobox_of(next(iter(sources.values())))
    alone = len(sources) * len(points) == 1
    tops, spans = [], []
    for i, (source, dataset) in enumerate(sources.items()):
        for j, (name, point) in enumerate(points.items()):
            words = [source] * (len(sources) > 1) + [name] * (len(points) > 1)
            kind = {
                "colour": style.LINES[(i * len(points) + j) % len(style.LINES)],
                "label": ", ".join(words) or source,
            }
            place = grid.points_on({name: point}, home, grid.geobox_of(dataset))
            try:
                (row,), (column,) = locate(dataset, place)
            except ParameterError:
                if i == 0:
                    raise
                continue  # sources need not cover each other
            if "mid_date" in dataset.dims:
                tops.append(_draw_pairs(ax, dataset, name, place[name], errors=True, **kind))
                dates = [dataset[f"acquisition_date_img{k}"].values for k in (1, 2)]
                spans.append(style.day_number(np.stack(dates)))
            else:
                tops.append(_draw_series(ax, dataset.isel(y=row, x=column).compute(), alone=alone, **kind))
                spans.append(_edges(dataset, style.day_number(dataset["time"].values)).T)
    ends = [(np.min(low), np.max(high)) for low, high in spans]
    ax.set_xlim(min(low for low, _ in ends), max(high for _, high in ends))
    return tops


def _draw_series(
    ax: Axes, one: xr.Dataset, *, colour: str = style.LINES[0], label: str = "series", alone: bool = True
) -> float:
    """Line, bands and shaded gaps; returns the highest speed that the axis must show."""
    v = np.hypot(one["vx"].values, one["vy"].values) if "vx" in one else one["v"].values
    if "flag" in one:
        v = np.where(flags.invalid(one["flag"].values), np.nan, v)
    v = v.astype(np.float64)
    time = style.day_number(one["time"].values)
    top = v
    if "v_error" in one:
        error = one["v_error"].values.astype(np.float64)
        for sigma, alpha in ((2, 0.15), (1, 0.25)) if alone else ((1, 0.2),):
            low, high = np.maximum(v - sigma * error, 0), v + sigma * error
            band = f"{sigma}-sigma band" if alone else None
            ax.fill_between(time, low, high, color=colour, alpha=alpha, lw=0, zorder=3, label=band)
        top = np.where(np.isfinite(error), v + (2 if alone else 1) * error, v)
    # A marker as well: a single time between two gaps has no line.
    ax.plot(time, v, color=colour, lw=1.4, marker=".", ms=3.5, label=label, zorder=5)
    edges = _edges(one, time)
    for i, (start, stop) in enumerate(_runs(~np.isfinite(v)) if alone else []):
        ax.axvspan(
            edges[start, 0], edges[stop - 1, 1], color="0.93", lw=0, zorder=0,
            label="no valid speed" if i == 0 else "_",
        )  # fmt: skip
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


def _draw_pairs(
    ax: Axes, pairs: xr.Dataset, name: str, point: tuple[float, float], *, colour: str = "0.35", label: str = "pairs",
    errors: bool = False,
) -> float:  # fmt: skip
    """A bar from date 1 to date 2 for each valid pair, with its error if wanted."""
    (row,), (column,) = locate(pairs, {name: point})
    used = [n for n in ("vx", "vy", "flag", "acquisition_date_img1", "acquisition_date_img2") if n in pairs.variables]
    bars = [n for n in ("v_error", "vx_error", "vy_error", "vx_error_px", "vy_error_px") if errors and n in pairs]
    one = pairs[[*used, *bars]].isel(y=row, x=column).compute()
    v = np.hypot(one["vx"].values, one["vy"].values).astype(np.float64)
    valid = np.isfinite(v) & (~flags.invalid(one["flag"].values) if "flag" in one else True)
    if not valid.any():
        return np.nan
    start, stop = (style.day_number(one[f"acquisition_date_img{i}"].values)[valid] for i in (1, 2))
    lines = [[(a, s), (b, s)] for a, b, s in zip(start, stop, v[valid])]
    alpha = float(np.clip(12 / valid.sum() ** 0.6, 0.08, 0.6))
    ax.add_collection(LineCollection(lines, colors=colour, linewidths=0.6, alpha=alpha, zorder=2, label=label))
    if bars:
        error = with_speed_error(one)["v_error"].values[valid].astype(np.float64)
        middle = (start + stop) / 2
        upright = [[(m, max(s - e, 0)), (m, s + e)] for m, s, e in zip(middle, v[valid], error) if np.isfinite(e)]
        ax.add_collection(LineCollection(upright, colors=colour, linewidths=0.5, alpha=alpha, zorder=2))
    # One pair in ten may be wild and must not squash the series.
    return float(np.percentile(v[valid], 90))


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
