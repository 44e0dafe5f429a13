"""Documents that somebody has spoiled: items, catalogues, run files, stores."""

import time
from collections import Counter

from .. import mutate
from . import Row


def hostile_documents(short: bool, seed: int) -> Row:
    """Spoiled documents of each kind; a kind that never fails, or always does, tests nothing."""
    start = time.perf_counter()
    tallies = mutate.fuzz(60 * len(mutate.TRIALS) if short else 10_000, seed)
    outcomes: Counter[str] = Counter()
    for tally in tallies:
        outcomes["a result"] += tally.results
        outcomes["a clear error"] += tally.errors
        outcomes.update(f"OTHER: {told}" for told in [*tally.others, *tally.breaches])
    met = outcomes.keys() == {"a result", "a clear error"} and all(min(t.results, t.errors) > 0 for t in tallies)
    wanted = "a result or a clear error; no code, no path outside, no other host"
    count = sum(tally.documents for tally in tallies)
    return Row(
        "items, catalogues, run files, stores spoiled", count, outcomes, wanted, met, time.perf_counter() - start, seed
    )
