"""Try parameters on one tile before a run: the vectors of a few cells, as the run would compute them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyproj
import xarray as xr

from . import grid as grids
from .errors import GridError, PairError, ParameterError
from .kernels import NCC, Custom, Kernel
from .track import track


def try_tile(
    cube: xr.Dataset, pairs: pd.DataFrame, kernel: Kernel | Callable[..., Any] | None = None, *, x: float, y: float,
    pair: int = 0, cells: int = 32, crs: Any = None,
) -> xr.Dataset:  # fmt: skip
    """Match one pair on the cells around a point, now; nothing is written.

    Parameters
    ----------
    cube : xr.Dataset
        From `open_cube`; only the window under the tile is read.
    pairs : pd.DataFrame
        From `make_pairs(cube)`.
    kernel : Kernel or callable, optional
        As in `track`.
    x, y : float
        The point, in the coordinate system of the cube or in `crs`.
    pair : int
        Row of `pairs`.
    cells : int
        Cells along a side of the tile; fewer at the edge of the cube.
    crs : optional
        Coordinate system of the point: 4326 for longitude and latitude.

    Returns
    -------
    xr.Dataset
        As from `track`, in memory: (1, cells, cells). The same bits as in a run, whatever its blocks. The variable
        `image` (image_y, image_x) holds image 1 under the cells.

    Raises
    ------
    GridError
        The point lies outside the cube.
    PairError
        No such row of the pairs.
    ParameterError
        Fewer than one cell, or parameters that do not fit the cube.

    Examples
    --------
    >>> import tempfile
    >>> from ogive.cube import open_cube
    >>> from ogive.pairs import make_pairs
    >>> from ogive.testing.plan import WorldSpec
    >>> from ogive.testing.scenes import make_world
    >>> tiny = WorldSpec(size_km=(1.2, 1.5), n_sentinel2=2, n_landsat=0, end="2021-12-01")
    >>> cube = open_cube(make_world(tempfile.mkdtemp(), tiny).items)
    >>> pairs = make_pairs(cube, days=(1, 400), same_orbit=False)
    >>> x, y = float(cube["x"].mean()), float(cube["y"].mean())
    >>> dict(try_tile(cube, pairs, NCC(chip=16, search=4, refine="quadric"), x=x, y=y, cells=4)["vx"].sizes)
    {'mid_date': 1, 'y': 4, 'x': 4}
    """
    kernel = NCC() if kernel is None else kernel
    matcher = kernel if isinstance(kernel, Kernel) else Custom(kernel)
    if cells < 1:
        raise ParameterError("cells", rule="must be at least 1", value=cells)
    if not 0 <= pair < len(pairs):
        raise PairError("pair", rule=f"must be a row 0 ... {len(pairs) - 1} of the pairs", value=pair)
    geobox = grids.geobox_of(cube)
    if crs is not None:
        x, y = pyproj.Transformer.from_crs(crs, str(geobox.crs), always_xy=True).transform(x, y)
    step, whole = matcher.step, grids.coarsen(geobox, matcher.step)
    column, row = ~whole.affine * (x, y)
    if not (0 <= row < whole.shape[0] and 0 <= column < whole.shape[1]):
        raise GridError("point", rule="must lie inside the cube", value=(round(y), round(x)), fix="click on the image")
    # As many cells more on each side as the kernel looks beyond its own: what is computed is then what a run computes.
    spare = -(-matcher.halo() // step)
    inner, outer = [], []
    for at, count in zip((row, column), whole.shape, strict=True):
        first = min(max(0, int(at) - cells // 2), max(0, count - cells))
        start, stop = max(0, first - spare), min(count, first + cells + spare)
        inner.append(slice(first - start, min(count, first + cells) - start))
        outer.append(slice(start * step, stop * step))
    one = pairs.iloc[[pair]]
    near = cube.isel(y=outer[0], x=outer[1])
    near = near.assign_coords(mapping=grids.mapping(geobox[outer[0], outer[1]]))
    velocity = track(near, one, matcher)
    tile = velocity.isel(y=inner[0], x=inner[1]).compute(scheduler="synchronous")
    pixels = [slice(part.start * step, part.stop * step) for part in inner]
    image = near["image"].isel(time=int(one["i1"].iloc[0]), y=pixels[0], x=pixels[1])
    image = image.mean("band") if "band" in image.dims else image
    about = {"long_name": "image 1 under the cells"}
    tile["image"] = (("image_y", "image_x"), np.asarray(image.values, np.float32), about)
    return tile.assign_coords(
        mapping=grids.mapping(grids.coarsen(geobox[outer[0], outer[1]], step)[inner[0], inner[1]])
    )
