"""Diagnosis: sentences that name the true reason, and figures against exact motion and brute force."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from ogive import flags, grid
from ogive.diagnose import closure, coherence, gaps, residuals, triangles_of, why
from ogive.errors import GridError, ParameterError
from ogive.invert import Screening, invert, screen
from ogive.testing import holdout
from ogive.testing.velocity_cubes import velocity_cube

GEOBOX = GeoBox((3, 4), Affine(120, 0, 600000, 0, -120, 5000000), "EPSG:32632")


def moving(dates, pairs, displacement, shape=(3, 4)):
    """A velocity whose pairs measure a displacement(day) -> (x, y) [m] exactly."""
    day = np.asarray(dates, float)
    i, j = np.array(pairs).T
    d = np.array([np.subtract(displacement(day[b]), displacement(day[a])) for a, b in pairs])
    v = d * 365 / (day[j] - day[i])[:, None]
    t1, t2 = (np.datetime64("2020-01-01", "ns") + day[k].astype("m8[D]") for k in (i, j))
    cube = np.broadcast_to(v[:, :, None, None], (*v.shape, *shape)).copy()
    error = ("mid_date", np.full(len(i), 5.0, np.float32))
    return xr.Dataset(
        {"vx": (("mid_date", "y", "x"), cube[:, 0]), "vy": (("mid_date", "y", "x"), cube[:, 1]),
         "flag": (("mid_date", "y", "x"), np.zeros((len(i), *shape), np.uint16)),
         "vx_error": error, "vy_error": error},
        {"mid_date": t1 + (t2 - t1) // 2, "acquisition_date_img1": ("mid_date", t1),
         "acquisition_date_img2": ("mid_date", t2), **grid.coordinates(GEOBOX), "mapping": grid.mapping(GEOBOX)},
    )  # fmt: skip


def network(days=400, step=10, reach=6):
    dates = np.arange(0, days + 1, step)
    return dates, [(a, b) for a in range(len(dates)) for b in range(a + 1, min(a + reach, len(dates)))]


def steady(day):
    return 2.0 * day, -1.0 * day


@pytest.fixture(scope="module")
def cube():
    return velocity_cube("500")[0]


@pytest.fixture(scope="module")
def series(cube):
    return invert(cube, every="30D", end="2021-01-01")


def place(data, i, j):
    return {"x": float(data["x"][j]), "y": float(data["y"][i])}


def test_why_of_a_good_window_gives_value_and_error(series):
    now = series.isel(time=10, y=3, x=4)
    text = why(series, **place(series, 3, 4), time=now["time"].values)
    assert text.startswith(f"{float(now['v']):.0f} ± {float(now['v_error']):.0f} m/yr from ")
    assert f"{float(now['count']):.1f} effective pairs" in text
    assert f"Of {int(now['n_pairs'])} valid pairs 0 were screened out and {int(now['n_rejected'])} rejected" in text
    assert "residuals" not in text


def test_why_takes_the_cell_around_the_place(series):
    x, y = float(series["x"][4]), float(series["y"][3])
    assert why(series, x + 59, y - 59) == why(series, x, y) != why(series, x + 61, y)


@pytest.mark.parametrize("change", [{"x": -61}, {"x": 12 * 120}, {"y": 61}, {"y": -12 * 120}])
def test_off_the_grid_is_an_error_that_names_the_grid(series, change):
    at = place(series, 0, 0)
    with pytest.raises(ParameterError, match="must lie on the grid: x 700072 to 701512"):
        why(series, **{k: v + change.get(k, 0) for k, v in at.items()})


def test_why_of_missing_windows_names_the_reason(cube, series):
    at = place(cube, 3, 4)
    assert "it lies outside the data, 2017-01-13 to " in why(series, **at, time="2020-05-01")
    assert "No window contains 2030-01-01" in why(series, **at, time="2030-01-01")
    few = cube.copy(deep=True)
    few["vx"][7:, 3, 4] = np.nan
    count = int(np.isfinite(few["vx"][:, 3, 4]).sum())
    alone = invert(few.isel(y=[3], x=[4]), every="30D")
    assert f"only {count} valid pairs at this pixel" in why(alone, **at, time="2018-06-01")
    assert "too few pairs" in why(alone, **at)
    screened = invert(cube.isel(y=[3], x=[4]), every="30D", screening=Screening(dt_max=1))
    n = int(screened["n_pairs"][0, 0])
    assert f"of {n} valid pairs were screened out" in why(screened, **at, time="2018-06-01")
    hole = (cube["acquisition_date_img2"] > np.datetime64("2018-03-01")) & (
        cube["acquisition_date_img1"] < np.datetime64("2018-09-01")
    )
    one = cube.isel(y=[3], x=[4])
    silent = invert(one.assign(vx=one["vx"].where(~hole)), every="30D")
    assert "no accepted pair covers it" in why(silent, **at, time="2018-06-01")
    blank = series.copy(deep=True)
    blank["vx"][10, 3, 4], blank["flag"][10, 3, 4] = np.nan, flags.NOT_COMPUTED
    assert "never computed" in why(blank, **at, time=blank["time"].values[10])


def test_why_names_doubts(series):
    doubtful = series.copy(deep=True)
    at = place(series, 3, 4)
    for name, value in (("residual", 2.4), ("kappa", 2.0), ("dt_max", 180.0), ("n_screened", 100), ("n_rejected", 300)):
        doubtful[name][3, 4] = value
    doubtful["v_error"][10, 3, 4], doubtful["count"][10, 3, 4] = 1000, 2.0
    text = why(doubtful, **at, time=series["time"].values[10])
    share = 300 / (int(series["n_pairs"][3, 4]) - 100)
    for part in ("residuals are 2.4 times", "kappa 2", "pairs above 180 d", "100 were screened out",
                 "hardly one pair confirms another", f"({100 * share:.0f} % of those let in)",
                 "times that of other windows"):  # fmt: skip
        assert part in text
    assert "times that of other windows" not in why(doubtful, **at, time=series["time"].values[12])


def test_why_of_pairs_counts_flags(cube):
    spoilt = cube.copy(deep=True)
    bits = spoilt["flag"].values[:, 2, 3]
    good = np.flatnonzero(bits == 0)
    bits[good[:10]], bits[good[10:13]] = flags.LOW_CORRELATION, flags.RIM | flags.NOT_REFINED
    spoilt["vx"][good[:13], 2, 3] = np.nan
    cloud = 500 - good.size
    text = why(spoilt, **place(cube, 2, 3))
    parts = [f"{n} {t}" for n, t in sorted([(10, "low correlation"), (cloud, "no data or masked"),
                                            (3, "peak on rim of search window")], reverse=True)]  # fmt: skip
    assert text == f"{good.size - 13} of 500 pairs are valid; {', '.join(parts)}."
    t1, t2 = cube["acquisition_date_img1"].values, cube["acquisition_date_img2"].values
    when = np.datetime64("2018-06-15", "ns")
    around = int(((t1 <= when) & (t2 >= when)).sum())
    assert f" of {around} pairs around 2018-06-15 are valid" in why(cube, **place(cube, 2, 3), time="2018-06-15")
    assert why(cube, **place(cube, 2, 3), time="2001-01-01").startswith("No pair spans 2001-01-01")
    without = why(spoilt.drop_vars("flag"), **place(cube, 2, 3))
    assert f"{13 + cloud} without a reason on record" in without


def test_why_tells_of_screening_and_of_the_pairs_around(cube, series):
    marked = screen(cube, Screening(dt_max=100))
    left = int((marked["screened"][:, 2, 3] == 2).sum())
    text = why(marked, **place(cube, 2, 3))
    assert f"screening leaves out {left} ({left} baseline too long)" in text
    start, end = series["time_bnds"].values[8]
    t1, t2 = cube["acquisition_date_img1"].values, cube["acquisition_date_img2"].values
    valid = np.isfinite(cube["vx"].values[:, 2, 3])
    overlap = (t1 < end) & (t2 > start)
    text = why(series, **place(cube, 2, 3), time=series["time"].values[8], velocity=cube.chunk(y=4))
    assert f"Overlapping it, {(overlap & valid).sum()} of {overlap.sum()} pairs are valid" in text
    shortest = np.flatnonzero(overlap & valid)
    first = shortest[np.argmin((t2 - t1)[shortest])]
    assert f"{str(t1[first])[:10]} to {str(t2[first])[:10]}" in text


def test_why_of_other_things_is_a_clear_error(series):
    at = place(series, 0, 0)
    with pytest.raises(ParameterError, match="must be a date"):
        why(series, **at, time="yesterday-ish")
    with pytest.raises(ParameterError, match="lacks flag, n_pairs"):
        why(series.drop_vars(["flag", "n_pairs"]), **at)


def test_coherence_against_brute_force(cube):
    lazy = coherence(cube.chunk(y=5, mid_date=60))
    assert lazy.chunks is not None
    vx, vy = (cube[c].values[:, 4, 7].astype(float) for c in ("vx", "vy"))
    good = np.isfinite(vx) & (np.hypot(vx, vy) > 0)
    unit = (vx + 1j * vy)[good] / np.hypot(vx, vy)[good]
    assert float(lazy[4, 7]) == pytest.approx(abs(unit.mean()), abs=1e-12)
    dates, pairs = network()
    still = moving(dates, pairs, lambda day: (0.0, 0.0))
    assert np.isnan(coherence(still)).all()
    assert float(coherence(moving(dates, pairs, steady)).min()) == pytest.approx(1)


def test_gaps_against_brute_force():
    dates, pairs = network()
    series = invert(moving(dates, pairs, steady), every="10D", length="30D").chunk(y=2)
    series = series.compute()
    rng = np.random.default_rng(1)
    lost = rng.random(series["vx"].shape) < 0.7
    lost[:, 0, 0], lost[:, 0, 1] = True, False
    series["vx"] = series["vx"].where(~lost)
    found = gaps(series.chunk(y=2, time=5))
    assert found.chunks is not None
    days = ((series["time_bnds"].values - np.datetime64("2020-01-01", "ns")) / np.timedelta64(1, "D")).astype(int)
    for i in range(3):
        for j in range(4):
            covered = np.zeros(days.max() - days.min(), bool)
            for (a, b), v in zip(days, series["vx"].values[:, i, j], strict=True):
                covered[a - days.min() : b - days.min()] |= np.isfinite(v)
            runs = "".join("1" if c else "0" for c in covered).split("1")
            assert float(found[i, j]) == max(map(len, runs))
    assert float(found[0, 0]) == days.max() - days.min()
    assert float(found[0, 1]) == 0


def test_residuals_of_exact_motion_are_zero_and_an_outlier_shows():
    dates, pairs = network()
    velocity = moving(dates, pairs, steady)
    series = invert(velocity, every="10D")
    spoilt = velocity.copy(deep=True)
    spoilt["vx"][7] += 365.0
    away = residuals(spoilt.chunk(y=2), series.chunk(y=2, time=7))
    assert away["x_residual"].chunks is not None
    x, y = (away[f"{c}_residual"].values for c in "xy")
    assert np.isfinite(x).mean() > 0.9
    days = float(grid.pair_days(velocity)[7])
    assert x[7] == pytest.approx(days, abs=1e-2)
    np.testing.assert_allclose(np.delete(x, 7, 0)[np.isfinite(np.delete(x, 7, 0))], 0, atol=1e-2)
    np.testing.assert_allclose(y[np.isfinite(y)], 0, atol=1e-2)
    assert away["mid_date"].equals(velocity["mid_date"])


def test_residuals_know_no_gap():
    dates, pairs = network()
    velocity = moving(dates, pairs, steady)
    series = invert(velocity, every="10D").drop_vars(["dx", "dy"]).copy(deep=True)
    series["vx"][10, 1, 2] = np.nan
    start, end = series["time_bnds"].values[10]
    x = residuals(velocity, series)["x_residual"]
    t1, t2 = velocity["acquisition_date_img1"].values, velocity["acquisition_date_img2"].values
    touched = (t1 < end) & (t2 > start)
    whole = np.isfinite(x.values[:, 0, 0])
    np.testing.assert_array_equal(np.isfinite(x.values[:, 1, 2]), whole & ~touched)
    assert (whole & touched).sum() > 10


def test_residuals_from_cumulative_displacements():
    """Given dx and dy, overlapping windows serve as well; the nodes are the reference date and the window ends."""
    dates, pairs = network()
    velocity = moving(dates, pairs, lambda day: (0.002 * day**2, -day))
    series = invert(velocity, every="5D", length="30D")
    end = (series["time_bnds"].values[:, 1] - np.datetime64("2020-01-01", "ns")) / np.timedelta64(1, "D")
    shape = (len(end), 3, 4)
    series["dx"] = (("time", "y", "x"), np.broadcast_to((0.002 * end**2)[:, None, None], shape).copy())
    series["dy"] = (("time", "y", "x"), np.broadcast_to((-end)[:, None, None], shape).copy())
    series = series.assign_coords(reference_date=np.datetime64("2020-01-01", "ns"))
    away = residuals(velocity, series)
    late = (velocity["acquisition_date_img1"] >= np.datetime64("2020-02-05")).values
    assert np.isfinite(away["x_residual"].values[late]).mean() > 0.9
    for c in "xy":
        values = away[f"{c}_residual"].values[late]
        np.testing.assert_allclose(values[np.isfinite(values)], 0, atol=1e-4)
    series["dx"][20, 0, 0] = np.nan
    at = (velocity["acquisition_date_img2"] == series["time_bnds"][20, 1]).values
    assert at.any()
    assert np.isnan(residuals(velocity, series)["x_residual"].values[at, 0, 0]).all()


def test_residuals_need_the_same_grid_and_windows_end_to_end():
    dates, pairs = network()
    velocity = moving(dates, pairs, steady)
    with pytest.raises(GridError, match="coordinate 'y'"):
        residuals(velocity, invert(velocity).isel(y=slice(0, 2)))
    overlapping = invert(velocity, every="20D", length="30D").drop_vars(["dx", "dy"], errors="ignore")
    with pytest.raises(ParameterError, match="end to end"):
        residuals(velocity, overlapping)


def test_triangles_against_brute_force():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 9, 40)
    two = one + rng.integers(1, 5, 40)
    expected = [
        [a, b, c]
        for a in range(40) for b in range(40) for c in range(40)
        if two[a] == one[b] and one[a] == one[c] and two[b] == two[c]
    ]  # fmt: skip
    assert len(expected) > 20
    assert triangles_of(one, two).tolist() == expected


def test_closure_of_exact_motion_is_zero_and_finds_the_bad_pair():
    dates, pairs = network()
    velocity = moving(dates, pairs, lambda day: (3 * np.sin(day / 50), day))
    closed = closure(velocity)
    assert closed.sizes["triangle"] > 200
    for name in ("x_median", "y_median", "x_nmad", "y_nmad"):
        np.testing.assert_allclose(closed[name], 0, atol=1e-9)
    assert (closed["count"] == 12).all()
    days = float(grid.pair_days(velocity)[40])
    spoilt = velocity.copy(deep=True)
    spoilt["vx"][40] += 5 * 365 / days
    closed = closure(spoilt.chunk(y=2))
    sign = (closed["ab"] == 40).astype(int) + (closed["bc"] == 40) - (closed["ac"] == 40)
    assert int(abs(sign).sum()) > 3
    np.testing.assert_allclose(closed["x_median"], 5 * sign, atol=1e-6)
    # an offset of one image cancels: it takes part in two of the three pairs with opposite signs, or the same one
    image = velocity["acquisition_date_img1"].values[40]
    both = [(velocity[f"acquisition_date_img{k}"] == image).astype(float) for k in (1, 2)]
    moved = velocity.assign(vx=velocity["vx"] + (both[1] - both[0]) * 7 * 365 / grid.pair_days(velocity))
    np.testing.assert_allclose(closure(moved)["x_median"], 0, atol=1e-9)


def test_closure_by_image():
    dates, pairs = network()
    velocity = moving(dates, pairs, steady)
    rng = np.random.default_rng(3)
    bad = np.datetime64("2020-01-01", "ns") + np.timedelta64(200, "D")
    touched = (velocity["acquisition_date_img1"] == bad) | (velocity["acquisition_date_img2"] == bad)
    noise = xr.DataArray(rng.normal(0, 1, velocity["vx"].shape), dims=velocity["vx"].dims)
    metres = noise * xr.where(touched, 5.0, 0.5) * 365 / grid.pair_days(velocity)
    by = closure(velocity.assign(vx=velocity["vx"] + metres, vy=velocity["vy"] + metres))
    worst = by.isel(image=int(by["spread"].argmax("image")))
    assert worst["date"].values == bad
    assert 2 < float(worst["spread"] / by["spread"].median()) < 20
    assert int(by["triangles"].sum()) == 3 * by.sizes["triangle"]


def test_closure_takes_no_more_than_it_is_asked():
    velocity, _ = velocity_cube("500")
    few = closure(velocity, triangles=50, pixels=20)
    assert few.sizes["triangle"] == 50
    assert int(few["count"].max()) <= 20
    assert closure(velocity.isel(mid_date=[0])).sizes["triangle"] == 0
    with pytest.raises(ParameterError, match="triangles"):
        closure(velocity, triangles=0)


@pytest.mark.real
def test_closure_of_the_real_cube_with_its_repeated_pairs(data):
    ds = xr.open_zarr(data / holdout.CUBE, decode_timedelta=False)
    ds = ds.isel(y=slice(10, 30), x=slice(10, 30))
    many = np.argsort(-np.isfinite(ds["vx"].values).sum((1, 2)), kind="stable")[:2000]
    closed = closure(ds.isel(mid_date=np.sort(many)))
    good = closed["count"].values >= 20
    assert good.mean() > 0.5
    assert good.sum() > 500
    table = pd.DataFrame({"one": closed["t_a"].values, "three": closed["t_c"].values})
    assert (table["three"] > table["one"]).all()
    # matches on whole 120 m cells of 10-15 m images: metres, not tens of metres
    assert 0.5 < float(np.nanmedian(closed["x_nmad"].values[good])) < 15
