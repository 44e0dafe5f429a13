"""Paths, rows and tiles: against the centres and grids of real scenes, and against what must hold everywhere."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Point, shape

from ogive.errors import ParameterError
from ogive.pathrow import query_pathrow, tile_bounds, wrs2_centre

GEOD = pyproj.Geod(ellps="WGS84")


def features(value: Any) -> Iterator[dict[str, Any]]:
    """Every STAC item in a document."""
    if isinstance(value, dict) and value.get("type") == "Feature" and "properties" in value:
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from features(part)


@pytest.fixture(scope="module")
def real(data: Path) -> list[dict[str, Any]]:
    """Every real item, each id once."""
    found = {f["id"]: f for file in (data / "stac").rglob("*.json") for f in features(json.loads(file.read_text()))}
    return list(found.values())


@pytest.fixture(scope="module")
def landsat(real: list[dict[str, Any]]) -> list[tuple[str, int, int, Any]]:
    """Platform code, path, row and footprint of every real Landsat item."""
    rows = [(f["id"], f["properties"].get("landsat:wrs_path"), f["properties"].get("landsat:wrs_row"), f) for f in real]
    return [(name[:4], int(path), int(row), shape(f["geometry"])) for name, path, row, f in rows if path is not None]


@pytest.mark.real
def test_every_real_landsat_scene_is_found_at_its_centre(landsat: list[tuple[str, int, int, Any]]) -> None:
    assert len(landsat) > 110
    for platform, path, row, footprint in landsat:
        if platform == "LE07":  # left its paths in 2022
            continue
        found = query_pathrow(footprint.centroid.x, footprint.centroid.y)
        assert f"{path:03}{row:03}" == found["name"].iloc[0]


@pytest.mark.real
def test_centres_of_landsat_8_and_9_agree_with_the_published_orbit(landsat: list[tuple[str, int, int, Any]]) -> None:
    along, across = [], []
    for platform, path, row, footprint in landsat:
        if platform not in ("LC08", "LC09"):
            continue
        lon, lat = (float(k) for k in wrs2_centre(path, row))
        heading, _, _ = GEOD.inv(lon, lat, *(float(k) for k in wrs2_centre(path, row + 0.05)))
        azimuth, _, distance = GEOD.inv(lon, lat, footprint.centroid.x, footprint.centroid.y)
        along.append(distance / 1000 * np.cos(np.radians(azimuth - heading)))
        across.append(distance / 1000 * np.sin(np.radians(azimuth - heading)))
    assert len(along) > 80
    assert np.abs(along).max() < 1.5
    assert np.abs(across).max() < 5  # the satellites keep their path within 5 km


@pytest.mark.real
def test_nominal_footprints_cover_real_ones(landsat: list[tuple[str, int, int, Any]]) -> None:
    shares = []
    for platform, path, row, footprint in landsat:
        if platform in ("LC08", "LC09"):
            table = query_pathrow(footprint.centroid.x, footprint.centroid.y).set_index("name")
            nominal = table.loc[f"{path:03}{row:03}", "geometry"]
            shares.append(nominal.intersection(footprint).area / nominal.union(footprint).area)
    assert min(shares) > 0.9


@pytest.mark.real
def test_every_real_sentinel_2_tile_is_found_and_its_grid_is_exact(real: list[dict[str, Any]]) -> None:
    seen = set()
    for feature in real:
        name = re.search(r"_T?(\d\d[A-Z]{3})_", feature["id"])
        if not feature["id"].startswith("S2") or name is None:
            continue
        point = shape(feature["geometry"]).representative_point()
        found = query_pathrow(point.x, point.y).set_index("name")
        assert name[1] in found.index
        for asset in feature["assets"].values():
            a, size = asset.get("proj:transform"), asset.get("proj:shape")
            if a and size and size[0] >= 10980:
                zone, north = int(name[1][:2]), name[1][2] >= "N"
                utm = pyproj.Transformer.from_crs(4326, (32600 if north else 32700) + zone, always_xy=True)
                x, y = utm.transform(point.x, point.y)
                corner = a[2], a[5] - size[0] * a[0], a[2] + size[1] * a[0], a[5]
                square = (round((corner[3] - 100_000) / 100_000), round(corner[0] / 100_000))
                assert tile_bounds(zone, north, square) == corner
                assert corner[0] <= x <= corner[2]
                assert corner[1] <= y <= corner[3]
                seen.add(name[1])
    assert seen >= {"47XML", "47XMJ", "46XES", "46XER", "06VVN", "28QCH", "27VWK", "19DEE"}


@given(st.floats(-179.9, 179.9), st.floats(-79, 81.5))
def test_every_place_is_covered_and_inside_what_is_said(lon: float, lat: float) -> None:
    found = query_pathrow(lon, lat)
    assert {"landsat", "sentinel-2"} == set(found["sensor"])
    assert (found["inside"] >= 0).all()
    assert found["name"].is_unique
    landsat = found[found["sensor"] == "landsat"]
    assert landsat["inside"].is_monotonic_decreasing
    assert (landsat["name"].str[:3].astype(int) == landsat["path"]).all()
    for _, row in found[found["inside"] > 2].iterrows():
        shifts = [Point(lon + turn, lat) for turn in (-360, 0, 360)]
        assert any(row["geometry"].contains(point) for point in shifts)


def test_tiles_that_overlap_are_both_found() -> None:
    # 300 to 400 km east is square L, whose tile reaches 9.8 km into square M.
    utm = pyproj.Transformer.from_crs(32632, 4326, always_xy=True)
    names = [set(query_pathrow(*utm.transform(x, 5_150_000))["name"]) for x in (395_000, 405_000, 415_000)]
    assert {"32TLS"} <= names[0]
    assert "32TMS" not in names[0]
    assert {"32TLS", "32TMS"} <= names[1]
    assert "32TLS" not in names[2]
    assert {"32TMS"} <= names[2]
    north = query_pathrow(*utm.transform(450_000, 5_195_000))
    assert {"32TMS", "32TMT"} == set(north[north["sensor"] == "sentinel-2"]["name"])


def test_beyond_the_tiles_only_landsat() -> None:
    assert set(query_pathrow(100.0, -81.0)["sensor"]) == {"landsat"}
    assert query_pathrow(0.0, -89.0).empty


def test_longitudes_beyond_180_mean_the_same() -> None:
    assert query_pathrow(190.0, 65.0)["name"].tolist() == query_pathrow(-170.0, 65.0)["name"].tolist()


@pytest.mark.parametrize("point", [(8.0, 91.0), (float("nan"), 46.0), (-200.0, 0.0)])
def test_no_place_of_the_earth(point: tuple[float, float]) -> None:
    with pytest.raises(ParameterError, match="longitude first"):
        query_pathrow(*point)
