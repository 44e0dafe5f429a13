"""A real Dask Gateway on 127.0.0.1: its server, proxy, schedulers and workers are processes of this machine.

with gateway_server() as server:
    with connect("gateway", workers=2, timeout=120, **server.options) as client:
        write(velocity, path, client=client)

Everything runs as the user who starts it and nothing is kept apart: for tests and demonstrations only.
"""

import asyncio
import contextlib
import http.client
import json
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from .servers import free_ports

_CONFIGURATION = """
import json
from dask_gateway_server.options import Float, Integer, Mapping, Options

told = json.load(open("gateway.json"))
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.SimpleAuthenticator.password = told["password"]
c.DaskGateway.address = told["private"]
c.Proxy.address = told["public"]
c.Proxy.tcp_address = told["proxy"]
c.UnsafeLocalBackend.clusters_directory = told["folder"]
c.UnsafeLocalBackend.sigint_timeout = 3
# Every second, not every half minute: dead schedulers and workers are seen.
c.UnsafeLocalBackend.cluster_status_period = 1
c.UnsafeLocalBackend.worker_status_period = 1
# The scripts that it starts by default are gone since distributed 2026.6.
c.ClusterConfig.scheduler_cmd = told["scheduler"]
c.ClusterConfig.worker_cmd = told["worker"]
c.ClusterConfig.cluster_start_timeout = told["start_timeout"]
c.ClusterConfig.worker_start_timeout = told["start_timeout"]


def handler(options):
    memory = int(options.worker_memory * 2**30)
    return {"worker_cores": options.worker_cores, "worker_memory": memory, "environment": options.environment}


c.Backend.cluster_options = Options(
    Integer("worker_cores", 1, min=1, max=8), Float("worker_memory", 2, min=0.25, max=16), Mapping("environment", {}),
    handler=handler,
)
"""


@dataclass(frozen=True)
class GatewayServer:
    """A running Gateway: what `ogive.cluster.connect("gateway", ...)` must be told, and its log."""

    options: dict[str, Any]
    log: Path

    def clusters(self) -> list[str]:
        """The names of its clusters that start or run."""
        from dask_gateway import Gateway

        async def names() -> list[str]:
            async with Gateway(**self.options, asynchronous=True) as gateway:
                return [report.name for report in await gateway.list_clusters()]

        return asyncio.run(names())


@contextlib.contextmanager
def gateway_server(
    *, scheduler: tuple[str, ...] = ("scheduler",), start_timeout: float = 120.0, timeout: float = 120.0
) -> Iterator[GatewayServer]:
    """A Dask Gateway with its local backend, on free ports, with a random password.

    Clusters take the options `worker_cores`, `worker_memory` [GiB] and `environment`.

    Parameters
    ----------
    scheduler : tuple of str
        What `dask` is told to start a scheduler; something else makes clusters that fail.
    start_timeout : float
        Seconds after which the Gateway gives up a cluster or a worker that does not start.
    timeout : float
        Seconds to wait for the Gateway itself.

    Yields
    ------
    GatewayServer

    Raises
    ------
    RuntimeError
        The Gateway does not start; carries its output.
    """
    from dask_gateway import BasicAuth

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ogive-gateway-"))).resolve()
        public, proxy, private = (f"127.0.0.1:{port}" for port in free_ports(3))
        password = secrets.token_hex(16)
        dask = str(Path(sys.executable).parent / "dask")
        told = {
            "password": password, "private": private, "public": public, "proxy": proxy, "start_timeout": start_timeout,
            "folder": str(folder / "clusters"), "scheduler": [dask, *scheduler], "worker": [dask, "worker"],
        }  # fmt: skip
        (folder / "gateway.json").write_text(json.dumps(told))
        (folder / "config.py").write_text(_CONFIGURATION)
        log = folder / "log"
        command = [str(Path(sys.executable).parent / "dask-gateway-server"), "-f", "config.py"]
        with log.open("wb") as output:
            server = subprocess.Popen(
                command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        stack.callback(stop_all, server, folder)
        wait_healthy(server, public, "/api/health", timeout, log)
        auth = BasicAuth("ogive", password)
        yield GatewayServer({"address": f"http://{public}", "proxy_address": f"gateway://{proxy}", "auth": auth}, log)


def wait_healthy(server: "subprocess.Popen[bytes]", address: str, path: str, timeout: float, log: Path) -> None:
    """Return when `http://address/path` answers 200.

    Raises
    ------
    RuntimeError
        The process has ended, or does not answer in time; carries its output.
    """
    end = time.monotonic() + timeout
    while time.monotonic() < end and server.poll() is None:
        connection = http.client.HTTPConnection(address, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text()}")


def stop_all(server: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Stop a server, which stops what it started; then kill whatever is left of either."""
    server.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(60)
    left = running_in(folder)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)
    server.wait(10)


def running_in(folder: Path) -> list[psutil.Process]:
    """The processes that run in a folder: each may be a session of its own, and the folder is what they share."""
    return [process for process in psutil.process_iter() if _runs_in(process, folder)]


def _runs_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(folder)
    except (psutil.Error, OSError):
        return False
