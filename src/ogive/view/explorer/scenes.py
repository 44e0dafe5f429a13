"""Step 2, scenes: what the archive holds, how much of the glacier each scene shows, and which ones are used."""

import math
from collections.abc import Callable
from typing import Any

import ipywidgets
import pandas as pd
import pystac
from shapely.geometry import shape

from ... import catalog
from ...cover import each_cover, ice_within, thumbnails
from ...errors import SearchError
from ...run import SearchSection, find
from ...search import scene_table
from . import _areas
from ._forms import Form, button
from ._notice import Notice, guarded
from ._session import Session
from ._table import TickTable


def _share(given: float) -> str:
    return "" if given is None or math.isnan(given) else f"{100 * given:.0f} %"


def _number(given: float) -> str:
    return "" if given is None or math.isnan(given) else f"{given:.0f}"


COLUMNS: dict[str, tuple[str, str, Callable[[Any], str]]] = {
    "datetime": ("date", "92px", lambda t: f"{t:%Y-%m-%d}"),
    "platform": ("platform", "1.3fr", str),
    "relative_orbit": ("orbit", "1fr", str),
    "sun_elevation": ("sun °", "0.8fr", _number),
    "sun_azimuth": ("azimuth °", "1fr", _number),
    "cloud_cover": ("cloud %", "0.9fr", _number),
    "overlap": ("area", "0.8fr", _share),
    "cloud": ("on ice: cloud", "1.2fr", _share),
    "snow": ("snow", "0.8fr", _share),
    "usable": ("usable", "0.9fr", _share),
}


class Scenes:
    """Search scenes, look at them, tick them. Sets `session.items`, `session.chosen` and `config.search`.

    Parameters
    ----------
    session : Session
    outlines : path, optional
        Ice outlines: cloud and snow are then counted over the ice in the area, not over the area.
    basemap : ipyleaflet layer, optional
    """

    title = "Scenes"

    def __init__(self, session: Session, *, outlines: Any = None, basemap: Any = None) -> None:
        self.session, self.notice, self.outlines = session, Notice(), outlines
        self.frame = pd.DataFrame()
        given = {} if session.config is None else session.config.search.model_dump()
        self.form = Form(SearchSection, given, ("aoi", "outlines", "leave_out", "files", "limit"))
        self.form.controls["datetime"].placeholder = "2021-06/2022-10"
        self.form.controls["max_cloud"].placeholder = "60"
        sensors = [("both", None), *((name, name) for name in catalog.sensors())]
        self.form.controls["sensor"] = _areas.choice(sensors, given.get("sensor"))
        self.form.controls["sensor"].add_class("ogive-sensor")
        source = ipywidgets.Combobox(value=str(given.get("source", "earth-search")), options=list(catalog.endpoints()))
        source.add_class("ogive-source")
        self.form.controls["source"] = source
        self.search_button = button("Search", "search", self.search, icon="search")
        self.cover_button = button("Cloud and snow on the ice", "cover", self.cover, icon="cloud")
        self.progress = ipywidgets.IntProgress(layout={"width": "160px", "visibility": "hidden"})
        self.table = TickTable(COLUMNS, self.ticked, self.show)
        self.map = _areas.plain_map(basemap, "400px")
        self.map.add_class("ogive-scene-map")
        self._area: Any = None
        self._frame: Any = None
        self._picture: Any = None
        self.shown = ipywidgets.HTML("Click on a date to see the scene.")
        self.shown.add_class("ogive-shown")
        fields = [self._labelled(name) for name in ("source", "datetime", "sensor", "max_cloud")]
        self.widget = ipywidgets.VBox([
            ipywidgets.HBox([*fields, self.search_button, self.cover_button, self.progress],
                            layout={"align_items": "flex-end", "flex_flow": "row wrap"}),
            self.notice.widget,
            ipywidgets.HBox([
                ipywidgets.VBox([self.table.widget], layout={"flex": "1.75 1 0"}),
                ipywidgets.VBox([self.map, self.shown], layout={"flex": "1 1 0", "padding": "0 0 0 12px"}),
            ]),
        ])  # fmt: skip
        session.observe(self._moved, "aoi")

    @guarded
    def search(self) -> None:
        """Search the archive; every scene that is found is ticked."""
        self.notice.news("Searching …")
        values = {**self.form.values(), "leave_out": []}
        self.session.configure(search=values)
        if self.session.aoi is None and values["source"] in catalog.endpoints():
            raise SearchError("area of interest", rule="is not set", fix="choose one in the first step")
        items = find(self.session.config)
        self.frame = scene_table(items, self.session.aoi).set_index("id")
        self.frame[["cloud", "snow", "usable"]] = math.nan
        self.session.items = items
        self.table.put(self.frame, self.frame.index)
        self.ticked()
        self.notice.news(f"{len(items)} scenes found.")

    @guarded
    def cover(self) -> None:
        """Read each scene coarsely: cloud and snow on the ice."""
        if self.session.items is None:
            raise SearchError("scenes", rule="are not searched yet", fix="press Search")
        area = ice_within(self.outlines, self.session.aoi) if self.session.aoi is not None else _common(self.session)
        self.progress.max, self.progress.value = len(self.session.items), 0
        self.progress.layout.visibility = "visible"
        for name, found in each_cover(self.session.items, area):
            self.frame.loc[name, ["cloud", "snow", "usable"]] = [found[k] for k in ("cloud", "snow", "usable")]
            self.progress.value += 1
        self.progress.layout.visibility = "hidden"
        self.table.put(self.frame, self.table.ticked)
        unknown = int(self.frame["usable"].isna().sum())
        told = f"; {unknown} scenes have no quality band" if unknown else ""
        self.notice.news(f"Cloud and snow of {len(self.frame) - unknown} scenes over {_what(self.outlines)}{told}.")

    def ticked(self) -> None:
        """Use the ticked scenes."""
        use = [name for name in self.frame.index if name in self.table.ticked]
        self.session.configure(search={"leave_out": [name for name in self.frame.index if name not in set(use)]})
        self.session.chosen = tuple(use)

    @guarded
    def show(self, name: str) -> None:
        """Show one scene on the map: its footprint and a small picture."""
        item = next(item for item in self.session.items if item.id == name)
        outline = shape(item.geometry)
        self._frame = _areas.replace(self.map, self._frame, _areas.layer(outline, _areas.FOOTPRINT, "footprint"))
        area = outline if self.session.aoi is None else self.session.aoi
        seen = thumbnails([item], area)
        image = seen["image"].isel(time=0).values
        west, south, east, north = area.bounds
        self._picture = _areas.replace(
            self.map, self._picture, _areas.picture(image, ((south, west), (north, east)), "scene")
        )
        self.shown.value = f"<b>{item.id}</b>"

    def _moved(self, _: Any) -> None:
        area = self.session.aoi
        if area is not None:
            self._area = _areas.replace(self.map, self._area, _areas.layer(area, _areas.AREA, "area"))
            _areas.show_area(self.map, area.bounds, 340)

    def _labelled(self, name: str) -> ipywidgets.VBox:
        made = self.form.controls[name]
        made.layout.width = "220px" if name == "source" else "130px"
        made.tooltip = self.form.fields[name].help
        return ipywidgets.VBox([ipywidgets.HTML(f"<label>{name.replace('_', ' ')}</label>"), made])


def chosen_items(session: Session) -> pystac.ItemCollection:
    """The ticked scenes.

    Raises
    ------
    SearchError
        None are.
    """
    found = [] if session.items is None else [item for item in session.items if item.id in set(session.chosen)]
    if not found:
        raise SearchError("scenes", rule="none is ticked", fix="search, and tick, in the second step")
    return pystac.ItemCollection(found, clone_items=False)


def _common(session: Session) -> Any:
    """The area of the first scene, where none was chosen."""
    return shape(next(iter(session.items)).geometry)


def _what(outlines: Any) -> str:
    return "the area" if outlines is None else "the ice in the area"
