"""A small run whose scenes need no files: what it reads and inverts is counted."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import geopandas as gpd
import numpy as np
import pandas as pd
import pystac
import yaml
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from shapely.geometry import box

from .. import _read, blocks, summary
from ..invert import _block
from .readers import FakeReader

GRID = GeoBox((128, 260), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")
WEST = 601300.0
"""Where scenes with "half" in their names end."""
INVERTED: list[tuple[int, ...]] = []
"""Shapes (pairs, y, x) of the blocks that were inverted in this process."""


def _pixels(scene: str, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """A texture that moves, with a wave of its own on every day."""
    day = (pd.Timestamp(scene.split("_")[2]) - pd.Timestamp("2021-07-01")).days
    rng = np.random.default_rng(3)
    wave, phase = rng.uniform(0.004, 0.1, (40, 2)) * rng.choice([-1, 1], (40, 2)), rng.uniform(0, 6.28, 40)
    waves = (np.cos(w[0] * (y - 0.5 * day) + w[1] * (x + 0.6 * day) + p) for w, p in zip(wave, phase, strict=True))
    dn = 3000 + 100 * sum(waves) + 20 * np.cos(0.05 * x + 0.04 * y + day)
    return np.where(x > WEST, np.nan, dn) if "half" in scene else np.asarray(dn)


READER = FakeReader(_pixels)
"""Reads every scene in `counted_run`."""


@contextmanager
def counted_run() -> Iterator[None]:
    """Read by `READER`, note inversions in `INVERTED`, cut blocks of 8 pairs and 32 cells, and draw no figures."""
    READER.reads.clear()
    INVERTED.clear()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(_read.READERS, {"odc": _Reader}))
        stack.enter_context(mock.patch.object(blocks, "_TILE_PIXELS", 128))
        stack.enter_context(mock.patch.object(blocks, "BATCH", 8))
        stack.enter_context(mock.patch.object(sys.modules["ogive.invert"], "_block", _counted))
        stack.enter_context(mock.patch.object(summary, "write", _report))
        yield


@contextmanager
def unreadable(name: str, east: float) -> Iterator[None]:
    """Scenes with this in their names cannot be read east of a line; the coarse look at whole scenes can."""
    real: Callable[..., Any] = READER.pixels

    def failing(scene: str, y: NDArray[np.float64], x: NDArray[np.float64]) -> Any:
        if name in scene and x.size > 40 and x.max() > east:
            raise OSError("no such tile")
        return real(scene, y, x)

    with mock.patch.object(READER, "pixels", failing):
        yield


def run_file(folder: Path, scenes: Sequence[str], **sections: Any) -> Path:
    """A run file with its scenes.

    Parameters
    ----------
    folder : Path
    scenes : sequence of str
        A date, and after a blank something to put into the name: "2021-07-01", "2021-07-06 half".
    **sections
        Sections of the run file to replace.
    """
    folder.mkdir(exist_ok=True)
    pystac.ItemCollection([_item(s) for s in scenes], clone_items=False).save_object(str(folder / "items.json"))
    rock = gpd.GeoDataFrame(geometry=[box(600000, 5097500, 600400, 5100000)], crs="EPSG:32632")
    rock.to_file(folder / "rock.gpkg")
    content = {
        "output": "result",
        "search": {"source": "items.json"},
        "pairs": {"days": [5, 60], "same_orbit": False},
        "kernel": {"name": "ncc", "chip": 16, "search": 3, "step": 4, "refine": "quadric"},
        "stable": {"rock": "rock.gpkg", "buffer": 0},
        "invert": {"every": "10D"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump({**content, **sections}))
    return folder / "run.yaml"


def _item(scene: str) -> pystac.Item:
    """A Sentinel-2 item without files; "zone" in its name puts it into another one."""
    date, _, more = scene.partition(" ")
    box = GRID.geographic_extent
    item = pystac.Item(
        id=f"S2A_32TPS_{date.replace('-', '')}{'_' * bool(more)}{more}",
        geometry=box.json, bbox=list(box.boundingbox), datetime=pd.Timestamp(date, tz="UTC").to_pydatetime(),
        collection="sentinel-2-l2a",
        properties={"platform": "sentinel-2a", "constellation": "sentinel-2", "sat:relative_orbit": 22,
                    "eo:cloud_cover": 5.0, "view:sun_azimuth": 150.0, "view:sun_elevation": 50.0,
                    "s2:processing_baseline": "03.01", "proj:code": f"EPSG:{32633 if 'zone' in more else 32632}"},
    )  # fmt: skip
    fields = {"proj:shape": list(GRID.shape), "proj:transform": list(GRID.affine)[:6]}
    item.add_asset("nir", pystac.Asset(f"{item.id}_nir.tif", extra_fields=fields))
    return item


class _Reader:
    """What the name of a loader stands for: always the one reader that counts."""

    def read(self, asset: _read.Asset, window: GeoBox, resampling: str) -> NDArray[np.float32]:
        return READER.read(asset, window, resampling)


def _report(output: Path, *told: Any) -> Path:
    (output / "report.html").write_text("figures take longer than all the rest")
    return output / "report.html"


def _counted(*arguments: Any, **options: Any) -> Any:
    INVERTED.append(arguments[0].shape)
    return _block(*arguments, **options)
