"""One answer from every kind of source, against a real STAC API server and real recorded items."""

import importlib
import itertools
import json
import math
import os
import shutil
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pystac
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from ogive import catalog
from ogive.errors import ItemError, ParameterError, SearchError
from ogive.local import write_items
from ogive.search import scene_table, search
from ogive.testing.servers import range_server, stac_server

DATA = Path(os.environ.get("OGIVE_DATA", Path(__file__).parents[2] / "shared" / "data"))
S2 = DATA / "stac/itslive_monitoring_s2/S2B_19DEE_20231129_0_L1C_pages.json"
LANDSAT = DATA / "stac/itslive_monitoring_landsat_138041/landsat_scene1_return_itemcollection.json"
AREA = (-67.5, -68.0, -67.0, -67.8)


def make(day, *, item_id=None, west=10.0, cloud=10.0, collection="sentinel-2-l2a", **props):
    when = datetime(2021, 1, 1, 10, tzinfo=UTC) + timedelta(days=day)
    level = {"sentinel-2-l1c": "L1C", "sentinel-2-l2a": "L2A"}.get(collection, "X")
    item_id = item_id or f"S2A_32TPS_{when:%Y%m%d}_0_{level}"
    box = shapely.box(west, 46.0, west + 1, 47.0)
    fields = {"platform": "sentinel-2a"} | ({} if cloud is None else {"eo:cloud_cover": cloud}) | props
    return pystac.Item(item_id, shapely.geometry.mapping(box), list(box.bounds), when, fields, collection=collection)


def ids(items):
    found = [item.id for item in items]
    assert found
    return found


@pytest.fixture(scope="module")
def recorded():
    items = search(None, source=S2)
    assert len(items.items) == 148
    return items


@pytest.fixture(scope="module")
def api(recorded):
    with stac_server(recorded) as server:
        yield server


@pytest.fixture(autouse=True)
def _fast_retries(monkeypatch):
    monkeypatch.setattr("ogive._sources.BACKOFF", 0.01)


def static_catalog(items, folder):
    root = pystac.Catalog("root", "scenes")
    extent = pystac.Extent(pystac.SpatialExtent([[-180, -90, 180, 90]]), pystac.TemporalExtent([[None, None]]))
    child = pystac.Collection("sentinel-2-l1c", "level 1C", extent)
    root.add_child(child)
    child.add_items(item.clone() for item in items)
    root.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)


@pytest.fixture(scope="module")
def places(recorded, tmp_path_factory):
    """The recorded items in every kind of file and folder."""
    import rustac

    folder = tmp_path_factory.mktemp("places")
    write_items(recorded, folder / "items.json")
    (folder / "folder/sub").mkdir(parents=True)
    for number, item in enumerate(recorded):
        where = folder / "folder" / ("sub" if number % 2 else "")
        (where / f"{item.id}.json").write_text(json.dumps(item.to_dict(transform_hrefs=False)))
    (folder / "folder/other.json").write_text('{"type": "Polygon"}')
    rustac.write_sync(str(folder / "items.parquet"), [item.to_dict(transform_hrefs=False) for item in recorded])
    static_catalog(recorded, folder / "static")
    return folder


# ---------------------------------------------------------------------------------------------------- sources agree


@pytest.mark.real
@pytest.mark.parametrize(
    "query",
    [
        {"aoi": AREA},
        {"aoi": AREA, "datetime": "2023-03/2023-09", "max_cloud": 60},
        {"aoi": AREA, "datetime": "2022-09-01/..", "sensor": "sentinel-2-l1c", "limit": 7},
        {"aoi": None, "datetime": "2023", "sensor": "sentinel-2"},
    ],
    ids=["area", "dates and cloud", "limit", "year"],
)
def test_every_source_gives_the_same_items(query, recorded, api, places):
    expected = search(source=recorded, **query)
    sources = [api.url, S2, places / "items.json", places / "folder", str(places / "items.parquet")]
    sources += [places / "static", pystac.Catalog.from_file(places / "static/catalog.json")]
    for source in [*sources, list(reversed(list(recorded)))]:
        found = search(source=source, **query)
        assert ids(found) == ids(expected), source
        for item, wanted in zip(found, expected, strict=True):
            assert catalog.scene_geobox(item, "nir") == catalog.scene_geobox(wanted, "nir")
            assert item.assets["nir"].href == wanted.assets["nir"].href
            assert abs(item.datetime - wanted.datetime) < timedelta(milliseconds=1)
    dates = [item.datetime for item in expected]
    assert dates == sorted(dates)


@pytest.mark.real
def test_static_catalog_and_items_over_http(recorded, tmp_path):
    few = list(recorded)[:5]
    static_catalog(few, tmp_path / "static")
    write_items(few, tmp_path / "items.geojson")
    with range_server(tmp_path, fail_first=1) as server:
        for name in ("static/catalog.json", "items.geojson"):
            assert ids(search(AREA, source=f"{server.url}/{name}")) == ids(search(AREA, source=few))
        assert {request.status for request in server.requests} == {503, 200}


@pytest.mark.real
def test_landsat_recording():
    items = search(None, "2023-12/2024-01", source=LANDSAT, sensor="landsat-c2-l1", max_cloud=40)
    table = scene_table(items, (85.9, 27.8, 86.1, 28.0))
    assert len(table) > 5
    assert table["datetime"].between("2023-12-01", "2024-02-01").all()
    assert (table["cloud_cover"] <= 40).all()
    assert set(table["relative_orbit"]) == {"138041"}
    with pytest.raises(SearchError, match=r"93 candidates; removed 93 by sensor"):
        search(None, source=LANDSAT, sensor="sentinel-2")


# ---------------------------------------------------------------------------------------------------- the API itself


@pytest.mark.real
def test_pages_are_followed(recorded, api):
    before = len(api.requests)
    found = search(None, source=api.url)
    posts = [request for request in api.requests[before:] if (request.method, request.path) == ("POST", "/search")]
    assert len(posts) == 2  # 148 items, 100 in a page
    assert ids(found) == ids(recorded)


@pytest.mark.real
def test_small_pages(recorded, api, monkeypatch):
    monkeypatch.setattr("ogive._sources.PAGE", 25)
    before = len(api.requests)
    assert ids(search(None, source=api.url)) == ids(recorded)
    assert sum(request.path == "/search" for request in api.requests[before:]) == 6


@pytest.mark.real
def test_server_that_fails_twice_is_asked_again(recorded):
    few = list(recorded)[:3]
    with stac_server(few, fail_first=2) as server:
        assert ids(search(None, source=server.url)) == ids(few)
        assert server.statuses("/search") == [503, 503, 200]


@pytest.mark.real
def test_server_that_keeps_failing(recorded):
    with stac_server(list(recorded)[:3], fail_first=1000) as server:
        with pytest.raises(SearchError, match=r"at most 5 retries.*503"):
            search(None, source=server.url)
        assert server.statuses("/") == [503] * 6


def test_named_endpoint_sends_its_own_collections(monkeypatch):
    endpoints = catalog.endpoints()
    with stac_server([make(1), make(2, collection="sentinel-2-l1c"), make(3)]) as server:
        name = {"sentinel-2-l2a": "sentinel-2-l2a", "sentinel-2-l1c": "sentinel-2-l1c"}
        own = catalog.Endpoint("usgs", server.url, name, None)
        monkeypatch.setattr("ogive.catalog.endpoints", lambda: {**endpoints, "usgs": own})
        assert ids(search((10, 46, 11, 47), source="usgs", sensor="sentinel-2-l1c")) == ["S2A_32TPS_20210103_0_L1C"]
        assert ids(search((10, 46, 11, 47), source="usgs")) == ["S2A_32TPS_20210102_0_L2A", "S2A_32TPS_20210104_0_L2A"]
        with pytest.raises(SearchError, match=r"collection of landsat"):
            search(None, source="usgs", sensor="landsat")


def test_intake_reader_searches():
    with stac_server([make(1), make(40)]) as server:
        reader = catalog.open_catalog("stac")["earth-search"]
        reader.data.url = server.url
        assert ids(reader.read(datetime="2021-01", sensor="sentinel-2")) == ["S2A_32TPS_20210102_0_L2A"]


def test_long_outline_is_sent_as_its_hull():
    ring = shapely.Point(10.5, 46.5).buffer(0.3, quad_segs=1000)
    assert shapely.get_num_coordinates(ring) > 500
    with stac_server([make(1), make(2, west=20.0)]) as server:
        assert ids(search(ring, source=server.url)) == ["S2A_32TPS_20210102_0_L2A"]


def test_address_without_stac(tmp_path):
    (tmp_path / "a.json").write_text('{"type": "Polygon"}')
    (tmp_path / "b.json").write_text("hello")
    with range_server(tmp_path, missing=["/c.json"]) as server:
        for name, message in (
            ("a", "must hold STAC items"),
            ("b", "must answer with STAC"),
            ("c", "must answer with STAC"),
        ):
            with pytest.raises(SearchError, match=message):
                search(None, source=f"{server.url}/{name}.json")


# ------------------------------------------------------------------------------------------------------------ filters


def test_datetime_ends_are_included():
    items = [make(day) for day in range(0, 70, 5)]
    assert len(ids(search(None, "2021-01", source=items))) == 7
    assert len(ids(search(None, "2021-01/2021-02", source=items))) == 12
    assert len(ids(search(None, "2021-02-05/..", source=items))) == 7
    assert len(ids(search(None, "../2021-02-05", source=items))) == 8
    assert ids(search(None, items[3].datetime, source=items)) == [items[3].id]
    assert len(ids(search(None, (items[1].datetime, items[3].datetime), source=items))) == 3
    for wrong in ("soon", "2021/2022/2023", "2022/2021"):
        with pytest.raises(ParameterError, match="datetime"):
            search(None, wrong, source=items)


def test_message_counts_what_each_filter_removed():
    items = [make(0, cloud=50.0), make(1, cloud=90.0), make(2, cloud=None), make(3, west=50.0), make(400)]
    items += [make(5, item_id="x", collection=None, platform="sentinel-1a")]
    with pytest.raises(SearchError) as caught:
        search((10.2, 46.2, 10.4, 46.4), "2021", sensor="sentinel-2", max_cloud=20, source=items)
    for part in (
        "6 candidates",
        "2 by cloud cover",
        "1 by unknown cloud cover",
        "1 by datetime",
        "1 by area of interest",
        "1 by unknown sensor",
    ):
        assert part in str(caught.value)


def test_two_levels_in_one_file_give_every_scene_once():
    both = [make(day, collection=f"sentinel-2-{level}") for day in (1, 2) for level in ("l1c", "l2a")]
    assert {item.collection_id for item in search(None, source=both)} == {"sentinel-2-l2a"}
    assert {item.collection_id for item in search(None, source=both, sensor="sentinel-2-l1c")} == {"sentinel-2-l1c"}
    assert len(ids(search(None, source=both[::2], sensor="sentinel-2"))) == 2


def test_duplicates_keep_the_latest_update():
    old, new = make(1, updated="2021-02-01T00:00:00Z"), make(1, updated="2022-02-01T00:00:00Z")
    for order in itertools.permutations([old, new, make(2)]):
        found = search(None, source=list(order))
        assert len(ids(found)) == 2
        assert found[0].properties["updated"].startswith("2022")


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    days=st.lists(st.integers(0, 600), min_size=1, max_size=12),
    clouds=st.lists(st.floats(0, 100), min_size=12, max_size=12),
    limit=st.one_of(st.none(), st.integers(1, 15)),
    shuffle=st.randoms(use_true_random=False),
)
def test_order_of_the_source_does_not_matter(days, clouds, limit, shuffle):
    items = [make(day, cloud=cloud) for day, cloud in zip(dict.fromkeys(days), clouds, strict=False)]
    expected = sorted((i for i in items if i.properties["eo:cloud_cover"] <= 70), key=lambda i: i.datetime)[:limit]
    shuffle.shuffle(items)
    if expected:
        assert ids(search(None, source=items, max_cloud=70, limit=limit)) == ids(expected)
    else:
        with pytest.raises(SearchError, match="by cloud cover"):
            search(None, source=items, max_cloud=70, limit=limit)


@pytest.mark.parametrize("bad", [{"max_cloud": 101}, {"max_cloud": -1}, {"limit": 0}, {"sensor": "sentinel-7"}])
def test_impossible_parameters(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        search(None, source=[make(1)], **bad)


def test_sources_that_do_not_exist(tmp_path):
    with pytest.raises(SearchError, match="must be an endpoint"):
        search(None, source="earth-serch")
    with pytest.raises(SearchError, match="a folder without any"):
        search(None, source=tmp_path)
    with pytest.raises(SearchError, match=r"must hold pystac\.Item"):
        search(None, source=[{"id": 1}])
    with pytest.raises(SearchError, match="must be an endpoint"):
        search(None, source=7)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SearchError, match=r"bad\.json: must be JSON"):
        search(None, source=tmp_path)
    with pytest.raises(SearchError, match="no candidate in the source"):
        search(None, source=[])


def test_odata_of_another_mission_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"@odata.context": "x", "value": [{"Name": "S1A_IW_GRDH_1SDV.SAFE"}]}')
    with pytest.raises(SearchError, match="must be a Sentinel-2 MSI product"):
        search(None, source=tmp_path / "a.json")


def test_parquet_without_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "rustac", None)
    with pytest.raises(SearchError, match=r"ogive\[search\]"):
        search(None, source=tmp_path / "a.parquet")


def test_relative_hrefs_become_absolute(tmp_path):
    item = make(1)
    item.add_asset("nir", pystac.Asset("./tiles/B08.tif"))
    (tmp_path / "a.json").write_text(json.dumps(item.to_dict(include_self_link=False)))
    assert search(None, source=tmp_path / "a.json")[0].assets["nir"].href == str(tmp_path / "tiles/B08.tif")


# --------------------------------------------------------------------------------------------------------- the table


def test_table_of_known_scenes():
    items = [
        make(0, **{"sat:relative_orbit": 22, "view:sun_azimuth": 160.5, "view:sun_elevation": 20.0}),
        make(3, west=10.5),
    ]
    table = scene_table(items, (10.25, 46.2, 10.75, 46.4))
    columns = (
        "id datetime sensor platform relative_orbit sun_azimuth sun_elevation cloud_cover cloud_cover_land overlap"
    )
    assert list(table) == [*columns.split(), "processing_baseline", "epsg"]
    assert isinstance(table.index, pd.RangeIndex)
    assert table["datetime"].dtype == "datetime64[ns]"
    assert table["datetime"][0] == pd.Timestamp("2021-01-01T10:00")
    assert table["relative_orbit"].tolist() == ["R022", ""]
    assert table["sun_azimuth"][0] == 160.5
    np.testing.assert_allclose(table["overlap"], [1.0, 0.5], atol=2e-3)
    assert table["epsg"].isna().all()
    assert scene_table(items)["overlap"].isna().all()


def test_table_of_no_scenes_has_the_columns():
    assert list(scene_table([])) == list(scene_table([make(1)]))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(west=st.floats(-170, 170), south=st.floats(-85, 84), part=st.floats(0.0, 1.0))
def test_overlap_is_a_share_of_area(west, south, part):
    item = make(1)
    item.geometry = shapely.geometry.mapping(shapely.box(west, south, west + 1, south + 1))
    overlap = scene_table([item], (west + part, south, west + part + 1, south + 1))["overlap"][0]
    # Along a parallel every degree has the same area.
    assert overlap == pytest.approx(1 - part, abs=0.02)
    assert 0 <= overlap <= 1


def test_overlap_far_away_and_of_a_point():
    item = make(1)
    assert scene_table([item], (-170.0, -47.0, -169.0, -46.0))["overlap"][0] == 0.0
    assert scene_table([item], shapely.Point(10.5, 46.5))["overlap"][0] == 1.0
    item.geometry, item.bbox = None, [10.0, 46.0, 0.0, 11.0, 47.0, 3000.0]
    assert scene_table([item], (10.2, 46.2, 10.4, 46.4))["overlap"][0] == 1.0


@pytest.mark.real
def test_real_overlap_of_two_orbits(recorded):
    table = scene_table(recorded, AREA)
    assert table["overlap"].between(0, 1).all()
    means = table.groupby("relative_orbit")["overlap"].median()
    # Orbit 81 sees another corner of tile 19DEE than orbit 138.
    assert means["R138"] > 0.99
    assert means["R081"] < 0.01
    assert set(table["epsg"]) == {32719}


def test_item_without_date():
    item = make(1)
    item.datetime = None
    with pytest.raises(ItemError, match="needs a date"):
        scene_table([item])
    item.properties["start_datetime"] = "2021-01-02T00:00:00Z"
    item.properties["end_datetime"] = "2021-01-03T00:00:00Z"
    assert scene_table([item])["datetime"][0] == pd.Timestamp("2021-01-02")
    assert math.isnan(scene_table([item])["cloud_cover_land"][0])


# ----------------------------------------------------------------------------------------------------- test servers


def fetch(url, start=None, stop=None, method="GET"):
    headers = (
        {}
        if start is None and stop is None
        else {"Range": f"bytes={'' if start is None else start}-{'' if stop is None else stop}"}
    )
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=10) as answer:
        return answer.status, answer.read(), answer.headers


def test_range_server_is_byte_exact(tmp_path):
    content = np.random.default_rng(0).bytes(10_000)
    (tmp_path / "a b.bin").write_bytes(content)
    with range_server(tmp_path) as server:
        url = server.url + "/a%20b.bin"
        assert fetch(url)[:2] == (200, content)
        assert fetch(url, 10, 19)[:2] == (206, content[10:20])
        assert fetch(url, 9_990)[:2] == (206, content[9_990:])
        assert fetch(url, None, 7)[:2] == (206, content[-7:])
        assert fetch(url, 9_990, 99_999)[1] == content[9_990:]
        assert fetch(url, 5, 6)[2]["Content-Range"] == "bytes 5-6/10000"
        status, body, headers = fetch(url, method="HEAD")
        assert (status, body, headers["Content-Length"]) == (200, b"", "10000")
        with pytest.raises(urllib.error.HTTPError, match="416"):
            fetch(url, 10_000, 10_001)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(server.url + "/../secret")
    with pytest.raises(urllib.error.URLError):
        fetch(url)


def test_range_server_fails_on_order(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with range_server(tmp_path, missing={"/b"}, fail_first=2) as server:
        for expected in ("503", "503"):
            with pytest.raises(urllib.error.HTTPError, match=expected):
                fetch(server.url + "/a")
        assert fetch(server.url + "/a")[1] == b"a"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(server.url + "/b")
        assert server.statuses("/a") == [503, 503, 200]


@pytest.mark.real
def test_range_server_serves_gdal_in_parts(tmp_path):
    import rasterio

    source = DATA / "masks/s2_l2a_29RKH_cog/B08.tif"
    shutil.copy(source, tmp_path / "B08.tif")
    window = rasterio.windows.Window(600, 500, 64, 64)
    options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif"}
    with range_server(tmp_path) as server, rasterio.Env(**options):
        with rasterio.open(f"/vsicurl/{server.url}/B08.tif") as remote, rasterio.open(source) as local:
            pixels = remote.read(1, window=window)
            np.testing.assert_array_equal(pixels, local.read(1, window=window))
        assert pixels.std() > 0
        assert 206 in server.statuses("/B08.tif")


def test_stac_server_reports_a_failed_start():
    servers = importlib.import_module("ogive.testing.servers")
    item = make(1)
    item.to_dict = lambda **kwargs: {"type": "nonsense"}
    with pytest.raises(RuntimeError, match="rustac did not start"), servers.stac_server([item]):
        pass
