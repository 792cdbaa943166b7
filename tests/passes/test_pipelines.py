"""The whole pipeline: what it makes of typical graphs, and how its time grows."""

from __future__ import annotations

import gc
import time

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.instruments import FingerprintCheck
from optimizer.ir import provenance
from optimizer.pass_manager import Fixpoint, PassManager
from optimizer.testing import check_pass, models
from passes.pipelines import default_pipeline
from tests.passes.transform import read


def test_a_residual_block() -> None:
    """Two convolutions with their normalizations, a dropout, and a view as a tracing exporter writes it."""
    model = read("""g (float[N,4,8,8] x) => (float[N,K] y)
        <float[4] one = {1,1,1,1}, float[4] zero = {0,0,0,0}, int64[4] ws = {4,4,3,3}, int64 first = {0},
         int64[1] axis = {0}, int64[1] rest = {-1}> {
            w1 = ConstantOfShape<value = float[1] {0.5}>(ws) w2 = Neg(w1)
            a = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(x, w1) b = BatchNormalization(a, one, zero, zero, one)
            c = Relu(b) d, mask = Dropout(c)
            e = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(d, w2) f = BatchNormalization(e, one, zero, zero, one)
            i = Identity(x) r = Add(f, i) s = Shape(r) n = Gather(s, first) m = Unsqueeze(n, axis)
            k = Concat<axis = 0>(m, rest) y = Reshape(r, k) }""")
    result = PassManager(default_pipeline("cpu")).run(model, [FingerprintCheck()]).model
    assert [node.op_type for node in result.graph] == ["Conv", "Relu", "Conv", "Add", "Reshape"]
    assert "fold-batch-norm" in provenance.makers(result.graph[0])


@pytest.mark.parametrize("kind", ["cpu", "onnx"])
@settings(max_examples=25, derandomize=True, deadline=None)
@given(model=models(max_steps=14))
def test_property(kind: str, model: ir.Model) -> None:
    check_pass(Fixpoint(tuple(default_pipeline(kind)), max_rounds=4), model)


def chain(op_types: tuple[str, ...], length: int) -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, ["N", 4])
    nodes: list[ir.Node] = []
    value = x
    for i in range(length):
        nodes.append(ir.node(op_types[i % len(op_types)], [value]))
        value = nodes[-1].outputs[0]
        value.name = f"v{i}"
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 4])
    return ir.Model(ir.Graph([x], [value], nodes=nodes, opset_imports={"": 23}, name="chain"), ir_version=10)


@pytest.mark.unwatched
@pytest.mark.parametrize("op_types", [("Relu", "Sigmoid"), ("Identity",), ("Transpose",), ("Flatten",)])
def test_time_grows_linearly(op_types: tuple[str, ...]) -> None:
    def seconds(length: int) -> float:
        model = chain(op_types, length)
        gc.collect()  # Not what earlier tests have left.
        start = time.process_time()
        PassManager(default_pipeline("cpu")).run(model)
        return time.process_time() - start

    seconds(100)
    # Eight times the nodes: 64 times the time if it were quadratic.
    assert seconds(8000) < 24 * max(seconds(1000), 0.02)


def test_large_weights_are_not_copied() -> None:
    model = read("g (float[N,1000] x) => (float[N,1000] y) <float w = {0}> { z = Identity(x) y = MatMul(z, w) }")
    weight = np.zeros((1000, 1000), np.float32)
    value = model.graph.initializers["w"]
    value.const_value, value.shape = ir.tensor(weight), ir.Shape(weight.shape)
    PassManager(default_pipeline("cpu")).run(model)
    (kept,) = model.graph.initializers.values()
    assert kept.const_value is not None
    assert np.shares_memory(kept.const_value.numpy(), weight)
