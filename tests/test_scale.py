"""What a task carries does not grow with the job, a scheduler holds few tasks, and the page says what is computed."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "benchmarks" / "scale.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of the benchmarks folder, by name."""
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    yield importlib.import_module
    for name in ("scale_run", "scale_paper", "report"):
        sys.modules.pop(name, None)


def test_every_block_of_a_quick_run_is_in_the_ledger_and_the_scheduler_holds_few(tmp_path) -> None:
    file = tmp_path / "figures.json"
    long = os.environ.get("OGIVE_LONG") == "1"
    command = [sys.executable, str(PROGRAM), "--json", str(file), *([] if long else ["--quick"])]
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    tables = {table["title"]: table["rows"] for table in json.loads(file.read_text())["tables"]}
    rows = tables["Runs, log of 10"]
    largest = rows[-1]["figures"]
    assert largest["done"] == (100_000 if long else 500)
    assert 0 < largest["held"] <= largest["may hold"] < largest["done"]
    # Flat: what is added between a fifth of the blocks or less and all of them is far less than their graphs.
    graphs = largest["done"] * largest["task kB"] / 1e3
    assert largest["end MB"] - largest["start MB"] < max(0.5 * graphs, 20)
    assert tables["What breaks first"]


def test_a_task_carries_its_own_pairs_only(benchmark) -> None:
    run = benchmark("scale_run")
    few, many = (run.lazy_velocity(40, days) for days in ((5, 20), (5, 400)))
    assert many.sizes["mid_date"] > 5 * few.sizes["mid_date"]
    sizes = [len(next(run.tasks(velocity))[1][1]) for velocity in (few, many)]
    assert sizes[1] < 1.02 * sizes[0]


def test_the_page_shows_what_the_program_computes(benchmark) -> None:
    paper, report = benchmark("scale_paper"), benchmark("report")
    page = (ROOT / "docs" / "scale.md").read_text()
    for table in paper.tables():
        assert report.printed(table) in page


def test_twice_the_years_are_twice_the_pairs_and_a_sparser_grid_is_cheaper(benchmark) -> None:
    paper = benchmark("scale_paper")
    base = paper.Assumptions()
    one = paper.tile(base, (5, 100))
    ten = paper.tile(paper.replace(base, years=10), (5, 100))
    assert ten.scenes == 2 * one.scenes
    assert 1.9 * one.pairs < ten.pairs < 2.2 * one.pairs
    sparse = paper.tile(paper.replace(base, kernel=paper.replace(base.kernel, step=16), tile=64), (5, 100))
    # Half of 1372 cells, and four times fewer points; blocks of the same pixels.
    assert sparse.match == pytest.approx(one.match / 4)
    assert sparse.blocks == one.blocks
    # Every kept scene is matched, so none is read less often than once a tile.
    assert one.reads >= 2 * 121 * one.scenes
    assert (
        sum(job.pairs for name, job in paper.jobs(base) if name == "a tile, all pairs")
        == one.scenes * (one.scenes - 1) / 2
    )
