"""The program of a session runs, and makes the same stores as the run itself, bit by bit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ogive import run
from ogive.script import View, script
from ogive.testing.plan import WorldSpec
from ogive.testing.scenes import make_world
from ogive.testing.stores import contents

SPEC = WorldSpec(
    size_km=(1.4, 1.6), n_sentinel2=7, n_landsat=0, start="2022-06-25", end="2022-08-10",
    cloud=0.0, speed=80.0, wedge=False,
)  # fmt: skip


@pytest.mark.slow
def test_the_program_repeats_the_run(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", SPEC)
    config = run.RunConfig.model_validate(
        {
            "output": str(tmp_path / "result"),
            "search": {"source": str(world.items_file), "aoi": "RGI60-00.00001", "outlines": str(world.outlines)},
            "cube": {"buffer": 200}, "pairs": {"days": [5, 60], "same_orbit": False},
            "kernel": {"name": "ncc", "chip": 16, "search": 6, "step": 8},
            "stable": {"ice": str(world.outlines), "rock": str(world.rock), "buffer": 80},
            "filters": {"speed_limit": {"maximum": 2000.0}, "local_median": {}}, "invert": {"every": "20D"},
        }
    )  # fmt: skip
    result = run.run(config, progress=False)
    series = run.store.open_velocity(tmp_path / "result" / "series.zarr")
    row, column = divmod(int(np.nan_to_num(series["v"].values).max(0).argmax()), series.sizes["x"])
    point = (float(series["x"][column]), float(series["y"][row]))
    text = script(
        config.model_copy(update={"output": str(tmp_path / "again")}), view=View(points={"A": point}, line=point)
    )
    (tmp_path / "session.py").write_text(text)
    done = subprocess.run([sys.executable, "session.py"], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    for name in ("matches.zarr", "velocity.zarr", "series.zarr"):
        assert contents(tmp_path / "again" / name) == contents(tmp_path / "result" / name)
    assert result.series == tmp_path / "result" / "series.zarr"
    for name in ("speed.png", "series.png", "points.csv", "through-time.png"):
        assert (tmp_path / name).stat().st_size > 100


def test_passwords_stay_at_home() -> None:
    config = run.RunConfig(search={"source": "https://me:secret@host.org/catalog.json"})
    assert "secret" not in script(config)
    assert "host.org" in script(config)


def test_names_of_stores_become_names_of_python() -> None:
    text = script(stores={"ITS_LIVE 2.0": "a.zarr", "pairs": 'odd"name.zarr'}, view=View("pairs", "flag", 3))
    compile(text, "session.py", "exec")
    assert 'ITS_LIVE_2_0 = og.open_velocity("a.zarr")' in text
    assert 'og.view.layer_map(store_pairs, "flag", when=3, path="flag.png")' in text
