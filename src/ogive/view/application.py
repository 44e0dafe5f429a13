"""`ogive explore`: the explorer as a page of its own, for those who write no Python. Voila makes the page."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import OgiveError

UNFIT = ("@jupyter-notebook/lab-extension",)
"""Extensions of JupyterLab that Voila would load, if they are installed, and cannot."""


@contextmanager
def application(
    options: Mapping[str, Any], *, port: int | None = None, browser: bool = True, folder: str | Path = "."
) -> Iterator["subprocess.Popen[bytes]"]:
    """Serve the explorer on 127.0.0.1 until the context is left.

    The address, which the server prints, carries a token: other users of the machine cannot open it. Everyone who has
    it acts with the rights of the user who started the server.

    Parameters
    ----------
    options : mapping
        Of `view.explore`: numbers, texts, or mappings of them. None: its default.
    port : int, optional
        Default: Voila's 8866, or the next one that is free.
    browser : bool
        Open it in the browser.
    folder : path
        Where the session works: relative paths start here.

    Yields
    ------
    subprocess.Popen
        The server; it ends by itself only if it cannot start.

    Raises
    ------
    OgiveError
        Voila, or what the explorer needs, is not installed.
    """
    missing = [name for name in ("voila", "ipykernel", "ipyleaflet") if find_spec(name) is None]
    if missing:
        raise OgiveError("ogive explore", rule=f"needs {', '.join(missing)}", fix="pip install 'ogive[notebook]'")
    given = "".join(f", {name}={value!r}" for name, value in options.items() if value is not None)
    source = [
        f"import os\nos.chdir({str(Path(folder).resolve())!r})\n",
        f"import ogive\nogive.view.explore({given[2:]})",
    ]
    cell: dict[str, Any] = {
        "cell_type": "code",
        "id": "explore",
        "metadata": {},
        "outputs": [],
        "execution_count": None,
    }
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    document = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel, "title": "ogive"}}
    with tempfile.TemporaryDirectory(prefix="ogive-explore-") as place:
        notebook = Path(place) / "ogive.ipynb"
        notebook.write_text(json.dumps({**document, "cells": [{**cell, "source": source}]}))
        command = [sys.executable, "-m", "voila", str(notebook), "--Voila.ip=127.0.0.1", "--Voila.auto_token=True"]
        command += [f"--VoilaConfiguration.extension_denylist={name}" for name in UNFIT]
        command += [] if browser else ["--no-browser"]
        command += [] if port is None else [f"--port={port}"]
        server = subprocess.Popen(command)
        try:
            yield server
        finally:
            server.terminate()
            server.wait()


__all__ = ["UNFIT", "application"]
