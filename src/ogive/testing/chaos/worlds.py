"""Stores slow enough to be hit in the middle, and processes that can be killed."""

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..stores import lazy_velocity

SHAPE, CHUNKS = (4, 40, 48), (2, 20, 24)


def paced_velocity(
    log: Path,
    pause: float = 0.0,
    shape: tuple[int, int, int] = SHAPE,
    chunks: tuple[int, int, int] = CHUNKS,
    scale: float = 1.0,
) -> xr.Dataset:
    """`lazy_velocity` whose blocks take a while and add one byte to a file when they start.

    Parameters
    ----------
    log : Path
        Its size counts the blocks that were begun, over all processes.
    pause : float
        [s]
    shape, chunks : (int, int, int)
    scale : float
        Another one makes another job.
    """
    ds = lazy_velocity(shape, chunks)
    blocks = ds["vx"].data.map_blocks(
        _paced, log=str(log), pause=pause, scale=np.float32(scale), dtype=np.float32, meta=np.empty((0, 0, 0), "f4")
    )
    return ds.assign(vx=ds["vx"].copy(data=blocks)).assign_attrs(provenance=json.dumps({"scale": scale}))


def _paced(block: Any, log: str, pause: float, scale: np.float32) -> Any:
    note(log)
    time.sleep(pause)
    return block * scale


def note(log: str | Path) -> None:
    """Add one byte to a file, whole even where many processes do."""
    number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(number, b".")
    os.close(number)


def noted(log: Path) -> int:
    """How many bytes were added."""
    return log.stat().st_size if log.exists() else 0


def isolated(function: str, *arguments: Any, prefix: tuple[str, ...] = (), timeout: float = 3600) -> Any:
    """What a function returns in an interpreter of its own, which no thread of ours disturbs.

    Parameters
    ----------
    function : str
        `module:name`; arguments and result travel as JSON.
    prefix : tuple of str
        Put before the command.
    timeout : float
        [s]

    Raises
    ------
    RuntimeError
        It failed; carries what it said.

    Examples
    --------
    >>> isolated("math:hypot", 3, 4)
    5.0
    """
    command = [*prefix, sys.executable, "-W", "ignore", "-c", _CALL, function, json.dumps(arguments)]
    source = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    if done.returncode != 0:
        raise RuntimeError(f"{function} ended with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


_CALL = """
import json, sys
from ogive.testing.chaos.worlds import function_of
print(json.dumps(function_of(sys.argv[1])(*json.loads(sys.argv[2]))))
"""


def function_of(name: str) -> Callable[..., Any]:
    """The function of a `module:name`."""
    module, _, attribute = name.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), attribute)
    return function


class Fork:
    """A child of this process with everything imported, so that what a kill hits is the work.

    Parameters
    ----------
    work : callable
        Its result travels as JSON; an exception as its type and text.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        out, into = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(out)
            try:
                answer = {"result": work()}
            except BaseException as error:
                answer = {"error": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}
            os.write(into, json.dumps(answer).encode())
            os._exit(0)
        os.close(into)
        self.out = out

    def kill(self, signal: int) -> None:
        """Send a signal."""
        os.kill(self.pid, signal)

    def end(self) -> dict[str, Any] | None:
        """Wait; `result`, or `error` and `text`; None where it was killed."""
        with os.fdopen(self.out, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        return None if os.WIFSIGNALED(status) else json.loads(answer)

    def result(self) -> Any:
        """Wait for what the work returns."""
        answer = self.end()
        if answer is None or "error" in answer:
            raise RuntimeError(f"a child failed: {answer and answer['trace']}")
        return answer["result"]
