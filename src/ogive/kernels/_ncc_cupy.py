"""NCC on a GPU: launches the kernels of `ncc.cu`, which CuPy compiles when they are first needed.

The scheme is that of the CPU, displacement-major: one sum per block and displacement serves every chip, of every size,
that the block belongs to. Chips without a masked pixel take the plain formula, the others six sums. The window is
worked through in tiles of points, which bounds the memory taken beside images and answers; as every sum belongs to its
own chip, any tiling gives the same bits. Agrees with the other backends to rounding, not to the bit.

The host code asks five things of a device (`Device`), so that `ogive.testing.cuda` can run the same kernels on the CPU;
that is how they are tested where there is no GPU. No GPU speed has been measured yet.
"""

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import ParameterError
from ._ncc_numba import CLEAN, MASKED

log = logging.getLogger("ogive")
THREADS = 64
"""Threads that share one chip; THREADS in `ncc.cu`."""
PRODUCT_THREADS = 128
"""About so many threads of one thread block make block sums."""
TILE_FLOATS = 4096
"""About so many pixels of both images are kept in shared memory for them."""
SURFACE_FLOATS = 10240
"""Larger surfaces than 101 x 101 are kept in global memory."""
TILE_BYTES = 512 << 20
"""About so much memory on the device for the block sums and tables of one tile."""
TABLE_BYTES = 48
"""Memory for the tables of one pixel, while they are made."""
TILE_COLUMNS = 256
"""Points of a tile along x; along y as many rows as the memory allows."""


class Device(Protocol):
    """What the host code needs of a device."""

    def put(self, array: NDArray[Any]) -> Any:
        """A copy of an array, on the device."""

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """An array on the device."""

    def get(self, array: Any) -> NDArray[Any]:
        """A copy of an array of the device."""

    def launch(
        self, name: str, grid: tuple[int, int, int], threads: int, args: tuple[Any, ...], shared: int = 0
    ) -> None:
        """Run a kernel of `ncc.cu`: arrays of the device and whole numbers; `shared` bytes of shared memory."""


class Gpu:
    """The current device of CuPy."""

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy

    def put(self, array: NDArray[Any]) -> Any:
        """A copy of an array, on the device."""
        return self._cupy.asarray(array)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """An array on the device."""
        return self._cupy.empty(shape, dtype)

    def get(self, array: Any) -> NDArray[Any]:
        """A copy of an array of the device."""
        found: NDArray[Any] = self._cupy.asnumpy(array)
        return found

    def launch(
        self, name: str, grid: tuple[int, int, int], threads: int, args: tuple[Any, ...], shared: int = 0
    ) -> None:
        """Run a kernel of `ncc.cu`."""
        # CuPy would pass a Python int as 64 bits.
        typed = tuple(np.int32(a) if isinstance(a, int) else a for a in args)
        _kernel(name)(grid, (threads,), typed, shared_mem=shared)


@functools.cache
def _kernel(name: str) -> Any:
    """A kernel, compiled by CuPy when it is first launched on a device."""
    import cupy

    return cupy.RawModule(code=source()).get_function(name)


def source() -> str:
    """The CUDA source of the kernels."""
    return resources.files(__package__).joinpath("ncc.cu").read_text(encoding="utf-8")


@functools.cache
def available() -> bool:
    """True where CuPy is installed and sees a usable GPU; logs the reason once."""
    try:
        import cupy

        found = int(cupy.cuda.runtime.getDeviceCount()) > 0
    except ImportError:
        log.debug("NCC backend: numba (cupy is not installed)")
        return False
    except Exception as error:  # cupy raises its own class, which only exists where it is installed
        log.debug("NCC backend: numba (no usable GPU: %s)", error)
        return False
    log.debug("NCC backend: %s", "cupy" if found else "numba (no GPU)")
    return found


@dataclass(frozen=True)
class Tile:
    """Points i0 ... i0 + ny - 1, j0 ... j0 + nx - 1 of a window."""

    i0: int
    j0: int
    ny: int
    nx: int


@dataclass(frozen=True)
class Pair:
    """Two images on a device, and the geometry of their largest chips [px]; smaller ones have the same centres."""

    device: Device
    a: Any
    a_valid: Any
    b: Any
    b_valid: Any
    origin: int
    radius: int
    chip: int
    step: int
    block: int

    @property
    def size(self) -> int:
        """Displacements along one axis."""
        return 2 * self.radius + 1

    @property
    def pitch(self) -> int:
        """Displacements of a row of block sums, padded to a multiple of four."""
        return -(-self.size // 4) * 4

    def blocks(self, points: int) -> int:
        """Blocks along an axis for so many points."""
        return ((points - 1) * self.step + self.chip) // self.block

    def corner(self, point: int) -> int:
        """First pixel of a point's largest chip."""
        return self.origin + point * self.step

    def tiles(self, shape: tuple[int, int], roles: int) -> Iterator[Tile]:
        """The window in tiles whose block sums fit the memory."""
        ny, nx = shape
        width = min(nx, TILE_COLUMNS)
        blocks = self.blocks(width)
        pixels = self.block * (blocks * self.block + 2 * self.radius)
        row = 4 * roles * blocks * self.size * self.pitch + TABLE_BYTES * pixels
        rows = TILE_BYTES // row * self.block - self.chip
        height = min(ny, max(1, rows // self.step + 1))
        for i in range(0, ny, height):
            for j in range(0, nx, width):
                yield Tile(i, j, min(height, ny - i), min(width, nx - j))

    def kinds(self, chip: int, min_pixels: int, shape: tuple[int, int]) -> Any:
        """Class of every chip of one size."""
        ny, nx = shape
        first = self.origin + (self.chip - chip) // 2
        kind = self.device.empty(shape, np.uint8)
        self.device.launch(
            "classify", (-(-nx // THREADS), ny, 1), THREADS,
            (self.a_valid, self.b_valid, self.a.shape[1], first, first, self.step, chip, self.radius, min_pixels, nx,
             kind),
        )  # fmt: skip
        return kind

    def block_sums(self, tile: Tile, roles: int) -> Any:
        """Sums over blocks of the products of both images (1 role), or of all six of the masked formula."""
        rows, columns = self.blocks(tile.ny), self.blocks(tile.nx)
        sums = self.device.empty((roles, rows, columns, self.size, self.pitch), np.float32)
        groups = self.pitch // 4
        across = min(columns, max(1, min(PRODUCT_THREADS // groups, TILE_FLOATS // (4 * self.block))))
        span = 2 * across * self.block + self.pitch
        at_once = max(1, min(self.block, TILE_FLOATS // span))
        self.device.launch(
            "block_sums", (-(-columns // across), rows, roles * self.size), across * groups,
            (self.a, self.a_valid, self.b, self.b_valid, self.a.shape[1], self.corner(tile.i0), self.corner(tile.j0),
             self.radius, self.pitch, self.block, across, at_once, columns, sums),
            shared=4 * at_once * span,
        )  # fmt: skip
        return sums

    def table(self, image: Any, tile: Tile, chip: int, margin: int) -> Any:
        """Mean and spread of the chip at every pixel from `margin` before the tile's first chip to as far behind."""
        inset = (self.chip - chip) // 2 - margin
        h, w = ((n - 1) * self.step + chip + 2 * margin for n in (tile.ny, tile.nx))
        sums, other = (self.device.empty((h, w, 2), np.float64) for _ in range(2))
        grid, pixels = (-(-h * w // 256), 1, 1), h * w
        y, x = self.corner(tile.i0) + inset, self.corner(tile.j0) + inset
        self.device.launch("moments", grid, 256, (image, self.a.shape[1], y, x, w, pixels, self.block, sums))
        # Sums of a block, then of blocks: block + blocks additions for chip = block * blocks, along x and along y.
        blocks = chip // self.block
        for n, spacing in ((blocks, self.block), (self.block, w), (blocks, self.block * w)):
            self.device.launch("box_sums", grid, 256, (sums, pixels, n, spacing, other))
            sums, other = other, sums
        table = self.device.empty((h, w, 2), np.float32)
        self.device.launch("normalise", grid, 256, (sums, pixels, chip * chip, table))
        return table

    def peaks(self, sums: Any, tile: Tile, chip: int, kind: Any, min_pixels: int, out: Any) -> None:
        """Match the chips of one size; fills out[:, tile] of (8, ny, nx)."""
        a, b = self.table(self.a, tile, chip, 0), self.table(self.b, tile, chip, self.radius)
        surface = self.size * self.size
        fits = surface <= SURFACE_FLOATS
        apart = self.device.empty((1,) if fits else (tile.ny, tile.nx, surface), np.float32)
        self.device.launch(
            "peaks", (tile.nx, tile.ny, 1), THREADS,
            (sums, sums.shape[1], sums.shape[2], (self.chip - chip) // (2 * self.block), chip // self.block,
             self.step // self.block, self.radius, self.pitch, a, a.shape[1], b, b.shape[1], self.step, kind,
             min_pixels, apart, int(fits), tile.i0, tile.j0, out.shape[1], out.shape[2], out),
            shared=4 * surface * fits,
        )  # fmt: skip


def match(
    first: NDArray[np.float32],
    first_valid: NDArray[np.bool_],
    second: NDArray[np.float32],
    second_valid: NDArray[np.bool_],
    shape: tuple[int, ...],
    geometry: tuple[int, int, int | tuple[int, ...], int, int],
    min_pixels: int | tuple[int, ...],
    device: Device | None = None,
) -> NDArray[np.float32]:
    """Match all cells of a window, with chips of one or several sizes.

    Parameters
    ----------
    first, second : (h, w) float32
        Filtered images, 0 where masked.
    first_valid, second_valid : (h, w) bool
    shape : (ny, nx)
        Output cells.
    geometry : tuple of int
        First pixel of the first (largest) chip, search radius, chip or chips, step, block width [px]. Chips of several
        sizes have the same centres; the block width divides the step, all chips, and half of the differences of chips.
    min_pixels : int, or one for each chip
        Least number of common pixels.
    device : Device, optional
        Where to compute; the current device of CuPy by default.

    Returns
    -------
    (8, ny, nx) float32, or (n, 8, ny, nx) for a tuple of n chips
        dy, dx, corr, second peak, mean |r|, rim, refined, share searched; as `_ncc_numba.match`. Where nothing could be
        searched, corr is -2.

    Raises
    ------
    ParameterError
        Step, chips and block width do not fit each other.
    """
    origin, radius, chips, step, block = geometry
    sizes = [int(c) for c in np.atleast_1d(chips)]
    least = [int(n) for n in np.broadcast_to(min_pixels, len(sizes))]
    if step % block or any(c % block or (max(sizes) - c) % (2 * block) for c in sizes):
        raise ParameterError(
            "block", rule="must divide the step, every chip, and half of the differences of the chips", value=block
        )
    device = device or Gpu()
    a, b = (device.put(np.ascontiguousarray(image, np.float32)) for image in (first, second))
    a_valid, b_valid = (device.put(valid.astype(np.uint8)) for valid in (first_valid, second_valid))
    pair = Pair(device, a, a_valid, b, b_valid, int(origin), int(radius), max(sizes), int(step), int(block))
    ny, nx = shape
    if first_valid.all() and second_valid.all():
        masked = np.zeros((len(sizes), ny, nx), bool)
        kinds = [device.put(np.full((ny, nx), CLEAN, np.uint8))] * len(sizes)
    else:
        kinds = [pair.kinds(c, n, (ny, nx)) for c, n in zip(sizes, least, strict=True)]
        masked = np.stack([device.get(kind) == MASKED for kind in kinds])
    outs = [device.empty((8, ny, nx), np.float32) for _ in sizes]
    for tile in pair.tiles((ny, nx), 6 if masked.any() else 1):
        some = masked[:, tile.i0 : tile.i0 + tile.ny, tile.j0 : tile.j0 + tile.nx].any()
        sums = pair.block_sums(tile, 6 if some else 1)
        for chip, n, kind, out in zip(sizes, least, kinds, outs, strict=True):
            pair.peaks(sums, tile, chip, kind, n, out)
    found = np.stack([device.get(out) for out in outs])
    return found if isinstance(chips, tuple) else found[0]
