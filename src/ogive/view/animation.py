"""A map through time as an animated GIF."""

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure

from ..errors import ParameterError
from ..export import map_at, replacing, time_dimension
from . import maps, style


def speed_animation(
    velocity: xr.Dataset, path: str | Path, *, per_second: int = 4, scale: str = "auto",
    limits: tuple[float, float] | None = None, overwrite: bool = False,
) -> Figure:  # fmt: skip
    """The speed map of every date, one after the other, in the same colours; saved as an animated GIF.

    Parameters
    ----------
    velocity : xr.Dataset
        velocity or series; one with fewer dates by `isel`, a large one as its `overview`.
    path : path
        A `.gif`.
    per_second : int
        Dates per second.
    scale, limits
        As in `speed_map`; by default from the speeds of up to nine dates.
    overwrite : bool
        Replace an existing file.

    Returns
    -------
    Figure
        The last frame.

    Raises
    ------
    ParameterError
        Another suffix, no time, dates per second that are not positive.
    StoreError
        The file exists, or its folder does not.
    """
    time = time_dimension(velocity)
    if Path(path).suffix.lower() != ".gif" or time is None or per_second <= 0:
        rule = "needs a path that ends in .gif, a dataset with dates, and some of them per second"
        raise ParameterError("speed_animation", rule=rule, value=(str(path), time, per_second))
    order = np.argsort(velocity[time].values, kind="stable")
    some = order[np.unique(np.linspace(0, order.size - 1, 9).astype(int))]
    seen = np.stack([map_at(velocity, ["v"], when=int(k))["v"].values for k in some])
    norm = style.speed_norm(seen, scale, limits)
    ends = (float(norm.vmin or 0.0), float(norm.vmax or 1.0))
    kind = "linear" if type(norm).__name__ == "Normalize" else "log"
    first = int(order[0])
    figure = maps.speed_map(velocity, when=first, arrows=False, scale=kind, limits=ends)
    image, ax = figure.axes[0].images[0], figure.axes[0]
    with replacing(path, overwrite=overwrite) as part:
        writer = PillowWriter(fps=per_second)
        with writer.saving(figure, str(part), dpi=90):
            for k in order:
                speed = map_at(velocity, ["v"], when=int(k))["v"].values
                image.set_data(np.ma.masked_invalid(np.maximum(speed, ends[0])))
                ax.set_title(maps.time_text(velocity, int(k)), fontsize=10)
                writer.grab_frame()
    return figure
