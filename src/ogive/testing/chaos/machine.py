"""Disks that are full or read-only, and clocks that jump."""

import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import xarray as xr

from ..._ledger import Books, ledger
from ..._storage import UnwritableError, storage_of
from ..._verify import verify
from ...errors import StoreError
from ...store import open_velocity, write
from ..stores import contents
from . import Row, trials
from .worlds import isolated, noted, paced_velocity

THREADS = 2
PRIVATE = ("unshare", *(() if os.geteuid() == 0 else ("--map-root-user",)), "--mount")
"""Mounts of the process are its own, and gone with it; users may do that too, where the kernel lets them."""


@lru_cache
def mounts() -> bool:
    """Whether file systems can be mounted here, in a namespace of their own."""
    with suppress(OSError, subprocess.SubprocessError):
        command = [*PRIVATE, "mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
    return False


def full_disks(short: bool, seed: int) -> Row:
    """A file system that is full after a random number of bytes: a tmpfs, or where none may be mounted a file limit."""
    count = 12 if short else 200
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if mounts():
            found = isolated("ogive.testing.chaos.machine:fill_often", folder, count, seed, prefix=PRIVATE)
        else:
            found = isolated("ogive.testing.chaos.machine:limit_often", folder, count, seed)
    row = trials(
        "disk full", "one clear error, the run stops at once, same line finishes it", count, seed, found.__getitem__,
        (*(f"full {where}, finished later" for where in ("before the first block", "between blocks")), "large enough"),
    )  # fmt: skip
    return replace(row, seconds=time.perf_counter() - start)


def fill_often(folder: str, count: int, seed: int) -> list[list[str]]:
    """Trials on a tmpfs of our own; a ballast leaves some room in it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True)
    place, ballast = Path(folder), Path(folder, "ballast")

    def free() -> int:
        about = os.statvfs(place)
        return about.f_bavail * about.f_frsize

    def limited(room: int) -> None:
        ballast.write_bytes(bytes(free() - room))

    before = free()
    with tempfile.TemporaryDirectory() as elsewhere:
        whole = _whole(place, Path(elsewhere, "log"))
        needed = before - free()
        _clear(place / "whole.zarr")
        return _suffer(place, Path(elsewhere, "log"), whole, count, seed, needed, limited, ballast.unlink)


def limit_often(folder: str, count: int, seed: int) -> list[list[str]]:
    """Trials under a limit of the size of files: blocks are larger than all else."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = Path(folder, "log")

    def limited(room: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))

    whole = _whole(Path(folder), log, _LARGE)
    _clear(Path(folder, "whole.zarr"))
    return _suffer(Path(folder), log, whole, count, seed, 100_000, limited, lambda: limited(hard), _LARGE)


_SMALL = ((4, 40, 48), (2, 20, 24))
_LARGE = ((2, 256, 256), (1, 128, 256))
Shape = tuple[tuple[int, int, int], tuple[int, int, int]]


def _whole(place: Path, log: Path, shape: Shape = _SMALL) -> dict[str, str]:
    path = place / "whole.zarr"
    write(paced_velocity(log, 0, *shape), path, progress=False, workers=THREADS)
    return contents(path)


def _clear(path: Path) -> None:
    for storage in (storage_of(path), storage_of(path).beside(".ledger")):
        storage.clear()


def _suffer(
    place: Path, log: Path, whole: dict[str, str], count: int, seed: int, needed: int, limited: Callable[[int], None],
    relieved: Callable[[], None], shape: Shape = _SMALL,
) -> list[list[str]]:  # fmt: skip
    draw, velocity, found = random.Random(seed), paced_velocity(log, 0, *shape), []
    for number in range(count):
        path = place / f"{number}.zarr"
        log.unlink(missing_ok=True)
        limited(int(draw.uniform(0, needed)) if number else 0)
        error = ""
        try:
            write(velocity, path, progress=False, workers=THREADS)
        except UnwritableError as caught:
            error = str(caught)
        relieved()
        outcome = _outcome(path, log, error)
        write(velocity, path, progress=False, workers=THREADS)
        if contents(path) != whole or path.with_name(path.name + ".lock").exists():
            outcome += ["DIFFERENT AFTERWARDS"]
        _clear(path)
        found.append(outcome)
    return found


def _outcome(path: Path, log: Path, error: str) -> list[str]:
    """What a run that stopped left behind, and how it said so."""
    if not error:
        return ["large enough"]
    wrong = []
    if "\n" in error or "cannot be written" not in error:
        wrong.append(f"UNCLEAR: {error}")
    with suppress(StoreError):  # a plan that was never written is no fault
        plan = Books(storage_of(path)).plan()
        if plan is None or plan.drafting:
            return wrong or ["full before the first block, finished later"]
    open_velocity(path, partial=True).compute()
    if noted(log) > len(ledger(path)) + THREADS + 1:  # one more is handed out than can run
        wrong.append("WENT ON")
    if set(verify(path)["problem"]) - {"not done"}:
        wrong.append("INVALID")
    return wrong or ["full between blocks, finished later"]


def read_only_targets(short: bool, seed: int) -> Row:
    """A target that is read-only from the start, or that becomes so under the run."""
    count = (6 if short else 100) if mounts() else 0
    start = time.perf_counter()
    found: list[list[str]] = []
    if count:
        with tempfile.TemporaryDirectory() as folder:
            found = isolated("ogive.testing.chaos.machine:lock_often", folder, count, seed, prefix=PRIVATE)
    row = trials(
        "target read-only" if count else "target read-only: not tried, nothing can be mounted here",
        "one clear error, what is written stays valid, same line finishes it", count, seed, found.__getitem__,
        ("read-only from the start", "read-only under the run"),
    )  # fmt: skip
    return replace(row, met=row.met or not count, seconds=time.perf_counter() - start)


def lock_often(folder: str, count: int, seed: int) -> list[list[str]]:
    """Trials; the mounts are our own."""
    draw, place, log = random.Random(seed), Path(folder, "place"), Path(folder, "log")
    place.mkdir()
    whole, found = _whole(place, log), []
    velocity = paced_velocity(log)
    for number in range(count):
        path, at_once = place / f"{number}.zarr", number % 3 == 0
        after = 0 if at_once else draw.randrange(1, 8)
        log.unlink(missing_ok=True)
        if at_once:
            _locked(place)
        wrong = []
        try:
            write(_locking_velocity(log, path, after), path, progress=False, workers=1)
            wrong.append("WROTE")
        except UnwritableError as error:
            if "\n" in str(error) or "cannot be written" not in str(error):
                wrong.append(f"UNCLEAR: {error}")
        valid = path if after else place / "whole.zarr"
        open_velocity(valid, partial=True).compute()
        if set(verify(valid)["problem"]) - {"not done"} or (after and len(ledger(path)) != after - 1):
            wrong.append("INVALID")
        _unlocked(place if at_once else path)
        write(velocity, path, progress=False, workers=1)
        if contents(path) != whole or path.with_name(path.name + ".lock").exists():
            wrong.append("DIFFERENT AFTERWARDS")
        _clear(path)
        found.append(wrong or [f"read-only {'from the start' if at_once else 'under the run'}"])
    return found


def _locking_velocity(log: Path, path: Path, after: int) -> xr.Dataset:
    """`paced_velocity` that makes its own store read-only in the block of this number; the same job for a store."""
    velocity = paced_velocity(log)
    blocks = velocity["vx"].data.map_blocks(
        _locking, log=log, path=path, after=after, dtype=np.float32, meta=np.empty((0, 0, 0), "f4")
    )
    return velocity.assign(vx=velocity["vx"].copy(data=blocks))


def _locking(block: Any, log: Path, path: Path, after: int) -> Any:
    if noted(log) == after:
        _locked(path)
    return block


def _locked(path: Path) -> None:
    subprocess.run(["mount", "--bind", path, path], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)


def _unlocked(path: Path) -> None:
    subprocess.run(["umount", path], check=True)


def clock_jumps(short: bool, seed: int) -> Row:
    """Each look at the clock is days off, in either direction; every second trial goes on with half a store."""
    count = 5 if short else 200
    draw, real = random.Random(seed), time.time
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        whole = _whole(Path(folder), log)

        def jump(number: int) -> list[str]:
            path = Path(folder, f"{number}.zarr")
            with mock.patch("time.time", side_effect=lambda: real() + draw.uniform(-3e6, 3e6)):
                write(paced_velocity(log), path, progress=False, workers=THREADS)
                if number % 2:
                    books = Books(storage_of(path))
                    for row in draw.sample(ledger(path), 4):
                        books.drop_row(row["block"])
                    for file in path.parent.rglob(f"{number}.zarr*/*"):
                        os.utime(file, (draw.uniform(0, 4e9), draw.uniform(0, 4e9)))
                before = noted(log)
                write(paced_velocity(log), path, progress=False, workers=THREADS)
            right = noted(log) - before == 4 * (number % 2) and verify(path).empty and contents(path) == whole
            _clear(path)
            return ["identical" if right else "DIFFERENT"]

        return trials("clock jumps by days", "no effect on a byte", count, seed, jump, ("identical",))
