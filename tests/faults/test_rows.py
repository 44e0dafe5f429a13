"""Every row of the chaos suite, short; `OGIVE_LONG=1`: with full counts, as `python -m ogive.testing.chaos`."""

import os

import pytest

from ogive.testing import chaos


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", [name for name, _ in chaos.ROWS])
def test_row_is_met(name: str) -> None:
    row = chaos.row_of(name, short=not os.environ.get("OGIVE_LONG"))
    assert row.met, chaos.table([row])
    assert sum(row.outcomes.values()) >= row.trials
