"""The books of a store: refusals, faults found and mended, per-pair variables added; and the page that explains it."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import ogive as og
from ogive.errors import StoreError
from ogive.testing.stores import COMPUTED, contents, lazy_velocity


@pytest.fixture(autouse=True)
def _nothing_computed() -> None:
    COMPUTED.clear()


def write(ds: xr.Dataset, path: Path, **changes: Any) -> Path:
    return og.write(ds, path, progress=False, **changes)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "folder", "empty folder", "zarr", "array"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_never_touched(kind, overwrite, tmp_path) -> None:
    path = tmp_path / "v.zarr"
    if kind == "file":
        path.write_text("mine")
    elif kind.endswith("folder"):
        path.mkdir()
        if kind == "folder":
            (path / "photo.jpg").write_text("mine")
    elif kind == "zarr":
        xr.Dataset({"a": ("x", np.arange(3))}).to_zarr(path, consolidated=False)
    else:
        zarr.save_array(path, np.arange(3))
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(StoreError, match=r"is not an ogive store.*never touches what it did not write"):
        write(lazy_velocity(), path, overwrite=overwrite)
    for use in (og.open_velocity, og.status, og.verify):
        with pytest.raises(StoreError, match="is not an ogive store"):
            use(path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files
    assert path.exists()


def test_a_folder_that_only_looks_like_a_ledger_is_not_removed(tmp_path) -> None:
    photo = tmp_path / "v.zarr.ledger" / "photo.jpg"
    photo.parent.mkdir()
    photo.write_text("mine")
    with pytest.raises(StoreError, match=r"v.zarr.ledger: must be free for the ledger"):
        write(lazy_velocity(), tmp_path / "v.zarr")
    assert photo.read_text() == "mine"
    assert not (tmp_path / "v.zarr").exists()


def test_a_newer_schema_is_refused(tmp_path) -> None:
    path = write(lazy_velocity(), tmp_path / "v.zarr")
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"]["schema_version"] = 99
    (path / "zarr.json").write_text(json.dumps(metadata))
    for use in (og.open_velocity, lambda p: write(lazy_velocity(), p), og.status):
        with pytest.raises(StoreError, match=r"written by a newer ogive .* \(found 99\). Fix: update ogive"):
            use(path)


def test_a_missing_folder_or_store_or_ledger_is_named(tmp_path) -> None:
    with pytest.raises(StoreError, match=r"its folder must exist.*mkdir -p"):
        write(lazy_velocity(), tmp_path / "nowhere" / "v.zarr")
    assert list(tmp_path.iterdir()) == []
    for use in (og.open_velocity, og.status, og.verify):
        with pytest.raises(StoreError, match="does not exist"):
            use(tmp_path / "v.zarr")
    path = write(lazy_velocity(), tmp_path / "v.zarr")
    shutil.rmtree(tmp_path / "v.zarr.ledger")
    for use in (og.open_velocity, og.status, og.verify, lambda p: write(lazy_velocity(), p)):
        with pytest.raises(StoreError, match=r"its ledger is missing.*together with the store"):
            use(path)


def test_data_that_cannot_be_cut_into_blocks_are_refused(tmp_path) -> None:
    ds, path = lazy_velocity(), tmp_path / "v.zarr"
    with pytest.raises(StoreError, match="must be lazy, its Dask chunks are the blocks"):
        write(ds.compute(), path)
    with pytest.raises(StoreError, match="needs even chunks along 'y'"):
        write(ds.chunk(y=(10, 20, 10)), path)
    with pytest.raises(StoreError, match="same chunks along 'x' as the others"):
        write(ds.assign(vx=ds["vx"].chunk(x=12)), path)
    assert list(tmp_path.iterdir()) == []


# --- verify and repair ----------------------------------------------------------------------------------------------


def break_chunk(path: Path) -> None:
    (path / "vx" / "c" / "1" / "0" / "1").unlink()


def tear_chunk(path: Path) -> None:
    chunk = path / "flag" / "c" / "1" / "0" / "1"
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])


def swap_chunk(path: Path) -> None:
    shutil.copy(path / "vx" / "c" / "1" / "1" / "1", path / "vx" / "c" / "1" / "0" / "1")


def lose_row(path: Path) -> None:
    (path.with_name(path.name + ".ledger") / "1.0.1.json").unlink()


def garble_row(path: Path) -> None:
    (path.with_name(path.name + ".ledger") / "1.0.1.json").write_text('{"block": "1.0')


@pytest.mark.parametrize(
    ("fault", "variable", "problem"),
    [
        (break_chunk, "vx", "missing"),
        (tear_chunk, "flag", "checksum"),
        (swap_chunk, "vx", "checksum"),
        (lose_row, "", "not done"),
        (garble_row, "", "not done"),
    ],
)
def test_verify_finds_a_fault_and_repair_leads_back_to_the_same_bytes(fault, variable, problem, tmp_path) -> None:
    path = write(lazy_velocity(), tmp_path / "v.zarr")
    before = contents(path)
    assert og.verify(path).empty
    fault(path)
    faults = og.verify(path, repair=True)
    assert faults.to_dict("records") == [{"block": "1.0.1", "variable": variable, "problem": problem}]
    assert og.status(path)["done"] == 7
    COMPUTED.clear()
    write(lazy_velocity(), path)
    assert COMPUTED == [(1, 0, 1)]
    assert contents(path) == before
    assert og.verify(path).empty


def test_verify_lists_leftovers_and_repair_takes_them_away(tmp_path) -> None:
    path = write(lazy_velocity(), tmp_path / "v.zarr")
    before = contents(path)
    left = [path / "vx" / "c" / "0" / "0" / "1.abc.partial", tmp_path / "v.zarr.ledger" / "0.0.0.json.17.partial"]
    for p in left:
        p.write_bytes(b"half")
    assert og.verify(path)["problem"].tolist() == ["leftover file"] * 2
    assert og.verify(path, repair=True)["variable"].tolist() == [
        "vx/c/0/0/1.abc.partial",
        "ledger/0.0.0.json.17.partial",
    ]
    assert og.verify(path).empty
    assert contents(path) == before
    assert not any(p.exists() for p in left)


def test_every_single_flipped_bit_is_found_and_mended(tmp_path) -> None:
    """In blocks, coordinates, metadata, rows, plan and template; only bad blocks are computed again."""
    ds = lazy_velocity(shape=(2, 16, 64), chunks=(2, 16, 32))
    path = write(ds, tmp_path / "v.zarr")
    books = tmp_path / "v.zarr.ledger"
    before, draw = contents(path), random.Random(5)
    files = sorted(p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size > 0)
    whole = {p: p.read_bytes() for p in files}
    names = {str(p.relative_to(tmp_path)) for p in files}
    assert names >= {
        f"v.zarr/{n}" for n in ("vx/c/0/0/1", "vx/zarr.json", "mid_date/c/0", "image_id1/c/0", "zarr.json")
    }
    assert names >= {f"v.zarr.ledger/{n}" for n in ("plan.json", "template.zip", "0.0.0.json", "0.0.1.json")}
    for k in range(120):
        file = files[k % len(files)]
        byte, bit = draw.randrange(len(whole[file])), draw.randrange(8)
        file.write_bytes(whole[file][:byte] + bytes([whole[file][byte] ^ 1 << bit]) + whole[file][byte + 1 :])
        faults = og.verify(path)
        assert len(faults) == 1, (file, byte, bit)
        og.verify(path, repair=True)
        blocks = {(0, 0, int(b[-1])) for b in faults["block"] if b}
        COMPUTED.clear()
        write(ds, path)
        assert set(COMPUTED) == blocks
        assert og.verify(path).empty
        assert contents(path) == before
        if file.parent == books and file.name in ("plan.json", "template.zip"):
            assert file.read_bytes() == whole[file]


def test_the_page_on_stores_shows_code_that_runs(tmp_path, monkeypatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "stores.md").read_text()
    (snippet,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "xr.open_zarr" in code]
    write(lazy_velocity(), tmp_path / "mdg.zarr")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["measured"].notnull().values.mean() == 0.875
    assert names["why"] == ["no_data_or_masked"]
