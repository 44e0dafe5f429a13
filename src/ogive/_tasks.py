"""The blocks of a dataset, and the one task that computes a block, writes it, and then its row."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import cloudpickle
import xarray as xr
from dask.highlevelgraph import HighLevelGraph
from dask.local import get_sync

from . import options
from ._execute import Task
from ._growth import grown
from ._ledger import NEXT, PLAN, Books, Plan, accepted, digest, key_of, spans
from ._lock import block_writer
from ._read import noting
from ._storage import Storage, UnwritableError, for_all, storage_of
from ._template import encoded
from .errors import StoreError


class BlockGrid:
    """The blocks of a dataset: one per combination of chunks of its Dask variables.

    Chunks must be even, as those of a Zarr store are, unless they continue one.
    """

    def __init__(self, ds: xr.Dataset, *, even: bool = True) -> None:
        ds = ds.assign_coords({n: c.compute() for n, c in ds.coords.items() if c.chunks is not None})
        ds = ds.assign({n: v.compute() for n, v in ds.data_vars.items() if v.chunks is not None and v.dtype == object})
        self.ds = ds
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
                if even and (any(s != sizes[0] for s in sizes[:-1]) or sizes[-1] > sizes[0]):
                    raise StoreError(
                        f"variable {name}", rule=f"needs even chunks along {dim!r}", value=sizes[:4], fix="ds.chunk()"
                    )
        self.lazy = lazy
        self.dims = tuple(by_dim)
        self.chunks = tuple(tuple(map(int, by_dim[d])) for d in self.dims)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return product(*(range(len(c)) for c in self.chunks))

    def keys(self, index: tuple[int, ...]) -> dict[str, tuple[Any, ...]]:
        """The Dask key of each variable's block; one that lacks a dimension belongs to that dimension's first block."""
        at = dict(zip(self.dims, index, strict=True))
        return {
            name: (variable.data.name, *(at[str(d)] for d in variable.dims))
            for name, variable in self.lazy.items()
            if all(at[d] == 0 for d in self.dims if d not in variable.dims)
        }

    def tasks(
        self, todo: Mapping[str, tuple[int, ...]] | None = None, where: Mapping[str, dict[str, list[int]]] | None = None
    ) -> Iterator[Task]:
        """One task per block of the ledger: its key; the key again, its graph, and where it lies."""
        todo = {key_of(index): index for index in self} if todo is None else todo
        where = spans(self.dims, self.chunks) if where is None else where
        # Culled but not optimised: `dask.optimize` would give each variable a copy of what they share, the matching.
        graph = HighLevelGraph.merge(*(variable.data.dask for variable in self.lazy.values()))
        for key, index in todo.items():
            keys = self.keys(index)
            blob = cloudpickle.dumps((graph.cull(set(keys.values())).to_dict(), keys))
            yield key, (key, blob, where[key])


def needs(ds: xr.Dataset) -> dict[str, float]:
    """What the blocks of this dataset take of a worker."""
    try:
        asked = json.loads(ds.attrs["provenance"])["kernel"]["backend"]
    except (KeyError, ValueError, TypeError):  # not from track
        return {}
    return {"GPU": 1} if asked == "cupy" else {}


def run_block(
    key: str,
    blob: bytes,
    span: dict[str, list[int]],
    *,
    path: str | Storage,
    job: str,
    settings: dict[str, float],
    kept: int = 0,
) -> dict[str, Any]:
    """Compute one block, write all its variables, then its ledger row: the body of a task."""
    start = time.perf_counter()
    row: dict[str, Any] = {"block": key, "span": span, "job": job, "status": "done"}
    values: dict[str, Any] = {}
    try:
        graph, keys = cloudpickle.loads(blob)
        with options.using(**settings), noting() as notes:
            values = dict(zip(keys, get_sync(graph, list(keys.values())), strict=True))
        # Scenes that can never be read: their pairs are flagged, and the row says why.
        row |= {"unreadable": notes} if notes else {}
    except Exception as error:  # any failure becomes a row with its reason; the driver decides what to do about it
        row |= failed(error)
    try:
        target = storage_of(path)
        books = Books(target)
        with block_writer(books.place):
            plan = _plan_of(books, job, kept)
            stored: dict[str, str] = {}
            if values and span[plan.dims[0]][0] < kept:
                row["kept"] = accepted(books.row(key) or {})
                values, stored = grown(books, plan, row, values, kept)
            objects = encoded(plan.metadata, values, span) if values else {}
            if stored:
                # Until its objects are there, each may be the old or the new one.
                row["kept"] = {name: [stored[name], digest(data)] for name, data in sorted(objects.items())}
                books.put_row(row | {"status": "growing"})
                del row["kept"]
            for_all(lambda name: target.put(name, objects[name]), objects, target)
            if objects:
                row["objects"] = {name: digest(data) for name, data in sorted(objects.items())}
            elif span[plan.dims[0]][0] < kept:
                row["kept"] = accepted(books.row(key) or {})
            row |= {"seconds": round(time.perf_counter() - start, 3), "peak_mb": _peak_mb()}
            _plan_of(books, job, kept)
            books.put_row(row)
    except UnwritableError as error:
        return {"block": key, "status": "unwritable", "error": str(error)}
    except StoreError as error:  # it could not be read for a moment
        return row | failed(error)
    return row


def _plan_of(books: Books, job: str, kept: int) -> Plan:
    """The plan, if it is still that of our job: a driver may be gone, and its tasks go on."""
    plan = books.plan(NEXT if kept else PLAN)
    if plan is None or plan.job != job or plan.drafting:
        raise UnwritableError(books.target.name, rule="was replaced by another job", fix="let that one finish")
    return plan


def failed(error: BaseException) -> dict[str, Any]:
    """What a row says of a failure; a read that failed names its scene, address and window."""
    where = {name: getattr(error, name) for name in ("scene", "url", "window") if hasattr(error, name)}
    return {"status": "failed", "error": f"{type(error).__name__}: {error}", **where}


def _peak_mb() -> int | None:
    """Most memory that this process has held so far."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)
