"""The bucket as target: a run on a real Dask Gateway writes into an S3 store, though a worker is killed in mid-run."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

import ogive as og
from ogive import cluster
from ogive.testing.gateway import gateway_server
from ogive.testing.stores import lazy_velocity

WAIT = 240.0
"""Longest wait for anything [s]."""


@pytest.fixture
def bucket(monkeypatch) -> Iterator[dict[str, str]]:
    """A server with the bucket `ogive`; what client and workers must have in their environment to reach it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="ogive")
        yield environment
    finally:
        server.stop()


def test_a_gateway_writes_into_a_bucket_though_a_worker_dies(bucket, tmp_path) -> None:
    velocity, path = lazy_velocity((12, 40, 48), (1, 20, 24)), "s3://ogive/velocity.zarr"
    killed: list[int] = []
    with (
        gateway_server(timeout=WAIT, start_timeout=WAIT) as server,
        cluster.connect("gateway", workers=2, timeout=WAIT, environment=bucket, **server.options) as client,
    ):
        victim = min(client.run(os.getpid).values())

        def kill_one() -> None:
            end = time.monotonic() + WAIT
            while time.monotonic() < end and not killed:
                try:
                    done = og.status(path)["done"]
                except og.OgiveError:  # not there yet
                    done = 0
                if done >= 2:
                    os.kill(victim, signal.SIGKILL)
                    killed.append(done)
                time.sleep(0.02)

        killer = threading.Thread(target=kill_one)
        killer.start()
        og.write(velocity, path, progress=False, client=client)
        killer.join()
    assert 2 <= killed[0] < 48
    assert og.status(path) == {"blocks": 48, "done": 48, "failed": 0}
    assert og.verify(path).empty
    local = og.open_velocity(og.write(velocity, tmp_path / "threads.zarr", progress=False))
    assert local.identical(og.open_velocity(path))
