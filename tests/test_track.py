"""The line from items to a lazy velocity: exact motion, units, laziness."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import ogive as og
from ogive import flags
from ogive.errors import PairError, ParameterError


def test_known_motion_is_recovered_in_meter_per_year(moving) -> None:
    cube, _ = moving(vy=1.7, vx=-2.6)
    velocity = og.track(cube, og.make_pairs(cube, days=(5, 30)), og.NCC(chip=32, search=8, step=8)).compute()
    good = velocity["flag"].values == 0
    assert good.mean() > 0.6
    # 10 m pixels and 10 or 20 days: 0.03 px of quadric bias is 11 m/yr over 10 days.
    for name, truth in (("vx", -2.6), ("vy", 1.7)):
        error = velocity[name].values[good] - truth * 365
        assert abs(np.median(error)) < 8
        assert np.sqrt(np.mean(error**2)) < 12
    np.testing.assert_allclose(velocity["v"].values[good], np.hypot(velocity["vx"], velocity["vy"]).values[good])


def test_every_missing_vector_has_a_reason_and_no_valid_one_has(moving) -> None:
    cube, _ = moving(holes=True)
    velocity = og.track(cube, og.make_pairs(cube), og.NCC(chip=16, search=6, step=8)).compute()
    missing = np.isnan(velocity["vx"].values)
    assert 0 < missing.mean() < 0.6
    np.testing.assert_array_equal(missing, flags.invalid(velocity["flag"].values))
    np.testing.assert_array_equal(missing, np.isnan(velocity["v"].values))


def test_the_corner_of_the_image_says_that_the_chip_leaves_it(moving) -> None:
    cube, _ = moving()
    velocity = og.track(cube, og.make_pairs(cube), og.NCC(chip=64, search=8, step=8)).compute()
    corner = velocity["flag"].values[:, 0, 0]
    assert (corner & flags.OUTSIDE).all()
    assert (corner & flags.NO_DATA).all()
    # Masked correlation still matches two thirds of a chip along the edge, away from the corner.
    assert (velocity["flag"].values[:, 1, 10] == 0).all()
    assert (velocity["flag"].values[:, 15, 15] == 0).all()


def test_nothing_is_read_before_compute_and_each_window_once(moving) -> None:
    cube, reader = moving()
    pairs = og.make_pairs(cube, days=(5, 30))
    velocity = og.track(cube, pairs, og.NCC(chip=16, search=4, step=8), tile=10)
    assert reader.count == 0
    assert len(pairs) == 3
    blocks = int(np.prod(velocity["vx"].data.numblocks))
    assert blocks == 12
    result = velocity.compute(scheduler="synchronous")
    assert np.isfinite(result["vx"].values).any()
    # Three scenes, three pairs that share them: one read per block and scene.
    assert reader.count == blocks * 3
    halo = og.NCC(chip=16, search=4, step=8).halo()
    assert max(h for _, (h, w) in reader.reads) <= 10 * 8 + 2 * halo


def test_layout_follows_its_live(moving) -> None:
    cube, _ = moving()
    velocity = og.track(cube, og.make_pairs(cube), og.NCC(chip=32, search=4, step=12))
    assert velocity["vx"].dims == ("mid_date", "y", "x")
    assert velocity.sizes["y"] == 240 // 12
    assert velocity["vx"].attrs["units"] == "meter/year"
    assert velocity["vx"].attrs["standard_name"] == "land_ice_surface_x_velocity"
    assert velocity["chip_size_width"].dtype == np.uint16
    assert float(velocity["y"][0]) == 5100000 - 60
    assert int(velocity["chip_size_width"].isel(mid_date=0, y=0, x=0).compute()) == 320
    # mid_date carries the date of image 1 as YYMMDD microseconds.
    token = (velocity["mid_date"] - velocity["date_center"]).values.astype("timedelta64[us]").astype(int)
    assert token.tolist() == [210701, 210701, 210711]
    provenance = json.loads(velocity.attrs["provenance"])
    assert provenance["kernel"]["chip"] == 32
    assert len(provenance["items"]) == 3


def test_bad_input_is_refused_before_anything_is_read(moving) -> None:
    cube, reader = moving()
    pairs = og.make_pairs(cube)
    with pytest.raises(ParameterError, match=r"search: must be a whole number of pixels, at least 1 \(found 0\)"):
        og.track(cube, pairs, og.NCC(search=0))
    with pytest.raises(ParameterError, match=r"chip: must fit into the image of 240 x 264 px"):
        og.track(cube, pairs, og.NCC(chip=400))
    with pytest.raises(ParameterError, match="both be even or both be odd"):
        og.NCC(chip=33, step=8)
    with pytest.raises(ParameterError, match="enhance"):
        og.NCC(enhance="sharpen")
    with pytest.raises(PairError, match="at least one pair"):
        og.track(cube, pairs.iloc[:0])
    with pytest.raises(PairError, match="made from this cube"):
        og.track(cube.isel(time=[0, 2, 1]), pairs)
    with pytest.raises(ParameterError, match="tile"):
        og.track(cube, pairs, tile=0)
    assert reader.count == 0


def test_a_plain_function_is_a_kernel(moving) -> None:
    cube, _ = moving()

    def still(image1, image2, valid1, valid2):
        shape = tuple((n - 64) // 8 for n in image1.shape)
        return np.full(shape, 1.0), np.full(shape, 2.0), np.full(shape, 0.5)

    velocity = og.track(cube, og.make_pairs(cube, days=(10, 10)), still).compute()
    assert np.isfinite(velocity["vx"].values).all()
    np.testing.assert_allclose(velocity["vx"].values, 2 * 10 * 36.5, rtol=1e-6)
    np.testing.assert_allclose(velocity["vy"].values, -1 * 10 * 36.5, rtol=1e-6)

    def wrong(*_):
        return np.zeros((2, 2)), np.zeros((2, 2))

    with pytest.raises(ParameterError, match="must return"):
        og.track(cube, og.make_pairs(cube), wrong).compute(scheduler="synchronous")


def test_explain_counts_without_reading(moving) -> None:
    cube, reader = moving()
    velocity = og.track(cube, og.make_pairs(cube), og.NCC(chip=16, search=4, step=8), tile=10, batch=2)
    price = og.explain(velocity)
    assert reader.count == 0
    velocity.compute(scheduler="synchronous")
    assert price.blocks == 2 * 3 * 4
    assert price.pairs == 3
    assert price.scenes == 3
    halo = og.NCC(chip=16, search=4, step=8).halo()
    # What was read is what was announced, less what lies outside the image.
    read = sum(h * w for _, (h, w) in reader.reads)
    assert read <= price.read_gigabytes * 1e9 / 5 <= read * ((240 + 2 * halo) * (264 + 2 * halo) / (240 * 264)) * 1.1
    assert "GB to read" in str(price)
    with pytest.raises(ParameterError, match="lazy result of track"):
        og.explain(xr.Dataset({"vx": ("mid_date", np.zeros(2))}))


def test_modelled_error_of_a_pair_shrinks_with_its_span(moving) -> None:
    cube, _ = moving()
    velocity = og.track(cube, og.make_pairs(cube))
    errors = pd.Series(velocity["vx_error"].values, velocity["date_dt"].values)
    assert errors.loc[20].item() == pytest.approx(errors.loc[10].iloc[0] / 2)
