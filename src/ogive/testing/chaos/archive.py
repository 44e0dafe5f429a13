"""Reading while the archive fails: small scenes behind a server with faults, through `track` and `write`.

What must come out is known: the bytes of a run over healthy files. A fault that passes changes none of them; a scene
that is gone or damaged flags its own pairs and changes no other.
"""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter, shift

from ... import flags, options, store
from ...cube import open_cube
from ...errors import StoreError
from ...kernels import NCC
from ...pairs import make_pairs
from ...track import track
from ..servers import Faults, remote_range_server, sign
from ..stores import contents
from . import Row, trials

GRID = GeoBox((192, 208), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")
KERNEL = NCC(chip=16, search=4, step=8, refine="quadric")
SHARES = (0.01, 0.1, 0.3)
SLOW = 0.02
"""Ten times what a request to the server takes [s]."""
QUICK = {"timeout": 1.0, "backoff": 0.01, "attempts": 5}


def scenes(folder: Path, count: int = 4) -> list[pystac.Item]:
    """Sentinel-2 items with one COG each in a folder: a texture that moves by (0.6, -0.8) px a scene."""
    texture = gaussian_filter(np.random.default_rng(8).normal(0, 1, (260, 280)), 1.5)
    items = []
    for k in range(count):
        image = shift(texture, (0.6 * k, -0.8 * k), order=3, mode="wrap")[: GRID.shape.y, : GRID.shape.x]
        date = datetime(2021, 7, 1, 10, tzinfo=UTC) + timedelta(days=5 * k)
        name = f"S2A_32TPS_{date:%Y%m%d}_0_L2A"
        profile = {"height": GRID.shape.y, "width": GRID.shape.x, "count": 1, "dtype": "uint16", "nodata": 0}
        profile |= {"crs": str(GRID.crs), "transform": GRID.affine, "driver": "COG", "blocksize": 128}
        with rasterio.open(folder / f"{name}.tif", "w", **profile) as file:
            file.write(np.round(4000 + 3000 * image).clip(1, 65535).astype(np.uint16), 1)
        box = GRID.geographic_extent
        item = pystac.Item(
            name, box.json, list(box.boundingbox), date,
            {"platform": "sentinel-2a", "constellation": "sentinel-2", "proj:code": "EPSG:32632",
             "sat:relative_orbit": 22, "eo:cloud_cover": 1.0, "view:sun_azimuth": 150.0, "view:sun_elevation": 50.0,
             "s2:processing_baseline": "03.01"},
            collection="sentinel-2-l2a",
        )  # fmt: skip
        fields = {"proj:shape": list(GRID.shape), "proj:transform": list(GRID.affine)[:6]}
        item.add_asset("nir", pystac.Asset(str(folder / f"{name}.tif"), extra_fields=fields))
        items.append(item)
    return items


def velocity(items: list[pystac.Item], url: str = "", **how: Any) -> xr.Dataset:
    """The lazy velocity of the items, in blocks of 16 x 16 cells and 4 pairs.

    Parameters
    ----------
    items : list of pystac.Item
    url : str
        Where the files are served; "" reads them from the disk.
    how : dict
        `sign` and `loader` of `open_cube`.
    """
    served = [item.clone() for item in items]
    for item in served if url else ():
        item.assets["nir"].href = f"{url}/{Path(item.assets['nir'].href).name}"
    cube = open_cube(served, "nir", **how)
    return track(cube, make_pairs(cube), KERNEL, tile=16, batch=4)


def _write(lazy: xr.Dataset, path: Path, most: int) -> None:
    """Write until the store is whole, a few times at most."""
    for _ in range(most - 1):
        with suppress(StoreError):
            store.write(lazy, path, progress=False, workers=2)
            return
    store.write(lazy, path, progress=False, workers=2)


def failing_reads(short: bool, seed: int) -> Row:
    """1, 10 and 30 % of the requests fail for a time; every fourth run has slow answers instead."""

    def passing(folder: Path, number: int) -> list[str]:
        share = (*SHARES, 0.0)[-1 - number % 4]
        faults = Faults(share, seed=seed + number, silence=1.2, latency=0.0 if share else SLOW)
        result, made = _compared(folder, 3 if short else 6, {"faults": faults})
        return [f"{share:.0%} fail: {result}" if share else f"slow: {result}", *["a request failed"] * made]

    good = ("a request failed", "slow: identical", *(f"{share:.0%} fail: identical" for share in SHARES))
    wanted = "the bytes of a run over healthy files"
    return _row(
        "1 ... 30 % of the reads fail for a time; slow answers", wanted, 2 if short else 12, seed, passing, good
    )


def signed_addresses(short: bool, seed: int) -> Row:
    """Addresses that live 2 s, in runs that last longer."""
    life = 0.5 if short else 2.0

    def expiring(folder: Path, number: int) -> list[str]:
        server = {"secret": "key", "faults": Faults(latency=0.05 if short else 0.2)}
        start = time.perf_counter()
        result, _ = _compared(folder, 3 if short else 6, server, sign=partial(sign, secret="key", life=life), most=1)
        # An address signed when the job was made would have run out long before its end.
        return [result if time.perf_counter() - start > 2 * life else "too short to tell"]

    return _row("signed addresses that live 2 s", "0 failed runs", 1 if short else 20, seed, expiring, ("identical",))


def lost_scenes(short: bool, seed: int) -> Row:
    """A scene that is missing (404), or whose pixels are damaged, in every second run."""
    draw = random.Random(seed)

    def lost(folder: Path, number: int) -> list[str]:
        kind = ("missing", "damaged")[number % 2]
        return [f"{kind}: {_lost(folder, kind, 4 if short else 6, draw)}"]

    good = [f"{kind}: its pairs flagged, the rest identical" for kind in ("missing", "damaged")]
    wanted = "exactly its pairs flagged, the rest identical"
    return _row("a scene is gone or corrupt for good", wanted, 2 if short else 40, seed, lost, good)


def _row(
    fault: str, wanted: str, count: int, seed: int, trial: Callable[[Path, int], list[str]], good: Sequence[str]
) -> Row:
    """Trials in folders of their own."""

    def alone(number: int) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            return trial(Path(folder), number)

    return trials(fault, wanted, count, seed, alone, good)


def _compared(folder: Path, count: int, server: dict[str, Any], *, most: int = 4, **how: Any) -> tuple[str, int]:
    """A run over an archive in trouble beside one over healthy files, and how many requests failed."""
    items, healthy = _healthy(folder, count)
    with options.using(**QUICK), remote_range_server(folder, **server) as log:
        _write(velocity(items, log.url, **how), folder / "found.zarr", most)
    same = contents(folder / "found.zarr") == healthy
    return "identical" if same else "DIFFERENT", sum(log.faults.values())


def _lost(folder: Path, kind: str, count: int, draw: random.Random) -> str:
    items, _ = _healthy(folder, count)
    bad = draw.choice(items).id
    torn = folder / "archive"
    torn.mkdir()
    for item in items:
        whole = Path(item.assets["nir"].href).read_bytes()
        (torn / f"{item.id}.tif").write_bytes(_damaged(whole) if item.id == bad and kind == "damaged" else whole)
    missing = [f"/{bad}.tif"] if kind == "missing" else []
    with options.using(**QUICK), remote_range_server(torn, missing=missing) as log:
        _write(velocity(items, log.url), folder / "bad.zarr", 1)
    found, healthy = (store.open_velocity(folder / f"{name}.zarr").load() for name in ("bad", "healthy"))
    of_bad = (found["image_id1"].values == bad) | (found["image_id2"].values == bad)
    if of_bad.sum() != count - 1:
        return "a wrong number of pairs"
    unreadable = flags.has(found["flag"].values, flags.UNREADABLE)
    if not (unreadable == of_bad[:, None, None]).all() or np.isfinite(found["vx"].values[of_bad]).any():
        return "OTHER PAIRS FLAGGED"
    rest, expected = (ds.isel(mid_date=~of_bad).drop_attrs(deep=False) for ds in (found, healthy))
    return "its pairs flagged, the rest identical" if rest.identical(expected) else "THE REST DIFFERS"


def _damaged(content: bytes) -> bytes:
    """The file with its pixels overwritten, its header as it was."""
    at = len(content) // 3
    return content[:at] + bytes(len(content) - at)


def _healthy(folder: Path, count: int) -> tuple[list[pystac.Item], dict[str, str]]:
    """The items of a folder and the store of a run over healthy files."""
    items = scenes(folder, count)
    path = folder / "healthy.zarr"
    store.write(velocity(items), path, progress=False, workers=2)
    return items, contents(path)
