"""Shapes that are inferred are the shapes that come out."""

from __future__ import annotations

import warnings

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.ir.shapes import Shapes
from optimizer.ir.symbolic import symbol
from optimizer.reference import run_reference
from optimizer.testing import FAMILIES, models
from tests.optimizer.test_symbolic import evaluate

N, S = symbol("N"), symbol("S")


def shapes_of(text: str, opset: int = 23) -> tuple[Shapes, dict[str, ir.Value]]:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    values = {value.name: value for node in model.graph for value in (*node.inputs, *node.outputs) if value is not None}
    return Shapes(model), {name: value for name, value in values.items() if name}


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("y = MatMul(x, w)", (N, S, 5)),
        ("y = Concat<axis = 1>(x, x)", (N, 2 * S, 8)),
        ("y = Transpose<perm = [2,0,1]>(x)", (8, N, S)),
        ("y = Reshape(x, flat)", (8 * N * S,)),
        ("y = Reshape(x, heads)", (N, S, 2, 4)),
        ("y = Flatten<axis = 2>(x)", (N * S, 8)),
        ("y = Unsqueeze(x, flat)", (N, S, 8, 1)),
        ("y = ReduceSum<keepdims = 0>(x, flat)", (N, S)),
        ("y = Gather<axis = 1>(x, flat)", (N, 1, 8)),
        ("y = Tile(x, reps)", (N, 3 * S, 8)),
        ("y = Pad(x, pads)", (N + 1, S, 11)),
        ("y = Softmax(x)", (N, S, 8)),
        ("y = ArgMax<axis = 1, keepdims = 0>(x)", (N, 8)),
        ("y = Slice(x, one, last, one)", (N, symbol("Max(0, S - 2)"), 8)),
        ("a, y = Split<axis = 1, num_outputs = 2>(x)", None),
    ],
)
def test_symbolic_shapes(node: str, expected: tuple[object, ...] | None) -> None:
    shapes, values = shapes_of(
        f"""g (float[N,S,8] x) => (float y)
        <float[8,5] w, int64[1] flat = {{-1}}, int64[4] heads = {{0,0,2,4}}, int64[3] reps = {{1,3,1}},
         int64[6] pads = {{0,0,1,1,0,2}}, int64[1] one = {{1}}, int64[1] last = {{-1}}> {{ {node} }}""".replace(
            "float[8,5] w, ", ""
        ).replace("(float[N,S,8] x)", "(float[N,S,8] x, float[8,5] w)")
    )
    dims = shapes.dims(values["y"])
    if expected is None:
        assert dims is not None and dims[0] == N and dims[2] == 8 and dims[1] not in (N, S)
    else:
        assert dims == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("kernel_shape = [3,3], pads = [1,1,1,1]", ("H", "W")),
        ("kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]", ("floor((H + 1)/(2))", "floor((W + 1)/(2))")),
        (
            'kernel_shape = [3,3], strides = [2,2], auto_pad = "SAME_UPPER"',
            ("floor((H + 1)/(2))", "floor((W + 1)/(2))"),
        ),
        ("kernel_shape = [2,2], dilations = [2,2]", ("H - 2", "W - 2")),
    ],
)
def test_windows(attributes: str, expected: tuple[str, str]) -> None:
    shapes, values = shapes_of(f"g (float[N,3,H,W] x) => (float y) {{ y = MaxPool<{attributes}>(x) }}")
    dims = shapes.dims(values["y"])
    assert dims is not None
    assert tuple(map(str, dims)) == ("N", "3", *expected)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("y = Mul(n, two)", (2 * N,)),
        ("y = Div(n, two)", (symbol("floor((N)/(2))"),)),
        ("y = Sub(n, two)", (N - 2,)),
        ("y = Concat<axis = 0>(n, two, s)", (N, 2, S)),
        ("e = Equal(n, minus) y = Where(e, two, n)", (N,)),
        ("e = Less(n, minus) y = Cast<to = 7>(e)", (0,)),
        ("e = GreaterOrEqual(n, zero) y = Cast<to = 7>(e)", (1,)),
        ("y = Mod(n, two)", (symbol("Mod(N, 2)"),)),
        ("y = Max(n, s)", (symbol("Max(N, S)"),)),
        ("y = ReduceProd(a)", (8 * N * S,)),
        ("y = Slice(a, two, minus1)", ()),
        ("y = Slice(a, zero1, two)", (N, S)),
        ("e = Equal(n, two) y = Where(e, two, n)", None),
        ("m = Sub(n, two) y = Div(m, two)", None),
    ],
)
def test_elements_of_shapes(node: str, expected: tuple[object, ...] | None) -> None:
    shapes, values = shapes_of(f"""g (float[N,S,8] x) => (int64 y)
        <int64[1] two = {{2}}, int64[1] minus = {{-1}}, int64[1] zero = {{0}}, int64[1] zero1 = {{0}},
         int64[1] minus1 = {{-1}}> {{
            a = Shape(x) n = Shape<end = 1>(x) s = Shape<start = 1, end = 2>(x) {node} }}""")
    assert shapes.data(values["y"]) == expected


def test_sizes_without_a_name_are_told_apart() -> None:
    shapes, values = shapes_of("g (float[?,?] x, float[?,?] z) => (float y) { a = Relu(x) b = Neg(z) y = Add(a, b) }")
    first, second = shapes.dims(values["a"]), shapes.dims(values["b"])
    assert first == shapes.dims(values["x"])
    assert first is not None and second is not None and not set(first) & set(second)


def test_a_node_that_breaks_its_operator_is_unknown() -> None:
    shapes, values = shapes_of(
        "g (float[2,3] x) => (float y) { a = Transpose<perm = [0,5]>(x) b = Concat(x) y = Neg(b) }"
    )
    assert shapes.dims(values["a"]) is None


@settings(max_examples=40, derandomize=True, deadline=None)
@given(models(families=[family for family in FAMILIES if family != "function"]))  # a call is unknown until inlined
def test_what_comes_out(model: ir.Model) -> None:
    shapes = Shapes(model)
    inner = [value for node in model.graph for value in node.outputs if value.name]
    for value in inner:
        if not value.is_graph_output():
            value.type = shapes.type(value)
            model.graph.outputs.append(value)
    for value in model.graph.outputs:
        value.shape = None
    for n in (1, 3):
        feeds = [
            np.ones([dim if isinstance(dim, int) else n for dim in v.shape or ()], np.float32)
            for v in model.graph.inputs
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = run_reference(model, feeds)
        for value, result in zip(model.graph.outputs, results, strict=True):
            dims = shapes.dims(value)
            assert dims is not None
            assert tuple(evaluate(dim, {"N": n}) for dim in dims) == result.shape
            data = shapes.data(value)
            if data is not None:
                assert [evaluate(item, {"N": n}) for item in data] == result.reshape(-1).tolist()
