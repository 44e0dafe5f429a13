"""What the glacier and its valley look like from above: reflectance at any place and date, as a continuous function.

The ice carries its brightness with it: a particle seen at (y, x) on some date is traced back to the reference date,
and the texture is read there. So between two dates the pattern moves by `Glacier.displacement`, exactly. On it lie
crevasses, medial moraines, and ogives: one dark and bright band for each year of travel below the icefall. Rock stands
still; its shading follows the sun. The snow line goes up and down with the season and mutes what it covers.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import next_fast_len
from scipy.ndimage import distance_transform_edt, gaussian_filter

from ..grid import YEAR_DAYS
from .glacier import Glacier, days, season_integral
from .textures import Floats, Order, Texture, power_law, spectrum

_PSF = 6.0  # m; 0.6 px of a 10 m sensor: modulation transfer 0.17 at its Nyquist frequency
_ICE_STEP, _GROUND_STEP = 5.0, 10.0  # m; both sample the blurred textures above twice their highest frequency
_MORAINES = ((-0.34, 0.022), (0.10, 0.05), (0.47, 0.03))  # position across the tongue, width
_ICE, _DEBRIS, _ROCK, _SNOW, _WATER = 0.47, 0.19, 0.21, 0.80, 0.03  # reflectance near 0.84 µm


@dataclass(frozen=True)
class Ground:
    """What a sensor would see without sky and noise.

    Attributes
    ----------
    reflectance : float64 array
    snow, water : bool arrays
        Snow or clean ice (classifiers do not part them); open water.
    """

    reflectance: Floats
    snow: NDArray[np.bool_]
    water: NDArray[np.bool_]


@dataclass(frozen=True)
class Surface:
    """The looks of one glacier.

    Attributes
    ----------
    glacier : Glacier
    reference : str
        The date at which the ice texture is undistorted.
    seed : int
        Seed of all textures.
    decorrelation : float
        Share (0 … 1) of the texture's variance that turns into something else over the years: the correlation of two
        dates is 1 - share · (1 - cos(90° · years / 2)) of what it would be; 0 = the pattern only moves.
    snow : bool
        Whether snow falls.

    Examples
    --------
    >>> surface = Surface(Glacier(extent=(1200.0, 1500.0)), decorrelation=0.0, snow=False)
    >>> y, x = surface.glacier.centre_line(0.5)
    >>> dy, dx = surface.glacier.displacement("2022-01-01", "2022-07-01", y, x)
    >>> before, after = surface.ice("2022-01-01", y, x), surface.ice("2022-07-01", y + dy, x + dx)
    >>> round(float(abs(after - before)), 6)
    0.0
    """

    glacier: Glacier
    reference: str = "2022-06-01"
    seed: int = 0
    decorrelation: float = 0.4
    snow: bool = True

    def at(self, time: Any, y: ArrayLike, x: ArrayLike, *, sun: tuple[float, float]) -> Ground:
        """The ground at (y, x) on one date.

        Parameters
        ----------
        time : datetime64 or str
        y, x : arrays of float
            Map coordinates [m] that broadcast to two dimensions.
        sun : (float, float)
            Azimuth (from north, clockwise) and elevation [degrees].
        """
        y, x = np.broadcast_arrays(np.asarray(y, np.float64), np.asarray(x, np.float64))
        # One pixel of the finer sensor is shared by ice and rock, so that the edge is a ramp and not a staircase.
        share = np.clip(0.5 + self.glacier.margin(y, x) / _GROUND_STEP, 0, 1)
        near, off = share > 0, share < 1
        rock, snowy = self._rock(time, sun)
        reflectance, snow = np.zeros(y.shape), np.zeros(y.shape, bool)
        reflectance[off] = (1 - share[off]) * rock(y[off], x[off])
        snow[off] = snowy(y[off], x[off]) > 0.5
        reflectance[near] += share[near] * self.ice(time, y[near], x[near])
        snow[share > 0.5] = reflectance[share > 0.5] > 0.3  # debris is not taken for snow
        water = self.glacier.water(y, x)
        reflectance[water] = _WATER
        return Ground(reflectance, snow & ~water, water)

    def ice(self, time: Any, y: ArrayLike, x: ArrayLike) -> Floats:
        """Reflectance of the ice surface at (y, x), moved with the ice since the reference date."""
        y, x = np.asarray(y, np.float64), np.asarray(x, np.float64)
        tau = float(season_integral(days(self.reference)) - season_integral(days(time))) / YEAR_DAYS
        # Half a pixel outside the outline (the shared pixels) nothing moves.
        dy, dx = self.glacier.advance(tau, y, x)
        bare, contrast, *changing = self._ice_textures
        texture = bare(y + dy, x + dx)
        if changing:
            angle = np.pi / 4 * float(days(time) - days(self.reference)) / YEAR_DAYS
            mixed = np.cos(angle) * changing[0](y + dy, x + dx) + np.sin(angle) * changing[1](y + dy, x + dx)
            texture = texture + contrast(y + dy, x + dx) * mixed
        cover = self._snow_share(time, self._ice_height(x), 80.0)
        # A quarter of the contrast is left in snow: sastrugi and sagged crevasses.
        return np.asarray(texture + cover * (_SNOW + 0.25 * (texture - _ICE) - texture))

    # Ice ------------------------------------------------------------------------------------------------------------

    @cached_property
    def _ice_textures(self) -> tuple[Texture, ...]:
        g = self.glacier
        (height, width), (top, left) = g.extent, g.top_left
        rows = next_fast_len(int((height + 200) / _ICE_STEP), real=True)
        columns = next_fast_len(int((left + width - g.head) / _ICE_STEP), real=True)
        origin, spacing = (top + 100.0, g.head), (-_ICE_STEP, _ICE_STEP)
        y: Floats = (origin[0] - _ICE_STEP * np.arange(rows, dtype=np.float64))[:, None]
        x: Floats = (origin[1] + _ICE_STEP * np.arange(columns, dtype=np.float64))[None, :]
        rng = np.random.default_rng([self.seed, 1])

        def fractal(stretch: tuple[float, float]) -> Floats:
            amplitude = power_law(
                (rows, columns), exponent=1.3, longest=240.0, psf=_PSF, spacing=_ICE_STEP, stretch=stretch
            )
            return spectrum((rows, columns), rng, amplitude=amplitude)

        crevasses, rough = fractal((2.5, 1.0)), fractal((1.0, 1.0))
        debris = self._debris(y, x, rough)
        contrast = 0.055 * (1 - 0.55 * debris)
        steady = (0.75 * crevasses + 0.66 * rough) * np.sqrt(1 - self.decorrelation)
        clean = _ICE - 0.06 * g.along(x) + self._ogives(y, x) * (1 - debris)
        bare = clean + debris * (_DEBRIS - clean) + contrast * steady
        fields = [bare]
        if self.decorrelation > 0:
            share = np.sqrt(self.decorrelation)
            fields += [contrast, share * fractal((1.5, 1.0)), share * fractal((1.5, 1.0))]
        else:
            fields += [contrast]
        orders: tuple[Order, ...] = (5, 1, 5, 5)
        return tuple(Texture.through(f, origin, spacing=spacing, order=o) for f, o in zip(fields, orders, strict=False))

    def _debris(self, y: Floats, x: Floats, rough: Floats) -> Floats:
        """Share of debris: medial moraines that widen downstream, the margins, the last of the tongue."""
        n = self.glacier.across(y, x)
        along = np.clip(self.glacier.along(x), 0, 1)
        cover = np.zeros(n.shape)
        for position, width in _MORAINES:
            cover = np.maximum(cover, np.exp(-(((n - position) / (width * (0.6 + along))) ** 2)))
        edge = np.exp(-np.clip(self.glacier.margin(y, x), 0, None) / (0.012 * self.glacier.extent[1]))
        front = np.exp(-np.clip(self.glacier.front(n) - x, 0, None) / (0.06 * self.glacier.extent[1]))
        cover = np.maximum(cover, np.maximum(edge, 0.8 * front))
        return np.asarray(np.clip(cover * (1 + 0.25 * rough), 0, 1))

    def _ogives(self, y: Floats, x: Floats) -> Floats:
        """Bands that are one year of travel apart, born at the icefall at the western edge."""
        g = self.glacier
        if g.speed == 0:
            return np.zeros(np.broadcast(y, x).shape)
        n = g.across(y, x)
        along = np.linspace(g.head, g.top_left[1] + g.extent[1], 1200)
        lanes = np.linspace(-0.9, 0.9, 91)
        rate = np.maximum(g.rate(along, lanes[:, None]), 1.0)
        years = np.cumsum(1 / rate, axis=1) * (along[1] - along[0])
        years -= years[:, [int(np.searchsorted(along, g.top_left[1]))]]
        travel = Texture.through(years, (-0.9, along[0]), spacing=(lanes[1] - lanes[0], along[1] - along[0]), order=1)(
            np.clip(n, -0.9, 0.9), x
        )
        # Old bands fade; near the margins, where shear packs them closer than a pixel, they fade at once.
        strength = np.clip(1 - (n / 0.8) ** 2, 0, None) * np.exp(-np.clip(travel, 0, None) * (0.05 + 0.6 * n**4))
        return np.asarray(0.11 * strength * np.cos(2 * np.pi * travel))

    def _ice_height(self, x: ArrayLike) -> Floats:
        return np.asarray(1900 + 900 * (1 - self.glacier.along(x)))

    # Rock -----------------------------------------------------------------------------------------------------------

    @cached_property
    def _terrain(self) -> dict[str, Any]:
        """Height, slopes, bare reflectance and snow patches of the valley on a 10 m raster."""
        g = self.glacier
        (height, width), (top, left) = g.extent, g.top_left
        pad = 100.0
        rows = next_fast_len(int((height + 2 * pad) / _GROUND_STEP), real=True)
        columns = next_fast_len(int((width + 2 * pad) / _GROUND_STEP), real=True)
        origin = (top + pad, left - pad)
        y = (origin[0] - _GROUND_STEP * np.arange(rows))[:, None]
        x = (origin[1] + _GROUND_STEP * np.arange(columns))[None, :]
        rng = np.random.default_rng([self.seed, 2])

        def fractal(exponent: float, longest: float, psf: float = _PSF) -> Floats:
            amplitude = power_law((rows, columns), exponent=exponent, longest=longest, psf=psf, spacing=_GROUND_STEP)
            return spectrum((rows, columns), rng, amplitude=amplitude)

        distance = distance_transform_edt(g.margin(y, x) <= 0) * _GROUND_STEP
        scale = width / 9600
        # The foot of the wall comes and goes, and ridges are sharper than valleys: a folded fractal.
        distance = distance * (1 + 0.45 * np.tanh(fractal(2.0, 1500 * scale)))
        rise = 1 - np.exp(-((distance / (1000 * scale)) ** 1.25))
        ridges = 1.3 * (1 - np.abs(fractal(2.7, 4500 * scale, 15.0))) + 0.4 * fractal(2.0, 1100 * scale, 12.0)
        z = self._ice_height(x) + scale * rise * (900 + 260 * ridges)
        z = z + 18 * scale * np.exp(-0.5 * ((distance - 90 * scale) / (35 * scale)) ** 2)  # lateral moraine
        z = gaussian_filter(z, 0.8)
        south, east = np.gradient(z, _GROUND_STEP)
        bare = _ROCK + 0.035 * fractal(1.3, 300.0) + 0.03 * fractal(1.3, 2500 * scale)
        patches = 140 * fractal(1.6, 900 * scale) - 500 * np.clip(np.hypot(south, east) - 0.8, 0, None)
        return {"z": z, "north": -south, "east": east, "bare": bare, "patches": patches, "origin": origin}

    def _rock(self, time: Any, sun: tuple[float, float]) -> tuple[Texture, Texture]:
        """Reflectance and snow share of everything that is not ice, under one sun."""
        t = self._terrain
        azimuth, elevation = np.deg2rad(sun)
        north, east, up = (
            np.cos(azimuth) * np.cos(elevation),
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
        )
        facing = (up - t["north"] * north - t["east"] * east) / np.sqrt(1 + t["north"] ** 2 + t["east"] ** 2)
        shade = np.clip(0.18 + 0.82 * np.clip(facing, 0, None) / up, None, 1.9)
        snow = self._snow_share(time, t["z"] + t["patches"], 40.0)
        # The sensor blurs shadows too; without that the spline would overshoot at their edges.
        lit = gaussian_filter((t["bare"] + snow * (_SNOW - 0.06 - t["bare"])) * shade, _PSF / _GROUND_STEP)
        spacing = (-_GROUND_STEP, _GROUND_STEP)
        return (
            Texture.through(lit, t["origin"], spacing=spacing, order=3),
            Texture.through(snow, t["origin"], spacing=spacing, order=1),
        )

    def _snow_share(self, time: Any, height: Floats, softness: float) -> Floats:
        """Share of snow at a height [m]: snow line lowest (1050 m) in March, highest (3250 m) in September."""
        if not self.snow:
            return np.zeros(np.shape(height))
        line = 2150 - 1100 * np.cos(2 * np.pi * (float(days(time)) - 60) / 365.25)
        return np.asarray(0.5 + 0.5 * np.tanh((height - line) / (2 * softness)))
