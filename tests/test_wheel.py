"""The wheel as a user gets it: built, looked into, installed into an empty environment, and used from elsewhere."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SMOKE = """
import sys
from pathlib import Path
import numpy as np
import ogive as og
from ogive import catalog
from ogive.testing.plan import WorldSpec
from ogive.testing.scenes import make_world

assert Path(og.__file__).is_relative_to(sys.prefix), og.__file__
assert set(catalog.sensors()) >= {"sentinel-2", "landsat"}
assert "earth-search" in catalog.endpoints()
card = og.kernels.FlowNet()._card
assert all(card.path.with_suffix(suffix).is_file() for suffix, _ in card.sha256), card
dates = {"start": "2022-07-01", "end": "2022-08-01"}
spec = WorldSpec(size_km=(1.2, 1.5), n_sentinel2=2, n_landsat=0, cloud=0, speed=60, **dates)
world = make_world("world", spec)
cube = og.open_cube(og.search(None, source=world.items_file))
lazy = og.track(cube, og.make_pairs(cube, days=(1, 60), same_orbit=False), og.NCC(chip=16, search=4, step=8))
velocity = og.open_velocity(og.write(lazy, "velocity.zarr", progress=False))
valid = float(np.isfinite(velocity["vx"]).mean())
assert valid > 0.3, valid
print("valid", valid)
"""


def call(*command: object, cwd: Path) -> str:
    # Nothing of the environment that runs the tests may leak in.
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=clean, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def uv() -> str | None:
    """uv makes environments in seconds; the standard library and pip do the same, slower."""
    return shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    installer = ["--installer", "uv"] if shutil.which("uv") else []
    call(sys.executable, "-m", "build", "--wheel", *installer, "--outdir", out, ROOT, cwd=out)
    (found,) = out.glob("*.whl")
    return found


@pytest.mark.slow
def test_wheel_holds_everything(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src" / "ogive"
    wanted = {
        f"ogive/{p.relative_to(source).as_posix()}"
        for p in source.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    wanted |= {
        f"ogive/catalogs/{p.relative_to(ROOT / 'catalogs').as_posix()}" for p in (ROOT / "catalogs").rglob("*.yaml")
    }
    assert {"ogive/py.typed", "ogive/templates/report.html.j2", "ogive/catalogs/stac.yaml"} <= wanted
    assert wanted <= names
    # And nothing else: no tests, no caches, no notes.
    assert all(n in wanted or ".dist-info/" in n for n in names), sorted(names - wanted)
    metadata = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert "License-Expression: BSD-3-Clause" in metadata
    assert any(n.endswith("licenses/LICENSE") for n in names)


@pytest.mark.slow
def test_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    python = home / "bin" / "python"
    tool = uv()
    if tool:
        call(tool, "venv", "--quiet", "--python", sys.executable, home, cwd=elsewhere)
        call(tool, "pip", "install", "--quiet", "--python", python, wheel, cwd=elsewhere)
    else:
        call(sys.executable, "-m", "venv", home, cwd=elsewhere)
        call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=elsewhere)
    assert "valid" in call(python, "-c", SMOKE, cwd=elsewhere)
    command = home / "bin" / "ogive"
    assert "Glacier velocity" in call(command, "--help", cwd=elsewhere)
    call(command, "init", "run.yaml", cwd=elsewhere)
    assert "source: earth-search" in (elsewhere / "run.yaml").read_text()
    assert "blocks done" in call(command, "status", "velocity.zarr", cwd=elsewhere)
