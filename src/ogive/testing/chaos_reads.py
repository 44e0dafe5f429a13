"""Reading while the archive fails: small scenes behind a server with faults, through `track` and `write`.

    python -m ogive.testing.chaos_reads --scenes 12 --seed 3     # every case once, figures printed

What must come out is known: the bytes of a run over healthy files. A fault that passes changes none of them; a scene
that is gone or damaged flags its own pairs and changes no other.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
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

from .. import flags, options, store
from ..cube import open_cube
from ..errors import StoreError
from ..kernels import NCC
from ..pairs import make_pairs
from ..track import track
from .servers import Faults, remote_range_server, sign
from .stores import contents

GRID = GeoBox((192, 208), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")
KERNEL = NCC(chip=16, search=4, step=8, refine="quadric")
SHARES = (0.01, 0.1, 0.3)
QUICK = {"timeout": 1.0, "backoff": 0.01, "attempts": 5}


@dataclass(frozen=True)
class Figures:
    """What a run met.

    Parameters
    ----------
    name : str
    seconds : float
    requests : int
    faults : dict of str to int
        How often which fault was made.
    runs : int
        How often `write` was called until it was whole.
    flagged : int
        Pairs of unreadable scenes.
    """

    name: str
    seconds: float
    requests: int
    faults: dict[str, int]
    runs: int
    flagged: int = 0


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


def write(lazy: xr.Dataset, path: Path, most: int = 4) -> int:
    """Write until the store is whole; how many runs it took."""
    for run in range(1, most + 1):
        try:
            store.write(lazy, path, progress=False, workers=2)
        except StoreError:
            if run == most:
                raise
        else:
            return run
    raise AssertionError("unreachable")


def passing(folder: Path, share: float, seed: int, *, count: int = 4, latency: float = 0.0) -> Figures:
    """Any fault that passes, for a share of the requests; raises AssertionError where a byte differs."""
    faults = Faults(share, seed=seed, silence=1.2, latency=latency)
    return _compared(folder, count, f"share {share:g}, latency {latency:g} s", {"faults": faults})


def expiring(folder: Path, *, count: int = 4, life: float = 2.0, latency: float = 0.05) -> Figures:
    """Signed addresses that live a short time; raises AssertionError where one run was not enough."""
    server = {"secret": "key", "faults": Faults(latency=latency)}
    figures = _compared(folder, count, "signed", server, sign=partial(sign, secret="key", life=life))
    if figures.runs > 1:
        raise AssertionError("an address that had run out was not signed anew")
    return figures


def _compared(folder: Path, count: int, name: str, server: dict[str, Any], **how: Any) -> Figures:
    """A run over an archive in trouble that must end with the bytes of a run over healthy files."""
    items, healthy = _healthy(folder, count)
    start = time.perf_counter()
    with options.using(**QUICK), remote_range_server(folder, **server) as log:
        runs = write(velocity(items, log.url, **how), folder / "found.zarr")
    if contents(folder / "found.zarr") != healthy:
        raise AssertionError(f"{name}: other bytes than from healthy files")
    return Figures(name, time.perf_counter() - start, len(log.requests), log.faults, runs)


def permanent(folder: Path, kind: str, *, count: int = 4) -> Figures:
    """One scene is "missing" or "damaged"; raises AssertionError unless its pairs, and no others, are flagged."""
    items, _ = _healthy(folder, count)
    bad = items[1].id
    torn = folder / "archive"
    torn.mkdir()
    for item in items:
        whole = Path(item.assets["nir"].href).read_bytes()
        (torn / f"{item.id}.tif").write_bytes(_damaged(whole) if item.id == bad and kind == "damaged" else whole)
    start = time.perf_counter()
    missing = [f"/{bad}.tif"] if kind == "missing" else []
    with options.using(**QUICK), remote_range_server(torn, missing=missing) as log:
        runs = write(velocity(items, log.url), folder / "bad.zarr", most=1)
    found, whole_ = (store.open_velocity(folder / f"{name}.zarr").load() for name in ("bad", "healthy"))
    of_bad = (found["image_id1"].values == bad) | (found["image_id2"].values == bad)
    unreadable = flags.has(found["flag"].values, flags.UNREADABLE)
    rows = found.isel(mid_date=~of_bad), whole_.isel(mid_date=~of_bad)
    if not (unreadable == of_bad[:, None, None]).all() or not rows[0].identical(rows[1].assign_attrs(found.attrs)):
        raise AssertionError(f"{kind}: other pairs than those of the scene are touched, or not all of them")
    if np.isfinite(found["vx"].values[of_bad]).any():
        raise AssertionError(f"{kind}: a velocity out of nothing")
    return Figures(kind, time.perf_counter() - start, len(log.requests), log.faults, runs, int(of_bad.sum()))


def _damaged(content: bytes) -> bytes:
    """The file with its pixels overwritten, its header as it was."""
    at = len(content) // 3
    return content[:at] + bytes(len(content) - at)


def _healthy(folder: Path, count: int) -> tuple[list[pystac.Item], dict[str, str]]:
    """The items of a folder and the store of a run over healthy files; made once."""
    items = scenes(folder, count)
    path = folder / "healthy.zarr"
    store.write(velocity(items), path, progress=False, workers=2)
    return items, contents(path)


def main() -> None:
    """Every case once, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    cases: list[Callable[..., Figures]] = [partial(passing, share=share, seed=asked.seed) for share in SHARES]
    cases += [partial(passing, share=0.0, seed=asked.seed, latency=0.02)]
    cases += [partial(passing, share=0.3, seed=asked.seed, latency=0.02), expiring]
    cases += [partial(permanent, kind=kind) for kind in ("missing", "damaged")]
    print(f"seed {asked.seed}, {asked.scenes} scenes", file=sys.stderr)
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            print(case(Path(folder), count=asked.scenes))


if __name__ == "__main__":
    main()
