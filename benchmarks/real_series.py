"""A complete ITS_LIVE cube, opened and inverted into a store: wall time, CPU time, memory, what came out.

    OGIVE_DATA=... python benchmarks/real_series.py [--workers 2] [--every 30D] [--cube PATH] [--json PATH]

The cube: 47 892 pairs (1986-2024) x 37 x 40 cells of one glacier in Tibet, as published by others; 4.8 % of the values
are valid. Every run reads it from disk, inverts every cell, writes and closes the store. The compiler's time is left
out by inverting one cell before. A run fails if it needs 2 GB or more.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import ogive as og
from ogive import flags

CUBE = "cubes/itslive_v2_single_glacier_se_tibet.zarr"
LIMIT_MB = 2000.0
"""Peak resident memory of the process."""


def measured(cube: Path, workers: int, every: str) -> dict[str, float]:
    """Open, invert and write one cube; the figures of the run."""
    velocity = og.open_velocity(cube)
    folder = Path(tempfile.mkdtemp(prefix="ogive-series-"))
    try:
        one = velocity.isel(y=[velocity.sizes["y"] // 2], x=[velocity.sizes["x"] // 2])
        og.invert(one, every=every)["vx"].compute(scheduler="synchronous")
        base, wall, cpu = _peak_mb(), time.perf_counter(), time.process_time()
        velocity = og.open_velocity(cube)
        opened = time.perf_counter() - wall
        store = og.write(og.invert(velocity, every=every), folder / "series.zarr", progress=False, workers=workers)
        wall, cpu, peak = time.perf_counter() - wall, time.process_time() - cpu, _peak_mb()
        series = og.open_velocity(store).load()
    finally:
        shutil.rmtree(folder)
    cells = velocity.sizes["y"] * velocity.sizes["x"]
    ice = velocity["landice"].values == 1 if "landice" in velocity else np.ones(series["v"].shape[1:], bool)
    valid = np.isfinite(series["v"].values)
    whole = (series["flag"].values & np.uint16(flags.TOO_FEW_PAIRS | flags.SCREENED)).all(0)
    return {
        "pairs": velocity.sizes["mid_date"],
        "cells": cells,
        "windows": series.sizes["time"],
        "open [s]": opened,
        "wall [s]": wall,
        "CPU [s]": cpu,
        "cells per CPU-second": cells / cpu,
        "pairs per CPU-second": float(series["n_pairs"].sum()) / cpu,
        "RSS before [MB]": base,
        "peak RSS [MB]": peak,
        "share of windows valid": float(valid.mean()),
        "share of cells with a series": float(1 - whole.mean()),
        "share valid on ice": float(valid[:, ice].mean()),
        "median speed on ice [m/yr]": float(np.nanmedian(series["v"].values[:, ice])),
        "median error on ice [m/yr]": float(np.nanmedian(series["v_error"].values[:, ice])),
        "valid pairs per cell, median": float(series["n_pairs"].median()),
    }


def _peak_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return 1 if the memory limit is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("OGIVE_DATA", Path(__file__).parents[2] / "shared" / "data")) / CUBE
    parser.add_argument("--cube", type=Path, default=default)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", default="30D")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    figures = measured(options.cube, options.workers, options.every)
    print(f"{options.cube.name}, every {options.every}, {options.workers} threads")
    for name, value in figures.items():
        print(f"  {name:32} {value:12,.3f}" if value < 100 else f"  {name:32} {value:12,.0f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))
    met = figures["peak RSS [MB]"] < LIMIT_MB
    print(f"  limit of {LIMIT_MB:,.0f} MB {'met' if met else 'NOT MET'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
