"""The specification of chunking: any tiling, both Dask paths, any batch give the same bits."""

import dask
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

import ogive as og
from ogive.blocks import OUTPUTS, map_overlapping, plan
from ogive.errors import ParameterError

KERNELS = [
    og.NCC(chip=16, search=3, step=8),
    og.NCC(chip=20, search=2, step=12, enhance="orientation", refine="quadric"),
    og.NCC(chip=15, search=3, step=5, enhance="wallis", refine="fixed"),
    og.NCC(chip=12, search=2, step=16, enhance="sobel"),
    og.NCC(chip=(8, 16, 24), search=3, step=8, refine="quadric"),
    og.NCC(chip=(12, 24), search=3, step=12),
    og.NCC(chip=24, search=8, step=8, coarse=2, refine="affine"),
]


QUICK = og.NCC(chip=16, search=3, step=8, refine="quadric")
"""A halo of three tiles of the smallest kind."""


def groups(pairs):
    return list(pairs[["i1", "i2"]].to_numpy()[:, None])


def run(cube, pairs, kernel, tile, batch):
    arrays = map_overlapping(cube, groups(pairs), kernel, plan(cube, len(pairs), kernel, tile, batch))
    (result,) = dask.compute(arrays, scheduler="synchronous")
    return result


def same_bits(one, two) -> None:
    for name in OUTPUTS:
        assert one[name].dtype == two[name].dtype
        assert one[name].tobytes() == two[name].tobytes(), name


@pytest.fixture(scope="module")
def whole():
    return {}


@settings(max_examples=20)
@given(kernel=st.sampled_from(range(len(KERNELS))), tile=st.integers(2, 33), batch=st.integers(1, 4))
def test_any_tiling_gives_the_same_bits(moving, whole, kernel, tile, batch) -> None:
    cube, _ = moving(holes=True, vy=1.0, vx=-1.0)
    pairs = og.make_pairs(cube)
    if kernel not in whole:
        whole[kernel] = run(cube, pairs, KERNELS[kernel], 1000, 100)
        assert np.isfinite(whole[kernel]["dx"]).mean() > 0.3
        assert np.isnan(whole[kernel]["dx"]).any()
    tile = max(tile, KERNELS[kernel].halo() // 8)  # a wide halo round tiny tiles takes minutes
    same_bits(run(cube, pairs, KERNELS[kernel], tile, batch), whole[kernel])


@settings(max_examples=6)
@given(tile=st.sampled_from([6, 7, 10, 15, 40]), chunk=st.integers(30, 300))
def test_a_dask_cube_goes_through_overlap_and_gives_the_same_bits(moving, whole, tile, chunk) -> None:
    cube, reader = moving(holes=True, vy=1.0, vx=-1.0)
    pairs = og.make_pairs(cube)
    expected = run(cube, pairs, QUICK, 1000, 100)
    lazy = cube.chunk(time=1, y=chunk, x=chunk)
    reader.reads.clear()
    arrays = map_overlapping(lazy, groups(pairs), QUICK, plan(lazy, len(pairs), QUICK, tile, 2))
    assert reader.count == 0
    (result,) = dask.compute(arrays, scheduler="synchronous")
    same_bits(result, expected)


@pytest.mark.parametrize("kernel", [og.kernels.HornSchunck(search=3), og.kernels.FlowNet(search=3)], ids=type)
def test_several_bands_give_the_same_bits_in_any_tiling_and_in_dask(moving, kernel) -> None:
    cube, _ = moving(holes=True, vy=1.0, vx=-1.0)
    cube = cube.load()
    other = 0.5 * cube["image"] + 0.01 * np.random.default_rng(0).standard_normal(cube["image"].shape).astype("f4")
    several = xr.concat(
        [cube["image"], other], xr.Variable("band", ["nir", "red"]), coords="minimal", compat="override"
    )
    banded = cube.drop_vars("image").assign(image=several.transpose("time", "band", "y", "x"))
    pairs = og.make_pairs(banded)
    expected = run(banded, pairs, kernel, 1000, 100)
    one_band = run(cube, pairs, kernel, 1000, 100)
    assert np.isfinite(expected["dx"]).mean() > 0.3
    assert not np.array_equal(expected["dx"], one_band["dx"], equal_nan=True)
    same_bits(run(banded, pairs, kernel, 13, 2), expected)
    lazy = banded.chunk(time=1, band=1, y=70, x=90)
    (result,) = dask.compute(
        map_overlapping(lazy, groups(pairs), kernel, plan(lazy, len(pairs), kernel, 1000, 2)), scheduler="synchronous"
    )
    same_bits(result, expected)


def test_several_bands_are_refused_by_a_kernel_that_compares_one(moving) -> None:
    cube, _ = moving()
    banded = cube.assign(image=cube["image"].expand_dims(band=["nir", "red"], axis=1))
    with pytest.raises(ParameterError, match=r"kernel: must compare several bands, as the cube has 2 \(found NCC\)"):
        plan(banded, 1, QUICK)


def test_a_dask_cube_refuses_tiles_narrower_than_the_halo(moving) -> None:
    cube, _ = moving()
    pairs = og.make_pairs(cube)
    lazy = cube.chunk(y=100, x=100)
    with pytest.raises(ParameterError, match="at least as wide as the halo of"):
        map_overlapping(lazy, groups(pairs), QUICK, plan(lazy, len(pairs), QUICK, 1, 1))


def test_a_crop_with_its_halo_gives_the_same_bits(moving) -> None:
    """A smaller grid inside a larger one, anchored to the same cells."""
    kernel = QUICK
    large = GeoBox((240, 240), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")
    cube, _ = moving(grid=large, vy=0.6, vx=-0.7)
    pairs = og.make_pairs(cube)
    expected = run(cube, pairs, kernel, 1000, 100)
    margin = -(-kernel.halo() // 8) * 8
    small = cube.isel(y=slice(64, 200), x=slice(40, 208))
    cropped = run(small, pairs, kernel, 1000, 100)
    edge = margin // 8
    inner = np.s_[:, edge:-edge, edge:-edge]
    outer = np.s_[:, 8 + edge : 25 - edge, 5 + edge : 26 - edge]
    assert np.isfinite(cropped["dx"][inner]).all()
    for name in OUTPUTS:
        assert cropped[name][inner].tobytes() == expected[name][outer].tobytes()


def test_one_task_per_block(moving) -> None:
    cube, _ = moving()
    velocity = og.track(cube, og.make_pairs(cube), KERNELS[0], tile=10, batch=2)
    from ogive._tasks import BlockGrid

    grid = BlockGrid(velocity)
    assert len(list(grid)) == 2 * 3 * 4
    tasks = list(grid.tasks())
    # What travels with one task does not grow with the number of blocks.
    assert len(tasks) == len(list(grid))
    assert max(len(blob) for _, (_, blob, _) in tasks) < 60_000
