"""The explorer without a browser: its widgets are clicked here, on a synthetic archive, up to a finished run."""

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from shapely.geometry import box, mapping

import ogive as og
from ogive import run, store, view
from ogive.errors import CancelledError, OgiveError, ParameterError
from ogive.kernels import KERNELS
from ogive.testing.plan import WorldSpec
from ogive.testing.runs import counted_run, run_file, unreadable
from ogive.testing.scenes import World, make_world
from ogive.testing.stores import contents
from ogive.view.explorer._areas import choice, plain_map, show_area
from ogive.view.explorer._forms import Form
from ogive.view.explorer._notice import Notice, guarded
from ogive.view.explorer._session import Session
from ogive.view.explorer._table import PAGE, TickTable
from ogive.view.explorer.pairs import Pairs
from ogive.view.explorer.parameters import OWN, READY, Parameters
from ogive.view.explorer.running import Running
from ogive.view.explorer.scenes import Scenes
from ogive.view.explorer.where import Where

SPEC = WorldSpec(
    size_km=(2.4, 3.0), n_sentinel2=6, n_landsat=2, start="2022-05-20", end="2022-09-20", cloud=0.1, speed=100.0,
    wedge=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), SPEC, seed=3)


class App:
    """The five steps before Look, on one session, as `explore` puts them together."""

    def __init__(self, config: run.RunConfig, outlines: Any = None, kernel: Any = None) -> None:
        self.session = Session()
        self.session.config = config
        self.where = Where(self.session, outlines=outlines)
        self.scenes = Scenes(self.session, outlines=outlines)
        self.pairs = Pairs(self.session)
        self.parameters = Parameters(self.session, kernel=kernel)
        self.running = Running(self.session)

    @property
    def errors(self) -> list[str]:
        """What the steps complain about."""
        steps = (self.where, self.scenes, self.pairs, self.parameters, self.running)
        return [step.notice.text for step in steps if "ogive-error" in step.notice.widget.value]

    def finish(self) -> None:
        """Wait for the run."""
        assert self.running.thread is not None
        self.running.thread.join(300)
        assert not self.running.thread.is_alive()


@pytest.fixture
def app(world: World) -> App:
    """A session on the synthetic archive."""
    config = run.RunConfig(
        search={"source": str(world.items_file)}, stable={"ice": str(world.outlines), "buffer": 100.0}
    )  # fmt: skip
    return App(config, outlines=world.outlines)


def found(app: App, sensor: str | None = "sentinel-2") -> App:
    """The application after its first two steps."""
    app.where.text.value = "RGI60-00.00001"
    app.where.button.click()
    app.scenes.form.controls["sensor"].value = sensor
    app.scenes.search_button.click()
    assert not app.errors
    return app


def test_an_area_is_typed_drawn_or_picked(app: App) -> None:
    app.where.text.value = "RGI60-00.00001"
    app.where.button.click()
    assert app.session.config.search.aoi == "RGI60-00.00001"
    typed = app.session.aoi
    assert "32TMS" in app.where.told.value
    app.where.drawn(None, action="created", geo_json={"geometry": mapping(box(8.0, 46.4, 8.1, 46.5))})
    assert app.session.aoi.equals(box(8.0, 46.4, 8.1, 46.5))
    feature = {"properties": {"RGIId": "RGI60-00.00001"}, "geometry": mapping(box(0, 0, 1, 1))}
    app.where.picked(event="click", feature=feature)
    assert app.session.aoi.equals(typed)
    app.where.picked(feature={"properties": {}, "geometry": mapping(box(0, 0, 1, 1))})
    assert app.session.aoi.equals(box(0, 0, 1, 1))
    app.where.text.value = "8.03, 46.45"
    app.where.button.click()
    assert app.session.aoi.bounds == pytest.approx((7.965, 46.405, 8.095, 46.495), abs=1e-3)
    assert not app.errors


@pytest.mark.parametrize(
    ("text", "told"), [("", "is empty"), ("RGI60-00.00002", "must be among"), ("95 95", "longitude comes first")]
)
def test_an_area_that_is_none_is_refused_where_it_was_typed(app: App, text: str, told: str) -> None:
    before = app.session.config
    app.where.text.value = text
    app.where.button.click()
    assert told in app.where.notice.text
    assert 'role="alert"' in app.where.notice.widget.value
    assert app.session.message == app.where.notice.text
    assert (app.session.aoi, app.session.config) == (None, before)


def test_scenes_are_sorted_ticked_and_looked_at(app: App, world: World) -> None:
    found(app, None)
    assert app.session.chosen == tuple(item.id for item in world.items)
    assert app.scenes.frame["overlap"].between(0, 1).all()
    assert app.scenes.frame["usable"].isna().all()
    app.scenes.cover_button.click()
    cover = og.scene_cover(world.items, world.outlines)
    pd.testing.assert_series_equal(app.scenes.frame["usable"], cover["usable"], check_names=False)
    app.scenes.table.heads["usable"].click()
    assert app.scenes.table.frame["usable"].is_monotonic_increasing
    app.scenes.table.heads["usable"].click()
    assert app.scenes.table.frame["usable"].is_monotonic_decreasing
    worst = app.scenes.table.frame.index[-1]
    row = app.scenes.table._rows[len(app.scenes.frame) - 1]
    row[1].value = False
    assert worst not in app.session.chosen
    assert app.session.config.search.leave_out == [worst]
    assert [item.id for item in run.find(app.session.config)] == list(app.session.chosen)
    row[2].click()
    assert worst in app.scenes.shown.value
    assert app.scenes._picture.url.startswith("data:image/png;base64,")
    app.scenes.table.none.click()
    assert app.session.chosen == ()
    app.scenes.table.all.click()
    assert len(app.session.chosen) == len(world.items)


def test_a_long_table_has_pages() -> None:
    seen: list[Any] = []
    table = TickTable({"n": ("n", "50px", str), "m": ("m", "1fr", str)}, lambda: None, seen.append)
    frame = pd.DataFrame({"n": range(30), "m": [k % 7 for k in range(30)]}, index=[f"r{k}" for k in range(30)])
    table.put(frame, ["r3"])
    assert table.back.disabled
    table.next.click()
    table._rows[0][2].click()
    table._rows[1][1].value = True
    assert seen == [f"r{PAGE}"]
    assert table.ticked == {"r3", f"r{PAGE + 1}"}
    table.next.click()
    assert table.next.disabled
    hidden = [row.layout.visibility for row, *_ in table._rows].count("hidden")
    assert hidden == PAGE - 30 % PAGE


def test_pairs_follow_the_controls(app: App) -> None:
    found(app)
    # The controls begin at the defaults of the rules.
    pd.testing.assert_frame_equal(app.session.pairs, og.make_pairs(app.session.items))
    app.pairs.controls["days"].value = (10, 60)
    app.pairs.controls["max_per_scene"].value = 2
    expected = og.make_pairs(app.session.items, days=(10, 60), max_per_scene=2)
    pd.testing.assert_frame_equal(app.session.pairs, expected)
    assert run.pair_rules(app.session.config.pairs) == og.PairRules(days=(10.0, 60.0), max_per_scene=2)
    cost = og.explain(run.prepare(app.session.config, check=False)[1])
    assert str(cost) in app.pairs.count.value
    assert app.pairs.picture.widget.value[:4] == b"\x89PNG"
    app.pairs.controls["days"].value = (1, 2)
    assert "no pair of scenes follows the rules" in app.pairs.notice.text
    assert app.session.pairs is None
    assert app.pairs.picture.widget.value == b""


def test_every_pair_rule_has_a_control(app: App) -> None:
    assert list(app.pairs.controls) == list(og.PairRules.__dataclass_fields__)
    found(app)
    first = app.session.chosen[0]
    changes = {
        "same_orbit": False, "same_sensor": False, "max_sun_difference": 40, "max_cloud": 90, "max_cloud_land": 80,
        "exclude_platforms": ("sentinel-2a",), "years_apart": 0, "max_per_scene": 5, "reference": first,
    }  # fmt: skip
    for name, value in changes.items():
        app.pairs.controls[name].value = value
    for part, month in zip(app.pairs.controls["season"].children, (5, 9), strict=True):
        part.value = month
    rules = run.pair_rules(app.pairs.rules())
    assert rules == og.PairRules(**{**changes, "days": (5.0, 100.0), "season": (5, 9)})


@pytest.mark.parametrize("name", KERNELS)
def test_the_form_of_a_kernel_is_the_kernel(name: str) -> None:
    form = Form(KERNELS[name])
    assert KERNELS[name](**form.values()) == KERNELS[name]()
    assert form.changed() == {}
    form.controls["search"].value = 9
    assert form.changed() == {"search": 9}
    assert KERNELS[name](**form.values()).search == 9  # type: ignore[attr-defined]


def test_parameters_reach_the_run_file(app: App) -> None:
    p, session = app.parameters, app.session
    ncc = p.form("ncc").controls
    ncc["chip"].value = "[24, 48]"
    ncc["refine"].value = "affine"
    assert session.config.make_kernel() == og.NCC(chip=(24, 48), refine="affine")
    p.filter_on["correlation"].value = True
    assert "minimum: must be given" in p.notice.text
    assert "correlation" not in session.config.filters
    p.form("correlation").controls["minimum"].value = "0.55"
    p.filter_on["fill"].value = True
    assert session.config.filters == {"local_median": {}, "correlation": {"minimum": 0.55}, "fill": {}}
    p.stable.controls["buffer"].value = 150.0
    p.series.controls["every"].value = "20D"
    assert (session.config.stable.buffer, session.config.invert.every) == (150.0, "20D")
    p.series_on.value = False
    assert session.config.invert is None
    whole = p.whole.controls
    whole["stack"].value, whole["points"].value = "30D", "{upper: [423100, 5147000]}"
    assert (session.config.stack, session.config.points) == ("30D", {"upper": (423100.0, 5147000.0)})
    whole["stack"].value = whole["points"].value = ""
    assert (session.config.stack, session.config.points) == (None, {})
    whole["profile"].value = "[[423100, 5147000]"
    assert "profile: cannot be read" in p.notice.text
    whole["profile"].value = ""
    for text, band in (
        ("[red, nir]", ["red", "nir"]),
        ("{landsat: pan}", {"landsat": "pan"}),
        ("nir", "nir"),
        ("", None),
    ):
        p.cube.controls["band"].value = text
        assert session.config.cube.band == band
    p.choice.value = "phase"
    assert session.config.kernel == {"name": "phase"}
    assert not app.errors
    before = session.config
    p.form("phase").controls["chip"].value = 63
    assert "chip" in p.notice.text
    assert session.config == before


def test_one_tile_is_tried_on_a_click(app: App) -> None:
    found(app)
    app.pairs.controls["days"].value = (10, 60)
    form = app.parameters.form("ncc").controls
    form["chip"].value, form["search"].value, form["refine"].value = "24", 6, "quadric"
    trial = app.parameters.trial
    assert len(trial.pair.options) == len(app.session.pairs)
    trial.size.value = 8
    at = app.session.aoi.representative_point()
    trial._clicked(type="click", coordinates=(at.y, at.x))
    assert not app.errors
    assert trial.picture.widget.value[:4] == b"\x89PNG"
    trial.run(at.x + 5, at.y)
    assert "inside the cube" in app.parameters.notice.text


def shifted(first: Any, second: Any, *valid: Any) -> Any:
    """A user's kernel: everything moved by one pixel south."""
    cells = tuple((n - 64) // 8 for n in first.shape)
    return np.ones(cells), np.zeros(cells)


def counted(folder: Path, **sections: Any) -> run.RunConfig:
    """A run of several small blocks whose scenes need no files."""
    dates = [f"2021-07-{day:02}" for day in (1, 6, 11, 16, 21, 26)]
    return run.load(run_file(folder, dates, **sections))


def started(folder: Path, **options: Any) -> App:
    """An application with the scenes and pairs of `counted`."""
    app = App(counted(folder), **options)
    app.scenes.search_button.click()
    assert not app.errors, app.errors
    return app


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> App:
    """An application whose run is done."""
    with counted_run():
        app = started(tmp_path_factory.mktemp("finished") / "app")
        app.running.measure.click()
        app.running.start_button.click()
        app.finish()
    assert not app.errors
    return app


def test_a_run_from_the_application_is_the_run_of_its_file(finished: App, tmp_path: Path) -> None:
    assert set(finished.session.stores) == {"matches", "velocity", "series"}
    assert finished.running.bar.value == finished.running.bar.max
    assert "blocks" in finished.running.price.value
    assert finished.running.picture.widget.value[:4] == b"\x89PNG"
    again = run.load(Path(finished.session.config.output).with_suffix(".yaml"))
    assert again == finished.session.config
    with counted_run():
        result = run.run(again.model_copy(update={"output": str(tmp_path / "again")}), progress=False)
    for name in ("matches", "velocity", "series"):
        mine, theirs = (contents(path) for path in (finished.session.stores[name], getattr(result, name)))
        blocks = [key for key in mine if "/c/" in key]
        assert len(blocks) > 10
        assert mine.keys() == theirs.keys()
        assert all(mine[key] == theirs[key] for key in blocks)


def test_ready_made_velocities_are_only_opened(app: App, finished: App, tmp_path: Path) -> None:
    path, before = finished.session.stores["velocity"], app.session.config
    app.parameters.choice.value = READY
    app.parameters.ready.value = path
    app.parameters.open_button.click()
    assert app.session.stores == {"ITS_LIVE": path}
    assert app.session.config == before
    app.parameters.ready.value = str(tmp_path / "nothing")
    app.parameters.open_button.click()
    assert app.errors


def test_ready_made_velocities_over_the_area_are_found(app: App, tmp_path: Path) -> None:
    step = app.parameters
    step.choice.value = READY
    step.find_button.click()
    assert "area" in step.notice.text
    found(app)
    west, south, east, north = app.session.aoi.bounds
    middle = (west + east) / 2
    squares = [box(west - 1, south - 1, middle, north + 1), box(middle, south - 1, east + 1, north + 1)]
    table = gpd.GeoDataFrame({"zarr_url": ["http://a/1.zarr", "http://a/2.zarr"], "epsg": 32632}, geometry=squares)
    table.set_crs(4326).to_file(tmp_path / "cubes.geojson")
    step.cubes = tmp_path / "cubes.geojson"
    step.find_button.click()
    assert sorted(step.ready.options) == ["http://a/1.zarr", "http://a/2.zarr"]
    assert step.ready.value == step.ready.options[0]
    assert step.notice.text.startswith("2 cubes; of the area they cover ")
    step.cubes = tmp_path / "none.geojson"
    step.find_button.click()
    assert "ITS_LIVE cubes" in step.notice.text


def test_the_run_file_shown_holds_no_secret(app: App) -> None:
    app.session.configure(search={"source": "https://me:planted1@host.org/items.json?sig=planted2"})
    assert "https://host.org/items.json" in app.running.file.value
    assert "planted" not in app.running.file.value


def test_stop_leaves_a_store_that_the_same_button_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted_run():
        app = started(tmp_path / "app")
        app.running.threads.value = "1"
        seen: list[dict[str, Any]] = []
        real = store.run_block

        def slow(*arguments: Any, **options: Any) -> Any:
            if not seen:
                app.running.stop_button.click()
            seen.append(arguments[2])
            return real(*arguments, **options)

        monkeypatch.setattr(store, "run_block", slow)
        app.running.start_button.click()
        app.finish()
        assert "is stopped" in app.running.notice.text
        assert not app.errors
        path = Path(app.session.config.output) / run.MATCHES
        count = og.status(path)
        assert 1 <= count["done"] < count["blocks"]
        assert not app.running.start_button.disabled
        picture = view.block_map(path)
        assert picture.axes[0].get_title() == f"{count['done']} of {count['blocks']} blocks done"
        before = len(seen)
        app.running.start_button.click()
        app.finish()
        assert not app.errors
        assert og.status(path)["done"] == count["blocks"]
        matched = [where for where in seen[before:] if "mid_date" in where]
        assert len(matched) >= count["blocks"] - count["done"]
        assert og.verify(path) is not None
    assert set(app.session.stores) == {"matches", "velocity", "series"}


def test_a_folder_with_another_run_keeps_its_run_file(tmp_path: Path) -> None:
    with counted_run():
        app = started(tmp_path / "app")
        app.running.start_button.click()
        app.finish()
        file = Path(app.session.config.output).with_suffix(".yaml")
        before = file.read_text()
        app.parameters.form("ncc").controls["search"].value = 4
        app.running.start_button.click()
        app.finish()
    assert "holds the result of another job" in app.running.notice.text
    assert file.read_text() == before


def test_failed_blocks_are_shown_with_their_reason(tmp_path: Path) -> None:
    with counted_run(), unreadable("20210716", 601_500.0):
        app = started(tmp_path / "app")
        with og.options.using(attempts=1):
            app.running.start_button.click()
            app.finish()
    assert "blocks failed" in app.running.notice.text
    assert "failed" in app.running.told.value
    path = Path(app.session.config.output) / run.MATCHES
    figure = view.block_map(path)
    failed = og.status(path)["failed"]
    assert failed > 0
    assert f"{failed} failed" in figure.axes[0].get_title()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "failed" in texts
    assert any("no such tile" in text for text in texts)


def test_a_function_of_the_user_is_run_and_named(tmp_path: Path) -> None:
    with counted_run():
        app = started(tmp_path / "app", kernel=shifted)
        assert app.parameters.choice.value == OWN
        app.running.start_button.click()
        app.finish()
    assert not app.errors
    velocity = og.open_velocity(app.session.stores["matches"])
    assert json.loads(velocity.attrs["provenance"])["kernel"]["function"].endswith("shifted")
    assert app.session.config.kernel["function"].endswith("shifted")
    moved = velocity["vy"].values * velocity["date_dt"].values[:, None, None] / 365
    np.testing.assert_allclose(moved[np.isfinite(moved)], -10.0, rtol=1e-4)
    with pytest.raises(ParameterError, match=r"kernel\.name"):
        app.session.config.make_kernel()


def test_watching_a_write(tmp_path: Path) -> None:
    data = xr.Dataset({"v": (("y", "x"), np.arange(12.0).reshape(4, 3))}).chunk(y=1)
    data.attrs = {"schema_version": og.grid.SCHEMA_VERSION, "kind": "test", "provenance": "{}"}
    seen: list[Any] = []

    def watch(row: dict[str, Any] | None) -> None:
        seen.append(row)
        if len(seen) == 3:
            raise CancelledError("test", rule="is stopped")

    with pytest.raises(CancelledError):
        og.write(data, tmp_path / "a.zarr", progress=False, workers=1, watch=watch)
    assert seen[0] is None
    assert [row["status"] for row in seen[1:]] == ["done", "done"]
    assert og.status(tmp_path / "a.zarr")["done"] in (2, 3, 4)
    og.write(data, tmp_path / "a.zarr", progress=False)
    assert og.status(tmp_path / "a.zarr") == {"blocks": 4, "done": 4, "failed": 0}


def test_what_a_callback_raises_is_shown() -> None:
    class Step:
        notice, session = Notice(), Session()

        @guarded
        def act(self, error: Exception | None) -> str:
            if error is not None:
                raise error
            return "done"

    step = Step()
    step.act(OgiveError("chip", rule="must be <even>"))
    assert step.notice.text == step.session.message == "chip: must be <even>"
    assert "&lt;even&gt;" in step.notice.widget.value
    step.act(KeyError("x"))
    assert step.notice.text == "KeyError: 'x'"
    assert step.act(None) == "done"
    assert step.notice.text == step.notice.widget.value == ""


def test_a_session_refuses_what_a_run_file_does_not_have() -> None:
    session = Session()
    with pytest.raises(ParameterError, match=r"search\.cloud"):
        session.configure(search={"cloud": 40})
    assert session.config is None
    session.configure(filters={"fill": {}})
    session.configure(filters={"local_median": {}}, search={"max_cloud": 3})
    session.configure(search={"sensor": "landsat"})
    assert session.config.filters == {"local_median": {}}
    assert (session.config.search.max_cloud, session.config.search.sensor) == (3.0, "landsat")


def test_small_parts() -> None:
    made = choice([("any", None), ("1", 1)], None)
    assert (made.index, made.value) == (0, None)
    shown = plain_map(None, "100px")
    assert shown.layers[0].url == ""
    show_area(shown, (8.0, 46.0, 8.1, 46.1))
    assert shown.center == pytest.approx([46.05, 8.05])
    width = 420 * 360 / (256 * 2**shown.zoom)
    assert 0.1 <= width < 0.4


def test_missing_packages_are_named_with_the_line_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ogive.view.explorer.find_spec", lambda name: None)
    with pytest.raises(OgiveError, match=r"pip install 'ogive\[explore\]'"):
        og.view.explore()


def test_the_whole_application(world: World, finished: App) -> None:
    app = og.view.explore(archive=world.items_file, outlines=world.outlines)
    assert list(app.steps) == ["where", "scenes", "pairs", "parameters", "running", "look", "takeaway"]
    assert app.tabs.selected_index == 0
    assert app.session.config.search.source == str(world.items_file)
    path = finished.session.stores["velocity"]
    for given in (path, og.open_velocity(path), {"velocity": path}):
        looking = og.view.explore(given)
        assert looking.session.stores == {"velocity": path}
        assert looking.tabs.selected_index == 5
    with pytest.raises(ParameterError, match=r"og\.write"):
        og.view.explore(og.open_velocity(path).copy().isel(x=slice(4)).drop_encoding())


def test_no_step_has_an_element_without_a_name_for_tests(app: App) -> None:
    wanted = {
        "where": ("aoi", "set-area", "where-map", "pathrow"),
        "scenes": ("source", "sensor", "search", "cover", "scenes", "scene-map", "count"),
        "pairs": ("pairs-days", "pair-count", "network"),
        "parameters": ("kernel", "chip", "filter-fill", "trial-map", "trial-pair", "tile"),
        "running": ("explain", "run", "stop", "progress", "blocks", "price", "run-file", "folder"),
    }
    for step, names in wanted.items():
        classes = {name for widget in below(getattr(app, step).widget) for name in widget._dom_classes}
        assert {f"ogive-{name}" for name in names} <= classes, step


def below(widget: Any) -> list[Any]:
    """A widget and all that it holds."""
    return [widget, *(found for child in getattr(widget, "children", ()) for found in below(child))]
