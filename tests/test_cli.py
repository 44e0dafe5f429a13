"""The command line: every command, what it prints for people and for machines, and its exit codes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
import xarray as xr
import yaml
from typer.testing import CliRunner, Result

from ogive import cli, store
from ogive._ledger import seal
from ogive.run import RunConfig
from ogive.runfile import template
from ogive.testing.plan import WorldSpec
from ogive.testing.scenes import World, make_world
from ogive.testing.stores import contents
from ogive.testing.velocity_cubes import velocity_cube

SCRIPT = Path(sys.executable).with_name("ogive")
SPEC = WorldSpec(
    size_km=(1.6, 2.0), n_sentinel2=7, n_landsat=0, start="2022-06-25", end="2022-08-10",
    cloud=0.0, speed=80.0, wedge=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), SPEC)


@pytest.fixture(scope="module")
def run_file(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    content = {
        "output": "result",
        "search": {"source": str(world.catalog), "aoi": "RGI60-00.00001", "outlines": str(world.outlines)},
        "cube": {"buffer": 300},
        "pairs": {"days": [5, 60], "same_orbit": False},
        "kernel": {"name": "ncc", "chip": 16, "search": 6, "step": 8},
        "stable": {"rock": str(world.rock), "ice": str(world.outlines), "buffer": 80},
        "invert": {"every": "15D"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def finished(run_file: Path) -> Path:
    result = invoke("run", run_file)
    assert "report" in result.stdout
    return run_file.parent / "result"


@pytest.fixture
def velocity(finished: Path, tmp_path: Path) -> Path:
    """A copy of the velocity store, to be damaged."""
    for name in ("velocity.zarr", "velocity.zarr.ledger"):
        shutil.copytree(finished / name, tmp_path / name)
    return tmp_path / "velocity.zarr"


def invoke(*arguments: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def told(*arguments: Any, code: int = 0) -> Any:
    """What a command says to machines: all of its standard output is one JSON document."""
    return json.loads(invoke(*arguments, "--json", code=code).stdout)


def script(*arguments: Any) -> "subprocess.CompletedProcess[str]":
    """The installed console script, as a shell would start it."""
    source = str(Path(cli.__file__).parents[1])
    return subprocess.run(
        [str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": source, "COLUMNS": "80"},
    )  # fmt: skip


def complaint(stdout: str, stderr: str) -> str:
    """The one line that a failed command says, after the log."""
    assert stdout == ""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("ogive: ")]
    assert len(lines) == 1
    assert stderr.splitlines()[-1] == lines[0]  # the last word, and not broken into lines
    return lines[0]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the entry point itself with arguments that fail; returns its complaint."""

    def refused(*arguments: Any, code: int) -> str:
        monkeypatch.setattr(sys, "argv", ["ogive", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == code
        return complaint(*capsys.readouterr())

    return refused


def test_the_explorer_names_what_it_needs(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ogive.view.application.find_spec", lambda name: None)
    said = refused("explore", code=2)
    assert "needs voila, ipykernel, ipyleaflet" in said
    assert "pip install 'ogive[notebook]'" in said


def test_help_lists_every_command() -> None:
    text = invoke("--help").stdout
    commands = [
        "demo", "search", "items", "explore", "init", "explain", "run", "update", "report", "status", "verify",
        "invert", "export", "train", "finetune",
    ]  # fmt: skip
    assert {c.name or c.callback.__name__ for c in cli.app.registered_commands} == set(commands)  # type: ignore[union-attr]
    assert all(f" {name} " in text for name in commands)


@pytest.mark.parametrize("name", [c.callback.__name__ for c in cli.app.registered_commands])  # type: ignore[union-attr]
def test_every_option_has_a_line_of_help(name: str) -> None:
    command = next(c for c in cli.app.registered_commands if c.callback.__name__ == name)  # type: ignore[union-attr]
    assert command.callback is not None
    for parameter, kind in command.callback.__annotations__.items():
        if parameter != "return":
            assert any(getattr(extra, "help", None) for extra in kind.__metadata__), parameter
    assert invoke(name, "--help").stdout


def test_help_is_fast_because_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys; sys.argv = ['ogive', '--help']\n"
        "import atexit; atexit.register(lambda: sys.stderr.write(' '.join(sorted(sys.modules))))\n"
        "from ogive.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stderr.split())
    assert "ogive.cli" in loaded
    assert not loaded & {"matplotlib", "distributed", "stackstac", "rustac"}


def test_search(world: World, tmp_path: Path) -> None:
    arguments = ("search", "RGI60-00.00001", "--source", world.catalog, "--outlines", world.outlines)
    rows = told(*arguments, "--datetime", "2022-07", "-o", tmp_path / "found.json")
    expected = [i for i in world.items if i.datetime is not None and i.datetime.month == 7]
    assert [row["id"] for row in rows] == [item.id for item in expected]
    assert 0 < len(expected) < len(world.items)
    assert all(row["overlap"] == pytest.approx(1, abs=0.3) for row in rows)
    assert len(pystac.ItemCollection.from_file(str(tmp_path / "found.json"))) == len(expected)
    text = invoke(*arguments).stdout
    assert "Scenes" in text
    assert text.count("2022") >= len(world.items)


def test_search_by_a_box(world: World) -> None:
    west, south, east, north = world.items[0].bbox or ()
    everything = told("search", f"{west},{south},{east},{north}", "--source", world.items_file)
    assert len(everything) == len(world.items)


def test_items_of_a_folder(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()
    for item in world.items:
        stamp = f"{item.datetime:%Y%m%dT%H%M%S}"
        shutil.copy(item.assets["nir"].href, folder / f"{item.id[:3]}_{stamp}_T32TMS_B08.tif")
    rows = told("items", folder, "-o", tmp_path / "items.json")
    assert [row["datetime"] for row in rows] == [f"{i.datetime:%Y-%m-%dT%H:%M:%S}.000" for i in world.items]
    assert len(pystac.ItemCollection.from_file(str(tmp_path / "items.json"))) == len(world.items)


def test_init_writes_the_template_once(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "run.yaml"
    assert "ogive run" in invoke("init", path).stdout
    assert path.read_text() == template()
    RunConfig.model_validate(yaml.safe_load(path.read_text()))
    path.write_text("mine")
    assert "exists" in refused("init", path, code=2)
    assert path.read_text() == "mine"
    invoke("init", path, "--force")
    assert path.read_text() == template()


def test_explain(run_file: Path, finished: Path, world: World) -> None:
    cost = told("explain", run_file)
    stored = store.open_velocity(finished / "matches.zarr")
    assert (cost["pairs"], cost["scenes"]) == (stored.sizes["mid_date"], len(world.items))
    assert cost["write_gigabytes"] == pytest.approx(
        sum(v.nbytes for v in stored.data_vars.values()) / 1e9, rel=0.01
    )  # fmt: skip
    assert cost["blocks"] == store.status(finished / "matches.zarr")["blocks"]
    assert f"{cost['pairs']} pairs" in invoke("explain", run_file).stdout


def test_run_tells_machines_where_things_are(run_file: Path, finished: Path) -> None:
    before = contents(finished / "matches.zarr")
    result = told("run", run_file)
    assert {Path(result[k]).name for k in ("matches", "velocity", "series", "report")} == {
        "matches.zarr", "velocity.zarr", "series.zarr", "report.html",
    }  # fmt: skip
    assert [row["stable ground"] for row in result["tables"]["Stable ground"]] == [
        "before correction",
        "after correction",
    ]
    assert contents(finished / "matches.zarr") == before


def test_report(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    (tmp_path / "copy" / "report.html").unlink()
    assert "Stable ground" in invoke("report", tmp_path / "copy").stdout
    assert "<html" in (tmp_path / "copy" / "report.html").read_text()


def test_status(velocity: Path) -> None:
    count = told("status", velocity)
    assert count["done"] == count["blocks"] > 0
    assert (count["failed"], count["failures"]) == (0, [])
    row = next(velocity.with_name("velocity.zarr.ledger").glob("0.*.json"))
    row.write_bytes(
        seal({"block": row.stem, "status": "failed", "error": "ReadError: no such file", "job": "", "span": {}})
    )
    assert told("status", velocity)["failures"][0]["error"] == "ReadError: no such file"
    assert f"block {row.stem}: ReadError" in invoke("status", velocity).stdout


def test_verify_finds_and_repairs(velocity: Path, finished: Path, run_file: Path) -> None:
    assert "whole" in invoke("verify", velocity).stdout
    assert told("verify", velocity) == []
    victim = next(p for p in sorted((velocity / "vx" / "c").rglob("*")) if p.is_file())
    victim.write_bytes(victim.read_bytes()[:-20])
    faults = told("verify", velocity, code=1)
    assert [(f["variable"], f["problem"]) for f in faults] == [("vx", "checksum")]
    assert len(told("verify", velocity, "--repair")) == 1
    assert told("verify", velocity, code=1)[0]["problem"] == "not done"
    assert told("status", velocity)["done"] == told("status", finished / "velocity.zarr")["done"] - 1


def test_repaired_matches_are_computed_again(run_file: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    shutil.copy(run_file, folder / "run.yaml")
    shutil.copytree(finished, folder / "result")
    matches = folder / "result" / "matches.zarr"
    next(p for p in sorted((matches / "corr" / "c").rglob("*")) if p.is_file()).unlink()
    assert told("verify", matches, "--repair")[0]["problem"] == "missing"
    invoke("run", folder / "run.yaml", "--json")
    assert contents(matches) == contents(finished / "matches.zarr")


def test_invert(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "series.zarr"
    assert "written" in invoke("invert", finished / "velocity.zarr", "-o", out, "--every", "15D").stdout
    ours, runs = (store.open_velocity(p) for p in (out, finished / "series.zarr"))
    assert np.isfinite(ours["vx"]).any()
    np.testing.assert_array_equal(ours["vx"].values, runs["vx"].values)


def test_every_method_has_windows_of_its_own(tmp_path: Path) -> None:
    """A store that is no run of ours, so without provenance of one."""
    cube, _ = velocity_cube("slow")
    pairs, out = tmp_path / "pairs.zarr", tmp_path / "years.zarr"
    cube = cube.drop_vars(["outlier", "satellite_img1", "satellite_img2"]).isel(y=slice(0, 2), x=slice(0, 2))
    store.write(cube.chunk(y=1), pairs, progress=False)
    invoke("invert", pairs, "-o", out, "--method", "annual")
    years = store.open_velocity(out)
    assert years.attrs["method"] == "annual"
    assert np.isfinite(years["vx"]).all("x").all("y").sum() >= 2
    assert np.isfinite(years["v_amp"]).all()


def read_tif(path: Path, values: xr.DataArray) -> None:
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == 32632
        np.testing.assert_array_equal(file.read(1), values)


def read_nc(path: Path, values: xr.DataArray) -> None:
    with xr.open_dataset(path, engine="h5netcdf") as file:
        np.testing.assert_array_equal(file["vx"].isel(mid_date=0).values, values)


def read_csv(path: Path, values: xr.DataArray) -> None:
    table = pd.read_csv(path)
    assert len(table) > 0
    first = table[table["pair_id"] == table["pair_id"].min()]
    assert len(first) == int(np.isfinite(values).sum())
    assert first["vx"].sum() == pytest.approx(float(values.sum(dtype="f8")), rel=1e-4)


def read_zarr(path: Path, values: xr.DataArray) -> None:
    ds = xr.open_zarr(path, consolidated=None)
    assert ds["vx"].encoding["dtype"] == np.int16
    rounded = ds["vx"].isel(mid_date=0).values
    assert (np.isfinite(rounded) == np.isfinite(values.values)).all()
    assert float(np.nanmax(np.abs(rounded - values.values))) <= 0.5


@pytest.mark.parametrize(
    ("name", "options", "check"),
    [
        ("map.tif", ("--variable", "vx", "--when", "0"), read_tif),
        ("cube.nc", (), read_nc),
        ("points.csv", (), read_csv),
        ("itslive.zarr", (), read_zarr),
    ],
)
def test_export(
    finished: Path,
    tmp_path: Path,
    name: str,
    options: tuple[str, ...],
    check: Callable[[Path, xr.DataArray], None],
    refused: Callable[..., str],
) -> None:
    path, source = tmp_path / name, finished / "velocity.zarr"
    assert "written" in invoke("export", source, path, *options).stdout
    values = store.open_velocity(source)["vx"].isel(mid_date=0).compute()
    assert np.isfinite(values).any()
    check(path, values)
    assert "must not exist yet" in refused("export", source, path, *options, code=1)
    check(path, values)
    invoke("export", source, path, *options, "--overwrite")
    check(path, values)


def test_export_to_another_suffix_names_the_choices(
    finished: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:  # fmt: skip
    assert ".tif, .nc, .csv, .parquet or .zarr" in refused(
        "export", finished / "series.zarr", tmp_path / "a.doc", code=2
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_exit_codes_of_the_installed_script(finished: Path, tmp_path: Path) -> None:
    done = script("status", finished / "matches.zarr")
    assert (done.returncode, done.stderr) == (0, "")
    assert "blocks done" in done.stdout
    failed = script("status", tmp_path / "nothing.zarr")
    assert failed.returncode == 1
    assert "does not exist" in complaint(failed.stdout, failed.stderr)
    never = script("run", tmp_path / "nothing.yaml")
    assert never.returncode == 2
    assert "must be a readable YAML file" in complaint(never.stdout, never.stderr)


def test_an_unknown_option_is_named() -> None:
    assert "--speed" in invoke("run", "run.yaml", "--speed", "9", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("run", "nothing.yaml"), 2, "nothing.yaml: must be a readable YAML file"),
        (("explain", "broken.yaml"), 2, "broken.yaml: must be a readable YAML file"),
        (("report", "."), 2, "holds no run"),
        (("status", "nothing.zarr"), 1, "nothing.zarr: does not exist"),
        (("verify", "."), 1, "is not an ogive store"),
        (("invert", "nothing.zarr", "-o", "series.zarr"), 1, "nothing.zarr: does not exist"),
        (("export", "nothing.zarr", "map.tif"), 1, "nothing.zarr: does not exist"),
        (("items", "nowhere"), 2, "must exist"),
        (("items", "."), 2, "must hold Landsat images"),
        (("search", "1,2,3,x", "--source", "broken.yaml"), 2, "1,2,3,x"),
        (("search", "7.9,46.4,8.1,46.5", "--source", "nothing.json"), 2, "nothing.json"),
        (("search", "7.9,46.4,8.1,46.5", "--max-cloud", "200"), 2, "max_cloud"),
        (("search", "7.9,46.4,8.1,46.5", "--sensor", "radar"), 2, "sensor"),
        (("init", "no/such/folder/run.yaml"), 1, "no/such/folder/run.yaml"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line_and_a_code(
    tmp_path: Path, arguments: tuple[str, ...], code: int, named: str, refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("a: [1,\nb: {")
    assert named in refused(*arguments, code=code)
    assert [p.name for p in tmp_path.iterdir()] == ["broken.yaml"]
