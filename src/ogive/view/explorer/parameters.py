"""Step 4, parameters: every field of the kernel, of the filters and of the series, and one tile to try them on."""

from typing import Any

import ipywidgets

from ... import filters
from ...cover import thumbnails
from ...errors import PairError, ParameterError
from ...grid import geobox_of
from ...itslive import itslive_cubes
from ...kernels import KERNELS, Custom, Kernel
from ...run import CubeSection, InvertSection, RunConfig, StableSection, prepare
from ...store import open_velocity
from ...summary import FILTERS
from ...tile import try_tile
from ...track import described
from ..jobs import tile_map
from . import _areas
from ._forms import Form, button
from ._notice import Notice, guarded
from ._session import Session
from .scenes import chosen_items

READY = "its_live"
"""The choice that matches nothing: velocities that somebody has made."""
OWN = "own function"
_NAMES = {
    "ncc": "normalised cross-correlation",
    "orientation": "orientation correlation",
    "phase": "phase correlation",
    "hs_robust": "dense flow, Horn and Schunck",
    "hs_reference": "dense flow, as published in 2023",
    "flow_net": "dense flow, corrected by a network",
    "raft": "RAFT, to compare with",
}
_SET_BY_TRACK = ("prior",)
_WHOLE = ("title", "stack", "unreadable", "points", "profile", "background")
"""Fields of the run file that are in no section, and in no other step."""


class Parameters:
    """Choose how pairs are matched and what follows. Sets `session.kernel` and sections of `session.config`.

    Parameters
    ----------
    session : Session
    kernel : Kernel or callable, optional
        A user's own.
    cubes : path or URL, optional
        Table of ready-made cubes, as in `ogive.itslive_cubes`.
    basemap : ipyleaflet layer, optional
    """

    title = "Parameters"

    def __init__(self, session: Session, *, kernel: Any = None, cubes: Any = None, basemap: Any = None) -> None:
        self.session, self.notice, self.own, self.cubes = session, Notice(), kernel, cubes
        config = session.config
        given = dict(config.kernel)
        name = given.pop("name", "ncc")
        options = [(_NAMES.get(key, key), key) for key in KERNELS]
        options += [("a function of your own", OWN)] * (kernel is not None) + [("ITS_LIVE, ready-made", READY)]
        self.choice = ipywidgets.Dropdown(options=options, value=OWN if kernel is not None else name)
        self.choice.add_class("ogive-kernel")
        self.given, self.forms = {name: given}, dict[str, Form]()
        self.ready = ipywidgets.Combobox(
            placeholder="path or address of an ITS_LIVE cube", ensure_option=False, layout={"width": "330px"}
        )
        self.ready.add_class("ogive-its-live")
        self.find_button = button(
            "Find", "find-its-live", self.find_ready, icon="search", tooltip="cubes over the area"
        )
        self.open_button = button("Open", "open-its-live", self.open_ready, icon="folder-open")
        self.kernel_box = ipywidgets.VBox()
        self.cube = Form(CubeSection, config.cube.model_dump())
        self.stable = Form(StableSection, config.stable.model_dump())
        self.series_on = ipywidgets.Checkbox(config.invert is not None, description="make a time series", indent=False)
        self.series = Form(InvertSection, {} if config.invert is None else config.invert.model_dump())
        others = tuple(RunConfig.model_fields.keys() - set(_WHOLE))
        self.whole = Form(RunConfig, config.model_dump(), others)
        self.given |= config.filters
        self.filter_on = {
            key: ipywidgets.Checkbox(key in config.filters, description=key.replace("_", " "), indent=False)
            for key in FILTERS
        }
        for key, box in self.filter_on.items():
            box.add_class(f"ogive-filter-{key.replace('_', '-')}")
        self._accordion = self._build()
        self.trial = Trial(session, self.notice, self.kernel, basemap)
        head = ipywidgets.HBox([ipywidgets.HTML("<label>Kernel</label>"), self.choice], layout={"flex": "0 0 auto"})
        self.choice.layout.margin, self._accordion.layout.flex = "2px 2px 2px 12px", "0 0 auto"
        forms = ipywidgets.VBox([self._accordion], layout={"max_height": "540px", "overflow": "auto"})
        self.widget = ipywidgets.HBox([
            ipywidgets.VBox([head, self.notice.widget, forms], layout={"flex": "1.15 1 0"}),
            ipywidgets.VBox([self.trial.widget], layout={"flex": "1 1 0", "padding": "0 0 0 16px"}),
        ])  # fmt: skip
        self._watch()
        self.changed()

    def _build(self) -> ipywidgets.Accordion:
        self._filter_rows = {key: ipywidgets.VBox([box]) for key, box in self.filter_on.items()}
        parts = {
            "Matching": self.kernel_box,
            "Image: band, grid, margin": self.cube.widget,
            "Stable ground and masks": self.stable.widget,
            "Filters and filling, in this order": ipywidgets.VBox(list(self._filter_rows.values())),
            "Time series": ipywidgets.VBox([self.series_on, self.series.widget]),
            "Stacks, and what the report shows": self.whole.widget,
        }
        made = ipywidgets.Accordion(list(parts.values()), selected_index=0)
        for k, text in enumerate(parts):
            made.set_title(k, text)
        made.add_class("ogive-parameters")
        return made

    def _watch(self) -> None:
        self.choice.observe(self.changed, "value")
        for form in (self.cube, self.stable, self.series, self.whole):
            form.on_change(self.changed)
        for box in (*self.filter_on.values(), self.series_on):
            box.observe(self.changed, "value")

    def form(self, name: str) -> Form:
        """The form of a kernel or filter, made when it is first needed: hundreds of controls take a second."""
        if name not in self.forms:
            what = KERNELS[name] if name in KERNELS else getattr(filters, name)
            self.forms[name] = Form(what, self.given.get(name), ("velocity", *_SET_BY_TRACK))
            self.forms[name].on_change(self.changed)
        return self.forms[name]

    def kernel(self) -> Kernel:
        """The kernel with the parameters of the form.

        Raises
        ------
        ParameterError
            A value out of range, or ready-made velocities were chosen.
        """
        if self.choice.value == READY:
            raise ParameterError("kernel", rule="matches nothing: ready-made velocities", fix="choose another kernel")
        if self.choice.value == OWN:
            return self.own if isinstance(self.own, Kernel) else Custom(self.own)
        return KERNELS[self.choice.value](**self.form(self.choice.value).values())

    @guarded
    def changed(self, _: Any = None) -> None:
        """Take over every form."""
        name = self.choice.value
        if name in KERNELS:
            self.kernel_box.children = [self.form(name).widget]
        else:
            told = (
                "Nothing is matched; the next step but one shows the velocities." if name == READY else repr(self.own)
            )
            row = [self.ready, self.find_button, self.open_button] if name == READY else []
            self.kernel_box.children = [ipywidgets.HTML(told), ipywidgets.HBox(row)]
        used = [key for key in FILTERS if self.filter_on[key].value]
        for key, box in self.filter_on.items():
            self._filter_rows[key].children = [box, self.form(key).widget] if key in used else [box]
        self.series.widget.layout.display = "" if self.series_on.value else "none"
        if name != READY:
            kernel = self.kernel()
            self.session.kernel = kernel if name == OWN else None
            written = {"name": name, **self.form(name).changed()} if name in KERNELS else described(kernel)
            self.session.configure(
                kernel=written, cube=self.cube.values(), stable=self.stable.values(),
                filters={key: self.form(key).changed() for key in used},
                invert=self.series.values() if self.series_on.value else None,
                **{k: self.whole.fields[k].default if v is None else v for k, v in self.whole.values().items()},
            )  # fmt: skip

    @guarded
    def find_ready(self) -> None:
        """Offer the cubes of ITS_LIVE over the area, the one that covers most of it first."""
        if self.session.aoi is None:
            raise ParameterError("area", rule="there is none yet", fix="choose one in the first step")
        self.notice.news("Looking for cubes of ITS_LIVE …")
        found = itslive_cubes(self.session.aoi, table=self.cubes)
        self.ready.options = list(found["zarr_url"])
        self.ready.value = found["zarr_url"].iloc[0] if len(found) else ""
        told = ", ".join(f"{100 * share:.0f} %" for share in found["share"])
        self.notice.news(f"{len(found)} cubes" + (f"; of the area they cover {told}." if told else " over this area."))

    @guarded
    def open_ready(self) -> None:
        """Look at velocities of ITS_LIVE."""
        ds = open_velocity(self.ready.value.strip())
        self.session.look_at("ITS_LIVE", self.ready.value.strip())
        count = ds.sizes.get("mid_date", ds.sizes.get("time", 0))
        self.notice.news(f"ITS_LIVE opened: {count} velocities of {ds.sizes['y']} x {ds.sizes['x']} cells. See Look.")


class Trial:
    """Try the parameters on one tile: click on the map.

    Parameters
    ----------
    session : Session
    notice : Notice
    kernel : callable
        Gives the kernel as it is set now.
    """

    def __init__(self, session: Session, notice: Notice, kernel: Any, basemap: Any = None) -> None:
        self.session, self.notice, self.kernel = session, notice, kernel
        self.map = _areas.plain_map(basemap, "250px")
        self.map.add_class("ogive-trial-map")
        self.map.on_interaction(self._clicked)
        self.pair = ipywidgets.Dropdown(options=[("no pairs yet", None)], layout={"width": "330px"})
        self.pair.add_class("ogive-trial-pair")
        self.size = ipywidgets.BoundedIntText(32, min=4, max=128, step=4, layout={"width": "80px"})
        self.picture = _areas.Picture("ogive-tile", "300px")
        self._layers: list[Any] = [None, None, None]
        head = ipywidgets.HTML("<b>Try on one tile</b>: choose a pair, click on the map. Nothing is written.")
        row = ipywidgets.HBox([self.pair, ipywidgets.HTML("&nbsp;cells&nbsp;"), self.size])
        self.widget = ipywidgets.VBox([head, row, self.map, self.picture.widget])
        self.pair.observe(self.show_scene, "value")
        session.observe(self.offer, "pairs")

    @guarded
    def offer(self, _: Any = None) -> None:
        """Offer the pairs that there are, the one in the middle of the list first."""
        pairs = self.session.pairs
        if pairs is None:
            return
        rows = pairs[["t1", "t2", "date_dt"]].itertuples(index=False, name=None)
        options = [(f"{a:%Y-%m-%d} to {b:%Y-%m-%d} ({days:.0f} days)", k) for k, (a, b, days) in enumerate(rows)]
        self.pair.options = options
        self.pair.value = len(options) // 2

    @guarded
    def show_scene(self, _: Any = None) -> None:
        """Put image 1 of the pair on the map."""
        area, k = self.session.aoi, self.pair.value
        if area is None or k is None or self.session.pairs is None:
            return
        items = {item.id: item for item in self.session.items}
        item = items[self.session.pairs["id1"].iloc[k]]
        image = thumbnails([item], area, pixels=400)["image"].isel(time=0).values
        west, south, east, north = area.bounds
        new = (
            _areas.picture(image, ((south, west), (north, east)), "image 1"),
            _areas.layer(area, _areas.AREA, "area"),
        )
        self._layers[:2] = [_areas.replace(self.map, *both) for both in zip(self._layers[:2], new, strict=True)]
        _areas.show_area(self.map, area.bounds, 300)

    def _clicked(self, **event: Any) -> None:
        if event.get("type") == "click":
            lat, lon = event["coordinates"]
            self.run(lon, lat)

    @guarded
    def run(self, lon: float, lat: float) -> None:
        """Match the tile around a point."""
        if self.session.pairs is None or self.pair.value is None:
            raise PairError("pairs", rule="there are none yet", fix="make them in the third step")
        self.notice.news("Matching one tile …")
        items = chosen_items(self.session)
        cube, _ = prepare(self.session.config, check=False, items=items, kernel=self.session.kernel)
        tile = try_tile(
            cube, self.session.pairs, self.kernel(), x=lon, y=lat, pair=self.pair.value, cells=self.size.value, crs=4326
        )
        self.picture.show(tile_map(tile))
        frame = _footprint(tile)
        self._layers[2] = _areas.replace(self.map, self._layers[2], _areas.layer(frame, _areas.AREA, "tile"))
        self.notice.clear()


def _footprint(tile: Any) -> Any:
    return geobox_of(tile).extent.to_crs("EPSG:4326").geom
