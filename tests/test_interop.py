"""Our cubes in the tools of others: TICOI 0.1.2, itslive-py 0.7.4, GDAL; and chunks that were never written."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyproj
import pytest
import rasterio
import xarray as xr

import ogive as og
from ogive import export, flags, grid
from ogive.testing.velocity_cubes import velocity_cube

ITS_LIVE = "ITS_LIVE, a NASA MEaSUREs project (its-live.jpl.nasa.gov)"
# The warnings of other packages are theirs to mend.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def velocity() -> xr.Dataset:
    """The synthetic cube N = 100: whole m/yr, so that many components are exactly 0."""
    cube, _ = velocity_cube("100")
    mission = np.where(cube["satellite_img1"] == "8", "L", "S")
    sensor = np.where(cube["satellite_img1"] == "8", "C", "MSI")
    codes = {f"{n}_img{k}": ("mid_date", v) for n, v in (("mission", mission), ("sensor", sensor)) for k in (1, 2)}
    # In a random order: no reader may rely on sorted pairs.
    order = np.random.default_rng(1).permutation(100)
    return cube.assign_coords(codes).isel(mid_date=order)


def ticoi(path: Path) -> Any:
    module = pytest.importorskip("ticoi.cube_data_classxr")
    cube = module.CubeDataClass()
    cube.load(str(path))
    return cube


def assert_same_pairs(cube: Any, velocity: xr.Dataset, atol: float) -> None:
    """Every observation is there, under its dates, at its place."""
    ours = velocity.sortby(["acquisition_date_img1", "acquisition_date_img2"])
    theirs = cube.ds.sortby(["date1", "date2"])
    for name, given in (("vx", "vx"), ("vy", "vy"), ("date1", "acquisition_date_img1"), ("errorx", "vx_error")):
        values, expected = theirs[name].values, ours[given].values
        if name == "date1":
            assert np.abs(values - expected).max() <= np.timedelta64(2, "us")
        else:
            np.testing.assert_allclose(values, expected, rtol=1e-6, atol=atol)
    np.testing.assert_array_equal(theirs["x"], ours["x"])
    np.testing.assert_array_equal(theirs["y"], ours["y"])
    assert set(np.unique(cube.ds["sensor"].values)) == {"Sentinel-2", "Landsat-8"}
    assert pyproj.CRS(cube.ds.attrs["proj4"]).to_epsg() == 32645
    assert cube.ds.rio.crs.to_epsg() == 32645


def test_ticoi_opens_the_itslive_layout(velocity: xr.Dataset, tmp_path: Path) -> None:
    cube = ticoi(export.to_itslive(velocity, tmp_path / "cube.zarr", author=ITS_LIVE))
    assert cube.author == "ITS_LIVE"
    assert_same_pairs(cube, velocity, 0)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_ticoi_opens_its_generic_layout(velocity: xr.Dataset, tmp_path: Path, suffix: str) -> None:
    cube = ticoi(export.to_ticoi(velocity, tmp_path / f"cube{suffix}"))
    assert (cube.author, cube.source) == ("ogive", "ogive")
    at_rest = ((velocity["vx"] == 0) | (velocity["vy"] == 0)).sum()
    assert at_rest > 100  # that loader would have deleted them
    assert_same_pairs(cube, velocity, 0.0011)


def test_ticoi_inverts_what_we_export(velocity: xr.Dataset, tmp_path: Path) -> None:
    """One pixel through both chains: the same glacier comes out."""
    core = pytest.importorskip("ticoi.core")
    cube = ticoi(export.to_ticoi(velocity, tmp_path / "cube.nc"))
    x, y = float(velocity["x"][6]), float(velocity["y"][6])
    prior, _ = cube.filter_cube_before_inversion(
        smooth_method="savgol", s_win=3, t_win=90, sigma=3, order=3, proj=cube.ds.proj4, regu="1accelnotnull",
        delete_outliers={"mz_score": 3.5}, verbose=False,
    )  # fmt: skip
    result = core.process(cube, x, y, str(tmp_path), obs_filt=prior, proj=cube.ds.proj4, returned="invert", conf=False)
    result = result[0] if isinstance(result, list | tuple) else result
    assert len(result) > 20
    theirs = np.hypot(result["result_dx"].sum(), result["result_dy"].sum())
    edges = [[str(result["date1"].min()), str(result["date2"].max())]]
    ours = og.invert(velocity.isel(y=[6], x=[6]), every=np.array(edges))
    days = (pd.Timestamp(edges[0][1]) - pd.Timestamp(edges[0][0])).days
    assert theirs == pytest.approx(float(ours["v"][0, 0, 0]) * days / 365, rel=0.05)


def test_ticoi_opens_a_series(velocity: xr.Dataset, tmp_path: Path) -> None:
    series = og.invert(velocity.isel(y=slice(4), x=slice(4)), every="60D")
    cube = ticoi(export.to_ticoi(series, tmp_path / "series.nc"))
    np.testing.assert_allclose(cube.ds["vx"].values, series["vx"].values)
    np.testing.assert_allclose(cube.ds["errorx"].values, series["vx_error"].values)
    np.testing.assert_array_equal(cube.ds["date2"].values, series["time_bnds"].values[:, 1])


def test_itslive_exports_our_cube(velocity: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cubes = pytest.importorskip("itslive.velocity_cubes._cubes")
    path = export.to_itslive(velocity, tmp_path / "cube.zarr")
    found = [{"properties": {"zarr_url": str(path), "epsg": "32645"}}]
    monkeypatch.setattr(cubes, "find_by_point", lambda lon, lat: found)
    x, y = float(velocity["x"][4]), float(velocity["y"][7])
    lon, lat = pyproj.Transformer.from_crs(32645, 4326, always_xy=True).transform(x, y)
    names = ["v", "v_error", "vx", "vx_error", "vy", "vy_error", "date_dt", "satellite_img1", "mission_img1"]
    (answer,) = cubes.get_time_series([(lon, lat)], names)
    assert answer["returned_point_projected_coordinates"]["coords"] == (x, y)
    assert answer["returned_point_offset_from_requested_in_projection_meters"] < 1
    np.testing.assert_array_equal(answer["time_series"]["vx"].values, velocity["vx"].values[:, 7, 4])
    cubes.export_csv([(lon, lat)], names, outdir=str(tmp_path / "csv"))
    (table,) = (tmp_path / "csv").glob("*.csv")
    there = np.isfinite(velocity["vx"].values[:, 7, 4])
    assert len(pd.read_csv(table)) == there.sum()
    back = og.open_velocity(table)  # and from their table into ours
    np.testing.assert_array_equal(back["vx"].values[:, 0, 0], velocity["vx"].values[there, 7, 4])
    for k in (1, 2):
        ours = velocity[f"acquisition_date_img{k}"].values[there].astype("M8[D]")
        assert (back[f"acquisition_date_img{k}"].values == ours).all()
    cubes.export_netcdf([(lon, lat)], names, outdir=str(tmp_path / "nc"))
    with xr.open_dataset(next((tmp_path / "nc").glob("*.nc")), decode_timedelta=False) as point:
        assert point["v"].size == 100


def test_gdal_opens_ours(velocity: xr.Dataset, tmp_path: Path) -> None:
    box = grid.geobox_of(velocity)
    stores = [f'ZARR:"{export.to_itslive(velocity, tmp_path / "i.zarr")}":/vx', -32767]
    netcdf = [f'NETCDF:"{export.to_ticoi(velocity, tmp_path / "t.nc")}":vx', np.nan]
    for name, nodata in (stores, netcdf):
        try:
            image = rasterio.open(name)
        except rasterio.errors.RasterioIOError:
            pytest.skip(f"this GDAL does not open {name.split(':', maxsplit=1)[0]}")
        with image:
            assert image.crs.to_epsg() == 32645
            assert np.allclose(tuple(image.transform), tuple(box.affine), rtol=0, atol=1e-6)
            assert np.array_equal(image.nodata, nodata, equal_nan=True)
            band = image.read(5, masked=True)
            np.testing.assert_array_equal(band.mask, np.isnan(velocity["vx"].values[4]))
            np.testing.assert_allclose(band.compressed(), velocity["vx"].values[4][~band.mask], atol=0.0011)


def test_chunks_that_were_never_written_are_missing(velocity: xr.Dataset, tmp_path: Path) -> None:
    """Zarr v2 (for others) and v3 (ours): what is not there is NaN for everyone, never 0 m/yr."""
    layouts = {
        "itslive": export.to_itslive(velocity, tmp_path / "i.zarr"),
        "ticoi": export.to_ticoi(velocity, tmp_path / "t.zarr"),
    }
    for path in layouts.values():
        for name in ("vx", "vy"):
            (path / name / "0.1.0").unlink()
        plain = xr.open_zarr(path, decode_timedelta=False)
        for ds in (plain, og.open_velocity(path)):
            for name in ("vx", "vy"):
                assert np.isnan(ds[name].values[:, 10:, :10]).all()
                assert np.isfinite(ds[name].values[:, :10]).any()
    stored = velocity.drop_vars("outlier").assign_attrs(
        kind="velocity", schema_version=grid.SCHEMA_VERSION, provenance="{}"
    )
    own = og.write(stored.chunk({"y": 6, "x": 6}), tmp_path / "v.zarr", progress=False)
    for name in ("vx", "flag"):
        (own / name / "c" / "0" / "1" / "0").unlink()
    for ds in (xr.open_zarr(own, consolidated=False, mask_and_scale=True), og.open_velocity(own)):
        assert np.isnan(ds["vx"].values[:, 6:, :6]).all()
        assert np.isfinite(ds["vx"].values[:, :6]).any()
    assert (og.open_velocity(own)["flag"].values[:, 6:, :6] == flags.NOT_COMPUTED).all()


@pytest.mark.real
def test_real_clip_opens_in_ticoi_after_us(data: Path, tmp_path: Path) -> None:
    """The re-written mapping of the real clip stops TICOI; through ogive it opens."""
    source = data / "cubes" / "itslive_v2_single_glacier_se_tibet.zarr"
    with pytest.raises(AttributeError, match="proj4text"):
        ticoi(source)
    clip = og.open_velocity(source).isel(mid_date=slice(20_000, 20_400), y=slice(10), x=slice(10))
    cube = ticoi(export.to_itslive(clip, tmp_path / "cube.zarr", author=ITS_LIVE))
    assert cube.ds.rio.crs.to_epsg() == 32646
    assert int(np.isfinite(cube.ds["vx"].values).sum()) == int(np.isfinite(clip["vx"].values).sum()) > 0
