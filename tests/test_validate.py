"""Validation numbers on cases worked out by hand, on exact synthetic truth, and on positions of real stations."""

import numpy as np
import pandas as pd
import pyproj
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from ogive import flags, grid
from ogive.errors import GridError, ParameterError
from ogive.invert import AdaptiveOptions, invert
from ogive.testing.velocity_cubes import velocity_cube
from ogive.validate import against_truth, gps, nmad, pairs_hold_out, stakes, static_ground, summary
from ogive.validate._hold_out import draw


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


def series_of(vx, vy, **more):
    """Two windows of 100 days on a 2 x 3 grid of 100 m."""
    box = GeoBox((2, 3), Affine(100, 0, 500000, 0, -100, 7000200), "EPSG:32622")
    edges = np.datetime64("2021-01-01", "ns") + np.array([0, 100, 200]) * np.timedelta64(1, "D")
    dims = ("time", "y", "x")
    return xr.Dataset(
        {"vx": (dims, vx), "vy": (dims, vy), **{name: (dims, values) for name, values in more.items()}},
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
    data = series_of(vx, np.zeros_like(vx), flag=np.where(np.isnan(vx), flags.GAP, 0).astype(np.uint16))
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
    np.testing.assert_allclose(out["vx_modelled"], [125, 0, np.nan])
    np.testing.assert_allclose(out["covered"], [1, 0.5, 0])
    np.testing.assert_allclose(out["vx_difference"], [5, -120, np.nan])
    np.testing.assert_allclose(out["vy_difference"], [-1, -1, np.nan])
    np.testing.assert_allclose(out["measured"], np.hypot(120, 1))
    assert out["reason"].tolist() == ["", "gap in time", "off the grid"]
    assert out.index.tolist() == out["name"].tolist() == ["a", "b", "c"]
    assert out["inside_95"].isna().all()  # nothing is known of the errors of this series
    speed = stakes(data, table.drop(columns=["vx", "vy"]).assign(v=100.0))
    np.testing.assert_allclose(speed["difference"], [25, -100, np.nan])
    assert "vx_difference" not in speed
    for column, message in (("x", "lon, lat"), ("t1", "t1, t2"), ("vx", "vx, vy or v")):
        with pytest.raises(ParameterError, match=message):
            stakes(data, table.drop(columns=column))
    with pytest.raises(ParameterError, match="odd"):
        stakes(data, table, cells=2)


def test_sigma_of_a_difference_by_hand():
    """Windows fully correlated, the stake independent of them: 0.75 * 4 + 0.25 * 8 = 5, with 12 it is 13."""
    vx, error = np.full((2, 2, 3), 300.0), np.empty((2, 2, 3))
    error[0], error[1] = 4.0, 8.0
    data = series_of(vx, np.zeros_like(vx), vx_error=error, vy_error=error)
    at = {"x": 500150.0, "y": 7000100.0, "t1": "2021-01-26", "t2": "2021-05-06"}
    out = stakes(data, pd.DataFrame([{**at, "v": 313.0, "v_error": 12.0}, {**at, "v": 313.0, "v_error": np.nan}]))
    np.testing.assert_allclose(out["modelled_error"], 5)
    np.testing.assert_allclose(out["sigma"], [13, 5])
    np.testing.assert_allclose(out["z"], [-1, -2.6])
    assert out["inside_95"].tolist() == [True, False]
    both = stakes(data, pd.DataFrame([{**at, "vx": 313.0, "vy": 0.0, "vx_error": 12.0, "vy_error": 0.0}]))
    np.testing.assert_allclose(both[["sigma", "vx_sigma", "vy_sigma"]].iloc[0], [13, 13, 5])


def test_overlapping_windows_do_not_cover_twice():
    data = series_of(np.ones((2, 2, 3)), np.zeros((2, 2, 3)))
    days = np.timedelta64(60, "D")
    data["time_bnds"][1] = data["time_bnds"][1] - days  # 0-100 and 40-140
    at = {"x": 500150.0, "y": 7000100.0, "t1": "2021-01-01", "t2": "2021-07-20", "v": 1.0}
    assert stakes(data, pd.DataFrame([at]))["covered"][0] == pytest.approx(140 / 200)


def test_cells_are_averaged_by_component_and_never_to_one_side():
    """Opposite vectors cancel; a cell without a velocity does not count; at the rim nothing lies beyond."""
    cube, _ = velocity_cube("100")
    series = invert(cube, every="100D").isel(time=slice(1, 4))
    column = np.arange(12.0)
    series["vx"][:] = np.where(column == 5, np.nan, 10 * (column - 4))
    series["vx_error"][:] = series["vy_error"][:] = 1.0 + column
    t1, t2 = series["time_bnds"].values[0]
    rows = [{"x": float(series.x[k]), "y": float(series.y[6]), "t1": t1, "t2": t2, "v": 1.0} for k in (2, 4, 11)]
    out = stakes(series, pd.DataFrame(rows), cells=3)
    np.testing.assert_allclose(out["vx_modelled"], [-20, -5, 70])
    np.testing.assert_allclose(out["vx_modelled_error"], [3, 4.5, 12])  # as large as if cells shared all errors


def test_rows_that_cannot_be_used_stay_and_say_why():
    cube, _ = velocity_cube("100")
    cube = cube.isel(y=slice(0, 2), x=slice(0, 2))
    series = invert(cube)
    good = {"x": float(cube.x[0]), "y": float(cube.y[0]), "t1": "2017-06-01", "t2": "2017-09-01", "v": 40.0}
    changes = [
        {}, {"x": 0.0}, {"y": np.nan}, {"t1": None}, {"t2": "2017-06-01"}, {"t2": "2017-05-01"}, {"v": np.nan},
        {"t1": "2030-01-01", "t2": "2031-01-01"},
    ]  # fmt: skip
    expected = ["", "off the grid", "no position", "no date", *["t2 is not later than t1"] * 2, "no measured velocity"]
    table = pd.DataFrame([good | change for change in changes])
    for more, last in (({}, "outside the series"), ({"velocity": cube}, "gap in time")):
        out = stakes(series, table, **more)
        assert out["reason"].tolist() == [*expected, last]
        assert np.isfinite(out["difference"]).tolist() == [True, *[False] * 7]
        assert np.isfinite(out["modelled"]).tolist() == [True, *[False] * 5, True, False]
        assert out["covered"].tolist() == [1, 0, 0, 0, 0, 0, 1, 0]
        assert summary(out)["count"] == 1
    nowhere = stakes(series, table.iloc[[1]], velocity=cube)
    assert nowhere["reason"].tolist() == ["off the grid"]
    away = pd.DataFrame([{"lon": np.nan, "lat": 30.0, "t1": "2017-06-01", "t2": "2017-09-01", "v": 1.0}])
    assert stakes(series, away)["reason"].tolist() == ["no position"]


@pytest.mark.parametrize(
    "text",
    [
        "name,x,y,date1,date2,vx,vy,v_error\nA,{x},{y},2017-06-01,2017-09-01,30,25,2\n",
        "\ufeffStake ID;Longitude [°];Latitude [°];Start date;End date;V_x [m/yr];V_y [m/yr];Error\n"
        "A;{lon};{lat};2017-06-01T00:00Z;20170901;30.0;25.0;2\n",
        "station\teasting\tnorthing\tdate0\tdate1\tvx (m a-1)\tvy (m a-1)\tsigma\nA\t{x}\t{y}\t2017-06-01 00:00\t"
        "2017-09-01\t30\t25\t2\n",
    ],
)
def test_dialects_of_csv_files_say_the_same(text, tmp_path):
    cube, _ = velocity_cube("100")
    cube = cube.isel(y=slice(2, 5), x=slice(2, 5))
    series = invert(cube)
    x, y = float(cube.x[1]), float(cube.y[2])
    lon, lat = pyproj.Transformer.from_crs("EPSG:32645", "EPSG:4326", always_xy=True).transform(x, y)
    path = tmp_path / "stakes.csv"
    path.write_text(text.format(x=x, y=y, lon=lon, lat=lat), encoding="utf-8")
    row = {"name": "A", "x": x, "y": y, "t1": pd.Timestamp("2017-06-01"), "t2": pd.Timestamp("2017-09-01")}
    expected = stakes(series, pd.DataFrame([{**row, "vx": 30.0, "vy": 25.0, "v_error": 2.0}]))
    found = stakes(series, path)
    assert expected["vx_sigma"][0] > 2
    pd.testing.assert_frame_equal(found, expected, rtol=1e-9)


def test_what_could_be_misread_is_refused(tmp_path):
    cube, _ = velocity_cube("100")
    series = invert(cube.isel(y=[5], x=[5]))
    good = {"x": 1.0, "y": 2.0, "t1": "2017-06-01", "t2": "2017-09-01", "v": 40.0}
    for change, message in (({"t1": "01/06/2017"}, "ISO 8601"), ({"v": "40,5"}, "decimal point")):
        with pytest.raises(ParameterError, match=message):
            stakes(series, pd.DataFrame([good | change]))
    with pytest.raises(ParameterError, match="cannot be read"):
        stakes(series, tmp_path / "none.csv")
    with pytest.raises(ParameterError, match="how it was made"):
        stakes(series.drop_attrs(), pd.DataFrame([good]), velocity=cube)


@pytest.mark.parametrize("screening", [{}, {"screening": None}])
def test_stakes_are_inverted_as_the_series_was(screening):
    """Exactly what `invert` gives for the interval, with the options of the series; lazy pairs give the same bits."""
    cube, _ = velocity_cube("500")
    options = AdaptiveOptions(kappas=(0.06, 0.5), knot_spacing=7.0)
    series = invert(cube, options=options, **screening)
    intervals = [["2018-03-03", "2018-03-20"], ["2017-09-09", "2018-10-01"], ["2018-03-03", "2018-03-20"]]
    at = ((3, 4), (3, 4), (8, 8))
    rows = [
        {"x": float(cube.x[j]) + 40, "y": float(cube.y[i]) - 40, "date1": a, "date2": b, "vx": 1.0, "vy": 2.0}
        for (i, j), (a, b) in zip(at, intervals, strict=True)
    ]
    out = stakes(series, pd.DataFrame(rows), velocity=cube)
    for k, (i, j) in enumerate(at):
        one = invert(cube.isel(y=[i], x=[j]), every=[intervals[k]], options=options, **screening).squeeze()
        default = invert(cube.isel(y=[i], x=[j]), every=[intervals[k]]).squeeze()
        for name in ("vx", "vy", "vx_error", "vy_error"):
            column = f"{name[:2]}_modelled{name[2:]}"
            assert out[column][k] == float(one[name])
            assert out[column][k] != float(default[name])
        assert out["vx_sigma"][k] == float(one["vx_error"])
        assert out["modelled"][k] == pytest.approx(float(one["v"]), rel=1e-6)
    lazy = stakes(series, pd.DataFrame(rows), velocity=cube.chunk(mid_date=100, y=5, x=5))
    pd.testing.assert_frame_equal(lazy, out, check_exact=True)


def short_stakes(cube, truth, count=400):
    """Measurements of the truth over 7 to 60 days at random cells, with known errors of 0.5 m/yr."""
    rng = np.random.default_rng(1)
    first, last = (cube[f"acquisition_date_img{k}"].values for k in (1, 2))
    span = (last.max() - first.min()) / np.timedelta64(1, "D")
    length = rng.integers(7, 60, count).astype("m8[D]")
    t1 = first.min().astype("M8[D]") + rng.uniform(20, span - 80, count).astype("m8[D]")
    row, column = rng.integers(0, cube.sizes["y"], (2, count))
    exact = [
        [v[0, i, j] for v in truth.velocity(t1[k : k + 1], (t1 + length)[k : k + 1])]
        for k, (i, j) in enumerate(zip(row, column, strict=True))
    ]
    vx, vy = (np.array(exact) + rng.normal(0, 0.5, (count, 2))).T
    x, y = cube["x"].values[column], cube["y"].values[row]
    return pd.DataFrame({"x": x, "y": y, "t1": t1, "t2": t1 + length, "vx": vx, "vy": vy, "v_error": 0.5})


@pytest.mark.parametrize("name", ["500", "2000", "fast", "out25"])
def test_exact_intervals_are_nearer_to_the_truth_and_their_errors_hold(name):
    cube, truth = velocity_cube(name)
    series, table = invert(cube), short_stakes(cube, truth)
    exact, averaged = stakes(series, table, velocity=cube), stakes(series, table)
    assert exact["difference"].notna().sum() >= 395
    score, other = summary(exact), summary(averaged)
    rmse, rmse_averaged = (np.hypot(s["vx_rmse"], s["vy_rmse"]) for s in (score, other))
    assert rmse < 0.95 * rmse_averaged
    assert 0.88 < (score["vx_coverage_95"] + score["vy_coverage_95"]) / 2 < 0.99
    assert abs(score["bias"]) < 0.25 * score["rmse"]
    assert score["r"] > 0.99


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


def test_summary_by_hand():
    difference = [1.0, -3.0, 2.0, np.nan]
    table = pd.DataFrame(
        {"measured": [10.0, 20.0, 30.0, 40.0], "difference": difference, "sigma": [1.0, 1.5, np.nan, 1.0]}
    )
    table["modelled"] = table["measured"] + table["difference"]
    score = summary(table)
    assert (score["rows"], score["count"], score["bias"], score["mae"]) == (4, 3, 0, 2)
    assert score["rmse"] == pytest.approx(np.sqrt(14 / 3))
    assert score["nmad"] == pytest.approx(1.4826)
    assert (score["coverage_68"], score["coverage_95"]) == (0.5, 0.5)
    assert score["r"] == pytest.approx(np.corrcoef([10, 20, 30], [11, 17, 32])[0, 1])
    nothing = summary(table[3:])
    assert nothing["count"] == 0
    assert np.isnan([nothing[name] for name in ("bias", "rmse", "nmad", "coverage_95", "r")]).all()
    with pytest.raises(ParameterError, match="lacks difference, sigma"):
        summary(table[["measured", "modelled"]])


def test_held_out_pairs_are_predicted_from_the_others_alone():
    """By brute force: the draw as stated, one inversion of what is left, windows equal to the pairs."""
    cube = velocity_cube("500")[0].isel(y=[3, 7], x=[5])
    score = pairs_hold_out(cube, fraction=0.3, seed=4, dt_max=100.0)
    t1, t2 = (cube[f"acquisition_date_img{k}"].values for k in (1, 2))
    dates, number = np.unique(np.stack([t1, t2]).astype("M8[D]"), axis=1, return_inverse=True)
    chosen = np.random.default_rng(4).permutation(dates.shape[1]) < round(0.3 * dates.shape[1])
    out = chosen[number.ravel()]
    low, high = (np.sort(t1)[[10, -21]]).astype("M8[ns]")  # the quantiles lie at 9.98 and 479.04 of 0 to 499
    scored = out & (t1 >= low) & (t2 < high) & (t2 - t1 <= np.timedelta64(100, "D"))
    series = invert(cube.isel(mid_date=~out), every=np.stack([t1, t2], 1)[scored])
    one = cube.isel(mid_date=scored)
    dx, dy = (one[c].values - series[c].values for c in ("vx", "vy"))
    length = np.hypot(dx, dy)
    assert score["pairs_held_out"] == out.sum() == 150
    assert score["count"] == np.isfinite(length).sum() > 60
    assert score["median"] == pytest.approx(np.nanmedian(length), rel=1e-5)
    assert score["p75"] == pytest.approx(np.nanpercentile(length, 75), rel=1e-5)
    sigma = np.hypot(series["vx_error"].values, one["vx_error"].values[:, None, None])
    z = np.abs(np.stack([dx, dy])) / sigma
    assert score["coverage_95"] == pytest.approx(np.mean(z[np.isfinite(z)] <= 1.96))
    assert pairs_hold_out(cube.chunk(mid_date=100), fraction=0.3, seed=4, dt_max=100.0) == score
    assert pairs_hold_out(cube, fraction=0.3, seed=5, dt_max=100.0) != score


def test_repeated_pairs_cannot_predict_themselves():
    """Each pair three times, some seconds apart, as overlapping tiles give them: no better than each once."""
    cube = velocity_cube("500")[0].isel(y=[3], x=slice(2, 10))
    copies = []
    for seconds in (0, 25, 50):
        later = np.timedelta64(seconds, "s")
        dates = {n: cube[n] + later for n in ("acquisition_date_img1", "acquisition_date_img2")}
        copies.append(cube.assign_coords(dates))
    once, thrice = pairs_hold_out(cube), pairs_hold_out(xr.concat(copies, "mid_date", data_vars="minimal"))
    assert thrice["pairs_held_out"] == 3 * once["pairs_held_out"]
    assert thrice["median"] > 0.9 * once["median"]
    t1 = np.repeat(np.arange("2020-01-01", "2020-02-10", dtype="M8[D]"), 3) + np.tile([0, 25, 50], 40).astype("m8[s]")
    chosen = draw(t1, t1 + np.timedelta64(16, "D"), 0.3, 0).reshape(40, 3)
    assert chosen.sum() == 36
    assert (chosen.all(1) == chosen.any(1)).all()


def test_sum_of_variances_holds_without_outliers():
    cube = velocity_cube("500")[0]
    cube["vx"] = cube["vx"].where(~cube["outlier"])
    score = pairs_hold_out(cube)
    assert score["count"] > 4000
    assert 0.93 < score["coverage_95"] < 0.99
    assert score["predicted"] > 0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"fraction": 0.0}, "between 0 and 1"), ({"fraction": 1e-4}, "more date pairs"), ({"dt_max": 1.0}, "to score")],
)
def test_hold_outs_that_cannot_be_made(arguments, message):
    with pytest.raises(ParameterError, match=message):
        pairs_hold_out(velocity_cube("100")[0].isel(y=[5], x=[5]), **arguments)


def walk(days, **more):
    """A station that goes north by 1e-5 degree, 1.1 m, each day."""
    days = np.array(days)
    time = np.datetime64("2020-01-01", "ns") + days * np.timedelta64(1, "D")
    return pd.DataFrame({"lon": 10.0, "lat": 46.0 + days * 1e-5, "time": time, **more})


def test_gps_rows_from_position_to_position():
    positions = walk([0, 5, 12, 20, 40])
    whole = gps(positions.iloc[::-1], station="S", crs="EPSG:32632", sigma=0.3)
    assert whole["name"].tolist() == ["S"]
    _, _, metres = pyproj.Geod(ellps="WGS84").inv(10.0, 46.0, 10.0, 46.0004)
    assert whole["distance"][0] == pytest.approx(metres)
    assert whole["v"][0] == pytest.approx(metres * 365 / 40)
    assert whole["azimuth"][0] == pytest.approx(0, abs=1e-6)
    error = 0.3 * np.sqrt(2) * 365 / 40
    np.testing.assert_allclose(whole[["v_error", "vx_error", "vy_error"]].iloc[0], error)
    assert np.hypot(whole["vx"][0], whole["vy"][0]) == pytest.approx(whole["v"][0], rel=5e-4)  # UTM scale
    each = gps(positions, interval="0D")
    assert "v_error" not in each
    np.testing.assert_allclose(each["v"], whole["v"][0], rtol=1e-5)
    starts = [(t - each["t1"][0]).days for t in gps(positions, interval="8D")["t1"]]
    assert starts == [0, 12, 20]  # 0-12, 12-20, 20-40: none shorter than 8 days
    assert gps(positions.assign(sigma=[0, 3, 3, 3, 4.0]))["v_error"][0] == pytest.approx(4 * 365 / 40)


def test_gps_of_several_stations_in_their_order():
    table = pd.concat([walk([3, 9], site="B"), walk([0, 10], site="A")]).rename(columns={"lon": "Longitude, °E"})
    both = gps(table)
    assert both["name"].tolist() == ["B", "A"]
    pd.testing.assert_frame_equal(gps(table, station="A"), both[1:].reset_index(drop=True))
    with pytest.raises(ParameterError, match="one of A, B"):
        gps(table, station="C")
    out = stakes(series_of(np.ones((2, 2, 3)), np.ones((2, 2, 3))), both)
    assert out["name"].tolist() == ["B", "A"]
    np.testing.assert_allclose(out["measured"], both["v"])


@pytest.mark.parametrize(
    ("table", "arguments", "message"),
    [
        (walk([0]), {}, "at least two"),
        (walk([0, 5]).assign(lon=[np.nan, 10.0]), {}, "at least two"),
        (walk([0, 5]).assign(lon=np.nan), {}, "at least two"),
        (walk([0, 5, 5]), {}, "same time"),
        (walk([0, 5]), {"interval": "30D"}, "longer than"),
        (walk([0, 5]), {"interval": "a while"}, "length of time"),
        (walk([0, 5]).drop(columns="lat"), {}, "lon, lat"),
        (walk([0, 5]).drop(columns="time"), {}, "year and month"),
    ],
)
def test_gps_checks_its_input(table, arguments, message):
    with pytest.raises(ParameterError, match=message):
        gps(table, **arguments)


@pytest.mark.real
@pytest.mark.parametrize(
    ("station", "metres", "rate", "months"), [("SWC", 170.8, 128.1, 15), ("KAN_L", 300.0, 109.3, 33)]
)
def test_real_stations_of_monthly_files(data, station, metres, rate, months):
    """A year of 365.25 days in the published rates."""
    path = data / f"cubes/gcnet_gps_positions/{station}_positions_monthly.csv"
    row = gps(path, station=station, crs="EPSG:32622", sigma=0.5).iloc[0]
    assert row["distance"] == pytest.approx(metres, abs=0.06)
    assert row["v"] * 365.25 / 365 == pytest.approx(rate, abs=0.06)
    assert 230 < row["azimuth"] < 255  # out of the ice sheet
    assert np.hypot(row["vx"], row["vy"]) == pytest.approx(row["v"], rel=5e-3)
    assert 0.1 < row["v_error"] < 1
    monthly = gps(path, interval="0D")
    assert len(monthly) == months
    assert monthly["name"][0] == f"{station}_positions_monthly"
    assert monthly["distance"].sum() == pytest.approx(metres, abs=1.5)
    seasons = gps(path, interval="80D")
    assert ((seasons["t2"] - seasons["t1"]) >= pd.Timedelta("80D")).all()
    assert (seasons["t1"][1:].to_numpy() == seasons["t2"][:-1].to_numpy()).all()


@pytest.mark.real
def test_real_rates_of_eight_stations_as_published(data):
    published = pd.read_csv(data / "cubes/gcnet_gps_positions/GCN_positions_distance_stats.csv", sep=";")
    kinds = {"first": "first valid", "last": "latest valid"}
    ends = [
        pd.DataFrame(
            {
                "site name": published["site name"],
                "longitude": published[f"{kind} longitude, °W"],
                "latitude": published[f"{kind} latitude, °N"],
                "date": published[f"{kind} date"],
            }
        )
        for kind in kinds.values()
    ]
    found = gps(pd.concat(ends))
    assert found["name"].tolist() == published["site name"].tolist()
    np.testing.assert_allclose(found["distance"], published["displacement, m"], atol=0.51)
    np.testing.assert_allclose(found["v"] * 365.25 / 365, published["displacement rate, m/y"], atol=0.051)


@pytest.mark.real
def test_real_station_against_a_series(data):
    path = data / "cubes/gcnet_gps_positions/SWC_positions_monthly.csv"
    row = gps(path, crs="EPSG:32622").iloc[0]
    box = GeoBox((2, 3), Affine(100, 0, row["x"] - 150, 0, -100, row["y"] + 100), "EPSG:32622")
    series = series_of(np.full((2, 2, 3), row["vx"], np.float32), np.full((2, 2, 3), row["vy"], np.float32))
    series = series.assign_coords(**grid.coordinates(box), mapping=grid.mapping(box))
    found = stakes(series, pd.DataFrame([row])[["name", "lon", "lat", "t1", "t2", "v"]]).iloc[0]
    assert found["name"] == "SWC_positions_monthly"
    assert abs(found["difference"]) < 1.0
    assert 0.3 < found["covered"] < 0.5


@pytest.mark.real
def test_real_held_out_pairs_at_columbia_glacier(data):
    """Baselines up to 180 days: the best tuned regularised inversion reached 96.9 m/yr."""
    table = pd.read_csv(data / "timeseries/itslive_v2_point_columbia_61.1804_-146.9751.csv")
    days = table["date_dt [days]"].to_numpy(float)
    middle = pd.to_datetime(table["mid_date"])
    use = ((middle >= "2013-01-01") & (days >= 3) & (days <= 180)).to_numpy()
    table, days, middle = table[use], days[use].astype("m8[D]"), middle[use].to_numpy("M8[ns]")
    t1 = (middle - days.astype("m8[ns]") // 2).astype("M8[D]")
    dims = ("mid_date", "y", "x")
    values = {c: (dims, table[f"{c} [m/yr]"].to_numpy(float)[:, None, None]) for c in ("vx", "vy")}
    values |= {f"{c}_error": ("mid_date", table[f"{c}_error [m/yr]"].to_numpy(float)) for c in ("vx", "vy")}
    dates = {"acquisition_date_img1": t1.astype("M8[ns]"), "acquisition_date_img2": (t1 + days).astype("M8[ns]")}
    score = pairs_hold_out(xr.Dataset(values, {name: ("mid_date", value) for name, value in dates.items()}))
    assert score["count"] > 250
    assert score["predicted"] > 0.95
    assert score["median"] < 96.9
