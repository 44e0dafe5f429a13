"""Figures of velocities against stakes: all of them at once, and each through time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..errors import ParameterError
from ..export import locate
from ..validate import summary
from ..validate._scores import WIDTH_95
from . import style
from .series import _draw_series

_INSIDE, _OUTSIDE, _UNKNOWN, _STAKE = style.LINES[0], style.LINES[1], "0.45", "black"
_MOST_PANELS = 20


def stakes_scatter(table: pd.DataFrame, *, title: str | None = None, path: str | Path | None = None) -> Figure:
    """Modelled against measured speed with 95 % error bars, and whether the errors are honest.

    The second panel, drawn where errors are known, compares the differences in units of their sigma with the normal
    distribution: a wider histogram means errors too small, a narrower one errors too large, a shifted one a bias.

    Parameters
    ----------
    table : pd.DataFrame
        Of `ogive.validate.stakes`; rows without a difference are left out.
    title : str, optional
        Default: how many of the rows are shown.
    path : path, optional
        Save the figure there.

    Raises
    ------
    ParameterError
        No row has a difference.
    """
    score = summary(table)
    if not score["count"]:
        raise ParameterError("table", rule="needs at least one difference", value=0, fix="see its column reason")
    shown = table[np.isfinite(table["difference"])]
    z = (shown["difference"] / shown["sigma"]).to_numpy(np.float64)
    honest = bool(np.isfinite(z).any())
    figure = style.new_figure(9.4 if honest else 5.6, 4.9)
    axes = figure.subplots(1, 2 if honest else 1, width_ratios=[1.35, 1] if honest else None, squeeze=False)[0]
    _draw_scatter(axes[0], shown, z)
    lines = [
        f"n = {score['count']:.0f}",
        f"bias {score['bias']:+.2f} {style.SPEED_UNIT}",
        f"RMSE {score['rmse']:.2f} {style.SPEED_UNIT}",
        f"NMAD {score['nmad']:.2f} {style.SPEED_UNIT}",
    ]
    if np.isfinite(score["r"]):
        lines.append(f"r = {score['r']:.3f}")
    box = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": "0.8", "alpha": 0.9}
    text = "\n".join(lines).replace("-", "−")
    axes[0].text(0.03, 0.97, text, transform=axes[0].transAxes, va="top", fontsize=8, bbox=box, zorder=8)
    if honest:
        _draw_honesty(axes[1], z[np.isfinite(z)], score)
    left_out = f", {score['rows'] - score['count']:.0f} without a velocity" if score["count"] < score["rows"] else ""
    figure.suptitle(title if title is not None else f"{score['count']:.0f} measurements{left_out}", fontsize=10)
    return style.save(figure, path)


def _draw_scatter(ax: Axes, shown: pd.DataFrame, z: NDArray[np.float64]) -> None:
    """Points with their 95 % bars on equal axes, over the line of agreement."""
    measured, modelled = (shown[name].to_numpy(np.float64) for name in ("measured", "modelled"))
    bars = [
        WIDTH_95 * np.nan_to_num(shown[f"{name}_error"].to_numpy(np.float64))
        for name in ("measured", "modelled")
    ]  # fmt: skip
    values = np.concatenate([measured - bars[0], measured + bars[0], modelled - bars[1], modelled + bars[1]])
    # One wild bar of many must not squash the points.
    beyond = 2 if values.size > 100 else 0
    ends = np.concatenate([measured, modelled, np.percentile(values, (beyond, 100 - beyond))])
    margin = 0.06 * float(np.ptp(ends)) or 1.0
    low, high = float(ends.min()) - margin, float(ends.max()) + margin
    low = 0.0 if low < 0.25 * high else low
    ax.plot([low, high], [low, high], color="0.3", lw=0.9, ls="--", zorder=2, label="agreement")
    faint = float(np.clip(9 / np.sqrt(len(shown)), 0.25, 0.9))
    kinds = (
        (np.abs(z) <= WIDTH_95, _INSIDE, "inside 95 %"),
        (np.abs(z) > WIDTH_95, _OUTSIDE, "outside 95 %"),
        (~np.isfinite(z), _UNKNOWN, "error not known"),
    )
    for of_kind, colour, label in kinds:
        if of_kind.any():
            ax.errorbar(
                measured[of_kind], modelled[of_kind], xerr=bars[0][of_kind], yerr=bars[1][of_kind], fmt="none",
                ecolor=colour, elinewidth=0.8, alpha=0.6 * faint, zorder=3,
            )  # fmt: skip
            ax.plot(
                measured[of_kind], modelled[of_kind], "o", color=colour, ms=4.5, mec="white", mew=0.4,
                alpha=max(faint, 0.6), zorder=5, label=f"{label} ({of_kind.sum()})",
            )  # fmt: skip
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.set_aspect("equal")
    ax.set_xlabel(f"Measured speed ({style.SPEED_UNIT})", fontsize=9)
    ax.set_ylabel(f"Modelled speed ({style.SPEED_UNIT})", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(color="0.9", lw=0.6)
    ax.set_axisbelow(True)
    ax.legend(loc="lower right", fontsize=8, framealpha=0.9, edgecolor="0.8")


def _draw_honesty(ax: Axes, z: NDArray[np.float64], score: dict[str, float]) -> None:
    """Histogram of difference / sigma under the normal curve; what lies beyond 4 sigma is in the outermost bars."""
    width = 0.5 if z.size >= 40 else 1.0
    edges = [float(e) for e in np.arange(-4.0 - width / 2, 4.0 + width, width)]
    ax.axvspan(-WIDTH_95, WIDTH_95, color="0.94", lw=0, zorder=0, label="95 % interval")
    ax.hist(np.clip(z, -4, 4), edges, color=_INSIDE, alpha=0.75, ec="white", lw=0.6, zorder=2, label="differences")
    x = np.linspace(edges[0], edges[-1], 201)
    normal = z.size * width * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    ax.plot(x, normal, color="black", lw=1.2, zorder=3, label="expected")
    ax.set_xlim(edges[0], edges[-1])
    ax.set_ylim(0, 1.25 * ax.get_ylim()[1])
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlabel("Difference / sigma (ends: 4 and beyond)", fontsize=9)
    ax.set_ylabel("Measurements", fontsize=9)
    ax.tick_params(labelsize=8)
    shares = (f"{100 * score[f'coverage_{p}']:.0f} % within {w} sigma" for p, w in (("68", "1"), ("95", "1.96")))
    ax.set_title(", ".join(shares), fontsize=9)
    ax.legend(fontsize=8, frameon=False, loc="upper left")


def stakes_series(
    series: xr.Dataset,
    table: pd.DataFrame,
    *,
    names: Sequence[str] | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Speed through time at each stake: the series with its error bands, and the measurements over their intervals.

    One panel for each name, of the cell in the middle of its positions.

    Parameters
    ----------
    series : xr.Dataset
        The series that the table was made with.
    table : pd.DataFrame
        Of `ogive.validate.stakes`. Each measurement is a bar over its interval with a 95 % box, if its error is known;
        the modelled speed of the same interval is the coloured bar, with its 95 % box.
    names : sequence of str, optional
        Which stakes, in this order; default all that lie on the grid.
    path : path, optional
        Save the figure there.

    Raises
    ------
    ParameterError
        No stake on the grid, an unknown name, more than 20 panels.
    """
    usable = table[np.isfinite(table["modelled"]) | np.isfinite(table["measured"])]
    usable = usable[~table["reason"].isin(["off the grid", "no position", "no date", "t2 is not later than t1"])]
    wanted = list(dict.fromkeys(usable["name"])) if names is None else list(names)
    unknown = [name for name in wanted if name not in set(usable["name"])]
    if unknown or not 0 < len(wanted) <= _MOST_PANELS:
        rule = f"must be 1 to {_MOST_PANELS} stakes that lie on the grid"
        raise ParameterError("names", rule=rule, value=unknown or len(wanted), fix="choose some with names=")
    middle = usable.groupby("name")[["x", "y"]].median()
    points = {name: (float(middle.loc[name, "x"]), float(middle.loc[name, "y"])) for name in wanted}
    figure = style.new_figure(7.5, 0.9 + 2.2 * len(wanted))
    axes = figure.subplots(len(wanted), 1, sharex=True, squeeze=False)[:, 0]
    for ax, name, row, column in zip(axes, wanted, *locate(series, points)):
        one = usable[usable["name"] == name]
        cell = series.isel(y=row, x=column).compute()
        _draw_series(ax, cell)
        ends = [
            *_draw_bars(ax, one, "modelled", style.LINES[1], 3.2, "modelled over the same interval, 95 % box"),
            *_draw_bars(ax, one, "measured", _STAKE, 1.3, "measured, 95 % box"),
        ]
        _frame(ax, cell, ends)
        ax.set_title(name, fontsize=9, loc="left")
    style.date_axis(axes[-1])
    figure.supylabel(f"Surface speed ({style.SPEED_UNIT})", fontsize=9)
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    order = list(entries.values()), list(entries)
    figure.legend(*order, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return style.save(figure, path)


def _draw_bars(ax: Axes, one: pd.DataFrame, kind: str, colour: str, width: float, label: str) -> list[float]:
    """A bar over each interval and, where the error is known, a 95 % box; returns lowest and highest speed drawn."""
    start, stop = (style.day_number(pd.DatetimeIndex(one[name])) for name in ("t1", "t2"))
    v, half = one[kind].to_numpy(np.float64), WIDTH_95 * np.nan_to_num(one[f"{kind}_error"].to_numpy(np.float64))
    good = np.isfinite(v)
    if not good.any():
        return []
    ax.hlines(v[good], start[good], stop[good], color=colour, lw=width, zorder=6, label=label)
    boxes = [Rectangle((a, b - h), c - a, 2 * h) for a, b, c, h in zip(start[good], v[good], stop[good], half[good])]
    ax.add_collection(PatchCollection(boxes, facecolor=colour, alpha=0.22, lw=0, zorder=4))
    return [float(np.min(v[good] - half[good])), float(np.max(v[good] + half[good]))]


def _frame(ax: Axes, cell: xr.Dataset, ends: list[float]) -> None:
    """Limits that show line, bands and boxes, from zero where that costs little; one wild band must not squash them."""
    v = np.hypot(cell["vx"].values, cell["vy"].values).astype(np.float64)
    half = (
        WIDTH_95 * np.nan_to_num(cell["v_error"].values.astype(np.float64)) if "v_error" in cell else np.zeros(v.size)
    )
    good = np.isfinite(v)
    if good.any():
        bands = np.percentile(v[good] - half[good], 5), np.percentile(v[good] + half[good], 95)
        ends = [*ends, float(v[good].min()), float(v[good].max()), *map(float, bands)]
    low, high = min(ends), max(ends)
    margin = 0.08 * (high - low) or 1.0
    ax.set_ylim(0.0 if low - margin < 0.3 * high else low - margin, high + margin)
    ax.grid(color="0.9", lw=0.6)
    ax.tick_params(labelsize=8)
