"""A second pass guided by the first: neighbours share smoothness and the phase of the season."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from ogive import grid, open_velocity, write
from ogive.errors import ParameterError
from ogive.invert import METHODS, invert
from ogive.invert._guide import NEAR, OFFSETS, SLOPE, WEIGHTS, smoothness, timing, together
from ogive.testing.velocity_cubes import velocity_cube

YEAR = 365.25


@pytest.fixture(scope="module")
def pair():
    """A small cube and the series of its first pass."""
    cube, _ = velocity_cube("100")
    cube = cube.isel(y=slice(0, 7), x=slice(2, 11))
    return cube, invert(cube)


def fields(seed, shape=(9, 8), missing=0.2):
    """kappa, amplitude, phase and its error, with holes."""
    rng = np.random.default_rng(seed)
    kappa = 0.25 * 2 ** (rng.integers(-6, 4, shape) / 2)
    amplitude, error = rng.uniform(5, 50, shape), rng.uniform(1, 10, shape)
    phase = (350 + rng.normal(0, 25, shape)) % YEAR
    kappa[rng.random(shape) < missing] = np.nan
    hidden = np.isnan(kappa) | (rng.random(shape) < 0.1)
    amplitude[hidden] = phase[hidden] = error[hidden] = np.nan
    return kappa, amplitude, phase, error


def seen_from(kappa, y, x):
    """(number, place) of the cells around that may be asked: on the grid, and no hole on the way."""
    if np.isnan(kappa[y, x]):
        return
    for k, (j, i) in enumerate(OFFSETS):
        v, u = y + j, x + i
        if 0 <= v < kappa.shape[0] and 0 <= u < kappa.shape[1]:
            step = (y + (j > 1) - (j < -1), x + (i > 1) - (i < -1)) if max(abs(j), abs(i)) > 1 else (y, x)
            if np.isfinite(kappa[step]):
                yield k, (v, u)


@pytest.mark.parametrize("seed", range(3))
def test_smoothness_against_loops(seed):
    kappa = fields(seed)[0]
    found = smoothness(kappa)
    assert np.isnan(found[np.isnan(kappa)]).all()
    for y, x in np.argwhere(np.isfinite(kappa)):
        near = [(kappa[place], WEIGHTS[k]) for k, place in seen_from(kappa, y, x) if np.isfinite(kappa[place])]
        repeated = np.sort(np.concatenate([np.full(w, value) for value, w in near]))
        median = repeated[(len(repeated) - 1) // 2]
        logs = np.log(repeated / median)
        logs = logs[np.abs(logs) < np.log(NEAR) + 1e-6]
        np.testing.assert_allclose(found[y, x], median * np.exp(logs.mean()), rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_timing_against_a_dense_model(seed):
    """Neighbours = level + slopes + cell-to-cell scatter + errors, by generalised least squares, one cell at a time."""
    kappa, amplitude, phase, error = fields(seed)
    found = timing(kappa, amplitude, phase, error)
    asked = 0
    for y, x in np.ndindex(*kappa.shape):
        near = [(OFFSETS[k], p) for k, p in seen_from(kappa, y, x) if p != (y, x) and np.isfinite(amplitude[p])]
        if not near:
            assert found[y, x] == 0
            continue
        asked += 1
        offsets, places = np.array([o for o, _ in near]), tuple(np.array([p for _, p in near]).T)
        weight = (amplitude[places] / error[places]) ** 2
        unit = np.exp(2j * np.pi / YEAR * phase[places])
        mean = (weight * unit).sum() / np.abs((weight * unit).sum())
        late = np.angle(unit / mean)
        spread = np.diag(1 / weight) + SLOPE**2 * offsets @ offsets.T
        inverse = np.linalg.inv(spread)
        level = inverse.sum(0) @ late / inverse.sum()
        misfit = (late - level) @ inverse @ (late - level)
        # The misfit grows with scatter at the rate of the trace of the projector, in units of the errors.
        projector = inverse - np.outer(inverse.sum(0), inverse.sum(0)) / inverse.sum()
        scatter = max(misfit - (len(near) - 1), 0) / np.trace(projector) if len(near) > 1 else 0
        np.testing.assert_allclose(np.angle(found[y, x] / (mean * np.exp(1j * level))), 0, atol=1e-9)
        np.testing.assert_allclose(1 / np.abs(found[y, x]), 1 / inverse.sum() + scatter, rtol=1e-8)
    assert asked > 40


def test_a_gradient_of_the_phase_is_no_bias():
    y, x = np.mgrid[:8, :8]
    ones = np.ones((8, 8))
    phase = 350 + 2.0 * y + 1.5 * x
    late = (np.angle(timing(ones, ones, phase % YEAR, 1e-4 * ones)) * YEAR / (2 * np.pi) - phase + 180) % YEAR - 180
    np.testing.assert_allclose(late, 0, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 9), top=st.integers(0, 4), left=st.integers(0, 4))
def test_a_cell_depends_on_five_by_five(seed, top, left):
    """Same bits from a crop, two cells from its rim."""
    whole = fields(seed, (11, 11))
    part = [f[top : top + 7, left : left + 6] for f in whole]
    inner = np.s_[2:5, 2:4]
    place = np.s_[top + 2 : top + 5, left + 2 : left + 4]
    np.testing.assert_array_equal(smoothness(part[0])[inner], smoothness(whole[0])[place])
    np.testing.assert_array_equal(timing(*part)[inner], timing(*whole)[place])


def test_nothing_crosses_a_ridge():
    kappa, amplitude, phase, error = fields(1, (6, 9), missing=0)
    for f in (kappa, amplitude, phase, error):
        f[:, 4] = np.nan
    other = [f.copy() for f in (kappa, amplitude, phase, error)]
    other[0][:, 5:] *= 4
    other[2][:, 5:] = 100.0
    np.testing.assert_array_equal(smoothness(other[0])[:, :4], smoothness(kappa)[:, :4])
    np.testing.assert_array_equal(timing(*other)[:, :4], timing(kappa, amplitude, phase, error)[:, :4])
    assert (smoothness(other[0])[:, 5:] != smoothness(kappa)[:, 5:]).all()


def test_together_is_the_posterior():
    """Own estimate and, as a Gaussian observation, the quadrature to the phase of the others."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(2, 2))
    covariance = root @ root.T
    (ax, bx), (ay, by) = own = rng.normal(5, 2, (2, 2))
    flow = np.array([3.0, -1.0])
    waves = np.array([ax, bx, ay, by, covariance[0, 0], covariance[0, 1], covariance[1, 1], *flow])[:, None]
    angle, sure = 0.7, 20.0
    found = together(waves, np.array([sure * np.exp(1j * angle)]))[:, 0]
    across = np.array([-np.sin(angle), np.cos(angle)])
    along = flow / np.hypot(*flow) @ own
    posterior = np.linalg.inv(np.linalg.inv(covariance) + np.outer(across, across) * sure / (along @ along))
    for k in (0, 1):
        np.testing.assert_allclose(found[2 * k : 2 * k + 2], posterior @ np.linalg.solve(covariance, own[k]))
    np.testing.assert_allclose(found[[4, 5, 6]], posterior[[0, 0, 1], [0, 1, 1]])
    np.testing.assert_array_equal(together(waves, np.zeros(1, complex)), waves)


def test_alone_a_cell_keeps_its_own(pair):
    cube, _ = pair
    cube = cube.isel(y=[3], x=[4])
    first = invert(cube)
    second = invert(cube, guide=first)
    assert np.isfinite(first["v_amp"]).all()
    for name in first.data_vars:
        np.testing.assert_allclose(second[name], first[name], rtol=1e-4, atol=1e-4)


@settings(max_examples=8, deadline=None)
@given(chunks=st.tuples(*[st.integers(1, 9)] * 2), others=st.tuples(*[st.integers(1, 9)] * 2))
def test_chunks_do_not_matter(pair, chunks, others):
    cube, first = pair
    whole = invert(cube, guide=first)
    lazy = invert(cube.chunk(y=chunks[0], x=chunks[1]), guide=first.chunk(y=others[0], x=others[1]))
    assert lazy["vx"].chunks[1][0] == min(chunks[0], 7)
    xr.testing.assert_identical(whole, lazy.compute(scheduler="threads"))
    assert (whole["kappa"] != first["kappa"]).any()


def test_a_guide_may_come_from_a_store_or_be_lazy_itself(pair, tmp_path):
    cube, first = pair
    lazy = cube.chunk(y=4, x=5)
    write(invert(lazy), tmp_path / "first.zarr")
    expected = invert(cube, guide=first)
    xr.testing.assert_identical(expected, invert(cube, guide=open_velocity(tmp_path / "first.zarr")))
    xr.testing.assert_identical(expected, invert(lazy, guide=invert(lazy)).compute())


@pytest.mark.parametrize(
    ("name", "rmse", "phase"), [("100", 0.99, 0.5), ("slow", 0.99, 0.8), ("noseas", 0.99, 0.6), ("fast", 1.0, 0.8)]
)
def test_neighbours_help_where_pairs_are_few_and_harm_nowhere(name, rmse, phase):
    cube, truth = velocity_cube(name)
    first = invert(cube)
    second = invert(cube, guide=first)
    bounds = first["time_bnds"].values
    late = bounds[:, 0] >= cube["acquisition_date_img1"].values.min() + np.timedelta64(20, "D")
    days = np.arange(*(f(cube[f"acquisition_date_img{k}"].values.astype("M8[D]")) for k, f in ((1, min), (2, max))))
    speed = np.hypot(*truth.velocity(days.astype("M8[s]"), (days + 1).astype("M8[s]"))).reshape(len(days), -1)
    t = 2 * np.pi / YEAR * (days.astype(float) + 0.5)
    rows = np.stack([np.cos(t), np.sin(t), np.ones(len(t)), t - t.mean()], 1)
    a, b = np.linalg.lstsq(rows, speed, rcond=None)[0][:2].reshape(2, *first["v_amp"].shape)

    def scores(series):
        error = np.stack([series[f"v{c}"].values - v for c, v in zip("xy", truth.velocity(*bounds.T), strict=True)])
        inside = np.abs(error) < 1.96 * series["vx_error"].values
        delay = (series["v_phase"].values - np.arctan2(b, a) * YEAR / (2 * np.pi) + 182.6) % YEAR - 182.6
        size = series["v_amp"].values - np.hypot(a, b)
        squares = (np.nanmean(e**2) for e in (error[:, late], size, delay))
        return (*np.sqrt(list(squares)), inside[:, late][np.isfinite(error[:, late])].mean())

    one, two = scores(first), scores(second)
    np.testing.assert_array_equal(np.isfinite(first["vx"]), np.isfinite(second["vx"]))
    assert two[0] <= rmse * one[0]
    assert two[1] <= 1.01 * one[1]
    assert two[2] <= phase * one[2]
    assert min(one[3], 0.95) - 0.005 <= two[3] <= 0.996


def test_a_surge_keeps_its_smoothness():
    cube, _ = velocity_cube("surge")
    cube = cube.isel(y=slice(0, 5), x=slice(0, 5))
    first = invert(cube)
    second = invert(cube, guide=first)
    assert float(second["kappa"].min()) >= 0.5
    assert np.isnan(second["v_amp"]).all()


@pytest.mark.parametrize("method", sorted(name for name, method in METHODS.items() if not method.guided))
def test_other_methods_take_no_guide(pair, method):
    with pytest.raises(ParameterError, match=r"guide: method .* takes none.*Fix: use method 'adaptive'"):
        invert(pair[0], method=method, guide=pair[1])


def test_another_grid_is_refused(pair):
    cube, first = pair
    box = grid.geobox_of(first)
    zone = first.assign_coords(mapping=grid.mapping(type(box)(box.shape, box.affine, "EPSG:32644")))
    for guide in (first.isel(x=slice(1, None)), first.assign_coords(x=first["x"] + 60), zone):
        with pytest.raises(ParameterError, match="must lie on the grid of the velocity, 7 x 9 cells"):
            invert(cube, guide=guide)


def test_a_series_without_smoothness_or_season_is_no_guide(pair):
    cube, first = pair
    with pytest.raises(ParameterError, match=r"guide: needs kappa, v_amp \(found adaptive\)"):
        invert(cube, guide=first.drop_vars(["kappa", "v_amp"]))
