"""The books of a store: what it is to hold, which blocks are done, and the checksum of every object written.

    <store>.ledger/plan.json       dimensions, blocks, fingerprint, metadata, checksum of every object that is no block
    <store>.ledger/template.zip    these objects themselves, to mend them without computing anything
    <store>.ledger/<block>.json    one row per block: status, checksum of each object, seconds, memory; or why it failed
    <store>.ledger/next.*          plan and template of a store that is being extended, until it is

A row is written after all objects of its block, so it says "done" only where everything lies on the disk. Plan and rows
carry a checksum of themselves: a row that cannot be trusted counts as not there.
"""

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._storage import Storage, for_all, storage_of
from ._trust import STUMBLES, understood
from .errors import StoreError
from .grid import SCHEMA_VERSION

if TYPE_CHECKING:
    import icechunk

log = logging.getLogger("ogive")

PLAN, TEMPLATE, ROOT = "plan.json", "template.zip", "zarr.json"
NEXT, NEXT_TEMPLATE = "next.json", "next.zip"
"""Plan and template of what a store is being extended to."""
_ROW = {"done": {"span", "job", "objects"}, "failed": {"span", "job", "error"}, "growing": {"span", "job", "kept"}}
"""What a row holds, by its status."""
_MARKS = {"schema_version", "kind"}
_OLDEST = 2
"""The first schema of a release; all since then are read."""
"""Global attributes that every ogive store has, and no other."""
STATUS = "status"
WRITING, COMPLETE = "being written", "complete"
"""What the global attribute `status` says; `complete` is put there last of all."""


@dataclass(frozen=True)
class Plan:
    """What a store is to hold.

    Parameters
    ----------
    fingerprint : str
        Of the job, from `store.fingerprint`.
    dims : tuple of str
    chunks : tuple of tuples of int
        Sizes of the blocks along `dims`.
    metadata : dict
        The metadata of the finished store: its root object.
    objects : dict of str to str
        Key and checksum of every object that is not part of a block; the root is that of the finished store.
    unfinished : str
        Checksum of the root object as long as the store is being written.
    job : str
        Fingerprint of the job that made the store; its rows carry it.
    template : str
        Checksum of the ledger's template; "" in the copy of the plan there.
    drafting : bool
        The store is being made or taken away: whatever lies there is ours and worth nothing.
    """

    fingerprint: str
    dims: tuple[str, ...]
    chunks: tuple[tuple[int, ...], ...]
    metadata: dict[str, Any]
    objects: dict[str, str]
    unfinished: str
    job: str
    template: str = ""
    drafting: bool = False

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return product(*(range(len(c)) for c in self.chunks))

    @property
    def count(self) -> int:
        """Number of blocks."""
        n = 1
        for c in self.chunks:
            n *= len(c)
        return n

    def spans(self) -> dict[str, dict[str, list[int]]]:
        """Where every block lies along each dimension, by its key: start and stop."""
        return spans(self.dims, self.chunks)


def spans(dims: Sequence[str], chunks: Sequence[Sequence[int]]) -> dict[str, dict[str, list[int]]]:
    """Where blocks lie along each dimension, by their keys: start and stop.

    Examples
    --------
    >>> spans(["y", "x"], [[4, 2], [5]])
    {'0.0': {'y': [0, 4], 'x': [0, 5]}, '1.0': {'y': [4, 6], 'x': [0, 5]}}
    """
    ends = [list(accumulate(sizes)) for sizes in chunks]
    return {
        key_of(index): {
            dim: [end[k] - sizes[k], end[k]] for dim, sizes, end, k in zip(dims, chunks, ends, index, strict=True)
        }
        for index in product(*(range(len(c)) for c in chunks))
    }


def key_of(index: tuple[int, ...]) -> str:
    """The name of a block in the ledger.

    Examples
    --------
    >>> key_of((0, 2, 1))
    '0.2.1'
    """
    return ".".join(map(str, index))


def digest(data: bytes) -> str:
    """The checksum of an object."""
    return hashlib.sha256(data).hexdigest()


def seal(content: dict[str, Any]) -> bytes:
    """JSON with a checksum of itself."""
    text = json.dumps(content, sort_keys=True)
    return json.dumps({**content, "sha256": digest(text.encode())}, sort_keys=True).encode()


def unseal(data: bytes) -> dict[str, Any]:
    """The content of sealed JSON.

    Raises
    ------
    ValueError
        It is not what was written.

    Examples
    --------
    >>> unseal(seal({"block": "0.0"}))
    {'block': '0.0'}
    """
    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError("no sealed object")
    content.pop("sha256", None)
    if seal(content) != data:
        raise ValueError("the checksum is wrong")
    return content


class Books:
    """The ledger of one store."""

    def __init__(self, target: Storage) -> None:
        self.target = target
        self.place = target.beside(".ledger")

    def plan(self, name: str = PLAN) -> Plan | None:
        """The plan, or the `NEXT` one; None where there is none.

        Raises
        ------
        StoreError
            It is damaged.
        """
        try:
            data = self.place.get(name)
        except FileNotFoundError:
            return None
        try:
            return _plan(data, self.target.name)
        except STUMBLES as error:
            raise StoreError(
                f"{self.place.name}/{name}", rule="is damaged", value=error,
                fix="verify the store with repair=True, its template holds a copy",
            ) from None  # fmt: skip

    def put_plan(self, plan: Plan, name: str = PLAN) -> None:
        """Write the plan."""
        self.place.put(name, _sealed(plan))

    def put_template(self, plan: Plan, objects: dict[str, bytes], name: str = TEMPLATE) -> Plan:
        """Keep the objects that are not part of a block, and a copy of the plan; the plan that knows of them."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for key, data in sorted({**objects, PLAN: _sealed(replace(plan, template=""))}.items()):
                file.writestr(zipfile.ZipInfo(key), data)  # no time of day: the same job gives the same bytes
        self.place.put(name, buffer.getvalue())
        return replace(plan, template=digest(buffer.getvalue()))

    def template(self, name: str = TEMPLATE) -> tuple[Plan, dict[str, bytes]]:
        """The plan of `put_template`, and the objects that are not part of a block; ValueError: they are damaged."""
        data = self.place.get(name)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                objects = {name: file.read(name) for name in file.namelist()}
            plan = _plan(objects.pop(PLAN), self.target.name)
        except StoreError:
            raise
        except Exception as error:  # an archive with a wrong bit fails in as many ways as there are bits
            raise ValueError(str(error)) from None
        if plan.objects != {key: digest(data) for key, data in objects.items()}:
            raise ValueError("objects and plan do not belong together")
        return replace(plan, template=digest(data)), objects

    def root(self) -> bytes:
        """The root object of the finished store.

        Raises
        ------
        StoreError
            The template is damaged or lost.
        """
        try:
            return self.template()[1][ROOT]
        except (FileNotFoundError, ValueError) as error:
            raise StoreError(
                f"{self.place.name}/{TEMPLATE}", rule="is damaged", value=error, fix="verify the store with repair=True"
            ) from None

    def put_row(self, row: dict[str, Any]) -> None:
        """Write the row of a block."""
        self.place.put(f"{row['block']}.json", seal(row))

    def drop_row(self, block: str) -> None:
        """Forget a block."""
        self.place.delete(f"{block}.json")

    def row(self, block: str) -> dict[str, Any] | None:
        """The row of a block, if there is one that can be trusted."""
        return self._row(f"{block}.json")

    def rows(self) -> list[dict[str, Any]]:
        """All rows that can be trusted, in block order."""
        names = [k for k in self.place.objects() if k.endswith(".json") and k not in (PLAN, NEXT) and "/" not in k]
        rows = [row for row in for_all(self._row, names, self.place) if row is not None]
        return sorted(rows, key=lambda row: [int(k) for k in row["block"].split(".")])

    def _row(self, name: str) -> dict[str, Any] | None:
        try:
            row = unseal(self.place.get(name))
            numbers = all(k.isdigit() for k in row["block"].split("."))
            if f"{row['block']}.json" == name and numbers and row.keys() >= _ROW[row["status"]]:
                return row
        except FileNotFoundError:
            return None
        except STUMBLES:
            pass
        log.warning("%s/%s: not a ledger row, its block counts as not done", self.place.name, name)
        return None

    def done(self, plan: Plan) -> set[str]:
        """Blocks that are done in the extent of the plan."""
        spans = plan.spans()
        return {row["block"] for row in self.rows() if is_done(row, plan, spans)}


def is_done(row: dict[str, Any], plan: Plan, spans: dict[str, dict[str, list[int]]]) -> bool:
    """Whether a row says that a block of this plan is done, in its whole extent."""
    return (row["status"], row["job"], row["span"]) == ("done", plan.job, spans.get(row["block"]))


def accepted(row: dict[str, Any]) -> dict[str, list[str]]:
    """The objects of a block and what their checksums may be: of two states while the block is extended.

    Examples
    --------
    >>> accepted({"objects": {"vx/c/0": "a"}}), accepted({"kept": {"vx/c/0": ["a", "b"]}}), accepted({})
    ({'vx/c/0': ['a']}, {'vx/c/0': ['a', 'b']}, {})
    """
    return row.get("kept") or {name: [found] for name, found in row.get("objects", {}).items()}


def _sealed(plan: Plan) -> bytes:
    return seal({**vars(plan), "schema_version": SCHEMA_VERSION})


def _plan(data: bytes, name: str) -> Plan:
    content = unseal(data)
    _check_schema(name, content.pop("schema_version"))
    content |= {"dims": tuple(content["dims"]), "chunks": tuple(map(tuple, content["chunks"]))}
    return Plan(**content)


def status(path: "str | Path | icechunk.Repository") -> dict[str, int]:
    """How far a store is: `blocks`, `done`, `failed`; while it is extended, of the extended store, and `new` pairs.

    `unreadable`, where there are any, counts scenes that can never be read and whose pairs are flagged.

    Of a repository: what main holds; before anything is on main, what an unfinished run has saved.

    Raises
    ------
    StoreError
        Not an ogive store.
    """
    with understood(str(path), StoreError):
        return counts(*opened(path))


def counts(books: Books, plan: Plan) -> dict[str, int]:
    """The blocks of a plan, or of the next one, and how many rows say what."""
    coming = books.plan(NEXT)
    told = coming or plan
    rows = books.rows()
    states = [row["status"] for row in rows]
    lost = {note["scene"] for row in rows for note in row.get("unreadable", ())}
    count = {"blocks": told.count, "done": len(books.done(told)), "failed": states.count("failed")}
    count |= {"unreadable": len(lost)} if lost else {}
    return count if coming is None else {**count, "new": sum(coming.chunks[0]) - sum(plan.chunks[0])}


def ledger(path: "str | Path | icechunk.Repository") -> list[dict[str, Any]]:
    """All ledger rows of a store, in block order; a row that cannot be read counts as not there."""
    return Books(storage_of(path)).rows()


def opened(path: "str | Path | Storage | icechunk.Repository") -> tuple[Books, Plan]:
    """The books and the plan of an existing store.

    Raises
    ------
    StoreError
        Not an ogive store, one of another schema, or one without its ledger.
    """
    target = storage_of(path)
    attributes_of(target)
    books = Books(target)
    plan = books.plan()
    if plan is None:
        raise StoreError(
            target.name, rule="its ledger is missing", value=books.place.name, fix="copy it together with the store"
        )
    return books, plan


def attributes_of(target: Storage) -> dict[str, Any]:
    """Global attributes of an ogive store, after checking that it is one, and of our schema.

    Raises
    ------
    StoreError
        Nothing there, something else, or a store of another schema.
    """
    attrs = _attributes(target)
    if not attrs.keys() >= _MARKS:
        raise StoreError(
            target.name, rule="is not an ogive store" if target.exists() else "does not exist",
            fix="choose another path; ogive never touches what it did not write",
        )  # fmt: skip
    _check_schema(target.name, attrs["schema_version"])
    return attrs


def _check_schema(name: str, version: Any) -> None:
    if not isinstance(version, int) or not _OLDEST <= version <= SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        raise StoreError(
            name, rule=f"was written by {'a newer' if newer else 'an unreleased'} ogive (this one knows the schemas "
            f"{_OLDEST} to {SCHEMA_VERSION})", value=version, fix="update ogive" if newer else "write it anew",
        )  # fmt: skip


def is_store(target: Storage) -> bool:
    """Whether an ogive store lies there, of any schema."""
    return _attributes(target).keys() >= _MARKS


def _attributes(target: Storage) -> dict[str, Any]:
    try:
        found = json.loads(target.get(ROOT))["attributes"]
        return dict(found)
    except (FileNotFoundError, *STUMBLES):
        return {}
