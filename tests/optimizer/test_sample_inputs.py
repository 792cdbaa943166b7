"""Inputs that are made up are inside the ranges that the graph asks for."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer.sample_inputs import candidate_inputs, index_bound
from tests.optimizer.build import BOOL, INT64, model, node, perceptron, value


def graph_of(proto: onnx.ModelProto) -> ir.Graph:
    return ir.from_proto(proto).graph


def first(proto: onnx.ModelProto, seed: int = 0) -> list[np.ndarray]:
    return next(candidate_inputs(graph_of(proto), seed))


def embedding() -> onnx.ModelProto:
    """ids: [batch, seq] through a reshape and a cast into a table of 11 rows; mask: [batch, seq]."""
    nodes = [
        node("Cast", ["ids"], ["ids64"], to=INT64),
        node("Unsqueeze", ["ids64", "axis"], ["column"]),
        node("Gather", ["table", "column"], ["rows"]),
        node("Cast", ["valid"], ["flag"], to=BOOL),
        node("Where", ["flag", "one", "zero"], ["weight"]),
        node("Add", ["position", "position"], ["y"]),
    ]
    weights: dict[str, np.ndarray] = {
        "table": np.zeros((11, 3), np.float32),
        "axis": np.array([2], np.int64),
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.float32),
    }
    shape = ["batch", "seq"]
    inputs = [value("ids", shape, onnx.TensorProto.INT32), value("valid", shape, INT64), value("position", [5], INT64)]
    return model(nodes, inputs, [value("rows", None), value("weight", None), value("y", None, INT64)], weights)


def test_indices_stay_inside_their_table() -> None:
    ids, valid, position = first(embedding())
    assert ids.dtype == np.int32
    assert ids.shape == valid.shape == (2, 8)
    assert ids.min() >= 0
    assert 5 < ids.max() < 11
    assert set(np.unique(valid)) == {0, 1}
    assert (valid[:, 0] == 1).all()
    assert position.min() >= 1
    assert position.max() <= 4


def test_the_bound_is_that_of_the_smallest_table() -> None:
    nodes = [node("Gather", ["large", "i"], ["a"]), node("Gather", ["small", "i"], ["b"], axis=1)]
    weights = {"large": np.zeros((9, 2), np.float32), "small": np.zeros((2, 3), np.float32)}
    proto = model(nodes, [value("i", [4], INT64)], [value("a", None), value("b", None)], weights)
    assert index_bound(graph_of(proto).inputs[0]) == 3


@pytest.mark.parametrize(
    ("op", "other", "bound"),
    [
        ("Equal", np.arange(7).reshape(1, 7), 7),
        ("Equal", np.array([0, 1]), None),  # a question of true or false
        ("Equal", np.array([-1, 0, 3]), None),
        ("OneHot", np.array(5), 5),
    ],
)
def test_classes_are_what_a_number_is_compared_with(op: str, other: np.ndarray, bound: int | None) -> None:
    operands = ["i", "other"] if op == "Equal" else ["i", "other", "values"]
    weights: dict[str, np.ndarray] = {"other": other.astype(np.int64), "values": np.array([0, 1], np.float32)}
    nodes = [node("Unsqueeze", ["x", "axis"], ["i"]), node(op, operands, ["y"])]
    proto = model(nodes, [value("x", [4], INT64)], [value("y", None)], {**weights, "axis": np.array([1], np.int64)})
    assert index_bound(graph_of(proto).inputs[0]) == bound


def test_floats_are_never_zero_and_follow_the_seed() -> None:
    (x,) = first(perceptron())
    (same,) = first(perceptron())
    (other,) = first(perceptron(), seed=1)
    assert x.shape == (2, 32)
    assert np.all(x != 0)
    np.testing.assert_array_equal(x, same)
    assert not np.array_equal(x, other)


def test_other_sizes_are_tried_in_turn_and_expressions_follow() -> None:
    inputs = [value("x", ["past"]), value("y", ["past + 3"]), value("z", [None, None, "side", "side"])]
    proto = model([node("Identity", [name], [f"{name}1"]) for name in "xyz"], inputs, [value("x1", None)])
    sets = list(candidate_inputs(graph_of(proto), 0))
    shapes = [[array.shape for array in arrays] for arrays in sets]
    assert len({str(shape) for shape in shapes}) == len(shapes) > 3
    for x, y, z in shapes:
        assert y[0] == x[0] + 3
        assert z[2] == z[3]


def test_sizes_can_be_given() -> None:
    (x,) = next(candidate_inputs(graph_of(perceptron()), 0, dims={"batch": 7}))
    assert x.shape == (7, 32)


def test_an_example_keeps_its_shape_and_unknown_integers() -> None:
    ids, position = np.array([[3]], np.int32), np.array([9, 9, 9, 9, 9])
    example = [ids, np.array([[1]]), position]
    fresh, kept = candidate_inputs(graph_of(embedding()), 0, example)
    assert fresh[0].shape == (1, 1)
    assert fresh[2] is position
    assert kept == example


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (onnx.TensorProto.BOOL, "b"),
        (onnx.TensorProto.UINT8, "u"),
        (onnx.TensorProto.DOUBLE, "f"),
        (onnx.TensorProto.COMPLEX64, "c"),
        (onnx.TensorProto.STRING, "O"),
        (onnx.TensorProto.BFLOAT16, "V"),
        (onnx.TensorProto.INT4, "V"),
    ],
)
def test_every_element_type_can_be_made_up(dtype: int, kind: str) -> None:
    proto = model([node("Identity", ["x"], ["y"])], [value("x", [64], dtype)], [value("y", [64], dtype)])
    (x,) = first(proto)
    assert x.dtype.kind == kind
    assert len(set(x.tolist())) > 1


def test_inputs_too_large_are_not_made_up() -> None:
    proto = model([node("Identity", ["x"], ["y"])], [value("x", [2**20, 2**20])], [value("y", None)])
    assert list(candidate_inputs(graph_of(proto), 0)) == []
