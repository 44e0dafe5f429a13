"""The steps Look and Take away: their widgets are driven as a user does, and what they show is read back."""

import base64
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray as xr
import yaml
from PIL import Image

import ogive as og
from ogive import grid, view
from ogive.errors import ParameterError
from ogive.testing.stores import lazy_velocity
from ogive.testing.velocity_cubes import velocity_cube

pytest.importorskip("ipyleaflet", reason="the explorer needs ogive[explore]")

from ogive.run import RunConfig
from ogive.view import layers, style
from ogive.view.explorer._map import HEIGHT, WIDTH
from ogive.view.explorer._session import Session
from ogive.view.explorer.look import HERE, Look
from ogive.view.explorer.takeaway import TakeAway


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A velocity, two series and the overview of one of them."""
    place = tmp_path_factory.mktemp("stores")
    velocity, _ = velocity_cube("500")
    velocity["vx"][:, 9, 3] = np.nan
    velocity["flag"][:, 9, 3] = og.flags.RIM
    ids = {f"image_id{k}": ("mid_date", np.full(velocity.sizes["mid_date"], "scene", object)) for k in (1, 2)}
    velocity = velocity.drop_vars("outlier").assign_coords(ids)
    velocity = velocity.assign_attrs(kind="velocity", schema_version=grid.SCHEMA_VERSION)
    lazy = velocity.chunk({"mid_date": 250, "y": 6, "x": 6})
    og.write(lazy, place / "velocity.zarr", progress=False)
    pairs = og.open_velocity(place / "velocity.zarr")
    og.write(og.invert(pairs, every="60D"), place / "series.zarr", progress=False)
    og.write(og.invert(pairs, every="60D", screening=None), place / "other.zarr", progress=False)
    og.overview(place / "series.zarr", pixels=16, progress=False)
    return place


@pytest.fixture
def session(folder: Path) -> Session:
    return Session(stores={name: str(folder / f"{name}.zarr") for name in ("velocity", "series", "other")})


@pytest.fixture
def look(session: Session) -> Iterator[Look]:
    step = Look(session)
    assert step.notice.text == ""
    yield step
    assert step.notice.text == ""


def picture_of(overlay: Any) -> np.ndarray:
    """What an overlay of the map shows."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(overlay.url.partition(",")[2]))))


def shown(look: Look) -> np.ndarray:
    """The picture on the map."""
    return picture_of(look.map.picture)


def place_of(look: Look, row: int, column: int) -> tuple[float, float]:
    assert look.source is not None
    return float(look.source.full["x"][column]), float(look.source.full["y"][row])


def click(look: Look, row: int, column: int) -> None:
    """What the browser sends for a click on a cell."""
    x, y = place_of(look, row, column)
    look.map.leaflet._handle_leaflet_event(
        look.map.leaflet, {"event": "interaction", "type": "click", "coordinates": [y, x]}, []
    )


def test_the_map_is_that_of_the_date(look: Look) -> None:
    assert look.source is not None
    assert look.source.name == "series"
    for k in (2, 9):
        look.time.value = k
        expected = layers.layer(look.source.full, "speed", when=k)
        np.testing.assert_array_equal(shown(look), expected.rgb())
        date = pd.Timestamp(look.source.full["time"].values[k])
        assert f"{date:%Y-%m-%d}" in look.map.title.value
    box = grid.geobox_of(look.source.full).boundingbox
    assert [*map(list, look.map.picture.bounds)] == [[box.bottom, box.left], [box.top, box.right]]


def test_pairs_are_shown_in_the_order_of_their_dates(look: Look) -> None:
    look.store.value = "velocity"
    assert look.source is not None
    middle = look.source.full["mid_date"].values
    look.time.value = 7
    assert look.when is not None
    assert middle[look.when] == np.sort(middle)[7]


@pytest.mark.parametrize("name", ["error", "flag", "count"])
def test_layers(look: Look, name: str) -> None:
    look.layer.value, look.time.value = name, 5
    assert look.source is not None
    np.testing.assert_array_equal(shown(look), layers.layer(look.source.full, name, when=5).rgb())
    assert ("valid" in look.map.legend.value) == (name == "flag") or name != "flag"
    assert look.map.arrows[0].locations == []


def test_colours_arrows_and_median_are_the_users(look: Look) -> None:
    assert look.source is not None
    assert look.map.arrows[0].locations
    look.arrows.value = False
    assert look.map.arrows[0].locations == []
    look.scale.value = "log"
    np.testing.assert_array_equal(
        shown(look), layers.layer(look.source.full, "speed", when=look.when, scale="log").rgb()
    )
    look.median.value = True
    assert look.when is None
    assert "median" in look.map.title.value


def test_arrows_point_where_the_ice_flows(look: Look) -> None:
    assert look.source is not None
    maps = og.export.map_at(look.source.full, ["vx", "vy"], when=look.when)
    direction = np.arctan2(float(maps["vy"].mean()), float(maps["vx"].mean()))
    angles = [np.arctan2(a[1][0] - a[0][0], a[1][1] - a[0][1]) for a in look.map.arrows[0].locations]
    assert np.abs(np.array(angles) - direction).max() < np.radians(25)


def test_a_difference_is_one_less_the_other(look: Look) -> None:
    look.minus.value = "other"
    assert look.source is not None
    maps = [og.export.map_at(look.opened(n).full, ["v"], when=look.when) for n in ("series", "other")]
    np.testing.assert_array_equal(shown(look), layers.difference(*maps).rgb())
    assert "series minus other" in look.map.title.value


def test_a_click_shows_the_series_and_the_pairs_behind_it(look: Look, session: Session) -> None:
    click(look, 4, 5)
    assert session.point == place_of(look, 4, 5)
    assert look.picture.value[:4] == b"\x89PNG"
    assert look.figure is not None
    (ax,) = look.figure.axes
    line = next(a for a in ax.lines if a.get_label() == "series")
    assert look.source is not None
    one = look.source.full[["vx", "vy"]].isel(y=4, x=5)
    np.testing.assert_allclose(line.get_ydata(), np.hypot(one["vx"], one["vy"]), rtol=1e-6)
    bars = next(c for c in ax.collections if c.get_label() == "pairs")
    behind = look.opened("velocity").full["vx"].isel(y=4, x=5)
    assert len(bars.get_segments()) == int(behind.notnull().sum())
    look.pairs.value = False
    assert "pairs" not in look.figure.axes[0].get_legend_handles_labels()[1]


def test_every_missing_pixel_has_a_reason_in_words(look: Look) -> None:
    click(look, 9, 3)
    assert look.source is not None
    when = look.source.full["time"].values[look.when]
    behind = look.opened("velocity").full
    assert og.why(look.source.full, *place_of(look, 9, 3), time=when, velocity=behind) in look.words.value
    assert "peak on rim" in look.words.value


def test_places_are_kept_and_compared_on_one_axis(look: Look) -> None:
    click(look, 4, 5)
    look.keep.click()
    click(look, 2, 8)
    look.keep.click()
    click(look, 6, 6)
    assert list(look.points) == ["A", "B", HERE]
    assert len(look.map.pins.layers) == 3
    look.beside.value = ("other", "velocity")
    assert look.figure is not None
    (ax,) = look.figure.axes
    labels = ax.get_legend_handles_labels()[1]
    assert {"series, A", "other, B", f"velocity, {HERE}"} <= set(labels)
    look.forget.click()
    assert look.points == {}
    assert look.map.pins.layers == ()


def test_coordinates_can_be_typed(look: Look, session: Session) -> None:
    x, y = place_of(look, 3, 3)
    look.at.value = f"{x:.1f}, {y:.1f}"
    assert session.point == (x, y)
    assert look.figure is not None


def test_what_cannot_be_done_is_said(session: Session) -> None:
    look = Look(session)
    look.at.value = "somewhere"
    assert "two numbers" in look.notice.text
    session.point = (0.0, 0.0)
    assert "must lie on the grid" in look.notice.text
    assert session.message == look.notice.text
    session.stores = {"nothing": "/nowhere/at/all.zarr"}
    assert "does not exist" in look.notice.text


def test_flow_line_and_its_speed_through_time(look: Look) -> None:
    click(look, 6, 6)
    look.what.value = "flow line"
    assert look.line is not None
    assert look.source is not None
    mean = og.export.map_at(look.source.maps, ["vx", "vy"])
    pd.testing.assert_frame_equal(look.line, og.flowline(mean, *place_of(look, 6, 6)))
    assert len(look.map.lines[0].locations) == len(look.line)
    assert look.figure is not None
    look.time.value = 3
    assert "Along the flow line" in look.figure.axes[0].get_title()
    look.what.value = "through time"
    mesh = look.figure.axes[0].collections[0]
    table = og.along(look.source.maps, look.line)
    np.testing.assert_allclose(mesh.get_array().filled(np.nan), table["v"].values, rtol=1e-6)
    look.anomaly.value = True
    values = look.figure.axes[0].collections[0].get_array().filled(np.nan)
    np.testing.assert_allclose(np.nanmedian(values, 0), 0, atol=1e-4)
    look.what.value = "pairs"
    assert "500" not in look.figure.axes[0].get_title()
    assert "pairs" in look.figure.axes[0].get_title()


def test_stakes_are_drawn_and_found_by_a_click(session: Session, tmp_path: Path) -> None:
    bare = Look(session)
    x, y = place_of(bare, 4, 5)
    table = pd.DataFrame(
        [{"name": "S7", "x": x, "y": y, "t1": "2018-01-01", "t2": "2018-09-01", "v": 180, "v_error": 5}]
    )
    table.to_csv(tmp_path / "stakes.csv", index=False)
    look = Look(session, stakes=tmp_path / "stakes.csv")
    click(look, 4, 5)
    assert list(look.points) == ["S7"]
    assert look.figure is not None
    assert "stakes" in look.figure.axes[0].get_legend_handles_labels()[1]
    bare.upload.value = ({"name": "s.csv", "type": "text/csv", "size": 1, "last_modified": pd.Timestamp("2020-01-01"),
                          "content": memoryview((tmp_path / "stakes.csv").read_bytes())},)  # fmt: skip
    assert bare.notice.text == ""
    assert bare.stakes is not None
    assert bare.stakes["v"].tolist() == [180.0]


def test_a_large_store_gets_its_overview_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["ogive.overview"], "SMALL", 10)  # `ogive.overview` is the function
    store = tmp_path / "series.zarr"
    og.write(og.open_velocity(folder / "other.zarr"), store, progress=False)
    look = Look(Session(stores={"series": str(store)}))
    assert look.making is not None
    look.making.join(60)
    assert (tmp_path / "series.overview.zarr").is_dir()
    assert len(look.map.picture.url) > 100
    assert "made now" in look.notice.text or look.notice.text == ""
    assert Look(Session(stores={"series": str(store)})).making is None


def test_what_is_in_view_is_shown_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "velocity.zarr"
    fine = lazy_velocity((3, 40, 48))
    speed = fine["vx"] * (1 + fine["x"] % 7) + fine["y"] % 11
    og.write(fine.assign(vx=speed.astype("f4"), vy=fine["vx"]), store, progress=False)
    og.overview(store, pixels=24, progress=False)
    look = Look(Session(stores={"velocity": str(store)}))
    assert look.source is not None
    x, y = look.source.full["x"].values, look.source.full["y"].values
    whole = look.map.layer
    assert whole is not None
    assert whole.values.shape == (20, 24)
    coarse_arrows = look.map.arrows[0].locations

    def seen(rows: slice, columns: slice) -> Any:
        """What the browser sends after a zoom, and what is then laid over the map."""
        size = abs(x[1] - x[0])
        centre = [float(np.mean(y[rows])), float(np.mean(x[columns]))]
        zoom = float(np.log2(WIDTH / size / (columns.stop - columns.start)))
        shown = HEIGHT / WIDTH * (columns.stop - columns.start)
        assert abs(shown - (rows.stop - rows.start)) < 1
        look.map.leaflet.set_state({"zoom": zoom, "center": centre, "north": centre[0] + size * shown / 2})
        if look.reading is not None:
            look.reading.result(60)
        return look.map.detail

    detail = seen(slice(4, 20), slice(10, 34))  # nearly the shape of the map, which shows a little more
    part = (slice(3, 21), slice(10, 34))
    limits = (float(whole.norm.vmin or 0), float(whole.norm.vmax or 0))
    wanted = layers.layer(look.source.full.isel(y=part[0], x=part[1]), "speed", when=look.when, limits=limits)
    np.testing.assert_array_equal(picture_of(detail), wanted.rgb())
    box = wanted.geobox.boundingbox
    assert [*map(list, detail.bounds)] == [[box.bottom, box.left], [box.top, box.right]]
    assert look.map.arrows[0].locations != coarse_arrows
    look.layer.value = "flag"
    assert look.reading is not None
    look.reading.result(60)
    assert picture_of(detail).shape == (18, 24, 3)
    look.minus.options = ["nothing", "velocity"]
    look.minus.value = "velocity"  # a difference stays as it is
    assert picture_of(look.map.detail).shape[:2] == (1, 1)
    look.minus.value = "nothing"
    monkeypatch.setattr("ogive.view.explorer._source.SMALL", 1000)
    assert picture_of(seen(slice(3, 35), slice(0, 48))).shape[:2] == (1, 1)
    assert picture_of(seen(slice(0, 10), slice(0, 15))).shape[:2] == (11, 15)
    assert look.notice.text == ""


def test_a_store_that_was_written_again_is_opened_again(folder: Path, tmp_path: Path) -> None:
    store, pairs = str(tmp_path / "series.zarr"), og.open_velocity(folder / "velocity.zarr")
    og.write(og.invert(pairs, every="60D"), store, progress=False)
    look = Look(Session(stores={"series": store}))
    opened = look.source
    look.refresh()
    assert look.source is opened
    og.write(og.invert(pairs, every="90D"), store, overwrite=True, progress=False)
    look.refresh()
    assert look.source is not opened
    assert look.time.max == og.open_velocity(store).sizes["time"] - 1


def test_a_dataset_is_looked_at_as_it_is(folder: Path) -> None:
    dataset = og.open_velocity(folder / "velocity.zarr")
    look = Look(Session(stores={"velocity": dataset}))
    assert look.notice.text == ""
    assert len(look.map.picture.url) > 100


def test_figures_of_layers(folder: Path) -> None:
    series = og.open_velocity(folder / "series.zarr")
    figure = view.layer_map(series, "error", when=3)
    image = figure.axes[0].images[0]
    np.testing.assert_allclose(image.get_array().filled(np.nan), series["v_error"][3], rtol=1e-6)
    assert view.layer_map(series, "flag", when=3).axes[0].get_title()
    assert view.layer_map(series, "speed", when=3, limits=(0, 50)).axes[0].images[0].norm.vmax == 50
    with pytest.raises(ParameterError, match="must be one of"):
        view.layer_map(series, "colour")
    with pytest.raises(ParameterError, match="must ascend"):
        view.layer_map(series, "speed", limits=(5, 1))
    with pytest.raises(ParameterError, match="above 0"):
        view.layer_map(series, "speed", scale="log", limits=(0, 1))
    with pytest.raises(ParameterError, match="scale"):
        view.speed_map(series, scale="cubic")


def test_nothing_valid_is_grey_and_zero_is_not() -> None:
    velocity, _ = velocity_cube("100")
    one = velocity.isel(mid_date=0)
    one["vx"][0, 0], one["vy"][0, 0] = 0.0, 0.0
    one["flag"][0, 0] = 0
    one["vx"][1, 1] = np.nan
    picture = layers.layer(one, "speed", scale="log").rgb()
    assert picture[1, 1].tolist() == [212, 212, 212]
    assert picture[0, 0].tolist() == [68, 1, 84]  # the lowest colour
    assert style.INVALID == "#d4d4d4"


def test_an_error_of_speed_where_only_pairs_have_errors() -> None:
    velocity, _ = velocity_cube("100")
    shown = layers.layer(velocity, "error", when=4).values
    own = velocity["vx_error"].values[4]
    valid = np.isfinite(velocity["vx"].values[4])
    np.testing.assert_allclose(shown[valid], own, rtol=1e-5)
    assert np.isnan(shown[~valid]).all()


def taken(session: Session, folder: Path) -> TakeAway:
    step = TakeAway(session)
    step.folder.value = str(folder)
    return step


def test_everything_can_be_taken_away(look: Look, session: Session, tmp_path: Path) -> None:
    click(look, 4, 5)
    look.keep.click()
    step = taken(session, tmp_path / "files")
    assert "series, speed" in step.said.value
    for name, button in step.buttons.items():
        button.click()
        if name == "run.yaml":
            assert "needs a run" in step.notice.text
        else:
            assert step.notice.text == ""
            assert (tmp_path / "files" / name).stat().st_size > 100
            assert name in step.list.value
    assert look.source is not None
    with rasterio.open(tmp_path / "files" / "map.tif") as tif:
        np.testing.assert_allclose(tif.read(1), og.export.map_at(look.source.full, ["v"], when=look.when)["v"])
    table = pd.read_csv(tmp_path / "files" / "places.csv")
    assert set(table["name"]) == {"A"}
    assert len(table) == look.source.full.sizes["time"]
    with xr.open_dataset(tmp_path / "files" / "store.nc", decode_timedelta=False) as copy:
        np.testing.assert_array_equal(copy["vx"], look.source.full["vx"])
    with Image.open(tmp_path / "files" / "through-time.gif") as gif:
        assert getattr(gif, "n_frames", 1) == look.source.full.sizes["time"]
    exec(compile((tmp_path / "files" / "session.py").read_text(), "session.py", "exec"), {"__name__": "test"})


def test_nothing_is_replaced_unless_that_is_ticked(look: Look, session: Session, tmp_path: Path) -> None:
    step = taken(session, tmp_path)
    mine = tmp_path / "session.py"
    mine.write_text("mine")
    step.buttons["session.py"].click()
    assert "is there already" in step.notice.text
    assert mine.read_text() == "mine"
    step.replace.value = True
    step.buttons["session.py"].click()
    assert step.notice.text == ""
    assert "og.open_velocity" in mine.read_text()


def test_a_run_is_taken_away_as_its_run_file(folder: Path, tmp_path: Path) -> None:
    config = RunConfig(output=str(folder), search={"source": "https://me:pw@host.org/c.json", "max_cloud": 30})
    session = Session(config=config, stores={"series": str(folder / "series.zarr")})
    step = taken(session, tmp_path)
    step.buttons["run.yaml"].click()
    assert step.notice.text == ""
    text = (tmp_path / "run.yaml").read_text()
    assert "pw" not in text
    assert RunConfig.model_validate(yaml.safe_load(text)).search.max_cloud == 30
    step.buttons["session.py"].click()
    assert "og.search(" in (tmp_path / "session.py").read_text()


def test_without_a_store_there_is_nothing_to_take(tmp_path: Path) -> None:
    step = taken(Session(), tmp_path / "files")
    assert "no store yet" in step.said.value
    step.buttons["map.png"].click()
    assert "are none yet" in step.notice.text


def test_animations_refuse_what_they_cannot_do(folder: Path, tmp_path: Path) -> None:
    series: Any = og.open_velocity(folder / "series.zarr")
    with pytest.raises(ParameterError, match="gif"):
        view.speed_animation(series, tmp_path / "a.mp4")
    with pytest.raises(ParameterError, match="gif"):
        view.speed_animation(series.isel(time=0), tmp_path / "a.gif")
