"""Dense optical flow after Horn and Schunck: a field that explains the images and is smooth.

The field d minimises

    sum over pixels  psi(r1^2 + r2^2) + alpha |grad d|^2,      r = image 2 at (p + d) - image 1 at p

where the two images of r are the Sobel gradients along y and x, divided by the local strength of the gradient: light,
haze and contrast drop out, and direction counts. psi is Charbonnier's, so that a shadow or snow that does not move
weighs little. Masked pixels have no part in the sum, and where nothing has, the answer is that of the neighbours: such
vectors are flagged and, unless asked for, not given.

A start within a pixel comes from orientation correlation on the output grid, and a few dozen steps of relaxation do
the rest. Each carries knowledge one pixel further, so the reach is finite: `halo()` covers it, and any tiling gives the
same bits. The paper's way, a pyramid from no motion, needs many more steps for the same answer (docs/flow.md).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from .. import flags
from ..errors import ParameterError
from ..quality import finite
from . import _flow_field as field
from . import _flow_judge as judge
from . import _flow_solver as solver
from ._flow_features import STRENGTH, features, halved, sampled_where, slopes
from ._geometry import check_window
from ._judge import MIN_VALID
from ._memory import CHOSEN, Footprint
from .ncc import NCC
from .orientation import OrientationCorrelation

BEYOND = 2
"""Displacements are followed so far beyond the search, to see that they leave it [px]."""
STEPS = 24
"""Steps of relaxation at each level of the pyramid; more change the third digit of the error."""
EVERY = 8
"""Steps between two looks at the images."""
START_CHIP, START_STEP = 32, 8
"""Chip and widest grid of the start [px]."""
FILL = 4
"""A missing start is taken from cells up to so far away."""
STARTS = ("orientation", "ncc", "none")

Planes = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Level(NamedTuple):
    """A scene at one pixel size: features, their slopes, where slopes are known, where features can be sampled."""

    planes: Planes
    rise: Planes
    known: Mask
    seen: Mask


class Prepared(NamedTuple):
    """A scene window: its levels, finest first; its usable pixels; and what the start needs."""

    levels: list[Level]
    valid: Mask
    start: Any

    def inner(self, margin: int) -> "Prepared":
        """Its finest level without so many pixels on each side."""
        cut = np.s_[..., margin : len(self.valid) - margin, margin : self.valid.shape[1] - margin]
        planes: list[Any] = [plane[cut].copy() for plane in self.levels[0]]
        level = Level(*planes)
        # What samples read beyond the edge is not there any more.
        level.seen[:1] = level.seen[-2:] = level.seen[:, :1] = level.seen[:, -2:] = False
        return Prepared([level], self.valid[cut[1:]], None)


@dataclass(frozen=True)
class HornSchunck:
    """Dense flow: a robust data term on normalised Sobel gradients, quadratic smoothness, an error for each vector.

    For glaciers whose surface changes between the images (docs/flow.md). Neighbouring vectors share their data: the
    `chip` of a vector is its effective resolution.

    Parameters
    ----------
    search : int
        Largest displacement, in each direction [px]; a vector that reaches it is flagged, never trusted.
    step : int
        Grid step between vectors [px]; the output cell.
    smoothness : float
        Weight alpha of the smoothness; features have strength 1 [1].
    softness : float
        Residual from which a pixel weighs less (Charbonnier) [1]; inf: quadratic data term.
    bound : float
        Gradients below this share of the local strength count less, those above all alike: 0.5; inf: gradients keep
        their strength, as in the paper.
    start : {"orientation", "ncc", "none"}
        Where the first guess comes from.
    levels : int
        Pixel sizes 1, 2, 4 ...; more than one is for `start="none"`. The step must be a multiple of the largest.
    median : int
        Width of a median filter on the field, 0 for none [px].
    fill : {"nan", "keep"}
        What becomes of vectors that only smoothness gives: NaN, or kept and flagged INTERPOLATED.
    min_correlation : float
        Lower correlations of the features are flagged LOW_CORRELATION [1].

    Raises
    ------
    ParameterError
        A value out of range.

    Notes
    -----
    Horn & Schunck (1981), doi:10.1016/0004-3702(81)90024-2; warping and pyramid: Brox et al. (2004),
    doi:10.1007/978-3-540-24673-2_3; relaxation: Chebyshev's semi-iteration, Golub & Varga (1961),
    doi:10.1007/BF01386013.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> image = rng.standard_normal((256, 256)).astype("f4")
    >>> kernel, every = HornSchunck(search=4), np.ones(image.shape, bool)
    >>> moved = kernel.match(kernel.prepare(image, every), kernel.prepare(np.roll(image, (2, -3), (0, 1)), every))
    >>> float(np.median(moved["dy"]).round(2)), float(np.median(moved["dx"]).round(2))
    (2.0, -3.0)
    """

    search: int = 8
    step: int = 8
    smoothness: float = 7.0
    softness: float = 0.3
    bound: float = 0.5
    start: str = "orientation"
    levels: int = 1
    median: int = 0
    fill: str = "nan"
    min_correlation: float = 0.2

    def __post_init__(self) -> None:
        for name, least in (("search", 1), ("step", 1), ("levels", 1), ("median", 0)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                raise ParameterError(name, rule=f"must be a whole number, at least {least}", value=value)
        for name in ("smoothness", "softness", "bound"):
            if not getattr(self, name) > 0:
                raise ParameterError(name, rule="must be positive", value=getattr(self, name))
        for name, known in (("start", STARTS), ("fill", ("nan", "keep"))):
            if getattr(self, name) not in known:
                value = repr(getattr(self, name))
                raise ParameterError(name, rule=f"must be one of {', '.join(known)}", value=value)
        if self.median and self.median % 2 == 0:
            raise ParameterError("median", rule="must be odd, or 0", value=self.median, fix="9")
        if self.step % self._coarsest:
            raise ParameterError(
                "step", rule=f"must be a multiple of {self._coarsest} px, the largest pixel of {self.levels} levels",
                value=self.step, fix="levels=1",
            )  # fmt: skip
        if not 0 <= self.min_correlation <= 1:
            raise ParameterError("min_correlation", rule="must lie in 0 ... 1", value=self.min_correlation)

    @property
    def chip(self) -> int:
        """Width of the window in which a vector is judged [px]."""
        return judge.WINDOW + (self.step - judge.WINDOW) % 2

    @property
    def extras(self) -> tuple[str, ...]:
        """None."""
        return ()

    def halo(self) -> int:
        """Pixels needed beyond the output cells: judgement, relaxation, and what its equations and start see."""
        pixels = [2**k for k in range(self.levels)]
        relaxed = sum(STEPS * n + 2 * n for n in pixels)
        top = pixels[-1]
        seen = 1 + STRENGTH + (top - 1) + self.search + BEYOND + 3 * top
        started = self._starter.halo() + (FILL + 1) * self._starter.step if self.start != "none" else 0
        reach = self.chip // 2 + self.median // 2 + relaxed + max(seen, started)
        return int(-(-reach // top) * top)

    @property
    def multiband(self) -> bool:
        """True: residuals of all bands are summed."""
        return True

    def memory(self, cells: tuple[int, int], pairs: int = 1, bands: int = 1) -> Footprint:
        """Upper bound of the memory of one block of so many cells."""
        height, width = (n * self.step + 2 * self.halo() for n in cells)
        n = height * width
        pyramid = 4 / 3 if self.levels > 1 else 1
        taken = Footprint(
            scene=(24 * bands + 4) * n * pyramid + n, prepare=(28 * bands * pyramid + 36) * n,
            match=68 * n + CHOSEN * cells[0] * cells[1],
        )  # fmt: skip
        if self.start == "none":
            return taken
        starter = self._starter
        inner = [(side - 2 * starter.halo()) // starter.step for side in (height, width)]
        return taken + starter.memory((inner[0], inner[1]))

    def prepare(self, image: NDArray[np.float32], valid: NDArray[np.bool_]) -> Prepared:
        """Features of one window (h, w) or (bands, h, w), and what the start needs.

        Raises
        ------
        ParameterError
            The window is smaller than one cell with its halo.
        """
        check_window(image, self.halo(), self.step, f"search {self.search} and {self.levels} levels")
        valid = valid & finite(image)
        clean = np.where(valid, image, np.float32(0)).astype(np.float32)
        planes, ok = features(clean, valid, self.bound)
        levels = []
        for k in range(self.levels):
            if k:
                planes, ok = halved(planes, ok)
            rise, known = slopes(planes, ok)
            levels.append(Level(planes, rise, known, sampled_where(ok)))
        start = None
        if self.start != "none":
            inner = tuple(slice(self._offset, n - self._offset) for n in valid.shape)
            # To a pixel: what one broad band would show is enough.
            start = self._starter.prepare(clean.reshape(-1, *valid.shape).mean(0)[inner], valid[inner])
        return Prepared(levels, valid, start)

    def match(self, first: Prepared, second: Prepared) -> dict[str, NDArray[Any]]:
        """Displacements of the cells between two prepared windows.

        Returns
        -------
        dict of (ny, nx) arrays
            `dy`, `dx` [px, dy down; NaN where invalid], `dy_error`, `dx_error` (1 sigma [px]), `corr` (of the features
            at the displacement), `valid_fraction` (of the window in image 1), `snr` and `peak_ratio` (NaN: there is no
            surface), all float32; `chip` (width over which the vector is a mean [px, 0 where there is none]) and
            `flag` (`ogive.flags`), both uint16.
        """
        return self.judged(first, second, self.field(first, second))

    # --- the field ---

    def field(self, first: Prepared, second: Prepared) -> Planes:
        """Displacements of all pixels of the windows (2, h + 2, w + 2), `_flow_field.RIM` px more on each side."""
        flow = self._first_guess(first, second)
        for k in range(self.levels - 1, -1, -1):
            if k < self.levels - 1:
                flow = field.doubled(flow)
            flow = self.relaxed(first.levels[k], second.levels[k], flow, k)
        if self.median:
            inner = slice(self._spare - self.median // 2, self.median // 2 - self._spare)
            flow[:, inner, inner] = median_filter(flow[:, inner, inner], (1, self.median, self.median))
        return flow

    def relaxed(self, one: Level, two: Level, flow: Planes, k: int) -> Planes:
        """The field after all steps at level k."""
        system = np.empty((5, *one.known.shape), np.float32)
        omegas, before = solver.accelerations(STEPS), flow.copy()
        for done in range(0, STEPS, EVERY):
            solver.linearise(
                one.planes, one.rise, one.known, two.planes, two.seen, flow, self.limit(k), self.fall,
                self._alpha(k), system,
            )  # fmt: skip
            flow, before = solver.relax(flow, before, system, omegas[done : done + EVERY])
        return flow

    def _first_guess(self, first: Prepared, second: Prepared) -> Planes:
        """The field to start from, at the coarsest level."""
        shape = first.levels[-1].known.shape
        if self.start == "none":
            return np.zeros((2, shape[0] + 2 * field.RIM, shape[1] + 2 * field.RIM), np.float32)
        starter: Any = self._starter
        found = starter.match(first.start, second.start)
        cells = field.mended(np.stack([found["dy"], found["dx"]]), FILL)
        first_cell = self._offset + self._starter.halo()
        return np.asarray(field.spread(cells, first_cell, self._starter.step, self._coarsest, shape))

    # --- judgement ---

    def judged(self, first: Prepared, second: Prepared, flow: Planes) -> dict[str, NDArray[Any]]:
        """The answers of the cells, with their errors and flags."""
        halo, step, chip, one, two = self.halo(), self.step, self.chip, first.levels[0], second.levels[0]
        shape = ((first.valid.shape[0] - 2 * halo) // step, (first.valid.shape[1] - 2 * halo) // step)
        corner = halo + (step - chip) // 2
        planes = judge.evidence(
            one.planes, one.rise, one.known, two.planes, two.seen, flow, self.limit(0), self.fall, self._spare
        )  # fmt: skip
        sums = judge.windows(planes, corner, step, chip, judge.BLOCK, shape)
        vectors = judge.centres(flow, halo, step, shape)
        width = judge.resolution(sums, chip, self._alpha(0))
        y, x = (corner + step * np.arange(n) for n in shape)
        y, other = y[:, None], judge.Shares(second.valid)
        own = judge.Shares(first.valid)(y, x, chip)
        moved = np.rint(vectors).astype(np.int64).clip(-self.search - 1, self.search + 1)
        there = other.beside(y + moved[0], x + moved[1], chip)
        with np.errstate(invalid="ignore", divide="ignore"):
            corr = np.minimum(sums[0] / np.sqrt(sums[1] * sums[2]), np.float32(1))
        around = other(y - self.search, x - self.search, chip + 2 * self.search)
        masked = (own < MIN_VALID) | ((there < MIN_VALID) & (around < MIN_VALID))
        flag = np.where(masked, flags.NO_DATA, 0)
        # The true motion may lie under the mask of image 2.
        flag |= np.where(~masked & (there < MIN_VALID), flags.RIM, 0)
        flag |= np.where((flag == 0) & ~(width < judge.WIDEST), flags.FLAT, 0)
        filled = flag != 0
        measured = ~(filled & (flag != flags.RIM))
        flag |= np.where(measured & (np.abs(vectors).max(0) >= self.search - 0.5), flags.RIM, 0)
        flag |= np.where(measured & (corr < self.min_correlation), flags.LOW_CORRELATION, 0)
        if self.fill == "keep":
            near = judge.Shares(one.known)(y - STEPS, x - STEPS, chip + 2 * STEPS) > 0
            flag |= np.where(filled & near, flags.INTERPOLATED, 0)
        flag = flag.astype(np.uint16)
        bad, nan = flags.invalid(flag), np.float32(np.nan)
        dy, dx = np.where(bad, nan, vectors)
        dy_error, dx_error = np.where(bad | filled, nan, judge.errors(sums))
        nothing = np.full(shape, nan)
        return {
            "dy": dy, "dx": dx, "dy_error": dy_error, "dx_error": dx_error, "corr": np.where(measured, corr, nan),
            "snr": nothing, "peak_ratio": nothing, "valid_fraction": own,
            "chip": np.where(measured & (width < judge.WIDEST), np.rint(width), 0).astype(np.uint16), "flag": flag,
        }  # fmt: skip

    @property
    def _starter(self) -> NCC | OrientationCorrelation:
        """The kernel of the start: on the widest grid that fits the cells."""
        step = max(n for n in range(1, START_STEP + 1) if self.step % n == 0)
        chip = START_CHIP + (START_CHIP - step) % 2
        both: dict[str, Any] = {"chip": chip, "search": self.search + BEYOND, "step": step, "max_peak_ratio": 0.9}
        if self.start == "ncc":
            return NCC(**both, refine="quadric")
        return OrientationCorrelation(**both, min_correlation=0.05)

    @property
    def _offset(self) -> int:
        """Where the window of the start begins, so that its cells fit those of the output."""
        return (self.halo() - self._starter.halo()) % self._starter.step

    @property
    def _spare(self) -> int:
        """Pixels of the halo that no vector is judged by."""
        return self.halo() + min(0, (self.step - self.chip) // 2)

    @property
    def _coarsest(self) -> int:
        return 1 << (self.levels - 1)

    @property
    def fall(self) -> np.float32:
        """How fast the weight of a pixel falls with its squared residual."""
        return np.float32(0.5 / self.softness**2)

    def _alpha(self, k: int) -> np.float32:
        # Coarse pixels are few: what holds them together must not hold the glacier to the rock.
        return np.float32(self.smoothness / 2**k)

    def limit(self, k: int = 0) -> np.float32:
        """Largest displacement that is followed, in pixels of level k."""
        return np.float32((self.search + BEYOND) / 2**k)


@dataclass(frozen=True)
class HornSchunckReference(HornSchunck):
    """The solver of Tlhomole et al. (2023), to compare with: a pyramid from no motion, a quadratic data term on plain
    Sobel gradients, a 9 px median.

    Gradients are divided by their local strength where the paper has that of the tile, which would make seams;
    parameters as in `HornSchunck`.

    Examples
    --------
    >>> HornSchunckReference().levels, HornSchunckReference().median
    (3, 9)
    """

    search: int = 6
    smoothness: float = 4.0
    softness: float = math.inf
    bound: float = math.inf
    start: str = "none"
    levels: int = 3
    median: int = 9
