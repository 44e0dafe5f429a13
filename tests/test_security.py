"""SECURITY.md, line by line: what documents of others may not do, and where secrets may not be found."""

import ast
import contextlib
import http.server
import importlib.util
import json
import logging
import pickle
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numcodecs.pickles
import numpy as np
import pystac
import pytest
import rasterio
import yaml

import ogive as og
from ogive import catalog, cli, options, run
from ogive.errors import ItemError, OgiveError, ParameterError, ReadError, SearchError, StoreError
from ogive.local import write_items
from ogive.testing.plan import WorldSpec
from ogive.testing.readers import FakeReader
from ogive.testing.scenes import World, make_world
from ogive.testing.servers import range_server

SOURCE = Path(og.__file__).parent
SPEC = WorldSpec(
    size_km=(1.2, 1.5), n_sentinel2=3, n_landsat=0, start="2022-06-25", end="2022-08-10",
    cloud=0.0, speed=60.0, wedge=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), SPEC)


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    with options.using(attempts=1):
        yield


def naming(world: World, href: str, key: str = "nir") -> list[pystac.Item]:
    """The world's items, the first with another address of its image."""
    items = [item.full_copy() for item in world.items]
    items[0].assets[key].href = href
    return items


def served(folder: Path, items: list[pystac.Item]) -> str:
    pystac.ItemCollection(items, clone_items=False).save_object(str(folder / "items.json"))
    return "items.json"


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "href",
    [
        "/vsizip//vsicurl/http://127.0.0.1/a.zip/a.tif", "/vsicurl/http://127.0.0.1/a.tif", "//vsimem/a.tif",
        "/VSISUBFILE/0_9,/etc/passwd", "WMS:http://127.0.0.1/wms", "HDF5:/a.h5://x", "GTIFF_DIR:1:/a.tif",
        "vrt:///a.tif?bands=1", "zip+https://127.0.0.1/a.zip!a.tif", "ftp://127.0.0.1/a.tif", "<VRTDataset/>",
        "http:///a.tif", "http://[/a.tif", "javascript:1", "", "a\nb.tif", "/data/\x00.tif",
        "DERIVED_SUBDATASET:X:/a.tif",
    ],
)  # fmt: skip
def test_an_address_is_a_file_or_an_object_and_nothing_else(world: World, href: str) -> None:
    with pytest.raises(ItemError, match=r"must be a path or an address of a file|Invalid IPv6"):
        og.open_cube(naming(world, href), "nir")


@pytest.mark.parametrize("href", ["/etc/passwd", "file:///etc/passwd", "FILE:/etc/passwd"])
def test_a_server_names_no_file_of_this_machine(world: World, tmp_path: Path, href: str) -> None:
    items = naming(world, href)
    with range_server(tmp_path) as server:
        for item in items[1:]:
            item.assets = {"nir": pystac.Asset(f"{server.url}/{item.id}.tif")}
        address = f"{server.url}/{served(tmp_path, items)}"
        with pytest.raises(ItemError, match="names a file of this machine, and comes from elsewhere"):
            og.search(None, source=address)
        # Not even if it says that it is a file itself, or if the user opens it with other means.
        items[0].set_self_href("/etc/item.json")
        served(tmp_path, items)
        with pytest.raises(ItemError, match="comes from elsewhere"):
            og.search(None, source=address)
        items[0].assets["nir"].href = "file:///etc/passwd"
        items[0].set_self_href(f"{server.url}/item.json")
        with pytest.raises(ItemError, match="comes from elsewhere"):
            og.open_cube(items[:1], "nir")


def test_a_relative_address_of_a_server_is_one_of_the_server(world: World, tmp_path: Path) -> None:
    with range_server(tmp_path) as server:
        items = naming(world, "../../a.tif")
        for item in items:
            item.assets = {"nir": items[0].assets["nir"].clone()}
            item.assets["nir"].set_owner(item)
        found = og.search(None, source=f"{server.url}/{served(tmp_path, items)}")
    assert {asset.href for item in found for asset in item.assets.values()} == {f"{server.url}/a.tif"}


def test_a_file_of_items_names_images_in_its_folder(world: World, tmp_path: Path) -> None:
    images = world.items_file.parent
    path = write_items(world.items, tmp_path / "items.json")
    with pytest.raises(ItemError, match="names a file outside"):
        og.search(None, source=path)
    assert len(og.search(None, source=path, files=images)) == 3
    assert len(og.search(None, source=world.items_file)) == 3
    # A link inside leads outside.
    (tmp_path / "link.tif").symlink_to(world.items[0].assets["nir"].href)
    write_items(naming(world, "link.tif")[:1], path)
    with pytest.raises(ItemError, match="names a file outside"):
        og.search(None, source=path)


def test_a_catalogue_on_disk_does_not_leave_its_folder(world: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps(world.items[0].to_dict()))
    (tmp_path / "inside").mkdir()
    with range_server(tmp_path) as server:
        for href in ("../outside.json", str(outside), outside.as_uri(), f"{server.url}/outside.json"):
            link = {"rel": "item", "href": href}
            doc = {"type": "Catalog", "id": "c", "stac_version": "1.0.0", "description": "d", "links": [link]}
            (tmp_path / "inside/catalog.json").write_text(json.dumps(doc))
            with pytest.raises(SearchError, match="must not lead out of its folder"):
                og.search(None, source=tmp_path / "inside/catalog.json")
        assert server.requests == []


@contextlib.contextmanager
def answering(documents: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """A server of JSON documents; a text is a redirection. Yields its address and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found = documents.get(self.path.partition("?")[0], {})
            body = json.dumps(found).encode()
            self.send_response(302 if isinstance(found, str) else 200)
            self.send_header("Location", found if isinstance(found, str) else "")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("how", ["redirect", "item link", "next page", "search link", "file"])
def test_a_server_leads_to_no_other_host(world: World, tmp_path: Path, how: str) -> None:
    item = world.items[0].to_dict(include_self_link=False, transform_hrefs=False)
    item["assets"] = {}
    page = {"type": "FeatureCollection", "features": [item]}
    with answering({"/items": page, "/item": item, "/search": page}) as (elsewhere, asked):
        documents: dict[str, Any] = {}
        with answering(documents) as (host, _):
            root = {"type": "Catalog", "id": "a", "stac_version": "1.0.0", "description": "d"}
            classes = ("core", "item-search", "collections")
            api = {**root, "conformsTo": [f"https://api.stacspec.org/v1.0.0/{name}" for name in classes]}
            data = {"rel": "data", "href": f"{host}/collections"}
            search = {"rel": "search", "href": f"{host}/search", "type": "application/geo+json", "method": "POST"}
            extent = {"spatial": {"bbox": [[0, 0, 1, 1]]}, "temporal": {"interval": [[None, None]]}}
            collection = {**root, "type": "Collection", "id": "sentinel-2-l2a", "license": "x", "extent": extent}
            documents["/collections"] = {"collections": [{**collection, "links": []}], "links": []}
            documents |= {
                "redirect": {"/": f"{elsewhere}/items"},
                "item link": {"/": {**root, "links": [{"rel": "item", "href": f"{elsewhere}/item"}]}},
                "next page": {
                    "/": {**api, "links": [data, search]},
                    "/search": {**page, "links": [{"rel": "next", "href": f"{elsewhere}/search"}]},
                },
                "search link": {"/": {**api, "links": [data, {**search, "href": f"{elsewhere}/search"}]}},
                "file": {"/": {**root, "links": [{"rel": "item", "href": "file:///etc/passwd"}]}},
            }[how]
            with pytest.raises(SearchError, match="must not lead to another host or to a file"):
                og.search(None, source=f"{host}/")
        assert asked == []


def test_a_cube_asks_only_the_hosts_of_its_images(world: World, tmp_path: Path) -> None:
    folder = world.items_file.parent
    with range_server(folder) as images, range_server(folder) as others:
        items = [item.full_copy() for item in world.items]
        for item in items:
            item.links = [pystac.Link("derived_from", f"{others.url}/x.json"), pystac.Link("root", f"{others.url}/r")]
            for key, asset in item.assets.items():
                asset.href = f"{images.url}/{Path(asset.href).relative_to(folder)}"
                assert key in ("nir", "scl")
            item.add_asset("thumbnail", pystac.Asset(f"{others.url}/t.png"))
        cube = og.open_cube(items, "nir")
        assert images.requests == []
        assert np.isfinite(cube["image"][0, 40:60, 40:60].values).any()
        assert images.requests
        assert others.requests == []


def test_an_image_is_a_geotiff_whatever_its_name(world: World, tmp_path: Path) -> None:
    """A virtual dataset under the name of a GeoTIFF would fetch any other file or address."""
    secret = Path(world.items[0].assets["nir"].href)
    with rasterio.open(secret) as file:
        height, width = file.shape
    inner = f"<SourceFilename relativeToVRT='0'>{secret}</SourceFilename><SourceBand>1</SourceBand>"
    band = f"<VRTRasterBand dataType='UInt16' band='1'><SimpleSource>{inner}</SimpleSource></VRTRasterBand>"
    box = catalog.scene_geobox(world.items[0], "nir")
    place = f"<SRS>{box.crs}</SRS><GeoTransform>{', '.join(map(str, box.affine.to_gdal()))}</GeoTransform>"
    evil = tmp_path / "evil.tif"
    evil.write_text(f"<VRTDataset rasterXSize='{width}' rasterYSize='{height}'>{place}{band}</VRTDataset>")
    with rasterio.open(evil) as file:
        assert file.driver == "VRT"  # so much for the name
        assert file.read(1).any()
    for loader in ("odc", "stackstac"):
        cube = og.open_cube(naming(world, str(evil)), "nir", loader=loader)
        with pytest.raises(ReadError, match=r"evil\.tif"):
            cube["image"][0, 40:60, 40:60].load()


@pytest.mark.parametrize(
    "crs", ["+init=/etc/passwd:1", "+proj=utm +nadgrids=/etc/passwd", "/etc/passwd", "PROJCS[EXTENSION["]
)
def test_a_coordinate_system_names_no_file(world: World, crs: str) -> None:
    items = naming(world, "a.tif")
    for fields in (items[0].properties, items[0].assets["nir"].extra_fields):
        fields["proj:code"] = crs
    with pytest.raises(ItemError, match="plain WKT"):
        og.open_cube(items, "nir")


# --- code -------------------------------------------------------------------------------------------------------------

NEVER = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads",
    "os.system", "os.popen", "subprocess.getoutput", "dill.loads", "joblib.load", "torch.load", "pd.read_pickle",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "shelve.open", "cloudpickle.load",
}  # fmt: skip
OWN_TASKS = ("_tasks.py", "_icechunk.py", "_execute.py", "cluster.py")
"""Where tasks that this very run has made are unpacked."""


def test_the_source_executes_and_unpickles_nothing() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 60
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            at = f"{path.relative_to(SOURCE)}:{node.lineno} {name}"
            found += [at] if name in NEVER or name.startswith(("pickle.", "marshal.")) else []
            found += [at] if name == "cloudpickle.loads" and path.name not in OWN_TASKS else []
            found += [f"{at}({k.arg})" for k in node.keywords if k.arg in ("allow_pickle", "shell") and
                      not (isinstance(k.value, ast.Constant) and k.value.value is False)]  # fmt: skip
    assert found == []


BOMB = "a: &a [x, x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi"))


@pytest.mark.parametrize("text", [BOMB, "a: !!python/object/apply:os.system ['true']", "[" * 5000])
def test_yaml_is_plain_and_small(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match="readable YAML"):
        run.load(path)
    with pytest.raises(SearchError, match="plain YAML"):
        catalog.open_catalog(path)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.mark,)  # type: ignore[return-value]


@pytest.mark.parametrize("part", ["compressor", "filter"])
def test_a_store_that_unpickles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    # numcodecs refuses since 0.16; the rule must hold with older ones.
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    array = tmp_path / "x.zarr" / "mid_date"
    array.mkdir(parents=True)
    texts, evil = {"id": "vlen-utf8"}, {"id": "pickle"}
    coded = {"compressor": evil, "filters": [texts]} if part == "compressor" else {"filters": [texts, evil]}
    meta = {"zarr_format": 2, "shape": [2], "chunks": [2], "dtype": "|O", "fill_value": "", "order": "C"}
    (array.parent / ".zgroup").write_text('{"zarr_format": 2}')
    (array / ".zarray").write_text(json.dumps({**meta, "compressor": None, **coded}))
    (array / ".zattrs").write_text('{"_ARRAY_DIMENSIONS": ["mid_date"]}')
    (array / "0").write_bytes(pickle.dumps(Evil(tmp_path / "done")))
    with pytest.raises(StoreError, match=r"must be encoded by .* \(found pickle\)"):
        og.open_velocity(array.parent)
    assert not (tmp_path / "done").exists()


# --- paths ------------------------------------------------------------------------------------------------------------


def test_names_of_scenes_make_no_paths(world: World, tmp_path: Path) -> None:
    items = [item.full_copy() for item in world.items]
    for k, item in enumerate(items):
        item.id = f"../../../{item.id}/{k}"
    days = {item.id: k for k, item in enumerate(items)}
    cube = og.open_cube(
        items, "nir", loader=FakeReader(lambda scene, y, x: 1000 + 50 * np.cos(y / 40 + days[scene]) + x % 90)
    )
    lazy = og.track(cube, og.make_pairs(cube, days=(1, 60), same_orbit=False), og.NCC(chip=16, search=4, step=8))
    (tmp_path / "a/b/c/d").mkdir(parents=True)
    velocity = og.open_velocity(og.write(lazy, tmp_path / "a/b/c/d/v.zarr", progress=False))
    og.export.to_points(velocity, tmp_path / "a/b/c/d/points.csv")
    og.export.to_netcdf(velocity, tmp_path / "a/b/c/d/v.nc")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "a/b/c").iterdir()] == ["d"]
    assert not list(tmp_path.rglob("*L2A*"))


# --- secrets ----------------------------------------------------------------------------------------------------------

SIGNATURE, QUERY, PASSWORD, KEY = (f"pl4nted{name}" for name in ("Signature", "Query", "Password", "Key"))


def assert_clean(text: str, where: object) -> None:
    for secret in (SIGNATURE, QUERY, PASSWORD, KEY):
        at = text.find(secret)
        assert at < 0, f"{secret} in {where}: ...{text[max(0, at - 300) : at + 40]}"


def assert_no_secret_below(folder: Path) -> None:
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert files
    for path in files:
        assert_clean(path.read_bytes().decode("latin-1"), path)


@pytest.mark.parametrize("fault", ["", "missing image", "refused"])
def test_planted_secrets_are_found_nowhere(
    world: World, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    folder = world.items_file.parent
    missing = {f"/{Path(world.items[1].assets['nir'].href).relative_to(folder)}"} if fault == "missing image" else set()
    missing |= {"/signed.json"} if fault == "refused" else set()
    with range_server(folder, missing=missing) as server, caplog.at_level(logging.DEBUG):
        items = [item.full_copy() for item in world.items]
        for item in items:
            for asset in item.assets.values():
                asset.href = f"{server.url}/{Path(asset.href).relative_to(folder)}?X-Amz-Signature={SIGNATURE}&a=1"
        pystac.ItemCollection(items, clone_items=False).save_object(str(folder / "signed.json"))
        source = f"{server.url}/signed.json?sig={QUERY}".replace("http://", f"http://me:{PASSWORD}@")
        content = {
            "output": "out", "search": {"source": source}, "pairs": {"days": [5, 60], "same_orbit": False},
            "kernel": {"name": "ncc", "chip": 16, "search": 4, "step": 8}, "invert": None,
        }  # fmt: skip
        (tmp_path / "in").mkdir()
        (tmp_path / "in/run.yaml").write_text(yaml.safe_dump({**content, "output": str(tmp_path / "out")}))
        try:
            og.search(None, source=source)
            run.run(run.load(tmp_path / "in/run.yaml"), progress=False)
        except OgiveError as error:
            assert fault == "refused"
            assert_clean("".join(traceback.format_exception(error)), "traceback")
        else:
            assert fault != "refused"  # pairs of the missing image are flagged
            assert_no_secret_below(tmp_path / "out")
        (tmp_path / "cli").mkdir()
        for arguments in (
            ["search", "7,45,9,48", "--source", source, "-o", tmp_path / "cli/items.json"],
            ["run", tmp_path / "in/run.yaml"],
            ["explain", tmp_path / "in/run.yaml", "--json"],
        ):
            monkeypatch.setattr(sys, "argv", ["ogive", *map(str, arguments)])
            with pytest.raises(SystemExit):
                cli.main()
    told = capsys.readouterr()
    assert_clean(told.out, "standard output")
    assert_clean(told.err, "standard error")
    assert caplog.records
    for record in caplog.records:
        assert_clean(record.getMessage() + str(record.__dict__), f"log of {record.name}")
    (folder / "signed.json").unlink()
    if not fault:
        assert_no_secret_below(tmp_path / "cli")
        assert_no_secret_below(tmp_path / "out")


def test_a_password_in_an_address_of_an_image_is_refused_unsaid(world: World) -> None:
    with pytest.raises(ItemError, match="must not hold a user or a password") as caught:
        og.open_cube(naming(world, f"https://me:{PASSWORD}@127.0.0.1/a.tif"), "nir")
    assert_clean("".join(traceback.format_exception(caught.value)), "traceback")


# --- packages ---------------------------------------------------------------------------------------------------------


def test_the_audit_finds_what_is_too_old(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[1] / ".ci/audit.py"
    spec = importlib.util.spec_from_file_location("audit", path)
    assert spec is not None
    assert spec.loader is not None
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    found, unmet = audit.closure("ogive", {"test"})
    assert unmet == []
    assert {"numpy", "zarr", "urllib3", "pytest"} <= found.keys()
    assert audit.faults({"a": "1.9", "b": "2"}, {"a": ["1.10", "CVE-1"], "b": ["2", "CVE-2"]}) == [
        "a 1.9: CVE-1, mended in 1.10"
    ]
    assert audit.main() == 0
    assert "packages" in capsys.readouterr().out
