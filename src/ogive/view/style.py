"""What all figures share: colours, limits, ticks, scale bar, north arrow. Mostly pure functions on numbers.

Colours: speed in viridis (perceptually uniform, safe for colour-blind readers); a pixel without a velocity is hatched
grey, a colour that viridis does not contain, so it can never be read as 0 m/yr; lines from the Okabe-Ito set.
"""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyproj
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from ..errors import ParameterError

SPEED_UNIT = "m/yr"
SPEED_COLOURS = "viridis"
DIFFERENCE_COLOURS = "RdBu_r"
INVALID = "#d4d4d4"
"""Face of a pixel without a velocity."""
INVALID_HATCH = "#b4b4b4"
SCALES = ("auto", "linear", "log")
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe-Ito, the yellow left out: it disappears on white paper."""
OUTLINE = "#B30000"
DPI = 200


def nice_below(value: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is not larger than value (value > 0).

    Examples
    --------
    >>> nice_below(4999.0), nice_below(0.03)
    (2000.0, 0.02)
    """
    exponent = math.floor(math.log10(value))
    # Try one decade on each side, because log10 of an exact power of ten may fall on the wrong side.
    steps = [m * 10.0**e for e in (exponent - 1, exponent, exponent + 1) for m in (1, 2, 5)]
    return float(f"{max(s for s in steps if s <= value * (1 + 1e-9)):.1g}")


def nice_above(value: float) -> float:
    """The smallest 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of ten that is not smaller than value (value > 0).

    Examples
    --------
    >>> nice_above(5100.0), nice_above(0.9)
    (6000.0, 1.0)
    """
    exponent = math.floor(math.log10(value))
    steps = [m * 10.0**e for e in (exponent, exponent + 1) for m in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    return float(f"{min(s for s in steps if s >= value * (1 - 1e-9)):.2g}")


def robust_limits(values: NDArray[Any], *, low: float = 2.0, high: float = 98.0) -> tuple[float, float]:
    """Two percentiles of the finite values: limits that a few wild vectors cannot move.

    Parameters
    ----------
    values : array, any shape
    low, high : float
        Percentiles.

    Returns
    -------
    tuple of float
        (0, 1) if nothing is finite; never two equal numbers.

    Examples
    --------
    >>> robust_limits(np.array([0.0, 1.0, 2.0, np.nan]), low=0, high=100)
    (0.0, 2.0)
    """
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 1.0
    bottom, top = (float(p) for p in np.percentile(finite, (low, high)))
    return (bottom, top) if top > bottom else (bottom - 0.5, top + 0.5)


def speed_limits(speed: NDArray[Any]) -> tuple[float, float, bool]:
    """Colour limits for speed and whether they are logarithmic.

    Logarithmic when the fast ice (98th percentile) is above 500 m/yr and more than 20 times the median: a linear
    scale would then show one bright outlet in a uniform field. Below 500 m/yr the lower decades would fill with noise.
    Two and a half decades are kept below the upper limit, never less than 1 m/yr, which no image pair resolves.

    Parameters
    ----------
    speed : array, any shape
        [meter/year].

    Returns
    -------
    low, high : float
        [meter/year].
    logarithmic : bool

    Examples
    --------
    >>> speed_limits(np.linspace(0, 100, 101))
    (0.0, 100.0, False)
    >>> speed_limits(np.geomspace(1, 5000, 1001))
    (10.0, 5000.0, True)
    """
    finite = np.asarray(speed, np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size or finite.max() <= 0:
        return 0.0, 1.0, False
    middle, top = (float(p) for p in np.percentile(finite, (50, 98)))
    top = top or float(finite.max())
    high = nice_above(top)
    if top > 20 * max(middle, 1.0) and high >= 500:
        high = nice_above(float(np.percentile(finite, 99.5)))
        return max(1.0, nice_below(high / 300)), high, True
    return 0.0, high, False


def speed_norm(values: NDArray[Any], scale: str, limits: tuple[float, float] | None) -> Normalize:
    """Colour scale of speeds.

    Raises
    ------
    ParameterError
        An unknown scale, limits that are not ascending, or a logarithm of a limit that is not above 0.
    """
    if scale not in SCALES:
        raise ParameterError("scale", rule=f"must be one of {', '.join(SCALES)}", value=repr(scale))
    low, high, logarithmic = speed_limits(values)
    logarithmic = logarithmic if scale == "auto" else scale == "log"
    if limits is not None:
        low, high = limits
    elif logarithmic:
        low = max(low, 1.0, nice_below(high / 300))
        high = max(high, 10 * low)
    else:
        low = 0.0
    _assert_limits(low, high, logarithmic)
    return LogNorm(low, high) if logarithmic else Normalize(low, high)


def plain_norm(values: NDArray[Any], limits: tuple[float, float] | None = None, *, high: float = 98.0) -> Normalize:
    """From 0 to a round number that so many of 100 values do not exceed."""
    top = robust_limits(values, high=high)[1]
    low, top = (0.0, nice_above(top) if top > 0 else 1.0) if limits is None else limits
    _assert_limits(low, top, False)
    return Normalize(low, top)


def _assert_limits(low: float, high: float, logarithmic: bool) -> None:
    if not low < high or (logarithmic and low <= 0):
        rule = "must ascend" + (", and be above 0 on a logarithmic scale" if logarithmic else "")
        raise ParameterError("limits", rule=rule, value=(low, high))


def scale_bar_length(width: float) -> float:
    """Length of a scale bar [m] for a map of this width [m]: a round number, at most a quarter of it.

    Examples
    --------
    >>> scale_bar_length(45_000.0)
    10000.0
    """
    return nice_below(width / 4)


def length_text(metres: float) -> str:
    """A round length for people.

    Examples
    --------
    >>> length_text(5000), length_text(500)
    ('5 km', '500 m')
    """
    return f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"


def north_direction(geobox: GeoBox) -> tuple[float, float]:
    """Unit vector (east, north on paper) of true north at the centre of the grid.

    (0, 1) in the middle of a UTM zone, anything in a polar projection: grid north and true north differ.

    Examples
    --------
    >>> from affine import Affine
    >>> grid = GeoBox((10, 10), Affine(100, 0, 499_500, 0, -100, 5_000_500), "EPSG:32632")
    >>> dx, dy = north_direction(grid)
    >>> abs(dx) < 1e-6, round(dy, 6)
    (True, 1.0)
    """
    x, y = geobox.affine @ (geobox.shape.x / 2, geobox.shape.y / 2)
    crs = pyproj.CRS.from_user_input(str(geobox.crs))
    to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs or 4326, always_xy=True)
    lon, lat = to_degrees.transform(x, y)
    x2, y2 = to_degrees.transform(lon, min(lat + 1e-3, 90.0), direction="INVERSE")
    norm = math.hypot(x2 - x, y2 - y)
    return (x2 - x) / norm, (y2 - y) / norm


def emptiest_corner(valid: NDArray[np.bool_]) -> tuple[int, int]:
    """Corner with the fewest valid pixels as (0 left | 1 right, 0 bottom | 1 top), where furniture hides least.

    Parameters
    ----------
    valid : bool array (y, x)
        First row = north.

    Examples
    --------
    >>> emptiest_corner(np.array([[True, True], [True, False]]))
    (1, 0)
    """
    height, width = valid.shape
    rows, columns = max(1, height // 4), max(1, width // 3)
    corners = {  # the first of equals wins: lower left, where maps by custom have their scale
        (0, 0): valid[-rows:, :columns],
        (1, 0): valid[-rows:, -columns:],
        (0, 1): valid[:rows, :columns],
        (1, 1): valid[:rows, -columns:],
    }
    return min(corners, key=lambda corner: float(corners[corner].mean()))


def crs_text(geobox: GeoBox) -> str:
    """Name of the coordinate system, with its EPSG code where it has one."""
    crs = pyproj.CRS.from_user_input(str(geobox.crs))
    code = crs.to_epsg()
    return f"{crs.name} (EPSG:{code})" if code else crs.name


def day_number(dates: Any) -> NDArray[np.float64]:
    """Dates as the numbers of a matplotlib axis [days].

    Examples
    --------
    >>> day_number(np.array(["1970-01-02T12:00"], "datetime64[ns]")).tolist()
    [1.5]
    """
    return np.asarray(date2num(dates), np.float64)  # type: ignore[no-untyped-call]


def date_axis(ax: Axes, which: Literal["x", "y"] = "x") -> None:
    """Dates without repeated years and months."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axis.set_major_locator(locator)
    axis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    ax.tick_params(labelsize=8)


def new_figure(width: float, height: float) -> Figure:
    """A figure [inch] with an Agg canvas of its own, outside pyplot."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def map_figure(geobox: GeoBox) -> tuple[Figure, Axes]:
    """A figure whose page has the proportions of the map, and its axes."""
    height, width = (float(n) for n in geobox.shape)
    aspect = min(max(height * abs(geobox.resolution.y) / (width * abs(geobox.resolution.x)), 0.3), 2.2)
    across = 6.6 if aspect < 1.3 else 8.6 / aspect
    figure = new_figure(across + 1.5, across * aspect + 1.3)
    return figure, figure.add_subplot()


def save(figure: Figure, path: str | Path | None) -> Figure:
    """Save if a path is given; the format is the suffix. Tight, because a map seldom fills its page."""
    if path is not None:
        figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.05)
    return figure


def extent(geobox: GeoBox) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) [m] of the outer edges."""
    box = geobox.boundingbox
    return box.left, box.right, box.bottom, box.top


def decorate(ax: Axes, geobox: GeoBox, valid: NDArray[np.bool_] | None) -> None:
    """Kilometre ticks, named coordinate system; with `valid`, scale bar and north arrow where least of it is."""
    left, right, bottom, top = extent(geobox)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.set_aspect("equal")
    longest = max(right - left, top - bottom)
    for axis, size in ((ax.xaxis, right - left), (ax.yaxis, top - bottom)):
        locator = MaxNLocator(max(2, round(7 * size / longest)), steps=[1, 2, 5, 10])
        ticks = locator.tick_values(0, size)
        axis.set_major_locator(locator)
        axis.set_major_formatter(kilometre_formatter(float(ticks[1] - ticks[0])))
    utm = pyproj.CRS.from_user_input(str(geobox.crs)).utm_zone is not None
    ax.set_xlabel(f"{'Easting' if utm else 'x'} (km), {crs_text(geobox)}", fontsize=9)
    ax.set_ylabel(f"{'Northing' if utm else 'y'} (km)", fontsize=9)
    ax.tick_params(labelsize=8)
    if valid is not None:
        _furniture(ax, geobox, emptiest_corner(valid))


def kilometre_formatter(step: float) -> FuncFormatter:
    """Metres as kilometres with as many decimals as the tick spacing [m] needs.

    Examples
    --------
    >>> kilometre_formatter(500.0)(6720500.0), kilometre_formatter(10_000.0)(470_000.0)
    ('6720.5', '470')
    """
    decimals = max(0, math.ceil(-math.log10(step / 1000) - 1e-9))
    return FuncFormatter(lambda value, _: f"{value / 1000:.{decimals}f}".replace("-", "−"))


def _furniture(ax: Axes, geobox: GeoBox, corner: tuple[int, int]) -> None:
    """Scale bar and north arrow in one box. In map units: they stay right when the figure is resized or cropped."""
    left, right, bottom, top = extent(geobox)
    width, height = right - left, top - bottom
    unit = 0.035 * min(width, height)
    bar = scale_bar_length(min(width, 1.6 * height))
    box_w, box_h = bar + 4.2 * unit, 3.0 * unit
    margin = 0.7 * unit
    x0 = right - margin - box_w if corner[0] else left + margin
    y0 = top - margin - box_h if corner[1] else bottom + margin
    frame = FancyBboxPatch(
        (x0, y0), box_w, box_h, boxstyle=f"round,pad=0,rounding_size={unit / 3}", fc="white", ec="none", alpha=0.85
    )
    ax.add_patch(frame).set_zorder(8)
    for i, colour in enumerate(("black", "white")):
        half = Rectangle((x0 + unit + i * bar / 2, y0 + 0.7 * unit), bar / 2, 0.4 * unit, fc=colour, ec="black", lw=0.7)
        half.set_gid(f"scale_bar_{i}")
        ax.add_patch(half).set_zorder(9)
    middle = x0 + unit + bar / 2
    ax.text(middle, y0 + 1.3 * unit, length_text(bar), ha="center", va="bottom", fontsize=8, zorder=9)
    dx, dy = north_direction(geobox)
    centre = np.array([x0 + bar + 2.7 * unit, y0 + box_h / 2])
    along, across = np.array([dx, dy]) * unit, np.array([dy, -dx]) * unit
    tip = centre + 0.45 * along
    points = [tip, centre - 1.05 * along + 0.45 * across, centre - 0.75 * along, centre - 1.05 * along - 0.45 * across]
    arrow = Polygon(np.array(points), closed=True, fc="black", ec="black", lw=0.5, gid="north_arrow")
    ax.add_patch(arrow).set_zorder(9)
    label = centre + 0.9 * along
    ax.text(float(label[0]), float(label[1]), "N", ha="center", va="center", fontsize=7, fontweight="bold", zorder=9)
