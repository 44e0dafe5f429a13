"""Phase correlation: the fit against a search over the spectrum, masks and tapers, accuracy on known displacement.

What every kernel must do is in test_kernels.py.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ogive import flags
from ogive.errors import ParameterError
from ogive.kernels import NCC, phase
from ogive.kernels.phase import PhaseCorrelation
from ogive.testing.pairs import TruthPair, truth_pair
from ogive.testing.textures import fractal_scene

cached_pair = functools.cache(truth_pair)


@dataclass(frozen=True)
class Score:
    """Errors over the points whose centre is at least 72 px from the edge; per component, gross errors apart."""

    points: int
    valid: float
    gross: float
    rmse: float
    nmad: float
    bias: float


def errors(pair: TruthPair, kernel: Any, valid: NDArray[np.bool_] | None = None) -> tuple[Any, ...]:
    """dy and dx minus truth at the chip centres, their y and x, and the answer."""
    every = np.ones(pair.image1.shape, bool) if valid is None else valid
    found = kernel.match(*(kernel.prepare(im.astype(np.float32), every) for im in (pair.image1, pair.image2)))
    y, x = (kernel.halo() + (kernel.step - 1) / 2 + kernel.step * np.arange(n) for n in found["dy"].shape)
    dy, dx = pair.displacement(y[:, None], x)
    return found["dy"] - dy, found["dx"] - dx, y[:, None] + 0 * x, x + 0 * y[:, None], found


def score(pair: TruthPair, kernel: Any) -> Score:
    ey, ex, y, x, _ = errors(pair, kernel)
    height, width = pair.image1.shape
    inner = (y > 72) & (y < height - 72) & (x > 72) & (x < width - 72)
    e = np.stack([ey, ex])[:, inner & np.isfinite(ey)]
    near = np.hypot(*e) < 1
    nmad = np.mean([1.4826 * np.median(np.abs(c - np.median(c))) for c in e])
    rmse, bias = np.sqrt((e[:, near] ** 2).mean()), np.abs(e[:, near].mean(1)).max()
    share = e.shape[1] / inner.sum()
    return Score(int(inner.sum()), float(share), float(1 - near.mean()), float(rmse), float(nmad), float(bias))


# --- accuracy ---


@pytest.mark.parametrize(
    ("name", "chip", "rmse"),
    # Measured .0103, .0129, .0250, .0462. NCC's quadric: .0230, .0218, .0274, .0374; a library's phase correlation,
    # Hann window and hundredfold sampling: .039 and .111 at 64 px.
    [("P1", 64, 0.0110), ("P1", 32, 0.0137), ("P2", 64, 0.0265), ("P2", 32, 0.049)],
)
def test_error_on_a_winding_stream(name, chip, rmse) -> None:
    got = score(cached_pair(name), PhaseCorrelation(chip=chip, search=8))
    assert got.points == 12100
    assert got.valid > 0.999
    assert got.gross == 0
    assert 0.005 < got.rmse < rmse
    assert got.bias < 0.003


@pytest.mark.real
def test_error_on_alpine_texture(data) -> None:
    image = data / "imagery" / "everest_landsat7_20001030" / "LE71400412000304SGS00_B4.tif"
    pair = truth_pair("P4", image=image)
    got = score(pair, PhaseCorrelation(chip=64, search=8))
    quadric = score(pair, NCC(chip=64, search=8, refine="quadric"))
    assert got.points == quadric.points > 4000
    assert got.valid > 0.99
    assert got.gross < 0.002
    assert got.rmse < 0.074 < 0.09 < quadric.rmse


def test_error_under_changed_light_and_cloud() -> None:
    got = score(truth_pair("P5"), PhaseCorrelation(chip=64, search=8))
    assert 0.9 < got.valid < 1  # 15 % of image 2 is cloud that no mask tells of
    assert got.gross < 0.012
    assert 0.01 < got.nmad < 0.025


def test_nothing_locks_to_whole_pixels() -> None:
    """The bias is a hundredth of that of a fit to the correlation surface (test_ncc.py: up to 0.03 px)."""
    worst = 0.0
    for k in range(0, 17, 2):
        ey, ex, *_ = errors(cached_pair(f"S{k:02d}", 256), PhaseCorrelation(chip=64, search=3))
        assert ex.size > 250
        assert np.isfinite(ex).all()
        assert ex.std() < 0.004
        worst = max(worst, abs(float(ey.mean())), abs(float(ex.mean())))
    assert worst < 0.0015


# --- the fit ---


def pair_of(shape: tuple[int, int], dy: float, dx: float) -> list[NDArray[np.float32]]:
    surface = fractal_scene(200, seed=3)
    y, x = np.arange(shape[0])[:, None], np.arange(shape[1])
    return [surface(y, x).astype(np.float32), surface(y - dy, x - dx).astype(np.float32)]


def test_the_fit_is_the_maximum_of_the_weighted_spectrum() -> None:
    """One chip, by the definition: tapers, full complex transforms, and a search over a fine grid of slopes."""
    chip, start = 24, (1.31, -0.58)
    images = pair_of((60, 60), 1.27, -0.62)
    every = np.ones((60, 60), bool)
    kernel = PhaseCorrelation(chip, 4, 8)
    scenes = [kernel.prepare(im, every).search for im in images]
    got, fitted = phase.refine(*scenes, np.array([[15, 17]]), np.array([start]), chip)
    assert fitted.all()
    whole, spectra = (1, -1), []
    middle = np.arange(chip) - (chip - 1) / 2
    for scene, at, moved in ((scenes[0], (15, 17), (0, 0)), (scenes[1], (16, 16), np.subtract(start, whole))):
        w = np.multiply.outer(*(np.cos(np.pi * (middle - m) / chip) for m in moved))
        a = scene.image[at[0] : at[0] + chip, at[1] : at[1] + chip].astype(float)
        spectra.append(np.fft.fft2(w * (a - (w * a).sum() / w.sum())))
    cross = spectra[0].conj() * spectra[1]
    k = np.fft.fftfreq(chip)
    cross[np.hypot(k[:, None], k) > 0.4] = 0
    # A search in two stages, to 0.0005 px.
    best = np.array([0.3, 0.4])
    for reach, pitch in ((0.2, 0.02), (0.02, 0.0005)):
        offsets = np.arange(-reach, reach + pitch / 2, pitch)
        waves = [np.exp(2j * np.pi * np.multiply.outer(b + offsets, k)) for b in best]
        height = np.einsum("ay,yx,bx->ab", waves[0], cross, waves[1]).real
        i, j = np.unravel_index(height.argmax(), height.shape)
        assert 0 < i < len(offsets) - 1
        assert 0 < j < len(offsets) - 1
        best = best + offsets[[i, j]]
    np.testing.assert_allclose(got[0], best + whole, atol=0.0006)


def test_a_vector_does_not_depend_on_its_company() -> None:
    images = pair_of((140, 150), 0.4, 1.7)
    valid = np.random.default_rng(0).random(images[0].shape) > 0.002
    kernel = PhaseCorrelation(32, 4, 8)
    scenes = [kernel.prepare(im, valid).search for im in images]
    corner = np.random.default_rng(1).integers(10, 100, (150, 2))
    start = np.tile([0.5, 1.6], (150, 1)) + np.random.default_rng(2).normal(0, 0.02, (150, 2))
    together, fitted = phase.refine(*scenes, corner, start, 32)
    assert fitted.all()
    assert np.abs(together - (0.4, 1.7)).max() < 0.1
    for n in (0, 63, 64, 149):
        alone, _ = phase.refine(*scenes, corner[n : n + 1], start[n : n + 1], 32)
        assert alone.tobytes() == together[n].tobytes()
    turned, _ = phase.refine(*scenes, corner[::-1].copy(), start[::-1].copy(), 32)
    assert turned[::-1].tobytes() == together.tobytes()


def test_a_fit_that_is_lost_leaves_its_start() -> None:
    one, two = pair_of((80, 80), 0.0, 0.0)
    kernel = PhaseCorrelation(32, 4, 8)
    valid = np.ones(one.shape, bool)
    valid[:, 30:] = False
    corner = np.array([[20, 20], [20, 3], [20, 20]])
    start = np.array([[0.2, 0.3], [0.2, 0.1], [2.4, -2.4]])
    scenes = [kernel.prepare(im, valid).search for im in (one, two)]
    got, fitted = phase.refine(*scenes, corner, start, 32)
    assert fitted.tolist() == [False, True, False]  # too little is left; all is there; nothing alike at that place
    np.testing.assert_array_equal(got[[0, 2]], start[[0, 2]])
    np.testing.assert_allclose(got[1], 0, atol=0.02)


def test_what_masks_leave_too_little_of_keeps_the_quadric_and_says_so() -> None:
    one, two = pair_of((96, 96), 0.4, -0.3)
    valid = np.ones(one.shape, bool)
    valid[::6] = False  # no pixel is three away from a masked one
    kernel = PhaseCorrelation(32, 4, 8, "none", max_peak_ratio=1)
    scenes = [kernel.prepare(im, valid) for im in (one, two)]
    got = kernel.match(*scenes)
    plain = NCC(32, 4, 8, "none", "quadric", max_peak_ratio=1.0)
    expected = plain.match(*(plain.prepare(im, valid) for im in (one, two)))
    assert np.isfinite(expected["dy"]).mean() > 0.9
    found = np.isfinite(got["dy"])
    assert (got["flag"][found] & flags.NOT_REFINED != 0).all()
    np.testing.assert_array_equal(got["dy"], expected["dy"])
    np.testing.assert_array_equal(got["valid_fraction"], expected.get("valid_fraction", got["valid_fraction"]))
    assert np.abs(got["valid_fraction"] - 5 / 6).max() < 0.03


@pytest.mark.parametrize("chip", [32, 64])
def test_both_masks_keep_the_margin_down_to_four_pixels(chip) -> None:
    pair = cached_pair("M1", 320)
    ice = np.zeros(pair.image1.shape, bool)
    ice[:160] = True
    ey, ex, y, _, found = errors(pair, PhaseCorrelation(chip=chip, search=8, step=4), ice)
    beside = (y < 159.5) & (y > 159.5 - 48)
    assert np.isfinite(ey[beside]).mean() > 0.99
    assert np.nanmax(np.hypot(ey, ex)[beside]) < 0.2
    # Masked chips are about as exact as whole ones, and not drawn to whole pixels as a hard-edged mask would do.
    assert np.sqrt(np.nanmean(ex[beside] ** 2)) < (0.035 if chip == 32 else 0.02)
    assert (found["flag"][beside] & flags.NOT_REFINED == 0).mean() > 0.99
    assert found["valid_fraction"][beside].min() < 0.65


def test_chip_used_and_errors_are_told() -> None:
    one, two = pair_of((120, 128), 0.4, -0.3)
    valid = np.ones(one.shape, bool)
    valid[:, :64] = False
    kernel = PhaseCorrelation(32, 4, 8)
    got = kernel.match(kernel.prepare(one, valid), kernel.prepare(two, valid))
    matched = got["flag"] & flags.NO_DATA == 0
    assert 0 < matched.mean() < 1
    assert set(got["chip"][matched]) == {32}
    assert set(got["chip"][~matched]) == {0}
    assert np.isnan(got["dy_error"]).all()
    assert got["valid_fraction"][0, 0] == 0
    assert got["valid_fraction"][0, -1] == 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"chip": 8}, r"chip: must be at least 16 px, for the tapers \(found 8\)"),
        ({"chip": 33}, r"both be even or both be odd"),
        ({"search": 0}, r"search: .*at least 1"),
        ({"min_correlation": 2}, r"min_correlation: must lie in 0 \.\.\. 1"),
    ],
)
def test_a_wrong_parameter_is_named(parameters, message) -> None:
    with pytest.raises(ParameterError, match=message):
        PhaseCorrelation(**parameters)
