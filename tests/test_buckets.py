"""Stores in a bucket: the same bytes as in a folder, one writer, and nothing secret anywhere."""

import json
import logging
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr

import ogive as og
from ogive import _lock
from ogive._storage import storage_of
from ogive.errors import StoreError
from ogive.testing.buckets import bucket_server
from ogive.testing.stores import COMPUTED, contents, lazy_velocity


@pytest.fixture(scope="module")
def bucket():
    with bucket_server() as url:
        yield url


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    COMPUTED.clear()
    monkeypatch.setattr(_lock, "BEAT", 0.2)


def write(path, ds=None, **how):
    return og.write(lazy_velocity() if ds is None else ds, path, progress=False, **how)


def test_a_bucket_holds_the_same_bytes_as_a_folder(bucket, tmp_path) -> None:
    url = f"{bucket}/a/v.zarr"
    assert write(url) == url
    assert contents(url) == contents(write(tmp_path / "v.zarr"))
    assert og.status(url) == {"blocks": 8, "done": 8, "failed": 0}
    assert og.verify(url).empty
    xr.testing.assert_identical(og.open_velocity(url).compute(), og.open_velocity(tmp_path / "v.zarr").compute())
    COMPUTED.clear()
    write(url)
    assert COMPUTED == []


def test_any_reader_opens_it(bucket) -> None:
    url = f"{bucket}/plain/v.zarr"
    write(url)
    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    plain = xr.open_zarr(url, storage_options=options)
    assert plain.attrs["status"] == "complete"
    np.testing.assert_array_equal(plain["vx"].values, lazy_velocity()["vx"].values)


def test_damage_is_found_and_mended(bucket) -> None:
    url = f"{bucket}/damaged/v.zarr"
    write(url)
    before, target = contents(url), storage_of(url)
    target.delete("vx/c/1/0/1")
    target.put("flag/c/0/1/0", target.get("flag/c/0/1/0")[:-3])
    target.put("y/zarr.json", b"{}")
    faults = og.verify(url, repair=True)
    assert sorted(faults["block"]) == ["", "0.1.0", "1.0.1"]
    with pytest.raises(StoreError, match="is not finished"):
        og.open_velocity(url)
    COMPUTED.clear()
    write(url)
    assert sorted(COMPUTED) == [(0, 1, 0), (1, 0, 1)]
    assert contents(url) == before


def test_overwrite_leaves_nothing_of_the_old_store(bucket) -> None:
    url = f"{bucket}/other/v.zarr"
    write(url)
    small = lazy_velocity(shape=(4, 40, 24))
    with pytest.raises(StoreError, match="holds the result of another job"):
        write(url, small)
    write(url, small, overwrite=True)
    assert og.open_velocity(url).sizes["x"] == 24
    assert not any(key.startswith("vx/c/0/0/1") for key in storage_of(url).objects())


def test_what_is_not_ours_is_never_touched(bucket) -> None:
    url = f"{bucket}/foreign/v.zarr"
    storage_of(url).put("photo.jpg", b"mine")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="is not an ogive store"):
            write(url, overwrite=overwrite)
    assert storage_of(url).objects() == ["photo.jpg"]


RUN = """
import sys, time
from ogive import _lock
from ogive.testing.stores import lazy_velocity
import ogive as og
_lock.BEAT = 0.2
ds = lazy_velocity()
def slow(block):
    time.sleep(float(sys.argv[2]))
    return block
ds["vx"] = ds["vx"].copy(data=ds["vx"].data.map_blocks(slow, dtype="f4"))
print("go", flush=True)
og.write(ds, sys.argv[1], progress=False, workers=1)
"""


def started(url, pause):
    run = subprocess.Popen([sys.executable, "-c", RUN, url, str(pause)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "go\n"
    while not storage_of(url + ".lock").objects():
        assert run.poll() is None
        time.sleep(0.05)
    return run


def test_a_second_writer_is_refused_and_a_dead_one_is_followed(bucket) -> None:
    url = f"{bucket}/two/v.zarr"
    run = started(url, 0.5)
    try:
        with pytest.raises(StoreError, match=r"is being written by another run \(found process \d+ on .*wait for it"):
            write(url)
    finally:
        run.kill()
        run.wait()
        run.stdout.close()
    assert storage_of(url + ".lock").objects() == ["writer.json"]
    other = json.loads(storage_of(url + ".lock").get("writer.json")) | {"host": "elsewhere"}
    # A machine that cannot be asked is given time for a sign of life.
    storage_of(url + ".lock").put("writer.json", json.dumps(other).encode())
    start = time.monotonic()
    write(url)
    assert time.monotonic() - start >= _lock.BEAT * _lock.PATIENCE
    assert storage_of(url + ".lock").objects() == []
    assert og.verify(url).empty


def test_a_writer_that_lost_its_lock_stops(bucket) -> None:
    url = f"{bucket}/lost/v.zarr"
    ds = lazy_velocity()

    def robbed(block):
        storage_of(url + ".lock").put("writer.json", b'{"run": "another"}')
        time.sleep(0.6)
        return block

    ds["vx"] = ds["vx"].copy(data=ds["vx"].data.map_blocks(robbed, dtype="f4", meta=np.empty((0, 0, 0), "f4")))
    with pytest.raises(StoreError, match="another run has taken over"):
        write(url, ds, workers=1)
    assert og.status(url)["done"] < 8
    storage_of(url + ".lock").clear()


def test_wrong_addresses_and_refusals_are_one_clear_error(bucket, monkeypatch) -> None:
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/.*cannot be"):
        write("s3://no-such-bucket/v.zarr")
    with pytest.raises(StoreError, match="must be the address of a bucket"):
        write("nonsense://x/v.zarr")


def test_no_secret_is_written_or_logged(bucket, tmp_path, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    url = f"{bucket}/secret/v.zarr"
    write(url)
    with pytest.raises(StoreError) as caught:
        write("s3://no-such-bucket/v.zarr")
    target = storage_of(url)
    blobs = [s.get(k) for s in (target, target.beside(".ledger")) for k in s.objects()]
    assert len(blobs) > 20
    assert not any(secret.encode() in blob for blob in blobs)
    assert secret not in caplog.text + str(caught.value)
