"""What lies between the ground and the sensor: the sun, clouds and their shadows, thin cirrus."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ParameterError
from .glacier import days
from .textures import Floats, Texture, power_law, spectrum

_STEP = 40.0  # m; clouds are smooth, and their raster is interpolated linearly
_HEIGHT = 450.0  # m above ground


def sun_position(time: Any, latitude: float, longitude: float) -> tuple[float, float]:
    """Azimuth (from north, clockwise) and elevation of the sun [degrees], good to about half a degree.

    Declination and equation of time by their leading harmonics (Spencer 1971).

    Parameters
    ----------
    time : datetime64 or str, UTC
    latitude, longitude : float
        Degrees north and east.

    Examples
    --------
    >>> azimuth, elevation = sun_position("2021-06-21T12:02", 0.0, 0.0)
    >>> round(azimuth) % 360, round(elevation)
    (0, 67)
    """
    moment = np.datetime64(time, "ns")
    first = moment.astype("datetime64[Y]").astype("datetime64[ns]")
    day = float(days(moment) - days(first))
    g = 2 * np.pi * (day - 0.5) / 365.25
    declination = (
        0.006918 - 0.399912 * np.cos(g) + 0.070257 * np.sin(g) - 0.006758 * np.cos(2 * g) + 0.000907 * np.sin(2 * g)
    )
    minutes = 229.18 * (
        0.000075 + 0.001868 * np.cos(g) - 0.032077 * np.sin(g) - 0.014615 * np.cos(2 * g) - 0.040849 * np.sin(2 * g)
    )
    hour_angle = np.deg2rad((day % 1) * 360 + minutes / 4 + longitude - 180)
    phi = np.deg2rad(latitude)
    up = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(hour_angle)
    east = -np.cos(declination) * np.sin(hour_angle)
    north = np.cos(phi) * np.sin(declination) - np.sin(phi) * np.cos(declination) * np.cos(hour_angle)
    return float(np.rad2deg(np.arctan2(east, north)) % 360), float(np.rad2deg(np.arcsin(up)))


@dataclass(frozen=True)
class Sky:
    """Clouds of one scene as continuous functions of map position.

    Attributes
    ----------
    cloud, cirrus : Texture or None
        Opacity, 0 … 1.
    glow : Texture or None
        Texture of the cloud tops, standard deviation 1.
    shadow_offset : (float, float)
        North and east way from a cloud to its shadow [m].
    """

    cloud: Texture | None
    cirrus: Texture | None
    glow: Texture | None
    shadow_offset: tuple[float, float]

    def opacity(self, y: ArrayLike, x: ArrayLike) -> tuple[Floats, Floats, Floats]:
        """Opacity (0 … 1) of clouds, of cloud shadows and of cirrus at (y, x)."""
        zero = np.zeros(np.broadcast(np.asarray(y), np.asarray(x)).shape)
        cloud, shadow, cirrus = zero, zero, zero
        if self.cloud is not None:
            dy, dx = self.shadow_offset
            cloud, shadow = self.cloud(y, x), self.cloud(np.asarray(y) - dy, np.asarray(x) - dx)
        if self.cirrus is not None:
            cirrus = self.cirrus(y, x)
        return cloud, shadow * (1 - cloud), cirrus

    def over(self, reflectance: Floats, y: ArrayLike, x: ArrayLike) -> Floats:
        """The reflectance that a sensor above the clouds sees; (y, x) are those of the reflectance."""
        cloud, shadow, cirrus = self.opacity(y, x)
        seen = reflectance * (1 - 0.65 * shadow)
        if self.glow is not None:
            seen = seen * (1 - cloud) + cloud * (0.82 + 0.06 * self.glow(y, x))
        return seen * (1 - cirrus) + cirrus * 0.55


def make_sky(
    bounds: tuple[float, float, float, float],
    rng: np.random.Generator,
    *,
    cover: float,
    cirrus: bool,
    sun: tuple[float, float],
) -> Sky:
    """Random clouds over a rectangle.

    Parameters
    ----------
    bounds : (bottom, left, top, right)
        Map coordinates [m].
    rng : numpy.random.Generator
    cover : float
        Share of the sky under cloud, 0 … 0.95.
    cirrus : bool
        Whether there is a veil of thin cirrus too.
    sun : (float, float)
        Azimuth and elevation [degrees]; gives the way to the shadows.

    Raises
    ------
    ParameterError
        `cover` is outside 0 … 0.95.

    Examples
    --------
    >>> sky = make_sky((0, 0, 4000, 4000), np.random.default_rng(0), cover=0.3, cirrus=False, sun=(150, 45))
    >>> cloud, shadow, cirrus = sky.opacity(np.arange(0, 4000, 40)[:, None], np.arange(0, 4000, 40))
    >>> 0.1 < (cloud > 0.02).mean() < 0.6
    np.True_
    """
    if not 0 <= cover <= 0.95:
        raise ParameterError("cover", rule="must be between 0 and 0.95", value=cover)
    bottom, left, top, right = bounds
    azimuth, elevation = np.deg2rad(sun)
    reach = _HEIGHT / np.tan(max(elevation, np.deg2rad(5)))
    offset = (float(-reach * np.cos(azimuth)), float(-reach * np.sin(azimuth)))
    pad = reach + 200  # clouds outside throw shadows into the scene
    shape = int((top - bottom + 2 * pad) / _STEP) + 2, int((right - left + 2 * pad) / _STEP) + 2

    def texture(values: Floats) -> Texture:
        return Texture.through(values, (top + pad, left - pad), spacing=(-_STEP, _STEP), order=1)

    def layer(longest: float, stretch: tuple[float, float], share: float, softness: float) -> Floats:
        amplitude = power_law(shape, exponent=2.0, longest=longest, psf=60.0, spacing=_STEP, stretch=stretch)
        field = spectrum(shape, rng, amplitude=amplitude)
        ramp = np.clip((field - np.quantile(field, 1 - share)) / softness, 0, 1)
        return np.asarray(ramp * ramp * (3 - 2 * ramp))

    size = max(right - left, top - bottom)
    cloud = texture(layer(size / 2, (1.0, 1.3), cover, 0.35)) if cover > 0 else None
    glow = None
    if cloud is not None:
        amplitude = power_law(shape, exponent=1.3, longest=800.0, psf=40.0, spacing=_STEP)
        glow = texture(spectrum(shape, rng, amplitude=amplitude))
    veil = texture(0.12 * layer(size, (0.5, 3.0), 0.12, 0.8)) if cirrus else None
    return Sky(cloud, veil, glow, offset)
