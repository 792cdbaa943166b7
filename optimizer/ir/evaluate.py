"""Compute one node on constant inputs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from optimizer.ir.query import int_attribute

__all__ = ["evaluate"]

Array = npt.NDArray[Any]

_LOOPS_IN_PYTHON = frozenset(
    {
        "AveragePool",
        "Col2Im",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "DeformConv",
        "GRU",
        "GridSample",
        "LRN",
        "LSTM",
        "LpPool",
        "MaxPool",
        "MaxUnpool",
        "NonMaxSuppression",
        "RNN",
        "Resize",
        "RoiAlign",
        "Upsample",
    }
)
"""Operators that the reference implementation computes one element at a time; ONNX Runtime computes them instead."""

_FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What the reference implementation raises on a node that it cannot compute."""


def evaluate(node: ir.Node, opset: int, inputs: Sequence[Array | None]) -> list[Array] | None:
    """The outputs of a node of the standard operators, or `None` when it cannot be computed.

    Args:
        node: Has no subgraph.
        opset: The version of the operators.
        inputs: One for each input; `None` for one that is left out.
    """
    if node.op_type == "GatherElements":
        return _gather_elements(node, inputs)
    if node.op_type in _LOOPS_IN_PYTHON:
        return _in_onnx_runtime(node, opset, inputs)
    return _in_reference(node, opset, inputs)


def _in_reference(node: ir.Node, opset: int, inputs: Sequence[Array | None]) -> list[Array] | None:
    from onnx.reference import ReferenceEvaluator

    proto = _named(node)
    feeds = {f"i{i}": item for i, item in enumerate(inputs) if item is not None}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            results = ReferenceEvaluator(proto, opsets={"": opset}).run(None, feeds)
        except _FAILURES:
            return None
    return [np.asarray(result) for result in results]


def _gather_elements(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array] | None:
    """The reference implementation cannot gather from data that is larger than the indices on another axis."""
    data, indices = inputs
    if data is None or indices is None or data.ndim != indices.ndim:
        return None
    axis = int_attribute(node, "axis", 0) % data.ndim
    same = tuple(slice(None) if i == axis else slice(size) for i, size in enumerate(indices.shape))
    try:
        return [np.take_along_axis(data[same], indices, axis)]
    except _FAILURES:
        return None


def _in_onnx_runtime(node: ir.Node, opset: int, inputs: Sequence[Array | None]) -> list[Array] | None:
    from optimizer.errors import ExecutionError, UnsupportedError, VerificationError
    from optimizer.reference_process import ask

    proto = _named(node)
    given = [(f"i{i}", item) for i, item in enumerate(inputs) if item is not None]
    infos = [onnx.helper.make_tensor_value_info(n, _element_type(item), item.shape) for n, item in given]
    results = [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "node", infos, results)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    inputs = [item for _, item in given]
    request = {"model": model.SerializeToString(), "weights": [], "inputs": inputs, "threads": 1, "small": False}
    try:
        return list(ask(request))
    except (ExecutionError, UnsupportedError, VerificationError):
        return None


def _named(node: ir.Node) -> onnx.NodeProto:
    proto = onnx.NodeProto(op_type=node.op_type)
    proto.attribute.extend(ir.serde.serialize_attribute(attribute) for attribute in node.attributes.values())
    proto.input.extend("" if value is None else f"i{i}" for i, value in enumerate(node.inputs))
    proto.output.extend(f"o{i}" if value.name else "" for i, value in enumerate(node.outputs))
    return proto


def _element_type(item: Array) -> int:
    return int(ir.DataType.from_numpy(item.dtype))
