"""Screening: free where nothing has decorrelated, decisive where it has, on truth, by brute force and on real data."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from ogive.errors import ParameterError
from ogive.invert import AdaptiveOptions, Observations, Screening, invert, screen
from ogive.invert._pairs import pairs_of
from ogive.invert._screen import reasons_of
from ogive.invert.screening import (
    DIRECTION,
    ITS_LIVE,
    LONG_BASELINE,
    MEANINGS,
    MISSING,
    NOTHING,
    SENSOR,
    TOO_FAST,
    displacement_sigma,
    gather,
    rules_of,
)
from ogive.testing import holdout
from ogive.testing.velocity_cubes import CUBES, velocity_cube


def observe(t1, days, vx, vy, error=10.0, **more):
    t1, days = np.asarray(t1, float), np.asarray(days, float)
    e = np.full((t1.size, 1), error)
    columns = [np.asarray(v, np.float32).reshape(t1.size, -1) for v in (vx, vy)]
    return Observations(t1, t1 + days, *columns, e, e, **more)


def gathered(o, screening, pixel=0):
    reasons = np.empty(o.t1.size, np.uint8)
    answer = gather(o.arrays, pixel, rules_of(screening, o), reasons, np.empty(o.t1.size))
    return (*answer, reasons)


def glacier(rng, short=60, long=60, stuck=0.05, speed=500.0):
    """Short pairs that flow at 30 degrees, and long ones of which only a share of the speed is left."""
    days = np.concatenate([rng.choice([10, 16, 24], short), rng.integers(200, 400, long)])
    v = np.where(days > 180, stuck, 1.0) * speed
    noise = rng.normal(0, 0.1 * speed, (2, days.size))
    turn = np.deg2rad(30)
    return observe(rng.uniform(0, 900, days.size), days, v * np.cos(turn) + noise[0], v * np.sin(turn) + noise[1])


@pytest.mark.parametrize("name", CUBES)
def test_default_leaves_out_nothing_on_the_synthetic_cubes(name):
    """No decorrelation in them: not one pair of any pixel is touched, so the inversion has the same bits."""
    cube, _ = velocity_cube(name)
    screened = screen(cube)["screened"].values
    assert set(np.unique(screened)) == {0, MISSING}
    assert (screened == MISSING).sum() == int(np.isnan(cube["vx"]).sum()) > 600


def test_default_and_no_screening_agree_where_nothing_has_decorrelated():
    cube, _ = velocity_cube("fast")
    cube = cube.isel(y=slice(0, 2), x=slice(0, 2))
    xr.testing.assert_equal(invert(cube), invert(cube, screening=None))


@pytest.mark.parametrize("speed", [20.0, 500.0, 8000.0])
def test_stuck_long_pairs_are_seen_at_any_speed(speed):
    o = glacier(np.random.default_rng(1), speed=speed)
    valid, kept, longest, reasons = gathered(o, Screening())
    long = o.t2 - o.t1 > 180
    assert (valid, longest) == (120, 180.0)
    assert ((reasons & LONG_BASELINE > 0) == long).all()
    assert kept == (reasons == 0).sum() == 60


def test_slower_long_pairs_of_a_season_are_kept():
    o = glacier(np.random.default_rng(2), stuck=0.8)
    valid, kept, longest, _ = gathered(o, Screening())
    assert valid == kept == 120
    assert longest == np.inf


def test_few_long_pairs_say_nothing():
    o = glacier(np.random.default_rng(3), long=19)
    assert gathered(o, Screening())[2] == np.inf
    assert gathered(o, Screening(min_pairs=19))[2] == 180.0


def test_a_repeated_image_pair_is_one_witness():
    """Overlapping tiles give one pair of images twenty times; that is not twenty measurements."""
    o = glacier(np.random.default_rng(4), long=2)
    rows = np.concatenate([np.arange(60), np.repeat([60, 61], 30)])
    fields = {name: getattr(o, name)[rows] for name in ("t1", "t2", "vx", "vy", "ex", "ey", "image1", "image2")}
    assert gathered(Observations(**fields), Screening())[2] == np.inf
    apart = {**fields, "t1": fields["t1"] + np.linspace(0, 90, 120), "t2": fields["t2"] + np.linspace(0, 90, 120)}
    del apart["image1"], apart["image2"]
    assert gathered(Observations(**apart), Screening())[2] == 180.0


def test_direction_against_brute_force():
    rng = np.random.default_rng(5)
    o = glacier(rng)
    turned = replace(o, vx=o.vx.copy(), vy=o.vy.copy())
    turned.vx[3], turned.vy[3] = -o.vx[3], -o.vy[3]
    turned.vx[4], turned.vy[4] = 0.0, 0.0
    flow = np.deg2rad(30)
    angle = np.degrees(np.abs(np.arctan2(turned.vy[:, 0], turned.vx[:, 0]) - flow))
    angle = np.minimum(angle, 360 - angle)
    clear = np.abs(angle - 45) > 5  # the reference direction is itself known to a few degrees
    clear[4] = False
    for mode in ("always", "decorrelated"):
        reasons = gathered(turned, Screening(direction=mode))[3]
        np.testing.assert_array_equal((reasons & DIRECTION > 0)[clear], (angle > 45)[clear])
        assert reasons[3] == reasons[4] == DIRECTION
    assert not (gathered(turned, Screening(direction="never"))[3] & DIRECTION).any()
    assert not (gathered(glacier(rng, stuck=1.0), Screening())[3] & DIRECTION).any()


def test_limit_in_days_knows_no_seconds():
    o = observe([0, 0, 0], [16.0001, 15.9999, 17.0], [1, 2, 3], [1, 2, 3])
    assert gathered(o, Screening(dt_max=16))[3].tolist() == [0, 0, LONG_BASELINE]


def test_missing_errors_excluded_groups_and_speeds():
    o = observe(
        [0, 1, 2, 3], [10] * 4, [1, np.nan, 1, 9e4], [1] * 4, group=np.array([0, 0, 1, 1]), groups=("L7", "S1A_S1B")
    )
    o.ex[0] = 0.0
    valid, kept, _, reasons = gathered(o, Screening(exclude=("S1A_S1B",), fastest=2e4))
    assert reasons.tolist() == [MISSING, MISSING, SENSOR, SENSOR | TOO_FAST]
    assert (valid, kept) == (2, 0)
    assert gathered(o, NOTHING)[3].tolist() == gathered(o, None)[3].tolist() == [MISSING, MISSING, 0, 0]


def test_floor_of_the_displacement_sigma():
    o = observe([0, 0], [73.0, 365.0], [1, 1], [1, 1], error=20.0)
    sigma = [displacement_sigma(o.arrays, rules_of(Screening(floor=3.0), o), j, 0) for j in (0, 1)]
    np.testing.assert_allclose(sigma, np.hypot([[4, 4], [20, 20]], 3))
    np.testing.assert_allclose(displacement_sigma(o.arrays, rules_of(None, o), 0, 0), 4)


def its_live_dt_max(days, vx, vy, group):
    """dt_max by group, in NumPy, from the published description."""
    edges = [0, 16, 32, 64, 128, 256, np.inf]
    upper = next((e for e in edges[1:] if (days <= e).sum() >= 50), np.inf)
    v0 = np.array([np.median(v[days <= upper]) for v in (vx, vy)])
    if np.hypot(*v0) <= 50:
        return dict.fromkeys(set(group), np.inf)
    along = (vx * v0[0] + vy * v0[1]) / np.hypot(*v0)
    limits = {}
    for g in set(group):
        bins = []
        for low, high in pairwise(edges):
            v = along[(group == g) & (days >= low) & (days < high)]
            if v.size:
                middle = np.median(v)
                half = 0.67 * 1.4826 * np.median(np.abs(v - middle))
                bins.append((low, v.size, middle - half, middle + half))
        reference = next((b for b in bins if b[1] >= 49), next((b for b in bins if b[3] != 0), None))
        different = [b[0] for b in bins if b[2] > reference[3] or b[3] < reference[2]]
        limits[g] = min(different, default=np.inf)
    return limits


@pytest.mark.parametrize("seed", range(6))
def test_dt_max_of_its_live_against_numpy(seed):
    rng = np.random.default_rng(seed)
    n = 400
    days = rng.integers(5, 400, n).astype(float)
    group = rng.integers(0, 2, n)
    speed = np.where(days > rng.choice([40, 100, 200, 500], 2)[group], 20.0, 300.0 if seed else 40.0)
    vx, vy = (speed * s + rng.normal(0, 40, n) for s in (0.8, 0.6))
    vx, vy = vx.astype(np.float32), vy.astype(np.float32)
    o = observe(np.zeros(n), days, vx, vy, group=group, groups=("L8_L9", "S2A_S2B"))
    _, kept, longest, reasons = gathered(o, ITS_LIVE)
    limits = its_live_dt_max(days, vx.astype(float), vy.astype(float), group)
    assert (seed == 0) == all(limit == np.inf for limit in limits.values())
    np.testing.assert_array_equal(reasons, np.where(days > np.array([limits[g] for g in group]), LONG_BASELINE, 0))
    assert kept == (reasons == 0).sum()
    assert longest == max(limits.values())


def test_a_group_slower_than_sentinel_2_is_left_out():
    rng = np.random.default_rng(7)
    n = 600
    t1, group = rng.uniform(0, 900, n), rng.integers(0, 3, n)
    v = np.array([60.0, 100.0, 98.0])[group] + rng.normal(0, 10, n)
    o = observe(t1, np.full(n, 12.0), v, 0 * v, group=group, groups=("S1A_S1B", "S2A_S2B", "L8_L9"))
    reasons = gathered(o, Screening(compare_groups=True))[3]
    np.testing.assert_array_equal(reasons, np.where(group == 0, SENSOR, 0))
    assert not gathered(o, Screening())[3].any()
    faster = replace(o, vx=np.where(group[:, None] == 0, 2 * o.vx, o.vx))
    assert not gathered(faster, Screening(compare_groups=True))[3].any()


@given(order=st.permutations(range(120)), factor=st.floats(0.01, 20))
def test_order_and_unit_do_not_matter(order, factor):
    o = glacier(np.random.default_rng(8))
    names = ("t1", "t2", "vx", "vy", "ex", "ey", "image1", "image2")
    fields = {name: getattr(o, name)[list(order)] for name in names}
    for name in ("vx", "vy"):
        fields[name] = (fields[name] * np.float32(factor)).astype(np.float32)
    expected = gathered(o, Screening())[3]
    assert expected.any()
    np.testing.assert_array_equal(gathered(Observations(**fields), Screening())[3], expected[list(order)])


def test_screen_marks_lazily_and_deletes_nothing():
    cube, _ = velocity_cube("100")
    rule = Screening(dt_max=100, direction="always")
    whole = screen(cube, rule)
    xr.testing.assert_identical(whole.drop_vars("screened"), cube)
    lazy = screen(cube.chunk(mid_date=30, y=5, x=4), rule)
    assert lazy["screened"].chunks == ((100,), (5, 5, 2), (4, 4, 4))
    xr.testing.assert_identical(lazy["screened"].compute(), whole["screened"])
    attrs = whole["screened"].attrs
    assert whole["screened"].dtype == attrs["flag_masks"].dtype == np.uint8
    assert len(attrs["flag_meanings"].split()) == attrs["flag_masks"].size == len(MEANINGS)
    series = invert(cube, screening=rule)
    np.testing.assert_array_equal(series["n_screened"], ((whole["screened"] & ~np.uint8(MISSING)) > 0).sum("mid_date"))
    assert float(series["n_screened"].min()) > 5
    assert (series["dt_max"] == 100).all()


def test_screen_with_errors_per_pixel_and_transposed():
    cube, _ = velocity_cube("100")
    error = (cube["vx_error"] * xr.ones_like(cube["vx"])).copy()
    error[:, 2, 3] = np.nan
    marked = screen(cube.assign(vx_error=error.transpose("y", "x", "mid_date")).chunk(y=4))["screened"]
    assert (marked[:, 2, 3] == MISSING).all()
    assert (marked[:, 2, 4] == MISSING).mean() < 0.2


@pytest.mark.parametrize(
    "bad",
    [{"dt_max": 0}, {"dt_max": "some"}, {"dt_max": True}, {"direction": "often"}, {"floor": -1}, {"exclude": "L7"},
     {"angle": 200}, {"long": 3}, {"min_pairs": 1}, {"slowdown": 2}, {"contrast": -1}, {"certainty": np.nan},
     {"fastest": 0}],
)  # fmt: skip
def test_wrong_rules_are_named(bad):
    with pytest.raises(ParameterError, match=f"Screening.{next(iter(bad))}"):
        Screening(**bad)


def test_a_misspelt_group_is_an_error_before_anything_runs():
    cube, _ = velocity_cube("100")
    wrong = Screening(exclude=("S1A",))
    for call in (lambda: screen(cube.chunk(y=4), wrong), lambda: invert(cube.chunk(y=4), screening=wrong)):
        with pytest.raises(ParameterError, match="S1A_S1B"):
            call()
    with pytest.raises(ParameterError, match="must be a Screening"):
        screen(cube, None)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "best", "count"), [("columbia", 91.6, 321), ("jakobshavn", 218.9, 378), ("se_tibet", 18.7, 15057)]
)
def test_hold_outs_reach_the_best_tuned_inversion(data, name, best, count):
    """Every pair kept back is predicted, whatever covers it, as the regularised inversion behind `best` does."""
    held = holdout.SETS[name](data)
    every = AdaptiveOptions(min_count=1e-6)
    default, none = (holdout.score(held, options=every, screening=s) for s in (Screening(), None))
    assert default["count"] == count
    assert default["valid"] > 0.95
    assert default["median"] <= best
    assert none["median"] > 1.2 * default["median"]


@pytest.mark.real
@pytest.mark.parametrize("name", holdout.POINTS)
def test_decorrelation_is_seen_at_the_real_points(data, name):
    assert gathered(holdout.point(data, name).training, Screening())[2] == 180.0


@pytest.mark.real
def test_decorrelation_is_seen_on_the_fast_pixels_of_the_real_cube(data):
    o = holdout.cube(data).training
    seen = (reasons_of(o, Screening()) & LONG_BASELINE > 0).any(0)
    assert seen.size == 50
    assert 0.4 <= seen.mean() < 0.9


@pytest.mark.real
def test_the_real_cube_repeats_pairs(data):
    ds = xr.open_zarr(data / holdout.CUBE, decode_timedelta=False)
    fields, t1, t2 = pairs_of(ds)
    images = np.stack([fields["image1"], fields["image2"]], 1)
    assert len(np.unique(images, axis=0)) < 0.6 * len(images)
    assert (t2 > t1).all()
