"""A trained network as files: weights for PyTorch, a graph for ONNX Runtime."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from ..kernels._flow_volume import CHANNELS
from ..kernels._flow_weights import SUFFIXES, Network, required
from .nets import FlowNetwork, Plain, answer

OPSET, IR = 17, 8
"""Old enough for every ONNX Runtime that has wheels for Python 3.11."""


def write(net: FlowNetwork, stem: Path) -> dict[str, str]:
    """Write STEM.safetensors (half precision) and STEM.onnx (the same weights); returns the checksums by suffix."""
    with torch.no_grad():
        weights = {name: (w.half().cpu(), b.half().cpu()) for name, (w, b) in net.plain().items()}
    arrays = {f"{name}.{part}": t.contiguous() for name, pair in weights.items() for part, t in zip("wb", pair)}
    contents = {
        SUFFIXES["torch"]: save(arrays, {"apart": json.dumps(net.apart)}),
        SUFFIXES["onnx"]: graph({name: (w.float(), b.float()) for name, (w, b) in weights.items()}, net.apart),
    }
    for suffix, content in contents.items():
        stem.with_name(stem.name + suffix).write_bytes(content)
    return {suffix: hashlib.sha256(content).hexdigest() for suffix, content in contents.items()}


def read(content: bytes) -> Network:
    """The network of a safetensors file, as a function of an array (channels, h, w)."""
    length = int.from_bytes(content[:8], "little")
    apart = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["apart"])
    arrays = load(content)
    names = {name.partition(".")[0] for name in arrays}
    plain = Plain({name: (arrays[f"{name}.w"].float(), arrays[f"{name}.b"].float()) for name in names})

    def run(seen: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: Tensor = answer(plain, torch.from_numpy(seen)[None], apart)
        return np.asarray(found[0].numpy())

    return run


def graph(weights: dict[str, tuple[Tensor, Tensor]], apart: tuple[int, ...]) -> bytes:
    """The network as an ONNX model: `volume` (n, channels, h, w) -> `answer` (n, 4, h, w)."""
    made = Graph(weights)
    end = answer(made, "volume", apart)
    onnx, h = made.onnx, made.onnx.helper
    nodes = [*made.nodes, h.make_node("Identity", [end], ["answer"])]
    ends = [
        h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", channels, "h", "w"])
        for name, channels in (("volume", CHANNELS), ("answer", 4))
    ]
    inside = h.make_graph(nodes, "flow_net", ends[:1], ends[1:], made.constants)
    model = h.make_model(inside, opset_imports=[h.make_opsetid("", OPSET)], ir_version=IR, producer_name="ogive")
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


class Graph:
    """Operations that are written down."""

    def __init__(self, weights: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.onnx = required("onnx", "train")
        self.weights, self.nodes, self.constants = weights, list[Any](), list[Any]()

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], **attributes))
        return name

    def convolve(self, name: str, x: str, apart: int) -> str:
        """A plain convolution."""
        for part, tensor in zip("wb", self.weights[name]):
            self.constants.append(self.onnx.numpy_helper.from_array(tensor.numpy(), f"{name}.{part}"))
        spread = {"dilations": [apart] * 2, "pads": [apart] * 4, "kernel_shape": [3, 3]}
        return self.node("Conv", [x, f"{name}.w", f"{name}.b"], **spread)

    def relu(self, x: str) -> str:
        """Zero where x is negative."""
        return self.node("Relu", [x])

    def add(self, x: str, y: str) -> str:
        """The sum."""
        return self.node("Add", [x, y])
