"""Clusters: other versions are refused before the first task, and a store does not show where it was computed."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dask.array as da
import distributed
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import ogive as og
from ogive import cluster, options, store
from ogive.errors import ClusterError, ParameterError, StoreError
from ogive.testing.stores import contents

SMALL = GeoBox((120, 136), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")
QUIET = {"silence_logs": 50}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two worker processes for all tests of this file."""
    with cluster.connect("local", workers=2, timeout=60, **QUIET) as client:
        yield client


class FakeClient:
    """What `check_workers` needs of a client, and workers whose packages are as the test says."""

    def __init__(self, **packages: Any) -> None:
        self.packages = packages

    def run(self, function: Any, name: str, on_error: str = "raise") -> dict[str, Any]:
        assert function is version
        assert on_error == "return"
        return {"tcp://10.0.0.1:1": version(name), "tcp://10.0.0.2:2": self.packages.get(name, version(name))}


def test_a_local_cluster_starts_checked_and_stops_with_its_client() -> None:
    with cluster.connect("local", workers=1, threads=2, timeout=60, processes=False, **QUIET) as client:
        assert sum(client.nthreads().values()) == 2
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3
        started = client.cluster
    assert started.status == distributed.core.Status.closed


def test_same_versions_pass(client) -> None:
    cluster.check_workers(client)
    cluster.check_workers(FakeClient())


def test_another_version_on_one_worker_is_named() -> None:
    with pytest.raises(ClusterError) as caught:
        cluster.check_workers(FakeClient(numpy="1.0.0"))
    assert str(caught.value) == (
        f"package numpy: must have the same version on client and workers (found {version('numpy')} here, '1.0.0' on "
        "tcp://10.0.0.2:2). Fix: use one environment or image for both"
    )


def test_a_missing_package_on_a_worker_is_named() -> None:
    with pytest.raises(ClusterError, match=r"package numba: .*PackageNotFoundError\('numba'\) on tcp://10.0.0.2:2"):
        cluster.check_workers(FakeClient(numba=PackageNotFoundError("numba")))


def test_real_workers_with_another_version_are_refused(client) -> None:
    def forge() -> None:
        import importlib.metadata as metadata

        metadata.true = metadata.version
        metadata.version = lambda name: "0.0.1" if name == "zarr" else metadata.true(name)

    def mend() -> None:
        import importlib.metadata as metadata

        metadata.version = metadata.true

    worker = sorted(client.nthreads())[1]
    client.run(forge, workers=[worker])
    message = rf"package zarr: .*found {version('zarr')} here, '0.0.1' on {worker}"
    with pytest.raises(ClusterError, match=message):
        cluster.check_workers(client)
    with pytest.raises(ClusterError, match=message):
        cluster.connect(client.scheduler.address, timeout=30)
    client.run(mend, workers=[worker])
    cluster.check_workers(client)


def test_an_existing_scheduler_is_used(client) -> None:
    with cluster.connect(client.scheduler.address, workers=2, timeout=30) as second:
        assert second.scheduler.address == client.scheduler.address
        assert len(second.nthreads()) == 2


def test_a_scheduler_without_enough_workers_is_refused(client) -> None:
    with pytest.raises(
        ClusterError, match=r"cluster: must have 9 workers within 1 s. Fix: look at the scheduler's log"
    ):
        cluster.connect(client.scheduler.address, workers=9, timeout=1)


def test_an_address_where_nobody_answers_is_named() -> None:
    with pytest.raises(ClusterError, match=r"scheduler tcp://127.0.0.1:1: must answer within 1 s \(found .*\). Fix"):
        cluster.connect("tcp://127.0.0.1:1", timeout=1)
    with pytest.raises(ClusterError, match="scheduler nonsense://x: must answer"):
        cluster.connect("nonsense://x", timeout=1)
    with pytest.raises(
        ParameterError, match=r"cluster: must be 'local', 'gateway' or a scheduler address \(found 'moon'"
    ):
        cluster.connect("moon")


def test_worker_processes_write_the_same_bytes(client, moving, tmp_path) -> None:
    cube, _ = moving(grid=SMALL, vy=0.5, vx=-0.6, holes=True)
    velocity = og.track(cube, og.make_pairs(cube), og.NCC(chip=16, search=2, step=8), tile=8, batch=2)
    one = og.write(velocity, tmp_path / "threads.zarr", progress=False)
    two = og.write(velocity, tmp_path / "workers.zarr", progress=False, client=client)
    assert og.status(two) == {"blocks": 12, "done": 12, "failed": 0}
    assert np.isfinite(og.open_velocity(two)["vx"].values).any()
    assert contents(two) == contents(one)
    assert og.verify(two).empty


def test_a_relative_path_means_the_client_s_folder(client, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    og.write(marked(tmp_path, lambda b: b), "v.zarr", progress=False, client=client)
    assert og.status(tmp_path / "v.zarr") == {"blocks": 4, "done": 4, "failed": 0}


def marked(folder: Path, function: Any) -> xr.Dataset:
    """Four blocks of numbers, each passed through a function on the worker."""
    values = da.from_array(np.arange(16.0).reshape(1, 4, 4), (1, 2, 2)).map_blocks(function, dtype=float)
    attrs = {"kind": "velocity", "schema_version": 1, "provenance": str(folder)}
    return xr.Dataset({"vx": (("mid_date", "y", "x"), values)}, attrs=attrs)


def test_failed_blocks_are_tried_anew_by_the_same_line_on_the_same_cluster(client, tmp_path) -> None:
    """The scheduler remembers tasks by name; the second run must not be answered with the rows of the first."""
    permit = tmp_path / "permit"

    def strict(block: Any) -> Any:
        if block[0, 0, 0] > 9 and not permit.exists():
            raise OSError("no permit")
        return block

    velocity, path = marked(tmp_path, strict), tmp_path / "v.zarr"
    with pytest.raises(StoreError, match=r"1 of 4 blocks failed .*OSError: no permit") as caught:
        og.write(velocity, path, progress=False, client=client)
    assert og.status(path) == {"blocks": 4, "done": 3, "failed": 1}
    permit.touch()
    og.write(velocity, path, progress=False, client=client)
    assert caught.tb is not None
    assert og.open_velocity(path)["vx"].values.ravel().tolist() == list(range(16))


def test_options_reach_the_workers(client, tmp_path) -> None:
    def attempts(block: Any) -> Any:
        return block * 0 + options.current().attempts

    with options.using(attempts=7):
        path = og.write(marked(tmp_path, attempts), tmp_path / "v.zarr", progress=False, client=client)
    assert (og.open_velocity(path)["vx"].values == 7).all()


def test_a_block_that_kills_its_worker_is_a_failed_block(client, tmp_path) -> None:
    """Last in this file: it costs a worker."""
    permit = tmp_path / "permit"

    def deadly(block: Any) -> Any:
        import os

        if block[0, 0, 0] > 9 and not permit.exists():
            os.kill(os.getpid(), 9)
        return block

    def give_up_at_once(dask_scheduler: Any) -> None:
        dask_scheduler.allowed_failures = 0

    client.run_on_scheduler(give_up_at_once)
    velocity, path = marked(tmp_path, deadly), tmp_path / "v.zarr"
    with pytest.raises(StoreError, match=r"of 4 blocks failed \(the others are written.*KilledWorker"):
        og.write(velocity, path, progress=False, client=client)
    failed = {row["block"] for row in store.ledger(path) if row["status"] == "failed"}
    assert "0.1.1" in failed
    assert len(failed) < 4
    permit.touch()
    og.write(velocity, path, progress=False, client=client)
    assert og.open_velocity(path)["vx"].values.ravel().tolist() == list(range(16))
