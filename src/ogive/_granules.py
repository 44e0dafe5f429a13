"""Image-pair netCDF files of ITS_LIVE, versions 1 and 2, as one velocity on one grid.

A pair covers the overlap of its two images, so files differ in extent; they share a lattice, and the velocity has the
extent of all of them. A block reads its window of every file in one task, for there may be thousands of files.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from ._foreign import assemble, blocks, on_grid, open_raw
from .errors import GridError, StoreError

_TYPES: dict[str, tuple[Any, Any]] = {
    "vx": (np.float32, np.nan), "vy": (np.float32, np.nan), "v": (np.float32, np.nan),
    "chip_size_width": (np.uint16, 0), "chip_size_height": (np.uint16, 0), "interp_mask": (np.uint8, 255),
}  # fmt: skip
"""Type of each map, and what it holds where a pair has no cell."""
_ERROR = re.compile(r"(error|stable_shift)(_stationary|_modeled|_slow)?")
_MISSING = -32767.0


class Placed(NamedTuple):
    """A map of one file, and where its first cell lies on the common grid."""

    values: xr.Variable
    row: int
    column: int


def open_granules(paths: list[str]) -> xr.Dataset:
    """Open image-pair files; the pairs keep the order of the list."""
    if not paths:
        raise StoreError("paths", rule="needs at least one file", value=0)
    files = []
    for path in paths:
        raw = open_raw(path)
        if "img_pair_info" not in raw.variables:
            rule = "is no image-pair file: it has no variable img_pair_info"
            raise StoreError(path, rule=rule, value=sorted(map(str, raw.variables))[:12])
        raw = raw.isel(time=0, drop=True) if "time" in raw.dims else raw
        files.append(on_grid(raw))
    boxes = [box for box, _ in files]
    box, places = _union(boxes, paths)
    pairs = pd.DataFrame([_pair(raw, path) for (_, raw), path in zip(files, paths, strict=True)])
    shape = (len(files), *map(int, box.shape))
    template = xr.DataArray(np.broadcast_to(np.float32(0), shape), dims=("mid_date", "y", "x"))
    chunks = da.core.normalize_chunks(tuple(blocks(template).values()), shape)
    maps = {}
    for name, (dtype, fill) in _TYPES.items():
        if any(name in raw for _, raw in files):
            stack = [Placed(raw[name].variable, *at) if name in raw else None for (_, raw), at in zip(files, places)]
            empty = np.empty((0, 0, 0), dtype)
            lazy = da.map_blocks(_read, stack=stack, fill=dtype(fill), chunks=chunks, dtype=dtype, meta=empty)
            maps[name] = xr.DataArray(lazy, dims=("mid_date", "y", "x"))
    values = {str(n): pairs[n].to_numpy() for n in pairs}
    return assemble(maps, values, box, np.array("ITS_LIVE"), layout="image pairs", path=", ".join(paths[:3]))


def _read(*, stack: list[Placed | None], fill: Any, block_info: Any = None) -> NDArray[Any]:
    """One block: the windows of all files, decoded; `fill` where a file has no cell or no value."""
    (first, last), *window = block_info[None]["array-location"]
    shape = (last - first, *(stop - start for start, stop in window))
    out = np.full(shape, fill)
    for target, placed in zip(out, stack[first:last], strict=True):
        if placed is None:
            continue
        inner, outer = [], []
        for (start, stop), origin, size in zip(window, placed[1:], placed.values.shape, strict=True):
            low, high = max(start, origin), min(stop, origin + size)
            inner.append(slice(low - origin, max(high, low) - origin))
            outer.append(slice(low - start, max(high, low) - start))
        values = placed.values[tuple(inner)].values
        missing = [placed.values.attrs[k] for k in ("_FillValue", "missing_value") if k in placed.values.attrs]
        gone = np.isin(values, missing) if fill != fill else np.zeros(values.shape, bool)
        target[tuple(outer)] = np.where(gone, fill, values)
    return out


def _union(boxes: list[GeoBox], paths: list[str]) -> tuple[GeoBox, list[tuple[int, int]]]:
    """The grid that covers all, and row and column of each one's first cell."""
    first = boxes[0]
    step, left, top = first.affine.a, min(b.affine.c for b in boxes), max(b.affine.f for b in boxes)
    places: list[tuple[int, int]] = []
    height = width = 0
    for box, path in zip(boxes, paths, strict=True):
        row, column = (top - box.affine.f) / step, (box.affine.c - left) / step
        whole = max(abs(row - round(row)), abs(column - round(column))) < 1e-3
        if box.crs != first.crs or abs(box.affine.a - step) > 1e-6 * step or box.affine.e != -box.affine.a or not whole:
            raise GridError(
                path, rule=f"must lie on the lattice of {paths[0]}", value=f"{box.crs} {tuple(box.affine)[:6]}",
                fix="open the files of each grid for themselves and join them with ogive.fuse",
            )  # fmt: skip
        places.append((round(row), round(column)))
        height, width = max(height, places[-1][0] + box.shape.y), max(width, places[-1][1] + box.shape.x)
    return GeoBox((height, width), Affine(step, 0, left, 0, -step, top), first.crs), places


def _pair(raw: xr.Dataset, path: str) -> dict[str, Any]:
    """Dates, codes, ids and errors of one file."""
    info = raw["img_pair_info"].attrs
    parts = Path(path).stem.split("_X_")
    out: dict[str, Any] = {}
    for k in (1, 2):
        date = info.get(f"acquisition_date_img{k}", info.get(f"aquisition_date_img{k}"))  # version 1 spells it so
        if date is None:
            raise StoreError(path, rule=f"has no acquisition date of image {k}", value=sorted(info)[:12])
        out[f"acquisition_date_img{k}"] = pd.Timestamp(str(date))
        for kind in ("mission", "satellite", "sensor"):
            out[f"{kind}_img{k}"] = info.get(f"{kind}_img{k}", "")
        name = re.sub(r"_G\d{4}V\d\d_P\d+$", "", parts[k - 1]) if len(parts) == 2 else ""
        out[f"image_id{k}"] = str(info.get(f"id_img{k}", name))
    for c in "xy":
        attrs = raw[f"v{c}"].attrs
        given = {key: _number(value) for key, value in attrs.items() if _ERROR.fullmatch(str(key))}
        # Version 1 has no error but the RMSE over stable ground.
        given.setdefault("error", _number(attrs.get("stable_rmse", np.nan)))
        out |= {f"v{c}_{key}": value for key, value in given.items()}
    if "stable_shift_flag" in raw["vx"].attrs:
        out["stable_shift_flag"] = int(raw["vx"].attrs["stable_shift_flag"])
    return out


def _number(value: Any) -> float:
    return float("nan") if float(value) == _MISSING else float(value)
