"""A user of a JupyterHub: logs in through the form, starts a server, runs notebooks there. What a browser would do."""

import json
import time
import uuid
from types import TracebackType
from typing import Any

import nbformat
import requests
from nbformat.v4 import output_from_msg

from .hub import Hub

SHOWN = ("stream", "display_data", "execute_result", "error")


class HubUser:
    """One user, logged in.

    Parameters
    ----------
    hub : Hub
    name : str
    password : str, optional
        By default the right one.
    timeout : float
        Longest wait for a server to start or stop and for the answers of a cell [s].

    Raises
    ------
    PermissionError
        The hub does not let us in.
    """

    def __init__(self, hub: Hub, name: str, password: str | None = None, *, timeout: float = 120.0) -> None:
        self.hub, self.name, self.timeout = hub, name, timeout
        self.browser = requests.Session()
        page = self.browser.get(f"{hub.url}/hub/login", timeout=timeout)
        page.raise_for_status()
        form = {"username": name, "password": hub.password if password is None else password, "_xsrf": self._xsrf()}
        answer = self.browser.post(f"{hub.url}/hub/login", data=form, timeout=timeout, allow_redirects=False)
        if answer.status_code != 302:
            raise PermissionError(f"{hub.url} refused {name}: {answer.status_code}")

    def __enter__(self) -> "HubUser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_server()
        self.browser.close()

    def _xsrf(self) -> str:
        return next(cookie.value or "" for cookie in self.browser.cookies if cookie.name == "_xsrf")

    def _hub(self, method: str, path: str, **options: Any) -> requests.Response:
        """Ask the hub, as the pages that it shows to this user do."""
        headers = {"X-XSRFToken": self._xsrf(), "Referer": f"{self.hub.url}/hub/home"}
        url = f"{self.hub.url}/hub/api/users/{self.name}{path}"
        answer = self.browser.request(method, url, headers=headers, timeout=self.timeout, **options)
        answer.raise_for_status()
        return answer

    def token(self, *scopes: str) -> str:
        """A new API token with all that the user may, or with some scopes only."""
        asked = {"note": "test", "expires_in": 3600, **({"scopes": list(scopes)} if scopes else {})}
        return str(self._hub("POST", "/tokens", json=asked).json()["token"])

    def start_server(self) -> None:
        """Start the notebook server of this user.

        Raises
        ------
        TimeoutError
            It is not there in time.
        """
        self._hub("POST", "/server")
        self._wait_for(True)

    def stop_server(self) -> None:
        """Stop it, if it runs."""
        if self._hub("GET", "").json()["servers"]:
            self._hub("DELETE", "/server")
            self._wait_for(False)

    def _wait_for(self, ready: bool) -> None:
        end = time.monotonic() + self.timeout
        while time.monotonic() < end:
            server = self._hub("GET", "").json()["servers"].get("")
            if (server is None) if not ready else bool(server and server["ready"]):
                return
            time.sleep(0.2)
        raise TimeoutError(f"server of {self.name}: {self.hub.log.read_text()}")

    def run_notebook(self, path: str) -> Any:
        """Run a notebook of the user's home, cell by cell in a new kernel of the user's server.

        Returns
        -------
        nbformat.NotebookNode
            With its outputs, up to the first error.
        """
        from websocket import create_connection

        base, headers = f"{self.hub.url}/user/{self.name}/api", {"Authorization": f"token {self.token()}"}
        with requests.Session() as server:
            server.headers.update(headers)
            content = server.get(f"{base}/contents/{path}", timeout=self.timeout)
            content.raise_for_status()
            notebook = nbformat.from_dict(content.json()["content"])  # type: ignore[no-untyped-call]
            kernel = server.post(f"{base}/kernels", json={"name": "python3"}, timeout=self.timeout)
            kernel.raise_for_status()
            address = f"{base}/kernels/{kernel.json()['id']}"
            channel = create_connection(
                f"{address}/channels".replace("http", "ws", 1), header=headers, timeout=self.timeout
            )
            try:
                for count, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
                    cell.execution_count, cell.outputs = count, _run(channel, cell.source)
                    if any(output.output_type == "error" for output in cell.outputs):
                        break
            finally:
                channel.close()
                server.delete(address, timeout=self.timeout)
        return notebook


def _run(channel: Any, source: str) -> list[Any]:
    """Run a cell: what it shows, until its kernel has answered and is idle again."""
    number = uuid.uuid4().hex
    header = {"msg_id": number, "msg_type": "execute_request", "session": number, "username": "", "version": "5.3"}
    content = {"code": source, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": True}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    channel.send(json.dumps(message))
    outputs: list[Any] = []
    waiting = {"execute_reply", "idle"}
    while waiting:
        answer = json.loads(channel.recv())
        if answer["parent_header"].get("msg_id") != number:
            continue
        kind = answer["header"]["msg_type"]
        waiting -= {kind, answer["content"].get("execution_state")}
        if kind in SHOWN:
            outputs.append(output_from_msg(answer))  # type: ignore[no-untyped-call]
    return outputs
