"""Synthetic image-pair velocities of one glacier with exactly known truth, after real acquisition calendars.

Sentinel-2 every 5 d and Landsat every 16 d, thinned in winter, pairs of 5-400 d; noise in metres of displacement per
image pair, part of it common to a pair and part correlated in space, outliers, missing values. The speed has a
season, a yearly pulse, a trend and, on request, a surge; displacements are its exact integrals, so the mean over any
interval is known. The order of the random draws is part of the definition: it makes cubes comparable between
versions, and `tests/test_invert.py` checks their fingerprints.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from scipy.ndimage import uniform_filter
from scipy.special import erf

from .. import flags, grid

Float = NDArray[np.float64]

JULIAN_YEAR = 365.25
_DAY = np.timedelta64(86400, "s")


@dataclass(frozen=True)
class VelocityCubeSpec:
    """One synthetic cube; speeds in meter/year, `surge` is the peak speed of the surge."""

    pairs: int
    years: int
    dates: int
    size: int
    seed: int
    slowest: float = 40.0
    fastest: float = 400.0
    outliers: float = 0.15
    missing: float = 0.05
    season: float = 1.0
    surge: float = 0.0


CUBES: dict[str, VelocityCubeSpec] = {
    "100": VelocityCubeSpec(100, 2, 45, 12, 100),
    "500": VelocityCubeSpec(500, 3, 120, 12, 500),
    "2000": VelocityCubeSpec(2000, 5, 260, 12, 2000),
    "8000": VelocityCubeSpec(8000, 8, 650, 6, 8),
    "slow": VelocityCubeSpec(700, 4, 150, 8, 11, slowest=5, fastest=50),
    "fast": VelocityCubeSpec(700, 4, 150, 8, 11, slowest=800, fastest=3000),
    "surge": VelocityCubeSpec(700, 4, 150, 8, 11, slowest=40, fastest=200, surge=900),
    "noseas": VelocityCubeSpec(700, 4, 150, 8, 11, season=0.1),
    "out25": VelocityCubeSpec(700, 4, 150, 8, 11, outliers=0.25),
}


@dataclass(frozen=True)
class VelocityTruth:
    """The exact motion behind a cube: direction constant in time, speed with season, pulse, trend and surge."""

    first: float
    last: float
    speed: Float
    direction: Float
    phase: Float
    season: float
    surge: float

    def displacement(self, t: Float | float) -> Float:
        """Displacement along flow [m] since an arbitrary origin at decimal years `t`; shape of t + (y, x)."""
        t = np.asarray(t, float)[..., None, None]
        since, width, v0 = t - self.first, 20 / JULIAN_YEAR, self.speed
        d = v0 * (since - 0.01 * since * since)
        d = d - 0.25 * self.season * v0 / (2 * np.pi) * np.cos(2 * np.pi * (t - self.phase))
        for year in range(int(np.floor(self.first)) - 1, int(np.ceil(self.last)) + 2):
            pulse = erf((t - year - 0.42) / (np.sqrt(2) * width))
            d = d + 0.5 * self.season * v0 * width * np.sqrt(np.pi / 2) * pulse
        if self.surge:
            middle = self.first + 0.55 * (self.last - self.first)
            relative = v0 / v0.mean() * 0.12 * np.sqrt(np.pi / 2)
            d = d + self.surge * relative * erf((t - middle) / (np.sqrt(2) * 0.12))
        return d

    def velocity(self, start: NDArray[np.datetime64], end: NDArray[np.datetime64]) -> tuple[Float, Float]:
        """Mean vx and vy [meter/year of 365 d] between dates, (W, y, x) each."""
        return self._mean(decimal_year(start), decimal_year(end))

    def _mean(self, a: Float, b: Float) -> tuple[Float, Float]:
        per_year = grid.YEAR_DAYS / JULIAN_YEAR / (b - a)
        v = (self.displacement(b) - self.displacement(a)) * per_year[..., None, None]
        return v * np.cos(self.direction), v * np.sin(self.direction)


def decimal_year(dates: NDArray[np.datetime64]) -> Float:
    """Years of 365.25 d since 2017-01-01, plus 2017."""
    years: Float = 2017 + (dates - np.datetime64("2017-01-01", "s")) / _DAY / JULIAN_YEAR
    return years


def velocity_cube(name: str, *, shared: float = 0.0) -> tuple[xr.Dataset, VelocityTruth]:
    """A synthetic velocity Dataset (as `ogive.open_velocity` returns it, in memory) and its truth.

    Parameters
    ----------
    name : str
        One of `CUBES`.
    shared : float
        Share of the nominal variance of a pair (1 m Sentinel-2, 2.5 m Landsat) that comes with the positions of its
        two images, 0 to 1: all pairs of an image then share its error. Motion, outliers and gaps stay the same.

    Returns
    -------
    velocity : xr.Dataset
        dims (mid_date, y, x); pairs ordered by first and second date. `outlier` (mid_date, y, x) marks the pairs
        replaced on purpose.
    truth : VelocityTruth

    Examples
    --------
    >>> velocity, truth = velocity_cube("100")
    >>> dict(velocity.sizes)
    {'mid_date': 100, 'y': 12, 'x': 12}
    """
    spec = CUBES[name]
    rng = np.random.default_rng(spec.seed)
    d1, d2, *_ = pairs = _draw_pairs(spec, rng)
    t1, t2 = decimal_year(d1), decimal_year(d2)
    fraction = np.linspace(0, 1, spec.size)
    g = 0.5 * fraction[:, None] + 0.5 * fraction[None, :]
    speed = spec.slowest + (spec.fastest - spec.slowest) * g
    truth = VelocityTruth(t1.min(), t2.max(), speed, np.deg2rad(30 + 40 * g), 0.30 + 0.05 * g, spec.season, spec.surge)
    vx, vy = truth._mean(t1, t2)
    vx, vy, outlier, error = _spoil(spec, rng, (vx, vy), pairs, shared)
    return _dataset(spec, pairs, (np.round(vx), np.round(vy), outlier, error)), truth


def _draw_pairs(
    spec: VelocityCubeSpec, rng: np.random.Generator
) -> tuple[NDArray[np.datetime64], NDArray[np.datetime64], NDArray[np.int64], NDArray[np.int64]]:
    """First and second date, baseline [day] and sensor (0 Sentinel-2, 1 Landsat) of every pair."""
    length = 365 * spec.years
    sentinel, landsat = np.arange(0, length, 5), np.arange(3, length, 16)
    day, unique = np.unique(np.concatenate([sentinel, landsat]), return_index=True)
    sensor = np.repeat([0, 1], [len(sentinel), len(landsat)])[unique]
    light = np.where((day % 365 < 50) | (day % 365 > 320), 0.35, 1.0)
    keep = rng.choice(len(day), size=min(spec.dates, len(day)), replace=False, p=light / light.sum())
    keep.sort()
    day, sensor = day[keep], sensor[keep]
    i, j = np.triu_indices(len(day), 1)
    dt = day[j] - day[i]
    allowed = (dt >= 5) & (dt <= 400) & (sensor[i] == sensor[j])
    i, j, dt = i[allowed], j[allowed], dt[allowed]
    wanted = np.where(dt <= 100, 3.0, np.where(dt > 330, 2.0, 1.0))
    pick = rng.choice(len(i), size=min(spec.pairs, len(i)), replace=False, p=wanted / wanted.sum())
    pick.sort()
    i, j, dt = i[pick], j[pick], dt[pick]
    overpass = np.where(sensor[i] == 0, 40800, 37800).astype("m8[s]")
    origin = np.datetime64("2017-01-03", "s")
    return origin + day[i].astype("m8[D]") + overpass, origin + day[j].astype("m8[D]") + overpass, dt, sensor[i]


def _spoil(
    spec: VelocityCubeSpec,
    rng: np.random.Generator,
    velocity: tuple[Float, Float],
    pairs: tuple[NDArray[np.datetime64], NDArray[np.datetime64], NDArray[np.int64], NDArray[np.int64]],
    shared: float,
) -> tuple[Float, Float, NDArray[np.bool_], NDArray[np.float32]]:
    """Add noise, outliers and missing values; also the given errors, themselves only known to 15 %."""
    _, _, dt, sensor = pairs
    n, size = len(dt), spec.size
    shape = (n, size, size)
    base = np.where(sensor == 0, 1.0, 2.5) * np.exp(0.35 * rng.standard_normal(n))
    sigma = np.hypot(base, 0.15 * dt / 30)
    to_year = 365.0 / dt
    spoilt = []
    own = np.sqrt(np.maximum(sigma**2 - shared * np.where(sensor == 0, 1.0, 2.5) ** 2, 0.05 * sigma**2))
    for component, position in zip(velocity, _image_errors(spec, pairs, shared), strict=True):
        z = rng.standard_normal(shape)
        z = 0.7 * z + 2.1 * uniform_filter(z, (0, 3, 3))
        z /= z.std()
        common = 0.3 * base[:, None, None] * rng.standard_normal((n, 1, 1))
        noise = z * own[:, None, None] + position if shared else z * sigma[:, None, None] + common
        spoilt.append(component + noise * to_year[:, None, None])
    probability = spec.outliers * (0.5 + 0.5 * dt / dt.mean())
    outlier = rng.random(shape) < probability[:, None, None]
    anywhere = rng.random(shape) < 0.5
    limit = 3 * spec.fastest
    wild = rng.uniform(-limit, limit, (2, *shape))
    near_zero = rng.standard_normal((2, *shape)) * (sigma * to_year)[:, None, None]
    vx, vy = (np.where(outlier, np.where(anywhere, w, z), v) for v, w, z in zip(spoilt, wild, near_zero, strict=True))
    missing = rng.random(shape) < spec.missing
    vx[missing] = vy[missing] = np.nan
    error = np.round((sigma * to_year * np.exp(0.15 * rng.standard_normal(n))).astype(np.float32), 1)
    return vx, vy, outlier & ~missing, error


def _image_errors(
    spec: VelocityCubeSpec,
    pairs: tuple[NDArray[np.datetime64], NDArray[np.datetime64], NDArray[np.int64], NDArray[np.int64]],
    shared: float,
) -> tuple[Float, Float]:
    """Position error of image 2 less that of image 1 [m], x and y; from draws of their own."""
    d1, d2, dt, sensor = pairs
    _, image = np.unique(
        np.stack([np.append(d1, d2).astype(np.int64), np.tile(sensor, 2)]), axis=1, return_inverse=True
    )
    rng = np.random.default_rng([spec.seed, 1])
    sigma = np.zeros(image.max() + 1)
    sigma[image] = np.sqrt(shared / 2) * np.tile(np.where(sensor == 0, 1.0, 2.5), 2)
    x, y = rng.standard_normal((2, len(sigma), spec.size, spec.size)) * sigma[:, None, None]
    one, two = image[: len(dt)], image[len(dt) :]
    return x[two] - x[one], y[two] - y[one]


def _dataset(
    spec: VelocityCubeSpec,
    pairs: tuple[NDArray[np.datetime64], NDArray[np.datetime64], NDArray[np.int64], NDArray[np.int64]],
    values: tuple[Float, Float, NDArray[np.bool_], NDArray[np.float32]],
) -> xr.Dataset:
    d1, d2, dt, sensor = pairs
    vx, vy, outlier, error = values
    d1, d2 = d1.astype("M8[ns]"), d2.astype("M8[ns]")
    middle = d1 + (d2 - d1) // 2
    geobox = GeoBox((spec.size, spec.size), Affine(120, 0, 700072.5, 0, -120, 3399967.5), "EPSG:32645")
    rate = {"units": "meter/year"}
    cube = ("mid_date", "y", "x")
    flag = np.where(np.isfinite(vx), 0, flags.NO_DATA).astype(np.uint16)
    per_pair = {
        "mid_date": middle,
        "date_center": middle,
        "acquisition_date_img1": d1,
        "acquisition_date_img2": d2,
        "date_dt": dt.astype(np.float32),
        "pair_id": np.arange(len(dt)),
        "satellite_img1": np.where(sensor == 0, "2A", "8"),
        "satellite_img2": np.where(sensor == 0, "2A", "8"),
    }
    return xr.Dataset(
        {
            "vx": (cube, vx.astype(np.float32), rate),
            "vy": (cube, vy.astype(np.float32), rate),
            "v": (cube, np.hypot(vx, vy).astype(np.float32), rate),
            "flag": (cube, flag, flags.attributes()),
            "outlier": (cube, outlier),
            "vx_error": ("mid_date", error, rate),
            "vy_error": ("mid_date", error.copy(), rate),
        },
        {
            **{name: ("mid_date", value) for name, value in per_pair.items()},
            **grid.coordinates(geobox),
            "mapping": grid.mapping(geobox),
        },
        {"year_length_days": grid.YEAR_DAYS, "title": f"synthetic velocities, {pd.Timestamp(d1.min()):%Y}"},
    )
