"""Spoiled items, run files, catalogues and stores: a result or a clear error, and nothing else happens.

The documents themselves are a row of the chaos suite (test_rows.py); here is what that row stands on.
"""

import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ogive.testing import mutate


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> mutate.Bench:
    return mutate.Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("kind", mutate.TRIALS)
def test_what_is_not_spoiled_is_understood(bench: mutate.Bench, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every trial would end with an error, and the fuzzing would test nothing."""
    monkeypatch.setattr(mutate, "spoil", lambda document, rng: document)
    monkeypatch.setattr(mutate, "spoil_text", lambda text, rng: text)
    mutate.TRIALS[kind](bench, random.Random(0))


def test_the_watch_sees_what_it_is_there_for(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / mutate.PLANTED).write_text("x")
    with mutate.watched(tmp_path / "inside") as breaches:
        (tmp_path / "inside/fine").write_text("x")
        (tmp_path / "inside/fine").read_text()
    assert breaches == []
    with mutate.watched(tmp_path / "inside") as breaches:
        (tmp_path / "outside").write_text("x")
        (tmp_path / mutate.PLANTED).read_text()
        with socket.socket() as probe, pytest.raises(OSError, match=r"refused|in progress"):
            probe.connect(("127.0.0.1", 9))
        subprocess.run([sys.executable, "-c", ""], check=True)
    assert [any(part in told for told in breaches) for part in ("outside", mutate.PLANTED, "socket", "Popen")] == [
        True
    ] * 4


def test_the_same_seed_gives_the_same_documents(bench: mutate.Bench) -> None:
    first, second = (
        [bench.written("x.json", bench.items, random.Random(k)).read_bytes() for k in range(20)] for _ in "ab"
    )
    assert first == second
    assert len(set(first)) == 20
