"""Benchmarks of the inversion: `python benchmarks/inversion.py` prints tables, in about five minutes.

Nine synthetic cubes whose truth is exact (`ogive.testing.velocity_cube`), every method of `ogive.invert`, and TICOI
(the extra `interop`) in the same process, on one thread, in CPU seconds, the least of the repeats. Ratios are good to
about a tenth, absolute speeds are those of the machine. A row with a target says whether it is met.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import report
import series_cases as cases
from report import Limit, Row, Table

from ogive.invert import METHODS, Method, Screening
from ogive.invert.annual import ANNUAL, AnnualOptions
from ogive.invert.ticoi import TICOI, TicoiOptions
from ogive.testing import holdout
from ogive.testing.velocity_cubes import CUBES

DATA = Path(os.environ.get("OGIVE_DATA", Path(__file__).parents[2] / "shared" / "data"))
FASTEST = {"100": 0, "500": 1200, "2000": 600}
"""Least pixels per CPU-second of the adaptive method, with errors."""
RATIOS = {"500": 50, "2000": 40}
"""Least speed of the adaptive method, as a multiple of TICOI's."""
SETTINGS = list(product((30.0, 100.0), ("1", "1accelnotnull"), (None, "mz_score")))
"""Coefficient, regularisation and filter of TICOI: its user would have to find the best for each glacier."""
USUAL = (100.0, "1accelnotnull", "mz_score")
"""The setting that speeds are compared in; without the filter TICOI takes about twice the time."""
OPTIONS = {"ticoi": TicoiOptions(delete_outliers=USUAL[2])}
"""Where the defaults are not what is to be shown."""
COVERED = Limit("within 1.96 s", 0.9, 0.99)
report.FORMATS.update(
    {"px/s": ",.0f", "ms/px": ",.2f", "TICOI ms/px": ",.1f", "RMSE": ".2f", "bias": "+.2f", "difference": ".4f"}
    | {f"{name} RMSE": ".2f" for name in ("adaptive", "ticoi", "TICOI", "TICOI's best")}
    | dict.fromkeys(("adaptive x", "ticoi x", "x, no filter"), ".1f")
    | {"RMSE / best": ".3f", "median": ".1f", "p75": ".0f", "count": ",.0f", "TICOI's best": ".1f"}
    | {
        f"{name} {what}": form
        for name in ("robust", "ITS_LIVE's")
        for what, form in (("RMSE", ".2f"), ("bias", "+.2%"), ("amplitude", ".2f"))
    }
    | dict.fromkeys(("RMSE ratio", "amplitude ratio"), ".3f")
)


def estimate(method: Method, observations: Any, edges: Any, options: Any = None, screening: Any = None) -> Any:
    """One call of a method, on arrays."""
    return method.estimate(observations, edges, method.options() if options is None else options, screening)


def cubes(names: Sequence[str], repeats: int) -> Table:
    """Speed, error and honesty of the own methods, all pixels."""
    rows = []
    for name in names:
        one = cases.case(name)
        for label, method in METHODS.items():
            edges = one.years() if method.every == "YS" else one.windows()
            if not len(edges):  # no whole year
                continue
            run = partial(estimate, method, one.observations, edges, OPTIONS.get(label), Screening())
            seconds, series = cases.timed(run, repeats)
            limits: list[Limit] = []
            if label == "adaptive":
                limits = [COVERED] + ([Limit("px/s", FASTEST[name])] if FASTEST.get(name) else [])
            figures = cases.score(series, one.true(edges, slice(None)))
            rows.append(Row(f"{name}: {label}", {"px/s": one.pixels / seconds} | figures, limits))
    about = (
        "30-day windows every 5 days, from 20 days after the first image; calendar years for the annual method. "
        "RMSE of the vector and bias along flow in m/yr; s: the error that the method gives. ticoi with mz_score."
    )
    return Table("Cubes", about, rows)


def beside_ticoi(names: Sequence[str], repeats: int) -> Table:
    """The same windows and pixels as TICOI gives, in eight of its settings."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cube.zarr"
        for number, name in enumerate(names):
            one = cases.case(name)
            cases.write(one, path)
            pixels = np.unique(np.linspace(0, one.pixels - 1, 4 if len(one.observations.t1) > 4000 else 6).astype(int))
            if number == 0:
                cases.ticoi(path, one, pixels[:1], *USUAL)  # compiles
            peers = {setting: cases.ticoi(path, one, pixels, *setting) for setting in SETTINGS}
            rows.append(_compared(one, name, pixels, peers, repeats))
    about = (
        "TICOI 0.1.2: filter + load + invert + interpolate, 30-day windows every 5 days, with coefficient 100, "
        "'1accelnotnull' and mz_score unless said otherwise. adaptive x, ticoi x: how many times faster these methods "
        "of ogive are, adaptive with errors, ticoi without, as the peer gives none. Only windows and pixels with a "
        "value of TICOI are scored; its best: the lowest RMSE of eight settings (coefficient 30 and 100, '1' and "
        "'1accelnotnull', with mz_score and without). difference: median of own ticoi less TICOI, '1' without filter."
    )
    return Table("Beside TICOI", about, rows)


def _compared(one: cases.Case, name: str, pixels: Any, peers: Any, repeats: int) -> Row:
    """One row of `beside_ticoi`."""
    usual, unfiltered = peers[USUAL], peers[USUAL[0], USUAL[1], None]
    edges, part = usual.edges, one.part(pixels)
    at_noon, everything = edges + cases.NOON, one.observations
    true = one.true(at_noon, pixels)
    where = np.isfinite(np.stack([peer.series["vx"] for peer in peers.values()])).all(axis=0)
    # Speeds from all pixels, because a call has a cost of its own; scores from those of the peer.
    adaptive, _ = cases.timed(lambda: estimate(METHODS["adaptive"], everything, at_noon), repeats)
    quick = [TicoiOptions(coef=USUAL[0], regu=USUAL[1], delete_outliers=f, error_propagation=False) for f in
             (USUAL[2], None)]  # fmt: skip
    banded = [cases.timed(partial(estimate, TICOI, everything, edges, o), repeats)[0] for o in quick]
    errors = {setting: cases.score(peer.series, true, where)["RMSE"] for setting, peer in peers.items()}
    own = cases.score(estimate(METHODS["adaptive"], part, at_noon), true, where)
    same = cases.score(estimate(TICOI, part, edges, quick[0]), true, where)
    plain = estimate(TICOI, part, edges, TicoiOptions(coef=100.0, regu="1", error_propagation=False))
    theirs = peers[100.0, "1", None].series
    best = min(errors.values())
    figures = {
        "TICOI ms/px": usual.seconds * 1e3,
        "adaptive x": usual.seconds / adaptive * one.pixels,
        "ticoi x": usual.seconds / banded[0] * one.pixels,
        "x, no filter": unfiltered.seconds / banded[1] * one.pixels,
        "adaptive RMSE": own["RMSE"],
        "ticoi RMSE": same["RMSE"],
        "TICOI RMSE": errors[USUAL],
        "TICOI's best RMSE": best,
        "RMSE / best": own["RMSE"] / best,
        "difference": float(np.nanmedian(np.abs([plain[c] - theirs[c] for c in ("vx", "vy")]))),
    }
    limits = [Limit("ticoi x", 60), Limit("RMSE / best", high=1), Limit("difference", high=0.01)]
    return Row(name, figures, limits + ([Limit("adaptive x", RATIOS[name])] if name in RATIOS else []))


def years(names: Sequence[str]) -> Table:
    """Annual means and amplitude, robust and by ITS_LIVE's formulas."""
    rows = []
    for name in names:
        one = cases.case(name)
        edges = one.years()
        if not len(edges):
            continue
        true, amplitude, figures = one.true(edges, slice(None)), one.amplitude(), {}
        for label, options in (("robust", AnnualOptions()), ("ITS_LIVE's", AnnualOptions(robust=False))):
            series = estimate(ANNUAL, one.observations, edges, options, ANNUAL.screening(options))
            found = cases.score(series, true)
            speed = np.hypot(*true).mean()
            off = series["v_amp"] - amplitude
            figures |= {
                f"{label} RMSE": found["RMSE"] / np.sqrt(2),
                f"{label} bias": found["bias"] / speed,
                f"{label} amplitude": float(np.sqrt(np.nanmean(off**2))),
            }
        figures["RMSE ratio"] = figures["robust RMSE"] / figures["ITS_LIVE's RMSE"]
        figures["amplitude ratio"] = figures["robust amplitude"] / figures["ITS_LIVE's amplitude"]
        quiet = name in ("slow", "noseas")
        limits = [
            Limit("robust bias", -0.01, 0.01), Limit("amplitude ratio", high=1),
            Limit("robust RMSE", high=0.5) if quiet else Limit("RMSE ratio", high=0.1),
        ]  # fmt: skip
        rows.append(Row(name, figures, limits))
    about = (
        "Whole calendar years. RMSE per component in m/yr, bias along flow in parts of the speed; amplitude: root mean "
        "square error of that of the annual sinusoid in m/yr. A surge is no sinusoid: its amplitude says little."
    )
    return Table("Annual means", about, rows)


def held_out() -> Table:
    """Real pairs predicted from the others, beside what TICOI's best setting reached under any screening."""
    rows = []
    for name, best in (("columbia", 91.6), ("jakobshavn", 218.9), ("se_tibet", 18.7)):
        held = holdout.SETS[name](DATA)
        for label, screening in (("default screening", Screening()), ("no screening", None)):
            seconds, _ = cases.timed(partial(holdout.score, held, screening=screening), 3)
            found = holdout.score(held, screening=screening)
            figures = {**found, "TICOI's best": best, "ms/px": seconds / held.vx.shape[1] * 1e3}
            rows.append(Row(f"{name}: {label}", figures, [Limit("median", high=best)] if screening else []))
    about = (
        "ITS_LIVE pairs since 2013, a fifth held out and predicted over exactly their intervals; m/yr. TICOI's best is "
        "the published figure of its best setting, chosen knowing the score. No screening: every pair enters."
    )
    return Table("Held-out pairs", about, rows)


def scaling(pairs: Sequence[int], pixels: Sequence[int], repeats: int) -> Table:
    """Time for a pixel, by the number of pairs and of pixels."""
    rows = []
    edges = np.arange(17000.0, 20600.0, 30.0)
    edges = np.stack([edges[:-1], edges[1:]], 1)
    for count, width in [(n, 4 if n > 5000 else 16) for n in pairs] + [(500, p) for p in pixels]:
        observations = cases.network(count, width)
        for label in ("adaptive", "ticoi"):
            run = partial(estimate, METHODS[label], observations, edges)
            seconds, _ = cases.timed(run, 1 if count > 5000 else repeats)
            rows.append(Row(f"{count} pairs, {width} px: {label}", {"ms/px": seconds / width * 1e3}))
    return Table("Scaling", "Ten years, a date every 5 days, pairs of 5 to 400 days, 120 windows, with errors.", rows)


def shared_errors(names: Sequence[str], shares: Sequence[float]) -> Table:
    """Coverage where the errors of a pair come with its two images."""
    rows = []
    for name, share in product(names, shares):
        one = cases.case(name, share)
        edges = one.windows()
        for label in ("adaptive", "ticoi"):
            series = estimate(METHODS[label], one.observations, edges, OPTIONS.get(label))
            limits = [Limit("within 1.96 s", 0.85)] if label == "adaptive" else []
            rows.append(
                Row(f"{name}, {share:.0%} shared: {label}", cases.score(series, one.true(edges, slice(None))), limits)
            )
    return Table("Shared errors", "Part of the variance comes with the images, so that their pairs share it.", rows)


def tables(quick: bool) -> Iterator[Table]:
    """All measurements, one table after the other."""
    names, repeats = (("100", "slow"), 1) if quick else (tuple(CUBES), 3)
    yield cubes(names, repeats)
    if cases.HAS_TICOI and not quick:
        yield beside_ticoi(names, repeats)
    yield years(names)
    if not quick and DATA.exists():
        yield held_out()
    yield scaling(*(((100, 500), (1, 16)) if quick else ((100, 500, 2000, 10000, 50000), (1, 16, 256))), repeats)
    if cases.HAS_SHARED:
        yield shared_errors(("500",) if quick else ("500", "2000", "8000"), (0.5,) if quick else (0.5, 0.9))


def notes(quick: bool) -> Iterator[str]:
    """What is not in the tables, and why."""
    if quick:
        yield "A quick run of few cubes: it shows that everything works, its speeds mean little."
    if quick or not cases.HAS_TICOI:
        yield f"TICOI is left out: {'a quick run' if quick else 'not installed (extra interop)'}."
    if quick or not DATA.exists():
        yield f"Real pairs are left out: {'a quick run' if quick else 'no data folder (OGIVE_DATA)'}."


if __name__ == "__main__":
    sys.exit(report.program(__doc__, tables, notes, None))
