"""The glacier's motion is exact: checked by quadrature, step halving, reversal, and against its own velocity."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from ogive.errors import ParameterError
from ogive.grid import coordinates
from ogive.testing.glacier import Glacier, days, season, season_integral

GLACIER = Glacier()
TINY = Glacier(extent=(2400.0, 3000.0))


def grid(glacier, step=60):
    c = coordinates(glacier.geobox(step))
    return np.broadcast_arrays(c["y"].values[:, None], c["x"].values)


def on_ice(glacier, step=60):
    y, x = grid(glacier, step)
    ice = glacier.ice(glacier.geobox(step))
    assert 0.25 < ice.mean() < 0.5
    return y[ice], x[ice]


def test_season_integral_is_the_integral_of_the_season():
    t = np.linspace(-800.0, 1500.0, 460_001)
    s = season(t)
    assert s.min() > 0.5
    assert s.max() > 1.5
    trapezoid = np.concatenate([[0.0], np.cumsum((s[1:] + s[:-1]) / 2) * (t[1] - t[0])])
    np.testing.assert_allclose(season_integral(t) - season_integral(t[0]), trapezoid, atol=2e-6)
    assert float(season_integral(0.0)) == pytest.approx(0, abs=1e-9)
    # mean 1 over any whole number of years
    assert float(season_integral(100 + 3 * 365.25) - season_integral(100.0)) == pytest.approx(3 * 365.25, abs=1e-8)


@pytest.mark.parametrize("glacier", [GLACIER, TINY, Glacier(seed=4)])
@pytest.mark.parametrize("tau", [1.0, -2.0, 0.05])
def test_displacement_is_converged_to_a_tenth_of_a_millimetre(glacier, tau):
    y, x = on_ice(glacier)
    coarse, fine = glacier.advance(tau, y, x), glacier.advance(tau, y, x, refine=2)
    assert np.hypot(*coarse).max() > 0.9 * abs(tau) * 300
    for a, b in zip(coarse, fine, strict=True):
        assert np.abs(a - b).max() < 1e-4


def test_displacement_over_a_short_time_is_velocity():
    y, x = on_ice(GLACIER)
    t, second = np.datetime64("2021-05-01T10:00"), np.timedelta64(1, "h")
    dy, dx = GLACIER.displacement(t - second, t + second, y, x)
    vy, vx = GLACIER.velocity(t, y, x)
    assert np.abs(vx).max() > 250
    np.testing.assert_allclose(dy * 365 * 12, vy, atol=0.02)
    np.testing.assert_allclose(dx * 365 * 12, vx, atol=0.02)


@settings(max_examples=20, deadline=None)
@given(st.integers(-900, 900), st.integers(-900, 900), st.integers(0, 5))
def test_paths_add_up_and_run_backwards(a, b, seed):
    glacier = Glacier(seed=seed)
    y, x = on_ice(glacier, 240)
    inside = glacier.across(y, x) ** 2 < 0.99
    y, x = y[inside], x[inside]
    t0 = np.datetime64("2021-01-01")
    t1, t2 = t0 + a, t0 + b
    dy1, dx1 = glacier.displacement(t0, t1, y, x)
    dy2, dx2 = glacier.displacement(t1, t2, y + dy1, x + dx1)
    dy, dx = glacier.displacement(t0, t2, y, x)
    head = x + np.minimum(dx1, dx) > glacier.head + 1
    assert head.sum() > 50
    np.testing.assert_allclose((dy1 + dy2)[head], dy[head], atol=2e-4)
    np.testing.assert_allclose((dx1 + dx2)[head], dx[head], atol=2e-4)


def test_particles_stay_on_the_ice_and_on_their_streamline():
    y, x = on_ice(GLACIER)
    dy, dx = GLACIER.advance(20.0, y, x)
    assert dx.max() > 4000
    np.testing.assert_allclose(GLACIER.across(y + dy, x + dx), GLACIER.across(y, x), atol=1e-9)
    assert (GLACIER.margin(y + dy, x + dx) > 0).all()


def test_velocity_follows_the_streamlines():
    y, x = on_ice(GLACIER)
    vy, vx = GLACIER.steady(y, x)
    h = 0.5
    ny = (GLACIER.across(y + h, x) - GLACIER.across(y - h, x)) / (2 * h)
    nx = (GLACIER.across(y, x + h) - GLACIER.across(y, x - h)) / (2 * h)
    np.testing.assert_allclose(vy * ny + vx * nx, 0, atol=1e-6)
    assert np.abs(vy).max() > 50


def test_nothing_moves_off_the_ice():
    y, x = grid(GLACIER)
    off = ~GLACIER.ice(GLACIER.geobox(60))
    assert off.sum() > 1000
    for field in (
        GLACIER.velocity("2021-06-05", y, x),
        GLACIER.displacement("2021-06-05", "2022-06-05", y, x),
        GLACIER.mean_velocity("2021-06-05", "2022-06-05", y, x),
        GLACIER.window_velocity("2021-06-05", "2022-06-05", y, x),
    ):
        for component in field:
            assert (component[off] == 0).all()
            assert (component[~off] != 0).mean() > 0.95


def test_speeds_are_those_of_a_valley_glacier():
    centre = np.hypot(*GLACIER.steady(*GLACIER.centre_line(np.linspace(0, 1, 200))))
    assert 235 < centre.mean() < 265
    assert (np.diff(centre) <= 1e-9).all()  # slower and slower towards the front
    assert centre[-1] < 1e-6
    # Across: fast plug, shear margins, no jump at the edge.
    y0, x0 = GLACIER.centre_line(0.3)
    y = np.linspace(y0 - 3000, y0 + 3000, 6001)
    speed = np.hypot(*GLACIER.steady(y, np.full(y.shape, x0)))
    assert np.abs(np.diff(speed)).max() < 0.8  # m/yr on one metre
    n = np.abs(GLACIER.across(y, np.full(y.shape, x0)))
    assert speed[(n > 0.98) & (n < 1)].max() < 0.05 * speed.max()
    assert speed[n < 0.4].min() > 0.95 * speed.max()


def test_window_velocity_is_the_mean_of_the_instants():
    y, x = GLACIER.centre_line([0.2, 0.6])
    t = np.datetime64("2021-03-01", "m") + np.arange(0, 200 * 24 * 60, 60)
    mid = t[:-1] + 30
    vy, vx = GLACIER.velocity(mid[:, None], y, x)
    wy, wx = GLACIER.window_velocity(t[0], t[-1], y, x)
    np.testing.assert_allclose(vy.mean(axis=0), wy, rtol=1e-6)
    np.testing.assert_allclose(vx.mean(axis=0), wx, rtol=1e-6)


def test_mean_velocity_is_displacement_per_year_of_365_days():
    y, x = on_ice(GLACIER, 120)
    dy, dx = GLACIER.displacement("2021-01-01", "2021-04-11", y, x)
    vy, vx = GLACIER.mean_velocity("2021-01-01", "2021-04-11", y, x)
    np.testing.assert_allclose(vy, dy * 3.65)
    np.testing.assert_allclose(vx, dx * 3.65)
    with pytest.raises(ParameterError, match="must differ"):
        GLACIER.mean_velocity("2021-01-01", "2021-01-01", y, x)


@pytest.mark.parametrize("seed", range(5))
def test_outline_rock_and_mask_agree(seed):
    glacier = Glacier(seed=seed)
    outline, rock = glacier.outline(), glacier.rock()
    assert outline.crs == rock.crs == "EPSG:32632"
    assert outline["RGIId"].tolist() == ["RGI60-00.00001"]
    assert outline["Name"].iloc[0]
    assert outline["Area"].iloc[0] == pytest.approx(outline.area.iloc[0] / 1e6)
    assert outline.is_valid.all()
    assert rock.is_valid.all()
    y, x = grid(glacier, 40)
    ice = glacier.ice(glacier.geobox(40))
    inside = shapely.contains_xy(outline.geometry.iloc[0], x, y)
    assert (inside != ice).mean() < 2e-4
    stable = shapely.contains_xy(shapely.union_all(rock.geometry), x, y)
    assert stable.mean() > 0.4
    assert not (stable & ice).any()
    assert not (stable & glacier.water(y, x)).any()
    assert glacier.water(y, x).sum() > 50
    # Room for stable ground on the three sides that the ice does not come from.
    assert y.max() - y[ice].max() > 800
    assert y[ice].min() - y.min() > 800
    assert x.max() - x[ice].max() > 800


def test_tiny_glacier_scales_but_keeps_its_speed():
    assert TINY.geobox(10).shape == (240, 300)
    assert TINY.ice(TINY.geobox(10)).mean() == pytest.approx(GLACIER.ice(GLACIER.geobox(40)).mean(), abs=0.03)
    speed = np.hypot(*TINY.steady(*TINY.centre_line(0.0)))
    assert 290 < speed < 320


def test_geobox_is_anchored_and_refuses_nonsense():
    box = GLACIER.geobox(20)
    assert (box.affine.f, box.affine.c) == GLACIER.top_left
    with pytest.raises(ParameterError, match="resolution"):
        GLACIER.geobox(1e5)
    with pytest.raises(ParameterError, match="extent"):
        Glacier(extent=(100.0, 3000.0))
    with pytest.raises(ParameterError, match="speed"):
        Glacier(speed=-1.0)


def test_days_counts_from_2020():
    assert days(np.datetime64("2021-01-01")) == 366
    np.testing.assert_array_equal(days(["2020-01-01", "2019-12-31"]), [0, -1])
