"""Velocities of others: real files, and small files of each layout with every trap that is known."""

import json
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from zarr.storage import LocalStore

import ogive as og
from ogive import _foreign, export, flags, grid
from ogive.errors import GridError, StoreError
from ogive.testing.velocity_cubes import velocity_cube

SE_TIBET = "cubes/itslive_v2_single_glacier_se_tibet.zarr"
BOX = GeoBox((9, 7), Affine(120, 0, 700_072.5, 0, -120, 3_399_967.5), "EPSG:32646")
PAIR_KEYS = {
    "mid_date",
    "date_center",
    "acquisition_date_img1",
    "acquisition_date_img2",
    "date_dt",
    "pair_id",
    "source",
}


def assert_contract(velocity: xr.Dataset) -> None:
    """What every velocity promises, whoever made it."""
    assert velocity["vx"].dims == ("mid_date", "y", "x")
    assert set(velocity.coords) >= PAIR_KEYS | {"y", "x", "mapping"}
    for name in ("vx", "vy", "v"):
        assert velocity[name].dtype == np.float32
        assert velocity[name].chunks[0] == (velocity.sizes["mid_date"],)
        assert velocity[name].attrs["units"] == "meter/year"
    assert velocity["flag"].dtype == np.uint16
    assert velocity["vx_error"].dims == ("mid_date",)
    assert (velocity["acquisition_date_img1"] < velocity["acquisition_date_img2"]).all()
    assert velocity["y"].size < 2 or (np.diff(velocity["y"]) < 0).all()
    assert grid.geobox_of(velocity).shape == velocity["vx"].shape[1:]
    assert velocity.attrs["kind"] == "velocity"
    valid = np.isfinite(velocity["vx"].values) & np.isfinite(velocity["vy"].values)
    assert np.array_equal(valid, ~flags.invalid(velocity["flag"].values))


# --- cubes ------------------------------------------------------------------------------------------------------------


def itslive(rng: np.random.Generator, pairs: int = 6) -> xr.Dataset:
    """A cube as the producers write it, with their encodings: unsorted, repeated pairs, true zeros."""
    shape = (pairs, *map(int, BOX.shape))
    vx, vy = rng.integers(-300, 300, (2, *shape)).astype(np.int16)
    vx[0, 0, 0], vy[0, 0, 0] = 0, 0
    gone = rng.random(shape) < 0.3
    gone[0, 0, 0] = False
    vx[gone], vy[gone] = -32767, -32767
    texts = ["2020-07-01T05:06:07.250", "2019-03-04", "2019-03-04", "2021-01-01", "2018-12-31", "2020-01-01"]
    first = pd.to_datetime(texts, format="ISO8601")
    second = first + pd.to_timedelta([16.0, 32, 32, 365, 48, 5], "D")
    middle = first + (second - first) / 2
    days = [(d - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=1) for d in (first, second, middle)]
    day = {"units": "days since 1970-01-01", "calendar": "proleptic_gregorian"}
    speed = {"units": "meter/year", "grid_mapping": "mapping", "missing_value": np.int16(-32767)}
    dims = ("mid_date", "y", "x")
    error = {"_FillValue": np.float32(-32767), "units": "meter/year"}
    satellites = ["2A", "2B", "2B", "8", "1A", "7"]
    missions = ["S", "S", "S", "L", "S", "L"]
    mapping = {k: v for k, v in grid.mapping(BOX).attrs.items() if k not in ("proj4text", "spatial_epsg")}
    return xr.Dataset(
        {
            "vx": (dims, vx, speed),
            "vy": (dims, vy, speed),
            "v": (dims, np.where(gone, -32767, np.round(np.hypot(vx.astype(float), vy))).astype(np.int16), speed),
            "interp_mask": (dims, (rng.random(shape) < 0.2).astype(np.uint8), {"missing_value": np.uint8(0)}),
            "chip_size_width": (dims, np.where(gone, 0, 240).astype(np.uint16), {"missing_value": np.uint16(0)}),
            "vx_error": ("mid_date", np.array([1, 2, 3, 4, -32767, 6], np.float32), error),
            "vy_error": ("mid_date", np.arange(2, 8).astype(np.float32), error),
            "vx_error_modeled": ("mid_date", np.full(pairs, 34, np.float32), error),
            "stable_shift_flag": ("mid_date", np.ones(pairs, np.uint8)),
            "date_dt": ("mid_date", (days[1] - days[0]).to_numpy(np.float32), {"units": "days"}),
            "acquisition_date_img1": ("mid_date", days[0], day),
            "acquisition_date_img2": ("mid_date", days[1], day),
            "date_center": ("mid_date", days[2], day),
            "mission_img1": ("mid_date", np.array(missions)),
            "mission_img2": ("mid_date", np.array(missions)),
            "satellite_img1": ("mid_date", np.array(satellites)),
            "satellite_img2": ("mid_date", np.array(satellites)),
            "granule_url": ("mid_date", np.array([f"https://x/A{k}_X_B{k}_G0120V02_P0{k}0.nc" for k in range(pairs)])),
            "landice": (("y", "x"), np.ones(BOX.shape, np.uint8), {"missing_value": np.uint8(255)}),
            "mapping": ((), "", mapping),
        },
        {"mid_date": ("mid_date", days[2], day), **grid.coordinates(BOX)},
        {
            "author": "ITS_LIVE, a NASA MEaSUREs project (its-live.jpl.nasa.gov)",
            "projection": "32646",
            "url": "https://x",
        },
    )


def decoded(raw: np.ndarray) -> np.ndarray:
    return np.where(raw == -32767, np.nan, raw).astype(np.float32)


@pytest.mark.parametrize("layout", ["v2", "v2.2", "netcdf", "ascending y"])
def test_a_cube_comes_out_as_a_velocity(tmp_path: Path, layout: str) -> None:
    cube = itslive(np.random.default_rng(3))
    path = tmp_path / ("c.nc" if layout == "netcdf" else "c.zarr")
    chunks = {"encoding": {n: {"chunks": (6, 4, 4)} for n in ("vx", "vy", "v")}}
    if layout == "v2.2":
        epoch = (pd.Timestamp("1980-01-06") - pd.Timestamp("1970-01-01")).days
        late = cube.rename(mid_date="time")
        for name in ("time", "acquisition_date_img1", "acquisition_date_img2", "date_center"):
            attrs = {"units": "seconds since 1980-01-06T00:00:00+00:00", "calendar": "proleptic_gregorian"}
            late[name] = ("time", (late[name].values - epoch) * 86400, attrs)
        for name in [n for n in late.variables if late[n].dtype.kind == "U"]:
            late[name] = late[name].astype(object)
        sharded = {n: {"chunks": (6, 4, 4), "shards": (6, 8, 8), "fill_value": -32767} for n in ("vx", "vy")}
        late.to_zarr(path, zarr_format=3, encoding=sharded, consolidated=False)
    elif layout == "netcdf":
        cube.to_netcdf(path)
    else:
        cube = cube.isel(y=slice(None, None, -1)) if layout == "ascending y" else cube
        cube.to_zarr(path, zarr_format=2, **chunks)
    velocity = og.open_velocity(path)
    assert_contract(velocity)
    source = cube.isel(y=slice(None, None, -1)) if layout == "ascending y" else cube
    for name in ("vx", "vy", "v"):
        np.testing.assert_array_equal(velocity[name].values, decoded(source[name].values))
    assert velocity["vx"].values[0, 0, 0] == 0  # at rest is a measurement
    assert velocity["source"].values.tolist() == ["ITS_LIVE"] * 6
    assert velocity["satellite_img1"].values.tolist() == ["2A", "2B", "2B", "8", "1A", "7"]
    np.testing.assert_array_equal(velocity["vx_error"].values, [1, 2, 3, 4, np.nan, 6])
    assert velocity["vx_error_modeled"].values.tolist() == [34] * 6
    assert velocity["acquisition_date_img1"].values[0] == np.datetime64("2020-07-01T05:06:07.250", "ns")
    assert velocity["date_dt"].values.tolist() == [16, 32, 32, 365, 48, 5]
    assert velocity["image_id2"].values.tolist() == [f"B{k}" for k in range(6)]
    interpolated = (source["interp_mask"].values == 1) & np.isfinite(decoded(source["vx"].values))
    assert np.array_equal((velocity["flag"].values & flags.INTERPOLATED) > 0, interpolated)
    assert str(grid.geobox_of(velocity).crs) == "EPSG:32646"
    assert grid.geobox_of(velocity).affine == BOX.affine
    assert "proj4text" in velocity["mapping"].attrs


def test_a_cube_can_be_written_as_a_store(tmp_path: Path) -> None:
    itslive(np.random.default_rng(3)).to_zarr(tmp_path / "c.zarr", zarr_format=2)
    velocity = og.open_velocity(tmp_path / "c.zarr")
    back = og.open_velocity(og.write(velocity, tmp_path / "v.zarr", progress=False))
    xr.testing.assert_equal(back.compute(), velocity.compute().set_coords(["image_id1", "image_id2"]))


def test_blocks_are_whole_chunks_of_the_file() -> None:
    def of(pairs: int, native: dict[str, int]) -> tuple[int, int]:
        array = xr.DataArray(np.broadcast_to(np.float32(0), (pairs, 833, 833)), dims=("mid_date", "y", "x"))
        array.encoding["preferred_chunks"] = {"mid_date": 20000, **native}
        chunks = _foreign.blocks(array)
        assert chunks["mid_date"] == -1
        return chunks["y"], chunks["x"]

    assert of(47_892, {"y": 10, "x": 10}) == (10, 10)
    assert of(500, {"y": 10, "x": 10}) == (60, 60)
    assert of(2, {"y": 10, "x": 10}) == (833, 833)
    # A cube chunked as maps: blocks of whole maps times all pairs would not fit into memory.
    assert max(of(20_000, {"y": 833, "x": 833})) == 10


def test_a_missing_chunk_is_not_a_velocity_of_zero(tmp_path: Path) -> None:
    cube = itslive(np.random.default_rng(3))
    encoding = {n: {"chunks": (6, 4, 4)} for n in ("vx", "vy")}
    cube.to_zarr(tmp_path / "bare.zarr", zarr_format=2, encoding=encoding)
    for name in ("vx", "vy"):  # as the producers do: a missing value, and no fill value
        meta = json.loads((tmp_path / "bare.zarr" / name / ".zarray").read_text())
        (tmp_path / "bare.zarr" / name / ".zarray").write_text(json.dumps({**meta, "fill_value": None}))
    (tmp_path / "bare.zarr" / ".zmetadata").unlink(missing_ok=True)
    og.open_velocity(tmp_path / "bare.zarr")
    (tmp_path / "bare.zarr" / "vy" / "0.1.1").unlink()
    assert np.isfinite(zarr.open_array(tmp_path / "bare.zarr" / "vy", mode="r")[0, 5, 5])  # what others would read
    with pytest.raises(StoreError, match=r"vy: lacks chunks.*5 of 6"):
        og.open_velocity(tmp_path / "bare.zarr")
    cube["vx"].attrs.pop("missing_value")
    cube["vy"].attrs.pop("missing_value")
    filled = {n: {**e, "_FillValue": -32767} for n, e in encoding.items()}
    cube.to_zarr(tmp_path / "filled.zarr", zarr_format=2, encoding=filled)
    (tmp_path / "filled.zarr" / "vy" / "0.1.1").unlink()
    velocity = og.open_velocity(tmp_path / "filled.zarr")
    assert np.isnan(velocity["vy"].values[:, 4:8, 4:]).all()
    assert (velocity["flag"].values[:, 4:8, 4:] & flags.NO_DATA).all()


@pytest.mark.real
def test_real_cube_is_opened_without_reading_a_velocity(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []
    get = LocalStore.get

    async def noted(self: LocalStore, key: str, *args: Any, **kwargs: Any) -> Any:
        keys.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(LocalStore, "get", noted)
    velocity = og.open_velocity(data / SE_TIBET)
    read = {k.split("/")[0] for k in keys if k.count("/") and not k.rsplit("/", 1)[1].startswith((".z", "zarr"))}
    assert "acquisition_date_img1" in read  # the spy sees chunks
    assert not read & {"vx", "vy", "v", "interp_mask", "chip_size_width", "granule_url", "landice"}
    keys.clear()
    with dask.config.set(scheduler="synchronous"):
        velocity["vx"][:, :10, :10].compute()
    assert {k for k in keys if k[-1].isdigit()} == {f"vx/{k}.0.0" for k in range(3)}


@pytest.mark.real
def test_real_cube_holds_what_the_file_holds(data: Path) -> None:
    velocity = og.open_velocity(data / SE_TIBET)
    raw = xr.open_zarr(data / SE_TIBET, decode_cf=False, chunks=None)
    assert dict(velocity.sizes) == {"mid_date": 47892, "y": 37, "x": 40}
    assert velocity["vx"].chunks == ((47892,), (10, 10, 10, 7), (10,) * 4)
    tile = {"y": slice(10, 20), "x": slice(10, 20)}
    for name in ("vx", "vy", "v"):
        np.testing.assert_array_equal(velocity[name].isel(tile).values, decoded(raw[name].isel(tile).values))
    valid = float(np.isfinite(velocity["v"]).mean())
    assert valid == pytest.approx(0.048, abs=5e-4)
    assert 15_000 < len(np.unique(velocity["mid_date"])) < 47_892  # not unique: a label selects nothing
    dates = velocity["acquisition_date_img1"].values
    assert (
        np.abs((dates - np.datetime64("1970-01-01")) / np.timedelta64(1, "D") - raw["acquisition_date_img1"]).max()
        < 1e-10
    )
    assert (dates.astype(np.int64) % 1000 == 0).all()
    satellites, counts = np.unique(velocity["mission_img1"].values, return_counts=True)
    assert dict(zip(satellites.tolist(), counts.tolist())) == {"L": 9505, "S": 38387}
    assert velocity["image_id1"].values[0] == "LT05_L1TP_135039_19860725_20200918_02_T1"
    assert velocity["image_id2"].values[-1].endswith("T46RGU_20241103T061311")
    assert float(velocity["vx_error"].median()) == pytest.approx(4.2, abs=0.05)


# --- image pairs ------------------------------------------------------------------------------------------------------


def granule(box: GeoBox, value: int, first: str, second: str, **info: Any) -> xr.Dataset:
    shape = tuple(map(int, box.shape))
    vx = np.full(shape, value, np.int16)
    vx[0, 0] = -32767
    attrs = {
        "units": "meter/year", "grid_mapping": "mapping", "_FillValue": np.int16(-32767), "error": np.float64(3.5),
        "error_modeled": 34.0, "error_slow": -32767.0, "error_slow_description": "text", "stable_shift": -1.5,
        "stable_shift_flag": np.int64(1), "stable_count_stationary": 700,
    }  # fmt: skip
    codes = {f"{k}_img{i}": v for k, v in (("mission", "S"), ("satellite", "2A"), ("sensor", "MSI")) for i in (1, 2)}
    dates = {"acquisition_date_img1": first, "acquisition_date_img2": second}
    return xr.Dataset(
        {
            "vx": (("y", "x"), vx, attrs),
            "vy": (("y", "x"), -vx, {**attrs, "error": 4.5, "_FillValue": np.int16(32767)}),
            "v": (("y", "x"), vx, attrs),
            "chip_size_width": (("y", "x"), np.full(shape, 240, np.uint16), {"_FillValue": np.uint16(0)}),
            "interp_mask": (("y", "x"), np.zeros(shape, np.uint8), {"_FillValue": np.uint8(0)}),
            "mapping": ((), "", dict(grid.mapping(box).attrs)),
            "img_pair_info": ((), "", {**codes, **dates, "id_img1": f"one {value}", "id_img2": f"two {value}", **info}),
        },
        grid.coordinates(box),
    )


def moved(rows: int, columns: int, height: int, width: int) -> GeoBox:
    a = BOX.affine
    return GeoBox((height, width), a * Affine.translation(columns, rows), BOX.crs)


@pytest.mark.parametrize("timed", [False, True])
def test_image_pairs_of_several_extents_share_a_grid(tmp_path: Path, timed: bool) -> None:
    boxes = [moved(0, 0, 5, 4), moved(3, 2, 6, 5), moved(-2, 1, 3, 3)]
    paths = []
    for k, box in enumerate(boxes):
        file = granule(box, 100 * (k + 1), f"2020010{k + 1}T10:20:30.25", f"2020020{k + 1}T10:20:30")
        names = ["vx", "vy", "v", "chip_size_width", "interp_mask"]
        file = file.assign({n: file[n].expand_dims("time") for n in names}) if timed else file
        paths.append(tmp_path / f"{k}.nc")
        file.to_netcdf(paths[-1])
    velocity = og.open_velocity(paths)
    assert_contract(velocity)
    assert dict(velocity.sizes) == {"mid_date": 3, "y": 11, "x": 7}
    assert velocity["x"].values[0] == BOX.affine.c + 60
    assert velocity["y"].values[0] == BOX.affine.f + 240 - 60
    expected = np.full((3, 11, 7), np.nan)
    for k, (row, column, height, width) in enumerate([(2, 0, 5, 4), (5, 2, 6, 5), (0, 1, 3, 3)]):
        expected[k, row : row + height, column : column + width] = 100 * (k + 1)
        expected[k, row, column] = np.nan
    np.testing.assert_array_equal(velocity["vx"].values, expected)
    assert np.isnan(velocity["vx"].chunk({"y": 4, "x": 3})[1].values[:5]).all()
    assert velocity["acquisition_date_img1"].values[0] == np.datetime64("2020-01-01T10:20:30.25", "ns")
    assert velocity["vx_error"].values.tolist() == [3.5] * 3
    assert velocity["vy_error"].values.tolist() == [4.5] * 3
    assert velocity["vx_stable_shift"].values.tolist() == [-1.5] * 3
    assert np.isnan(velocity["vx_error_slow"].values).all()
    assert velocity["image_id2"].values.tolist() == ["two 100", "two 200", "two 300"]
    back = og.open_velocity(og.write(velocity, tmp_path / "v.zarr", progress=False))
    np.testing.assert_array_equal(back["vx"].values, expected)


def test_image_pairs_off_the_lattice_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a.nc", tmp_path / "b.nc"]
    granule(BOX, 1, "20200101", "20200201").to_netcdf(paths[0])
    other = GeoBox((4, 4), Affine(120, 0, 7e5, 0, -120, 3.4e6), BOX.crs)
    granule(other, 1, "20200101", "20200201").to_netcdf(paths[1])
    with pytest.raises(GridError, match=r"must lie on the lattice.*ogive\.fuse"):
        og.open_velocity(paths)
    with pytest.raises(StoreError, match="at least one file"):
        og.open_velocity([])


@pytest.mark.real
def test_real_pair_of_version_1_flows_to_the_sea(data: Path) -> None:
    """Pine Island Glacier: the file has the later image first, its velocity counts forward in time."""
    path = next((data / "timeseries").glob("LE07*.nc"))
    velocity = og.open_velocity(path)
    assert_contract(velocity)
    assert velocity["acquisition_date_img1"].values.tolist() == np.array(["2012-11-04"], "M8[ns]").tolist()
    assert velocity["acquisition_date_img2"].values.tolist() == np.array(["2012-11-18"], "M8[ns]").tolist()
    assert velocity["image_id1"].values[0].startswith("LE07_L1GT_232113_20121104")
    assert velocity["satellite_img1"].values.tolist() == ["7"]
    box = grid.geobox_of(velocity)
    assert str(box.crs) == "EPSG:3031"  # and not an ellipsoid of 6378 m
    assert (box.affine.a, box.affine.c, box.affine.f) == (240, -1716487.5, -209272.5)
    v = velocity.isel(mid_date=0).compute()
    assert int(v["vx"].notnull().sum()) == 163_268
    fast = v["v"].values > 3000
    y, x = np.broadcast_arrays(v["y"].values[:, None], v["x"].values[None])
    outward = (v["vx"].values * x + v["vy"].values * y) / np.hypot(x, y)  # away from the pole, where the coast is
    assert np.median(outward[fast]) > 2000
    assert velocity["vx_error"].values == pytest.approx([186.74])


# --- point tables -----------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_point_tables(data: Path) -> None:
    velocity = og.open_velocity(data / "timeseries" / "itslive_v2_point_columbia_61.1804_-146.9751.csv")
    assert_contract(velocity)
    assert dict(velocity.sizes) == {"mid_date": 2515, "y": 1, "x": 1}
    assert (float(velocity["x"][0]), float(velocity["y"][0])) == pytest.approx((-3117280, 661227), abs=500)
    length = (velocity["acquisition_date_img2"] - velocity["acquisition_date_img1"]) / np.timedelta64(1, "D")
    middle = velocity["date_center"] - velocity["mid_date"]
    assert np.abs(middle / np.timedelta64(1, "D")).max() <= 1
    # Orbits repeat: baselines of one satellite group are multiples of 5 and 6 days.
    two = np.char.startswith(velocity["satellite_img1"].values.astype(str), "2")
    assert (length[two] % 5 == 0).all()
    series = og.invert(velocity, every="30D", start="2014-01-01", end="2020-01-01")
    assert series["v"].shape == (73, 1, 1)


@pytest.mark.real
def test_dates_of_a_point_are_those_of_the_cube(data: Path) -> None:
    """A cube knows its dates: the rule for point tables finds them from what a table has."""
    cube = og.open_velocity(data / SE_TIBET)
    days = np.floor(cube["date_dt"].values.astype(np.float64))
    radar = np.char.startswith(cube["satellite_img1"].values.astype(str), "1")
    first, second = _foreign.point_dates(cube["mid_date"].values, days, 95.97, radar)
    for found, name in ((first, "acquisition_date_img1"), (second, "acquisition_date_img2")):
        right = found == cube[name].values.astype("M8[D]")
        assert right[~radar].all()
        assert right[radar].mean() > 0.95


def test_a_table_of_something_else_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("mid_date,v\n2020-01-01,3\n")
    with pytest.raises(StoreError, match=r"columns .*vx_error.* are missing.*understood are"):
        og.open_velocity(tmp_path / "a.csv")
    with pytest.raises(StoreError, match="does not exist"):
        og.open_velocity(tmp_path / "b.csv")


# --- TICOI ------------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_ticoi_series(data: Path) -> None:
    path = data / "cubes" / "ticoi_argentiere" / "Argentiere_example_interp.nc"
    series, raw = og.open_velocity(path), xr.open_dataset(path, decode_cf=False)
    assert series.attrs["kind"] == "series"
    assert dict(series.sizes) == {"time": 78, "y": 31, "x": 41, "bnds": 2}
    np.testing.assert_array_equal(series["vx"].values, raw["vx"].transpose("mid_date", "y", "x").astype(np.float32))
    assert series["time_bnds"].values[[0, -1]].astype("M8[D]").astype(str).tolist() == [
        ["2015-07-30", "2015-08-29"], ["2021-11-25", "2021-12-25"],
    ]  # fmt: skip
    gap = np.isnan(series["vx"].values)
    assert np.array_equal((series["flag"].values & flags.GAP) > 0, gap)
    assert str(grid.geobox_of(series).crs) == "EPSG:32632"
    assert series["vx"].attrs["units"] == "meter/year"


@pytest.mark.parametrize(("unit", "factor"), [("m year-1", 1), ("m/d", 365)])
def test_ticoi_series_of_either_order_and_unit(tmp_path: Path, unit: str, factor: float) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 10, (4, 9, 7)).astype(np.float32)
    values[1, 2, 3] = np.nan
    date = {"calendar": "proleptic_gregorian"}
    centres = {n: (n, v.values.astype(np.float32)) for n, v in grid.coordinates(BOX).items()}
    file = xr.Dataset(
        {
            "vx": (("mid_date", "y", "x"), values, {"units": unit, "grid_mapping": "grid_mapping"}),
            "vy": (("mid_date", "y", "x"), values, {"units": unit}),
            "xcount_x": (("mid_date", "y", "x"), np.full(values.shape, 4, np.int16)),
            "xcount_y": (("mid_date", "y", "x"), np.full(values.shape, 6, np.int16)),
            "error_x": (("mid_date", "y", "x"), np.full(values.shape, 2.0)),
            "error_y": (("mid_date", "y", "x"), np.full(values.shape, 3.0)),
            "date1": ("mid_date", np.arange(4) * 30, {"units": "days since 2020-01-01", **date}),
            "date2": ("mid_date", np.arange(4) * 30, {"units": "days since 2020-01-31", **date}),
            "time_bnds": (("time", "bnds"), np.zeros((4, 2))),
            "grid_mapping": ((), 0, {"crs_wkt": grid.mapping(BOX).attrs["crs_wkt"]}),
        },
        {"mid_date": ("mid_date", np.arange(4) * 30.0, {"units": "days since 2020-01-16"}), **centres},
        {"author": "L. Charrier"},
    )
    file.to_netcdf(tmp_path / "s.nc")
    file.transpose("x", "y", "mid_date", ...).to_netcdf(tmp_path / "t.nc")
    one, two = (og.open_velocity(tmp_path / f"{n}.nc").compute() for n in "st")
    xr.testing.assert_equal(one.drop_attrs(), two.drop_attrs())
    np.testing.assert_allclose(one["vx"], values * factor, rtol=1e-6)
    np.testing.assert_allclose(one["vy_error"], 3 * factor)
    assert np.nanmax(one["count"]) == np.nanmin(one["count"]) == 5
    assert one["flag"].values[1, 2, 3] == flags.GAP
    assert one["time"].values[1] == np.datetime64("2020-02-15", "ns")
    assert grid.geobox_of(one).affine.almost_equals(BOX.affine, 0.5)  # float32 coordinates of 3.4 million
    file["vx"].attrs["units"] = "furlong/fortnight"
    file.to_netcdf(tmp_path / "u.nc")
    with pytest.raises(StoreError, match=r"unknown unit.*furlong"):
        og.open_velocity(tmp_path / "u.nc")


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_generic_layout_comes_back(tmp_path: Path, suffix: str) -> None:
    velocity, _ = velocity_cube("100")
    velocity = velocity.assign_coords(mission_img1=("mid_date", np.where(velocity["satellite_img1"] == "8", "L", "S")))
    back = og.open_velocity(export.to_ticoi(velocity, tmp_path / f"v{suffix}"))
    assert_contract(back)
    assert np.nanmax(np.abs(back["vx"].values - velocity["vx"].values)) <= 0.001
    assert (back["satellite_img1"].values == velocity["satellite_img1"].values).all()
    np.testing.assert_array_equal(back["vx_error"], velocity["vx_error"])
    np.testing.assert_array_equal(back["acquisition_date_img2"], velocity["acquisition_date_img2"])


# --- what is not understood -------------------------------------------------------------------------------------------


def test_unknown_layouts_say_what_was_found(tmp_path: Path) -> None:
    xr.Dataset({"flags": ("y", np.zeros(3))}).to_zarr(tmp_path / "a.zarr", zarr_format=2)
    with pytest.raises(
        StoreError, match=r"dimensions \{'y': 3\}, variables flags.*understood are ogive stores; ITS_LIVE"
    ):
        og.open_velocity(tmp_path / "a.zarr")
    (tmp_path / "text.nc").write_text("no netCDF")
    with pytest.raises(StoreError, match="cannot be read"):
        og.open_velocity(tmp_path / "text.nc")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="is not an ogive store"):
        og.open_velocity(tmp_path / "folder")
    with pytest.raises(StoreError, match="does not exist"):
        og.open_velocity(tmp_path / "nothing.zarr")
    cube = itslive(np.random.default_rng(1)).drop_vars("mapping")
    del cube.attrs["projection"]
    cube.to_zarr(tmp_path / "c.zarr", zarr_format=2)
    with pytest.raises(GridError, match="has no coordinate system"):
        og.open_velocity(tmp_path / "c.zarr")
