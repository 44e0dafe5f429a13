"""What a job will cost, before anything runs."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from dask.highlevelgraph import HighLevelGraph
from dask.local import get_sync

from . import blocks as block_layer
from . import invert as inversion
from .errors import ParameterError

BASE = 0.6
"""Memory of a process before its first block [GB]: imports 0.3, and what is compiled, more where it was not cached."""
TASK, UNUSED = 0.01, 1.1
"""Memory of a block besides its arrays [GB], its graph and the buffers of the codecs; and memory taken from the system
per memory in use, because an allocator cannot give back at once what was freed."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The price of a job.

    Parameters
    ----------
    blocks, pairs : int
    read_gigabytes : float
        Decoded pixels, or velocities, that will be read, halos included.
    write_gigabytes : float
        Size of the output before compression.
    block_gigabytes : float
        Upper bound of the memory of one block.
    threads : tuple of int
        Threads of each process.
    minutes : float or None
        For all blocks on these threads, from one that was computed here; None: not calibrated.
    scenes : int or None
        None, as the rest, for a series.
    amplification : float or None
        Pixels read per pixel of output area.
    precision : tuple of float or None
        Expected 1-sigma of one vector [meter/year]: the longest and the shortest pair.
    days : tuple of float or None
        Time spans of these two pairs.
    """

    blocks: int
    pairs: int
    read_gigabytes: float
    write_gigabytes: float
    block_gigabytes: float
    threads: tuple[int, ...] = (1,)
    minutes: float | None = None
    scenes: int | None = None
    amplification: float | None = None
    precision: tuple[float, float] | None = None
    days: tuple[float, float] | None = None

    @property
    def worker_gigabytes(self) -> float:
        """Upper bound of the memory of a process: `BASE`, and a block for each of its threads."""
        return BASE + min(self.blocks, max(self.threads)) * self.block_gigabytes

    def __str__(self) -> str:
        scenes = "" if self.scenes is None else f" of {self.scenes} scenes"
        halos = "" if self.amplification is None else f" (x {self.amplification:.2f} for halos)"
        words = [
            f"{self.blocks} blocks, {self.pairs} pairs{scenes}: {self.read_gigabytes:.2f} GB to read{halos}",
            f"{self.write_gigabytes:.2f} GB to write before compression",
            f"{self.worker_gigabytes:.2f} GB per worker ({self.block_gigabytes:.2f} GB a block)",
        ]
        if self.minutes is not None:
            words.append(f"{duration(self.minutes)} on {sum(self.threads)} threads")
        if self.precision is not None and self.days is not None:
            ends = [f"{p:.1f} m/yr over {d:.0f} days" for p, d in zip(self.precision, self.days, strict=True)]
            words.append("precision of one vector " + " to ".join(dict.fromkeys(ends)))
        return ", ".join(words)


def explain(ds: xr.Dataset, client: Any = None, *, workers: int | None = None, calibrate: bool = False) -> Explanation:
    """Count blocks, bytes, memory and, if asked to, minutes of a lazy velocity or series.

    Parameters
    ----------
    ds : xr.Dataset
        From `track` or `invert`.
    client : distributed.Client, optional
        Where it is to be computed, as in `write`; while it has no workers, one thread is assumed.
    workers : int, optional
        Threads without a client; default the number of cores.
    calibrate : bool
        Compute one block, in the middle of the area, here and in one thread, for `minutes`. Otherwise nothing is read.

    Raises
    ------
    ParameterError
        The dataset is not the lazy result of `track` or `invert`.

    Notes
    -----
    Bytes count decoded float32 images and uint8 masks; compressed files are two to four times smaller. Minutes hold for
    workers as fast as this machine and as near to the scenes; compiling is not in them.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> from ogive.invert import invert
    >>> velocity, _ = velocity_cube("100")
    >>> cost = explain(invert(velocity.chunk(y=6), every="30D"), workers=2)
    >>> cost.blocks, cost.pairs == velocity.sizes["mid_date"], cost.minutes
    (2, True, None)
    """
    each = (workers or os.cpu_count() or 1,) if client is None else tuple(client.nthreads().values()) or (1,)
    for function, price, prepare in (
        (block_layer._block, _tracking, _compile_kernel),
        (inversion._block, _series, _compile_estimator),
    ):
        layer = _layer(ds, function)
        if layer is None:
            continue
        operands = [(name, index) for name, index in layer.indices if index is not None]
        job = _arguments(ds, layer) | {"names": [n for n, _ in operands], "operands": [index for _, index in operands]}
        cost: Explanation = replace(price(ds, job), threads=each)
        if not calibrate:
            return cost
        prepare(job)
        return replace(cost, minutes=_seconds(ds) / 60 / min(sum(each), cost.blocks))
    raise ParameterError(
        "ds", rule="must be the lazy result of track or invert", fix="explain(track(cube, pairs)), before write"
    )


def _layer(ds: xr.Dataset, function: Callable[..., Any]) -> Any:
    """The layer of Dask's graph that calls the function behind all blocks; None if no layer does."""
    layers = ds["vx"].data.dask.layers.values() if "vx" in ds and ds["vx"].chunks is not None else ()
    return next((layer for layer in layers if getattr(getattr(layer, "task", None), "func", None) is function), None)


def _arguments(ds: xr.Dataset, layer: Any) -> dict[str, Any]:
    """What a layer gives to its function; large arguments have an entry of their own in the graph, named by its key."""
    graph = ds["vx"].data.dask
    given = layer.task.kwargs.items()
    return {name: graph[value.key]() if hasattr(value, "key") else value for name, value in given}


def _groups(ds: xr.Dataset, job: dict[str, Any]) -> list[Any]:
    """The pairs, batch by batch, as the first operand of the layer has them."""
    name = job["names"][0]
    keys = [(name, b) for b in range(len(job["blocks"].chunks[0]))]
    graph = ds["vx"].data.dask.cull(set(keys)).to_dict()
    return [row for batch in get_sync(graph, keys) for row in batch]


def _tracking(ds: xr.Dataset, job: dict[str, Any]) -> Explanation:
    job["groups"] = groups = _groups(ds, job)
    layout, kernel = job["blocks"], job["kernel"]
    sides = [
        sum(last - first for first, last in (layout.window(axis, k) for k in range(len(layout.chunks[axis + 1]))))
        for axis in (0, 1)
    ]
    batches = [groups[layout.rows(b)] for b in range(len(layout.chunks[0]))]
    windows = sum(np.unique(np.concatenate(batch)).size for batch in batches)
    days, error = ds["date_dt"].values, ds["vx_error"].values
    ends = [int(np.argmax(days)), int(np.argmin(days))]
    return Explanation(
        blocks=layout.count, pairs=sum(len(group) for group in groups), scenes=np.unique(np.concatenate(groups)).size,
        read_gigabytes=block_layer.read_bytes(layout.bands) * windows * sides[0] * sides[1] / 1e9,
        write_gigabytes=_written(ds),
        block_gigabytes=TASK + UNUSED * block_layer.memory(layout, groups, kernel) / 1e9,
        amplification=sides[0] * sides[1] / (layout.cells[0] * layout.cells[1] * layout.step**2),
        precision=(float(error[ends[0]]), float(error[ends[1]])), days=(float(days[ends[0]]), float(days[ends[1]])),
    )  # fmt: skip


def _series(ds: xr.Dataset, job: dict[str, Any]) -> Explanation:
    fixed, (_, ny, nx) = job["fixed"], ds["vx"].shape
    pairs = len(fixed[1]["t1"])
    # Velocities always, errors where every vector has its own.
    read = 4 * pairs * sum(len(index) == 3 for index in job["operands"])
    largest = max(ds.chunksizes["y"]) * max(ds.chunksizes["x"])
    return Explanation(
        blocks=ds["vx"].data.npartitions, pairs=pairs,
        read_gigabytes=read * ny * nx / 1e9, write_gigabytes=_written(ds),
        block_gigabytes=TASK + UNUSED * largest * inversion.memory(fixed, read) / 1e9,
    )  # fmt: skip


def _written(ds: xr.Dataset) -> float:
    return sum(v.nbytes for v in ds.data_vars.values()) / 1e9


def _compile_kernel(job: dict[str, Any]) -> None:
    """Match noise, clear and masked, so that compiling is done."""
    kernel, noise = job["kernel"], np.random.default_rng(0).standard_normal
    side = _CELLS * kernel.step + 2 * kernel.halo()
    valid, bands = np.ones((side, side), np.bool_), job["blocks"].bands
    shape = (bands, side, side) if bands > 1 else (side, side)
    for _ in range(2):
        pair = [kernel.prepare(noise(shape, np.float32), valid) for _ in range(2)]
        if max(len(group) for group in job["groups"]) > 1:
            kernel.match_stack([pair, pair])
        elif job["prior"] is not None:
            kernel.match(*pair, np.zeros((2, *[_CELLS + 2 * kernel.margin] * 2), np.float32))
        else:
            kernel.match(*pair)
        valid = valid.copy()
        valid[side // 2, side // 2] = False


_CELLS = 4
"""Cells along a side of a block that is only there to have everything compiled."""


def _compile_estimator(job: dict[str, Any]) -> None:
    """Invert noise, so that compiling is done."""
    noise = np.random.default_rng(0).standard_normal((len(job["fixed"][1]["t1"]), 1, 2), np.float32)
    inversion._block(noise, noise, np.ones_like(noise), np.ones_like(noise), fixed=job["fixed"])


def _seconds(ds: xr.Dataset) -> float:
    """Time of all blocks, one after the other, from that of the block in the middle."""
    arrays = [v.data for v in ds.data_vars.values() if v.chunks is not None]
    keys = [(array.name, *(n // 2 for n in array.numblocks)) for array in arrays]
    # Not optimised, as in `write`: that would give each variable a copy of what they share.
    graph = HighLevelGraph.merge(*(array.dask for array in arrays)).cull(set(keys)).to_dict()
    start = time.perf_counter()
    get_sync(graph, keys)
    took = time.perf_counter() - start
    chunks = ds["vx"].data.chunks
    return took * ds["vx"].size / float(np.prod([sizes[len(sizes) // 2] for sizes in chunks]))


def duration(minutes: float) -> str:
    """A span of time in words.

    Examples
    --------
    >>> duration(0.2), duration(12), duration(200)
    ('12 seconds', '12 minutes', '3.3 hours')
    """
    if minutes < 1.5:
        return f"{60 * minutes:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
