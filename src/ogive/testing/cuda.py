"""CUDA kernels on the CPU: the source of the GPU backend, compiled as C++ and run thread by thread.

`cuda_shim.h` says what a kernel needs of CUDA in terms of C++. A `Cpu` takes the place of a GPU in `_ncc_cupy.match`,
so the kernels *and* the code that launches them are tested without a device. It finds what a device would not report:
memory that is read before it is written (NaN), writes beside an array, arguments of another type than the kernel's,
barriers that only some threads reach, and, by running the threads backwards, barriers that are missing.
"""

import ctypes
import functools
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import OgiveError
from ..kernels import _ncc_cupy

GUARD = 256
"""Bytes before and after every array that nobody may write."""
SHARED = 48 << 10
"""Dynamic shared memory of a thread block [bytes]."""
FLAGS = (
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Werror",
    "-Wno-deprecated-declarations",
)


@dataclass(frozen=True)
class Cpu:
    """A device of `_ncc_cupy` that is the CPU.

    Parameters
    ----------
    backwards : bool
        Run the threads of a block in the opposite order.
    code : str, optional
        CUDA source; by default that of NCC.

    Examples
    --------
    >>> device = Cpu()
    >>> kind = device.empty((1, 2), np.uint8)
    >>> mask = device.put(np.ones((10, 14), np.uint8))
    >>> device.launch("classify", (1, 1, 1), 64, (mask, mask, 14, 3, 3, 4, 4, 3, 16, 2, kind))
    >>> device.get(kind).tolist()
    [[0, 0]]
    """

    backwards: bool = False
    code: str = ""

    def put(self, array: NDArray[Any]) -> NDArray[Any]:
        """A copy of an array, on the device."""
        there = self.empty(array.shape, array.dtype)
        there[...] = array
        return there

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array on the device, full of NaN or of the greatest whole number."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        around = np.full(size + 2 * GUARD, 255, np.uint8)
        return around[GUARD : GUARD + size].view(dtype).reshape(shape)

    def get(self, array: NDArray[Any]) -> NDArray[Any]:
        """A copy of an array of the device."""
        return array.copy()

    def launch(
        self, name: str, grid: tuple[int, int, int], threads: int, args: tuple[Any, ...], shared: int = 0
    ) -> None:
        """Run one kernel.

        Raises
        ------
        OgiveError
            The launch could not work on a device, or the kernel broke a rule.
        """
        library = compiled(self.code or _ncc_cupy.source())
        given = "".join("i" if isinstance(a, int) else f"{a.dtype.char}*" for a in args)
        takes = library[f"signature_{name}"]
        takes.restype = ctypes.c_char_p
        expected = takes().decode()
        if given != expected:
            raise OgiveError(f"arguments of kernel {name}", rule=f"must be {expected}", value=given)
        if shared > SHARED or not 0 < threads <= 1024 or min(grid) < 1 or max(grid[1:]) > 65535:
            raise OgiveError(
                f"launch of kernel {name}", rule=f"a device takes {SHARED} bytes, 1024 threads, 65535 blocks in z, y",
                value=f"{shared} bytes, {threads} threads, grid {grid}",
            )  # fmt: skip
        values = [ctypes.c_int(a) if isinstance(a, int) else ctypes.c_void_p(a.ctypes.data) for a in args]
        pointers = (ctypes.c_void_p * len(args))(*(ctypes.addressof(v) for v in values))
        outcome = library[f"launch_{name}"](
            (ctypes.c_uint * 3)(*grid), threads, ctypes.c_size_t(-(-shared // 4)), pointers, int(self.backwards)
        )
        if outcome:
            rule = ("", "all threads of a block must reach the same barrier", "shared memory is smaller than its use")
            raise OgiveError(f"kernel {name}", rule=rule[outcome])
        for k, array in enumerate(args):
            if not isinstance(array, int) and (array.base[:GUARD].min() < 255 or array.base[-GUARD:].min() < 255):
                raise OgiveError(f"kernel {name}", rule=f"writes beside its argument {k}")


@functools.cache
def compiled(source: str) -> ctypes.CDLL:
    """The kernels of a CUDA source as a library of C functions.

    Raises
    ------
    OgiveError
        There is no C++ compiler, or it refuses the source.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)
    if compiler is None:
        raise OgiveError(
            "CUDA on the CPU", rule="needs a C++ compiler", fix="install g++ or clang++, or set CXX to its path"
        )
    kernels = re.findall(r"__global__\s+void\s+(\w+)", source)
    with tempfile.TemporaryDirectory() as folder:
        code, library = Path(folder, "kernels.cpp"), Path(folder, "kernels.so")
        Path(folder, "cuda_shim.h").write_text(resources.files(__package__).joinpath("cuda_shim.h").read_text())
        code.write_text("\n".join(['#include "cuda_shim.h"', source, *(f"LAUNCHER({name})" for name in kernels)]))
        done = subprocess.run([compiler, *FLAGS, "-o", library, code], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OgiveError("CUDA on the CPU", rule="the compiler refuses the source", value=done.stderr[:2000])
        return ctypes.CDLL(str(library))
