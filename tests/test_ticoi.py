"""The estimator of TICOI: against dense least squares, against the published program, and for its known defects."""

import dataclasses
import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from scipy.signal import savgol_filter

from ogive import export, flags
from ogive.errors import ParameterError
from ogive.invert import Observations
from ogive.invert._pairs import pairs_of
from ogive.invert._prior import savitzky_golay
from ogive.invert.ticoi import TICOI, TicoiOptions, ticoi
from ogive.testing.velocity_cubes import velocity_cube

AUTHOR = "ITS_LIVE, a NASA MEaSUREs project (its-live.jpl.nasa.gov)"
DAY = np.timedelta64(86400 * 10**9, "ns")
OVERPASS = 17000.472


def network(seed, pairs=150, dates=45, length=600, pixels=1, longest=250):
    """Noisy pairs between random days, outliers among them, and errors of their own."""
    rng = np.random.default_rng(seed)
    days = np.sort(rng.choice(length, dates, replace=False))
    one, two = np.triu_indices(dates, 1)
    near = days[two] - days[one] <= longest
    pick = np.sort(rng.choice(near.sum(), pairs, replace=False))
    t1, t2 = (OVERPASS + days[i[near][pick]] for i in (one, two))
    error = rng.uniform(2, 20, (pairs, 1))
    phase = 2 * np.pi / 365
    season = (np.sin(phase * t2) - np.sin(phase * t1)) / phase
    mean = 120 + 60 * season / (t2 - t1)
    v = np.stack([mean, -0.5 * mean])[:, :, None] + rng.normal(0, 1, (2, pairs, pixels)) * error
    v[:, rng.random(pairs) < 0.12] += 500
    v[0, 3] = np.nan
    return Observations(t1, t2, v[0].copy(), v[1].copy(), error, error[::-1].copy())


def edges_of(start, stop, step, length):
    first = np.arange(start, stop - length + 1e-9, step)
    return np.stack([first, first + length], 1) + np.floor(OVERPASS)


def filtered(v, kind):
    """Which pairs a filter keeps, as the equations say."""
    if kind == "mz_score":
        middle = np.median(v, axis=1, keepdims=True)
        spread = np.median(np.abs(v - middle), axis=1, keepdims=True)
        return (0.6745 * np.abs(v - middle) < 3.5 * spread).all(axis=0)
    if kind == "median_angle":
        m, speed = np.median(v, axis=1), np.hypot(*v)
        if np.hypot(*m) > 10:
            return m @ v / (np.hypot(*m) * speed) > np.cos(np.pi / 4)
        return np.abs(speed - speed.mean()) < 3 * speed.std()
    return np.full(v.shape[1], True)


def smoothed(o, use, days, options):
    """Velocities [m/day] of the prior in every interval of `days`, from the pairs in use, both components."""
    middle, images = (o.t1 + o.t2) / 2, np.unique(np.concatenate([o.t1, o.t2]))
    between, short = (images[1:] + images[:-1]) / 2, np.floor(o.t2) - np.floor(o.t1) < options.select_baseline
    # The program's labels of pairs lie a fraction of a second late.
    label = middle + 2e-6
    origin = label[short].min()
    observed, wanted = np.floor(label - origin + 1e-7).astype(int), np.floor(between - origin).astype(int)
    shift = min(wanted.min(), 0)
    observed, wanted = observed - shift, wanted - shift
    daily = np.arange(max(wanted.max(), observed[short].max()) + 1)
    order = [j for j in np.lexsort((o.t1, np.round(middle, 6))) if use[j] and short[j]]
    t = observed[order] + np.arange(len(order)) * 1e-12  # of several pairs on a day the first counts
    centre = days[:-1] + np.diff(days) // 2
    nearest = [len(between) - 1 - np.argmin(np.abs(between - c)[::-1]) for c in centre]
    u = []
    for v in (o.vx[:, 0], o.vy[:, 0]):
        series = np.interp(daily, t, v[order])
        u.append(savgol_filter(series, options.t_win, options.order)[wanted][nearest] / 365)
    return np.array(u)


def dense(o, edges, options):
    """The whole method with dense matrices, in the displacements between images."""
    v, e = np.stack([o.vx[:, 0], o.vy[:, 0]]), np.stack([o.ex[:, 0], o.ey[:, 0]])
    use = np.isfinite(v).all(axis=0)
    use[use] = filtered(v[:, use], options.delete_outliers)
    one, two = np.floor(o.t1), np.floor(o.t2)
    dt = two - one
    days = np.unique(np.concatenate([one[use], two[use]]))
    delta, count = np.diff(days), len(days) - 1
    a = ((one[use, None] <= days[:-1]) & (days[1:] <= two[use, None])).astype(float)
    y = (v * dt / 365)[:, use]
    if options.regu == "2":
        mu = np.zeros((count - 2, count))
        for k in range(count - 2):
            mu[k, k : k + 3] = np.array([1, -2, 1]) / delta[k : k + 3]
    else:
        mu = np.zeros((count - 1, count))
        for k in range(count - 1):
            mu[k, k : k + 2] = np.array([-1, 1]) / delta[k : k + 2]
    steps = np.zeros((2, len(mu)))
    if options.regu == "1accelnotnull":
        steps = np.diff(smoothed(o, use, days, options), axis=1)
    q = np.ones((2, use.sum()))
    if options.apriori_weight:
        e_used = e[:, use]
        low, high = e_used.min(axis=1, keepdims=True), e_used.max(axis=1, keepdims=True)
        q = 1 - (e_used - low) / (high - low)
    w, x = q * (dt[use] <= 180 if options.detect_temporal_decorrelation else 1), None
    for solution in range(1, options.nb_max_iteration + 1):
        old, x = x, np.array([
            np.linalg.lstsq(
                np.vstack([w[c][:, None] * a, options.coef * mu]),
                np.concatenate([w[c] * y[c], options.coef * steps[c]]), rcond=None,
            )[0] for c in range(2)
        ])  # fmt: skip
        if solution > 1 and (np.abs(x - old).mean(axis=1) <= options.threshold_it).all():
            break
        if solution == options.nb_max_iteration or use.sum() < count:
            break
        r = y - x @ a.T
        s = np.median(np.abs(r - np.median(r, axis=1, keepdims=True)), axis=1, keepdims=True) / 0.6745
        z = r / s / 4.685
        w = np.where(np.abs(z) <= 1, (1 - z**2) ** 2, 0) * (q if options.apriori_weight_in_second_iteration else 1)
    cumulated = np.tril(np.ones((count, count)))
    spline = CubicSpline(days[1:], np.eye(count), bc_type="not-a-knot")
    g = (spline(edges[:, 1]) - spline(edges[:, 0])) @ cumulated
    to_year = 365 / (edges[:, 1] - edges[:, 0])
    inside = (edges[:, 0] >= days[1]) & (edges[:, 1] <= days[-1])
    r, variance, xcount = y - x @ a.T, [], []
    for c in range(2):
        normal = np.linalg.inv(a.T @ (w[c][:, None] ** 2 * a) + options.coef**2 * mu.T @ mu)
        noise = np.maximum(r[c] ** 2, (e[c] * dt / 365)[use] ** 2)
        h = g @ normal @ a.T * w[c] ** 2
        variance.append((h**2 * noise).sum(axis=1))
        xcount.append(np.maximum(g @ (w[c] @ a), 0))
    overlap = (one[use] < edges[:, 1:]) & (two[use] > edges[:, :1])
    out = {"vx": g @ x[0] * to_year, "vy": g @ x[1] * to_year, "xcount_x": xcount[0], "xcount_y": xcount[1],
           "vx_error": variance[0] ** 0.5 * to_year, "vy_error": variance[1] ** 0.5 * to_year,
           "count": overlap @ w.mean(axis=0)}  # fmt: skip
    return out, inside, {"passes": solution, "n_rejected": (w == 0).all(axis=0).sum(), "used": use.sum()}


CASES = [
    {"regu": "1"},
    {"regu": "1accelnotnull"},
    {"regu": "2"},
    {"regu": "1", "delete_outliers": "mz_score", "coef": 30.0},
    {"regu": "1accelnotnull", "delete_outliers": "median_angle", "t_win": 91, "order": 2, "select_baseline": 120.0},
    {"regu": "1", "apriori_weight": True, "detect_temporal_decorrelation": False},
    {"regu": "1", "apriori_weight": True, "apriori_weight_in_second_iteration": True, "nb_max_iteration": 3},
    {"regu": "1accelnotnull", "nb_max_iteration": 1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_dense_least_squares(case, seed):
    o, options = network(seed), TicoiOptions(min_count=1e-3, **case)
    edges = np.concatenate([edges_of(0, 600, 5, 30), edges_of(40, 500, 100, 365), [[17100.3, 17104.7]]])
    series, (expected, inside, one) = ticoi(o, edges, options), dense(o, edges, options)
    valid = series["flag"][:, 0] == 0
    np.testing.assert_array_equal(valid, inside & (expected["count"] > 1e-3))
    assert 90 < valid.sum() < len(edges)
    assert series["passes"][0] == one["passes"]
    assert series["n_rejected"][0] == one["n_rejected"]
    assert series["n_pairs"][0] - series["n_screened"][0] == one["used"]
    assert (one["used"] < 149) == (options.delete_outliers is not None)
    assert np.ptp(expected["vx"][valid]) > 30
    for name, value in expected.items():
        scale = np.abs(value[valid]).max()
        np.testing.assert_allclose(series[name][valid, 0], value[valid], rtol=1e-9, atol=1e-9 * scale, err_msg=name)
        if name not in ("count",):
            assert np.isnan(series[name][~valid, 0]).all()


def test_fewer_pairs_than_intervals_keep_the_first_solution():
    o, options = network(3, pairs=40, dates=60), TicoiOptions(regu="1", min_count=1e-3)
    edges = edges_of(0, 600, 15, 60)
    series, (expected, _, one) = ticoi(o, edges, options), dense(o, edges, options)
    valid = series["flag"][:, 0] == 0
    assert one["passes"] == series["passes"][0] == 1
    assert valid.sum() > 10
    np.testing.assert_allclose(series["vx"][valid, 0], expected["vx"][valid], rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize(("window", "order"), [(90, 3), (91, 3), (30, 2), (7, 0)])
def test_prior_filter_is_that_of_scipy(window, order):
    every, middle = savitzky_golay(window, order)
    x = np.random.default_rng(0).normal(size=4 * window)
    half = window // 2
    found = np.concatenate([
        every[:half] @ x[:window],
        [middle @ x[i - (window - 1) // 2 :][:window] for i in range(half, len(x) - half)],
        every[window - half :] @ x[-window:],
    ])  # fmt: skip
    np.testing.assert_allclose(found, savgol_filter(x, window, order), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("regu", ["1", "1accelnotnull", "2"])
def test_constant_velocity_is_exact(regu):
    """Also where the second image of a pair is earlier in the day than the first."""
    o, rng = network(4), np.random.default_rng(0)
    t1, t2 = (np.floor(t) + rng.uniform(0.4, 0.5, 150) for t in (o.t1, o.t2))
    flat = dataclasses.replace(o, t1=t1, t2=t2, vx=np.full_like(o.vx, 182.5), vy=np.full_like(o.vy, -36.5))
    series = ticoi(flat, edges_of(60, 540, 30, 30), TicoiOptions(regu=regu))
    np.testing.assert_allclose(series["vx"], 182.5, rtol=1e-9)
    np.testing.assert_allclose(series["vy"], -36.5, rtol=1e-9)
    assert not series["flag"].any()
    assert series["n_rejected"][0] == 0
    assert series["passes"][0] == 2


def test_regularisation_2_leaves_a_steady_change_alone():
    """Velocity that changes evenly is not penalised, whatever the weight."""
    days = OVERPASS + np.arange(0.0, 300.0, 10.0)
    one, two = np.triu_indices(len(days), 1)
    near = two - one < 6
    t1, t2 = days[one[near]], days[two[near]]
    v = (100 + 0.4 * ((t1 + t2) / 2 - OVERPASS))[:, None]
    edges = edges_of(20, 280, 20, 20)
    o = Observations(t1, t2, v, 2 * v, np.ones_like(v), np.ones_like(v))
    series = ticoi(o, edges, TicoiOptions(regu="2", coef=1e4))
    expected = 100 + 0.4 * (edges.mean(axis=1) - np.floor(OVERPASS))
    np.testing.assert_allclose(series["vx"][:, 0], expected, rtol=1e-6)
    stiff = ticoi(o, edges, TicoiOptions(regu="1", coef=1e4))
    assert np.ptp(stiff["vx"]) < 0.5 * np.ptp(expected)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), regu=st.sampled_from(["1", "1accelnotnull"]))
def test_order_of_the_pairs_does_not_matter(seed, regu):
    o = network(seed, pairs=100)
    # Tiles that overlap give one pair of dates more than once, each with its own velocity.
    arrays = [np.concatenate([a, a[::3]]) for a in (o.t1, o.t2, o.vx, o.vy, o.ex, o.ey)]
    arrays[2][100:] += 25.0
    order = np.random.default_rng(seed).permutation(len(arrays[0]))
    edges, options = edges_of(0, 600, 30, 30), TicoiOptions(regu=regu)
    a = ticoi(Observations(*arrays), edges, options)
    b = ticoi(Observations(*(array[order] for array in arrays)), edges, options)
    assert (a["flag"] == 0).sum() > 10
    for name in a:
        np.testing.assert_allclose(b[name], a[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_scales_with_the_unit(factor):
    o, edges = network(5), edges_of(0, 600, 30, 30)
    other = dataclasses.replace(o, vx=o.vx * factor, vy=o.vy * factor, ex=o.ex * factor, ey=o.ey * factor)
    a = ticoi(o, edges, TicoiOptions())
    b = ticoi(other, edges, TicoiOptions(threshold_it=0.1 * factor))  # the stop is in metres
    assert np.isfinite(a["vx"]).sum() > 10
    for name in ("vx", "vy", "v", "vx_error", "vy_error", "v_error"):
        np.testing.assert_allclose(b[name], a[name] * factor, rtol=1e-9)


def test_a_pixel_does_not_depend_on_the_others():
    cube, _ = velocity_cube("100")
    o = observed(cube)
    edges = windows_of(o)
    whole = ticoi(o, edges, TicoiOptions())
    part = ticoi(dataclasses.replace(o, vx=o.vx[:, 70:72], vy=o.vy[:, 70:72]), edges, TicoiOptions())
    assert set(whole) == set(TICOI.variables)
    assert np.isfinite(part["vx"]).any()
    for name, value in part.items():
        np.testing.assert_array_equal(value, whole[name][..., 70:72])


def test_equal_errors_all_long_pairs_and_no_short_ones_still_give_a_result():
    """Weights from errors that are all equal; no pair for the first solution; none for the prior."""
    o, edges = network(6, longest=500, pairs=300), edges_of(100, 500, 100, 100)
    equal = dataclasses.replace(o, ex=np.full_like(o.ex, 5.0), ey=np.full_like(o.ey, 5.0))
    a, b = (ticoi(equal, edges, TicoiOptions(apriori_weight=w)) for w in (True, False))
    np.testing.assert_array_equal(a["vx"], b["vx"])
    long = np.floor(o.t2 - o.t1) > 185
    only = Observations(*(a[long].copy() for a in (o.t1, o.t2, o.vx, o.vy, o.ex, o.ey)))
    series = ticoi(only, edges, TicoiOptions())
    assert np.isfinite(series["vx"]).all()
    assert series["n_prior"][0] == 0
    np.testing.assert_array_equal(series["vx"], ticoi(only, edges, TicoiOptions(regu="1"))["vx"])
    assert ticoi(o, edges, TicoiOptions())["n_prior"][0] == np.isfinite(o.vx[~(np.floor(o.t2 - o.t1) >= 180)]).sum()


def test_gaps_few_pairs_and_filtered_pairs_are_flagged():
    o = network(7, pixels=4, pairs=200, dates=70, longest=60)
    start, end = 17250.0, 17330.0
    o.vx[(o.t2 > start) & (o.t1 < end), 1] = np.nan
    o.vx[9:, 2] = np.nan
    # Half of the pairs are at one place and half at another: nothing lies near both medians.
    o.vx[:, 3] = np.random.default_rng(0).normal(0, 1e-3, 200)
    o.vy[:, 3] = np.arange(200) % 2 * 1000.0
    edges = edges_of(-60, 660, 10, 30)
    series = ticoi(o, edges, TicoiOptions(delete_outliers="mz_score", min_pairs=12))
    outside = (edges[:, 0] < o.t1.min()) | (edges[:, 1] > o.t2.max())
    hole = (edges[:, 0] >= start) & (edges[:, 1] <= end)
    assert outside.sum() > 5
    assert hole.sum() > 3
    assert (series["flag"][outside, 0] == flags.GAP).all()
    assert (series["flag"][hole, 1] == flags.GAP).all()
    assert np.isnan(series["vx"][hole, 1]).all()
    assert (series["flag"][hole, 0] == 0).all()
    assert (series["flag"][:, 2] == flags.TOO_FEW_PAIRS).all()
    assert np.isfinite(series["vx"][series["flag"] == 0]).all()
    assert np.isnan(series["vx"][series["flag"] != 0]).all()
    direction = ticoi(o, edges, TicoiOptions(delete_outliers="median_angle", min_pairs=150))
    assert (direction["flag"][:, 3] == flags.SCREENED).all()
    assert direction["n_screened"][3] >= 100


def test_without_errors_all_else_is_the_same():
    o, edges = network(8), edges_of(0, 600, 30, 30)
    a, b = (ticoi(o, edges, TicoiOptions(error_propagation=p)) for p in (True, False))
    for name in a:
        if name.endswith("error"):
            assert np.isnan(b[name]).all()
            assert np.isfinite(a[name]).any()
        else:
            np.testing.assert_array_equal(a[name], b[name])


def test_error_is_that_of_many_repeats():
    """With weights that are all 1 the method is linear: the spread of its results is the error that it gives."""
    o = network(9, pixels=600)
    rng = np.random.default_rng(0)
    v = (100 + rng.normal(0, 1, (2, 150, 600)) * np.stack([o.ex, o.ey])).astype(float)
    noisy = dataclasses.replace(o, vx=v[0], vy=v[1])
    options = TicoiOptions(regu="1", nb_max_iteration=1, detect_temporal_decorrelation=False)
    edges = edges_of(60, 560, 50, 50)
    series = ticoi(noisy, edges, options)
    # The larger of variance and squared residual is 1.4 variances in the mean, for Gaussian errors.
    for name in ("vx", "vy"):
        given = np.sqrt((series[f"{name}_error"] ** 2).mean(axis=1))
        ratio = series[name].std(axis=1) / given
        assert (ratio > 0.7).all()
        assert (ratio < 1.0).all()


@pytest.mark.parametrize(
    "bad",
    [{"regu": 1}, {"regu": "directionxy"}, {"delete_outliers": 50}, {"coef": 0.0}, {"t_win": 3}, {"min_pairs": 0}],
    ids=str,
)
def test_options_are_checked(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        TicoiOptions(**bad)


def observed(cube):
    """Observations of all pixels of a cube."""
    fields, t1, _ = pairs_of(cube)
    vx, vy = (np.ascontiguousarray(cube[name].values.reshape(t1.size, -1)) for name in ("vx", "vy"))
    ex, ey = (cube[f"{name}_error"].values.astype(float)[:, None] for name in ("vx", "vy"))
    return Observations(vx=vx, vy=vy, ex=ex, ey=ey, **fields)


def windows_of(o, step=5.0, length=30.0):
    start = np.arange(np.floor(o.t1.min()), np.floor(o.t2.max()) - length + 1, step)
    return np.stack([start, start + length], 1)


@pytest.mark.skipif(importlib.util.find_spec("ticoi") is None, reason="needs ticoi (extra interop)")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("delete_outliers", [None, "mz_score", "median_angle"])
@pytest.mark.parametrize("regu", ["1", "1accelnotnull"])
@pytest.mark.parametrize("name", ["100", "500", "2000"])
def test_agrees_with_the_published_program(name, regu, delete_outliers, tmp_path, monkeypatch):
    """Nine pixels, from the same cube on disk: the median difference of 30-day velocities is below 0.01 m/yr.

    The program shifts equal days by random numbers, and with them its prior; here by next to nothing, in order.
    """
    from ticoi.core import process
    from ticoi.cube_data_classxr import CubeDataClass

    monkeypatch.setattr(np.random, "uniform", lambda low=0, high=1, size=None: np.arange(np.prod(size)) * 1e-9)
    cube, _ = velocity_cube(name)
    cube = cube.isel(y=slice(0, 12, 5), x=slice(0, 12, 5))  # more than three pixels would be averaged in its prior
    sentinel = cube["satellite_img1"].values == "2A"
    codes = {f"{k}_img{i}": ("mid_date", np.where(sentinel, *v)) for i in (1, 2)
             for k, v in {"mission": ("S", "L"), "sensor": ("MSI", "C")}.items()}  # fmt: skip
    export.to_itslive(cube.assign_coords(codes), tmp_path / "cube.zarr", author=AUTHOR)
    peer = CubeDataClass()
    peer.load(str(tmp_path / "cube.zarr"), chunks=-1)
    first, last = peer.prepare_interpolation_date()
    prior, _ = peer.filter_cube_before_inversion(delete_outliers=delete_outliers, regu=regu, proj=peer.ds.proj4)
    o, options = observed(cube), TicoiOptions(regu=regu, delete_outliers=delete_outliers, min_count=1e-6)
    difference, both, either = [], 0, 0
    for pixel in range(9):
        y, x = (float(cube[d][i]) for d, i in zip("yx", divmod(pixel, 3), strict=True))
        theirs = process(
            peer, x, y, None, regu=regu, obs_filt=prior, first_date_interpol=first, last_date_interpol=last,
            proj=peer.ds.proj4, conf=False,
        )  # fmt: skip
        edges = np.stack([(theirs[d].values - np.datetime64("1970-01-01", "ns")) / DAY for d in ("date1", "date2")], 1)
        if pixel == 0:
            ours = ticoi(o, edges, options)
        for c in ("vx", "vy"):
            difference.append(np.abs(ours[c][:, pixel] - theirs[c].values))
            valid = np.isfinite(ours[c][:, pixel]), np.isfinite(theirs[c].values)
            both, either = both + (valid[0] & valid[1]).sum(), either + (valid[0] | valid[1]).sum()
    difference = np.concatenate(difference)
    difference = difference[np.isfinite(difference)]
    assert both > 0.95 * either > 1500
    assert np.median(difference) <= 0.01
    assert np.quantile(difference, 0.9) <= 0.5
