"""Appending: new pairs follow the old ones, at once for every reader, whatever happens in between."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import ogive as og
from ogive import _lock, store
from ogive._growth import coming
from ogive._ledger import Books
from ogive._storage import storage_of
from ogive.errors import ParameterError, StoreError
from ogive.testing.buckets import bucket_server
from ogive.testing.stores import COMPUTED, contents, velocity_of_pairs

OLD, ALL = 6, 13
"""Pairs of the store before and after; batches hold 4."""


@pytest.fixture(autouse=True)
def _nothing_computed():
    COMPUTED.clear()


def write(ds: xr.Dataset, path: Any, **how: Any) -> Any:
    return og.write(ds, path, progress=False, **how)


def append(ds: xr.Dataset, path: Any, **how: Any) -> Any:
    return og.append(ds, path, progress=False, **how)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the first pairs; copy it before you change it."""
    return write(velocity_of_pairs(0, OLD), tmp_path_factory.mktemp("old") / "v.zarr")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pairs, written in one go."""
    return write(velocity_of_pairs(0, ALL), tmp_path_factory.mktemp("whole") / "v.zarr")


@pytest.fixture
def path(old: Path, tmp_path: Path) -> Path:
    for suffix in ("", ".ledger"):
        shutil.copytree(f"{old}{suffix}", tmp_path / f"v.zarr{suffix}")
    return tmp_path / "v.zarr"


def objects(path: Any) -> dict[str, str]:
    """The contents of a store without its global attributes, and without the names of jobs in the ledger."""
    found = {k: v for k, v in contents(path).items() if k != "zarr.json"}
    return {k: json.dumps(json.loads(v) | {"job": ""}) if k.startswith("ledger") else v for k, v in found.items()}


def test_the_bytes_are_those_of_one_write(path, whole) -> None:
    before = contents(path)
    assert append(velocity_of_pairs(OLD, ALL), path) == path
    assert objects(path) == objects(whole)
    # Of the second batch only the new half was computed, of the first nothing was touched.
    assert len(COMPUTED) == 3 * 4
    first = {key: value for key, value in before.items() if key.startswith(("vx/c/0/", "flag/c/0/", "ledger 0."))}
    assert len(first) == 12
    assert first.items() <= contents(path).items()
    one, two = og.open_velocity(path), og.open_velocity(whole)
    xr.testing.assert_identical(one.drop_attrs().compute(), two.drop_attrs().compute())
    assert og.verify(path).empty
    assert og.status(path) == {"blocks": 16, "done": 16, "failed": 0}
    assert xr.open_zarr(path).attrs["status"] == "complete"
    assert sorted(p.name for p in path.parent.iterdir()) == ["v.zarr", "v.zarr.ledger"]


def test_many_small_appends_end_at_the_same_bytes(path, whole) -> None:
    for first, last in ((OLD, 7), (7, 8), (8, 9), (9, ALL)):
        append(velocity_of_pairs(first, last), path)
    assert objects(path) == objects(whole)
    history = json.loads(og.open_velocity(path).attrs["provenance"])["appended"]
    assert [entry["pairs"] for entry in history] == [1, 1, 1, 4]


def test_dates_in_any_order_and_names_of_any_length(path) -> None:
    velocity = velocity_of_pairs(OLD, ALL)
    # Dates descend and names grow from pair to pair: both are really put to the test.
    assert velocity["mid_date"].values.max() < og.open_velocity(path)["mid_date"].values.min()
    longest = max(map(len, og.open_velocity(path)["image_id1"].values))
    assert min(map(len, velocity["image_id1"].values)) > longest
    opened = og.open_velocity(append(velocity, path))
    expected = velocity_of_pairs(0, ALL)
    for name in ("mid_date", "image_id1", "image_id2", "vx_error"):
        assert opened[name].values.tolist() == expected[name].values.tolist()
    assert any(int(t) % 10**6 for t in opened["mid_date"].values.astype("M8[us]").astype(np.int64))
    assert storage_of(path).get("mid_date/zarr.json").count(b"microseconds since 1970-01-01") == 1


def test_fixed_width_names_grow_too(tmp_path) -> None:
    def texts(ds: xr.Dataset) -> xr.Dataset:
        return ds.assign_coords({n: ("mid_date", ds[n].values.astype(str)) for n in ("image_id1", "image_id2")})

    path = write(texts(velocity_of_pairs(0, OLD)), tmp_path / "v.zarr")
    append(texts(velocity_of_pairs(OLD, ALL)), path)
    assert og.open_velocity(path)["image_id1"].values.tolist() == velocity_of_pairs(0, ALL)["image_id1"].values.tolist()


def test_the_same_append_again_does_nothing(path) -> None:
    append(velocity_of_pairs(OLD, ALL), path)
    before = contents(path)
    COMPUTED.clear()
    append(velocity_of_pairs(OLD, ALL), path)
    assert COMPUTED == []
    assert contents(path) == before


def test_pairs_that_are_there_are_refused_by_name(path) -> None:
    before = contents(path)
    with pytest.raises(StoreError, match=r"1 of the pairs are there already.*one xxxxx and two 5"):
        append(velocity_of_pairs(OLD - 1, ALL), path)
    twice = velocity_of_pairs(OLD, 8).isel(mid_date=[0, 0])
    with pytest.raises(StoreError, match="given twice"):
        append(twice, path)
    assert contents(path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.drop_vars("flag"), "same variables as the store .found flag"),
        (lambda ds: ds.assign(vx=ds["vx"].astype("f8")), "same dimensions and types as the store .found vx"),
        (lambda ds: ds.assign_coords(x=ds["x"] + 80), "same grid as the store .found another x"),
        (lambda ds: ds.assign_attrs(provenance='{"kernel": {"chip": 9}}'), "kernel chip: 9, in the store 32"),
        (lambda ds: ds.assign_attrs(title="another"), "title: another, in the store None"),
        (lambda ds: ds.assign(vx=ds["vx"].assign_attrs(units="meter/day")), "same attributes as the store .found vx"),
        (lambda ds: ds.chunk(mid_date=4), r"one block of the store .*batch=4, offset=2"),
        (lambda ds: ds.chunk(mid_date=(2, 4, 1), y=10), r"one block of the store"),
        (lambda ds: ds.drop_vars("image_id2"), "image_id2, which is missing"),
    ],
)  # fmt: skip
def test_what_does_not_continue_the_store_is_refused(path, change, message) -> None:
    before = contents(path)
    with pytest.raises(StoreError, match=message):
        append(change(velocity_of_pairs(OLD, ALL)), path)
    assert contents(path) == before
    assert coming(Books(storage_of(path))) is None


def test_only_finished_stores_of_pairs_are_extended(path, tmp_path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        append(velocity_of_pairs(OLD, ALL), tmp_path / "nothing.zarr")
    (path / "vx" / "c" / "0" / "0" / "1").unlink()
    og.verify(path, repair=True)
    with pytest.raises(StoreError, match="is not finished"):
        append(velocity_of_pairs(OLD, ALL), path)
    write(velocity_of_pairs(0, OLD), path)
    append(velocity_of_pairs(OLD, ALL), path)
    chunked = write(velocity_of_pairs(0, OLD).chunk(mid_date=4), tmp_path / "chunked.zarr")
    with pytest.raises(StoreError, match=r"was not written to grow .found vx_error"):
        append(velocity_of_pairs(OLD, ALL), chunked)


def test_the_job_that_wrote_the_store_is_refused_afterwards(path) -> None:
    append(velocity_of_pairs(OLD, ALL), path)
    before = contents(path)
    with pytest.raises(StoreError, match=r"was extended since.*ogive update"):
        write(velocity_of_pairs(0, OLD), path)
    assert contents(path) == before
    # All pairs with the attributes of the store are the same job: that is how lost blocks are computed again.
    (path / "vx" / "c" / "1" / "0" / "1").unlink()
    og.verify(path, repair=True)
    COMPUTED.clear()
    write(velocity_of_pairs(0, ALL).assign_attrs(og.open_velocity(path, partial=True).attrs), path)
    assert COMPUTED == [(1, 0, 1)]
    assert contents(path) == before


SEEN: list[tuple[int, float]] = []
"""What readers found while blocks were computed."""


def looking(block: np.ndarray, path: str) -> np.ndarray:
    plain = xr.open_zarr(path)
    SEEN.append((plain.sizes["mid_date"], float(plain["vx"].sum())))
    return block


def test_readers_find_the_old_pairs_until_the_end(path) -> None:
    SEEN.clear()
    velocity = velocity_of_pairs(OLD, ALL)
    data = velocity["vx"].data.map_blocks(looking, str(path), dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    before = float(xr.open_zarr(path)["vx"].sum())
    append(velocity.assign(vx=velocity["vx"].copy(data=data)), path, workers=2)
    assert len(SEEN) == 12
    assert set(SEEN) == {(OLD, before)}
    assert xr.open_zarr(path).sizes["mid_date"] == ALL


def broken(block: np.ndarray, block_info: Any = None) -> np.ndarray:
    if block_info[0]["chunk-location"] in ((0, 1, 0), (1, 1, 1)):
        raise OSError("no such tile")
    return block


def torn(velocity: xr.Dataset) -> xr.Dataset:
    """The same velocity, of which two blocks fail: one in a batch that has old pairs, one in a batch of its own."""
    data = velocity["vx"].data.map_blocks(broken, dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    return velocity.assign(vx=velocity["vx"].copy(data=data))


def test_blocks_that_fail_leave_the_store_as_it_was(path, whole) -> None:
    before = og.open_velocity(path).compute()
    with pytest.raises(StoreError, match=r"2 of 12 blocks failed .the store is as it was.*no such tile"):
        append(torn(velocity_of_pairs(OLD, ALL)), path)
    xr.testing.assert_identical(og.open_velocity(path).compute(), before)
    assert og.status(path) == {"blocks": 16, "done": 14, "failed": 2, "new": ALL - OLD}
    faults = og.verify(path)
    assert list(zip(faults["block"], faults["problem"], strict=True)) == [("1.1.0", "failed"), ("2.1.1", "failed")]
    with pytest.raises(StoreError, match="is being extended"):
        write(velocity_of_pairs(0, OLD), path)
    with pytest.raises(StoreError, match="append of other pairs was interrupted"):
        append(velocity_of_pairs(OLD, 10), path)
    COMPUTED.clear()
    append(velocity_of_pairs(OLD, ALL), path)
    assert len(COMPUTED) == 2
    assert objects(path) == objects(whole)


@pytest.mark.parametrize("how", ["repair", "other pairs"])
def test_an_interrupted_append_can_be_taken_back(path, how, tmp_path) -> None:
    before = og.open_velocity(path).compute()
    with pytest.raises(StoreError):
        append(torn(velocity_of_pairs(OLD, ALL)), path)
    if how == "repair":
        og.verify(path, repair=True)
        assert og.verify(path).empty
        assert og.status(path) == {"blocks": 8, "done": 8, "failed": 0}
        xr.testing.assert_identical(og.open_velocity(path).compute(), before)
        assert not any(key.startswith(("vx/c/2", "flag/c/3")) for key in storage_of(path).objects())
        COMPUTED.clear()
        write(velocity_of_pairs(0, OLD), path)
        assert COMPUTED == []
        append(velocity_of_pairs(OLD, 10), path)
    else:
        append(velocity_of_pairs(OLD, 10), path, overwrite=True)
    assert objects(path) == objects(write(velocity_of_pairs(0, 10), tmp_path / "ten.zarr"))


def test_a_damaged_block_is_found_before_it_is_extended(path) -> None:
    victim = path / "vx" / "c" / "1" / "0" / "1"
    victim.write_bytes(victim.read_bytes()[:-5])
    with pytest.raises(StoreError, match=r"block 1\.0\.1 cannot be extended .*another checksum"):
        append(velocity_of_pairs(OLD, ALL), path)
    faults = og.verify(path, repair=True)
    assert {"1.0.1"} == set(faults["block"])
    write(velocity_of_pairs(0, OLD), path)
    append(velocity_of_pairs(OLD, ALL), path)
    assert og.verify(path).empty


SCRIPT = """
import json, os, random, shutil, signal
import dask
import numpy as np
import xarray as xr
import ogive as og
from ogive import _storage
from ogive.testing.stores import contents, velocity_of_pairs

old, folder, OLD, ALL = {old!r}, {folder!r}, {first}, {last}
# Threads do not survive a fork.
dask.config.set(scheduler="synchronous")
new = velocity_of_pairs(OLD, ALL)
before = og.open_velocity(old).compute()
steps = [0]

def kill_at(number):
    # Every change of the store is one of these two; the process dies just before, or with half of a change done.
    for name in ("put", "delete"):
        real = getattr(_storage.Folder, name)
        def counted(self, *arguments, real=real):
            steps[0] += 1
            if steps[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, *arguments)
        setattr(_storage.Folder, name, counted)

def append(path, number):
    child = os.fork()
    if child == 0:
        kill_at(number)
        og.append(new, path, progress=False, workers=1)
        os.write(out, str(steps[0]).encode())
        os._exit(0)
    return os.waitpid(child, 0)[1]

def fresh():
    path = folder + "/v.zarr"
    for suffix in ("", ".ledger"):
        shutil.rmtree(path + suffix, ignore_errors=True)
        shutil.copytree(old + suffix, path + suffix)
    return path

back, out = os.pipe()
path = fresh()
assert append(path, 0) == 0
count = int(os.read(back, 100))
whole, after = contents(path), og.open_velocity(path).compute()
draw = random.Random(7)
# The last steps change what readers see: many of these; few of the blocks.
chosen = range(1, count + 1) if os.environ.get("OGIVE_LONG") else sorted(
    {{1, 2, 3, 4, count, count - 1, count - 2, count - 3, count - 5, *draw.sample(range(5, count), 5)}})
sizes = []
for number in chosen:
    path = fresh()
    assert append(path, number) == signal.SIGKILL, number
    # Plain readers and ours find the old or the new pairs, and whole ones.
    sizes.append(xr.open_zarr(path).sizes["mid_date"])
    for opened in (og.open_velocity(path), xr.open_zarr(path)):
        np.testing.assert_array_equal(opened["vx"].values, (before if sizes[-1] == OLD else after)["vx"].values)
        names = (before if sizes[-1] == OLD else after)["image_id1"].values.tolist()
        assert opened["image_id1"].values.tolist() == names, number
    faults = og.verify(path)
    assert set(faults["problem"]) <= {{"not done"}}, (number, faults)
    if number % 2:
        child = append(path, draw.randint(1, count))  # once more
    og.append(new, path, progress=False)
    assert contents(path) == whole, number
    assert og.verify(path).empty
    assert not any(name.startswith("next") for name in os.listdir(path + ".ledger"))
print(json.dumps([count, sizes]))
"""


def test_killed_at_any_step_it_is_the_old_or_the_new_store_and_goes_on(old, tmp_path) -> None:
    script = SCRIPT.format(old=str(old), folder=str(tmp_path), first=OLD, last=ALL)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=540, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(og.__file__).parents[1])}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    count, sizes = json.loads(done.stdout)
    assert count > 50
    assert set(sizes) == {OLD, ALL}
    assert sizes == sorted(sizes)


def test_it_is_the_same_in_a_bucket(whole, monkeypatch) -> None:
    monkeypatch.setattr(_lock, "BEAT", 0.2)
    with bucket_server() as bucket:
        url = f"{bucket}/append/v.zarr"
        write(velocity_of_pairs(0, OLD), url)
        with pytest.raises(StoreError, match="blocks failed"):
            append(torn(velocity_of_pairs(OLD, ALL)), url)
        assert og.open_velocity(url).sizes["mid_date"] == OLD
        append(velocity_of_pairs(OLD, ALL), url)
        assert objects(url) == objects(whole)
        assert og.verify(url).empty


def test_new_pairs_of_a_cube_fill_the_last_batch(moving, tmp_path) -> None:
    """The way of a script: track the new pairs with the offset that the store asks for."""
    cube, _ = moving(dates=("2021-07-01", "2021-07-11", "2021-07-21", "2021-07-31"))
    pairs = og.make_pairs(cube)
    kernel = og.NCC(chip=16, search=4, step=8)
    late = (pairs["i2"] == 3).to_numpy()
    first, more = pairs[~late].reset_index(drop=True), pairs[late].reset_index(drop=True)
    path = write(og.track(cube, first, kernel, batch=2), tmp_path / "v.zarr")
    with pytest.raises(StoreError, match=r"track.*batch=2, offset=1"):
        append(og.track(cube, more, kernel, batch=2), path)
    append(og.track(cube, more, kernel, batch=2, offset=1), path)
    ordered = og.track(cube, pd.concat([first, more], ignore_index=True), kernel, batch=2)
    opened = og.open_velocity(path)
    xr.testing.assert_identical(
        opened.drop_vars("pair_id").drop_attrs().compute(), ordered.drop_vars("pair_id").drop_attrs().compute()
    )
    assert np.isfinite(opened["vx"].values).any()
    said = json.loads(opened.attrs["provenance"])
    assert said["items"] == [str(i) for i in cube["scene_id"].values]
    assert said["appended"][0]["until"].startswith("2021-07-31")
    with pytest.raises(ParameterError, match=r"offset: must lie in 0 \.\.\. 1"):
        og.track(cube, more, kernel, batch=2, offset=2)
    assert store.fingerprint(opened) != store.fingerprint(ordered)
