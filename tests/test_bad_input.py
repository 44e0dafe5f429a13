"""The list of bad inputs, as a user meets them: one clear line each, and nothing half-made is left behind.

Every case is a run file given to `ogive run` (or one command line) on tiny scenes. A good line names what is wrong,
the rule, the value found, and the fix where there is one.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import yaml
import zarr

from ogive import cli, flags, options, store
from ogive._append import pair_names
from ogive.testing.plan import WorldSpec
from ogive.testing.scenes import World, make_world
from ogive.testing.servers import range_server

SPEC = WorldSpec(
    size_km=(1.2, 1.5), n_sentinel2=3, n_landsat=0, start="2022-06-25", end="2022-08-10",
    cloud=0.0, speed=60.0, wedge=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), SPEC)


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """No second attempts: the faults here stay."""
    with options.using(attempts=1):
        yield


class Desk:
    """A user's folder: items to spoil, a run file, and the command line."""

    def __init__(self, folder: Path, world: World, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.world, self.capsys, self.monkeypatch = folder, world, capsys, monkeypatch
        self.items = [item.full_copy() for item in world.items]

    def own_files(self) -> None:
        """Copies of the images beside the run file, to be spoiled."""
        (self.folder / "scenes").mkdir()
        for item in self.items:
            for key, asset in item.assets.items():
                path = self.folder / "scenes" / f"{item.id}_{key}.tif"
                shutil.copy(asset.href, path)
                asset.href = str(path)

    def path(self, number: int, key: str = "nir") -> Path:
        return Path(self.items[number].assets[key].href)

    def fill(self, number: int, value: int, key: str = "nir") -> None:
        """Overwrite all pixels of a scene."""
        with rasterio.open(self.path(number, key)) as file:
            profile, shape, dtype = file.profile, file.shape, file.dtypes[0]
        with rasterio.open(self.path(number, key), "w", **{**profile, "driver": "GTiff"}) as file:
            file.write(np.full((1, *shape), value, dtype))

    def write(self, **sections: Any) -> None:
        pystac.ItemCollection(self.items, clone_items=False).save_object(str(self.folder / "items.json"))
        content = {
            "output": "result",
            "search": {"source": "items.json"},
            "pairs": {"days": [5, 60], "same_orbit": False},
            "kernel": {"name": "ncc", "chip": 16, "search": 4, "step": 8},
            "invert": None,
            **sections,
        }
        # The images lie beside this folder, or in it.
        content["search"] = {"files": str(self.folder.parent), **content["search"]}
        (self.folder / "run.yaml").write_text(yaml.safe_dump(content))

    def command(self, *arguments: Any) -> tuple[int, str]:
        """Exit code and what was said on stderr."""
        self.monkeypatch.setattr(sys, "argv", ["ogive", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), self.capsys.readouterr().err

    def refuse(self, *named: str, code: int = 2, arguments: tuple[Any, ...] = (), **sections: Any) -> str:
        """The complaint of a command that must fail; nothing in the folder may change."""
        self.write(**sections)
        before = snapshot(self.folder)
        told, text = self.command(*(arguments or ("run", self.folder / "run.yaml", "--json")))
        assert told == code, text
        lines = [line for line in text.splitlines() if line.startswith("ogive: ")]
        assert len(lines) == 1, text
        assert "Traceback" not in text
        for name in named:
            assert name in lines[0]
        assert snapshot(self.folder) == before
        return lines[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file and folder, with its bytes."""
    found = {str(p): p.read_bytes() if p.is_file() else b"folder" for p in folder.rglob("*")}
    assert found
    return found


@pytest.fixture
def desk(tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, world, capsys, monkeypatch)


def test_the_input_is_good_before_it_is_spoiled(desk: Desk) -> None:
    desk.write()
    code, text = desk.command("run", desk.folder / "run.yaml", "--json")
    assert code == 0, text
    assert (desk.folder / "result" / "report.html").is_file()


def test_aoi_outside_every_scene(desk: Desk) -> None:
    # The search already drops scenes that do not reach the AOI, and says so.
    far = {"source": "items.json", "aoi": [20.0, 60.0, 20.1, 60.1]}
    desk.refuse("no scene is left", "3 candidates; removed 3 by area of interest", "widen", search=far)


def test_aoi_inside_the_footprints_but_outside_the_pixels(desk: Desk) -> None:
    # Footprints that promise more than the files hold: the search believes them, the cube does not.
    ring = [[7, 45], [9, 45], [9, 48], [7, 48], [7, 45]]
    for item in desk.items:
        item.geometry, item.bbox = {"type": "Polygon", "coordinates": [ring]}, [7, 45, 9, 48]
    line = desk.refuse(
        "must lie inside at least one scene", search={"source": "items.json", "aoi": [7.1, 45.1, 7.11, 45.11]}
    )
    assert "the first scene covers" in line


def test_no_scene_found(desk: Desk) -> None:
    desk.refuse("no scene is left", "removed 3 by datetime", search={"source": "items.json", "datetime": "1999"})


def test_an_empty_source(desk: Desk) -> None:
    desk.items = []
    desk.refuse("items.json", "no")


def test_one_scene_only(desk: Desk) -> None:
    desk.items = desk.items[:1]
    desk.refuse("at least two", "found")


def test_no_pair_within_the_days(desk: Desk) -> None:
    desk.refuse("days", pairs={"days": [300, 400]})


def test_scenes_in_two_utm_zones(desk: Desk) -> None:
    desk.items[1].properties["proj:code"] = "EPSG:32631"
    line = desk.refuse("must share one coordinate system", "EPSG:32632: 2 scenes", "EPSG:32631: 1 scenes")
    assert "Fix: search one tile" in line


def test_a_missing_band(desk: Desk) -> None:
    line = desk.refuse(desk.items[0].id, "has no band 'red'", "nir", cube={"band": "red"})
    assert "Fix: choose one of these" in line


def test_a_truncated_file(desk: Desk) -> None:
    desk.own_files()
    path = desk.path(1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    desk.refuse(desk.items[1].id, "its pixels must be readable", str(path), code=1, unreadable="fail")


def test_a_file_that_is_no_image(desk: Desk) -> None:
    desk.own_files()
    desk.path(2).write_text("<html>Sign in to continue</html>")
    desk.refuse(desk.items[2].id, "its pixels must be readable", code=1, unreadable="fail")


def test_a_missing_file(desk: Desk) -> None:
    desk.own_files()
    desk.path(0).unlink()
    said = ("its pixels must be readable", str(desk.path(0)), "Fix: check the address")
    desk.refuse(desk.items[0].id, *said, code=1, unreadable="fail")


def test_a_missing_file_is_told_of_and_its_pairs_are_flagged(desk: Desk) -> None:
    desk.own_files()
    desk.path(0).unlink()
    matches, lost = finished(desk), desk.items[0].id
    code, _ = desk.command("status", matches)
    assert code == 0
    velocity = store.open_velocity(matches).load()
    unreadable = flags.has(velocity["flag"], flags.UNREADABLE).all(("y", "x")).values
    concerned = [lost in (a, b) for a, b in pair_names(velocity)]
    assert any(concerned)
    assert not all(concerned)
    np.testing.assert_array_equal(unreadable, concerned)
    assert store.status(matches)["unreadable"] == 1
    assert "scene_unreadable" in (matches.parent / "report.html").read_text().replace(" ", "_")


def test_nothing_but_missing_files(desk: Desk) -> None:
    desk.own_files()
    for k in range(3):
        desk.path(k).unlink()
    desk.refuse("at least two must have usable pixels", desk.items[0].id)


def test_a_404(desk: Desk) -> None:
    folder = desk.world.items_file.parent
    paths = [f"/{Path(i.assets['nir'].href).relative_to(folder)}" for i in desk.items]
    with range_server(folder, missing=paths[1:2]) as server:
        for item in desk.items:
            for asset in item.assets.values():
                asset.href = f"{server.url}/{Path(asset.href).relative_to(folder)}"
        desk.refuse(desk.items[1].id, f"{server.url}{paths[1]}", "404", code=1, unreadable="fail")
        assert 404 in server.statuses(paths[1])


@pytest.mark.parametrize("field", ["proj:transform", "proj:shape", "proj:code"])
def test_an_item_without_proj(desk: Desk, field: str) -> None:
    desk.items[0].properties.pop(field, None)
    for asset in desk.items[0].assets.values():
        asset.extra_fields.pop(field, None)
    desk.refuse(desk.items[0].id, f"needs {field} to know its grid", "Fix: search a provider")


def test_an_item_of_an_unknown_sensor(desk: Desk) -> None:
    for item in desk.items:
        item.properties |= {"platform": "moon-1", "constellation": "moon"}
        item.collection_id, item.id = "moon", item.id.replace("S2", "MN")
    desk.refuse("no scene is left", "3 by unknown sensor")


def finished(desk: Desk) -> Path:
    desk.write()
    assert desk.command("run", desk.folder / "run.yaml", "--json")[0] == 0
    return desk.folder / "result" / "matches.zarr"


def test_a_store_of_a_newer_schema(desk: Desk) -> None:
    matches = finished(desk)
    zarr.open_group(str(matches), mode="r+", use_consolidated=False).attrs["schema_version"] = 999
    said = ("was written by a newer ogive", "found 999", "Fix: update ogive")
    desk.refuse(str(matches), *said, code=1)
    for arguments in (("invert", matches, "-o", desk.folder / "s.zarr"), ("report", matches.parent)):
        desk.refuse(*said, code=1, arguments=arguments)
    # To verify it is damage: the ledger knows which schema the root had.
    code, text = desk.command("verify", matches)
    assert (code, text) == (1, "")


def test_an_existing_path_that_is_no_ogive_store(desk: Desk) -> None:
    foreign = desk.folder / "result" / "matches.zarr"
    zarr.create_group(str(foreign)).create_array("temperature", data=np.arange(4.0))
    desk.refuse(str(foreign), "is not an ogive store", "Fix: choose another path", code=1)


def test_an_existing_file_where_the_output_should_be(desk: Desk) -> None:
    (desk.folder / "result").write_text("my notes")
    desk.refuse("output: must be a folder", "result")


def test_a_ledger_that_is_missing(desk: Desk) -> None:
    matches = finished(desk)
    shutil.rmtree(matches.with_name("matches.zarr.ledger"))
    desk.refuse("its ledger is missing", "Fix: copy it together with the store", code=1)
    desk.refuse("its ledger is missing", code=1, arguments=("status", matches))


def test_a_search_range_of_0(desk: Desk) -> None:
    line = desk.refuse("search", "at least 1", "found 0", kernel={"name": "ncc", "chip": 16, "search": 0})
    assert "Fix: search = maximum speed" in line


def test_a_chip_larger_than_the_image(desk: Desk) -> None:
    line = desk.refuse("must fit into the image of 120 x 150 px", kernel={"name": "ncc", "chip": 400, "search": 4})
    assert "Fix: use a chip of at most 120 px" in line


def test_scenes_without_data(desk: Desk) -> None:
    desk.own_files()
    for k in range(3):
        desk.fill(k, 0)
    desk.refuse("at least two must have usable pixels", desk.items[0].id)


def test_a_mask_that_covers_every_scene(desk: Desk) -> None:
    desk.own_files()
    for k in range(3):
        desk.fill(k, 9, "scl")  # cloud everywhere
    desk.refuse("at least two must have usable pixels", "Fix: widen the dates, or look at the masks")


def outline(desk: Desk, name: str, west: float, south: float, east: float, north: float) -> str:
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (desk.folder / name).write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return name


def test_ice_that_covers_everything(desk: Desk) -> None:
    ice = outline(desk, "ice.geojson", 7, 45, 9, 48)
    line = desk.refuse("the masks cover everything: no stable ground is left", stable={"ice": ice})
    assert "Fix: use a larger area or a smaller buffer" in line


def test_outlines_elsewhere(desk: Desk) -> None:
    ice = outline(desk, "ice.geojson", 20, 60, 21, 61)
    desk.refuse("ice.geojson", "no polygon covers a cell of the grid", "Fix: check", stable={"ice": ice})


def test_an_aoi_that_is_nowhere_to_be_found(desk: Desk) -> None:
    outlines = {"source": "items.json", "aoi": "RGI60-11.99999", "outlines": str(desk.world.outlines)}
    desk.refuse("RGI60-11.99999", search=outlines)


@pytest.mark.parametrize("aoi", [[10, 40, 5, 45], [200, 0, 210, 5], [0, 0], "nowhere.geojson"])
def test_an_aoi_that_is_none(desk: Desk, aoi: Any) -> None:
    desk.refuse(search={"source": "items.json", "aoi": aoi})


def test_a_run_file_with_an_unknown_word(desk: Desk) -> None:
    desk.refuse("run.yaml", "serach", serach={})
