"""How quick the explorer is: `python benchmarks/explorer.py [folder]` makes a series store and looks at it.

2000 x 2000 cells and 100 windows, written by `og.write` from lazy blocks, as `og.invert` makes them; 12 GB as numbers,
less on disk. The store stays in the folder, so that a second run measures the explorer alone. Every figure stands
beside its target; the exit code counts the targets missed.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

import ogive as og
from ogive import flags, grid
from ogive.invert._series import COMMON, speed
from ogive.overview import open_overview
from ogive.view.explorer._session import Session
from ogive.view.explorer.look import Look

SIZE, WINDOWS, BLOCK = 2000, 100, 256
BOX = GeoBox((SIZE, SIZE), Affine(50, 0, 500000, 0, -50, 5100000), "EPSG:32632")


def block(name: str, block_info: Any = None) -> NDArray[Any]:
    """One variable of one block: a glacier with a season, and holes."""
    where = block_info[None]["array-location"]
    t, y, x = (np.arange(*span, dtype=np.float32).reshape(shape) for span, shape in
               zip(where, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True))  # fmt: skip
    across = (x - SIZE / 2 - 300 * np.sin(y / 400)) / 350
    ice = 900 * np.exp(-(across**2)) * (1 + 0.3 * np.sin(2 * np.pi * t / 12)) * (0.3 + y / SIZE)
    # Noise of whole meters a year, so that the store compresses as real ones do.
    noise = np.random.default_rng([len(name), *(first for first, _ in where)]).integers(-9, 10, ice.shape)
    vx, vy = 0.4 * ice * np.cos(y / 400) + noise, noise - ice
    rounded = {
        "vx": np.round(vx),
        "vy": np.round(vy),
        "vx_error": np.full_like(ice, 6),
        "vy_error": np.full_like(ice, 8),
    }
    hole = (np.sin(x / 90 + 0.2 * t) * np.sin(y / 70) > 0.9) & (ice > -1)
    if name == "flag":
        return np.where(hole, flags.GAP, 0).astype(np.uint16)
    if name in ("v", "v_error"):
        values = np.round(speed(*rounded.values())[name == "v_error"])
    else:
        values = rounded.get(name, np.full_like(ice, 12))
    return np.where(hole, np.nan, values).astype(np.float32)


def series() -> xr.Dataset:
    """The lazy series of the benchmark."""
    chunks = ((WINDOWS,), *((BLOCK,) * (SIZE // BLOCK) + (SIZE % BLOCK,),) * 2)
    names = ("vx", "vy", "v", "vx_error", "vy_error", "v_error", "count", "flag")
    counts = {"n_pairs": 90, "n_screened": 6, "n_rejected": 9, "dt_max": np.inf}
    blocks = {
        name: da.map_blocks(block, name, chunks=chunks, dtype=COMMON[name].dtype, meta=np.empty((0, 0, 0), np.float32))
        for name in names
    }
    edges = np.datetime64("2016-01-01", "ns") + np.arange(WINDOWS + 1) * np.timedelta64(30, "D")
    return xr.Dataset(
        {
            **{name: (("time", "y", "x"), values, dict(COMMON[name].attrs)) for name, values in blocks.items()},
            **{
                name: (("y", "x"), da.full((SIZE, SIZE), n, chunks=BLOCK, dtype=COMMON[name].dtype))
                for name, n in counts.items()
            },
        },
        {
            "time": ("time", edges[:-1] + np.timedelta64(15, "D")),
            "time_bnds": (("time", "bnds"), np.stack([edges[:-1], edges[1:]], 1)),
            **grid.coordinates(BOX),
            "mapping": grid.mapping(BOX),
        },
        {
            "kind": "series",
            "schema_version": grid.SCHEMA_VERSION,
            "year_length_days": grid.YEAR_DAYS,
            "provenance": "{}",
        },
    )


def timed(action: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and of CPU, that an action takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def median(action: Callable[[int], Any], count: int = 9) -> tuple[float, float]:
    """Medians over several runs; the first one, which warms caches, is not counted."""
    runs = [timed(partial(action, k)) for k in range(count + 1)][1:]
    wall, cpu = np.median(runs, axis=0)
    return float(wall), float(cpu)


def interactive(path: str) -> dict[str, tuple[float, float]]:
    """What a fresh interpreter needs: to import ogive, then from the cell to the map; the best of three."""
    code = (
        "import time; a, b = time.perf_counter(), time.process_time()\n"
        "import ogive\nprint(time.perf_counter() - a, time.process_time() - b)\n"
        "a, b = time.perf_counter(), time.process_time()\n"
        "from ogive.view.explorer._session import Session\nfrom ogive.view.explorer.look import Look\n"
        f"look = Look(Session(stores={{'series': {path!r}}}))\n"
        "assert len(look.map.picture.url) > 1000 and not look.notice.text\n"
        "print(time.perf_counter() - a, time.process_time() - b)"
    )
    runs = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        runs.append([tuple(map(float, line.split())) for line in done.stdout.splitlines()])
    return {name: min(steps) for name, steps in zip(("import ogive", "cell to interactive"), zip(*runs))}


def measure(path: str) -> dict[str, tuple[float, float, float | None]]:
    """Name, wall and CPU seconds, target."""
    rows: dict[str, tuple[float, float, float | None]] = {}
    if open_overview(path) is None:
        rows["overview made (once)"] = (*timed(lambda: og.overview(path, progress=False)), None)
    targets = {"import ogive": None, "cell to interactive": 3.0}
    rows |= {name: (*seconds, targets[name]) for name, seconds in interactive(path).items()}
    session = Session(stores={"series": path})
    look = Look(session)
    rows["slider to map"] = (*median(lambda k: setattr(look.time, "value", 5 * k + 3)), 0.3)
    look.layer.value = "flag"
    rows["slider to flags"] = (*median(lambda k: setattr(look.time, "value", 5 * k + 2)), 0.3)
    look.layer.value = "speed"
    y, x = (look.source.full[n].values for n in ("y", "x"))
    places = np.random.default_rng(1).integers(600, 1400, (64, 2)).tolist()

    def click(k: int) -> None:
        row, column = places[k]
        session.point = (x[column], y[row])
        assert look.picture.value, look.notice.text

    rows["click to series"] = (*median(click), 0.5)
    full = look.source.full[["vx", "vy", "v_error", "flag"]]
    rows["- of that, reading the cell"] = (*median(lambda k: full.isel(y=1000 + k, x=700 - 37 * k).compute()), None)
    look.what.value = "flow line"
    rows["click to flow line"] = (*median(click), None)
    look.what.value = "through time"
    rows["click to Hovmöller diagram"] = (*median(click), None)
    assert not look.notice.text, look.notice.text
    return rows


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        path = str(folder / "series.zarr")
        wall, cpu = timed(lambda: og.write(series(), path, progress=False))
        rows = {"store written": (wall, cpu, None), **measure(path)}
    print(f"{'':28s} {'wall s':>8s} {'CPU s':>8s} {'target s':>9s} {'wall/target':>12s}")
    for name, (wall, cpu, target) in rows.items():
        told = f"{target:9.1f} {wall / target:12.2f}" if target else ""
        print(f"{name:28s} {wall:8.2f} {cpu:8.2f} {told}")
    return sum(target is not None and wall > target for wall, _, target in rows.values())


if __name__ == "__main__":
    sys.exit(main())
