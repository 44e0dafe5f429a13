"""A trained RAFT as files: weights in half precision, and one graph of both its parts for ONNX Runtime."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..kernels._flow_weights import SUFFIXES
from ..kernels._raft_lookup import SPACINGS
from .files import IR, OPSET, Graph
from .raft import OFFSETS, Raft, encode, update


def write(net: Raft, stem: Path) -> dict[str, str]:
    """Write STEM.safetensors (half precision) and STEM.onnx (the same weights); returns the checksums by suffix."""
    with torch.no_grad():
        weights = {name: (w.half(), b.half()) for name, (w, b) in net.plain().items()}
    arrays = {f"{name}.{part}": t.contiguous() for name, pair in weights.items() for part, t in zip("wb", pair)}
    contents = {
        SUFFIXES["torch"]: save(arrays),
        SUFFIXES["onnx"]: graph({name: (w.float(), b.float()) for name, (w, b) in weights.items()}),
    }
    for suffix, content in contents.items():
        stem.with_name(stem.name + suffix).write_bytes(content)
    return {suffix: hashlib.sha256(content).hexdigest() for suffix, content in contents.items()}


def graph(weights: dict[str, tuple[Tensor, Tensor]]) -> bytes:
    """Both parts as one ONNX model, beside each other: of an image, and of what an update is given."""
    made = RaftGraph(weights)
    width = len(weights["keep"][0])
    inputs = {"image": 3, "state": width, "context": width, "seen": weights["motion"][0].shape[1], "beside": 2}
    ends = [*encode(made, "image"), *update(made, "state", "context", "seen", "beside")]
    names = {"features": len(weights["plain"][0]), "first": width, "about": width, "next": width, "answer": 4}
    onnx, h = made.onnx, made.onnx.helper
    nodes = [*made.nodes, *(h.make_node("Identity", [end], [name]) for end, name in zip(ends, names))]
    tensors = [
        [h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", c, f"h of {name}", f"w of {name}"])
         for name, c in some.items()]
        for some in (inputs, names)
    ]  # fmt: skip
    inside = h.make_graph(nodes, "raft", *tensors, made.constants)
    model = h.make_model(inside, opset_imports=[h.make_opsetid("", OPSET)], ir_version=IR, producer_name="ogive")
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


class RaftGraph(Graph):
    """Operations of `encode` and `update` that are written down."""

    def constant(self, name: str, tensor: Tensor) -> str:
        """An array, once."""
        if name not in {known.name for known in self.constants}:
            self.constants.append(self.onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name))
        return name

    def convolve(self, name: str, x: str, apart: int = 1) -> str:
        """A convolution; of width 4 it halves the pixels."""
        weight, bias = self.weights[name]
        wide = weight.shape[-1]
        about = {"pads": [(wide - 1) // 2] * 4, "kernel_shape": [wide] * 2, "strides": [2 if wide == 4 else 1] * 2}
        return self.node("Conv", [x, self.constant(f"{name}.w", weight), self.constant(f"{name}.b", bias)], **about)

    def subtract(self, x: str, y: str) -> str:
        """The difference."""
        return self.node("Sub", [x, y])

    def multiply(self, x: str, y: str) -> str:
        """The product."""
        return self.node("Mul", [x, y])

    def tanh(self, x: str) -> str:
        """Between -1 and 1."""
        return self.node("Tanh", [x])

    def sigmoid(self, x: str) -> str:
        """Between 0 and 1."""
        return self.node("Sigmoid", [x])

    def join(self, *parts: str) -> str:
        """Channels one after the other."""
        return self.node("Concat", list(parts), axis=1)

    def centres(self, seen: str) -> list[str]:
        """Where the correlations of each level have their centre."""
        n = OFFSETS.shape[1]
        to = self.constant("offsets", OFFSETS[:, :, None, None])
        found = []
        for k in range(len(SPACINGS)):
            first, last = (self.constant(f"at {end}", torch.tensor([end])) for end in (k * n, (k + 1) * n))
            level = self.node("Slice", [seen, first, last, self.constant("channels", torch.tensor([1]))])
            found.append(self.node("Conv", [self.node("Softmax", [level], axis=1), to], kernel_shape=[1, 1]))
        return found
