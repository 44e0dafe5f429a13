"""A reader that needs no file: pixels are a function of map position, and every read is counted."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from .._read import Asset


@dataclass
class FakeReader:
    """Stands in for odc-stac and stackstac in tests.

    Parameters
    ----------
    pixels : callable
        `pixels(scene_id, y, x)` with map coordinates [m] of shape (h, 1) and (1, w); returns (h, w).
    fail : dict of str to Exception
        Scenes that cannot be read, and how they fail.

    Examples
    --------
    >>> from affine import Affine
    >>> window = GeoBox((2, 3), Affine(10, 0, 0, 0, -10, 0), "EPSG:32632")
    >>> reader = FakeReader(lambda scene, y, x: y + x)
    >>> reader.read(Asset("a", "a.tif", window), window, "cubic").tolist()
    [[0.0, 10.0, 20.0], [-10.0, 0.0, 10.0]]
    >>> reader.count
    1
    """

    pixels: Callable[[str, NDArray[np.float64], NDArray[np.float64]], NDArray[np.floating]]
    fail: dict[str, Exception] = field(default_factory=dict)
    reads: list[tuple[str, tuple[int, int]]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def count(self) -> int:
        """Number of reads so far."""
        return len(self.reads)

    def read(self, asset: Asset, window: GeoBox, resampling: str) -> NDArray[np.float32]:
        """Evaluate the function at the window's pixel centres; NaN outside the scene."""
        with self._lock:
            self.reads.append((asset.scene, (int(window.shape[0]), int(window.shape[1]))))
        if asset.scene in self.fail:
            raise self.fail[asset.scene]
        a = window.affine
        y = a.f + a.e * (np.arange(window.shape[0])[:, None] + 0.5)
        x = a.c + a.a * (np.arange(window.shape[1])[None, :] + 0.5)
        values = np.asarray(self.pixels(asset.scene, y, x), np.float32)
        box = asset.geobox.boundingbox
        inside = (y > box.bottom) & (y < box.top) & (x > box.left) & (x < box.right)
        return np.where(inside, values, np.float32(np.nan))

    def __getstate__(self) -> dict[str, object]:
        """Locks do not travel."""
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """A new lock where it arrives."""
        self.__dict__.update(state)
        self._lock = threading.Lock()
