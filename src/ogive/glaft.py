"""GLAFT: how far a velocity map may be trusted, from what must be still and what must be smooth.

The metrics of the Glacier Feature Tracking test (Zheng et al. 2023, doi:10.5194/tc-17-4063-2023), so that a map can be
put beside the published intercomparison. Metric 0 is the share of the map without a value, metric 1 the spread of the
velocity on ground that does not move, metric 2 the spread of the strain rates along and across the flow of a glacier,
which a smooth flow keeps small. A spread is half the side of the box round the dense core of a cloud of points, so that
mismatches, which are far away, do not count; their share is told apart.

Maps are (ny, nx), north up (row 0 in the north), vx positive east, vy positive north, NaN where there is no value. The
functions of arrays keep the unit of the velocity: meter/day in the paper, meter/year in `metrics`.
"""

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from . import grid
from .errors import GridError, ParameterError

Floats = NDArray[np.float64]

SOBEL_GAIN = 8.0
"""What the Sobel operator makes of a slope of 1. GLAFT does not divide by it: its strain rates are 8-fold."""
_NODES = 60
_BANDWIDTH = 2.1991
"""Bandwidth of the Epanechnikov kernel / (sigma n^(-1/6)), as published."""
_NO_DATA = -9999.0
"""Stands for no value in the published maps, and takes part in the median of the flow direction there."""
_SMOOTHING = 1500.0
"""Width of the median of the flow direction [m], at most `_WIDEST` cells."""
_WIDEST = 35


@dataclass(frozen=True)
class Spread:
    """The dense core of a cloud of points; all NaN but `count` with fewer than three points, or points on one line.

    Attributes
    ----------
    x, y : float
        Half the sides of the box, the two numbers of metrics 1 and 2.
    peak_x, peak_y : float
        Where the points are densest: the bias.
    outside : float
        Share of the points outside the box.
    count : int
        Points.
    bandwidth : float
        Of the kernel density.
    """

    x: float
    y: float
    peak_x: float
    peak_y: float
    outside: float
    count: int
    bandwidth: float


def spread(x: ArrayLike, y: ArrayLike, *, z: float = 2.0) -> Spread:
    """Box round the nodes where the kernel density of the points is at least exp(-z^2 / 2) of its maximum.

    Parameters
    ----------
    x, y : (n,) array_like
        Points; those with NaN are left out.
    z : float
        For a normal distribution half a side is about z standard deviations; 2 in the paper.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> core = spread(rng.normal(0, 1, 20000), rng.normal(3, 1, 20000))
    >>> 1.9 < core.x < 2.3, 2.6 < core.peak_y < 3.4, 0.05 < core.outside < 0.12
    (True, True, True)
    """
    if not z > 0:
        raise ParameterError("z", rule="must be positive", value=z)
    points = np.stack([np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()])
    points = points[:, np.isfinite(points).all(0)]
    n = points.shape[1]
    sigma = float(np.prod(points.var(1, ddof=1)) ** 0.25) if n > 2 else 0.0
    if sigma == 0:
        return Spread(*(np.nan,) * 5, count=n, bandwidth=np.nan)
    bandwidth = _BANDWIDTH * sigma * n ** (-1 / 6)
    centre = np.median(points, 1)
    half = (z + 1) * sigma
    for _ in range(2):  # a crude mesh, then one as wide as the core it has found
        nodes = np.linspace(centre - half, centre + half, _NODES)
        density = _density(points[0], points[1], nodes[:, 0], nodes[:, 1], bandwidth)
        inside = np.nonzero(density >= density.max() * np.exp(-(z**2) / 2))
        (y0, y1), (x0, x1) = ((axis[k.min()], axis[k.max()]) for axis, k in zip(nodes.T[::-1], inside, strict=True))
        half = ((x1 - x0) + (y1 - y0)) / 2
    top_y, top_x = np.unravel_index(int(density.argmax()), density.shape)
    out = (points[0] < x0) | (points[0] > x1) | (points[1] < y0) | (points[1] > y1)
    return Spread(
        x=float(x1 - x0) / 2, y=float(y1 - y0) / 2, peak_x=float(nodes[top_x, 0]), peak_y=float(nodes[top_y, 1]),
        outside=float(out.mean()), count=n, bandwidth=bandwidth,
    )  # fmt: skip


@njit(error_model="numpy", nogil=True, cache=True)
def _density(x: Any, y: Any, at_x: Any, at_y: Any, bandwidth: Any) -> Any:
    """Epanechnikov kernel density, without its constant factor, on a mesh: density[y, x].

    The nodes stand equally close along both axes. Every point is added to the few that its kernel reaches.
    """
    n = at_x.size
    density = np.zeros((n, n))
    pitch = (at_x[n - 1] - at_x[0]) / (n - 1)
    reach = int(bandwidth / pitch) + 2
    for k in range(x.size):
        # Far points need no whole number, which might not hold them.
        column, row = (x[k] - at_x[0]) / pitch, (y[k] - at_y[0]) / pitch
        if abs(column) > n + reach or abs(row) > n + reach:
            continue
        for j in range(max(0, int(row) - reach), min(n, int(row) + reach + 1)):
            across = ((y[k] - at_y[j]) / bandwidth) ** 2
            for i in range(max(0, int(column) - reach), min(n, int(column) + reach + 1)):
                density[j, i] += max(0.0, 1.0 - across - ((x[k] - at_x[i]) / bandwidth) ** 2)
    return density


def invalid_fraction(vx: ArrayLike, vy: ArrayLike) -> float:
    """Metric 0: share of the whole map where vx or vy has no value.

    Examples
    --------
    >>> invalid_fraction([1.0, np.nan, 3.0, 4.0], [1.0, 2.0, 3.0, np.nan])
    0.5
    """
    return float(1 - np.mean(np.isfinite(vx) & np.isfinite(vy)))


def static_spread(vx: ArrayLike, vy: ArrayLike, still: NDArray[np.bool_], *, z: float = 2.0) -> Spread:
    """Metric 1: spread of vx and vy on ground that does not move, in the unit of the velocity.

    Parameters
    ----------
    vx, vy : (ny, nx) array_like
        NaN where there is no value.
    still : (ny, nx) bool
        Cells whose centre lies on stable ground.
    z : float
        See `spread`.

    Examples
    --------
    >>> vx, vy = np.random.default_rng(1).normal(0, 0.1, (2, 100, 100))
    >>> round(static_spread(vx, vy, np.ones((100, 100), bool)).x, 1)
    0.2
    """
    return spread(np.asarray(vx)[still], np.asarray(vy)[still], z=z)


def along_flow_strain(
    vx: ArrayLike, vy: ArrayLike, ice: NDArray[np.bool_], spacing: tuple[float, float], *, published: bool = False
) -> tuple[Floats, Floats]:
    """Strain rates in the direction of the flow: stretching along it, and shear.

    Parameters
    ----------
    vx, vy : (ny, nx) array_like
        NaN where there is no value.
    ice : (ny, nx) bool
        Cells whose centre lies on the glacier; none of the others takes part in a derivative.
    spacing : (float, float)
        Width of a cell along y and x [m].
    published : bool
        The published trap: GLAFT differentiates with a Sobel operator that is not normalised, so that **all its strain
        rates are 8 times the physical ones**. False gives physical strain rates, True the published ones.

    Returns
    -------
    e_xx, e_xy : (ny, nx) float64
        [unit of the velocity / m], NaN off the ice and beside gaps. e_xx is positive where the ice is stretched.

    Notes
    -----
    The direction is the median of atan2(vy, vx) over 1500 m (at most 35 cells) of the whole map, beyond it 0; cells
    without a value count as (-9999, -9999), as in the published maps.

    Examples
    --------
    >>> x = 50.0 * np.arange(60)
    >>> vx = np.tile(0.001 * x + 1, (60, 1))
    >>> every = np.ones((60, 60), bool)
    >>> [round(float(along_flow_strain(vx, 0 * vx, every, (50, 50), published=p)[0][30, 30]), 6) for p in (False, True)]
    [0.001, 0.008]
    """
    u, v = np.asarray(vx, np.float64), np.asarray(vy, np.float64)
    if u.shape != v.shape or u.shape != ice.shape or u.ndim != 2:
        raise GridError("vx, vy, ice", rule="must have one shape (ny, nx)", value=(u.shape, v.shape, ice.shape))
    if not min(spacing) > 0:
        raise ParameterError("spacing", rule="must be positive", value=spacing)
    known = ice & np.isfinite(u) & np.isfinite(v)
    gain = 1.0 if published else SOBEL_GAIN
    # Rows run south: a derivative towards the north changes sign.
    dy, dx = -spacing[0] * gain, spacing[1] * gain
    on_ice = [np.where(known, a, np.nan) for a in (u, v)]
    (du_dy, du_dx), (dv_dy, dv_dx) = (
        [ndimage.sobel(a, axis, mode="constant", cval=np.nan) / d for axis, d in ((0, dy), (1, dx))] for a in on_ice
    )
    e_xy = (du_dy + dv_dx) / 2
    width = min(int(_SMOOTHING / spacing[1] // 2 * 2 + 1), _WIDEST)
    theta = _median(np.arctan2(*(np.where(np.isfinite(a), a, _NO_DATA) for a in (v, u))), width, known)
    sine, cosine = np.sin(2 * theta), np.cos(2 * theta)
    along = (du_dx + dv_dy) / 2 + (du_dx - dv_dy) / 2 * cosine + e_xy * sine
    return along, (dv_dy - du_dx) / 2 * sine + e_xy * cosine


def _median(a: Floats, width: int, where: NDArray[np.bool_]) -> Floats:
    """Median over width x width cells, beyond the edge 0; NaN where it is not asked for."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(a, width // 2), (width, width))
    out = np.full(a.shape, np.nan)
    for row, line, wanted in zip(out, windows, where, strict=True):
        row[wanted] = np.median(line[wanted].reshape(-1, width * width), 1)
    return out


def strain_spread(
    vx: ArrayLike,
    vy: ArrayLike,
    ice: NDArray[np.bool_],
    spacing: tuple[float, float],
    *,
    published: bool = False,
    z: float = 2.0,
) -> Spread:
    """Metric 2: spread of the strain rates along the flow (x) and of the shear (y) on a glacier.

    Parameters
    ----------
    vx, vy, ice, spacing, published
        See `along_flow_strain`. Mind the **factor 8** of the published numbers: `published=True` to compare with them.
    z : float
        See `spread`.

    Examples
    --------
    >>> vx, vy = np.random.default_rng(1).normal(1, 0.1, (2, 60, 60))
    >>> every = np.ones((60, 60), bool)
    >>> ours, theirs = (strain_spread(vx, vy, every, (100, 100), published=p) for p in (False, True))
    >>> round(theirs.x / ours.x, 6)
    8.0
    """
    return spread(*along_flow_strain(vx, vy, ice, spacing, published=published), z=z)


def metrics(
    velocity: xr.Dataset, still: xr.DataArray, ice: xr.DataArray, *, published: bool = False, z: float = 2.0
) -> pd.DataFrame:
    """The three metrics of every pair of a velocity cube.

    Parameters
    ----------
    velocity : xr.Dataset
        `vx`, `vy` [meter/year], dims (mid_date, y, x). Read one pair at a time.
    still, ice : xr.DataArray
        bool (y, x): stable ground, and the glacier whose flow is smooth (the paper takes it 600 m inside its margin).
    published : bool
        The strain rates 8 times too large, as GLAFT has them.
    z : float
        See `spread`.

    Returns
    -------
    pd.DataFrame
        One row per pair: `pair_id` (if there), `invalid` [share]; of metric 1 `static_vx`, `static_vy` and their
        `static_peak_vx`, `static_peak_vy` [meter/year], `static_outside` [share], `static_count`; of metric 2
        `strain_xx`, `strain_xy`, `strain_peak_xx`, `strain_peak_xy` [1/year], `strain_outside`, `strain_count`. For
        the paper's meter/day and 1/day divide by 365; its pixels per pair: static x days / 365 / pixel size.

    Raises
    ------
    GridError
        A mask has another shape.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> velocity, _ = velocity_cube("100")
    >>> every = xr.ones_like(velocity["vx"][0], bool)
    >>> table = metrics(velocity, every, every)
    >>> len(table), bool((table["static_vx"] > 0).any())
    (100, True)
    """
    shape = (velocity.sizes["y"], velocity.sizes["x"])
    for name, mask in (("still", still), ("ice", ice)):
        if mask.shape != shape:
            raise GridError(name, rule=f"must have the shape {shape} of the velocity", value=mask.shape)
    resolution = grid.geobox_of(velocity).resolution
    spacing = (abs(float(resolution.y)), abs(float(resolution.x)))
    masks = [np.asarray(mask.values, bool) for mask in (still, ice)]
    rows = []
    for k in range(velocity.sizes["mid_date"]):
        pair = velocity[["vx", "vy"]].isel(mid_date=k).transpose("y", "x").compute()
        vx, vy = pair["vx"].values, pair["vy"].values
        row: dict[str, Any] = {"invalid": invalid_fraction(vx, vy)}
        for result, name, x, y in (
            (static_spread(vx, vy, masks[0], z=z), "static", "vx", "vy"),
            (strain_spread(vx, vy, masks[1], spacing, published=published, z=z), "strain", "xx", "xy"),
        ):
            columns = (x, y, f"peak_{x}", f"peak_{y}", "outside", "count")
            row |= {f"{name}_{c}": value for c, value in zip(columns, astuple(result))}
        rows.append(row)
    table = pd.DataFrame(rows)
    if "pair_id" in velocity.coords:
        table.insert(0, "pair_id", velocity["pair_id"].values)
    return table
