"""Speed along a line through time: waves, surges and seasons as slanted, broad or repeated bands."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
import xarray as xr
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..errors import ParameterError
from ..export import time_dimension
from ..flowline import along
from . import maps, style


def hovmoller(
    velocity: xr.Dataset, line: shapely.LineString | Sequence[tuple[float, float]] | pd.DataFrame, *,
    anomaly: bool = False, scale: str = "auto", limits: tuple[float, float] | None = None,
    spacing: float | None = None, title: str | None = None, path: str | Path | None = None,
) -> Figure:  # fmt: skip
    """Distance along a line across, time upwards, speed in colour; grey where nothing valid was measured.

    Parameters
    ----------
    velocity : xr.Dataset
        series, or velocity: its pairs are drawn at their middle dates, each as wide as its neighbours allow.
    line : LineString, sequence of (x, y) or DataFrame
        As in `along`; a table of `flowline` keeps its distances, 0 at the place it was traced from.
    anomaly : bool
        Difference from the median over time at each place, which shows a change that is small beside the speed.
    scale, limits
        As in `speed_map`; of anomalies the limits are symmetric and linear.
    spacing : float, optional
        Distance between samples [m]; default one cell.
    title, path
        As in `speed_map`.

    Raises
    ------
    ParameterError
        As in `along`; no valid speed on the line.
    """
    table = along(velocity, line, spacing=spacing)
    time = time_dimension(table)
    assert time is not None
    table = table.isel({time: np.argsort(table[time].values, kind="stable")})
    speed = table["v"].values.astype(np.float64)
    if not np.isfinite(speed).any():
        raise ParameterError("line", rule="must cross valid pixels", fix="trace it from a place on valid ice")
    if anomaly:
        some = np.isfinite(speed).any(0)
        speed[:, some] -= np.nanmedian(speed[:, some], 0)
        limit = maps.difference_limit(speed)
        norm, colours = Normalize(*((-limit, limit) if limits is None else limits)), style.DIFFERENCE_COLOURS
    else:
        norm, colours = style.speed_norm(speed, scale, limits), style.SPEED_COLOURS
    figure = style.new_figure(7.5, 4.2)
    ax = figure.add_subplot()
    ax.set_facecolor(style.INVALID)
    across = edges_of(table["distance"].values / 1000)
    for low, high, rows in _runs(table, time):
        mesh = ax.pcolormesh(
            across, np.append(low, high[-1:]), np.ma.masked_invalid(speed[rows]), norm=norm, cmap=colours
        )
    ax.set_xlabel(
        "Distance along the line (km)" + (", 0 at the place" if across[0] < 0 < across[-1] else ""), fontsize=9
    )
    ax.yaxis_date()
    style.date_axis(ax, "y")
    maps.colour_bar(
        figure, ax, mesh, f"{'Change of speed' if anomaly else 'Surface speed'} ({style.SPEED_UNIT})", speed
    )
    default = "Speed through time" if not anomaly else "Difference from the median of each place"
    ax.set_title(title if title is not None else default, fontsize=10)
    return style.save(figure, path)


def _runs(table: xr.Dataset, time: str) -> list[tuple[NDArray[np.float64], NDArray[np.float64], slice]]:
    """Lower and upper edges of the rows, and which; windows that do not touch are separate runs."""
    if "time_bnds" in table.variables:
        low, high = style.day_number(table["time_bnds"].values).T
    else:
        edges = edges_of(style.day_number(table[time].values))
        low, high = edges[:-1], edges[1:]
    cuts = np.flatnonzero(low[1:] > high[:-1] + 1e-6) + 1
    bounds = [0, *cuts.tolist(), low.size]
    return [(low[a:b], high[a:b], slice(a, b)) for a, b in pairwise(bounds)]


def edges_of(centres: NDArray[Any]) -> NDArray[np.float64]:
    """Edges half way between ascending centres.

    Examples
    --------
    >>> edges_of(np.array([0.0, 1.0, 3.0])).tolist()
    [-0.5, 0.5, 2.0, 4.0]
    """
    if centres.size < 2:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    half = np.diff(centres) / 2
    return np.concatenate([centres[:1] - half[:1], centres[:-1] + half, centres[-1:] + half[-1:]])
