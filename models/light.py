"""Networks whose weights the onnx package leaves out (its `light_*` models), with random ones in their place.

In these files a `ConstantOfShape` stands for each large weight. Every parameter is drawn anew by what it is used for,
so that the size of the activations stays what it is from layer to layer (He et al. 2015): the few that the files have
kept were trained together with the others.
"""

from __future__ import annotations

import math
from collections.abc import MutableSequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from onnx import numpy_helper

from models.case import ModelCase

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
Message = TypeVar("Message")

IR_VERSION = 8
"""The first versions want every weight to be an input as well."""

_FACTORS = {("BatchNormalization", 1), ("BatchNormalization", 4), ("Mul", 1)}
_SHIFTS = {("BatchNormalization", 2), ("BatchNormalization", 3), ("Add", 1), ("Conv", 2), ("Gemm", 2)}
_WEIGHTS = {("Conv", 1), ("Gemm", 1)}


def densenet121() -> ModelCase:
    """DenseNet-121 (Huang et al. 2016): 8 million parameters, one image of 224."""
    return fill("densenet-121", onnx.load(FOLDER / "light_densenet121.onnx"))


def inception_v2() -> ModelCase:
    """Inception v2 (Ioffe and Szegedy 2015): 11 million parameters, one image of 224."""
    return fill("inception-v2", onnx.load(FOLDER / "light_inception_v2.onnx"))


def fill(name: str, model: onnx.ModelProto, seed: int = 0) -> ModelCase:
    """A case with weights and inputs drawn from `seed`; the model is changed in place.

    Raises:
        ValueError: A weight is used for something that this function does not know.
    """
    graph, random = model.graph, np.random.default_rng(seed)
    given = {tensor.name: tensor for tensor in graph.initializer}
    hollow = {node.output[0]: node for node in graph.node if node.op_type == "ConstantOfShape"}
    shapes = {name: tuple(numpy_helper.to_array(given[node.input[0]])) for name, node in hollow.items()}
    shapes |= {name: tuple(tensor.dims) for name, tensor in given.items() if tensor.data_type == tensor.FLOAT}
    used_for = _uses(graph)
    drawn = {name: _draw(used_for[name], shape, random) for name, shape in shapes.items()}
    gone = {*drawn, *(node.input[0] for node in hollow.values())}
    _replace(graph.node, [node for node in graph.node if node.output[0] not in hollow])
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name not in gone])
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in drawn.items())
    _replace(graph.input, [value for value in graph.input if value.name not in given])
    model.ir_version = IR_VERSION
    return ModelCase(name, model, {value.name: _noise(value, random) for value in graph.input})


def _uses(graph: onnx.GraphProto) -> dict[str, tuple[str, int]]:
    """The operator that takes a value, beyond any `Unsqueeze`, and as which of its inputs."""
    found: dict[str, tuple[str, int]] = {}
    for node in reversed(graph.node):
        for index, name in enumerate(node.input):
            found[name] = found[node.output[0]] if node.op_type == "Unsqueeze" else (node.op_type, index)
    return found


def _draw(use: tuple[str, int], shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if use in _WEIGHTS:
        return random.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape).astype(np.float32)
    if use in _FACTORS:
        return random.uniform(0.8, 1.2, shape).astype(np.float32)
    if use in _SHIFTS:
        return random.normal(0, 0.1, shape).astype(np.float32)
    raise ValueError(f"a weight is input {use[1]} of {use[0]}, for which there is no distribution yet")


def _noise(value: onnx.ValueInfoProto, random: np.random.Generator) -> np.ndarray:
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return random.standard_normal(shape, np.float32)


def _replace(field: MutableSequence[Message], items: list[Message]) -> None:
    """Give a repeated field of a protocol buffer other items."""
    del field[:]
    field.extend(items)
