"""RAFT: its correlations against brute force, its symmetry, exact motion, any tiling, training in parts.

What every kernel must do is in test_kernels.py.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ogive import flags
from ogive.errors import OgiveError, ParameterError
from ogive.kernels import Raft, _flow_field, _flow_weights, _raft_lookup
from ogive.kernels._raft_lookup import CELL, RADIUS, SEEN, SPACINGS
from ogive.testing.flow_pairs import flow_pair
from ogive.testing.flow_scores import figures, prepared
from ogive.testing.textures import fractal_scene

torch = pytest.importorskip("torch", reason="PyTorch comes with make, and with the extra train")
learn = pytest.importorskip("ogive.learn.raft")
trainer = pytest.importorskip("ogive.learn.train")
F = np.float32
ALONE = Raft(search=6, finish=False)


def match(kernel: Any, one: Any, two: Any) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = kernel.match(prepared(kernel, one), prepared(kernel, two))
    return found


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """More of them wait for each other on a busy machine."""
    torch.set_num_threads(1)


# --- correlations ---


@pytest.fixture(scope="module")
def features() -> Any:
    """Features of two images at half a cell, the pooled ones, and flows of up to 9 px."""
    rng = np.random.default_rng(3)
    fine, fine2 = (rng.standard_normal((5, 24, 28)).astype(F) for _ in range(2))
    cells, cells2 = _raft_lookup.pooled(fine), _raft_lookup.pooled(fine2)
    flow = rng.uniform(-9, 9, (2, 12, 14)).astype(F)
    return fine, fine2, cells, cells2, _raft_lookup.smoothed(cells2), flow


def by_hand(features: Any, i: int, j: int, level: int) -> NDArray[Any]:
    """The correlations of one cell, in float64."""
    fine, fine2, cells, cells2, coarse2, flow = (np.asarray(a, float) for a in features)
    one, two = ((fine, fine2), (cells, cells2), (cells, coarse2))[level]
    starts = [(2 * i + a, 2 * j + b) for a in (0, 1) for b in (0, 1)] if level == 0 else [(i, j)]
    apart = SPACINGS[level] * one.shape[1] // (cells.shape[1] * CELL)

    def at(y: int, x: int) -> Any:
        inside = 0 <= y < two.shape[1] and 0 <= x < two.shape[2]
        return two[:, y, x] if inside else np.zeros(len(two))

    (v, fy), (u, fx) = (divmod(float(flow[c, i, j]) / SPACINGS[level], 1) for c in (0, 1))
    out = np.zeros((2 * RADIUS + 1, 2 * RADIUS + 1))
    for a, b in np.ndindex(*out.shape):
        for p, wy in ((0, 1 - fy), (1, fy)):
            for q, wx in ((0, 1 - fx), (1, fx)):
                shift = [apart * (int(n) + k - RADIUS + m) for n, k, m in ((v, a, p), (u, b, q))]
                out[a, b] += wy * wx * sum(one[:, y, x] @ at(y + shift[0], x + shift[1]) for y, x in starts)
    return _raft_lookup.SCALES[level] * out.ravel()


def test_a_lookup_is_what_is_found_by_hand(features) -> None:
    found = _raft_lookup.lookup(*features, 0)
    assert found.shape == (SEEN, 12, 14)
    size = (2 * RADIUS + 1) ** 2
    for i, j in ((0, 0), (5, 6), (11, 13), (7, 2)):
        for level in range(len(SPACINGS)):
            truth = by_hand(features, i, j, level)
            assert np.abs(truth).max() > 0.01
            np.testing.assert_allclose(found[level * size : (level + 1) * size, i, j], truth, atol=2e-5)
    part = _raft_lookup.lookup(*features[:5], np.ascontiguousarray(features[5][:, 3:-3, 3:-3]), 3)
    np.testing.assert_array_equal(part, found[:, 3:-3, 3:-3])


def test_training_looks_up_the_same_in_the_correlations_of_all_pairs(features) -> None:
    fine, fine2, *_, flow = (torch.from_numpy(a)[None] for a in features)
    volumes = [learn.Volume(level) for level in learn.correlations(fine, fine2)]
    seen = torch.cat([learn.looked_up(volume, flow, s) for volume, s in zip(volumes, SPACINGS)], 1)
    found, size = _raft_lookup.lookup(*features, 0), (2 * RADIUS + 1) ** 2
    np.testing.assert_allclose(seen[0, size:], found[size:], atol=1e-5)
    # Patches across the upper or left edge are left out in training.
    np.testing.assert_allclose(seen[0, :size, 4:, 4:], found[:size, 4:, 4:], atol=1e-5)


def test_gradients_of_all_lookups_are_gathered() -> None:
    values = torch.randn(1, 2, 3, 4, 5, requires_grad=True)
    plain = values.detach().clone().requires_grad_()
    volume, total, other = learn.Volume(values), 0, 0
    for k in range(3):
        at = torch.randint(0, 20, (1, 2, 3, 6))
        total = total + (k + 1) * volume(at).square().sum()
        other = other + (k + 1) * plain.flatten(3).gather(3, at).square().sum()
    total.backward()
    other.backward()
    torch.testing.assert_close(values.grad, plain.grad)


# --- the network ---


@pytest.fixture(scope="module")
def shipped() -> Any:
    """The shipped weights in PyTorch."""
    safetensors = pytest.importorskip("safetensors.torch")
    arrays = safetensors.load_file(_flow_weights.MODELS / "raft-1.safetensors")
    names = {name.partition(".")[0] for name in arrays}
    weights = {name: (arrays[f"{name}.w"].float(), arrays[f"{name}.b"].float()) for name in names}
    net = learn.Raft(len(weights["keep"][0])).eval()
    net.plain = lambda: weights
    return net


def image(level: Any) -> Any:
    return torch.from_numpy(np.concatenate([level.planes, level.known[None]]).astype(F))[None]


@pytest.fixture(scope="module")
def twice(tmp_path_factory) -> Raft:
    """The shipped weights in two updates, whose halo is small."""
    folder = tmp_path_factory.mktemp("raft")
    for path in _flow_weights.MODELS.glob("raft-1.*"):
        shutil.copy(path, folder)
    card = folder / "raft-1.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"passes": 2}))
    return Raft(search=4, finish=False, weights=str(card))


def test_the_kernel_finds_what_the_network_finds_on_the_whole(shipped, twice) -> None:
    """Square by square, looked up on demand, without what is beyond reach: as PyTorch in one piece."""
    kernel, halo = twice, twice.halo()
    pair = flow_pair("glacier", 5, 2 * halo + 16)
    one, two = (kernel.prepare(im.astype(F), np.ones(im.shape, bool)).levels[0] for im in (pair.image1, pair.image2))
    cells, sigma, at = kernel._flow(one, two)
    with torch.no_grad():
        truth, scale = (part[0].numpy() for part in shipped(image(one), image(two), kernel._card.passes)[-1])
    assert np.abs(truth).max() > 1
    inner = np.s_[:, at // CELL : at // CELL + cells.shape[1], at // CELL : at // CELL + cells.shape[2]]
    np.testing.assert_allclose(cells, truth[inner], atol=1e-3)
    np.testing.assert_allclose(sigma, kernel._card.spread * np.exp(scale.clip(-5, 3))[inner], rtol=1e-3)


@pytest.mark.parametrize("motion", ["transposed", "upside down"])
def test_the_network_turns_with_the_images(motion) -> None:
    torch.manual_seed(0)
    net = learn.Raft(16).eval()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.15)
    images = torch.randn(2, 1, 3, 96, 112)
    inner = np.s_[..., 10:-10, 10:-10]  # out of reach of the edges

    def moved(x: Any) -> Any:
        if motion == "transposed":
            return torch.cat([x[:, :2].flip(1), x[:, 2:]], 1).transpose(2, 3)
        return (x * torch.tensor([-1.0, 1, 1])[: x.shape[1], None, None]).flip(2)

    with torch.no_grad():
        (flow, scale), (other, scale2) = (net(*pair, 2)[-1] for pair in (images, [moved(im) for im in images]))
    assert flow.abs().mean() > 0.01
    torch.testing.assert_close(other[inner], moved(flow)[inner], atol=1e-4, rtol=1e-3)
    if motion == "transposed":
        torch.testing.assert_close(scale2[inner], scale.flip(1).transpose(2, 3)[inner], atol=1e-4, rtol=1e-3)


# --- motion ---


@pytest.mark.parametrize("step", [4, 8, 16])
def test_translation(step) -> None:
    surface, (y, x) = fractal_scene(160, seed=4), np.mgrid[:160, :160].astype(float)
    images = surface(y, x), surface(y - 1.37, x + 2.62)
    n = 24 // step + 1
    inner = np.s_[n:-n, n:-n]
    for finish, most in ((True, 0.07), (False, 0.5)):
        found = match(Raft(search=6, step=step, finish=finish), *images)
        assert (found["flag"][inner] == 0).all()
        np.testing.assert_allclose(found["dy"][inner], 1.37, atol=most)
        np.testing.assert_allclose(found["dx"][inner], -2.62, atol=most)


# Measured over eight seeds of 256 px: docs/flow.md.
@pytest.mark.parametrize(("level", "alone", "finished"), [("easy", 0.25, 0.1), ("annual", 0.6, 0.4)])
def test_error_and_sigma_on_synthetic_glaciers(level, alone, finished) -> None:
    pairs = [flow_pair(level, 1, 160)]
    plain, best = figures(ALONE, pairs), figures(Raft(search=6), pairs)
    assert 0.02 < best["RMSE"] < finished
    assert best["RMSE"] < plain["RMSE"] < alone
    assert 0.5 < plain["z"] < 1.6
    assert 0.5 < best["z"] < 1.6
    # On clean ice all of the network's errors are alike.
    assert plain["rank"] > 0.1 or level == "easy"


def test_a_tile_with_its_halo_has_the_bits_of_the_whole(twice) -> None:
    """Wider than a square of the network, so that cells come to lie elsewhere in it."""
    kernel = twice
    halo, step, cells = kernel.halo(), kernel.step, 20
    y, x = np.mgrid[: 2 * halo + cells * step, : 2 * halo + cells * step].astype(float)
    surface, rng = fractal_scene(200, seed=3), np.random.default_rng(1)
    one, two = (0.4 + 0.05 * surface(y - d, x + 0.5 * d) + 0.02 * rng.random(y.shape) for d in (0, 1.2))
    valid = rng.random(y.shape) > 0.004
    valid[: halo + 3 * step, halo + step :] = False
    whole = kernel.match(*(kernel.prepare(im.astype(F), valid) for im in (one, two)))
    assert 0.5 < np.isfinite(whole["dy"]).mean() < 1
    for first, size in (((1, 2), 3), ((cells - 3, 0), 3), ((5, cells - 9), 9)):
        cut = tuple(slice(c * step, (c + size) * step + 2 * halo) for c in first)
        part = kernel.match(*(kernel.prepare(np.ascontiguousarray(im[cut], F), valid[cut]) for im in (one, two)))
        there = tuple(slice(c, c + size) for c in first)
        for name, values in part.items():
            assert values.tobytes() == whole[name][there].tobytes(), name


def test_what_is_masked_has_a_flag_and_no_vector() -> None:
    surface, (y, x) = fractal_scene(160, seed=4), np.mgrid[:160, :160].astype(float)
    halo, clear = ALONE.halo(), np.ones((160, 160), bool)
    clear[64:104, 64:104] = False
    windows = [
        ALONE.prepare(np.pad(im.astype(F), halo), np.pad(clear, halo)) for im in (surface(y, x), surface(y - 1, x))
    ]
    found = ALONE.match(*windows)
    hole = np.s_[9:12, 9:12]
    for name in ("dy", "dx", "dy_error", "dx_error"):
        assert np.isnan(found[name][hole]).all()
    assert (found["flag"][hole] & flags.NO_DATA != 0).all()
    assert (found["flag"] == 0).mean() > 0.5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"search": 0}, "search: must be a whole number, at least 1"),
        ({"step": 6}, "step: must be a multiple of 4 px"),
        ({"weights": "raft-0"}, "weights: must be one of .*raft-1.*, or the path of a card"),
        ({"fill": "drop"}, "fill: must be one of nan, keep"),
    ],
)
def test_a_wrong_parameter_is_named(parameters, message) -> None:
    with pytest.raises(ParameterError, match=message):
        Raft(**parameters)


def test_the_weights_of_another_kernel_are_refused(tmp_path) -> None:
    card = tmp_path / "other.json"
    card.write_text(json.dumps({"kernel": "flow_net"}))
    with pytest.raises(ParameterError, match=r"weights: must be those of raft .*flow_net"):
        Raft(weights=str(card))


def test_the_halo_holds_what_the_network_sees_and_the_relaxation() -> None:
    assert ALONE.halo() > ALONE._card.passes * CELL * (ALONE._card.reach + 1)
    assert Raft(search=6).halo() - ALONE.halo() >= 24
    assert Raft(search=12).halo() > Raft(search=6).halo()
    assert Raft().origin["weights_sha256.onnx"] == dict(Raft()._card.sha256)[".onnx"]


# --- training ---


def test_a_part_of_a_sample_is_where_its_truth_says() -> None:
    from ogive.learn.samples import sample

    made, rng = sample((3, 1, 4), 160), np.random.default_rng(0)
    agree, shifts = [], []
    for _ in range(4):
        one, two, truth, weight = learn.shown(made, rng)
        n = learn.SIZE // CELL
        assert truth.shape == (2, n, n)
        flow = _flow_field.spread(truth, 0, CELL, 1, (learn.SIZE, learn.SIZE))[:, 1:-1, 1:-1]
        y, x = (np.mgrid[: learn.SIZE, : learn.SIZE] + np.rint(flow)).astype(int)
        inside = (y >= 0) & (x >= 0) & (y < learn.SIZE) & (x < learn.SIZE)
        y, x = y.clip(0, learn.SIZE - 1), x.clip(0, learn.SIZE - 1)
        agree.append([(one[:2] * other[:2])[:, inside].sum(0).mean() for other in (two[:, y, x], two)])
        shifts.append(np.abs(truth).max())
        assert 0 <= weight.min() < weight.max() <= 1
    found, still = np.mean(agree, axis=0)
    assert found > still + 0.1
    assert len(set(shifts)) == 4


def test_training_that_is_interrupted_ends_with_the_same_bits(tmp_path, monkeypatch, clock) -> None:
    small = {"steps": 3, "chapter": 2, "repeats": 2, "batch": 1, "size": 160, "width": 8, "passes": 2}
    recipe = trainer.recipe_of("raft", **small)
    whole = trainer.train(recipe, tmp_path / "whole", report=lambda line: None)
    monkeypatch.setattr(trainer, "time", clock)
    legs = 0
    while (parts := trainer.train(recipe, tmp_path / "parts", minutes=2.5 / 60, report=lambda line: None)) is None:
        legs += 1
    assert legs >= 1
    state = whole.state_dict()
    assert all(torch.equal(state[name], value) for name, value in parts.state_dict().items())
    assert any(value.abs().max() > 0 for name, value in state.items() if name.startswith("parts.answer"))
    with pytest.raises(OgiveError, match=r"checkpoint.safetensors: was made by another recipe"):
        trainer.train(dataclasses.replace(recipe, seed=1), tmp_path / "parts")


def test_the_card_says_how_the_weights_were_made() -> None:
    card = json.loads((_flow_weights.MODELS / "raft-1.json").read_text())
    recipe = trainer.recipe_of("raft")
    assert card["recipe"] == json.loads(json.dumps(dataclasses.asdict(recipe)))
    assert card["command"].startswith(f"ogive train FOLDER --net raft --seed 0 --steps {recipe.steps}")
    assert set(card["scores"]) == {"easy", "glacier", "annual"}
    sizes = [Path(_flow_weights.MODELS / f"raft-1{suffix}").stat().st_size for suffix in card["sha256"]]
    assert sum(sizes) < 3e6
