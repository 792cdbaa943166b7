"""A chain of 100,000 nodes takes at most 12 times what 10,000 take, whatever it is a chain of."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.pass_manager import PassManager
from passes.pipelines import default_pipeline

Block = Callable[["_Chain", ir.Value], ir.Value]


class _Chain:
    """A graph that grows at its end; the last axis of `x` has 4 elements."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def apply(self, op_type: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        node = ir.node(op_type, inputs, attributes or None)
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, name: str, content: object, dtype: object = np.float32) -> ir.Value:
        if name not in self.initializers:
            array = np.asarray(content, dtype)  # type: ignore[call-overload]
            value = ir.Value(name=name, const_value=ir.tensor(array))
            value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
            self.initializers[name] = value
        return self.initializers[name]


def _build(block: Block, length: int, shape: Sequence[str | int]) -> ir.Model:
    chain = _Chain()
    x = ir.val("x", ir.DataType.FLOAT, shape)
    value = x
    while len(chain.nodes) < length:
        value = block(chain, value)
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    graph = ir.Graph(
        [x],
        [value],
        nodes=chain.nodes,
        initializers=list(chain.initializers.values()),
        opset_imports={"": 23},
        name="g",
    )
    return ir.Model(graph, ir_version=10)


def _layer(c: _Chain, x: ir.Value) -> ir.Value:
    product = c.apply("MatMul", x, c.constant("w", np.eye(4)))
    return c.apply("Relu", c.apply("Add", product, c.constant("b", np.ones(4))))


def _gelu(c: _Chain, x: ir.Value) -> ir.Value:
    t = c.apply("Erf", c.apply("Div", x, c.constant("root", 2**0.5)))
    product = c.apply("Mul", x, c.apply("Add", t, c.constant("one", 1)))
    return c.apply("Mul", product, c.constant("half", 0.5))


def _layer_norm(c: _Chain, x: ir.Value) -> ir.Value:
    last = c.constant("last", [-1], np.int64)
    d = c.apply("Sub", x, c.apply("ReduceMean", x, last))
    v = c.apply("ReduceMean", c.apply("Mul", d, d), last)
    return c.apply("Div", d, c.apply("Sqrt", c.apply("Add", v, c.constant("e", 1e-5))))


def _views(c: _Chain, x: ir.Value) -> ir.Value:
    wide = c.apply("Reshape", x, c.constant("wide", [-1, 2, 2], np.int64))
    turned = c.apply("Transpose", wide, perm=[0, 2, 1])
    return c.apply("Tanh", c.apply("Reshape", turned, c.constant("flat", [-1, 4], np.int64)))


def _sizes(c: _Chain, x: ir.Value) -> ir.Value:
    return c.apply("Relu", c.apply("Expand", c.apply("Neg", x), c.apply("Shape", x)))


BLOCKS: dict[str, Block] = {
    "different activations": lambda c, x: c.apply("Sigmoid", c.apply("Tanh", x)),
    "identities": lambda c, x: c.apply("Identity", x),
    "negations": lambda c, x: c.apply("Neg", x),
    "factors": lambda c, x: c.apply("Mul", x, c.constant("c", 1.5)),
    "sums with themselves": lambda c, x: c.apply("Add", x, x),
    "transposes": lambda c, x: c.apply("Transpose", c.apply("Transpose", x)),
    "layers": _layer,
    "gelu": _gelu,
    "layer norm": _layer_norm,
    "views": _views,
    "sizes": _sizes,
}


def _seconds(block: Block, length: int, target_kind: str, shape: Sequence[str | int]) -> float:
    model = _build(block, length, shape)
    gc.collect()
    start = time.process_time()
    PassManager(default_pipeline(target_kind)).run(model)
    return time.process_time() - start


@pytest.mark.slow
@pytest.mark.unwatched
@pytest.mark.parametrize("name", BLOCKS)
def test_ten_times_the_nodes_take_at_most_twelve_times_as_long(name: str) -> None:
    _assert_linear(BLOCKS[name], "cpu", ["N", 4])


@pytest.mark.slow
@pytest.mark.unwatched
@pytest.mark.parametrize("name", ["layers", "gelu", "layer norm"])
def test_rows_for_onnx_runtime(name: str) -> None:
    _assert_linear(BLOCKS[name], "onnx", ["N", 2, 4])


def _assert_linear(block: Block, target_kind: str, shape: Sequence[str | int]) -> None:
    _seconds(block, 100, target_kind, shape)
    short = min(_seconds(block, 10_000, target_kind, shape) for _ in range(2))
    assert _seconds(block, 100_000, target_kind, shape) < 12 * short
