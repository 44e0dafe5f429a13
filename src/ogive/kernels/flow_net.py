"""Learned dense flow: what Horn and Schunck found, and what a small network says is still missing.

The network never sees an image. It is shown how well both images agree at the present field and up to two pixels
beside it, in cells of 4 x 4 px (`_flow_volume`), and answers what the field lacks and how far off it may still be. This
is done twice with the same weights. By construction it knows no direction, no place and no speed. `ogive train` trains
it on synthetic glaciers (docs/flow.md).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError
from . import _flow_field as field
from . import _flow_judge as judge
from ._flow_volume import CELL, CHANNELS, REACH, SHIFTS, volume
from ._flow_weights import SUFFIXES, Card, card, network, patched
from ._geometry import check_window
from ._memory import Footprint
from .flow import HornSchunck, Prepared

PATCH = 64
"""The network is run on squares of so many cells."""
RUNTIME = 64e6
"""Bytes of a session and its patch."""
Planes = NDArray[np.float32]


@dataclass(frozen=True)
class FlowNet:
    """Dense flow, refined by a network that was trained on synthetic glaciers; with an error for each vector.

    It starts from the field of `HornSchunck`, has less error and hardly its bias, and its vectors are flagged in the
    same way. Needs ONNX Runtime: `pip install 'ogive[flow]'`.

    Parameters
    ----------
    search : int
        Largest displacement, in each direction [px]; a vector that reaches it is flagged, never trusted.
    step : int
        Grid step between vectors [px]; the output cell; a multiple of 4.
    weights : str
        Name of a shipped network, or the path of the card of one's own, from `ogive train`.
    backend : {"onnx", "torch"}
        What runs the network.
    fill : {"nan", "keep"}
        What becomes of vectors that only their neighbours give: NaN, or kept and flagged INTERPOLATED.
    min_correlation : float
        Lower correlations of the features are flagged LOW_CORRELATION [1].

    Raises
    ------
    ParameterError
        A value out of range, or weights that do not exist.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> kernel = FlowNet(search=4)
    >>> image = rng.standard_normal((2 * kernel.halo() + 32,) * 2).astype("f4")
    >>> every = np.ones(image.shape, bool)
    >>> moved = kernel.match(kernel.prepare(image, every), kernel.prepare(np.roll(image, (2, -3), (0, 1)), every))
    >>> float(np.median(moved["dy"]).round(1)), float(np.median(moved["dx"]).round(1))
    (2.0, -3.0)
    """

    search: int = 8
    step: int = 8
    weights: str = "flow-net-1"
    backend: str = "onnx"
    fill: str = "nan"
    min_correlation: float = 0.2

    def __post_init__(self) -> None:
        if self.backend not in SUFFIXES:
            known = ", ".join(SUFFIXES)
            raise ParameterError("backend", rule=f"must be one of {known}", value=repr(self.backend))
        if self._start.step % CELL:
            raise ParameterError("step", rule=f"must be a multiple of {CELL} px", value=self.step, fix="8")
        card(self.weights, "flow_net")

    @property
    def chip(self) -> int:
        """Width of the window in which a vector is judged [px]."""
        return self._start.chip

    @property
    def extras(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def origin(self) -> dict[str, str]:
        """Which network it is, for the provenance of a store."""
        return {f"weights_sha256{suffix}": sha for suffix, sha in self._card.sha256}

    def halo(self) -> int:
        """Pixels needed beyond the output cells: what the start needs, and what each pass sees round it."""
        # The cells of the start lie on those of the output.
        return self._start.halo() + -(-self._card.passes * self._each // self.step) * self.step

    @property
    def multiband(self) -> bool:
        """True: the network sees sums over all bands."""
        return True

    def memory(self, cells: tuple[int, int], pairs: int = 1, bands: int = 1) -> Footprint:
        """Upper bound of the memory of one block of so many cells."""
        more = 2 * (self.halo() - self._start.halo()) // self.step
        height, width = (side * self.step + 2 * self.halo() for side in cells)
        start = self._start.memory((cells[0] + more, cells[1] + more), pairs, bands)
        seen = 72 + 24 * bands + 8 * CHANNELS / CELL**2
        return start + Footprint(match=seen * height * width + RUNTIME)

    def prepare(self, image: NDArray[np.float32], valid: NDArray[np.bool_]) -> Prepared:
        """Features of one window (h, w) or (bands, h, w), and what the start needs.

        Raises
        ------
        ParameterError
            The window is smaller than one cell with its halo.
        """
        check_window(image, self.halo(), self.step, f"search {self.search} and {self._card.passes} passes")
        return self._start.prepare(image, valid)

    def match(self, first: Prepared, second: Prepared) -> dict[str, NDArray[Any]]:
        """Displacements of the cells between two prepared windows; see `HornSchunck.match`."""
        start = self._start
        flow, sigma = self._refined(first, second, start.field(first, second))
        rest = self.halo() - start.halo()
        found = start.judged(first.inner(rest), second.inner(rest), field.inner(flow, rest))
        return judge.with_errors(found, field.inner(sigma, rest), start.halo(), self.step)

    def _refined(self, first: Prepared, second: Prepared, flow: Planes) -> tuple[Planes, Planes]:
        """The field after all passes, and the error of each component, where judgement needs them."""
        start, about = self._start, self._card
        run, sigma = network(about, self.backend), np.ones_like(flow)
        # Further out not even the start is right, and each pass is right in a smaller part of the window.
        margin = start.halo() - start.chip // 2
        # So much more of image 2 must be there, as the field may lead there.
        beyond = math.ceil((start.limit() + SHIFTS + 3) / CELL)
        for _ in range(about.passes):
            wider = margin - CELL * beyond
            one, two = (window.inner(wider).levels[0] for window in (first, second))
            seen = volume(one, two, field.inner(flow, wider), start.limit(), start.fall)
            edge = about.reach
            (answer,) = patched(lambda part: [run(part)], [seen[:, beyond:-beyond, beyond:-beyond]], edge, PATCH)
            # Zero where it would depend on what is beyond the window.
            answer = np.pad(answer, ((0, 0), (edge, edge), (edge, edge)))
            part = np.s_[:, margin : flow.shape[1] - margin, margin : flow.shape[2] - margin]
            shape = tuple(n - 2 * margin for n in first.valid.shape)
            flow[part] += field.spread(answer[:2], 0, CELL, 1, shape)
            scale = np.float32(about.spread) * np.exp(answer[2:].clip(-5, 3))
            sigma[part] = field.spread(scale, 0, CELL, 1, shape)
            margin += self._each
        return flow, sigma

    @property
    def _each(self) -> int:
        """Pixels on each side that a pass sees: the network's cells and one between which its answer is spread."""
        return -(-(CELL * (self._card.reach + 1) + REACH) // CELL) * CELL

    @property
    def _card(self) -> Card:
        return card(self.weights, "flow_net")

    @property
    def _start(self) -> HornSchunck:
        """Whose field it starts from, and whose judgement it takes."""
        return HornSchunck(
            search=self.search, step=self.step, fill=self.fill, min_correlation=self.min_correlation
        )  # fmt: skip
