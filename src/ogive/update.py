"""`update`: the same run with the scenes that have come since; only new pairs are matched.

    matches.zarr     new pairs appended
    velocity.zarr    corrected and filtered pair by pair, so new pairs are appended here too
    series.zarr      tiles in which a new pair has a vector are inverted anew, the others copied; written beside the old
                     one and put in its place when it is whole

Every step looks at what is there: the next update goes on where a killed one stopped, and without news none writes.
"""

import json
import logging
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pystac
import xarray as xr
from affine import Affine
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from . import catalog, flags, provenance, store
from . import grid as grids
from ._append import announced, append, pair_names, take_back_append
from ._growth import APPENDED
from ._ledger import COMPLETE, STATUS, attributes_of, is_store, opened
from ._storage import Folder, storage_of
from .cluster import connect
from .cube import open_cube, usable_share
from .errors import GridError, ParameterError, StoreError
from .invert import invert
from .kernels import Kernel
from .pairs import make_pairs
from .run import (
    MATCHES,
    SERIES,
    VELOCITY,
    RunConfig,
    RunResult,
    correct_and_filter,
    find,
    load,
    pair_rules,
    report,
    without_empty,
)
from .track import described, track

log = logging.getLogger("ogive")

SERIES_NEXT = "series.next.zarr"
"""The new series until it is whole."""
_KEPT = np.uint16(flags.TOO_FEW_PAIRS | flags.SCREENED)
"""Flags of a pixel that has no series at all, in any window."""


def update(config: RunConfig | str | Path, *, client: Any = None, progress: bool = True) -> RunResult:
    """Extend a finished run by the scenes that have come since; interrupt it, update again, it goes on.

    Parameters
    ----------
    config : RunConfig, or path of a run file or of a run's folder
        The same as of the run, perhaps with a later end of `datetime`. Scenes are searched again; those of the run are
        known by their ids. With other pair rules, pairs of known scenes are new as well; no pair is ever taken away.
    client : distributed.Client, optional
    progress : bool

    Returns
    -------
    RunResult
        As of `run`; without news nothing is written, and `tables` is empty.

    Raises
    ------
    ParameterError
        No run there, one with another kernel, or one of stacks, which new pairs would change.
    StoreError
        See `append`.
    GridError
        A new scene has another coordinate system.

    Notes
    -----
    Stable ground and filters look at one pair at a time, so old pairs keep their values. In the series, tiles without a
    new vector keep theirs; windows that only other tiles need are GAP there.
    """
    config = _config(config)
    output = Path(config.output)
    if not storage_of(output / MATCHES).exists():
        raise ParameterError(str(output), rule="holds no run", fix="ogive run run.yaml")
    if config.stack is not None:
        raise ParameterError("stack", rule="stacks change with new pairs", fix="make a new run in another folder")
    if client is None and config.cluster:
        client = connect(config.cluster, workers=config.workers)
    how = {"client": client, "progress": progress, "workers": config.workers}
    _matches(config, output / MATCHES, how)
    text = config.model_dump_json(indent=2)
    if not (output / "run.json").exists() or (output / "run.json").read_text() != text:
        (output / "run.json").write_text(text)
    _velocity(config, output, how)
    if config.invert is not None:
        _series(config, output, how)
    if _outdated(output):
        return report(output)
    log.info("%s: nothing new", output)
    series = output / SERIES if config.invert is not None else None
    return RunResult(output / MATCHES, output / VELOCITY, series, output / "report.html", {})


def _config(config: RunConfig | str | Path) -> RunConfig:
    if isinstance(config, RunConfig):
        return config
    path = Path(config)
    return load(path / "run.json") if path.is_dir() else load(path)


# --- matches ----------------------------------------------------------------------------------------------------------


def _matches(config: RunConfig, path: Path, how: dict[str, Any]) -> None:
    """Match the pairs that the store lacks."""
    interrupted = announced(path)
    stored = store.open_velocity(path, partial=True)
    kernel = config.make_kernel()
    then, now = provenance.read(stored)["kernel"], json.loads(json.dumps(described(kernel), default=str))
    if then != now:
        other = {name for name in then.keys() | now.keys() if then.get(name) != now.get(name)}
        raise ParameterError("kernel", rule="must be that of the run", value=sorted(other), fix="make a new run")
    held = pair_names(stored)
    cube = _cube(config, kernel, stored, known=set(np.ravel(held)))
    pairs = make_pairs(cube, pair_rules(config.pairs))
    position = {pair: k for k, pair in enumerate(zip(pairs["id1"], pairs["id2"], strict=True))}
    _, plan = opened(path)
    blocks: dict[str, Any] = {"tile": max(c[0] for c in plan.chunks[1:]), "batch": plan.chunks[0][0]}
    if attributes_of(storage_of(path)).get(STATUS) != COMPLETE:
        # Blocks are missing, of an interrupted run or after a repair: all pairs again, in the order of the store.
        lost = [pair for pair in held if pair not in position]
        if lost:
            raise StoreError(
                str(path), rule="is not finished, and scenes of its pairs are not found any more", value=lost[0],
                fix="search as the run did",
            )  # fmt: skip
        whole = _numbered(pairs, [position[pair] for pair in held], 0)
        velocity = track(cube, whole, kernel, unreadable=config.unreadable, **blocks)
        store.write(velocity.assign_attrs(stored.attrs), path, **how)
    new = [pair for pair in position if pair not in set(held)]
    parts = [new]
    if set(interrupted) <= set(new):
        # What was begun is finished first, exactly as it was begun.
        parts = [interrupted, [pair for pair in new if pair not in set(interrupted)]]
    elif not new:
        take_back_append(path)
    log.info("%s: %d new pairs", path.name, len(new))
    for part in filter(None, parts):
        count = sum(opened(path)[1].chunks[0])
        rows = _numbered(pairs, [position[pair] for pair in part], count)
        velocity = track(cube, rows, kernel, unreadable=config.unreadable, offset=count % blocks["batch"], **blocks)
        append(velocity, path, overwrite=True, **how)


def _cube(config: RunConfig, kernel: Kernel, stored: xr.Dataset, known: set[str]) -> xr.Dataset:
    """All scenes on the grid of the run; new ones without a usable pixel are left out."""
    items = find(config)
    cells = grids.geobox_of(stored)
    height, width = (int(n) * kernel.step for n in cells.shape)
    box = GeoBox((height, width), cells.affine * Affine.scale(1 / kernel.step), cells.crs)
    foreign = [item.id for item in items if catalog.epsg_of(item) not in (None, box.crs and box.crs.epsg)]
    if foreign:
        raise GridError(
            "scenes", rule=f"must share the coordinate system of the run, {box.crs}", value=foreign[:3],
            fix="search one tile or path-row",
        )  # fmt: skip
    part = config.cube
    cube = open_cube(items, part.band, grid=box, loader=part.loader, resampling=part.resampling, sign=part.sign)
    new = pystac.ItemCollection([item for item in items if item.id not in known], clone_items=False)
    return without_empty(cube, usable_share(new, cube, part.band, sign=part.sign)) if len(new) else cube


def _numbered(pairs: pd.DataFrame, rows: list[int], first: int) -> pd.DataFrame:
    """Some pairs, numbered as in the store."""
    some = pairs.iloc[rows].reset_index(drop=True)
    some["pair_id"] = np.arange(first, first + len(some))
    some.attrs = pairs.attrs
    return some


# --- velocity ---------------------------------------------------------------------------------------------------------


def _velocity(config: RunConfig, output: Path, how: dict[str, Any]) -> None:
    """Correct and filter the pairs that the velocity lacks; all of them if it was made in another way."""
    raw, path = store.open_velocity(output / MATCHES), output / VELOCITY
    count = 0
    if _complete(path):
        announced(path)
        there = store.open_velocity(path)
        names = pair_names(there)
        # What the steps record of themselves depends on masks and parameters, not on pairs: one pair tells it.
        same = _steps(there) == _steps(correct_and_filter(config, raw.isel(mid_date=[0])))
        count = len(names) if same and pair_names(raw)[: len(names)] == names else 0
    if count == 0:
        store.write(correct_and_filter(config, raw), path, **{**how, "overwrite": True})
    elif count < raw.sizes["mid_date"]:
        append(correct_and_filter(config, raw.isel(mid_date=slice(count, None))), path, overwrite=True, **how)


def _complete(path: Path) -> bool:
    return is_store(storage_of(path)) and attributes_of(storage_of(path)).get(STATUS) == COMPLETE


def _steps(ds: xr.Dataset) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = provenance.read(ds).get("steps", [])
    return steps


# --- series -----------------------------------------------------------------------------------------------------------


def _series(config: RunConfig, output: Path, how: dict[str, Any]) -> None:
    """Invert the tiles that new pairs touch; all of them if windows or parameters are others than before."""
    assert config.invert is not None
    _put_in_place(output)
    velocity, path = store.open_velocity(output / VELOCITY), output / SERIES
    series = invert(velocity, method=config.invert.method, every=config.invert.every)
    old = store.open_velocity(path) if _complete(path) else None
    added = None if old is None else _added(old, series)
    touched = _touched(velocity.isel(mid_date=slice(velocity.sizes["mid_date"] - added, None))) if added else None
    if old is not None and touched is not None and touched.any():
        log.info("%s: new vectors in %d of %d tiles", path.name, touched.sum(), touched.size)
        store.write(_merged(series, old, touched), output / SERIES_NEXT, **{**how, "overwrite": True})
        _put_in_place(output)
        return
    store.remove(storage_of(output / SERIES_NEXT))
    if added is None:
        store.write(series, path, **{**how, "overwrite": True})


def _added(old: xr.Dataset, series: xr.Dataset) -> int | None:
    """How many pairs the old series does not know; None if it cannot be continued."""
    then, now = provenance.read(old), provenance.read(series)
    steps, done = _steps(series), _steps(old)
    history = len(then.get(APPENDED, []))
    same = (
        all(old.attrs[name] == series.attrs[name] for name in ("method", "parameters"))
        and set(old.variables) == set(series.variables)
        and done[: len(steps)] == steps
        and all(step["step"] == "update" for step in done[len(steps) :])
        and now.get(APPENDED, [])[:history] == then.get(APPENDED, [])
        and all(old.chunksizes[dim] == series.chunksizes[dim] for dim in ("y", "x"))
        and np.array_equal(series["time_bnds"].values[: old.sizes["time"]], old["time_bnds"].values)
    )
    return sum(entry["pairs"] for entry in now.get(APPENDED, [])[history:]) if same else None


def _touched(new: xr.Dataset) -> NDArray[np.bool_]:
    """Tiles in which one of these pairs has a vector."""
    there = new["vx"].notnull().any("mid_date").data
    return np.asarray(there.map_blocks(np.any, keepdims=True, chunks=[(1,) * n for n in there.numblocks]).compute())


def _merged(series: xr.Dataset, old: xr.Dataset, touched: NDArray[np.bool_]) -> xr.Dataset:
    """The new series, of which tiles that are not touched come from the old one."""
    out = series.copy()
    count = series.sizes["time"]
    for name, variable in series.data_vars.items():
        kept = old[name].variable.transpose(*variable.dims).data
        if "time" in variable.dims:
            kept = kept.map_blocks(_lengthened, str(name), count, chunks=variable.chunks, dtype=variable.dtype)
        out[name] = variable.copy(data=_chosen(variable.data, kept, touched))
    done = {"step": "update", "tiles": np.argwhere(touched).tolist(), "windows": count}
    for step in [*_steps(old)[len(_steps(series)) :], done]:
        out = provenance.record(out, **step)
    return out


def _lengthened(block: NDArray[Any], name: str, count: int) -> NDArray[Any]:
    """An old block with windows at the end in which nothing was observed."""
    last = block[-1:]
    if name == "flag":
        more = np.where(last & _KEPT, last & _KEPT, np.uint16(flags.GAP))
    elif name == "count":
        more = last * 0  # no pairs; NaN where the pixel has no series
    else:
        more = np.full_like(last, np.nan)
    return np.concatenate([block, np.repeat(more.astype(block.dtype), count - len(block), axis=0)])


def _chosen(fresh: da.Array, kept: da.Array, touched: NDArray[np.bool_]) -> da.Array:
    """Blocks of one array where a tile is touched, of the other elsewhere; the rest of both is never computed."""
    name = f"chosen-{fresh.name}"
    blocks: dict[Any, Any] = {
        (name, *index): ((fresh if touched[index[-2:]] else kept).name, *index) for index in np.ndindex(fresh.numblocks)
    }
    sources: Any = [fresh, kept]
    graph = HighLevelGraph.from_collections(name, blocks, sources)
    return da.Array(graph, name, fresh.chunks, fresh.dtype)


def _put_in_place(output: Path) -> None:
    """Let a whole new series replace the old one; each step may be the last of a process that is killed."""
    new, old = storage_of(output / SERIES_NEXT), storage_of(output / SERIES)
    assert isinstance(new, Folder)
    assert isinstance(old, Folder)
    if not _complete(new.path):
        return
    ledger = new.beside(".ledger")
    if ledger.exists():
        store.remove(old)
        ledger.path.rename(old.beside(".ledger").path)
    new.path.rename(old.path)


def _outdated(output: Path) -> bool:
    """Whether the report is older than what it tells."""
    page = output / "report.html"
    told = [output / "run.json", *(output / f"{name}.ledger" / "plan.json" for name in (MATCHES, VELOCITY, SERIES))]
    return not page.exists() or any(p.exists() and p.stat().st_mtime_ns > page.stat().st_mtime_ns for p in told)
