"""RAFT: a network that correlates all pairs of features and corrects its flow a few times, trained on synthetic ice.

For comparison with Tlhomole et al. (2023), who match glaciers with it. Image features are learned, the flow starts from
no motion, and a recurrent unit moves it to where the correlations lead (Teed & Deng, 2020). The paper's tiles are not
needed: no layer knows a figure of a tile, and correlations are computed when they are looked up (`_raft_lookup`). So
the reach of a vector is finite, and `halo()` covers it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError
from . import _flow_field as field
from . import _flow_judge as judge
from ._flow_features import STRENGTH
from ._flow_weights import Card, card, network, patched
from ._geometry import check_window
from ._memory import Footprint
from ._raft_lookup import CELL, FARTHEST, lookup, pooled, smoothed
from .flow import STEPS, HornSchunck, Level, Prepared

PATCH = 32
"""Networks are run on squares of so many cells."""
ENCODED, BESIDE = 2, 1
"""Cells on each side that features depend on; and an update besides what its network sees: the mean of the flow."""
EDGE = -(-(1 + STRENGTH + 1) // CELL) * CELL
"""Outermost pixels of a window that are left out: their gradients depend on where it ends."""
UNSURE, FILL = 1.0, 6
"""The relaxation starts from the median of the flow; cells whose errors are larger [px] have no part in it, and where
most are, those up to so many cells away give the start."""
RUNTIME = 110e6
"""Bytes of a session and its patches."""
Planes = NDArray[np.float32]


@dataclass(frozen=True)
class Raft:
    """Dense flow by RAFT, a recurrent network on correlations of learned features, with an error for each vector.

    There to be compared with: `HornSchunck` and `FlowNet` are better and faster (docs/flow.md). Needs ONNX Runtime:
    `pip install 'ogive[flow]'`.

    Parameters
    ----------
    search : int
        Largest displacement, in each direction [px]; a vector that reaches it is flagged, never trusted.
    step : int
        Grid step between vectors [px]; the output cell; a multiple of 4.
    weights : str
        Name of a shipped network, or the path of the card of one's own, from `ogive train --net raft`.
    finish : bool
        Relax the network's flow as `HornSchunck` does, whose errors the vectors then have; False: the flow and the
        errors of the network alone, as in the paper, to a few tenths of a pixel.
    fill : {"nan", "keep"}
        What becomes of vectors that only their neighbours give: NaN, or kept and flagged INTERPOLATED.
    min_correlation : float
        Lower correlations of the normalised gradients are flagged LOW_CORRELATION [1].

    Raises
    ------
    ParameterError
        A value out of range, or weights that do not exist.

    Notes
    -----
    Teed & Deng (2020), doi:10.1007/978-3-030-58536-5_24.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> kernel = Raft(search=4)
    >>> image = rng.standard_normal((2 * kernel.halo() + 32,) * 2).astype("f4")
    >>> every = np.ones(image.shape, bool)
    >>> moved = kernel.match(kernel.prepare(image, every), kernel.prepare(np.roll(image, (2, -3), (0, 1)), every))
    >>> float(np.median(moved["dy"]).round(1)), float(np.median(moved["dx"]).round(1))
    (2.0, -3.0)
    """

    search: int = 8
    step: int = 8
    weights: str = "raft-1"
    finish: bool = True
    fill: str = "nan"
    min_correlation: float = 0.2

    def __post_init__(self) -> None:
        if self._solver.step % CELL:
            raise ParameterError("step", rule=f"must be a multiple of {CELL} px", value=self.step, fix="8")
        card(self.weights, "raft")

    @property
    def chip(self) -> int:
        """Width of the window in which a vector is judged [px]."""
        return self._solver.chip

    @property
    def extras(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def origin(self) -> dict[str, str]:
        """Which network it is, for the provenance of a store."""
        return {f"weights_sha256{suffix}": sha for suffix, sha in self._card.sha256}

    def halo(self) -> int:
        """Pixels needed beyond the output cells: judgement, relaxation, all updates, and what the first one sees."""
        wanted = self._solver.chip // 2 + self.finish * (STEPS + 2 + FILL * CELL) + CELL
        seen = CELL * (self._card.passes * (self._card.reach + BESIDE) + self._first + ENCODED) + EDGE
        # The cells of the network lie on those of the output.
        return -(-max(wanted + seen, self._solver.halo()) // CELL) * CELL

    def memory(self, cells: tuple[int, int], pairs: int = 1) -> Footprint:
        """Upper bound of the memory of one block of so many cells."""
        more = 2 * (self.halo() - self._solver.halo()) // self.step + 2
        height, width = (side * self.step + 2 * self.halo() for side in cells)
        judged = self._solver.memory((cells[0] + more, cells[1] + more), pairs)
        return judged + Footprint(match=160 * height * width + RUNTIME)

    def prepare(self, image: NDArray[np.float32], valid: NDArray[np.bool_]) -> Prepared:
        """Normalised gradients of one window (h, w).

        Raises
        ------
        ParameterError
            The window is smaller than one cell with its halo.
        """
        check_window(image, self.halo(), self.step, f"search {self.search} and {self._card.passes} updates")
        return self._solver.prepare(image, valid)

    def match(self, first: Prepared, second: Prepared) -> dict[str, NDArray[Any]]:
        """Displacements of the cells between two prepared windows; see `HornSchunck.match`."""
        solver, shape = self._solver, first.valid.shape
        flow, sigma, at = self._flow(first.levels[0], second.levels[0])
        margin = self.halo() - solver.halo()
        first, second = first.inner(margin), second.inner(margin)
        if self.finish:
            flow = field.mended(np.where(sigma.max(0) < UNSURE, flow, np.float32(np.nan)), FILL)
        flow, sigma = (field.inner(field.spread(a, at, CELL, 1, shape), margin) for a in (flow, sigma))
        if self.finish:
            return solver.judged(first, second, solver.relaxed(first.levels[0], second.levels[0], flow, 0))
        found = solver.judged(first, second, flow)
        return judge.with_errors(found, sigma, solver.halo(), self.step)

    def _flow(self, one: Level, two: Level) -> tuple[Planes, Planes, int]:
        """The flow of cells after all updates, the error of each component, and the pixel where the first begins."""
        about, limit = self._card, self._solver.limit()
        run: Any = network(about, "onnx")
        images = [_inner(np.concatenate([level.planes, level.known[None]]), EDGE) for level in (one, two)]
        (fine, state, context), (fine2, *_) = (_encoded(run, image) for image in images)
        cells, cells2 = pooled(fine), pooled(fine2)
        coarse2, first = smoothed(cells2), self._first
        state, context = _inner(state, first), _inner(context, first)
        flow = np.zeros((2, *state.shape[1:]), np.float32)
        answer = flow
        for _ in range(about.passes):
            first += BESIDE
            seen = lookup(fine, fine2, cells, cells2, coarse2, _inner(flow, BESIDE), first)
            state, context = _inner(state, BESIDE), _inner(context, BESIDE)
            state, answer = _updated(run, [state, context, seen, _relative(flow)], about.reach)
            first += about.reach
            context, flow = _inner(context, about.reach), _inner(flow, BESIDE + about.reach)
            flow = (flow + np.float32(CELL) * answer[:2]).clip(-limit, limit)
        sigma = np.float32(about.spread) * np.exp(answer[2:].clip(-5, 3))
        return flow, sigma, EDGE + CELL * (ENCODED + first)

    @property
    def _first(self) -> int:
        """Cells of features that are looked up beyond the first flow."""
        return -(-int(self._solver.limit() + FARTHEST) // CELL)

    @property
    def _card(self) -> Card:
        return card(self.weights, "raft")

    @property
    def _solver(self) -> HornSchunck:
        """Whose gradients it sees, whose relaxation may finish it, and whose judgement it takes."""
        return HornSchunck(
            search=self.search, step=self.step, start="none", fill=self.fill, min_correlation=self.min_correlation
        )  # fmt: skip


def _inner(planes: Planes, margin: int) -> Planes:
    """Without so many points on each side."""
    h, w = planes.shape[1:]
    return np.ascontiguousarray(planes[:, margin : h - margin, margin : w - margin], np.float32)


def _relative(flow: Planes) -> Planes:
    """The flow less the mean of 3 x 3 cells, which the outermost ones do not have."""
    _, h, w = flow.shape
    rows = flow[:, : h - 2] + flow[:, 1 : h - 1] + flow[:, 2:]
    mean = (rows[:, :, : w - 2] + rows[:, :, 1 : w - 1] + rows[:, :, 2:]) / np.float32(9)
    return np.asarray(flow[:, 1:-1, 1:-1] - mean, np.float32)


def _encoded(run: Any, image: Planes) -> list[Planes]:
    """Features, first state and context of an image (`ogive.learn.raft.encode`), `ENCODED` cells less on each side."""
    idle = [np.zeros((channels, 1, 1), np.float32) for channels in run.channels[1:]]
    return patched(lambda part: run(part, *idle)[:3], [image], ENCODED, PATCH, CELL)


def _updated(run: Any, planes: list[Planes], reach: int) -> list[Planes]:
    """The next state, and what the flow lacks (`ogive.learn.raft.update`), `reach` cells less on each side."""
    idle = np.zeros((3, CELL, CELL), np.float32)
    return patched(lambda *parts: run(idle, *parts)[3:], planes, reach, PATCH)
