"""Random tilings, batches, threads and orders of scenes: one result."""

import random
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pystac
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from ...cube import open_cube
from ...invert import invert
from ...kernels import NCC
from ...pairs import make_pairs
from ...store import open_velocity, write
from ...track import track
from ..readers import FakeReader
from ..velocity_cubes import velocity_cube
from . import Row, trials

GRID = GeoBox((120, 136), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")
KERNELS = (
    NCC(chip=16, search=2, step=8, refine="quadric"),
    NCC(chip=(12, 24), search=3, step=8),
    NCC(chip=16, search=3, step=8, enhance="wallis", refine="fixed"),
)


def random_tilings(short: bool, seed: int) -> Row:
    """Matching and inversion, cut up at random; every fifth matching goes through a store."""
    count = 15 if short else 1000
    draw = random.Random(seed)
    items = [_item(number) for number in range(4)]
    whole = [_matched(items, kernel, 1000, 100, 1) for kernel in KERNELS]
    cube = velocity_cube("100")[0].isel(y=slice(6), x=slice(6))
    series = invert(cube).compute()
    if any(not 0.2 < np.isfinite(ds["vx"].values).mean() < 1 for ds in [*whole, series]):
        raise AssertionError("the reference has no values, or no gaps: nothing to compare")
    with tempfile.TemporaryDirectory() as folder:

        def cut(number: int) -> list[str]:
            if number % 3 == 2:
                chunks = {"mid_date": draw.randint(7, 100), "y": draw.randint(1, 6), "x": draw.randint(1, 6)}
                with dask.config.set(scheduler="threads", num_workers=draw.randint(1, 4)):
                    return _compared("inversion", invert(cube.chunk(chunks)).compute(), series)
            which = draw.randrange(len(KERNELS))
            order = draw.sample(items, len(items))
            store = Path(folder, f"{number}.zarr") if number % 5 == 0 else None
            cuts = draw.randint(2, 17), draw.randint(1, 6), draw.randint(1, 4)
            return _compared("matching", _matched(order, KERNELS[which], *cuts, store), whole[which])

        return trials(
            "random tiling, batch of pairs, threads, order of scenes", "difference exactly 0", count, seed, cut,
            ("matching: equal", "inversion: equal"),
        )  # fmt: skip


def _compared(name: str, ds: xr.Dataset, expected: xr.Dataset) -> list[str]:
    """Values as bytes, so that NaN equals NaN and -0 does not equal 0."""
    names = [n for n, v in expected.variables.items() if v.dtype.kind in "fiuM"]
    return [f"{name}: {'equal' if all(_bytes(ds[n]) == _bytes(expected[n]) for n in names) else 'DIFFERENT'}"]


def _bytes(array: xr.DataArray) -> bytes:
    return np.ascontiguousarray(array.values).tobytes()


def _matched(
    items: list[pystac.Item], kernel: NCC, tile: int, batch: int, threads: int, store: Path | None = None
) -> xr.Dataset:
    cube = open_cube(items, "nir", loader=FakeReader(_pixels))
    velocity = track(cube, make_pairs(cube), kernel, tile=tile, batch=batch)
    if store:
        return open_velocity(write(velocity, store, progress=False, workers=threads)).compute()
    with dask.config.set(scheduler="threads", num_workers=threads):
        return velocity.compute()


def _pixels(scene: str, y: Any, x: Any) -> Any:
    """Waves that drift with the day of the scene, and a hole that drifts faster."""
    day = int(scene.split("_")[2][-2:])
    east, north = x - 0.8 * day, y - 0.5 * day
    waves = [(0.021, 0.043), (0.061, -0.017), (0.038, 0.029), (-0.011, 0.072), (0.083, 0.051)]
    value = 3000 + sum(150 * np.cos(p * north + q * east) for p, q in waves)
    return np.where(np.hypot(y - 5099400, x - 600600 - 20 * day) < 100, np.nan, value)


def _item(number: int) -> pystac.Item:
    when = datetime(2021, 7, 1, tzinfo=UTC) + timedelta(days=8 * number)
    box = GRID.geographic_extent
    item = pystac.Item(
        id=f"S2A_32TPS_{when:%Y%m%d}_0_L2A", geometry=box.json, bbox=list(box.boundingbox), datetime=when,
        collection="sentinel-2-l2a",
        properties={"platform": "sentinel-2a", "constellation": "sentinel-2", "sat:relative_orbit": 22,
                    "eo:cloud_cover": 5.0, "view:sun_azimuth": 150.0, "view:sun_elevation": 50.0,
                    "s2:processing_baseline": "03.01", "proj:code": "EPSG:32632"},
    )  # fmt: skip
    fields = {"proj:shape": list(GRID.shape), "proj:transform": list(GRID.affine)[:6]}
    item.add_asset("nir", pystac.Asset(f"{item.id}_nir.tif", extra_fields=fields))
    return item
