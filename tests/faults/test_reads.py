"""Scenes that cannot be read: what their pairs get, and who is told. Archives that fail: test_rows.py."""

import logging
import pickle

import dask
import numpy as np
import pytest

import ogive as og
from ogive import _read, flags
from ogive._read import noting
from ogive.errors import ParameterError, ReadError
from ogive.testing.chaos import archive

KERNEL = archive.KERNEL
DATES = ("2021-07-01", "2021-07-11", "2021-07-21", "2021-07-31")


def lost(scene: str, permanent: bool = True) -> ReadError:
    return ReadError(f"scene {scene}", rule="gone", scene=scene, url=f"{scene}.tif", window="w", permanent=permanent)


@pytest.fixture
def broken(moving, monkeypatch):
    """A cube of four scenes whose second cannot be read."""
    monkeypatch.setattr(_read, "_warned", set())
    cube, _ = moving(DATES)
    scene = str(cube["scene_id"].values[1])

    def make(permanent: bool = True):
        error = lost(scene, permanent)
        # What `read` raises: the tests of reading show when it is permanent.
        monkeypatch.setattr(
            "ogive.cube.read",
            lambda r, asset, *rest: _raise(error) if asset.scene == scene else r.read(asset, *rest[:2]),
        )
        return cube, scene

    return make


def _raise(error: Exception) -> None:
    raise error


def test_unreadable_pairs_are_flagged_noted_and_warned_of_once(broken, moving, caplog) -> None:
    cube, scene = broken()
    pairs = og.make_pairs(cube)
    lazy = og.track(cube, pairs, KERNEL, tile=16, batch=4)
    with noting() as notes, caplog.at_level(logging.WARNING, "ogive"):
        found = lazy.compute(scheduler="synchronous")
    of_bad = np.array([scene in (a, b) for a, b in zip(found["image_id1"].values, found["image_id2"].values)])
    assert 0 < of_bad.sum() < len(pairs)
    unreadable = flags.has(found["flag"].values, flags.UNREADABLE)
    assert (unreadable == of_bad[:, None, None]).all()
    assert np.isnan(found["vx"].values[of_bad]).all()
    assert (found["chip_size_width"].values[of_bad] == 0).all()
    assert flags.invalid(found["flag"].values[of_bad]).all()
    assert "scene unreadable" in og.why(found, *(float(found[c][5]) for c in ("x", "y")))
    assert notes
    assert all((n["scene"], n["url"], n["window"]) == (scene, f"{scene}.tif", "w") for n in notes)
    warned = [r.getMessage() for r in caplog.records if "unreadable" in r.getMessage()]
    assert len(warned) == 1
    assert scene in warned[0]


def test_pairs_of_other_scenes_are_bit_for_bit_those_of_a_whole_archive(broken, moving) -> None:
    whole_cube, _ = moving(DATES)
    whole = og.track(whole_cube, og.make_pairs(whole_cube), KERNEL, tile=16).compute(scheduler="synchronous")
    cube, scene = broken()
    found = og.track(cube, og.make_pairs(cube), KERNEL, tile=16).compute(scheduler="synchronous")
    good = (found["image_id1"].values != scene) & (found["image_id2"].values != scene)
    for name, values in found.data_vars.items():
        assert values.values[good].tobytes() == whole[name].values[good].tobytes(), name


def test_a_stack_with_an_unreadable_scene_is_flagged_as_a_whole(broken) -> None:
    cube, _ = broken()
    pairs = og.make_pairs(cube)
    bad = [k for k in range(len(pairs)) if 1 in (pairs["i1"].iloc[k], pairs["i2"].iloc[k])]
    good = [k for k in range(len(pairs)) if k not in bad]
    found = og.track(cube, pairs, KERNEL, stack=[[good[0], bad[0]], good]).compute(scheduler="synchronous")
    assert flags.has(found["flag"].values, flags.UNREADABLE).all((1, 2)).tolist() == [True, False]
    assert np.isfinite(found["vx"].values[1]).any()


@pytest.mark.parametrize(("permanent", "unreadable"), [(True, "fail"), (False, "flag"), (False, "fail")])
def test_a_fault_that_may_pass_and_a_strict_run_fail(broken, permanent, unreadable) -> None:
    cube, scene = broken(permanent)
    lazy = og.track(cube, og.make_pairs(cube), KERNEL, unreadable=unreadable)
    with noting() as notes, pytest.raises(ReadError, match=scene) as caught:
        dask.compute(lazy["vx"], scheduler="synchronous")
    assert notes == []
    assert pickle.loads(pickle.dumps(caught.value)).permanent == permanent


def test_only_two_ways_are_known(moving) -> None:
    cube, _ = moving()
    with pytest.raises(ParameterError, match="unreadable"):
        og.track(cube, og.make_pairs(cube), KERNEL, unreadable="ignore")
