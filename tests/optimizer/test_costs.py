"""Costs against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from optimizer.ir.costs import Sizes, model_costs, node_flops
from tests.optimizer.build import INT64, model, node, perceptron, value


def flops_of(proto: onnx.ModelProto, name: str, **shapes: tuple[int, ...]) -> int:
    loaded = ir.from_proto(proto)
    (found,) = (n for n in loaded.graph if n.name == name)
    return node_flops(found, Sizes(loaded, shapes))


def test_a_perceptron_with_a_batch_of_three() -> None:
    costs = model_costs(ir.from_proto(perceptron()), {"x": (3, 32)})
    assert costs.nodes == 4
    assert costs.parameters == 32 * 64 + 64 + 64 * 8
    assert costs.bytes == 4 * costs.parameters
    assert costs.flops == 2 * 3 * 32 * 64 + 3 * 64 + 3 * 64 + 2 * 3 * 64 * 8
    assert costs.peak_activation_bytes == 4 * 3 * (64 + 64)
    assert not costs.symbolic


def test_a_symbolic_dimension_counts_as_one() -> None:
    loaded = ir.from_proto(perceptron())
    costs = model_costs(loaded)
    assert costs.symbolic
    assert costs.flops == model_costs(loaded, {"x": (1, 32)}).flops


def test_sizes_follow_from_the_shapes_of_the_inputs() -> None:
    nodes = [node("Concat", ["x", "x"], ["twice"], axis=0), node("Relu", ["twice"], ["y"], name="relu")]
    proto = model(nodes, [value("x", ["n", 4])], [value("y", None)])
    assert flops_of(proto, "relu", x=(5, 4)) == 2 * 5 * 4


def test_a_size_without_a_name_follows_too_and_the_model_is_not_changed() -> None:
    proto = model([node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])], [], [value("y", None)])
    proto.graph.input.append(value("x", ["n", 1, "?", "?"]))
    loaded = ir.from_proto(proto)
    costs = model_costs(loaded, {"x": (1, 1, 9, 7)})
    assert costs.flops == 4 * 4 * 3
    assert not costs.symbolic
    assert loaded.graph.inputs[0].shape == ir.Shape(["n", 1, "?", "?"])


def test_convolutions() -> None:
    w, b = np.zeros((6, 2, 3, 3), np.float32), np.zeros(6, np.float32)
    conv = node("Conv", ["x", "w", "b"], ["y"], group=2, pads=[1, 1, 1, 1], name="conv")
    proto = model([conv], [value("x", [1, 4, 8, 8])], [value("y", [1, 6, 8, 8])], {"w": w, "b": b})
    assert flops_of(proto, "conv") == 2 * (6 * 8 * 8) * (2 * 3 * 3) + 6 * 8 * 8
    transposed = node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], name="up")
    proto = model([transposed], [value("x", [1, 6, 4, 4])], [value("y", None)], {"w": w})
    assert flops_of(proto, "up") == 2 * (6 * 4 * 4) * (2 * 3 * 3)


def test_gemm_and_attention_and_lstm() -> None:
    b, c = np.zeros((3, 7), np.float32), np.zeros(7, np.float32)
    gemm = node("Gemm", ["x", "b", "c"], ["y"], transA=1, name="gemm")
    proto = model([gemm], [value("x", [3, 5])], [value("y", [5, 7])], {"b": b, "c": c})
    assert flops_of(proto, "gemm") == 2 * 5 * 7 * 3 + 5 * 7
    attention = node("Attention", ["q", "k", "k"], ["y"], name="attention")
    inputs = [value("q", [2, 4, 8, 16]), value("k", [2, 4, 10, 16])]
    proto = model([attention], inputs, [value("y", None)])
    assert flops_of(proto, "attention") == 4 * 2 * 4 * 8 * 10 * 16 + 5 * 2 * 4 * 8 * 10
    flat = node("Attention", ["q", "k", "k"], ["y"], name="attention", q_num_heads=4, kv_num_heads=4)
    proto = model([flat], [value("q", [2, 8, 64]), value("k", [2, 10, 64])], [value("y", None)])
    assert flops_of(proto, "attention") == 4 * 2 * 4 * 8 * 10 * 16 + 5 * 2 * 4 * 8 * 10
    weights = {"w": np.zeros((1, 8, 3), np.float32), "r": np.zeros((1, 8, 2), np.float32)}
    lstm = node("LSTM", ["x", "w", "r"], ["y"], hidden_size=2, name="lstm")
    proto = model([lstm], [value("x", [5, 1, 3])], [value("y", None)], weights)
    assert flops_of(proto, "lstm") == 2 * 5 * (8 * 3 + 8 * 2) + 4 * 5 * 2


def test_moving_data_costs_nothing() -> None:
    proto = model([node("Transpose", ["x"], ["y"], name="t")], [value("x", [4, 4])], [value("y", None)])
    assert flops_of(proto, "t") == 0


def test_the_peak_counts_what_is_alive_together() -> None:
    """x (4 B each) lives to the end; a and b are never alive together with c."""
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Neg", ["a"], ["b"]),
        node("ReduceSum", ["b"], ["c"], keepdims=0),
        node("Mul", ["c", "x"], ["y"]),
    ]
    proto = model(nodes, [value("x", [100])], [value("y", [100])])
    assert model_costs(ir.from_proto(proto)).peak_activation_bytes == 4 * 300


def test_the_inside_of_a_branch_counts() -> None:
    inner = [node("Exp", ["x"], ["e"]), node("Neg", ["e"], ["branch"])]
    graph = helper.make_graph(inner, "branch", [], [value("branch", [100])])
    choice = node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
    proto = model([choice], [value("c", [], onnx.TensorProto.BOOL), value("x", [100])], [value("y", [100])])
    costs = model_costs(ir.from_proto(proto))
    assert costs.nodes == 5
    assert costs.flops == 4 * 100
    assert costs.peak_activation_bytes == 1 + 4 * (100 + 100 + 200)


def test_shared_and_constant_weights_count_once() -> None:
    constant = node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(np.ones(10, np.float32)))
    nodes = [constant, node("Add", ["x", "k"], ["a"]), node("Add", ["a", "k"], ["y"])]
    costs = model_costs(ir.from_proto(model(nodes, [value("x", [10])], [value("y", [10])])))
    assert (costs.parameters, costs.bytes) == (10, 40)
    assert costs.peak_activation_bytes == 80


def test_weights_of_four_bits_count_half_a_byte_and_no_activation() -> None:
    unpack = node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=16)
    nodes = [unpack, node("MatMul", ["x", "d"], ["y"], name="product")]
    proto = model(nodes, [value("x", [1, 64])], [value("y", [1, 32])])
    proto.graph.initializer.append(helper.make_tensor("w", onnx.TensorProto.INT4, [64, 32], [1] * 64 * 32))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 32), np.float32), "s"))
    costs = model_costs(ir.from_proto(proto))
    assert costs.bytes == 64 * 32 // 2 + 4 * 32 * 4
    assert costs.peak_activation_bytes == 4 * (64 + 32)
    assert flops_of(proto, "product") == 2 * 64 * 32


@pytest.mark.parametrize("dtype", [onnx.TensorProto.STRING, onnx.TensorProto.INT4])
def test_types_without_whole_bytes(dtype: int) -> None:
    proto = model([node("Identity", ["x"], ["y"])], [value("x", [5], dtype)], [value("y", [5], dtype)])
    expected = 0 if dtype == onnx.TensorProto.STRING else 2 * 3
    assert model_costs(ir.from_proto(proto)).peak_activation_bytes == expected


def test_a_value_of_unknown_rank_counts_nothing() -> None:
    proto = model([node("Reshape", ["x", "s"], ["y"])], [value("x", None), value("s", None, INT64)], [value("y", None)])
    costs = model_costs(ir.from_proto(proto))
    assert costs.symbolic
    assert costs.peak_activation_bytes == 0
