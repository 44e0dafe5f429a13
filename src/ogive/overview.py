"""`overview`: a store once more, coarse, with one map per chunk: what a screen can show, at the speed of a slider.

A cell of the overview is a square of source pixels. Its components are means over the valid pixels, because a mean is
what a coarser sensor would have seen, and single pixels would carry their noise into the picture; it is valid where at
least half of its pixels are, so that the picture never claims more ice than was measured. Other cells have the reason
that most of their pixels have. Errors are means of the errors: those of *one* pixel, an upper bound for the mean,
because neighbours share the pixels of their chips.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr
from numba import njit
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from . import flags, grid, provenance
from ._ledger import is_store, opened
from ._storage import is_url, storage_of
from .errors import ParameterError, StoreError
from .export import time_dimension
from .store import fingerprint, open_velocity, write

if TYPE_CHECKING:
    import icechunk

KIND = "overview"
"""The attribute `kind` of an overview."""
_VARIABLES = ("vx", "vy", "v_error", "vx_error_px", "vy_error_px", "count")
"""What a screen shows, where the source has it; speed is the norm of the components."""
_PIXELS = 512
SMALL = 10**7
"""Vectors that are read in a second."""
_BLOCK_BYTES = 160 * 2**20
"""Above it, a map is made of several chunks."""


def overview(
    source: "str | Path | xr.Dataset | icechunk.Repository", path: str | Path | None = None, *, pixels: int = _PIXELS,
    client: Any = None, progress: bool = True, workers: int | None = None,
) -> str | Path:  # fmt: skip
    """Write a coarse copy of a velocity or series store, in which one date is one read.

    Components are means over the valid pixels of a cell, valid where at least half of them are; `valid_share` says
    how many. Interrupted, it goes on; finished and up to date, nothing is done; of another state of the source, it is
    made anew. The source is read once, block by block.

    Parameters
    ----------
    source : path, URL, xr.Dataset or icechunk.Repository
        A store, a velocity of others that `open_velocity` understands, or an open and lazy one.
    path : path or URL, optional
        Default: beside the store, `series.overview.zarr` of `series.zarr`.
    pixels : int
        Cells along the longer side, at most.
    client, progress, workers
        As in `ogive.write`.

    Returns
    -------
    Path or str
        The overview; `ogive.open_velocity` opens it.

    Raises
    ------
    ParameterError
        `pixels` is below 16, or there is no path for a source that has none.
    StoreError
        Something that is no overview lies at the path, or the source cannot be opened.

    Examples
    --------
    >>> import tempfile
    >>> from ogive.testing.stores import lazy_velocity
    >>> velocity = lazy_velocity((2, 40, 48)).assign(vy=lambda ds: ds["vx"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     coarse = open_velocity(overview(velocity, f"{folder}/overview.zarr", pixels=24, progress=False)).load()
    >>> dict(coarse.sizes), float(coarse["x"][1] - coarse["x"][0])
    ({'mid_date': 2, 'y': 20, 'x': 24}, 160.0)
    """
    if pixels < 16:
        raise ParameterError("pixels", rule="must be at least 16", value=pixels)
    target = beside(source) if path is None else path
    held = _attributes(target)
    if held is not None and held.get("kind") != KIND:
        raise StoreError(str(target), rule="is a store, but no overview", fix="choose another path")
    velocity = source if isinstance(source, xr.Dataset) else open_velocity(source)
    lazy = coarse(velocity, _factor(velocity, pixels)).assign_attrs(overview_of=state(source))
    write(lazy, target, client=client, progress=progress, workers=workers, overwrite=held is not None)
    return target


def open_overview(
    source: "str | Path | xr.Dataset | icechunk.Repository", path: str | Path | None = None
) -> xr.Dataset | None:
    """The overview of a source, lazily; None where there is none, or one that is unfinished or of another state.

    Parameters
    ----------
    source, path
        As in `overview`.
    """
    target = beside(source) if path is None else path
    held = _attributes(target)
    if held is None or held.get("kind") != KIND or held.get("overview_of") != state(source):
        return None
    try:
        return open_velocity(target)
    except StoreError:  # unfinished
        return None


def quick(source: Any, path: str | Path | None = None) -> xr.Dataset | None:
    """Maps that can be looked through at once: the overview, or the source itself in memory where that is small.

    None where it is not: `overview` makes them.
    """
    given = isinstance(source, xr.Dataset)
    found = None if given and path is None else open_overview(source, path)
    if found is None:
        velocity = source if given else open_velocity(source)
        if velocity["vx"].size <= SMALL:
            found = coarse(velocity, _factor(velocity, _PIXELS)).compute()
    return found


def beside(source: Any) -> str | Path:
    """Where the overview of a store lies.

    Raises
    ------
    ParameterError
        The source has no place of its own.

    Examples
    --------
    >>> beside("s3://bucket/series.zarr"), beside("cube.nc")
    ('s3://bucket/series.overview.zarr', 'cube.overview.zarr')
    """
    if not isinstance(source, str | Path):
        raise ParameterError("path", rule="must be given for a source that has none", fix="overview(ds, 'my.zarr')")
    text = str(source).rstrip("/")
    head, slash, name = text.rpartition("/")
    place = f"{head}{slash}{name.rpartition('.')[0] or name}.overview.zarr"
    return place if is_url(text) or isinstance(source, str) else Path(place)


def state(source: Any) -> str:
    """What an overview was made of: the fingerprint in the ledger of a store, or that of a dataset."""
    if not isinstance(source, xr.Dataset):
        if not isinstance(source, str | Path) or is_store(storage_of(source)):
            return opened(source)[1].fingerprint
        source = open_velocity(source)
    return fingerprint(source)


def _attributes(path: str | Path) -> dict[str, Any] | None:
    """Attributes of the store there, None where there is none."""
    target = storage_of(path)
    if not is_store(target):
        if target.exists():
            raise StoreError(str(path), rule="is not an ogive store", fix="choose another path for the overview")
        return None
    return dict(opened(path)[1].metadata["attributes"])


def _factor(velocity: xr.Dataset, pixels: int) -> int:
    """Pixels along a cell: one that divides the blocks, if there is one below twice the least possible."""
    sizes = velocity["vx"].sizes
    least = max(1, -(-max(sizes["y"], sizes["x"]) // pixels))
    chunks = velocity["vx"].chunksizes
    blocks = [chunks[d][0] for d in ("y", "x") if d in chunks and chunks[d][0] < sizes[d]]
    return next((f for f in range(least, 2 * least) if not any(b % f for b in blocks)), least)


def coarse(velocity: xr.Dataset, factor: int) -> xr.Dataset:
    """A velocity or a series in cells of `factor` pixels, lazily where it is lazy; incomplete cells at the rim stay.

    Parameters
    ----------
    velocity : xr.Dataset
        With `vx`, `vy` along (mid_date or time, y, x).
    factor : int
        Pixels along a cell.

    Returns
    -------
    xr.Dataset
        `vx`, `vy`, errors and `count` as far as they are there, `valid_share` float32, `flag`.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> cells = coarse(velocity_cube("100")[0], 5)
    >>> dict(cells.sizes), list(cells.data_vars)[:4]
    ({'mid_date': 100, 'y': 3, 'x': 3}, ['vx', 'vy', 'flag', 'valid_share'])
    """
    time = time_dimension(velocity)
    if time is None or not {"vx", "vy"} <= set(velocity.data_vars):
        raise ParameterError("source", rule="must have vx and vy along time", fix="use ogive.open_velocity")
    dims = (time, "y", "x")
    names = [n for n in _VARIABLES if n in velocity and set(velocity[n].dims) == set(dims)]
    inputs = [velocity[n].transpose(*dims) for n in [*names, *(["flag"] if "flag" in velocity else [])]]
    values = _lazy(inputs, names, factor) if inputs[0].chunks is not None else _cells(
        *(a.values for a in inputs), names=names, factor=factor
    )  # fmt: skip
    attrs = {n: velocity[n].attrs for n in names} | {
        "flag": flags.attributes(),
        "valid_share": {"units": "1", "long_name": "share of the pixels of the cell that are valid"},
    }
    box = _box(grid.geobox_of(velocity), factor)
    out = xr.Dataset(
        {n: (dims, a, {k: v for k, v in attrs[n].items() if k != "grid_mapping"}) for n, a in values.items()},
        {**grid.coordinates(box), "mapping": grid.mapping(box)},
    )
    along = {
        n: v.compute() for n, v in velocity.variables.items()
        # The names of images are lazy where reading them takes long.
        if {time} <= set(v.dims) <= {time, "bnds"} and (v.chunks is None or v.dtype != object)
    }  # fmt: skip
    out = out.assign(along).set_coords([n for n in along if n in velocity.coords])
    out.attrs = {**velocity.attrs, "kind": KIND, "schema_version": grid.SCHEMA_VERSION, "overview_factor": factor}
    return provenance.record(out, "overview", factor=factor)


def _box(own: GeoBox, factor: int) -> GeoBox:
    """The grid of the cells, incomplete ones included."""
    height, width = (-(-int(n) // factor) for n in own.shape)
    return grid.coarsen(GeoBox((height * factor, width * factor), own.affine, own.crs), factor)


def _lazy(inputs: list[xr.DataArray], names: list[str], factor: int) -> dict[str, da.Array]:
    """Coarse blocks of blocks, merged to whole maps as far as memory allows."""
    chunks = inputs[0].chunksizes
    whole = {d: -(-c[0] // factor) * factor if len(c) > 1 else c for d, c in chunks.items() if d in ("y", "x")}
    arrays = [a.chunk({**chunks, **whole}).data for a in inputs]
    operands = [part for array in arrays for part in (array, "tyx")]
    small = {axis: tuple(-(-n // factor) for n in arrays[0].chunks[i]) for i, axis in ((1, "y"), (2, "x"))}
    cells = da.blockwise(
        _cells, "tyx", *operands, names=names, factor=factor, adjust_chunks=small, dtype=object,
        meta=np.empty((0, 0, 0), object), concatenate=True,
    )  # fmt: skip
    kinds = {**dict.fromkeys(names, np.float32), "flag": np.uint16, "valid_share": np.float32}
    tiles = _tiles(cells.chunks, sum(np.dtype(kind).itemsize for kind in kinds.values()))
    return {
        name: da.blockwise(_pick, "tyx", cells, "tyx", name, None, dtype=kind, meta=np.empty((0, 0, 0), kind)).rechunk(
            tiles, method="tasks"
        )
        for name, kind in kinds.items()
    }


def _pick(block: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    return block[name]


def _tiles(chunks: tuple[tuple[int, ...], ...], item: int) -> tuple[int, int, int]:
    """Sizes of the blocks of an overview: whole maps, or as few blocks as one can hold in memory.

    Examples
    --------
    >>> _tiles(((100,), (64,) * 8, (64,) * 8), 10), _tiles(((100,), (64,) * 8, (64,) * 8), 22)
    ((100, 512, 256), (100, 256, 256))
    """
    times, rows, columns = (int(c[0]) for c in chunks)
    down, across = len(chunks[1]), len(chunks[2])
    while times * down * rows * across * columns * item > _BLOCK_BYTES and down * across > 1:
        if down * rows > across * columns:
            down = -(-down // 2)
        else:
            across = -(-across // 2)
    height, width = sum(chunks[1]), sum(chunks[2])
    return times, min(down * rows, height), min(across * columns, width)


def _cells(*arrays: NDArray[Any], names: list[str], factor: int) -> dict[str, NDArray[Any]]:
    """All variables of one block (time, y, x); the last array is the flag, if there is one."""
    values = dict(zip(names, arrays))
    valid = np.isfinite(values["vx"]) & np.isfinite(values["vy"])
    flag = np.ascontiguousarray(arrays[-1], np.uint16) if len(arrays) > len(names) else None
    if flag is None:
        flag = np.where(valid, 0, flags.NO_DATA).astype(np.uint16)
    valid &= ~flags.invalid(flag)
    bits, share = _reasons(valid, flag, factor)
    out = {name: _means(np.ascontiguousarray(a, np.float32), valid, share, factor) for name, a in values.items()}
    return {**out, "flag": bits, "valid_share": share}


@njit(error_model="numpy", boundscheck=False, nogil=True, cache=True)
def _means(
    values: NDArray[np.float32], valid: NDArray[np.bool_], share: NDArray[np.float32], factor: int
) -> NDArray[np.float32]:
    """Means over the valid pixels of cells, where at least half of them are valid."""
    times, height, width = values.shape
    out = np.full(share.shape, np.float32(np.nan))
    for t in range(times):
        for row in range(share.shape[1]):
            for column in range(share.shape[2]):
                if share[t, row, column] < 0.5:
                    continue
                total, count = 0.0, 0
                for i in range(row * factor, min((row + 1) * factor, height)):
                    for j in range(column * factor, min((column + 1) * factor, width)):
                        # An error may be missing where the velocity is valid.
                        if valid[t, i, j] and np.isfinite(values[t, i, j]):
                            total += values[t, i, j]
                            count += 1
                if count:
                    out[t, row, column] = total / count
    return out


@njit(error_model="numpy", boundscheck=False, nogil=True, cache=True)
def _reasons(
    valid: NDArray[np.bool_], flag: NDArray[np.uint16], factor: int
) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """What most pixels of a cell say, and the share that is valid.

    A valid cell has the warnings of at least half of its valid pixels, another one the most frequent first reason.
    """
    times, height, width = flag.shape
    shape = (times, -(-height // factor), -(-width // factor))
    bits, share = np.zeros(shape, np.uint16), np.zeros(shape, np.float32)
    counts = np.empty(17, np.int64)
    for t in range(times):
        for row in range(shape[1]):
            for column in range(shape[2]):
                counts[:] = 0
                good, pixels = 0, 0
                for i in range(row * factor, min((row + 1) * factor, height)):
                    for j in range(column * factor, min((column + 1) * factor, width)):
                        pixels += 1
                        good += valid[t, i, j]
                half = 2 * good >= pixels
                for i in range(row * factor, min((row + 1) * factor, height)):
                    for j in range(column * factor, min((column + 1) * factor, width)):
                        if valid[t, i, j] == half:
                            _count(counts, flag[t, i, j], half)
                share[t, row, column] = good / pixels
                bits[t, row, column] = _verdict(counts, good, half)
    return bits, share


@njit(error_model="numpy", boundscheck=False, nogil=True, cache=True)
def _count(counts: NDArray[np.int64], flag: int, warnings: bool) -> None:
    """Count each warning of a flag, or its first reason; the last place is that of scenes that cannot be read."""
    if not warnings and flag & flags.UNREADABLE == flags.UNREADABLE:
        counts[16] += 1
        return
    for bit in range(16):
        warning = (flags.WARNINGS >> bit) & 1 == 1
        if (flag >> bit) & 1 and warning == warnings:
            counts[bit] += 1
            if not warnings:
                return


@njit(error_model="numpy", boundscheck=False, nogil=True, cache=True)
def _verdict(counts: NDArray[np.int64], good: int, half: bool) -> int:
    if half:
        bits = 0
        for bit in range(16):
            if counts[bit] and 2 * counts[bit] >= good:
                bits |= 1 << bit
        return bits
    most = np.argmax(counts)
    if counts[most] == 0:
        # Without a reason on record: there is nothing.
        return flags.NO_DATA
    return flags.UNREADABLE if most == 16 else 1 << int(most)
