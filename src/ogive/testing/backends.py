"""The code of the GPU backend on NumPy arrays: the same whole-array operations, on a machine without a GPU."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels import NCC, _ncc_cupy
from ..kernels.ncc import Scene


@dataclass(frozen=True)
class GpuCodeOnNumPy(NCC):
    """NCC whose CuPy functions are given NumPy as their array module."""

    backend: str = "cupy"

    def _cupy(self, first: Scene, second: Scene, kind: NDArray[np.uint8]) -> NDArray[np.float32]:
        geometry = (self._origin(), self.search, self.chip, self.step, self._block)
        scenes = (first.image, first.valid, second.image, second.valid)
        return _ncc_cupy.match(*scenes, kind.shape, geometry, self._min_pixels, xp=np)
