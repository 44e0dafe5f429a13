"""Workers of a cluster that die under their blocks."""

import ctypes
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ...errors import StoreError
from ...store import ledger, write
from ..stores import contents
from . import Row, trials
from .drivers import judged
from .worlds import isolated, paced_velocity

WAYS = ("exit", "segfault", "kill")
LIMIT = 120.0
"""Seconds after which a run counts as hanging."""


def killed_workers(short: bool, seed: int) -> Row:
    """Blocks that exit, crash or are killed from outside, while a store is written; the next try gets through."""
    count, kills = (3, 3) if short else (100, 50)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        limit = 60 + LIMIT * count
        found = isolated("ogive.testing.chaos.workers:kill_workers_often", folder, count, seed, timeout=limit)
    row = trials(
        f"workers killed (exit, segfault, kill -9), at least {kills}", "0 wrong blocks, 0 runs that hang", count, seed,
        found.__getitem__,
        (*(f"killed by {way}" for way in WAYS), "run identical", "run refused, identical when repeated"),
    )  # fmt: skip
    total = sum(n for what, n in row.outcomes.items() if what.startswith("killed"))
    return replace(row, met=row.met and total >= kills, seconds=time.perf_counter() - start)


def kill_workers_often(folder: str, count: int, seed: int) -> list[list[str]]:
    """Runs on one local cluster, whose workers come back by themselves."""
    import dask
    from distributed import Client
    from distributed.utils import get_mp_context

    # A worker that comes back has everything imported: what is tried is its death, not its birth. And a local cluster
    # takes workers for lost that a busy machine does not bring back within 15 s; then none is left for the run.
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    dask.config.set({"distributed.deploy.lost-worker-timeout": "600s"})
    context: Any = get_mp_context()  # type: ignore[no-untyped-call]
    context.set_forkserver_preload(["distributed", "ogive.testing.chaos.workers"])
    draw, log = random.Random(seed), Path(folder, "log")
    whole_path = Path(folder, "whole.zarr")
    write(paced_velocity(log, 0.01), whole_path, progress=False)
    whole = contents(whole_path)
    found: list[list[str]] = []
    client: Any
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as client:  # type: ignore[no-untyped-call]
        for number in range(count):
            path, permits = Path(folder, f"{number}.zarr"), Path(folder, f"{number}.permits")
            permits.mkdir()
            ways = draw.sample(range(8), draw.randint(1, 2))
            deadly = {block: draw.choice(WAYS[:2]) for block in ways if draw.random() < 0.7}
            velocity = _deadly_velocity(log, permits, deadly)
            stop = threading.Event()
            outside = threading.Thread(target=_kill_some, args=(client, permits, draw.uniform(0, 0.4), stop))
            if len(deadly) < len(ways):
                outside.start()
            outcome = _run(velocity, path, client)
            stop.set()
            if outside.ident:
                outside.join()
            if outcome == "run refused":
                again = _run(velocity, path, client)
                outcome = "run refused, identical when repeated" if again == "run finished" else again
            if outcome == "run hangs":
                return [*found, [f"RUN HANGS: {_state(client)}"]] + [["not tried"]] * (count - number - 1)
            problems, same = judged(str(path), whole)
            if problems or not same:
                outcome = f"WRONG: {problems}"
            killed = Counter(permit.name.split(".")[1] for permit in permits.iterdir())
            found.append([outcome.replace("finished", "identical"), *(f"killed by {way}" for way in killed.elements())])
    return found


def _run(velocity: xr.Dataset, path: Path, client: Any) -> str:
    """Write under a time limit; what became of it."""
    outcome = ["run hangs"]

    def line() -> None:
        try:
            write(velocity, path, progress=False, client=client)
            outcome[0] = "run finished"
        except StoreError as error:
            failed = [row["error"] for row in ledger(path) if row["status"] == "failed"]
            deaths = all("KilledWorker" in text for text in failed)
            outcome[0] = "run refused" if failed and deaths else f"OTHER ERROR: {error}"
        except Exception as error:  # whatever it is, the table says so
            outcome[0] = f"NO STORE ERROR: {type(error).__name__}: {error}"

    thread = threading.Thread(target=line, daemon=True)
    thread.start()
    thread.join(LIMIT)
    return outcome[0]


def _state(client: Any) -> str:
    """What the scheduler knows, for a run that does not end."""
    scheduler = client.cluster.scheduler
    tasks = Counter(task.state for task in scheduler.tasks.values())
    nannies = Counter(str(nanny.status) for nanny in client.cluster.workers.values())
    return f"{len(scheduler.workers)} workers, tasks {dict(tasks)}, nannies {dict(nannies)}"


def _deadly_velocity(log: Path, permits: Path, deadly: dict[int, str]) -> xr.Dataset:
    """`paced_velocity`, some of whose blocks end their process until they have left a permit."""
    velocity = paced_velocity(log, 0.01)
    blocks = velocity["vx"].data.map_blocks(
        _die, permits=str(permits), deadly=deadly, dtype=np.float32, meta=np.empty((0, 0, 0), "f4")
    )
    return velocity.assign(vx=velocity["vx"].copy(data=blocks))


def _die(block: Any, permits: str, deadly: dict[int, str], block_info: Any = None) -> Any:
    at = block_info[0]["chunk-location"]
    number = 4 * at[0] + 2 * at[1] + at[2]
    way = deadly.get(number)
    if way and not list(Path(permits).glob(f"{number}.*")):
        Path(permits, f"{number}.{way}").touch()
        if way == "exit":
            os._exit(1)
        ctypes.string_at(0)
    return block


def _kill_some(client: Any, permits: Path, wait: float, stop: threading.Event) -> None:
    """Kill a worker from outside, once, at a random moment of the run."""
    if not stop.wait(wait):
        worker = list(client.cluster.workers.values())[int(wait * 1e6) % 2]
        # One that is just being started is left alone: nobody starts it again.
        if worker.status.name == "running" and worker.process and worker.process.pid:
            os.kill(worker.process.pid, signal.SIGKILL)
            Path(permits, "outside.kill").touch()
