"""A map in the grid's own coordinates: no pixel is moved, whatever the projection.

Leaflet's simple coordinate system takes metres of the grid as they are, y up, x right; so its scale bar and a click are
exact in every projection, the polar ones too. Web tiles, which exist in one projection only, have no place on it.
"""

import base64
import html
from collections.abc import Callable, Mapping
from typing import Any

import ipyleaflet
import ipywidgets
import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from odc.geo.geobox import GeoBox

from .. import maps, style
from ..layers import Layer, reason_entries, ticks

WIDTH, HEIGHT = 610, 410
"""Of the map on the page [pixel]."""
LARGEST = 200
"""A cell at the closest zoom [pixel]."""
_CRISP = """<style>
.ogive-map .leaflet-image-layer {image-rendering: pixelated}
.ogive-map .leaflet-container, .ogive-map.leaflet-container {background: white; box-shadow: inset 0 0 0 1px #999}
.ogive-map .leaflet-div-icon {background: none; border: none}
.ogive-map .leaflet-div-icon b {display: block; width: 20px; height: 20px; border-radius: 50%; border: 2px solid white;
  color: white; font: bold 12px/20px sans-serif; text-align: center; box-shadow: 0 0 3px black}
.ogive-scale {width: 550px; margin: 0 30px; line-height: 1.4}
.ogive-bar {height: 14px; border: 1px solid #777}
.ogive-ticks {position: relative; height: 18px}
.ogive-ticks span {position: absolute; transform: translateX(-50%)}
.ogive-swatch {display: inline-block; width: 14px; height: 14px; border: 1px solid #777; vertical-align: -2px}
</style>"""
_EMPTY = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


class GridMap:
    """One layer at a time, arrows, pins, lines, a colour bar; clicks in coordinates of the grid.

    Parameters
    ----------
    clicked : callable
        Of (x, y) [m].
    moved : callable
        Called without arguments when another part is in view.

    Attributes
    ----------
    widget : ipywidgets.Widget
    leaflet : ipyleaflet.Map
    """

    def __init__(self, clicked: Callable[[float, float], Any], moved: Callable[[], Any]) -> None:
        self.clicked = clicked
        self.picture, self.detail = (
            ipyleaflet.ImageOverlay(url=_EMPTY, bounds=((0.0, 0.0), (1.0, 1.0))) for _ in range(2)
        )
        thick: dict[str, Any] = {"fill": False, "locations": [], "opacity": 0.9}
        self.arrows = [ipyleaflet.Polyline(color=c, weight=w, **thick) for c, w in (("white", 3), ("black", 1))]
        self.lines = [ipyleaflet.Polyline(color=c, weight=w, **thick) for c, w in (("white", 6), (style.OUTLINE, 3))]
        self.pins = ipyleaflet.LayerGroup()
        self.leaflet = ipyleaflet.Map(
            crs=ipyleaflet.projections.Simple, layers=(self.picture, self.detail, *self.arrows, *self.lines, self.pins),
            center=(0, 0), zoom=0, min_zoom=-20, max_zoom=10, zoom_snap=0.25, zoom_delta=0.5, scroll_wheel_zoom=True,
            attribution_control=False, layout={"width": f"{WIDTH}px", "height": f"{HEIGHT}px"},
        )  # fmt: skip
        self.leaflet.add(ipyleaflet.ScaleControl(position="bottomleft", imperial=False))
        self.leaflet.add_class("ogive-map")
        self.leaflet.on_interaction(self._interaction)
        self.leaflet.observe(lambda _: moved(), "bounds")
        self.title, self.legend = ipywidgets.HTML(), ipywidgets.HTML()
        self.title.add_class("ogive-map-title")
        self.legend.add_class("ogive-legend")
        self.geobox: GeoBox | None = None
        self.layer: Layer | None = None
        self.with_arrows = True
        self.widget = ipywidgets.VBox([ipywidgets.HTML(_CRISP), self.title, self.leaflet, self.legend])

    def show(self, layer: Layer, title: str, *, arrows: bool = True) -> None:
        """Put a layer on the map; the view stays where it is as long as the grid does."""
        self.layer, self.with_arrows = layer, arrows
        if layer.geobox != self.geobox:
            self.geobox, box = layer.geobox, layer.geobox.boundingbox
            self.picture.bounds = _corners(layer)
            self.leaflet.center = ((box.bottom + box.top) / 2, (box.left + box.right) / 2)
            self.leaflet.zoom = float(
                np.floor(4 * np.log2(min(WIDTH / (box.right - box.left), HEIGHT / (box.top - box.bottom)))) / 4
            )
            self.leaflet.max_zoom = float(np.ceil(np.log2(LARGEST / abs(box.right - box.left) * layer.values.shape[1])))
        self.picture.url = _address(layer)
        self.sharpen(None)
        self.title.value = f"<b>{html.escape(title)}</b> &emsp; {north(layer.geobox)}"
        self.legend.value = legend(layer)

    def sharpen(self, part: Layer | None) -> None:
        """Lay a finer picture of the part in view, with arrows of its own, over the layer; None: take it away."""
        if part is not None:
            self.detail.bounds = _corners(part)
        self.detail.url = _EMPTY if part is None else _address(part)
        shown = self.layer if part is None else part
        lines = arrow_lines(shown) if shown is not None and self.with_arrows else []
        for polyline in self.arrows:
            polyline.locations = lines

    @property
    def view(self) -> tuple[float, float, float, float]:
        """South, west, north, east of what is in view [m]."""
        # Not `leaflet.bounds`: what the browser calls south stays within 90 degrees, whatever the projection.
        (y, x), cell = self.leaflet.center, 2.0**-self.leaflet.zoom
        return y - cell * HEIGHT / 2, x - cell * WIDTH / 2, y + cell * HEIGHT / 2, x + cell * WIDTH / 2

    def draw_pins(self, pins: Mapping[str, tuple[tuple[float, float], str, str]]) -> None:
        """Discs on the map: place, colour and letter by name."""
        self.pins.layers = tuple(
            ipyleaflet.Marker(
                location=(y, x), draggable=False, title=name, keyboard=False,
                icon=ipyleaflet.DivIcon(
                    html=f'<b style="background:{colour}">{html.escape(letter)}</b>',
                    icon_size=[24, 24], icon_anchor=[12, 12],
                ),
            )
            for name, ((x, y), colour, letter) in pins.items()
        )  # fmt: skip

    def draw_line(self, line: Any) -> None:
        """A line of (x, y); none without."""
        places = [] if line is None else [(float(y), float(x)) for x, y in line]
        for polyline in self.lines:
            polyline.locations = places

    def _interaction(self, **event: Any) -> None:
        if event.get("type") == "click":
            y, x = event["coordinates"]
            self.clicked(float(x), float(y))


def _address(layer: Layer) -> str:
    return "data:image/png;base64," + base64.b64encode(layer.png()).decode()


def _corners(layer: Layer) -> tuple[tuple[float, float], tuple[float, float]]:
    box = layer.geobox.boundingbox
    return (box.bottom, box.left), (box.top, box.right)


def arrow_lines(layer: Layer) -> list[list[tuple[float, float]]]:
    """Flow arrows as lines of (y, x) [m]: shaft, then head."""
    if layer.vectors is None:
        return []
    step = max(2, round(max(layer.values.shape) / maps.ARROWS_ACROSS))
    row, column, east, north, speed = maps.flow_arrows(*layer.vectors, step)
    to_map = layer.geobox.affine
    size = 0.35 * step * abs(to_map.a)
    low, high = float(layer.norm.vmin or 0.0), float(layer.norm.vmax or 0.0)
    keep = speed >= (2 * low if low > 0 else 0.1 * high)
    y, x = (to_map.f + to_map.e * row)[keep], (to_map.c + to_map.a * column)[keep]
    along = np.stack([north[keep], east[keep]], -1) * size
    across = np.stack([-along[:, 1], along[:, 0]], -1)
    middle = np.stack([y, x], -1)
    tip = middle + along
    parts = [middle - along, tip, tip - 0.7 * along + 0.45 * across, tip, tip - 0.7 * along - 0.45 * across]
    return [[(float(a), float(b)) for a, b in arrow] for arrow in np.stack(parts, 1).round(2)]


def north(geobox: GeoBox) -> str:
    """An arrow to true north, which in a polar projection may be anywhere, as HTML."""
    east, up = style.north_direction(geobox)
    turn = f"display:inline-block;transform:rotate({np.degrees(np.arctan2(east, up)):.0f}deg)"
    return f'N <span style="{turn}" title="true north at the centre of the map">⬆</span>'


def legend(layer: Layer) -> str:
    """The colour bar, or the reasons with their shares, as HTML."""
    if layer.name == "flag":
        cells = [
            f'<span style="white-space:nowrap">{_swatch(colour)} {html.escape(text)} ({100 * share:.1f} %)</span>'
            for colour, text, share in reason_entries(layer.values)
        ]
        return f'<div class="ogive-scale">{" &emsp; ".join(cells)}</div>'
    colours = ", ".join(to_hex(c) for c in mpl.colormaps[layer.colours](np.linspace(0, 1, 24)))
    marks = "".join(
        f'<span style="left:{100 * float(layer.norm(t)):.1f}%">{t:g}</span>'.replace(">-", ">−")
        for t in ticks(layer.norm)
    )
    missing = f"{_swatch(style.INVALID)} nothing valid ({100 * (1 - float(layer.valid.mean())):.1f} %)"
    return (
        f'<div class="ogive-scale">'
        f'<div class="ogive-bar" style="background:linear-gradient(to right, {colours})"></div>'
        f'<div class="ogive-ticks">{marks}</div>{html.escape(layer.label)} &emsp; {missing}</div>'
    )


def _swatch(colour: str) -> str:
    return f'<span class="ogive-swatch" style="background:{colour}"></span>'
