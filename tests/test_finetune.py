"""Fine-tuning on scenes of one's own: losses that are zero at the truth, masks, scenes held out, the same bits after an
interruption, and a network that is better on dates that it has not seen."""

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml
from typer.testing import CliRunner

import ogive as og
from ogive import blocks, cli, run
from ogive.demo import pair_scores
from ogive.errors import GridError, OgiveError, PairError, ParameterError
from ogive.kernels import FlowNet, HornSchunck, _flow_field, _flow_weights
from ogive.testing.flow_pairs import LEVELS, flow_pair
from ogive.testing.plan import WorldSpec
from ogive.testing.scenes import World, make_world
from ogive.testing.textures import fractal_scene

torch = pytest.importorskip("torch", reason="PyTorch comes with make, and with the extra train")
tuned = pytest.importorskip("ogive.learn.finetune")

from ogive.learn import files, judge, losses, nets, scenes, train  # noqa: E402

F = np.float32
SPEC = WorldSpec(
    size_km=(2.4, 3.0), n_sentinel2=7, n_landsat=0, start="2022-06-20", end="2022-08-20", cloud=0.0, wedge=False,
    red=True,
)  # fmt: skip
QUICK = tuned.Tuning(steps=4, every=2, size=64, synthetic=1, rate=5e-3)

SHORT = functools.lru_cache(functools.partial(flow_pair, size=64))
KNOWN = functools.lru_cache(judge._known)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), SPEC)


@pytest.fixture(scope="module")
def cube(world: World) -> xr.Dataset:
    return og.open_cube(og.search(None, source=world.items_file)).load()


@pytest.fixture(scope="module")
def pairs(cube: xr.Dataset) -> pd.DataFrame:
    return og.make_pairs(cube, days=(5, 60), same_orbit=False)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little to make and to judge by."""
    for name, value in {
        "judge.LEVELS": {"easy": LEVELS["easy"]}, "judge.SEEDS": range(200, 201), "judge.SIZE": 96,
        "judge._known": KNOWN, "card.SEEDS": range(100, 101), "card.flow_pair": SHORT,
        "finetune.JUDGED": 2, "finetune.CHAPTER": 2,
    }.items():  # fmt: skip
        monkeypatch.setattr(f"ogive.learn.{name}", value)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """The card of a small network that errs: its last layer is noise."""
    torch.manual_seed(3)
    recipe = train.Recipe(width=16, apart=(1,), passes=1, size=64)
    net = nets.FlowNetwork(recipe.width, recipe.apart)
    last = net.parts["last"].weight
    with torch.no_grad():
        last.copy_(torch.randn(last.shape) * torch.tensor([1.0, 1.0, 0.01, 0.01])[:, None, None, None])
    path = tmp_path / "start.json"
    about = {"name": "start", "kernel": "flow_net", "passes": 1, "reach": nets.reach(net.apart), "spread": 1.0}
    path.write_text(json.dumps(about | {"sha256": files.write(net, tmp_path / "start"), "recipe": asdict(recipe)}))
    return path


def constant(dy: float, dx: float, size: int = 64) -> Any:
    return torch.tensor([float(dy), float(dx)])[None, :, None, None].repeat(1, 1, size, size).requires_grad_()


# --- losses ---


def shifted(dy: float, dx: float, size: int = 64) -> tuple[Any, Any, Any]:
    surface = fractal_scene(size, seed=4)
    y, x = np.mgrid[:size, :size].astype(float)
    both = [torch.from_numpy(surface(y - v, x - u).astype(F))[None, None] for v, u in ((0, 0), (dy, dx))]
    unit = both[0].diff(dim=-1).abs().mean()
    return both[0] / unit, both[1] / unit, torch.ones(1, size, size, dtype=torch.bool)


def test_spread_is_that_of_the_kernel() -> None:
    cells = np.random.default_rng(0).standard_normal((2, 7, 9)).astype(F)
    kernel = _flow_field.spread(cells, 0, 4, 1, (28, 36))[:, 1:-1, 1:-1]
    np.testing.assert_allclose(losses.spread(torch.from_numpy(cells)[None])[0].numpy(), kernel, atol=1e-6)


def test_census_is_zero_at_the_truth_and_leads_there() -> None:
    one, two, ok = shifted(2, -3)
    assert losses.census(one, two, ok, ok, constant(2, -3)).item() < 1e-4
    one, two, ok = shifted(1.4, -0.8)
    at = {d: losses.census(one, two, ok, ok, constant(1.4 + d, -0.8)).item() for d in (-0.6, -0.2, 0.0, 0.2, 0.6)}
    assert at[0] < 0.5 * min(at[-0.2], at[0.2])
    assert max(at[-0.2], at[0.2]) < min(at[-0.6], at[0.6])
    flow = constant(1.0, -0.4)
    losses.census(one, two, ok, ok, flow).backward()
    slope = flow.grad.sum((0, 2, 3))
    assert slope[0] < 0 < slope[1]  # farther along y, less far along x


def test_census_is_the_mean_of_all_bands() -> None:
    one, two, ok = shifted(1.4, -0.8)
    noise = torch.from_numpy(np.random.default_rng(1).standard_normal(one.shape).astype(F))
    flow = constant(1.3, -0.5)
    alone = [losses.census(a, b, ok, ok, flow).item() for a, b in ((one, two), (one, noise))]
    both = losses.census(torch.cat([one, one], 1), torch.cat([two, noise], 1), ok, ok, flow).item()
    assert both == pytest.approx(sum(alone) / 2, rel=1e-5)
    assert alone[0] < 0.5 * alone[1]


def test_there_and_back_again_is_zero_at_the_truth_and_leads_there() -> None:
    ok = torch.ones(1, 64, 64, dtype=torch.bool)
    apart, seen = losses.consistency(constant(1.3, -0.7), constant(-1.3, 0.7), ok)
    assert apart.item() < 1e-6
    assert seen.all()
    there = constant(1.5, -0.7)
    apart, _ = losses.consistency(there, constant(-1.3, 0.7), ok)
    apart.backward()
    assert 0.15 < apart.item() < 0.2
    assert there.grad[0, 0].sum() > 0
    apart, seen = losses.consistency(constant(4, 0), constant(-1, 0), ok)  # one of the images does not show it
    assert apart.item() == 0
    assert not seen.any()


def test_closure_is_zero_along_the_path() -> None:
    """Fields that are linear in position, so that sampling between pixels is exact."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")

    def linear(a: float, b: float) -> Any:
        return torch.stack([a * (x - 32), b * (y - 32)])[None]

    ab, bc = linear(0.05, -0.04), linear(-0.03, 0.06)
    vy, vx = y + ab[:, 0], x + ab[:, 1]
    ac = ab + torch.stack([-0.03 * (vx - 32), 0.06 * (vy - 32)], 1)
    inner = np.s_[..., 4:-4, 4:-4]
    assert losses.closure(ab, bc, ac)[inner].abs().max() < 1e-4
    assert (ab + bc - ac)[inner].abs().max() > 0.05
    short = (0.9 * ab).requires_grad_()
    losses.length(losses.closure(short, bc, ac))[inner].mean().backward()
    assert (short.grad[inner] * ab[inner]).sum() < 0


def test_masked_pixels_have_no_part(cube: xr.Dataset, start: Path) -> None:
    one, two, _ = shifted(1.4, -0.8)
    ok1, ok2 = (torch.from_numpy(np.random.default_rng(k).random((1, 64, 64)) > 0.01) for k in (1, 2))
    other = [torch.where(ok, image, 1e4) for ok, image in ((ok1, one), (ok2, two))]
    flow = constant(1.2, -0.5)
    assert losses.census(one, two, ok1, ok2, flow) == losses.census(*other, ok1, ok2, flow) > 0
    assert losses.census(one, two, ok1, ok2, flow) != losses.census(one, two, ok1, torch.ones_like(ok2), flow)
    nothing = torch.zeros_like(ok1)
    assert losses.census(one, two, ok1, nothing, flow) == 0

    spoiled = cube.copy(deep=True)
    hole = np.zeros(spoiled["mask"].shape, np.uint8)
    hole[:, 90:130, 100:180] = 1
    parts = []
    for value in (0.3, 5e3, np.nan):
        spoiled["mask"].values = cube["mask"].values | hole
        spoiled["image"].values = np.where(hole, F(value), cube["image"].values)
        source = scenes.Scenes(spoiled, 128, 8)
        parts.append(source.tile((0, 1, 2), np.random.default_rng(3), back=True))
    net = tuned.loaded(FlowNet(weights=str(start))._card)[0]
    found = [tuned.unsupervised(net, part, HornSchunck(), QUICK, 1, "cpu").item() for part in parts]
    assert not parts[0].valid.all()
    assert found[0] == found[1] == found[2] > 0


# --- which scenes ---


def test_scenes_are_held_out_as_a_whole() -> None:
    pairs = pd.DataFrame([(i, j) for i in range(12) for j in range(i + 1, min(i + 4, 12))], columns=["i1", "i2"])
    split = scenes.Split.of(pairs)
    assert len(split.held_out) == 3
    assert split.judged == (split.held_out,)
    assert not {k for dates in split.learned for k in dates} & set(split.held_out)
    assert any(len(dates) == 3 for dates in split.learned)
    chosen = scenes.Split.of(pairs, [0, 1, 2, 3])
    assert chosen.judged == ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3))
    # A chain of years: no run of dates has a triplet, but these three have.
    rows = [(0, 2), (2, 4), (0, 4), (1, 3)]
    assert scenes.Split.of(pd.DataFrame(rows, columns=["i1", "i2"])) == scenes.Split((0, 2, 4), ((0, 2, 4),), ((1, 3),))


def test_held_out_scenes_are_never_learned_from(cube, pairs, start, tmp_path, monkeypatch) -> None:
    asked: list[tuple[bool, Any]] = []
    read: dict[bool, set[int]] = {True: set(), False: set()}
    tile, window = scenes.Scenes.tile, blocks.Windows.__call__

    def recorded(self: Any, dates: Any, rng: Any, *, back: bool) -> Any:
        asked.append((back, dates))
        return tile(self, dates, rng, back=back)

    def opened(self: Any, scene: int, *where: Any) -> Any:
        read[asked[-1][0]].add(scene)
        return window(self, scene, *where)

    monkeypatch.setattr(scenes.Scenes, "tile", recorded)
    monkeypatch.setattr(blocks.Windows, "__call__", opened)
    held = set(scenes.Split.of(pairs).held_out)
    names = [str(name) for name in cube["scene_id"].values[sorted(held)]]
    tuned.finetune(
        cube, pairs, tmp_path / "mine", weights=str(start), tuning=QUICK, held_out=names, report=lambda line: None
    )
    assert read[False] == held
    assert read[True]
    assert not read[True] & read[False]
    assert sum(back for back, _ in asked) == 2  # a chapter


# --- the whole ---


def test_an_interruption_changes_no_bit(cube, pairs, start, tmp_path, monkeypatch, clock) -> None:
    learn = functools.partial(tuned.finetune, cube, pairs, weights=str(start), tuning=QUICK, report=lambda line: None)
    whole = learn(tmp_path / "mine")
    (tmp_path / "parts").mkdir()
    monkeypatch.setattr(tuned, "time", clock)
    legs = 0
    while (parts := learn(tmp_path / "parts" / "mine", minutes=1.5 / 60)) is None:
        legs += 1
        assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == ["mine.checkpoint"]
    assert legs >= 3
    assert whole.improved
    assert (parts.before, parts.after) == (whole.before, whole.after)
    for suffix in (".safetensors", ".onnx", ".checkpoint"):
        a, b = (folder / f"mine{suffix}" for folder in (tmp_path, tmp_path / "parts"))
        if suffix != ".checkpoint":
            assert a.read_bytes() == b.read_bytes()
        else:
            a, b = (train.safe_open(p, "pt") for p in (a, b))
            assert all(torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in a.keys())  # noqa: SIM118
    assert learn(tmp_path / "mine") == whole
    with pytest.raises(OgiveError, match=r"mine.checkpoint: was begun with others \(found tuning\)"):
        learn(tmp_path / "mine", tuning=replace(QUICK, seed=1))
    with pytest.raises(OgiveError, match=r"mine.checkpoint: was begun with others \(found grid\)"):
        tuned.finetune(cube.isel(y=slice(8, None)), pairs, tmp_path / "mine", weights=str(start), tuning=QUICK)


def test_files_appear_together_or_not_at_all(cube, pairs, start, tmp_path, monkeypatch) -> None:
    def torn(net: Any, recipe: Any, stem: Path) -> Any:
        files.write(net, stem)
        raise KeyboardInterrupt

    learn = functools.partial(
        tuned.finetune, cube, pairs, tmp_path / "mine", weights=str(start), tuning=QUICK, report=lambda line: None
    )
    with monkeypatch.context() as patched:
        patched.setattr(tuned, "publish", torn)
        with pytest.raises(KeyboardInterrupt):
            learn()
    assert sorted(p.name for p in tmp_path.glob("mine*")) == ["mine.checkpoint"]
    assert Path(learn().weights) == tmp_path / "mine.json"
    assert sorted(p.suffix for p in tmp_path.glob("mine*")) == [".checkpoint", ".json", ".onnx", ".safetensors"]
    (tmp_path / "mine.checkpoint").unlink()
    with pytest.raises(OgiveError, match=r"mine.json: exists. Fix: choose another name"):
        learn()


def test_better_on_dates_that_it_has_not_seen(world, cube, pairs, start, tmp_path) -> None:
    """The motion of the held-out dates is known here: what is better by closure is better by the truth."""
    tuning = replace(QUICK, steps=12, every=4, size=96, synthetic=2, rate=1e-3)
    lines: list[str] = []
    result = tuned.finetune(cube, pairs, tmp_path / "mine", weights=str(start), tuning=tuning, report=lines.append)
    assert result.improved
    assert result.after["median"] < 0.6 * result.before["median"]
    assert result.after["rms"] < 0.6 * result.before["rms"]
    for level, bias in result.after["bias"].items():
        assert abs(bias) <= max(0.03, abs(result.before["bias"][level]))
    assert len(lines) == 4
    card = json.loads(Path(result.weights).read_text())
    about = card["fine-tuning"]
    held = about["held out"]
    parent = _flow_weights.card(str(start), "flow_net")
    assert about["parent"] == {"name": "start", "sha256": dict(parent.sha256)}
    assert (about["before"], about["after"]) == (result.before, result.after)
    assert card["command"] == "ogive finetune RUN.yaml --weights start --steps 12 --seed 0 --output mine"
    assert not {name for dates in about["learned from"] for name in dates} & set(held)
    unseen = pairs[pairs["id1"].isin(held) & pairs["id2"].isin(held)]
    errors = []
    for weights in (str(start), result.weights):
        velocity = og.track(cube, unseen, FlowNet(weights=weights))
        said = json.loads(velocity.attrs["provenance"])["kernel"]
        assert said["weights"] == weights
        assert said["weights_sha256.onnx"] == dict(_flow_weights.card(weights, "flow_net").sha256)[".onnx"]
        errors.append(pair_scores(world, velocity.compute()).set_index("ground").loc["ice", "RMSE"])
    assert errors[1] < 0.7 * errors[0]


def test_what_is_not_better_is_not_kept(cube, pairs, start, tmp_path) -> None:
    lines: list[str] = []
    result = tuned.finetune(
        cube, pairs, tmp_path / "mine", weights=str(start), tuning=replace(QUICK, rate=0.0), report=lines.append
    )
    assert not result.improved
    assert (result.weights, result.after) == (str(start), result.before)
    assert lines[-1] == f"nothing was better on the scenes held out: {start} stays as it is"
    assert not list(tmp_path.glob("mine.[jos]*"))


def test_less_closure_at_the_price_of_bias_is_not_better() -> None:
    first = {"step": 0, "median": 0.2, "rms": 0.4, "bias": {"easy": 0.0, "annual": -0.02}}
    for bias, kept in ((-0.029, 1), (-0.031, 0), (0.029, 1), (-0.012, 1)):
        score = first | {"step": 1, "median": 0.1, "bias": {"easy": 0.0, "annual": bias}}
        assert judge.best([first, score])["step"] == kept
    assert judge.best([first, first | {"step": 1, "median": 0.1, "bias": {"easy": 0.011, "annual": 0.0}}])["step"] == 0
    assert judge.best([first, first | {"step": 1, "median": 0.1, "rms": 0.41}])["step"] == 0
    far = first | {"bias": {"easy": 0.0, "annual": -0.1}}
    assert judge.best([far, far | {"step": 1, "median": 0.1}])["step"] == 1
    assert judge.best([far, far | {"step": 1, "median": 0.1, "bias": {"easy": 0.0, "annual": -0.101}}])["step"] == 0


def test_command(world, start, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tuned, "Tuning", lambda **given: replace(QUICK, **given))
    content = {
        "output": "result", "search": {"source": str(world.items_file)},
        "pairs": {"days": [5, 60], "same_orbit": False},
        "kernel": {"name": "flow_net", "weights": "start.json", "search": 6}, "invert": None,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    assert run.load(tmp_path / "run.yaml").make_kernel() == FlowNet(weights=str(start), search=6)
    line = ["finetune", str(tmp_path / "run.yaml"), "--steps", "2", "--output", str(tmp_path / "mine"), "--json"]
    begun = CliRunner().invoke(cli.app, [*line, "--minutes", "0"])
    assert begun.exit_code == 0, begun.output
    assert "not done yet: the same line goes on" in begun.stderr
    done = CliRunner().invoke(cli.app, line)
    assert done.exit_code == 0, done.output
    before, after = json.loads(done.stdout)
    assert (before["step"], after["step"]) == (0, 2)
    assert after["closure median"] < before["closure median"]
    assert json.loads((tmp_path / "mine.json").read_text())["fine-tuning"]["tuning"]["search"] == 6


def test_several_bands_from_learning_to_the_store(world, pairs, start, tmp_path) -> None:
    """The run file names bands; the kernel that it names compares one, so the command takes its own."""
    content = {
        "output": str(tmp_path / "result"), "search": {"source": str(world.items_file)}, "invert": None,
        "cube": {"band": ["nir", "red"]}, "pairs": {"days": [5, 60], "same_orbit": False},
    }  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    mine = tmp_path / "mine"
    line = ["finetune", str(path), "--steps", "4", "--weights", str(start), "--output", str(mine), "--json"]
    done = CliRunner().invoke(cli.app, line)
    assert done.exit_code == 0, done.output
    before, after = json.loads(done.stdout)
    assert after["closure median"] < before["closure median"]
    assert json.loads(mine.with_suffix(".json").read_text())["fine-tuning"]["bands"] == ["nir", "red"]
    refused = CliRunner().invoke(cli.app, ["run", str(path)])
    assert refused.exit_code != 0
    assert "must compare several bands, as the cube has 2" in str(refused.exception)
    assert not (tmp_path / "result").exists()
    path.write_text(yaml.safe_dump(content | {"kernel": {"name": "flow_net", "weights": str(mine) + ".json"}}))
    ran = CliRunner().invoke(cli.app, ["run", str(path)])
    assert ran.exit_code == 0, ran.output
    velocity = og.open_velocity(tmp_path / "result" / "velocity.zarr")
    assert json.loads(velocity.attrs["provenance"])["bands"] == ["nir", "red"]
    errors = pair_scores(world, velocity.compute()).set_index("ground")
    assert errors.loc["ice", "valid"] > 0.4
    assert errors.loc["ice", "RMSE"] < 0.5


# --- errors ---


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda c, p: (c, p[(p["i1"] < 3) & (p["i2"] < 4)]),
            PairError,
            "pairs: must hold a triplet to judge by.*4 scenes",
        ),
        (lambda c, p: (c, p[p["i2"] == p["i1"] + 1]), PairError, "0 triplets.*wider rules of make_pairs"),
        (lambda c, p: (c.isel(x=slice(60)), p), GridError, "cube: must be at least 64 px wide"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    cube: xr.Dataset,
    pairs: pd.DataFrame,
    start: Path,
    tmp_path: Path,
    change: Callable[..., Any],
    error: Any,
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        tuned.finetune(*change(cube, pairs), tmp_path / "mine", weights=str(start))


def test_a_wrong_parameter_is_named(cube, pairs, start, tmp_path) -> None:
    learn = functools.partial(tuned.finetune, cube, pairs, weights=str(start))
    with pytest.raises(ParameterError, match=r"held_out: must be ids of the cube's scenes \(found nowhere\)"):
        learn(tmp_path / "mine", held_out=["nowhere"])
    with pytest.raises(ParameterError, match="output: its folder must exist"):
        learn(tmp_path / "no" / "mine")
    with pytest.raises(ParameterError, match="weights: must be one of"):
        learn(tmp_path / "mine", weights="flow-net-0")
    with pytest.raises(ParameterError, match="steps: must be at least 1"):
        tuned.Tuning(steps=0)
    with pytest.raises(ParameterError, match="synthetic: must divide 64, or be 0"):
        tuned.Tuning(synthetic=3)
    masked = cube.assign(mask=cube["mask"] | np.uint8(1))
    with pytest.raises(PairError, match="held_out: must share usable pixels"):
        tuned.finetune(masked, pairs, tmp_path / "mine", weights=str(start), tuning=QUICK)
