"""Maps that need no network, on a plain ground or on a basemap; figures on the page."""

import base64
import math
from io import BytesIO
from typing import Any

import ipyleaflet
import ipywidgets
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from .. import style

AREA = {"color": "#D55E00", "weight": 2, "fillOpacity": 0.08}
OUTLINE = {"color": "#0072B2", "weight": 1, "fillOpacity": 0.12}
FOOTPRINT = {"color": "#555555", "weight": 1, "fillOpacity": 0.0, "dashArray": "4"}


def plain_map(basemap: Any, height: str) -> ipyleaflet.Map:
    """A map; without a basemap it asks nothing of any server."""
    ground = ipyleaflet.TileLayer(url="", name="none") if basemap is None else basemap
    made = ipyleaflet.Map(
        basemap=ground, center=(46.5, 8.0), zoom=4, scroll_wheel_zoom=True, attribution_control=basemap is not None,
        layout={"height": height, "width": "100%"},
    )  # fmt: skip
    made.add(ipyleaflet.ScaleControl(position="bottomleft", imperial=False))
    return made


def show_area(on: ipyleaflet.Map, bounds: tuple[float, float, float, float], pixels: int = 420) -> None:
    """Move a map so that west, south, east, north fill it."""
    west, south, east, north = bounds
    on.center = ((south + north) / 2, (west + east) / 2)
    tall = (north - south) / max(math.cos(math.radians(on.center[0])), 0.05)
    span = max(east - west, tall, 1e-4)
    on.zoom = float(np.clip(math.floor(math.log2(pixels * 360 / (256 * span))), 1, 16))


def layer(geometry: Any, look: dict[str, Any], name: str) -> ipyleaflet.GeoJSON:
    """A geometry (longitude, latitude) as a layer."""
    feature = {"type": "Feature", "properties": {}, "geometry": geometry.__geo_interface__}
    return ipyleaflet.GeoJSON(data={"type": "FeatureCollection", "features": [feature]}, style=look, name=name)


def replace(on: ipyleaflet.Map, old: Any, new: Any) -> Any:
    """Put a layer in the place of another; either may be None. The new one."""
    if old is not None:
        on.remove(old)
    if new is not None:
        on.add(new)
    return new


def picture(image: NDArray[Any], bounds: Any, name: str) -> ipyleaflet.ImageOverlay:
    """A grey image, NaN transparent, between the corners ((south, west), (north, east))."""
    low, high = style.robust_limits(image)
    grey = np.clip((np.nan_to_num(image, nan=low) - low) / (high - low), 0, 1)
    rgba = np.stack([grey, grey, grey, np.isfinite(image)], -1)
    return ipyleaflet.ImageOverlay(url=data_url(rgba), bounds=bounds, name=name)


def data_url(rgba: NDArray[Any]) -> str:
    """An image (y, x, 4) of 0 ... 1 as an address that holds it."""
    file = BytesIO()
    imsave(file, rgba, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def choice(options: list[tuple[str, Any]], value: Any) -> ipywidgets.Dropdown:
    """A list of which one is always chosen; None is a choice like the others."""
    made = ipywidgets.Dropdown(options=options)
    made.index = [found for _, found in options].index(value)
    return made


class Picture:
    """A figure on the page; nothing where there is none.

    Parameters
    ----------
    name : str
        Class of the widget.
    height : str
        At most.
    """

    def __init__(self, name: str, height: str) -> None:
        self.widget = ipywidgets.Image(format="png")
        self.widget.layout = {"max_width": "100%", "max_height": height, "object_fit": "contain"}
        self.widget.add_class(name)
        self.clear()

    def show(self, figure: Figure) -> None:
        """Show a figure."""
        self.widget.value, self.widget.layout.display = png(figure), ""

    def clear(self) -> None:
        """Show nothing."""
        self.widget.layout.display, self.widget.value = "none", b""


def png(figure: Figure, dpi: int = 90) -> bytes:
    """A figure as the bytes of a picture."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.05)
    return file.getvalue()
