"""Errors and news, where the user looks."""

import html
import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import ipywidgets

from ...errors import OgiveError

log = logging.getLogger("ogive")
_Method = TypeVar("_Method", bound=Callable[..., Any])
_COLOURS = {"error": ("#8a1c00", "#fdeee9"), "news": ("#1d3a52", "#e9f1f8")}


class Notice:
    """A line that says what went wrong, or what was done; screen readers read it when it changes.

    Attributes
    ----------
    widget : ipywidgets.HTML
    text : str
        What it says; "" while there is nothing to say.
    """

    def __init__(self) -> None:
        self.widget = ipywidgets.HTML()
        self.widget.add_class("ogive-notice")
        self.text = ""

    def error(self, text: str) -> None:
        """Say what went wrong."""
        self._say(text, "error", "alert")

    def news(self, text: str) -> None:
        """Say what was done."""
        self._say(text, "news", "status")

    def clear(self) -> None:
        """Say nothing."""
        self.text = self.widget.value = ""

    def _say(self, text: str, kind: str, role: str) -> None:
        ink, paper = _COLOURS[kind]
        style = f"color:{ink};background:{paper};border-left:4px solid {ink};padding:6px 10px;line-height:1.45"
        self.text = text
        self.widget.value = f'<div role="{role}" class="ogive-{kind}" style="{style}">{html.escape(text)}</div>'


def guarded(method: _Method) -> _Method:
    """A callback of a step: what it raises is shown by the step's `notice`, and noted in `session.message`."""

    @wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        self.notice.clear()
        try:
            return method(self, *args, **options)
        except OgiveError as error:
            text = str(error)
        except Exception as error:  # a click must never end in silence
            log.exception("%s.%s", type(self).__name__, method.__name__)
            text = f"{type(error).__name__}: {error}"
        self.notice.error(text)
        if hasattr(self, "session"):
            self.session.message = text
        return None

    return call  # type: ignore[return-value]
