"""How much memory the work of a kernel takes: upper bounds, from its parameters and the size of a window alone.

What is counted is what `_geometry`, `_search`, `_refine` and the engines allocate, as if every scene had masked pixels;
`benchmarks/memory.py` compares it with the memory of processes.
"""

from dataclasses import dataclass

from scipy import fft

from . import _ncc_dense, _ncc_fft, _search
from ._geometry import Geometry
from ._simd import LANES

PREPARE = 24
"""Bytes a pixel while a window is read, decoded and filtered."""
FOUND, JUDGED = 64, 100
"""Bytes a cell and chip size: two copies of what a search returns; what it returned, and what is judged of it."""
CHOSEN = 240
"""Bytes a cell: what is refined, and the answers."""
Shape = tuple[int, int]


@dataclass(frozen=True)
class Footprint:
    """Memory of a kernel's work on the windows of one block [bytes].

    Parameters
    ----------
    scene : float
        Kept of every prepared scene.
    first, second : float
        Kept besides once the scene was image 1, or image 2, of a pair.
    prepare : float
        While a window is read and prepared.
    match : float
        While a pair, or a stack of pairs, is matched.

    Examples
    --------
    >>> Footprint(scene=5, match=2) + Footprint(scene=1, match=3)
    Footprint(scene=6, first=0, second=0, prepare=0, match=3)
    """

    scene: float = 0
    first: float = 0
    second: float = 0
    prepare: float = 0
    match: float = 0

    def __add__(self, other: "Footprint") -> "Footprint":
        """One stage of a match and another one after it: what is kept adds up, what is in the making does not."""
        return Footprint(
            self.scene + other.scene, self.first + other.first, self.second + other.second,
            self.prepare + other.prepare, max(self.match, other.match),
        )  # fmt: skip


def polyphase(shape: Shape, block: int) -> float:
    """One plane in polyphase order, rows padded."""
    return 4 * block * shape[0] * (-(-(shape[1] + block) // block) + 2 * LANES)


def searched(
    geometry: Geometry, window: Shape, cells: Shape, pairs: int, limit: int | None = None, whole: Shape = _search._TILE
) -> Footprint:
    """The search of whole pixels: everywhere, or within `limit` of a prior; the mean of `pairs` surfaces.

    Kept are image and mask, the mask's integral image, the image in polyphase order where blocks are summed, and the
    tables of the chips. With a limit, tiles of at most `whole` points may still need the window of all displacements.
    """
    n, sizes = window[0] * window[1], len(geometry.chips)
    start = geometry.origin - geometry.search
    reach = [-(-(side - start - geometry.chips[0] + 1) // geometry.step) * geometry.step for side in window]
    engine = "blocks" if limit is not None or pairs > 1 else _search.engine_of(geometry)
    tile = _tile(geometry, cells, whole, geometry.search)
    if limit is not None:
        work = max(tile, _tile(geometry, cells, _search._TILE, min(2 * limit, geometry.search)))
    elif engine == "blocks":
        widest = max(columns.stop - columns.start for columns in _search.strips(geometry, geometry.search, cells[1]))
        work = max(tile, _tile(geometry, cells, (cells[0], widest), geometry.search, pairs))
    else:
        work = max(tile, _dense(geometry, cells) if engine == "dense" else _transforms(geometry))
    return Footprint(
        scene=9 * n + (polyphase(window, geometry.block) if engine == "blocks" else 0),
        first=8 * sizes * cells[0] * cells[1],
        second=8 * sizes * reach[0] * reach[1],
        prepare=PREPARE * n,
        match=work + FOUND * sizes * cells[0] * cells[1],
    )


def ring(geometry: Geometry, radius: int, nx: int, products: int) -> float:
    """Block sums in a ring, rows to work in, and surfaces of a row of points."""
    columns = int(_search.constants(geometry, radius, nx)[0][3])
    size, depth = 2 * radius + 1, int(geometry.counts[-1])
    line = size * columns + LANES
    return 4 * (products * (depth * size * line + 3 * line) + len(geometry.chips) * size * size * nx)


def _tile(geometry: Geometry, cells: Shape, most: Shape, radius: int, pairs: int = 1) -> float:
    """A tile of points some of which are masked: for each pair three planes of both images and a ring of six sums."""
    ny, nx = min(cells[0], most[0]), min(cells[1], most[1])
    chip, step = geometry.chips[-1], geometry.step
    one, two = (
        polyphase(((ny - 1) * step + chip + more, (nx - 1) * step + chip + more), geometry.block)
        for more in (0, 2 * radius)
    )
    # Planes are stacked from single ones, for one pair at a time.
    return 2 * two + pairs * (3 * one + 3 * two + ring(geometry, radius, nx, 6))


def _dense(geometry: Geometry, cells: Shape) -> float:
    """All correlations of a tile of the dense engine."""
    points = min(_ncc_dense._TILE_POINTS, cells[1]) + 3 * LANES
    size = 2 * geometry.search + 1
    return max(_ncc_dense._TILE_BYTES, 4 * 16 * size * size * points)


def _transforms(geometry: Geometry) -> float:
    """A batch of windows, their transforms and their surfaces."""
    window = geometry.chips[-1] + 2 * geometry.search
    n = fft.next_fast_len(window, real=True)
    return _ncc_fft._BATCH * (20 * window * window + 20 * n * n + 12 * (2 * geometry.search + 1) ** 2)


def filtered(window: Shape) -> Footprint:
    """A second filtered image with its mask."""
    n = window[0] * window[1]
    return Footprint(scene=5 * n, prepare=5 * n)


def refined(window: Shape, cells: Shape) -> Footprint:
    """The refinement: usable pixels and their integral image; gradients of image 1; spline of image 2."""
    n = window[0] * window[1]
    return Footprint(scene=5 * n, first=8 * n, second=4 * n, match=8 * n + (JUDGED + CHOSEN) * cells[0] * cells[1])
