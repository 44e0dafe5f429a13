"""A store that is looked at: in full for a place, coarse for the map."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..._storage import is_url
from ...export import time_dimension
from ...overview import SMALL, beside, overview, quick, state
from ...store import open_velocity


@dataclass
class Source:
    """One store.

    Parameters
    ----------
    name : str
    path : str, Path or xr.Dataset
        Where it lies, or an open one.
    full : xr.Dataset
        Lazy; a click reads the chunks of one place.
    maps : xr.Dataset or None
        The overview, one read per date; None until it is made.
    state : str
        The fingerprint of the store.
    """

    name: str
    path: Any
    full: xr.Dataset
    maps: xr.Dataset | None
    state: str

    def is_current(self, path: Any) -> bool:
        """Whether this is the store of that path, and it has not been written again since."""
        if isinstance(self.path, xr.Dataset) or isinstance(path, xr.Dataset):
            return self.path is path
        return str(self.path) == str(path) and self.state == state(path)

    @property
    def order(self) -> NDArray[np.int64]:
        """Positions in time, in the order of their dates; the pairs of a velocity need not be in it."""
        time = time_dimension(self.full)
        return np.argsort(self.full[time].values, kind="stable") if time else np.zeros(1, np.int64)

    def nearest(self, moment: np.datetime64) -> int:
        """The position whose date is next to a moment."""
        return int(np.abs(self.full[time_dimension(self.full)].values - moment).argmin())

    def part(self, south: float, west: float, north: float, east: float) -> xr.Dataset | None:
        """What lies within these bounds [m], lazily and in full; None if the overview is as fine, or it is too much."""
        if self.maps is None or self.maps.sizes["x"] >= self.full.sizes["x"]:
            return None
        y, x = self.full["y"].values, self.full["x"].values
        half = abs(x[-1] - x[0]) / (x.size - 1) / 2
        rows = np.flatnonzero((y > south - half) & (y < north + half))
        columns = np.flatnonzero((x > west - half) & (x < east + half))
        if min(rows.size, columns.size) < 2:
            return None
        found = self.full.isel(y=slice(rows[0], rows[-1] + 1), x=slice(columns[0], columns[-1] + 1))
        return found if found["vx"].size <= SMALL else None

    def make_overview(self) -> None:
        """Make the overview beside the store, or in a temporary folder where nobody may write."""
        ours = isinstance(self.path, str | Path) and not is_url(str(self.path))
        if ours and os.access(Path(self.path).parent, os.W_OK):
            place = Path(beside(self.path))
        else:
            place = Path(tempfile.mkdtemp(prefix="ogive-")) / "overview.zarr"
        self.maps = open_velocity(overview(self.path, place, progress=False))


def open_source(name: str, path: Any) -> Source:
    """Open a store; `maps` is there if they can be shown at once."""
    full = path if isinstance(path, xr.Dataset) else open_velocity(path)
    return Source(name, path, full, quick(path), state(path))
