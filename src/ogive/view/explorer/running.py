"""Step 5, run: the price, the start, the blocks as they fill in, stopping and going on."""

import html
import threading
import time
from contextvars import copy_context
from pathlib import Path
from typing import Any

import ipywidgets

from ... import run as runs
from ..._ledger import status
from ..._trust import without_secrets
from ...errors import CancelledError, OgiveError, ParameterError
from ...explain import duration, explain
from ...runfile import dump
from ..jobs import block_map
from . import _areas
from ._forms import button
from ._notice import Notice, guarded, log
from ._session import Session
from .scenes import chosen_items

_REDRAW = 1.0
"""Least time between two pictures of the blocks [s]."""
_STAGES = {runs.MATCHES: "matching", runs.VELOCITY: "correcting and filtering", runs.SERIES: "inverting"}


class Running:
    """Say what the run costs, do it, show how far it is. Sets `session.stores`.

    Parameters
    ----------
    session : Session
    client : distributed.Client, optional
        Where to compute.

    Attributes
    ----------
    thread : threading.Thread or None
        The run that is going on, or was last.
    """

    title = "Run"

    def __init__(self, session: Session, *, client: Any = None) -> None:
        self.session, self.notice, self.client = session, Notice(), client
        self.thread: threading.Thread | None = None
        self._stop = threading.Event()
        config = session.config
        self.name = ipywidgets.Text(config.title, continuous_update=False)
        self.folder = ipywidgets.Text(config.output, continuous_update=False)
        self.threads = ipywidgets.Text("" if config.workers is None else str(config.workers), placeholder="all cores")
        self.price = ipywidgets.HTML()
        self.price.add_class("ogive-price")
        self.measure = button("Price tag", "explain", self.explain, icon="tag")
        self.minutes = button("… with minutes", "calibrate", lambda: self.explain(True), icon="clock-o")
        self.start_button = button("Run", "run", self.start, icon="play")
        self.stop_button = button("Stop", "stop", self.stop, icon="stop")
        self.start_button.button_style, self.stop_button.disabled = "primary", True
        self.bar = ipywidgets.IntProgress(layout={"width": "100%"})
        self.told = ipywidgets.HTML()
        self.told.add_class("ogive-progress")
        self.picture = _areas.Picture("ogive-blocks", "540px")
        self.file = ipywidgets.HTML()
        self.file.add_class("ogive-run-file")
        named = (("title", self.name), ("folder", self.folder), ("threads", self.threads))
        for text, made in named:
            made.layout.width = "370px"
            made.add_class(f"ogive-{text.split()[0]}")
        left = ipywidgets.VBox([
            *(ipywidgets.HBox([ipywidgets.HTML(f"<label>{t}</label>", layout={"width": "90px"}), w]) for t, w in named),
            ipywidgets.HBox([self.measure, self.minutes]), self.price,
            ipywidgets.HBox([self.start_button, self.stop_button]), self.bar, self.told, self.notice.widget, self.file,
        ], layout={"width": "480px"})  # fmt: skip
        right = ipywidgets.VBox([self.picture.widget], layout={"flex": "1 1 0", "padding": "0 0 0 16px"})
        self.widget = ipywidgets.HBox([left, right])
        session.observe(self._show_file, "config")
        self._show_file()

    @guarded
    def explain(self, calibrate: bool = False) -> None:
        """Say what the run costs; with minutes, compute one block."""
        self.notice.news("Computing one block …" if calibrate else "Counting …")
        config = self._config()
        _, matches = runs.prepare(
            config, check=False, items=chosen_items(self.session), kernel=self.session.kernel
        )  # fmt: skip
        cost = explain(matches, self.client, workers=config.workers, calibrate=calibrate)
        self.price.value = "<ul>" + "".join(f"<li>{html.escape(part)}</li>" for part in str(cost).split(", ")) + "</ul>"
        self.notice.clear()

    @guarded
    def start(self) -> None:
        """Begin, or go on with what is there."""
        if self.thread is not None and self.thread.is_alive():
            raise ParameterError("run", rule="is going on", fix="stop it first")
        chosen_items(self.session)
        config = self._config()
        path = Path(config.output)
        if not path.parent.is_dir():
            raise ParameterError("folder", rule="its parent folder must exist", value=str(path.parent), fix="make it")
        self._stop.clear()
        self._busy(True)
        self.notice.news("Looking at every scene …")
        # In the context of the click, so that `options.using` holds for the run too.
        self.thread = threading.Thread(target=copy_context().run, args=(self._work, config), daemon=True)
        self.thread.start()

    @guarded
    def stop(self) -> None:
        """Stop after the blocks that are being computed; the same button goes on later."""
        self._stop.set()
        self.notice.news("Stopping after the blocks that are being computed …")

    def _work(self, config: runs.RunConfig) -> None:
        progress = _Progress(self)
        try:
            result = runs.run(
                config, client=self.client, progress=False, kernel=self.session.kernel, watch=progress.seen
            )
        except CancelledError as stopped:
            self.notice.news(str(stopped))
        except OgiveError as error:
            self.notice.error(str(error))
        except Exception as error:  # in a thread nobody else would say it
            log.exception("run")
            self.notice.error(f"{type(error).__name__}: {error}")
        else:
            stores = {"matches": result.matches, "velocity": result.velocity, "series": result.series}
            self.session.stores = {
                **self.session.stores, **{name: str(path) for name, path in stores.items() if path is not None}
            }  # fmt: skip
            self.notice.news(f"Done. Report: {_near(result.report)}")
        finally:
            progress.draw()
            self._busy(False)

    def _config(self) -> runs.RunConfig:
        text = self.threads.value.strip()
        if text and not text.isdigit():
            raise ParameterError("threads", rule="must be a whole number, or empty", value=text)
        folder = str(Path(self.folder.value.strip()).expanduser().resolve())
        self.session.configure(title=self.name.value, output=folder, workers=int(text) if text else None)
        config: runs.RunConfig = self.session.config
        return config

    def _show_file(self, _: Any = None) -> None:
        text = html.escape(without_secrets(dump(self.session.config)))
        self.file.value = f"<details><summary>The run file of this session</summary><pre>{text}</pre></details>"

    def _busy(self, on: bool) -> None:
        self.start_button.disabled, self.stop_button.disabled = on, not on
        self.start_button.description = "Running" if on else "Run, or go on"


class _Progress:
    """Follows the blocks of a run."""

    def __init__(self, step: Running) -> None:
        self.step, self.store, self.drawn = step, "", 0.0
        self.began, self.first, self.failed = 0.0, 0, 0

    def seen(self, store: str, row: dict[str, Any] | None) -> None:
        """Take a block into account; raises where the user wants to stop."""
        count = status(store) if row is None else None
        step = self.step
        if count is not None:
            # Not before: a folder that holds another run is refused, and keeps its run file.
            output = Path(store).parent
            (output.parent / f"{output.name}.yaml").write_text(without_secrets(dump(step.session.config)))
            self.store, self.began, self.first, self.failed = store, time.monotonic(), count["done"], 0
            step.bar.max, step.bar.value = count["blocks"], count["done"]
            step.notice.clear()
        else:
            step.bar.value += 1
            self.failed += row is not None and row["status"] != "done"
        step.told.value = self._words()
        if time.monotonic() - self.drawn >= _REDRAW:
            self.draw()
        if step._stop.is_set():
            raise CancelledError(
                "run", rule="is stopped", value=f"{step.bar.value - self.failed} of {step.bar.max} blocks done",
                fix="press Run to go on",
            )  # fmt: skip

    def draw(self) -> None:
        """Draw the blocks."""
        if self.store:
            self.step.picture.show(block_map(self.store))
            self.drawn = time.monotonic()

    def _words(self) -> str:
        bar, took = self.step.bar, time.monotonic() - self.began
        now = bar.value - self.first
        stage = _STAGES.get(Path(self.store).name, "")
        left = (
            f", about {duration(took / now * (bar.max - bar.value) / 60)} left" if now and bar.value < bar.max else ""
        )
        bad = f" <b class='ogive-error'>{self.failed} failed</b>" if self.failed else ""
        return f"<b>{stage}</b>: {bar.value} of {bar.max} blocks{left}.{bad}"


def _near(path: Path) -> Path:
    """A path as short as it can be said here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
