"""One writer per store: a second run is refused, and a dead one never stands in the way.

In a folder the lock is that of the operating system on `<store>.lock`, which dies with its process. In a bucket it is
an object that its holder rewrites every few seconds, under the condition that nobody else has: a run that finds it
unchanged for longer takes it over. Only the holder's own clock measures that, so a wrong clock does no harm.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ._storage import Bucket, Folder, Storage, UnwritableError
from .errors import StoreError

log = logging.getLogger("ogive")

BEAT = 5.0
"""Seconds between two signs of life of a writer in a bucket."""
PATIENCE = 4
"""Beats without a sign after which a writer counts as dead."""
_KEY = "writer.json"


@contextmanager
def only_writer(target: Storage) -> Iterator[Callable[[], None]]:
    """Hold the lock of a store.

    Yields
    ------
    callable
        To be called now and then; raises if the lock was lost.

    Raises
    ------
    StoreError
        Somebody else is writing.
    """
    if isinstance(target, Folder):
        with _locked_file(target.beside(".lock").path):
            yield lambda: None
    else:
        assert isinstance(target, Bucket)
        with _beating(target.beside(".lock")) as still_ours:
            yield still_ours


def _me() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _refused(name: str, holder: bytes) -> StoreError:
    try:
        who = json.loads(holder)
        value = f"process {who['pid']} on {who['host']} since {who['since']}"
    except (ValueError, KeyError, TypeError):
        value = None
    return StoreError(
        name.removesuffix(".lock"), rule="is being written by another run", value=value, fix="wait for it, or stop it"
    )


@contextmanager
def _locked_file(path: Path) -> Iterator[None]:
    if not path.parent.is_dir():
        raise StoreError(str(path).removesuffix(".lock"), rule="its folder must exist", fix=f"mkdir -p {path.parent}")
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        while not _lock(number, path):
            # The holder before us has just taken the file away; ours has no name any more.
            os.close(number)
            number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UnwritableError(
            str(path).removesuffix(".lock"), rule="cannot be written", value=error.strerror, fix="get write access"
        ) from error
    try:
        with suppress(OSError):  # no room even for our name: the lock holds without it
            os.ftruncate(number, 0)
            os.pwrite(number, json.dumps(_me()).encode(), 0)
        yield
    finally:
        with suppress(OSError):  # read-only by now: a file that nobody holds locks nobody out
            path.unlink(missing_ok=True)
        os.close(number)


def _lock(number: int, path: Path) -> bool:
    """Lock an open file; False if it is not the file of that name any more."""
    try:
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(number, 4096, 0)
        os.close(number)
        raise _refused(str(path), holder) from None
    except (OSError, ImportError) as error:
        log.warning("%s: there are no locks here (%s); do not write to one store twice at once", path, error)
        return True
    try:
        return os.fstat(number).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


@contextmanager
def block_writer(ledger: Storage) -> Iterator[None]:
    """Held while the objects of one block are put; many blocks hold it side by side.

    It ties the look at the plan to the writing after it: no task of a run before ours can write into a store that
    replaced its own. In a bucket nothing can, so there the plan is looked at again before the row.
    """
    with _shared(ledger, alone=False):
        yield


@contextmanager
def no_block_writer(ledger: Storage) -> Iterator[None]:
    """Wait until no block is being put, and keep it so.

    Raises
    ------
    StoreError
        A task of another run does not come to its end.
    """
    with _shared(ledger, alone=True):
        yield


@contextmanager
def _shared(ledger: Storage, alone: bool) -> Iterator[None]:
    try:
        import fcntl

        number = os.open(ledger.name, os.O_RDONLY) if isinstance(ledger, Folder) else None
    except (OSError, ImportError):
        number = None
    if number is None:
        yield
        return
    try:
        end = time.monotonic() + BEAT * PATIENCE
        while True:
            try:
                fcntl.flock(number, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise StoreError(
                        ledger.name.removesuffix(".ledger"), rule="tasks of another run are still writing to it",
                        fix="stop the cluster of that run",
                    ) from None  # fmt: skip
                time.sleep(0.01)
            except OSError:  # the file system has no locks; `only_writer` has said so
                break
        yield
    finally:
        os.close(number)


@contextmanager
def _beating(place: Bucket) -> Iterator[Callable[[], None]]:
    me = _me() | {"run": uuid.uuid4().hex}
    tag = _acquire(place, me)
    stop, lost = threading.Event(), threading.Event()

    def beat(tag: str | None) -> None:
        count = 0
        alive = time.monotonic()
        while not stop.wait(BEAT):
            count += 1
            try:
                tag = place.swap(_KEY, _entry(me, count), tag) or _ours(place, me)
            except StoreError as error:
                log.warning("%s", error)
                if time.monotonic() - alive > BEAT * (PATIENCE - 1):
                    break
                continue
            if tag is None:
                break
            alive = time.monotonic()
        else:
            return
        lost.set()

    def still_ours() -> None:
        if lost.is_set():
            raise StoreError(
                place.name.removesuffix(".lock"), rule="another run has taken over; this one gave no sign of life",
                fix="let the other one finish",
            )  # fmt: skip

    thread = threading.Thread(target=beat, args=(tag,), daemon=True)
    thread.start()
    try:
        yield still_ours
    finally:
        stop.set()
        thread.join()
        if not lost.is_set():
            place.delete(_KEY)


def _acquire(place: Bucket, me: dict[str, Any]) -> str:
    tag = place.swap(_KEY, _entry(me, 0), None)
    if tag is not None:
        return tag
    try:
        holder, seen = place.tagged(_KEY)
    except FileNotFoundError:
        return _acquire(place, me)
    if not _dead(holder):
        log.warning("%s: another run was here; waiting %.0f s for a sign of life", place.name, BEAT * PATIENCE)
        time.sleep(BEAT * PATIENCE)
    tag = place.swap(_KEY, _entry(me, 0), seen)
    if tag is None:
        raise _refused(place.name, holder)
    return tag


def _ours(place: Bucket, me: dict[str, Any]) -> str | None:
    """The tag of the entry if it is ours after all: the answer to our last beat was lost."""
    try:
        holder, tag = place.tagged(_KEY)
        return tag if json.loads(holder)["run"] == me["run"] else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _entry(me: dict[str, Any], count: int) -> bytes:
    return json.dumps(me | {"beat": count}).encode()


def _dead(holder: bytes) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    try:
        who = json.loads(holder)
        if who["host"] != socket.gethostname():
            return False
        os.kill(int(who["pid"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, OSError):
        return False
    return False
