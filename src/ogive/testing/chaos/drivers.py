"""Drivers that are killed, that meet each other, and that have nothing to do."""

import os
import random
import signal
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from ... import _lock
from ..._ledger import COMPLETE, STATUS, Books, attributes_of, status
from ..._storage import storage_of
from ..._tasks import BlockGrid, run_block
from ..._verify import verify
from ...store import write
from ..buckets import bucket_server
from ..stores import contents
from . import Row, trials
from .worlds import Fork, isolated, noted, paced_velocity

THREADS = 2
PAUSE = 0.004


def killed_drivers(short: bool, seed: int) -> Row:
    """`kill -9` at a random moment from before the template until after the last block; then the same line again."""
    folders, buckets = (8, 1) if short else (180, 20)
    found: list[list[str]] = []
    start = time.perf_counter()
    for count, server in ((folders, nullcontext("")), (buckets, bucket_server())):
        with tempfile.TemporaryDirectory() as folder, server as url:
            found += isolated("ogive.testing.chaos.drivers:kill_often", folder, url, count, seed)
    good = ("folder: identical", "bucket: identical", *(f"killed {where}" for where in _PHASES))
    row = trials(
        "driver killed (kill -9) at a random moment, same line again",
        f"all byte-identical, at most {THREADS} blocks begun twice", len(found), seed, found.__getitem__, good,
    )  # fmt: skip
    return replace(row, seconds=time.perf_counter() - start)


_PHASES = ("before the first block", "between blocks", "after the last block")


def kill_often(folder: str, url: str, count: int, seed: int) -> list[list[str]]:
    """Trials in a folder, or in a bucket where there is a URL; needs an interpreter that has no threads yet."""
    _lock.BEAT = 0.2
    draw, place = random.Random(seed), url or folder
    log = Path(folder, "log")
    blocks = 8

    def line(path: str) -> None:
        write(paced_velocity(log, PAUSE), path, progress=False, workers=THREADS)

    Fork(partial(line, f"{folder}/warm.zarr")).result()
    start = time.perf_counter()
    Fork(partial(line, f"{place}/whole.zarr")).result()
    needed = time.perf_counter() - start
    whole = Fork(lambda: contents(f"{place}/whole.zarr")).result()
    found: list[list[str]] = []
    while len(found) < count:
        path = f"{place}/{len(found)}.zarr"
        log.unlink(missing_ok=True)
        start = time.perf_counter()
        child = Fork(partial(line, path))
        # Half of the moments are drawn from the time of a run, half from its blocks: the last steps are short.
        begun = draw.choice([0, draw.randint(1, blocks)])
        while noted(log) < begun and time.perf_counter() - start < 60:
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, 5 * PAUSE if begun else needed))
        child.kill(signal.SIGKILL)
        if child.end() is not None:  # it was done before
            Fork(partial(_removed, path)).result()
            continue
        phase = Fork(partial(_phase, path)).result()
        Fork(partial(line, path)).result()
        problems, same = Fork(partial(judged, path, whole)).result()
        outcome = [f"killed {phase}"]
        if noted(log) - blocks > THREADS:
            outcome.append("too many blocks begun twice")
        if problems:
            outcome.append(f"faults: {problems}")
        outcome.append(f"{'bucket' if url else 'folder'}: {'identical' if same else 'DIFFERENT'}")
        found.append(outcome)
        Fork(partial(_removed, path)).result()
    return found


def _phase(path: str) -> str:
    plan = Books(storage_of(path)).plan()
    if plan is None or plan.drafting:
        return _PHASES[0]
    return _PHASES[2] if status(path)["done"] == plan.count else _PHASES[1]


def judged(path: str, whole: dict[str, str]) -> tuple[list[str], bool]:
    """What is wrong besides leftovers of the dead, and whether the store is that of an undisturbed run."""
    faults = verify(path, repair=True)
    problems = sorted(set(faults["problem"]) - {"leftover file"})
    target = storage_of(path)
    if attributes_of(target)[STATUS] != COMPLETE:
        problems.append("not complete")
    if target.beside(".lock").exists():
        problems.append("lock left behind")
    found = contents(path)
    return problems + sorted(key for key in found.keys() ^ whole.keys()), found == whole


def _removed(path: str) -> None:
    for storage in (storage_of(path), storage_of(path).beside(".ledger")):
        storage.clear()


def two_writers(short: bool, seed: int) -> Row:
    """Several drivers start the same line at once."""
    count = 6 if short else 100
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = isolated("ogive.testing.chaos.drivers:meet_often", folder, count, seed)
    row = trials(
        "three drivers start one store at once", "one writes, the others are refused or find it done", count, seed,
        found.__getitem__, ("one wrote, 2 refused", "one wrote, 1 refused", "one wrote, 0 refused"),
    )  # fmt: skip
    return replace(row, seconds=time.perf_counter() - start)


def meet_often(folder: str, count: int, seed: int) -> list[list[str]]:
    """Trials; needs an interpreter that has no threads yet."""
    draw, log = random.Random(seed), Path(folder, "log")

    def line(path: str, wait: float) -> None:
        time.sleep(wait)
        write(paced_velocity(log, PAUSE), path, progress=False, workers=THREADS)

    Fork(partial(line, f"{folder}/whole.zarr", 0)).result()
    whole = contents(f"{folder}/whole.zarr")
    found = []
    for number in range(count):
        path = f"{folder}/{number}.zarr"
        log.unlink(missing_ok=True)
        drivers = [Fork(partial(line, path, draw.choice([0, draw.uniform(0, 0.2)]))) for _ in range(3)]
        answers = [driver.end() for driver in drivers]
        errors = [answer["text"] if answer and "error" in answer else "" for answer in answers]
        refused = sum("is being written by another run" in error for error in errors)
        problems, same = judged(path, whole)
        if problems or not same or noted(log) != 8 or sum(map(bool, errors)) != refused:
            found.append([f"WRONG: {problems}, {errors}, {noted(log)} blocks"])
        else:
            found.append([f"one wrote, {refused} refused"])
        _removed(path)
    return found


def replaced_stores(short: bool, seed: int) -> Row:
    """A store is replaced while tasks of a driver that is gone still write into it."""
    count = 4 if short else 100
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = isolated("ogive.testing.chaos.drivers:replace_often", folder, count, seed)
    row = trials(
        "store replaced (overwrite) while tasks of a dead driver still write",
        "nothing of the old job in the new store", count, seed, found.__getitem__, ("identical",),
    )  # fmt: skip
    return replace(row, seconds=time.perf_counter() - start)


def replace_often(folder: str, count: int, seed: int) -> list[list[str]]:
    """Trials; needs an interpreter that has no threads yet."""
    draw, log = random.Random(seed), Path(folder, "log")
    old, new = paced_velocity(log, 0.001), paced_velocity(log, 0.001, (2, 40, 48), scale=2.0)
    write(new, f"{folder}/whole.zarr", progress=False)
    whole = contents(f"{folder}/whole.zarr")

    def line(path: str) -> None:
        write(new, path, overwrite=True, progress=False, workers=THREADS)

    def orphans(path: str) -> None:
        """What the workers of a dead driver do: its tasks, over and over, in no order."""
        plan = Books(storage_of(path)).plan()
        assert plan is not None
        grid = BlockGrid(old)
        tasks = [arguments for _, arguments in grid.tasks()]
        chance = random.Random(os.getpid())
        end = time.monotonic() + 2
        refused = 0
        while refused < 20 and time.monotonic() < end:
            row = run_block(*chance.choice(tasks), path=path, job=plan.job, settings={})
            refused += row["status"] != "done"

    found = []
    for number in range(count):
        path = f"{folder}/{number}.zarr"
        write(old, path, progress=False)
        workers = [Fork(partial(orphans, path)) for _ in range(3)]
        time.sleep(draw.uniform(0.02, 0.2))
        answer = Fork(partial(line, path)).end()
        for worker in workers:
            worker.result()
        if answer is None or "error" in answer:
            found.append([f"FAILED: {answer and answer['text']}"])
        else:
            problems, same = judged(path, whole)
            found.append(["identical" if same and not problems else f"CORRUPT: {problems}"])
        _removed(path)
    return found


def runs_again(short: bool, seed: int) -> Row:
    """The line of a finished job, again."""
    count = 5 if short else 100
    with tempfile.TemporaryDirectory() as folder:
        log, path = Path(folder, "log"), Path(folder, "v.zarr")
        velocity = paced_velocity(log)
        write(velocity, path, progress=False)
        log.unlink()
        before = _files(path)

        def again(number: int) -> list[str]:
            write(velocity, path, progress=False, workers=1 + number % 4, overwrite=bool(number % 2))
            quiet = _files(path) == before and not noted(log)
            return ["0 blocks, 0 bytes" if quiet else "CHANGED"]

        return trials("finished job run again", "0 blocks, 0 bytes", count, seed, again, ("0 blocks, 0 bytes",))


def _files(path: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, time of change and size of every file."""
    files = [file for file in path.parent.rglob("*") if file.is_file()]
    return {str(file): (s.st_ino, s.st_mtime_ns, s.st_size) for file in files for s in [file.stat()]}
