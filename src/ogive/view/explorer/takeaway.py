"""The step *Take away*: pictures, maps, tables, and the session itself, as files.

What is written are the results of `view.*` and `export.*`; the session as a run file and as a Python program.
"""

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets
import xarray as xr

from ... import export
from ..._trust import without_secrets
from ...errors import ParameterError
from ...runfile import dump
from ...script import View, script
from .. import maps, style
from ..animation import speed_animation
from ..layers import layer_map
from ._forms import button
from ._notice import Notice, guarded
from ._session import Session
from ._source import Source, open_source


class TakeAway:
    """Buttons that write files into a folder; nothing is replaced unless that is ticked.

    Parameters
    ----------
    session : Session
        Of its `view` the store, date, layer and places are taken.

    Attributes
    ----------
    widget : ipywidgets.Widget
    title : str
    written : list of Path
        The files, the last one last.
    """

    title = "Take away"

    def __init__(self, session: Session) -> None:
        self.session, self.notice = session, Notice()
        self.written: list[Path] = []
        self._open: dict[str, Source] = {}
        self.folder = ipywidgets.Text("ogive-files", description="Folder", layout={"width": "420px"})
        self.replace = ipywidgets.Checkbox(False, description="replace files that are there", indent=False)
        self.said, self.list = ipywidgets.HTML(), ipywidgets.HTML()
        for name in ("folder", "replace", "said", "list"):
            getattr(self, name).add_class(f"ogive-take-{name}")
        self.buttons: dict[str, ipywidgets.Button] = {}
        kinds: dict[str, list[tuple[str, str, Callable[[Path], Any]]]] = {
            "What Look shows": [
                ("map.png", "map as a picture", self._map),
                ("through-time.gif", "map through time", self._gif),
                ("map.tif", "map as a GeoTIFF (COG)", self._geotiff),
            ],
            "The places kept": [
                ("places.csv", "table (CSV)", self._points),
                ("places.parquet", "table (Parquet)", self._points),
            ],
            "The whole store": [("store.nc", "netCDF", self._netcdf)],
            "The session": [
                ("run.yaml", "run file (YAML)", self._run_file),
                ("session.py", "Python program", self._script),
            ],
        }
        rows = []
        for heading, files in kinds.items():
            made = [self._button(name, words, make) for name, words, make in files]
            rows.append(ipywidgets.HBox([ipywidgets.HTML(f"<b>{heading}</b>", layout={"width": "150px"}), *made]))
        parts = [self.notice.widget, self.said, ipywidgets.HBox([self.folder, self.replace]), *rows, self.list]
        self.widget = ipywidgets.VBox(parts)
        self.widget.add_class("ogive-take")
        session.observe(lambda _: self.say(), ["view", "stores"])
        self.say()

    def _button(self, name: str, words: str, make: Callable[[Path], Any]) -> ipywidgets.Button:
        take = f"take-{name.replace('.', '-')}"
        made = button(words, take, lambda: self.take(name, make), tooltip=name, layout={"width": "210px"})
        self.buttons[name] = made
        return made

    @guarded
    def say(self) -> None:
        """Say what will be written."""
        view = self._view()
        if view is None:
            self.said.value = "There is no store yet: run something, or open one."
            return
        when = maps.time_text(self._shown()[1].full, view.when)
        places = ", ".join(view.points) or "no place"
        self.said.value = html.escape(f"Store {view.store}, {view.layer}, {when}; {places}.")

    @guarded
    def take(self, name: str, make: Callable[[Path], Any]) -> None:
        """Write one file."""
        folder = Path(self.folder.value).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        if path.exists() and not self.replace.value:
            fix = "tick 'replace files that are there', or choose another folder"
            raise ParameterError(str(path), rule="is there already", fix=fix)
        self.buttons[name].disabled = True
        try:
            make(path)
        finally:
            self.buttons[name].disabled = False
        self.written.append(path)
        lines = [f"{p.resolve()} ({p.stat().st_size / 1e6:.2g} MB)" for p in dict.fromkeys(self.written)]
        self.list.value = "Written:<br>" + "<br>".join(map(html.escape, lines))

    def _view(self) -> View | None:
        if self.session.view is not None and self.session.view.store in self.session.stores:
            view: View = self.session.view
            return view
        return View(next(iter(self.session.stores))) if self.session.stores else None

    def _shown(self) -> tuple[View, Source]:
        view = self._view()
        if view is None:
            raise ParameterError("stores", rule="are none yet", fix="run something, or open a store")
        given = self.session.stores[view.store]
        if view.store not in self._open or not self._open[view.store].is_current(given):
            self._open[view.store] = open_source(view.store, given)
        return view, self._open[view.store]

    def _picture(self, path: Path, maps: xr.Dataset, view: View) -> None:
        with export.replacing(path, overwrite=self.replace.value) as part:
            layer_map(maps, view.layer, when=view.when).savefig(part, dpi=style.DPI, bbox_inches="tight")

    def _map(self, path: Path) -> None:
        view, source = self._shown()
        self._picture(path, source.full, view)

    def _gif(self, path: Path) -> None:
        _, source = self._shown()
        if source.maps is None:
            source.make_overview()
        assert source.maps is not None
        speed_animation(source.maps, path, overwrite=self.replace.value)

    def _geotiff(self, path: Path) -> None:
        view, source = self._shown()
        names = ["v", "vx", "vy", *(["v_error"] if "v_error" in source.full else [])]
        export.to_geotiff(source.full, path, variable=names, when=view.when, overwrite=self.replace.value)

    def _netcdf(self, path: Path) -> None:
        export.to_netcdf(self._shown()[1].full, path, overwrite=self.replace.value)

    def _points(self, path: Path) -> None:
        view, source = self._shown()
        if not view.points:
            raise ParameterError("places", rule="are none yet", fix="click on the map in Look")
        export.to_points(source.full, path, view.points, overwrite=self.replace.value)

    def _run_file(self, path: Path) -> None:
        if self.session.config is None:
            raise ParameterError("run file", rule="needs a run", fix="take the Python program instead")
        self._write(path, without_secrets(dump(self.session.config)))

    def _script(self, path: Path) -> None:
        config, stores = self.session.config, {n: str(p) for n, p in self.session.stores.items()}
        # Stores in the folder of the run were made by it; others were opened as they are.
        home = None if config is None else Path(config.output).resolve()
        ran = any(Path(place).resolve().parent == home for place in stores.values())
        self._write(path, script(config if ran else None, stores, self._view()))

    def _write(self, path: Path, text: str) -> None:
        with export.replacing(path, overwrite=self.replace.value) as part:
            part.write_text(text)
