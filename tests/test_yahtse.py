"""The documented run of Yahtse Glacier on real Landsat scenes: docs/yahtse.yaml as it is, and its page's tables."""

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import ogive as og
from ogive import flags, masks, run, store, validate, view
from ogive.local import local_items, write_items
from ogive.report import to_markdown

pytestmark = pytest.mark.real
DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> run.RunResult:
    """The commands of the page, in a folder laid out like the repository."""
    root = tmp_path_factory.mktemp("yahtse")
    (root / "docs").mkdir()
    for name in ("yahtse.yaml", "yahtse_trunk.geojson"):
        shutil.copy(DOCS / name, root / "docs")
    shutil.copytree(data / "imagery/yahtse_landsat8_2016", root / "yahtse")
    shutil.copy(data / "outlines/st_elias_rock/StEliasMtn_utm7v_rock.gmt", root / "yahtse/rock.gmt")
    write_items(local_items(root / "yahtse"), root / "yahtse/items.json")
    return run.run(run.load(root / "docs/yahtse.yaml"), progress=False)


@pytest.fixture(scope="module")
def config(finished: run.RunResult) -> run.RunConfig:
    return run.RunConfig.model_validate_json((finished.report.parent / "run.json").read_text())


@pytest.fixture(scope="module")
def raw(finished: run.RunResult) -> xr.Dataset:
    return store.open_velocity(finished.matches).compute()


@pytest.fixture(scope="module")
def velocity(finished: run.RunResult) -> xr.Dataset:
    return store.open_velocity(finished.velocity).compute()


@pytest.fixture(scope="module")
def trunk(config: run.RunConfig, raw: xr.Dataset) -> xr.DataArray:
    mask = run.ice_mask(config, raw)
    assert mask is not None
    return mask


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("yahtse_page", DOCS / "yahtse.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_pair_of_whole_scenes(raw: xr.Dataset) -> None:
    assert dict(raw.sizes) == {"mid_date": 1, "y": 135, "x": 212}
    assert float(raw["date_dt"][0]) == pytest.approx(16, abs=0.01)
    assert raw["image_id1"].item() == "LC80630182016200LGN00"
    assert raw["date_center"].values[0] == pd.Timestamp(raw["date_center"].values[0]).floor("us")


def test_rock_stands_still_after_the_correction(
    config: run.RunConfig, raw: xr.Dataset, velocity: xr.Dataset, finished: run.RunResult
) -> None:
    still = run.stable_mask(config, raw)
    assert still is not None
    before, after = (validate.static_ground(v, still).iloc[0] for v in (raw, velocity))
    assert before["count"] > 1000
    assert after["valid"] > 0.97
    for name in ("vx", "vy"):
        assert abs(before[f"{name}_median"]) > 20  # there is something to correct
        assert abs(after[f"{name}_median"]) < 1
        assert 0 < after[f"{name}_nmad"] < 1.01 * before[f"{name}_nmad"]
        assert after[f"{name}_nmad"] * 16 / 365 / 15 < 0.08  # px
    table = finished.tables["Stable ground"]
    assert table["vx_median"].tolist() == pytest.approx([before["vx_median"], after["vx_median"]])
    # Nothing that is called stable moves: nine in ten of its vectors are within three sigma of the stated error.
    error = float(velocity["vx_error"][0])
    assert 20 < error < 30
    assert (np.abs(velocity["vx"].values[0][still.values]) < 3 * error).mean() > 0.9


def test_errors_of_single_vectors_cover_what_rock_shows(config: run.RunConfig, velocity: xr.Dataset) -> None:
    """As docs/assumptions.md says: about 70 and 94 %."""
    still = run.stable_mask(config, velocity)
    assert still is not None
    for name in ("vx", "vy"):
        z = np.abs((velocity[name] / velocity[f"{name}_error_px"]).values[0][still.values])
        z = z[np.isfinite(z)]
        assert z.size > 1000
        assert 0.63 < (z < 1).mean() < 0.73
        assert 0.92 < (z < 1.96).mean() < 0.98


def test_a_band_pass_is_no_better_on_real_rock(config: run.RunConfig, finished: run.RunResult) -> None:
    cube = og.open_cube(local_items(finished.report.parents[1]), "pan")
    pairs, spread = og.make_pairs(cube, days=(15, 17)), {}
    for name in ("high_pass", "band_pass"):
        raw = og.track(cube, pairs, og.NCC(chip=32, search=8, step=16, enhance=name, min_correlation=0.35)).compute()
        still = run.stable_mask(config, raw)
        assert still is not None
        ground = validate.static_ground(raw, still).iloc[0]
        assert ground["count"] > 200
        spread[name] = ground["vx_nmad"] + ground["vy_nmad"]
    assert spread["high_pass"] < spread["band_pass"]


def test_the_trunk_is_seen_and_gaps_are_explained(raw: xr.Dataset, velocity: xr.Dataset, trunk: xr.DataArray) -> None:
    valid = np.isfinite(velocity["vx"].values[0])
    assert valid[trunk.values].mean() > 0.9
    for dataset in (raw, velocity):
        missing = ~np.isfinite(dataset["vx"].values)
        assert 0.02 < missing.mean() < 0.2
        np.testing.assert_array_equal(missing, flags.invalid(dataset["flag"].values))
    # The search is wide enough: the peak is hardly ever on its rim.
    assert ((velocity["flag"].values[0][trunk.values] & flags.RIM) > 0).mean() < 0.01


def test_the_outline_holds_ice_only(config: run.RunConfig, raw: xr.Dataset, trunk: xr.DataArray) -> None:
    assert config.stable.rock is not None
    rock = masks.outlines(config.stable.rock, raw, crs=config.stable.crs)
    assert int(rock.sum()) > 1000
    assert int(trunk.sum()) > 4000
    assert float((rock & trunk).sum() / trunk.sum()) < 0.005


def test_speed_along_the_trunk(config: run.RunConfig, velocity: xr.Dataset) -> None:
    profile = view.speed_profile(velocity, config.profile, spacing=100.0)[1].set_index("distance")
    basin, front = profile.loc[0:8000], profile.loc[14000:17000]
    assert basin["v"].count() > 60
    assert 700 < basin["v"].median() < 900
    assert (basin["vx"].dropna() > 0).all()  # to the south-east
    assert front["v"].count() > 25
    assert front["v"].between(4300, 5500).all()
    assert (front[["vx", "vy"]] < 0).all(axis=None)  # to the south-west, into the bay
    assert 5500 < profile["v"].max() < 6300
    assert profile.loc[12000:13000, "v"].isna().all()  # the icefall


def test_smaller_chips_see_the_same_motion(raw: xr.Dataset, trunk: xr.DataArray, finished: run.RunResult) -> None:
    """The speed of the trunk is not an artefact of the chip: another size, raw matches against raw matches."""
    cube = og.open_cube(local_items(finished.report.parents[1]), "pan")
    cube = cube.isel(x=slice(880, 1080), y=slice(504, 960))  # icefall and lower trunk, on the cells of the run
    kernel = og.NCC(chip=24, search=24, step=8, min_correlation=0.35)
    small = og.track(cube, og.make_pairs(cube, days=(15, 17)), kernel).compute()
    inside = trunk.sel(x=small["x"], y=small["y"]).values
    same = raw.sel(x=small["x"], y=small["y"])
    apart = [(small[name] - same[name]).values[0][inside] for name in ("vx", "vy")]
    both = np.isfinite(apart[0])
    assert both.sum() > 400
    assert (np.hypot(*apart)[both] < 15 * 365 / 16).mean() > 0.9  # one pixel
    for difference in apart:
        assert abs(np.median(difference[both])) < 20  # [m/yr], of 5000


def test_the_report_reads_well(finished: run.RunResult) -> None:
    text = finished.report.read_text()
    assert "1 pair of 2 scenes" in text
    assert "Surface speed, median" not in text
    assert "Pairs in time" not in text
    assert (finished.report.parent / "profile.png").stat().st_size > 10_000
    assert (finished.report.parent / "map.png").stat().st_size > 100_000


def test_every_table_of_the_page_is_that_of_the_run(page: ModuleType, finished: run.RunResult) -> None:
    text = (DOCS / "yahtse.md").read_text()
    tables = page.tables(finished.report.parent)
    assert set(tables) == {"ground", "cells", "profile", "speeds"}
    for name, table in tables.items():
        block = re.search(rf"<!-- {name} -->\n\n(.*?)\n\n<!-- /{name} -->", text, re.DOTALL)
        assert block is not None, name
        written, made = (_cells(t) for t in (block[1], to_markdown(table)))
        assert len(written) == len(made) == len(table) + 1
        compared = 0
        for row, other in zip(written, made):
            for a, b in zip(row, other, strict=True):
                if (number := _number(a)) is None:
                    assert a == b
                else:
                    # Another processor may round a match otherwise: one percent, or a tenth of a unit near zero.
                    assert _number(b) == pytest.approx(number, rel=0.01, abs=0.1)
                    compared += 1
        assert compared >= 8, name


def _cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if not re.fullmatch(r"[|:\- ]+", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _number(cell: str) -> float | None:
    try:
        return float(cell.replace("\u202f", "").removesuffix(" %"))
    except ValueError:
        return None
