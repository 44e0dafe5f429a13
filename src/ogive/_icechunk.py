"""Stores with a history: the same objects inside an Icechunk repository, where main moves only to what is whole.

    main                   one snapshot per finished `write`; readers pin the one that they open
    ogive-<fingerprint>    what an unfinished run has finished so far; the next run takes it from there

Every snapshot carries its ledger, the files of `<store>.ledger` as one object, so data and checksums can never come
apart. Workers put blocks into forks of one session; only the driver gathers the forks and commits.
"""

import io
import json
import logging
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cloudpickle
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from ._ledger import ROOT, Books, Plan, digest, is_done
from ._lock import only_writer
from ._storage import Bucket, Folder, UnwritableError, _first_line, is_url
from ._template import being_written
from .errors import StoreError

log = logging.getLogger("ogive")

PAUSE = 60.0
"""Seconds between two savings of an unfinished run, at least; they take no more than a twentieth of the time."""
_MAIN, _WORK = "main", "ogive-"
_LEDGER = "ledger/files/c/0"


class Papers:
    """The ledger of a snapshot: its files, as one zip file in there."""

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        self.name, self.files = name, files

    def get(self, key: str) -> bytes:
        """Read a file."""
        try:
            return self.files[key]
        except KeyError:
            raise FileNotFoundError(f"{self.name}/{key}") from None

    def put(self, key: str, data: bytes) -> None:
        """Write a file; it lasts from the next snapshot on."""
        self.files[key] = data

    def delete(self, key: str) -> None:
        """Take a file away."""
        self.files.pop(key, None)

    def objects(self) -> list[str]:
        """All files, sorted."""
        return sorted(self.files)

    def packed(self) -> bytes:
        """All files as one."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            for key, data in sorted(self.files.items()):
                file.writestr(zipfile.ZipInfo(key), data, zipfile.ZIP_DEFLATED)
        return buffer.getvalue()


class Snapshot:
    """Storage in a session of a repository: what a snapshot holds, or what a coming one will."""

    def __init__(self, name: str, session: Any, versions: Any = None) -> None:
        self.name, self.session, self.versions = name, session, versions

    @cached_property
    def papers(self) -> Papers:
        """The ledger."""
        files = {}
        try:
            # Icechunk knows no chunks of an array that is not there, and says so.
            if self.has("ledger/files/zarr.json"):
                with zipfile.ZipFile(io.BytesIO(self.get(_LEDGER))) as file:
                    files = {key: file.read(key) for key in file.namelist()}
        except (OSError, zipfile.BadZipFile) as error:
            raise StoreError(f"{self.name}/{_LEDGER}", rule="is damaged", value=error) from None
        return Papers(f"{self.name}.ledger", files)

    def beside(self, suffix: str) -> Any:
        """The ledger: nothing else lies beside a snapshot."""
        return self.papers

    def exists(self) -> bool:
        """Whether there is anything in it."""
        return self.has(ROOT)

    def get(self, key: str) -> bytes:
        """Read an object."""
        if self.session is not None:
            with _errors(f"{self.name}/{key}"):
                found = sync(self.session.store.get(key, default_buffer_prototype()))
                if found is not None:
                    return bytes(found.to_bytes())
        raise FileNotFoundError(f"{self.name}/{key}")

    def has(self, key: str) -> bool:
        """Whether there is an object."""
        with suppress(FileNotFoundError):
            return bool(self.get(key))
        return False

    def put(self, key: str, data: bytes) -> None:
        """Write an object; it is seen once a snapshot holds it."""
        with _errors(f"{self.name}/{key}", UnwritableError, "cannot be written"):
            sync(self.session.store.set(key, default_buffer_prototype().buffer.from_bytes(data)))

    def delete(self, key: str) -> None:
        """Take an object away."""
        with _errors(f"{self.name}/{key}", UnwritableError, "cannot be written"):
            sync(self.session.store.delete(key))

    def objects(self) -> list[str]:
        """All objects but the ledger, sorted."""

        async def listed() -> list[str]:
            return [key async for key in self.session.store.list()]

        if self.session is None:
            return []
        with _errors(self.name):
            return sorted(key for key in sync(listed()) if not key.startswith("ledger/"))

    def clear(self) -> None:
        """Take everything away."""
        with _errors(self.name, UnwritableError, "cannot be written"):
            sync(self.session.store.clear())

    def zarr(self) -> Any:
        """Zarr's store of it."""
        return self.session.store

    def put_ledger(self) -> None:
        """Put the ledger in, as the only chunk of an array of bytes."""
        data = self.papers.packed()
        size = {"chunk_shape": [len(data)]}
        group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
        array = {
            "zarr_format": 3, "node_type": "array", "attributes": {}, "shape": [len(data)], "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": size}, "fill_value": 0, "codecs": [{"name": "bytes"}],
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        }  # fmt: skip
        self.put("ledger/zarr.json", json.dumps(group).encode())
        self.put("ledger/files/zarr.json", json.dumps(array).encode())
        self.put(_LEDGER, data)


class Versions:
    """A repository: its snapshots, and where the lock of its writer lies."""

    def __init__(self, name: str, repository: Any, storage: Any = None, place: Folder | Bucket | None = None) -> None:
        self.name, self.repository, self.storage, self.place = name, repository, storage, place

    def only_writer(self) -> Any:
        """Hold the lock; a repository that came open has none, there the second commit is refused."""
        return only_writer(self.place) if self.place is not None else nullcontext(lambda: None)

    def create(self) -> None:
        """Make the repository if there is none."""
        if self.repository is not None:
            return
        if self.place is not None and self.place.exists():
            raise StoreError(self.name, rule="is no Icechunk repository", fix="choose another path")
        icechunk = imported()
        # Repositories of format 1 are read and written by Icechunk 1 and 2.
        how = {} if icechunk.__version__.startswith("1.") else {"spec_version": 1}
        with _errors(self.name, UnwritableError, "cannot be written"):
            self.repository = icechunk.Repository.create(self.storage, **how)

    def at(self, which: str | datetime) -> Snapshot:
        """The snapshot of a branch, tag, id or moment of main; what comes later does not change it."""
        if self.repository is None:
            return Snapshot(self.name, None, self)
        with _errors(self.name, rule=f"has no snapshot {which}"):
            if isinstance(which, datetime):
                session = self.repository.readonly_session(_MAIN, as_of=which)
            elif which in self.repository.list_branches():
                session = self.repository.readonly_session(which)
            elif which in self.repository.list_tags():
                session = self.repository.readonly_session(tag=which)
            else:
                session = self.repository.readonly_session(snapshot_id=which)
        return Snapshot(self.name, session, self)

    def main(self) -> Snapshot:
        """What main holds."""
        return self.at(_MAIN)

    def current(self) -> Snapshot:
        """What main holds; as long as that is nothing, what the latest unfinished run has saved."""
        main = self.main()
        if self.repository is None or main.exists():
            return main
        with _errors(self.name):
            heads = {b: next(self.repository.ancestry(branch=b)) for b in self.repository.list_branches()}
        unfinished = [branch for branch in heads if branch.startswith(_WORK)]
        return self.at(max(unfinished, key=lambda b: heads[b].written_at)) if unfinished else main

    def unfinished(self, fingerprint: str) -> Snapshot | None:
        """What a run of this job has saved, if it is not on main yet; a branch left after that is taken away."""
        branch = branch_of(fingerprint)
        if self.repository is None or branch not in self.repository.list_branches():
            return None
        with _errors(self.name):
            newest, *_ = self.repository.ancestry(branch=_MAIN)
            saved, *_ = self.repository.ancestry(branch=branch)
            if newest.metadata.get("fingerprint") == fingerprint and saved.parent_id != newest.id:
                self.repository.delete_branch(branch)
                return None
        return self.at(branch)


class Draft:
    """The coming snapshot of main: a fork that gathers what the workers wrote, its ledger, and what of it is saved."""

    def __init__(self, versions: Versions, plan: Plan, objects: dict[str, bytes]) -> None:
        self.versions, self.plan, name = versions, plan, versions.name
        with _errors(name):
            session = versions.repository.writable_session(_MAIN)
            self.base: str = session.snapshot_id
            self.snapshot = Snapshot(name, session.fork())
        # An array that is there already is changed, never taken away and made anew: Icechunk 2 merges no forks that do
        # both. Chunks outside the new one must go before, all else that is not wanted any more goes last.
        for key in [key for key in self.snapshot.objects() if _outside(key, self.snapshot.name, objects)]:
            self.snapshot.delete(key)
        for key in sorted(objects, key=lambda key: (not key.endswith(ROOT), key)):
            self.snapshot.put(key, objects[key])
        self.snapshot.papers = Papers(f"{name}.ledger", {})
        self.books = Books(self.snapshot)
        self.books.put_plan(plan)
        self.blank = cloudpickle.dumps(self.snapshot)
        self.books.put_plan(self.books.put_template(plan, objects))
        self.keys, self.done, self.next_save = set(objects), 0, time.monotonic() + PAUSE

    def take(self, outcome: tuple[dict[str, Any], bytes]) -> dict[str, Any]:
        """Gather what a worker wrote for a block; its row."""
        row, fork = outcome
        if row["status"] == "done":
            with _errors(self.versions.name, UnwritableError, "cannot be written"):
                self.snapshot.session.merge(cloudpickle.loads(fork))
            self.keys |= row["objects"].keys()
            self.done += 1
        if row["status"] != "unwritable":
            self.books.put_row(row)
        return row

    def save(self) -> None:
        """Keep what is finished, for the next run, if this one should die."""
        started = time.monotonic()
        _keep(self.versions, cloudpickle.loads(cloudpickle.dumps(self.snapshot)), self.keys, self.base, self.plan)
        self.next_save = time.monotonic() + max(PAUSE, 20 * (time.monotonic() - started))

    def commit(self) -> None:
        """Move main, in one step, and forget what was saved."""
        self.snapshot.put_ledger()
        repository, branch = self.versions.repository, branch_of(self.plan.fingerprint)
        with _errors(self.versions.name, UnwritableError, "cannot be written"):
            session = _session(self.versions, self.snapshot, self.keys, self.base)
            session.commit(f"ogive write, {self.plan.count} blocks", metadata=_facts(self.plan))
            if branch in repository.list_branches():
                repository.delete_branch(branch)


def write_snapshot(
    versions: Versions, plan: Plan, objects: dict[str, bytes], block: Callable[..., dict[str, Any]],
    spread: Callable[..., Any], compute: Callable[..., list[dict[str, Any]]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Compute a job as one snapshot of main.

    Parameters
    ----------
    versions : Versions
    plan, objects
        The plan, and all objects that are not part of a block.
    block : callable
        Computes a block and writes it where `path` says; returns its row.
    spread : callable
        `execute`, on threads or a cluster.
    compute : callable
        Computes the blocks that the books do not have; returns the rows of those that failed.

    Returns
    -------
    list of dict
        Rows of the blocks that failed; main has not moved then, and what was finished is saved.
    """
    versions.create()
    draft = Draft(versions, plan, objects)
    earlier = versions.unfinished(plan.fingerprint)
    if earlier is not None:
        spans = plan.spans()
        rows = [row for row in Books(earlier).rows() if is_done(row, plan, spans)]
        carry = partial(carried, earlier=Snapshot(versions.name, earlier.session), draft=draft.blank)
        for _, outcome in spread(carry, ((row["block"], (row,)) for row in rows)):
            if isinstance(outcome, tuple) and outcome[0]["status"] == "done":
                draft.take(outcome)

    def take(outcome: tuple[dict[str, Any], bytes]) -> dict[str, Any]:
        row = draft.take(outcome)
        if draft.done and time.monotonic() >= draft.next_save:
            draft.save()
        return row

    body = partial(computed, block=block, draft=draft.blank)
    try:
        failures = compute(plan, draft.books, body, take)
    except BaseException:
        if draft.done:
            with suppress(StoreError):
                draft.save()
        raise
    if not failures:
        draft.commit()
    elif draft.done:
        draft.save()
    return failures


def computed(*task: Any, block: Callable[..., dict[str, Any]], draft: bytes) -> tuple[dict[str, Any], bytes]:
    """Compute a block into a fork of its own: the body of a task; row and fork."""
    target = cloudpickle.loads(draft)
    row = block(*task, path=target)
    return row, cloudpickle.dumps(target.session)


def carried(row: dict[str, Any], *, earlier: Snapshot, draft: bytes) -> tuple[dict[str, Any], bytes]:
    """Take a block over from an earlier run if it is whole: the body of a task; row and fork."""
    target = cloudpickle.loads(draft)
    try:
        for key, expected in row["objects"].items():
            data = earlier.get(key)
            if digest(data) != expected:
                raise StoreError(f"{earlier.name}/{key}", rule="is damaged")
            target.put(key, data)
    except (StoreError, FileNotFoundError) as error:
        return row | {"status": "failed", "error": str(error)}, b""
    return row, cloudpickle.dumps(target.session)


def reopen(main: Snapshot, plan: Plan, bad: set[str]) -> None:
    """Save what is whole on main as if its run had been killed: the same `write` computes the rest anew."""
    with _errors(main.name):
        session = main.versions.repository.writable_session(_MAIN)
        copy = Snapshot(main.name, session.fork())
    for block in bad:
        Books(copy).drop_row(block)
    _keep(main.versions, copy, set(copy.objects()), session.snapshot_id, plan)


def _keep(versions: Versions, copy: Snapshot, keys: set[str], base: str, plan: Plan) -> None:
    """Save a draft on the branch of its job, as the child of what main holds."""
    copy.put(ROOT, being_written(copy.get(ROOT)))
    copy.put_ledger()
    repository, branch = versions.repository, branch_of(plan.fingerprint)
    with _errors(versions.name, UnwritableError, "cannot be written"):
        saved = _session(versions, copy, keys, base).flush("ogive write, unfinished", metadata=_facts(plan))
        if branch in repository.list_branches():
            repository.reset_branch(branch, saved)
        else:
            repository.create_branch(branch, saved)


def _session(versions: Versions, draft: Snapshot, keys: set[str], base: str) -> Any:
    """A session on main with these objects of a draft and no others; refused if somebody has committed meanwhile."""
    session = versions.repository.writable_session(_MAIN)
    if session.snapshot_id != base:
        raise _overtaken(versions.name)
    session.merge(draft.session)
    merged = Snapshot(versions.name, session)
    for key in sorted(set(merged.objects()) - keys, key=lambda key: (key.endswith(ROOT), key)):
        merged.delete(key)
    return session


def _outside(key: str, name: str, objects: dict[str, bytes]) -> bool:
    """Whether a chunk lies outside the array that takes the place of its own; refused if that has another rank."""
    array, _, place = key.partition("/c/")
    if not place or f"{array}/{ROOT}" not in objects:
        return False
    document, at = json.loads(objects[f"{array}/{ROOT}"]), [int(k) for k in place.split("/")]
    if len(at) != len(document["shape"]):
        # Icechunk 2 would keep the old chunks for ever.
        raise StoreError(
            f"{name}/{array}", rule="has another number of dimensions in this job", value=len(at),
            fix="choose another path",
        )  # fmt: skip
    lengths = document["chunk_grid"]["configuration"]["chunk_shape"]
    return any(k * length >= n for k, length, n in zip(at, lengths, document["shape"], strict=True))


def _facts(plan: Plan) -> dict[str, Any]:
    return {"fingerprint": plan.fingerprint, "blocks": plan.count}


def branch_of(fingerprint: str) -> str:
    """The branch where an unfinished run of a job is saved."""
    return _WORK + fingerprint[:16]


def snapshot_of(path: Any) -> Snapshot:
    """What a repository holds now; one that does not exist holds nothing.

    Parameters
    ----------
    path : path, URL, icechunk.Repository or Snapshot
    """
    if isinstance(path, Snapshot):
        return path
    icechunk = imported()
    if isinstance(path, icechunk.Repository):
        return Versions("Icechunk repository", path).current()
    if not isinstance(path, str | Path):
        raise StoreError("path", rule="must be a path, a URL or an icechunk.Repository", value=type(path).__name__)
    text = str(path).rstrip("/")
    place = Bucket(text) if is_url(text) else Folder(Path(text).absolute())
    with _errors(place.name):
        storage = _storage(place)
        found = place.exists() and icechunk.Repository.exists(storage)
        repository = icechunk.Repository.open(storage) if found else None
    return Versions(place.name, repository, storage, place).current()


def _storage(place: Folder | Bucket) -> Any:
    icechunk = imported()
    if isinstance(place, Folder):
        if "ICECHUNK_LOG" not in os.environ:
            # It warns on standard output of commits at the same time; our lock does not let them happen.
            icechunk.set_logs_filter("icechunk=error")
        return icechunk.local_filesystem_storage(str(place.path))
    address, setting = urlsplit(place.url), os.environ.get
    if address.scheme != "s3":
        raise StoreError(
            place.name, rule="only s3:// and paths are opened by name",
            fix="open the icechunk.Repository yourself and pass it as path",
        )  # fmt: skip
    endpoint = setting("AWS_ENDPOINT_URL_S3") or setting("AWS_ENDPOINT_URL")
    return icechunk.s3_storage(
        bucket=address.netloc, prefix=address.path.strip("/"), from_env=True, endpoint_url=endpoint,
        region=setting("AWS_REGION") or setting("AWS_DEFAULT_REGION"), force_path_style=endpoint is not None,
        allow_http=setting("AWS_ALLOW_HTTP", "").lower() in ("true", "1"),
    )  # fmt: skip


def imported() -> Any:
    """The package, or what to do to get it."""
    try:
        import icechunk
    except ImportError:
        raise StoreError(
            "icechunk", rule="is needed for repositories, and is not installed", fix='pip install "ogive[icechunk]"'
        ) from None
    return icechunk


def _overtaken(name: str) -> StoreError:
    return StoreError(
        name, rule="main has moved: another run has committed since this one started, nothing of this one is on main",
        fix="look at what it wrote; then run the same line again, with overwrite=True to replace it",
    )  # fmt: skip


@contextmanager
def _errors(name: str, kind: type[StoreError] = StoreError, rule: str = "cannot be read") -> Iterator[None]:
    """Errors of Icechunk, in ours."""
    icechunk = imported()
    try:
        yield
    except icechunk.ConflictError:
        raise _overtaken(name) from None
    except icechunk.IcechunkError as error:
        raise kind(name, rule=rule, value=_first_line(error)) from None
