"""Pre-filters: what they do to known patterns, what must not matter to them, and the same by SciPy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from ogive import enhance
from ogive.errors import ParameterError

NAMES = list(enhance.FILTERS)
EVERY = np.ones((96, 110), bool)


@pytest.fixture(scope="module")
def image() -> NDArray[np.float32]:
    """Texture like that of a scene: reflectance 0.4, correlated over about 2 px."""
    noise = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(EVERY.shape), 1.2)
    return (0.4 + 0.05 * noise / noise.std()).astype(np.float32)


@pytest.fixture(scope="module")
def holes() -> NDArray[np.bool_]:
    """A cloud and some single pixels; True where valid."""
    valid = np.random.default_rng(2).random(EVERY.shape) > 0.01
    valid[20:50, 60:80] = False
    return valid


def apply(name: str, image: Any, valid: Any = EVERY) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return enhance.get(name).apply(np.asarray(image, np.float32), valid)


def inner(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Without what belongs to the halo."""
    halo = enhance.get(name).halo
    return array[halo : array.shape[0] - halo, halo : array.shape[1] - halo]


@pytest.mark.parametrize("name", NAMES)
def test_window_in_window_out(name, image, holes) -> None:
    filtered, valid = apply(name, image, holes)
    assert filtered.shape == valid.shape == image.shape
    assert filtered.dtype == np.float32
    assert valid.dtype == bool
    assert not (valid & ~holes).any()
    assert valid.mean() > 0.3
    assert (filtered[~valid] == 0).all()
    assert np.isfinite(filtered).all()
    assert filtered[valid].std() > 0.01


@settings(max_examples=30)
@given(
    name=st.sampled_from(NAMES),
    y=st.integers(0, 40),
    x=st.integers(0, 50),
    h=st.integers(30, 56),
    w=st.integers(30, 60),
)
def test_a_pixel_does_not_depend_on_how_the_image_was_cut(name, y, x, h, w, image, holes) -> None:
    whole = apply(name, image, holes)
    cut = np.s_[y : y + h, x : x + w]
    part = apply(name, image[cut].copy(), holes[cut].copy())
    assert inner(name, part[0]).size > 50
    for one, two in zip(part, whole, strict=True):
        assert inner(name, one).tobytes() == inner(name, two[cut]).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_masked_pixel_changes_only_what_reaches_it(name, image) -> None:
    halo = enhance.get(name).halo
    hole = EVERY.copy()
    hole[40, 50] = False
    near = np.zeros_like(hole)
    near[40 - halo : 41 + halo, 50 - halo : 51 + halo] = True
    for one, two in zip(apply(name, image, hole), apply(name, image), strict=True):
        assert one[~near].tobytes() == two[~near].tobytes()
        assert (one != two)[near].any()


@pytest.mark.parametrize("name", NAMES)
def test_values_under_the_mask_have_no_influence(name, image, holes) -> None:
    expected = apply(name, np.where(holes, image, 0), holes)
    assert expected[1].any()
    for under in (1.0, 1e4, np.nan, np.inf):
        result = apply(name, np.where(holes, image, under), holes)
        for one, two in zip(result, expected, strict=True):
            assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "none"])
def test_a_constant_offset_changes_nothing(name, image, holes) -> None:
    one, valid1 = apply(name, image, holes)
    two, valid2 = apply(name, image + np.float32(0.2), holes)
    np.testing.assert_array_equal(inner(name, valid1), inner(name, valid2))
    assert np.abs(inner(name, one)).max() > 0.05
    # Rounding of the image itself, 3e-8, is up to 1e-4 of the smallest gradients that orientation divides by.
    tolerance = 2e-2 if name == "orientation" else 1e-3 if name == "wallis" else 5e-6
    np.testing.assert_allclose(inner(name, one), inner(name, two), atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [0.0, 0.3, 8000.0])
def test_a_flat_image_becomes_exactly_zero_or_invalid(name, level, holes) -> None:
    for mask in (EVERY, holes):
        filtered, valid = apply(name, np.full(EVERY.shape, level), mask)
        if name == "none":
            assert (filtered[mask] == np.float32(level)).all()
        else:
            assert inner(name, valid).size > 0
            assert (inner(name, filtered) == 0).all()
        if name in ("wallis", "orientation"):
            assert not inner(name, valid).any()


def test_high_pass_removes_a_ramp_and_keeps_what_is_small(image, holes) -> None:
    y, x = np.indices(EVERY.shape)
    ramp = 0.003 * y - 0.002 * x
    assert np.abs(inner("high_pass", apply("high_pass", ramp)[0])).max() < 1e-6
    with_ramp, without = (inner("high_pass", apply("high_pass", im)[0]) for im in (image + ramp, image))
    np.testing.assert_allclose(with_ramp, without, atol=1e-6)
    wave = np.cos(2 * np.pi * x / 4)
    got = inner("high_pass", apply("high_pass", wave)[0])
    # The Gaussian's transfer at a wavelength of 4 px is exp(-2 (pi 3 / 4)^2) < 2e-5.
    np.testing.assert_allclose(got, inner("high_pass", wave), atol=5e-3)
    # A hole's border is no edge: the mean is over valid pixels only.
    assert np.abs(apply("high_pass", np.full(EVERY.shape, 0.4), holes)[0]).max() == 0


def mean_of_valid(image: Any, valid: Any, taps: Any) -> NDArray[np.float64]:
    """Normalised convolution by SciPy, float64."""

    def smooth(values: Any) -> NDArray[np.float64]:
        return ndimage.correlate(np.asarray(values, float), np.outer(taps, taps), mode="constant")

    return smooth(np.where(valid, image, 0)) / np.maximum(smooth(valid), 1e-9)


GAUSSIAN = np.exp(-0.5 * (np.arange(-9, 10) / 3) ** 2)


@pytest.mark.parametrize(("name", "taps"), [("high_pass", GAUSSIAN / GAUSSIAN.sum()), ("box_high_pass", np.ones(9))])
@pytest.mark.parametrize("cut", [np.s_[:, :], np.s_[:30, :50], np.s_[:5, :7], np.s_[:, :3]])
def test_a_high_pass_is_the_image_less_the_mean_of_the_valid_pixels(name, taps, cut, image, holes) -> None:
    for mask in (EVERY, holes):
        im, valid = image[cut], mask[cut]
        expected = np.where(valid, im - mean_of_valid(im, valid, taps), 0)
        assert np.abs(expected).max() > 0.02
        # Float32 at a level of 0.4.
        np.testing.assert_allclose(apply(name, im, valid)[0], expected, atol=1e-6)


def test_a_band_pass_is_the_narrow_mean_less_the_wide_one(image, holes) -> None:
    narrow = np.exp(-2.0 * np.arange(-2, 3) ** 2)  # sigma 0.5
    for mask in (EVERY, holes):
        means = [mean_of_valid(image, mask, taps / taps.sum()) for taps in (narrow, GAUSSIAN)]
        expected = np.where(mask, means[0] - means[1], 0)
        assert np.abs(expected).max() > 0.02
        np.testing.assert_allclose(apply("band_pass", image, mask)[0], expected, atol=1e-6)


def test_high_pass_is_exact_on_bright_snow(image) -> None:
    snow = (8000 + 100 * (image - 0.4)).astype(np.float32)  # a contrast of 5 at a level of 8000, where an ulp is 0.0005
    expected = snow - ndimage.gaussian_filter(snow.astype(float), 3, radius=9)
    error = inner("high_pass", apply("high_pass", snow)[0] - expected)
    assert np.abs(error).max() < 0.02
    assert error.std() < 0.001


def test_wallis_brings_every_place_to_the_same_contrast(image) -> None:
    # Contrast grows eightfold from left to right.
    stretched = 0.4 + (image - 0.4) * np.linspace(0.25, 2, image.shape[1], dtype=np.float32)
    got = inner("wallis", apply("wallis", stretched)[0])
    raw = inner("wallis", stretched)
    left, right = np.s_[:, :25], np.s_[:, -25:]
    assert raw[right].std() > 2.5 * raw[left].std()
    for part in (left, right):
        assert got[part].std() == pytest.approx(1, abs=0.1)
        assert abs(got[part].mean()) < 0.1


def test_wallis_is_mean_and_deviation_of_the_box(image) -> None:
    snow = (8000 + 100 * (image - 0.4)).astype(np.float32)  # a contrast of 5 at a level of 8000
    for im in (image, snow):
        got = apply("wallis", im)[0]
        for y, x in ((30, 30), (48, 77), (20, 90)):
            box = im[y - 10 : y + 11, x - 10 : x + 11].astype(float)
            assert got[y, x] == pytest.approx((im[y, x] - box.mean()) / box.std(ddof=1), abs=1e-4)


def test_wallis_counts_the_valid_pixels_alone(image, holes) -> None:
    got, valid = apply("wallis", image, holes)
    exact = image.astype(float)
    mean, square = (mean_of_valid(im, holes, np.ones(21)) for im in (exact, exact**2))
    spread = np.sqrt(np.maximum(square - mean**2, 1e-12) * 441 / 440)
    expected = np.where(holes, (exact - mean) / spread, 0)
    assert (valid == holes).all()
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_sobel_has_the_sign_and_direction_of_the_axes() -> None:
    y, x = np.indices(EVERY.shape)
    image = 3.0 * x - 2.0 * y
    # The Sobel stencil adds up to 8 times the slope.
    np.testing.assert_allclose(inner("sobel_x", apply("sobel_x", image)[0]), 24)
    np.testing.assert_allclose(inner("sobel_y", apply("sobel_y", image)[0]), -16)
    np.testing.assert_allclose(inner("sobel", apply("sobel", image)[0]), np.hypot(24, 16), rtol=1e-6)


def test_sobel_is_the_convolution_with_its_stencil(image) -> None:
    stencil = np.outer([1, 2, 1], [-1, 0, 1])
    for name, kernel in (("sobel_x", stencil), ("sobel_y", stencil.T)):
        expected = ndimage.correlate(image.astype(float), kernel)
        got = apply(name, image)[0]
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(inner(name, got), inner(name, expected), atol=1e-6)


@pytest.mark.parametrize(("name", "reach"), [("sobel_x", 1), ("sobel_y", 1), ("sobel", 1), ("orientation", 3)])
def test_a_stencil_loses_the_border_of_every_hole_and_no_more(name, reach, image) -> None:
    holes = EVERY.copy()
    holes[40, 50] = False
    _, valid = apply(name, image, holes)
    lost = np.argwhere(~inner(name, valid)) + enhance.get(name).halo
    assert (lost.min(0) == (40 - reach, 50 - reach)).all()
    assert (lost.max(0) == (40 + reach, 50 + reach)).all()
    assert len(lost) == (2 * reach + 1) ** 2


def test_orientation_is_the_published_formula(image) -> None:
    smooth = ndimage.gaussian_filter(image.astype(float), 0.7, radius=2)

    def second(dy: int, dx: int) -> NDArray[np.float64]:
        return 2 * smooth - np.roll(smooth, (dy, dx), (0, 1)) - np.roll(smooth, (-dy, -dx), (0, 1))

    expected = np.zeros(smooth.shape)
    for one, two in (((0, 1), (1, 0)), ((1, 1), (1, -1))):
        angle = np.arctan2(second(*one), second(*two))
        expected += np.cos(angle) + np.sin(angle)
    # Rounding of a small second difference turns its direction.
    np.testing.assert_allclose(inner("orientation", apply("orientation", image)[0]), inner("orientation", expected),
                               atol=2e-3)  # fmt: skip


def test_orientation_knows_directions_and_not_strength(image) -> None:
    plain, valid = apply("orientation", image)
    for gain in (0.25, 64.0):  # powers of two: the same rounding
        stretched, _ = apply("orientation", gain * image)
        np.testing.assert_array_equal(stretched, plain)
    stretched, _ = apply("orientation", 3.7 * image)
    np.testing.assert_allclose(inner("orientation", stretched), inner("orientation", plain), atol=2e-3)
    assert valid.all()
    # Two terms, each a sum of cosine and sine.
    assert np.abs(plain).max() <= 2 * np.sqrt(2) + 1e-5
    flipped, _ = apply("orientation", 1 - image)
    np.testing.assert_allclose(inner("orientation", flipped), -inner("orientation", plain), atol=2e-3)


def test_orientation_of_a_paraboloid_of_revolution_is_its_diagonal() -> None:
    y, x = np.indices(EVERY.shape)
    got, valid = apply("orientation", 1e-3 * ((y - 48.0) ** 2 + (x - 55.0) ** 2))
    # Second differences: equal along x and y, twice that along both diagonals; each pair makes -sqrt(2).
    assert valid[40:56, 47:63].all()
    np.testing.assert_allclose(got[40:56, 47:63], -2 * np.sqrt(2), atol=0.05)


def test_halo_and_names() -> None:
    assert {n: f.halo for n, f in enhance.FILTERS.items()} == {
        "none": 0, "band_pass": 9, "high_pass": 9, "box_high_pass": 4, "wallis": 10, "sobel_x": 1, "sobel_y": 1,
        "sobel_sum": 1, "sobel": 1, "orientation": 3,
    }  # fmt: skip
    with pytest.raises(ParameterError, match=r"enhance: must be one of none, band_pass.* \(found 'clahe'\)"):
        enhance.get("clahe")


def test_noise_in_gaps_is_normal_and_belongs_to_the_pixel(image) -> None:
    nothing = np.zeros((400, 500), bool)
    noise = enhance.fill_gaps(np.zeros(nothing.shape, np.float32), nothing, 3, (0, 0))
    assert noise.dtype == np.float32
    # Four standard errors of 200 000 independent values.
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)
    assert abs((noise**4).mean() - 3) < 4 * np.sqrt(96 / noise.size)
    for near in (noise[1:] * noise[:-1], noise[:, 1:] * noise[:, :-1]):
        assert abs(near.mean()) < 4 / np.sqrt(near.size)
    part = enhance.fill_gaps(np.zeros((30, 40), np.float32), nothing[:30, :40], 3, (-7, 60))
    assert part[7:].tobytes() == noise[:23, 60:100].copy().tobytes()
    other = enhance.fill_gaps(np.zeros(nothing.shape, np.float32), nothing, 4, (0, 0))
    assert abs((noise * other).mean()) < 4 / np.sqrt(noise.size)


def test_noise_leaves_valid_pixels_alone(image, holes) -> None:
    filtered, valid = apply("wallis", image, holes)
    before = filtered.copy()
    filled = enhance.fill_gaps(filtered, valid, 3, (0, 0))
    np.testing.assert_array_equal(filtered, before)
    np.testing.assert_array_equal(filled[valid], filtered[valid])
    assert (filled[~valid] != 0).all()
