"""Writing and opening stores: every block is computed, written and recorded by one task, and nothing else writes.

    path            a Zarr v3 store, readable by plain `xarray.open_zarr` at any moment; its attribute `status` says
                    "being written" until the last block is there
    path.ledger/    what the store will hold, and one row per block, put there *after* all objects of the block are
                    written. The ledger, not the store, says what is done.

A killed run leaves rows of finished blocks; the same `write` line computes the others. A store chunk (a Zarr shard) is
exactly one block, so no two tasks ever write to one object, and one run at a time writes to a store. Path or URL: both
work the same.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr
import zarr

from . import options
from ._execute import execute
from ._foreign import open_foreign
from ._growth import APPENDED, coming, settle, take_back
from ._icechunk import Snapshot, snapshot_of, write_snapshot
from ._ledger import (
    COMPLETE,
    ROOT,
    STATUS,
    WRITING,
    Books,
    Plan,
    accepted,
    attributes_of,
    counts,
    digest,
    is_store,
    key_of,
    ledger,
    opened,
    status,
)
from ._lock import no_block_writer, only_writer
from ._storage import Storage, UnwritableError, for_all, is_url, storage_of
from ._tasks import BlockGrid, failed, needs, run_block
from ._template import being_written, template
from ._trust import assert_codecs, understood
from ._verify import verify
from .errors import StoreError

if TYPE_CHECKING:
    import icechunk

log = logging.getLogger("ogive")
Watch = Callable[[dict[str, Any] | None], None]
"""Sees the blocks of a run as they end, and may stop it."""


def write(
    ds: xr.Dataset, path: "str | Path | icechunk.Repository", *, client: Any = None, overwrite: bool = False,
    progress: bool = True, workers: int | None = None, resources: dict[str, float] | None = None,
    watch: Watch | None = None,
) -> "Path | str | icechunk.Repository":  # fmt: skip
    """Compute a lazy dataset block by block into a store; interrupt it, run the same line again, it goes on.

    Parameters
    ----------
    ds : xr.Dataset
        From `track`, `invert` or anything made from them; its Dask chunks are the blocks.
    path : path or URL
        The store; its ledger lies beside it as `<path>.ledger`. Buckets (`s3://`, `gs://`, `az://`) take endpoint and
        credentials from the environment, on the workers too. A name that ends in `.icechunk`, or an open
        `icechunk.Repository`: one new snapshot of its main branch, made when all is done.
    client : distributed.Client, optional
        Where to compute. Default: threads of this process.
    overwrite : bool
        Replace an ogive store that holds something else; a repository keeps the old snapshots. Never replaces
        anything that is not an ogive store.
    progress : bool
        Show a progress bar on the terminal.
    workers : int, optional
        Threads without a client; default the number of cores.
    resources : dict of str to float, optional
        What a block takes of its worker, such as `{"GPU": 1}`; the default where a kernel of the GPU was asked for.
    watch : callable, optional
        Is called with the ledger row of every block as it ends, failed ones too, and once with None before the first.
        What it raises ends the run as an interruption does: blocks that run are finished, no other is begun, and the
        same line goes on.

    Returns
    -------
    Path or str
        The store; a repository as it was given.

    Raises
    ------
    StoreError
        The path holds something else, another run is writing to it, it cannot be written, or blocks failed. If no block
        at all could be written, nothing is left behind.
    """
    target = storage_of(path)
    grid = BlockGrid(ds)
    job = fingerprint(grid.ds)
    block = partial(run_block, job=job, settings=asdict(options.current()))
    wanted = needs(ds) if resources is None else resources
    spread = partial(execute, client=client, workers=workers, resources=wanted)
    if isinstance(target, Snapshot):
        with target.versions.only_writer() as still_ours:
            versions = snapshot_of(path).versions
            if _existing(versions.main(), job, overwrite) is None or versions.unfinished(job) is not None:
                plan, objects = _planned(grid, job)
                each = partial(compute, grid, spread=spread, still_ours=still_ours, progress=progress, watch=watch)
                failures = write_snapshot(versions, plan, objects, block, spread, each)
                if failures:
                    raise _blocks_failed(versions.name, failures, plan.count, len(failures) == plan.count)
        return path
    with only_writer(target) as still_ours:
        plan, created = _prepare(target, grid, job, overwrite)
        books = Books(target)
        done = len(books.done(plan))
        # The name of the job that made the store, which an append has not changed.
        body = partial(block, path=target.name, job=plan.job)
        failures = compute(
            grid, plan, books, body, spread=spread, still_ours=still_ours, progress=progress, watch=watch
        )
        if failures:
            nothing = created and len(failures) == plan.count - done
            if nothing:
                _remove(books, plan)
            raise _blocks_failed(target.name, failures, plan.count, nothing)
        if attributes_of(target).get(STATUS) != COMPLETE:  # also where a run ended just before this line
            still_ours()
            target.put(ROOT, books.root())
    return str(path) if is_url(target.name) else Path(target.name)


def compute(
    grid: "BlockGrid", plan: Plan, books: Books, body: Callable[..., Any],
    take: Callable[[Any], dict[str, Any]] = dict, *, spread: Callable[..., Any], still_ours: Callable[[], None],
    progress: bool, first: int = 0, watch: Watch | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Run `body` on the blocks that are not done; the rows of those that failed.

    Parameters
    ----------
    take : callable
        Makes a row of what a task returns.
    spread : callable
        `execute`, knowing where.
    first : int
        Blocks along the first dimension that the store has before the first one of the grid.
    watch : callable, optional
        As in `write`.
    """
    done, name = books.done(plan), books.target.name
    keys = {key_of((index[0] + first, *index[1:])): index for index in grid}
    todo = {key: index for key, index in keys.items() if key not in done}
    if done:
        log.info("%s: %d of %d blocks are done, %d to go", name, len(done), plan.count, len(todo))
    failures = []
    if watch is not None:
        watch(None)
    with (
        _bar(name.rsplit("/", 1)[-1], plan.count, plan.count - len(todo), progress) as advance,
        closing(spread(body, grid.tasks(todo, plan.spans()))) as results,
    ):
        for key, result in results:
            still_ours()
            row = _died(books, key, result) if isinstance(result, BaseException) else take(result)
            if row["status"] == "unwritable":
                raise UnwritableError(row["error"])
            advance()
            if row["status"] != "done":
                failures.append(row)
            if watch is not None:
                watch(row)
    return failures


def open_velocity(
    path: "str | Path | Sequence[str | Path] | icechunk.Repository", *, partial: bool = False,
    snapshot: str | datetime | None = None,
) -> xr.Dataset:  # fmt: skip
    """Open velocities lazily: a store written by `write`, or what others made.

    Of others these are understood: ITS_LIVE cubes, version 2 and 2.2 (Zarr, also by URL, or netCDF); ITS_LIVE image
    pairs, version 1 and 2 (netCDF, one file or a list of files); ITS_LIVE point tables (CSV); cubes in the generic
    layout of TICOI; and series that TICOI wrote, which come as series. They get the names, units and flags of ogive,
    and a coordinate `source`; all pairs of some cells are one Dask chunk. Velocities of ITS_LIVE keep the error that
    the file names `vx_error`, `vy_error`.

    Parameters
    ----------
    path : path, URL, list of paths or icechunk.Repository
    partial : bool
        Open an unfinished store as well; cells that were never computed have the flag NOT_COMPUTED.
    snapshot : str or datetime, optional
        Of a repository: the id of a snapshot, a tag, a branch, or a moment of main. Default: what main holds now. The
        dataset keeps reading that snapshot, whatever is written later; its id is in `encoding["snapshot"]`.

    Raises
    ------
    StoreError
        Nothing that is understood, a newer schema, or an unfinished store (say `partial=True` if that is wanted).
    """
    if isinstance(path, Sequence) and not isinstance(path, str):
        return open_foreign(path)
    ds = _opened(path, partial, snapshot)
    ds.encoding["source"] = storage_of(path).name
    return ds


def _opened(path: "str | Path | icechunk.Repository", partial: bool, snapshot: str | datetime | None) -> xr.Dataset:
    target = storage_of(path)
    if isinstance(target, Snapshot):
        target = target if snapshot is None else target.versions.at(snapshot)
    elif snapshot is not None:
        raise StoreError(target.name, rule="has no snapshots", fix="only Icechunk repositories have them")
    elif not is_store(target):
        return open_foreign(path)
    with understood(target.name, StoreError):
        return _open(target, partial)


def _open(target: Storage, partial: bool) -> xr.Dataset:
    if attributes_of(target).get(STATUS, WRITING) == WRITING and not partial:
        count = counts(*opened(target))
        raise StoreError(
            target.name, rule="is not finished", value=f"{count['done']} of {count['blocks']} blocks done, "
            f"{count['failed']} failed", fix="run the same write again, or open it with partial=True",
        )  # fmt: skip
    _, plan = opened(target)
    assert_codecs(zarr.open_group(target.zarr(), mode="r"), target.name)
    ds = labelled(target.zarr(), plan, one_root=not isinstance(target, Snapshot))
    if isinstance(target, Snapshot):
        ds.encoding["snapshot"] = target.session.snapshot_id
    return ds


def labelled(source: Any, plan: Plan, *, one_root: bool = True) -> xr.Dataset:
    """A Zarr store as `open_velocity` gives it: blocks lazy, all the rest in memory."""
    ds: xr.Dataset = xr.open_zarr(
        source, consolidated=one_root, decode_timedelta=False, mask_and_scale=True, chunks=None
    )
    coords = [str(n) for n in ds.data_vars if n in ("mapping", "time_bnds", "image_id1", "image_id2")]
    ds = ds.set_coords(coords)
    blocks = [n for n, v in ds.data_vars.items() if v.ndim > 1]
    for name in ds.variables.keys() - set(blocks):
        ds[name].load()
        if ds[name].dtype.kind == "T":
            # Zarr gives numpy's variable-width strings, which few libraries take yet; objects, as they were written.
            ds[name] = ds[name].astype(object)
    # Sizes, not the blocks of the plan: the store may be a moment older or newer than it, while it is extended.
    sizes = {dim: sizes[0] for dim, sizes in zip(plan.dims, plan.chunks, strict=True)}
    lazy = ds[blocks].reset_coords(drop=True).chunk(sizes)
    ds = ds.assign({name: lazy[name].variable for name in blocks})
    ds.attrs.pop(STATUS, None)
    return ds


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


def _blocks_failed(name: str, failures: list[dict[str, Any]], count: int, nothing: bool) -> StoreError:
    """What to tell of blocks that failed."""
    left = "nothing was written" if nothing else "the others are written; run the same line to try again"
    return StoreError(
        name, rule=f"{len(failures)} of {count} blocks failed ({left})",
        value=f"block {failures[0]['block']}: {failures[0]['error']}",
    )  # fmt: skip


def _died(books: Books, key: str, error: BaseException) -> dict[str, Any]:
    """The row of a block that killed its workers, and so left none."""
    row = {"block": key, "span": {}, "job": "", **failed(error), "seconds": 0.0}
    kept = accepted(books.row(key) or {})
    books.put_row(row | ({"kept": kept} if kept else {}))
    return row


def _existing(target: Storage, job: str, overwrite: bool) -> Plan | None:
    """The plan of the store there if it is of this job; None where a new one may be made."""
    plan = Books(target).plan()
    if plan is None and target.exists():
        attributes_of(target)
        opened(target)
    if plan is None or plan.drafting:
        return None
    attrs, books = attributes_of(target), Books(target)
    if not isinstance(target, Snapshot):
        settle(books)
        if coming(books) is not None and not overwrite:
            raise StoreError(
                target.name, rule="is being extended", fix="finish that by the same append or `ogive update`"
            )
        plan = take_back(books)
    if plan.fingerprint == job:
        books.root()  # what the last step needs is needed now: nothing is computed for a store that cannot end
        return plan
    if not overwrite:
        raise StoreError(
            target.name, rule="was extended since" if APPENDED in json.loads(attrs.get("provenance", "{}"))
            else "holds the result of another job (other scenes, pairs or parameters)",
            fix="append to it (`ogive update run.yaml`), choose another path, or pass overwrite=True",
        )  # fmt: skip
    return None


def _planned(grid: BlockGrid, job: str) -> tuple[Plan, dict[str, bytes]]:
    """The plan of a new store, and its objects that are not part of a block."""
    objects = template(grid.ds)
    sums = {key: digest(data) for key, data in objects.items()}
    unfinished = digest(being_written(objects[ROOT]))
    return Plan(job, grid.dims, grid.chunks, json.loads(objects[ROOT]), sums, unfinished, job), objects


def _prepare(target: Storage, grid: BlockGrid, job: str, overwrite: bool) -> tuple[Plan, bool]:
    """Make the template, or check that the one there is ours; the plan, and whether it was made now."""
    existing = _existing(target, job, overwrite)
    if existing is not None:
        return existing, False
    books = Books(target)
    if books.plan() is None:
        _check_free(books)
    plan, objects = _planned(grid, job)
    _remove(books, plan)
    books.put_plan(replace(plan, drafting=True))
    plan = books.put_template(plan, objects)
    # The root comes last: a store that can be opened is complete in its metadata.
    for_all(lambda key: target.put(key, objects[key]), [k for k in objects if k != ROOT], target)
    target.put(ROOT, being_written(objects[ROOT]))
    books.put_plan(plan)
    return plan, True


def _check_free(books: Books) -> None:
    foreign = [k for k in books.place.objects() if not k.endswith((".json", ".zip", ".partial"))]
    if foreign:
        raise StoreError(
            books.place.name, rule="must be free for the ledger, and holds other files", value=foreign[:3],
            fix="choose another path",
        )  # fmt: skip


def remove(target: Storage) -> None:
    """Take a store away that `write` made, with its ledger; nothing there is no error."""
    books = Books(target)
    plan = books.plan()
    if plan is not None:
        _remove(books, plan)


def _remove(books: Books, plan: Plan) -> None:
    """Take a store away; the plan says so first: half a store must not be taken for somebody else's."""
    if books.place.exists() or books.target.exists():
        with no_block_writer(books.place):
            books.put_plan(replace(plan, drafting=True))
    books.target.delete(ROOT)
    books.target.clear()
    books.place.clear()


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


__all__ = ["fingerprint", "ledger", "open_velocity", "status", "verify", "write"]
