from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.infer_shapes import InferShapes
from tests.passes.transform import read


def shapes_after(text: str, opset: int = 23) -> dict[str, str]:
    model = read(text, opset)
    InferShapes()(model)
    return {
        str(value.name): f"{value.dtype and value.dtype.name}{value.shape}"
        for node in model.graph.all_nodes()
        for value in node.outputs
    }


def test_symbols_go_through_arithmetic() -> None:
    found = shapes_after("""
        g (float[N,S,8] x) => (float[M] y) <int64[3] s = {0,-1,4}, int64[1] flat = {-1}> {
            a = Reshape(x, s)
            b = Concat<axis = 1>(a, a)
            c = Transpose<perm = [2,1,0]>(b)
            y = Reshape(c, flat)
        }""")
    assert found == {"a": "FLOAT[N,2*S,4]", "b": "FLOAT[N,4*S,4]", "c": "FLOAT[4,4*S,N]", "y": "FLOAT[M]"}


def test_a_stale_shape_inside_is_overwritten() -> None:
    model = read("g (float[N,3] x) => (float[N,3] y) { a = Relu(x) y = Neg(a) }")
    inner = model.graph[0].outputs[0]
    inner.shape = ir.Shape([1, 3])
    assert InferShapes()(model).modified
    assert str(inner.shape) == "[N,3]"


def test_a_size_without_a_name_stays_open() -> None:
    found = shapes_after(
        "g (float[N,3] x) => (int64[M] y) { a = NonZero(x) i = Transpose(a) y = ReduceSum<keepdims = 0>(i) }"
    )
    assert found["a"] == "INT64[2,None]"


@pytest.mark.unwatched
def test_an_output_of_the_model_is_only_completed() -> None:
    model = read("g (float[N,3] x) => (float[M,3] y, float[?,3] z, float w) { y = Relu(x) z = Neg(x) w = Abs(x) }")
    model.graph.outputs[2].shape = None
    assert InferShapes()(model).modified
    assert [str(value.shape) for value in model.graph.outputs] == ["[M,3]", "[N,3]", "[N,3]"]


def test_inputs_are_not_touched() -> None:
    model = read("g (float[?,3] x) => (float[?,3] y) { y = Relu(x) }")
    assert not InferShapes()(model).modified


def test_branches_that_agree_and_that_do_not() -> None:
    found = shapes_after("""
        g (float[N,3] x, bool c) => (float[N,3] y, float[A,B] z) <int64[1] one = {1}> {
            y, z = If (c) <
                then_branch = t () => (t1, t2) { t1 = Relu(x) t2 = Transpose(x) },
                else_branch = e () => (e1, e2) { e1 = Neg(x) e2 = Identity(x) }
            >
            a = Relu(y)
            b = Relu(z)
        }""")
    assert found["a"] == "FLOAT[N,3]"
    assert found["b"] == "FLOAT[None,None]"
    assert found["t2"] == "FLOAT[3,N]"


LOOP = """
    g (int64 n, float[N,3] x) => (float[N,3] y, float[K,N,3] s) {
        c = Constant<value = bool {1}>()
        v, w = Loop (n, c, x) <body = b (int64 i, bool d, v_in) => (d_out, v_out, s_out) {
            d_out = Identity(d)
            s_out = Neg(v_in)
            v_out = BODY(v_in)
        }>
        y = Relu(v)
        s = Relu(w)
    }"""


def test_a_loop_that_keeps_its_shape() -> None:
    found = shapes_after(LOOP.replace("BODY(v_in)", "Relu(v_in)"))
    assert found["v"] == "FLOAT[N,3]"
    assert found["w"] == "FLOAT[None,N,3]"


def test_a_loop_that_grows() -> None:
    found = shapes_after(LOOP.replace("BODY(v_in)", "Concat<axis = 0>(v_in, v_in)"))
    assert found["v"] == "FLOAT[None,3]"
    assert found["s_out"] == "FLOAT[None,3]"


def test_a_loop_that_swaps_its_axes() -> None:
    found = shapes_after(LOOP.replace("BODY(v_in)", "Transpose(v_in)"))
    assert found["v"] == "FLOAT[None,None]"


def test_unknown_operators_keep_what_is_written_at_them() -> None:
    model = read("g (float[N,3] x) => (float[N,7] y) { a = local.Mystery(x) y = Relu(a) }")
    inner = model.graph[0].outputs[0]
    inner.type, inner.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 7])
    assert not InferShapes()(model).modified


@pytest.mark.parametrize("opset", [7, 11, 13, 28])
def test_axes_as_attribute_and_as_input(opset: int) -> None:
    if opset < 13:
        text = "g (float[N,1,3] x) => (float[N,3] y) { a = Squeeze<axes = [1]>(x) y = Relu(a) }"
    else:
        text = "g (float[N,1,3] x) => (float[N,3] y) <int64[1] k = {1}> { a = Squeeze(x, k) y = Relu(a) }"
    assert shapes_after(text, opset)["a"] == "FLOAT[N,3]"


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models())
def test_property(model: ir.Model) -> None:
    check_pass(InferShapes(), model)
