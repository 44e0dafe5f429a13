"""What a job costs: counts by hand, memory against that of processes, minutes by a clock that is set."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import ogive as og
from ogive import blocks as block_layer
from ogive.correct import modelled_error
from ogive.errors import ParameterError
from ogive.kernels import KERNELS, NCC, Custom, Footprint, Multiband
from ogive.testing.velocity_cubes import velocity_cube

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "memory.py"
# The function and its module have one name; the package shows the function.
MODULE = sys.modules["ogive.explain"]


@dataclass(frozen=True)
class Counted:
    """A kernel of which only the memory is asked."""

    step: int = 1
    chip: int = 1
    extras: tuple[str, ...] = ()

    def halo(self) -> int:
        return 0

    def memory(self, cells: tuple[int, int], pairs: int = 1) -> Footprint:
        return Footprint(scene=1000, first=100, second=10, prepare=5000, match=3000 * pairs)

    def prepare(self, image: Any, valid: Any) -> Any:
        raise NotImplementedError

    def match(self, first: Any, second: Any) -> Any:
        raise NotImplementedError


def groups(*rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return [np.array(row) for row in rows]


@pytest.mark.parametrize(
    ("rows", "batch", "held"),
    [
        # One pair: while the second scene is prepared the first is kept; then both are matched.
        (groups([(0, 1)]), 1, 5000 + 1000),
        # The first two scenes stay until the next pair is ready; the match needs less than preparing.
        (groups([(0, 1)], [(1, 2)]), 2, 5000 + 2000 + 100 + 10),
        # Long before the last scene is prepared the first has gone.
        (groups([(0, 1)], [(1, 2)], [(2, 3)]), 3, 5000 + 2000 + 110 + 10),
        # Scenes 0 to 2 wait for the end.
        (groups([(0, 1)], [(1, 2)], [(0, 2)]), 3, 5000 + 2000 + 100 + 10),
        # In blocks of their own they do not.
        (groups([(0, 1)], [(1, 2)], [(0, 2)]), 1, 5000 + 1000),
        # A stack needs all its scenes at once, in both roles where it has them.
        (groups([(0, 1), (1, 2), (2, 3)]), 1, 3 * 3000 + 4 * 1000 + 3 * 100 + 3 * 10),
    ],
)  # fmt: skip
def test_memory_follows_the_scenes_that_a_block_keeps(rows, batch, held) -> None:
    kernel = Counted()
    layout = block_layer.Blocks((4, 4), len(rows), 8, batch, 1, 0)
    # 16 pixels as read, and 36 bytes of answers for each cell and pair that has been matched.
    assert held <= block_layer.memory(layout, rows, kernel) <= held + 16 * 5 + 16 * 36 * batch


@pytest.mark.parametrize("name", KERNELS)
def test_a_larger_block_and_a_stack_take_more(name) -> None:
    kernel = KERNELS[name]()
    small, large, stack = (kernel.memory((n, n), pairs) for n, pairs in ((16, 1), (64, 1), (64, 4)))
    assert all(a >= b >= 0 for a, b in zip(astuple(large), astuple(small), strict=True))
    assert large.scene > small.scene > 0
    assert stack.match > large.match or name != "ncc"
    if name == "ncc":
        assert kernel.memory((64, 64)).scene > NCC(refine="quadric").memory((64, 64)).scene


@pytest.mark.parametrize("name", [name for name, make in KERNELS.items() if isinstance(make(), Multiband)])
def test_every_band_takes_more(name) -> None:
    kernel = KERNELS[name]()
    assert isinstance(kernel, Multiband)
    one, three = (kernel.memory((32, 32), 1, bands) for bands in (1, 3))
    assert one == kernel.memory((32, 32))
    assert 1.5 * one.scene < three.scene < 3 * one.scene
    assert three.prepare > one.prepare
    rows = groups([(0, 1)])
    sizes = [block_layer.memory(block_layer.plan(cube, 1, kernel), rows, kernel) for cube in (cube_of(1), cube_of(3))]
    assert sizes[0] < sizes[1] < 3 * sizes[0]


def cube_of(bands: int) -> xr.Dataset:
    return xr.Dataset(coords={"y": range(300), "x": range(300), "band": range(bands)})


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not say the peak of a process")
def test_no_process_takes_more_than_was_announced() -> None:
    """Six random jobs; a hundred, and the program's own verdict, with OGIVE_LONG=1."""
    long = bool(os.environ.get("OGIVE_LONG"))
    command = [sys.executable, str(PROGRAM), "--count", "100" if long else "6"]
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=environment, check=False)
    ratios = [float(ratio) for ratio in re.findall(r"^ *\d+ (\d+\.\d\d) ", done.stdout, re.MULTILINE)]
    assert len(ratios) == (100 if long else 6), done.stderr
    assert max(ratios) <= 1
    assert np.median(ratios) >= 0.5
    assert done.returncode == 0 or not long, done.stdout


@dataclass(frozen=True)
class Workers:
    """A client of whom only the threads are asked."""

    threads: dict[str, int]

    def nthreads(self) -> dict[str, int]:
        return self.threads


@pytest.fixture
def lazy(moving) -> Callable[..., tuple[xr.Dataset, Any]]:
    def make(kernel: Any = None, **options: Any) -> tuple[xr.Dataset, Any]:
        cube, reader = moving()
        kernel = NCC(chip=16, search=4, step=8, refine="quadric") if kernel is None else kernel
        return og.track(cube, og.make_pairs(cube), kernel, **{"tile": 10, "batch": 2, **options}), reader

    return make


def test_a_worker_holds_a_block_for_each_of_its_threads(lazy) -> None:
    velocity, reader = lazy()
    one, three, cluster = (
        og.explain(velocity, workers=1),
        og.explain(velocity, workers=3),
        og.explain(velocity, Workers({"tcp://a": 3, "tcp://b": 1})),
    )
    block = one.block_gigabytes
    assert one.worker_gigabytes == MODULE.BASE + block
    assert three.worker_gigabytes == cluster.worker_gigabytes == MODULE.BASE + 3 * block
    assert (three.threads, cluster.threads) == ((3,), (3, 1))
    assert og.explain(velocity, Workers({})).threads == (1,)
    # More threads than blocks have nothing to hold.
    whole, _ = lazy(tile=100, batch=8)
    assert og.explain(whole, workers=50).worker_gigabytes == MODULE.BASE + og.explain(whole).block_gigabytes
    assert reader.count == 0


def test_precision_is_that_of_the_longest_and_of_the_shortest_pair(lazy) -> None:
    velocity, _ = lazy()
    cost = og.explain(velocity)
    assert cost.days == (20, 10)
    np.testing.assert_allclose(cost.precision, modelled_error([20, 10], 10.0), rtol=1e-6)
    low, high = cost.precision
    assert f"precision of one vector {low:.1f} m/yr over 20 days to {high:.1f} m/yr over 10 days" in str(cost)


def test_a_stack_counts_all_its_pairs_and_scenes(lazy) -> None:
    cost = og.explain(lazy(stack=[[0, 1, 2]], batch=1)[0])
    assert (cost.pairs, cost.scenes, cost.blocks) == (3, 3, 3 * 4)
    assert cost.block_gigabytes > og.explain(lazy(batch=1)[0]).block_gigabytes


def test_a_users_function_is_explained(lazy) -> None:
    def still(image1, image2, valid1, valid2):
        return np.zeros((2, 10, 10))

    cost = og.explain(lazy(Custom(still, margin=32))[0])
    # Two windows of tiles of 80 px with 32 px around them.
    assert cost.amplification == pytest.approx((240 + 3 * 64) * (264 + 4 * 64) / (240 * 264))


def test_minutes_come_from_one_block_in_the_middle(lazy, monkeypatch) -> None:
    velocity, reader = lazy()
    assert og.explain(velocity).minutes is None
    ticks = iter((100.0, 130.0))
    monkeypatch.setattr(MODULE.time, "perf_counter", lambda: next(ticks))
    cost = og.explain(velocity, workers=4, calibrate=True)
    # The middle of 2 x 3 x 4 blocks has the third pair, 10 x 10 of its 30 x 33 cells: two scenes, image and mask.
    halo = NCC(chip=16, search=4, step=8, refine="quadric").halo()
    assert [shape for _, shape in reader.reads] == 2 * [(80 + 2 * halo, 80 + 2 * halo)]
    assert cost.minutes == pytest.approx(0.5 * (3 * 30 * 33) / 100 / 4)
    assert f"{cost.minutes:.0f} minutes on 4 threads" in str(cost)


@pytest.mark.parametrize(
    "options", [{}, {"stack": [[0, 1, 2]]}, {"prior": (50.0, 20.0)}], ids=["pair", "stack", "prior"]
)
def test_every_way_of_matching_can_be_calibrated(lazy, options) -> None:
    cost = og.explain(lazy(**options)[0], calibrate=True)
    assert cost.minutes is not None
    assert cost.minutes > 0


def test_a_series_is_explained(monkeypatch) -> None:
    velocity, _ = velocity_cube("100")
    series = og.invert(velocity.chunk(y=4, x=3), every="60D")
    cost = og.explain(series, workers=2)
    n, ny, nx = (velocity.sizes[name] for name in ("mid_date", "y", "x"))
    assert (cost.blocks, cost.pairs, cost.scenes, cost.precision) == (-(-ny // 4) * -(-nx // 3), n, None, None)
    assert cost.read_gigabytes == pytest.approx(2 * 4 * n * ny * nx / 1e9)
    own = velocity.assign(vx_error_px=velocity["vx"], vy_error_px=velocity["vy"]).chunk(y=4, x=3)
    assert og.explain(og.invert(own, every="60D")).read_gigabytes == pytest.approx(2 * cost.read_gigabytes)
    assert cost.write_gigabytes == pytest.approx(sum(v.nbytes for v in series.data_vars.values()) / 1e9)
    ticks = iter((0.0, 6.0))
    monkeypatch.setattr(MODULE.time, "perf_counter", lambda: next(ticks))
    assert og.explain(series, workers=2, calibrate=True).minutes == pytest.approx(0.1 * ny * nx / (4 * 3) / 2)


def test_what_is_not_lazy_is_refused(lazy) -> None:
    velocity, _ = lazy()
    for ds in (velocity.isel(mid_date=[0], y=[0], x=[0]).compute(), xr.Dataset(), velocity.drop_vars("vx")):
        with pytest.raises(ParameterError, match="must be the lazy result of track or invert"):
            og.explain(ds)
