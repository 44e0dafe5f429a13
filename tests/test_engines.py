"""The engines of the whole-pixel search: each gives the reference's answer, and the same bits in any company.

What every kernel must do is in test_kernels.py.
"""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ogive.blocks import OUTPUTS
from ogive.kernels import NCC, _ncc_dense, _search
from ogive.kernels._ncc_dense import search_dense
from ogive.kernels._ncc_fft import search_fft

# Chips even, odd, powers of two and one less; windows apart and overlapping; tiles cut and whole.
DENSE = [NCC(chip=c, search=r, step=1) for c, r in ((7, 4), (9, 2), (31, 3), (33, 2), (65, 2), ((9, 15), 3))]
SPARSE = [NCC(chip=c, search=r, step=s) for c, r, s in ((16, 12, 32), (8, 4, 16), (15, 5, 41), ((8, 16), 6, 32))]


def plain(kernel: NCC) -> NCC:
    """No filter and no threshold: a value on either side of one is no disagreement."""
    return replace(kernel, enhance="none", refine="quadric", min_correlation=0.0, max_peak_ratio=1.0, backend="numba")


def windows(kernel: NCC, cells: tuple[int, int], seed: int, holes: float = 0.0) -> list[NDArray[Any]]:
    """Two related images of white noise and their masks: single pixels and one block."""
    rng = np.random.default_rng(seed)
    shape = tuple(2 * kernel.halo() + n * kernel.step for n in cells)
    one = rng.standard_normal(shape).astype(np.float32)
    two = np.roll(one, (1, -1), (0, 1)) + np.float32(0.5) * rng.standard_normal(shape).astype(np.float32)
    valid = [rng.random(shape) >= holes for _ in range(2)]
    if holes:
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        valid[1][y : y + 9, x : x + 12] = False
    return [one, two, *valid]


def match(kernel: NCC, one: Any, two: Any, valid1: Any, valid2: Any) -> dict[str, NDArray[Any]]:
    return kernel.match(kernel.prepare(one, valid1), kernel.prepare(two, valid2))


def every_engine(kernel: NCC, images: list[NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """What blocks, transforms and, with step 1, whole rows find where nothing is masked."""
    first, second = (kernel.prepare(im, v).search for im, v in zip(images[:2], images[2:], strict=True))
    kind = np.zeros((len(kernel.chips), *kernel._cells(first)), np.uint8)
    found = {"blocks": _search._blocks(first, second, kind, kernel._least), "fft": search_fft(first, second, kind)}
    return found | ({"dense": search_dense(first, second, kind)} if kernel.step == 1 else {})


# --- which engine ---


@pytest.mark.parametrize(
    ("engine", "chip", "search", "step"),
    [
        ("dense", 31, 8, 1), ("dense", 9, 25, 1), ("blocks", 32, 8, 2), ("blocks", 31, 8, 3), ("blocks", 32, 8, 8),
        ("blocks", (16, 32, 64), 25, 8), ("blocks", 32, 32, 16), ("blocks", 64, 32, 32), ("fft", 32, 16, 32),
        ("fft", 32, 8, 64), ("fft", 64, 25, 48), ("fft", 16, 4, 32),
    ],
)  # fmt: skip
def test_the_engine_is_the_one_that_was_measured_to_be_the_fastest(engine, chip, search, step) -> None:
    assert _search.engine_of(NCC(chip, search, step)._geometry) == engine


def test_the_reason_is_told(caplog) -> None:
    with caplog.at_level(logging.DEBUG, "ogive"):
        _search.engine_of(NCC(32, 16, 64)._geometry)
    assert "chips (32,), step 64, search 16: fft (about" in caplog.text


# --- the same answer ---


@settings(max_examples=25)
@given(
    kernel=st.sampled_from([*DENSE, *SPARSE]), seed=st.integers(0, 10**6), holes=st.sampled_from([0, 0.001, 0.03, 0.3])
)
def test_every_engine_agrees_with_the_reference(kernel, seed, holes) -> None:
    kernel = plain(kernel)
    assert _search.engine_of(kernel._geometry) == ("dense" if kernel.step == 1 else "fft")
    images = windows(kernel, (3, 4), seed, holes)
    got, expected = (match(k, *images) for k in (kernel, replace(kernel, backend="reference")))
    np.testing.assert_array_equal(got["flag"], expected["flag"])
    for name, tolerance in (("corr", 1e-5), ("snr", 1e-4), ("peak_ratio", 1e-4), ("dy", 1e-4), ("dx", 1e-4)):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=tolerance, err_msg=name)
    if not holes:
        assert np.isfinite(expected["corr"]).any()


@pytest.mark.parametrize("kernel", [DENSE[2], SPARSE[0]], ids=["dense", "sparse"])
def test_a_faint_chip_beside_a_bright_edge_keeps_its_correlation(kernel) -> None:
    """Products of a bright part of the window are a hundred times the chip's own, and must not leak into its."""
    kernel = plain(kernel)
    one, two, *valid = windows(kernel, (1, 1), seed=2)
    first = kernel.halo() + (kernel.step - kernel.chip) // 2
    for image in (one, two):
        image[:, first + kernel.chip + kernel.search // 2 :] *= 100
        image[: first - kernel.search // 2] += 1000
    expected = match(replace(kernel, backend="reference"), one, two, *valid)
    got = match(kernel, one, two, *valid)
    assert expected["corr"] > 0.8
    for name in ("corr", "dy", "dx", "peak_ratio"):
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-4, err_msg=name)


# --- the same bits ---


@pytest.mark.parametrize("kernel", [*DENSE, *SPARSE], ids=str)
def test_a_point_has_the_same_bits_in_any_company(kernel) -> None:
    """More points than a batch or a tile holds, and every cut of them."""
    kernel, (ny, nx) = plain(kernel), ((40, 230) if kernel.step == 1 else (7, 11))
    images = windows(kernel, (ny, nx), seed=4, holes=2e-5)
    whole = match(kernel, *images)
    assert np.isfinite(whole["dy"]).mean() > 0.5
    rng = np.random.default_rng(0)
    for _ in range(4):
        y, x = rng.integers(0, (ny - 1, nx - 1))
        h, w = rng.integers(1, (ny - y + 1, nx - x + 1))
        s, margin = kernel.step, 2 * kernel.halo()
        cut = np.s_[y * s : (y + h) * s + margin, x * s : (x + w) * s + margin]
        part = match(kernel, *(np.ascontiguousarray(im[cut]) for im in images))
        for name in OUTPUTS:
            assert part[name].tobytes() == whole[name][y : y + h, x : x + w].tobytes(), name


@pytest.mark.parametrize("kernel", [DENSE[2], SPARSE[0]], ids=["dense", "sparse"])
def test_a_mask_changes_no_bit_of_the_points_that_do_not_see_it(kernel) -> None:
    kernel = plain(kernel)
    one, two, every, _ = windows(kernel, (40, 50) if kernel.step == 1 else (9, 10), seed=5)
    # Enough for about every third chip to see one.
    holes = np.random.default_rng(1).random(one.shape) < (1 / 8000 if kernel.step == 1 else 1 / 700)
    clear, masked = match(kernel, one, two, every, every), match(kernel, one, two, ~holes, every)
    touched = masked["valid_fraction"] < 1
    assert 0.05 < touched.mean() < 0.7
    for name in OUTPUTS:
        assert masked[name][~touched].tobytes() == clear[name][~touched].tobytes(), name
    assert (masked["corr"][touched] != clear["corr"][touched]).all()


def test_a_tile_without_a_clear_point_is_left_out_and_no_seam_is_seen(monkeypatch) -> None:
    kernel = plain(DENSE[0])
    images = windows(kernel, (50, 70), seed=6)
    images[2][:30] = False
    expected = match(kernel, *images)
    assert 0.3 < np.isfinite(expected["dy"]).mean() < 0.9
    monkeypatch.setattr(_ncc_dense, "_TILE_POINTS", 9)
    monkeypatch.setattr(_ncc_dense, "_TILE_BYTES", 1)
    got = match(kernel, *images)
    for name in OUTPUTS:
        assert got[name].tobytes() == expected[name].tobytes(), name


def test_flat_and_constant_chips_have_no_correlation() -> None:
    for kernel in (plain(DENSE[2]), plain(SPARSE[0])):
        images = windows(kernel, (2, 3), seed=7)
        for k in range(2):
            spoiled = [np.full_like(im, 0.3) if i == k else im for i, im in enumerate(images)]
            for found in every_engine(kernel, spoiled).values():
                assert (found[:, 2:5] == 0).all()


# --- round priors ---


@pytest.mark.parametrize("holes", [0.0, 0.02])
def test_priors_at_their_limit_along_one_axis_and_different_along_the_other(holes: float) -> None:
    """The window of a tile is as high as it is wide, and must not leave the image on the side of the common prior."""
    kernel = NCC(chip=8, search=2, step=8, prior=4, enhance="none", refine="quadric", backend="numba")
    images = windows(kernel, (3, 4), seed=3, holes=holes)
    prior = np.full((2, 3, 4), -4, np.float32)
    prior[0] = np.array([-4, 0, 4, 1], np.float32)
    for one in (prior, prior[::-1], -prior, -prior[::-1]):
        answers = []
        for backend in ("numba", "reference"):
            chosen = replace(kernel, backend=backend)
            prepared = [chosen.prepare(im, v) for im, v in zip(images[:2], images[2:], strict=True)]
            answers.append(chosen.match(*prepared, np.ascontiguousarray(one)))
        np.testing.assert_array_equal(*(answer["flag"] for answer in answers))
        for name in ("dy", "dx", "corr"):
            np.testing.assert_allclose(*(answer[name] for answer in answers), atol=2e-4, err_msg=name)
