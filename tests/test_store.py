"""Stores: what is written comes back, whatever happens in between; nothing that is not ours is ever touched."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox

import ogive as og
from ogive import flags, grid, options, store
from ogive.errors import StoreError
from ogive.testing.readers import FakeReader
from ogive.testing.stores import COMPUTED, contents, lazy_velocity

SMALL = GeoBox((120, 136), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")
KERNEL = og.NCC(chip=16, search=2, step=8, refine="quadric")


READERS: list["Shared"] = []


class Shared(FakeReader):
    """A fake reader that stays one object, also where it is pickled on its way to a thread."""

    def __reduce__(self):
        return _shared, (READERS.index(self),)


def _shared(number: int) -> Shared:
    return READERS[number]


@pytest.fixture
def tracked(moving):
    """A lazy velocity of 12 blocks (2 batches x 2 x 3 tiles) and the reader that counts what it reads."""

    def make(**changes: Any):
        cube, reader = moving(grid=SMALL, vy=0.5, vx=-0.6, **changes)
        READERS.append(Shared(reader.pixels))
        for name in ("image", "mask"):
            cube[name].variable._data.array.reader = READERS[-1]
        return og.track(cube, og.make_pairs(cube), KERNEL, tile=8, batch=2), READERS[-1]

    yield make
    READERS.clear()


@pytest.fixture(autouse=True)
def _nothing_computed():
    COMPUTED.clear()


def write(ds: xr.Dataset, path: Path, **changes: Any) -> Path:
    with options.using(backoff=0.01):
        return og.write(ds, path, progress=False, **changes)


def chunks_of(path: Path, name: str) -> list[Path]:
    return sorted(p for p in (path / name / "c").rglob("*") if p.is_file())


def same(one: xr.Dataset, two: xr.Dataset) -> None:
    """Equal in values, types and coordinates; texts come back as whatever xarray reads texts as."""
    xr.testing.assert_identical(one.compute(), two.compute())
    for name in one.variables:
        assert one[name].dtype == two[name].dtype or two[name].dtype == object, name


# --- what is written comes back -------------------------------------------------------------------------------------


def test_a_velocity_comes_back_as_it_was(tracked, tmp_path) -> None:
    velocity, _ = tracked(holes=True)
    opened = og.open_velocity(write(velocity, tmp_path / "v.zarr"))
    assert 0.2 < np.isfinite(opened["vx"].values).mean() < 1
    assert opened["flag"].dtype == np.uint16
    assert opened["vx"].chunks == velocity["vx"].chunks
    assert opened["vx_error"].chunks is None
    assert set(opened.coords) == set(velocity.coords)
    expected = velocity.compute()
    for name in ("mid_date", "acquisition_date_img1", "acquisition_date_img2", "date_center", "y", "x", "pair_id"):
        np.testing.assert_array_equal(opened[name].values, expected[name].values)
        assert opened[name].dtype == expected[name].dtype
    for name in expected.data_vars:
        np.testing.assert_array_equal(opened[name].values, expected[name].values)
        assert opened[name].dtype == expected[name].dtype
        for key, value in expected[name].attrs.items():
            np.testing.assert_array_equal(opened[name].attrs[key], value)
    assert opened["image_id1"].values.tolist() == expected["image_id1"].values.tolist()
    assert opened.attrs == velocity.attrs
    assert opened["mapping"].attrs == velocity["mapping"].attrs
    assert grid.geobox_of(opened) == grid.geobox_of(velocity)


def test_times_are_exact_to_the_microsecond(tmp_path) -> None:
    ds = lazy_velocity()
    opened = og.open_velocity(write(ds, tmp_path / "v.zarr"))
    assert opened["mid_date"].dtype == "datetime64[ns]"
    assert str(opened["mid_date"].values[0]) == "2021-07-01T10:30:00.123456000"
    np.testing.assert_array_equal(opened["mid_date"].values, ds["mid_date"].values)
    raw = zarr.open_group(tmp_path / "v.zarr", mode="r")["mid_date"]
    assert raw.dtype == np.int64
    assert raw.attrs["units"] == "microseconds since 1970-01-01"


def test_any_zarr_reader_opens_it(tracked, tmp_path) -> None:
    velocity, _ = tracked()
    path = write(velocity, tmp_path / "v.zarr")
    plain = xr.open_zarr(path)
    assert np.isfinite(plain["vx"].values).any()
    for name in velocity.data_vars:
        np.testing.assert_array_equal(plain[name].values, velocity[name].values)
    assert plain["flag"].dtype == np.uint16
    assert plain.attrs["kind"] == "velocity"


def test_variables_without_one_of_the_dimensions_are_written_once(tmp_path) -> None:
    """As a series has them: (time, y, x) and (y, x)."""
    rng = np.random.default_rng(3)
    cube, plane = rng.normal(size=(6, 20, 30)).astype("f4"), rng.normal(size=(20, 30)).astype("f4")
    days = np.arange(12).astype("datetime64[D]").astype("datetime64[ns]")
    ds = xr.Dataset(
        {
            "vx": (("time", "y", "x"), da.from_array(cube, (3, 10, 10))),
            "kappa": (("y", "x"), da.from_array(plane, (10, 10))),
            "n_pairs": (("y", "x"), da.from_array((plane * 100).astype(np.int32), (10, 10))),
        },
        {
            "time": np.arange(6).astype("datetime64[D]").astype("datetime64[ns]"),
            "time_bnds": (("time", "bnds"), days.reshape(6, 2)),
            **grid.coordinates(GeoBox((20, 30), Affine(80, 0, 0, 0, -80, 0), "EPSG:32632")),
        },
        {"kind": "series", "schema_version": grid.SCHEMA_VERSION},
    )  # fmt: skip
    path = write(ds, tmp_path / "s.zarr")
    opened = og.open_velocity(path)
    same(opened.drop_attrs(), ds.drop_attrs())
    assert opened["vx"].chunks == ds["vx"].chunks
    rows = {row["block"]: sorted(row["objects"]) for row in store.ledger(path)}
    assert len(rows) == 12
    assert rows["0.1.2"] == ["kappa/c/1/2", "n_pairs/c/1/2", "vx/c/0/1/2"]
    assert rows["1.1.2"] == ["vx/c/1/1/2"]
    assert og.verify(path).empty


def test_lazy_coordinates_are_written_too(tmp_path) -> None:
    ds = lazy_velocity().assign_coords(sensor=("mid_date", da.from_array(np.arange(4), 2)))
    assert og.open_velocity(write(ds, tmp_path / "v.zarr"))["sensor"].values.tolist() == [0, 1, 2, 3]


def test_checksums_and_fill_values_are_really_on(tracked, tmp_path) -> None:
    velocity, _ = tracked()
    group = zarr.open_group(write(velocity, tmp_path / "v.zarr"), mode="r")
    seen = 0
    for name, array in group.arrays():
        metadata = json.dumps(array.metadata.to_dict(), default=str)
        if array.ndim:
            assert re.search(r'"zstd", "configuration": {"level": 3, "checksum": true}', metadata), name
            seen += 1
    assert seen > 20
    assert group["flag"].metadata.fill_value == flags.NOT_COMPUTED
    assert np.isnan(group["vx"].metadata.fill_value)
    assert group["interp_mask"].metadata.fill_value == 255


def test_blocks_without_a_single_match_are_stored(tmp_path) -> None:
    path = write(lazy_velocity(), tmp_path / "v.zarr")
    assert len(chunks_of(path, "vx")) == 8
    assert (path / "vx" / "c" / "0" / "0" / "0").exists()
    opened = og.open_velocity(path).isel(mid_date=slice(0, 2), y=slice(0, 20), x=slice(0, 24))
    assert np.isnan(opened["vx"].values).all()
    assert (opened["flag"].values == flags.NO_DATA).all()


def test_large_blocks_are_shards_of_small_chunks(tmp_path) -> None:
    path = write(lazy_velocity(shape=(2, 128, 64), chunks=(2, 64, 64)), tmp_path / "v.zarr")
    vx = zarr.open_group(path, mode="r")["vx"]
    assert vx.shards == (2, 64, 64)
    assert vx.chunks == (2, 32, 32)
    assert len(chunks_of(path, "vx")) == 2
    same(og.open_velocity(path).drop_attrs(), lazy_velocity(shape=(2, 128, 64), chunks=(2, 64, 64)).drop_attrs())


# --- done, not done, done again -------------------------------------------------------------------------------------


def test_the_same_call_again_computes_nothing(tracked, tmp_path) -> None:
    velocity, reader = tracked()
    path = write(velocity, tmp_path / "v.zarr")
    before, reads = contents(path), reader.count
    # Three scenes for the first batch of pairs, two for the second, once for all variables of a block.
    assert reads == 6 * (3 + 2)
    assert og.status(path) == {"blocks": 12, "done": 12, "failed": 0}
    write(velocity, path)
    assert reader.count == reads
    assert contents(path) == before


def test_unwritten_blocks_read_as_not_computed(tracked, tmp_path) -> None:
    velocity, _ = tracked()
    path = write(velocity, tmp_path / "v.zarr")
    for name in ("vx", "flag", "interp_mask"):
        (path / name / "c" / "0" / "0" / "1").unlink()
    assert xr.open_zarr(path).attrs["status"] == "complete"
    assert set(og.verify(path, repair=True)["block"]) == {"0.0.1"}
    assert xr.open_zarr(path).attrs["status"] == "being written"
    with pytest.raises(StoreError, match=r"is not finished \(found 11 of 12 blocks done, 0 failed\).*partial=True"):
        og.open_velocity(path)
    opened = og.open_velocity(path, partial=True)
    here = {"mid_date": slice(0, 2), "y": slice(0, 8), "x": slice(8, 16)}
    assert np.isnan(opened["vx"].isel(here).values).all()
    assert (opened["flag"].isel(here).values == flags.NOT_COMPUTED).all()
    assert (opened["interp_mask"].isel(here).values == 255).all()
    elsewhere = opened["flag"].values == flags.NOT_COMPUTED
    assert elsewhere.sum() == 2 * 8 * 8


def test_a_changed_job_is_refused_and_overwrite_replaces_it(tmp_path) -> None:
    path = write(lazy_velocity(), tmp_path / "v.zarr")
    before = contents(path)
    other = lazy_velocity(shape=(4, 40, 24))
    with pytest.raises(StoreError, match=r"holds the result of another job"):
        write(other, path)
    assert contents(path) == before
    write(other, path, overwrite=True)
    assert og.open_velocity(path).sizes["x"] == 24
    assert og.verify(path).empty
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.zarr", "v.zarr.ledger"]


@pytest.mark.parametrize(
    "change",
    [
        lambda ds: ds.assign_attrs(provenance='{"kernel": "other"}'),
        lambda ds: ds.assign(vx=ds["vx"].astype("f8")),
        lambda ds: ds.assign_coords(image_id1=("mid_date", np.array(list("abcd"), object))),
        lambda ds: ds.chunk(y=10),
        lambda ds: ds.assign(vy=ds["vx"]),
    ],
)
def test_the_fingerprint_sees_every_change_of_the_job(change) -> None:
    assert store.fingerprint(lazy_velocity()) == store.fingerprint(lazy_velocity())
    assert store.fingerprint(change(lazy_velocity())) != store.fingerprint(lazy_velocity())


def test_threads_do_not_change_a_byte_nor_a_setting(tracked, tmp_path) -> None:
    velocity, _ = tracked(holes=True)
    before = dask.config.get("scheduler", None), options.current()
    one = contents(write(velocity, tmp_path / "1.zarr", workers=1))
    for workers in (2, 4):
        assert contents(write(velocity, tmp_path / f"{workers}.zarr", workers=workers)) == one
    assert (dask.config.get("scheduler", None), options.current()) == before


# --- interrupted ----------------------------------------------------------------------------------------------------

SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
import ogive as og
sys.path.insert(0, {tests!r})
from conftest import make_item
from ogive.testing.readers import FakeReader
from ogive.testing.stores import COMPUTED, contents, lazy_velocity

def pixels(scene, y, x):
    time.sleep(0.002)  # blocks long enough to be hit in the middle
    return 3000 + 400 * np.cos(0.021 * y + 0.043 * x) + 300 * np.cos(0.061 * y - 0.017 * x)

grid = GeoBox((240, 264), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")
items = [make_item(k, d, grid) for k, d in enumerate(["2021-07-01", "2021-07-11", "2021-07-21"])]
cube = og.open_cube(items, "nir", loader=FakeReader(pixels))
velocity = og.track(cube, og.make_pairs(cube), og.NCC(chip=16, search=2, step=8), tile=8, batch=2)
velocity.isel(mid_date=[0], y=slice(0, 1), x=slice(0, 1)).compute(scheduler="synchronous")

def write(path, kill_at=None):
    # A fork has everything imported, so that what a kill hits is the writing.
    child = os.fork()
    if child == 0:
        og.write(velocity, path, progress=False, workers=2)
        os._exit(0)
    if kill_at is not None:
        # By what is done, not by the clock: a busy machine may take any time. Then somewhere within the next block.
        while len(rows(path)) < kill_at:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

def rows(path):
    return {{p.name: p.stat().st_mtime_ns for p in Path(path + ".ledger").glob("[0-9]*.json")}}

assert write({whole!r}) == 0
draw, path, kills, history = random.Random(11), {killed!r}, 0, []
while kills < 5:
    before = rows(path)
    status = write(path, len(before) + draw.randint(1, 5))
    after = rows(path)
    history.append([len(before), len(after), all(after.get(k) == v for k, v in before.items()), status])
    kills += 1
    if status == 0:
        break
before = rows(path)
assert write(path) == 0
after = rows(path)
history.append([len(before), len(after), all(after.get(k) == v for k, v in before.items()), 0])
print(json.dumps(history))
"""


def test_a_store_killed_five_times_ends_byte_identical(tmp_path) -> None:
    whole, killed = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    script = SCRIPT.format(tests=str(Path(__file__).parent), whole=str(whole), killed=str(killed))
    source = str(Path(og.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": source}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    history = json.loads(done.stdout)
    assert any(0 < after < 40 for _, after, _, _ in history), history
    assert sum(status == signal.SIGKILL for *_, status in history) >= 2, history
    # A row that was there is never written again: what was done was not computed twice.
    assert all(kept for _, _, kept, _ in history), history
    assert history[-1][1] == 40
    faults = og.verify(killed, repair=True)
    assert set(faults["problem"]) <= {"leftover file"}
    assert contents(killed) == contents(whole)
    assert og.verify(killed).empty


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as Python starts with it; what ran before in this process may have taken the signal for itself."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_a_store_that_goes_on(tracked, tmp_path) -> None:
    velocity, reader = tracked()
    pixels, lock, armed = reader.pixels, threading.Lock(), [True]

    def interrupting(scene, y, x):
        with lock:
            if armed[0] and reader.count > 15:
                armed[0] = False
                os.kill(os.getpid(), signal.SIGINT)
        return pixels(scene, y, x)

    reader.pixels = interrupting
    path = tmp_path / "v.zarr"
    with pytest.raises(KeyboardInterrupt):
        write(velocity, path, workers=2)
    done = og.status(path)["done"]
    assert 0 < done < 12
    assert np.isfinite(og.open_velocity(path, partial=True)["vx"].values).any()
    rows = {p: p.stat().st_mtime_ns for p in path.with_name("v.zarr.ledger").glob("[0-9]*.json")}
    write(velocity, path, workers=2)
    assert {p: p.stat().st_mtime_ns for p in rows} == rows
    assert contents(path) == contents(write(velocity, tmp_path / "whole.zarr"))


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_scene_that_always_fails_is_named_and_nothing_is_left(tracked, tmp_path) -> None:
    velocity, reader = tracked()
    scenes = {name for k in "12" for name in velocity[f"image_id{k}"].values}
    assert len(scenes) == 3
    reader.fail = {scene: OSError("disk on fire") for scene in scenes}
    with pytest.raises(StoreError) as caught:
        write(velocity, tmp_path / "v.zarr")
    message = str(caught.value)
    assert "12 of 12 blocks failed (nothing was written)" in message
    scene = re.search(r"scene (\S+):", message)[1]
    assert scene in scenes
    assert f"{scene}_nir.tif" in message
    assert re.search(r"window \d+ x \d+ px at x \d+-\d+, y \d+-\d+", message)
    assert "disk on fire" in message
    assert list(tmp_path.iterdir()) == []


def test_a_scene_that_fails_in_places_leaves_the_rest_and_the_same_line_finishes(tracked, tmp_path) -> None:
    velocity, reader = tracked()
    path, bad = tmp_path / "v.zarr", str(velocity["image_id2"].values[-1])
    pixels = reader.pixels

    def torn(scene, y, x):
        if scene == bad and x.max() > 601000:
            raise OSError("no such tile")
        return pixels(scene, y, x)

    reader.pixels = torn
    with pytest.raises(StoreError, match="run the same line to try again") as caught:
        write(velocity, path)
    assert bad in str(caught.value)
    counts = og.status(path)
    assert counts["blocks"] == 12
    assert counts["done"] > 0
    assert counts["failed"] == 12 - counts["done"] > 0
    failed = [row for row in store.ledger(path) if row["status"] == "failed"]
    assert all(bad in row["error"] and "no such tile" in row["error"] for row in failed)
    assert set(og.verify(path)["problem"]) == {"failed"}
    reader.pixels = pixels
    reads = reader.count
    write(velocity, path)
    assert 0 < reader.count - reads <= 3 * len(failed)
    assert og.status(path) == {"blocks": 12, "done": 12, "failed": 0}
    assert contents(path) == contents(write(velocity, tmp_path / "whole.zarr"))


def test_progress_is_shown_on_the_terminal(tmp_path, capsys) -> None:
    og.write(lazy_velocity(), tmp_path / "v.zarr")
    assert "8/8" in capsys.readouterr().out


def test_texts_come_back_as_they_were_and_are_part_of_the_fingerprint(tmp_path, moving) -> None:
    cube, _ = moving()
    velocity = og.track(cube, og.make_pairs(cube), og.NCC(chip=16, search=4, step=8))
    opened = og.open_velocity(og.write(velocity, tmp_path / "a.zarr", progress=False))
    assert opened["image_id1"].dtype == object
    assert opened["image_id1"].values.tolist() == velocity["image_id1"].values.tolist()
    other = opened.assign_coords(image_id1=("mid_date", np.array(["S2A_another_scene_of_the_same_length"] * 3, object)))
    assert store.fingerprint(other) != store.fingerprint(opened)
    assert store.fingerprint(opened.copy(deep=True)) == store.fingerprint(opened)
