"""The benchmark program runs, says all that it should, and fails when a speed ratio has fallen. No speed is tested."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
BASELINE = FOLDER / "baseline.json"
TABLES = ["Speed", "Peers", "Scaling", "Pairs", "Whole chain", "Accuracy", "Peak locking", "Margin",
          "Ensemble correlation", "Small areas"]  # fmt: skip
PEERS = {"cv2": "OpenCV", "skimage": "scikit-image", "openpiv": "OpenPIV"}
RATIO = "x OpenCV"


def run(*arguments: Any, program: str = "tracking.py") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / program), *map(str, arguments)]
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)


def altered(folder: Path, name: str, factor: float) -> Path:
    """The baseline with one ratio of table "Speed" multiplied."""
    figures = json.loads(BASELINE.read_text())
    row = next(r for r in figures["tables"][0]["rows"] if r["name"] == name)
    row["figures"][RATIO] *= factor
    file = folder / "altered.json"
    file.write_text(json.dumps(figures))
    return file


@pytest.mark.slow
def test_a_quick_run_fills_every_table(tmp_path) -> None:
    file = tmp_path / "figures.json"
    done = run("--quick", "--json", file)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    tables = {table["title"]: table["rows"] for table in figures["tables"]}
    assert list(tables) == TABLES
    for title, rows in tables.items():
        assert f"\n{title}\n" in "\n" + done.stdout
        names = [row["name"] for row in rows]
        assert len(set(names)) == len(names) > 0
        for row in rows:
            assert row["name"] in done.stdout
            assert row["figures"]
            # A limit on a figure that is not there would never be met.
            assert {limit["figure"] for limit in row["limits"]} <= set(row["figures"])
    for module, name in PEERS.items():
        installed = importlib.util.find_spec(module) is not None
        assert any(name in row["name"] for row in tables["Peers"]) == installed
    measured = {row["name"] for row in tables["Speed"] if RATIO in row["figures"]}
    expected = {row["name"] for row in json.loads(BASELINE.read_text())["tables"][0]["rows"] if RATIO in row["figures"]}
    assert measured == (expected if importlib.util.find_spec("cv2") else set())
    # What has no noise of timing: scenes are filtered once, the margin is right, small areas work.
    assert {row["figures"]["filters/scene"] for row in tables["Pairs"]} == {1}
    assert {row["figures"]["least"] for row in tables["Margin"] if row["limits"]} == {1}
    assert min(row["figures"]["refused"] for row in tables["Small areas"]) == 1
    assert figures["machine"]["processor"]
    assert not {"node", "host", "path"} & set(figures["machine"])


def test_the_baseline_is_of_a_full_run() -> None:
    figures = json.loads(BASELINE.read_text())
    assert [table["title"] for table in figures["tables"]] == TABLES
    assert not figures["quick"]
    assert sum(RATIO in row["figures"] for row in figures["tables"][0]["rows"]) >= 10


def test_a_run_that_is_slower_than_the_baseline_fails_and_says_where(tmp_path) -> None:
    name = "chip 32, R 8, quadric"
    for factor, status in ((1.0, 0), (1.2, 0), (1.3, 1), (0.5, 0)):
        done = run("--read", BASELINE, "--check", altered(tmp_path, name, factor))
        assert done.returncode == status, done.stdout
        assert ("Slower than the baseline" in done.stdout) == bool(status)
    missing = json.loads(BASELINE.read_text())
    missing["tables"][0]["rows"] = [r for r in missing["tables"][0]["rows"] if r["name"] != name]
    file = tmp_path / "missing.json"
    file.write_text(json.dumps(missing))
    done = run("--read", file, "--check", BASELINE)
    assert done.returncode == 1
    assert f"{name}: not measured" in done.stdout


def test_quick_and_full_runs_are_not_compared(tmp_path) -> None:
    quick = {**json.loads(BASELINE.read_text()), "quick": True}
    file = tmp_path / "quick.json"
    file.write_text(json.dumps(quick))
    done = run("--read", file, "--check", BASELINE)
    assert done.returncode == 1
    assert "cannot be compared" in done.stdout


@pytest.mark.slow
def test_a_quick_run_of_the_inversion_is_right_where_no_clock_is_read(tmp_path) -> None:
    file = tmp_path / "figures.json"
    done = run("--quick", "--json", file, program="inversion.py")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row["figures"] for table in json.loads(file.read_text())["tables"] for row in table["rows"]}
    for name in ("adaptive", "ticoi"):
        assert any(row.endswith(f": {name}") for row in rows)
    own = [figures for row, figures in rows.items() if row.endswith(": adaptive") and "RMSE" in figures]
    assert len(own) >= 2
    assert all(0.9 < figures["within 1.96 s"] < 0.99 and figures["valid"] > 0.99 for figures in own)
