"""Scale by simulation: a real scheduler, real graphs, many light workers, and blocks that sleep instead of match.

The scheduler has a process of its own, all workers share a second one, the client is this one; so the CPU time of each
can be told apart. Tasks are made and handed out by the code that `ogive.write` runs.
"""

import asyncio
import itertools
import logging
import multiprocessing
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import psutil
import pystac
import xarray as xr
from affine import Affine
from distributed import Client, Scheduler, Worker
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from scale_paper import KERNEL, Assumptions

import ogive as og
from ogive import _ledger, store
from ogive._dispatch import AHEAD
from ogive._execute import Task, execute
from ogive._storage import storage_of
from ogive.blocks import OUTPUTS
from ogive.testing.pairs import truth_pair
from ogive.testing.readers import FakeReader

TILE_PX = Assumptions.size
"""A Sentinel-2 tile of 110 km."""
RECORDED = (11.1, 13.7, 10.6, 11.0, 7.5, 8.8, 15.0, 9.0)
"""CPU seconds of real blocks (`record`), for runs that do not record their own."""
THREADS = 4
"""Of a simulated worker; each costs the machine a heartbeat a second, which are not what is measured."""
LOG_LENGTH = 1000
"""Dask's default: so many messages to each worker, with the graphs of their tasks, are kept by the scheduler."""
SHORT_LOG = 10
COPIES = 20
"""Blocks that share a graph in a long run; making graphs is measured by itself (`client_work`)."""
SAMPLES = 20
"""How often a run looks at the scheduler."""
LAG = 2
"""Tasks for each one handed out that a scheduler may still be forgetting."""


def lazy_cube(days: Sequence[float], size: int, pixels: Callable[..., Any]) -> xr.Dataset:
    """A cube of scenes without files, of one orbit, `days` after 1 January 2018."""
    grid = GeoBox((size, size), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")
    box = grid.geographic_extent
    items = []
    for day in days:
        stamp = pd.Timestamp("2018-01-01T10:30", tz="UTC") + pd.Timedelta(days=day)
        name = f"S2A_32TPS_{stamp:%Y%m%d}_0_L2A"
        item = pystac.Item(
            id=name, geometry=box.json, bbox=list(box.boundingbox), datetime=stamp.to_pydatetime(),
            collection="sentinel-2-l2a",
            properties={
                "platform": "sentinel-2a", "constellation": "sentinel-2", "sat:relative_orbit": 22,
                "eo:cloud_cover": 5.0, "view:sun_azimuth": 150.0, "view:sun_elevation": 50.0,
                "s2:processing_baseline": "05.00", "proj:code": f"EPSG:{grid.crs.epsg}",
            },
        )  # fmt: skip
        fields = {"proj:shape": list(grid.shape), "proj:transform": list(grid.affine)[:6]}
        item.add_asset("nir", pystac.Asset(f"https://scenes.example/32/T/PS/{name}/B08.tif", extra_fields=fields))
        items.append(item)
    return og.open_cube(items, loader=FakeReader(pixels))


def blank(scene: str, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixels that nobody looks at."""
    return y + x


def lazy_velocity(scenes: int, days: tuple[float, float], size: int = TILE_PX, **options: Any) -> xr.Dataset:
    """The velocity of a cube with a scene every five days, all pairs of a span."""
    cube = lazy_cube(5.0 * np.arange(scenes), size, blank)
    return og.track(cube, og.make_pairs(cube, days=days), KERNEL, **options)


def tasks(velocity: xr.Dataset, every: int = 1) -> Iterator[Task]:
    """What `write` hands out for a velocity, or each n-th of it."""
    grid = store.BlockGrid(velocity)
    return grid.tasks({_ledger.key_of(index): index for index in list(grid)[::every]})


def copied_tasks(velocity: xr.Dataset) -> Iterator[Task]:
    """A task for every block, with the graph of each n-th only: the others are sent with a copy, which is free."""
    grid = store.BlockGrid(velocity)
    keys = map(_ledger.key_of, grid)
    for _, (_, blob, where) in tasks(velocity, COPIES):
        for key in itertools.islice(keys, COPIES):
            yield key, (key, blob, where)


@dataclass(frozen=True)
class Work:
    """What a task costs the client."""

    blocks: int
    first: float
    """Until the first task is made [s]."""
    each: float
    """Every further one [s of CPU]."""
    task_bytes: int
    held_bytes: int
    """What the client keeps for the graph."""


def client_work(velocity: xr.Dataset, sample: int = 24) -> Work:
    """Time and size of the tasks of a velocity, from a sample spread over all of them."""
    blocks = int(np.prod([len(c) for c in velocity["vx"].chunks or ()]))
    made = tasks(velocity, max(1, blocks // sample))
    start = time.process_time()
    _, (_, blob, _) = next(made)
    first = time.process_time() - start
    seconds = []
    while True:
        start = time.process_time()
        if next(made, None) is None:
            break
        seconds.append(time.process_time() - start)
    made = tasks(velocity, blocks)
    tracemalloc.start()
    next(made)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Work(blocks, first, float(np.median(seconds)), len(blob), held)


def record(size: int = 2048, scenes: int = 12, pairs: int = 64) -> tuple[list[float], float]:
    """CPU seconds of real blocks of 32 pairs, and bytes on disk of each cell and pair.

    The scenes are those of a truth pair in turn, a quarter of their pixels under masked clouds.
    """
    truth = truth_pair("P5", size)
    with tempfile.TemporaryDirectory(prefix="ogive-scale-") as folder:
        cube = lazy_cube(5.0 * np.arange(scenes), size, partial(_stored, folder))
        rng = np.random.default_rng(1)
        for k, scene in enumerate(cube["scene_id"].values):
            image = (truth.image2 if k % 2 else truth.image1) + rng.normal(0, 5, (size, size))
            clouds = np.kron(rng.random((16, 16)) < rng.uniform(0, 0.5), np.ones((size // 16, size // 16)))
            np.save(Path(folder, f"{scene}.npy"), np.where(clouds > 0, 0, image).astype(np.uint16))
        table = og.make_pairs(cube, days=(5, 60)).iloc[:pairs]
        velocity = og.track(cube, table, KERNEL)
        small = velocity.isel(mid_date=slice(0, 1), y=slice(0, 128), x=slice(0, 128))
        small.compute(scheduler="synchronous")  # compiles
        start = time.process_time()
        path = og.write(velocity, Path(folder, "recorded.zarr"), workers=1, progress=False)
        used = time.process_time() - start
        # The ledger tells wall time, which other work on the machine stretches.
        wall = [row["seconds"] for row in _ledger.ledger(path)]
        seconds = [used / sum(wall) * s for s in wall]
        stored = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        return seconds, stored / velocity["vx"].size


def _stored(folder: str, scene: str, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.uint16]:
    rows, columns = ((5100000 - y) // 10).astype(int), ((x - 600000) // 10).astype(int)
    image = np.load(Path(folder, f"{scene}.npy"), mmap_mode="r")
    return np.asarray(image[rows.clip(0, len(image) - 1), columns.clip(0, len(image) - 1)])


@dataclass(frozen=True)
class Run:
    """What a simulated run has taken."""

    blocks: int
    done: int
    """Ledger rows found at the end."""
    wall: float
    scheduler: float
    client: float
    workers: float
    """CPU [s]; the workers' is that of handing over, not of matching."""
    memory: tuple[float, ...]
    """Resident memory of the scheduler, as the run goes on [MB]."""
    held: int
    """Most tasks that the scheduler knew at once."""
    bound: int
    """How many it may know."""
    task_bytes: int
    listing: float
    """Reading the whole ledger, as a resumed `write` does [s]."""
    ledger_bytes: int


def put_row(path: Path, row: dict[str, Any]) -> None:
    """Write a ledger row as `write` does."""
    _ledger.Books(storage_of(path)).put_row(row)


def simulate(
    blocks: int, workers: int, made: Iterator[Task], seconds: Sequence[float], folder: Path, *,
    log_length: int = SHORT_LOG, record: Callable[[Path, dict[str, Any]], None] = put_row,
) -> Run:  # fmt: skip
    """Send tasks through a real scheduler to workers with `workers` threads in all.

    Parameters
    ----------
    blocks : int
        How many of the tasks.
    workers : int
    made : iterator of tasks
        With a block's key as the first argument and its graph as the second.
    seconds : sequence of float
        Blocks take these times, drawn by their keys [s].
    folder : path
        Where the ledger goes.
    log_length : int
        Messages that the scheduler keeps for each worker.
    record : callable
        Writes one row.
    """
    path = folder / f"{blocks}.zarr"
    ledger = path.with_name(path.name + ".ledger")
    body = partial(null_block, path=path, seconds=tuple(seconds), record=record)
    head = list(itertools.islice(made, 1))
    made = itertools.islice(itertools.chain(head, made), blocks)
    with _cluster(workers, log_length, folder) as (client, scheduler, crew):
        before = [_cpu(p) for p in (scheduler, psutil.Process(), crew)]
        start, memory, held = time.perf_counter(), [], 0
        for count, (key, row) in enumerate(execute(body, made, client=client), start=1):
            if isinstance(row, Exception):
                raise RuntimeError(f"block {key}") from row
            if count % max(1, blocks // SAMPLES) == 0:
                memory.append(scheduler.memory_info().rss / 1e6)
                held = max(held, client.run_on_scheduler(_known))
        wall = time.perf_counter() - start
        used = [_cpu(p) - b for p, b in zip((scheduler, psutil.Process(), crew), before, strict=True)]
    start = time.process_time()
    rows = _ledger.ledger(path)
    listing = time.process_time() - start
    stored = sum(p.stat().st_size for p in ledger.iterdir())
    done = len({row["block"] for row in rows if row["status"] == "done"})
    return Run(
        blocks, done, wall, *used, tuple(memory), held, LAG * AHEAD * workers, len(head[0][1][1]), listing, stored
    )


def null_block(
    key: str, blob: bytes, span: dict[str, Any], *, path: Path, seconds: tuple[float, ...],
    record: Callable[[Path, dict[str, Any]], None],
) -> dict[str, Any]:  # fmt: skip
    """The body of a task that computes nothing: it takes its time, and leaves a ledger row of the usual size."""
    code = _ledger.digest(key.encode())
    time.sleep(random.Random(code).choice(seconds))
    objects = {f"{name}/c/{key.replace('.', '/')}": code for name in OUTPUTS}
    row = {"block": key, "span": span, "job": code, "status": "done", "objects": objects, "seconds": 1.234}
    record(path, row)
    return row


@contextmanager
def _cluster(workers: int, log_length: int, folder: Path) -> Iterator[tuple[Client, psutil.Process, psutil.Process]]:
    """A client, and the processes of its scheduler and of its workers."""
    spawn = multiprocessing.get_context("spawn")
    address = spawn.SimpleQueue()
    scheduler = spawn.Process(target=_serve, args=(address, log_length))
    scheduler.start()
    where = address.get()
    crew = spawn.Process(target=_toil, args=(where, workers, str(folder)))
    crew.start()
    try:
        with Client(where, timeout=60) as client:  # type: ignore[no-untyped-call]
            client.wait_for_workers(workers // THREADS, timeout=120)
            yield client, psutil.Process(scheduler.pid), psutil.Process(crew.pid)
    finally:
        for process in (crew, scheduler):
            process.kill()
            process.join()


def _serve(address: Any, log_length: int) -> None:
    logging.getLogger("distributed").setLevel(logging.ERROR)
    dask.config.set({"distributed.admin.low-level-log-length": log_length})

    async def main() -> None:
        async with Scheduler(host="127.0.0.1", dashboard_address="127.0.0.1:0") as scheduler:
            address.put(scheduler.address)
            await scheduler.finished()

    asyncio.run(main())


def _toil(address: str, count: int, folder: str) -> None:
    logging.getLogger("distributed").setLevel(logging.ERROR)
    # What workers look at their own threads with would take more of this process than the tasks.
    dask.config.set({"distributed.worker.profile.enabled": False})

    async def main() -> None:
        workers = [
            Worker(address, nthreads=THREADS, name=k, memory_limit=0, local_directory=folder, host="127.0.0.1")
            for k in range(count // THREADS)
        ]
        await asyncio.gather(*workers)
        await asyncio.gather(*(worker.finished() for worker in workers))

    asyncio.run(main())


def _known(dask_scheduler: Any = None) -> int:
    return len(dask_scheduler.tasks)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
