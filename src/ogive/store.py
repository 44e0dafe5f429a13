"""Writing and opening stores: every block is computed, written and recorded by one task, and nothing else writes.

    path            a Zarr v3 store, readable by plain `xarray.open_zarr` at any moment
    path.ledger/    plan.json: what the store will hold; one JSON row per block, put there by rename *after* all
                    variables of the block are written. The ledger, not the store, says what is done.

A killed run leaves rows of finished blocks; the same `write` line computes the others. A store chunk (a Zarr shard)
is exactly one block, so no two tasks ever write to one object. Chunks carry checksums, every variable has an explicit
fill value (NaN; `flag` reads NOT_COMPUTED), and empty blocks are written too: "no match" never looks like "not done".
"""

import hashlib
import json
import logging
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import xarray as xr
import zarr
from dask.highlevelgraph import HighLevelGraph
from dask.local import get_sync
from zarr.codecs import ZstdCodec

from . import flags, options
from ._execute import Task, execute
from ._foreign import open_foreign
from ._ledger import attributes_of, folder, is_store, ledger, put, read_plan, status, verify
from .errors import ParameterError, StoreError
from .grid import SCHEMA_VERSION

log = logging.getLogger("ogive")

FILL: dict[str, Any] = {"flag": np.uint16(flags.NOT_COMPUTED), "interp_mask": np.uint8(255)}
"""Fill values that are not NaN (floats) or 0 (sizes and counts, which are never 0 where measured)."""
_INNER = 32
"""Cells along the inner chunks: a reader of one time series decodes 32 x 32 cells, not a whole block."""


def write(
    ds: xr.Dataset, path: str | Path, *, client: Any = None, overwrite: bool = False, progress: bool = True,
    workers: int | None = None,
) -> Path:  # fmt: skip
    """Compute a lazy dataset block by block into a store; interrupt it, run the same line again, it goes on.

    Parameters
    ----------
    ds : xr.Dataset
        From `track`, `invert` or anything made from them; its Dask chunks are the blocks.
    path : path
        The store; its ledger lies beside it as `<path>.ledger`.
    client : distributed.Client, optional
        Where to compute. Default: threads of this process.
    overwrite : bool
        Replace an ogive store that holds something else. Never replaces anything that is not an ogive store.
    progress : bool
        Show a progress bar on the terminal.
    workers : int, optional
        Threads without a client; default the number of cores.

    Returns
    -------
    Path
        The store.

    Raises
    ------
    StoreError
        The path holds something else, or blocks failed. If no block at all could be written, nothing is left behind.
    """
    path = Path(path).absolute()  # workers may run in another folder
    ds = ds.assign_coords({n: c.compute() for n, c in ds.coords.items() if c.chunks is not None})
    ds = ds.assign({n: v.compute() for n, v in ds.data_vars.items() if v.chunks is not None and v.dtype == object})
    grid = _BlockGrid(ds)
    plan = {"fingerprint": fingerprint(ds), "dims": grid.dims, "chunks": grid.chunks, "schema_version": SCHEMA_VERSION}
    created = _prepare(ds, path, plan, overwrite)
    done = {row["block"] for row in ledger(path) if row["status"] == "done"}
    todo = [index for index in grid if grid.key(index) not in done]
    if done:
        log.info("%s: %d of %d blocks are done, %d to go", path, len(done), grid.count, len(todo))
    failures: list[dict[str, Any]] = []
    settings = asdict(options.current())
    with _bar(path.name, grid.count, grid.count - len(todo), progress) as advance:
        body = partial(run_block, path=str(path), settings=settings)
        for key, result in execute(body, _tasks(ds, grid, todo), client=client, workers=workers):
            row = result if isinstance(result, dict) else _died(key, result, path)
            advance()
            if row["status"] != "done":
                failures.append(row)
    if failures:
        _give_up(path, created and len(failures) == len(todo), failures, grid.count)
    return path


def open_velocity(path: str | Path | Sequence[str | Path], *, partial: bool = False) -> xr.Dataset:
    """Open velocities lazily: a store written by `write`, or what others made.

    Of others these are understood: ITS_LIVE cubes, version 2 and 2.2 (Zarr, also by URL, or netCDF); ITS_LIVE image
    pairs, version 1 and 2 (netCDF, one file or a list of files); ITS_LIVE point tables (CSV); cubes in the generic
    layout of TICOI; and series that TICOI wrote, which come as series. They get the names, units and flags of ogive,
    and a coordinate `source`; all pairs of some cells are one Dask chunk. Velocities of ITS_LIVE keep the error that
    the file names `vx_error`, `vy_error`.

    Parameters
    ----------
    path : path, URL or list of paths
    partial : bool
        Open an unfinished store as well; cells that were never computed have the flag NOT_COMPUTED.

    Raises
    ------
    StoreError
        Nothing that is understood, a newer schema, or an unfinished store (say `partial=True` if that is wanted).
    """
    if isinstance(path, list | tuple) or not is_store(Path(str(path))):
        return open_foreign(path)
    path = Path(str(path))
    attrs = attributes_of(path)
    count = status(path)
    if count["done"] < count["blocks"] and not partial:
        raise StoreError(
            str(path), rule="is not finished", value=f"{count['done']} of {count['blocks']} blocks done, "
            f"{count['failed']} failed", fix="run the same write again, or open it with partial=True",
        )  # fmt: skip
    ds: xr.Dataset = xr.open_zarr(path, consolidated=False, decode_timedelta=False, mask_and_scale=True, chunks=None)
    plan = read_plan(path)
    ds = ds.chunk({dim: tuple(sizes) for dim, sizes in zip(plan["dims"], plan["chunks"], strict=True)})
    coords = [str(n) for n in ds.data_vars if n in ("mapping", "time_bnds", "image_id1", "image_id2")]
    ds = ds.set_coords(coords)
    for name in ds.coords:
        ds[name].load()
        if ds[name].dtype.kind == "T":
            # Zarr gives numpy's variable-width strings, which few libraries take yet; objects, as they were written.
            ds[name] = ds[name].astype(object)
    for name in [n for n in ds.data_vars if ds[n].ndim < 2]:
        ds[name].load()
    ds.attrs = attrs
    return ds


def annotate(path: str | Path, ds: xr.Dataset) -> None:
    """Add or replace variables that have one value per pair (stable shifts, errors) in a finished store.

    The matches themselves are never touched.

    Raises
    ------
    StoreError
        Not an ogive store, or unfinished.
    ParameterError
        A variable has other dimensions than `mid_date`, or another length.
    """
    path = Path(path)
    stored = open_velocity(path)
    for name, variable in ds.data_vars.items():
        if name in stored.coords or (name in stored and stored[name].chunks is not None):
            raise ParameterError(f"variable {name}", rule="is computed in blocks by write", fix="give it another name")
        if variable.dims != ("mid_date",) or variable.size != stored.sizes["mid_date"]:
            raise ParameterError(
                f"variable {name}", rule=f"must have the dimension mid_date ({stored.sizes['mid_date']})",
                value=dict(variable.sizes),
            )  # fmt: skip
    plain = ds.drop_vars(list(ds.coords)).compute()
    draft = _draft(path)
    _template(plain, draft, compute=True)
    for name in map(str, plain.data_vars):
        # An array is a folder of its own, and whole before it takes the place of the old one.
        if (path / name).exists():
            (path / name).rename(draft / f"{name}.old")
        (draft / name).rename(path / name)
    shutil.rmtree(draft)


def fingerprint(ds: xr.Dataset) -> str:
    """What a store will hold, as a hash: variables, blocks, coordinates and provenance."""
    digest = hashlib.sha256()
    for name, variable in sorted(ds.variables.items(), key=lambda kv: str(kv[0])):
        digest.update(f"{name} {variable.dims} {variable.dtype} {variable.shape} {variable.chunks}".encode())
        if variable.chunks is None:
            values = variable.values
            # The bytes of variable-width strings are addresses, not letters.
            digest.update(repr(values.tolist()).encode() if values.dtype.kind in "OT" else values.tobytes())
    digest.update(json.dumps(ds.attrs, sort_keys=True, default=str).encode())
    return digest.hexdigest()


class _BlockGrid:
    """The blocks of a dataset: one per combination of chunks of its Dask variables."""

    def __init__(self, ds: xr.Dataset) -> None:
        lazy = {str(n): v.variable for n, v in ds.data_vars.items() if v.chunks is not None}
        if not lazy:
            raise StoreError(
                "dataset", rule="must be lazy, its Dask chunks are the blocks", fix="ds.chunk(...) it before write"
            )
        by_dim: dict[str, tuple[int, ...]] = {}
        for name, variable in lazy.items():
            for dim, sizes in zip(map(str, variable.dims), variable.data.chunks, strict=True):
                if by_dim.setdefault(dim, sizes) != sizes:
                    raise StoreError(
                        f"variable {name}", rule=f"must have the same chunks along {dim!r} as the others",
                        value=sizes[:4], fix="ds.unify_chunks()",
                    )  # fmt: skip
                if any(s != sizes[0] for s in sizes[:-1]) or sizes[-1] > sizes[0]:
                    raise StoreError(
                        f"variable {name}", rule=f"needs even chunks along {dim!r}", value=sizes[:4], fix="ds.chunk()"
                    )
        self.lazy = lazy
        self.dims = list(by_dim)
        self.chunks = [list(map(int, by_dim[d])) for d in self.dims]
        self.count = int(np.prod([len(c) for c in self.chunks]))

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return product(*(range(len(c)) for c in self.chunks))

    @staticmethod
    def key(index: tuple[int, ...]) -> str:
        """The name of a block in the ledger."""
        return ".".join(map(str, index))

    def keys(self, index: tuple[int, ...]) -> dict[str, tuple[Any, ...]]:
        """The Dask key of each variable's block; one that lacks a dimension belongs to that dimension's first block."""
        at = dict(zip(self.dims, index, strict=True))
        return {
            name: (variable.data.name, *(at[str(d)] for d in variable.dims))
            for name, variable in self.lazy.items()
            if all(at[d] == 0 for d in self.dims if d not in variable.dims)
        }


def _tasks(ds: xr.Dataset, grid: _BlockGrid, todo: list[tuple[int, ...]]) -> Iterator[Task]:
    """One task per block: its key; the key again, its graph, and where each variable goes."""
    starts = [np.concatenate([[0], np.cumsum(c)]).tolist() for c in grid.chunks]
    # Culled but not optimised: `dask.optimize` would give each variable a copy of what they share, the matching.
    graph = HighLevelGraph.merge(*(variable.data.dask for variable in grid.lazy.values()))
    for index in todo:
        keys = grid.keys(index)
        spans = {d: (s[i], s[i + 1]) for d, s, i in zip(grid.dims, starts, index, strict=True)}
        where = {name: [spans[str(d)] for d in ds[name].dims] for name in keys}
        blob = cloudpickle.dumps((graph.cull(set(keys.values())).to_dict(), keys))
        yield grid.key(index), (grid.key(index), blob, where)


def run_block(key: str, blob: bytes, where: dict[str, Any], path: str, settings: dict[str, float]) -> dict[str, Any]:
    """Compute one block, write all its variables, then its ledger row: the body of a task."""
    start = time.perf_counter()
    row: dict[str, Any] = {"block": key, "status": "done"}
    try:
        graph, keys = cloudpickle.loads(blob)
        with options.using(**settings):
            values = dict(zip(keys, get_sync(graph, list(keys.values())), strict=True))
        group = zarr.open_group(path, mode="r+", use_consolidated=False)
        row["crc"] = {}
        for name, value in values.items():
            array = group[name]
            assert isinstance(array, zarr.Array)
            value = np.ascontiguousarray(value, array.dtype)
            region = tuple(slice(*span) for span in where[name])
            _assert_whole(array, region, name)
            # xarray's region write would leave all-NaN chunks out; then "no match" would look like "not done".
            array.with_config({"write_empty_chunks": True})[region] = value
            row["crc"][name] = zlib.crc32(value.tobytes())
    except Exception as error:  # any failure becomes a row with its reason; the driver decides what to do about it
        row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        row.pop("crc", None)
    row["seconds"] = round(time.perf_counter() - start, 3)
    put(folder(Path(path)) / f"{key}.json", row)
    return row


def _assert_whole(array: zarr.Array[Any], region: tuple[slice, ...], name: str) -> None:
    """A region must be whole shards: two writers in one shard lose data without an error."""
    for size, total, span in zip(array.shards or array.chunks, array.shape, region, strict=True):
        if span.start % size or (span.stop % size and span.stop != total):
            raise StoreError(
                f"variable {name}", rule=f"blocks must be whole chunks of {size}", value=(span.start, span.stop)
            )


def _died(key: str, error: Exception, path: Path) -> dict[str, Any]:
    """The row of a block that killed its workers, and so left none."""
    row = {"block": key, "status": "failed", "error": f"{type(error).__name__}: {error}", "seconds": 0.0}
    put(folder(path) / f"{key}.json", row)
    return row


def _prepare(ds: xr.Dataset, path: Path, plan: dict[str, Any], overwrite: bool) -> bool:
    """Make the template, or check that the one there is ours; True if it was made now."""
    if path.exists():
        attributes_of(path)
        existing = read_plan(path)
        if existing["fingerprint"] == plan["fingerprint"]:
            return False
        if not overwrite:
            raise StoreError(
                str(path), rule="holds the result of another job (other scenes, pairs or parameters)",
                fix="choose another path, or pass overwrite=True",
            )  # fmt: skip
    if not path.parent.is_dir():
        raise StoreError(str(path), rule="its folder must exist", fix=f"mkdir -p {path.parent}")
    if folder(path).exists() and any(p.suffix not in (".json", ".tmp") for p in folder(path).iterdir()):
        raise StoreError(
            str(folder(path)), rule="must be free for the ledger, and holds other files", fix="choose another path"
        )
    _remove(path)
    # The template is made under another name: a store that bears its own name is complete in its metadata.
    draft = _draft(path)
    _template(ds, draft)
    folder(path).mkdir()
    put(folder(path) / "plan.json", plan)
    draft.rename(path)
    return True


def _remove(path: Path) -> None:
    """Take a store away by rename first: half a store under its name would be taken for somebody else's."""
    draft = _draft(path)
    if path.exists():
        path.rename(draft)
        shutil.rmtree(draft)
    shutil.rmtree(folder(path), ignore_errors=True)


def _draft(path: Path) -> Path:
    """A name beside the store that is free, for what must not be seen half done."""
    draft = path.with_name(path.name + ".ogive-draft")
    shutil.rmtree(draft, ignore_errors=True)
    return draft


def _template(ds: xr.Dataset, path: Path, *, compute: bool = False) -> None:
    """A store of these variables; the lazy ones are left to their blocks unless `compute`."""
    plain = ds.copy()
    for variable in plain.variables.values():
        variable.encoding = {}
    encoding = {str(name): _encoding(str(name), variable) for name, variable in plain.variables.items()}
    how: dict[str, Any] = {"compute": compute, "consolidated": False, "write_empty_chunks": True}
    plain.to_zarr(path, mode="w-", encoding=encoding, **how)


def _encoding(name: str, variable: xr.Variable) -> dict[str, Any]:
    spec: dict[str, Any] = {"compressors": [ZstdCodec(level=3, checksum=True)]}
    if np.issubdtype(variable.dtype, np.datetime64):
        spec |= {"units": "microseconds since 1970-01-01", "dtype": "int64", "calendar": "proleptic_gregorian"}
    elif name in ("y", "x"):
        spec["_FillValue"] = None
    elif variable.dtype != object:
        spec["fill_value"] = _fill(name, variable.dtype)
        if np.issubdtype(variable.dtype, np.floating):
            spec["_FillValue"] = spec["fill_value"]
    if variable.chunks is None:
        return spec | ({"chunks": variable.shape} if variable.ndim else {})
    shard = tuple(c[0] for c in variable.data.chunks)
    inner = tuple(s if d not in ("y", "x") or s % _INNER else _INNER for d, s in zip(variable.dims, shard, strict=True))
    return spec | {"chunks": inner} | ({"shards": shard} if inner != shard else {})


def _fill(name: str, dtype: np.dtype[Any]) -> Any:
    if name in FILL:
        return FILL[name]
    return dtype.type(np.nan) if np.issubdtype(dtype, np.floating) else dtype.type(0)


def _give_up(path: Path, nothing_written: bool, failures: list[dict[str, Any]], count: int) -> None:
    if nothing_written:
        _remove(path)
    left = "nothing was written" if nothing_written else "the others are written; run the same line to try again"
    raise StoreError(
        str(path), rule=f"{len(failures)} of {count} blocks failed ({left})",
        value=f"block {failures[0]['block']}: {failures[0]['error']}",
    )  # fmt: skip


@contextmanager
def _bar(name: str, total: int, done: int, show: bool) -> Iterator[Any]:
    if not show:
        yield lambda: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    # Seconds per block measured over the whole run: blocks take long and differ, a short window would swing.
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("blocks"),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, speed_estimate_period=3600) as bar:
        task = bar.add_task(name, total=total, completed=done)
        yield lambda: bar.advance(task)


__all__ = ["annotate", "fingerprint", "ledger", "open_velocity", "status", "verify", "write"]
