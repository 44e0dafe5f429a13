"""A table that can be sorted and ticked, of plain widgets: a page of rows, used again however long the table is."""

import html
from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets
import pandas as pd

from ._forms import button

PAGE = 12
"""Rows on a page."""


class TickTable:
    """Rows with a tick box each; the heads of the columns are buttons that sort.

    Parameters
    ----------
    columns : dict of str to (heading, width, format)
        The width in CSS; the format a callable that makes text.
    on_ticks : callable
        Called with nothing when the ticks have changed.
    on_row : callable
        Called with the index label of the row whose button was clicked.

    Attributes
    ----------
    frame : pd.DataFrame
        What is shown, in the order that is shown.
    ticked : set
        Labels of the ticked rows.
    """

    def __init__(
        self, columns: dict[str, tuple[str, str, Callable[[Any], str]]], on_ticks: Callable[[], None],
        on_row: Callable[[Any], None],
    ) -> None:  # fmt: skip
        self.columns, self.on_ticks, self.on_row = columns, on_ticks, on_row
        self.frame, self.ticked = pd.DataFrame(columns=list(columns)), set[Any]()
        self.order, self.falling, self.page, self._filling = "", False, 0, False
        self.heads = {name: self._head(name) for name in columns}
        self._grid = " ".join(width for _, width, _ in columns.values())
        self._rows = [self._row(k) for k in range(PAGE)]
        self.all, self.none = (button(text, f"tick-{text.split()[1]}") for text in ("tick all", "tick none"))
        self.back, self.next = (button(text, f"page-{text}") for text in ("back", "next"))
        self.count = ipywidgets.HTML()
        self.count.add_class("ogive-count")
        self.all.on_click(lambda _: self.tick(self.frame.index))
        self.none.on_click(lambda _: self.tick(()))
        self.back.on_click(lambda _: self.turn(-1))
        self.next.on_click(lambda _: self.turn(1))
        heads = ipywidgets.GridBox(
            list(self.heads.values()), layout={"grid_template_columns": self._grid, "flex": "1 1 0"}
        )
        blank = ipywidgets.HTML(layout={"width": "28px"})
        foot = ipywidgets.HBox(
            [self.all, self.none, self.count, self.back, self.next], layout={"align_items": "center"}
        )
        self.widget = ipywidgets.VBox([ipywidgets.HBox([blank, heads]), *(row for row, *_ in self._rows), foot])
        self.widget.add_class("ogive-scenes")

    def put(self, frame: pd.DataFrame, ticked: Iterable[Any]) -> None:
        """Show other rows; the index holds their labels."""
        self.frame, self.ticked, self.page = frame, set(ticked), 0
        self.sort(self.order, keep=True) if self.order in frame else self.fill()

    def sort(self, name: str, *, keep: bool = False) -> None:
        """Sort by a column; a second time the other way round."""
        self.falling = self.falling if keep else name == self.order and not self.falling
        self.order = name
        self.frame = self.frame.sort_values(name, ascending=not self.falling, kind="stable")
        for key, head in self.heads.items():
            head.icon = "" if key != name else "caret-down" if self.falling else "caret-up"
        self.fill()

    def tick(self, labels: Iterable[Any]) -> None:
        """Tick these rows and no others."""
        self.ticked = set(labels)
        self.fill()
        self.on_ticks()

    def turn(self, pages: int) -> None:
        """Show another page."""
        last = max(0, (len(self.frame) - 1) // PAGE)
        self.page = min(max(0, self.page + pages), last)
        self.fill()

    def fill(self) -> None:
        """Write the page into its rows."""
        shown = self.frame.iloc[self.page * PAGE : (self.page + 1) * PAGE]
        self._filling = True
        for k, (row, box, first, cells) in enumerate(self._rows):
            row.layout.visibility = "visible" if k < len(shown) else "hidden"
            if k >= len(shown):
                continue
            label, record = shown.index[k], shown.iloc[k]
            texts = [form(record[name]) for name, (_, _, form) in self.columns.items()]
            box.value, box.tooltip = label in self.ticked, f"use {label}"
            first.description, first.tooltip = texts[0], f"{label}: show it on the map"
            cells.value = self._cells(texts[1:])
        self._filling = False
        pages = max(1, -(-len(self.frame) // PAGE))
        self.count.value = f"<b>{len(self.ticked)}</b> of {len(self.frame)} ticked · page {self.page + 1} of {pages}"
        self.back.disabled, self.next.disabled = self.page == 0, self.page >= pages - 1

    def _cells(self, texts: list[str]) -> str:
        widths = self._grid.split(" ", 1)[1] if " " in self._grid else ""
        parts = "".join(f"<span>{html.escape(text)}</span>" for text in texts)
        return f'<div class="ogive-cells" style="grid-template-columns:{widths}">{parts}</div>'

    def _head(self, name: str) -> ipywidgets.Button:
        made = button(self.columns[name][0], "head", lambda: self.sort(name), tooltip="sort")
        made.add_class(f"ogive-sort-{name.replace('_', '-')}")
        return made

    def _row(self, k: int) -> tuple[Any, ...]:
        box = ipywidgets.Checkbox(indent=False, layout={"width": "28px"})
        box.add_class("ogive-tick")
        box.observe(lambda change: self._ticked(k, change["new"]), "value")
        first = ipywidgets.Button(layout={"width": next(iter(self.columns.values()))[1]})
        first.add_class("ogive-row")
        first.on_click(lambda _: self.on_row(self.frame.index[self.page * PAGE + k]))
        cells = ipywidgets.HTML(layout={"flex": "1 1 0"})
        return ipywidgets.HBox([box, first, cells], layout={"visibility": "hidden"}), box, first, cells

    def _ticked(self, k: int, on: bool) -> None:
        if self._filling:
            return
        label = self.frame.index[self.page * PAGE + k]
        self.tick(self.ticked | {label} if on else self.ticked - {label})
