"""A real Dask Gateway: clusters start, grow, lose a worker in mid-run and stop, and a store does not show it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from dask_gateway import BasicAuth
from odc.geo.geobox import GeoBox

import ogive as og
from ogive import cluster
from ogive.errors import ClusterError
from ogive.testing.gateway import GatewayServer, gateway_server
from ogive.testing.stores import contents

WAIT = 240.0
"""Longest wait for anything [s]; a slow machine starts a worker in half a minute."""


@pytest.fixture(scope="module")
def server() -> Iterator[GatewayServer]:
    """One Gateway for all tests of this file."""
    with gateway_server(timeout=WAIT, start_timeout=WAIT) as server:
        yield server


@pytest.fixture(scope="module")
def client(server) -> Iterator[Any]:
    """A client of a cluster with two workers; the cluster must stop with its client."""
    with cluster.connect("gateway", workers=2, timeout=WAIT, worker_memory=1.0, **server.options) as client:
        (name,) = server.clusters()
        yield client
    assert name not in server.clusters()


def slow_velocity(seconds: float) -> xr.Dataset:
    """36 blocks of numbers, each of which takes its time."""

    def slow(block: Any) -> Any:
        time.sleep(seconds)
        return block * 2

    values = np.arange(36.0 * 16).reshape(4, 12, 12)
    lazy = da.from_array(values, (1, 4, 4)).map_blocks(slow, dtype=float)
    return xr.Dataset({"vx": (("mid_date", "y", "x"), lazy)}, attrs={"kind": "velocity", "schema_version": 1})


def test_tracking_on_a_gateway_writes_the_bytes_of_threads(client, moving, tmp_path) -> None:
    box = GeoBox((120, 136), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")
    cube, _ = moving(grid=box, vy=0.5, vx=-0.6, holes=True)
    velocity = og.track(cube, og.make_pairs(cube), og.NCC(chip=16, search=2, step=8), tile=8, batch=2)
    one = og.write(velocity, tmp_path / "threads.zarr", progress=False)
    two = og.write(velocity, tmp_path / "gateway.zarr", progress=False, client=client)
    assert np.isfinite(og.open_velocity(two)["vx"].values).any()
    assert contents(two) == contents(one)


def test_a_worker_killed_in_mid_run_leaves_no_trace(client, tmp_path) -> None:
    path = tmp_path / "gateway.zarr"
    before = client.run(os.getpid)
    victim = min(before.values())
    done_when_killed: list[int] = []

    def kill_one() -> None:
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            if path.exists() and (done := og.status(path)["done"]) >= 4:
                os.kill(victim, signal.SIGKILL)
                done_when_killed.append(done)
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    og.write(slow_velocity(0.3), path, progress=False, client=client)
    killer.join()
    assert 4 <= done_when_killed[0] < 30
    client.wait_for_workers(2, timeout=WAIT)
    assert victim not in client.run(os.getpid, on_error="return").values()
    assert contents(path) == contents(og.write(slow_velocity(0), tmp_path / "threads.zarr", progress=False))
    assert og.verify(path).empty


def test_a_running_cluster_is_used_by_its_name_and_outlives_the_client(server, client) -> None:
    (name,) = server.clusters()
    with cluster.connect("gateway", name=name, timeout=WAIT, **server.options) as second:
        assert second.id != client.id
        assert second.submit(sum, [1, 2]).result(timeout=WAIT) == 3
    assert server.clusters() == [name]
    assert client.submit(sum, [3, 4]).result(timeout=WAIT) == 7
    with cluster.connect("gateway", name=name, workers=(1, 2), timeout=WAIT, **server.options) as second:
        assert 1 <= len(second.nthreads()) <= 2
    assert server.clusters() == [name]


def test_refusals_are_named(server, monkeypatch) -> None:
    before = server.clusters()

    def refusal(**options: Any) -> str:
        with pytest.raises(ClusterError) as caught:
            cluster.connect("gateway", timeout=WAIT, **{**server.options, **options})
        return str(caught.value)

    assert "401, message='Unauthorized'" in refusal(auth=BasicAuth("ogive", "wrong"))
    assert "Fix: check user and password or token" in refusal(auth=BasicAuth("ogive", "wrong"))
    assert "Cannot connect to host 127.0.0.1:1 " in refusal(address="http://127.0.0.1:1")
    assert "check that it runs, and its address" in refusal(address="http://127.0.0.1:1")
    assert "Unknown fields ['nonsense']" in refusal(nonsense=1)
    assert "worker_cores must be <= 8.000000, got 99" in refusal(worker_cores=99)
    assert "Cluster nobody not found" in refusal(name="nobody")
    with dask.config.set({"gateway.address": None}):
        assert refusal(address=None) == (
            "gateway: must be configured (found No dask-gateway address provided or found in configuration). "
            "Fix: set DASK_GATEWAY__ADDRESS, or say address=..."
        )
    monkeypatch.setitem(sys.modules, "dask_gateway", None)
    assert refusal() == 'gateway: needs the package dask-gateway. Fix: pip install "ogive[gateway]"'
    monkeypatch.undo()
    assert server.clusters() == before


def test_a_cluster_without_workers_in_time_is_refused_and_stopped(server) -> None:
    before = server.clusters()
    with pytest.raises(ClusterError, match=r"cluster: must have 1 workers within|must let us have a cluster in time"):
        cluster.connect("gateway", workers=1, timeout=1, **server.options)
    assert server.clusters() == before


def test_a_cluster_that_fails_to_start_is_named() -> None:
    with (
        gateway_server(scheduler=("no-such-command",), timeout=WAIT) as server,
        pytest.raises(
            ClusterError, match=r"gateway cluster \w+: must start \(found (failed|stopping)\). Fix: .*Gateway's log"
        ),
    ):
        cluster.connect("gateway", timeout=WAIT, **server.options)
