"""Extending a store: new pairs follow the old ones, readers see them all at once, and nothing is matched twice."""

import json
import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from zarr.storage import MemoryStore

from . import options, provenance
from ._execute import execute
from ._growth import APPENDED, coming, publish, settle, take_back
from ._icechunk import Snapshot
from ._ledger import COMPLETE, NEXT, NEXT_TEMPLATE, ROOT, STATUS, Books, Plan, attributes_of, digest, opened
from ._lock import only_writer
from ._storage import is_url, storage_of
from ._tasks import BlockGrid, needs, run_block
from ._template import GROWING, being_written, in_memory, template
from .errors import StoreError
from .store import compute, fingerprint, labelled

log = logging.getLogger("ogive")

PAIRS = next(iter(GROWING))
"""The dimension that grows."""
_MAY_DIFFER = {"versions", "items", "resampled", "pairs", APPENDED}
"""Provenance of new pairs that may differ from that of the store, which notes it."""


def append(
    ds: xr.Dataset, path: str | Path, *, client: Any = None, overwrite: bool = False, progress: bool = True,
    workers: int | None = None,
) -> Path | str:  # fmt: skip
    """Compute new pairs of images and put them behind those of a store; interrupt it, run the same line again.

    Whoever opens the store meanwhile finds it as it was; all new pairs appear at once, when everything is done.

    Parameters
    ----------
    ds : xr.Dataset
        Lazy velocity of the new pairs alone, on the grid and in the blocks of the store: from
        `track(..., tile=, batch=, offset=)`. Their dates may lie before, between or after those of the store.
    path : path or URL
        A finished store.
    client, progress, workers
        As in `write`.
    overwrite : bool
        Take back the append of other pairs that was interrupted, instead of refusing to start.

    Returns
    -------
    Path or str
        The store.

    Raises
    ------
    StoreError
        The store is not finished, has another grid, kernel, other variables or blocks, holds some of the pairs already,
        is being written or extended by others, or blocks failed; the store then is what it was.
    """
    # What a pair has one of is no part of a block, whoever chunked it.
    ds = ds.assign({n: v.compute() for n, v in ds.data_vars.items() if v.ndim == 1 and v.chunks is not None})
    target, grid = storage_of(path), BlockGrid(ds, even=False)
    if isinstance(target, Snapshot):
        raise StoreError(target.name, rule="a repository is not extended", fix="write all pairs: a new snapshot")
    with only_writer(target) as still_ours:
        books = Books(target)
        plan, old = _present(books)
        before = sum(plan.chunks[0])
        if not _new(grid.ds, old, target.name):
            log.info("%s: holds these pairs already", target.name)
            return path if is_url(path) else Path(target.name)
        _check(grid.ds, old, target.name)
        objects, following = _following(grid, old, plan)
        _check_blocks(grid, plan, following, target.name)
        following = _announce(books, following, objects, overwrite)
        how: dict[str, Any] = {"job": following.job, "settings": asdict(options.current()), "kept": before}
        failures = compute(
            grid, following, books, partial(run_block, path=target.name, **how),
            spread=partial(execute, client=client, workers=workers, resources=needs(ds)), still_ours=still_ours,
            progress=progress, first=before // plan.chunks[0][0],
        )  # fmt: skip
        if failures:
            raise StoreError(
                target.name, rule=f"{len(failures)} of {len(list(grid))} blocks failed (the store is as it was; the "
                "others are kept, run the same line to try again)",
                value=f"block {failures[0]['block']}: {failures[0]['error']}",
            )  # fmt: skip
        publish(books, following)
    return path if is_url(path) else Path(target.name)


def announced(path: str | Path) -> list[tuple[Any, ...]]:
    """Finish what an interrupted append has left to do but computing; the pairs that are still to be computed."""
    with only_writer(storage_of(path)):
        books = Books(storage_of(path))
        opened(path)
        settle(books)
        if coming(books) is None:
            return []
        plan, objects = books.template(NEXT_TEMPLATE)
        present = books.plan()
        assert present is not None
        return pair_names(_described(objects, plan))[sum(present.chunks[0]) :]


def take_back_append(path: str | Path) -> None:
    """Undo an append that was interrupted: the store is what it was before."""
    with only_writer(storage_of(path)):
        take_back(Books(storage_of(path)))


def pair_names(ds: xr.Dataset) -> list[tuple[Any, ...]]:
    """What tells the layers of a velocity apart: the ids of both images; of stacks also their mean span and size.

    Examples
    --------
    >>> pair_names(xr.Dataset({"image_id1": ("mid_date", ["a", "a"]), "image_id2": ("mid_date", ["b", "c"])}))
    [('a', 'b'), ('a', 'c')]
    """
    stacks = [ds[name].values.tolist() for name in ("date_dt", "stack_count") if "stack_count" in ds]
    return list(zip(*(ds[f"image_id{k}"].values.astype(str).tolist() for k in (1, 2)), *stacks, strict=True))


def _present(books: Books) -> tuple[Plan, xr.Dataset]:
    """Plan and description of a finished store of pairs."""
    name = books.target.name
    opened(name)
    settle(books)
    _, plan = opened(name)
    if attributes_of(books.target).get(STATUS) != COMPLETE:
        raise StoreError(name, rule="is not finished", fix="run the same write again, then append")
    if plan.dims[0] != PAIRS:
        raise StoreError(
            name, rule=f"only pairs can be added, along {PAIRS}", value=plan.dims[0], fix="invert all pairs anew"
        )
    arrays = plan.metadata["consolidated_metadata"]["metadata"]
    fixed = [
        key
        for key, about in arrays.items()
        if tuple(about.get("dimension_names") or ()) == (PAIRS,)
        and about["chunk_grid"]["configuration"]["chunk_shape"] != [GROWING[PAIRS]]
    ]
    if fixed:
        raise StoreError(name, rule="was not written to grow", value=", ".join(fixed[:3]), fix="write it anew")
    try:
        _, objects = books.template()
    except (FileNotFoundError, ValueError):
        raise StoreError(
            name, rule="the ledger's template is missing or damaged", fix="ogive verify --repair"
        ) from None
    return plan, _described(objects, plan)


def _described(objects: dict[str, bytes], plan: Plan) -> xr.Dataset:
    """A store as its template says, without its blocks."""
    return labelled(MemoryStore(in_memory(objects)), plan)


def _new(ds: xr.Dataset, old: xr.Dataset, name: str) -> bool:
    """Whether the pairs are new; False if they are the last ones of the store."""
    missing = [n for n in ("image_id1", "image_id2") if n not in ds.variables or n not in old.variables]
    if missing:
        raise StoreError(name, rule=f"pairs are told apart by {missing[0]}, which is missing", fix="name the images")
    ours, theirs = pair_names(ds), pair_names(old)
    if ours == theirs[-len(ours) :]:
        return False
    twice = sorted({pair for pair in ours if ours.count(pair) > 1} | (set(ours) & set(theirs)))
    if twice:
        raise StoreError(
            name, rule=f"{len(twice)} of the pairs are there already, or given twice",
            value="; ".join(f"{pair[0]} and {pair[1]}" for pair in twice[:3]), fix="append only new pairs",
        )  # fmt: skip
    return True


def _check(ds: xr.Dataset, old: xr.Dataset, name: str) -> None:
    """Refuse what does not continue the store."""

    def refuse(what: str, found: Any, fix: str) -> StoreError:
        return StoreError(name, rule=f"new pairs must have the same {what} as the store", value=found, fix=fix)

    odd = sorted(map(str, set(ds.variables) ^ set(old.variables)))
    if odd:
        raise refuse("variables", ", ".join(odd), "use the same kernel and the same steps")
    for axis in ("y", "x"):
        if not np.array_equal(ds[axis].values, old[axis].values):
            raise refuse("grid", f"another {axis}", "open the cube on the grid of the store")
    for key, variable in ds.variables.items():
        there = old[key].variable
        text = {variable.dtype.kind, there.dtype.kind} <= set("OUT")
        if variable.dims != there.dims or not (text or variable.dtype == there.dtype):
            found = f"{key} {variable.dims} {variable.dtype}, in the store {there.dims} {there.dtype}"
            raise refuse("dimensions and types", found, "use the same kernel and the same steps")
        if _plain(variable.attrs) != _plain(there.attrs):
            raise refuse("attributes", str(key), "use the same kernel, the same steps and this version of ogive")
        if PAIRS not in variable.dims and (variable.chunks is not None or not np.array_equal(variable, there)):
            raise refuse("values", str(key), "use the same kernel and the same steps")
    ours, theirs = _comparable(ds), _comparable(old)
    for name_of in sorted(ours.keys() | theirs.keys()):
        if ours.get(name_of) != theirs.get(name_of):
            found = f"{name_of}: {ours.get(name_of)}, in the store {theirs.get(name_of)}"
            raise refuse("origin", found[:300], "use the same kernel and the same steps")


def _comparable(ds: xr.Dataset) -> dict[str, Any]:
    """What the attributes say of the origin of a dataset, apart from what every new pair may bring."""
    said = {k: v for k, v in provenance.read(ds).items() if k not in _MAY_DIFFER}
    kernel = {f"kernel {k}": v for k, v in said.pop("kernel", {}).items()}
    return _plain({k: v for k, v in ds.attrs.items() if k != "provenance"} | said | kernel)


def _plain(attrs: dict[Any, Any]) -> dict[str, Any]:
    """Attributes as they come back from a store."""
    plain: dict[str, Any] = json.loads(json.dumps(attrs, default=lambda value: np.asarray(value).tolist()))
    return plain


def _following(grid: BlockGrid, old: xr.Dataset, plan: Plan) -> tuple[dict[str, bytes], Plan]:
    """Template and plan of the store with the new pairs."""
    ds, count = grid.ds, old.sizes[PAIRS] + grid.ds.sizes[PAIRS]
    batch = plan.chunks[0][0]
    chunks = (tuple(min(batch, count - k) for k in range(0, count, batch)), *plan.chunks[1:])
    variables = {}
    for name, variable in ds.variables.items():
        if name in grid.lazy:
            data = da.empty([sum(c) for c in chunks], chunks=chunks, dtype=variable.dtype)
        elif PAIRS in variable.dims:
            data = np.concatenate([old[name].values, variable.values.astype(old[name].dtype)])
        else:
            data = variable.values
        variables[name] = xr.Variable(variable.dims, data, variable.attrs)
    whole = xr.Dataset(variables, attrs={**ds.attrs, "provenance": _history(ds, old)}).set_coords(list(ds.coords))
    objects = template(whole)
    sums = {key: digest(data) for key, data in objects.items()}
    root = json.loads(objects[ROOT])
    return objects, Plan(
        fingerprint(whole), plan.dims, chunks, root, sums, digest(being_written(objects[ROOT])), plan.job
    )


def _history(ds: xr.Dataset, old: xr.Dataset) -> str:
    """The provenance of the store with the new pairs: all scenes, and a note of what came when."""
    ours, theirs = provenance.read(ds), provenance.read(old)
    entry: dict[str, Any] = {"pairs": ds.sizes[PAIRS]}
    if "acquisition_date_img2" in ds:
        entry["until"] = str(ds["acquisition_date_img2"].values.max())
    # Rules are called pairs there, and the count of pairs here.
    for key, ours_as in (("versions", "versions"), ("pairs", "rules")):
        if ours.get(key) != theirs.get(key):
            entry[ours_as] = ours.get(key)
    named = {
        key: [*theirs.get(key, []), *(k for k in ours.get(key, []) if k not in theirs.get(key, []))]
        for key in ("items", "resampled")
        if key in ours or key in theirs
    }
    history = [*theirs.get(APPENDED, []), entry]
    return json.dumps({**theirs, **named, APPENDED: history}, sort_keys=True, default=str)


def _check_blocks(grid: BlockGrid, plan: Plan, following: Plan, name: str) -> None:
    """Refuse blocks of which one belongs to two blocks of the store."""
    batch, before = plan.chunks[0][0], sum(plan.chunks[0])
    sizes = list(following.chunks[0][before // batch :])
    sizes[0] -= before % batch
    wanted = (tuple(sizes), *plan.chunks[1:])
    if grid.dims != plan.dims or grid.chunks != wanted:
        tile = max(c[0] for c in plan.chunks[1:])
        chunks = dict(zip(plan.dims, wanted, strict=True))
        raise StoreError(
            name, rule="each new block must belong to one block of the store",
            value=tuple(c[:2] for c in grid.chunks),
            fix=f"track(..., tile={tile}, batch={batch}, offset={before % batch}), or ds.chunk({chunks})",
        )  # fmt: skip


def _announce(books: Books, following: Plan, objects: dict[str, bytes], overwrite: bool) -> Plan:
    """Put the next plan into the ledger, or go on with the one there."""
    there = coming(books)
    if there is not None and there.fingerprint == following.fingerprint:
        return there
    if there is not None and not overwrite:
        raise StoreError(
            books.target.name, rule="the append of other pairs was interrupted here",
            fix="finish that one first, or pass overwrite=True to take it back",
        )  # fmt: skip
    take_back(books)
    following = books.put_template(following, objects, NEXT_TEMPLATE)
    books.put_plan(following, NEXT)
    return following
