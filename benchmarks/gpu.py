"""How fast is NCC on a GPU, and what stops it? `python benchmarks/gpu.py` prints one table; `--json FILE` keeps it.

Truth case P1 (1024 x 1024 px, a winding stream of up to 6 px), repeated `--tiles` times along both axes so that there
is enough to do, high-passed beforehand. Every row is one match of two scenes:

points/s        the whole call, images in host memory to answers in host memory, wall-clock, the least of the repeats
in kernels      the same, from the time that the device spends in kernels (CUDA events)
GB/s            effective bandwidth: what the kernels cannot help moving, by their time. Images are read once, block
                sums and tables are written once and read once; what caches fail to save shows in the figure
of copy         that, as a share of the bandwidth of a copy on the same device, measured in the same run
of roof         the time that the roofline allows (the larger of: those bytes by the copy's bandwidth, the arithmetic by
                the device's single-precision peak) by the time in kernels
<= .01 px       share of the points of a single P1 whose vector is within 0.01 px of numba's

`--dry-run` does all this with the CUDA source on the CPU and a small image, to see that the program works.
"""

import argparse
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ogive import enhance
from ogive.kernels import NCC, _ncc_cupy
from ogive.testing.cuda import Cpu
from ogive.testing.pairs import truth_pair

CASES = ((32, 8, 8, 0.0), (64, 8, 8, 0.0), (32, 16, 8, 0.0), (32, 25, 8, 0.0), (32, 8, 8, 0.15))
"""Chip, search, step [px], share of the image under cloud."""
CORES = {(7, 5): 64, (8, 0): 64}
"""Single-precision units of a multiprocessor, by compute capability; 128 on the others."""
GIB = 1 << 30


class TimedGpu(_ncc_cupy.Gpu):
    """The GPU, with events around every kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, Any, Any]] = []

    def launch(self, name: str, *args: Any, **options: Any) -> None:
        """Run a kernel between two events."""
        start, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        start.record()
        super().launch(name, *args, **options)
        end.record()
        self.events.append((name, start, end))

    def seconds(self) -> dict[str, float]:
        """Time in each kernel."""
        spent: dict[str, float] = defaultdict(float)
        for name, start, end in self.events:
            end.synchronize()
            spent[name] += self._cupy.cuda.get_elapsed_time(start, end) / 1000
        return dict(spent)

    def about(self) -> dict[str, Any]:
        """Name, bandwidth of a copy [B/s] and single-precision peak [flop/s] of the device."""
        cuda, device = self._cupy.cuda, self._cupy.cuda.Device()
        properties = cuda.runtime.getDeviceProperties(device.id)
        one, two = (self._cupy.zeros(GIB // 8, np.uint8) for _ in range(2))
        least = np.inf
        for _ in range(10):
            start, end = cuda.Event(), cuda.Event()
            start.record()
            one[...] = two
            end.record()
            end.synchronize()
            least = min(least, cuda.get_elapsed_time(start, end) / 1000)
        capability = (int(properties["major"]), int(properties["minor"]))
        units = int(properties["multiProcessorCount"]) * CORES.get(capability, 128)
        return {
            "name": properties["name"].decode(), "capability": capability, "cupy": self._cupy.__version__,
            "driver": cuda.runtime.driverGetVersion(), "copy_bytes_per_second": 2 * one.nbytes / least,
            "flop_per_second": 2e3 * units * device.attributes["ClockRate"],
        }  # fmt: skip


@dataclass(frozen=True)
class TimedCpu(Cpu):
    """The CUDA source on the CPU, with a clock around every kernel."""

    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def launch(self, name: str, *args: Any, **options: Any) -> None:
        """Run a kernel by the clock."""
        start = time.perf_counter()
        super().launch(name, *args, **options)
        self.spent[name] += time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Time in each kernel."""
        return dict(self.spent)

    def about(self) -> dict[str, Any]:
        """Made-up limits."""
        name = "none (CUDA source on the CPU)"
        return {"name": name, "copy_bytes_per_second": 1e10, "flop_per_second": 1e11}


@dataclass(frozen=True)
class Case:
    """One row of the table: parameters and prepared images."""

    kernel: NCC
    cloud: float
    images: tuple[NDArray[Any], ...]

    def match(self, device: _ncc_cupy.Device | None) -> NDArray[np.float32]:
        """The matches of the whole image; on the CPU with numba where there is no device."""
        k = self.kernel
        one, valid1, two, valid2 = self.images
        if device is None:
            found = k.match(k.prepare(one, valid1), k.prepare(two, valid2))
            return np.stack([found["dy"], found["dx"]])
        first = k.halo() + (k.step - k.chip) // 2
        shape = tuple((n - 2 * k.halo()) // k.step for n in one.shape)
        geometry = (first, k.search, k.chip, k.step, int(np.gcd(k.chip, k.step)))
        return _ncc_cupy.match(one, valid1, two, valid2, shape, geometry, k.chip**2 // 2, device)

    def work(self, points: int) -> tuple[float, float]:
        """Bytes that the kernels cannot help moving, and floating-point operations."""
        k, pixels, d = self.kernel, self.images[0].size, (2 * self.kernel.search + 1) ** 2
        block = int(np.gcd(k.chip, k.step))
        roles = 6 if self.cloud else 1
        sums = pixels / block**2 * d * roles
        # Both images and masks; block sums; per image four passes of double sums and the table.
        moved = 10 * pixels + 8 * sums + 2 * pixels * (7 * 16 + 2 * 8) + 32 * points
        flop = 2 * pixels * d * roles + points * d * (roles * (k.chip // block) ** 2 + 6)
        return moved, flop


def clouds(shape: tuple[int, ...], share: float) -> NDArray[np.bool_]:
    """Blobs of about 50 px over that share of the image; True where clear."""
    if not share:
        return np.ones(shape, bool)
    field = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal(shape), 25)
    return np.asarray(field <= np.quantile(field, 1 - share))


def images_of(size: int, tiles: int, cloud: float) -> tuple[NDArray[Any], ...]:
    """Image 1, its mask, image 2, its mask: P1 repeated."""
    pair = truth_pair("P1", size)
    out: list[NDArray[Any]] = []
    for image in (pair.image1, pair.image2):
        whole = np.tile(image.astype(np.float32), (tiles, tiles))
        out += enhance.high_pass(whole, clouds(whole.shape, cloud))
    return tuple(np.ascontiguousarray(a) for a in out)


def agreement(case: Case, device: _ncc_cupy.Device) -> float:
    """Share of the points that numba finds, and the device finds within 0.01 px."""
    dy, dx = case.match(None)
    got = case.match(device)
    good = np.isfinite(dy)
    return float(np.mean(np.hypot(got[0] - dy, got[1] - dx)[good] <= 0.01))


def measure(case: Case, timed: type[TimedGpu] | type[TimedCpu], repeats: int) -> tuple[int, float, dict[str, float]]:
    """Points, least wall-clock time of a match [s], least time in each kernel [s]."""
    wall, spent = np.inf, dict[str, float]()
    for _ in range(repeats + 1):  # the first compiles
        device = timed()
        start = time.perf_counter()
        found = case.match(device)
        wall = min(wall, time.perf_counter() - start)
        spent = {k: min(v, spent.get(k, np.inf)) for k, v in device.seconds().items()}
    return found[0].size, wall, spent


def main() -> None:
    """Run everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=4, help="copies of P1 along each axis")
    parser.add_argument("--repeats", type=int, default=5, help="the least of so many times counts")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--dry-run", action="store_true", help="the CUDA source on the CPU, a small image")
    given = parser.parse_args()
    if not given.dry_run and not _ncc_cupy.available():
        parser.exit(1, "No GPU or no CuPy; --dry-run shows whether the program works.\n")
    timed = TimedCpu if given.dry_run else TimedGpu
    size, tiles, repeats = (128, 1, 1) if given.dry_run else (1024, given.tiles, given.repeats)
    about, rows = timed().about(), []
    print(about["name"] + (" - no GPU: the figures mean nothing" if given.dry_run else ""))
    line = "{:<38} {:>8} {:>12} {:>12} {:>7} {:>8} {:>8} {:>9}"
    print(line.format("case", "points", "points/s", "in kernels", "GB/s", "of copy", "of roof", "<= .01 px"))
    for chip, search, step, cloud in (CASES[0], CASES[-1]) if given.dry_run else CASES:
        kernel = NCC(chip, search, step, "none", "quadric", backend="numba")
        small = Case(kernel, cloud, images_of(size, 1, cloud))
        case = small if tiles == 1 else Case(kernel, cloud, images_of(size, tiles, cloud))
        points, wall, spent = measure(case, timed, repeats)
        busy = sum(spent.values())
        moved, flop = case.work(points)
        roof = max(moved / about["copy_bytes_per_second"], flop / about["flop_per_second"])
        row = {
            "chip": chip, "search": search, "step": step, "cloud": cloud, "points": points,
            "points_per_second": points / wall, "points_per_kernel_second": points / busy,
            "bytes_per_second": moved / busy, "of_copy": moved / busy / about["copy_bytes_per_second"],
            "of_roof": roof / busy, "within_0.01_px": agreement(small, timed()), "kernel_seconds": spent,
        }  # fmt: skip
        rows.append(row)
        name = f"chip {chip}, search {search}, step {step}" + (f", {cloud:.0%} cloud" if cloud else "")
        print(line.format(
            name, points, f"{row['points_per_second']:,.0f}", f"{row['points_per_kernel_second']:,.0f}",
            f"{row['bytes_per_second'] / 1e9:.0f}", f"{row['of_copy']:.0%}", f"{row['of_roof']:.0%}",
            f"{row['within_0.01_px']:.2%}",
        ))  # fmt: skip
        print("    " + ", ".join(f"{k} {v / busy:.0%}" for k, v in sorted(spent.items(), key=lambda kv: -kv[1])))
    if given.json:
        given.json.write_text(json.dumps({"device": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
