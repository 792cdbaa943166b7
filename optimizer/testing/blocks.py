"""Families of layers, of blocks that exporters write out in many nodes, of subgraphs and of functions.

Each applies itself to a tensor, or returns without doing anything where it does not fit.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optimizer.testing.builder import Builder, Tensor

_LAYER_NORM_OPSET, _ATTENTION_OPSET = 17, 23


def matmul(b: Builder, x: Tensor) -> None:
    """A product with a weight, and what often follows."""
    if x.rank < 2 or not isinstance(x.shape[-1], int) or not x.is_single:
        return
    width = b.choose([1, 2, 3])
    y = b.apply("MatMul", [x.value, b.weights(x.shape[-1], width)])
    if b.flip():
        y = b.apply(b.choose(["Add", "Mul"]), [y, b.weights(width)])
    b.result(y, [*x.shape[:-1], width])


def gemm(b: Builder, x: Tensor) -> None:
    """A layer, and what often follows."""
    if x.rank != 2 or not isinstance(x.shape[1], int) or not x.is_single:
        return
    width, transposed = b.choose([2, 3]), b.flip()
    weight = b.weights(width, x.shape[1]) if transposed else b.weights(x.shape[1], width)
    y = b.apply("Gemm", [x.value, weight, *([b.weights(width)] if b.flip() else [])], {"transB": int(transposed)})
    b.result(b.apply(b.choose(["Add", "Mul", "Sub"]), [y, b.weights(width)]), [x.shape[0], width])


def einsum(b: Builder, x: Tensor) -> None:
    """A product with a weight that is turned, or of a batch of matrices with themselves."""
    if x.rank < 2 or not isinstance(x.shape[-1], int) or not x.is_single:
        return
    rows, inner = "abcdefgh"[: x.rank - 1], "k"
    if b.flip():
        y = b.apply("Einsum", [x.value, b.weights(2, x.shape[-1])], {"equation": f"{rows}{inner},n{inner}->{rows}n"})
        b.result(y, [*x.shape[:-1], 2])
    else:
        equation = f"{rows}{inner},{rows[:-1]}n{inner}->{rows}n"
        b.result(b.apply("Einsum", [x.value, x.value], {"equation": equation}), [*x.shape[:-1], x.shape[-2]])


def conv(b: Builder, x: Tensor) -> None:
    """A convolution, and what often follows."""
    if not _is_image(x) or not isinstance(x.shape[1], int):
        return
    out = b.choose([1, 2])
    y = b.apply("Conv", [x.value, b.weights(out, x.shape[1], 1, 1), *([b.weights(out)] if b.flip() else [])])
    if b.flip():
        statistics = [b.weights(out), b.weights(out), b.weights(out), b.constant(np.full(out, 0.5))]
        y = b.apply("BatchNormalization", [y, *statistics])
    else:
        y = b.apply(b.choose(["Add", "Mul"]), [y, b.weights(out, 1, 1)])
    b.result(y, [x.shape[0], out, *x.shape[2:]])


def pool(b: Builder, x: Tensor) -> None:
    """A window of 3 that moves by 1, with a border."""
    if _is_image(x):
        attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        b.result(b.apply(b.choose(["MaxPool", "AveragePool"]), [x.value], attributes), x.shape)


def norm(b: Builder, x: Tensor) -> None:
    """A normalization over the last axis, as one node."""
    if not x.shape or not isinstance(x.shape[-1], int) or not x.is_single or b.opset < _LAYER_NORM_OPSET:
        return
    scale = b.weights(x.shape[-1])
    b.result(b.apply("LayerNormalization", [x.value, scale], {"axis": -1, "epsilon": 0.1}), x.shape)


def layer(b: Builder, x: Tensor) -> None:
    """A normalization, two products with biases behind it, and the connection that skips them."""
    if x.rank < 2 or not isinstance(x.shape[-1], int) or not x.is_single or b.opset < _LAYER_NORM_OPSET:
        return
    width = x.shape[-1]
    skip = b.apply("LayerNormalization", [x.value, b.weights(width), b.weights(width)], {"epsilon": 0.1})
    inner = b.apply("Add", [b.apply("MatMul", [skip, b.weights(width, 2)]), b.weights(2)])
    product = b.apply("MatMul", [b.apply(b.choose(["Relu", "Tanh"]), [inner]), b.weights(2, width)])
    bias = b.weights(width)
    if b.flip():
        y = b.apply("Add", [skip, b.apply("Add", [product, bias])])
    else:
        y = b.apply("Add", [b.apply("Add", [skip, product]), bias])
    b.result(y, x.shape)


def norm_parts(b: Builder, x: Tensor) -> None:
    """Layer or RMS normalization in the nodes that exporters write."""
    if not x.shape or not isinstance(x.shape[-1], int) or not x.is_single:
        return
    centred = x.value
    if b.flip():
        centred = b.apply("Sub", [x.value, _mean(b, x.value)])
    two = b.constant(2.0)
    square = b.apply("Mul", [centred, centred]) if b.flip() else b.apply("Pow", [centred, two])
    root = b.apply("Sqrt", [b.apply("Add", [_mean(b, square), b.constant(0.1)])])
    divided = b.flip()
    y = b.apply(*(("Div", [centred, root]) if divided else ("Mul", [centred, b.apply("Reciprocal", [root])])))
    if b.flip():
        y = b.apply("Mul", [b.weights(x.shape[-1]), y])
    if b.flip():
        y = b.apply("Add", [y, b.weights(x.shape[-1])])
    b.result(y, x.shape)


def gelu_parts(b: Builder, x: Tensor) -> None:
    """GELU with the error function or with tanh, in the nodes that exporters write."""
    if not x.is_single:
        return
    if b.flip():
        inner = b.apply("Erf", [b.apply("Div", [x.value, b.constant(np.sqrt(2))])])
    else:
        cube = b.apply("Mul", [b.apply("Pow", [x.value, b.constant(3.0)]), b.constant(0.044715)])
        inner = b.apply("Tanh", [b.apply("Mul", [b.apply("Add", [x.value, cube]), b.constant(np.sqrt(2 / np.pi))])])
    factor = b.apply("Add", [inner, b.constant(1.0)])
    if b.flip():
        y = b.apply("Mul", [b.apply("Mul", [x.value, factor]), b.constant(0.5)])
    else:
        y = b.apply("Mul", [b.apply("Mul", [b.constant(0.5), x.value]), factor])
    b.result(y, x.shape)


def attention(b: Builder, x: Tensor) -> None:
    """Attention of a sequence to itself, as one node."""
    if _is_sequence(x) and b.opset >= _ATTENTION_OPSET:
        heads = b.choose([h for h in (1, 2) if int(x.shape[2]) % h == 0])
        attributes = {"q_num_heads": heads, "kv_num_heads": heads, "is_causal": int(b.flip())}
        b.result(b.apply("Attention", [x.value] * 3, attributes), x.shape)


def attention_parts(b: Builder, x: Tensor) -> None:
    """Attention of a sequence to itself, in the nodes that exporters write, with one head and perhaps a mask."""
    if not _is_sequence(x):
        return
    length, width = x.shape[1], int(x.shape[2])
    query, key, value = (b.apply("MatMul", [x.value, b.weights(width, width)]) for _ in range(3))
    scores = b.apply("MatMul", [query, b.apply("Transpose", [key], {"perm": [0, 2, 1]})])
    scores = b.apply(b.choose(["Div", "Mul"]), [scores, b.constant(np.sqrt(width))])
    if b.flip():
        assert isinstance(length, int), "a sequence has a known length"
        scores = b.apply("Add", [scores, b.weights(length, length)])
    b.result(b.apply("MatMul", [b.apply("Softmax", [scores], {"axis": -1}), value]), x.shape)


def if_(b: Builder, x: Tensor) -> None:
    """Two branches that read a value of the graph around them; the condition is a constant."""
    if not _readable_inside(x):
        return
    branches = {}
    for name, op_type in (("then_branch", "Abs"), ("else_branch", "Neg")):
        inner = ir.node(op_type, [x.value])
        inner.outputs[0].name = f"{name}_{len(b.nodes)}"
        branches[name] = ir.Graph([], inner.outputs, nodes=[inner], name=name)
    b.result(b.apply("If", [b.constant(b.flip(), np.bool_)], branches), x.shape, x.dtype)


def loop(b: Builder, x: Tensor) -> None:
    """A few rounds, each of which makes something of what the last one made."""
    if not _readable_inside(x):
        return
    number = len(b.nodes)
    count, going, carried = (
        ir.val(f"{name}_{number}", dtype, shape)
        for name, dtype, shape in (
            ("round", ir.DataType.INT64, ()),
            ("going", ir.DataType.BOOL, ()),
            ("carried", x.dtype, x.shape),
        )
    )
    same, step = ir.node("Identity", [going]), ir.node(b.choose(["Neg", "Abs"]), [carried])
    total = ir.node("Add", [step.outputs[0], x.value])
    for node, name in ((same, "still"), (step, "step"), (total, "total")):
        node.outputs[0].name = f"{name}_{number}"
    body = ir.Graph(
        [count, going, carried],
        [same.outputs[0], total.outputs[0]],
        nodes=[same, step, total],
        name=f"body_{number}",
    )
    for value, like in ((same.outputs[0], going), (total.outputs[0], carried)):
        value.type, value.shape = like.type, like.shape
    rounds = b.constant(b.choose([1, 2, 3]), np.int64)
    y = b.apply("Loop", [rounds, b.constant(True, np.bool_), x.value], {"body": body})
    b.result(y, x.shape, x.dtype)


def function(b: Builder, x: Tensor) -> None:
    """A call of a local function."""
    if not x.is_number:
        return
    identifier = ("local", "Twice", "")
    if identifier not in b.functions:
        argument = ir.Value(name="argument")
        double = ir.node("Add", [argument, argument])
        result = ir.node("Neg", [double.outputs[0]])
        double.outputs[0].name, result.outputs[0].name = "double", "result"
        graph = ir.Graph([argument], result.outputs, nodes=[double, result], opset_imports={"": b.opset}, name="Twice")
        b.functions[identifier] = ir.Function("local", "Twice", "", graph=graph, attributes=[])
    b.result(b.node("Twice", [x.value], domain="local").outputs[0], x.shape, x.dtype)


def _readable_inside(x: Tensor) -> bool:
    """Whether a subgraph can read the value: ONNX Runtime 1.31.1 drops a Cast to the same type even then, and fails."""
    producer = x.value.producer()
    return x.is_number and (producer is None or producer.op_type != "Cast")


def _mean(b: Builder, value: ir.Value) -> ir.Value:
    if b.opset >= 18:
        return b.apply("ReduceMean", [value, b.ints(-1)])
    return b.apply("ReduceMean", [value], {"axes": [-1]})


def _is_image(x: Tensor) -> bool:
    return x.rank == 4 and x.is_single and "N" not in x.shape[1:]


def _is_sequence(x: Tensor) -> bool:
    return x.rank == 3 and x.is_single and "N" not in x.shape[1:]
