"""Repositories: the same bytes as the plain store, and main never holds anything but a whole one."""

import os
import pickle
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

import ogive as og
from ogive import _icechunk, flags, store
from ogive._ledger import digest
from ogive._lock import only_writer
from ogive._storage import Folder, storage_of
from ogive.errors import StoreError
from ogive.testing.buckets import bucket_server
from ogive.testing.stores import COMPUTED, contents, lazy_velocity

icechunk = pytest.importorskip("icechunk")
ALL = {"blocks": 8, "done": 8, "failed": 0}


@pytest.fixture(autouse=True)
def _nothing_computed(monkeypatch):
    COMPUTED.clear()
    # Every block is saved as soon as it is there.
    monkeypatch.setattr(_icechunk, "PAUSE", 0.0)


def write(path, ds=None, **how):
    return og.write(lazy_velocity() if ds is None else ds, path, progress=False, **how)


def repository(path) -> "icechunk.Repository":
    return icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))


def history(path) -> list[str]:
    """The messages of main, newest first."""
    return [snapshot.message for snapshot in repository(path).ancestry(branch="main")]


WHOLE = ["ogive write, 8 blocks", "Repository initialized"]


def another() -> xr.Dataset:
    """A job of another fingerprint, with twice the values."""
    ds = lazy_velocity().assign_attrs(provenance='{"search": 2}')
    return ds.assign(vx=ds["vx"].copy(data=2 * ds["vx"].data))


def test_a_repository_holds_the_same_objects_and_rows_as_a_folder(tmp_path) -> None:
    path = tmp_path / "v.icechunk"
    assert write(path) == path
    plain = write(tmp_path / "v.zarr")
    assert contents(path) == contents(plain)
    assert history(path) == WHOLE
    assert repository(path).list_branches() == {"main"}
    assert og.status(path) == ALL
    assert og.verify(path).empty
    xr.testing.assert_identical(og.open_velocity(path).compute(), og.open_velocity(plain).compute())
    COMPUTED.clear()
    write(path)
    write(path, overwrite=True)
    assert COMPUTED == []
    assert history(path) == WHOLE
    assert not (tmp_path / "v.icechunk.lock").exists()


def test_an_open_repository_and_any_zarr_reader(tmp_path) -> None:
    repo = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "any name")))
    assert write(repo) is repo
    assert (og.status(repo), og.verify(repo).empty) == (ALL, True)
    plain = xr.open_zarr(repo.readonly_session("main").store, consolidated=False)
    assert plain.attrs["status"] == "complete"
    assert set(plain.variables) == set(lazy_velocity().variables)
    np.testing.assert_array_equal(plain["vx"].values, og.open_velocity(repo)["vx"].values)


def test_a_reader_keeps_the_snapshot_that_it_opened(tmp_path) -> None:
    path = tmp_path / "v.icechunk"
    first, second = lazy_velocity(), another()
    write(path, first)
    before = og.open_velocity(path)
    between = datetime.now(UTC)
    with pytest.raises(StoreError, match="holds the result of another job"):
        write(path, second)
    write(path, second, overwrite=True)
    after = og.open_velocity(path)
    # Both at once: one graph must not take the blocks of one for those of the other.
    old, new = dask.compute(before["vx"], after["vx"])
    np.testing.assert_array_equal(old, first["vx"].values)
    np.testing.assert_array_equal(new, 2 * first["vx"].values)
    assert history(path) == [WHOLE[0], *WHOLE]
    first_id = before.encoding["snapshot"]
    repository(path).create_tag("paper", first_id)
    for which in (first_id, "paper", between):
        again = og.open_velocity(path, snapshot=which)
        assert again.encoding["snapshot"] == first_id
        np.testing.assert_array_equal(again["vx"], old)
    for which in ("no such", between - timedelta(days=1)):
        with pytest.raises(StoreError, match="has no snapshot"):
            og.open_velocity(path, snapshot=which)
    assert pickle.loads(pickle.dumps(before))["vx"].equals(old)


def test_an_overwritten_repository_holds_nothing_of_the_old_job(tmp_path) -> None:
    path, small = tmp_path / "v.icechunk", lazy_velocity((2, 20, 30))
    wide = lazy_velocity().assign(extra=lazy_velocity()["vx"] * 2)
    write(path, wide)
    write(path, small, overwrite=True)
    assert contents(path) == contents(write(tmp_path / "small.zarr", small))
    write(path, wide, overwrite=True)
    assert contents(path) == contents(write(tmp_path / "wide.zarr", wide))
    flat = small.assign(vx_error=small["vx"])
    with pytest.raises(StoreError, match="vx_error: has another number of dimensions"):
        write(path, flat, overwrite=True)
    assert len(history(path)) == 4


# --- interrupted ----------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
import numpy as np
import ogive as og
from ogive import _icechunk
from ogive.testing.stores import lazy_velocity

def slow(block):
    time.sleep(float(sys.argv[2]))
    return block

ds = lazy_velocity((12, 40, 48))
lazy = ds["vx"].data.map_blocks(slow, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
_icechunk.PAUSE = 0.0
og.write(ds.assign(vx=ds["vx"].copy(data=lazy)), sys.argv[1], progress=False, workers=2)
"""


def started(path: Path, seconds: float) -> "subprocess.Popen[bytes]":
    """A process that writes 24 blocks, each of which takes some time."""
    env = {**os.environ, "PYTHONPATH": str(Path(og.__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(path), str(seconds)], env=env)


def done(path: Path) -> int:
    return og.status(path)["done"] if path.exists() and _icechunk.snapshot_of(path).exists() else 0


def test_a_run_killed_three_times_leaves_nothing_on_main_and_goes_on(tmp_path) -> None:
    path, draw = tmp_path / "killed.icechunk", np.random.default_rng(5)
    for _ in range(3):
        enough, process = done(path) + draw.integers(1, 4), started(path, 0.3)
        while done(path) < enough:
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.wait()
        assert history(path) == ["Repository initialized"]
        assert set(og.verify(path)["problem"]) == {"not done"}
        with pytest.raises(StoreError, match=f"is not finished.* {done(path)} of 24 blocks done"):
            og.open_velocity(path)
    saved = og.open_velocity(path, partial=True)
    assert started(path, 0).wait(120) == 0
    assert history(path) == ["ogive write, 24 blocks", "Repository initialized"]
    assert repository(path).list_branches() == {"main"}
    assert contents(path) == contents(write(tmp_path / "whole.zarr", lazy_velocity((12, 40, 48))))
    assert og.verify(path).empty
    # What was saved stays readable to who had opened it.
    there = (saved["flag"] != flags.NOT_COMPUTED).values
    assert 0 < there.sum() < there.size
    np.testing.assert_array_equal(saved["vx"].values[there], og.open_velocity(path)["vx"].values[there])


def damage(path: Path, block: str, name: str) -> None:
    """Flip a bit in the file that holds a chunk; chunks lie there as they are."""
    (expected,) = (row["objects"][name] for row in store.ledger(path) if row["block"] == block)
    for file in (path / "chunks").iterdir():
        data = bytearray(file.read_bytes())
        if digest(bytes(data)) == expected:
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
            return
    raise AssertionError(f"no file holds {name}")


def test_a_saved_block_that_was_damaged_is_computed_again_and_no_other(tmp_path, monkeypatch) -> None:
    path, run_block = tmp_path / "v.icechunk", store.run_block

    def full(key, *task, **how):
        row = run_block(key, *task, **how)
        return row if key != "1.1.1" else {"block": key, "status": "unwritable", "error": "disk full"}

    monkeypatch.setattr(store, "run_block", full)
    with pytest.raises(StoreError, match="disk full"):
        write(path, workers=1)
    monkeypatch.undo()
    assert og.status(path) == {"blocks": 8, "done": 7, "failed": 0}
    damage(path, "1.0.0", "vx/c/1/0/0")
    COMPUTED.clear()
    write(path)
    assert sorted(COMPUTED) == [(1, 0, 0), (1, 1, 1)]
    assert contents(path) == contents(write(tmp_path / "v.zarr"))
    assert history(path) == WHOLE


def test_damage_on_main_is_found_and_repaired_by_a_new_snapshot(tmp_path) -> None:
    path = tmp_path / "v.icechunk"
    write(path)
    before = contents(path)
    damage(path, "0.1.0", "vx/c/0/1/0")
    faults = og.verify(path, repair=True)
    assert faults.values.tolist() == [["0.1.0", "vx", "checksum"]]
    assert history(path) == WHOLE
    COMPUTED.clear()
    write(path)
    assert COMPUTED == [(0, 1, 0)]
    assert contents(path) == before
    assert og.verify(path).empty
    assert history(path) == [WHOLE[0], *WHOLE]


def test_blocks_that_fail_leave_main_alone_and_the_others_saved(tmp_path, monkeypatch) -> None:
    path, run_block = tmp_path / "v.icechunk", store.run_block

    def broken(*which):
        def block(key, blob, span, **how):
            return run_block(key, b"no graph" if not which or key in which else blob, span, **how)

        monkeypatch.setattr(store, "run_block", block)

    broken()
    with pytest.raises(StoreError, match=r"8 of 8 blocks failed \(nothing was written\)"):
        write(path)
    assert repository(path).list_branches() == {"main"}
    broken("0.0.1", "1.0.1")
    with pytest.raises(StoreError, match=r"2 of 8 blocks failed .*the others are written"):
        write(path)
    assert og.status(path) == {"blocks": 8, "done": 6, "failed": 2}
    assert history(path) == WHOLE[1:]
    monkeypatch.undo()
    COMPUTED.clear()
    write(path)
    assert sorted(COMPUTED) == [(0, 0, 1), (1, 0, 1)]
    assert history(path) == WHOLE


# --- two at a time --------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused(tmp_path) -> None:
    path = tmp_path / "v.icechunk"
    with only_writer(Folder(path)), pytest.raises(StoreError, match="is being written by another run"):
        write(path)
    assert not path.exists()


def test_the_slower_of_two_writers_fails_whole(tmp_path, monkeypatch) -> None:
    path, run_block = tmp_path / "v.icechunk", store.run_block
    write(path)
    ours = lazy_velocity().assign_attrs(provenance='{"search": 3}')

    def overtaken(key, *task, **how):
        if key == "1.1.1":
            monkeypatch.undo()
            # An open repository is not locked: as if from another machine.
            write(repository(path), another(), overwrite=True)
        return run_block(key, *task, **how)

    monkeypatch.setattr(store, "run_block", overtaken)
    with pytest.raises(StoreError, match="main has moved"):
        write(repository(path), ours, overwrite=True, workers=1)
    assert history(path) == [WHOLE[0], *WHOLE]
    assert og.verify(path).empty
    np.testing.assert_array_equal(og.open_velocity(path)["vx"], another()["vx"])


def test_workers_of_a_cluster_write_and_the_driver_commits(tmp_path) -> None:
    path = tmp_path / "v.icechunk"
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        write(path, client=client)
        values = og.open_velocity(path)["vx"].compute()
    assert contents(path) == contents(write(tmp_path / "v.zarr"))
    assert history(path) == WHOLE
    np.testing.assert_array_equal(values, lazy_velocity()["vx"])


def test_a_bucket_holds_a_repository_too(tmp_path) -> None:
    with bucket_server() as bucket:
        url = f"{bucket}/a/v.icechunk"
        assert write(url) == url
        assert contents(url) == contents(write(tmp_path / "v.zarr"))
        before = og.open_velocity(url)
        write(url, another(), overwrite=True)
        np.testing.assert_array_equal(before["vx"], lazy_velocity()["vx"])
        np.testing.assert_array_equal(og.open_velocity(url)["vx"], another()["vx"])
        assert og.verify(url).empty
        text = b"".join(map(storage_of(bucket).get, storage_of(bucket).objects()))
        assert b"planted-secret" not in text


# --- refused --------------------------------------------------------------------------------------------------------


def test_what_is_not_ours_is_never_touched(tmp_path) -> None:
    folder = tmp_path / "mine.icechunk"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="is no Icechunk repository"):
        write(folder, overwrite=True)
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]
    foreign = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "foreign")))
    session = foreign.writable_session("main")
    xr.Dataset({"a": ("x", [1.0])}).to_zarr(session.store, consolidated=False)
    session.commit("theirs")
    for act in (write, lambda repo: write(repo, overwrite=True), og.open_velocity, og.status):
        with pytest.raises(StoreError, match="is not an ogive store"):
            act(foreign)
    assert next(iter(foreign.ancestry(branch="main"))).message == "theirs"


def test_refusals_say_what_to_do(tmp_path, monkeypatch) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        og.open_velocity(tmp_path / "none.icechunk")
    with pytest.raises(StoreError, match="only Icechunk repositories"):
        og.open_velocity(write(tmp_path / "v.zarr"), snapshot="main")
    with pytest.raises(StoreError, match=r"must be a path, a URL or an icechunk\.Repository"):
        write(12)
    with pytest.raises(StoreError, match=r"open the icechunk\.Repository yourself"):
        write("gs://bucket/v.icechunk")
    monkeypatch.setitem(sys.modules, "icechunk", None)
    with pytest.raises(StoreError, match=r'pip install "ogive\[icechunk\]"'):
        write(tmp_path / "v.icechunk")
