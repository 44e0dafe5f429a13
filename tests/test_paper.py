"""Annual velocities as in the literature of dense flow: season, pairs, masks, mosaic, stakes, scores, figure."""

from pathlib import Path

import numpy as np
import pandas as pd
import pystac
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy import ndimage
from tests.conftest import make_item
from tests.test_filters import world

import ogive as og
from ogive import enhance, filters, grid, masks
from ogive.errors import GridError, MaskError, PairError, ParameterError
from ogive.pairs import CROSS_YEAR

BOX = GeoBox((40, 50), Affine(10, 0, 600000, 0, -10, 5000400), "EPSG:32632")
SOUTH = GeoBox((40, 50), Affine(10, 0, 600000, 0, -10, 5200400), "EPSG:32718")
PLACE = {**grid.coordinates(BOX), "mapping": grid.mapping(BOX)}
GPS, HS, RAFT = (40.43, 31.46, 31.28), (35.93, 31.94, 31.14), (29.97, 25.09, 25.05)
"""Speeds at three stakes of the Mer de Glace, 2020 to 2021: by GPS, and on two maps [m/yr] (Tlhomole et al., 2023)."""


# --- pre-filters ---


def test_the_sum_of_both_derivatives_is_their_sum() -> None:
    image = np.random.default_rng(0).random((40, 50)).astype(np.float32)
    valid = np.ones(image.shape, bool)
    valid[10:14, 20] = False
    (total, ok), (x, _), (y, _) = (enhance.get(f"sobel_{n}").apply(image, valid) for n in ("sum", "x", "y"))
    np.testing.assert_allclose(total, x + y, atol=1e-6)
    assert 0 < (~ok).sum() == 6 * 3
    # The diagonal edges that it is for, and those that it cannot see.
    edge = np.add.outer(np.arange(20.0), np.arange(20.0))
    assert enhance.get("sobel_sum").apply(edge.astype("f4"), np.ones(edge.shape, bool))[0][5, 5] == 16
    assert enhance.get("sobel_sum").apply((edge - 2 * np.arange(20.0)).astype("f4"), edge >= 0)[0][5, 5] == 0


def test_filters_one_after_the_other() -> None:
    rng = np.random.default_rng(1)
    image, valid = rng.random((60, 70)).astype(np.float32), rng.random((60, 70)) > 0.01
    both = enhance.get("wallis+sobel_y")
    found, ok = both.apply(image, valid)
    first, seen = enhance.get("wallis").apply(image, valid)
    expected, kept = enhance.get("sobel_y").apply(first, seen)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(ok, kept)
    cut = np.s_[10:50, 15:60]
    part = both.apply(image[cut].copy(), valid[cut].copy())[0][both.halo : -both.halo, both.halo : -both.halo]
    assert part.tobytes() == found[cut][both.halo : -both.halo, both.halo : -both.halo].copy().tobytes()
    assert og.NCC(enhance="wallis+sobel_y").halo() > og.NCC(enhance="sobel_y").halo()
    with pytest.raises(ParameterError, match="several joined by"):
        enhance.get("wallis+canny")


@pytest.mark.parametrize("name", ["none", "sobel_x", "sobel_y", "sobel_sum", "sobel", "wallis+sobel_x", "high_pass"])
def test_the_edge_of_a_mask_is_no_edge_of_the_image(name) -> None:
    """A bright glacier on black ground that is masked: nothing of the step is left, whatever it is filled with."""
    rng = np.random.default_rng(2)
    ice = np.zeros((60, 60), bool)
    ice[20:, 15:45] = True
    glacier = (0.8 + 0.02 * rng.standard_normal(ice.shape)).astype(np.float32)
    found = [enhance.get(name).apply(np.where(ice, glacier, ground), ice) for ground in (np.nan, 0.0, 5.0)]
    for filtered, ok in found:
        assert ok.sum() > 500
        np.testing.assert_array_equal(filtered, found[0][0])
        # Without the mask the step would be some 0.8 times 4 in a derivative; what is there is the texture.
        assert "wallis" in name or np.abs(filtered[ok]).max() < 1.0


# --- season and pairs ---


def scenes(first: int, second: int, summer: tuple[str, str] = ("2020-06-02", "2021-06-02")) -> pd.DataFrame:
    """So many scenes in two summers of 150 days, and some outside."""
    dates = [pd.Timestamp(start) + pd.Timedelta(days=148.0 * k / (n - 1)) for start, n in zip(summer, (first, second))
             for k in range(n)]  # fmt: skip
    dates += [pd.Timestamp(summer[0]) + pd.Timedelta(days=d) for d in (-10, 160, 200, 340)]
    return pd.DataFrame({"id": [f"s{k:02}" for k in range(len(dates))], "datetime": dates})


@pytest.mark.parametrize(("first", "second", "count"), [(10, 17, 170), (7, 10, 70)])
@pytest.mark.parametrize(
    ("lat", "summer"),
    [(45.9, ("2020-06-02", "2021-06-02")), (-43.5, ("2020-12-02", "2021-12-02"))],
)
def test_every_scene_of_a_summer_with_every_scene_of_the_next(first, second, count, lat, summer) -> None:
    table = scenes(first, second, summer).assign(lat=lat)
    pairs = og.make_pairs(table, CROSS_YEAR)
    assert len(pairs) == count
    assert pairs.groupby("id1").size().tolist() == [second] * first
    assert pairs["date_dt"].between(213, 517).all()
    years = ("2020", "2021") if lat > 0 else ("2021", "2022")
    said = f"({years[0]}: {first}, {years[1]}: {second} left)"
    assert pairs.attrs["report"].startswith(
        f"{first + second + 4} scenes, 4 dropped by cloud, platform or season {said}"
    )
    assert pairs.attrs["report"].endswith(f"; {count} pairs")
    assert pairs.attrs["rules"]["season"] == ((6, 10) if lat > 0 else (12, 4))


def test_summer_knows_its_hemisphere(moving) -> None:
    north, _ = moving(("2020-07-01", "2020-12-30", "2021-07-02"))
    south, _ = moving(("2020-07-01", "2020-12-30", "2021-07-02", "2022-01-10"), grid=SOUTH)
    assert og.make_pairs(north, CROSS_YEAR)[["i1", "i2"]].to_numpy().tolist() == [[0, 2]]
    # December belongs to the summer of the next year.
    assert og.make_pairs(south, CROSS_YEAR)[["i1", "i2"]].to_numpy().tolist() == [[1, 3]]
    items: list[pystac.Item] = [
        make_item(k, d, SOUTH) for k, d in enumerate(("2020-12-30", "2021-01-05", "2022-01-10"))
    ]
    assert len(og.make_pairs(iter(items), CROSS_YEAR)) == 2
    with pytest.raises(PairError, match=r"\(2021: 2 left\); of 1 pairs 1 by days, 1 by years_apart removed"):
        og.make_pairs(items[:2], CROSS_YEAR)
    with pytest.raises(ParameterError, match="hemisphere"):
        og.make_pairs(scenes(2, 2), CROSS_YEAR)
    with pytest.raises(ParameterError, match='or "summer"'):
        og.PairRules(season="winter")
    assert og.run.pair_rules({"season": "summer"}).season == "summer"


def test_the_explorer_keeps_the_word_summer() -> None:
    from ogive.view.explorer._session import Session
    from ogive.view.explorer.pairs import Pairs

    session = Session()
    session.configure(pairs={"season": "summer"})
    step = Pairs(session)
    assert step.rules()["season"] == "summer"
    step.controls["season"].children[0].value = 7
    assert "season" not in step.rules()
    step.controls["season"].children[1].value = 9
    assert step.rules()["season"] == [7, 9]


# --- masks ---


def test_steep_ground_is_not_stable(tmp_path: Path) -> None:
    heights = np.where(np.arange(50) < 25, 10.0 * np.arange(50), 250.0)  # 45 degrees, then flat
    dem = xr.DataArray(np.tile(heights, (40, 1)), PLACE, ("y", "x"), attrs={"grid_mapping": "mapping"})
    found = masks.slope(dem, BOX)
    assert found.values[20, 10] == pytest.approx(45)
    assert (found.values[:, 27:] == 0).all()
    hill = og.masks.outlines(BOX.geographic_extent.geom.buffer(1), BOX)
    assert bool(hill.all())
    square = BOX[30:, :5].geographic_extent.geom
    still = og.masks.stable(BOX, ice=square, buffer=0.0, dem=dem)
    assert not still.values[:, :24].any()
    assert still.values[:, 27:].all()
    everywhere = og.masks.stable(BOX, ice=square, buffer=0.0, dem=dem, max_slope=50.0)
    assert 10 * 5 * 0.8 < (~everywhere.values).sum() < 10 * 5 * 1.3
    dem.rio.to_raster(tmp_path / "dem.tif")
    np.testing.assert_allclose(masks.slope(tmp_path / "dem.tif", BOX), found, atol=1e-3)
    # What has no elevation is not stable.
    half = dem.isel(x=slice(0, 30))
    assert not og.masks.stable(BOX, ice=square, buffer=0.0, dem=half, max_slope=50.0).values[:, 32:].any()
    with pytest.raises(MaskError, match="raster file"):
        masks.slope(tmp_path / "none.tif", BOX)
    with pytest.raises(MaskError, match="coordinate system"):
        masks.slope(dem.drop_vars("mapping").drop_attrs(), BOX)


def test_a_mask_before_matching_changes_nothing_far_inside(moving) -> None:
    """What the literature does first, and here is done last: both ways are there, and agree where both can."""
    cube, _ = moving(("2021-07-01", "2021-07-11"))
    pairs, kernel = og.make_pairs(cube), og.NCC(chip=16, search=6, step=8, enhance="sobel_x")
    ice = xr.zeros_like(cube["y"] * cube["x"], bool)
    ice[60:180, 60:200] = True
    lazy = cube.chunk(time=1)
    before = og.track(lazy.assign(image=lazy["image"].where(ice)), pairs, kernel).compute()
    after = og.track(cube, pairs, kernel).compute()
    inside = np.s_[:, 12:18, 12:20]
    assert np.isfinite(before["vx"].values[inside]).mean() > 0.8
    np.testing.assert_array_equal(before["vx"].values[inside], after["vx"].values[inside])
    beyond = before["vx"].where(~ice.values[4::8, 4::8]).values[:, :5]
    assert np.isnan(beyond).all()
    # At the rim of the mask the answer is that of the ice, not that of the edge.
    shared = np.isfinite(before["vx"].values) & np.isfinite(after["vx"].values)
    assert np.abs(before["vx"].values - after["vx"].values)[shared].max() < 0.3 * 365


# --- filter and mosaic ---


def test_the_median_filter_is_scipy_s_where_all_is_valid() -> None:
    velocity = world()
    full = velocity.assign({n: velocity[n].fillna(300.0) for n in ("vx", "vy", "v")})
    found = filters.median(full, window=9)
    for name in ("vx", "vy"):
        expected = [ndimage.median_filter(one, 9)[4:-4, 4:-4] for one in full[name].values]
        np.testing.assert_array_equal(found[name].values[:, 4:-4, 4:-4], expected)
    np.testing.assert_allclose(found["v"], np.hypot(found["vx"], found["vy"]), rtol=1e-6)


def test_the_median_filter_knows_gaps_and_chunks() -> None:
    velocity = world()
    found = filters.median(velocity, window=5, min_neighbours=3)
    vx, vy = velocity["vx"].values, velocity["vy"].values
    for m, y, x in [(0, 0, 0), (1, 11, 7), (2, 22, 18), (0, 5, 13)]:
        near = vx[m, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
        expected = np.nanmedian(near) if np.isfinite(vx[m, y, x]) else np.nan
        np.testing.assert_array_equal(found["vx"].values[m, y, x], np.float32(expected))
    np.testing.assert_array_equal(np.isfinite(found["vx"]), np.isfinite(vx + vy))
    assert np.abs(found["vx"] - 300).max() < 200 < np.nanmax(np.abs(vx - 300))
    np.testing.assert_array_equal(found["flag"], velocity["flag"])
    lazy = filters.median(velocity.chunk(y=7, x=8), window=5, min_neighbours=3)
    assert lazy["vx"].chunks is not None
    xr.testing.assert_identical(lazy.compute(), found)
    lonely = velocity.isel(y=[3], x=[3])
    xr.testing.assert_equal(filters.median(lonely)["vx"], lonely["vx"])
    with pytest.raises(ParameterError, match="window"):
        filters.median(velocity, window=4)


def three_pairs() -> xr.Dataset:
    """Three pairs in two cells: the second cell lacks the last pair."""
    vx = np.array([[[10.0, 10.0]], [[20.0, 20.0]], [[60.0, np.nan]]])
    error = np.array([[[1.0, 1.0]], [[2.0, 1.0]], [[np.nan, 1.0]]])
    dims, box = ("mid_date", "y", "x"), BOX[:1, :2]
    first = np.array(["2020-06-01", "2020-07-01", "2020-05-01"], "M8[ns]")
    return xr.Dataset(
        {"vx": (dims, vx), "vy": (dims, -vx), "vx_error": ("mid_date", [5.0, 5.0, 4.0]), "vx_error_px": (dims, error),
         "vy_error": ("mid_date", [1.0, 1.0, 1.0])},
        {"acquisition_date_img1": ("mid_date", first),
         "acquisition_date_img2": ("mid_date", first + np.timedelta64(1, "W")),
         **grid.coordinates(box), "mapping": grid.mapping(box)},
    )  # fmt: skip


def test_mosaics_counted_by_hand() -> None:
    velocity = three_pairs()
    mean, median, weighted = (og.mosaic(velocity, m) for m in ("mean", "median", "weighted"))
    assert mean["vx"].values.tolist() == [[30.0, 15.0]]
    assert median["vx"].values.tolist() == [[20.0, 15.0]]
    # 10/1 + 20/4 + 60/16, the last with the error of its pair; over 1 + 1/4 + 1/16.
    assert weighted["vx"].values[0] == pytest.approx([(10 + 5 + 3.75) / 1.3125, 15.0])
    assert weighted["vy"].values[0] == pytest.approx([-30.0, -15.0])
    np.testing.assert_allclose(mean["v"], np.sqrt(2) * mean["vx"], rtol=1e-6)
    for one in (mean, median, weighted):
        assert one["count"].values.tolist() == [[3, 2]]
        assert one["vx_std"].values[0] == pytest.approx([np.std([10, 20, 60], ddof=1), np.std([10, 20], ddof=1)])
        assert one["vy_nmad"].values[0] == pytest.approx([14.826, 7.413])
        assert one["first_date"].values.astype("M8[D]").astype(str).tolist() == [["2020-05-01", "2020-06-01"]]
        assert one["last_date"].values.astype("M8[D]").astype(str).tolist() == [["2020-07-08", "2020-07-08"]]
    single = og.mosaic(velocity.isel(mid_date=[2]))
    assert np.isnan(single["vx_std"].values).all()
    assert np.isnan(single["vx"].values[0, 1])
    assert np.isnat(single["first_date"].values[0, 1])
    with pytest.raises(ParameterError, match="mean, median, weighted"):
        og.mosaic(velocity, "mode")
    with pytest.raises(ParameterError, match="needs vy_error"):
        og.mosaic(velocity.drop_vars("vy_error"), "weighted")
    with pytest.raises(ParameterError, match="pairs along mid_date"):
        og.mosaic(velocity.isel(mid_date=[]))


@pytest.mark.parametrize("method", ["mean", "median", "weighted"])
def test_a_mosaic_is_lazy_and_knows_no_chunks(method) -> None:
    velocity = world().assign(vx_error=("mid_date", [1.0, 2.0, 3.0]), vy_error=("mid_date", [2.0, 2.0, 1.0]))
    whole = og.mosaic(velocity, method)
    lazy = og.mosaic(velocity.chunk(mid_date=1, y=7, x=9), method)
    assert all(lazy[name].chunks is not None for name in lazy)
    xr.testing.assert_identical(lazy.compute(), whole)
    assert int(whole["count"].max()) == 3
    assert np.isfinite(whole["vx"]).mean() > 0.9


# --- stakes ---


def study(folder: Path) -> tuple[Path, dict[str, xr.Dataset]]:
    """A table of three stakes with both positions, and two maps that hold the published speeds around them."""
    x, y = np.array([600100.0, 600250.0, 600400.0]), 5000200.0
    azimuth = np.radians([10.0, 60.0, 95.0])
    ends = [x + np.array(GPS) * np.sin(azimuth), y + np.array(GPS) * np.cos(azimuth)]
    table = pd.DataFrame({"id": ["4", "5", "6"], "x": x, "y": y, "date0": "2020-09-15", "date1": "2021-09-15",
                          "x1": ends[0], "y1": ends[1]})  # fmt: skip
    table.to_csv(folder / "stakes.csv", index=False)
    nearest = np.abs(np.asarray(PLACE["x"])[:, None] - x).argmin(1)
    maps = {}
    for name, speeds in (("HS", HS), ("RAFT", RAFT)):
        angle = np.radians(40.0)
        field = np.tile(np.array(speeds)[nearest], (40, 1))
        maps[name] = xr.Dataset(
            {"vx": (("y", "x"), field * np.sin(angle)), "vy": (("y", "x"), field * np.cos(angle))}, PLACE
        )
    return folder / "stakes.csv", maps


@pytest.mark.parametrize("at", ["start", "middle", "path"])
@pytest.mark.parametrize("how", ["bilinear", "3x3", "point"])
def test_the_published_table_of_stakes(tmp_path, at, how) -> None:
    table = og.validate.stake_table(*study(tmp_path), at=at, how=how)
    assert list(table["name"]) == ["4", "5", "6"]
    assert table["v_gps"].tolist() == pytest.approx(GPS)
    assert table["v_HS"].tolist() == pytest.approx(HS)
    assert table["diff_RAFT"].tolist() == pytest.approx(np.subtract(RAFT, GPS))
    assert table["rel_RAFT"].round(2).tolist() == [-0.26, -0.2, -0.2]
    score = og.validate.stake_scores(table)
    assert score["mae"].round(2).to_dict() == {"HS": 1.71, "RAFT": 7.69}
    assert score["bias"].round(2).to_dict() == {"HS": -1.39, "RAFT": -7.69}
    assert score["rmse"].round(2).to_dict() == {"HS": 2.61, "RAFT": 7.93}


def test_the_nine_published_numbers_alone() -> None:
    score = og.validate.stake_scores(pd.DataFrame({"v_gps": GPS, "v_HS": HS, "v_RAFT": RAFT}))
    assert score["mae"].round(2).tolist() == [1.71, 7.69]
    assert score["count"].tolist() == [3, 3]
    with pytest.raises(ParameterError, match="v_gps"):
        og.validate.stake_scores(pd.DataFrame({"v_gps": GPS}))


def test_samples_of_a_plane_are_exact_and_gaps_are_kept() -> None:
    """A plane of vx in x and y: bilinear and the mean of nine know it everywhere, the point only at its centre."""
    y, x = np.asarray(PLACE["y"])[:, None], np.asarray(PLACE["x"])
    plane = 100 + 0.2 * (x - 600000) + 0.1 * (y - 5000000)
    one = xr.Dataset({"vx": (("y", "x"), plane), "vy": (("y", "x"), 0 * plane)}, PLACE)
    one["vx"][5, 5] = np.nan
    row = {"id": "a", "x": 600113.0, "y": 5000222.0, "date0": "2020-01-01", "date1": "2020-12-31"}
    away = {**row, "x1": 600133.0, "y1": 5000252.0}
    table = pd.DataFrame([away, {**away, "x": 500000.0, "x1": 500020.0}, {**away, "x": 600055.0, "y": 5000345.0}])

    def found(at: str, how: str) -> list[float]:
        return og.validate.stake_table(table, {"m": one}, at=at, how=how)["v_m"].tolist()

    assert found("start", "bilinear")[0] == pytest.approx(100 + 0.2 * 113 + 0.1 * 222)
    assert found("middle", "bilinear")[0] == pytest.approx(100 + 0.2 * 123 + 0.1 * 237)
    assert found("path", "bilinear")[0] == pytest.approx(100 + 0.2 * 123 + 0.1 * 237)
    assert found("start", "point")[0] == found("start", "3x3")[0] == pytest.approx(100 + 0.2 * 115 + 0.1 * 225)
    assert np.isnan(found("start", "bilinear")[1])
    # Off the grid; in the gap, which only the mean of nine bridges.
    assert np.isnan(found("start", "point")[2])
    assert np.isfinite(found("start", "3x3")[2])
    single = pd.DataFrame([{**row, "v": 150.0}])
    assert og.validate.stake_table(single, {"m": one})["v_m"][0] == pytest.approx(100 + 0.2 * 113 + 0.1 * 222)


def test_stakes_beside_mosaics_tell_of_their_pairs() -> None:
    velocity = world().isel(y=slice(4, 16), x=slice(4, 16))
    at = np.argwhere(np.isfinite(velocity["vx"].values).all(0))[40]
    y, x = (float(velocity[name][k]) for name, k in zip("yx", at, strict=True))
    row = pd.DataFrame([{"name": "a", "x": x, "y": y, "t1": "2020-01-01", "t2": "2020-06-01", "v": 300.0}])
    maps = {"mean": velocity, "median": og.mosaic(velocity, "median")}
    table = og.validate.stake_table(row, maps, how="point")
    one = og.mosaic(velocity).isel(y=at[0], x=at[1])
    assert table.loc[0, "v_mean"] == pytest.approx(float(one["v"]))
    assert table.loc[0, "n_mean"] == table.loc[0, "n_median"] == int(one["count"])
    assert table.loc[0, "std_mean"] == pytest.approx(float(np.hypot(one["vx_std"], one["vy_std"])))
    assert table.loc[0, "nmad_median"] == pytest.approx(float(np.hypot(one["vx_nmad"], one["vy_nmad"])))
    other = maps["median"].assign_coords(mapping=grid.mapping(SOUTH))
    with pytest.raises(GridError, match="one coordinate system"):
        og.validate.stake_table(row, {"a": maps["median"], "b": other})
    with pytest.raises(ParameterError, match="needs a map"):
        og.validate.stake_table(row, {})


def test_two_positions_are_a_velocity_for_the_series_as_well(tmp_path) -> None:
    path, _ = study(tmp_path)
    read = og.validate.read_stakes(path, "EPSG:32632")
    assert read["v"].tolist() == pytest.approx(GPS)
    assert read["vx"][0] == pytest.approx(GPS[0] * np.sin(np.radians(10)))
    assert read["x"].tolist() == pytest.approx(((read["x0"] + read["x1"]) / 2).tolist())
    degrees = pd.read_csv(path)
    for end in ("", "1"):
        lon, lat = _degrees(degrees[f"x{end}"], degrees[f"y{end}"])
        degrees = degrees.drop(columns=[f"x{end}", f"y{end}"]).assign(**{f"lon{end}": lon, f"lat{end}": lat})
    pd.testing.assert_frame_equal(og.validate.read_stakes(degrees, "EPSG:32632"), read, check_exact=False, rtol=1e-6)
    with pytest.raises(ParameterError, match="x1, y1"):
        og.validate.read_stakes(degrees.drop(columns="lat1"), "EPSG:32632")


def _degrees(x, y):
    import pyproj

    return pyproj.Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True).transform(x, y)


# --- scores and figure ---


def test_scores_over_the_ice(tmp_path) -> None:
    _, maps = study(tmp_path)
    ice = np.zeros((40, 50), bool)
    ice[:, :17] = True  # nearest to the first stake
    score = og.validate.map_scores(maps["HS"], maps["RAFT"], ice)
    assert score["count"] == ice.sum()
    for name in ("rmse", "q95", "vector_rmse"):
        assert score[name] == pytest.approx(35.93 - 29.97)
    assert score["bias"] == pytest.approx(29.97 - 35.93)
    assert score["nmad"] == pytest.approx(0, abs=1e-9)
    turned = maps["HS"].assign(vx=maps["HS"]["vy"], vy=-maps["HS"]["vx"])
    score = og.validate.map_scores(maps["HS"], turned, ice)
    assert score["rmse"] == pytest.approx(0, abs=1e-9)
    assert score["vector_rmse"] == pytest.approx(35.93 * np.sqrt(2))
    ramp = xr.zeros_like(maps["HS"])
    slow = ramp.assign(vx=ramp["vx"] + np.linspace(0, 1, 2000).reshape(40, 50))
    assert og.validate.map_scores(ramp, slow)["q95"] == pytest.approx(0.95, abs=1e-3)
    with pytest.raises(GridError, match="grid of first"):
        og.validate.map_scores(maps["HS"], maps["RAFT"].isel(y=slice(1, None)))
    with pytest.raises(GridError, match="shape"):
        og.validate.map_scores(maps["HS"], maps["RAFT"], ice[1:])
    assert np.isnan(og.validate.map_scores(maps["HS"], maps["RAFT"] * np.nan)["rmse"])


def test_the_figure_of_two_methods(tmp_path) -> None:
    path, maps = study(tmp_path)
    table = og.validate.stake_table(path, maps)
    image = xr.DataArray(np.random.default_rng(0).random((40, 50)), PLACE, ("y", "x"))
    ice = xr.DataArray(np.ones((40, 50), bool), PLACE, ("y", "x"))
    ice[:, 17:] = False
    figure = og.view.comparison_map(maps, image, stakes=table, ice=ice, path=tmp_path / "figure.png")
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["Image", "HS", "RAFT"]
    assert [im.get_clim() for ax in panels[1:] for im in ax.images] == [(0, 50), (0, 50)]
    said = [t.get_text() for ax in panels for t in ax.texts]
    assert "RMSE to HS: 5.96 m/yr" in said
    assert {"4", "5", "6"} <= set(said)
    shown = panels[2].images[0].get_array()
    assert np.ma.count(shown) == ice.values.sum()
    assert (tmp_path / "figure.png").stat().st_size > 20_000
    with pytest.raises(ParameterError, match="1 to 4 methods"):
        og.view.comparison_map({}, image)
    with pytest.raises(GridError, match="grid of first"):
        og.view.comparison_map({"a": maps["HS"], "b": maps["RAFT"].isel(y=slice(1, None))}, image)
    with pytest.raises(GridError, match="image"):
        og.view.comparison_map(maps, image.assign_coords(mapping=grid.mapping(SOUTH)))
    with pytest.raises(ParameterError, match="limits"):
        og.view.comparison_map(maps, image, limits=(50, 0))
