"""Maps of several methods beside each other, on one colour scale, with the image and the stakes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from odc.geo.geobox import GeoBox

from .. import grid
from ..errors import GridError, ParameterError
from ..export import map_at
from ..validate import map_scores
from . import maps as single
from . import style

_BOX = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": "0.8", "alpha": 0.9}
_MOST = 4


def comparison_map(
    maps: Mapping[str, xr.Dataset],
    image: xr.DataArray,
    *,
    stakes: pd.DataFrame | None = None,
    ice: xr.DataArray | None = None,
    limits: tuple[float, float] = (0.0, 50.0),
    outlines: Any = None,
    path: str | Path | None = None,
) -> Figure:
    """The image with the stakes, and beside it the speed by each method, all with the same colours.

    Every map but the first has its RMSE against the first in a corner: that of the speed over the ice
    (`validate.map_scores`).

    Parameters
    ----------
    maps : mapping of str to xr.Dataset
        One to four methods by name, the reference first; `vx`, `vy` (y, x) on one grid.
    image : xr.DataArray (y, x)
        In the coordinate system of the maps.
    stakes : pd.DataFrame, optional
        With `name`, `x`, `y`, as of `validate.stake_table`.
    ice : xr.DataArray (y, x), optional
        bool; only ice is shown and scored. Default: everything.
    limits : (float, float)
        Ends of the colours [meter/year].
    outlines : GeoDataFrame, optional
        Drawn as lines, in any coordinate system.
    path : path, optional
        Save the figure there.

    Raises
    ------
    ParameterError
        No map, too many, or limits that do not ascend.
    GridError
        The maps lie on different grids, or the image in another coordinate system.
    MaskError
        The outlines have no coordinate system.
    """
    if not 1 <= len(maps) <= _MOST:
        raise ParameterError("maps", rule=f"must be 1 to {_MOST} methods", value=len(maps))
    shown = {name: map_at(given, ["vx", "vy", "v"]) for name, given in maps.items()}
    first, norm = next(iter(shown.values())), style.speed_norm(np.zeros(1), "linear", limits)
    box, own = grid.geobox_of(first), grid.geobox_of(image)
    if own.crs != box.crs:
        fix = "reproject it with image.odc.reproject(...)"
        raise GridError("image", rule=f"must be in {box.crs}", value=own.crs, fix=fix)
    where = np.ones(box.shape, bool)
    if ice is not None:
        where = np.asarray(map_at(ice.to_dataset(name="ice"), ["ice"])["ice"].values > 0)
    figure, axes = _panels(box, 1 + len(maps))
    _draw_image(axes[0], image, own, box)
    entries: list[Any] = _draw_stakes(axes[0], stakes)
    for ax, (name, one) in zip(axes[1:], shown.items(), strict=True):
        score = map_scores(first, one, where)
        valid = np.isfinite(one["v"].values) & where
        ground = single._draw_invalid(ax, box, valid)
        picture = single._draw(ax, np.where(valid, one["v"].values, np.nan), box, cmap=style.SPEED_COLOURS, norm=norm)
        ax.set_title(name, fontsize=10)
        if one is not first:
            text = f"RMSE to {next(iter(maps))}: {score['rmse']:.2f} {style.SPEED_UNIT}"
            ax.text(0.97, 0.97, text, transform=ax.transAxes, ha="right", va="top", fontsize=8, bbox=_BOX, zorder=8)
    ground.set_label("no ice, or no valid velocity")
    speeds = np.concatenate([np.where(where, one["v"].values, np.nan).ravel() for one in shown.values()])
    single.colour_bar(figure, axes[-1], picture, f"Surface speed ({style.SPEED_UNIT})", speeds)
    entries.append(ground)
    if outlines is not None:
        entries += [single._draw_outlines(ax, box, outlines) for ax in axes][:1]
    for k, ax in enumerate(axes):
        style.decorate(ax, box, None if k else where)
        if k:
            ax.set_ylabel("")
            ax.set_xlabel(ax.get_xlabel().partition(",")[0], fontsize=9)
            ax.tick_params(labelleft=False)
    figure.legend(handles=entries, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return style.save(figure, path)


def _panels(box: GeoBox, count: int) -> tuple[Figure, list[Axes]]:
    """Axes side by side, as wide as a page allows."""
    aspect = min(max(box.shape.y * abs(box.resolution.y) / (box.shape.x * abs(box.resolution.x)), 0.3), 2.2)
    across = min(4.2, 14.0 / count, 6.5 / aspect)
    figure = style.new_figure(count * across + 1.4, across * aspect + 1.3)
    return figure, list(figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0])


def _draw_image(ax: Axes, image: xr.DataArray, own: GeoBox, box: GeoBox) -> None:
    grey = image.isel(y=slice(None, None, -1)) if own.affine.e > 0 else image
    low, high = style.robust_limits(grey.values)
    single._draw(ax, grey.values, box, cmap="gray", norm=Normalize(low, high), extent=style.extent(own))
    ax.set_title("Image", fontsize=10)


def _draw_stakes(ax: Axes, stakes: pd.DataFrame | None) -> list[Line2D]:
    """Marks and names; what the legend says of them."""
    if stakes is None or stakes.empty:
        return []
    mark: dict[str, Any] = {"marker": "^", "ms": 7, "mfc": style.LINES[4], "mec": "black", "mew": 0.8, "lw": 0}
    ax.plot(stakes["x"], stakes["y"], zorder=7, **mark)
    for name, x, y in zip(stakes["name"], stakes["x"], stakes["y"], strict=True):
        ax.annotate(
            str(name), (x, y), (5, 4), textcoords="offset points", fontsize=7, zorder=8,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75},
        )  # fmt: skip
    return [Line2D([], [], label="stake", **mark)]
