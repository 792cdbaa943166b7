from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.pass_manager import PassManager
from optimizer.testing import check_pass, models
from passes.fold_constants import FoldConstants
from tests.backends.running import parse
from tests.passes.transform import assert_becomes, assert_stays, read


def test_a_chain_folds_in_one_run() -> None:
    assert_becomes(
        FoldConstants(),
        """g (float[2] x) => (float[2] y) <float[2] a = {1,2}, float[2] b = {3,4}> {
            c = Add(a, b) d = Neg(c) y = Mul(x, d) }""",
        "g (float[2] x) => (float[2] y) <float[2] d = {-4,-6}> { y = Mul(x, d) }",
    )


def test_several_outputs() -> None:
    assert_becomes(
        FoldConstants(),
        """g (float[2] x) => (float[2] y) <float[4] a = {1,2,3,4}> {
            b, c = Split<axis = 0, num_outputs = 2>(a) d = Mul(x, b) y = Add(d, c) }""",
        "g (float[2] x) => (float[2] y) <float[2] b = {1,2}, float[2] c = {3,4}> { d = Mul(x, b) y = Add(d, c) }",
    )


def test_in_a_branch() -> None:
    assert_becomes(
        FoldConstants(),
        """g (float[2] x, bool k) => (float[2] y) <float[2] a = {1,2}> { y = If (k) <
            then_branch = t () => (o) { c = Neg(a) o = Mul(x, c) }, else_branch = e () => (p) { p = Add(x, a) }> }""",
        """g (float[2] x, bool k) => (float[2] y) <float[2] a = {1,2}> { y = If (k) <
            then_branch = t () => (o) <float[2] c = {-1,-2}> { o = Mul(x, c) },
            else_branch = e () => (p) { p = Add(x, a) }> }""",
    )


def test_in_a_function_a_node_gives_the_constant() -> None:
    assert_becomes(
        FoldConstants(),
        """g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 23]> f (a) => (b) {
            c = Constant<value = float {2}>() d = Neg(c) b = Mul(a, d) }""",
        """g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 23]> f (a) => (b) { d = Constant<value = float {-2}>() b = Mul(a, d) }""",
    )


def test_an_output_of_the_graph_is_given_by_a_node() -> None:
    assert_becomes(
        FoldConstants(),
        "g (float[2] x) => (float[2] y, float[2] c) <float[2] a = {1,2}> { c = Neg(a) y = Mul(x, c) }",
        "g (float[2] x) => (float[2] y, float[2] c) { c = Constant<value = float[2] {-1,-2}>() y = Mul(x, c) }",
    )


@pytest.mark.parametrize(
    "node",
    [
        "c = RandomNormal<shape = [2]>()",
        "c = RandomUniformLike(a)",
        "c = Bernoulli(a)",
        "c = DequantizeLinear(q, s)",
        "c = local.Mystery(a)",
        "c = Neg(d)",
    ],
)
def test_stays(node: str) -> None:
    constants = "<float[2] d = {1,2}, float[2] a = {1,2}, int8[2] q = {1,2}, float s = {0.5}>"
    model = read(f"g (float[2] x, float[2] d) => (float[2] y) {constants} {{ {node} y = Mul(x, c) }}")
    assert not FoldConstants()(model).modified


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint4])
def test_codes_of_four_bits_stay(dtype: type) -> None:
    text = "g (float[3] x) => (float[3] y) { i = Cast<to=6>(w) c = Gather(b, i) y = Mul(x, c) }"
    weights = {"w": np.array([1, 0, 2]).astype(dtype), "b": np.array([0.5, -1, 3], np.float32)}
    assert not FoldConstants()(ir.from_proto(parse(text, weights))).modified


def test_strings_stay() -> None:
    assert_stays(
        FoldConstants(),
        """g (float[2] x) => (string[2] y, float[2] z) <string[1] s = {"a"}, string[1] t = {"b"}> {
            c = Concat<axis = 0>(s, t) y = Identity(c) z = Neg(x) }""",
    )


def test_a_sequence_stays() -> None:
    assert_stays(
        FoldConstants(),
        """g (float[2] x) => (float[2] y) <float[2] a = {1,2}, int64 zero = {0}> {
            s = SequenceConstruct(a) t = SequenceInsert(s, x) c = SequenceAt(t, zero) y = Mul(x, c) }""",
    )


def total_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)


@pytest.mark.parametrize("cap", [0, 100, 2000, 4000, 6000, 100_000])
def test_the_model_never_grows_beyond_the_cap(cap: int) -> None:
    model = read("""g (float[N] x) => (float[A] y, float[B] z) <int64[1] n = {1000}, int64[1] m = {500}> {
        a = ConstantOfShape<value = float[1] {2}>(n) b = ConstantOfShape<value = float[1] {3}>(m)
        y = local.Use(a, x) z = local.Use(b, x) }""")
    before = total_bytes(model)
    passes = PassManager([FoldConstants(max_growth_bytes=cap)])
    passes.run(model)
    assert total_bytes(model) <= before + cap
    assert not passes.run(model).modified
    assert ("a" in model.graph.initializers) == (cap >= 4000)
    assert ("b" in model.graph.initializers) == (cap == 2000 or cap >= 6000)


def test_what_shrinks_again_does_not_count() -> None:
    """A Tile of one element is summed up: only the sum stays, so the cap is free again for the next."""
    model = read("""g (float[N] x) => (float[N] y) <int64[1] n = {1000}> {
        a = ConstantOfShape<value = float[1] {2}>(n) p = ReduceSum<keepdims = 0>(a) z = Mul(x, p)
        b = ConstantOfShape<value = float[1] {3}>(n) q = ReduceSum<keepdims = 0>(b) y = Mul(z, q) }""")
    FoldConstants(max_growth_bytes=4000)(model)
    assert [node.op_type for node in model.graph] == ["Mul", "Mul"]


def test_a_weight_that_is_only_transposed_is_no_growth() -> None:
    model = read("g (float[N,100] x) => (float[N,200] y) <float[1] w = {0}> { t = Transpose(w) y = MatMul(x, t) }")
    weight = np.arange(20_000, dtype=np.float32).reshape(200, 100)
    model.graph.initializers["w"].const_value = ir.tensor(weight)
    model.graph.initializers["w"].shape = ir.Shape(weight.shape)
    FoldConstants(max_growth_bytes=0)(model)
    (folded,) = model.graph.initializers.values()
    assert folded.const_value is not None
    np.testing.assert_array_equal(folded.const_value.numpy(), weight.T)


def test_a_range_that_blows_up_is_not_even_computed() -> None:
    model = read("""g (float[1] x) => (int64[M] r) <int64 a = {0}, int64 b = {4000000000}, int64 s = {1}> {
        r = Range(a, b, s) }""")
    assert not FoldConstants()(model).modified


def test_operators_that_the_reference_computes_slowly() -> None:
    assert_becomes(
        FoldConstants(),
        """g (float[1,1,2,2] x) => (float[1,1,2,2] y)
        <float[1,1,3,3] a = {1,2,3,4,5,6,7,8,9}, float[1,1,2,2] w = {1,0,0,1}> {
            c = Conv(a, w) y = Mul(x, c) }""",
        "g (float[1,1,2,2] x) => (float[1,1,2,2] y) <float[1,1,2,2] c = {6,8,12,14}> { y = Mul(x, c) }",
    )


@pytest.mark.parametrize("opset", [7, 13, 18, 25])
def test_every_opset(opset: int) -> None:
    assert_becomes(
        FoldConstants(),
        "g (float[1] x) => (float[1] y) <float[1] a = {4}> { c = Sqrt(a) y = Mul(x, c) }",
        "g (float[1] x) => (float[1] y) <float[1] c = {2}> { y = Mul(x, c) }",
        opset=opset,
    )


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("constants", "binary", "neutral", "reshape", "transpose", "if", "repeat")))
def test_property(model: ir.Model) -> None:
    check_pass(FoldConstants(), model)


def test_elements_gathered_from_larger_data() -> None:
    """The reference implementation of ONNX cannot."""
    assert_becomes(
        FoldConstants(),
        """g (float[2] x) => (float[1,2] y) <float[2,3] d = {1,2,3,4,5,6}, int64[1,2] i = {-1,0}> {
            e = GatherElements<axis = 1>(d, i) y = Add(e, x) }""",
        "g (float[2] x) => (float[1,2] y) <float[1,2] e = {3,1}> { y = Add(e, x) }",
    )


WEIGHT = """g (float[N,9] x) => (float[N,7] y, OTHER) <int64[2] s = {9,7}> {
    w = ConstantOfShape<value = float[1] {0.5}>(s) z = USE y = Gemm(x, w) }"""


def test_the_weight_of_a_layer_is_folded_whatever_its_size() -> None:
    text = WEIGHT.replace("OTHER", "float[N,9] z").replace("USE", "Relu(x)")
    model = check_pass(FoldConstants(max_growth_bytes=0), read(text))
    assert [node.op_type for node in model.graph] == ["Relu", "Gemm"]


@pytest.mark.parametrize(("use", "shape"), [("Relu(w)", "9,7"), ("Gemm<transB = 1>(w, w)", "9,9")])
def test_what_is_not_only_a_weight_counts_as_growth(use: str, shape: str) -> None:
    text = WEIGHT.replace("OTHER", f"float[{shape}] z").replace("USE", use)
    assert_stays(FoldConstants(max_growth_bytes=0), text)
