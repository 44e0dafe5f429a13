"""GLAFT: the published numbers of one real map, flow of known strain, and the density against its plain definition."""

from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import geometry_mask
from scipy.signal import medfilt2d

from ogive import glaft
from ogive.errors import GridError, ParameterError
from ogive.testing.velocity_cubes import velocity_cube


def published_map(data) -> dict[str, Any]:
    """The two GeoTIFFs of the paper's quickstart [meter/day] and the polygons on their grid."""
    folder = data / "velocity" / "kaskawulsh_glaft"
    out: dict[str, Any] = {}
    for name in ("vx", "vy"):
        with rasterio.open(folder / f"20180304-20180405_velo-raw_{name}.tif") as file:
            out[name] = np.where(file.read(1) == -9999, np.nan, file.read(1))
            transform = file.transform
    for name, shapes in (("still", "bedrock_V2"), ("ice", "glacier_V1_Kaskawulsh_s_inwardBuffer600m")):
        polygons = gpd.read_file(folder / f"{shapes}.shp").geometry
        out[name] = geometry_mask(polygons, out["vx"].shape, transform, invert=True)
    assert transform.a == -transform.e == 60
    return out


@pytest.mark.real
def test_the_published_numbers_of_kaskawulsh(data) -> None:
    m = published_map(data)
    assert glaft.invalid_fraction(m["vx"], m["vy"]) == pytest.approx(0.0335778, abs=1e-7)
    static = glaft.static_spread(m["vx"], m["vy"], m["still"])
    assert static.count == 46677
    got = (static.x, static.y, static.peak_x, static.peak_y, static.outside, static.bandwidth)
    assert got == pytest.approx((0.150130, 0.159816, -0.019491, -0.024454, 0.070592, 0.147103), abs=1e-6)
    theirs = glaft.strain_spread(m["vx"], m["vy"], m["ice"], (60, 60), published=True)
    assert theirs.count == 32789
    assert (theirs.x, theirs.y, theirs.bandwidth) == pytest.approx((0.00175543, 0.00164571, 0.00117820), abs=1e-8)
    assert (theirs.peak_x, theirs.peak_y, theirs.outside) == pytest.approx((-5.486e-5, 5.486e-5, 0.254903), abs=1e-6)
    ours = glaft.strain_spread(m["vx"], m["vy"], m["ice"], (60, 60))
    assert (8 * ours.x, 8 * ours.y) == pytest.approx((theirs.x, theirs.y), rel=1e-9)
    assert (ours.outside, ours.count) == (theirs.outside, theirs.count)


# --- the spread of a cloud of points ---


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(3, 200), st.sampled_from([0.0, 1e3, 1e25]))
def test_the_density_is_that_of_the_definition(seed, n, far) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(2, 1, n), rng.normal(-3, 2, n)
    x[0] += far
    at_x, at_y, h = np.linspace(-1, 5, 20), np.linspace(-6, 0, 20), 1.3
    rho = ((x[:, None, None] - at_x) ** 2 + (y[:, None, None] - at_y[:, None]) ** 2) / h**2
    expected = np.maximum(0, 1 - rho).sum(0)
    assert expected.max() > 0
    np.testing.assert_allclose(glaft._density(x, y, at_x, at_y, h), expected, rtol=1e-12, atol=1e-12)


def test_the_box_of_a_normal_cloud_and_what_does_not_move_it() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(5, 0.1, 40000), rng.normal(-2, 0.1, 40000)
    core = glaft.spread(x, y)
    assert core.x == pytest.approx(0.2, rel=0.1)  # two standard deviations, and the kernel's own width
    assert core.y == pytest.approx(core.x, rel=0.1)
    assert (core.peak_x, core.peak_y) == pytest.approx((5, -2), abs=0.05)
    assert 0.05 < core.outside < 0.12
    wider = glaft.spread(x, y, z=3)
    assert wider.x == pytest.approx(0.3, rel=0.1)
    assert wider.outside < 0.02
    scaled = glaft.spread(365 * x, 365 * y)
    assert (scaled.x, scaled.peak_y) == pytest.approx((365 * core.x, 365 * core.peak_y))
    # A few mismatches far away are counted, and hardly widen the box.
    x[:400], y[:400] = rng.uniform(3, 7, 400), rng.uniform(-4, 0, 400)
    spoiled = glaft.spread([*x, np.nan], [*y, 0.0])
    assert spoiled.count == 40000
    assert x.std() > 0.14
    assert spoiled.x == pytest.approx(core.x, rel=0.05)
    assert spoiled.outside > 0.009


@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([1.0, 2.0], [3.0, 4.0]), ([1, 2, 3], [5, 5, 5]), ([np.nan] * 9, [1.0] * 9)]
)
def test_no_cloud_has_no_box(x, y) -> None:
    core = glaft.spread(x, y)
    assert core.count == np.isfinite(x).sum()
    assert np.isnan([core.x, core.y, core.peak_x, core.peak_y, core.outside, core.bandwidth]).all()


def test_z_must_be_positive() -> None:
    with pytest.raises(ParameterError, match="z: must be positive"):
        glaft.spread([1.0], [1.0], z=0)


# --- strain along the flow ---


def stream(azimuth: float, stretch: float, shear: float, spacing: tuple[float, float]) -> Any:
    """Flow towards `azimuth` [rad from east, towards north] whose speed grows along it, and to its left."""
    rows, columns = np.mgrid[:60, :70]
    east, north = columns * spacing[1], (59 - rows) * spacing[0]
    along = east * np.cos(azimuth) + north * np.sin(azimuth)
    left = north * np.cos(azimuth) - east * np.sin(azimuth)
    speed = 500 + stretch * along + shear * left
    return speed * np.cos(azimuth), speed * np.sin(azimuth)


@pytest.mark.parametrize("azimuth", np.deg2rad([0, 30, 90, 160, -45, -120]))
@pytest.mark.parametrize("spacing", [(100.0, 100.0), (120.0, 90.0)])
def test_strain_does_not_depend_on_where_the_glacier_flows(azimuth, spacing) -> None:
    vx, vy = stream(azimuth, 3e-3, -0.02, spacing)
    assert np.hypot(vx, vy).min() > 100
    ice = np.ones(vx.shape, bool)
    for published, gain in ((False, 1), (True, 8)):
        along, shear = glaft.along_flow_strain(vx, vy, ice, spacing, published=published)
        inner = np.s_[12:-12, 12:-12]
        np.testing.assert_allclose(along[inner], gain * 3e-3, rtol=1e-9)
        np.testing.assert_allclose(shear[inner], gain * -0.01, rtol=1e-9)
        assert np.isnan(along[[0, -1]]).all()
        assert np.isnan(shear[:, [0, -1]]).all()


def test_nothing_off_the_ice_and_no_gap_takes_part() -> None:
    vx, vy = stream(0.5, 1e-3, 0.01, (100, 100))
    ice = np.zeros(vx.shape, bool)
    ice[10:50, 10:60] = True
    gap = vx.copy()
    gap[30, 30] = np.nan
    spoiled = np.where(ice, gap, 1e6)
    got = glaft.along_flow_strain(spoiled, np.where(ice, vy, 1e6), ice, (100, 100))
    clean = glaft.along_flow_strain(vx, vy, ice, (100, 100))
    known = np.zeros(vx.shape, bool)
    known[11:49, 11:59] = True
    np.testing.assert_array_equal(np.isfinite(clean[0]), known)
    known[29:32, 29:32] = False
    for values, expected in zip(got, clean, strict=True):
        np.testing.assert_array_equal(np.isfinite(values), known)
        inner = np.s_[20:40, 20:50]  # the median sees nothing but ice here, and outvotes the gap
        np.testing.assert_allclose(values[inner][known[inner]], expected[inner][known[inner]], rtol=1e-9)


@pytest.mark.parametrize("width", [1, 5, 9])
def test_the_median_is_padded_with_zeros_as_published(width) -> None:
    a = np.random.default_rng(3).normal(0.3, 1, (20, 17))
    wanted = a > -0.5
    got = glaft._median(a, width, wanted)
    np.testing.assert_array_equal(got, np.where(wanted, medfilt2d(a, width), np.nan))


def test_strain_checks_its_input() -> None:
    one = np.ones((5, 5))
    with pytest.raises(GridError, match="one shape"):
        glaft.along_flow_strain(one, one, np.ones((5, 4), bool), (1, 1))
    with pytest.raises(ParameterError, match="spacing: must be positive"):
        glaft.along_flow_strain(one, one, one > 0, (-1, 1))


# --- a whole cube ---


def test_the_table_of_a_cube_is_that_of_its_maps() -> None:
    cube, _ = velocity_cube("100")
    cube = cube.isel(mid_date=slice(0, 6)).load()
    cube["vx"][1] = np.nan
    still = xr.zeros_like(cube["vx"][0], bool)
    still[:, :5] = True
    table = glaft.metrics(cube.chunk(mid_date=1), still, ~still)
    assert table["pair_id"].tolist() == cube["pair_id"].values.tolist()
    assert table["invalid"][1] == 1
    assert table["static_count"][1] == table["strain_count"][1] == 0
    assert np.isnan(table["static_vx"][1])
    vx, vy = cube["vx"].values[2], cube["vy"].values[2]
    expected = glaft.static_spread(vx, vy, still.values)
    assert expected.count > 20
    row = table.iloc[2]
    assert (row["static_vx"], row["static_peak_vy"]) == (expected.x, expected.peak_y)
    assert (row["static_outside"], row["static_count"]) == (expected.outside, expected.count)
    step = float(cube["x"][1] - cube["x"][0])
    strain = glaft.strain_spread(vx, vy, ~still.values, (step, step))
    assert (row["strain_xx"], row["strain_xy"]) == (strain.x, strain.y)
    theirs = glaft.metrics(cube, still, ~still, published=True)
    np.testing.assert_allclose(theirs["strain_xy"], 8 * table["strain_xy"], rtol=1e-9)
    with pytest.raises(GridError, match="ice: must have the shape"):
        glaft.metrics(cube, still, still[:3])
