"""Clusters: other versions are refused before the first task, and a store does not show where it was computed."""

import logging
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import dask.array as da
import distributed
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import ogive as og
from ogive import _dispatch, cluster, options, store
from ogive._execute import execute
from ogive.errors import ClusterError, ParameterError, StoreError
from ogive.testing.stores import contents

SMALL = GeoBox((120, 136), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")
QUIET = {"silence_logs": 50}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two worker processes for all tests of this file."""
    with cluster.connect("local", workers=2, timeout=60, **QUIET) as client:
        yield client


def forge(**versions: str | None) -> None:
    """To be run elsewhere: some packages there have other versions, or (None) are not there; `forge()` mends it."""
    import importlib.metadata as metadata

    true = getattr(metadata, "true", metadata.version)

    def version(name: str) -> str:
        if versions.get(name, "") is None:
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or true(name)

    metadata.true, metadata.version = true, version if versions else true


def by_value(function: Any) -> Any:
    """Workers cannot import this file, so its functions travel whole."""
    return types.FunctionType(function.__code__, {"__builtins__": __builtins__}, function.__name__)


def test_a_local_cluster_starts_checked_and_stops_with_its_client() -> None:
    with cluster.connect("local", workers=1, threads=2, timeout=60, processes=False, **QUIET) as client:
        assert sum(client.nthreads().values()) == 2
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3
        started = client.cluster
    assert started.status == distributed.core.Status.closed


def test_a_local_cluster_grows_with_its_work() -> None:
    with cluster.connect("local", workers=(1, 3), timeout=60, processes=False, **QUIET) as client:
        assert 1 <= len(client.nthreads()) <= 3
        assert client.cluster._adaptive.maximum == 3
    for wrong in (0, (0, 2), (3, 2)):
        with pytest.raises(ParameterError, match="workers: must be at least 1, the most not below the least"):
            cluster.connect("local", workers=wrong)


def test_all_differences_are_named_in_one_error(client) -> None:
    cluster.check_versions(client)
    one, two = sorted(client.nthreads())
    client.run(by_value(forge), zarr="0.0.1", numba=None, workers=[one])
    client.run(by_value(forge), zarr="0.0.1", workers=[two])
    message = (
        "cluster: must have the versions of the client "
        f"(found zarr 0.0.1 (here {version('zarr')}) on {one}, {two}; no numba (here {version('numba')}) on {one}). "
        "Fix: use one environment or image for client, scheduler and workers"
    )
    runs = (
        cluster.check_versions,
        lambda c: cluster.connect(c.scheduler.address, timeout=30),
        lambda c: list(execute(abs, iter([("a", (-1,))]), client=c)),
    )
    try:
        for run in runs:
            with pytest.raises(ClusterError) as caught:
                run(client)
            assert str(caught.value) == message
        client.run(by_value(forge), workers=[one])
        assert dict(execute(abs, iter([("a", (-1,)), ("b", (-2,))]), client=client)) == {"a": 1, "b": 2}
    finally:
        client.run(by_value(forge))
    cluster.check_versions(client)


class FakeClient:
    """A scheduler without numba, and workers of which one never answers and one has another Python."""

    asked = 0

    def run(self, function: Any, *arguments: Any, workers: list[str], on_error: str, callback_timeout: float) -> Any:
        assert on_error == "return"
        if "silent" in workers:
            self.asked += len(workers) == 1
            raise TimeoutError
        python = {"old": "3.7.1", "patch": ".".join(python_version().split(".")[:2]) + ".99"}
        return {w: function(*arguments) if arguments else python[w] for w in workers}

    def run_on_scheduler(self, function: Any, *arguments: Any, callback_timeout: float) -> Any:
        if arguments == ("numba",):
            raise PackageNotFoundError("numba")
        return function(*arguments)


def test_a_silent_worker_keeps_back_no_other_and_is_asked_once() -> None:
    here = ".".join(python_version().split(".")[:2])
    client = FakeClient()
    found = cluster.differences(client, {"patch", "old", "silent", cluster.SCHEDULER}, timeout=5)
    numba = f"no numba (here {version('numba')})"
    silent = ["no answer within 5 s"]
    assert found == {"old": [f"python 3.7.1 (here {here})"], "silent": silent, "scheduler": [numba]}
    assert client.asked == 1


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


def test_one_two_and_eight_workers_write_the_bytes_of_threads(client, moving, tmp_path) -> None:
    cube, _ = moving(grid=SMALL, vy=0.5, vx=-0.6, holes=True)
    velocity = og.track(cube, og.make_pairs(cube), og.NCC(chip=16, search=2, step=8), tile=8, batch=2)
    stores = [og.write(velocity, tmp_path / "threads.zarr", progress=False)]
    stores.append(og.write(velocity, tmp_path / "2.zarr", progress=False, client=client))
    for workers in (1, 8):
        with cluster.connect("local", workers=workers, timeout=60, processes=False, **QUIET) as other:
            stores.append(og.write(velocity, tmp_path / f"{workers}.zarr", progress=False, client=other))
    assert np.isfinite(og.open_velocity(stores[0])["vx"].values).any()
    for path in stores:
        assert og.status(path) == {"blocks": 12, "done": 12, "failed": 0}
        assert contents(path) == contents(stores[0])
        assert og.verify(path).empty


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


def test_few_tasks_are_in_the_scheduler_at_any_time() -> None:
    """Two per thread; and those that have just finished, whose end the scheduler has not heard of yet."""
    with cluster.connect("local", workers=2, threads=2, timeout=60, processes=False, **QUIET) as client:
        scheduler, seen = client.cluster.scheduler, []
        for _ in execute(abs, ((f"{k}", (-k,)) for k in range(2000)), client=client):
            seen.append(len(scheduler.tasks))
        assert len(seen) == 2000
        assert max(seen) <= _dispatch.AHEAD * 4 + 2


@contextmanager
def workers_of_kinds(*kinds: dict[str, Any]) -> Iterator[Any]:
    """A client of workers in this process, with one thread each and options of their own."""
    scheduler = {"cls": distributed.Scheduler, "options": {"protocol": "inproc://", "dashboard_address": "127.0.0.1:0"}}
    workers = {k: {"cls": distributed.Worker, "options": {"nthreads": 1, **kind}} for k, kind in enumerate(kinds)}
    with (
        distributed.SpecCluster(workers=workers, scheduler=scheduler, silence_logs=50) as started,
        distributed.Client(started) as client,
    ):
        client.wait_for_workers(len(kinds), timeout=60)
        yield client


def address(_: Any) -> str:
    """Where a task ran."""
    return distributed.get_worker().address


def test_blocks_that_need_a_gpu_run_where_one_is() -> None:
    with workers_of_kinds({}, {"resources": {"GPU": 1}}) as client:
        gpus = {a for a, about in client.scheduler_info()["workers"].items() if about["resources"]}
        found = dict(execute(address, ((f"{k}", (k,)) for k in range(12)), client=client, resources={"GPU": 1}))
        assert len(gpus) == 1
        assert len(found) == 12
        assert set(found.values()) == gpus
        assert len(set(dict(execute(address, ((f"{k}", (k,)) for k in range(40)), client=client)).values())) == 2


def test_without_a_gpu_such_a_run_ends() -> None:
    message = r"cluster: must have a worker with GPU=1 within 0.5 s \(found 1 workers\). Fix: .*--resources GPU=1"
    with (
        workers_of_kinds({}) as client,
        options.using(patience=0.5),
        pytest.raises(ClusterError, match=message),
    ):
        list(execute(abs, iter([("a", (-1,))]), client=client, resources={"GPU": 1}))


def test_tasks_whose_workers_are_all_gone_go_to_those_that_came_instead(monkeypatch, tmp_path) -> None:
    def all_replaced(lives: int) -> dict[str, Any]:
        monkeypatch.setattr(_dispatch, "LIVES", lives)
        permit = tmp_path / f"permit {lives}"
        with workers_of_kinds({}) as client:
            (first,) = client.nthreads()
            new: list[Any] = []

            def slow(k: int) -> int:
                while k == 1 and distributed.get_worker().address == first and not permit.exists():
                    time.sleep(0.05)
                return k

            async def replace() -> None:
                await client.cluster.workers[0].close(executor_wait=False)
                new.append(await distributed.Worker(client.scheduler.address, nthreads=1))

            def tasks() -> Iterator[Any]:
                yield from (("0", (0,)), ("1", (1,)))
                client.cluster.sync(replace)
                yield from (("2", (2,)), ("3", (3,)))

            found = dict(execute(slow, tasks(), client=client))
            permit.touch()
            client.cluster.sync(new[0].close)
            return found

    assert all_replaced(3) == {"0": 0, "1": 1, "2": 2, "3": 3}
    found = all_replaced(1)
    del found["0"]  # its result may have died with the worker, or not
    assert str(found.pop("1")) == "block: lost all its workers 1 times"
    assert found == {"2": 2, "3": 3}


def test_a_cluster_that_loses_all_its_workers_ends_the_run() -> None:
    with (
        cluster.connect("local", workers=1, timeout=60, processes=False, **QUIET) as client,
        options.using(patience=0.5),
        pytest.raises(ClusterError, match=r"cluster: must have a worker within 0.5 s \(found 0 workers\)"),
    ):
        for name, _ in execute(abs, ((f"{k}", (-k,)) for k in range(10**6)), client=client):
            if name == "3":
                client.cluster.scale(0)


def test_workers_that_are_all_paused_end_the_run() -> None:
    """They begin nothing as long as memory is short, which may be for ever."""
    message = r"within 0.5 s \(found 1 workers, 1 of them paused for want of memory\). Fix: give each more memory"
    with (
        cluster.connect("local", workers=1, timeout=60, processes=False, memory_limit="50MB", **QUIET) as client,
        options.using(patience=0.5),
        pytest.raises(ClusterError, match=message),
    ):
        list(execute(abs, ((f"{k}", (-k,)) for k in range(10**6)), client=client))


@pytest.fixture
def processes(tmp_path) -> Iterator[Any]:
    """Starts `dask scheduler` and `dask worker` as processes of their own, and kills them at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str, path: Path | None = None) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        if path is not None:
            environment["PYTHONPATH"] = os.pathsep.join([str(path), environment.get("PYTHONPATH", "")])
        with (tmp_path / f"log{len(started)}").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "dask", *command, "--no-dashboard"], cwd=tmp_path, env=environment,
                    stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                )
            )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_worker_that_joins_with_another_version_gets_no_block(processes, tmp_path, caplog) -> None:
    fake = tmp_path / "fake" / "ogive-99.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: ogive\nVersion: 99\n")
    with cluster.connect("local", workers=1, timeout=60, processes=False, protocol="tcp://", **QUIET) as client:
        ours = set(client.nthreads())
        at = client.scheduler.address
        processes("worker", at, "--no-nanny", "--nthreads", "1", "--local-directory", str(tmp_path), path=fake.parent)
        end = time.monotonic() + 120

        def tasks() -> Iterator[Any]:
            k = 0
            while "ogive 99" not in caplog.text and time.monotonic() < end:
                yield f"{k}", (k,)
                k += 1
                time.sleep(0.01)
            yield from ((f"late {k}", (k,)) for k in range(200))

        with caplog.at_level(logging.WARNING, logger="ogive"):
            found = dict(execute(address, tasks(), client=client))
        assert set(found.values()) == ours
        assert len(found) > 200
        (joined,) = set(client.nthreads()) - ours
        assert f"{joined} gets no block: ogive 99 (here {version('ogive')}) on {joined}" in caplog.text


def test_a_run_whose_scheduler_dies_ends(processes, tmp_path) -> None:
    scheduler = processes("scheduler", "--port", "0", "--host", "127.0.0.1", "--scheduler-file", "at.json")
    end = time.monotonic() + 120
    while not (tmp_path / "at.json").exists() and time.monotonic() < end:
        time.sleep(0.1)
    processes("worker", "--scheduler-file", "at.json", "--no-nanny", "--nthreads", "1")
    with distributed.Client(scheduler_file=str(tmp_path / "at.json"), timeout=60) as client:
        client.wait_for_workers(1, timeout=120)
        with pytest.raises(ClusterError, match=r"scheduler: must answer until the last block is done .*connect again"):
            for name, _ in execute(abs, ((f"{k}", (-k,)) for k in range(10**6)), client=client):
                if name == "3":
                    scheduler.kill()


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
