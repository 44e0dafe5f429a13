"""Small stores for tests: a lazy velocity that needs no reader, and a store as a value that can be compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from .. import flags, grid
from .._ledger import digest, ledger
from .._storage import storage_of

COMPUTED: list[tuple[int, ...]] = []
"""The blocks of `lazy_velocity` that were computed in this process, in order; clear it before you count.

Tasks are pickled even on their way to a thread, so the counter cannot travel with them.
"""


def lazy_velocity(shape: tuple[int, int, int] = (4, 40, 48), chunks: tuple[int, int, int] = (2, 20, 24)) -> xr.Dataset:
    """A velocity of random numbers, quick to compute; its first block has no valid value.

    Parameters
    ----------
    shape, chunks : (int, int, int)
        Along (mid_date, y, x).

    Returns
    -------
    xr.Dataset
        `vx` and `flag` lazy, `vx_error` and coordinates in memory; the dates carry microseconds.

    Examples
    --------
    >>> lazy_velocity()["vx"].chunks
    ((2, 2), (20, 20), (24, 24))
    """
    box = GeoBox(shape[1:], Affine(80, 0, 600000, 0, -80, 5100000), "EPSG:32632")
    vx = np.random.default_rng(1).normal(0, 100, shape).astype(np.float32)
    vx[: chunks[0], : chunks[1], : chunks[2]] = np.nan
    flag = np.where(np.isnan(vx), flags.NO_DATA, 0).astype(np.uint16)
    dims = ("mid_date", "y", "x")
    lazy_vx, lazy_flag = (
        xr.Variable(dims, values).chunk(dict(zip(dims, chunks, strict=True))) for values in (vx, flag)
    )
    lazy = lazy_vx.data.map_blocks(_noted, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    days = np.datetime64("2021-07-01T10:30:00.123456", "ns") + np.arange(shape[0]) * np.timedelta64(36, "h")
    return xr.Dataset(
        {
            "vx": (dims, lazy, {"units": "meter/year"}),
            "flag": (dims, lazy_flag.data, flags.attributes()),
            "vx_error": ("mid_date", np.full(shape[0], 7, np.float32)),
        },
        {
            "mid_date": ("mid_date", days),
            "image_id1": ("mid_date", np.array([f"scene {'x' * k}" for k in range(shape[0])], object)),
            **grid.coordinates(box),
            "mapping": grid.mapping(box),
        },
        {"kind": "velocity", "schema_version": grid.SCHEMA_VERSION, "Conventions": "CF-1.11", "provenance": "{}"},
    )


def velocity_of_pairs(first: int, last: int) -> xr.Dataset:
    """Some pairs of one random velocity, as they are written to a store or appended to it, in batches of 4.

    Dates run backwards, and each image has a longer name than the one before.

    Examples
    --------
    >>> velocity_of_pairs(6, 13)["vx"].chunks[0]
    (2, 4, 1)
    """
    whole = lazy_velocity((16, 40, 48), (4, 20, 24))
    count = np.arange(16)
    names = {
        "image_id1": ("mid_date", np.array([f"one {'x' * k}" for k in count], object)),
        "image_id2": ("mid_date", np.array([f"two {k}" for k in count], object)),
        "mid_date": whole["mid_date"][::-1].values,
    }
    said = json.dumps({"kernel": {"name": "random", "chip": 32}})
    return whole.assign_coords(names).assign_attrs(provenance=said).isel(mid_date=slice(first, last))


def _noted(block: NDArray[np.float32], block_info: Any = None) -> NDArray[np.float32]:
    COMPUTED.append(tuple(block_info[0]["chunk-location"]))
    return block


def contents(path: str | Path) -> dict[str, str]:
    """Every object of a store by its checksum, and every row of its ledger without time and memory taken.

    Two stores with equal contents are byte-identical.
    """
    target = storage_of(path)
    files = {key: digest(target.get(key)) for key in target.objects()}
    same = {"seconds": 0, "peak_mb": 0}
    rows = {f"ledger {row['block']}": json.dumps({**row, **same}, sort_keys=True) for row in ledger(path)}
    if not files or not rows:
        raise AssertionError(f"{path} holds {len(files)} files and {len(rows)} ledger rows: nothing to compare")
    return files | rows
