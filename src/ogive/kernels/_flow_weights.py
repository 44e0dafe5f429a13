"""Weights of the learned matchers: named, checked against their card, loaded once in a process.

A network is three files beside each other: `NAME.json`, the card, says how it was made, what it reaches and which
checksums the others have; `NAME.onnx` runs in ONNX Runtime, `NAME.safetensors` in PyTorch. Nothing is ever downloaded.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._trust import understood
from ..errors import OgiveError, ParameterError

MODELS = Path(__file__).parents[1] / "models"
"""Where the shipped ones are."""
MOST = 100
"""A card that says more is none; a wrong number must not make a run endless."""
SUFFIXES = {"onnx": ".onnx", "torch": ".safetensors"}
"""The file of each backend."""
Network = Callable[..., Any]
"""Of arrays (channels, h, w); a list of answers, or the only one."""


@dataclass(frozen=True)
class Card:
    """What a kernel must know of its network.

    Parameters
    ----------
    path : Path
        The card itself.
    kernel : str
        Whose network it is.
    passes : int
        How often it is run.
    reach : int
        Cells on each side that an answer depends on.
    spread : float
        What its errors are multiplied by: error of a vector by the network's own guess, on pairs it was not trained on.
    sha256 : tuple of (str, str)
        Checksum of each file, by its suffix.
    """

    path: Path
    kernel: str
    passes: int
    reach: int
    spread: float
    sha256: tuple[tuple[str, str], ...]


@lru_cache
def card(weights: str, kernel: str) -> Card:
    """The card of a shipped network, by name, or of one's own, by the path of its card.

    Raises
    ------
    ParameterError
        There is none, it belongs to another kernel, or it is no card.

    Examples
    --------
    >>> card("flow-net-1", "flow_net").kernel
    'flow_net'
    """
    path = Path(weights) if weights.endswith(".json") else MODELS / f"{weights}.json"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in MODELS.glob(f"{kernel.replace('_', '-')}-*.json")))
        raise ParameterError("weights", rule=f"must be one of {shipped}, or the path of a card (.json)", value=weights)
    with understood(f"weights {weights}", ParameterError):
        about = json.loads(path.read_text())
        if about.get("kernel") != kernel:
            raise ParameterError(
                "weights", rule=f"must be those of {kernel}", value=f"{weights}: {about.get('kernel')}"
            )
        sums = tuple((suffix, str(about["sha256"][suffix])) for suffix in sorted(SUFFIXES.values()))
        passes, reach, spread = int(about["passes"]), int(about["reach"]), float(about["spread"])
    if not (0 < passes <= MOST and 0 <= reach <= MOST and 0 < spread < MOST):
        told = f"{passes} passes, reach {reach}, spread {spread}"
        raise ParameterError(
            "weights", rule=f"must have figures up to {MOST} on their card", value=f"{weights}: {told}"
        )
    return Card(path, kernel, passes, reach, spread, sums)


def network(card: Card, backend: str) -> Network:
    """The network as a function of an array (channels, h, w), loaded once for all threads of a process.

    Raises
    ------
    OgiveError
        A package is missing, or the file is not the one that the card describes.
    """
    return _loaded(card.path.with_suffix(SUFFIXES[backend]), dict(card.sha256)[SUFFIXES[backend]], backend)


@lru_cache
def _loaded(path: Path, sha256: str, backend: str) -> Network:
    made = _in_onnx if backend == "onnx" else _in_torch
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise OgiveError(
            str(path), rule=f"must have the checksum of its card, sha256 {sha256[:12]}...", value=f"{found[:12]}...",
            fix="install ogive anew, or train the network again",
        )  # fmt: skip
    return made(content)


def _in_onnx(content: bytes) -> Network:
    runtime = required("onnxruntime", "flow")
    options = runtime.SessionOptions()
    # One task is one thread: Dask has the others.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return Graph(runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"]))


class Graph:
    """A network in ONNX Runtime.

    Attributes
    ----------
    channels : list of int
        Of each array that it is given.
    """

    def __init__(self, session: Any) -> None:
        self._session, places = session, session.get_inputs()
        self._names, self.channels = [place.name for place in places], [place.shape[1] for place in places]

    def __call__(self, *seen: NDArray[np.float32]) -> Any:
        """Its answers to arrays (channels, h, w)."""
        answers = self._session.run(None, {name: a[None] for name, a in zip(self._names, seen, strict=True)})
        found = [np.asarray(answer[0], np.float32) for answer in answers]
        return found if len(found) > 1 else found[0]


Planes = NDArray[np.float32]


def patched(
    run: Callable[..., list[Planes]], planes: list[Planes], reach: int, patch: int, width: int = 1
) -> list[Planes]:
    """A network's answers for all cells (of `width` points along y and x) but the outermost `reach`.

    It is run on squares of `patch` cells and those that they depend on, always of the same size: the sums of a runtime
    may take another order in an array of another shape.
    """
    ny, nx = (n // width for n in planes[0].shape[1:])
    size, out = patch + 2 * reach, list[Planes]()
    for y in range(0, ny - 2 * reach, patch):
        for x in range(0, nx - 2 * reach, patch):
            parts = []
            for plane in planes:
                part = plane[:, width * y : width * (y + size), width * x : width * (x + size)]
                short = [width * size - n for n in part.shape[1:]]
                parts.append(np.pad(part, ((0, 0), (0, short[0]), (0, short[1]))))
            answers = run(*parts)
            if not out:
                many = [(len(a), a.shape[1] // size) for a in answers]
                out = [np.empty((c, n * (ny - 2 * reach), n * (nx - 2 * reach)), np.float32) for c, n in many]
            for whole, answer in zip(out, answers):
                n = answer.shape[1] // size
                into = whole[:, n * y : n * (y + patch), n * x : n * (x + patch)]
                into[:] = answer[:, n * reach :, n * reach :][:, : into.shape[1], : into.shape[2]]
    return out


def _in_torch(content: bytes) -> Network:
    for name in ("torch", "safetensors"):
        required(name, "torch")
    from ..learn.files import read

    return read(content)


def required(package: str, extra: str) -> Any:
    """An optional package.

    Raises
    ------
    OgiveError
        It is not installed; with the line that installs it.
    """
    try:
        return import_module(package)
    except ImportError:
        fix = f"pip install 'ogive[{extra}]'"
        raise OgiveError(f"learned matching: {package}", rule="is needed, and is not installed", fix=fix) from None
