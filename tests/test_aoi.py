"""Every way to name an area gives the same geometry; every mistake has its own message."""

import json
import os
from pathlib import Path

import geopandas as gpd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from ogive.aoi import resolve_aoi
from ogive.errors import SearchError

DATA = Path(os.environ.get("OGIVE_DATA", Path(__file__).parents[2] / "shared" / "data"))
OUTLINES = DATA / "outlines"
BOX = (10.7, 46.7, 10.9, 46.9)
SQUARE = shapely.box(*BOX)


def feature(geometry):
    return {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(geometry)}


def collection(*geometries):
    return {"type": "FeatureCollection", "features": [feature(g) for g in geometries]}


@pytest.mark.parametrize(
    "aoi",
    [
        BOX,
        list(BOX),
        SQUARE,
        shapely.force_3d(SQUARE, 5.0),
        shapely.geometry.mapping(SQUARE),
        feature(SQUARE),
        collection(shapely.box(10.7, 46.7, 10.8, 46.9), shapely.box(10.8, 46.7, 10.9, 46.9)),
        json.dumps(feature(SQUARE)),
        gpd.GeoSeries([SQUARE], crs=4326),
        gpd.GeoDataFrame({"a": [1, 2]}, geometry=[SQUARE, None], crs=4326),
    ],
    ids=lambda a: type(a).__name__,
)
def test_same_area_in_every_form(aoi):
    found = resolve_aoi(aoi)
    assert found.equals(SQUARE)
    assert not found.has_z


@pytest.mark.parametrize("name", ["a.geojson", "a.gpkg", "a.shp"])
@pytest.mark.parametrize("kind", [str, Path])
def test_vector_files(name, kind, tmp_path):
    gpd.GeoDataFrame(geometry=[SQUARE], crs=4326).to_file(tmp_path / name)
    assert resolve_aoi(kind(tmp_path / name)).symmetric_difference(SQUARE).area < 1e-9


def test_map_projection_is_reprojected(tmp_path):
    utm = gpd.GeoSeries([SQUARE], crs=4326).to_crs(32632)
    assert utm.total_bounds.max() > 1e6
    assert resolve_aoi(utm).symmetric_difference(SQUARE).area < 1e-9
    utm.to_file(tmp_path / "utm.gpkg")
    assert resolve_aoi(tmp_path / "utm.gpkg").symmetric_difference(SQUARE).area < 1e-9


def test_antimeridian_box_is_split():
    found = resolve_aoi((179.0, 66.0, -178.0, 67.0))
    assert found.area == pytest.approx(3.0)
    assert found.intersects(shapely.Point(-179.5, 66.5))
    assert not found.intersects(shapely.Point(0, 66.5))


def test_invalid_polygon_is_repaired():
    bow = shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
    assert not bow.is_valid
    found = resolve_aoi(bow)
    assert found.is_valid
    assert found.area == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("aoi", "message"),
    [
        ((46.7, 100.0, 46.9, 101.0), "longitude comes first"),
        ((600000, 5100000, 610000, 5110000), "look like metres"),
        (shapely.box(600000, 5100000, 610000, 5110000), "look like metres"),
        ((10.9, 46.9, 10.7, 46.7), "south below north"),
        ((10.7, 46.7, 10.7, 46.9), "must have an area"),
        ((10.7, float("nan"), 10.9, 46.9), "must be finite"),
        (("a", 1, 2, 3), "must be four numbers"),
        ((1, 2, 3), "must be a box"),
        (7, "must be a box"),
        (None, "must be a box"),
        (shapely.Polygon(), "must not be empty"),
        (gpd.GeoSeries([], crs=4326), "must not be empty"),
        (gpd.GeoSeries([SQUARE]), "needs a coordinate system"),
        ({"type": "Polygon"}, "must be valid GeoJSON"),
        ('{"type": "Feature"', "must be valid GeoJSON"),
        ({"type": "FeatureCollection", "features": []}, "must not be empty"),
        ("nowhere.gpkg", "neither an RGI id nor an existing file"),
        ("RGI60-1.1", "must be an RGI id"),
        ("RGI60-11.03643' OR '1'='1", "must be an RGI id"),
    ],
    ids=str,
)
def test_mistakes(aoi, message):
    with pytest.raises(SearchError, match=message):
        resolve_aoi(aoi)


def test_file_that_is_no_vector_file(tmp_path):
    (tmp_path / "a.gpkg").write_text("nothing")
    with pytest.raises(SearchError, match="must be a vector file"):
        resolve_aoi(tmp_path / "a.gpkg")


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.floats(-179, 170),
    st.floats(-89, 80),
    st.floats(0.001, 9),
    st.floats(0.001, 9),
    st.sampled_from(["box", "json", "frame"]),
)
def test_bounds_are_kept(west, south, width, height, form):
    box = (west, south, west + width, south + height)
    geometry = shapely.box(*box)
    aoi = {"box": box, "json": feature(geometry), "frame": gpd.GeoSeries([geometry], crs=4326)}[form]
    assert resolve_aoi(aoi).bounds == pytest.approx(box)


@pytest.mark.real
@pytest.mark.parametrize(
    ("rgi_id", "path"),
    [
        ("RGI60-01.10689", "rgi60_01_columbia/01_rgi60_Columbia.shp"),
        ("RGI60-15.03410", "rgi60_15_everest/15_rgi60_glacier_outlines.gpkg"),
        ("RGI60-17.08409", "rgi60_17_exploradores"),
        ("RGI2000-v7.0-G-11-03116", "rgi7_hintereisferner/rgi7g_hef.shp"),
        ("RGI2000-v7.0-C-11-02192", "rgi7_hintereisferner"),
        ("RGI2000-v7.0-G-11-00630", "rgi7_alps_montblanc/Alpes_RGI7.shp"),
        ("RGI2000-v7.0-G-11-00630", "."),
    ],
)
def test_real_rgi_outline(rgi_id, path):
    found = resolve_aoi(rgi_id, OUTLINES / path)
    assert found.is_valid
    # Area from the outline in an equal-area projection against the area that the inventory states.
    file = next(f for f in _files(OUTLINES / path) if rgi_id in _ids(f))
    row = gpd.read_file(file).set_index(_column(file)).loc[rgi_id]
    stated = row["Area"] if "Area" in row else row["area_km2"]
    centre = found.representative_point()
    laea = f"+proj=laea +lat_0={centre.y} +lon_0={centre.x}"
    assert gpd.GeoSeries([found], crs=4326).to_crs(laea).area.iloc[0] / 1e6 == pytest.approx(float(stated), rel=2e-3)


def _files(path):
    return (
        [path]
        if path.is_file()
        else [f for f in sorted(path.rglob("rgi*/*")) + sorted(path.glob("*")) if f.suffix in (".shp", ".gpkg")]
    )


def _column(file):
    return next(c for c in gpd.read_file(file, rows=1).columns if c in ("RGIId", "rgi_id"))


def _ids(file):
    return set(gpd.read_file(file)[_column(file)])


@pytest.mark.real
def test_rgi_id_in_a_table():
    frame = gpd.read_file(OUTLINES / "rgi60_15_everest/15_rgi60_glacier_outlines.gpkg")
    assert resolve_aoi("RGI60-15.03410", frame).equals(frame.set_index("RGIId").loc["RGI60-15.03410"].geometry)
    with pytest.raises(SearchError, match="need the column 'rgi_id'"):
        resolve_aoi("RGI2000-v7.0-G-15-00001", frame)


@pytest.mark.real
def test_unknown_rgi_id_names_file_count_and_neighbour():
    path = OUTLINES / "rgi7_alps_montblanc" / "Alpes_RGI7.shp"
    with pytest.raises(
        SearchError, match=r"among the 162 outlines of .*Alpes_RGI7\.shp.*nearest id RGI2000-v7\.0-G-11-0063\d"
    ):
        resolve_aoi("RGI2000-v7.0-G-11-00639", path)


@pytest.mark.real
def test_outlines_of_the_other_version_or_missing():
    with pytest.raises(SearchError, match=r"need the column 'RGIId' of RGI 6\.0"):
        resolve_aoi("RGI60-11.00001", OUTLINES / "rgi7_alps_montblanc")
    with pytest.raises(SearchError, match="download it from NSIDC"):
        resolve_aoi("RGI60-11.00001", "/nowhere/rgi.gpkg")


@pytest.mark.real
def test_real_file_without_crs():
    with pytest.raises(SearchError, match="needs a coordinate system"):
        resolve_aoi(OUTLINES / "st_elias_rock" / "StEliasMtn_utm7v_rock.gmt")
