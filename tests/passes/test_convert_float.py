"""convert-float."""

from __future__ import annotations

import ml_dtypes
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.errors import PipelineError
from optimizer.ir.fingerprint import fingerprint
from optimizer.ir.provenance import makers
from optimizer.pass_manager import PassManager, parse_pipeline
from optimizer.testing import check_pass, difference, models
from passes.convert_float import ConvertFloat
from passes.registry import PASSES
from tests.passes.bfloat16_graphs import CONVERT, NARROW, W, converted, dtype
from tests.passes.transform import assert_stays, read


def becomes(text: str, expected: str) -> None:
    """The pass keeps its contract, and leaves what is expected, in which the weight is still float32."""
    result, wanted = converted(text), read(expected)
    weight = wanted.graph.initializers["w"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy().astype(ml_dtypes.bfloat16))
    delta = difference(wanted, result, types=False)
    assert not delta, delta


# --- 1. Products and what lies between them ---


def test_a_layer_between_two_casts() -> None:
    becomes(
        f"g (float[N,4] x) => (float[N,4] y) <{W}> {{ a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }}",
        f"""g (float[N,4] x) => (float[N,4] y) <{W}> {{
            n = Cast<to = 16>(x) a = MatMul(n, w) b = Relu(a) c = MatMul(b, w) y = Cast<to = 1>(c) }}""",
    )


def test_a_convolution_and_its_normalization() -> None:
    model = converted("""g (float[N,1,3,3] x) => (float[N,1,3,3] y)
        <float[1,1,1,1] w = {2}, float[1] s = {1.5}, float[1] b = {0.3}, float[1] v = {1}> {
            a = Conv(x, w) c = BatchNormalization(a, s, b, b, v) y = Relu(c) }""")
    assert [node.op_type for node in model.graph] == ["Cast", "Conv", "BatchNormalization", "Relu", "Cast"]
    assert [dtype(model, name) for name in "wsbv"] == [NARROW, *[ir.DataType.FLOAT] * 3]


def test_statistics_of_a_normalization_stay_float32() -> None:
    text = f"""g (float[N,4] x) => (float[N,4] y, float[N,1] m) <{W}, float[4] s = {{1,2,3,4}}> {{
        a = MatMul(x, w) n, m = LayerNormalization(a, s) y = MatMul(n, w) }}"""
    model = converted(text)
    assert dtype(model, "m") == ir.DataType.FLOAT
    assert dtype(model, "s") == NARROW
    assert [node.op_type for node in model.graph].count("Cast") == 2


def test_without_a_product_nothing_would_be_faster() -> None:
    assert_stays(CONVERT, "g (float[N] x) => (float[N] y) { a = Exp(x) b = Relu(a) y = Softmax(b) }")


def test_an_opset_without_bfloat16_for_the_product() -> None:
    text = "g (float[1,1,3,3] x) => (float[1,1,3,3] y) <float[1,1,1,1] w = {2}> { y = Conv(x, w) }"
    assert_stays(CONVERT, text, opset=21)
    result = CONVERT(read(text, 21))
    assert [miss.reason for miss in result.near_misses] == ["Conv of opset 21 is not defined for bfloat16"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("type_", "number"), [("float16", 10), ("double", 11)])
def test_other_floats_stay(type_: str, number: int) -> None:
    assert_stays(CONVERT, f"g ({type_}[N,4] x, {type_}[4,4] w) => ({type_}[N,4] y) {{ y = MatMul(x, w) }}")
    model = converted(
        f"g ({type_}[N,4] x) => ({type_}[N,4] y) <{W}> "
        f"{{ a = Cast<to = 1>(x) b = MatMul(a, w) y = Cast<to = {number}>(b) }}"
    )
    assert [node.op_type for node in model.graph] == ["Cast", "MatMul", "Cast"]


# --- 2. What stays float32 ---


def test_positions_and_angles_stay_float32_with_what_makes_them() -> None:
    model = converted(f"""g (int64[4] p, float[4,4] x) => (float[4,4] y) <{W}, float[1,4] f = {{1, 0.1, 0.01, 0.001}},
            int64[1] one = {{1}}> {{
        a = Cast<to = 1>(p) b = Unsqueeze(a, one) c = MatMul(b, f) d = Cos(c) e = MatMul(x, w) y = Mul(d, e) }}""")
    assert {name: dtype(model, name) for name in "abcdf"} == dict.fromkeys("abcdf", ir.DataType.FLOAT)
    assert dtype(model, "e") == NARROW


def test_an_argument_computed_by_a_layer_is_not_followed_into_it() -> None:
    model = converted(f"""g (float[4,4] x) => (float[4,4] y) <{W}, float k = {{0.25}}> {{
        a = MatMul(x, w) b = Mul(a, k) c = Exp(b) y = MatMul(c, w) }}""")
    assert [dtype(model, name) for name in "abc"] == [NARROW, ir.DataType.FLOAT, ir.DataType.FLOAT]


def test_numbers_that_become_integers_stay_float32() -> None:
    model = converted(f"""g (float[N,4] x) => (float[N,4] y, int64[N,4] i) <{W}, float k = {{300}}> {{
        a = Mul(x, k) i = Cast<to = 7>(a) y = MatMul(x, w) }}""")
    assert dtype(model, "a") == ir.DataType.FLOAT


def test_small_powers_are_products_and_large_ones_magnify() -> None:
    text = f"""g (float[N,4] x) => (float[N,4] y) <{W}, float k = {{%s}}> {{
        a = MatMul(x, w) b = Abs(a) c = Pow(b, k) y = MatMul(c, w) }}"""
    assert dtype(converted(text % "2.5"), "c") == NARROW
    assert dtype(converted(text % "2.5"), "k") == ir.DataType.FLOAT
    assert dtype(converted(text % "7"), "c") == ir.DataType.FLOAT


@pytest.mark.parametrize("op", ["CumSum(a, first)", "ReduceProd<keepdims = 0>(a)"])
def test_delicate_operators_stay_float32(op: str) -> None:
    model = converted(f"""g (float[4,4] x) => (float[4,4] y) <{W}, int64 first = {{0}}> {{
        a = MatMul(x, w) b = {op} c = Relu(b) d = Mul(a, c) y = MatMul(d, w) }}""")
    assert dtype(model, "b") == ir.DataType.FLOAT


def test_operators_can_be_kept() -> None:
    text = f"g (float[N,4] x) => (float[N,4] y) <{W}> {{ a = MatMul(x, w) b = Softmax(a) y = MatMul(b, w) }}"
    assert dtype(converted(text), "b") == NARROW
    (pass_,) = parse_pipeline("convert-float{keep=Softmax+Gelu}", PASSES)
    assert str(pass_) == "convert-float{keep=Softmax+Gelu}"
    assert isinstance(pass_, ConvertFloat)
    assert dtype(converted(text, pass_), "b") == ir.DataType.FLOAT


def test_functions_and_other_domains_stay_float32() -> None:
    model = converted(f"""g (float[N,4] x) => (float[N,4] y) <{W}> {{
        a = MatMul(x, w) b = local.Double(a) y = MatMul(b, w) }}
        <domain: "local", opset_import: ["" : 23]> Double (x) => (y) {{ y = Add(x, x) }}""")
    assert [node.op_type for node in model.graph][:4] == ["Cast", "MatMul", "Cast", "Double"]


def test_sequences_stay_float32() -> None:
    model = converted(f"""g (float[4,4] x) => (float[8,4] y) <{W}> {{
        a = MatMul(x, w) s = SequenceConstruct(a, a) b = ConcatFromSequence<axis = 0>(s) y = MatMul(b, w) }}""")
    assert dtype(model, "b") == ir.DataType.FLOAT


def test_other_types_are_refused() -> None:
    with pytest.raises(PipelineError, match=r"convert-float\{to\} must be bfloat16 or float16, not 'float8'"):
        ConvertFloat(to="float8")


# --- 3. The fewest casts ---


def test_one_cast_serves_all_readers() -> None:
    model = converted(f"""g (float[N,4] x) => (float[N,4] y, float[N,4] z) <{W}> {{
        a = MatMul(x, w) b = MatMul(x, w) c = Add(a, b) y = Relu(c) z = Neg(c) }}""")
    assert [node.op_type for node in model.graph] == ["Cast", "MatMul", "MatMul", "Add", "Cast", "Relu", "Neg"]


def test_what_would_need_more_casts_than_it_is_worth_stays_float32() -> None:
    """Two results: in bfloat16 each would need its own cast, in float32 what they have in common needs one."""
    model = converted(f"""g (float[N,4] x) => (float[N,4] y, float[N,4] z) <{W}> {{
        a = MatMul(x, w) b = Relu(a) c = Tanh(b) y = Neg(c) d = Sigmoid(c) z = Neg(d) }}""")
    types = {name: dtype(model, name) for name in "abcd"}
    assert types == {"a": NARROW, "b": NARROW, "c": NARROW, "d": ir.DataType.FLOAT}


def test_a_cast_of_the_model_gives_the_type_that_is_wanted() -> None:
    becomes(
        f"g (int64[N,4] x) => (float[N,4] y) <{W}> {{ a = Cast<to = 1>(x) y = MatMul(a, w) }}",
        f"g (int64[N,4] x) => (float[N,4] y) <{W}> {{ a = Cast<to = 16>(x) b = MatMul(a, w) y = Cast<to = 1>(b) }}",
    )


def test_a_cast_that_is_read_in_both_types_becomes_two_of_the_same_source() -> None:
    model = converted(f"""g (int64[N,4] x) => (float[N,4] y, float[N,4] z) <{W}> {{
        a = Cast<to = 1>(x) y = MatMul(a, w) z = Sin(a) }}""")
    sources = [node.inputs[0].name for node in model.graph if node.op_type == "Cast" and node.inputs[0] is not None]
    assert sources[:2] == ["x", "x"]


def test_a_value_that_was_bfloat16_before_is_read_directly() -> None:
    becomes(
        f"g (bfloat16[N,4] x) => (float[N,4] y, float[N,4] z) <{W}> "
        "{ a = Cast<to = 1>(x) z = Exp(a) y = MatMul(a, w) }",
        f"g (bfloat16[N,4] x) => (float[N,4] y, float[N,4] z) <{W}> "
        "{ a = Cast<to = 1>(x) z = Exp(a) b = MatMul(x, w) y = Cast<to = 1>(b) }",
    )


def test_a_cast_to_bfloat16_has_nothing_left_to_do() -> None:
    model = converted(
        f"""g (float[N,4] x) => (bfloat16[N,4] y) <{W}> {{
        a = MatMul(x, w) b = Cast<to = 16>(a) y = Neg(b) }}"""
    )
    assert [node.op_type for node in model.graph] == ["Cast", "MatMul", "Neg"]


def test_a_filled_tensor_is_filled_in_the_type_that_is_wanted() -> None:
    model = converted(f"""g (float[4,4] x) => (float[4,4] y) <{W}, int64[2] s = {{4, 4}}> {{
        a = ConstantOfShape<value = float[1] {{0.5}}>(s) b = MatMul(x, w) c = MatMul(a, b) y = Relu(c) }}""")
    assert dtype(model, "a") == NARROW


def test_an_output_in_the_middle_keeps_its_name_and_type() -> None:
    model = converted(f"""g (float[N,4] x) => (float[N,4] y, float[N,4] m) <{W}> {{
        m = MatMul(x, w) y = MatMul(m, w) }}""")
    assert dtype(model, "m") == ir.DataType.FLOAT
    maker = model.graph.outputs[1].producer()
    assert maker is not None and maker.op_type == "Cast"


def test_a_branch_reads_what_is_bfloat16_around_it_and_gives_float32() -> None:
    model = converted(f"""g (float[N,4] x, bool c) => (float[N,4] y) <{W}> {{
        a = MatMul(x, w)
        b = If (c) <then_branch = t () => (float[N,4] p) {{ q = Relu(a) p = MatMul(q, w) }},
                    else_branch = e () => (float[N,4] r) {{ r = Exp(a) }}>
        y = MatMul(b, w) }}""")
    (branching,) = [node for node in model.graph if node.op_type == "If"]
    assert branching.outputs[0].dtype == ir.DataType.FLOAT
    inside = branching.attributes["then_branch"].as_graph()
    assert [node.op_type for node in inside] == ["Relu", "MatMul", "Cast"]


def test_what_a_loop_carries_stays_float32() -> None:
    model = converted(f"""g (float[4,4] x, int64 n, bool c) => (float[4,4] y) <{W}> {{
        y = Loop (n, c, x) <body = b (int64 i, bool k, float[4,4] s) => (bool k2, float[4,4] t) {{
            k2 = Identity(k) m = MatMul(s, w) t = Tanh(m) }}> }}""")
    body = model.graph[0].attributes["body"].as_graph()
    assert [node.op_type for node in body] == ["Cast", "Identity", "MatMul", "Tanh", "Cast"]


# --- All of it ---


def test_the_report_names_the_pass_at_the_casts() -> None:
    model = read(f"g (float[N,4] x) => (float[N,4] y) <{W}> {{ y = MatMul(x, w) }}")
    PassManager([CONVERT]).run(model)
    assert [makers(node) for node in model.graph] == [("convert-float",), (), ("convert-float",)]


FAMILIES = (
    "attention", "binary", "casts", "clip", "compare", "concat-split", "constants", "conv", "function", "gather",
    "gemm", "if", "layer", "loop", "matmul", "norm", "pool", "reduce", "softmax", "unary",
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(models(families=FAMILIES, max_steps=10))
def test_property(model: ir.Model) -> None:
    check_pass(CONVERT, model)


@settings(max_examples=20, deadline=None)
@given(models(families=("matmul", "layer", "unary", "casts"), dtypes=(ir.DataType.FLOAT16, ir.DataType.DOUBLE)))
def test_property_of_other_floats(model: ir.Model) -> None:
    result = check_pass(CONVERT, model)
    types = {value.dtype for node in model.graph for value in node.outputs}
    assert ir.DataType.FLOAT in types or fingerprint(result) == fingerprint(model)
