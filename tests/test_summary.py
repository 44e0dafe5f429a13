"""Tables, sentences and the raster under the map."""

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import ogive as og
from ogive import grid, summary
from ogive.errors import ParameterError


def raster(path, box: GeoBox) -> str:
    """A raster that holds its own easting [m] at every pixel, so that a shift of the cut shows."""
    easting = np.broadcast_to(grid.coordinates(box)["x"].values, box.shape).astype(np.float32)
    with rasterio.open(
        path, "w", driver="GTiff", height=box.shape[0], width=box.shape[1], count=1, dtype="float32",
        crs=str(box.crs), transform=box.affine, nodata=-9999,
    ) as out:  # fmt: skip
        out.write(easting, 1)
    return str(path)


BOX = GeoBox((30, 40), Affine(100, 0, 600000, 0, -100, 5100000), "EPSG:32632")
GRID = xr.Dataset(coords={**grid.coordinates(BOX), "mapping": grid.mapping(BOX)})


def test_background_is_cut_to_the_grid_and_keeps_its_place(tmp_path) -> None:
    large = GeoBox((400, 500), Affine(30, 0, 595000, 0, -30, 5104000), "EPSG:32632")
    image = summary.background(raster(tmp_path / "a.tif", large), GRID)
    assert image.dims == ("y", "x")
    assert image.sizes["x"] < 160
    np.testing.assert_allclose(image.values, np.broadcast_to(image["x"].values, image.shape))
    assert float(image["x"][0]) <= 600000 <= 604000 <= float(image["x"][-1])


def test_background_of_another_coordinate_system_is_reprojected(tmp_path) -> None:
    other = BOX.pad(20).to_crs("EPSG:32633")
    image = summary.background(raster(tmp_path / "b.tif", other), GRID)
    assert grid.geobox_of(image.to_dataset(name="image")).crs.epsg == 32632
    assert np.isfinite(image.values).any()


def test_background_elsewhere_or_missing_is_an_error(tmp_path) -> None:
    elsewhere = GeoBox((30, 40), Affine(100, 0, 100000, 0, -100, 1000000), "EPSG:32632")
    with pytest.raises(ParameterError, match="must be a raster that reaches the area"):
        summary.background(raster(tmp_path / "c.tif", elsewhere), GRID)
    with pytest.raises(ParameterError, match="must be a raster that reaches the area"):
        summary.background(str(tmp_path / "missing.tif"), GRID)


def test_tables_count_what_is_there(moving) -> None:
    cube, _ = moving(vy=0.0, vx=0.5)  # a shift of everything: what misregistration looks like
    velocity = og.track(cube, og.make_pairs(cube), og.NCC(chip=16, search=3, step=8)).compute()
    rock = xr.zeros_like(velocity["vx"][0], bool)
    rock[:, :20] = True
    corrected = og.correct.stable_ground(velocity, rock)
    found = summary.tables(velocity, corrected, rock, ~rock)
    assert len(found["Pairs"]) == 3
    valid = np.isfinite(corrected["vx"]).values[:, ~rock.values].mean(1)
    np.testing.assert_allclose(found["Pairs"]["valid on ice"], valid)
    ground = found["Stable ground"].set_index("stable ground")
    assert ground.loc["before correction", "vx_median"] == pytest.approx(0.5 * 365, abs=10)
    assert abs(ground.loc["after correction", "vx_median"]) < 1
    # Every cell is either valid or has at least one reason.
    flagged = (corrected["flag"].values != 0).mean()
    assert found["Flags"]["share of cells"].sum() >= flagged - 1e-9
    text = summary.sentences(velocity, corrected, None, found)
    assert text[0].startswith("3 pairs of 3 scenes from 2021-07-01 to 2021-07-21, 30 x 33 cells of 80 m")


def test_the_telling_place_is_fast_and_often_measured(moving) -> None:
    cube, _ = moving()
    velocity = og.track(cube, og.make_pairs(cube, days=(10, 10)), og.NCC(chip=16, search=6, step=8)).compute()
    velocity["vx"][:, 10, 12] = 5000.0
    x, y = summary.fastest(velocity)
    at = velocity.sel(x=x, y=y)
    assert np.isfinite(at["vx"].values).all()
    assert float(at["vx"].max()) < 5000
