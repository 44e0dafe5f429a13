"""What a job will cost, before anything runs."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from . import blocks as block_layer
from .errors import ParameterError
from .kernels import KERNELS


@dataclass(frozen=True)
class Explanation:
    """The price of a tracking job.

    Parameters
    ----------
    blocks, pairs, scenes : int
    read_gigabytes : float
        Decoded pixels that will be read, halos included.
    write_gigabytes : float
        Size of the output before compression.
    worker_gigabytes : float
        Upper estimate of the memory of one block.
    amplification : float
        Pixels read per pixel of output area.
    precision : tuple of float
        Expected 1-sigma of one vector [meter/year]: the longest and the shortest pair.
    """

    blocks: int
    pairs: int
    scenes: int
    read_gigabytes: float
    write_gigabytes: float
    worker_gigabytes: float
    amplification: float
    precision: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.precision
        return (
            f"{self.blocks} blocks, {self.pairs} pairs of {self.scenes} scenes: {self.read_gigabytes:.2f} GB to read "
            f"(x {self.amplification:.2f} for halos), {self.write_gigabytes:.2f} GB to write before compression, "
            f"{self.worker_gigabytes:.2f} GB per worker thread, precision of one vector {low:.0f}-{high:.0f} m/yr"
        )


def explain(velocity: xr.Dataset) -> Explanation:
    """Count blocks, bytes and memory of a lazy velocity from `track`; reads nothing.

    Raises
    ------
    ParameterError
        The dataset does not come from `track`.

    Notes
    -----
    Bytes count decoded float32 images and uint8 masks; compressed files are two to four times smaller.
    """
    chunks = velocity["vx"].chunks if "vx" in velocity else None
    if chunks is None or "provenance" not in velocity.attrs:
        raise ParameterError("velocity", rule="must be the lazy result of track", fix="explain(track(cube, pairs))")
    provenance = json.loads(velocity.attrs["provenance"])
    parameters = dict(provenance["kernel"])
    name = parameters.pop("name").lower()
    if name not in KERNELS:
        raise ParameterError("kernel", rule=f"must be one of {', '.join(KERNELS)} to be explained", value=name)
    kernel = KERNELS[name](**parameters)
    sizes = velocity.sizes
    layout = block_layer.Blocks(
        (sizes["y"], sizes["x"]),
        sizes["mid_date"],
        max(chunks[1][0], chunks[2][0]),
        chunks[0][0],
        kernel.step,
        kernel.halo(),
    )
    read = 0
    one, two = (velocity[f"image_id{k}"].values for k in (1, 2))
    for b in range(len(layout.chunks[0])):
        scenes = len(set(one[layout.rows(b)]) | set(two[layout.rows(b)]))
        for i in range(len(layout.chunks[1])):
            for j in range(len(layout.chunks[2])):
                (y0, y1), (x0, x1) = layout.window(0, i), layout.window(1, j)
                read += scenes * (y1 - y0) * (x1 - x0)
    batches = sum(len(set(one[layout.rows(b)]) | set(two[layout.rows(b)])) for b in range(len(layout.chunks[0])))
    area = sizes["y"] * sizes["x"] * kernel.step**2
    error = velocity["vx_error"].values
    return Explanation(
        blocks=layout.count,
        pairs=sizes["mid_date"],
        scenes=len(set(one) | set(two)),
        read_gigabytes=read * 5 / 1e9,
        write_gigabytes=sum(_bytes(v) for v in velocity.data_vars.values()) / 1e9,
        worker_gigabytes=block_layer.memory(layout, len(set(one) | set(two)), kernel) / 1e9,
        amplification=read / max(1, batches * area),
        precision=(float(np.min(error)), float(np.max(error))),
    )


def _bytes(variable: Any) -> int:
    return int(variable.size * variable.dtype.itemsize)
