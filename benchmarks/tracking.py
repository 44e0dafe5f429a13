"""Benchmarks of the tracking engine: `python benchmarks/tracking.py` prints tables, in about five minutes.

Everything that a figure is compared with runs in the same process, in turn: OpenCV, scikit-image and OpenPIV (the
extra `bench`), each with one thread, in CPU seconds, the least of the repeats. Ratios are good to about a tenth,
absolute speeds are those of the machine. Truth is exact (`ogive.testing.truth_pair`). A row with a target says whether
it is met; only the ratios of an earlier run (`--check`) decide on the exit status.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace

import accuracy
import cases
import peers
import report
import speed


def tables(quick: bool) -> Iterator[report.Table]:
    """All measurements, one table after the other."""
    size = 256 if quick else 1024
    pair, alpine = cases.cut(cases.pair_of("P1"), size), ("P4",) if cases.ALPINE.exists() else ()
    setting = speed.Setting(pair, repeats=2, most=32, turn=0) if quick else speed.Setting(pair, repeats=4)
    yield speed.ratios(replace(setting, repeats=setting.repeats + 2))
    yield accuracy.beside_peers(("P1",) if quick else ("P1", "P2"), setting)
    yield speed.scaling(setting, (256,) if quick else (256, 512, 1024, 2048, 3072))
    yield speed.pairs_in_a_block(setting, (1, 2) if quick else (1, 2, 4, 8, 16))
    yield speed.chain(setting, 512 if quick else 3072, repeats=3)
    yield accuracy.truth(("P1",) if quick else ("P1", "P2", *alpine, "P5"), size)
    yield accuracy.locking(range(0, 17, 8) if quick else range(17), 256 if quick else 512)
    yield accuracy.margin()
    yield accuracy.ensemble(256 if quick else 512, (4,) if quick else (4, 8, 16))
    yield accuracy.small_areas()


def notes(quick: bool) -> Iterator[str]:
    """What is not in the tables, and why."""
    if quick:
        yield "A quick run on small images: it shows that everything works, its speeds mean little."
    yield "P3 is left out: its texture is not distributed."
    if quick or not cases.ALPINE.exists():
        reason = "a quick run" if quick else f"no {cases.ALPINE.name} in the data folder (OGIVE_DATA)"
        yield f"P4 is left out: {reason}."
    if not speed.MEMORY.exists():
        yield "Memory is left out: this system does not say its peak."
    absent = [name for name, (_, installed, _) in peers.PEERS.items() if not installed]
    if absent:
        yield f"Not installed (extra bench): {', '.join(absent)}."


if __name__ == "__main__":
    sys.exit(report.program(__doc__, tables, notes, None))
