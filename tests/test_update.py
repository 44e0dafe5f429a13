"""Updates: a run that gets new scenes is the run that had them from the start, and nothing is done twice."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import ogive as og
from ogive import flags, run, store
from ogive.cli import app
from ogive.errors import GridError, OgiveError, ParameterError, StoreError
from ogive.testing.runs import INVERTED, READER, counted_run, run_file, unreadable
from ogive.testing.stores import contents
from ogive.update import SERIES_NEXT

FIRST = ["2021-07-01", "2021-07-06", "2021-07-11", "2021-07-21", "2021-07-26", "2021-07-31"]
LATE, HALF = "2021-08-10 with_a_long_name", "2021-08-10 half"
BETWEEN, BEFORE = "2021-07-16", "2021-06-25"


def done(folder: Path, scenes: list[str]) -> Path:
    """The folder of a finished run."""
    run.run(run.load(run_file(folder, scenes)), progress=False)
    return folder / "result"


@pytest.fixture(autouse=True)
def _counted() -> Iterator[None]:
    with counted_run():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the first scenes; copy it before you change it."""
    with counted_run():
        return done(tmp_path_factory.mktemp("finished") / "job", FIRST)


@pytest.fixture
def job(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished.parent, tmp_path / "job")
    result = tmp_path / "job" / "result"
    # The copy lies elsewhere, which its run file says, and nothing else is new.
    (result / "run.json").write_text(run.load(tmp_path / "job" / "run.yaml").model_dump_json(indent=2))
    (result / "report.html").touch()
    return tmp_path / "job"


def update(path: Path) -> run.RunResult:
    return og.update(run.load(path), progress=False)


def by_pair(path: Path) -> xr.Dataset:
    """A velocity with its pairs in the order of their images' names."""
    ds = store.open_velocity(path).compute()
    names = [f"{one} {two}" for one, two in zip(ds["image_id1"].values, ds["image_id2"].values, strict=True)]
    return ds.isel(mid_date=np.argsort(names)).drop_vars("pair_id").drop_attrs()


def files(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_new_scenes_before_between_and_after(job: Path, tmp_path: Path) -> None:
    path = run_file(job, [LATE, *FIRST, BETWEEN, BEFORE])
    result = update(path)
    fresh = done(tmp_path / "fresh", sorted([*FIRST, LATE, BETWEEN, BEFORE]))
    for name in (run.MATCHES, run.VELOCITY):
        ours = store.open_velocity(job / "result" / name)
        assert ours["pair_id"].values.tolist() == list(range(ours.sizes["mid_date"]))
        xr.testing.assert_identical(by_pair(job / "result" / name), by_pair(fresh / name))
        assert store.verify(job / "result" / name).empty
        assert np.isfinite(ours["vx"].values).mean() > 0.5
    # An earlier scene shifts all windows: everything is inverted anew. Pairs in another order are other sums.
    assert result.series is not None
    ours, theirs = (store.open_velocity(p).compute() for p in (result.series, fresh / run.SERIES))
    xr.testing.assert_allclose(ours["vx"], theirs["vx"], rtol=1e-3, atol=0.05)
    assert ours["n_pairs"].equals(theirs["n_pairs"])
    assert len(result.tables["Pairs"]) == len(store.open_velocity(result.matches)["mid_date"])
    assert json.loads((job / "result" / "run.json").read_text())["output"] == str(job / "result")


def test_only_new_pairs_are_matched(job: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = store.open_velocity(job / "result" / run.MATCHES)
    count = before.sizes["mid_date"]
    old = {name: contents(job / "result" / name) for name in (run.MATCHES, run.VELOCITY)}
    path = run_file(job, [*FIRST, LATE])
    READER.reads.clear()
    with caplog.at_level(logging.INFO, "ogive"):
        update(path)
    after = store.open_velocity(job / "result" / run.MATCHES)
    more = after.sizes["mid_date"] - count
    assert more == len(FIRST)
    assert f"{more} new pairs" in caplog.text
    assert all("with_a_long_name" in name for name in after["image_id2"].values[count:])
    # Old scenes are read for the new pairs alone, once for each block, and never looked at again.
    tiles, batches = 3, len(after.chunks["mid_date"]) - count // 8
    looks = [r for r in READER.reads if max(r[1]) <= 33]
    assert len(looks) == 1
    assert len(READER.reads) - 1 <= tiles * (more + batches)
    for name, then in old.items():
        now = contents(job / "result" / name)
        full = {k: v for k, v in then.items() if "/c/0/" in k and k.count("/") == 4}
        assert len(full) > 30
        assert full.items() <= now.items()


def test_nothing_new_is_nothing_done(job: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = files(job / "result")
    READER.reads.clear()
    INVERTED.clear()
    with caplog.at_level(logging.INFO, "ogive"):
        result = update(job / "run.yaml")
    assert "nothing new" in caplog.text
    assert READER.reads == []
    assert INVERTED == []
    assert files(job / "result") == before
    assert result.tables == {}
    told = CliRunner().invoke(app, ["update", str(job / "run.yaml")])
    assert told.exit_code == 0, told.output
    assert "report.html" in told.output
    assert files(job / "result") == before
    assert og.update(job / "result", progress=False).report == result.report


def test_series_are_inverted_only_where_a_new_pair_has_a_vector(job: Path) -> None:
    path = run_file(job, [*FIRST, HALF])
    old = store.open_velocity(job / "result" / run.SERIES).compute()
    INVERTED.clear()
    result = update(path)
    assert result.series is not None
    series = store.open_velocity(result.series)
    velocity = store.open_velocity(result.velocity)
    new = velocity["vx"].isel(mid_date=slice(-len(FIRST), None)).notnull().any("mid_date").values
    tiles = [(slice(32 * i, 32 * i + 32), slice(32 * j, 32 * j + 32)) for i in range(1) for j in range(3)]
    touched = [bool(new[tile].any()) for tile in tiles]
    assert 0 < sum(touched) < len(tiles)
    assert len([s for s in INVERTED if s[1] > 1]) == sum(touched)
    whole, series = og.invert(velocity, every="10D").compute(), series.compute()
    assert series.sizes["time"] == whole.sizes["time"] > old.sizes["time"]
    lost = slice(old.sizes["time"], None)
    for tile, is_new in zip(tiles, touched, strict=True):
        at = dict(zip(("y", "x"), tile, strict=True))
        for name in series.data_vars:
            ours = series[name].isel(at)
            expected = whole[name].isel(at) if is_new else old[name].isel(at)
            known = ours if is_new or "time" not in ours.dims else ours.isel(time=slice(0, old.sizes["time"]))
            np.testing.assert_array_equal(known.values, expected.values, err_msg=str(name))
        if not is_new:
            assert np.isnan(series["vx"].isel({**at, "time": lost})).all()
            assert (
                series["flag"].isel({**at, "time": lost}) & (flags.GAP | flags.TOO_FEW_PAIRS | flags.SCREENED)
            ).all()
    assert not (job / "result" / SERIES_NEXT).exists()
    step = json.loads(series.attrs["provenance"])["steps"][-1]
    assert step["step"] == "update"
    assert len(step["tiles"]) == sum(touched)
    assert store.verify(result.series).empty


def test_other_filters_are_applied_to_all_pairs(job: Path) -> None:
    filters = {"correlation": {"minimum": 0.9}}
    update(run_file(job, [*FIRST, LATE], filters=filters))
    velocity = store.open_velocity(job / "result" / run.VELOCITY)
    assert not (velocity["corr"].where(velocity["vx"].notnull()) < 0.9).any()
    config = run.load(job / "run.yaml")
    expected = run.correct_and_filter(config, store.open_velocity(job / "result" / run.MATCHES))
    xr.testing.assert_identical(velocity.compute().drop_attrs(), expected.compute().drop_attrs())


@pytest.mark.parametrize(
    ("sections", "error", "named"),
    [
        ({"kernel": {"name": "ncc", "chip": 24, "search": 3, "step": 4}}, ParameterError, "kernel: must be that of"),
        ({"stack": "30D"}, ParameterError, "stack"),
        ({"output": "elsewhere"}, ParameterError, "holds no run"),
    ],
)
def test_what_is_no_update_is_refused(job: Path, sections: dict[str, Any], error: type[OgiveError], named: str) -> None:
    before = files(job / "result")
    with pytest.raises(error, match=named):
        update(run_file(job, [*FIRST, LATE], **sections))
    assert files(job / "result") == before


def test_scenes_of_another_zone_are_refused_and_run_is_not_the_way(job: Path) -> None:
    with pytest.raises(GridError, match="coordinate system of the run, EPSG:32632"):
        update(run_file(job, [*FIRST, "2021-08-10 zone"]))
    update(run_file(job, [*FIRST, LATE]))
    with pytest.raises(StoreError, match=r"was extended since.*ogive update"):
        run.run(run.load(run_file(job, FIRST)), progress=False)


def test_lost_blocks_of_an_extended_run_are_computed_again(job: Path) -> None:
    path = run_file(job, [*FIRST, LATE])
    result = update(path)
    before = contents(result.matches)
    victim = next(p for p in sorted((result.matches / "vx" / "c" / "1").rglob("*")) if p.is_file())
    victim.write_bytes(b"torn")
    store.verify(result.matches, repair=True)
    READER.reads.clear()
    update(path)
    assert contents(result.matches) == before
    assert 0 < len(READER.reads) <= len(FIRST) + 1


SCRIPT = """
import json, os, random, shutil, signal
from pathlib import Path
import dask
from ogive import _storage, run, store
import ogive as og
from ogive.testing.runs import counted_run, run_file
from ogive.testing.stores import contents
finished, folder = Path({finished!r}), Path({folder!r})
steps = [0]
# Threads do not survive a fork.
dask.config.set(scheduler="synchronous")

def kill_at(number):
    def counting(owner, name):
        real = getattr(owner, name)
        def counted(*arguments, **options):
            steps[0] += 1
            if steps[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        setattr(owner, name, counted)
    for owner, name in ((_storage.Folder, "put"), (_storage.Folder, "delete"), (_storage.Folder, "clear"),
                        (Path, "rename"), (Path, "write_text")):
        counting(owner, name)

def update(job):
    with counted_run():
        og.update(run.load(job / "run.yaml"), progress=False)

def killed(job, number):
    child = os.fork()
    if child == 0:
        kill_at(number)
        update(job)
        os.write(out, str(steps[0]).encode())
        os._exit(0)
    return os.waitpid(child, 0)[1]

def fresh():
    job = folder / "job"
    shutil.rmtree(job, ignore_errors=True)
    shutil.copytree(finished.parent, job)
    run_file(job, {scenes!r})
    return job

names = (run.MATCHES, run.VELOCITY, run.SERIES)
back, out = os.pipe()
job = fresh()
assert killed(job, 0) == 0
count = int(os.read(back, 100))
whole = {{name: contents(job / "result" / name) for name in names}}
draw = random.Random(5)
chosen = range(1, count + 1) if os.environ.get("OGIVE_LONG") else sorted(
    {{count - 6, *draw.sample(range(10, count - 8), 2)}})
for number in chosen:
    job = fresh()
    assert killed(job, number) == signal.SIGKILL, number
    for name in (run.MATCHES, run.VELOCITY):
        assert store.open_velocity(job / "result" / name)["vx"].shape[0] in (15, 21), number
    update(job)
    for name in names:
        assert contents(job / "result" / name) == whole[name], (number, name)
        assert store.verify(job / "result" / name).empty
    assert not (job / "result" / "series.next.zarr").exists()
    assert not (job / "result" / "series.next.zarr.ledger").exists()
print(json.dumps([count, list(chosen)]))
"""


def test_killed_at_any_step_the_next_update_finishes(finished: Path, tmp_path: Path) -> None:
    script = SCRIPT.format(finished=str(finished), folder=str(tmp_path), scenes=[*FIRST, HALF])
    killed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=3000, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(og.__file__).parents[1])}, cwd=tmp_path,
    )  # fmt: skip
    assert killed.returncode == 0, killed.stderr
    count, chosen = json.loads(killed.stdout)
    assert count > 100
    assert len(chosen) >= 3


def test_what_was_begun_is_finished_first(job: Path, tmp_path: Path) -> None:
    """A scene that came while an update lay dead does not undo what that one had matched."""
    path = run_file(job, [*FIRST, LATE])
    with unreadable("long", 602000), pytest.raises(StoreError, match="blocks failed"):
        update(path)
    half = store.status(job / "result" / run.MATCHES)
    assert half["new"] == len(FIRST)
    assert 0 < half["failed"] < half["blocks"]
    READER.reads.clear()
    update(run_file(job, [*FIRST, LATE, BETWEEN]))
    fresh = done(tmp_path / "fresh", sorted([*FIRST, LATE, BETWEEN]))
    xr.testing.assert_identical(by_pair(job / "result" / run.VELOCITY), by_pair(fresh / run.VELOCITY))
    said = json.loads(store.open_velocity(job / "result" / run.MATCHES).attrs["provenance"])["appended"]
    assert [entry["pairs"] for entry in said] == [len(FIRST), len(FIRST) + 1]
    assert store.status(job / "result" / run.MATCHES)["failed"] == 0


def test_without_the_scene_that_cannot_be_read_the_update_is_taken_back(job: Path) -> None:
    before = store.open_velocity(job / "result" / run.MATCHES).compute()
    with unreadable("long", 0), pytest.raises(StoreError, match="blocks failed"):
        update(run_file(job, [*FIRST, LATE]))
    update(run_file(job, FIRST))
    assert "new" not in store.status(job / "result" / run.MATCHES)
    assert store.verify(job / "result" / run.MATCHES).empty
    xr.testing.assert_identical(store.open_velocity(job / "result" / run.MATCHES).compute(), before)
