"""Phi-1.5's shape (Li et al. 2023) with random weights: 24 layers of width 2048, 1.4 billion parameters in all.

It is for what a model's size does, not for what it answers. The file is written layer by layer: at no time is more than
one weight in memory. Attention and feed-forward layers read the same normalized value, as in the original; its rotation
of a part of each head is left out, which has no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

__all__ = ["Shape", "write"]

TYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
"""What weights can be stored as. They are cast to float32 in front of what reads them."""
_ALIGNMENT = 4096


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder.

    Attributes:
        layers: How many there are.
        width: Of the value between them.
        inner: Of the feed-forward layer.
        heads: Of attention.
        words: In the vocabulary.
    """

    layers: int = 24
    width: int = 2048
    inner: int = 8192
    heads: int = 32
    words: int = 51200

    @property
    def parameters(self) -> int:
        """How many weights there are."""
        layer = self.width * (4 * self.width + 2 * self.inner) + 7 * self.width + self.inner
        return self.layers * layer + 2 * self.words * self.width + 2 * self.width


class _Graph:
    """Nodes, and weights that are written as they come."""

    def __init__(self, data: IO[bytes], location: str, dtype: str, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._data = data
        self._location = location
        self._dtype = dtype
        self._rng = np.random.default_rng(seed)

    def node(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node, named after what it gives."""
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output

    def weight(self, name: str, *shape: int, scale: float) -> str:
        """Add a weight of normally distributed numbers; the name of its float32 form."""
        array = self._rng.standard_normal(shape, np.float32)
        array *= np.float32(scale)
        stored = array.astype(TYPES[self._dtype], copy=False)
        self._data.write(b"\0" * (-self._data.tell() % _ALIGNMENT))
        kind = helper.np_dtype_to_tensor_dtype(stored.dtype)
        tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        place = {"location": self._location, "offset": self._data.tell(), "length": stored.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self._data.write(stored.data if stored.dtype.kind == "f" else stored.tobytes())
        self.weights.append(tensor)
        if self._dtype == "float32":
            return name
        return self.node("Cast", [name], f"{name}_float32", to=TensorProto.FLOAT)

    def linear(self, name: str, x: str, rows: int, columns: int) -> str:
        """Add a product and its bias."""
        product = self.node("MatMul", [x, self.weight(f"{name}.weight", rows, columns, scale=rows**-0.5)], f"{name}.mm")
        return self.node("Add", [product, self.weight(f"{name}.bias", columns, scale=0.02)], name)


def write(path: Path, shape: Shape | None = None, dtype: str = "float16", seed: int = 0) -> None:
    """Write a model, and its weights into a file beside it.

    Args:
        path: Of the `.onnx` file.
        shape: Phi-1.5's when not given.
        dtype: One of `TYPES`.
        seed: For the weights.
    """
    shape = shape or Shape()
    with path.with_suffix(".data").open("wb") as data:
        graph = _Graph(data, path.with_suffix(".data").name, dtype, seed)
        width = shape.width
        x = graph.node("Gather", [graph.weight("table", shape.words, width, scale=1), "input_ids"], "embedded")
        for index in range(shape.layers):
            x = _layer(graph, f"layer{index}", x, shape)
        norm = [graph.weight("norm.scale", width, scale=1), graph.weight("norm.bias", width, scale=0.1)]
        y = graph.node("LayerNormalization", [x, *norm], "norm")
        graph.node("MatMul", [y, graph.weight("head", width, shape.words, scale=width**-0.5)], "logits")
    given = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", shape.words])
    made = helper.make_graph(graph.nodes, "phi", [given], [result], initializer=graph.weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def _layer(graph: _Graph, name: str, x: str, shape: Shape) -> str:
    width, inner = shape.width, shape.inner
    norm = [graph.weight(f"{name}.norm.{part}", width, scale=1) for part in ("scale", "bias")]
    y = graph.node("LayerNormalization", [x, *norm], f"{name}.norm")
    parts = [graph.linear(f"{name}.{part}", y, width, width) for part in ("query", "key", "value")]
    heads = {"q_num_heads": shape.heads, "kv_num_heads": shape.heads, "is_causal": 1}
    attended = graph.linear(f"{name}.out", graph.node("Attention", parts, f"{name}.attention", **heads), width, width)
    hidden = graph.linear(f"{name}.up", y, width, inner)
    hidden = graph.node("Gelu", [hidden], f"{name}.gelu", approximate="tanh")
    after = graph.node("Add", [x, attended], f"{name}.attended")
    return graph.node("Add", [after, graph.linear(f"{name}.down", hidden, inner, width)], name)
