"""Truth cases of the benchmarks: who is asked at which points, and how an answer is scored.

Points are those of the published tables: chip centres at 72 + 8 k - 0.5 px, at least 72 px from every edge. What lies
beyond the image is masked, so that every kernel answers at all of them, however wide its halo.
"""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ogive import enhance
from ogive.kernels import NCC
from ogive.testing.pairs import TruthPair, truth_pair

DATA = Path(os.environ.get("OGIVE_DATA", Path(__file__).parents[2] / "shared" / "data"))
ALPINE = DATA / "imagery" / "everest_landsat7_20001030" / "LE71400412000304SGS00_B4.tif"
"""Texture of case P4."""
FILTER = NCC().enhance
"""Pre-filter of everything that is compared."""
EDGE = 72
"""No scored point is closer to an edge [px]."""

Image = NDArray[np.float32]
Vectors = tuple[NDArray[Any], NDArray[Any]]


class Answer(NamedTuple):
    """What a kernel found at the scored points: its arrays, and their positions [px]."""

    found: Mapping[str, NDArray[Any]]
    y: NDArray[Any]
    x: NDArray[Any]


@functools.cache
def pair_of(name: str) -> TruthPair:
    """A truth case."""
    return truth_pair(name, image=ALPINE if name == "P4" else None)


def cut(pair: TruthPair, size: int) -> TruthPair:
    """The middle of a pair, with the strain of the whole; all of it where it is no larger."""
    y, x = (max(0, (n - size) // 2) for n in pair.image1.shape)
    image1, image2 = (image[y : y + size, x : x + size] for image in (pair.image1, pair.image2))
    return TruthPair(image1, image2, lambda v, u: pair.displacement(np.asarray(v) + y, np.asarray(u) + x), pair.name)


def centres(length: int, step: int) -> NDArray[Any]:
    """Chip centres along one axis [px]."""
    return np.arange(EDGE, length - EDGE, step) - (1 - step % 2) / 2


def answer(kernel: NCC, image1: NDArray[Any], image2: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> Answer:
    """Match two images at the scored points; `valid` is the mask of both."""
    one, two = (window(kernel, image, valid) for image in (image1, image2))
    y, x = (centres(n, kernel.step) for n in image1.shape)
    return Answer(kernel.match(kernel.prepare(*one), kernel.prepare(*two)), y[:, None], x[None])


def window(kernel: NCC, image: NDArray[Any], valid: NDArray[np.bool_] | None) -> tuple[Image, NDArray[np.bool_]]:
    """The window that gives answers at the scored points, masked beyond the image."""
    first = EDGE - kernel.step // 2 - kernel.halo()
    axes = [first + np.arange(centres(n, kernel.step).size * kernel.step + 2 * kernel.halo()) for n in image.shape]
    y, x = (axis.clip(0, n - 1) for axis, n in zip(axes, image.shape, strict=True))
    inside = np.logical_and.outer(y == axes[0], x == axes[1])
    if valid is not None:
        inside &= valid[np.ix_(y, x)]
    return image[np.ix_(y, x)].astype(np.float32), inside


def errors(pair: TruthPair, y: NDArray[Any], x: NDArray[Any], vectors: Vectors) -> Vectors:
    """Estimate minus truth."""
    truth = pair.displacement(y, x)
    return vectors[0] - truth[0], vectors[1] - truth[1]


def score(error: Vectors, sigma: Vectors | None = None) -> dict[str, float]:
    """Figures of the published tables.

    `gross`: share of the vectors with an error of 1 px and more; RMSE (per component) and bias are those of the others,
    NMAD that of all. With errors of the vectors themselves: NMAD of error / sigma, and how many errors lie within one
    sigma and within 1.96.
    """
    e = np.stack(error)
    found = np.isfinite(e).all(0)
    if not found.any():
        return {"valid": 0.0}
    near = found & (np.hypot(*e) < 1)
    good = e[:, near]
    figures = {
        "valid": found.mean(),
        "gross": 1 - near.sum() / found.sum(),
        "RMSE": np.sqrt((good**2).mean()),
        "NMAD": np.mean([spread(c[found]) for c in e]),
        "bias y": good[0].mean(),
        "bias x": good[1].mean(),
    }
    if sigma is not None:
        z = e / np.stack(sigma)
        z = z[:, near & np.isfinite(z).all(0)].ravel()
        figures |= {"z": spread(z), "68 %": np.mean(abs(z) < 1), "95 %": np.mean(abs(z) < 1.96)}
    return {name: float(value) for name, value in figures.items()}


def spread(values: NDArray[Any]) -> float:
    """NMAD: standard deviation of a normal distribution, from the median."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def filtered(image: NDArray[Any]) -> Image:
    """An image as all programs get it."""
    return enhance.get(FILTER).apply(image.astype(np.float32), np.ones(image.shape, bool))[0]


def vectors(found: Mapping[str, NDArray[Any]]) -> Vectors:
    """Displacements (dy, dx)."""
    return found["dy"], found["dx"]


def clouds(shape: tuple[int, ...], share: float, seed: int) -> NDArray[np.bool_]:
    """Blobs of about 50 px over that share of the image; True where cloudy."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 25)
    return np.asarray(field > np.quantile(field, 1 - share))


def series(pair: TruthPair, count: int, snr: float, cloud: float) -> list[tuple[Image, Image]]:
    """Pairs of one displacement field with noise of their own, and clouds of their own in every image."""
    rng = np.random.default_rng(5)

    def spoiled(image: NDArray[Any], seed: int) -> Image:
        # Digital numbers are 800 per standard deviation of the texture, 8000 its mean.
        values = (image.astype(np.float64) - 8000) / 800 + rng.standard_normal(image.shape) / snr
        if cloud:
            texture = ndimage.gaussian_filter(rng.standard_normal(image.shape), 1)
            values = np.where(clouds(image.shape, cloud, seed), 2 + texture / texture.std(), values)
        return values.astype(np.float32)

    return [(spoiled(pair.image1, 2 * k), spoiled(pair.image2, 2 * k + 1)) for k in range(count)]
