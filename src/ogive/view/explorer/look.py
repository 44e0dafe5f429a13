"""The step *Look*: maps through time, and at a place its series, what lies behind it, its flow line.

Every picture has a function that makes it without a widget: `view.layer_map`, `difference_map`, `plot_series`,
`pair_network`, `speed_profile`, `hovmoller`; the words are those of `ogive.why`.
"""

import html
import io
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
import xarray as xr
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ... import flags, grid, validate
from ..._why import why
from ...errors import OgiveError, ParameterError
from ...export import locate, map_at
from ...flowline import flowline
from ...fuse import regrid
from ...script import View
from .. import maps, style
from ..layers import difference, layer
from ..series import pair_network, plot_series, speed_profile
from ..spacetime import hovmoller
from ._map import WIDTH, GridMap
from ._notice import Notice, guarded
from ._session import Session
from ._source import Source, open_source

HERE = "here"
"""The name of the place clicked last; kept ones are A, B, C."""
FIGURES = ("series", "flow line", "through time", "pairs")
_LAYERS = ("speed", "error", "flag", "count")
_NONE = "nothing"
_FIRST = ("series", "velocity", "matches")
"""Which store is shown first."""


class Look:
    """Look at stores: maps, places, lines.

    Parameters
    ----------
    session : Session
        Its `stores` can be looked at; `point` is the place.
    stakes : path or DataFrame, optional
        Velocities measured on the ground, see `validate.read_stakes`.

    Attributes
    ----------
    widget : ipywidgets.Widget
    title : str
    source : Source or None
        What is shown.
    points : dict of str to (x, y)
        The places kept, and the last one.
    line : DataFrame or None
        The flow line through the last one.
    figure : Figure or None
        What is shown beside the map.
    """

    title = "Look"

    def __init__(self, session: Session, *, stakes: Any = None) -> None:
        self.session, self.notice = session, Notice()
        self.quiet = False
        self.sources: dict[str, Source] = {}
        self.source: Source | None = None
        self.points: dict[str, tuple[float, float]] = {}
        self.line: pd.DataFrame | None = None
        self.figure: Figure | None = None
        self.making: threading.Thread | None = None
        self._mean: dict[str, xr.Dataset] = {}
        self._stakes_given = stakes
        self.stakes: pd.DataFrame | None = None
        self.map = GridMap(lambda x, y: setattr(session, "point", (x, y)), self.sharpen)
        self._reader, self._turn = ThreadPoolExecutor(max_workers=1), 0
        self.reading: Future[None] | None = None
        self._widgets()
        session.observe(lambda _: self.refresh(), "stores")
        session.observe(lambda _: self.place(), "point")
        self.refresh()

    def _widgets(self) -> None:
        """Make the controls and say what each of them calls."""
        narrow = {"width": "190px"}
        self.store = ipywidgets.Dropdown(description="Store", layout=narrow)
        self.layer = ipywidgets.ToggleButtons(options=_LAYERS, style={"button_width": "64px"})
        self.scale = ipywidgets.Dropdown(options=style.SCALES, description="Colours", layout=narrow)
        self.arrows = ipywidgets.Checkbox(True, description="arrows", indent=False, layout={"width": "80px"})
        self.minus = ipywidgets.Dropdown(options=[_NONE], value=_NONE, description="minus", layout=narrow)
        self.time = ipywidgets.IntSlider(0, 0, 0, readout=False, layout={"width": "330px"}, description="Date")
        self.play = ipywidgets.Play(min=0, max=0, interval=500, layout={"width": "150px"})
        ipywidgets.jslink((self.play, "value"), (self.time, "value"))
        self.median = ipywidgets.Checkbox(False, description="median", indent=False, layout={"width": "90px"})
        self.what = ipywidgets.ToggleButtons(options=FIGURES, style={"button_width": "112px"})
        self.beside = ipywidgets.SelectMultiple(
            description="and", rows=3, layout={"width": "230px"}, tooltip="other stores on the same axis"
        )
        self.pairs = ipywidgets.Checkbox(True, description="pairs behind it", indent=False, layout={"width": "130px"})
        self.anomaly = ipywidgets.Checkbox(False, description="anomaly", indent=False, layout={"width": "90px"})
        self.at = ipywidgets.Text(
            description="x, y", placeholder="click, or type and press enter", continuous_update=False,
            layout={"width": "300px"},
        )  # fmt: skip
        self.keep = ipywidgets.Button(description="Keep this place", layout={"width": "130px"})
        self.forget = ipywidgets.Button(description="Forget all", layout={"width": "100px"})
        self.upload = ipywidgets.FileUpload(accept=".csv,.txt", description="Stakes (CSV)", layout={"width": "140px"})
        self.words, self.picture = ipywidgets.HTML(), ipywidgets.Image(format="png")
        self.picture.layout = {"width": "590px", "display": "none"}
        for name in ("store", "layer", "scale", "arrows", "minus", "time", "play", "median", "what", "beside", "pairs",
                     "anomaly", "at", "keep", "forget", "upload", "words", "picture"):  # fmt: skip
            getattr(self, name).add_class(f"ogive-look-{name}")
        on_map = (self.layer, self.scale, self.arrows, self.minus, self.time, self.median)
        calls = {self.choose: [self.store], self.draw: on_map, self.typed: [self.at], self.uploaded: [self.upload],
                 self.draw_figure: (self.what, self.beside, self.pairs, self.anomaly)}  # fmt: skip
        for call, controls in calls.items():
            for control in controls:
                control.observe(lambda _, call=call: self.quiet or call(), "value")
        self.keep.on_click(lambda _: self.keep_point())
        self.forget.on_click(lambda _: self.forget_points())
        row = ipywidgets.HBox
        left = [row([self.store, self.layer]), row([self.scale, self.minus, self.arrows]), self.map.widget,
                row([self.time, self.play, self.median])]  # fmt: skip
        right = [row([self.at, self.keep, self.forget]), self.words, row([self.what]),
                 row([self.beside, self.pairs, self.anomaly, self.upload]), self.picture]  # fmt: skip
        panes = [
            ipywidgets.VBox(part, layout={"flex": f"0 0 {width}px", "width": f"{width}px", "overflow": "hidden"})
            for part, width in ((left, WIDTH + 14), (right, 594))
        ]
        self.widget = ipywidgets.VBox([self.notice.widget, row(panes)])
        self.widget.add_class("ogive-look")

    @contextmanager
    def _silently(self) -> Iterator[None]:
        """Set controls without calling what they call when a user sets them."""
        self.quiet = True
        try:
            yield
        finally:
            self.quiet = False

    @guarded
    def refresh(self) -> None:
        """The stores have changed: offer them, keep what is shown if it is still there."""
        names = list(self.session.stores)
        self.sources = {n: s for n, s in self.sources.items() if n in names and s.is_current(self.session.stores[n])}
        shown = self.source.name if self.source else None
        first = next((n for n in (shown, *_FIRST) if n in names), names[0] if names else None)
        with self._silently():
            self.store.options, self.store.value = names, first
        if first is not None and (self.source is None or first not in self.sources):
            self.choose()
        self._offer()

    def _offer(self) -> None:
        others = [n for n in self.session.stores if n != self.store.value]
        less, chosen = self.minus.value, [n for n in self.beside.value if n in others]
        with self._silently():
            self.minus.options = [_NONE, *others]
            self.minus.value = less if less in others else _NONE
            self.beside.options, self.beside.value = others, chosen

    @guarded
    def choose(self) -> None:
        """Show another store; of a large one without an overview that is made first, in the background."""
        if self.store.value is None:
            return
        self.source = self.opened(self.store.value)
        self._mean.pop(self.source.name, None)
        last = len(self.source.order) - 1
        with self._silently():
            self.time.max = self.play.max = last
            self.time.value = self.play.value = last // 2
        self._offer()
        if self.stakes is None and self._stakes_given is not None:
            self._take_stakes(self._stakes_given)
        self._draw()
        if self.source.maps is None:
            self.notice.news(
                f"{self.source.name} has no overview yet, or one of an earlier state: it is made now, once; "
                "the map appears when it is there."
            )
            self.making = threading.Thread(target=self._make_overview, args=(self.source,), daemon=True)
            self.making.start()

    def opened(self, name: str) -> Source:
        """A store of the session, opened once."""
        if name not in self.sources:
            self.sources[name] = open_source(name, self.session.stores[name])
        return self.sources[name]

    @guarded
    def _make_overview(self, source: Source) -> None:
        source.make_overview()
        if source is self.source:
            self._draw()

    @property
    def when(self) -> int | None:
        """Position in time of the map; None: median."""
        return None if self.median.value or self.source is None else int(self.source.order[self.time.value])

    @guarded
    def draw(self) -> None:
        """Draw the map, and the figure if it shows this date."""
        self._draw()

    def _draw(self) -> None:
        source = self.source
        self._tell()
        if source is None or source.maps is None:
            return
        text = maps.time_text(source.full, self.when)
        if self.minus.value != _NONE:
            shown = self._difference(source, self.opened(self.minus.value))
            text = f"{source.name} minus {self.minus.value}, {text}"
        else:
            shown = layer(source.maps, self.layer.value, when=self.when, scale=self.scale.value)
        self.map.show(shown, text, arrows=self.arrows.value)
        self.sharpen()
        self.draw_words()
        if self.what.value == "flow line":
            self._draw_figure()

    def sharpen(self) -> None:
        """Show what is in view in full, if it can be read in a second; that is done in the background."""
        source, self._turn = self.source, self._turn + 1
        part = source.part(*self.map.view) if source is not None and self.minus.value == _NONE else None
        if part is None:
            self.map.sharpen(None)
        else:
            self.reading = self._reader.submit(self._show_part, part, self.when, self._turn)

    @guarded
    def _show_part(self, part: xr.Dataset, when: int | None, turn: int) -> None:
        whole = self.map.layer
        if turn != self._turn or whole is None:
            return  # the user has moved on
        scale = "log" if isinstance(whole.norm, LogNorm) else "linear"
        limits = (float(whole.norm.vmin or 0.0), float(whole.norm.vmax or 1.0))
        shown = layer(part, whole.name, when=when, scale=scale, limits=limits)
        if turn == self._turn:
            self.map.sharpen(shown)

    def _tell(self) -> None:
        """Note in the session what is looked at, for those who take it away."""
        if self.source is not None:
            traced = list(self.points.values())[-1] if self.line is not None else None
            name = self.source.name
            self.session.view = View(name, self.layer.value, self.when, dict(self.points), traced)

    def _difference(self, first: Source, second: Source) -> Any:
        """Speed of one less that of the other, at the dates next to each other."""
        if second.maps is None:
            second.make_overview()
        assert first.maps is not None
        assert second.maps is not None
        other = None
        if self.when is not None:
            time = first.full["mid_date" if "mid_date" in first.full.dims else "time"].values
            other = second.nearest(time[self.when])
        return difference(map_at(first.maps, ["v"], when=self.when), regrid(second.maps, first.maps, when=other))

    @guarded
    def place(self) -> None:
        """The session's point has changed: a stake next to it, or the place itself."""
        point = self.session.point
        if self.source is None or point is None:
            return
        name, point = self._stake_near(point)
        locate(self.source.full, {name: point})
        kept = {n: p for n, p in self.points.items() if n in self._letters() or n == name}
        self.points = {**kept, name: point}
        self.line = None
        with self._silently():
            self.at.value = f"{point[0]:.0f}, {point[1]:.0f}"
        self._pins()
        self.draw_words()
        self._draw_figure()

    def _letters(self) -> list[str]:
        return [n for n in self.points if n != HERE]

    def _stake_near(self, point: tuple[float, float]) -> tuple[str, tuple[float, float]]:
        """The stake within a hundredth of the map, or the place itself."""
        if self.stakes is None or self.source is None:
            return HERE, point
        box = grid.geobox_of(self.source.full).boundingbox
        away = ((self.stakes["x"] - point[0]) ** 2 + (self.stakes["y"] - point[1]) ** 2) ** 0.5
        if not (away < 0.015 * (box.right - box.left)).any():
            return HERE, point
        row = self.stakes.iloc[int(away.to_numpy().argmin())]
        return str(row["name"]), (float(row["x"]), float(row["y"]))

    @guarded
    def typed(self) -> None:
        """Coordinates were typed."""
        parts = self.at.value.replace(";", ",").split(",")
        try:
            x, y = (float(part) for part in parts)
        except ValueError:
            raise ParameterError("x, y", rule="must be two numbers [m]", value=self.at.value) from None
        last = list(self.points.values())[-1:]
        if not last or (round(last[0][0]), round(last[0][1])) != (round(x), round(y)):
            self.session.point = (x, y)

    @guarded
    def keep_point(self) -> None:
        """Give the last place a letter and keep it beside the next ones."""
        if HERE in self.points:
            letter = next(c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in self.points)
            self.points[letter] = self.points.pop(HERE)
            self._pins()
            self._draw_figure()

    @guarded
    def forget_points(self) -> None:
        """Start anew."""
        self.points, self.line, self.figure = {}, None, None
        self.picture.value, self.picture.layout.display, self.words.value = b"", "none", ""
        self._pins()
        self.map.draw_line(None)

    def _pins(self) -> None:
        colours = (style.LINES[k % len(style.LINES)] for k in range(len(self.points)))
        pins = {n: (p, c, "" if n == HERE else n[:1]) for (n, p), c in zip(self.points.items(), colours)}
        if self.stakes is not None:
            rows = self.stakes.drop_duplicates("name")
            known = {
                str(n): ((float(x), float(y)), "#333333", "") for n, x, y in zip(rows["name"], rows["x"], rows["y"])
            }
            pins = {**known, **pins}
        self.map.draw_pins(pins)

    def draw_words(self) -> None:
        """Why there is no value at the last place, or how good it is."""
        if not self.points or self.source is None:
            return
        name, (x, y) = list(self.points.items())[-1]
        text = f"<b>{html.escape(name)}</b> {html.escape(self._why(x, y))}"
        self.words.value = f'<div style="line-height:1.4">{text}</div>'

    def _why(self, x: float, y: float) -> str:
        assert self.source is not None
        data, date = self.source.full, None
        if self.when is not None and "time" in data.dims:
            date = data["time"].values[self.when]
        behind = self._velocity()
        try:
            return why(data, x, y, time=date, velocity=behind)
        except OgiveError:  # a series that others made says less
            if "flag" not in data:
                return ""
            (row,), (column,) = locate(data, {"": (x, y)})
            counts = flags.tally(data["flag"].isel(y=row, x=column).values)
            return ", ".join(f"{n} {text}" for text, n in counts.items()) or "every value is valid"

    def _velocity(self) -> xr.Dataset | None:
        """The pairs behind a series, if they can be looked at and are wanted."""
        wanted = self.pairs.value and "velocity" in self.session.stores
        if self.source is None or "time" not in self.source.full.dims or not wanted:
            return None
        behind = self.opened("velocity").full
        return behind if "mid_date" in behind.dims else None

    @guarded
    def draw_figure(self) -> None:
        """Draw what is wanted beside the map."""
        self._draw_figure()

    def _draw_figure(self) -> None:
        if self.source is None or not self.points:
            return
        made = {"series": self._series, "flow line": self._profile, "through time": self._hovmoller,
                "pairs": self._network}[self.what.value]  # fmt: skip
        for control, kinds in ((self.beside, ("series",)), (self.anomaly, ("through time",)),
                               (self.pairs, ("series", "pairs")), (self.upload, ("series",))):  # fmt: skip
            control.layout.display = None if self.what.value in kinds else "none"
        self.figure = made()
        self.map.draw_line(None if self.line is None else self.line[["x", "y"]].to_numpy())
        out = io.BytesIO()
        self.figure.savefig(out, format="png", dpi=80)
        self.picture.value, self.picture.layout.display = out.getvalue(), None
        self._tell()

    def _series(self) -> Figure:
        assert self.source is not None
        self.line = None
        others = {name: self.opened(name).full for name in self.beside.value}
        known = None if self.stakes is None else self.stakes[self.stakes["name"].isin(list(self.points))]
        sources = {self.source.name: self.source.full, **others}
        return plot_series(
            sources, self.points, pairs=self._velocity(), stakes=known, together=len(self.points) > 1
        )  # fmt: skip

    def _traced(self) -> pd.DataFrame:
        """The flow line through the last place, in the median of all dates."""
        assert self.source is not None
        if self.source.maps is None:
            raise ParameterError("flow line", rule="needs the overview", fix="wait until it is made")
        if self.line is None:
            if self.source.name not in self._mean:
                self._mean[self.source.name] = map_at(self.source.maps, ["vx", "vy"])
            self.line = flowline(self._mean[self.source.name], *list(self.points.values())[-1])
        return self.line

    def _profile(self) -> Figure:
        assert self.source is not None
        line = self._traced()[["x", "y"]].to_numpy()
        assert self.source.maps is not None
        one = self._mean[self.source.name] if self.when is None else self.source.maps
        title = f"Along the flow line, {maps.time_text(self.source.full, self.when)}"
        return speed_profile(one, line, when=self.when, title=title)[0]

    def _hovmoller(self) -> Figure:
        line = self._traced()
        assert self.source is not None
        assert self.source.maps is not None
        return hovmoller(self.source.maps, line, anomaly=self.anomaly.value, scale=self.scale.value)

    def _network(self) -> Figure:
        """The pairs that are valid at the last place."""
        assert self.source is not None
        behind = self._velocity()
        pairs = self.source.full if "mid_date" in self.source.full.dims else behind
        if pairs is None:
            raise ParameterError("pairs", rule="need the store 'velocity' and a tick at 'pairs behind it'")
        home = grid.geobox_of(self.source.full)
        name, point = list(self.points.items())[-1]
        (row,), (column,) = locate(pairs, grid.points_on({name: point}, home, grid.geobox_of(pairs)))
        valid = pairs["vx"].isel(y=row, x=column).notnull().values
        return pair_network(pairs.isel(mid_date=valid)[["acquisition_date_img1", "acquisition_date_img2"]])

    @guarded
    def uploaded(self) -> None:
        """A table of stakes was uploaded."""
        if self.upload.value:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "stakes.csv"
                path.write_bytes(bytes(self.upload.value[-1]["content"]))
                self._take_stakes(path)
            self._draw_figure()

    def _take_stakes(self, table: Any) -> None:
        assert self.source is not None
        self.stakes = validate.read_stakes(table, str(grid.geobox_of(self.source.full).crs))
        self._pins()
