"""Notebooks in a real browser: Voila or JupyterLab on 127.0.0.1, Debian's Chromium, a page that notes what goes wrong.

with voila(notebook) as url, watched(url) as seen:
    seen.page.get_by_role("button", name="Search").click()
assert seen.errors == seen.outside == []
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import ParameterError
from ..view.application import UNFIT
from .gateway import stop_all
from .servers import free_ports

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page, Route

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb")
"""Needed by root, without a screen, in containers; the last for pictures that are alike everywhere."""
ICONS = "fontawesome"
"""Voila asks a public server for a stylesheet of icons, and goes on with those that it has."""


@dataclass
class Watched:
    """A page, and what it should not have done.

    Attributes
    ----------
    page : playwright.sync_api.Page
    errors : list of str
        Of the console, and exceptions of scripts.
    outside : list of str
        Addresses beyond 127.0.0.1 that were asked for; none is reached. Not the icons of Voila.
    """

    page: "Page"
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def only_here(self, route: "Route") -> None:
        """Let requests to this machine pass, note and stop all others."""
        url = route.request.url
        if urlsplit(url).hostname == "127.0.0.1":
            route.continue_()
            return
        if ICONS not in url:
            self.outside.append(url)
        route.abort()

    def said(self, message: "ConsoleMessage") -> None:
        """Note an error of the console."""
        if message.type == "error" and ICONS not in message.location.get("url", ""):
            self.errors.append(message.text)

    def tab_to(self, selector: str, *, most: int = 60) -> None:
        """Press Tab until a control has the focus.

        Raises
        ------
        AssertionError
            It never has: it cannot be reached by the keyboard.
        """
        for _ in range(most):
            self.page.keyboard.press("Tab")
            if self.page.evaluate("s => !!document.activeElement.closest(s)", selector):
                return
        raise AssertionError(f"{selector} is not reached by {most} times Tab")

    def cut_off(self, *selectors: str) -> dict[str, object]:
        """Of these controls those that are not wholly inside the window, and where they are."""
        size = self.page.viewport_size
        assert size is not None
        found: dict[str, object] = {}
        for selector in selectors:
            box = self.page.locator(selector).first.bounding_box()
            inside = (
                box is not None
                and min(box["x"], box["y"]) >= 0
                and box["x"] + box["width"] <= size["width"]
                and box["y"] + box["height"] <= size["height"]
            )
            if not inside:
                found[selector] = box
        return found


def chromium() -> str:
    """The browser.

    Raises
    ------
    ParameterError
        None is installed.
    """
    found = next((path for path in map(shutil.which, _NAMES) if path), None)
    if found is None:
        raise ParameterError("chromium", rule="must be installed", fix="apt-get install chromium")
    return found


@contextlib.contextmanager
def watched(url: str, *, size: tuple[int, int] = (1280, 720), timeout: float = 120.0) -> Iterator[Watched]:
    """Open a page.

    Parameters
    ----------
    url : str
    size : (int, int)
        Width and height of the window [pixel].
    timeout : float
        Longest wait for anything [s].
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(_FLAGS), timeout=1000 * timeout)
        try:
            page = browser.new_page(viewport={"width": size[0], "height": size[1]})
            page.set_default_timeout(1000 * timeout)
            seen = Watched(page)
            page.on("console", seen.said)
            page.on("pageerror", lambda error: seen.errors.append(str(error)))
            page.route("**/*", seen.only_here)
            page.goto(url)
            yield seen
        finally:
            browser.close()


@contextlib.contextmanager
def voila(notebook: Path, *, timeout: float = 120.0) -> Iterator[str]:
    """A notebook as an application; yields its address."""
    (port,) = free_ports(1)
    command = ["voila", str(notebook), "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    command += [f"--VoilaConfiguration.extension_denylist={name}" for name in UNFIT]
    with _served(command, port, timeout):
        yield f"http://127.0.0.1:{port}/"


@contextlib.contextmanager
def lab(notebook: Path, *, timeout: float = 120.0) -> Iterator[str]:
    """A notebook in JupyterLab; yields its address."""
    (port,), token = free_ports(1), secrets.token_hex(16)
    command = ["jupyterlab", "--no-browser", f"--port={port}", "--ip=127.0.0.1", "--ServerApp.port_retries=0",
               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={notebook.parent}"]  # fmt: skip
    command += ["--allow-root"] if os.name == "posix" and os.getuid() == 0 else []
    with _served(command, port, timeout):
        yield f"http://127.0.0.1:{port}/lab/tree/{notebook.name}?token={token}"


@contextlib.contextmanager
def _served(command: list[str], port: int, timeout: float) -> Iterator[None]:
    """Run a server of Jupyter, with settings of its own, until it is left."""
    with tempfile.TemporaryDirectory(prefix="ogive-browser-") as name:
        folder = Path(name)
        settings = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
        environment = {
            **os.environ, "JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        }  # fmt: skip
        log = folder / "log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            _wait(server, port, timeout, log)
            yield
        finally:
            stop_all(server, folder)


def _wait(server: "subprocess.Popen[bytes]", port: int, timeout: float, log: Path) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text()}")
