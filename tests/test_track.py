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
    assert int(velocity["chip_size_width"].isel(mid_date=0, y=10, x=10).compute()) == 320
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


# --- errors of single vectors, priors, stacks ---


def test_every_refined_vector_has_an_error_in_meter_per_year(moving) -> None:
    cube, _ = moving(vy=1.7, vx=-2.6)
    velocity = og.track(cube, og.make_pairs(cube, days=(5, 30)), og.NCC(chip=32, search=8, step=8)).compute()
    good = velocity["flag"].values == 0
    assert good.mean() > 0.4
    for name, truth in (("vx", -2.6), ("vy", 1.7)):
        sigma = velocity[f"{name}_error_px"].values[good]
        assert (sigma > 0).all()
        # No noise and no strain: what is left is interpolation, 0.003 px at least, 1 m/yr over 10 days.
        assert np.median(sigma) < 10
        assert np.mean(np.abs(velocity[name].values[good] - truth * 365) < 3 * sigma + 0.5) > 0.95
    assert velocity["vx_error_px"].attrs["units"] == "meter/year"
    # The error is that of a displacement: over twice the time half as large.
    ten, twenty = (velocity["vx_error_px"].values[velocity["date_dt"].values == days] for days in (10, 20))
    assert np.nanmedian(ten) > 1.5 * np.nanmedian(twenty)


def test_quick_look_has_no_errors(moving) -> None:
    cube, _ = moving()
    velocity = og.track(cube, og.make_pairs(cube), og.NCC(chip=16, search=6, refine="quadric")).compute()
    assert np.isfinite(velocity["vx"].values).any()
    assert np.isnan(velocity["vx_error_px"].values).all()


def test_affine_gives_strain_rates_of_a_field_that_stretches(texture, moving) -> None:
    cube, _ = moving(dates=("2021-07-01", "2021-07-11"))
    pairs = og.make_pairs(cube)
    y, x = (cube[name].values.astype(float) for name in ("y", "x"))
    yy, xx = np.meshgrid(y - y.mean(), x - x.mean(), indexing="ij")
    # d(vx)/dx = 0.15, d(vy)/dy = -0.1, and a shear of 0.2 and 0.05 [1/year], over ten days.
    rate = {"exx": 0.15, "eyy": -0.1, "exy": 0.125}
    share = 10 / 365
    east, north = share * (0.15 * xx + 0.2 * yy), share * (0.05 * xx - 0.1 * yy)
    second = texture(y[:, None] - north, x[None] - east)
    image = np.stack([texture(y[:, None], x[None]), second]).astype(np.float32)
    still = cube.load().copy()
    still["image"] = still["image"].copy(data=image)
    velocity = og.track(still, pairs, og.NCC(chip=48, search=4, refine="affine")).compute()
    good = velocity["flag"].values == 0
    assert good.mean() > 0.3
    for name, expected in rate.items():
        assert np.median(velocity[name].values[good]) == pytest.approx(expected, abs=0.02)
        assert velocity[name].attrs["units"] == "1/year"


def test_a_prior_finds_what_lies_beyond_the_search(moving) -> None:
    cube, _ = moving(dates=("2021-07-01", "2021-07-11"), vy=6.0, vx=-9.0)
    pairs, kernel = og.make_pairs(cube), og.NCC(chip=32, search=3, step=8)
    alone = og.track(cube, pairs, kernel).compute()
    right = np.abs(alone["vx"] + 9 * 365) < 300
    assert not right.any()
    guided = og.track(cube, pairs, kernel, prior=(-8.0 * 365, 5.5 * 365)).compute()
    good = guided["flag"].values == 0
    assert good.mean() > 0.3
    assert np.median(guided["vx"].values[good]) == pytest.approx(-9 * 365, abs=10)
    assert np.median(guided["vy"].values[good]) == pytest.approx(6 * 365, abs=10)
    # A search that holds both windows gives the same vectors.
    wide = og.track(cube, pairs, og.NCC(chip=32, search=14, step=8)).compute()
    both = good & (wide["flag"].values == 0)
    assert both.sum() > 100
    np.testing.assert_allclose(guided["vx"].values[both], wide["vx"].values[both], atol=2)


def test_a_prior_map_guides_each_cell_and_says_where_it_is_missing(moving) -> None:
    cube, _ = moving(dates=("2021-07-01", "2021-07-11"), vy=0.0, vx=-9.0)
    pairs, kernel = og.make_pairs(cube), og.NCC(chip=32, search=3, step=8, refine="quadric")
    first = og.track(cube, pairs, og.NCC(chip=32, search=12, step=8)).compute().isel(mid_date=0)
    prior = first[["vx", "vy"]].drop_vars([c for c in first.coords if c not in ("y", "x", "mapping")])
    prior["vx"][:] = np.where(prior["x"].values > float(prior["x"].mean()), -9.3 * 365, np.nan)
    prior["vy"][:] = 0.0
    found = og.track(cube, pairs, kernel, prior=prior).compute().isel(mid_date=0)
    east = found["x"].values > float(found["x"].mean())
    missing = found["flag"].values & flags.PRIOR_MISSING != 0
    assert missing[:, ~east].all()
    assert not missing[:, east].any()
    inner = found["flag"].values[8:-8, east][:, :8]
    assert (inner == 0).all()
    assert np.median(found["vx"].values[8:-8, east][:, :8]) == pytest.approx(-9 * 365, abs=15)
    # Every tile looks round the same prior.
    tiled = og.track(cube, pairs, kernel, prior=prior, tile=5).compute().isel(mid_date=0)
    np.testing.assert_array_equal(tiled["vx"].values, found["vx"].values)
    np.testing.assert_array_equal(tiled["flag"].values, found["flag"].values)


def test_a_stack_shows_what_no_single_pair_does(moving) -> None:
    dates = tuple(str(np.datetime64("2021-07-01") + 5 * k) for k in range(9))
    cube, _ = moving(dates=dates, vy=1.0, vx=-1.6)
    cube = cube.load()
    rng = np.random.default_rng(4)
    spread = float(cube["image"].std())
    cube["image"] = cube["image"] + (2.0 * spread * rng.standard_normal(cube["image"].shape)).astype(np.float32)
    pairs = og.make_pairs(cube, days=(5, 5))
    assert len(pairs) == 8
    kernel = og.NCC(chip=32, search=5, step=8, refine="quadric")
    single = og.track(cube, pairs, kernel).compute()
    stack = og.track(cube, pairs, kernel, stack="100D").compute()
    assert stack.sizes["mid_date"] == 1
    assert stack["stack_count"].values.tolist() == [8]
    assert stack["acquisition_date_img1"].values[0] == np.datetime64(dates[0])
    assert stack["acquisition_date_img2"].values[0] == np.datetime64(dates[-1])
    assert float(stack["date_dt"][0]) == 5.0

    def score(velocity):
        e = np.stack([velocity["vx"] + 1.6 * 365, velocity["vy"] - 365])[:, :, 6:-6, 6:-6].reshape(2, -1)
        valid = np.isfinite(e).all(0)
        return valid.mean(), np.sqrt(np.mean(e[:, valid] ** 2))

    (valid_one, rmse_one), (valid_all, rmse_all) = score(single), score(stack)
    assert valid_all > 0.95 > 0.8 > valid_one
    median = single.median("mid_date", keep_attrs=True).expand_dims("mid_date")
    assert rmse_all < 0.8 * score(median)[1] < rmse_one
    listed = og.track(cube, pairs, kernel, stack=[list(range(8))], tile=7).compute()
    np.testing.assert_array_equal(listed["vx"].values, stack["vx"].values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stack": "a while"}, "stack: must be a time span"),
        ({"stack": [[0, 7]]}, r"stack: must list rows 0 \.\.\. 2"),
        ({"stack": [[]]}, "stack: must list rows"),
        ({"stack": "30D", "prior": (0.0, 0.0)}, "exclude each other"),
        ({"prior": (1e6, 0.0)}, r"prior: must stay inside the image of 240 x 264 px \(found 5479 px"),
    ],
)
def test_wrong_stacks_and_priors_are_refused(moving, options, message) -> None:
    cube, reader = moving()
    with pytest.raises(ParameterError, match=message):
        og.track(cube, og.make_pairs(cube), **options)
    with pytest.raises(ParameterError, match="must know priors and stacks"):
        og.track(cube, og.make_pairs(cube), lambda *a: None, stack="30D")
    assert reader.count == 0
