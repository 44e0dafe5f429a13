"""Validation numbers on cases worked out by hand, and on the positions of a real station."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from ogive import grid
from ogive.errors import GridError, ParameterError
from ogive.invert import invert
from ogive.testing.velocity_cubes import velocity_cube
from ogive.validate import against_truth, gps_velocity, nmad, stakes, static_ground

DATA = Path(os.environ.get("OGIVE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(-1e3, 1e3), st.floats(0.1, 10))
def test_nmad_ignores_the_offset_and_follows_the_unit(values, offset, factor):
    a = np.array(values)
    assert nmad(a * factor + offset) == pytest.approx(nmad(a) * factor, rel=1e-6, abs=1e-6)
    assert nmad([*values, np.nan]) == nmad(values)


def test_nmad_is_the_sigma_of_a_normal_distribution():
    sample = np.random.default_rng(0).normal(5, 3, 20000)
    assert nmad(sample) == pytest.approx(3, rel=0.03)
    sample[::5] = 1e6
    assert 3 < nmad(sample) < 4.5
    assert np.isnan(nmad([np.nan]))


def test_static_ground_by_pair():
    vx = np.array([[[1.0, 2.0], [3.0, 900.0]], [[np.nan, 5.0], [7.0, 900.0]], [[np.nan] * 2, [np.nan, 900.0]]])
    dims = ("mid_date", "y", "x")
    velocity = xr.Dataset({"vx": (dims, vx), "vy": (dims, -vx)}, {"pair_id": ("mid_date", [7, 8, 9])})
    mask = xr.DataArray([[True, True], [True, False]], dims=("y", "x"))
    for cube in (velocity, velocity.chunk(mid_date=1)):
        table = static_ground(cube, mask)
        assert table["pair_id"].tolist() == [7, 8, 9]
        assert table["count"].tolist() == [3, 2, 0]
        np.testing.assert_allclose(table["valid"], [1, 2 / 3, 0])
        np.testing.assert_allclose(table["vx_median"], [2, 6, np.nan])
        np.testing.assert_allclose(table["vy_median"], [-2, -6, np.nan])
        np.testing.assert_allclose(table["vx_nmad"], [1.4826, 1.4826, np.nan])
    with pytest.raises(GridError, match="shape"):
        static_ground(velocity, mask.isel(y=[0]))
    with pytest.raises(ParameterError, match="stable cell"):
        static_ground(velocity, mask & False)


def test_against_truth_by_hand():
    vx, vy = np.array([1.0, 3.0, np.nan, 99.0]), np.array([0.0, 0.0, 1.0, 99.0])
    where = np.array([True, True, True, False])
    one = np.full(4, 1.5)
    score = against_truth(vx, vy, 0.0, 0.0, error_vx=one, error_vy=one, where=where, scale=2.0)
    assert score["count"] == 2
    assert score["valid"] == pytest.approx(2 / 3)
    assert score["vx_bias"] == 4.0
    assert score["vx_rmse"] == score["rmse"] == pytest.approx(np.sqrt(20))
    assert score["vx_nmad"] == pytest.approx(1.4826 * 2)
    assert score["vy_bias"] == score["vy_rmse"] == 0
    assert score["coverage_68"] == 0.75
    assert score["coverage_95"] == 0.75
    assert "coverage_95" not in against_truth(vx, vy, 0.0, 0.0)
    with pytest.raises(ParameterError, match="select something"):
        against_truth(vx, vy, 0.0, 0.0, where=False)
    with pytest.raises(ParameterError, match="together"):
        against_truth(vx, vy, 0.0, 0.0, error_vx=one)


def test_coverage_of_honest_errors():
    rng = np.random.default_rng(1)
    sigma = rng.uniform(1, 20, (2, 20000))
    noise = rng.normal(0, 1, (2, 20000)) * sigma
    score = against_truth(noise[0] + 100, noise[1], 100.0, 0.0, error_vx=sigma[0], error_vy=sigma[1], scale=0.01)
    assert score["coverage_68"] == pytest.approx(0.683, abs=0.01)
    assert score["coverage_95"] == pytest.approx(0.95, abs=0.005)


def series_of(vx, vy):
    """Two windows of 100 days on a 2 x 3 grid of 100 m."""
    box = GeoBox((2, 3), Affine(100, 0, 500000, 0, -100, 7000200), "EPSG:32622")
    edges = np.datetime64("2021-01-01", "ns") + np.array([0, 100, 200]) * np.timedelta64(1, "D")
    dims = ("time", "y", "x")
    return xr.Dataset(
        {"vx": (dims, vx), "vy": (dims, vy)},
        {
            "time": edges[:-1] + np.timedelta64(50, "D"),
            "time_bnds": (("time", "bnds"), np.stack([edges[:-1], edges[1:]], 1)),
            **grid.coordinates(box),
            "mapping": grid.mapping(box),
        },
    )


def test_stakes_pick_the_cell_and_weigh_by_overlap():
    vx = np.zeros((2, 2, 3), np.float32)
    vx[0, 1, 2], vx[1, 1, 2] = 100.0, 200.0
    vx[1, 0, 0] = np.nan
    data = series_of(vx, np.zeros_like(vx))
    start = pd.Timestamp("2021-01-01")
    rows = [
        # 75 days of window 1 and 25 of window 2
        {"x": 500299.0, "y": 7000001.0, "t1": start + pd.Timedelta("25D"), "t2": start + pd.Timedelta("125D")},
        # half of the interval has no valid window
        {"x": 500001.0, "y": 7000199.0, "t1": start + pd.Timedelta("50D"), "t2": start + pd.Timedelta("150D")},
        {"x": 400000.0, "y": 7000100.0, "t1": start, "t2": start + pd.Timedelta("10D")},
    ]
    table = pd.DataFrame(rows, index=["a", "b", "c"]).assign(vx=120.0, vy=1.0)
    out = stakes(data, table)
    np.testing.assert_allclose(out["vx"], [125, 0, np.nan])
    np.testing.assert_allclose(out["covered"], [1, 0.5, 0])
    np.testing.assert_allclose(out["vx_difference"], [5, -120, np.nan])
    np.testing.assert_allclose(out["vy_difference"], [-1, -1, np.nan])
    assert out.index.tolist() == ["a", "b", "c"]
    speed = stakes(data, table.drop(columns=["vx", "vy"]).assign(v=100.0))
    np.testing.assert_allclose(speed["v_difference"], [25, -100, np.nan])
    with pytest.raises(ParameterError, match="lon, lat"):
        stakes(data, table.drop(columns="x"))
    with pytest.raises(ParameterError, match="t1, t2"):
        stakes(data, table.drop(columns="t1"))
    with pytest.raises(ParameterError, match="vx, vy or v"):
        stakes(data, table.drop(columns="vx"))


def test_a_stake_that_moves_with_the_truth_agrees_with_the_inversion():
    cube, truth = velocity_cube("500")
    series = invert(cube.isel(y=[6], x=[4]))
    t1, t2 = np.array(["2018-01-01"], "M8[ns]"), np.array(["2019-01-01"], "M8[ns]")
    vx, vy = (v[0, 6, 4] for v in truth.velocity(t1, t2))
    at = {"x": float(series.x[0]), "y": float(series.y[0]), "t1": t1[0], "t2": t2[0], "vx": vx, "vy": vy}
    out = stakes(series, pd.DataFrame([at]))
    assert out["covered"][0] == pytest.approx(1)
    assert abs(out["vx_difference"][0]) < 0.02 * np.hypot(vx, vy)
    assert abs(out["vy_difference"][0]) < 0.02 * np.hypot(vx, vy)


def test_gps_velocity_checks_its_input():
    with pytest.raises(ParameterError, match="at least two"):
        gps_velocity([1.0, np.nan], [1.0, 1.0], ["2020-01-01", "2020-02-01"])
    with pytest.raises(ParameterError, match="increase"):
        gps_velocity([1.0, 1.1], [1.0, 1.0], ["2020-02-01", "2020-01-01"])


@pytest.mark.real
def test_real_station_swan():
    """SWC on the Greenland ice sheet: 171 m and 128.1 m/yr are published."""
    table = pd.read_csv(DATA / "cubes/gcnet_gps_positions/SWC_positions_monthly.csv")
    when = pd.to_datetime({"year": table["year"], "month": table["month"], "day": 15})
    ends = table["lat"].notna().to_numpy().nonzero()[0][[0, -1]]
    row = gps_velocity(table["lon"][ends], table["lat"][ends], when[ends], crs="EPSG:32622").iloc[0]
    assert row["distance"] == pytest.approx(170.8, abs=0.1)
    assert row["v"] * 365.25 / 365 == pytest.approx(128.1, abs=0.1)
    assert 230 < row["azimuth"] < 240  # south-west, out of the ice sheet
    assert np.hypot(row["vx"], row["vy"]) == pytest.approx(row["v"], rel=5e-3)
    monthly = gps_velocity(table["lon"], table["lat"], when)
    assert len(monthly) == 15
    assert monthly["distance"].sum() == pytest.approx(170.8, abs=1.5)
    series = series_of(np.full((2, 2, 3), row["vx"], np.float32), np.full((2, 2, 3), row["vy"], np.float32))
    series["x"] = series["x"] - 500150 + row["x"]
    series["y"] = series["y"] - 7000100 + row["y"]
    series["mapping"] = grid.mapping(
        GeoBox((2, 3), Affine(100, 0, row["x"] - 150, 0, -100, row["y"] + 100), "EPSG:32622")
    )
    found = stakes(series, pd.DataFrame([row])[["lon", "lat", "t1", "t2", "v"]])
    assert abs(float(found["v_difference"].iloc[0])) < 1.0
    assert 0.3 < float(found["covered"].iloc[0]) < 0.5
