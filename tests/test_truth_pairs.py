"""The truth cases: checksums of the published table, and the claim that image 2 shows image 1 displaced."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ogive.errors import ParameterError
from ogive.testing.pairs import NAMES, flow_field, source, truth_pair, uniform_field
from ogive.testing.textures import Texture, fractal_scene, image_scene, power_law, spectrum

SUMS = {
    "P1": (8387378251, 8387633660),
    "S00": (2097681157, 2097679612),
    "S08": (2097681157, 2097721611),
    "S16": (2097681157, 2097756832),
    "M1": (2097134133, 2096976002),
    "P2": (8387323475, 8387879298),
    "P5": (8387520006, 8634673986),
}


def sums(pair):
    assert pair.image1.dtype == pair.image2.dtype == np.uint16
    return int(pair.image1.sum(dtype=np.uint64)), int(pair.image2.sum(dtype=np.uint64))


@pytest.mark.parametrize("name", list(SUMS))
def test_checksums_of_the_table(name):
    pair = truth_pair(name)
    assert pair.image1.shape == ((1024, 1024) if name[0] == "P" else (512, 512))
    assert sums(pair) == SUMS[name]


@pytest.mark.real
def test_checksum_of_the_alpine_case(data):
    pair = truth_pair("P4", image=data / "imagery" / "everest_landsat7_20001030" / "LE71400412000304SGS00_B4.tif")
    assert pair.image1.shape == (591, 736)
    assert sums(pair) == (3493403917, 3493236556)


def test_image_2_at_the_displaced_place_shows_image_1():
    # Only noise (1/20) and the interpolation of image 2 at displaced places part the two.
    pair = truth_pair("P1", 160)
    y, x = np.mgrid[16:144, 16:144].astype(float)
    dy, dx = pair.displacement(y, x)
    assert np.hypot(dy, dx).max() > 5
    moved = Texture.through(pair.image2)(y + dy, x + dx)
    one = pair.image1[16:144, 16:144].astype(float)
    assert (moved - one).std() < 0.13 * one.std()
    assert (pair.image2[16:144, 16:144] - one).std() > 0.7 * one.std()  # without the field they differ


def test_margin_moves_only_above_the_edge():
    pair = truth_pair("M1", 128)
    dy, dx = pair.displacement(np.array([63.0, 64.0]), 5.0)
    assert dx.tolist() == [5.3, 0.0]
    assert dy.tolist() == [0.0, 0.0]
    rock = pair.image2[64:].astype(float) - pair.image1[64:]
    assert rock.std() == pytest.approx(400 * np.sqrt(2) / 10, rel=0.05)
    ice = pair.image2[:64].astype(float) - pair.image1[:64]
    assert ice.std() > 4 * rock.std()


def test_locking_cases_are_uniform():
    for name, dx in (("S00", 0.0), ("S04", 0.25), ("S16", 1.0)):
        got = truth_pair(name, 64).displacement(np.arange(3.0), np.arange(3.0))
        np.testing.assert_array_equal(got[0], [0.3] * 3)
        np.testing.assert_array_equal(got[1], [dx] * 3)
    assert len(NAMES) == 22


@settings(max_examples=25, deadline=None)
@given(st.integers(64, 700), st.integers(64, 700), st.floats(0, 1), st.floats(0, 1))
def test_source_inverts_the_field(height, width, v, u):
    field = flow_field((height, width))
    y, x = v * height, u * width
    py, px = source(y, x, field)
    dy, dx = field(py, px)
    assert float(py + dy) == pytest.approx(y, abs=1e-8)
    assert float(px + dx) == pytest.approx(x, abs=1e-8)
    assert np.hypot(dy, dx) <= 6.3


def test_source_refuses_a_folded_field():
    with pytest.raises(ParameterError, match="gradients"):
        source(10.0, 10.0, lambda y, x: (np.asarray(-1.5 * np.asarray(y)), np.asarray(0.0)))


def test_texture_shifts_like_fourier():
    # A periodic, band-limited raster can be shifted exactly by its spectrum; the spline must agree.
    n = 128
    amplitude = power_law((n, n), exponent=1.3, longest=64.0, psf=2.4)
    field = spectrum((n, n), np.random.default_rng(3), amplitude=amplitude)
    ky, kx = np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :]
    exact = np.fft.irfft2(np.fft.rfft2(field) * np.exp(2j * np.pi * (0.3 * ky - 0.45 * kx)), s=(n, n))
    y, x = np.mgrid[32:96, 32:96]
    got = Texture.through(field)(y + 0.3, x - 0.45)
    assert np.abs(got).max() > 1
    np.testing.assert_allclose(got, exact[32:96, 32:96], atol=2e-5)


def test_scenes_are_standardised_and_repeatable():
    one = fractal_scene(64, seed=5)
    assert one.coefficients.shape == (512, 512)
    np.testing.assert_array_equal(one.coefficients, fractal_scene(64, seed=5).coefficients)
    assert np.abs(one.coefficients - fractal_scene(64, seed=6).coefficients).max() > 1
    image = np.random.default_rng(0).normal(500, 30, (100, 120))
    y, x = np.mgrid[-32:68, -32:88]
    values = image_scene(image)(y, x)
    assert abs(values.mean()) < 1e-4
    assert values.std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"name": "P9"}, "name: must be one of"),
        ({"name": "P4"}, "image: belongs to case P4"),
        ({"name": "P1", "image": "x.tif"}, "image: belongs to case P4"),
        ({"name": "P4", "image": "x.tif", "size": 64}, "size: is given by the image"),
        ({"name": "P1", "size": 16}, "at least 32 px"),
    ],
)
def test_errors_name_the_parameter(arguments, match):
    with pytest.raises(ParameterError, match=match):
        truth_pair(**arguments)


def test_image_scene_refuses_gaps():
    with pytest.raises(ParameterError, match="finite"):
        image_scene(np.full((128, 128), np.nan))


def test_uniform_field_broadcasts():
    dy, dx = uniform_field(1.0, 2.0)(np.zeros((3, 1)), np.zeros(4))
    assert dy.shape == dx.shape == (3, 4)
