"""What a map of a store can show (speed, its error, counts, reasons, differences), as pictures and as figures.

A `Layer` is one map with its colours; the explorer shows the picture of it, `layer_map` the figure. The colour maps
(viridis, magma, cividis; blue-red for differences) keep their order for colour-blind readers and in grey print.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.colors import LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from PIL import Image

from .. import grid
from ..errors import ParameterError
from ..export import map_at
from ..invert._series import with_speed_error
from . import maps, style

LAYERS = {
    "speed": ("v", style.SPEED_COLOURS, f"Surface speed ({style.SPEED_UNIT})"),
    "error": ("v_error", "magma", f"1-sigma error of the speed ({style.SPEED_UNIT})"),
    "count": ("count", "cividis", "Effective number of pairs"),
}
"""Layers with a colour bar: variable, colour map, label; a fourth one is `flag`."""


_HIGH = {"error": 90.0, "count": 98.0}
"""Percentile that the colours reach: a tenth of the errors may be as large as they like."""


@dataclass(frozen=True)
class Layer:
    """One map and how it is coloured.

    Parameters
    ----------
    name : str
        A key of `LAYERS`, "flag" or "difference".
    values : array (y, x)
        First row = north; of a flag map the number of the reason, see `maps.REASONS`.
    geobox : GeoBox
    label : str
        Of the colour bar.
    colours : str
        Colour map.
    norm : Normalize
    vectors : tuple of arrays (y, x), optional
        `vx`, `vy` for arrows.
    """

    name: str
    values: NDArray[Any]
    geobox: GeoBox
    label: str
    colours: str
    norm: Normalize
    vectors: tuple[NDArray[Any], NDArray[Any]] | None = None

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Where there is something to show."""
        return np.asarray(np.isfinite(self.values))

    def rgb(self) -> NDArray[np.uint8]:
        """The picture (y, x, 3); grey where there is nothing."""
        if self.name == "flag":
            return np.asarray(maps.REASON_RGB[self.values])
        # Below the lower limit of a logarithmic scale lies 0, which LogNorm would hide like a missing value.
        shown = np.maximum(self.values, self.norm.vmin or 0.0) if isinstance(self.norm, LogNorm) else self.values
        scaled = np.clip(np.nan_to_num(np.ma.filled(self.norm(shown), 0.0)), 0, 1)
        table = np.asarray(mpl.colormaps[self.colours](np.arange(256), bytes=True), np.uint8)[:, :3]
        colours: NDArray[np.uint8] = table[(scaled * 255.999).astype(np.uint8)]
        colours[~self.valid] = np.round(255 * np.array(to_rgba(style.INVALID)[:3])).astype(np.uint8)
        return colours

    def png(self) -> bytes:
        """The picture as a PNG, one pixel for each cell."""
        out = io.BytesIO()
        Image.fromarray(self.rgb()).save(out, "PNG", compress_level=1)
        return out.getvalue()


def layer(
    dataset: xr.Dataset, name: str = "speed", *, when: int | None = None, scale: str = "auto",
    limits: tuple[float, float] | None = None,
) -> Layer:  # fmt: skip
    """One map of a dataset, ready to be coloured.

    Parameters
    ----------
    dataset : xr.Dataset
        velocity, series or single map.
    name : {"speed", "error", "count", "flag"}
    when : int, optional
        Position in time; None: median over time, of flags the most frequent one.
    scale : {"auto", "linear", "log"}
        Of speed; auto decides by the range of the data (`style.speed_limits`). Others are linear.
    limits : (float, float), optional
        Ends of the colours; the same limits make maps comparable.

    Raises
    ------
    ParameterError
        An unknown layer or scale, one that the dataset does not have, `when` out of range, limits that do not fit.
    """
    if name != "flag" and name not in LAYERS:
        raise ParameterError("layer", rule=f"must be one of {', '.join((*LAYERS, 'flag'))}", value=repr(name))
    if name == "flag":
        shown, geobox = maps.reasons(dataset, when)
        return Layer("flag", shown, geobox, "", "", Normalize(-0.5, len(maps.REASONS) - 0.5))
    variable, colours, label = LAYERS[name]
    if name == "error":
        dataset = with_speed_error(dataset)
    vectors = ("vx", "vy") if name == "speed" else ()
    found = map_at(dataset, [*vectors, variable], when=when)
    values = found[variable].values
    norm = (
        style.speed_norm(values, scale, limits)
        if name == "speed"
        else style.plain_norm(values, limits, high=_HIGH[name])
    )
    arrows = (found["vx"].values, found["vy"].values) if vectors else None
    return Layer(name, values, grid.geobox_of(found), label, colours, norm, arrows)


def difference(first: xr.Dataset, second: xr.Dataset, *, limit: float | None = None) -> Layer:
    """`first` minus `second`, two single maps of speed on one grid, as a layer."""
    values = maps.subtracted(first, second, "v")
    limit = maps.difference_limit(values) if limit is None else limit
    label = f"Difference of speed ({style.SPEED_UNIT})"
    return Layer("difference", values, grid.geobox_of(first), label, style.DIFFERENCE_COLOURS, Normalize(-limit, limit))


def layer_map(
    dataset: xr.Dataset, name: str = "error", *, when: int | None = None, scale: str = "auto",
    limits: tuple[float, float] | None = None, title: str | None = None, path: str | Path | None = None,
    **options: Any,
) -> Figure:  # fmt: skip
    """Map of any layer: what the explorer shows, as a figure.

    Parameters
    ----------
    dataset, name, when, scale, limits
        As in `layer`; speed and flags are drawn by `speed_map` and `flag_map`.
    title : str, optional
        Default: the dates shown.
    path : path, optional
        Save the figure there.
    **options
        Of `speed_map`.

    Raises
    ------
    ParameterError
        As in `layer`.
    """
    if name == "speed":
        return maps.speed_map(dataset, when=when, scale=scale, limits=limits, title=title, path=path, **options)
    if name == "flag":
        return maps.flag_map(dataset, when=when, title=title, path=path)
    one = layer(dataset, name, when=when, scale=scale, limits=limits)
    text = title if title is not None else maps.time_text(dataset, when)
    return style.save(maps.value_figure(one.values, one.geobox, one.colours, one.norm, one.label, text), path)


def ticks(norm: Normalize) -> Sequence[float]:
    """Round numbers for a small colour bar, ends included.

    Examples
    --------
    >>> ticks(Normalize(0, 800)), ticks(LogNorm(10, 5000))
    ([0.0, 200.0, 400.0, 600.0, 800.0], [10.0, 100.0, 1000.0, 5000.0])
    """
    low, high = float(norm.vmin or 0.0), float(norm.vmax or 1.0)
    if isinstance(norm, LogNorm):
        decades = 10.0 ** np.arange(np.floor(np.log10(low)) + 1, np.log10(high))
        return [low, *decades.tolist(), high]
    return [float(f"{t:.4g}") for t in np.linspace(low, high, 5)]


def reason_entries(shown: NDArray[Any]) -> list[tuple[str, str, float]]:
    """Of a flag layer: colour, words and share of each reason, most frequent first.

    Examples
    --------
    >>> reason_entries(np.array([[0, 0], [0, 1]]))[1][1:]
    ('outside image', 0.25)
    """
    share = np.bincount(shown.ravel(), minlength=len(maps.REASONS)) / shown.size
    order = [i for i in np.argsort(-share, kind="stable") if share[i] > 0]
    return [(maps.REASONS[i][1], maps.REASONS[i][0], float(share[i])) for i in order]


__all__ = ["LAYERS", "Layer", "difference", "layer", "layer_map", "reason_entries", "ticks"]
