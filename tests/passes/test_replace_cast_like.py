from __future__ import annotations

import onnx_ir as ir
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.replace_cast_like import ReplaceCastLike
from tests.passes.transform import assert_becomes, read


def test_the_type_is_written_out() -> None:
    assert_becomes(
        ReplaceCastLike(),
        "g (float[N] x, int64[M] z) => (int64[N] y) { y = CastLike(x, z) }",
        "g (float[N] x, int64[M] z) => (int64[N] y) { y = Cast<to = 7>(x) }",
    )


def test_a_type_that_is_inferred() -> None:
    assert_becomes(
        ReplaceCastLike(),
        "g (float[N] x) => (int64[N] y) { s = Shape(x) y = CastLike(x, s) }",
        "g (float[N] x) => (int64[N] y) { y = Cast<to = 7>(x) }",
    )


def test_attributes_stay() -> None:
    model = read("g (float[N] x, float8e4m3fn[1] z) => (float8e4m3fn[N] y) { y = CastLike<saturate = 0>(x, z) }")
    assert ReplaceCastLike()(model).modified
    (cast,) = model.graph
    assert cast.op_type == "Cast"
    assert cast.attributes["saturate"].as_int() == 0
    assert cast.attributes["to"].as_int() == ir.DataType.FLOAT8E4M3FN


def test_an_unknown_type_stays() -> None:
    model = read("""g (float[N] x) => (float[N] y) { y = local.f(x, x) }
        <domain: "local", opset_import: ["" : 23]> f (a, b) => (c) { c = CastLike(a, b) }""")
    assert not ReplaceCastLike()(model).modified


@settings(max_examples=10, derandomize=True, deadline=None)
@given(models())
def test_property(model: ir.Model) -> None:
    check_pass(ReplaceCastLike(), model)
