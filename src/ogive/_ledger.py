"""The ledger beside a store: which blocks are done, and whether what lies on disk is what was computed.

    path.ledger/plan.json    fingerprint, dimensions and chunk sizes of what the store will hold
    path.ledger/<block>.json one row per block: status, CRC-32 of each variable, seconds; put there by rename

`store.py` writes, this file keeps the books.
"""

import json
import logging
import os
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from .errors import StoreError
from .grid import SCHEMA_VERSION

log = logging.getLogger("ogive")

_MARKS = {"schema_version", "kind"}
"""Global attributes that every ogive store has, and no other."""


def status(path: str | Path) -> dict[str, int]:
    """How far a store is: `blocks`, `done`, `failed`.

    Raises
    ------
    StoreError
        Not an ogive store.
    """
    plan = read_plan(Path(path))
    states = [row["status"] for row in ledger(path)]
    return {
        "blocks": int(np.prod([len(c) for c in plan["chunks"]])),
        "done": states.count("done"),
        "failed": states.count("failed"),
    }


def ledger(path: str | Path) -> list[dict[str, Any]]:
    """All ledger rows of a store, in block order; a row that cannot be read counts as not there."""
    rows = []
    for p in folder(Path(path)).glob("*.json"):
        if p.stem != "plan":
            try:
                rows.append(json.loads(p.read_text()))
            except ValueError:
                log.warning("%s: not a ledger row, its block counts as not done", p)
    return sorted(rows, key=lambda row: [int(k) for k in row["block"].split(".")])


def verify(path: str | Path, *, repair: bool = False) -> pd.DataFrame:
    """Read everything back and compare each block with its ledger row.

    Parameters
    ----------
    path : path
    repair : bool
        Drop the rows of bad blocks (and leftover temporary files), so that the same `write` computes them again.
        Faults of variables that are not computed in blocks (`block` is "") stay: only `overwrite=True` mends those.

    Returns
    -------
    pd.DataFrame
        One row per fault: `block`, `variable`, `problem` ("missing variable", "missing chunk", "unreadable",
        "checksum", "not done", "failed", "leftover file"). Empty when the store is whole.

    Raises
    ------
    StoreError
        Not an ogive store.
    """
    path = Path(path)
    plan = read_plan(path)
    attributes_of(path)
    rows = {row["block"]: row for row in ledger(path)}
    group = zarr.open_group(str(path), mode="r", use_consolidated=False)
    faults: list[tuple[str, str, str]] = []
    for index in product(*(range(len(c)) for c in plan["chunks"])):
        key = ".".join(map(str, index))
        row = rows.get(key)
        if row is None or row["status"] != "done":
            faults.append((key, "", "failed" if row else "not done"))
            continue
        for name, crc in row["crc"].items():
            problem = _check_block(path, group, name, dict(zip(plan["dims"], index, strict=True)), plan, crc)
            if problem:
                faults.append((key, name, problem))
    in_blocks = {name for row in rows.values() for name in row.get("crc", {})}
    for name, array in sorted(group.arrays()):
        if rows and name not in in_blocks:
            problem = _check(path, array, ("0",) * array.ndim, ...)
            if problem:
                faults.append(("", name, problem))
    leftovers = sorted(p for f in (path, folder(path)) for p in f.rglob("*") if p.suffix in (".partial", ".tmp"))
    faults += [("", str(p.relative_to(path.parent)), "leftover file") for p in leftovers]
    if repair:
        for key in {fault[0] for fault in faults if fault[0]}:
            (folder(path) / f"{key}.json").unlink(missing_ok=True)
        for p in leftovers:
            p.unlink()
    return pd.DataFrame(faults, columns=["block", "variable", "problem"])


def _check_block(path: Path, group: zarr.Group, name: str, at: dict[str, int], plan: dict[str, Any], crc: int) -> str:
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        return "missing variable"
    dims = [str(d) for d in array.metadata.dimension_names or ()]  # type: ignore[union-attr]
    region = []
    for dim in dims:
        sizes = plan["chunks"][plan["dims"].index(dim)]
        region.append(slice(sum(sizes[: at[dim]]), sum(sizes[: at[dim] + 1])))
    return _check(path, array, tuple(str(at[d]) for d in dims), tuple(region), crc)


def _check(path: Path, array: zarr.Array[Any], cell: tuple[str, ...], region: Any, crc: int | None = None) -> str:
    """The fault of one stored object, "" when there is none; without a crc the codec's own checksum is the judge."""
    if not (path / array.basename / "c" / "/".join(cell)).exists():
        return "missing chunk"
    try:
        values: NDArray[Any] = np.ascontiguousarray(array[region])
    except Exception as error:  # a torn chunk raises whatever the codec or the file system finds first
        log.debug("%s %s: %s", array.basename, cell, error)
        return "unreadable"
    return "" if crc is None or zlib.crc32(values.tobytes()) == crc else "checksum"


def attributes_of(path: Path) -> dict[str, Any]:
    """Global attributes of an ogive store, after checking that it is one and not of a newer schema."""
    attrs = _attributes(path)
    if not attrs.keys() >= _MARKS:
        raise StoreError(
            str(path), rule="is not an ogive store" if path.exists() else "does not exist",
            fix="choose another path; ogive never touches what it did not write",
        )  # fmt: skip
    if int(str(attrs["schema_version"])) > SCHEMA_VERSION:
        raise StoreError(
            str(path), rule=f"was written by a newer ogive (this one knows schema {SCHEMA_VERSION})",
            value=attrs["schema_version"], fix="update ogive",
        )  # fmt: skip
    return attrs


def is_store(path: Path) -> bool:
    """Whether an ogive store lies there, of any schema."""
    return _attributes(path).keys() >= _MARKS


def _attributes(path: Path) -> dict[str, Any]:
    try:
        return dict(zarr.open_group(str(path), mode="r", use_consolidated=False).attrs)
    except (OSError, ValueError, KeyError, zarr.errors.NodeNotFoundError):
        return {}


def read_plan(path: Path) -> dict[str, Any]:
    """What the store will hold, as `write` planned it."""
    try:
        plan: dict[str, Any] = json.loads((folder(path) / "plan.json").read_text())
    except FileNotFoundError:
        attributes_of(path)
        raise StoreError(
            str(path), rule="its ledger is missing", value=str(folder(path)), fix="copy it together with the store"
        ) from None
    return plan


def folder(path: Path) -> Path:
    """Where the ledger of a store lies."""
    whole = path.absolute()  # "." has no name of its own
    return whole.with_name(whole.name + ".ledger")


def put(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that it is there whole or not at all."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with draft.open("w") as f:
        json.dump(content, f, sort_keys=True)
        f.flush()
        os.fsync(f.fileno())
    draft.replace(path)
