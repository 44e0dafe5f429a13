"""Exports are read back with other readers: GDAL (rasterio), xarray, pandas."""

import os
import tracemalloc
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pyproj
import pytest
import rasterio
import xarray as xr
import zarr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odc.geo.geobox import GeoBox

from ogive import _itslive, export, flags, grid
from ogive.errors import ParameterError, StoreError

DATA = Path(os.environ.get("OGIVE_DATA", Path(__file__).parents[2] / "shared" / "data"))
# Edges off the round numbers, as in real cubes: a reader that mixes up centres and edges is caught.
BOX = GeoBox((23, 31), Affine(120, 0, 700_072.5, 0, -120, 3_399_967.5), "EPSG:32646")
PAIRS = 5

# Our own table of what an ITS_LIVE version 2 cube promises: dims, units, stored type, missing value.
TABLE: list[tuple[str, str, str | None, str, float | None]] = [
    ("vx vy v v_error", "tyx", "meter/year", "<i2", -32767),
    ("chip_size_width chip_size_height", "tyx", "m", "<u2", 0),
    ("interp_mask", "tyx", None, "|u1", 255),
    ("vx_error vy_error vx_stable_shift vy_stable_shift", "t", "meter/year", "<f4", -32767),
    ("stable_count_stationary", "t", "count", "<u2", None),
    ("stable_shift_flag", "t", None, "|u1", None),
    ("date_dt", "t", "days", "<f4", np.nan),
    ("acquisition_date_img1 acquisition_date_img2 date_center mid_date", "t", "days since 1970-01-01", "<f8", np.nan),
    ("mission_img1 mission_img2", "t", None, "<U1", None),
    ("satellite_img1 satellite_img2", "t", None, "<U2", None),
    ("sensor_img1 sensor_img2", "t", None, "<U3", None),
]
LAYOUT = {name: row for names, *row in TABLE for name in names.split()}
STANDARD_NAMES = {
    "vx": "land_ice_surface_x_velocity",
    "vy": "land_ice_surface_y_velocity",
    "v": "land_ice_surface_velocity",
    "interp_mask": "interpolated_value_mask",
    "acquisition_date_img1": "image1_acquition_date",
    "date_dt": "image_pair_time_separation",
    "mid_date": "image_pair_center_date_with_time_separation",
}


@pytest.fixture
def velocity() -> xr.Dataset:
    rng = np.random.default_rng(11)
    dims, shape = ("mid_date", "y", "x"), (PAIRS, *map(int, BOX.shape))
    vx, vy = (rng.normal(100, 40, shape).astype(np.float32) for _ in "xy")
    flag = np.where(rng.random(shape) < 0.2, flags.LOW_CORRELATION, 0).astype(np.uint16)
    flag[rng.random(shape) < 0.1] |= flags.NOT_REFINED
    bad = flags.invalid(flag)
    vx[bad], vy[bad] = np.nan, np.nan
    # Unsorted, with a repeated middle date, and a time of day.
    first = np.array(["2020-07-01T05:06:07", "2019-03-04", "2019-03-04", "2021-01-01", "2018-12-31"], "datetime64[ns]")
    second = first + np.array([16, 32, 32, 365, 48]) * np.timedelta64(1, "D")
    center = first + (second - first) // 2
    speed = {"units": "meter/year", "grid_mapping": "mapping"}
    return xr.Dataset(
        {
            "vx": (dims, vx, {**speed, "standard_name": "land_ice_surface_x_velocity"}),
            "vy": (dims, vy, {**speed, "standard_name": "land_ice_surface_y_velocity"}),
            "v": (dims, np.hypot(vx, vy), speed),
            "flag": (dims, flag, flags.attributes()),
            "chip_size_width": (dims, np.where(bad, 0, 480).astype(np.uint16), {"units": "m"}),
            "chip_size_height": (dims, np.where(bad, 0, 240).astype(np.uint16), {"units": "m"}),
            "interp_mask": (dims, (rng.random(shape) < 0.1).astype(np.uint8)),
            "vx_error": ("mid_date", np.arange(3, 3 + PAIRS).astype(np.float32), {"units": "meter/year"}),
            "vy_error": ("mid_date", np.arange(4, 4 + PAIRS).astype(np.float32), {"units": "meter/year"}),
            **{f"{c}_stable_shift": ("mid_date", np.full(PAIRS, 1.5, np.float32)) for c in ("vx", "vy")},
            "stable_count_stationary": ("mid_date", np.full(PAIRS, 700, np.uint16)),
            "stable_shift_flag": ("mid_date", np.ones(PAIRS, np.uint8)),
        },
        {
            **grid.coordinates(BOX),
            "mapping": grid.mapping(BOX),
            "mid_date": center,
            "date_center": ("mid_date", center),
            "acquisition_date_img1": ("mid_date", first),
            "acquisition_date_img2": ("mid_date", second),
            "date_dt": ("mid_date", np.array([16, 32, 32, 365, 48], np.float32), {"units": "days"}),
            "pair_id": ("mid_date", np.arange(PAIRS)),
            **{f"mission_img{i}": ("mid_date", ["S", "S", "L", "L", "S"]) for i in (1, 2)},
            **{f"satellite_img{i}": ("mid_date", ["2A", "2B", "8", "9", "2A"]) for i in (1, 2)},
            **{f"sensor_img{i}": ("mid_date", ["MSI", "MSI", "C", "C", "MSI"]) for i in (1, 2)},
        },
        {"provenance": '{"ogive": "0.1.0"}', "schema_version": "1", "year_length_days": 365, "is_test": True},
    )


@pytest.fixture
def series(velocity: xr.Dataset) -> xr.Dataset:
    time = np.array(["2020-01-16", "2020-02-15"], "datetime64[ns]")
    half = np.timedelta64(15, "D")
    rename = velocity[["vx", "vy", "v", "flag"]].isel(mid_date=slice(2)).drop_vars("mid_date").rename(mid_date="time")
    names = [n for n in rename.coords if n not in ("y", "x", "mapping")]
    out = rename.drop_vars(names).assign_coords(time=time)
    out["time_bnds"] = (("time", "bnds"), np.stack([time - half, time + half], -1))
    out["v_error"] = out["v"] * 0 + 5
    out["kappa"] = (("y", "x"), np.ones(BOX.shape, np.float32), {"units": "1"})
    return out


def expected_median(velocity: xr.Dataset, name: str) -> np.ndarray:
    out = np.full(BOX.shape, np.nan, np.float32)
    for cell in np.ndindex(*out.shape):
        column = velocity[name].values[(slice(None), *cell)]
        if np.isfinite(column).any():
            out[cell] = np.median(column[np.isfinite(column)])
    assert np.isfinite(out).mean() > 0.9
    return out


@given(
    hnp.arrays(
        np.float64, st.tuples(st.integers(1, 4), st.integers(1, 7)), elements=st.floats(-1e3, 1e3) | st.just(np.nan)
    )
)
def test_median_valid_is_the_median_of_what_is_there(values: np.ndarray) -> None:
    got = export.median_valid(values)
    for row, median in zip(values, got):
        there = row[np.isfinite(row)]
        assert median == np.median(there) if there.size else np.isnan(median)


def test_flagged_values_never_leave(velocity: xr.Dataset) -> None:
    velocity["vx"] = velocity["vx"].fillna(9e6)  # a value that a careless writer left under a flag
    velocity["vy"] = velocity["vy"].fillna(9e6)
    one = export.map_at(velocity, ["v"], when=0)["v"].values
    assert np.array_equal(np.isnan(one), flags.invalid(velocity["flag"].values[0]))
    assert np.nanmax(one) < 1e4


def test_map_at_rejects_what_is_not_a_map(velocity: xr.Dataset) -> None:
    with pytest.raises(ParameterError, match=r"variable 'vx_error'.*choose of"):
        export.map_at(velocity, ["vx_error"])
    with pytest.raises(ParameterError, match="flags have no median"):
        export.map_at(velocity, ["flag"])
    with pytest.raises(ParameterError, match=r"-5 \.\.\. 4 \(found 5\)"):
        export.map_at(velocity, ["v"], when=5)


@pytest.mark.parametrize("cog", [True, False])
def test_geotiff_round_trip(velocity: xr.Dataset, tmp_path: Path, cog: bool) -> None:
    path = export.to_geotiff(velocity.chunk({"mid_date": 2, "y": 10}), tmp_path / "v.tif", cog=cog)
    with rasterio.open(str(path)) as image:
        assert image.crs.to_epsg() == 32646
        assert tuple(image.transform) == tuple(BOX.affine)
        assert image.dtypes == ("float32",)
        assert np.isnan(image.nodata)
        assert image.units == ("meter/year",)
        assert image.tags()["provenance"] == '{"ogive": "0.1.0"}'
        assert image.tags()["composite"] == "median over time"
        assert (image.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG") is cog
        got = image.read(1)
    expected = np.hypot(expected_median(velocity, "vx"), expected_median(velocity, "vy"))
    assert np.allclose(got, expected, rtol=1e-6, equal_nan=True)


def test_geotiff_bands_are_described(velocity: xr.Dataset, tmp_path: Path) -> None:
    names = ["vx", "vy", "flag"]
    path = export.to_geotiff(velocity, tmp_path / "v.tif", variable=names, when=-1)
    with rasterio.open(str(path)) as image:
        assert image.descriptions == ("vx", "vy", "flag")
        for band, name in enumerate(names, 1):
            expected = velocity[name].values[-1].astype(np.float32)
            assert np.isfinite(expected).any()
            assert np.array_equal(image.read(band), expected, equal_nan=True)


def test_large_cog_has_overviews(tmp_path: Path) -> None:
    box = GeoBox((600, 700), BOX.affine, BOX.crs)
    field = (("y", "x"), np.full((600, 700), 3.0, np.float32))
    data = xr.Dataset({"vx": field, "vy": field}, {**grid.coordinates(box), "mapping": grid.mapping(box)})
    with rasterio.open(str(export.to_geotiff(data, tmp_path / "v.tif"))) as image:
        assert image.overviews(1) == [2]
        assert image.block_shapes == [(512, 512)]


def test_netcdf_round_trip(velocity: xr.Dataset, tmp_path: Path) -> None:
    path = export.to_netcdf(velocity.chunk({"mid_date": 2, "y": 10, "x": 10}), tmp_path / "v.nc")
    options = {"engine": "h5netcdf", "decode_coords": "all", "decode_timedelta": False}
    with xr.open_dataset(path, **options) as back:
        assert back.sizes == velocity.sizes
        assert back["vx"].notnull().mean() > 0.5
        for name in ("vx", "vy", "v", "flag", "interp_mask", "vx_error", "x", "y", "pair_id", "date_dt"):
            assert back[name].dtype == velocity[name].dtype, name
            assert np.array_equal(back[name].values, velocity[name].values, equal_nan=back[name].dtype.kind == "f"), (
                name
            )
        for name in ("mid_date", "acquisition_date_img1", "acquisition_date_img2"):
            late = np.abs(back[name].values - velocity[name].values)
            assert late.max() <= np.timedelta64(1, "us")
        assert back["satellite_img1"].values.tolist() == ["2A", "2B", "8", "9", "2A"]
        assert grid.geobox_of(back) == BOX
        assert back["vx"].attrs["units"] == "meter/year"
        assert back["vx"].encoding["grid_mapping"] == "mapping"
        assert np.isnan(back["vx"].encoding["_FillValue"])
        assert back["flag"].attrs["flag_meanings"].split()[0] == "outside_image"
        assert back.attrs["provenance"] == velocity.attrs["provenance"]
    with xr.open_dataset(path, engine="h5netcdf", mask_and_scale=False, decode_times=False) as raw:
        assert raw["mid_date"].attrs["units"] == "days since 1970-01-01"
        assert (raw["chip_size_width"].values == velocity["chip_size_width"].values).all()
        assert raw["chip_size_width"].attrs["_FillValue"] == 0
        assert "_FillValue" not in raw["flag"].attrs


def test_netcdf_opens_in_gdal(velocity: xr.Dataset, tmp_path: Path) -> None:
    path = export.to_netcdf(velocity, tmp_path / "v.nc")
    with rasterio.open(f"netcdf:{path}:vx") as image:
        assert image.crs.to_epsg() == 32646
        assert np.allclose(tuple(image.transform), tuple(BOX.affine), rtol=0, atol=1e-6)
        assert np.isnan(image.nodata)
        assert image.count == PAIRS
        assert np.array_equal(image.read(2), velocity["vx"].values[1], equal_nan=True)


def test_netcdf_bounds_follow_cf(series: xr.Dataset, tmp_path: Path) -> None:
    path = export.to_netcdf(series, tmp_path / "s.nc")
    with xr.open_dataset(path, engine="h5netcdf", decode_times=False) as raw:
        assert raw["time"].attrs["bounds"] == "time_bnds"
        assert "units" not in raw["time_bnds"].attrs
        widths = np.diff(raw["time_bnds"].values, axis=1).ravel()
        assert widths.tolist() == [30, 30]
        assert raw["time"].values.tolist() == [18277, 18307]
    with xr.open_dataset(path, engine="h5netcdf") as back:
        assert np.array_equal(back["time_bnds"].values, series["time_bnds"].values)
        assert (back["kappa"].values == 1).all()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_table_of_all_valid_pixels(velocity: xr.Dataset, tmp_path: Path, suffix: str) -> None:
    lazy = velocity.chunk({"mid_date": 2, "y": 10, "x": 31})
    path = export.to_points(lazy, tmp_path / f"v{suffix}")
    dates = ["acquisition_date_img1", "acquisition_date_img2", "mid_date"]
    table = pd.read_csv(path, parse_dates=dates) if suffix == ".csv" else pd.read_parquet(path)
    order = ["pair_id", *dates, "x", "y", "lon", "lat", "vx", "vy", "v", "vx_error", "vy_error", "flag"]
    assert list(table.columns) == order
    valid = ~flags.invalid(velocity["flag"].values)
    assert len(table) == valid.sum() > 2000
    # Put every row back into its cell: nothing is lost, doubled or moved.
    column = ((table["x"] - 700_132.5) / 120).round().astype(int)
    row = ((3_399_907.5 - table["y"]) / 120).round().astype(int)
    cube = np.full(valid.shape, np.nan, np.float32)
    cube[table["pair_id"], row, column] = table["vx"]
    assert np.array_equal(cube, velocity["vx"].values, equal_nan=True)
    assert (table["vx_error"] == table["pair_id"] + 3).all()
    first = velocity["acquisition_date_img1"].values[table["pair_id"]]
    assert (table["acquisition_date_img1"].to_numpy().astype("datetime64[us]") == first.astype("datetime64[us]")).all()
    inverse = pyproj.Transformer.from_crs(4326, 32646, always_xy=True)
    x, y = inverse.transform(table["lon"].to_numpy(), table["lat"].to_numpy())
    assert np.abs(x - table["x"]).max() < 0.02
    assert np.abs(y - table["y"]).max() < 0.02


def test_table_of_named_points_keeps_invalid_times(velocity: xr.Dataset, tmp_path: Path) -> None:
    points = {"low": (700_072.5 + 5 * 120 + 3, 3_399_967.5 - 7 * 120 - 3), "corner": (700_073.0, 3_399_967.0)}
    table = pd.read_csv(export.to_points(velocity, tmp_path / "p.csv", points))
    assert table["name"].tolist() == ["low"] * PAIRS + ["corner"] * PAIRS
    low = table[table["name"] == "low"]
    assert np.array_equal(low["vx"].to_numpy(np.float32), velocity["vx"].values[:, 7, 5], equal_nan=True)
    assert low["flag"].tolist() == velocity["flag"].values[:, 7, 5].tolist()
    assert low["x"].unique().tolist() == [700_732.5]  # the centre of the cell


def test_table_of_a_series(series: xr.Dataset, tmp_path: Path) -> None:
    table = pd.read_csv(export.to_points(series, tmp_path / "s.csv", {"A": (701_000.0, 3_399_000.0)}))
    assert list(table.columns) == ["name", "time", "x", "y", "lon", "lat", "vx", "vy", "v", "v_error", "flag"]
    assert table["time"].str[:10].tolist() == ["2020-01-16", "2020-02-15"]


def test_bad_points_write_nothing(velocity: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="point 'sea'"):
        export.to_points(velocity, tmp_path / "p.csv", {"sea": (0.0, 0.0)})
    with pytest.raises(ParameterError, match=r"\.csv or \.parquet"):
        export.to_points(velocity, tmp_path / "p.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_itslive_layout(velocity: xr.Dataset, tmp_path: Path) -> None:
    path = export.to_itslive(velocity, tmp_path / "cube.zarr", author="The authors")
    store = zarr.open_consolidated(str(path), zarr_format=2)
    assert set(store.array_keys()) == {*LAYOUT, "x", "y", "mapping"}
    dims = {"t": ("mid_date",), "tyx": ("mid_date", "y", "x")}
    for name, (axes, units, dtype, fill) in LAYOUT.items():
        array = store[name]
        attrs = dict(array.attrs)
        assert array.metadata.zarr_format == 2
        assert tuple(attrs["_ARRAY_DIMENSIONS"]) == dims[axes], name
        assert attrs.get("units") == units, name
        assert array.dtype == np.dtype(dtype), name
        if axes == "tyx":
            assert array.chunks == (PAIRS, 10, 10)
            assert attrs["grid_mapping"] == "mapping"
            assert array.fill_value == attrs["missing_value"] == fill, name
        elif fill is not None:
            assert array.fill_value == fill or np.isnan(array.fill_value), name
    assert {n: store[n].attrs["standard_name"] for n in STANDARD_NAMES} == STANDARD_NAMES
    mapping = dict(store["mapping"].attrs)
    assert mapping["GeoTransform"] == "700072.5 120.0 0.0 3399967.5 0.0 -120.0"
    assert "+proj=utm +zone=46" in mapping["proj4text"]
    assert mapping["spatial_epsg"] == 32646
    assert {"Conventions", "GDAL_AREA_OR_POINT", "author", "url", "geo_polygon"} <= set(store.attrs)
    assert store.attrs["projection"] == "32646"
    assert store.attrs["author"] == "The authors"
    assert store["v"].compressors[0].cname == "zlib"


def test_itslive_values_with_masking_on_and_off(velocity: xr.Dataset, tmp_path: Path) -> None:
    path = export.to_itslive(velocity.chunk({"mid_date": 1, "y": 7, "x": 9}), tmp_path / "cube.zarr")
    valid = ~flags.invalid(velocity["flag"].values)
    back = xr.open_zarr(path, decode_timedelta=False)
    raw = xr.open_zarr(path, mask_and_scale=False, decode_timedelta=False)
    for name in ("vx", "vy", "v"):
        exact = velocity[name].values
        assert np.array_equal(back[name].values, np.round(exact), equal_nan=True)
        assert np.array_equal(raw[name].values, np.where(valid, np.round(np.nan_to_num(exact)), -32767))
    vx, vy, v = (velocity[n].values for n in ("vx", "vy", "v"))
    ex, ey = (velocity[n].values[:, None, None] for n in ("vx_error", "vy_error"))
    error = np.round(np.sqrt((ex * vx / v) ** 2 + (ey * vy / v) ** 2))
    assert np.abs(back["v_error"].values - error)[valid].max() <= 1
    assert np.isnan(back["v_error"].values[~valid]).all()
    # Measured pixels decode to 0, not to NaN.
    assert np.array_equal(back["interp_mask"].values, velocity["interp_mask"].values)
    assert back["satellite_img2"].values.tolist() == ["2A", "2B", "8", "9", "2A"]
    assert back["date_dt"].values.tolist() == [16, 32, 32, 365, 48]
    assert np.array_equal(back["x"].values, velocity["x"].values)


def test_itslive_dates_carry_the_token(velocity: xr.Dataset, tmp_path: Path) -> None:
    back = xr.open_zarr(export.to_itslive(velocity, tmp_path / "cube.zarr"), decode_timedelta=False)
    token = (back["mid_date"].values - back["date_center"].values) / np.timedelta64(1, "us")
    assert token == pytest.approx([200701, 190304, 190304, 210101, 181231], abs=1)
    late = np.abs(back["date_center"].values - velocity["date_center"].values)
    assert late.max() <= np.timedelta64(1, "us")


def test_itslive_opens_in_gdal(velocity: xr.Dataset, tmp_path: Path) -> None:
    path = export.to_itslive(velocity, tmp_path / "cube.zarr")
    with rasterio.open(f'ZARR:"{path}":/vx') as image:
        assert image.crs.to_epsg() == 32646
        assert np.allclose(tuple(image.transform), tuple(BOX.affine), rtol=0, atol=1e-6)
        assert image.nodata == -32767
        band = image.read(3, masked=True)
        assert band.min() > -200
        assert np.array_equal(band.mask, np.isnan(velocity["vx"].values[2]))


def test_itslive_never_wraps_around(velocity: xr.Dataset, tmp_path: Path) -> None:
    velocity["vx"][0, 0, 0], velocity["vy"][0, 0, 0] = 70_000.0, 1.0
    velocity["vx"][0, 0, 1], velocity["vy"][0, 0, 1] = 0.0, 0.0
    velocity["flag"][0, 0, :2] = 0
    back = xr.open_zarr(export.to_itslive(velocity, tmp_path / "cube.zarr"), decode_timedelta=False)
    assert np.isnan(back["vx"].values[0, 0, 0])
    assert np.isnan(back["v"].values[0, 0, 0])
    # At rest there is no direction: the error is the mean of both components.
    assert back["v"].values[0, 0, 1] == 0
    assert back["v_error"].values[0, 0, 1] == round(np.sqrt((3**2 + 4**2) / 2))


def test_itslive_rejects_codes_that_do_not_fit(velocity: xr.Dataset, tmp_path: Path) -> None:
    velocity["sensor_img1"] = ("mid_date", ["sentinel-2"] * PAIRS)
    with pytest.raises(ParameterError, match="sensor_img1: holds at most 3 characters"):
        export.to_itslive(velocity, tmp_path / "cube.zarr")
    with pytest.raises(ParameterError, match="at least one pair"):
        export.to_itslive(velocity.isel(mid_date=slice(0)), tmp_path / "cube.zarr")
    with pytest.raises(ParameterError, match="vx_error"):
        export.to_itslive(velocity.drop_vars("vx_error"), tmp_path / "cube.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real
def test_itslive_real_cube_round_trip(tmp_path: Path) -> None:
    """Pairs of the public cube come out as they went in: integers, names, dates with their token."""
    source = DATA / "cubes" / "itslive_v2_single_glacier_se_tibet.zarr"
    cube = xr.open_zarr(source, decode_timedelta=False, chunks=None)
    counts = cube["v"].isel(mid_date=slice(20_000, 24_000)).notnull().sum(("y", "x")).values
    pick = 20_000 + np.argsort(-counts, kind="stable")[:8]
    few = cube.isel(mid_date=pick).load()
    box = GeoBox(few["v"].shape[1:], Affine(120, 0, float(few.x[0]) - 60, 0, -120, float(few.y[0]) + 60), "EPSG:32646")
    few = few.drop_vars("mapping").assign_coords(mapping=grid.mapping(box))
    back = xr.open_zarr(export.to_itslive(few, tmp_path / "c.zarr"), decode_timedelta=False)
    assert counts.max() > 500
    for name in ("vx", "vy"):
        assert np.array_equal(back[name].values, few[name].values, equal_nan=True)
    # v is rounded from the norm of rounded components here, from exact ones there.
    assert np.nanmax(np.abs(back["v"].values - few["v"].values)) <= 1
    late = np.abs(back["mid_date"].values - few["mid_date"].values)
    assert late.max() <= np.timedelta64(2, "us")
    assert (back["satellite_img1"].values == few["satellite_img1"].values).all()


WRITERS = [
    (export.to_geotiff, "v.tif"),
    (export.to_netcdf, "v.nc"),
    (export.to_points, "v.csv"),
    (export.to_points, "v.parquet"),
    (export.to_itslive, "v.zarr"),
]


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_existing_target_needs_overwrite(velocity: xr.Dataset, tmp_path: Path, write: object, name: str) -> None:
    assert callable(write)
    path = tmp_path / name
    before = velocity.copy(deep=True)
    assert write(velocity, path) == path
    with pytest.raises(StoreError, match="overwrite=True"):
        write(velocity, path)
    assert write(velocity, path, overwrite=True) == path
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert velocity.identical(before)
    with pytest.raises(StoreError, match="folder must exist"):
        write(velocity, tmp_path / "no" / name)


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_failure_leaves_the_old_copy(velocity: xr.Dataset, tmp_path: Path, write: object, name: str) -> None:
    assert callable(write)
    path = tmp_path / name
    write(velocity, path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    before = [f.read_bytes() for f in files]

    def fail(block: np.ndarray) -> np.ndarray:
        raise OSError("the disk is gone")

    lazy = velocity.chunk({"mid_date": 2})
    broken = lazy.assign(
        vx=lazy["vx"].copy(data=da.map_blocks(fail, lazy["vx"].data, meta=np.empty((0, 0, 0), np.float32)))
    )
    with pytest.raises(OSError, match="disk is gone"):
        write(broken, path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert len(before) >= 1
    assert [f.read_bytes() for f in files] == before


STREAMS = [WRITERS[1], WRITERS[2], WRITERS[4]]


@pytest.mark.parametrize(("write", "name"), STREAMS)
def test_cubes_pass_through_in_blocks(
    tmp_path: Path, write: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory stays well below one variable of the cube."""
    assert callable(write)
    pairs, size = 48, 200
    box = GeoBox((size, size), BOX.affine, BOX.crs)

    def make(block_info: dict[None, dict[str, tuple[int, ...]]]) -> np.ndarray:
        out = np.full(block_info[None]["chunk-shape"], np.nan, np.float32)
        out[:, ::20, ::20] = 1.0
        return out

    chunks = ((24,) * 2, (40,) * 5, (40,) * 5)
    lazy = da.map_blocks(make, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    dates = pd.date_range("2020-01-01", periods=pairs).to_numpy().astype("datetime64[ns]")
    dims = ("mid_date", "y", "x")
    data = xr.Dataset(
        {
            "vx": (dims, lazy),
            "vy": (dims, 2 * lazy),
            **{f"{c}_error": ("mid_date", np.ones(pairs, np.float32)) for c in ("vx", "vy")},
        },
        {
            **grid.coordinates(box),
            "mapping": grid.mapping(box),
            "mid_date": dates,
            "acquisition_date_img1": ("mid_date", dates),
            "acquisition_date_img2": ("mid_date", dates + np.timedelta64(1, "D")),
        },
    )
    monkeypatch.setattr(_itslive, "_BLOCK_BYTES", 310_000)
    write(data.isel(y=slice(40), x=slice(40)), tmp_path / f"warm_{name}")  # imports and caches
    with dask.config.set(scheduler="synchronous"):
        tracemalloc.start()
        write(data, tmp_path / name)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tmp_path / name).exists()
    assert used < 0.8 * pairs * size**2 * 4, used
