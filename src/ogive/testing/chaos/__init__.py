"""The chaos suite: what must hold when machines, disks and drivers fail, counted over many random trials.

    python -m ogive.testing.chaos                             # every row, the full counts, one table
    python -m ogive.testing.chaos drivers disk --short        # two rows, the counts of the tests
    python -m ogive.testing.chaos objects --seed 7

Faults are real ones (signals, full file systems, damaged bytes), and what must come out is known: the bytes of a run
that nobody disturbed. A row is a function `(short, seed) -> Row`; another module joins by its line in `ROWS`.
"""

import argparse
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

import pandas as pd

from ...report import to_markdown

ROWS = [
    ("drivers", "ogive.testing.chaos.drivers:killed_drivers"),
    ("workers", "ogive.testing.chaos.workers:killed_workers"),
    ("objects", "ogive.testing.chaos.objects:damaged_objects"),
    ("disk", "ogive.testing.chaos.machine:full_disks"),
    ("read-only", "ogive.testing.chaos.machine:read_only_targets"),
    ("clock", "ogive.testing.chaos.machine:clock_jumps"),
    ("writers", "ogive.testing.chaos.drivers:two_writers"),
    ("replaced", "ogive.testing.chaos.drivers:replaced_stores"),
    ("again", "ogive.testing.chaos.drivers:runs_again"),
    ("reads", "ogive.testing.chaos.archive:failing_reads"),
    ("signed", "ogive.testing.chaos.archive:signed_addresses"),
    ("lost", "ogive.testing.chaos.archive:lost_scenes"),
    ("documents", "ogive.testing.chaos.documents:hostile_documents"),
    ("tilings", "ogive.testing.chaos.tilings:random_tilings"),
]
"""Name and function of every row; imported when it runs."""


@dataclass(frozen=True)
class Row:
    """What one kind of fault did.

    Parameters
    ----------
    fault : str
    trials : int
    outcomes : Counter
        How often what happened.
    wanted : str
        The figure that must be met.
    met : bool
    seconds : float
    seed : int
    """

    fault: str
    trials: int
    outcomes: Counter[str]
    wanted: str
    met: bool
    seconds: float
    seed: int


def trials(
    fault: str, wanted: str, count: int, seed: int, trial: Callable[[int], Sequence[str]], good: Sequence[str]
) -> Row:
    """Run numbered trials, each of which says what happened; met if nothing but what is good did.

    Examples
    --------
    >>> row = trials("a fault", "no loss", 3, 0, lambda number: ["loss" if number == 2 else "whole"], ["whole"])
    >>> row.met, dict(row.outcomes)
    (False, {'whole': 2, 'loss': 1})
    """
    start = time.perf_counter()
    outcomes: Counter[str] = Counter()
    for number in range(count):
        outcomes.update(trial(number))
    met = bool(outcomes) and outcomes.keys() <= set(good)
    return Row(fault, count, outcomes, wanted, met, time.perf_counter() - start, seed)


def row_of(name: str, *, short: bool, seed: int = 0) -> Row:
    """Run one row of the table.

    Raises
    ------
    KeyError
        No row has this name.
    """
    module, function = dict(ROWS)[name].split(":")
    row: Row = getattr(import_module(module), function)(short, seed)
    return row


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    return to_markdown(
        pd.DataFrame(
            {
                "fault": row.fault,
                "trials": row.trials,
                "what happened": ", ".join(f"{what}: {n}" for what, n in sorted(row.outcomes.items())),
                "wanted": row.wanted,
                "met": "yes" if row.met else "NO",
                "s": round(row.seconds),
                "seed": row.seed,
            }
            for row in rows
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run rows and print their table; 1 if one of them was not met."""
    names = [name for name, _ in ROWS]
    parser = argparse.ArgumentParser(prog="python -m ogive.testing.chaos", description="Faults, counted.")
    parser.add_argument("rows", nargs="*", help=f"some of: {', '.join(names)}; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="the counts of the tests")
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.rows) - set(names)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    for name in ("ogive", "odc.loader"):  # what they say belongs to the faults
        logging.getLogger(name).setLevel(logging.CRITICAL)
    rows = []
    for name in chosen.rows or names:
        rows.append(row_of(name, short=chosen.short and not os.environ.get("OGIVE_LONG"), seed=chosen.seed))
        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)  # noqa: T201
    print(table(rows))  # noqa: T201
    return 0 if all(row.met for row in rows) else 1
