"""Step 1, where: an area drawn, typed or picked, and the scenes that can show it."""

from typing import Any

import geopandas as gpd
import ipyleaflet
import ipywidgets
import pandas as pd
from shapely.geometry import mapping, shape

from ...aoi import read_aoi, resolve_aoi
from ...errors import SearchError
from ...pathrow import query_pathrow
from . import _areas
from ._forms import button
from ._notice import Notice, guarded
from ._session import Session

_IDS = ("rgi_id", "RGIId")
"""Columns that hold the ids of the Randolph Glacier Inventory, versions 7 and 6."""


class Where:
    """Choose an area: type it, draw it, or click on an outline. Sets `session.aoi` and `config.search.aoi`.

    Parameters
    ----------
    session : Session
    outlines : path, optional
        Vector file of glacier outlines; each can be clicked.
    basemap : ipyleaflet layer, optional
        Default: none, so that no server is asked for anything.
    """

    title = "Where"

    def __init__(self, session: Session, *, outlines: Any = None, basemap: Any = None) -> None:
        self.session, self.notice, self.outlines = session, Notice(), outlines
        self.map = _areas.plain_map(basemap, "520px")
        self.map.add_class("ogive-where-map")
        drawing = {"shapeOptions": _areas.AREA}
        self.draw = ipyleaflet.DrawControl(
            rectangle=drawing, polygon=drawing, polyline={}, circlemarker={}, edit=False, remove=False
        )
        self.draw.on_draw(self.drawn)
        self.map.add(self.draw)
        self.map.on_interaction(self._pointed)
        self.text = ipywidgets.Text(
            placeholder="lon, lat · west, south, east, north · RGI id · file", layout={"width": "370px"},
            continuous_update=False,
        )  # fmt: skip
        self.text.add_class("ogive-aoi")
        self.button = button("Set area", "set-area", self.typed, icon="crosshairs", button_style="primary")
        self.told = ipywidgets.HTML()
        self.told.add_class("ogive-pathrow")
        self._area: Any = None
        side = ipywidgets.VBox(
            [ipywidgets.HTML("<h3>Area of interest</h3><p>Type it, draw a rectangle or polygon on the map"
                             + (", or click on a glacier" if outlines is not None else "") + ".</p>"),
             self.text, self.button, self.notice.widget, self.told],
            layout={"width": "400px", "padding": "0 0 0 16px"},
        )  # fmt: skip
        self.widget = ipywidgets.HBox([ipywidgets.VBox([self.map], layout={"flex": "1 1 0"}), side])
        session.observe(self.show, "aoi")
        self._begin()

    @guarded
    def _begin(self) -> None:
        """Show the outlines, and the area that a run file names."""
        if self.outlines is not None:
            self._add_outlines()
        if self.session.config.search.aoi is not None:
            self.choose(self.session.config.search.aoi)

    def _add_outlines(self) -> None:
        frame = _outlines(self.outlines)
        self.session.configure(search={"outlines": str(self.outlines)})
        layer = ipyleaflet.GeoJSON(
            data=frame.__geo_interface__, style=_areas.OUTLINE, hover_style={"fillOpacity": 0.35}, name="outlines"
        )
        layer.on_click(self.picked)
        self.map.add(layer)
        _areas.show_area(self.map, tuple(frame.total_bounds))

    @guarded
    def typed(self) -> None:
        """Take what is in the text field."""
        self.choose(read_aoi(self.text.value))

    @guarded
    def drawn(self, _: Any = None, *, action: str, geo_json: dict[str, Any]) -> None:
        """Take what was drawn."""
        if action == "created":
            self.draw.clear()
            self.choose(geo_json["geometry"])

    @guarded
    def picked(self, *, feature: dict[str, Any], **_: Any) -> None:
        """Take the outline that was clicked: its id if it has one, else its shape."""
        properties = feature.get("properties", {})
        found = next((properties[name] for name in _IDS if properties.get(name)), None)
        self.choose(feature["geometry"] if found is None else found)

    def choose(self, aoi: Any) -> None:
        """Take an area in any form that a run file has.

        Raises
        ------
        SearchError
            It cannot be understood.
        """
        if aoi in ("", None):
            raise SearchError("area", rule="is empty", fix="type an RGI id, four numbers, or draw on the map")
        area = resolve_aoi(aoi, self.outlines)
        kept = list(aoi) if isinstance(aoi, tuple) else mapping(shape(aoi)) if isinstance(aoi, dict) else aoi
        self.session.configure(search={"aoi": kept})
        self.session.aoi = area

    def show(self, _: Any = None) -> None:
        """Draw the area and say which scenes can show it."""
        area = self.session.aoi
        if area is None:
            return
        self._area = _areas.replace(self.map, self._area, _areas.layer(area, _areas.AREA, "area"))
        _areas.show_area(self.map, area.bounds)
        at = area.representative_point()
        self.told.value = _told(area, query_pathrow(at.x, at.y))

    def _pointed(self, **event: Any) -> None:
        if event.get("type") == "click":
            y, x = event["coordinates"]
            self.text.value = f"{(x + 180) % 360 - 180:.4f}, {y:.4f}"


def _outlines(source: Any) -> gpd.GeoDataFrame:
    frame = gpd.read_file(source).to_crs(4326)
    keep = [name for name in (*_IDS, "glac_name", "Name") if name in frame]
    return frame[[*keep, "geometry"]]


def _told(area: Any, scenes: pd.DataFrame) -> str:
    size = gpd.GeoSeries([area], crs=4326).to_crs("+proj=cea +datum=WGS84").area.iloc[0] / 1e6
    names = {"landsat": "Landsat path and row", "sentinel-2": "Sentinel-2 tile"}
    rows = "".join(
        f"<tr><td>{names[sensor]}</td><td><b>{name}</b></td><td>{inside:.0f} km</td></tr>"
        for sensor, name, inside in zip(scenes["sensor"], scenes["name"], scenes["inside"], strict=True)
    )
    west, south, east, north = area.bounds
    return (
        f"<p><b>{size:,.1f} km²</b>, {west:.3f} … {east:.3f} °E, {south:.3f} … {north:.3f} °N</p>"
        "<table class='ogive-table'><tr><th>Shown by</th><th></th><th>centre inside by</th></tr>" + rows + "</table>"
        "<p class='ogive-help'>Landsat by day, on its nominal orbit (± 5 km); tiles to the metre.</p>"
    )
