"""Image pairs whose displacement is known exactly: the truth cases that every matcher is measured on.

Image 2 samples the same continuous scene as image 1, at the place where each of its pixels came from. That place is
found by fixed-point iteration, so the truth is exact to 1e-9 px. Case names, sizes and noise are those of the
benchmark tables: P1 clean, P2 noisy, P4 alpine (needs a Landsat-7 file), P5 light and cloud, S00…S16 peak locking,
M1 a glacier margin. Positions are pixels, (0, 0) is the *centre* of the first pixel, dy is positive down.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from ..errors import ParameterError
from .textures import Floats, Texture, fractal_scene, image_scene

Field = Callable[[ArrayLike, ArrayLike], tuple[Floats, Floats]]
"""Displacement field: (y, x) in px of image 1 → (dy, dx) in px."""

_FRACTAL = {"P1": 20.0, "P2": 5.0, "P5": 10.0}
_LOCKING = {f"S{k:02d}": k / 16 for k in range(17)}
NAMES = (*_FRACTAL, "P4", *_LOCKING, "M1")


@dataclass(frozen=True)
class TruthPair:
    """Two images and the displacement between them.

    Attributes
    ----------
    image1, image2 : (rows, columns) uint16 arrays
        Reference (earlier) and secondary (later) image.
    displacement : callable
        `displacement(y, x) -> (dy, dx)`, all in px; y, x are positions in image 1, rows count down.
    name : str
        Name of the case.
    """

    image1: NDArray[np.uint16]
    image2: NDArray[np.uint16]
    displacement: Field
    name: str


def truth_pair(name: str, size: int | None = None, *, image: str | Path | None = None) -> TruthPair:
    """One truth case by name.

    Parameters
    ----------
    name : str
        P1, P2, P4, P5, S00 … S16 or M1.
    size : int, optional
        Rows and columns [px]; default 1024 (P1, P2, P5) or 512 (S, M1). Sums and published figures hold for the
        default. P4 has the size of its image less 64 px.
    image : path, optional
        P4 only: the single-band image that gives the texture.

    Returns
    -------
    TruthPair

    Raises
    ------
    ParameterError
        Unknown name, P4 without an image, another case with one, or a size that cannot be used.

    Examples
    --------
    >>> pair = truth_pair("P1", 64)
    >>> pair.image1.shape, [round(float(d), 2) for d in pair.displacement(32.0, 0.0)]
    ((64, 64), [1.86, 3.43])
    """
    if name not in NAMES:
        raise ParameterError("name", rule=f"must be one of {', '.join(NAMES)}", value=name)
    if (name == "P4") != (image is not None):
        raise ParameterError("image", rule="belongs to case P4 and to no other", value=image, fix="see truth_pair")
    if image is not None:
        if size is not None:
            raise ParameterError("size", rule="is given by the image of case P4", value=size, fix="leave it out")
        with rasterio.open(image) as file:
            band = file.read(1)
        height, width = band.shape
        return _moved(name, image_scene(band), (height - 64, width - 64), snr=20.0)
    if name in _FRACTAL:
        n = size or 1024
        return _moved(name, fractal_scene(n, seed=0), (n, n), snr=_FRACTAL[name])
    n = size or 512
    return _margin(n) if name == "M1" else _locking(name, n)


def flow_field(shape: tuple[int, int]) -> Field:
    """The flow field of the cases P1, P2, P4 and P5: a winding stream, at most 6.05 px, gradients to 0.026 px/px.

    Parameters
    ----------
    shape : (int, int)
        Rows, columns of the image.

    Examples
    --------
    >>> dy, dx = flow_field((1024, 1024))(512.0, 0.0)
    >>> round(float(np.hypot(dy, dx)), 3)
    3.906
    """
    height, width = shape

    def field(y: ArrayLike, x: ArrayLike) -> tuple[Floats, Floats]:
        y, x = np.asarray(y, np.float64), np.asarray(x, np.float64)
        centre = height / 2 + 0.1 * height * np.sin(2 * np.pi * x / width)
        amount = np.exp(-0.5 * ((y - centre) / (0.22 * height)) ** 2) * (0.65 + 0.35 * x / width)
        slope = 0.1 * height * 2 * np.pi / width * np.cos(2 * np.pi * x / width)
        rho = np.sqrt(1 + slope**2)
        return 6 * amount * slope / rho - 0.21, 6 * amount / rho + 0.13

    return field


def uniform_field(dy: float, dx: float) -> Field:
    """The same displacement everywhere [px].

    Examples
    --------
    >>> [d.tolist() for d in uniform_field(0.3, 0.5)([0, 1], [2, 3])]
    [[0.3, 0.3], [0.5, 0.5]]
    """

    def field(y: ArrayLike, x: ArrayLike) -> tuple[Floats, Floats]:
        shape = np.broadcast(np.asarray(y), np.asarray(x)).shape
        return np.full(shape, dy), np.full(shape, dx)

    return field


def source(y: ArrayLike, x: ArrayLike, field: Field) -> tuple[Floats, Floats]:
    """Where the things seen at (y, x) in image 2 were in image 1: p with p + field(p) = (y, x), to 1e-9 px.

    Raises
    ------
    ParameterError
        The field folds (a gradient near 1 px/px), so that the iteration does not settle.

    Examples
    --------
    >>> [float(p) for p in source(10.0, 20.0, uniform_field(0.5, 1.0))]
    [9.5, 19.0]
    """
    y, x = np.broadcast_arrays(np.asarray(y, np.float64), np.asarray(x, np.float64))
    py, px = y, x
    for _ in range(60):
        dy, dx = field(py, px)
        ny, nx = y - dy, x - dx
        change = max(float(np.abs(ny - py).max()), float(np.abs(nx - px).max()))
        py, px = ny, nx
        if change < 1e-9:
            return py, px
    raise ParameterError("field", rule="must have gradients well below 1 px/px", value=f"{change:.1e} px left")


def _moved(name: str, scene: Texture, shape: tuple[int, int], *, snr: float) -> TruthPair:
    field = flow_field(shape)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    one, two = scene(y, x), scene(*source(y, x, field))
    rng = np.random.default_rng(1)
    if name == "P5":
        two = _light_and_cloud(two, y, x, rng)
    return _finish(name, one, two, field, rng, snr=snr)


def _light_and_cloud(two: Floats, y: Floats, x: Floats, rng: np.random.Generator) -> Floats:
    height, width = two.shape
    two = two * (1 + 0.3 * np.sin(3 * np.pi * x / width + 1) * np.cos(2 * np.pi * y / height))
    two = two + 0.3 * np.cos(6 * np.pi * (x + y) / (width + height))
    thickness = gaussian_filter(rng.standard_normal(two.shape), 25)
    cloud = thickness > np.quantile(thickness, 0.85)
    texture = gaussian_filter(rng.standard_normal(two.shape), 1)
    return np.where(cloud, 2 + texture / texture.std(), two)


def _locking(name: str, size: int) -> TruthPair:
    scene, field = fractal_scene(size, seed=7), uniform_field(0.3, _LOCKING[name])
    y, x = np.mgrid[:size, :size].astype(np.float64)
    two = scene(*source(y, x, field))
    return _finish(name, scene(y, x), two, field, np.random.default_rng(1), snr=50.0)


def _margin(size: int) -> TruthPair:
    edge = size // 2  # first row of rock

    def field(y: ArrayLike, x: ArrayLike) -> tuple[Floats, Floats]:
        ice = np.broadcast_arrays(np.asarray(y) < edge - 0.5, np.asarray(x))[0]
        return np.zeros(ice.shape), np.where(ice, 5.3, 0.0)

    y, x = np.mgrid[:size, :size].astype(np.float64)
    ice, rock = fractal_scene(size, seed=11), 4 * fractal_scene(size, seed=12)(y, x)
    # The flow runs along the margin, so ice never crosses it and the inverse is a plain shift.
    one, two = np.where(y < edge, ice(y, x), rock), np.where(y < edge, ice(y, x - 5.3), rock)
    return _finish("M1", one, two, field, np.random.default_rng(0), snr=10.0, gain=400.0)


def _finish(
    name: str, one: Floats, two: Floats, field: Field, rng: np.random.Generator, *, snr: float, gain: float = 800.0
) -> TruthPair:
    def digital(values: Floats) -> NDArray[Any]:
        noisy = (values + rng.standard_normal(values.shape) / snr).astype(np.float32)
        return np.clip(np.round(gain * noisy + 8000), 1, 65535).astype(np.uint16)

    return TruthPair(digital(one), digital(two), field, name)
