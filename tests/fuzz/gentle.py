"""Changes that leave a model nearly sound, so that it gets past the first checks and into the compiler."""

from __future__ import annotations

from random import Random

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.fuzz.mutations import Mutation
from tests.fuzz.picking import pick_graph, pick_node, pick_tensor

UNARY = (
    "Abs",
    "Ceil",
    "Cos",
    "Erf",
    "Exp",
    "Floor",
    "Identity",
    "Log",
    "Neg",
    "Relu",
    "Round",
    "Sigmoid",
    "Sqrt",
    "Tanh",
)
BINARY = ("Add", "Div", "Max", "MatMul", "Min", "Mul", "Pow", "Sub")
SMALL = (-2, -1, 0, 1, 2, 3, 5)


def rewire(model: ModelProto, random: Random) -> None:
    """Make a node read another value that there is."""
    graph, node = pick_graph(model, random), pick_node(model, random)
    values = [value.name for value in (*graph.input, *graph.initializer)]
    values += [name for other in graph.node for name in other.output]
    if node.input and values:
        node.input[random.randrange(len(node.input))] = random.choice(values)


def swap_operator(model: ModelProto, random: Random) -> None:
    """Give a node another operator with as many inputs."""
    node = pick_node(model, random)
    if len(node.input) in (1, 2) and len(node.output) == 1:
        node.op_type = random.choice(UNARY if len(node.input) == 1 else BINARY)
        del node.attribute[:]


def insert_node(model: ModelProto, random: Random) -> None:
    """Put an element-wise node between a node and what it reads."""
    graph, node = pick_graph(model, random), pick_node(model, random)
    if node.input:
        place = random.randrange(len(node.input))
        name = f"inserted{len(graph.node)}"
        graph.node.insert(0, helper.make_node(random.choice(UNARY), [node.input[place]], [name]))
        node.input[place] = name


def nudge_attribute(model: ModelProto, random: Random) -> None:
    """Change a number of an attribute a little."""
    node = pick_node(model, random)
    for attribute in node.attribute:
        if attribute.ints:
            attribute.ints[random.randrange(len(attribute.ints))] += random.choice(SMALL)
        elif attribute.type == attribute.INT:
            attribute.i += random.choice(SMALL)
        elif attribute.type == attribute.FLOAT:
            attribute.f *= random.choice((-1.0, 0.0, 2.0, 1e30, float("nan"), float("inf")))


def reshape_tensor(model: ModelProto, random: Random) -> None:
    """Give a weight another shape, with the data for it."""
    tensor = pick_tensor(model, random)
    shape = [max(0, size + random.choice(SMALL)) for size in tensor.dims]
    if tensor.data_type == TensorProto.FLOAT and random.random() < 0.3:
        shape = shape[1:] if random.random() < 0.5 else [1, *shape]
    values = np.full(shape, random.choice((0, 1, 2, 3)), helper.tensor_dtype_to_np_dtype(tensor.data_type))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def change_weights(model: ModelProto, random: Random) -> None:
    """Flip bits of a weight's numbers."""
    tensor = pick_tensor(model, random)
    values = numpy_helper.to_array(tensor)
    data = bytearray(values.tobytes())
    for _ in range(random.choice((1, 10))):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    changed = np.frombuffer(bytes(data), values.dtype).reshape(values.shape)
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


def add_output(model: ModelProto, random: Random) -> None:
    """Make a value inside the graph an output, too, of unknown shape."""
    node = pick_node(model, random)
    if node.output:
        value = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
        model.graph.output.append(value)


def resize_input(model: ModelProto, random: Random) -> None:
    """Make a dimension of an input fixed, dynamic, or another number."""
    dims = [dim for value in model.graph.input for dim in value.type.tensor_type.shape.dim]
    if dims:
        dim = random.choice(dims)
        if random.random() < 0.4:
            dim.dim_param = random.choice(("N", "M", "S"))
        else:
            dim.dim_value = random.choice((1, 2, 3, 8, 17))


GENTLE_MUTATIONS: tuple[Mutation, ...] = (
    rewire,
    swap_operator,
    insert_node,
    nudge_attribute,
    reshape_tensor,
    change_weights,
    add_output,
    resize_input,
)
