"""A real JupyterHub with Dask Gateway: a user logs in, and a notebook there computes on a Gateway cluster."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
import requests
from dask_gateway.auth import JupyterHubAuth
from nbclient import NotebookClient

from ogive import cluster
from ogive.errors import ClusterError, ParameterError
from ogive.testing import hub as hubs
from ogive.testing.gateway import running_in
from ogive.testing.hub_user import HubUser

ROOT = Path(__file__).parents[1]
WAIT = 240.0
"""Longest wait for anything [s]."""
GATEWAY = "/services/dask-gateway"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def proxy() -> Path:
    """The hub's proxy, which `make test` has installed."""
    return hubs.proxy_command()


@pytest.fixture(scope="module")
def hub(proxy: Path) -> Iterator[hubs.Hub]:
    """One hub for all tests of this file; with its end, all that it started has ended by itself."""
    with hubs.local_hub(timeout=WAIT) as hub:
        yield hub
        folder = hub.folder
        assert running_in(folder)
    assert running_in(folder) == []
    assert not folder.exists()


@pytest.fixture(scope="module")
def user(hub: hubs.Hub) -> Iterator[HubUser]:
    """A user whose server runs."""
    with HubUser(hub, "mathilde", timeout=WAIT) as user:
        user.start_server()
        yield user
    assert [p for p in running_in(hub.folder) if Path(p.cwd()).is_relative_to(hub.folder / "home")] == []


def text(notebook: Any, start: str) -> str:
    """What the cell that contains a text has said."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and start in cell.source]
    return "".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)


def check(notebook: Any, where: str) -> None:
    """What the notebook promises, with the numbers of its truth."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    problems = [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert problems == []
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert text(notebook, "import ogive") == repr(where)
    assert text(notebook, "cluster.connect") == "2 workers, 2 threads\n"
    assert "8 blocks, 3 pairs of 3 scenes" in text(notebook, "og.explain")
    assert text(notebook, "og.write") == "{'blocks': 8, 'done': 8, 'failed': 0}"
    assert text(notebook, "og.verify") == "0 damaged objects; first pair as computed here: True\n"
    half, most, count = map(float, re.findall(r"[\d.]+(?= px| vectors)", text(notebook, "nine of ten")))
    assert 0 < half < 0.05
    assert half < most < 0.2
    assert count > 500
    assert "image/png" in cells[-1].outputs[-1]["data"]


def test_a_notebook_on_the_hub_computes_on_the_gateway(hub: hubs.Hub, user: HubUser) -> None:
    before = set(running_in(hub.folder))
    notebook, log = user.run_notebook("scaling_out.ipynb"), hub.log.read_text()
    sys.stdout.write(log)  # shown where this fails
    check(notebook, "gateway")
    (name,) = {line.split("Cluster ")[1].split()[0] for line in log.splitlines() if "Cluster " in line}
    assert f"Created cluster {name} for user mathilde" in log
    # Its kernel, scheduler and workers have gone with it.
    assert set(running_in(hub.folder)) <= before
    shown = requests.get(f"{hub.url}{GATEWAY}/api/v1/clusters/", headers=_as(user.token()), timeout=WAIT)
    assert shown.json() == {}


def test_only_this_machine_is_listened_on(hub: hubs.Hub, user: HubUser) -> None:
    addresses = {
        c.laddr.ip for p in running_in(hub.folder) for c in p.net_connections() if c.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def _as(token: str) -> dict[str, str]:
    return {"Authorization": f"jupyterhub {token}"}


def test_the_gateway_refuses_who_has_no_token(hub: hubs.Hub, user: HubUser) -> None:
    def status(headers: dict[str, str]) -> int:
        return requests.get(f"{hub.url}{GATEWAY}/api/v1/clusters/", headers=headers, timeout=WAIT).status_code

    assert status(_as(user.token())) == 200
    assert status({}) == 401
    assert status(_as("0" * 32)) == 500
    # A token of the user that is not meant for the Gateway.
    assert status(_as(user.token("read:users:name!user"))) == 401
    with pytest.raises(ClusterError, match=r"must let us have a cluster"):
        cluster.connect("gateway", address=f"{hub.url}{GATEWAY}", auth=JupyterHubAuth("0" * 32), timeout=WAIT)


def test_the_hub_refuses_a_wrong_password_and_keeps_its_own(hub: hubs.Hub) -> None:
    with pytest.raises(PermissionError, match="refused mathilde: 403"):
        HubUser(hub, "mathilde", "wrong")
    secret = hub.folder / "hub.json"
    assert secret.stat().st_mode & 0o077 == 0
    assert hub.password not in hub.log.read_text()


def test_the_notebook_needs_no_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASK_GATEWAY__ADDRESS", raising=False)
    monkeypatch.setenv("OGIVE_SHARED", str(tmp_path))
    notebook = nbformat.read(ROOT / "notebooks" / "scaling_out.ipynb", as_version=4)
    NotebookClient(notebook, timeout=WAIT, kernel_name="python3").execute()
    check(notebook, "local")


def test_a_missing_proxy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hubs, "CHECKOUT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ParameterError, match=r"configurable-http-proxy: must be installed. Fix: run make proxy"):
        hubs.proxy_command()
    with pytest.raises(ParameterError, match="hub: is configured by deploy/local"), hubs.local_hub():
        pass
