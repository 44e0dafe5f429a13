"""Flow lines through fields whose lines are known, values along lines, maps on other grids."""

import numpy as np
import pandas as pd
import pytest
import shapely
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import ogive as og
from ogive import flags, grid
from ogive.errors import ParameterError
from ogive.testing.velocity_cubes import velocity_cube

BOX = GeoBox((81, 101), Affine(50, 0, 500_000, 0, -50, 5_000_000), "EPSG:32632")
CENTRE = BOX.affine @ (50.5, 40.5)


def field(vx: np.ndarray, vy: np.ndarray) -> xr.Dataset:
    maps = {"vx": (("y", "x"), vx), "vy": (("y", "x"), vy)}
    return xr.Dataset(maps, {**grid.coordinates(BOX), "mapping": grid.mapping(BOX)})


def places() -> tuple[np.ndarray, np.ndarray]:
    """y and x of all cells, from the centre [m]."""
    axes = grid.coordinates(BOX)
    y, x = np.meshgrid(axes["y"].values - CENTRE[1], axes["x"].values - CENTRE[0], indexing="ij")
    return y, x


def test_solid_rotation_gives_circles() -> None:
    """Bilinear interpolation is exact in a linear field, so all that remains is Runge-Kutta's own error."""
    y, x = places()
    line = og.flowline(field(-0.1 * y, 0.1 * x), CENTRE[0] + 1000, CENTRE[1], upstream=1000, downstream=2000 * np.pi)
    radius = np.hypot(line["x"] - CENTRE[0], line["y"] - CENTRE[1])
    np.testing.assert_allclose(radius, 1000, atol=1e-3)
    angle = np.unwrap(np.arctan2(line["y"] - CENTRE[1], line["x"] - CENTRE[0]))
    np.testing.assert_allclose(angle, line["distance"] / 1000, atol=1e-5)
    np.testing.assert_allclose(line["v"], 100, rtol=1e-5)


def test_lines_of_a_stagnation_point_are_hyperbolas() -> None:
    y, x = places()
    line = og.flowline(field(0.2 * x, -0.2 * y), CENTRE[0] + 300, CENTRE[1] + 1200)
    product = (line["x"] - CENTRE[0]) * (line["y"] - CENTRE[1])
    np.testing.assert_allclose(product, 300 * 1200, rtol=1e-3)
    assert line["distance"].iloc[0] < 0 < line["distance"].iloc[-1]
    assert line["y"].is_monotonic_decreasing  # from the highest point to the lowest


def test_a_line_ends_where_nothing_valid_or_only_slow_ice_is() -> None:
    vx, vy = np.full(BOX.shape, 100.0), np.zeros(BOX.shape)
    vx[:, 80:] = np.nan
    vx[:, :20] = 0.5
    line = og.flowline(field(vx, vy), *CENTRE)
    right, left = BOX.affine @ (79.5, 0), BOX.affine @ (19.5, 0)
    assert right[0] - 50 < line["x"].max() <= right[0]
    # Between the last fast and the first slow centre the speed falls from 100 to 0.5.
    assert left[0] <= line["x"].min() < left[0] + 50
    assert line["v"].min() >= 1.0


def test_places_without_a_direction_are_refused() -> None:
    still = field(np.zeros(BOX.shape), np.zeros(BOX.shape))
    with pytest.raises(ParameterError, match="must lie where ice flows"):
        og.flowline(still, *CENTRE)
    with pytest.raises(ParameterError, match="must lie on the grid"):
        og.flowline(still, 0.0, 0.0)
    with pytest.raises(ParameterError, match="must be positive"):
        og.flowline(still, *CENTRE, step=-1)


def test_along_reads_the_cells_and_keeps_flags() -> None:
    velocity, _ = velocity_cube("100")
    velocity["flag"][3, 2, 4] = flags.OUTLIER
    x, y = velocity["x"].values, velocity["y"].values
    for source in (velocity, velocity.chunk({"mid_date": 50, "y": 5, "x": 5})):
        table = og.along(source, [(x[1], y[2]), (x[9], y[2])])
        expected = velocity["vx"].values[:, 2, 1:10].copy()
        expected[3, 3] = np.nan
        np.testing.assert_array_equal(table["vx"].values, expected)
        assert table["distance"].values.tolist() == [120.0 * k for k in range(9)]
    traced = pd.DataFrame({"distance": [-240.0, 0.0], "x": x[[1, 3]], "y": y[[2, 2]]})
    assert og.along(velocity, traced)["distance"].values.tolist() == [-240.0, -120.0, 0.0]
    with pytest.raises(ParameterError, match="length above 0"):
        og.along(velocity, shapely.LineString([(x[1], y[1]), (x[1], y[1])]))
    with pytest.raises(ParameterError, match="time dimension"):
        og.along(velocity.isel(mid_date=0), [(x[1], y[1]), (x[5], y[1])])


def test_regrid_averages_smaller_cells_and_turns_vectors() -> None:
    y, x = places()
    source = field(100 + 0.01 * x, 0.02 * y)
    same = og.regrid(source, BOX)
    np.testing.assert_array_equal(same["vx"], source["vx"].astype(np.float32))
    coarse = og.regrid(source, grid.coarsen(BOX, 3))
    np.testing.assert_allclose(coarse["vx"].values[2, 4], source["vx"].values[6:9, 12:15].mean(), rtol=1e-6)
    polar = GeoBox((4, 4), Affine(2000, 0, 0, 0, -2000, 0), "EPSG:3413")
    across = polar.affine.translation(*(c - 4000 for c in BOX.extent.to_crs("EPSG:3413").centroid.coords[0]))
    there = og.regrid(source, GeoBox((4, 4), across * Affine.scale(2000, 2000), "EPSG:3413"))
    # At 9 E the polar grid (central meridian 45 W) is turned by 54 degrees; its scale at 45 N is well above 1.
    middle = there.isel(y=slice(1, 3), x=slice(1, 3)).mean()
    assert np.degrees(np.arctan2(middle["vy"], middle["vx"])) == pytest.approx(54, abs=1.5)
