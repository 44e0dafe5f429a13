"""Dense flow: its equations against dense algebra, exact motion, masks, any tiling, errors that are honest.

What every kernel must do is in test_kernels.py.
"""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

import ogive as og
from ogive import flags
from ogive.errors import ParameterError
from ogive.kernels import HornSchunck, HornSchunckReference, _flow_field, _flow_solver
from ogive.kernels._flow_features import features
from ogive.kernels._flow_judge import WIDEST
from ogive.testing.flow_pairs import LEVELS, FlowPair, flow_pair
from ogive.testing.pairs import truth_pair
from ogive.testing.textures import fractal_scene

cached_pair = functools.cache(flow_pair)
F = np.float32


def match(kernel: Any, one: Any, two: Any, valid: Any = None) -> dict[str, NDArray[Any]]:
    """All cells of two images, whatever the halo; beyond the images is no data."""
    halo = kernel.halo()
    inside = np.pad(np.ones(one.shape, bool) if valid is None else valid, halo)
    first, second = (kernel.prepare(np.pad(im.astype(F), halo), inside) for im in (one, two))
    found: dict[str, NDArray[Any]] = kernel.match(first, second)
    return found


def centres(kernel: Any, n: int) -> NDArray[Any]:
    return kernel.step * np.arange(n // kernel.step) + (kernel.step - 1) / 2


def moved(shape: tuple[int, int], field: Any) -> tuple[Any, Any]:
    """Image 2 at p + field(p) shows what image 1 does at p, for fields linear in p: their inverse is exact."""
    surface = fractal_scene(max(shape), seed=4)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    back = y, x
    for _ in range(60):
        dy, dx = field(*back)
        back = y - dy, x - dx
    return surface(y, x), surface(*back)


# --- the loops ---


def test_relaxation_solves_the_equations() -> None:
    """The step of `linearise`, repeated, ends where the linear system of data and smoothness has its solution."""
    rng = np.random.default_rng(0)
    h, w, alpha = 7, 9, 1.5
    slope, rhs = rng.standard_normal((2, 2, h, w)), rng.standard_normal((2, h, w))
    j = np.einsum("kcyx,kdyx->cdyx", slope, slope)
    inverse = np.linalg.inv(j.transpose(2, 3, 0, 1) + 4 * alpha * np.eye(2)).transpose(2, 3, 0, 1)
    constant = np.einsum("cdyx,dyx->cyx", inverse, rhs)
    system = np.stack([alpha * inverse[0, 0], alpha * inverse[0, 1], alpha * inverse[1, 1], *constant]).astype(F)
    flow = np.zeros((2, h + 2, w + 2), F)
    flow, _ = _flow_solver.relax(flow, flow.copy(), system, _flow_solver.accelerations(400))
    matrix = np.zeros((2, h, w, 2, h, w))
    for y, x in np.ndindex(h, w):
        matrix[:, y, x, :, y, x] += j[:, :, y, x]
        for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            if 0 <= v < h and 0 <= u < w:
                matrix[[0, 1], y, x, [0, 1], y, x] += alpha
                matrix[[0, 1], y, x, [0, 1], v, u] -= alpha
    expected = np.linalg.solve(matrix.reshape(2 * h * w, -1), rhs.ravel()).reshape(2, h, w)
    np.testing.assert_allclose(flow[:, 1:-1, 1:-1], expected, atol=2e-5)


def test_sampling_is_exact_on_quadratics() -> None:
    y, x = np.mgrid[:9, :9].astype(float)

    def value(y: Any, x: Any) -> Any:
        return 0.3 * y * y - 0.2 * x * x + y * x - 2 * y + 3

    plane = value(y, x).astype(F)
    got = _flow_solver.sample(plane, 4, 3, _flow_solver._taps(F(0.37)), _flow_solver._taps(F(0.81)))
    v, u = 4.37, 3.81
    np.testing.assert_allclose(got, (value(v, u), 0.6 * v + u - 2, -0.4 * u + v), rtol=1e-4)


def test_cells_and_coarse_pixels_become_fine_ones_without_a_shift() -> None:
    """A field linear in position stays the same field on every grid."""

    def field(y: Any, x: Any) -> Any:
        return np.stack([0.1 * y - 0.05 * x + 1, 0.2 * x + 0.03 * y - 2])

    i = np.arange(12.0)
    cells = field(5 + 8 * i[:, None] + 3.5, 5 + 8 * i + 3.5).astype(F)
    for pixel in (1, 2, 4):
        n = 96 // pixel
        got = _flow_field.spread(cells, 5, 8, pixel, (n, n))[:, 1:-1, 1:-1]
        at = pixel * (np.arange(n) + 0.5) - 0.5
        inner = (at > 8.5) & (at < 96)
        np.testing.assert_allclose(got[:, inner][:, :, inner], field(at[inner][:, None], at[inner]) / pixel, atol=1e-4)
    coarse = np.pad(field(2 * i[:, None] + 0.5, 2 * i + 0.5) / 2, ((0, 0), (1, 1), (1, 1)), mode="edge").astype(F)
    fine = _flow_field.doubled(coarse)[:, 2:-2, 2:-2]
    np.testing.assert_allclose(fine, field(np.arange(1, 23)[:, None], np.arange(1, 23)), atol=1e-5)


def test_missing_starts_come_from_their_neighbours() -> None:
    cells = np.full((2, 9, 9), np.nan, F)
    cells[:, 2, 2:5] = [[1, 2, 9], [1, 1, 4]]
    got = _flow_field.mended(cells, 4)
    assert got[:, 2, 3].tolist() == [2, 1]  # median
    assert got[0, 6, 3] == 4  # mean of all three, too far for a median
    assert got[:, 8, 8].tolist() == [0, 0]  # nothing near


def test_light_that_varies_does_not_change_the_features() -> None:
    y, x = np.mgrid[:120, :130].astype(float)
    image = fractal_scene(130, seed=3)(y, x)
    every = np.ones(image.shape, bool)
    plain, _ = features(image.astype(F), every, 0.5)
    lit, _ = features((image * (2 + np.sin(x / 60)) + 0.002 * y).astype(F), every, 0.5)
    inner = np.s_[:, 20:-20, 20:-20]
    assert 0.5 < plain[inner].std() < 0.8
    assert np.abs(lit - plain)[inner].mean() < 0.03


# --- exact motion ---


@pytest.mark.parametrize("kernel", [HornSchunck(search=6), HornSchunckReference()], ids=["robust", "reference"])
def test_translation(kernel) -> None:
    one, two = moved((160, 168), lambda y, x: (1.37 + 0 * y, -2.62 + 0 * x))
    found = match(kernel, one, two)
    inner = np.s_[3:-3, 3:-3]
    assert (found["flag"][inner] == 0).all()
    for name, truth in (("dy", 1.37), ("dx", -2.62)):
        np.testing.assert_allclose(found[name][inner], truth, atol=0.07)
        assert abs(np.mean(found[name][inner]) - truth) < 0.02  # the bias of interpolation


def test_shear_and_stretch() -> None:
    def field(y: Any, x: Any) -> Any:
        return 0.02 * (y - 90) - 0.01 * (x - 90), 0.03 * (y - 90) + 0.01 * (x - 90)

    kernel = HornSchunck()
    found = match(kernel, *moved((184, 184), field))
    at = centres(kernel, 184)
    dy, dx = field(at[:, None], at[None])
    inner = np.s_[3:-3, 3:-3]
    assert np.abs(found["dx"] - dx)[inner].max() < 0.1
    assert np.hypot(found["dy"] - dy, found["dx"] - dx)[inner].mean() < 0.02


def test_motion_of_many_pixels_starts_from_correlation() -> None:
    one, two = moved((200, 200), lambda y, x: (17.3 + 0 * y, -9.6 + 0 * x))
    for start in ("orientation", "ncc"):
        found = match(HornSchunck(search=20, start=start), one, two)
        inner = np.s_[5:-6, 5:-6]
        np.testing.assert_allclose(found["dy"][inner], 17.3, atol=0.06)
        np.testing.assert_allclose(found["dx"][inner], -9.6, atol=0.06)


# --- masks ---


def test_rock_under_the_mask_does_not_hold_the_ice() -> None:
    pair = truth_pair("M1", 256)
    ice = np.zeros((256, 256), bool)
    ice[:128] = True
    kernel = HornSchunck(step=4)
    found = match(kernel, pair.image1, pair.image2, ice)
    y = centres(kernel, 256)
    beside = (y > 128 - 40) & (y < 128 - 6)
    error = np.hypot(found["dy"], found["dx"] - 5.3)[beside][:, 6:-6]
    assert np.isfinite(error).mean() > 0.9
    assert np.nanmax(error) < 0.15
    off = found["flag"][y > 128]
    assert (off & flags.NO_DATA == flags.NO_DATA).all()
    assert np.isnan(found["dx"][y > 128]).all()
    assert np.isnan(found["dx_error"][y > 128]).all()


def test_what_only_smoothness_says_is_kept_on_demand_and_flagged() -> None:
    one, two = moved((200, 200), lambda y, x: (1.4 + 0 * y, -0.8 + 0 * x))
    clear = np.ones((200, 200), bool)
    clear[80:120, 80:120] = False  # beyond the reach of the window, within that of smoothness
    clear[:, 140:] = False
    plain, kept = (match(HornSchunck(fill=fill), one, two, clear) for fill in ("nan", "keep"))
    hole, far = np.s_[11:14, 11:14], np.s_[:, 23:]
    assert np.isnan(plain["dy"][hole]).all()
    assert (plain["flag"][hole] & flags.NO_DATA != 0).all()
    assert (kept["flag"][hole] & flags.INTERPOLATED != 0).all()
    np.testing.assert_allclose(kept["dy"][hole], 1.4, atol=0.1)
    assert np.isnan(kept["dy_error"][hole]).all()
    assert (kept["chip"][hole] == 0).all()
    assert np.isnan(kept["dy"][far]).all()
    measured = plain["flag"] == 0
    assert measured.any()
    np.testing.assert_array_equal(kept["dy"][measured], plain["dy"][measured])


def test_the_effective_resolution_grows_where_there_is_less_texture() -> None:
    one, two = moved((200, 200), lambda y, x: (0.4 + 0 * y, -0.8 + 0 * x))
    noise = np.random.default_rng(0).standard_normal((2, 200, 200)) * 0.8
    clear, noisy = (match(HornSchunck(), *images) for images in ((one, two), (one + noise[0], two + noise[1])))
    inner = np.s_[4:-4, 4:-4]
    assert np.median(clear["chip"][inner]) < np.median(noisy["chip"][inner]) < WIDEST
    assert np.median(clear["dx_error"][inner]) < np.median(noisy["dx_error"][inner])


# --- the same bits ---


@pytest.mark.parametrize(
    "kernel",
    [
        HornSchunck(),
        HornSchunck(step=4, search=3),
        HornSchunck(step=5, search=2),
        HornSchunck(start="ncc", search=4),
        HornSchunck(step=40, median=5),
        HornSchunck(levels=2, search=3),
        HornSchunckReference(search=2, levels=2),
    ],
    ids=str,
)
def test_a_tile_with_its_halo_has_the_bits_of_the_whole(kernel) -> None:
    halo, step = kernel.halo(), kernel.step
    cells = 4 + 160 // step
    y, x = np.mgrid[: 2 * halo + cells * step, : 2 * halo + cells * step].astype(float)
    surface, rng = fractal_scene(200, seed=3), np.random.default_rng(1)
    one, two = (0.4 + 0.05 * surface(y - d, x + 0.5 * d) + 0.02 * rng.random(y.shape) for d in (0, 1.2))
    valid = rng.random(y.shape) > 0.004
    valid[: halo + 3 * step, halo + step :] = False
    whole = kernel.match(*(kernel.prepare(im.astype(F), valid) for im in (one, two)))
    assert 0.3 < np.isfinite(whole["dy"]).mean() < 1
    for first in ((1, 2), (cells - 3, 0), (0, cells - 1)):
        cut = tuple(slice(c * step, c * step + 2 * halo + min(3, cells - c) * step) for c in first)
        part = kernel.match(*(kernel.prepare(np.ascontiguousarray(im[cut], F), valid[cut]) for im in (one, two)))
        there = tuple(slice(c, c + 3) for c in first)
        for name, values in part.items():
            assert values.tobytes() == whole[name][there].tobytes(), name


# --- glaciers ---


def errors(kernel: Any, pair: FlowPair) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Errors and sigmas of dy and dx, and which cells count."""
    found = match(kernel, pair.image1, pair.image2)
    at = centres(kernel, len(pair.image1))
    truth = np.stack(pair.displacement(at[:, None], at[None]))
    low, high = (at - 0.5).astype(int), (at + 0.5).astype(int)
    ice = pair.scored[low][:, low] & pair.scored[high][:, high]
    ice[:2] = ice[-2:] = ice[:, :2] = ice[:, -2:] = False
    both = np.stack([found["dy"], found["dx"]]), np.stack([found["dy_error"], found["dx_error"]])
    return both[0] - truth, both[1], ice


# Measured over eight seeds: .06, .18, .28; docs/flow.md.
@pytest.mark.parametrize(("level", "rmse"), [("easy", 0.07), ("glacier", 0.2), ("annual", 0.3)])
def test_error_and_sigma_on_synthetic_glaciers(level, rmse) -> None:
    lengths, z = [], []
    for seed in (1, 2):
        error, sigma, ice = errors(HornSchunck(search=6), cached_pair(level, seed))
        found = ice & np.isfinite(error[0])
        assert found.sum() > 0.9 * ice.sum() > 300
        lengths.append(np.sqrt((error[:, found] ** 2).sum(0).mean()))
        z.append((error / sigma)[:, found].ravel())
    assert 0.03 < np.mean(lengths) < rmse
    assert 0.6 < 1.4826 * np.median(np.abs(np.concatenate(z))) < 1.3


def test_the_reference_loses_what_the_robust_one_keeps() -> None:
    robust, reference = (
        np.nanmedian(np.hypot(*error)[ice])
        for error, _, ice in (errors(k, cached_pair("annual", 1)) for k in (HornSchunck(), HornSchunckReference()))
    )
    assert robust < 0.2 < reference


def test_pairs_are_the_same_every_time_and_move_as_they_say() -> None:
    pair, again = (flow_pair("easy", 3, 96) for _ in range(2))
    np.testing.assert_array_equal(pair.image2, again.image2)
    np.testing.assert_array_equal(pair.scored, again.scored)
    y, x = np.mgrid[8:88, 8:88]
    dy, dx = pair.displacement(y, x)
    back = map_coordinates(pair.image2.astype(float), [y + dy, x + dx], order=5)
    fast = np.hypot(dy, dx) > 1.5
    assert fast.mean() > 0.2
    followed, left = (np.median(np.abs(im - pair.image1[y, x])[fast]) for im in (back, pair.image2[y, x].astype(float)))
    assert followed < 0.25 * left
    assert {level: flow_pair(level, 3, 96).scored.mean() > 0.3 for level in LEVELS} == dict.fromkeys(LEVELS, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hard", 1), "level: must be one of easy, glacier, annual"),
        (("easy", 1, 96), "texture: must be at least 288 px"),
    ],
)
def test_pairs_that_cannot_be_made(arguments, message) -> None:
    with pytest.raises(ParameterError, match=message):
        flow_pair(*arguments, texture=np.zeros((100, 400)))


# --- a cube ---


def test_a_cube_of_dense_flow(moving) -> None:
    """10 m pixels, 10 days: (2, -3) m/day are (-2, -3) px, down and to the right."""
    cube, _ = moving()
    kernel = HornSchunck(search=5)
    velocity = og.track(cube, og.make_pairs(cube, days=[9, 11]), kernel, tile=8).compute()
    assert velocity.sizes["mid_date"] == 2
    inner = velocity.isel(y=slice(4, -4), x=slice(4, -4))
    np.testing.assert_allclose(inner["vy"], 2 * 365, atol=0.1 * 36.5)
    np.testing.assert_allclose(inner["vx"], -3 * 365, atol=0.1 * 36.5)
    assert (inner["chip_size_width"].values > 0).all()
    assert (velocity["interp_mask"].values == 0).all()
    kept = og.track(
        cube.assign(mask=cube["mask"].where(cube["x"] < 601000, 1).astype(np.uint8)), og.make_pairs(cube, days=[9, 11]),
        dataclasses.replace(kernel, fill="keep"),
    ).compute()  # fmt: skip
    filled = kept["interp_mask"].values == 1
    assert filled.any()
    assert np.isfinite(kept["vx"].values[filled]).all()
    assert (kept["flag"].values[filled] & flags.INTERPOLATED != 0).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"search": 0}, "search: must be a whole number, at least 1"),
        ({"step": 8.0}, "step: must be a whole number"),
        ({"smoothness": 0.0}, "smoothness: must be positive"),
        ({"softness": float("nan")}, "softness: must be positive"),
        ({"start": "zero"}, "start: must be one of orientation, ncc, none"),
        ({"fill": "drop"}, "fill: must be one of nan, keep"),
        ({"median": 4}, "median: must be odd, or 0"),
        ({"levels": 3, "step": 6}, "step: must be a multiple of 4 px"),
        ({"min_correlation": 2.0}, "min_correlation: must lie in"),
    ],
)
def test_a_wrong_parameter_is_named(parameters, message) -> None:
    with pytest.raises(ParameterError, match=message):
        HornSchunck(**parameters)


def test_the_tables_of_the_page_are_those_of_the_kept_run() -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "benchmarks/flow.py", "--read", "benchmarks/flow.json", "--markdown"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    page = (root / "docs/flow.md").read_text()
    parts = [part for part in done.stdout.split("\n\n") if part.startswith("|")]
    assert len(parts) == 7
    for part in parts:
        assert part in page
    assert not json.loads((root / "benchmarks/flow.json").read_text())["quick"]
