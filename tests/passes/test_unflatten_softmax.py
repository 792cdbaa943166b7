from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.unflatten_softmax import UnflattenSoftmax
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", ["", "<axis = 1>"])
def test_the_last_axis(op_type: str, axis: str) -> None:
    assert_becomes(
        UnflattenSoftmax(),
        f"""g (float[N,S,4] x) => (float[N,S,4] y) {{
            f = Flatten<axis = 2>(x) p = {op_type}{axis}(f) s = Shape(x) y = Reshape(p, s) }}""",
        f"g (float[N,S,4] x) => (float[N,S,4] y) {{ y = {op_type}(x) }}",
    )


def test_an_axis_with_ones_behind() -> None:
    assert_becomes(
        UnflattenSoftmax(),
        """g (float[N,4,1,1] x) => (float[N,4,1,1] y) <int64[2] r = {-1,4}, int64[4] s = {-1,4,1,1}> {
            f = Reshape(x, r) p = Softmax(f) y = Reshape(p, s) }""",
        "g (float[N,4,1,1] x) => (float[N,4,1,1] y) { y = Softmax<axis = 1>(x) }",
    )


def test_everywhere() -> None:
    text = """g (float[N,3,4] x) => (float[N,3,4] y) <int64[3] s = {-1,3,4}> {
        f = Flatten<axis = 2>(x) p = Softmax(f) y = Reshape(p, s) }"""
    assert_becomes_everywhere(UnflattenSoftmax(), text, "Softmax")


@pytest.mark.parametrize(
    ("size", "nodes"),
    [
        ("2,3,4", "f = Flatten<axis = 1>(x) p = Softmax(f) y = Reshape(p, s)"),  # joins two axes
        ("2,3,4", "f = Flatten<axis = 2>(x) p = Softmax<axis = 0>(f) y = Reshape(p, s)"),  # along the rows
        ("2,3,4", "f = Flatten<axis = 2>(x) p = Softmax(f) q = Reshape(p, s) r = Reshape(p, s) y = Mul(q, r)"),
        ("2,4,4", "f = Flatten<axis = 2>(x) p = Relu(f) y = Reshape(p, s)"),
    ],
)
def test_stays(size: str, nodes: str) -> None:
    assert_stays(
        UnflattenSoftmax(), f"g (float[{size}] x) => (float[{size}] y) <int64[3] s = {{{size}}}> {{ {nodes} }}"
    )


def test_another_shape_stays() -> None:
    assert_stays(
        UnflattenSoftmax(),
        """g (float[2,3,4] x) => (float[3,2,4] y) <int64[3] s = {3,2,4}> {
            f = Flatten<axis = 2>(x) p = Softmax(f) y = Reshape(p, s) }""",
    )


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("reshape", "unsqueeze", "unary")))
def test_property(model: ir.Model) -> None:
    check_pass(UnflattenSoftmax(), model)
