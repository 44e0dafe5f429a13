"""The Dask layer: one output chunk = one task.

A block is a batch of pairs x a tile of cells. Its function reads each scene window it needs once, with the kernel's
halo around it, prepares each scene once, and runs every pair of the batch:

    cube (lazily indexed) ──window + halo──► prepare (once per scene) ──► match (once per pair) ──► {name: array}

On a cube that reads windows the overlap is a *read window*: one task per block, nothing is exchanged. On a cube that
already lives in Dask chunks the same function gets its window from Dask's own overlap exchange. Both paths, and every
tiling, give the same bits (tests/test_blocks.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import dask.array as da
import numpy as np
import xarray as xr
from dask.array.overlap import overlap
from numpy.typing import NDArray

from . import flags, quality
from ._read import note
from .errors import ParameterError, ReadError
from .kernels import Guided, Kernel, Multiband

OUTPUTS: dict[str, Any] = {
    "dy": np.float32,
    "dx": np.float32,
    "dy_error": np.float32,
    "dx_error": np.float32,
    "corr": np.float32,
    "snr": np.float32,
    "peak_ratio": np.float32,
    "valid_fraction": np.float32,
    "chip": np.uint16,
    "flag": np.uint16,
}
"""What every kernel returns for each pair, and its type; a kernel's `extras` are float32."""

BATCH = 32
"""Pairs in a block. More would save reads, fewer would save memory; 32 pairs of 1024 px take about 0.2 GB."""
_TILE_PIXELS = 1024
"""Pixels along a tile's side: read amplification 1.2 with a halo of 50, a few seconds of matching."""


@dataclass(frozen=True)
class Prior:
    """Velocities to search round, as displacements of each pair.

    Parameters
    ----------
    rate : (2, ny + 2 margin, nx + 2 margin) float32
        (y, x) displacement [px] in a unit of time, NaN where unknown.
    factors : (pairs,) float64
        Units of time between the images of each pair.
    margin : int
        Cells beyond the output that the kernel's neighbour tests look at.
    """

    rate: NDArray[np.float32]
    factors: NDArray[np.float64]
    margin: int

    def window(self, pair: int, y: int, x: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Displacements of one pair for the cells from (y, x) on, with the margin [px]."""
        rows, columns = (slice(k, k + n + 2 * self.margin) for k, n in zip((y, x), shape, strict=True))
        return np.asarray(self.rate[:, rows, columns] * self.factors[pair], np.float32)


@dataclass(frozen=True)
class Blocks:
    """How an output of (pairs, ny, nx) cells is cut.

    Parameters
    ----------
    cells : (int, int)
        Output cells ny, nx.
    pairs : int
    tile : int
        Cells along a block's side.
    batch : int
        Pairs in a block.
    step, halo : int
        Of the kernel [px].
    offset : int
        Pairs that the first batch lacks: a store holds them already.
    bands : int
        Of the images.
    """

    cells: tuple[int, int]
    pairs: int
    tile: int
    batch: int
    step: int
    halo: int
    offset: int = 0
    bands: int = 1

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Chunk sizes along (mid_date, y, x)."""
        first = min(self.pairs, self.batch - self.offset)
        pairs, *tiles = (
            tuple(min(n, total - k) for k in range(0, total, n))
            for total, n in ((self.pairs - first, self.batch), *((cells, self.tile) for cells in self.cells))
        )
        return (first, *pairs), *tiles

    @property
    def count(self) -> int:
        """Number of blocks."""
        return int(np.prod([len(c) for c in self.chunks]))

    def rows(self, b: int) -> slice:
        """The pairs of batch b."""
        start = b * self.batch - self.offset
        return slice(max(0, start), min(self.pairs, start + self.batch))

    def window(self, axis: int, k: int) -> tuple[int, int]:
        """First and last pixel (exclusive) of tile k, halo included; may leave the image."""
        first = k * self.tile
        last = min(self.cells[axis], first + self.tile)
        return first * self.step - self.halo, last * self.step + self.halo


def plan(cube: xr.Dataset, count: int, kernel: Kernel, tile: int | None = None, batch: int | None = None) -> Blocks:
    """Cut the output of `count` pairs or stacks of pairs into blocks.

    Raises
    ------
    ParameterError
        The cube is smaller than one chip with its search window, tile or batch is not positive, or the cube has several
        bands and the kernel compares one.
    """
    height, width, bands = cube.sizes["y"], cube.sizes["x"], cube.sizes.get("band", 1)
    if bands > 1 and not isinstance(kernel, Multiband):
        raise ParameterError(
            "kernel", rule=f"must compare several bands, as the cube has {bands}", value=type(kernel).__name__,
            fix="choose one band, or hs_robust or flow_net",
        )  # fmt: skip
    cells = (height // kernel.step, width // kernel.step)
    least = max(np.max(kernel.chip), kernel.step)
    if min(height, width) < least:
        raise ParameterError(
            "chip", rule=f"must fit into the image of {height} x {width} px",
            value=f"chip={kernel.chip}, step={kernel.step}",
            fix=f"use a chip of at most {min(height, width)} px, or a larger area",
        )  # fmt: skip
    if tile is None:
        tile = max(32, _TILE_PIXELS // kernel.step // 32 * 32)
    batch = BATCH if batch is None else batch
    for name, value in (("tile", tile), ("batch", batch)):
        if value < 1:
            raise ParameterError(name, rule="must be at least 1", value=value)
    return Blocks(cells, count, tile, batch, kernel.step, kernel.halo(), bands=bands)


def map_overlapping(
    cube: xr.Dataset,
    groups: Sequence[NDArray[np.int64]],
    kernel: Kernel,
    blocks: Blocks,
    prior: Prior | None = None,
    unreadable: str = "flag",
) -> dict[str, da.Array]:
    """Apply a matching kernel to every pair, or stack of pairs, and tile, lazily.

    Parameters
    ----------
    cube : xr.Dataset
        `image` and `mask`, dims (time, y, x), `image` of several bands (time, band, y, x); lazily indexed, in memory,
        or in Dask chunks.
    groups : sequence of (n, 2) int64 arrays
        Positions of scenes in the cube's time: one pair, or the pairs of one stack, for each layer of the output.
    kernel : Kernel
    blocks : Blocks
        From `plan`.
    prior : Prior, optional
        Displacements to search round.
    unreadable : {"flag", "fail"}
        What a scene does to the block that can never be read: flag its pairs, or end the block with the error.

    Returns
    -------
    dict of dask arrays
        `OUTPUTS` and the kernel's `extras`, each (groups, ny, nx), one task per block behind all of them.
    """
    numbers = [da.from_array(np.arange(len(c)), chunks=1) for c in blocks.chunks]
    # Cut into batches here: a task that carried the pairs of all blocks would grow with the job.
    rows = np.fromiter(groups, object, len(groups))
    batches = da.from_array(rows, chunks=(blocks.chunks[0],), name=f"pairs-{uuid4().hex}")
    # Pixels beyond the last whole cell belong to no cell: leave them out, so that both paths see the same image.
    height, width = (n * blocks.step for n in blocks.cells)
    image, mask = (cube[name].variable[..., :height, :width] for name in ("image", "mask"))
    arguments: list[Any] = [batches, "b", numbers[0], "b", numbers[1], "y", numbers[2], "x"]
    source: Any = Windows(image, mask)
    if image.chunks is not None:  # asking for .data would read a lazily indexed cube
        source = None
        for variable, outside in ((image, np.nan), (mask, quality.NO_DATA)):
            arguments += [_overlapped(variable.data, blocks, outside), "tcyx" if variable.ndim == 4 else "tyx"]
    base = da.blockwise(
        # Dask would make a name from all pixels of a cube in memory.
        _block, "byx", *arguments, name=f"match-{uuid4().hex}", dtype=object, concatenate=True, align_arrays=False,
        adjust_chunks=dict(zip("byx", blocks.chunks, strict=True)), meta=np.empty((0, 0, 0), object),
        source=source, kernel=kernel, blocks=blocks, prior=prior, unreadable=unreadable,
    )  # fmt: skip
    return {name: pick(base, name, dtype) for name, dtype in outputs(kernel).items()}


def outputs(kernel: Kernel) -> dict[str, Any]:
    """Names and types of what a kernel returns."""
    return OUTPUTS | dict.fromkeys(kernel.extras, np.float32)


def pick(base: da.Array, name: str, dtype: Any) -> da.Array:
    """One array out of blocks that hold dictionaries of arrays."""
    meta = np.empty((0,) * base.ndim, dtype)
    picked: da.Array = da.map_blocks(_get, base, name, dtype=dtype, meta=meta)
    return picked


def _get(block: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    return block[name]


class Windows:
    """Windows of a lazily indexed (or in-memory) cube, filled with "no data" beyond its edges."""

    def __init__(self, image: xr.Variable, mask: xr.Variable) -> None:
        self.image, self.mask = image, mask

    def __call__(
        self, scene: int, y: tuple[int, int], x: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        (y0, y1), (x0, x1) = y, x
        *bands, height, width = self.image.shape[1:]
        inside = np.s_[max(0, y0) : min(height, y1), max(0, x0) : min(width, x1)]
        place = np.s_[inside[0].start - y0 : inside[0].stop - y0, inside[1].start - x0 : inside[1].stop - x0]
        image = np.full((*bands, y1 - y0, x1 - x0), np.nan, np.float32)
        mask = np.full((y1 - y0, x1 - x0), quality.NO_DATA, np.uint8)
        image[(..., *place)] = self.image[(scene, ..., *inside)].values
        mask[place] = self.mask[(scene, *inside)].values
        return image, mask


def _overlapped(array: da.Array, blocks: Blocks, outside: float) -> da.Array:
    """The Dask cube re-cut into tiles, each with its halo from its neighbours."""
    tiles = tuple(tuple(n * blocks.step for n in c) for c in blocks.chunks[1:])
    smallest = min(min(c) for c in tiles)
    if smallest < blocks.halo and any(len(c) > 1 for c in tiles):
        raise ParameterError(
            "tile", rule=f"every tile of a Dask cube must be at least as wide as the halo of {blocks.halo} px",
            value=f"{smallest} px", fix="use another tile, or a cube that is not chunked",
        )  # fmt: skip
    before = array.ndim - 2
    array = array.rechunk((-1,) * before + tiles)
    # One tile may be narrower than the halo: pad it ourselves, Dask would refuse.
    single = {before + k: len(tiles[k]) == 1 for k in (0, 1)}
    pad = [(0, 0)] * before + [(blocks.halo, blocks.halo) if alone else (0, 0) for alone in single.values()]
    array = da.pad(array, pad, constant_values=outside).rechunk({axis: -1 for axis, alone in single.items() if alone})
    depth = dict.fromkeys(range(before), 0) | {axis: 0 if alone else blocks.halo for axis, alone in single.items()}
    boundary = {axis: outside if axis in single else "none" for axis in range(array.ndim)}
    whole: da.Array = overlap(array, depth=depth, boundary=boundary, allow_rechunk=False)
    return whole


def _block(
    rows: NDArray[np.object_],
    b: NDArray[np.int64],
    y: NDArray[np.int64],
    x: NDArray[np.int64],
    image: NDArray[np.float32] | None = None,
    mask: NDArray[np.uint8] | None = None,
    *,
    source: Callable[..., Any] | None,
    kernel: Kernel,
    blocks: Blocks,
    prior: Prior | None,
    unreadable: str,
) -> dict[str, NDArray[Any]]:
    """All pairs of one block: the body of the task."""
    first = blocks.rows(int(b[0])).start
    ys, xs = blocks.window(0, int(y[0])), blocks.window(1, int(x[0]))
    last = {int(scene): k for k, row in enumerate(rows) for scene in row.flat}
    shape = (len(rows), *((hi - lo - 2 * blocks.halo) // blocks.step for lo, hi in (ys, xs)))
    out = {name: np.empty(shape, dtype) for name, dtype in outputs(kernel).items()}
    outside = _leaves_image(blocks, ys, xs)
    prepared: dict[int, Any] = {}
    result: Mapping[str, Any]
    for k, row in enumerate(rows):
        for scene in map(int, row.flat):
            if scene not in prepared:
                if source is not None:
                    window = _readable(source, scene, ys, xs, unreadable)
                else:
                    assert image is not None
                    assert mask is not None
                    window = image[scene], mask[scene]
                prepared[scene] = None if window is None else kernel.prepare(window[0], quality.usable(window[1]))
        pairs = [(prepared[int(one)], prepared[int(two)]) for one, two in row]
        if any(scene is None for pair in pairs for scene in pair):
            result = {name: _UNREADABLE.get(name, np.float32(np.nan)) for name in out}
        elif len(pairs) > 1:
            assert isinstance(kernel, Guided)  # `track` has asked
            result = kernel.match_stack(pairs)
        elif prior is not None:
            assert isinstance(kernel, Guided)
            around = prior.window(first + k, int(y[0]) * blocks.tile, int(x[0]) * blocks.tile, shape[1:])
            result = kernel.match(*pairs[0], around)
        else:
            result = kernel.match(*pairs[0])
        for name, values in out.items():
            values[k] = result[name]
        out["flag"][k][outside & flags.has(out["flag"][k], flags.NO_DATA)] |= flags.OUTSIDE
        for scene in {int(s) for s in row.flat if last[int(s)] == k}:
            del prepared[scene]
    return out


_UNREADABLE = {"chip": np.uint16(0), "flag": np.uint16(flags.UNREADABLE)}
"""What a pair of an unreadable scene gets; all else is NaN."""


def _readable(source: Callable[..., Any], scene: int, ys: Any, xs: Any, unreadable: str) -> Any:
    """Pixels and mask bits of a scene; None, and a note, where they can never be read."""
    try:
        return source(scene, ys, xs)
    except ReadError as error:
        if unreadable == "fail" or not error.permanent:
            raise
        note(error)
        return None


def _leaves_image(blocks: Blocks, ys: tuple[int, int], xs: tuple[int, int]) -> NDArray[np.bool_]:
    """Cells whose chip, search window or filter reach leaves the image."""
    axes = []
    for (first, last), n in ((ys, blocks.cells[0]), (xs, blocks.cells[1])):
        start = np.arange(first, last - 2 * blocks.halo, blocks.step)
        axes.append((start < 0) | (start + blocks.step + 2 * blocks.halo > n * blocks.step))
    return axes[0][:, None] | axes[1][None, :]


def memory(blocks: Blocks, groups: Sequence[NDArray[np.int64]], kernel: Kernel) -> int:
    """Upper bound of the memory of one block [bytes]: its largest, as `_block` goes through its pairs.

    Scenes that are prepared and wanted again, the window at hand, what the kernel has in the making, and the answers;
    then the variables that `track` makes of these, and their compressed copies.
    """
    cells = (min(blocks.tile, blocks.cells[0]), min(blocks.tile, blocks.cells[1]))
    pixels = (cells[0] * blocks.step + 2 * blocks.halo) * (cells[1] * blocks.step + 2 * blocks.halo)
    layer = cells[0] * cells[1] * sum(np.dtype(dtype).itemsize for dtype in outputs(kernel).values())
    several = {"bands": blocks.bands} if blocks.bands > 1 else {}
    taken = {n: kernel.memory(cells, n, **several) for n in {len(row) for row in groups}}
    most = 0.0
    for b in range(len(blocks.chunks[0])):
        rows = groups[blocks.rows(b)]
        last = {int(scene): k for k, row in enumerate(rows) for scene in row.flat}
        kept: dict[int, float] = {}
        roles: set[tuple[int, int]] = set()
        for k, row in enumerate(rows):
            need = taken[len(row)]
            answers = (k + 1) * layer + read_bytes(blocks.bands) * pixels
            for scene in {int(s) for s in row.flat} - set(kept):
                most = max(most, answers + sum(kept.values()) + need.prepare)
                kept[scene] = need.scene
            # The scenes of a pair stay until the next pair is ready.
            kept = {scene: size for scene, size in kept.items() if last[scene] >= k}
            for role, scene in {(role, int(pair[role])) for pair in row for role in (0, 1)} - roles:
                roles.add((role, scene))
                kept[scene] += (need.first, need.second)[role]
            most = max(most, answers + sum(kept.values()) + need.match)
        most = max(most, _LABELLED * len(rows) * layer)
    return math.ceil(most)


def read_bytes(bands: int) -> int:
    """Bytes of a pixel as it was read: float32 of each band, uint8 of the mask."""
    return 4 * bands + 1


_LABELLED = 3.0
"""The answers of a block, the variables of a velocity, and one of them compressed, per answers."""
