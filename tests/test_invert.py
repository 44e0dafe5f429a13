"""The contract of every method of inversion, windows, laziness; the synthetic cubes."""

import json
from dataclasses import replace

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from ogive import flags
from ogive.errors import ParameterError
from ogive.invert import METHODS, Method, Observations, invert, windows
from ogive.testing.velocity_cubes import velocity_cube

FINGERPRINTS = {
    # pairs, unique days, NaN, sum vx, sum vy, sum error, sum dt
    "100": (100, 42, 694, 1568396, 2114417, 1226.8, 11189),
    "slow": (700, 150, 2281, 649531, 869465, 6131.9, 115819),
}
every_method = pytest.mark.parametrize("method", sorted(METHODS))


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_synthetic_cube_has_its_fingerprint(name):
    cube, _ = velocity_cube(name)
    dates = np.concatenate([cube[f"acquisition_date_img{k}"].values for k in (1, 2)])
    found = (
        cube.sizes["mid_date"],
        len(np.unique(dates.astype("M8[D]"))),
        int(np.isnan(cube["vx"]).sum()),
        int(cube["vx"].astype(float).sum()),
        int(cube["vy"].astype(float).sum()),
        round(float(cube["vx_error"].astype(float).sum()), 1),
        int(cube["date_dt"].sum()),
    )
    assert found == FINGERPRINTS[name]


def test_shared_noise_keeps_motion_outliers_and_gaps():
    plain, truth = velocity_cube("100")
    shared, same = velocity_cube("100", shared=0.5)
    np.testing.assert_array_equal(truth.speed, same.speed)
    np.testing.assert_array_equal(plain["outlier"], shared["outlier"])
    np.testing.assert_array_equal(np.isnan(plain["vx"]), np.isnan(shared["vx"]))
    np.testing.assert_array_equal(plain["vx_error"], shared["vx_error"])
    assert (plain["vx"] != shared["vx"]).mean() > 0.5


def small(method, size=2):
    """Two by two pixels with enough pairs for any method, and its windows."""
    cube, _ = velocity_cube("500")
    return cube.isel(mid_date=slice(None, None, 2), y=slice(3, 3 + size), x=slice(4, 4 + size)), METHODS[method]


def floats(series):
    return [name for name, v in series.items() if v.dtype.kind == "f"]


@every_method
def test_consistent_network_of_constant_velocity_is_exact(method):
    rng = np.random.default_rng(1)
    start, span = np.datetime64("2018-01-01", "D").astype(float), 3 * 365.0
    t1 = start + np.concatenate([np.arange(0, span - 30, 15), rng.uniform(0, span - 130, 150)])
    t2 = np.minimum(t1 + np.concatenate([np.full(71, 30.0), rng.uniform(10, 130, 150)]), start + span)
    assert len(t1) == 221
    v, e = np.full((len(t1), 1), 180.0), np.full((len(t1), 1), 5.0)
    edges = windows(
        *((t * 86400e9).astype("M8[ns]") for t in (t1, t2)), every=METHODS[method].every, start="2018-01-01"
    )
    days = (edges - np.datetime64("1970-01-01", "ns")) / np.timedelta64(1, "D")
    pairs = Observations(t1, t2, v, -v / 2, e, e)
    series = METHODS[method].estimate(pairs, days, METHODS[method].options(), None)
    good = series["flag"][:, 0] == 0
    assert good.sum() >= 2
    np.testing.assert_allclose(series["vx"][good], 180.0, rtol=1e-5)
    np.testing.assert_allclose(series["vy"][good], -90.0, rtol=1e-5)
    assert series["n_rejected"].sum() == 0


@every_method
def test_scales_with_the_unit(method):
    cube, _ = small(method)
    a = invert(cube, method=method)
    names = ("vx", "vy", "vx_error", "vy_error")
    options = METHODS[method].options()
    if method == "ticoi":  # its threshold has a unit
        options = replace(options, threshold_it=8 * options.threshold_it)
    b = invert(cube.assign({name: cube[name] * 8 for name in names}), method=method, options=options)
    assert np.isfinite(a["vx"]).any()
    for name in names:
        np.testing.assert_allclose(b[name], a[name] * 8, rtol=1e-4)


@every_method
def test_order_of_the_pairs_does_not_matter(method):
    cube, _ = small(method)
    order = np.random.default_rng(3).permutation(cube.sizes["mid_date"])
    a, b = (invert(c, method=method) for c in (cube, cube.isel(mid_date=order)))
    assert np.isfinite(a["vx"]).any()
    for name in floats(a):
        np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(a["flag"], b["flag"])


@every_method
@settings(max_examples=5, deadline=None)
@given(chunks=st.tuples(st.integers(7, 100), st.integers(1, 4), st.integers(1, 4)))
def test_chunks_do_not_matter(method, chunks):
    cube, _ = small(method, 4)
    whole = invert(cube, method=method)
    lazy = invert(cube.chunk(dict(zip(("mid_date", "y", "x"), chunks, strict=True))), method=method)
    assert lazy["vx"].chunks is not None
    computed = lazy.compute(scheduler="threads")
    assert np.isfinite(whole["vx"].values).any()
    xr.testing.assert_identical(whole, computed)
    assert {name: v.dtype for name, v in whole.items()} == {name: v.dtype for name, v in lazy.items()}


@every_method
def test_lazy_until_computed_and_one_estimator_call_per_block(method, monkeypatch):
    cube, chosen = small(method, 4)
    pairs = cube.sizes["mid_date"]
    calls = []

    def counting(observations, edges, options, screening):
        calls.append(observations.vx.shape)
        return chosen.estimate(observations, edges, options, screening)

    monkeypatch.setitem(METHODS, method, Method(counting, chosen.options, chosen.variables, chosen.every))
    lazy = invert(cube.chunk(mid_date=50, y=4, x=2), method=method)
    assert calls == []
    with dask.config.set(scheduler="sync"):
        lazy.compute()
    assert calls == [(pairs, 8)] * 2
    assert lazy["vx"].chunks[1:] == ((4,), (2, 2))


@every_method
def test_series_contract(method):
    cube, chosen = small(method)
    series = invert(cube, method=method)
    assert set(series.data_vars) == set(chosen.variables)
    for name, (dims, dtype, _) in chosen.variables.items():
        assert series[name].dims == ("time",) * len(dims) + ("y", "x")
        assert series[name].dtype == dtype
    assert series["time"].dtype == series["time_bnds"].dtype == np.dtype("M8[ns]")
    assert (series["time_bnds"][1:, 0].values == series["time_bnds"][:-1, 1].values).all()
    middle = series["time_bnds"][:, 0] + (series["time_bnds"][:, 1] - series["time_bnds"][:, 0]) / 2
    assert (series["time"].values == middle.values).all()
    assert series.attrs["method"] == method
    assert set(json.loads(series.attrs["parameters"])) >= {"every", "length", "screening"}
    assert series.attrs["year_length_days"] == 365.0
    assert "mapping" in series.coords
    for name in ("vx", "vy", "v", "vx_error", "vy_error", "v_error"):
        assert series[name].attrs["units"] == "meter/year"
    good = np.isfinite(series["v"].values)
    assert good.any()
    np.testing.assert_allclose(series["v"].values[good], np.hypot(series["vx"], series["vy"]).values[good], rtol=1e-5)
    assert (flags.invalid(series["flag"].values) == ~good).all()


@every_method
def test_too_few_pairs_and_gaps_are_flagged(method):
    cube, _ = velocity_cube("slow")
    cube = cube.isel(y=[1, 5], x=[3]).copy(deep=True)
    cube["vx"][4:, 0] = np.nan
    t1, t2 = cube["acquisition_date_img1"], cube["acquisition_date_img2"]
    # A whole calendar year and more, for methods with windows of a year.
    hole = (t2 > np.datetime64("2017-12-01")) & (t1 < np.datetime64("2019-02-01"))
    cube["vx"] = cube["vx"].where(~hole)
    series = invert(cube, method=method, start="2015-01-01", end="2022-01-01")
    few, gap = series["flag"].isel(y=0, x=0).values, series.isel(y=1, x=0)
    assert (few == flags.TOO_FEW_PAIRS).all()
    start, end = gap["time_bnds"].values.T
    outside = (end < t1.values.min()) | (start > t2.values.max())
    inside_hole = (start >= np.datetime64("2017-12-01")) & (end <= np.datetime64("2019-02-01"))
    assert outside.sum() >= 2
    assert inside_hole.any()
    assert (gap["flag"].values[outside | inside_hole] == flags.GAP).all()
    for name in ("vx", "vy", "v", "vx_error"):
        assert np.isnan(gap[name].values[outside | inside_hole]).all()
    assert (gap["flag"].values == 0).any()
    assert np.isfinite(gap["vx"].values[gap["flag"].values == 0]).all()


@every_method
def test_pairs_without_a_positive_error_and_equal_errors(method):
    """Errors that are all equal must give a result, and a pair of unknown error must not enter."""
    cube, _ = small(method)
    equal = invert(cube.assign(vx_error=cube["vx_error"] * 0 + 10, vy_error=cube["vy_error"] * 0 + 10), method=method)
    assert np.isfinite(equal["vx"].values[equal["flag"].values == 0]).all()
    assert (equal["flag"] == 0).any()
    error = cube["vx_error"].copy(deep=True)
    error[:20] = np.nan
    error[20:30] = 0.0
    skipped = invert(cube.assign(vx_error=error), method=method)
    dropped = invert(cube.isel(mid_date=slice(30, None)), method=method)
    np.testing.assert_array_equal(skipped["n_pairs"], dropped["n_pairs"])
    assert (invert(cube, method=method)["n_pairs"] > skipped["n_pairs"]).all()


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, {"method": "lsmr"}, "adaptive"),
        (None, {"every": "a month"}, "every"),
        (None, {"every": "sometimes"}, "every"),
        (None, {"every": "-30D"}, "no window fits"),
        (None, {"every": "2000D"}, "no window fits"),
        (None, {"every": ["2018-02-01", "2018-01-01"]}, "increase"),
        (None, {"every": ["2018-02-01"]}, "a window needs two dates"),
        (None, {"options": 3}, "AdaptiveOptions"),
        ("errors", {}, "vx_error"),
        ("pairs", {}, "at least one pair"),
        ("order", {}, r"later than image 1 \(found 100 pairs\)"),
        ("mapping", {}, "needs a variable 'mapping'"),
        ("coordinate", {}, "needs a variable 'x'"),
        ("empty", {}, r"at least one cell along x \(found 0\)"),
        ("point", {}, r"vx: must lie on \(mid_date, y, x\) \(found \('mid_date', 'y'\)\)"),
        ("text", {}, r"vy: must be numbers \[meter/year\] \(found dtype <U32\)"),
        ("array", {}, "must be an xarray.Dataset"),
        ("scalar error", {}, "vx_error: must lie on .* or on mid_date"),
        ("NaT", {}, "acquisition_date_img1: must be dates of all pairs: a date is missing"),
        ("number", {}, "acquisition_date_img1: must be dates of all pairs: numbers are no dates"),
        ("garbage", {}, "acquisition_date_img1: must be dates of all pairs: .*sometime"),
        (None, {"every": 30}, "every: not understood: numbers are no dates"),
        (None, {"every": "0D"}, "every: not understood: a step of nothing"),
        (None, {"every": ["2018-01-01", pd.NaT]}, "every: not understood: a date is missing"),
        (None, {"every": [["2018-01-01", "2018-02-01", "2018-03-01"]]}, "a window needs two dates"),
        (None, {"every": "30D", "length": "-5D"}, r"increase \(found '30D', '-5D'\)"),
        (None, {"every": [["2018-03-01", "2018-02-01"]]}, "increase"),
        (None, {"start": pd.NaT}, r"start: not a date: a date is missing \(found NaT\)"),
        (None, {"end": "sometime"}, "end: not a date: .*sometime"),
        (None, {"start": "1000-01-01"}, "start: not a date: Out of bounds"),
        (None, {"start": "2030-01-01"}, "no window fits into 2030-01-01 to 2018-11-30"),
        (None, {"end": "2000-01-01"}, "no window fits into 2017-01-23 to 2000-01-01"),
    ],
)
def test_wrong_parameters_are_named(change, arguments, message):
    """One line: the thing, the rule, the value, the fix."""
    cube, _ = velocity_cube("100")
    first, second = "acquisition_date_img1", "acquisition_date_img2"
    late = cube[first].copy(deep=True)
    late.values[3] = np.datetime64("NaT", "ns")
    spoil = {
        None: lambda: cube,
        "errors": lambda: cube.drop_vars("vx_error"),
        "pairs": lambda: cube.isel(mid_date=slice(0, 0)),
        "order": lambda: cube.assign_coords({first: cube[second], second: cube[first]}),
        "mapping": lambda: cube.drop_vars("mapping"),
        "coordinate": lambda: cube.drop_vars("x"),
        "empty": lambda: cube.isel(x=slice(0, 0)),
        "point": lambda: cube.isel(x=3),
        "text": lambda: cube.assign(vy=cube["vy"].astype(str)),
        "array": lambda: cube["vx"],
        "scalar error": lambda: cube.assign(vx_error=5.0),
        "NaT": lambda: cube.assign_coords({first: late}),
        "number": lambda: cube.assign_coords({first: ("mid_date", np.arange(100.0))}),
        "garbage": lambda: cube.assign_coords({first: ("mid_date", np.full(100, "sometime"))}),
    }
    with pytest.raises(ParameterError, match=message) as told:
        invert(spoil[change](), **arguments)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 400


@every_method
@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.isel(mid_date=[0]),
        lambda c: c.assign(vx=c["vx"] * np.nan),
        lambda c: c.assign(vy=c["vy"] * np.inf),
        *(lambda c, e=e: c.assign(vx_error=c["vx_error"] * 0 + np.float32(e)) for e in (-1, 0, np.nan, np.inf)),
    ],
)
def test_what_cannot_be_inverted_is_flagged(method, spoil):
    """One pair; no velocity; no velocity that is a number; negative, zero, missing and infinite errors."""
    cube, _ = small(method)
    series = invert(spoil(cube), method=method, start="2017-01-01", end="2020-01-01")
    assert len(series["time"]) >= 2
    assert (series["flag"] == flags.TOO_FEW_PAIRS).all()
    for name in ("vx", "vy", "v", "vx_error", "v_error"):
        assert np.isnan(series[name]).all()


@every_method
def test_repeated_pairs_give_no_worse_series(method):
    """Overlapping tiles repeat pairs, dates and all; three times the same noise is no less noise."""
    cube, truth = velocity_cube("500")
    cube = cube.isel(mid_date=slice(None, None, 2))

    def rmse(velocity):
        series = invert(velocity, method=method)
        vx, vy = truth.velocity(*series["time_bnds"].values.T)
        assert np.isfinite(series["vx"]).mean() > 0.9
        return np.sqrt(np.nanmean((series["vx"] - vx) ** 2 + (series["vy"] - vy) ** 2))

    assert rmse(xr.concat([cube] * 3, "mid_date", data_vars="minimal")) < 1.01 * rmse(cube)


def test_one_pair_repeated_is_one_pair():
    cube, _ = velocity_cube("500")
    series = invert(cube.isel(mid_date=np.zeros(50, int), y=[3], x=[3]), every="10D")
    assert (series["flag"] == flags.TOO_FEW_PAIRS).all()
    assert np.isnan(series["vx"]).all()


@every_method
def test_windows_outside_the_data_are_gaps(method):
    cube, _ = small(method)
    for every in (["2030-01-01", "2031-01-01", "2032-01-01"], [["1990-01-01", "1991-01-01"]]):
        series = invert(cube, method=method, every=every)
        assert (series["flag"] == flags.GAP).all()
        assert np.isnan(series["vx"]).all()


TOKYO = "Asia/Tokyo"


@pytest.mark.parametrize(
    "arguments",
    [
        {"every": pd.DatetimeIndex(["2017-03-01", "2018-03-01", "2019-03-01"], tz="UTC").tz_convert(TOKYO)},
        {"every": [pd.Timestamp("2017-03-01T09:00", tz=TOKYO), "2018-03-01", np.datetime64("2019-03-01", "D")]},
        {"every": np.array([pd.Timestamp("2017-03-01"), pd.Timestamp("2018-03-01T00Z"), "2019-03-01T00Z"], object)},
        {"every": [["2017-03-01", "2018-03-01"], [pd.Timestamp("2018-03-01T09:00+09:00"), "2019-03-01"]]},
        {"every": "YS-MAR", "start": pd.Timestamp("2017-03-01T09:00", tz=TOKYO)},
        {"every": "YS-MAR", "start": "2017-03-01T09:00+09:00", "end": pd.Timestamp("2019-03-01", tz="UTC")},
    ],
)
def test_time_zones_become_utc(arguments):
    """Alone or mixed with dates without a zone, which are UTC."""
    cube, _ = velocity_cube("500")
    bounds = invert(cube.isel(y=[3], x=[3]), **arguments)["time_bnds"].values
    years = np.array(["2017-03-01", "2018-03-01", "2019-03-01"], "M8[ns]")
    np.testing.assert_array_equal(bounds, np.stack([years[:-1], years[1:]], 1))


def test_time_zones_of_acquisitions_become_utc():
    cube, _ = velocity_cube("500")
    cube = cube.isel(y=[3], x=[3])
    dates = [pd.Timestamp(d) for d in cube["acquisition_date_img1"].values]
    zones = [d if k % 3 else d.tz_localize("UTC").tz_convert(TOKYO if k % 2 else "UTC") for k, d in enumerate(dates)]
    mixed = cube.assign_coords(acquisition_date_img1=("mid_date", np.array(zones, object)))
    assert mixed["acquisition_date_img1"].dtype == object
    xr.testing.assert_identical(invert(mixed), invert(cube))


def test_windows_from_a_list_and_from_months():
    t1, t2 = np.array(["2020-01-10"], "M8[ns]"), np.array(["2020-12-20"], "M8[ns]")
    years = windows(t1, t2, every=["2019-01-01", "2020-01-01", pd.Timestamp("2021-01-01")])
    assert years.shape == (2, 2)
    months = windows(t1, t2, every="MS")
    assert months[0, 0] == np.datetime64("2020-02-01")
    assert len(months) == 10
    assert len(windows(t1, t2, every="30D", start="2020-06-01", end="2020-08-30")) == 3
