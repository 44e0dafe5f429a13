"""The run file and the whole job: what is read, what is refused before anything is written, what is done again."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import yaml

from ogive import _read, run, runfile, store
from ogive.errors import MaskError, OgiveError, PairError, ParameterError, StoreError
from ogive.kernels import FlowNet
from ogive.testing.plan import WorldSpec
from ogive.testing.scenes import World, make_world
from ogive.testing.servers import range_server, stac_server
from ogive.testing.stores import contents

SPEC = WorldSpec(
    size_km=(1.6, 2.0), n_sentinel2=7, n_landsat=0, start="2022-06-25", end="2022-08-10",
    cloud=0.0, speed=80.0, wedge=False,
)  # fmt: skip
PAIRS = 19  # of 21: two scenes lie too close to their neighbours


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), SPEC)


def small_run(world: World) -> dict[str, Any]:
    """The sections of a run file for the small world."""
    return {
        "output": "result",
        "search": {"source": str(world.items_file), "aoi": "RGI60-00.00001", "outlines": str(world.outlines)},
        "cube": {"buffer": 300},
        "pairs": {"days": [5, 60], "same_orbit": False},
        "kernel": {"name": "ncc", "chip": 16, "search": 6, "step": 8},
        "stable": {"ice": str(world.outlines), "rock": str(world.rock), "buffer": 80},
        "invert": {"every": "15D"},
    }


@pytest.fixture
def make(world: World, tmp_path: Path) -> Callable[..., run.RunConfig]:
    """A run file in a folder of its own; keywords replace whole sections."""

    def make(**sections: Any) -> run.RunConfig:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**small_run(world), **sections}))
        return run.load(path)

    return make


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished run; copy it before you change it."""
    folder = tmp_path_factory.mktemp("finished")
    config = run.RunConfig.model_validate({**small_run(world), "output": str(folder / "result")})
    run.run(config, progress=False)
    return folder / "result"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    """Every window that a loader reads: scene and shape."""
    seen: list[tuple[str, tuple[int, ...]]] = []

    class Counting(_read.OdcReader):
        def read(self, asset: Any, window: Any, resampling: str) -> Any:
            seen.append((asset.scene, tuple(window.shape)))
            return super().read(asset, window, resampling)

    monkeypatch.setitem(_read.READERS, "odc", Counting)
    return seen


def chunks(path: Path) -> dict[str, bytes]:
    """The bytes of every chunk of a store, without its attributes (they name paths)."""
    found = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != "zarr.json"}
    assert len(found) > 10
    return found


def test_the_template_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(runfile.template())
    config = run.load(tmp_path / "run.yaml")
    default = run.RunConfig()
    assert config.output == str(tmp_path / "velocity")
    assert config.make_kernel() == default.make_kernel()
    assert run.pair_rules(config.pairs) == run.pair_rules(default.pairs)
    same = {"output", "kernel", "pairs"}  # compared above
    assert config.model_dump(exclude=same) == default.model_dump(exclude=same)


def test_the_template_explains_every_field() -> None:
    lines = runfile.template().splitlines()
    for name in run.RunConfig.model_fields:
        assert any(line.startswith(f"{name}:") and "# " in line for line in lines), name
    for section in (run.SearchSection, run.CubeSection, run.StableSection, run.InvertSection):
        for name, info in section.model_fields.items():
            assert any(line.startswith(f"  {name}: ") and str(info.description) in line for line in lines), name


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("serch: {}", "serch"),
        ("search: {colour: 3}", "search.colour"),
        ("cube: {buffer: wide}", "cube.buffer"),
        ("search: {max_cloud: [1, 2]}", "search.max_cloud"),
        ("filters: {local_median: 3}", "filters.local_median"),
        ("points: {tongue: [1.0]}", "points.tongue"),
        ("workers: many", "workers"),
        ("invert: {every: {days: 30}}", "invert.every"),
    ],
)
def test_load_names_the_wrong_field(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError) as caught:
        run.load(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", "just words"])
def test_load_refuses_what_is_no_run_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match="ogive init"):
        run.load(path)


def test_load_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="readable YAML file"):
        run.load(tmp_path / "nothing.yaml")


def test_load_of_an_empty_file_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("")
    assert run.load(tmp_path / "run.yaml").search == run.RunConfig().search


def test_relative_paths_start_at_the_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    for name in ("items.json", "ice.gpkg"):
        (folder / name).touch()
    (folder / "run.yaml").write_text(
        "output: out\nsearch: {source: items.json, aoi: RGI60-11.01450}\nstable: {ice: ice.gpkg, rock: other.gpkg}\n"
    )
    monkeypatch.chdir(tmp_path)
    config = run.load("job/run.yaml")
    assert config.output == str(folder / "out")
    assert config.search.source == str(folder / "items.json")
    assert config.stable.ice == str(folder / "ice.gpkg")
    # What is not a file there may be a name: it stays as it was written.
    assert (config.search.aoi, config.stable.rock) == ("RGI60-11.01450", "other.gpkg")


def test_the_name_of_a_kernel_alone_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("kernel: flow_net\n")
    assert run.load(path).make_kernel() == FlowNet()
    path.write_text("kernel: [flow_net]\n")
    with pytest.raises(ParameterError, match="kernel: "):
        run.load(path)


@pytest.mark.parametrize(
    ("sections", "error", "named"),
    [
        ({"kernel": {"name": "ncd"}}, ParameterError, "kernel.name: must be one of ncc"),
        ({"kernel": {"name": "ncc", "chips": 16}}, ParameterError, "'chips'"),
        ({"kernel": {"name": "ncc", "chip": 16, "search": 0}}, ParameterError, "search: must be a whole number"),
        ({"kernel": {"name": "ncc", "chip": "large"}}, ParameterError, "chip: must be a whole number"),
        ({"pairs": {"day": [5, 60]}}, ParameterError, "'day'"),
        ({"pairs": {"days": [60, 5]}}, ParameterError, "days"),
        ({"pairs": {"days": [300, 400]}}, PairError, "days"),
        ({"filters": {"mean": {}}}, ParameterError, "filters: are outliers, local_median, agreement"),
        ({"filters": {"correlation": {"least": 0.5}}}, ParameterError, "filter correlation"),
        ({"filters": {"correlation": {}}}, ParameterError, "filter correlation"),
        ({"filters": {"local_median": {"window": 4}}}, ParameterError, "window"),
        ({"invert": {"every": "a while"}}, ParameterError, "every"),
        ({"invert": {"every": "400D"}}, ParameterError, "no window fits"),
        ({"invert": {"method": "magic"}}, ParameterError, "method: must be one of adaptive"),
        ({"cube": {"loader": "magic"}}, ParameterError, "loader: must be one of"),
        ({"stable": {"ice": "missing.gpkg"}}, OgiveError, "missing.gpkg"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_found_before_anything_is_written(
    make: Callable[..., run.RunConfig], tmp_path: Path, sections: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error) as caught:
        run.run(make(**sections), progress=False)
    assert named in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]


def test_a_finished_run(finished: Path, world: World) -> None:
    assert {p.name for p in finished.iterdir()} == {
        "matches.zarr", "matches.zarr.ledger", "velocity.zarr", "velocity.zarr.ledger", "series.zarr",
        "series.zarr.ledger", "run.json", "report.html", "map.png", "series.png",
    }  # fmt: skip
    for name in (run.MATCHES, run.VELOCITY, run.SERIES):
        count = store.status(finished / name)
        assert count["done"] == count["blocks"] > 0
        assert store.verify(finished / name).empty
    velocity = store.open_velocity(finished / run.VELOCITY)
    assert velocity.sizes["mid_date"] == PAIRS
    assert set(velocity["image_id1"].values) <= {item.id for item in world.items}
    assert float(np.isfinite(velocity["vx"]).mean()) > 0.3
    assert np.isfinite(velocity["vx_stable_shift"]).all()
    assert not np.isfinite(velocity["vx"].values[velocity["flag"].values & 128 > 0]).any()
    assert np.isfinite(store.open_velocity(finished / run.SERIES)["vx"]).any()


def test_the_result_as_json(finished: Path) -> None:
    result = run.report(finished)
    told = json.loads(result.to_json())
    assert told["matches"] == str(finished / "matches.zarr")
    assert len(told["tables"]["Pairs"]) == PAIRS
    assert set(result.tables) == {"Stable ground", "Pairs", "Flags"}
    before, after = result.tables["Stable ground"]["vx_median"]
    assert after < 0.2 * before


def test_another_filter_uses_the_matches_again(
    make: Callable[..., run.RunConfig], finished: Path, world: World, tmp_path: Path, reads: list[Any]
) -> None:
    shutil.copytree(finished, tmp_path / "result")
    matches, velocity = contents(tmp_path / "result" / run.MATCHES), contents(tmp_path / "result" / run.VELOCITY)
    result = run.run(make(filters={"correlation": {"minimum": 0.8}}), progress=False)
    # The only reads are the coarse look at each scene: its image and its mask.
    assert len(reads) == 2 * len(world.items)
    assert max(max(shape) for _, shape in reads) <= 200 // 8
    assert contents(result.matches) == matches
    assert contents(result.velocity) != velocity
    flagged = store.open_velocity(result.velocity)
    assert not (flagged["corr"].where(np.isfinite(flagged["vx"])) < 0.8).any()
    assert any(step.get("minimum") == 0.8 for step in json.loads(flagged.attrs["provenance"])["steps"])


def test_the_same_run_again_writes_nothing(make: Callable[..., run.RunConfig], finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "result")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "result").rglob("*") if p.is_file() and ".zarr/" in str(p)}
    run.run(make(), progress=False)
    assert len(times) > 50
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_other_pairs_do_not_replace_the_matches(
    make: Callable[..., run.RunConfig], finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "result")
    before = contents(tmp_path / "result" / run.MATCHES)
    with pytest.raises(StoreError, match="holds the result of another job"):
        run.run(make(pairs={"days": [20, 60], "same_orbit": False}), progress=False)
    assert contents(tmp_path / "result" / run.MATCHES) == before


def test_an_interrupted_run_goes_on(
    make: Callable[..., run.RunConfig], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.write

    def interrupted(ds: Any, path: Path, **how: Any) -> Path:
        if Path(path).name == run.VELOCITY:
            raise KeyboardInterrupt
        return real(ds, path, **how)

    monkeypatch.setattr(store, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run(make(), progress=False)
    with pytest.raises(StoreError, match=r"velocity\.zarr"):
        run.report(tmp_path / "result")
    monkeypatch.setattr(store, "write", real)
    # As after a kill in the middle of the matching: one block has no row and holds rubbish.
    matches = tmp_path / "result" / run.MATCHES
    (tmp_path / "result" / f"{run.MATCHES}.ledger" / "0.0.0.json").unlink()
    victim = next(p for p in sorted((matches / "vx" / "c").rglob("*")) if p.is_file())
    victim.write_bytes(b"torn")
    result = run.run(make(), progress=False)
    assert contents(result.matches) == contents(finished / run.MATCHES)
    assert chunks(result.velocity) == chunks(finished / run.VELOCITY)
    assert result.series is not None
    assert chunks(result.series) == chunks(finished / run.SERIES)


def test_a_single_pair_needs_no_inversion(make: Callable[..., run.RunConfig], world: World, tmp_path: Path) -> None:
    two = pystac.ItemCollection(list(world.items)[:2], clone_items=False)
    two.save_object(str(tmp_path / "two.json"))
    search = {
        "source": "two.json",
        "files": str(world.items_file.parent),
        "aoi": "RGI60-00.00001",
        "outlines": str(world.outlines),
    }
    result = run.run(make(search=search, invert=None), progress=False)
    assert result.series is None
    assert store.open_velocity(result.velocity).sizes["mid_date"] == 1
    assert not (tmp_path / "result" / run.SERIES).exists()
    text = result.report.read_text()
    assert "data:image/png" in text
    assert "Speed through time" not in text


def test_an_old_series_is_not_reported(make: Callable[..., run.RunConfig], finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "result")
    assert run.run(make(invert=None), progress=False).series is None


def test_without_stable_ground_nothing_is_corrected(make: Callable[..., run.RunConfig]) -> None:
    result = run.run(make(stable={}, filters={}, invert=None), progress=False)
    raw, velocity = (store.open_velocity(p) for p in (result.matches, result.velocity))
    assert np.isfinite(raw["vx"]).any()
    np.testing.assert_array_equal(raw["vx"].values, velocity["vx"].values)
    assert "vx_stable_shift" not in velocity
    assert set(result.tables) == {"Pairs", "Flags"}


def blank(items: list[pystac.Item], folder: Path, count: int) -> pystac.ItemCollection:
    """Copies of the items, of which the first `count` hold no data."""
    out = []
    for k, item in enumerate(items):
        item = item.full_copy()
        if k < count:
            source = Path(item.assets["nir"].href)
            target = folder / f"{item.id}.tif"
            with rasterio.open(source) as old, rasterio.open(target, "w", **{**old.profile, "driver": "GTiff"}) as new:
                new.write(np.zeros((1, old.height, old.width), old.dtypes[0]))
            item.assets["nir"].href = str(target)
        out.append(item)
    return pystac.ItemCollection(out, clone_items=False)


def test_scenes_without_pixels_are_left_out_aloud(
    make: Callable[..., run.RunConfig], world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = blank(list(world.items), tmp_path, 2)
    some.save_object(str(tmp_path / "some.json"))
    with caplog.at_level(logging.WARNING, "ogive"):
        cube, velocity = run.prepare(make(search={"source": "some.json", "files": str(tmp_path.parent)}))
    empty = [item.id for item in list(world.items)[:2]]
    assert "2 of 7 scenes have no usable pixel" in caplog.text
    assert all(name in caplog.text for name in empty)
    assert cube.sizes["time"] == 5
    assert velocity.sizes["mid_date"] > 5
    assert not set(empty) & set(velocity["image_id1"].values)


def test_one_usable_scene_is_not_enough(make: Callable[..., run.RunConfig], world: World, tmp_path: Path) -> None:
    blank(list(world.items), tmp_path, 6).save_object(str(tmp_path / "one.json"))
    before = {p.name for p in tmp_path.iterdir()}
    with pytest.raises(PairError, match="at least two must have usable pixels"):
        run.run(make(search={"source": "one.json", "files": str(tmp_path.parent)}), progress=False)
    assert {p.name for p in tmp_path.iterdir()} == before | {"run.yaml"}


def test_report_needs_a_run(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(ParameterError, match="holds no run"):
        run.report(tmp_path)
    with pytest.raises(ParameterError, match="holds no run"):
        run.report(finished / run.VELOCITY)
    with pytest.raises(ParameterError, match="holds no run"):
        run.report(tmp_path / "missing")


def test_output_must_be_a_folder_beside_others(make: Callable[..., run.RunConfig], tmp_path: Path) -> None:
    (tmp_path / "result").write_text("mine")
    with pytest.raises(ParameterError, match="output: must be a folder"):
        run.run(make(), progress=False)
    assert (tmp_path / "result").read_text() == "mine"
    with pytest.raises(ParameterError, match="output: its parent folder must exist"):
        run.run(make(output="a/b/c"), progress=False)


def test_nothing_remains_when_no_block_could_be_written(
    make: Callable[..., run.RunConfig], world: World, tmp_path: Path
) -> None:
    items = [item.full_copy() for item in world.items]
    gone = tmp_path / "gone"
    gone.mkdir()
    for item in items:
        for key in ("nir", "scl"):
            copied = gone / f"{item.id}_{key}.tif"
            shutil.copy(item.assets[key].href, copied)
            item.assets[key].href = str(copied)
    pystac.ItemCollection(items, clone_items=False).save_object(str(tmp_path / "gone.json"))
    config = make(search={"source": "gone.json"}, unreadable="fail")
    real = run.prepare

    def then_removed(config: run.RunConfig, **options: Any) -> Any:  # the scenes were there when the run looked at them
        prepared = real(config, **options)
        shutil.rmtree(gone)
        return prepared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "prepare", then_removed)
        with pytest.raises(StoreError, match="nothing was written"):
            run.run(config, progress=False)
    assert not (tmp_path / "result").exists()


def test_a_mask_without_stable_ground_is_found_before_the_matching(
    make: Callable[..., run.RunConfig], world: World, tmp_path: Path
) -> None:
    with pytest.raises(MaskError, match="no stable ground is left"):
        run.prepare(make(stable={"ice": str(world.outlines), "buffer": 100000}))
    assert not (tmp_path / "result").exists()


@pytest.mark.slow
def test_over_http_the_bytes_are_the_same(
    make: Callable[..., run.RunConfig], world: World, finished: Path, tmp_path: Path
) -> None:
    folder = world.items_file.parent
    with range_server(folder) as files:
        remote = [item.full_copy() for item in world.items]
        for item in remote:
            for asset in item.assets.values():
                asset.href = f"{files.url}/{Path(asset.href).relative_to(folder)}"
        with stac_server(remote) as api:
            search = {
                "source": api.url, "aoi": "RGI60-00.00001", "outlines": str(world.outlines), "sensor": "sentinel-2-l2a",
                "datetime": "2022-06/2022-09",
            }  # fmt: skip
            result = run.run(make(search=search), progress=False)
            assert any(r.path.endswith("/search") and r.status == 200 for r in api.requests)
        assert sum(r.status == 206 for r in files.requests) >= 10
    assert contents(result.matches) == contents(finished / run.MATCHES)
    assert chunks(result.velocity) == chunks(finished / run.VELOCITY)
    assert result.series is not None
    assert chunks(result.series) == chunks(finished / run.SERIES)


@pytest.mark.slow
def test_both_loaders_give_the_same_store(make: Callable[..., run.RunConfig], finished: Path) -> None:
    result = run.run(make(cube={"buffer": 300, "loader": "stackstac"}), progress=False)
    ours, other = (store.open_velocity(p / run.MATCHES if p == finished else p) for p in (finished, result.matches))
    assert json.loads(other.attrs["provenance"])["cube"]["loader"] == "stackstac"
    for name in ("vx", "vy", "corr", "flag"):
        assert np.isfinite(ours[name]).any()
        np.testing.assert_array_equal(ours[name].values, other[name].values)


def test_a_cluster_of_one_gives_the_same_store(make: Callable[..., run.RunConfig], finished: Path) -> None:
    """Threads and a Dask client write the same bytes."""
    import distributed

    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        result = run.run(make(), client=client, progress=False)
    assert contents(result.matches) == contents(finished / run.MATCHES)
