"""Filters only add flags; the same bits for every chunking; the median tests against a plain implementation."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from ogive import flags, grid
from ogive.errors import ParameterError
from ogive.filters import correlation, local_median, neighbour_test, speed_limit


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
    for out in (local_median(cube), correlation(cube, 0.5), speed_limit(cube, 500.0)):
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
    out = local_median(cube)
    assert (out["flag"].values[lonely] & flags.FEW_NEIGHBOURS).all()
    assert (out["vx"].values[lonely] == 100.0).all()


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


@settings(max_examples=10, deadline=None)
@given(
    chunks=st.tuples(st.integers(1, 3), st.integers(5, 23), st.integers(4, 19)),
    window=st.sampled_from([3, 5]),
    form=st.sampled_from(["normalised", "mad"]),
)
def test_chunks_do_not_matter(chunks, window, form):
    cube = world()
    whole = local_median(cube, window=window, form=form)
    lazy = cube.chunk(dict(zip(("mid_date", "y", "x"), chunks, strict=True)))
    out = local_median(lazy, window=window, form=form)
    assert out["flag"].chunks == lazy["flag"].chunks
    assert (whole["flag"].values & flags.OUTLIER).any()
    assert np.isfinite(whole["vx"].values).any()
    xr.testing.assert_identical(out.compute(scheduler="threads"), whole)


def test_lazy_until_computed():
    cube = world()
    seen = []

    def watch(block):
        seen.append(block.shape)
        return block

    lazy = cube.chunk(y=12, x=10)
    lazy["vx"] = lazy["vx"].copy(data=da.map_blocks(watch, lazy["vx"].data, dtype="f4", meta=np.empty((0, 0, 0), "f4")))
    out = speed_limit(correlation(local_median(lazy), 0.2), 800.0)
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
        (lambda c: correlation(c, 1.5), "minimum"),
        (lambda c: correlation(c.drop_vars("corr"), 0.5), "corr"),
        (lambda c: speed_limit(c, 0.0), "maximum"),
    ],
)
def test_wrong_parameters_are_named(call, message):
    with pytest.raises(ParameterError, match=message):
        call(world())
