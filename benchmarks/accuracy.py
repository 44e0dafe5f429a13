"""How exact: error, bias and error bars on the truth cases, alone and beside the peers."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import cases
import numpy as np
import peers
from cases import answer, cut, errors, pair_of, score, vectors
from numpy.typing import NDArray
from report import Limit, Row, Table
from speed import Setting, least

from ogive.errors import OgiveError
from ogive.kernels import NCC
from ogive.testing.pairs import TruthPair

NCC32 = NCC(chip=32, search=8, step=8, backend="numba")
"""The defaults, with a search of 8 px."""
LIMITS = {
    ("P1", 32): 0.0085, ("P2", 32): 0.030, ("P4", 32): 0.034, ("P1", 64): 0.0085, ("P2", 64): 0.020, ("P4", 64): 0.025,
}  # fmt: skip
"""Largest RMSE of refined vectors [px], by case and chip."""
DISTANCES = (48, 32, 24, 16, 12, 8, 4)
"""From the margin [px]."""


def truth(names: tuple[str, ...], size: int) -> Table:
    """Refined and quadric vectors of all cases and chips, with their error bars."""
    rows = []
    for name in names:
        pair = cut(pair_of(name), size)
        for chip in (16, 32, 64):
            for refine in ("quadric", "translation"):
                found, y, x = answer(replace(NCC32, chip=chip, refine=refine), pair.image1, pair.image2)
                e = errors(pair, y, x, vectors(found))
                if refine == "quadric":
                    rows.append(Row(f"{name}, chip {chip}, quadric", score(e)))
                    continue
                limits = [Limit("z", 0.85, 1.2)]
                if (name, chip) in LIMITS:
                    limits.insert(0, Limit("RMSE", high=LIMITS[name, chip]))
                sigma = found["dy_error"], found["dx_error"]
                rows.append(Row(f"{name}, chip {chip}, refined", score(e, sigma), limits))
    return Table(
        "Accuracy", f"R 8, step 8, {cases.FILTER}; px. gross: errors of 1 px and more, left out of RMSE and bias. z: "
        "robust spread of error / sigma, 1 is honest; 68 %, 95 %: share of errors within 1 and 1.96 sigma.", rows,
    )  # fmt: skip


def beside_peers(names: tuple[str, ...], setting: Setting) -> Table:
    """The same points of the same filtered images, by each program."""
    rows = []
    for name in names:
        pair = cut(pair_of(name), len(setting.pair.image1))
        one, two = (cases.filtered(image) for image in (pair.image1, pair.image2))
        places: dict[str, cases.Vectors] = {}
        calls: dict[str, Callable[[], Any]] = {
            "ogive, quadric": partial(answer, replace(NCC32, enhance="none", refine="quadric"), one, two),
            "ogive, refined": partial(answer, replace(NCC32, enhance="none"), one, two),
        }
        for peer, (match, installed, every) in peers.PEERS.items():
            if installed:
                y, x = np.meshgrid(*(cases.centres(n, 8)[::every] for n in one.shape), indexing="ij")
                places[peer] = y.ravel(), x.ravel()
                corners = (y.ravel() - 15.5).astype(np.int64), (x.ravel() - 15.5).astype(np.int64)
                calls[peer] = partial(match, one, two, corners, 32, 8)
        seconds, results = least(calls, setting)
        for program, result in results.items():
            if program in places:
                (y, x), found = places[program], result
            else:
                y, x, found = result.y, result.x, vectors(result.found)
            figures = {"points": found[0].size, "points/s": found[0].size / seconds[program]}
            rows.append(Row(f"{name}, {program}", figures | score(errors(pair, y, x, found))))
    return Table(
        "Peers", "Chip 32, R 8, step 8, filtered beforehand, interleaved in one process. ogive gives quality, flags "
        "and (refined) an error for each vector; the window's margin for judging neighbours is inside its clock.", rows,
    )  # fmt: skip


def locking(steps: range, size: int) -> Table:
    """The bias of uniform shifts of k / 16 px in x and 0.3 px in y."""
    rows = []
    for name, refine, limit in (("refined", "translation", 0.008), ("quadric", "quadric", 0.026)):
        worst, spread = 0.0, 0.0
        for k in steps:
            pair = cut(pair_of(f"S{k:02d}"), size)
            found, y, x = answer(replace(NCC32, refine=refine), pair.image1, pair.image2)
            figures = score(errors(pair, y, x, vectors(found)))
            worst = max(worst, abs(figures["bias y"]), abs(figures["bias x"]))
            spread = max(spread, figures["RMSE"])
        rows.append(Row(f"chip 32, {name}", {"bias": worst, "RMSE": spread}, (Limit("bias", high=limit),)))
    return Table(
        "Peak locking", f"Largest |mean bias| and RMSE of {len(steps)} uniform shifts within a pixel; px.", rows
    )


def margin() -> Table:
    """Ice beside brighter rock, by distance of the chip centre from the margin; the rock masked in both images."""
    pair = pair_of("M1")
    edge = len(pair.image1) // 2
    ice = np.zeros(pair.image1.shape, bool)
    ice[:edge] = True
    rows = []
    for masked in (True, False):
        for chip in (32, 64):
            kernel = replace(NCC32, chip=chip, step=4)
            found, y, x = answer(kernel, pair.image1, pair.image2, ice if masked else None)
            right = np.hypot(*errors(pair, y, x, vectors(found))) <= 0.2
            away = edge - 0.5 - y[:, 0]
            figures = {f"{d} px": float(right[away == d].mean()) for d in DISTANCES}
            figures["least"] = min(figures.values())
            name = f"chip {chip}, {'rock masked' if masked else 'no mask'}"
            rows.append(Row(name, figures, [Limit("least", low=1)] if masked else ()))
    return Table("Margin", "Case M1: share of the vectors within 0.2 px, by distance from the margin.", rows)


def ensemble(size: int, counts: tuple[int, ...]) -> Table:
    """Single pairs, the median of their vectors, and the mean of their correlation surfaces."""
    kernel, whole = replace(NCC32, refine="quadric"), cut(pair_of("P1"), size)
    rows = []
    for label, snr, cloud in (("SNR 2", 2, 0.0), ("SNR 1", 1, 0.0), ("SNR 0.7", 0.7, 0.0), ("30 % cloud", 10, 0.3)):
        pairs = cases.series(whole, max(counts), snr, cloud)
        scenes = [[kernel.prepare(*cases.window(kernel, image, None)) for image in pair] for pair in pairs]
        found = [vectors(kernel.match(one, two)) for one, two in scenes]
        rows.append(Row(f"{label}, single pair", _compared(whole, found[0])))
        for n in counts:
            rows.append(Row(f"{label}, median of {n}", _compared(whole, _median(found[:n]))))
            stack = kernel.match_stack([(one, two) for one, two in scenes[:n]])
            rows.append(Row(f"{label}, stack of {n}", _compared(whole, vectors(stack))))
    return Table(
        "Ensemble correlation", f"P1, {size} px; pairs of one displacement field, noise (SNR in every image) or clouds "
        "of their own, in no mask. Chip 32, R 8, quadric. The median is of the vectors that are valid.", rows,
    )  # fmt: skip


def _compared(pair: TruthPair, found: cases.Vectors) -> dict[str, float]:
    y, x = (cases.centres(n, NCC32.step) for n in pair.image1.shape)
    figures = score(errors(pair, y[:, None], x[None], found))
    return {name: figures[name] for name in ("valid", "gross", "RMSE") if name in figures}


def _median(found: list[cases.Vectors]) -> cases.Vectors:
    """Medians over the pairs, NaN where none has a vector."""
    every: NDArray[Any] = np.sort(np.array(found), axis=0)  # NaN last
    count = np.isfinite(every).sum(0)
    middle = [
        np.take_along_axis(every, k[None], 0)[0] for k in (np.maximum(count - 1, 0) // 2, count // 2 % len(found))
    ]
    dy, dx = np.where(count > 0, (middle[0] + middle[1]) / 2, np.nan)
    return dy, dx


def small_areas() -> Table:
    """The smallest window of a kernel, what it gives there, and whether one pixel less is refused."""
    pair = pair_of("S08")
    plain = replace(NCC32, enhance="none", refine="quadric")
    kernels = {
        "chip 32, R 8, no filter, quadric": plain,
        "chip 64, R 8, no filter, quadric": replace(plain, chip=64),
        "chip 32, R 8, filter, quadric": replace(NCC32, refine="quadric"),
        "chip 32, R 8, filter, refined": NCC32,
        "chips 16, 32, 64, R 8, filter, refined": replace(NCC32, chip=(16, 32, 64)),
    }
    rows = []
    for name, kernel in kernels.items():
        least_px = 2 * kernel.halo() + kernel.step
        found = kernel.match(*(_prepared(kernel, im, least_px) for im in (pair.image1, pair.image2)))
        error = np.hypot(*errors(pair, np.zeros((1, 1)), np.zeros((1, 1)), vectors(found)))
        try:
            _prepared(kernel, pair.image1, least_px - 1)
        except OgiveError:
            refused = 1.0
        else:
            refused = 0.0
        above = least_px - kernel.chips[-1] - 2 * kernel.search
        figures = {"px": least_px, "above": above, "points": found["dy"].size, "error": float(error.max()),
                   "refused": refused}  # fmt: skip
        limits = [Limit("error", high=0.2), Limit("refused", low=1)]
        rows.append(Row(name, figures, [*limits, Limit("above", high=0)] if "no filter" in name else limits))
    return Table(
        "Small areas", "Smallest window of a kernel, pixels above chip + 2 R (filter, judging, refinement), vectors "
        "and their largest error [px] in it, and whether a window of one pixel less is refused.", rows,
    )  # fmt: skip


def _prepared(kernel: NCC, image: NDArray[Any], width: int) -> Any:
    cut = image[:width, :width].astype(np.float32)
    return kernel.prepare(cut, np.ones(cut.shape, bool))
