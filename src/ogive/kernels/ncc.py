"""Normalised cross-correlation: the parameters, and the steps of a match.

`prepare` filters a window and makes what all pairs of the scene share. `match` searches whole pixels with all chip
sizes at once (`_search` on the CPU, `_ncc_cupy` on a GPU, or the slow `_ncc_reference`), chooses for each cell the
smallest chip that passes, refines on the images themselves (`_refine`), and says why where there is no answer.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from .. import enhance, flags
from .._neighbours import REJECTED, agreement
from ..errors import ParameterError
from . import _memory, _ncc_cupy, _ncc_reference, _refine, _search
from ._affine import SMALLEST
from ._geometry import Geometry, Scene, check_centred, check_limits, check_window
from ._judge import MIN_VALID, choose, judged, median_of_nine
from ._ncc_numba import CLEAN, EMPTY, MASKED
from ._tables import reduced

log = logging.getLogger("ogive")
REFINE = ("quadric", "translation", "fixed", "affine")
GRADIENT = ("dxdx", "dxdy", "dydx", "dydy")
"""The gradient of (dx, dy) along (x, y), with refine="affine" [px/px]."""
COARSE_CHIP = 16
"""Chip of the coarse pass [coarse px]."""

Planes = NDArray[np.float32]


class Prepared(NamedTuple):
    """A scene window, prepared: for the search, for the refinement, and at the coarse pixel size."""

    search: Scene
    fine: Any
    coarse: Any


@dataclass(frozen=True)
class NCC:
    """Zero-mean normalised cross-correlation with both images' masks, refined on the images, with an error per vector.

    Parameters
    ----------
    chip : int or tuple of int
        Width of the square chip cut from image 1 [px]. Of several, the smallest that passes is taken for each vector:
        small chips follow the margin, large ones bear noise. All come from one pass.
    search : int
        Largest displacement searched, in each direction [px]. Must exceed maximum speed x days / resolution: a peak on
        the rim of the window is flagged, never trusted. With a prior: largest difference from it.
    step : int
        Grid step between vectors [px]; the output cell.
    enhance : str
        Pre-filter, a name in `ogive.enhance.FILTERS`.
    refine : {"translation", "quadric", "fixed", "affine"}
        Sub-pixel step. "translation": least squares on the images (IC-GN), the strain within the chip taken out with
        the neighbours' velocity gradient; twice as exact as "quadric", which fits the correlation peak and is for a
        quick look. "fixed" always samples image 2 with that gradient; "affine" finds a gradient for each chip, and
        gives strain.
    search_enhance : str, optional
        Another pre-filter for the search of whole pixels: "orientation" finds more through thin cloud and changed
        light.
    coarse : int
        Search first on images reduced by this factor, then near what was found; 1: search the whole window. 4 is for
        searches of 20 px and more, where it is several times faster. Whoever has a prior needs none.
    prior : int
        Largest displacement of a prior [px]; `track` sets it.
    min_correlation : float
        Lower peaks are flagged LOW_CORRELATION [1]. 0.2 is the usual floor and no proof: unrelated 32 px chips reach
        it in half of the searches of 8 px (0.33 in one of a hundred), 64 px chips in 0.3 %. The rest is for
        `max_peak_ratio` and the neighbour tests of `ogive.filters`.
    max_peak_ratio : float
        Second peak / first peak above which a match is AMBIGUOUS [1].
    backend : {"auto", "numba", "cupy", "reference"}
        "auto" takes the GPU when there is one. All give the same answer to rounding.

    Raises
    ------
    ParameterError
        A value out of range, or chip and step of different parity (the chip could not be centred on its cell).

    Notes
    -----
    Masked form: Padfield (2012), doi:10.1109/TIP.2011.2181402; the order of the loops is described in `_ncc_numba`.
    Refinement: Baker & Matthews (2004), doi:10.1023/B:VISI.0000011205.11775.fd. A chip needs half of its pixels valid
    in image 1, a displacement needs half of them valid in both images, and half of all displacements must have that:
    else the true one may lie under a cloud, and the best of the rest would be returned.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> image = rng.standard_normal((96, 96)).astype("f4")
    >>> kernel = NCC(chip=16, search=4, step=8, enhance="none", refine="quadric")
    >>> every = np.ones(image.shape, bool)
    >>> moved = kernel.match(kernel.prepare(image, every), kernel.prepare(np.roll(image, (2, -3), (0, 1)), every))
    >>> float(np.rint(np.median(moved["dy"]))), float(np.rint(np.median(moved["dx"])))
    (2.0, -3.0)
    """

    chip: int | tuple[int, ...] = 32
    search: int = 16
    step: int = 8
    enhance: str = "high_pass"
    refine: str = "translation"
    search_enhance: str | None = None
    coarse: int = 1
    prior: int = 0
    min_correlation: float = 0.2
    max_peak_ratio: float = 0.8
    backend: str = "auto"

    def __post_init__(self) -> None:
        given: Any = self.chip
        if isinstance(given, list):  # from a run file
            object.__setattr__(self, "chip", tuple(given))
        if not self.chips or list(self.chips) != sorted(set(self.chips)):
            raise ParameterError("chip", rule="must be one width, or different ones in rising order", value=self.chip)
        for name, least, values in (
            ("chip", 4, self.chips), ("search", 1, (self.search,)), ("step", 1, (self.step,)),
            ("coarse", 1, (self.coarse,)), ("prior", 0, (self.prior,)),
        ):  # fmt: skip
            for pixels in values:
                if not isinstance(pixels, int | np.integer) or isinstance(pixels, bool) or pixels < least:
                    raise ParameterError(
                        name, rule=f"must be a whole number of pixels, at least {least}", value=pixels,
                        fix="search = maximum speed [m/yr] x days / 365 / resolution [m]" if name == "search" else "",
                    )  # fmt: skip
        check_centred(self.chips, self.step)
        check_limits(self.min_correlation, self.max_peak_ratio)
        for name, known in (("backend", ("auto", "numba", "cupy", "reference")), ("refine", REFINE)):
            if getattr(self, name) not in known:
                value = repr(getattr(self, name))
                raise ParameterError(name, rule=f"must be {', '.join(known[:-1])} or {known[-1]}", value=value)
        if self.refine == "affine" and self.chips[0] < SMALLEST:
            raise ParameterError(
                "chip", rule=f"must be at least {SMALLEST} px for refine='affine': six parameters need texture",
                value=self.chip, fix="refine='translation'",
            )  # fmt: skip
        if self.coarse > 1 and self.step % self.coarse:
            raise ParameterError(
                "coarse", rule=f"must divide the step of {self.step} px, so that coarse pixels fit the cells",
                value=self.coarse, fix="coarse=1",
            )  # fmt: skip
        for name in (self.enhance, self.search_enhance or self.enhance):
            enhance.get(name)

    @property
    def chips(self) -> tuple[int, ...]:
        """All chip widths [px]."""
        return self.chip if isinstance(self.chip, tuple) else (self.chip,)

    @property
    def extras(self) -> tuple[str, ...]:
        """What `match` returns beside the usual."""
        return GRADIENT if self.refine == "affine" else ()

    def halo(self) -> int:
        """Pixels needed beyond the output cells: chip, search, filters, and the neighbours that judge a vector."""
        fine = max(0, (self.chips[-1] - self.step) // 2) + self.search + self.prior + self._filters
        if self.refine != "quadric":
            fine += _refine.PIXELS
        if self._factor > 1:
            # Whole coarse cells more, one at least: priors are smoothed with their neighbours.
            coarse, factor = self._coarse, self._factor
            fine = factor * (
                coarse.halo() + coarse.step * max(1, -(-(fine // factor + 1 - coarse.halo()) // coarse.step))
            )
        return fine + self.margin * self.step

    def prepare(self, image: NDArray[np.float32], valid: NDArray[np.bool_]) -> Prepared:
        """Filter one window (h, w) and make what all its pairs share.

        Raises
        ------
        ParameterError
            The window is smaller than one cell with its halo.
        """
        about = f"chip {self.chip}, search {self.search} and filter {self.enhance!r}"
        check_window(image, self.halo(), self.step, about)
        valid = valid & np.isfinite(image)
        clean = np.where(valid, image, np.float32(0)).astype(np.float32, copy=False)
        filtered = self._filtered(self.enhance, clean, valid)
        searched = filtered
        if self.search_enhance is not None and self.search_enhance != self.enhance:
            searched = self._filtered(self.search_enhance, clean, valid)
        fine = _refine.prepare(*filtered) if self.refine != "quadric" else None
        coarse = None
        if self._factor > 1:
            coarse = self._coarse.prepare(*reduced(clean, valid, self._factor))
        return Prepared(Scene(searched[0], searched[1], self._geometry), fine, coarse)

    def match(
        self, first: Prepared, second: Prepared, prior: NDArray[np.float32] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Displacements of the cells between two prepared windows.

        Parameters
        ----------
        first, second : Prepared
            From `prepare`.
        prior : (2, ny + 2 margin, nx + 2 margin) float32, optional
            Displacement (y, x) to search round [px], also of the `margin` of cells around; NaN where unknown: there
            the search is round no displacement, and the answer is flagged PRIOR_MISSING.

        Returns
        -------
        dict of (ny, nx) arrays
            `dy`, `dx` [px, dy down; NaN where invalid], `dy_error`, `dx_error` (1 sigma [px], NaN where not refined),
            `corr` (at the refined place), `snr` (peak / mean |r|), `peak_ratio` (second peak / peak), `valid_fraction`
            (of the chip in image 1) and, for refine="affine", `dxdx`, `dxdy`, `dydx`, `dydy` (gradient of the
            displacement [px/px]), all float32; `chip` uint16 [px] and `flag` uint16 (`ogive.flags`).

        Raises
        ------
        ParameterError
            The prior has another shape, or goes beyond `NCC.prior`.
        """
        shape = self._cells(first.search)
        missing = np.zeros(shape, np.bool_)
        if prior is not None:
            missing = ~np.isfinite(prior[0] + prior[1])
            centre = np.rint(np.where(missing, 0, prior)).astype(np.int64)
            if prior.shape[1:] != shape or np.abs(centre).max() > self.prior:
                raise ParameterError(
                    "prior", rule=f"must have shape {(2, *shape)} and stay within {self.prior} px: no more was read",
                    value=f"shape {prior.shape}, {np.abs(centre).max()} px", fix="NCC(prior=largest displacement)",
                )  # fmt: skip
            kind = self._classes(first.search, second.search, centre, self.search)
            found = self._centred(first.search, second.search, kind, centre, self.search)
        elif self._factor > 1:
            kind, found, missing = self._coarse_to_fine(first, second)
        else:
            kind = self._classes(first.search, second.search, np.zeros((2, *shape), np.int64), self.search)
            found = self._everywhere(first.search, second.search, kind)
        return self._finish(found, kind, missing, [(first, second)])

    def match_stack(self, pairs: Sequence[tuple[Prepared, Prepared]]) -> dict[str, NDArray[Any]]:
        """Displacements common to several pairs of like time spans, from the mean of their correlation surfaces.

        Noise and passing shadows differ from pair to pair, the motion does not: a peak that no single surface shows
        stands out of their mean (ensemble correlation; Meinhart, Wereley & Santiago 2000, doi:10.1115/1.483256).
        The peak is the quadric's; refinement belongs to single pairs.

        Parameters
        ----------
        pairs : sequence of (first, second)
            Prepared windows of the same place.

        Returns
        -------
        dict of (ny, nx) arrays
            As `match`.
        """
        scenes = [(one.search, two.search) for one, two in pairs]
        none = np.zeros((2, *self._cells(scenes[0][0])), np.int64)
        kinds = [self._classes(*pair, none, self.search) for pair in scenes]
        found = _search.search_stack(scenes, kinds, self._least)
        # CLEAN < MASKED < EMPTY: a cell is empty where all pairs are.
        return self._finish(found, np.min(kinds, axis=0), np.zeros(none.shape[1:], np.bool_), pairs)

    def memory(self, cells: tuple[int, int], pairs: int = 1) -> _memory.Footprint:
        """Upper bound of the memory of one block of so many cells; of `pairs` stacked pairs."""
        ny, nx = (n + 2 * self.margin for n in cells)
        window = (cells[0] * self.step + 2 * self.halo(), cells[1] * self.step + 2 * self.halo())
        taken = _memory.Footprint(match=(_memory.JUDGED * len(self.chips) + _memory.CHOSEN) * ny * nx)
        if pairs == 1 and self.prior:
            taken += _memory.searched(self._geometry, window, (ny, nx), 1, self.search, (4, 4))
        else:
            limit = self._factor // 2 + 2 if pairs == 1 and self._factor > 1 else None
            taken += _memory.searched(self._geometry, window, (ny, nx), pairs, limit)
        if self.search_enhance is not None and self.search_enhance != self.enhance:
            taken += _memory.filtered(window)
        if self.refine != "quadric":
            taken += _memory.refined(window, (ny, nx))
        if self._factor > 1:
            coarse = self._coarse
            reduced = tuple((n // self._factor - 2 * coarse.halo()) // coarse.step for n in window)
            taken += coarse.memory((reduced[0], reduced[1]))
        return taken

    # --- geometry ---

    @property
    def _geometry(self) -> Geometry:
        beyond = self.halo() - self.margin * self.step
        return Geometry(self.chips, self.step, self.search + self.prior, beyond + (self.step - self.chips[-1]) // 2)

    @property
    def _filters(self) -> int:
        return max(enhance.get(name).halo for name in (self.enhance, self.search_enhance or self.enhance))

    @property
    def margin(self) -> int:
        """Cells beyond the output whose vectors take part in the judgement and refinement of an output cell."""
        judged = 2 * self._stride(self.chips[-1]) if len(self.chips) > 1 else 2
        if self.refine == "quadric":
            return judged if len(self.chips) > 1 else 0
        return judged + _refine.reach(self.chips[-1], self.step)

    def _stride(self, chip: int) -> int:
        """Distance of neighbours [cells]: a quarter of the chip, so that all of them together span two."""
        return max(1, round(chip / (4 * self.step)))

    def _cells(self, scene: Scene) -> tuple[int, int]:
        """Cells, the margin included."""
        beyond = self.halo() - self.margin * self.step
        height, width = ((n - 2 * beyond) // self.step for n in scene.image.shape)
        return height, width

    @property
    def _least(self) -> NDArray[np.float64]:
        """Least number of common pixels of each chip."""
        return np.array([max(16, int(MIN_VALID * chip * chip)) for chip in self.chips], np.float64)

    @property
    def _factor(self) -> int:
        """How much the coarse images are reduced; 1: no coarse pass."""
        return 1 if self.prior else self.coarse

    @property
    def _coarse(self) -> "NCC":
        step = self.step // self._factor
        return replace(
            self, chip=COARSE_CHIP + (COARSE_CHIP - step) % 2, search=-(-self.search // self._factor) + 1, step=step,
            refine="quadric", coarse=1, search_enhance=None,
        )  # fmt: skip

    def _filtered(self, name: str, image: Planes, valid: NDArray[np.bool_]) -> tuple[Planes, NDArray[np.bool_]]:
        filtered, usable = enhance.get(name).apply(image, valid)
        return np.ascontiguousarray(filtered), np.ascontiguousarray(usable)

    # --- search ---

    def _backend(self) -> str:
        if self.backend != "auto":
            return self.backend
        return "cupy" if _ncc_cupy.available() else "numba"

    def _classes(
        self, first: Scene, second: Scene, centre: NDArray[np.int64], reach: int
    ) -> NDArray[np.uint8]:  # fmt: skip
        """CLEAN, MASKED or EMPTY for each chip and cell, from its own chip and search window only."""
        shape = (centre.shape[1], centre.shape[2])
        kind = np.full((len(self.chips), *shape), CLEAN, np.uint8)
        for m, chip in enumerate(self.chips):
            y, x = first.geometry.corners(chip, shape)
            in_chip = first.masked(y, x, chip)
            in_window = second.masked(y + centre[0] - reach, x + centre[1] - reach, chip + 2 * reach)
            kind[m, (in_chip > 0) | (in_window > 0)] = MASKED
            kind[m, in_chip > (1 - MIN_VALID) * chip * chip] = EMPTY
        return kind

    def _everywhere(self, first: Scene, second: Scene, kind: NDArray[np.uint8]) -> Planes:
        backend = self._backend()
        if backend == "numba":
            return _search.search_window(first, second, kind, self._least)
        none = np.zeros((2, *kind.shape[1:]), np.int64)
        return (
            self._slow(first, second, kind, none, self.search) if backend == "reference" else self._gpu(first, second)
        )

    def _centred(
        self, first: Scene, second: Scene, kind: NDArray[np.uint8], centre: NDArray[np.int64], limit: int
    ) -> Planes:
        if self._backend() == "reference":
            return self._slow(first, second, kind, centre, limit)
        return _search.search_centred(first, second, kind, self._least, centre, limit)

    def _gpu(self, first: Scene, second: Scene) -> Planes:
        return self._on(None, first, second)

    def _on(self, device: _ncc_cupy.Device | None, first: Scene, second: Scene) -> Planes:
        geometry = (first.geometry.origin, self.search, self.chips, self.step, first.geometry.block)
        scenes = (first.image, first.valid, second.image, second.valid)
        least = tuple(int(n) for n in self._least)
        return _ncc_cupy.match(*scenes, self._cells(first), geometry, least, device)

    def _slow(
        self, first: Scene, second: Scene, kind: NDArray[np.uint8], centre: NDArray[np.int64], limit: int
    ) -> Planes:
        out = np.full((len(self.chips), 8, *kind.shape[1:]), np.nan, np.float32)
        for (m, i, j), value in np.ndenumerate(kind):
            if value == EMPTY:
                continue
            chip, least = self.chips[m], int(self._least[m])
            y, x = (first.geometry.first(chip) + self.step * k for k in (i, j))
            v, u = y + int(centre[0, i, j]) - limit, x + int(centre[1, i, j]) - limit
            cut, window = np.s_[y : y + chip, x : x + chip], chip + 2 * limit
            there = np.s_[v : v + window, u : u + window]
            surface = _ncc_reference.surface(
                first.image[cut], first.valid[cut], second.image[there], second.valid[there], least
            )
            out[m, :, i, j] = _ncc_reference.peak(surface) if np.isfinite(surface).any() else -2
            out[m, :2, i, j] += centre[:, i, j]
        return out

    def _coarse_to_fine(
        self, first: Prepared, second: Prepared
    ) -> tuple[NDArray[np.uint8], Planes, NDArray[np.bool_]]:  # fmt: skip
        """Search coarse images, then near what was found; the whole window where nothing was."""
        coarse, factor, shape = self._coarse, self._factor, self._cells(first.search)
        found = coarse.match(first.coarse, second.coarse)
        ny, nx = found["dy"].shape
        dy, dx = (median_of_nine(found[name] * factor) for name in ("dy", "dx"))
        # Coarse cells reach further than the fine ones.
        cut = np.s_[(ny - shape[0]) // 2 :, (nx - shape[1]) // 2 :]
        prior = np.stack([dy[cut][: shape[0], : shape[1]], dx[cut][: shape[0], : shape[1]]])
        missing = ~np.isfinite(prior[0] + prior[1])
        limit = factor // 2 + 2
        # A window must not reach beyond the search that was asked for.
        centre = np.rint(np.where(missing, 0, prior)).astype(np.int64).clip(limit - self.search, self.search - limit)
        kind = self._classes(first.search, second.search, centre, limit)
        near = np.where(missing, np.uint8(EMPTY), kind)
        out = self._centred(first.search, second.search, near, centre, limit)
        if missing.any():
            none = np.zeros_like(centre)
            wide = self._classes(first.search, second.search, none, self.search)
            kind = np.where(missing, wide, kind)
            far = self._centred(
                first.search, second.search, np.where(missing, wide, np.uint8(EMPTY)), none, self.search
            )
            out = np.where(missing, far, out)
        return kind, out, missing

    # --- judgement ---

    def _finish(
        self, found: Planes, kind: NDArray[np.uint8], missing: NDArray[np.bool_],
        pairs: Sequence[tuple[Prepared, Prepared]],
    ) -> dict[str, NDArray[Any]]:  # fmt: skip
        """Flags, choice of the chip, refinement, and the margin off."""
        # Chance correlations of a mean surface are smaller by the root of the number of pairs.
        table = judged(found, kind, self.min_correlation / math.sqrt(len(pairs)), self.max_peak_ratio)
        table["valid_fraction"] = np.max([self._valid_fraction(one.search, kind.shape[1:]) for one, _ in pairs], axis=0)
        table["chip"] = np.broadcast_to(np.array(self.chips, np.uint16)[:, None, None], kind.shape)
        if len(self.chips) > 1:
            # 0.2 of the search, as usual, but not less than errors of a pixel do.
            index = choose(table, [self._stride(chip) for chip in self.chips], max(1.0, 0.2 * self.search))
            chosen = {name: np.take_along_axis(values, index[None], 0)[0] for name, values in table.items()}
        else:
            chosen = {name: values[0] for name, values in table.items()}
        chosen["flag"] = chosen["flag"] | np.where(missing, flags.PRIOR_MISSING, 0).astype(np.uint16)
        none = chosen["flag"] & (flags.NO_DATA | flags.FLAT) != 0
        chosen["chip"] = np.where(none, np.uint16(0), chosen["chip"])
        nan = np.float32(np.nan)
        bad = flags.invalid(chosen["flag"])
        chosen["dy"], chosen["dx"] = np.where(bad, nan, chosen["dy"]), np.where(bad, nan, chosen["dx"])
        names = ("dy_error", "dx_error", *self.extras)
        chosen |= {name: np.full(bad.shape, nan) for name in names}
        if self.refine != "quadric" and len(pairs) == 1:
            self._refined(chosen, pairs[0])
        inside = slice(self.margin, -self.margin or None)
        return {name: np.ascontiguousarray(values[inside, inside]) for name, values in chosen.items()}

    def _valid_fraction(self, scene: Scene, shape: tuple[int, ...]) -> Planes:
        fractions = [
            1 - scene.masked(*scene.geometry.corners(chip, (shape[0], shape[1])), chip) / chip**2 for chip in self.chips
        ]
        return np.asarray(fractions, np.float32)

    def _refined(self, chosen: dict[str, NDArray[Any]], pair: tuple[Prepared, Prepared]) -> None:
        """Replace displacements and correlation by the refined ones, where the refinement converged."""
        geometry = pair[0].search.geometry
        centre = geometry.origin + (geometry.chips[-1] - 1) / 2
        dy, dx = chosen["dy"], chosen["dx"]
        accepted = np.isfinite(dy)
        if len(self.chips) == 1:
            # A gross error must not tell its neighbours how they are sheared. Several chips have been judged before.
            accepted &= agreement(dy, dx, 1, tolerance=1.0) != REJECTED
        mode = cast(_refine.Mode, self.refine)
        # The outermost cells have judged their neighbours, and no vector needs them any more.
        edge = _refine.reach(self.chips[-1], self.step)
        spare = self.margin - edge
        dy, dx, accepted, chip = (part[spare:-spare, spare:-spare] for part in (dy, dx, accepted, chosen["chip"]))
        better = _refine.refine(
            pair[0].fine, pair[1].fine, dy, dx, accepted, chip.astype(np.int64), centre=centre + spare * self.step,
            step=self.step, mode=mode, edge=edge,
        )  # fmt: skip
        done = better.pop("iterations") > 0
        better["corr"] = np.minimum(better["corr"], np.float32(1))  # rounding
        for name in set(better) & set(chosen):
            part = chosen[name][spare:-spare, spare:-spare]
            np.copyto(part, better[name], where=done)
        done = np.pad(done, spare)
        valid = ~flags.invalid(chosen["flag"])
        flag = chosen["flag"] & ~np.uint16(flags.NOT_REFINED)
        chosen["flag"] = flag | np.where(valid & ~done, flags.NOT_REFINED, 0).astype(np.uint16)
