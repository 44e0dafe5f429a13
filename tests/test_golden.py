"""Stores of every schema that was ever released open in this ogive, with the values that went into them."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import ogive as og
from ogive import grid
from ogive._ledger import ledger

GOLDEN = sorted((Path(__file__).parent / "golden").glob("schema-*.zip"))


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def test_the_schema_of_today_has_its_golden_store() -> None:
    assert [int(path.stem.removeprefix("schema-")) for path in GOLDEN] == list(range(2, grid.SCHEMA_VERSION + 1))


@pytest.mark.parametrize("kind", ["velocity", "series"])
def test_values_are_those_that_went_in(folder: Path, kind: str) -> None:
    found = og.open_velocity(folder / f"{kind}.zarr")
    with np.load(folder / f"{kind}.npz") as expected:
        assert {"vx", "vy", "vx_error", "flag"} <= set(expected.files)
        assert np.isfinite(expected["vx"]).mean() > 0.3
        for name in expected.files:
            assert found[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(found[name].values, expected[name], err_msg=name)


@pytest.mark.parametrize("kind", ["velocity", "series"])
def test_the_ledger_is_understood(folder: Path, kind: str) -> None:
    path = folder / f"{kind}.zarr"
    count = og.status(path)
    assert count["blocks"] == count["done"] == len(ledger(path)) > 1
    assert og.verify(path).empty
    victim = next(p for p in sorted((path / "vx" / "c").rglob("*")) if p.is_file())
    victim.write_bytes(victim.read_bytes()[:-1])
    assert list(og.verify(path)["variable"]) == ["vx"]


def test_what_follows_works_on_it(folder: Path) -> None:
    velocity = og.open_velocity(folder / "velocity.zarr")
    series = og.invert(og.filters.local_median(velocity), every="30D").compute()
    assert np.isfinite(series["vx"]).mean() > 0.3


def test_others_open_it_without_ogive(folder: Path) -> None:
    for kind in ("velocity", "series"):
        with np.load(folder / f"{kind}.npz") as expected, xr.open_zarr(folder / f"{kind}.zarr") as found:
            np.testing.assert_array_equal(found["vx"].values, expected["vx"])
            assert found.attrs["status"] == "complete"
