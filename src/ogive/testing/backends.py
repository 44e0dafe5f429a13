"""The code of the GPU backend on the CPU: the same CUDA kernels and the same launches, on a machine without a GPU."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels import NCC
from ..kernels._geometry import Scene
from .cuda import Cpu


@dataclass(frozen=True)
class GpuCodeOnCpu(NCC):
    """NCC whose CUDA kernels run on the CPU."""

    backend: str = "cupy"

    def _gpu(self, first: Scene, second: Scene) -> NDArray[np.float32]:
        return self._on(Cpu(), first, second)
