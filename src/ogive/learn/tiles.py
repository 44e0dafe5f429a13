"""Training sets: tiles of image pairs, with the displacements that a kernel found, in one Zarr store.

    scenes of a cube ──┐
                       ├─► one window of ice after the other, all its pairs ─► shards of a draft ─► renamed when whole
    velocity, any kernel ┘

Every scene of a window is read once, whatever the number of pairs; no more than one window and one shard for each split
are in memory. The same input gives the same bytes.
"""

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import zarr
from affine import Affine
from numpy.typing import NDArray

from .. import provenance
from ..errors import OgiveError, ParameterError, StoreError
from ._sources import IDS, TileSource, pairs_of, step_of, tiles_of, windows_of
from ._split import SPLITS
from ._store import Split, free, opened

TURNS = 8
"""Ways to lay a square: four quarter turns, and the same of its mirror image."""
VERSION = 1
"""Version of the layout of the store."""


class Tiles(NamedTuple):
    """Arrays of n tiles of s x s px and their c x c labels.

    Parameters
    ----------
    image : (n, 2, s, s) float32
        Both dates as the cube has them, NaN = no data.
    mask : (n, 2, s, s) uint8
        Bits of `ogive.quality`.
    ice : (n, s, s) bool
    displacement : (n, 2, c, c) float32
        dy, dx [px of the image, dy down], NaN where the kernel measured none.
    sigma : (n, 2, c, c) float32
        1 sigma of dy, dx [px].
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    ice: NDArray[np.bool_]
    displacement: NDArray[np.float32]
    sigma: NDArray[np.float32]


def export_tiles(
    sources: Sequence[TileSource], path: str | Path, *, size: int = 256, stride: int | None = None,
    min_ice: float = 0.1, ratios: Sequence[float] = (0.81, 0.09, 0.10), seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Write tiles of image pairs and their displacements, split into training, validation and test.

    All images of one glacier and calendar year go to one split; a pair of images of two splits is left out. Glaciers
    whose tiles overlap on the ground count as one.

    Parameters
    ----------
    sources : sequence of TileSource
    path : path
        A folder that does not exist yet. It appears when it is complete.
    size : int
        Side of a tile [px].
    stride : int, optional
        From one tile to the next [px]; less than the size makes tiles overlap. Default: the size.
    min_ice : float
        Least share of ice in a tile; tiles with less are left out.
    ratios : (float, float, float)
        Shares of the tiles that train, validation and test should have; whole years of glaciers seldom allow just that.
    seed : int
        Decides between years that fit alike.

    Returns
    -------
    pd.DataFrame
        What `tile_table` gives.

    Raises
    ------
    ParameterError
        A size or stride that the labels do not divide, velocities without errors, stacks.
    GridError, PairError
        The velocity has no pairs or was not made of this cube, or the ice lies on another grid.
    MaskError
        No tile of a source has enough ice.
    StoreError
        The path is taken, no folder, or cannot be written.
    ReadError
        A scene cannot be read.

    Notes
    -----
    An example that runs is in docs/glacier-flow-paper.md.
    """
    stride = size if stride is None else stride
    target = free(path)
    if not sources or size < 1 or stride < 1 or not 0 <= min_ice <= 1:
        rule = "need a source, a positive size and stride, and a share of ice of 0 ... 1"
        raise ParameterError("tiles", rule=rule, value=(len(sources), size, stride, min_ice))
    steps = {step_of(source) for source in sources}
    if len(steps) > 1 or any(n % step for n in (size, stride) for step in steps):
        rule = "must be the same for all sources and divide size and stride"
        raise ParameterError("step of the velocities", rule=rule, value=(sorted(steps), size, stride))
    step = steps.pop()
    windows = [windows_of(source, size, stride, step, min_ice) for source in sources]
    pairs, dropped = pairs_of(sources, windows, size, ratios, seed)
    counts = {name: sum(len(windows[p["source"]]) for p in pairs if p["split"] == name) for name in SPLITS}
    draft = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    try:
        attributes = {
            "kind": "tiles", "version": VERSION, "size": size, "stride": stride, "step": step, "min_ice": min_ice,
            "seed": seed, "ratios": list(ratios), "pairs_left_out": dropped, "pairs": pairs,
            "provenance": [provenance.read(source.velocity) for source in sources],
        }  # fmt: skip
        root = zarr.create_group(draft, attributes=attributes)
        shards = {name: Split(root, name, count, size, size // step) for name, count in counts.items()}
        for number, source in enumerate(sources):
            own = [(k, p) for k, p in enumerate(pairs) if p["source"] == number]
            for corner in windows[number] if own else ():
                for k, tile in tiles_of(source, own, corner, size, step):
                    shards[pairs[k]["split"]].add({**tile, "pair": np.int32(k), "corner": np.array(corner, np.int32)})
        for shard in shards.values():
            shard.flush()
        draft.rename(target)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, OgiveError):
            fix = "make room, or write elsewhere"
            raise StoreError(str(target), rule="cannot be written", value=error, fix=fix) from error
        raise
    return tile_table(target)


def read_tiles(
    path: str | Path, split: str = "train", rows: slice | Sequence[int] | None = None, *, turn: int = 0
) -> Tiles:
    """Tiles of a split, in memory.

    Parameters
    ----------
    path : path
    split : {"train", "validation", "test"}
    rows : slice or sequence of int, optional
        Which of them, as `row` of `tile_table` counts; default all.
    turn : int
        0 ... 7: laid as `turned` does, for augmentation.

    Raises
    ------
    StoreError
        There is no such store.
    ParameterError
        An unknown split, or no such turn.
    """
    if split not in SPLITS:
        raise ParameterError("split", rule=f"must be one of {', '.join(SPLITS)}", value=repr(split))
    group = opened(path)[split]
    chosen: Any = slice(None) if rows is None else rows if isinstance(rows, slice) else np.asarray(rows, np.int64)
    return turned(Tiles(*(np.asarray(group[name].oindex[chosen]) for name in Tiles._fields)), turn)


def tile_table(path: str | Path) -> pd.DataFrame:
    """Where each tile comes from.

    Parameters
    ----------
    path : path

    Returns
    -------
    pd.DataFrame
        One row for each tile: `split`, `row` in it, `glacier`, `image_id1`, `image_id2`, `date1`, `date2`, `days`,
        `crs`, `transform` (six numbers from px to map [m]), `y`, `x` (first pixel in the cube), `ice` and `labelled`,
        the shares of ice and of cells with a displacement.

    Raises
    ------
    StoreError
        There is no such store.
    """
    root = opened(path)
    known = ("glacier", *IDS, "date1", "date2", "days", "crs")
    tables = []
    for name in SPLITS:
        group = root[name]
        pairs = [root.attrs["pairs"][k] for k in group["pair"][:]]
        corners = group["corner"][:]
        table = pd.DataFrame({"split": name, "row": np.arange(len(pairs)), **{c: [p[c] for p in pairs] for c in known}})
        moved = [Affine(*p["transform"]) @ Affine.translation(x, y) for p, (y, x) in zip(pairs, corners, strict=True)]
        table["transform"] = [tuple(a)[:6] for a in moved]
        table["y"], table["x"] = corners[:, 0], corners[:, 1]
        table["ice"], table["labelled"] = group["ice_share"][:], group["label_share"][:]
        tables.append(table)
    out = pd.concat([t for t in tables if len(t)], ignore_index=True)
    return out.assign(**{c: pd.to_datetime(out[c]) for c in ("date1", "date2")})


def turned(tiles: Tiles, turn: int) -> Tiles:
    """Tiles laid another way, their displacements with them: exact, no pixel is resampled.

    Parameters
    ----------
    tiles : Tiles
    turn : int
        0 ... 3 quarter turns counter-clockwise; 4 ... 7 the same of the mirror image, left and right exchanged.

    Raises
    ------
    ParameterError
        Another number.

    Examples
    --------
    >>> one = np.zeros((1, 2, 1, 1), np.float32)
    >>> east = Tiles(one, one, one[:, 0] > 0, one + np.float32([0, 3])[:, None, None], one)
    >>> [turned(east, k).displacement.ravel().tolist() for k in (1, 4)]
    [[-3.0, 0.0], [0.0, -3.0]]
    """
    if turn not in range(TURNS):
        raise ParameterError("turn", rule=f"must be one of 0 ... {TURNS - 1}", value=turn)
    mirrored, quarters = divmod(turn, 4)
    laid: list[NDArray[Any]] = [np.rot90(a[..., ::-1] if mirrored else a, quarters, (-2, -1)) for a in tiles]
    (dy, dx), sigma = laid[3].swapaxes(0, 1), laid[4]
    dx = -dx if mirrored else dx
    for _ in range(quarters):
        dy, dx = -dx, dy
    laid[3], laid[4] = np.stack([dy, dx], 1), sigma[:, ::-1] if quarters % 2 else sigma
    return Tiles(*map(np.ascontiguousarray, laid))
