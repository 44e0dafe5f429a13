"""Maps of speed, of reasons and of differences.

Speed is always the norm of the components (of their medians over time), never a mean of magnitudes.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import shapely
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from .. import flags, grid
from ..errors import GridError, MaskError, ParameterError
from ..export import map_at, time_dimension
from . import style

ARROWS_ACROSS = 26
"""Flow arrows along the longer side of a map: dense enough for a tributary, sparse enough to see the speed."""
_REASON_COLOURS = {
    flags.OUTSIDE: "#bbbbbb",
    flags.NO_DATA: "#77aadd",
    flags.FLAT: "#eedd88",
    flags.RIM: "#aa3377",
    flags.LOW_CORRELATION: "#ee8866",
    flags.AMBIGUOUS: "#882255",
    flags.NEIGHBOURS: "#bbcc33",
    flags.OUTLIER: "#cc3311",
    flags.TOO_FEW_PAIRS: "#332288",
    flags.GAP: "#555555",
    flags.SCREENED: "#999933",
    flags.NOT_COMPUTED: "#000000",
    flags.UNREADABLE: "#ddcc77",
}
_VALID, _WARNED = "#e8f5ee", "#99ddbb"
REASONS: list[tuple[str, str]] = [
    ("valid", _VALID),
    *((text.replace("_", " "), _REASON_COLOURS.get(bit, _WARNED)) for bit, text in flags.MEANINGS.items()),
    ("valid, with a warning", _WARNED),
]
"""What a pixel of a flag map can say, and its colour; `reasons` counts in this order."""
REASON_RGB = np.round(255 * np.array([to_rgba(colour)[:3] for _, colour in REASONS])).astype(np.uint8)


def time_text(dataset: xr.Dataset, when: int | None) -> str:
    """What a map of `when` shows, in words: the pair, the window, or how many of them the median is of."""
    time = time_dimension(dataset)
    first, second = "acquisition_date_img1", "acquisition_date_img2"
    pair = first in dataset.variables and second in dataset.variables
    if time is None and not pair:
        return ""
    if when is None and time is not None and dataset.sizes[time] == 1:
        when = 0
    if when is None and time is not None:
        what = "pairs" if time == "mid_date" else "times"
        start, end = (first, second) if pair else (time, time)
        begin, stop = pd.Timestamp(dataset[start].values.min()), pd.Timestamp(dataset[end].values.max())
        return f"median of {dataset.sizes[time]} {what}, {begin:%Y-%m-%d} to {stop:%Y-%m-%d}"
    one = dataset.isel({time: when}) if time is not None else dataset
    if pair:
        begin, stop = pd.Timestamp(one[first].item()), pd.Timestamp(one[second].item())
        return f"{begin:%Y-%m-%d} to {stop:%Y-%m-%d} ({(stop - begin) / pd.Timedelta(days=1):.0f} days)"
    return f"{pd.Timestamp(one[cast(str, time)].item()):%Y-%m-%d}"


def flow_arrows(vx: NDArray[Any], vy: NDArray[Any], step: int) -> tuple[NDArray[Any], ...]:
    """Mean flow direction of step x step pixel cells, where there is one.

    A cell gets an arrow if at least half of its pixels are valid and their vectors agree: the norm of the mean vector
    is above 0.8 of the mean norm. Noise on stable ground has no common direction and gets none.

    Parameters
    ----------
    vx, vy : array (y, x)
        First row = north; vy positive to the north.
    step : int
        Cell size [pixel].

    Returns
    -------
    row, column : float array (arrow,)
        Centre of the cell in pixel edges: 0 = outer edge of the first pixel.
    east, north : float array (arrow,)
        Unit vector.
    speed : float array (arrow,)

    Examples
    --------
    >>> row, column, east, north, speed = flow_arrows(np.full((4, 4), 3.0), np.full((4, 4), 4.0), 4)
    >>> row.tolist(), column.tolist(), east.tolist(), north.tolist(), speed.tolist()
    ([2.0], [2.0], [0.6], [0.8], [5.0])
    """
    height, width = (n // step * step for n in vx.shape)
    rows, columns = height // step, width // step
    cells = [
        a[:height, :width]
        .astype(np.float64)
        .reshape(rows, step, columns, step)
        .swapaxes(1, 2)
        .reshape(rows, columns, step * step)  # there may be none
        for a in (vx, vy)
    ]
    valid = np.isfinite(cells[0]) & np.isfinite(cells[1])
    count = np.maximum(valid.sum(-1), 1)
    east, north, norm = (np.where(valid, a, 0).sum(-1) / count for a in (*cells, np.hypot(*cells)))
    speed = np.hypot(east, north)
    keep = (valid.mean(-1) >= 0.5) & (speed > 0.8 * norm) & (speed > 0)
    row, column = np.nonzero(keep)
    unit = speed[keep]
    return (row + 0.5) * step, (column + 0.5) * step, east[keep] / unit, north[keep] / unit, unit


def speed_map(
    velocity: xr.Dataset,
    *,
    when: int | None = None,
    scale: str = "auto",
    limits: tuple[float, float] | None = None,
    arrows: bool = True,
    outlines: Any = None,
    background: xr.DataArray | None = None,
    title: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Map of surface speed with flow directions.

    Pixels without a velocity are hatched grey, or show the background image. The colour scale is linear or
    logarithmic by the range of the data (see `style.speed_limits`); its ends are robust percentiles. The scale bar is
    in map units; the north arrow points to true north.

    Parameters
    ----------
    velocity : xr.Dataset
        velocity, series or single map with `vx` and `vy` [meter/year].
    when : int, optional
        Position in time; None: norm of the component-wise medians.
    scale : {"auto", "linear", "log"}
        Of the colours; auto decides by the range of the data.
    limits : (float, float), optional
        Ends of the colours [meter/year]; the same limits make maps comparable.
    arrows : bool
        Flow directions, all of one length, where neighbouring vectors agree.
    outlines : GeoDataFrame, optional
        Drawn as lines, in any coordinate system.
    background : xr.DataArray (y, x), optional
        Greyscale image in the same coordinate system, for example the median image or a hillshade.
    title : str, optional
        Default: the dates shown.
    path : path, optional
        Save the figure there.

    Returns
    -------
    Figure

    Raises
    ------
    ParameterError
        `when` is out of range, an unknown scale, or limits that do not fit it.
    MaskError
        The outlines have no coordinate system.
    GridError
        The background lies in another coordinate system.

    Examples
    --------
    >>> from affine import Affine
    >>> from ogive import grid
    >>> box = GeoBox((20, 30), Affine(100, 0, 5e5, 0, -100, 5e6), "EPSG:32632")
    >>> field = xr.DataArray(np.full((20, 30), 40.0), dims=("y", "x"))
    >>> one = xr.Dataset({"vx": field, "vy": field}, {**grid.coordinates(box), "mapping": grid.mapping(box)})
    >>> speed_map(one, title="Test").axes[0].get_title()
    'Test'
    """
    maps = map_at(velocity, ["vx", "vy", "v"], when=when)
    geobox = grid.geobox_of(maps)
    speed = maps["v"].values
    valid = np.isfinite(speed)
    figure, ax = style.map_figure(geobox)
    entries: list[Any] = [_draw_invalid(ax, geobox, valid, background)]
    norm = style.speed_norm(speed, scale, limits)
    low, high, logarithmic = float(norm.vmin or 0), float(norm.vmax or 1), isinstance(norm, LogNorm)
    # Below the lower limit of a logarithmic scale lies 0, which LogNorm would hide like a missing value.
    shown = np.where(valid, np.maximum(speed, low), np.nan)
    image = _draw(ax, shown, geobox, cmap=style.SPEED_COLOURS, norm=norm, alpha=None if background is None else 0.75)
    colour_bar(figure, ax, image, f"Surface speed ({style.SPEED_UNIT})", speed)
    if arrows and _draw_arrows(
        ax, geobox, maps["vx"].values, maps["vy"].values, 2 * low if logarithmic else 0.1 * high
    ):
        arrow = Line2D([], [], color="black", marker=r"$\rightarrow$", markersize=11, lw=0, label="flow direction")
        entries.append(arrow)
    if outlines is not None:
        entries.append(_draw_outlines(ax, geobox, outlines))
    _finish(figure, ax, entries, title if title is not None else time_text(velocity, when))
    style.decorate(ax, geobox, valid)
    return style.save(figure, path)


def _draw(ax: Axes, values: NDArray[Any], geobox: GeoBox, **options: Any) -> AxesImage:
    kind = {"extent": style.extent(geobox), "origin": "upper", "interpolation": "nearest", "zorder": 2}
    return ax.imshow(np.ma.masked_invalid(values), **{**kind, **options})


def _draw_invalid(ax: Axes, geobox: GeoBox, valid: NDArray[np.bool_], background: xr.DataArray | None = None) -> Patch:
    """Hatched ground, or the background image, that shows where the map is transparent."""
    left, right, bottom, top = style.extent(geobox)
    ground = Rectangle((left, bottom), right - left, top - bottom, fc=style.INVALID, ec=style.INVALID_HATCH, lw=0)
    ground.set_hatch("////")
    ground.set_zorder(0)
    ax.add_patch(ground)
    label = f"no valid velocity ({_percent(1 - float(valid.mean()))})"
    if background is not None:
        box = grid.geobox_of(background)
        if box.crs != geobox.crs:
            fix = "reproject it with background.odc.reproject(...)"
            raise GridError("background", rule=f"must be in {geobox.crs}", value=box.crs, fix=fix)
        grey = background.isel(y=slice(None, None, -1)) if box.affine.e > 0 else background
        low, high = style.robust_limits(grey.values)
        # Nothing darker than mid-grey: black ground would shift the colours above it away from the colour bar.
        low -= high - low
        extent = style.extent(box)
        _draw(ax, grey.values, geobox, cmap="gray", norm=Normalize(low, high), zorder=1, extent=extent)
        return Patch(fc="#808080", label=f"{label}: image shows")
    return Patch(fc=style.INVALID, ec=style.INVALID_HATCH, hatch="////", lw=0, label=label)


def _draw_arrows(ax: Axes, geobox: GeoBox, vx: NDArray[Any], vy: NDArray[Any], slowest: float) -> bool:
    step = max(1, round(max(vx.shape) / ARROWS_ACROSS))
    row, column, east, north, speed = flow_arrows(vx, vy, step)
    keep = speed >= slowest
    if not keep.any():
        return False
    to_map = geobox.affine
    x, y = to_map.c + to_map.a * column[keep], to_map.f + to_map.e * row[keep]
    length = 0.75 * step * abs(geobox.resolution.x)
    ax.quiver(
        x,
        y,
        east[keep] * length,
        north[keep] * length,
        angles="xy",
        scale_units="xy",
        scale=1,
        pivot="mid",
        units="xy",
        width=0.09 * length,
        headwidth=4.2,
        headlength=4.5,
        headaxislength=4.0,
        facecolor="black",
        edgecolor="white",
        linewidth=0.35,
        zorder=4,
    )
    return True


def _draw_outlines(ax: Axes, geobox: GeoBox, outlines: Any) -> Line2D:
    if outlines.crs is None:
        raise MaskError("outlines", rule="need a coordinate system", fix="outlines.set_crs('EPSG:...')")
    shapes = shapely.get_parts(outlines.to_crs(str(geobox.crs)).geometry.to_numpy())
    rings = [ring for shape in shapes for ring in shapely.get_parts(shapely.boundary(shape)) if not ring.is_empty]
    lines = [shapely.get_coordinates(ring) for ring in rings]
    ax.add_collection(LineCollection(lines, colors=style.OUTLINE, linewidths=0.9, zorder=5), autolim=False)
    return Line2D([], [], color=style.OUTLINE, lw=1.2, label="outline")


def colour_bar(figure: Figure, ax: Axes, image: ScalarMappable, label: str, values: NDArray[Any]) -> None:
    """A bar as high as the map, with pointed ends where values lie beyond it."""
    finite = values[np.isfinite(values)]
    norm = image.norm
    low, high = float(cast(float, norm.vmin)), float(cast(float, norm.vmax))
    under, over = bool((finite < low).any()), bool((finite > high).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[under, over]
    cax = ax.inset_axes((1.03, 0.0, 0.035, 1.0))
    bar = figure.colorbar(image, cax=cax, extend=extend)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if isinstance(norm, LogNorm):
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _finish(figure: Figure, ax: Axes, entries: list[Any], title: str) -> None:
    ax.set_title(title, fontsize=10)
    columns = 4 if len(entries) > 4 else len(entries)
    figure.legend(handles=entries, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def flag_map(
    dataset: xr.Dataset, *, when: int | None = None, title: str | None = None, path: str | Path | None = None
) -> Figure:
    """Map of why pixels are missing: one colour for each reason, its share of the map in the legend.

    A pixel that failed several tests shows the first one. Colours belong to reasons, not to ranks, so that two maps
    can be compared.

    Parameters
    ----------
    dataset : xr.Dataset
        velocity or series with `flag`.
    when : int, optional
        Position in time; None: the reason found most often at each pixel.
    title : str, optional
        Default: the dates shown.
    path : path, optional
        Save the figure there.

    Raises
    ------
    ParameterError
        The dataset has no flags, or `when` is out of range.
    """
    shown, geobox = reasons(dataset, when)
    figure, ax = style.map_figure(geobox)
    norm = Normalize(-0.5, len(REASONS) - 0.5)
    ax.imshow(
        shown,
        cmap=ListedColormap([colour for _, colour in REASONS]),
        norm=norm,
        extent=style.extent(geobox),
        origin="upper",
        interpolation="nearest",
    )
    share = np.bincount(shown.ravel(), minlength=len(REASONS)) / shown.size
    order = [i for i in np.argsort(-share, kind="stable") if share[i] > 0]
    patches = [
        Patch(fc=REASONS[i][1], ec="grey", lw=0.5, label=f"{REASONS[i][0]} ({_percent(share[i])})") for i in order
    ]
    default = time_text(dataset, when)
    if when is None and time_dimension(dataset) is not None:
        default = default.replace("median", "most frequent state")
    _finish(figure, ax, cast("list[Any]", patches), title if title is not None else default)
    style.decorate(ax, geobox, np.zeros(shown.shape, bool))
    return style.save(figure, path)


def reasons(dataset: xr.Dataset, when: int | None = None) -> tuple[NDArray[np.int64], GeoBox]:
    """Positions in `REASONS` for each pixel, first row = north, and the grid; without `when` the most frequent ones.

    Raises
    ------
    ParameterError
        The dataset has no flags, or `when` is out of range.
    """
    if "flag" not in dataset:
        raise ParameterError("dataset", rule="needs a variable 'flag'", fix="use the result of track or open_velocity")
    geobox = grid.geobox_of(dataset)
    time = time_dimension(dataset)
    size = dataset.sizes[time] if time else 1
    if when is not None and not -size <= when < size:
        raise ParameterError("when", rule=f"must be a position in -{size} ... {size - 1}", value=when)
    positions = [None] if time is None else [when] if when is not None else list(range(size))
    bits = [0, *flags.MEANINGS]
    counts = np.zeros((len(bits) + 1, geobox.shape.y, geobox.shape.x), np.int32)
    for position in positions:  # one slice in memory at a time
        one = dataset["flag"] if position is None else dataset["flag"].isel({cast(str, time): position})
        flag = np.asarray(one.values, np.uint16)
        reason = flags.first_reason(flag)
        for i, bit in enumerate(bits):
            counts[i] += (reason == bit) & ((bit > 0) | (flag == 0))
        counts[-1] += (reason == 0) & (flag != 0)
    shown = counts.argmax(0)
    return (shown[::-1], geobox.flipy()) if geobox.affine.e > 0 else (shown, geobox)


def _percent(share: float) -> str:
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def difference_map(
    first: xr.Dataset,
    second: xr.Dataset,
    *,
    variable: str = "v",
    when: int | None = None,
    outlines: Any = None,
    title: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Map of `first` minus `second` with its median and NMAD (1.4826 times the median absolute deviation).

    Parameters
    ----------
    first, second : xr.Dataset
        velocity, series or single maps on the same grid.
    variable : {"v", "vx", "vy"}
        What to subtract; `v` is the difference of speeds.
    when : int, optional
        Position in time in both; None: median over time.
    outlines, title, path
        As in `speed_map`.

    Raises
    ------
    GridError
        The grids differ.
    ParameterError
        Another variable, or `when` out of range.
    """
    if variable not in ("v", "vx", "vy"):
        raise ParameterError("variable", rule="must be v, vx or vy", value=variable)
    maps = [map_at(dataset, [variable], when=when) for dataset in (first, second)]
    difference, geobox = subtracted(maps[0], maps[1], variable), grid.geobox_of(maps[0])
    valid = np.isfinite(difference)
    figure, ax = style.map_figure(geobox)
    entries: list[Any] = [_draw_invalid(ax, geobox, valid)]
    limit = difference_limit(difference)
    image = _draw(ax, difference, geobox, cmap=style.DIFFERENCE_COLOURS, norm=Normalize(-limit, limit))
    name = {"v": "speed", "vx": "vx", "vy": "vy"}[variable]
    colour_bar(figure, ax, image, f"Difference of {name} ({style.SPEED_UNIT})", difference)
    if outlines is not None:
        entries.append(_draw_outlines(ax, geobox, outlines))
    middle = float(np.median(difference[valid])) if valid.any() else np.nan
    spread = 1.4826 * float(np.median(np.abs(difference[valid] - middle))) if valid.any() else np.nan
    text = f"median {middle:+.3g} {style.SPEED_UNIT}, NMAD {spread:.3g} {style.SPEED_UNIT}, n = {valid.sum()}"
    _finish(figure, ax, entries, f"{title}\n{text}" if title else text)
    style.decorate(ax, geobox, valid)
    return style.save(figure, path)


def subtracted(first: xr.Dataset, second: xr.Dataset, variable: str) -> NDArray[np.float64]:
    """The difference of two single maps.

    Raises
    ------
    GridError
        The grids differ.
    """
    geobox, other = (grid.geobox_of(m) for m in (first, second))
    if geobox != other:
        fix = "put it there first: ogive.regrid(second, first)"
        raise GridError("second", rule=f"must lie on the grid of first, {geobox}", value=other, fix=fix)
    difference: NDArray[np.float64] = first[variable].values.astype(np.float64) - second[variable].values
    return difference


def difference_limit(difference: NDArray[Any]) -> float:
    """A round number for both ends of the colours of a difference."""
    return style.nice_above(max(abs(p) for p in style.robust_limits(difference)))


def value_figure(values: NDArray[Any], geobox: GeoBox, colours: str, norm: Normalize, label: str, title: str) -> Figure:
    """A map of any number, with its colour bar."""
    valid = np.isfinite(values)
    figure, ax = style.map_figure(geobox)
    entries: list[Any] = [_draw_invalid(ax, geobox, valid)]
    image = _draw(ax, values, geobox, cmap=colours, norm=norm)
    colour_bar(figure, ax, image, label, values)
    _finish(figure, ax, entries, title)
    style.decorate(ax, geobox, valid)
    return figure
