"""What the chaos suite once found in stores, as single cases."""

from pathlib import Path
from typing import Any

import pytest

import ogive as og
from ogive._ledger import TEMPLATE, Books, Plan
from ogive._storage import storage_of
from ogive._tasks import BlockGrid, run_block
from ogive._template import being_written
from ogive.errors import StoreError
from ogive.testing.stores import COMPUTED, contents, lazy_velocity


@pytest.fixture
def path(tmp_path: Path) -> Path:
    og.write(lazy_velocity(), tmp_path / "v.zarr", progress=False)
    COMPUTED.clear()
    return tmp_path / "v.zarr"


def test_a_driver_that_died_before_its_last_line_is_followed(path: Path) -> None:
    """All blocks are there and the root does not say so yet."""
    before = contents(path)
    (path / "zarr.json").write_bytes(being_written((path / "zarr.json").read_bytes()))
    with pytest.raises(StoreError, match="is not finished"):
        og.open_velocity(path)
    og.write(lazy_velocity(), path, progress=False)
    assert COMPUTED == []
    assert contents(path) == before


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"PK")])
def test_nothing_is_computed_for_a_store_that_cannot_be_completed(damage: Any, path: Path) -> None:
    before = contents(path)
    Books(storage_of(path)).drop_row("0.0.0")
    damage(path.with_name("v.zarr.ledger") / TEMPLATE)
    with pytest.raises(StoreError, match=r"template.zip: is damaged .*verify the store with repair=True"):
        og.write(lazy_velocity(), path, progress=False)
    assert COMPUTED == []
    og.verify(path, repair=True)
    og.write(lazy_velocity(), path, progress=False)
    assert contents(path) == before


def test_what_the_system_refuses_to_read_is_a_store_error(path: Path) -> None:
    row = path.with_name("v.zarr.ledger") / "0.0.0.json"
    row.unlink()
    row.symlink_to(row)
    for use in (og.status, og.verify):
        with pytest.raises(StoreError, match=r"0.0.0.json: cannot be read \(found .*symbolic links"):
            use(path)


def test_a_task_of_a_replaced_store_writes_nothing(path: Path) -> None:
    """The driver is gone, its task goes on."""
    old = lazy_velocity()
    plan = Books(storage_of(path)).plan()
    assert isinstance(plan, Plan)
    grid = BlockGrid(old)
    (_, arguments), *_ = grid.tasks()
    og.write(lazy_velocity(shape=(4, 40, 24)), path, overwrite=True, progress=False)
    before = contents(path)
    row = run_block(*arguments, path=str(path), job=plan.job, settings={})
    assert row["status"] == "unwritable"
    assert "was replaced by another job" in row["error"]
    assert contents(path) == before
