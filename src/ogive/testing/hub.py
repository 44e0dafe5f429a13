"""A real JupyterHub on 127.0.0.1 with Dask Gateway as its service, from `deploy/local`; `hub_user.py` is its user.

with local_hub() as hub, HubUser(hub, "mathilde") as user:
    user.start_server()
    executed = user.run_notebook("scaling_out.ipynb")

`python -m ogive.testing.hub` (`make hub`) starts one to look at. Whoever has the password is the user who started it:
for tests and demonstrations only.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ParameterError
from .gateway import stop_all, wait_healthy
from .servers import free_ports

CHECKOUT = Path(__file__).parents[3]
"""The top of the source tree: `deploy/local` and `notebooks` are not in wheels."""
PROXY = "configurable-http-proxy"


@dataclass(frozen=True)
class Hub:
    """A running hub.

    Attributes
    ----------
    url : where users log in, without a slash at the end.
    password : for every name.
    folder : where all its processes run: homes of users, folders of clusters.
    log : its output, and that of the Gateway.
    """

    url: str
    password: str
    folder: Path
    log: Path


def proxy_command() -> Path:
    """The hub's proxy, a program of Node.js: where `make hub` puts it, or on the PATH.

    Raises
    ------
    ParameterError
        It is not installed.
    """
    ours = CHECKOUT / ".hub" / "node_modules" / ".bin" / PROXY
    found = str(ours) if ours.exists() else shutil.which(PROXY)
    if found is None:
        raise ParameterError(PROXY, rule="must be installed", fix="run make proxy, in the source tree")
    return Path(found)


@contextlib.contextmanager
def local_hub(folder: Path | None = None, *, port: int = 0, timeout: float = 120.0) -> Iterator[Hub]:
    """JupyterHub and Dask Gateway, on free ports, with random passwords and tokens.

    Parameters
    ----------
    folder : Path, optional
        Where users find their homes again, as `home/NAME`. By default everything is in a temporary folder.
    port : int
        Port of the hub; 0: a free one.
    timeout : float
        Seconds to wait for the hub, for a user's server, for a cluster, for a worker.

    Yields
    ------
    Hub

    Raises
    ------
    ParameterError
        The proxy is not installed, or this is not a source tree.
    RuntimeError
        The hub does not start; carries its output.
    """
    configuration = CHECKOUT / "deploy" / "local" / "jupyterhub_config.py"
    if not configuration.is_file():
        raise ParameterError("hub", rule="is configured by deploy/local", value=CHECKOUT, fix="use a source tree")
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ogive-hub-")))
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        free = [f"127.0.0.1:{number}" for number in free_ports(6)]
        address = f"127.0.0.1:{port}" if port else free[0]
        hub, proxy, gateway, gateway_api, schedulers = free[1:]
        password = secrets.token_urlsafe(12)
        told = {
            "hub": f"http://{address}", "hub_private": f"http://{hub}", "proxy_private": f"http://{proxy}",
            "gateway": f"http://{gateway}", "gateway_private": f"http://{gateway_api}",
            "gateway_schedulers": f"gateway://{schedulers}",
            "proxy_command": [str(proxy_command())], "notebooks": str(CHECKOUT / "notebooks"),
            "password": password, "proxy_token": secrets.token_hex(32),
            "cookie_secret": secrets.token_hex(32), "timeout": timeout,
        }  # fmt: skip
        secret = folder / "hub.json"
        secret.unlink(missing_ok=True)
        secret.touch(mode=0o600)
        secret.write_text(json.dumps(told))
        stack.callback(secret.unlink)
        log = folder / "hub.log"
        # The programs of this environment are found by what the hub starts, whether or not it is activated.
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        command = [sys.executable, "-m", "jupyterhub", "-f", str(configuration)]
        with log.open("wb") as output:
            server = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        stack.callback(stop_all, server, folder)
        wait_healthy(server, address, "/hub/health", timeout, log)
        wait_healthy(server, gateway, "/services/dask-gateway/api/health", timeout, log)
        yield Hub(f"http://{address}", password, folder, log)


def main() -> None:
    """Start a hub and keep it until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m ogive.testing.hub", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where homes are kept; default: a temporary folder")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    options = parser.parse_args()
    with local_hub(options.folder, port=options.port) as hub:
        sys.stdout.write(f"{hub.url}\nany name, password {hub.password}\nCtrl-C stops it. Log: {hub.log}\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
