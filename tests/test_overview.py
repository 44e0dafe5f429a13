"""The overview against exact means and reasons, its layout, and whether it notices another state of its source."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox

import ogive as og
from ogive import flags, grid, store
from ogive.errors import ParameterError, StoreError
from ogive.overview import beside, coarse, open_overview, overview, quick
from ogive.testing import stores
from ogive.testing.velocity_cubes import velocity_cube

BOX = GeoBox((7, 10), Affine(50, 0, 500_000, 0, -50, 5_000_000), "EPSG:32632")


def series_of(vx: np.ndarray, flag: np.ndarray | None = None) -> xr.Dataset:
    """A series of 7 x 10 cells; vy = -2 vx, the error is a tenth of vx."""
    dims = ("time", "y", "x")
    fields = {"vx": vx, "vy": -2 * vx, "v_error": vx / 10}
    data = {n: (dims, a.astype(np.float32), {"units": "meter/year"}) for n, a in fields.items()}
    if flag is not None:
        data["flag"] = (dims, flag.astype(np.uint16), flags.attributes())
    days = np.datetime64("2020-01-01", "ns") + np.arange(len(vx)) * np.timedelta64(30, "D")
    return xr.Dataset(data, {"time": days, **grid.coordinates(BOX), "mapping": grid.mapping(BOX)}, {"kind": "series"})


@pytest.fixture
def numbers() -> np.ndarray:
    return np.random.default_rng(3).normal(100, 30, (3, 7, 10))


def test_means_are_those_of_the_valid_pixels(numbers: np.ndarray) -> None:
    numbers[0, 0, 0] = np.nan  # one of nine
    numbers[0, 0:3, 3:6] = np.nan
    numbers[0, 0, 3] = 7.0  # one of nine is valid: too few
    out = coarse(series_of(numbers), 3)
    assert out["vx"].shape == (3, 3, 4)
    np.testing.assert_allclose(out["vx"][0, 0, 0], np.nanmean(numbers[0, :3, :3]), rtol=1e-6)
    np.testing.assert_allclose(out["vy"][0, 0, 0], -2 * np.nanmean(numbers[0, :3, :3]), rtol=1e-6)
    np.testing.assert_allclose(out["v_error"][0, 0, 0], np.nanmean(numbers[0, :3, :3]) / 10, rtol=1e-6)
    assert np.isnan(out["vx"][0, 0, 1])
    assert out["flag"][0, 0, 1] == flags.NO_DATA
    assert np.isclose(out["valid_share"][0, 0, 1], 1 / 9)
    # The last row and column are incomplete cells: 1 x 1 pixel in the corner.
    np.testing.assert_allclose(out["vx"][2, 2, 3], numbers[2, 6, 9], rtol=1e-6)


def test_cells_lie_where_their_pixels_do(numbers: np.ndarray) -> None:
    source = series_of(numbers)
    out = coarse(source, 3)
    assert float(out["x"][0]) == float(source["x"][:3].mean())
    assert float(out["y"][1]) == float(source["y"][3:6].mean())
    assert grid.geobox_of(out).resolution.x == 150


def test_flags_say_what_most_pixels_say(numbers: np.ndarray) -> None:
    flag = np.zeros(numbers.shape, np.uint16)
    flag[0, :3, :3] = flags.GAP
    flag[0, 0, :3] = flags.TOO_FEW_PAIRS
    flag[0, :3, 3:6] = flags.UNREADABLE
    flag[0, 3:6, :3] = flags.NOT_REFINED
    flag[0, 3:6, 3:6] = flags.INTERPOLATED | flags.GAP  # filled: valid
    flag[0, 3, 6:9] = flags.GAP  # three of nine
    out = coarse(series_of(numbers, flag), 3)["flag"][0].values
    assert out[0, 0] == flags.GAP
    assert out[0, 1] == flags.UNREADABLE
    assert out[1, 0] == flags.NOT_REFINED
    assert out[1, 1] == flags.INTERPOLATED
    assert out[1, 2] == 0


def test_invalid_values_take_no_part(numbers: np.ndarray) -> None:
    flag = np.zeros(numbers.shape, np.uint16)
    numbers[1, 0, 0], flag[1, 0, 0] = 1e6, flags.OUTLIER
    out = coarse(series_of(numbers, flag), 3)
    np.testing.assert_allclose(out["vx"][1, 0, 0], numbers[1, :3, :3].ravel()[1:].mean(), rtol=1e-6)


@pytest.mark.parametrize(
    "chunks", [{"time": 2, "y": 7, "x": 4}, {"time": 1, "y": 3, "x": 3}, {"time": 3, "y": 5, "x": 6}]
)
def test_lazy_is_eager(numbers: np.ndarray, chunks: dict[str, int]) -> None:
    numbers[numbers < 70] = np.nan
    source = series_of(numbers)
    xr.testing.assert_equal(coarse(source.chunk(chunks), 3).compute(), coarse(source, 3))


def test_one_date_is_one_read_and_a_block_is_read_once(tmp_path: Path) -> None:
    source = stores.lazy_velocity((8, 64, 48), (8, 32, 24)).assign(vy=lambda ds: ds["vx"])
    stores.COMPUTED.clear()
    path = overview(source, tmp_path / "o.zarr", pixels=16, progress=False)
    assert len(stores.COMPUTED) == len(set(stores.COMPUTED)) == 4
    for name in ("vx", "vy", "flag", "valid_share"):
        assert zarr.open_array(path / name, mode="r").chunks == (1, 16, 12)
    assert og.verify(path).empty
    assert store.status(path)["blocks"] == 1


def test_a_store_is_looked_at_through_its_overview_until_it_changes(tmp_path: Path) -> None:
    source = tmp_path / "velocity.zarr"
    first, _ = velocity_cube("100")
    first = first.assign_attrs(kind="velocity", schema_version=grid.SCHEMA_VERSION).drop_vars("outlier")
    lazy = first.chunk({"y": 6, "x": 6})
    og.write(lazy, source, progress=False)
    assert open_overview(source) is None
    small = quick(source)
    assert small is not None
    path = og.overview(source, pixels=16, progress=False)
    assert path == tmp_path / "velocity.overview.zarr"
    found = open_overview(source)
    assert found is not None
    np.testing.assert_array_equal(found["vx"].values, small["vx"].values)
    before = stores.contents(path)
    og.overview(source, pixels=16, progress=False)
    assert stores.contents(path) == before
    og.write(lazy.isel(mid_date=slice(50)), source, overwrite=True, progress=False)
    assert open_overview(source) is None
    og.overview(source, pixels=16, progress=False)
    again = open_overview(source)
    assert again is not None
    assert again.sizes["mid_date"] == 50


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    source = stores.lazy_velocity((2, 40, 48)).assign(vy=lambda ds: ds["vx"])
    taken = tmp_path / "taken.zarr"
    og.write(source, taken, progress=False)
    with pytest.raises(StoreError, match="is a store, but no overview"):
        overview(source, taken, progress=False)
    (tmp_path / "file.zarr").mkdir()
    (tmp_path / "file.zarr" / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="not an ogive store"):
        overview(source, tmp_path / "file.zarr", progress=False)
    with pytest.raises(ParameterError, match="must be given"):
        overview(source, progress=False)
    with pytest.raises(ParameterError, match="at least 16"):
        overview(source, tmp_path / "o.zarr", pixels=3)


def test_an_unfinished_overview_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stores.lazy_velocity((4, 64, 48), (2, 32, 24)).assign(vy=lambda ds: ds["vx"])
    path = overview(source, tmp_path / "o.zarr", pixels=16, progress=False)
    assert open_overview(source, path) is not None
    root = (path / "zarr.json").read_text()
    (path / "zarr.json").write_text(root.replace('"complete"', '"being written"'))
    assert open_overview(source, path) is None


def test_where_overviews_lie() -> None:
    assert beside("/a/b/series.zarr/") == "/a/b/series.overview.zarr"
    assert beside(Path("/a/matches.zarr")) == Path("/a/matches.overview.zarr")


@pytest.mark.real
def test_a_cube_of_others(data: Path, tmp_path: Path) -> None:
    """An ITS_LIVE cube: the overview of a few pairs is what numpy says of the same cells."""
    cube = og.open_velocity(data / "cubes" / "itslive_v2_single_glacier_se_tibet.zarr")
    some = cube.isel(mid_date=slice(0, 400))
    factor = 4
    path = overview(some, tmp_path / "o.zarr", pixels=max(16, -(-some.sizes["x"] // factor)), progress=False)
    out = og.open_velocity(path).load()
    factor = out.attrs["overview_factor"]
    row, column = (int(k) for k in np.unravel_index(out["vx"].count("mid_date").values.argmax(), out["vx"].shape[1:]))
    cell = some.isel(y=slice(row * factor, (row + 1) * factor), x=slice(column * factor, (column + 1) * factor))
    vx, vy = (cell[n].values.reshape(400, -1) for n in ("vx", "vy"))
    valid = np.isfinite(vx) & np.isfinite(vy)
    enough = valid.mean(1) >= 0.5
    assert 10 < enough.sum() < 400
    mean = np.where(valid, vx, 0).sum(1) / np.maximum(valid.sum(1), 1)
    np.testing.assert_allclose(out["vx"].values[enough, row, column], mean[enough], rtol=1e-5)
    assert np.isnan(out["vx"].values[~enough, row, column]).all()
    assert set(out["source"].values) == set(some["source"].values)
