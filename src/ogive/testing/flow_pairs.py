"""Glacier pairs for dense flow: exact displacement at every pixel, and three levels of what spoils a real pair.

The ice moves like a valley glacier: plug flow between sharp shear margins, still rock beside it. Its texture is one
continuous function (`textures`); image 2 samples it where each of its pixels came from, so the truth is exact. What
makes a pair hard is added in steps: **easy** noise only; **glacier** part of the texture is replaced, the sun stands a
little elsewhere, a cast shadow and snow patches stand still; **annual** more of all, as between two summers. Terrain
shading, shadow and snow do not move with the ice: they pull every matcher to zero.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from ..errors import ParameterError
from .pairs import Field, source
from .textures import Floats, Texture, spectrum

MARGIN = 24
"""Texture beyond the image on each side [px]."""
FASTEST = 4.0
"""Largest displacement of a pair [px]."""


@dataclass(frozen=True)
class Level:
    """What spoils a pair: share of the texture that stays; change of sun azimuth and elevation [radian]; strength of
    the static shading; share of snow; change of gain; noise [reflectance]."""

    persistence: float
    azimuth: float
    elevation: float
    shading: float
    snow: float
    gain: float
    noise: float


LEVELS = {
    "easy": Level(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.002),
    "glacier": Level(0.85, math.radians(7), math.radians(5), 0.35, 0.06, 0.15, 0.003),
    "annual": Level(0.65, math.radians(17), math.radians(12), 0.5, 0.15, 0.25, 0.005),
}


@dataclass(frozen=True)
class FlowPair:
    """Two images, and the displacement of every pixel of image 1.

    Attributes
    ----------
    image1, image2 : (rows, columns) or (bands, rows, columns) uint16 arrays
    displacement : callable
        `displacement(y, x) -> (dy, dx)`, all in px; y, x are positions in image 1, rows count down.
    scored : (rows, columns) bool array
        Ice that image 2 does not show under snow.
    """

    image1: NDArray[np.uint16]
    image2: NDArray[np.uint16]
    displacement: Field
    scored: NDArray[np.bool_]


def flow_pair(
    level: str | Level, seed: int, size: int = 256, *, texture: NDArray[Any] | None = None, fastest: float = FASTEST,
    band: int = 0,
) -> FlowPair:  # fmt: skip
    """One pair, the same for the same arguments.

    Parameters
    ----------
    level : {"easy", "glacier", "annual"} or Level
    seed : int
        Seed of flow, texture, light and noise.
    size : int
        Rows and columns [px].
    texture : (rows, columns) array, optional
        A real image whose pixels serve as half pixels of the ice, at least `2 (size + 48)` wide; else the ice is made
        of fractal noise, foliation, ogives and boulders.
    fastest : float
        Largest displacement [px].
    band : int
        Bands of other numbers have another noise; motion, light and snow are the same.

    Raises
    ------
    ParameterError
        Unknown level, or a texture that is too small.

    Examples
    --------
    >>> pair = flow_pair("easy", seed=1, size=48)
    >>> dy, dx = pair.displacement(*np.mgrid[:48, :48])
    >>> pair.image1.shape, bool(3 < np.hypot(dy, dx).max() <= 4)
    ((48, 48), True)
    """
    if isinstance(level, str) and level not in LEVELS:
        raise ParameterError("level", rule=f"must be one of {', '.join(LEVELS)}", value=repr(level))
    what = LEVELS[level] if isinstance(level, str) else level
    rng, n = np.random.default_rng(seed), size + 2 * MARGIN
    if texture is not None and min(texture.shape) < 2 * n:
        raise ParameterError("texture", rule=f"must be at least {2 * n} px wide", value=texture.shape)
    valley = _Valley.random(rng, n, size / 2, fastest)
    y, x = np.mgrid[-MARGIN : size + MARGIN, -MARGIN : size + MARGIN].astype(np.float64)
    sun1 = rng.uniform(2.2, 3.2), math.radians(rng.uniform(40, 60))
    sun2 = tuple(angle + rng.uniform(-1, 1) * most for angle, most in zip(sun1, (what.azimuth, what.elevation)))
    still = valley.across(y, x) >= 1
    before, after = _textures(rng, what, valley, still, texture)
    if what.shading:
        before, after = _rough(before, *sun1), _rough(after, *sun2)
    images = [0.35 + 0.05 * _sampled(before, y, x), 0.35 + 0.05 * _sampled(after, *source(y, x, valley.displacement))]
    snow = np.zeros(y.shape, bool)
    if what.shading:
        shaded = _terrain(rng, still, [sun1, sun2], what.shading)
        shadows = _shadows(rng, valley, y, x)
        snow = _blobs(rng, y.shape, what.snow)
        images = [image * light * shadow for image, light, shadow in zip(images, shaded, shadows)]
        cover = gaussian_filter(snow.astype(float), 0.8)
        images[1] = images[1] * (1 - cover) + cover * (0.75 + 0.02 * noise(rng, n, 1.5))
        images[1] = images[1] * (1 + rng.uniform(-1, 1) * what.gain) + rng.uniform(-0.03, 0.03)
    inner = slice(MARGIN, -MARGIN)
    sensor = rng if band == 0 else np.random.default_rng((seed, band))
    # Sentinel-2's digital numbers.
    digital = [
        np.clip(np.round(1e4 * (image + what.noise * sensor.standard_normal(image.shape))), 1, 65535).astype(np.uint16)
        for image in images
    ]
    dy, dx = valley.displacement(y, x)
    there = tuple(np.clip(np.rint(c + d).astype(int) + MARGIN, 0, n - 1) for c, d in ((y, dy), (x, dx)))
    scored = ~still & ~snow[there]
    return FlowPair(digital[0][inner, inner], digital[1][inner, inner], valley.displacement, scored[inner, inner])


@dataclass(frozen=True)
class _Valley:
    """A curved trunk: plug flow across, waves of speed along. Lengths in `width` px, from the image's `centre`."""

    width: int
    centre: float
    angle: float
    curve: float
    offset: float
    half: float
    widening: float
    plug: float
    wave: float
    waves: float
    phase: float
    fastest: float

    @classmethod
    def random(cls, rng: np.random.Generator, width: int, centre: float, fastest: float) -> "_Valley":
        return cls(
            width, centre, angle=rng.uniform(0, 2 * np.pi), curve=rng.uniform(-0.35, 0.35),
            offset=rng.uniform(-0.08, 0.08), half=rng.uniform(0.22, 0.36), widening=rng.uniform(-0.2, 0.2),
            plug=rng.uniform(3, 8), wave=rng.uniform(-0.35, 0.35), waves=rng.uniform(0.5, 1.2),
            phase=rng.uniform(0, 1), fastest=fastest * rng.uniform(0.8, 1.0),
        )  # fmt: skip

    def along(self, y: ArrayLike, x: ArrayLike) -> tuple[Floats, Floats]:
        """Distances along the valley and to its left."""
        y, x = ((np.asarray(c, np.float64) - self.centre) / self.width for c in (y, x))
        c, s = math.cos(self.angle), math.sin(self.angle)
        return x * c + y * s, y * c - x * s

    def across(self, y: ArrayLike, x: ArrayLike) -> Floats:
        """Distance from the centre line: 0 there, 1 at the margins."""
        u, v = self.along(y, x)
        return np.asarray(np.abs(v - self.curve * u**2 - self.offset) / (self.half * (1 + self.widening * u)))

    def displacement(self, y: ArrayLike, x: ArrayLike) -> tuple[Floats, Floats]:
        """(dy, dx) [px]."""
        u, _ = self.along(y, x)
        profile = np.clip(1 - np.minimum(self.across(y, x), 1) ** self.plug, 0, 1)
        speed = (1 + self.wave * np.sin(2 * np.pi * (self.waves * u + self.phase))) / (1 + abs(self.wave))
        slope, c, s = 2 * self.curve * u, math.cos(self.angle), math.sin(self.angle)
        speed = self.fastest * profile * speed / np.hypot(1, slope)
        return speed * (s + slope * c), speed * (c - slope * s)


def noise(
    rng: np.random.Generator, n: int, power: float, low: float = 2.0, high: float = math.inf, stretch: float = 1.0,
    angle: float = 0.0,
) -> Floats:  # fmt: skip
    """Noise of standard deviation 1 with a power spectrum k^-power between `low` and `high` waves in n points.

    `stretch` makes features that many times longer along the direction `angle` [radian from x towards y].
    """
    ky, kx = np.fft.fftfreq(n)[:, None] * n, np.fft.rfftfreq(n)[None] * n
    c, s = math.cos(angle), math.sin(angle)
    k = np.hypot((c * kx + s * ky) * stretch, c * ky - s * kx)
    amplitude = np.where(k > 0, np.maximum(k, low) ** (-power / 2), 0.0) * np.exp(-((k / high) ** 2))
    return spectrum((n, n), rng, amplitude=amplitude)


def _textures(
    rng: np.random.Generator, what: Level, valley: _Valley, still: NDArray[np.bool_], real: NDArray[Any] | None
) -> tuple[Floats, Floats]:
    """The ice at both dates on half pixels: a part of it stays, the rest becomes another one of the same kind."""
    n = 2 * len(still)
    if real is None:
        before, other = (_fractal(rng, valley, n) for _ in range(2))
    else:
        first = [int(rng.integers(0, side - n + 1)) for side in real.shape]
        part = np.asarray(real[first[0] : first[0] + n, first[1] : first[1] + n], np.float64)
        before = np.rot90(part if rng.random() < 0.5 else part[:, ::-1], int(rng.integers(4)))
        # Another texture with the same spectrum: the phases of noise.
        phase = np.angle(np.fft.rfft2(rng.standard_normal(before.shape)))
        other = np.fft.irfft2(np.abs(np.fft.rfft2(before - before.mean())) * np.exp(1j * phase), s=before.shape)
    before, other = _balanced(before), _balanced(other)
    if what.persistence == 1:
        return before, before
    stays = np.clip(what.persistence + 0.15 * noise(rng, n, 2.5), 0.2, 0.98)
    stays = np.where(np.kron(still, np.ones((2, 2), bool)), np.maximum(stays, 0.92), stays)
    return before, stays * before + np.sqrt(1 - stays**2) * other


def _fractal(rng: np.random.Generator, valley: _Valley, n: int) -> Floats:
    """Albedo, foliation along the flow, ogives across it, boulders and ponds."""
    half = (np.arange(n) - 0.5) / 2 - MARGIN
    u, v = valley.along(half[:, None], half)
    ice = noise(rng, n, rng.uniform(1.4, 2.2), low=6) + 0.6 * noise(rng, n, rng.uniform(0.6, 1.2), low=30, high=n / 5)
    ice = ice + 0.6 * noise(rng, n, 1.6, low=8, stretch=6, angle=valley.angle)
    bands = np.sin(2 * np.pi * (u + 0.5 * v**2) / rng.uniform(0.03, 0.08) + 1.2 * noise(rng, n, 2.5))
    ice = ice + rng.uniform(0, 0.5) * bands * (noise(rng, n, 2.5) > 0)
    return np.asarray(ice - 1.2 * ice.std() * (noise(rng, n, 1.0, low=12, high=n / 4) > 2))


def _balanced(texture: Floats) -> Floats:
    """Detail below about 32 half pixels has standard deviation 1, what is larger 1.2: detail is what matchers see."""
    large = gaussian_filter(texture, 16)
    detail = texture - large
    return np.asarray(detail / detail.std() + 1.2 * (large - large.mean()) / large.std())


def _rough(texture: Floats, azimuth: float, elevation: float) -> Floats:
    """With the shading of its roughness, which moves with the ice and changes with the sun."""
    gy, gx = np.gradient(gaussian_filter(texture, 1.0))
    strength = 0.35 / math.tan(elevation) / np.hypot(gy, gx).std()
    return np.asarray(texture + strength * (math.cos(azimuth) * gx + math.sin(azimuth) * gy))


def _sampled(texture: Floats, y: Floats, x: Floats) -> Floats:
    """Mean of the four half pixels round each position, between which a quintic spline interpolates."""
    surface = Texture.through(texture, (-MARGIN - 0.25, -MARGIN - 0.25), spacing=(0.5, 0.5))
    return np.asarray(np.mean([surface(y + v, x + u) for v in (-0.25, 0.25) for u in (-0.25, 0.25)], axis=0))


def _terrain(rng: np.random.Generator, still: NDArray[np.bool_], suns: list[Any], strength: float) -> list[Floats]:
    """Brightness of the slopes under each sun: rough rock, ice with undulations of 30 px and more."""
    height = 14 * noise(rng, len(still), 3.4)
    ice = gaussian_filter((~still).astype(float), 3)
    gy, gx = np.gradient(gaussian_filter(height, 6) * ice + height * (1 - ice))
    out = []
    for azimuth, elevation in suns:
        towards = math.cos(elevation) * (math.cos(azimuth) * gx + math.sin(azimuth) * gy) + math.sin(elevation)
        light = np.maximum(towards / np.sqrt(1 + gx**2 + gy**2), 0.15)
        out.append(1 + strength * (light / light.mean() - 1))
    return out


def _shadows(rng: np.random.Generator, valley: _Valley, y: Floats, x: Floats) -> list[Floats]:
    """Share of light left by the shadow of one valley side, whose edge moves by up to 14 px with the sun."""
    n = len(y)
    side = rng.choice([-1, 1])
    inside = side * (n * valley.along(y, x)[1] - side * rng.uniform(0.1, 0.3) * n) + 12 * noise(rng, n, 3.0)
    return [1 - 0.55 / (1 + np.exp(-(inside + shift).clip(-60, 60))) for shift in (0.0, rng.uniform(-14, 14))]


def _blobs(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> NDArray[np.bool_]:
    field = gaussian_filter(noise(rng, shape[0], 2.6, low=3), 1)
    return np.asarray(field > np.quantile(field, 1 - share))
