"""How fast and how exact is NCC? `python benchmarks/ncc.py` prints one table, in less than a minute.

Three programs match the same points of the same image pair (truth case P1: 1024 x 1024 px, a winding stream of up to
6 px, signal to noise 20), both images high-passed beforehand:

ogive       `NCC.prepare` of both scenes (tables only, the filter is outside the clock) and `NCC.match`
OpenCV      a Python loop of `cv2.matchTemplate(TM_CCOEFF_NORMED)` and `cv2.minMaxLoc`, one point at a time
NumPy FFT   chips and windows of many points gathered, `scipy.fft.rfft2` of the batch, variances from integral images

The last two get the same 3 x 3 quadric, vectorised over all points. OpenCV and NumPy FFT know no masks and give no
second peak, no mean |r| and no flag; ogive's time includes them. "match only" leaves the tables out of the clock too:
a scene has them once, however many pairs it is in. Seconds are CPU seconds (user and system, all threads; every
program uses one), the least of the repeats, with the programs interleaved. "right" is the share of all points whose
vector is less than 1 px wrong. OpenCV is the optional package `opencv-python-headless`; without it its rows are left
out.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import fft, ndimage

from ogive import enhance
from ogive.kernels import NCC
from ogive.testing.pairs import TruthPair, truth_pair

try:
    import cv2

    cv2.setNumThreads(1)
except ImportError:
    cv2 = None

Image = NDArray[np.float32]
Vectors = tuple[NDArray[Any], NDArray[Any]]
CASES = ((32, 8, 8), (64, 8, 8), (32, 25, 8))
"""(chip, search, step) in px."""
BATCH = 256
"""Points in one FFT batch: windows and spectra stay within the cache."""


@dataclass(frozen=True)
class Run:
    """One row of the table."""

    case: str
    program: str
    match: Callable[[], Vectors]


def quadrics(nine: NDArray[Any], whole: Vectors) -> Vectors:
    """Whole-pixel peaks moved to the extremum of the quadric through `nine` (points, 3, 3)."""
    j, i = np.mgrid[-1:2, -1:2]
    gx, gy = (nine * i).sum((1, 2)) / 6, (nine * j).sum((1, 2)) / 6
    hxy = (nine * i * j).sum((1, 2)) / 4
    hxx, hyy = (nine * (i * i - 2 / 3)).sum((1, 2)), (nine * (j * j - 2 / 3)).sum((1, 2))
    determinant = hxx * hyy - hxy * hxy
    return whole[0] - (hxx * gy - hxy * gx) / determinant, whole[1] - (hyy * gx - hxy * gy) / determinant


def corners(kernel: NCC, shape: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """First pixels (y, x) of all chips, the same for the three programs."""
    first = kernel.halo() + (kernel.step - kernel.chip) // 2
    cells = [(n - 2 * kernel.halo()) // kernel.step for n in shape]
    y, x = np.meshgrid(*(first + kernel.step * np.arange(n) for n in cells), indexing="ij")
    return y.ravel(), x.ravel()


def vectors(found: dict[str, NDArray[Any]]) -> Vectors:
    """Displacements of all points in one row."""
    return found["dy"].ravel(), found["dx"].ravel()


def with_ogive(kernel: NCC, one: Image, two: Image, valid: NDArray[np.bool_]) -> Vectors:
    """Ours."""
    return vectors(kernel.match(kernel.prepare(one, valid), kernel.prepare(two, valid)))


def with_opencv(kernel: NCC, one: Image, two: Image) -> Vectors:
    """One call of matchTemplate per point."""
    c, r = kernel.chip, kernel.search
    ys, xs = corners(kernel, one.shape)
    nine, whole = np.zeros((ys.size, 3, 3), np.float32), np.full((2, ys.size), np.nan)
    for k, (y, x) in enumerate(zip(ys.tolist(), xs.tolist(), strict=True)):
        window = two[y - r : y + c + r, x - r : x + c + r]
        surface = cv2.matchTemplate(window, one[y : y + c, x : x + c], cv2.TM_CCOEFF_NORMED)
        _, _, _, (i, j) = cv2.minMaxLoc(surface)
        if 0 < i < 2 * r and 0 < j < 2 * r:
            nine[k] = surface[j - 1 : j + 2, i - 1 : i + 2]
            whole[:, k] = j - r, i - r
    return quadrics(nine, (whole[0], whole[1]))


def with_fft(kernel: NCC, one: Image, two: Image) -> Vectors:
    """Batches of points through the FFT."""
    c, r = kernel.chip, kernel.search
    ys, xs = corners(kernel, one.shape)
    size, n = 2 * r + 1, fft.next_fast_len(c + 2 * r, real=True)
    chips, windows = sliding_window_view(one, (c, c)), sliding_window_view(two, (c + 2 * r, c + 2 * r))
    tables = [np.pad(im.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0))) for im in (two, two * two)]
    total, square = (t[c:, c:] - t[:-c, c:] - t[c:, :-c] + t[:-c, :-c] for t in tables)
    spread = sliding_window_view((square - total * total / c**2).astype(np.float32), (size, size))
    nine, whole = np.zeros((ys.size, 3, 3), np.float32), np.full((2, ys.size), np.nan)
    for start in range(0, ys.size, BATCH):
        y, x = ys[start : start + BATCH], xs[start : start + BATCH]
        chip = chips[y, x] - chips[y, x].mean((1, 2), keepdims=True)
        spectrum = fft.rfft2(windows[y - r, x - r], (n, n)) * fft.rfft2(chip, (n, n)).conj()
        r_all = fft.irfft2(spectrum, (n, n))[:, :size, :size] / np.sqrt(
            spread[y - r, x - r] * (chip * chip).sum((1, 2))[:, None, None]
        )
        j, i = np.unravel_index(r_all.reshape(len(y), -1).argmax(1), (size, size))
        inside = np.flatnonzero((j > 0) & (j < 2 * r) & (i > 0) & (i < 2 * r))
        nine[start + inside] = sliding_window_view(r_all, (3, 3), (1, 2))[inside, j[inside] - 1, i[inside] - 1]
        whole[:, start + inside] = j[inside] - r, i[inside] - r
    return quadrics(nine, (whole[0], whole[1]))


def clouds(shape: tuple[int, int], share: float) -> NDArray[np.bool_]:
    """Blobs of about 50 px over that share of the image; True where clear."""
    field = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal(shape), 25)
    return np.asarray(field <= np.quantile(field, 1 - share))


def accuracy(pair: TruthPair, kernel: NCC, found: Vectors) -> tuple[float, float, float, float]:
    """RMSE and bias in y, x [px] of the matches less than 1 px wrong, and the share of those among all points."""
    y, x = (corner + (kernel.chip - 1) / 2 for corner in corners(kernel, pair.image1.shape))
    e = np.stack(found) - np.stack(pair.displacement(y, x))
    good = np.hypot(*e) < 1
    dy, dx = e[:, good]
    return float(np.sqrt((dy**2 + dx**2).mean() / 2)), float(dy.mean()), float(dx.mean()), float(good.mean())


def runs_of(kernel: NCC, one: Image, two: Image, raw: tuple[Image, Image]) -> list[Run]:
    """The programs of one case; ogive first, because the others are compared with it."""
    every, clear = np.ones(one.shape, bool), clouds((one.shape[0], one.shape[1]), 0.15)
    name = f"chip {kernel.chip}, search {kernel.search}, step {kernel.step}"
    scenes = kernel.prepare(one, every), kernel.prepare(two, every)
    runs = [
        Run(name, "ogive", lambda: with_ogive(kernel, one, two, every)),
        Run(name, "ogive, match only", lambda: vectors(kernel.match(*scenes))),
    ]
    if kernel.chip == 32 and kernel.search == 8:
        whole = NCC(kernel.chip, kernel.search, kernel.step, "high_pass", backend="numba")
        runs.append(Run(name, "ogive, 15 % cloud in the mask", lambda: with_ogive(kernel, one, two, clear)))
        runs.append(Run(name, "ogive with its filter", lambda: with_ogive(whole, *raw, every)))
    if cv2 is not None:
        runs.append(Run(name, "OpenCV loop", lambda: with_opencv(kernel, one, two)))
    runs.append(Run(name, "NumPy FFT", lambda: with_fft(kernel, one, two)))
    return runs


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4, help="the least of so many times counts")
    repeats = parser.parse_args().repeats
    pair = truth_pair("P1")
    every = np.ones(pair.image1.shape, bool)
    raw = (pair.image1.astype(np.float32), pair.image2.astype(np.float32))
    # The filter's own rim stays: it is the same for all, and no chip of the "with its filter" row reaches it.
    one, two = (enhance.high_pass(im, every)[0] for im in raw)
    head = ("case", "program", "points", "points/s", "ogive is", "RMSE px", "bias y, x px", "right")
    line = "{:<28} {:<28} {:>7} {:>9} {:>9} {:>8} {:>15} {:>7}"
    print(line.format(*head))
    for chip, search, step in CASES:
        kernel = NCC(chip, search, step, "none", backend="numba")
        runs = runs_of(kernel, one, two, raw)
        results = [run.match() for run in runs]  # compiles, and warms the caches
        seconds = np.full(len(runs), np.inf)
        for _ in range(repeats):
            for k, run in enumerate(runs):
                start = time.process_time()
                run.match()
                seconds[k] = min(seconds[k], time.process_time() - start)
        speeds = [found[0].size / s for found, s in zip(results, seconds, strict=True)]
        for run, found, speed in zip(runs, results, speeds, strict=True):
            used = NCC(chip, search, step, "high_pass") if "filter" in run.program else kernel
            rmse, by, bx, right = accuracy(pair, used, found)
            ratio = "" if run.program == "ogive" else f"{speeds[0] / speed:.1f}x"
            print(line.format(run.case, run.program, found[0].size, f"{speed:,.0f}", ratio, f"{rmse:.4f}",
                              f"{by:+.4f} {bx:+.4f}", f"{right:.1%}"))  # fmt: skip


if __name__ == "__main__":
    main()
