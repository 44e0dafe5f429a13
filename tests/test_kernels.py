"""The contract of a matching kernel, run on everything registered and on every backend of NCC.

A kernel that joins `ogive.kernels.KERNELS` is tested here without a line being added.
"""

import dataclasses
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ogive import flags
from ogive.blocks import OUTPUTS, outputs
from ogive.errors import ParameterError
from ogive.kernels import KERNELS, NCC, Custom, FlowNet, Kernel, Multiband, OrientationCorrelation
from ogive.testing.backends import GpuCodeOnCpu
from ogive.testing.textures import fractal_scene

Window = tuple[NDArray[np.float32], NDArray[np.bool_]]


# Small chips on self-similar texture have high second peaks; the limit is not what is tested here.
ANY_RATIO: dict[str, Any] = {"max_peak_ratio": 1.0}
SUBJECTS: dict[str, Callable[[], Any]] = {
    **{f"registered {name}": factory for name, factory in KERNELS.items()},
    "quadric": lambda: NCC(chip=32, search=5, step=8, refine="quadric", backend="numba", **ANY_RATIO),
    "fixed": lambda: NCC(chip=32, search=5, step=8, refine="fixed", backend="numba", **ANY_RATIO),
    "affine": lambda: NCC(chip=32, search=5, step=8, refine="affine", backend="numba", **ANY_RATIO),
    "three chips": lambda: NCC(chip=(16, 24, 32), search=5, step=8, backend="numba", **ANY_RATIO),
    "sparse": lambda: NCC(chip=16, search=12, step=32, backend="numba", **ANY_RATIO),
    "sparse, odd": lambda: NCC(
        chip=21, search=6, step=41, enhance="none", refine="quadric", backend="numba", **ANY_RATIO
    ),
    "orientation, gaps": lambda: OrientationCorrelation(chip=16, search=4, step=20, **ANY_RATIO),
    "coarse to fine": lambda: NCC(chip=32, search=17, step=8, coarse=4, backend="numba", **ANY_RATIO),
    "numba": lambda: NCC(chip=24, search=5, step=8, backend="numba", **ANY_RATIO),
    "numba, odd": lambda: NCC(chip=21, search=4, step=7, backend="numba", enhance="none", **ANY_RATIO),
    "numba, gaps": lambda: NCC(chip=16, search=4, step=20, backend="numba", enhance="wallis", **ANY_RATIO),
    "reference": lambda: NCC(chip=16, search=4, step=8, backend="reference", **ANY_RATIO),
    "cupy file": lambda: GpuCodeOnCpu(chip=16, search=4, step=8, **ANY_RATIO),
}
CELLS = (3, 4)


@pytest.fixture(params=list(SUBJECTS))
def kernel(request: pytest.FixtureRequest) -> Any:
    return SUBJECTS[request.param]()


@pytest.fixture(scope="session")
def scene() -> Callable[..., NDArray[np.float32]]:
    """Texture, correlated over a few pixels, at any position: `scene(shape, dy, dx)` is displaced by (dy, dx)."""
    surface = fractal_scene(200, seed=3)

    def sample(shape: tuple[int, int], dy: float = 0.0, dx: float = 0.0) -> NDArray[np.float32]:
        y, x = np.arange(shape[0]) - dy, np.arange(shape[1]) - dx
        return (0.4 + 0.05 * surface(y[:, None], x)).astype(np.float32)

    return sample


def shape_of(kernel: Any, cells: tuple[int, int] = CELLS) -> tuple[int, int]:
    """Pixels of a window of that many cells."""
    height, width = (2 * kernel.halo() + n * kernel.step for n in cells)
    return height, width


def white(kernel: Any, dy: int, dx: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """White noise and the same moved by whole pixels; nothing enters at the edges that was not there before."""
    h, w = shape_of(kernel)
    m = 2 + max(abs(dy), abs(dx))
    noise = np.random.default_rng(8).standard_normal((h + 2 * m, w + 2 * m)).astype(np.float32)
    return noise[m : m + h, m : m + w], noise[m - dy : m - dy + h, m - dx : m - dx + w]


def match(kernel: Any, one: Any, two: Any, valid1: Any = None, valid2: Any = None) -> dict[str, NDArray[Any]]:
    every = np.ones(one.shape, bool)
    first = kernel.prepare(one, every if valid1 is None else valid1)
    second = kernel.prepare(two, every if valid2 is None else valid2)
    result: dict[str, NDArray[Any]] = kernel.match(first, second)
    return result


def same_bits(one: dict[str, NDArray[Any]], two: dict[str, NDArray[Any]], cells: Any = np.s_[:, :]) -> None:
    assert one["flag"][cells].size > 0
    for name in OUTPUTS:
        assert one[name][cells].tobytes() == two[name][cells].tobytes(), name


def test_it_is_a_kernel_with_the_outputs_that_blocks_expect(kernel, scene) -> None:
    assert isinstance(kernel, Kernel)
    image = scene(shape_of(kernel))
    result = match(kernel, image, image)
    assert set(result) == set(outputs(kernel))
    for name, dtype in outputs(kernel).items():
        assert result[name].dtype == dtype
        assert result[name].shape == CELLS
    assert np.isfinite(result["dy"]).all()
    for name in ("dy", "dx"):  # the quadric through an asymmetric peak, not noise: the images are equal
        assert np.abs(result[name]).max() < 0.1
    np.testing.assert_allclose(result["corr"], 1, atol=1e-4)


def test_a_whole_pixel_shift_is_found_exactly(kernel) -> None:
    for dy, dx in ((2, -3), (-1, 0), (0, 3)):
        result = match(kernel, *white(kernel, dy, dx))
        np.testing.assert_array_equal(np.rint(result["dy"]), dy)
        np.testing.assert_array_equal(np.rint(result["dx"]), dx)
        # What a network adds is a hundredth of a pixel on white noise, which it never saw, and costs that 1e-4.
        np.testing.assert_allclose(result["corr"], 1, atol=2e-4 if isinstance(kernel, FlowNet) else 1e-4)
        assert (result["flag"] == 0).all()


def test_a_sub_pixel_shift_is_found(kernel, scene) -> None:
    shape = shape_of(kernel)
    result = match(kernel, scene(shape), scene(shape, 1.3, -0.6))
    # The quadric's own bias is 0.03 px; strain and noise are none.
    np.testing.assert_allclose(result["dy"], 1.3, atol=0.08)
    np.testing.assert_allclose(result["dx"], -0.6, atol=0.08)


def test_gain_and_offset_of_either_image_change_nothing(kernel, scene) -> None:
    shape = shape_of(kernel)
    one, two = scene(shape), scene(shape, 1.3, -0.6)
    expected = match(kernel, one, two)
    assert np.isfinite(expected["dx"]).all()
    for pair in ((2.5 * one + 0.3, two), (one, 0.4 * two - 0.1), (4096 * one, 4096 * two)):
        result = match(kernel, *(im.astype(np.float32) for im in pair))
        np.testing.assert_array_equal(result["flag"], expected["flag"])
        for name, tolerance in (("dy", 2e-3), ("dx", 2e-3), ("corr", 1e-3)):
            np.testing.assert_allclose(result[name], expected[name], atol=tolerance)


def test_swapping_the_images_negates_the_displacement(kernel, scene) -> None:
    shape = shape_of(kernel)
    one, two = scene(shape), scene(shape, 2, -1.5)
    there, back = match(kernel, one, two), match(kernel, two, one)
    assert np.isfinite(there["dy"]).all()
    np.testing.assert_allclose(there["dy"], -back["dy"], atol=0.2)
    np.testing.assert_allclose(there["dx"], -back["dx"], atol=0.2)
    assert abs(np.median(there["dx"] + back["dx"])) < 0.04


def test_transposing_the_images_transposes_the_answer(kernel, scene) -> None:
    shape = shape_of(kernel)
    one, two = scene(shape), scene(shape, 1.3, -0.6)
    valid = np.ones(shape, bool)
    valid[: shape[0] // 2 - 2, : shape[1] // 3] = False
    upright = match(kernel, one, two, valid, valid)
    turned = match(kernel, *(np.ascontiguousarray(im.T) for im in (one, two, valid, valid)))
    assert np.isfinite(upright["dx"]).sum() >= 6
    np.testing.assert_array_equal(turned["flag"].T, upright["flag"])
    for name, other in (("dy", "dx"), ("dx", "dy"), ("corr", "corr"), ("peak_ratio", "peak_ratio"), ("snr", "snr")):
        np.testing.assert_allclose(turned[name].T, upright[other], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda im: (np.full_like(im, 0.3), np.ones(im.shape, bool)),
        lambda im: (np.zeros_like(im), np.ones(im.shape, bool)),
        lambda im: (np.full_like(im, np.nan), np.ones(im.shape, bool)),
        lambda im: (np.full_like(im, np.inf), np.ones(im.shape, bool)),
        lambda im: (im, np.zeros(im.shape, bool)),
    ],
    ids=["flat", "zero", "nan", "inf", "all masked"],
)
def test_nothing_to_match_gives_nan_and_a_reason(kernel, scene, spoil) -> None:
    image = scene(shape_of(kernel))
    spoiled, valid = spoil(image)
    every = np.ones(image.shape, bool)
    for arguments in (
        (spoiled, spoiled, valid, valid),
        (spoiled, image, valid, every),
        (image, spoiled, every, valid),
    ):
        result = match(kernel, *arguments)
        assert (result["flag"] & (flags.FLAT | flags.NO_DATA) != 0).all()
        for name in ("dy", "dx", "corr"):
            assert np.isnan(result[name]).all()


def test_what_lies_under_the_mask_has_no_influence(kernel, scene) -> None:
    shape = shape_of(kernel, (5, 6))
    rng = np.random.default_rng(2)
    holes = rng.random(shape) < 0.02
    chip = np.max(kernel.chip)
    edge = kernel.halo() + (kernel.step - chip) // 2 + -(-3 * chip // 4)  # 56 % of the first chip
    holes[:edge, :edge] = True
    results = []
    for under in (0, 7, 1e6, np.nan, -np.inf):
        images = [np.where(holes, np.float32(under), im) for im in (scene(shape), scene(shape, -1, 2))]
        results.append(match(kernel, *images, ~holes, ~holes))
    found = np.isfinite(results[0]["dy"])
    assert 0.5 < found.mean() < 1
    assert np.abs(results[0]["dy"][found] + 1).max() < 0.3
    for other in results[1:]:
        same_bits(results[0], other)


def test_a_mask_changes_no_bit_where_it_masks_nothing(kernel, scene) -> None:
    shape = shape_of(kernel)
    one, two = scene(shape), scene(shape, 1, -2)
    expected = match(kernel, one, two)
    assert np.isfinite(expected["dy"]).all()
    # The corner is out of reach of all cells but the first ones.
    corner = np.ones(shape, bool)
    corner[: kernel.step, : kernel.step] = False
    same_bits(match(kernel, one, two, corner, corner), expected, np.s_[1:, 1:])
    unseen = match(kernel, np.where(corner, one, np.float32(np.nan)), two, corner)
    same_bits(unseen, expected, np.s_[1:, 1:])


def test_a_displacement_beyond_the_search_is_flagged_never_silent(kernel, scene) -> None:
    shape = shape_of(kernel)
    for dy, dx in ((kernel.search, 0), (0, -kernel.search), (kernel.search + 1, 1), (-1, -kernel.search - 1)):
        result = match(kernel, scene(shape), scene(shape, dy, dx))
        assert np.isnan(result["dy"]).all()
        assert np.isnan(result["dx"]).all()
        assert flags.invalid(result["flag"]).all()
        assert (result["flag"] & flags.RIM != 0).mean() > 0.9
    inside = match(kernel, scene(shape), scene(shape, kernel.search - 1, 0))
    assert inside["flag"].size > 0
    assert (inside["flag"] == 0).all()


def test_a_peak_beside_what_the_mask_forbids_is_on_a_rim(kernel, scene) -> None:
    """Image 2 is masked where the chips have gone: the best of what is left must not pass for the answer."""
    shape = shape_of(kernel)
    dy = -(kernel.search - 1)
    second = np.ones(shape, bool)
    # One row too few of the middle chips is left at dy, but enough at dy + 1.
    chip = np.max(kernel.chip)
    middle = kernel.halo() + kernel.step + (kernel.step - chip) // 2 + -(-chip // 2)
    second[: middle + dy + 1] = False
    result = match(kernel, scene(shape), scene(shape, dy, 0), np.ones(shape, bool), second)
    assert (result["flag"][1] & flags.RIM != 0).all()
    assert np.isnan(result["dy"][1]).all()
    assert np.isfinite(result["dy"][2]).all()
    np.testing.assert_allclose(result["dy"][2], dy, atol=0.35)


def test_the_smallest_window_works_and_one_pixel_less_raises(kernel, scene) -> None:
    least = 2 * kernel.halo() + kernel.step
    one, two = scene((least, least)), scene((least, least), 1, 2)
    result = match(kernel, one, two)
    assert result["dy"].shape == (1, 1)
    assert result["dy"][0, 0] == pytest.approx(1, abs=0.1)
    assert result["dx"][0, 0] == pytest.approx(2, abs=0.1)
    for cut in (np.s_[1:], np.s_[:, 1:]):
        with pytest.raises(ParameterError, match=rf"at least {least} px .*{least - 1}"):
            kernel.prepare(one[cut], np.ones(one[cut].shape, bool))


def test_more_margin_than_the_halo_changes_no_bit(kernel, scene) -> None:
    cells = (CELLS[0] + 2, CELLS[1] + 2)
    shape, s = shape_of(kernel, cells), kernel.step
    one, two = scene(shape), scene(shape, 1.3, -2.4)
    holes = np.random.default_rng(4).random(shape) < 0.01
    holes[:, : shape[1] // 2] = False
    large = match(kernel, one, two, ~holes, ~holes)
    small = match(kernel, *(np.ascontiguousarray(im[s:-s, s:-s]) for im in (one, two, ~holes, ~holes)))
    assert np.isfinite(small["dy"]).mean() > 0.5
    same_bits({name: value[1:-1, 1:-1] for name, value in large.items()}, small)


def test_two_runs_and_two_threads_give_the_same_bits(kernel, scene) -> None:
    shape = shape_of(kernel)
    valid = np.random.default_rng(6).random(shape) > 0.01
    one, two = kernel.prepare(scene(shape), valid), kernel.prepare(scene(shape, 1, 1), valid)
    expected = kernel.match(one, two)
    assert np.isfinite(expected["dy"]).any()
    same_bits(kernel.match(one, two), expected)
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(lambda _: kernel.match(one, two), range(4)):
            same_bits(result, expected)


def test_matching_leaves_its_input_alone(kernel, scene) -> None:
    image = scene(shape_of(kernel))
    valid = np.ones(image.shape, bool)
    valid[:3] = False
    before = image.tobytes(), valid.tobytes()
    assert np.isfinite(match(kernel, image, image, valid, valid)["dy"]).any()
    assert (image.tobytes(), valid.tobytes()) == before


def test_it_is_a_value_that_prints_itself_and_travels(kernel) -> None:
    assert dataclasses.is_dataclass(kernel)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kernel.step = 3
    for field in dataclasses.fields(kernel):
        assert f"{field.name}={getattr(kernel, field.name)!r}" in repr(kernel)
    assert pickle.loads(pickle.dumps(kernel)) == kernel
    assert hash(dataclasses.replace(kernel)) == hash(kernel)
    assert kernel.halo() >= (np.max(kernel.chip) - kernel.step) // 2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"chip": 2}, r"chip: must be a whole number of pixels, at least 4 \(found 2\)"),
        ({"chip": 16.0}, r"chip: must be a whole number .*16\.0"),
        ({"step": 0}, r"step: .*at least 1 \(found 0\)"),
        ({"search": -4}, r"search: .*Fix: search = maximum speed"),
        ({"min_correlation": 1.5}, r"min_correlation: must lie in 0 \.\.\. 1 \(found 1\.5\)"),
        ({"max_peak_ratio": -0.1}, r"max_peak_ratio: must lie in 0 \.\.\. 1"),
        ({"backend": "opencl"}, r"backend: must be auto, numba, cupy or reference"),
        ({"chip": 15, "step": 4}, r"both be even or both be odd, .*chip=15, step=4"),
        ({"chip": (16, 31)}, r"both be even or both be odd"),
        ({"chip": (32, 16)}, r"chip: must be one width, or different ones in rising order"),
        ({"chip": ()}, r"chip: must be one width"),
        ({"refine": "sinc"}, r"refine: must be quadric, translation, fixed or affine \(found 'sinc'\)"),
        ({"chip": (16, 32), "refine": "affine"}, r"chip: must be at least 24 px for refine='affine'"),
        ({"coarse": 3}, r"coarse: must divide the step of 8 px"),
        ({"coarse": 0}, r"coarse: .*at least 1 \(found 0\)"),
        ({"search_enhance": "sharpen"}, r"enhance: must be one of"),
        ({"search": True}, r"search: must be a whole number"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_rule_and_value(parameters, message) -> None:
    with pytest.raises(ParameterError, match=message):
        NCC(**parameters)


def test_a_custom_function_gets_windows_with_nan_and_its_gaps_are_flagged() -> None:
    seen = []

    def function(one: Any, two: Any, valid1: Any, valid2: Any) -> Any:
        seen.append((np.isnan(one), valid1))
        return np.array([[1, np.nan]]), np.array([[2, 3]])

    kernel = Custom(function, step=8, chip=8, margin=4)
    assert isinstance(kernel, Kernel)
    valid = np.ones((16, 24), bool)
    valid[3, 5] = False
    window = kernel.prepare(np.ones((16, 24), np.float32), valid)
    result = kernel.match(window, window)
    nan, usable = seen[0]
    assert nan.sum() == 1
    np.testing.assert_array_equal(nan, ~usable)
    assert result["flag"].tolist() == [[0, flags.NO_DATA]]
    np.testing.assert_array_equal(result["dx"], np.array([[2, np.nan]], np.float32))
    with pytest.raises(ParameterError, match="margin: must be at least 0 px"):
        Custom(function, margin=-1)


# --- several bands ---


@pytest.fixture(params=[name for name in SUBJECTS if isinstance(SUBJECTS[name](), Multiband)])
def multiband(request: pytest.FixtureRequest) -> Any:
    return SUBJECTS[request.param]()


def test_a_band_that_tells_nothing_new_changes_nothing(multiband, scene) -> None:
    shape = shape_of(multiband)
    one, two = scene(shape), scene(shape, 1.3, -0.6)
    expected, every = match(multiband, one, two), np.ones(shape, bool)
    images = [np.stack([image, 1.7 * image + 0.1, 0.6 * image]).astype(np.float32) for image in (one, two)]
    result = multiband.match(*(multiband.prepare(image, every) for image in images))
    np.testing.assert_array_equal(result["flag"], expected["flag"])
    for name, tolerance in (("dy", 2e-3), ("dx", 2e-3), ("dy_error", 2e-3), ("dx_error", 2e-3), ("corr", 1e-3)):
        np.testing.assert_allclose(result[name], expected[name], atol=tolerance)


def test_a_band_without_texture_leaves_the_work_to_the_others(multiband, scene) -> None:
    shape = shape_of(multiband, (3, 24))
    every, flat = np.ones(shape, bool), np.full(shape, 0.4, np.float32)
    half = np.arange(shape[1]) < shape[1] // 2
    images = []
    for image in (scene(shape), scene(shape, 1.3, -0.6)):
        images.append(np.stack([np.where(half, image, flat), np.where(half, flat, image)]))
    result = multiband.match(*(multiband.prepare(image, every) for image in images))
    assert (result["flag"] == 0).all()
    # Next to the seam, which stands still, the field is pulled.
    away = np.s_[:, [0, 1, 2, 3, -4, -3, -2, -1]]
    np.testing.assert_allclose(result["dy"][away], 1.3, atol=0.08)
    np.testing.assert_allclose(result["dx"][away], -0.6, atol=0.08)
    alone = match(multiband, images[0][0], images[1][0])
    assert np.isnan(alone["dy"][:, -4:]).all()


def test_what_one_band_lacks_is_masked_in_all(multiband, scene) -> None:
    shape = shape_of(multiband)
    images = [np.stack([image, image]) for image in (scene(shape), scene(shape, 1.3, -0.6))]
    every, hole = np.ones(shape, bool), np.zeros(shape, bool)
    hole[shape[0] // 2 - 9 :, : shape[1] // 2] = True
    expected = multiband.match(*(multiband.prepare(image, ~hole) for image in images))
    for image in images:
        image[1, hole] = np.nan
    same_bits(multiband.match(*(multiband.prepare(image, every) for image in images)), expected)
    assert np.isnan(expected["dy"]).any()


def test_a_custom_function_gets_all_bands() -> None:
    kernel = Custom(lambda one, two, valid1, valid2: (one.sum((0, 1))[None, :2], two[1, :1, :2]), 8, 8, 4)
    assert isinstance(kernel, Multiband)
    image = np.arange(2 * 16 * 24, dtype=np.float32).reshape(2, 16, 24)
    window = kernel.prepare(image, np.ones((16, 24), bool))
    np.testing.assert_array_equal(kernel.match(window, window)["dx"], image[1, :1, :2])


def test_a_prior_that_was_not_read_is_refused(scene) -> None:
    kernel = NCC(chip=16, search=3, step=8, prior=2, refine="quadric")
    one = kernel.prepare(scene(shape_of(kernel)), np.ones(shape_of(kernel), bool))
    with pytest.raises(ParameterError, match=r"prior: must have shape .* within 2 px.*3 px"):
        kernel.match(one, one, np.full((2, *CELLS), 3.0, np.float32))
    with pytest.raises(ParameterError, match=r"prior: must have shape \(2, 3, 4\)"):
        kernel.match(one, one, np.zeros((2, 2, 2), np.float32))
    found = kernel.match(one, one, np.full((2, *CELLS), -2.0, np.float32))
    np.testing.assert_allclose(found["dy"], 0, atol=0.05)


def test_each_vector_takes_the_smallest_chip_that_passes(scene) -> None:
    """Noise that only large chips bear, in one half of the image."""
    kernel = NCC(chip=(8, 24, 40), search=4, step=8, refine="quadric", enhance="none")
    shape = shape_of(kernel, (12, 24))
    one, two = scene(shape), scene(shape, 1, -2)
    noise = 0.06 * np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    noise[:, : shape[1] // 2] = 0
    found = match(kernel, one, two + noise)
    quiet, noisy = found["chip"][:, :8], found["chip"][:, -8:]
    assert (quiet == 8).mean() > 0.7
    assert (noisy > 8).mean() > 0.4 > 0.3 > (quiet > 8).mean()
    assert np.isfinite(found["dy"]).mean() > 0.9
    # Each answer is that of its size alone.
    for chip in (8, 24, 40):
        alone = match(dataclasses.replace(kernel, chip=chip), *cut_to(kernel, chip, one, two + noise))
        taken = (found["chip"] == chip) & np.isfinite(found["dy"])
        assert taken.sum() > 3
        for name in ("dy", "dx", "corr", "peak_ratio", "snr"):
            np.testing.assert_array_equal(found[name][taken], alone[name][taken], err_msg=name)


def cut_to(kernel: Any, chip: int, *images: Any) -> list[Any]:
    """The images without the part of the halo that only larger chips and their neighbours need."""
    less = kernel.halo() - dataclasses.replace(kernel, chip=chip).halo()
    return [np.ascontiguousarray(im[less : im.shape[0] - less, less : im.shape[1] - less]) for im in images]
