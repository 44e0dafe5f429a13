"""A glacier tongue whose velocity and displacement are known exactly, anywhere and for any two dates.

The velocity is V(y, x)·s(t): a steady map times a seasonal factor. A particle therefore follows a streamline of V,
and only *how far* it gets depends on the dates, through τ = ∫ s dt, which is closed-form. Streamlines are closed-form
too: they keep n, the position across the tongue (-1 … 1). What is left to integrate is one scalar, x along the
streamline, by fourth-order Runge-Kutta steps that are far shorter than anything the field does.

Coordinates are metres of a UTM zone, y (northing) before x (easting); vy and dy are positive *north*. Years have 365 d.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from odc.geo.geobox import GeoBox
from scipy.special import erf

from ..errors import ParameterError
from ..grid import YEAR_DAYS, coordinates
from .textures import Floats

_EPOCH = np.datetime64("2020-01-01", "ns")
_SEASON_DAYS = 365.25  # the season follows the sun, not the 365-day year of the velocity unit
_SPRING, _SPRING_WIDTH, _SPRING_RISE = 0.42, 20 / 365.25, 0.5  # early June, 20 d, half of the mean speed
_WAVE, _WAVE_PHASE = 0.25, 0.30


def days(time: Any) -> Floats:
    """Days since 2020-01-01 of datetime64 values (or anything numpy reads as such).

    Examples
    --------
    >>> float(days("2020-01-02T12:00"))
    1.5
    """
    return np.asarray((np.asarray(time, "datetime64[ns]") - _EPOCH) / np.timedelta64(1, "D"), np.float64)


def season(t: ArrayLike) -> Floats:
    """Speed factor s, mean 1 over the year: a sinusoid and a short peak of melt-season speed in early June.

    Parameters
    ----------
    t : array of float
        Days since 2020-01-01.

    Examples
    --------
    >>> season([10.0, 153.0]).round(2).tolist()
    [0.68, 1.6]
    """
    u = np.asarray(t, np.float64) / _SEASON_DAYS
    width = _SPRING_WIDTH
    peaks = sum(np.exp(-(((u % 1) - _SPRING - j) ** 2) / (2 * width**2)) for j in range(-2, 3))
    spring = _SPRING_RISE * (peaks - width * np.sqrt(2 * np.pi))
    return np.asarray(1 + _WAVE * np.sin(2 * np.pi * (u - _WAVE_PHASE)) + spring)


def season_integral(t: ArrayLike) -> Floats:
    """Exact integral of `season` from 2020-01-01 to t [d]; error functions, no quadrature.

    Examples
    --------
    >>> round(float(season_integral(4 * 365.25)), 9)
    1461.0
    """
    u = np.asarray(t, np.float64) / _SEASON_DAYS
    whole, part = np.floor(u), u % 1
    root = np.sqrt(2) * _SPRING_WIDTH
    area = _SPRING_WIDTH * np.sqrt(2 * np.pi)
    # Whole years give whole areas; within the year, the peaks two years away are already zero in float64.
    peaks = area * whole + area / 2 * sum(
        erf((part - _SPRING - j) / root) - erf((-_SPRING - j) / root) for j in range(-2, 3)
    )
    wave = -np.cos(2 * np.pi * (u - _WAVE_PHASE)) + np.cos(2 * np.pi * _WAVE_PHASE)
    return np.asarray(_SEASON_DAYS * (u + _WAVE / (2 * np.pi) * wave + _SPRING_RISE * (peaks - area * u)))


@dataclass(frozen=True)
class Glacier:
    """An ablation tongue that flows from west to east and ends on land.

    Attributes
    ----------
    seed : int
        Shapes the bend of the tongue.
    extent : (float, float)
        Height and width of the scene [m]; the tongue scales with it.
    speed : float
        Centre-line speed far from the front [m per 365 d]; the mean along the centre line is about 0.8 of it.
    top_left : (float, float)
        Northing and easting of the upper left corner [m]; multiples of 60 m keep every sensor's grid whole.
    crs : str
        Coordinate system; a UTM zone.

    Notes
    -----
    Across the tongue the speed is (1 - n⁴)^1.5: Glen's n = 3 in the middle, and zero speed *and* zero gradient at the
    edge, so the margin shears hard (up to 2.6 times speed / half width) without a jump. Along the tongue it fades
    as 1 - exp(-r / L) with the distance r to the front: no particle ever crosses the outline.

    Examples
    --------
    >>> glacier = Glacier()
    >>> y, x = glacier.centre_line(0.3)
    >>> vy, vx = glacier.mean_velocity("2021-07-01", "2022-07-01", y, x)
    >>> 250 < np.hypot(vy, vx) < 320
    np.True_
    """

    seed: int = 0
    extent: tuple[float, float] = (7600.0, 9600.0)
    speed: float = 320.0
    top_left: tuple[float, float] = (5148000.0, 423000.0)
    crs: str = "EPSG:32632"

    def __post_init__(self) -> None:
        if min(self.extent) < 600:
            raise ParameterError("extent", rule="must be at least 600 m", value=self.extent, fix="use (2400, 3000)")
        if self.speed < 0:
            raise ParameterError("speed", rule="must not be negative", value=self.speed)

    # Shape of the tongue --------------------------------------------------------------------------------------------

    @cached_property
    def _bend(self) -> tuple[float, float]:
        rng = np.random.default_rng(self.seed)
        return float(rng.uniform(0.03, 0.05)), float(rng.uniform(-0.08, 0.08))

    def along(self, x: ArrayLike) -> Floats:
        """Position along the scene, 0 at its western edge, 1 at its eastern."""
        return np.asarray((np.asarray(x, np.float64) - self.top_left[1]) / self.extent[1])

    def _centre(self, x: ArrayLike) -> tuple[Floats, Floats]:
        """Northing of the centre line and its slope."""
        (height, width), (amount, phase) = self.extent, self._bend
        u = self.along(x)
        y = self.top_left[0] - height * (0.375 + 0.26 * u - amount * np.sin(2 * np.pi * (u / 0.9 + phase)))
        slope = -height / width * (0.26 - amount * 2 * np.pi / 0.9 * np.cos(2 * np.pi * (u / 0.9 + phase)))
        return y, slope

    def _half_width(self, x: ArrayLike) -> tuple[Floats, Floats]:
        """Half width of the tongue and its slope: a taper, with bulges where the valley is wider."""
        (height, width), u = self.extent, self.along(x)
        size, slope = 0.232 - 0.05 * u, np.full(u.shape, -0.05)
        for amount, waves, phase in ((0.007, 2.3, 0.1), (0.003, 4.9, 0.6)):
            size = size + amount * np.sin(2 * np.pi * (waves * u + phase))
            slope = slope + amount * 2 * np.pi * waves * np.cos(2 * np.pi * (waves * u + phase))
        return height * size, height / width * slope

    def front(self, n: Floats) -> Floats:
        """Easting of the front on the streamline n: a rounded lobe."""
        width = self.extent[1]
        return np.asarray(self.top_left[1] + 0.905 * width - 0.2 * width * (1 - np.sqrt(np.clip(1 - n * n, 0, None))))

    @property
    def head(self) -> float:
        """Easting where the modelled ice begins [m], a quarter of the width west of the scene."""
        return self.top_left[1] - 0.25 * self.extent[1]

    def across(self, y: ArrayLike, x: ArrayLike) -> Floats:
        """Position across the tongue, -1 … 1 on the ice; a particle keeps it for ever."""
        return np.asarray((np.asarray(y, np.float64) - self._centre(x)[0]) / self._half_width(x)[0])

    def centre_line(self, fraction: ArrayLike) -> tuple[Floats, Floats]:
        """y, x on the centre line; fraction 0 = western edge of the scene, 1 = front."""
        west = self.top_left[1]
        x = west + np.asarray(fraction, np.float64) * (self.front(np.zeros(())) - west)
        return self._centre(x)[0], x

    def margin(self, y: ArrayLike, x: ArrayLike) -> Floats:
        """Distance to the edge of the ice [m], positive on the ice, negative off it (first-order estimate)."""
        y, x = np.asarray(y, np.float64), np.asarray(x, np.float64)
        n = self.across(y, x)
        side = (1 - np.abs(n)) * self._half_width(x)[0] / np.sqrt(1 + self._slope(x, np.sign(n)) ** 2)
        return np.asarray(np.minimum(np.minimum(side, self.front(n) - x), x - self.head))

    # Motion ---------------------------------------------------------------------------------------------------------

    def rate(self, x: Floats, n: Floats) -> Floats:
        """dx per year of τ on the streamline n [m]."""
        side = np.clip(1 - n**4, 0, None) ** 1.5
        ahead = np.clip(self.front(n) - x, 0, None)
        fade = -np.expm1(-ahead / (0.2 * self.extent[1]))
        return np.asarray(self.speed * side * fade / np.sqrt(1 + self._slope(x, n) ** 2))

    def _slope(self, x: Floats, n: Floats) -> Floats:
        """dy/dx of the streamline n."""
        return np.asarray(self._centre(x)[1] + n * self._half_width(x)[1])

    def steady(self, y: ArrayLike, x: ArrayLike) -> tuple[Floats, Floats]:
        """The steady map V: vy, vx [m per 365 d], positive north and east; 0 off the ice."""
        y, x = np.broadcast_arrays(np.asarray(y, np.float64), np.asarray(x, np.float64))
        n = self.across(y, x)
        vx = np.where(self.margin(y, x) > 0, self.rate(x, n), 0.0)
        return vx * self._slope(x, n), vx

    def advance(self, tau: ArrayLike, y: ArrayLike, x: ArrayLike, *, refine: int = 1) -> tuple[Floats, Floats]:
        """Displacement after τ years of mean speed (τ < 0: backwards in time).

        Parameters
        ----------
        tau : array of float
            ∫ s dt [365 d]; broadcasts against y and x.
        y, x : arrays of float
            Start positions [m].
        refine : int
            Divides the integration step; 1 keeps the error below 1e-4 m, which a test checks by halving.

        Returns
        -------
        dy, dx : float64 arrays [m], positive north and east; 0 off the ice.
        """
        tau, y, x = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in (tau, y, x)))
        n, ice = self.across(y, x), self.margin(y, x) > 0
        reach = float(np.abs(tau).max(initial=0.0)) * self.speed
        steps = max(1, int(np.ceil(reach / (0.01 * self.extent[1])))) * refine
        h, end = tau / steps, x
        for _ in range(steps):
            k1 = self.rate(end, n)
            k2 = self.rate(end + h / 2 * k1, n)
            k3 = self.rate(end + h / 2 * k2, n)
            k4 = self.rate(end + h * k3, n)
            end = end + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        dy = self._centre(end)[0] + n * self._half_width(end)[0] - y
        return np.where(ice, dy, 0.0), np.where(ice, end - x, 0.0)

    def velocity(self, t: Any, y: ArrayLike, x: ArrayLike) -> tuple[Floats, Floats]:
        """Velocity at one instant: vy, vx [m per 365 d], positive north and east."""
        vy, vx = self.steady(y, x)
        s = season(days(t))
        return vy * s, vx * s

    def displacement(self, t1: Any, t2: Any, y: ArrayLike, x: ArrayLike) -> tuple[Floats, Floats]:
        """Displacement from t1 to t2 of the particle that is at (y, x) at t1: dy, dx [m]; t2 may be earlier."""
        tau = (season_integral(days(t2)) - season_integral(days(t1))) / YEAR_DAYS
        return self.advance(tau, y, x)

    def mean_velocity(self, t1: Any, t2: Any, y: ArrayLike, x: ArrayLike) -> tuple[Floats, Floats]:
        """What an image pair measures at (y, x): displacement / days · 365, [m per 365 d].

        Raises
        ------
        ParameterError
            The two dates are equal.
        """
        factor = YEAR_DAYS / _span(t1, t2)
        dy, dx = self.displacement(t1, t2, y, x)
        return dy * factor, dx * factor

    def window_velocity(self, t1: Any, t2: Any, y: ArrayLike, x: ArrayLike) -> tuple[Floats, Floats]:
        """Mean velocity between two dates at a *fixed* place: what a time series tells, [m per 365 d].

        Raises
        ------
        ParameterError
            The two dates are equal.
        """
        s = (season_integral(days(t2)) - season_integral(days(t1))) / _span(t1, t2)
        vy, vx = self.steady(y, x)
        return vy * s, vx * s

    # Grids and polygons ---------------------------------------------------------------------------------------------

    def geobox(self, resolution: float, *, inset: float = 0.0) -> GeoBox:
        """The grid of the scene: whole pixels of `resolution` m from the top left corner, moved inwards by `inset` m.

        Examples
        --------
        >>> Glacier().geobox(10).shape, Glacier().geobox(15, inset=22.5).shape
        (Shape2d(x=960, y=760), Shape2d(x=637, y=503))
        """
        rows, columns = (int((size - 2 * inset) / resolution + 1e-9) for size in self.extent)
        if min(rows, columns) < 1:
            raise ParameterError("resolution", rule="must be below the extent", value=resolution)
        top, left = self.top_left[0] - inset, self.top_left[1] + inset
        return GeoBox((rows, columns), Affine(resolution, 0, left, 0, -resolution, top), self.crs)

    def ice(self, geobox: GeoBox) -> NDArray[np.bool_]:
        """True where the pixel centre lies on ice; (rows, columns) bool array."""
        c = coordinates(geobox)
        return np.asarray(self.margin(c["y"].values[:, None], c["x"].values) > 0)

    def water(self, y: ArrayLike, x: ArrayLike) -> NDArray[np.bool_]:
        """True in the small lake in front of the glacier."""
        (cy, cx), (ry, rx) = self._lake
        inside = ((np.asarray(y, np.float64) - cy) / ry) ** 2 + ((np.asarray(x, np.float64) - cx) / rx) ** 2 < 1
        return np.asarray(inside)

    @cached_property
    def _lake(self) -> tuple[tuple[float, float], tuple[float, float]]:
        height, width = self.extent
        x = self.top_left[1] + 0.945 * width
        return (float(self._centre(x)[0]), x), (0.05 * height, 0.022 * width)

    def outline(self) -> gpd.GeoDataFrame:
        """The outline of the ice in the glacier's coordinate system, with the columns of an RGI 6 file.

        It reaches upstream beyond the scene, as real outlines do.
        """
        n = np.cos(np.linspace(0, np.pi, 181))
        front_x = self.front(n)
        sides = []
        for edge in (1.0, -1.0):
            x = np.linspace(self.head, float(self.front(np.asarray(edge))), 400)[:-1]
            sides.append(np.stack([x, self._centre(x)[0] + edge * self._half_width(x)[0]], axis=1))
        front = np.stack([front_x, self._centre(front_x)[0] + n * self._half_width(front_x)[0]], axis=1)
        polygon = shapely.Polygon(np.concatenate([sides[0], front, sides[1][::-1]]))
        centre = gpd.GeoSeries([polygon.centroid], crs=self.crs).to_crs("EPSG:4326").iloc[0]
        columns = {
            "RGIId": "RGI60-00.00001",
            "BgnDate": "20210701",
            "EndDate": "-9999999",
            "CenLon": centre.x,
            "CenLat": centre.y,
            "O1Region": "11",
            "O2Region": "1",
            "Area": polygon.area / 1e6,
            "Name": "Ogive Glacier",
        }
        return gpd.GeoDataFrame({k: [v] for k, v in columns.items()}, geometry=[polygon], crs=self.crs)

    def rock(self) -> gpd.GeoDataFrame:
        """Stable ground: the scene less ice and lake, and less a rim of 1.5 % of its width (144 m) around them."""
        (height, width), (top, left) = self.extent, self.top_left
        rim = 0.015 * width
        (cy, cx), (ry, rx) = self._lake
        angle = np.linspace(0, 2 * np.pi, 73)[:-1]
        lake = shapely.Polygon(np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], axis=1))
        box = shapely.box(left, top - height, left + width, top)
        ground = box.difference(shapely.union_all([self.outline().geometry.iloc[0], lake]).buffer(rim))
        parts = [p for p in getattr(ground, "geoms", [ground]) if p.area > 0]
        return gpd.GeoDataFrame({"class": ["rock"] * len(parts)}, geometry=parts, crs=self.crs)


def _span(t1: Any, t2: Any) -> Floats:
    span = np.asarray(days(t2) - days(t1))
    if (span == 0).any():
        raise ParameterError("dates", rule="must differ", value=t1, fix="use two dates")
    return span
