"""The learned matcher: exact motion, masks, any tiling, weights that are what they say, training in parts.

What every kernel must do is in test_kernels.py.
"""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import ogive as og
from ogive import cli, flags
from ogive.errors import OgiveError, ParameterError
from ogive.kernels import FlowNet, HornSchunck, _flow_volume, _flow_weights
from ogive.testing.flow_pairs import LEVELS, flow_pair
from ogive.testing.flow_scores import figures, prepared
from ogive.testing.textures import fractal_scene

torch = pytest.importorskip("torch", reason="PyTorch comes with make, and with the extra train")
learn = pytest.importorskip("ogive.learn.train")
F = np.float32


def match(kernel: Any, one: Any, two: Any) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = kernel.match(prepared(kernel, one), prepared(kernel, two))
    return found


def moved(size: int, field: Any) -> tuple[Any, Any]:
    """Image 2 at p + field(p) shows what image 1 does at p, for fields linear in p: their inverse is exact."""
    surface = fractal_scene(size, seed=4)
    y, x = np.mgrid[:size, :size].astype(float)
    back = y, x
    for _ in range(60):
        dy, dx = field(*back)
        back = y - dy, x - dx
    return surface(y, x), surface(*back)


# --- motion ---


@pytest.mark.parametrize("step", [4, 16])
def test_translation(step) -> None:
    found = match(FlowNet(search=6, step=step), *moved(160, lambda y, x: (1.37 + 0 * y, -2.62 + 0 * x)))
    n = 24 // step + 1
    inner = np.s_[n:-n, n:-n]
    assert (found["flag"][inner] == 0).all()
    for name, truth in (("dy", 1.37), ("dx", -2.62)):
        np.testing.assert_allclose(found[name][inner], truth, atol=0.07)
        assert abs(np.mean(found[name][inner]) - truth) < 0.02


def test_shear_and_stretch() -> None:
    def field(y: Any, x: Any) -> Any:
        return 0.02 * (y - 90) - 0.01 * (x - 90), 0.03 * (y - 90) + 0.01 * (x - 90)

    found = match(FlowNet(), *moved(184, field))
    at = 8 * np.arange(23) + 3.5
    dy, dx = field(at[:, None], at[None])
    inner = np.s_[3:-3, 3:-3]
    assert np.abs(found["dx"] - dx)[inner].max() < 0.1
    assert np.hypot(found["dy"] - dy, found["dx"] - dx)[inner].mean() < 0.03


# Measured over eight seeds: docs/flow.md.
@pytest.mark.parametrize(("level", "rmse"), [("easy", 0.06), ("glacier", 0.15), ("annual", 0.25)])
def test_error_bias_and_sigma_on_synthetic_glaciers(level, rmse) -> None:
    pairs = [flow_pair(level, seed, 192) for seed in (1, 2)]
    score, start = (figures(kernel(search=6), pairs) for kernel in (FlowNet, HornSchunck))
    assert 0.02 < score["RMSE"] < min(rmse, 0.8 * start["RMSE"])
    assert abs(score["bias along"]) < abs(start["bias along"])
    assert 0.6 < score["z"] < 1.4
    assert score["valid"] > 0.9


def test_what_is_masked_has_a_flag_and_no_vector() -> None:
    one, two = moved(200, lambda y, x: (1.4 + 0 * y, -0.8 + 0 * x))
    kernel = FlowNet()
    halo = kernel.halo()
    clear = np.ones((200, 200), bool)
    clear[80:120, 80:120] = clear[:, 140:] = False
    windows = [kernel.prepare(np.pad(im.astype(F), halo), np.pad(clear, halo)) for im in (one, two)]
    found, kept = kernel.match(*windows), dataclasses.replace(kernel, fill="keep").match(*windows)
    hole = np.s_[11:14, 11:14]
    for name in ("dy", "dx", "dy_error", "dx_error"):
        assert np.isnan(found[name][hole]).all()
        assert np.isnan(found[name][:, 20:]).all()
    assert (found["flag"][hole] & flags.NO_DATA != 0).all()
    assert (kept["flag"][hole] & flags.INTERPOLATED != 0).all()
    np.testing.assert_allclose(kept["dy"][hole], 1.4, atol=0.15)
    seen = found["flag"] == 0
    assert seen.mean() > 0.3
    assert np.abs(found["dy"][seen] - 1.4).max() < 0.15


def test_a_tile_with_its_halo_has_the_bits_of_the_whole() -> None:
    """Wider than a patch of the network, so that cells come to lie elsewhere in it; and fast."""
    kernel = FlowNet(search=12)
    halo, step, cells = kernel.halo(), kernel.step, 32
    y, x = np.mgrid[: 2 * halo + cells * step, : 2 * halo + cells * step].astype(float)
    surface, rng = fractal_scene(200, seed=3), np.random.default_rng(1)
    one, two = (0.4 + 0.05 * surface(y - d, x + 0.5 * d) + 0.02 * rng.random(y.shape) for d in (0, 9.4))
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


# --- what the network is shown, and its symmetry ---


def turned(level: Any, flow: Any, motion: int) -> tuple[Any, Any]:
    """A level and a field, transposed (0) or turned upside down (1)."""
    if motion == 0:
        planes = [level.planes[::-1], level.rise[[3, 2, 1, 0]], level.known, level.seen]
        made = [np.ascontiguousarray(np.swapaxes(p, -1, -2)) for p in planes]
        return type(level)(*made), np.ascontiguousarray(np.swapaxes(flow[::-1], -1, -2))
    signs = np.array([-1, 1], F)[:, None, None]
    rise = level.rise * np.array([1, -1, -1, 1], F)[:, None, None]
    made = [np.ascontiguousarray(p[..., ::-1, :]) for p in (level.planes * signs, rise, level.known)]
    seen = np.zeros_like(level.seen)
    seen[1:-1] = level.seen[::-1][2:]  # sixteen pixels round a position, counted from another corner
    return type(level)(*made, seen), np.ascontiguousarray(flow[:, ::-1] * signs)


@pytest.fixture(scope="module")
def sample() -> Any:
    from ogive.learn.samples import sample

    return sample((3, 1, 4), 96)


def shown(one: Any, two: Any, flow: Any) -> Any:
    kernel = HornSchunck()
    return _flow_volume.volume(one, two, flow, kernel.limit(), kernel.fall)


@pytest.mark.parametrize("motion", [0, 1])
def test_volume_and_network_turn_with_the_images(sample, motion) -> None:
    from ogive.learn.nets import ANSWER, VOLUME, FlowNetwork

    def along(kind: Any, values: Any) -> Any:
        values = values[kind.places[motion].numpy()] * kind.signs[motion].numpy()[:, None, None]
        return np.swapaxes(values, 1, 2) if motion == 0 else values[:, ::-1]

    upright = shown(sample.one, sample.two, sample.start)
    (one, flow), (two, _) = (turned(level, sample.start, motion) for level in (sample.one, sample.two))
    inner = np.s_[:, 2:-2, 2:-2]
    np.testing.assert_allclose(shown(one, two, flow)[inner], along(VOLUME, upright)[inner], atol=2e-5)
    torch.manual_seed(0)
    net = FlowNetwork(16, (1, 2))
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    with torch.no_grad():
        volumes = [upright, np.ascontiguousarray(along(VOLUME, upright))]
        plain, other = (net(torch.from_numpy(v)[None])[0].numpy() for v in volumes)
    assert np.abs(plain).mean() > 0.01
    np.testing.assert_allclose(other, along(ANSWER, plain), atol=1e-4)


def test_where_the_field_is_right_both_images_agree() -> None:
    image = fractal_scene(96, seed=2)(*np.mgrid[:96, :96].astype(float)).astype(F)
    kernel = HornSchunck()
    wide = np.pad(image, kernel.halo(), mode="reflect")
    level = kernel.prepare(wide, np.ones(wide.shape, bool)).inner(kernel.halo()).levels[0]
    seen = shown(level, level, np.zeros((2, 98, 98), F))[:, 2:-2, 2:-2]
    products, first, second = seen[:3]
    np.testing.assert_allclose(products, first, atol=1e-6)
    np.testing.assert_allclose(products, second, atol=1e-6)
    np.testing.assert_array_equal(seen[6:8], 0)  # no residual
    share = seen[8 + 24]
    np.testing.assert_array_equal(share, 1)
    assert (seen[8 : 8 + 24].mean((1, 2)) < products.mean()).all()
    np.testing.assert_array_equal(seen[8 + 25 :], 0)  # nothing to do


# --- weights ---


def test_both_backends_agree() -> None:
    pair = flow_pair("glacier", 3, 160)
    first, second = (match(FlowNet(backend=backend), pair.image1, pair.image2) for backend in ("onnx", "torch"))
    assert np.isfinite(first["dy"]).mean() > 0.8
    for name in ("dy", "dx", "dy_error", "dx_error"):
        np.testing.assert_allclose(first[name], second[name], atol=1e-3)
    np.testing.assert_array_equal(first["flag"], second["flag"])


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for path in _flow_weights.MODELS.glob("flow-net-1.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "flow-net-1.json"


@pytest.mark.parametrize(("backend", "suffix"), [("onnx", ".onnx"), ("torch", ".safetensors")])
def test_weights_that_are_not_those_of_the_card_are_refused(copied, backend, suffix) -> None:
    kernel = FlowNet(weights=str(copied), backend=backend)
    path = copied.with_suffix(suffix)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(OgiveError, match=rf"flow-net-1\{suffix}: must have the checksum of its card, sha256 .*Fix: "):
        _flow_weights.network(kernel._card, backend)


def test_a_missing_package_is_named_with_the_line_that_installs_it(copied, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(OgiveError, match=r"onnxruntime: is needed, and is not .* Fix: pip install 'ogive\[flow\]'"):
        _flow_weights.network(FlowNet(weights=str(copied))._card, "onnx")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(OgiveError, match=r"torch: .* Fix: pip install 'ogive\[torch\]'"):
        _flow_weights.network(FlowNet(weights=str(copied))._card, "torch")


def test_nothing_is_loaded_before_it_runs() -> None:
    line = (
        "import sys, ogive; ogive.kernels.KERNELS['flow_net']().halo();"
        "print([m for m in ('onnxruntime', 'torch', 'onnx', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_store_says_which_weights_made_it(moving) -> None:
    cube, _ = moving()
    velocity = og.track(cube, og.make_pairs(cube, days=[9, 11]), FlowNet(search=5))
    kernel = json.loads(velocity.attrs["provenance"])["kernel"]
    card = json.loads((_flow_weights.MODELS / "flow-net-1.json").read_text())
    assert kernel["name"] == "flow_net"
    assert kernel["weights"] == card["name"] == "flow-net-1"
    assert kernel["weights_sha256.onnx"] == card["sha256"][".onnx"]
    # 10 m pixels, 10 days: (2, -3) m/day are (-2, -3) px.
    inner = velocity.isel(y=slice(4, -4), x=slice(4, -4)).compute()
    np.testing.assert_allclose(inner["vy"], 2 * 365, atol=36.5)
    np.testing.assert_allclose(inner["vx"], -3 * 365, atol=36.5)
    assert abs(inner["vx"].mean() + 3 * 365) < 3.65


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ("{", "holds what cannot be understood"),
        ("[]", "holds what cannot be understood"),
        ('{"kernel": "flow_net"}', "holds what cannot be understood"),
        ('{"kernel": "oracle"}', "must be those of flow_net"),
        ({"passes": 1000000}, "must have figures up to 100 on their card"),
        ({"spread": float("nan")}, "must have figures up to 100 on their card"),
        ({"reach": "far"}, "holds what cannot be understood"),
        ({"sha256": {}}, "holds what cannot be understood"),
    ],
)
def test_a_spoiled_card_is_refused(tmp_path, spoiled, message) -> None:
    path = tmp_path / "spoiled.json"
    if isinstance(spoiled, dict):
        spoiled = json.dumps(json.loads((_flow_weights.MODELS / "flow-net-1.json").read_text()) | spoiled)
    path.write_text(spoiled)
    with pytest.raises(ParameterError, match=message):
        FlowNet(weights=str(path))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"search": 0}, "search: must be a whole number, at least 1"),
        ({"step": 6}, "step: must be a multiple of 4 px"),
        ({"backend": "jax"}, "backend: must be one of onnx, torch"),
        ({"weights": "flow-net-0"}, "weights: must be one of flow-net-1, or the path of a card"),
        ({"fill": "drop"}, "fill: must be one of nan, keep"),
    ],
)
def test_a_wrong_parameter_is_named(parameters, message) -> None:
    with pytest.raises(ParameterError, match=message):
        FlowNet(**parameters)


def test_the_weights_of_another_kernel_are_refused(copied) -> None:
    copied.write_text(json.dumps(json.loads(copied.read_text()) | {"kernel": "raft"}))
    with pytest.raises(ParameterError, match=r"weights: must be those of flow_net .*raft"):
        FlowNet(weights=str(copied))


# --- training ---

TINY = functools.partial(learn.Recipe, steps=4, chapter=2, repeats=2, batch=2, size=96, width=8, apart=(1,))


def test_training_that_is_interrupted_ends_with_the_same_bits(tmp_path, monkeypatch, clock) -> None:
    recipe = TINY()
    whole = learn.train(recipe, tmp_path / "whole", report=lambda line: None)
    monkeypatch.setattr(learn, "time", clock)
    legs = 0
    while (parts := learn.train(recipe, tmp_path / "parts", minutes=2.5 / 60, report=lambda line: None)) is None:
        legs += 1
    assert legs >= 1
    state = whole.state_dict()
    assert all(torch.equal(state[name], value) for name, value in parts.state_dict().items())
    assert any(value.abs().max() > 0 for name, value in state.items() if name.startswith("parts.last"))
    with pytest.raises(OgiveError, match=r"checkpoint.safetensors: was made by another recipe"):
        learn.train(dataclasses.replace(recipe, seed=1), tmp_path / "parts")


def test_a_trained_network_is_a_kernel(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(learn, "Recipe", TINY)
    monkeypatch.setattr("ogive.learn.card.SEEDS", range(100, 101))
    monkeypatch.setattr("ogive.learn.card.flow_pair", functools.partial(flow_pair, size=96))
    runner, line = CliRunner(), ["train", str(tmp_path), "--steps", "2", "--name", "mine", "--json"]
    started = runner.invoke(cli.app, [*line, "--minutes", "0"])
    assert started.exit_code == 0
    assert "the same line goes on" in started.stderr
    done = runner.invoke(cli.app, line)
    assert done.exit_code == 0, done.output
    assert [row["level"] for row in json.loads(done.stdout)] == list(LEVELS)
    card = json.loads((tmp_path / "mine.json").read_text())
    assert card["recipe"]["steps"] == 2
    assert card["command"].startswith("ogive train FOLDER --net flow_net --seed 0 --steps 2")
    pair = flow_pair("easy", 1, 96)
    kernels = (FlowNet(weights=str(tmp_path / "mine.json"), backend=backend) for backend in ("onnx", "torch"))
    found = [match(kernel, pair.image1, pair.image2) for kernel in kernels]
    assert np.isfinite(found[0]["dy"]).mean() > 0.8
    np.testing.assert_allclose(found[0]["dy"], found[1]["dy"], atol=1e-3)


def test_a_network_that_nobody_wrote_is_refused() -> None:
    with pytest.raises(ParameterError, match="net: must be one of flow_net, raft"):
        learn.Recipe(net="oracle")
