"""Filters only add flags; the same bits for every chunking; tests against plain implementations; scores on truth."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from ogive import _neighbours as neighbours
from ogive import flags, grid
from ogive.errors import ParameterError
from ogive.filters import (
    agreement,
    correlation,
    fill,
    local_median,
    neighbour_test,
    outliers,
    speed_limit,
    vector_median,
)
from ogive.kernels import NCC
from ogive.testing.pairs import truth_pair

ANY_PEAK = {"min_correlation": 0.0, "max_peak_ratio": 1.0}
NEIGHBOUR_FILTERS = {
    "agreement": agreement,
    "local_median": local_median,
    "vector_median": vector_median,
    "outliers": outliers,
}


def world(shape=(3, 23, 19), chip=640, seed=5):
    """Smooth flow with 5 % wild vectors and 20 % holes; cells of 80 m."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[1], : shape[2]]
    smooth = 300 + 3.0 * x + 2.0 * y
    vx = smooth + rng.normal(0, 2, shape)
    vy = 0.5 * smooth + rng.normal(0, 2, shape)
    wild = rng.random(shape) < 0.05
    vx = np.where(wild, rng.uniform(-2000, 2000, shape), vx)
    hole = rng.random(shape) < 0.2
    vx, vy = (np.where(hole, np.nan, a).astype(np.float32) for a in (vx, vy))
    box = GeoBox(shape[1:], Affine(80, 0, 600000, 0, -80, 5000000), "EPSG:32632")
    t1 = np.datetime64("2020-01-01", "ns") + np.zeros(shape[0], "m8[ns]")
    t2 = t1 + np.array([16, 32, 64][: shape[0]]) * np.timedelta64(1, "D")
    dims = ("mid_date", "y", "x")
    return xr.Dataset(
        {
            "vx": (dims, vx, {"units": "meter/year"}),
            "vy": (dims, vy, {"units": "meter/year"}),
            "v": (dims, np.hypot(vx, vy), {"units": "meter/year"}),
            "corr": (dims, rng.random(shape).astype(np.float32)),
            "vx_error_px": (dims, np.where(hole, np.nan, 0.05).astype(np.float32), {"units": "px"}),
            "interp_mask": (dims, np.zeros(shape, np.uint8), {"long_name": "1 = interpolated"}),
            "chip_size_width": (dims, rng.choice([160, chip], shape).astype(np.uint16)),
            "flag": (dims, np.where(hole, flags.NO_DATA, flags.NOT_REFINED).astype(np.uint16), flags.attributes()),
            "wild": (dims, wild & ~hole),
        },
        {
            "mid_date": t1 + (t2 - t1) // 2,
            "acquisition_date_img1": ("mid_date", t1),
            "acquisition_date_img2": ("mid_date", t2),
            **grid.coordinates(box),
            "mapping": grid.mapping(box),
        },
    )


def plain(dx, dy, stride, *, scaled, threshold, noise):
    """The test of one field, written for reading."""
    height, width = dx.shape
    bits = np.zeros(dx.shape, np.uint16)
    good = np.isfinite(dx + dy)
    for y, x in zip(*np.nonzero(good), strict=True):
        s = stride[y, x]
        around = [(y + a * s, x + b * s) for a in range(-2, 3) for b in range(-2, 3) if (a, b) != (0, 0)]
        around = [(i, j) for i, j in around if 0 <= i < height and 0 <= j < width and good[i, j]]
        if len(around) < 5:
            bits[y, x] = flags.FEW_NEIGHBOURS
            continue
        for d in (dx, dy):
            near = np.array([d[p] for p in around])
            mad = np.median(np.abs(near - np.median(near)))
            limit = threshold * (mad + noise) if scaled else max(threshold * mad, noise)
            if abs(d[y, x] - np.median(near)) > limit:
                bits[y, x] = flags.OUTLIER
    return bits


@pytest.mark.parametrize("scaled", [True, False])
def test_neighbour_test_equals_the_plain_one(scaled):
    cube = world()
    dx, dy = cube["vx"].values.astype(float), cube["vy"].values.astype(float)
    stride = np.random.default_rng(0).integers(1, 5, dx.shape)
    found = neighbour_test(dx, dy, stride, scaled=scaled, threshold=3.0, noise=2.0)
    expected = np.stack([plain(*a, scaled=scaled, threshold=3.0, noise=2.0) for a in zip(dx, dy, stride, strict=True)])
    assert {0, flags.OUTLIER, flags.FEW_NEIGHBOURS} == set(np.unique(expected).tolist())
    np.testing.assert_array_equal(found, expected)


def plain_agreement(around, d):
    agreeing = 1 + sum(abs(n - d).max() <= 5.0 for n in around)
    return agreeing >= 0.32 * (len(around) + 1)


def plain_vector_median(around, d):
    apart = np.hypot(*(around[:, None] - around[None]).transpose(2, 0, 1))
    centre = around[apart.sum(1).argmin()]
    return np.hypot(*(d - centre)) <= 2.0 * np.median(np.hypot(*(around - centre).T)) + 1.0


@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("test", "numbers", "half", "fits"),
    [
        (neighbours.agreement, {"tolerance": 5.0}, 2, plain_agreement),
        (neighbours.vector_median, {"threshold": 2.0, "noise": 1.0}, 2, plain_vector_median),
        (neighbours.vector_median, {"threshold": 2.0, "noise": 1.0, "half": 1}, 1, plain_vector_median),
    ],
)
def test_a_verdict_is_that_of_the_plain_rule(test, numbers, half, fits, precision):
    rng = np.random.default_rng(4)
    fields = rng.normal(0, 4, (2, 2, 31, 37)).astype(precision)
    fields[rng.random(fields.shape) < 0.3] = np.nan
    stride = rng.integers(1, 4, fields.shape[1:])
    found = test(*fields, stride, **numbers)
    expected = np.zeros_like(found)
    for m, y, x in np.argwhere(np.isfinite(fields.sum(0))):
        s = stride[m, y, x]
        at = [(y + a * s, x + b * s) for a in range(-half, half + 1) for b in range(-half, half + 1)]
        at = [(j, i) for j, i in at if 0 <= j < 31 and 0 <= i < 37 and (j, i) != (y, x)]
        around = np.array([fields[:, m, j, i] for j, i in at])
        around = around[np.isfinite(around.sum(1))]
        if len(around) < 5:
            expected[m, y, x] = neighbours.ALONE
        elif not fits(around, fields[:, m, y, x]):
            expected[m, y, x] = neighbours.REJECTED
    assert (np.bincount(expected.ravel(), minlength=3) > 30).all()
    np.testing.assert_array_equal(found, expected)


def test_the_network_sorts_and_finds_medians_whatever_is_missing():
    rng = np.random.default_rng(6)
    for size in (8, 24, 48):
        rows = rng.integers(0, 9, (size, 300)).astype(float)
        rows[rng.random(rows.shape) < rng.random(300)] = np.inf
        rows[:, 0] = np.inf
        count = np.isfinite(rows).sum(0)
        middle = np.empty(300)
        expected = [np.median(c[np.isfinite(c)]) if np.isfinite(c).any() else np.inf for c in rows.T]
        ordered = np.sort(rows, 0)
        neighbours._median(rows, count, middle)
        np.testing.assert_array_equal(rows, ordered)
        np.testing.assert_array_equal(middle, expected)


def test_a_share_of_a_whole_number_of_points_is_enough():
    """7 of 25 points agree: 0.28 of them, in whatever precision 0.28 is stored."""
    field = 10.0 * np.arange(25).reshape(5, 5)
    field.flat[6:13] = 120.0
    for precision in (np.float32, np.float64):
        d = field.astype(precision)
        assert neighbours.agreement(d, d, 1, 1.0, share=0.28)[2, 2] == neighbours.PASSED
        assert neighbours.agreement(d, d, 1, 1.0, share=0.281)[2, 2] == neighbours.REJECTED


def test_a_verdict_takes_fields_of_any_layout():
    rng = np.random.default_rng(7)
    dy, dx = rng.normal(0, 1, (2, 20, 24)).astype(np.float32)
    expected = neighbours.agreement(dy, dx, 2, 1.0)
    assert {neighbours.PASSED, neighbours.REJECTED} <= set(expected.ravel().tolist())
    wide = np.zeros((20, 48), np.float32)
    wide[:, ::2] = dy
    for y, x, stride in ((np.asfortranarray(dy), dx, 2), (wide[:, ::2], dx[:], np.full(dy.shape, 2, np.int32))):
        np.testing.assert_array_equal(neighbours.agreement(y, x, stride, 1.0), expected)
    np.testing.assert_array_equal(neighbours.agreement(dy[None], dx[None], 2, 1.0)[0], expected)


@pytest.fixture(scope="module")
def cloudy():
    """Truth case P5: its two images as float32, its displacement."""
    pair = truth_pair("P5")
    return pair.image1.astype(np.float32), pair.image2.astype(np.float32), pair.displacement


@pytest.mark.parametrize(("chip", "options", "gross_before"), [(16, ANY_PEAK, 11), (32, ANY_PEAK, 6), (32, {}, 1)])
def test_gross_errors_under_light_and_cloud_go(chip, options, gross_before, cloudy):
    """Matches of P5, as if at 10 m and 16 days, through the defaults in metres."""
    one, two, displacement = cloudy
    kernel = NCC(chip=chip, search=8, step=8, **options, backend="numba")
    every = np.ones(one.shape, bool)
    found = kernel.match(kernel.prepare(one, every), kernel.prepare(two, every))
    shape = found["dy"].shape
    y, x = np.meshgrid(*(kernel.halo() + 3.5 + 8.0 * np.arange(n) for n in shape), indexing="ij")
    truth = displacement(y, x)
    gross = np.hypot(found["dy"] - truth[0], found["dx"] - truth[1]) >= 1
    cube = world((1, *shape), 10 * chip)
    cube["chip_size_width"][:] = 10 * chip
    for name, metres in (("vx", 10 * found["dx"]), ("vy", -10 * found["dy"])):
        cube[name][0] = metres * 365 / 16
    before, after = np.isfinite(found["dy"]), np.isfinite(outliers(cube)["vx"].values[0])
    assert 100 * gross[before].mean() > gross_before
    assert 100 * gross[after].mean() <= 0.3
    assert (after & ~gross).sum() >= 0.96 * (before & ~gross).sum()


@pytest.mark.parametrize("form", ["normalised", "mad"])
def test_wild_vectors_go_and_good_ones_stay(form):
    cube = world()
    out = local_median(cube, form=form)
    outlier = (out["flag"].values & flags.OUTLIER) != 0
    wild = cube["wild"].values & (np.abs(cube["vx"].values - 350) > 300)
    tested = (out["flag"].values & flags.FEW_NEIGHBOURS) == 0
    assert wild.sum() > 20
    assert outlier[wild & tested].mean() > 0.95
    good = np.isfinite(cube["vx"].values) & ~cube["wild"].values
    assert outlier[good].mean() < 0.03
    assert np.isnan(out["vx"].values[outlier]).all()
    assert np.isnan(out["v"].values[outlier]).all()


def test_filters_only_add():
    cube = world()
    near = [f(cube) for f in NEIGHBOUR_FILTERS.values()]
    for out in (*near, correlation(cube, 0.5), speed_limit(cube, 500.0)):
        new = out["flag"].values & ~cube["flag"].values
        assert (out["flag"].values & cube["flag"].values == cube["flag"].values).all()
        assert new.any()
        dropped = flags.invalid(new)
        assert dropped.any()
        for name in ("vx", "vy", "v"):
            np.testing.assert_array_equal(out[name].values[~dropped], cube[name].values[~dropped])
            assert np.isnan(out[name].values[dropped]).all()
            assert out[name].dtype == np.float32
            assert out[name].attrs == cube[name].attrs
        assert (flags.invalid(out["flag"].values) == np.isnan(out["vx"].values)).all()
        assert out["flag"].dtype == np.uint16


def test_few_neighbours_is_a_warning():
    cube = world()
    lonely = np.zeros(cube["vx"].shape, bool)
    lonely[:, 5, 5] = lonely[:, 20, 2] = True
    cube["vx"] = cube["vx"].copy(data=np.where(lonely, 100.0, np.nan).astype(np.float32))
    cube["vy"] = cube["vx"].copy()
    for test in NEIGHBOUR_FILTERS.values():
        out = test(cube)
        assert (out["flag"].values[lonely] & flags.FEW_NEIGHBOURS).all()
        assert (out["vx"].values[lonely] == 100.0).all()


def test_what_is_rejected_is_no_witness_in_the_next_round():
    cube = world(chip=320)
    # A slope, on which a wild neighbour holds up a vector at the end of its agreement.
    cube["vx"] += 60.0 * cube["wild"].cumsum("x")
    years = np.array([16, 32, 64])[:, None, None] / 365
    dx, dy = (cube[name].values * years for name in ("vx", "vy"))
    stride = np.clip(np.round(cube["chip_size_width"].values / 160), 1, 4).astype(int)
    expected = np.zeros(dx.shape, bool)
    counts = []
    for _ in range(3):
        rejected = neighbours.agreement(dy, dx, stride, 3.0) == neighbours.REJECTED
        expected |= rejected
        counts.append(rejected.sum())
        dx[rejected] = np.nan
    assert counts[0] > counts[1] > 0
    out = agreement(cube, tolerance=3.0, rounds=3)
    np.testing.assert_array_equal((out["flag"].values & flags.NEIGHBOURS) != 0, expected)


def test_overlapping_chips_do_not_vote_together():
    """A patch of 5 x 5 wrong vectors outvotes itself at stride 1; at the stride of its chips it falls."""
    cube = world(shape=(1, 30, 30)).drop_vars("wild")
    cube["vx"][:], cube["vy"][:] = 300.0, 0.0
    cube["vx"][0, 12:17, 12:17] = 900.0
    near, far = cube.copy(), cube.copy()
    near["chip_size_width"] = xr.full_like(cube["chip_size_width"], 160)
    far["chip_size_width"] = xr.full_like(cube["chip_size_width"], 640)
    lost = [int(((local_median(c)["flag"][0, 12:17, 12:17].values & flags.OUTLIER) != 0).sum()) for c in (near, far)]
    assert lost[0] < 20
    assert lost[1] == 25


@settings(max_examples=15, deadline=None)
@given(
    chunks=st.tuples(st.integers(1, 3), st.integers(5, 23), st.integers(4, 19)),
    chip=st.sampled_from([160, 640]),
    name=st.sampled_from([*NEIGHBOUR_FILTERS, "small window", "mad", "fill"]),
)
def test_chunks_do_not_matter(chunks, chip, name):
    special = {
        "small window": lambda c: local_median(c, window=3),
        "mad": lambda c: local_median(c, form="mad"),
        "fill": lambda c: fill(speed_limit(c, 700.0)),
    }
    test = {**NEIGHBOUR_FILTERS, **special}[name]
    cube = world(chip=chip)
    whole = test(cube)
    lazy = cube.chunk(dict(zip(("mid_date", "y", "x"), chunks, strict=True)))
    out = test(lazy)
    assert out["flag"].chunks == lazy["flag"].chunks
    assert (whole["flag"].values & (flags.OUTLIER | flags.NEIGHBOURS)).any()
    assert np.isfinite(whole["vx"].values).any()
    xr.testing.assert_identical(out.compute(scheduler="threads"), whole)


def test_fill_takes_the_median_of_eight():
    cube = world(chip=160)
    before = speed_limit(cube, 700.0)
    before["flag"][0, 5, 5] |= np.uint16(flags.NOT_COMPUTED)
    for name in ("vx", "vy", "v"):
        before[name][0, 5, 5] = np.nan
        before[name][0, 4:7, 4] = before[name][0, 4:7, 6] = 100.0  # enough to fill it, were it allowed
    out = fill(before)
    count = 0
    for m, y, x in np.ndindex(before["vx"].shape):
        at = {"mid_date": m, "y": slice(max(y - 1, 0), y + 2), "x": slice(max(x - 1, 0), x + 2)}
        around = np.array([before[c][at].values.ravel() for c in ("vx", "vy")])
        around = around[:, np.isfinite(around.sum(0))]
        point, old = (ds.isel(mid_date=m, y=y, x=x) for ds in (out, before))
        if np.isfinite(old["vx"]) or around.shape[1] < 5 or (m, y, x) == (0, 5, 5):
            xr.testing.assert_identical(point.drop_attrs(deep=False), old.drop_attrs(deep=False))
            continue
        count += 1
        assert [point["vx"], point["vy"]] == np.median(around, 1).astype(np.float32).tolist()
        assert point["v"] == pytest.approx(float(np.hypot(point["vx"], point["vy"])), rel=1e-6)
        assert point["interp_mask"] == 1
        assert np.isnan(point["vx_error_px"])
        assert int(point["flag"]) == int(old["flag"]) | flags.INTERPOLATED
    assert count > 100
    assert {name: out[name].dtype for name in out} == {name: before[name].dtype for name in before}
    assert {name: out[name].attrs for name in out} == {name: before[name].attrs for name in before}


def test_lazy_until_computed():
    cube = world()
    seen = []

    def watch(block):
        seen.append(block.shape)
        return block

    lazy = cube.chunk(y=12, x=10)
    lazy["vx"] = lazy["vx"].copy(data=da.map_blocks(watch, lazy["vx"].data, dtype="f4", meta=np.empty((0, 0, 0), "f4")))
    out = fill(speed_limit(correlation(outliers(lazy), 0.2), 800.0))
    assert seen == []
    out["flag"].compute()
    assert seen


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: local_median(c, window=4), "window"),
        (lambda c: local_median(c, form="mean"), "form"),
        (lambda c: local_median(c, threshold=0.0), "threshold"),
        (lambda c: local_median(c, noise=-1.0), "noise"),
        (lambda c: local_median(c, max_stride=0), "max_stride"),
        (lambda c: vector_median(c, window=4), "window"),
        (lambda c: agreement(c, share=1.5), "share"),
        (lambda c: agreement(c, rounds=0), "rounds"),
        (lambda c: outliers(c, tolerance=0.0), "tolerance"),
        (lambda c: fill(c, min_neighbours=9), "min_neighbours"),
        (lambda c: correlation(c, 1.5), "minimum"),
        (lambda c: correlation(c.drop_vars("corr"), 0.5), "corr"),
        (lambda c: speed_limit(c, 0.0), "maximum"),
    ],
)
def test_wrong_parameters_are_named(call, message):
    with pytest.raises(ParameterError, match=message):
        call(world())
