"""How fast: against the peers in one process, what it scales with, and the whole chain.

Seconds are CPU seconds (user and system) of one thread, the least of several repeats, programs in turn. A window is
that of a block as a Dask task has it: the cells, and the halo that the kernel asks for. Only the cells are counted.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cases
import numpy as np
import peers
import xarray as xr
from cases import FILTER, Image, Vectors
from dask.base import compute
from numba.core import event
from numpy.typing import NDArray
from report import RATIO, Limit, Row, Table

from ogive import _neighbours, blocks, enhance
from ogive.kernels import NCC
from ogive.testing.pairs import TruthPair

PLAIN = NCC(chip=32, search=8, step=8, enhance="none", refine="quadric", backend="numba")
"""Whole pixels and the quadric; images are filtered beforehand."""
CHIPS = (16, 32, 64)
CHAIN = NCC(chip=CHIPS, search=8, step=8, backend="numba")
"""Everything: filter, three chips, refinement."""
MEMORY = Path("/proc/self/status")
CORNER = 256
"""Part of the image that code is tried on [px]."""
DENSE_CUT = 512
"""Part of the image that gets a vector for each pixel [px]."""
BLOCK = 32 * 8
"""Image of the rows about pairs in a block [px]."""


@dataclass(frozen=True)
class Entry:
    """One program to be timed."""

    name: str
    kernel: NCC
    limits: tuple[Limit, ...] = ()
    cloud: float = 0.0
    at_hand: bool = False
    """Whether scenes are prepared outside of the clock."""

    @property
    def yardstick(self) -> NCC:
        """Chip, search and step of the OpenCV loop to compare with."""
        chip = 32 if len(self.kernel.chips) > 1 else self.kernel.chips[0]
        return replace(PLAIN, chip=chip, search=self.kernel.search, step=self.kernel.step)


@dataclass(frozen=True)
class Setting:
    """An image pair, as large as a block, and how to time."""

    pair: TruthPair
    repeats: int
    most: int = 128
    """Points along an axis that OpenCV is asked for."""
    turn: float = 0.25
    """Least time of a program's turn [s]: the one before has left the caches full of other things."""

    def window(self, kernel: NCC) -> tuple[Image, Image]:
        """Both images and the halo, taken from the other side; filtered unless the kernel does."""
        images = []
        for image in (self.pair.image1, self.pair.image2):
            whole = np.pad(image.astype(np.float32), kernel.halo(), "wrap")
            images.append(cases.filtered(whole) if kernel.enhance == "none" else whole)
        return images[0], images[1]

    def corners(self, kernel: NCC, every: int = 1) -> peers.Corners:
        """First pixels (y, x) of the chips of the cells in the window, of every n-th along both axes."""
        first = kernel.halo() + (kernel.step - kernel.chips[0]) // 2
        y, x = (first + kernel.step * np.arange(0, n // kernel.step, every) for n in self.pair.image1.shape)
        rows, columns = np.meshgrid(y, x, indexing="ij")
        return rows.ravel(), columns.ravel()

    def score(self, kernel: NCC, found: Vectors) -> dict[str, float]:
        """Accuracy of the cells that the published tables count."""
        y, x = (kernel.step * np.arange(n) + (kernel.step - 1) / 2 for n in found[0].shape)
        inner = [(axis >= cases.EDGE - 1) & (axis < n - cases.EDGE) for axis, n in zip((y, x), self.pair.image1.shape)]
        error = cases.errors(self.pair, y[:, None], x[None], found)
        figures = cases.score((error[0][np.ix_(*inner)], error[1][np.ix_(*inner)]))
        return {name: figures[name] for name in ("valid", "gross", "RMSE") if name in figures}

    def call(self, entry: Entry) -> Callable[[], Mapping[str, NDArray[Any]]]:
        """The match of an entry, to be timed."""
        kernel, (one, two) = entry.kernel, self.window(entry.kernel)
        valid = ~cases.clouds(one.shape, entry.cloud, 3) if entry.cloud else np.ones(one.shape, bool)
        if not entry.at_hand:
            return lambda: kernel.match(kernel.prepare(one, valid), kernel.prepare(two, valid))
        scenes = kernel.prepare(one, valid), kernel.prepare(two, valid)
        kernel.match(*scenes)
        return lambda: kernel.match(*scenes)

    def yardstick(self, kernel: NCC) -> Callable[[], Vectors]:
        """The loop of OpenCV at the same points, or where there are very many, at some of them."""
        corners = self.corners(kernel, max(1, len(self.pair.image1) // kernel.step // self.most))
        return partial(peers.opencv_whole, *self.window(kernel), corners, kernel.chips[0], kernel.search)


def least(calls: Mapping[str, Callable[[], Any]], setting: Setting) -> tuple[dict[str, float], dict[str, Any]]:
    """Least CPU time of each call [s], taken in turn, and what each returned."""
    seconds, results = dict.fromkeys(calls, np.inf), dict[str, Any]()
    for _ in range(setting.repeats):
        for name, call in calls.items():
            turn = 0.0
            while turn <= setting.turn:
                start = time.process_time()
                results[name] = call()
                took = time.process_time() - start
                seconds[name], turn = min(seconds[name], took), turn + took
    return seconds, results


def measured(setting: Setting, entries: Sequence[Entry]) -> list[Row]:
    """The kernels, and the loops of OpenCV that they are compared with."""
    loops = {name_of(entry.yardstick): entry.yardstick for entry in entries} if peers.HAS_OPENCV else {}
    rounds = []
    for _ in range(setting.repeats):
        # Made anew: where in memory the images happen to lie is a fifth of the speed.
        calls: dict[str, Callable[[], Any]] = {entry.name: setting.call(entry) for entry in entries}
        calls |= {name: setting.yardstick(kernel) for name, kernel in loops.items()}
        seconds, results = least(calls, replace(setting, repeats=1))
        rounds.append(seconds)
    seconds = {name: min(one[name] for one in rounds) for name in seconds}
    points = {name: (found["dy"] if isinstance(found, Mapping) else found[0]).size for name, found in results.items()}
    speeds = {name: points[name] / seconds[name] for name in seconds}
    rows = []
    for entry in entries:
        figures = {"points": points[entry.name], "points/s": speeds[entry.name]}
        if loops:
            figures[RATIO] = speeds[entry.name] / speeds[name_of(entry.yardstick)]
        accuracy = setting.score(entry.kernel, cases.vectors(results[entry.name]))
        # Without OpenCV there is no ratio, and nothing to hold it against.
        limits = [limit for limit in entry.limits if limit.figure in figures]
        rows.append(Row(entry.name, figures | accuracy, limits))
    return rows + [Row(name, {"points": points[name], "points/s": speeds[name]}) for name in loops]


def name_of(kernel: NCC) -> str:
    """What the loop of OpenCV is called in a table."""
    return f"OpenCV loop, chip {kernel.chips[0]}, R {kernel.search}, whole px"


def ratios(setting: Setting) -> Table:
    """The targets of speed."""
    wide, filtered = replace(PLAIN, search=25), replace(PLAIN, enhance=FILTER)
    coarse = replace(filtered, search=25, coarse=4)
    rows = measured(setting, [
        Entry("chip 32, R 8, quadric", PLAIN, (Limit(RATIO, 12), Limit("points/s", 450e3))),
        Entry("chip 32, R 8, scenes' tables at hand", PLAIN, at_hand=True),
        Entry("chip 32, R 8, with filter", filtered),
        Entry("chip 32, R 8, 15 % of both images masked", PLAIN, cloud=0.15),
        Entry("chip 32, R 8, refined, with sigma", replace(PLAIN, refine="translation"), (Limit(RATIO, 2),)),
        Entry("chips 16, 32, 64 in one pass, R 8, quadric", replace(PLAIN, chip=CHIPS), (Limit("points/s", 160e3),)),
        Entry("chip 64, R 8, quadric", replace(PLAIN, chip=64), (Limit(RATIO, 22),)),
        Entry("chip 32, R 25, quadric", wide, (Limit(RATIO, 5),)),
        Entry("chip 32, R 25, with filter", replace(filtered, search=25)),
        Entry("chip 32, R 25, with filter, coarse to fine", coarse, (Limit(RATIO, 15),)),
    ])  # fmt: skip
    dense = Entry("chip 33, R 8, a vector for each pixel", replace(PLAIN, chip=33, step=1), (Limit("points/s", 1.2e6),))
    rows += measured(replace(setting, pair=cases.cut(setting.pair, DENSE_CUT)), [dense])
    about = (
        "Case P1 in windows of one block, one thread, CPU time; both scenes prepared inside the clock, images "
        f"filtered ({FILTER}) outside of it unless said. {RATIO}: speed as a multiple of the OpenCV loop's."
    )
    return Table("Speed", about, rows)


def scaling(setting: Setting, sizes: Sequence[int]) -> Table:
    """Speed with each parameter."""
    rows = []
    for name, values in (("chip", (16, 24, 32, 48, 64, 96)), ("search", (4, 8, 16, 25, 32)), ("step", (4, 8, 16, 32))):
        entries = [Entry(f"{name} {value} px", varied(name, value)) for value in values]
        rows += measured(setting, entries)[: len(entries)]
    for size in sizes:
        other = replace(setting, pair=tiled(setting.pair, size))
        figures = measured(other, [Entry("", PLAIN)])[0].figures
        # Where copies of the image meet there is no truth.
        rows.append(Row(f"image {size} px", {n: v for n, v in figures.items() if n in ("points", "points/s", RATIO)}))
    return Table("Scaling", "As above, quadric; chip 32, search 8, step 8 but for one of them.", rows)


def varied(name: str, value: int) -> NCC:
    """The kernel with another chip, search or step."""
    parameters: dict[str, Any] = {name: value}
    return replace(PLAIN, **parameters)


def tiled(pair: TruthPair, size: int) -> TruthPair:
    """Copies of a pair side by side, cut to size; no truth beyond the first."""
    times = -(-size // len(pair.image1))
    image1, image2 = (np.tile(image, (times, times))[:size, :size] for image in (pair.image1, pair.image2))
    return replace(pair, image1=image1, image2=image2)


def pairs_in_a_block(setting: Setting, counts: tuple[int, ...]) -> Table:
    """Time per pair: scenes are filtered, and their tables made, once."""
    kernel = replace(PLAIN, enhance=FILTER)
    images = [im[:BLOCK, :BLOCK] for im in (setting.pair.image1, setting.pair.image2)]
    rows = []
    for count in counts:
        cube = cube_of([images[k % 2] for k in range(count + 1)])
        groups = [np.array([[k, k + 1]]) for k in range(count)]
        with clocked_filter() as clock:
            matched(cube, groups, kernel)
        seconds, _ = least({"": partial(matched, cube, groups, kernel)}, setting)
        figures = {"ms/pair": 1000 * seconds[""] / count, "filters/scene": clock.calls / (count + 1)}
        rows.append(Row(f"{count} in a block", figures, (Limit("filters/scene", 1, 1),)))
    return Table("Pairs", f"Consecutive pairs of {BLOCK} px through the Dask layer, chip 32, R 8, quadric.", rows)


@dataclass
class Clock:
    """Calls and CPU seconds."""

    calls: int = 0
    seconds: float = 0.0


@contextmanager
def clocked_filter() -> Iterator[Clock]:
    """Count and time the filter."""
    clock, usual = Clock(), enhance.FILTERS[FILTER]

    def timed(image: Image, valid: NDArray[np.bool_]) -> Any:
        start = time.process_time()
        out = usual.apply(image, valid)
        clock.seconds += time.process_time() - start
        clock.calls += 1
        return out

    enhance.FILTERS[FILTER] = enhance.Filter(timed, usual.halo)
    try:
        yield clock
    finally:
        enhance.FILTERS[FILTER] = usual


def cube_of(images: Sequence[NDArray[Any]]) -> xr.Dataset:
    """A cube in memory, nothing masked."""
    stack = np.stack(images).astype(np.float32)
    dims = ("time", "y", "x")
    return xr.Dataset({"image": (dims, stack), "mask": (dims, np.zeros(stack.shape, np.uint8))})


def matched(cube: xr.Dataset, groups: list[NDArray[np.int64]], kernel: NCC) -> Mapping[str, NDArray[Any]]:
    """Every pair of a cube, block by block, in this thread."""
    plan = blocks.plan(cube, len(groups), kernel)
    lazy = blocks.map_overlapping(cube, groups, kernel, plan)
    return dict(zip(lazy, compute(*lazy.values(), scheduler="synchronous"), strict=True))


@dataclass
class Chain:
    """One run of the whole chain: seconds of each part, vectors, compilations, peak memory above the images [MB]."""

    seconds: dict[str, float]
    points: int
    compiled: int
    memory: float


def run_chain(image1: NDArray[np.uint16], image2: NDArray[np.uint16], repeats: int) -> list[Chain]:
    """Filter, match with three chips, refine, drop outliers, fill; several times, in a process of its own.

    A first run on a corner loads what is compiled.
    """
    if len(image1) > CORNER:
        run_chain(image1[:CORNER, :CORNER], image2[:CORNER, :CORNER], 1)
    cube = cube_of([image1, image2])
    before, runs = memory("VmRSS"), []
    for _ in range(repeats):
        if MEMORY.exists():
            MEMORY.with_name("clear_refs").write_text("5")  # forget the peak
        with event.install_recorder("numba:compile") as compiled, clocked_filter() as clock:
            start = time.process_time()
            found = matched(cube, [np.array([[0, 1]])], CHAIN)
            middle = time.process_time()
            filled = without_outliers(found["dy"][0], found["dx"][0], found["chip"][0], CHAIN.step)
            end = time.process_time()
        parts = {"filters": clock.seconds, "match": middle - start - clock.seconds, "outliers, fill": end - middle}
        runs.append(Chain(parts, filled[0].size, len(compiled.buffer), memory("VmHWM") - before))
    return runs


def memory(name: str) -> float:
    """Memory of this process now (VmRSS) or its peak (VmHWM) [MB]; NaN where the system does not say."""
    if not MEMORY.exists():
        return np.nan
    line = next(line for line in MEMORY.read_text().splitlines() if line.startswith(name))
    return float(line.split()[1]) * 1024 / 1e6


def without_outliers(dy: Image, dx: Image, chip: NDArray[np.uint16], step: int) -> Vectors:
    """Three rounds of agreement, two of the normalised median test, holes filled: `filters.outliers` in pixels."""
    stride = np.rint(chip / (2 * step)).clip(1, 4).astype(np.int64)
    for test, *limits in 3 * [(_neighbours.agreement, 1.6)] + 2 * [(_neighbours.normalised_median, 2.0, 0.1)]:
        wrong = test(dy, dx, stride, *limits) == _neighbours.REJECTED
        dy, dx = (np.where(wrong, np.float32(np.nan), d) for d in (dy, dx))
    hole = ~np.isfinite(dy)
    return np.where(hole, _neighbours.medians(dy, dx), dy), np.where(hole, _neighbours.medians(dx, dy), dx)


def chain(setting: Setting, size: int, repeats: int) -> Table:
    """The whole chain, its parts, and its memory."""
    pair = tiled(setting.pair, size)
    images = pair.image1, pair.image2
    # A fresh process: the peak of this one would hide its own.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        runs = pool.submit(run_chain, *images, repeats).result()
    best = min(runs, key=lambda run: sum(run.seconds.values()))
    total = sum(best.seconds.values())
    figures = {"points": best.points, "points/s": best.points / total, "ms": 1000 * total, "share": 1.0}
    rows = [Row("all", figures, (Limit("points/s", 80e3),))]
    for name, seconds in best.seconds.items():
        limits: tuple[Limit, ...] = (Limit("share", high=0.15),) if name == "filters" else ()
        rows.append(Row(name, {"ms": 1000 * seconds, "share": seconds / total}, limits))
    compiled = sum(run.compiled for run in runs)
    rows.append(Row("compilations, all runs", {"compiled": compiled}, (Limit("compiled", high=0),)))
    if MEMORY.exists():
        estimate = blocks.memory(blocks.plan(cube_of(images), 1, CHAIN), [np.array([[0, 1]])], CHAIN) / 1e6
        growth = runs[-1].memory / runs[0].memory - 1
        figures = {"MB": runs[-1].memory, "estimate MB": estimate, "growth": growth}
        limits = (Limit("growth", high=0.05), Limit("MB", high=estimate))
        rows.append(Row("peak memory above the images", figures, limits))
    about = f"{size} x {size} px in blocks, chips 16, 32, 64, R 8, refined, outliers, fill; P1, repeated."
    return Table("Whole chain", about, rows)
