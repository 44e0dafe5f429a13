"""The store of tiles: a group for each split, arrays filled from the front, one shard at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from .._storage import is_url
from ..errors import StoreError

SHARD = 64
"""Tiles in one object: 40 MB of images of 256 px, before compression."""


class Split:
    """The arrays of a split, filled from the front, a shard at a time."""

    def __init__(self, root: zarr.Group, name: str, count: int, size: int, cells: int) -> None:
        group = root.create_group(name)
        shapes: Mapping[str, tuple[tuple[int, ...], Any, Any]] = {
            "image": ((2, size, size), np.float32, np.nan), "mask": ((2, size, size), np.uint8, 0),
            "ice": ((size, size), np.bool_, False), "displacement": ((2, cells, cells), np.float32, np.nan),
            "sigma": ((2, cells, cells), np.float32, np.nan), "pair": ((), np.int32, 0), "corner": ((2,), np.int32, 0),
            "ice_share": ((), np.float32, 0), "label_share": ((), np.float32, 0),
        }  # fmt: skip
        self.arrays = {
            key: group.create_array(
                key, shape=(count, *shape), dtype=dtype, fill_value=fill, chunks=(1 if shape else SHARD, *shape),
                shards=(SHARD, *shape) if shape else None, compressors=ZstdCodec(level=3, checksum=True),
            )
            for key, (shape, dtype, fill) in shapes.items()
        }  # fmt: skip
        self.held: list[Mapping[str, Any]] = []
        self.done = 0

    def add(self, tile: Mapping[str, Any]) -> None:
        """One more tile."""
        self.held.append(tile)
        if len(self.held) == SHARD:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        end = self.done + len(self.held)
        for key, array in self.arrays.items() if self.held else ():
            array[self.done : end] = np.stack([tile[key] for tile in self.held])
        self.held, self.done = [], end


def free(path: str | Path) -> Path:
    if is_url(path):
        raise StoreError(str(path), rule="tiles are written to a folder", fix="write them here, then copy the folder")
    target = Path(path).absolute()
    if target.exists():
        raise StoreError(str(target), rule="already exists", fix="choose another name, or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def opened(path: str | Path) -> Any:
    try:
        root: Any = zarr.open_group(path, mode="r")
    except FileNotFoundError:
        raise StoreError(str(path), rule="is no store of tiles", fix="use ogive.learn.export_tiles") from None
    if root.attrs.get("kind") != "tiles":
        raise StoreError(str(path), rule="is no store of tiles", value=root.attrs.get("kind"))
    return root
