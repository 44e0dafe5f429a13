"""Does `explain` tell the memory of a job? `python benchmarks/memory.py` runs a hundred random ones, in ten minutes.

Each runs through `ogive.write` in a process of its own, after a job on a corner of the same cube has loaded what is
compiled, and tells by how much its memory grew. The estimate must bound the growth of every job, and be no more than
twice of it in nine of ten: else the exit status is 1.
"""

import argparse
import ctypes
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import dask.array as da
import numpy as np
import pystac
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

import ogive as og
from ogive import grid as grids
from ogive.enhance import FILTERS
from ogive.kernels import KERNELS

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MODULES = ("ogive", "zarr", "dask.array", "scipy.fft", "odc.geo.geobox")
"""What processes find imported."""


class Job(Protocol):
    """What is measured: a lazy velocity or series."""

    threads: int

    def lazy(self, small: bool) -> xr.Dataset:
        """The whole of it, or a small part that needs everything compiled that the whole needs."""


@dataclass(frozen=True)
class Tracking:
    """An area, its scenes, and how they are matched."""

    kernel: str
    parameters: dict[str, Any]
    shape: tuple[int, int]
    scenes: int
    clouds: float
    tile: int
    batch: int
    threads: int
    stacked: bool = False
    prior: tuple[float, float] | None = None
    bands: int = 1

    def lazy(self, small: bool) -> xr.Dataset:
        """The velocity; a small one has room for cells whose windows lie within the image."""
        cube = cube_of(self)
        kernel = KERNELS[self.kernel](**self.parameters)
        if small:
            side = slice(4 * kernel.step + 2 * kernel.halo())
            cube = cube.isel(y=side, x=side)
        pairs = og.make_pairs(cube)
        rows = range(len(pairs))
        stack = [list(rows[k : k + 3]) for k in rows[::3]] if self.stacked else None
        return og.track(cube, pairs, kernel, prior=self.prior, stack=stack, tile=self.tile, batch=self.batch)

    def __str__(self) -> str:
        more = {"stacked": self.stacked, "prior": self.prior, "bands": self.bands if self.bands > 1 else None}
        words = [f"{k}={v}" for k, v in (self.parameters | {k: v for k, v in more.items() if v}).items()]
        return (
            f"{self.kernel} {' '.join(words)}; {self.shape[0]} x {self.shape[1]} px, {self.scenes} scenes, "
            f"clouds {self.clouds:.2f}, tile {self.tile}, batch {self.batch}, threads {self.threads}"
        )


@dataclass(frozen=True)
class Memory:
    """What a job took: memory before it, by how much it grew, and what was expected [MB]; CPU time [s]."""

    base: float
    growth: float
    estimate: float
    seconds: float


@dataclass(frozen=True)
class Texture:
    """Reads pixels out of an array that repeats, and clouds of random discs."""

    clouds: float
    pixels: NDArray[np.float32]

    def read(self, asset: Any, window: GeoBox, resampling: str) -> NDArray[np.float32]:
        """A window of a scene, which has moved by a pixel since the one before it; or of its classes."""
        number = int(asset.scene[-2:])
        y, x = round((5e6 - window.affine.f) / 10), round((window.affine.c - 5e5) / 10)
        rows, columns = np.arange(y, y + window.shape[0]), np.arange(x, x + window.shape[1])
        if not asset.href.endswith("scl.tif"):
            n = len(self.pixels)
            return self.pixels[np.ix_((rows - number) % n, (columns + number) % n)]
        # A disc in each square of 128 px: its area is the share of clouds.
        radius = 128 * np.sqrt(self.clouds / np.pi)
        v, u = (rows + 37 * number) % 128 - 64, (columns + 53 * number) % 128 - 64
        return np.where(np.add.outer(v * v, u * u) < radius * radius, np.float32(9), np.float32(4))


@dataclass(frozen=True)
class Inversion:
    """Pairs of random velocities, and how they are inverted."""

    method: str
    pairs: int
    side: int
    tile: int
    own_errors: bool
    threads: int

    def lazy(self, small: bool) -> xr.Dataset:
        """The series."""
        shape = (self.pairs, *([4, 4] if small else [self.side, self.side]))
        grid = GeoBox(shape[1:], Affine(80, 0, 5e5, 0, -80, 5e6), "EPSG:32632")
        dims, chunks = ("mid_date", "y", "x"), (32, self.tile, self.tile)
        names = ("vx", "vy", "vx_error_px", "vy_error_px") if self.own_errors else ("vx", "vy")
        rates = {
            name: (
                dims,
                da.map_blocks(
                    noise,
                    shape,
                    chunks=da.core.normalize_chunks(chunks, shape),
                    dtype=np.float32,
                    meta=np.empty((0, 0, 0), np.float32),
                ),
            )
            for name in names
        }
        start = np.datetime64("2018-01-01", "ns") + np.arange(self.pairs) * np.timedelta64(1500 * 24 // self.pairs, "h")
        error = ("mid_date", np.full(self.pairs, 20, np.float32))
        velocity = xr.Dataset(
            {**rates, "vx_error": error, "vy_error": error},
            {"mid_date": ("mid_date", start), "acquisition_date_img1": ("mid_date", start),
             "acquisition_date_img2": ("mid_date", start + np.timedelta64(24, "D")),
             **grids.coordinates(grid), "mapping": grids.mapping(grid)},
        )  # fmt: skip
        return og.invert(velocity, method=self.method)

    def __str__(self) -> str:
        return f"{self.method}, {self.pairs} pairs, {self.side} x {self.side} cells in tiles of {self.tile}, " + (
            f"own errors {self.own_errors}, threads {self.threads}"
        )


def noise(shape: tuple[int, int, int], block_info: Any = None) -> NDArray[np.float32]:
    """Velocities of one chunk, positive, so that they are errors as well."""
    size = block_info[None]["chunk-shape"]
    return np.random.default_rng(0).random(size, np.float32) + np.float32(50)


def jobs(count: int, seed: int) -> Iterator[Job]:
    """Random jobs, small ones of a few seconds; every tenth an inversion, every fifth dense flow."""
    for k in range(count):
        rng = np.random.default_rng((seed, k))
        if k % 10 == 9:
            method, side = str(rng.choice(["adaptive", "annual", "ticoi"])), int(rng.integers(48, 80))
            yield Inversion(
                method, int(rng.integers(100, 1000)), side, -(-side // int(rng.integers(1, 3))),
                bool(rng.random() < 0.5), int(rng.integers(1, 3)),
            )  # fmt: skip
            continue
        if k % 5 == 3:
            yield dense(rng)
            continue
        kernel = str(rng.choice(["ncc", "ncc", "ncc", "ncc", "phase", "orientation"]))
        step = int(rng.choice([1, 4, 8, 8, 16, 32] if kernel == "ncc" else [4, 8, 16, 32]))
        chip: Any = int(rng.choice([16, 24, 32, 48, 64]))
        search = int(rng.choice([4, 6, 8, 12, 16, 24]))
        parameters: dict[str, Any] = {"step": step}
        names, prior, stacked = [name for name in FILTERS if not name.startswith("sobel_")], None, False
        parameters["enhance"] = str(rng.choice(names)) if rng.random() < 0.5 else "high_pass"
        if kernel == "ncc":
            if step == 1:
                chip, search = int(rng.choice([15, 21, 31])), min(search, 8)
            elif rng.random() < 0.35:
                chip = ((16, 32), (16, 32, 64), (24, 48))[rng.integers(3)]
            parameters["refine"] = str(rng.choice(["translation", "translation", "quadric", "fixed", "affine"]))
            if parameters["refine"] == "affine" and np.min(chip) < 24:
                chip = 25 if step == 1 else 32
            if rng.random() < 0.2:
                parameters["search_enhance"] = "orientation"
            if step in (4, 8, 16) and search >= 12 and rng.random() < 0.4:
                parameters["coarse"] = 4
            kind = rng.random()
            stacked = kind < 0.15
            prior = (float(rng.integers(50, 400)), -100.0) if 0.15 < kind < 0.3 else None
        height, width = (int(n) for n in rng.integers(*((200, 300) if step == 1 else (450, 900)), 2))
        cells = max(height, width) // step
        yield Tracking(
            kernel, {"chip": chip, "search": search, **parameters}, (height, width), int(rng.integers(2, 6)),
            float(rng.choice([0.0, 0.02, 0.05, 0.1, 0.1, 0.2, 0.3])), -(-cells // int(rng.integers(1, 3))),
            int(rng.integers(1, 9)), int(rng.integers(1, 3)), stacked, prior,
        )  # fmt: skip


def dense(rng: np.random.Generator) -> Tracking:
    """A job of dense flow; every second one that may compares several bands."""
    kernel = str(rng.choice(["hs_robust", "hs_robust", "hs_reference", "flow_net", "flow_net", "raft"]))
    step = int(rng.choice([4, 8, 8, 16]))
    parameters: dict[str, Any] = {"step": step, "search": int(rng.choice([4, 6, 8, 12, 16]))}
    if kernel == "hs_robust":
        parameters["start"] = str(rng.choice(["orientation", "ncc"]))
    height, width = (int(n) for n in rng.integers(350, 700, 2))
    cells = max(height, width) // step
    bands = int(rng.integers(2, 5)) if rng.random() < 0.5 and kernel != "raft" else 1
    return Tracking(
        kernel, parameters, (height, width), int(rng.integers(2, 5)), float(rng.choice([0.0, 0.1, 0.3])),
        -(-cells // int(rng.integers(1, 3))), int(rng.integers(1, 5)), int(rng.integers(1, 3)), bands=bands,
    )  # fmt: skip


BANDS = ("nir", "red", "green", "blue")


def cube_of(job: Tracking) -> xr.Dataset:
    """The scenes of a job, 20 days apart; lazy, with masks."""
    grid = GeoBox(job.shape, Affine(10, 0, 5e5, 0, -10, 5e6), "EPSG:32632")
    box = grid.geographic_extent
    items = []
    for k in range(job.scenes):
        item = pystac.Item(
            f"scene{k:02d}", box.json, list(box.boundingbox), np.datetime64("2021-01-01", "ms").item(),
            {"platform": "sentinel-2a", "sat:relative_orbit": 8, "s2:processing_baseline": "05.00",
             "proj:code": "EPSG:32632"},
            collection="sentinel-2-l2a",
        )  # fmt: skip
        item.datetime = (np.datetime64("2021-01-01", "ms") + np.timedelta64(20 * k, "D")).item()
        fields = {"proj:shape": list(grid.shape), "proj:transform": list(grid.affine)[:6]}
        for key in (*BANDS[: job.bands], "scl"):
            item.add_asset(key, pystac.Asset(f"{k}/{key}.tif", extra_fields=fields))
        items.append(item)
    pixels = np.random.default_rng(1).normal(3000, 300, (512, 512)).astype(np.float32)
    smooth = (pixels + np.roll(pixels, 1, 0) + np.roll(pixels, 1, 1) + np.roll(pixels, (1, 1), (0, 1))) / 4
    return og.open_cube(items, BANDS[: job.bands], loader=Texture(job.clouds, smooth))


def measured(job: Job) -> Memory:
    """Run a job in this process, after a small one."""
    small, whole = job.lazy(True), job.lazy(False)
    cost = og.explain(whole)
    # Matches, or inverts, with masks and without.
    og.explain(small, calibrate=True)
    with tempfile.TemporaryDirectory() as folder:
        how: dict[str, Any] = {"progress": False, "workers": job.threads}
        og.write(small, Path(folder) / "small.zarr", **how)
        # What the small job has left to the allocator is no memory of the large one.
        ctypes.CDLL(None).malloc_trim(0)
        RESET.write_text("5")
        base = now("VmRSS")
        og.write(whole, Path(folder) / "whole.zarr", **how)
        growth = now("VmHWM") - base
    estimate = min(job.threads, cost.blocks) * cost.block_gigabytes * 1000
    return Memory(base, growth, estimate, time.process_time())


def now(name: str) -> float:
    """Memory of this process now (VmRSS), or its peak since the last reset (VmHWM) [MB]."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return float(line.split()[1]) * 1024 / 1e6


def results(work: list[Job], processes: int = 1) -> Iterator[tuple[Job, Memory]]:
    """Every job in a fresh process, forked from one that has only imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(MODULES))
    with ProcessPoolExecutor(processes, context, max_tasks_per_child=1) as pool:
        yield from zip(work, pool.map(measured, work), strict=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="jobs")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1, help="jobs at a time")
    given = parser.parse_args()
    if not RESET.exists():
        print("this system does not say the peak of a process")
        return 0
    ratios, bases, seconds = [], [], 0.0
    for k, (job, memory) in enumerate(results(list(jobs(given.count, given.seed)), given.processes)):
        ratios.append(memory.growth / memory.estimate)
        bases.append(memory.base)
        seconds += memory.seconds
        print(f"{k:3d} {ratios[-1]:.2f} {memory.growth:6.0f} of {memory.estimate:6.0f} MB  {job}", flush=True)
    quantiles = ", ".join(f"{q:.0%} {np.quantile(ratios, q):.2f}" for q in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1))
    bounded, near = np.mean(np.array(ratios) <= 1), np.mean(np.array(ratios) >= 0.5)
    print(f"growth / estimate of {given.count} jobs, seed {given.seed}: {quantiles}")
    print(f"at most the estimate {bounded:.0%} (target 100%), at least half of it {near:.0%} (target 90%)")
    print(f"memory before a job, imports and compiled code: at most {max(bases):.0f} MB; CPU time {seconds:.0f} s")
    return int(bounded < 1 or near < 0.9)


if __name__ == "__main__":
    sys.exit(main())
