"""Training samples of the learned matchers: synthetic glaciers, with exact motion at every cell.

They are those of `testing.flow_pairs`, with everything between its levels, other speeds, a second kind of texture, and
masks. Their seeds are beyond those of any benchmark.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..kernels._flow_field import inner
from ..kernels._flow_volume import CELL
from ..kernels.flow import HornSchunck, Level
from ..testing import flow_pairs

START = HornSchunck()
"""Whose field the network starts from."""
FIRST_SEED = 1 << 40
"""Seeds below are left to benchmarks."""
Planes = NDArray[np.float32]


class Sample(NamedTuple):
    """A pair: both images as `HornSchunck` sees them, the field it found; in cells the true one, and its weight."""

    one: Level
    two: Level
    start: Planes
    truth: Planes
    weight: Planes


def sample(seed: tuple[int, ...], size: int, rough: tuple[float, float] = (0.0, 2.6)) -> Sample:
    """One sample of so many pixels, the same for the same seed; `rough` as in `train.Recipe`.

    Ice that both images show weighs most, then rock and what is under snow, then what is masked.

    Examples
    --------
    >>> made = sample((0, 1), 96)
    >>> made.start.shape, made.truth.shape
    ((2, 98, 98), (2, 24, 24))
    """
    rng = np.random.default_rng(seed)
    texture = _texture(rng, 2 * (size + 2 * flow_pairs.MARGIN), rough) if rng.random() < 0.5 else None
    pair = flow_pairs.flow_pair(
        _level(rng), int(rng.integers(FIRST_SEED, 1 << 60)), size, texture=texture, fastest=rng.uniform(1.5, 5.5)
    )
    halo, windows = START.halo(), []
    for image in (pair.image1, pair.image2):
        valid = ~_holes(rng, size) if rng.random() < 0.3 else np.ones(image.shape, bool)
        windows.append(START.prepare(np.pad(image.astype(np.float32), halo), np.pad(valid, halo)))
    start = inner(START.field(*windows), halo)
    one, two = (window.inner(halo).levels[0] for window in windows)
    n = size // CELL
    at = CELL * np.arange(n) + (CELL - 1) / 2
    truth = np.stack(pair.displacement(at[:, None], at[None])).astype(np.float32)
    scored, known = (mask.reshape(n, CELL, n, CELL).mean((1, 3)) for mask in (pair.scored, one.known))
    return Sample(one, two, start, truth, ((0.25 + 0.75 * scored) * (0.1 + 0.9 * known)).astype(np.float32))


def _level(rng: np.random.Generator) -> flow_pairs.Level:
    """What spoils a pair: nothing but noise, or anything from there to a little beyond the hardest level."""
    easy, hard = flow_pairs.LEVELS["easy"], flow_pairs.LEVELS["annual"]
    if rng.random() < 0.15:
        return easy
    t = rng.uniform(0, 1.2)
    return flow_pairs.Level(
        persistence=1 - (1 - hard.persistence) * t, azimuth=hard.azimuth * t, elevation=hard.elevation * t,
        shading=hard.shading * t**0.5, snow=hard.snow * t, gain=hard.gain * t,
        noise=easy.noise + (hard.noise - easy.noise) * t,
    )  # fmt: skip


def _texture(rng: np.random.Generator, n: int, rough: tuple[float, float]) -> NDArray[np.float64]:
    """Ground of another kind than that of `flow_pairs`: noise, ridges, plains with edges; strong here, faint there."""
    power, kind = rng.uniform(*rough), rng.integers(3)
    ground = flow_pairs.noise(rng, n, power, low=4)
    if kind == 1:
        long = {"stretch": rng.uniform(1, 4), "angle": rng.uniform(0, np.pi)}
        ground = np.abs(ground) + 0.5 * np.abs(flow_pairs.noise(rng, n, power, low=16, **long))
    if kind == 2:
        ground = gaussian_filter(np.floor(ground * rng.uniform(1, 3)), 1) + 0.2 * ground
    strength = np.exp(rng.uniform(0, 1.2) * flow_pairs.noise(rng, n, 2.5, low=4))
    return np.asarray(ground * strength + rng.uniform(0, 1) * flow_pairs.noise(rng, n, 2.5))


def _holes(rng: np.random.Generator, size: int) -> NDArray[np.bool_]:
    """What is masked: single pixels, a half plane, or blobs."""
    kind = rng.integers(3)
    if kind == 0:
        return rng.random((size, size)) < rng.uniform(0.002, 0.02)
    if kind == 1:
        y, x = np.mgrid[:size, :size] / size - rng.uniform(0.2, 0.8)
        angle = rng.uniform(0, 2 * np.pi)
        return np.asarray(y * np.sin(angle) + x * np.cos(angle) > rng.uniform(-0.1, 0.3))
    field: NDArray[Any] = gaussian_filter(flow_pairs.noise(rng, size, 2.6, low=3), 1)
    return np.asarray(field > np.quantile(field, rng.uniform(0.7, 0.97)))
