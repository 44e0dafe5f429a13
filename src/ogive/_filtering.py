"""What all filters share: tests run block by block with the neighbours they need, flags added, values replaced."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import DTypeLike, NDArray

from . import _neighbours as neighbours
from . import flags, grid

Steps: TypeAlias = Sequence[tuple[Callable[..., NDArray[np.uint8]], int]]
"""Tests of `(dy, dx, stride)` in their order, each with the flag of what it rejects."""


def judged(velocity: xr.Dataset, steps: Steps, reach: int, max_stride: int) -> xr.Dataset:
    """The dataset after these tests, which look `reach` strides far together."""
    dx, dy = _displacements(velocity)
    arrays = [dy, dx, _strides(velocity, max_stride)]
    return add(velocity, windows(rejections, arrays, reach * max_stride, np.uint16, steps=steps))


def rejections(dy: NDArray[Any], dx: NDArray[Any], stride: NDArray[np.int64], *, steps: Steps) -> NDArray[np.uint16]:
    """Flag bits of the tests, one after the other on what the ones before have left."""
    dy, dx = dy.copy(), dx.copy()
    bits = np.zeros(dy.shape, np.uint16)
    for test, flag in steps:
        verdict = test(dy, dx, stride)
        rejected = verdict == neighbours.REJECTED
        bits[rejected] = flag
        dy[rejected] = dx[rejected] = np.nan
    bits[verdict == neighbours.ALONE] = flags.FEW_NEIGHBOURS
    return bits


def windows(
    function: Callable[..., NDArray[Any]], arrays: list[xr.DataArray], reach: int, dtype: DTypeLike, **options: Any
) -> xr.DataArray:
    """A function of (M, y, x) arrays, block by block with `reach` more cells on each side; lazy if one of them is."""
    first = arrays[0]
    chunks = next((a.chunks for a in arrays if a.chunks is not None), None)
    if chunks is None:
        return first.copy(data=function(*(a.values for a in arrays), **options))
    data = [a.chunk(dict(zip(first.dims, chunks, strict=True))).data for a in arrays]
    # Dask allows no overlap wider than the array.
    depth = {0: 0, 1: min(reach, first.shape[1]), 2: min(reach, first.shape[2])}
    result = da.map_overlap(
        function, *data, depth=depth, boundary="none", dtype=dtype, meta=np.empty((0, 0, 0), dtype), **options
    )
    return first.copy(data=result.rechunk(chunks))


def add(velocity: xr.Dataset, bits: xr.DataArray) -> xr.Dataset:
    """Add flag bits and drop the values that they make invalid."""
    bits = bits.astype(np.uint16)
    out = velocity.copy()
    out["flag"] = (velocity["flag"] | bits).assign_attrs(velocity["flag"].attrs)
    good = ~flags.invalid(bits)
    for name in ("vx", "vy", "v"):
        out[name] = velocity[name].where(good).assign_attrs(velocity[name].attrs)
    return out


def _displacements(velocity: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """vx, vy as displacements between the images [m]: pairs of any baseline then share one noise."""
    days = grid.pair_days(velocity)
    years = (days / grid.YEAR_DAYS).astype(np.float64)
    dx, dy = ((velocity[name] * years).transpose("mid_date", "y", "x") for name in ("vx", "vy"))
    return dx, dy


def _strides(velocity: xr.Dataset, max_stride: int) -> xr.DataArray:
    if "chip_size_width" not in velocity:
        return xr.ones_like(velocity["vx"], np.int64).transpose("mid_date", "y", "x")
    cell = abs(grid.geobox_of(velocity).resolution.x)
    stride = (velocity["chip_size_width"].fillna(0) / (2 * cell)).round().clip(1, max_stride)
    return stride.astype(np.int64).transpose("mid_date", "y", "x")


def replaced(velocity: xr.Dataset, where: Any, values: dict[str, Any]) -> xr.Dataset:
    """Other values at some cells, of the variables that are there."""
    out = velocity.copy()
    for name, value in values.items():
        if name in velocity:
            old = velocity[name]
            out[name] = old.where(~where, value).transpose(*old.dims).astype(old.dtype).assign_attrs(old.attrs)
    return out
