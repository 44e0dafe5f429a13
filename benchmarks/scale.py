"""How far it scales: `python benchmarks/scale.py` runs 100 000 blocks through a real scheduler.

First the price of a tile and of the world, by arithmetic (`scale_paper`). Then measurements (`scale_run`): seconds of
real blocks, what a task costs the client, and a run of blocks that only sleep, in a hundredth of their time. Last,
from these figures, what breaks first. CPU figures are those of the machine. It takes a quarter of an hour of CPU.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

import report
import scale_paper
import scale_run
from report import Limit, Row, Table
from scale_run import Run, Work

SHARE = 0.01
"""Of their time that blocks sleep."""
SCENES = 20
"""Of the simulated run's cube, whose area is as large as the number of blocks wants."""
WIDE_PX = 130 * 1024
SPAN = (5.0, 95.0)
report.FORMATS.update(
    dict.fromkeys(("blocks", "done", "workers", "held", "may hold", "bytes/row"), ",.0f")
    | dict.fromkeys(("scheduler ms", "client ms", "worker ms", "wall ms", "row ms", "ms/task"), ".2f")
    | dict.fromkeys(("start MB", "end MB", "client MB", "task kB"), ",.0f")
    | dict.fromkeys(("first s", "listing s", "s/block", "bytes/cell"), ".1f")
)


def recorded(seconds: Sequence[float], stored: float) -> Table:
    """Real blocks."""
    figures = {"blocks": len(seconds), "s/block": mean(seconds), "bytes/cell": stored}
    return Table(
        "Real blocks", "Two batches of 32 pairs on 2 x 2 tiles, a quarter under clouds.", [Row("recorded", figures)]
    )


def tasks(quick: bool) -> tuple[Table, Work]:
    """What a task costs the client, as pairs and scenes grow; the last is that of the long run."""
    cases: list[tuple[int, tuple[float, float]]] = [(20, (5, 40)), (20, (5, 400))]
    if not quick:
        cases = [(46, (5, 400)), (91, (5, 400)), (365, (5, 100)), (365, (5, 400)), (365, (5, 4000))]
    rows = []
    for scenes, days in cases:
        work = scale_run.client_work(scale_run.lazy_velocity(scenes, days))
        figures = {
            "blocks": work.blocks, "ms/task": 1e3 * work.each, "task kB": work.task_bytes / 1e3,
            "first s": work.first, "client MB": work.held_bytes / 1e6,
        }  # fmt: skip
        rows.append(Row(f"{scenes} scenes, {days[0]:.0f}-{days[1]:.0f} d", figures))
    return Table("Tasks", "The graph of one block, culled and pickled, on a tile of 110 km.", rows), work


def runs(counts: Sequence[int], workers: int, seconds: Sequence[float], *, log: int) -> tuple[Table, Run]:
    """Runs of blocks that sleep; the last one too as it was taken."""
    velocity = scale_run.lazy_velocity(SCENES, SPAN, WIDE_PX)
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="ogive-scale-") as folder:
            made = scale_run.copied_tasks(velocity)
            run = scale_run.simulate(count, workers, made, seconds, Path(folder), log_length=log)
        each = 1e3 / count
        figures = {
            "done": run.done, "wall ms": each * run.wall, "scheduler ms": each * run.scheduler,
            "client ms": each * run.client, "worker ms": each * run.workers, "start MB": run.memory[0],
            "end MB": run.memory[-1], "held": run.held, "may hold": run.bound, "task kB": run.task_bytes / 1e3,
            "listing s": run.listing, "row ms": each * run.listing, "bytes/row": run.ledger_bytes / count,
        }  # fmt: skip
        rows.append(Row(f"{count:,} blocks", figures, [Limit("done", count, count), Limit("held", high=run.bound)]))
    about = (
        f"{workers} threads; milliseconds of CPU for each block; the scheduler keeps {log} messages for each worker."
    )
    return Table(f"Runs, log of {log}", about, rows), run


def breaks(work: Work, run: Run, seconds: float) -> Table:
    """Where what was measured meets a bound, the first to do so first."""
    client, scheduler = work.each + run.client / run.blocks, run.scheduler / run.blocks
    in_workers = {
        "scheduler of 16 GB, Dask's log of messages": 16e9 / (scale_run.LOG_LENGTH * work.task_bytes),
        "client busy": seconds / client,
        "scheduler busy": seconds / scheduler,
    }
    in_blocks = {
        "client of 8 GB full of keys": 8e9 / work.held_bytes * work.blocks,
        "client a day with handing out": 86400 / client,
        "a minute to read the ledger": 60 / (run.listing / run.blocks),
    }
    rows = [Row(name, {"workers": n}) for name, n in sorted(in_workers.items(), key=lambda kv: kv[1])]
    rows += [Row(name, {"blocks": n}) for name, n in sorted(in_blocks.items(), key=lambda kv: kv[1])]
    about = f"Workers of one thread with blocks of {seconds:.0f} s; tasks of {work.task_bytes / 1e3:.0f} kB."
    return Table("What breaks first", about, rows)


def tables(quick: bool) -> Iterator[Table]:
    """Paper first, then what is measured."""
    yield from scale_paper.tables()
    seconds: Sequence[float] = scale_run.RECORDED
    if not quick:
        seconds, stored = scale_run.record()
        yield recorded(seconds, stored)
    table, work = tasks(quick)
    yield table
    short = [SHARE * s for s in seconds]
    counts, workers = ((100, 500), 8) if quick else ((1000, 10_000, 100_000), 64)
    if not quick:
        yield runs(counts[:1], workers, short, log=scale_run.LOG_LENGTH)[0]
    table, run = runs(counts, workers, short, log=scale_run.SHORT_LOG)
    yield table
    yield breaks(work, run, mean(seconds))


def notes(quick: bool) -> Iterator[str]:
    """What the tables leave out."""
    if quick:
        yield "A quick run: it shows that everything works, its milliseconds mean little."
    yield f"In the runs one graph serves {scale_run.COPIES} blocks; the client's work on graphs is the table of tasks."


if __name__ == "__main__":
    sys.exit(report.program(__doc__, tables, notes, None))
