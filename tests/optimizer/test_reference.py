"""The oracle runs the original model, and its tolerance can fail."""

from __future__ import annotations

import dataclasses
import math
import re

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer.comparison import EPSILON_PER_OP, Tolerance, compare
from optimizer.errors import UnsupportedError, VerificationError
from optimizer.frontends import load_model
from optimizer.reference import Oracle, run_reference
from passes.convert_float import ConvertFloat
from tests.optimizer.build import INT64, model, node, perceptron, perceptron_output, value


@pytest.fixture
def oracle() -> Oracle:
    return Oracle(load_model(perceptron()), seed=0)


def test_the_oracle_computes_what_the_model_says(oracle: Oracle) -> None:
    np.testing.assert_allclose(oracle.outputs[0], perceptron_output(oracle.inputs[0]), rtol=1e-4, atol=1e-4)
    assert oracle.input_shapes == {"x": (2, 32)}
    assert oracle.tolerance.error == pytest.approx(1e-5 * math.sqrt(4))


def test_a_small_error_passes_and_a_larger_one_does_not(oracle: Oracle) -> None:
    right = oracle.outputs[0]
    good = oracle.compare([right * (1 + 1e-6)])
    assert good.passed
    assert good.error == pytest.approx(1e-6, rel=0.1)
    bad = oracle.compare([right * (1 + 1e-4)])
    assert not bad.passed
    with pytest.raises(
        VerificationError, match=r"pass 'x' does not compute .* output 'y': its relative error is 1.0e-04"
    ):
        oracle.verify([right * (1 + 1e-4)], "pass 'x'")


def test_one_wrong_element_of_many_is_found() -> None:
    right = np.ones(1000, np.float32)
    wrong = right.copy()
    wrong[7] = 1.001
    assert not compare([wrong], [right], ["y"], 1e-5).passed


ONE = np.ones(4, np.float32)
NAN = np.array([1, np.nan, np.inf, -np.inf], np.float32)


@pytest.mark.parametrize(
    ("actual", "expected", "reason"),
    [
        (ONE[:3], ONE, "its shape is .3,., it must be .4,."),
        (ONE.astype(np.float64), ONE, "its type is float64, it must be float32"),
        (NAN, ONE, "NaN or infinity stand at other places"),
        (ONE, NAN, "NaN or infinity stand at other places"),
        (np.array([1, np.nan, -np.inf, -np.inf], np.float32), NAN, "NaN or infinity stand at other places"),
        (np.array([1, 2]), np.array([1, 3]), "1 of its 2 elements differ"),
        (np.array([True]), np.array([False]), "1 of its 1 elements differ"),
        (np.array(["a"], object), np.array(["b"], object), "its strings differ"),
        ([ONE], [ONE, ONE], "it has 1 elements, it must have 2"),
        (None, [ONE], "one of the two is absent"),
        ([ONE], None, "one of the two is absent"),
        ([ONE * 2], [ONE], "its relative error is 1.0e.00"),
    ],
)
def test_what_differs_is_named(actual: object, expected: object, reason: str) -> None:
    result = compare([actual], [expected], ["y"], 1e-5)
    assert not result.passed
    assert re.search(reason, result.reason)


@pytest.mark.parametrize(
    "same",
    [
        NAN,
        np.zeros(3, np.float32),
        np.array([1, 2], np.int64),
        np.array(["a", "b"], object),
        np.array([1.5], ml_dtypes.bfloat16),
        np.array([1, -2], ml_dtypes.int4),
        np.array([1 + 2j], np.complex64),
        [ONE, NAN],
        None,
    ],
    ids=range(9),
)
def test_equal_results_pass(same: object) -> None:
    result = compare([same], [same], ["y"], 1e-5)
    assert result.passed
    assert result.error == 0


def test_the_worst_output_is_named() -> None:
    result = compare([ONE, ONE * 1.5, ONE * 1.1], [ONE, ONE, ONE], ["a", "b", "c"], 1e-5)
    assert result.output == "b"


def test_where_the_graph_rounds_one_percent_of_the_integers_may_differ() -> None:
    right = np.zeros(1000, np.uint8)
    wrong = right.copy()
    wrong[:10] = 1
    assert compare([wrong], [right], ["q"], 1e-5, rounds=True).passed
    wrong[:11] = 1
    assert not compare([wrong], [right], ["q"], 1e-5, rounds=True).passed
    assert not compare([wrong[:1]], [right[:1]], ["q"], 1e-5).passed


def chain(length: int, dtype: int = onnx.TensorProto.FLOAT) -> ir.Model:
    nodes = [node("Tanh", [f"x{i}"], [f"x{i + 1}"]) for i in range(length)]
    return load_model(model(nodes, [value("x0", [4], dtype)], [value(f"x{length}", [4], dtype)]))


def test_a_sigmoid_is_as_accurate_as_its_range_is_large() -> None:
    nodes = [node("Sigmoid", ["x"], ["s"]), node("Reshape", ["s", "shape"], ["y"]), node("Relu", ["x"], ["z"])]
    given = model(nodes, [value("x", [4]), value("shape", [2], INT64)], [value("y", [2, 2]), value("z", [4])])
    tolerance = Tolerance.of(load_model(given))
    tiny = np.full((2, 2), 1e-8, np.float32)
    assert tolerance.compare([tiny + np.float32(2e-7)], [tiny], ["y"]).passed
    assert not tolerance.compare([tiny + np.float32(3e-7)], [tiny], ["y"]).passed
    assert not tolerance.compare([tiny + np.float32(2e-7)], [tiny], ["z"]).passed
    large = np.full((2, 2), 0.5, np.float32)
    assert not tolerance.compare([large + np.float32(1e-4)], [large], ["y"]).passed


def test_the_tolerance_grows_with_the_root_of_the_longest_chain() -> None:
    assert Tolerance.of(chain(100)).error == pytest.approx(1e-4)
    assert Tolerance.of(chain(1)).error == EPSILON_PER_OP[ir.DataType.FLOAT]
    assert Tolerance.of(chain(4, onnx.TensorProto.FLOAT16)).error == pytest.approx(
        2 * EPSILON_PER_OP[ir.DataType.FLOAT16]
    )
    nodes = [node("ArgMax", ["x"], ["y"])]
    chooses = load_model(model(nodes, [value("x", [4, 4])], [value("y", None, INT64)]))
    assert Tolerance.of(chooses).error == 1e-2


def test_a_model_that_onnx_runtime_cannot_load_runs_in_the_reference_implementation() -> None:
    dtype = onnx.TensorProto.INT4
    proto = model([node("Identity", ["x"], ["y"])], [value("x", [4], dtype)], [value("y", [4], dtype)])
    oracle = Oracle(load_model(proto), seed=0)
    assert oracle.compare(oracle.inputs).passed


def test_the_reference_implementation_is_not_asked_for_much() -> None:
    dtype = onnx.TensorProto.INT4
    nodes = [node("Identity", ["q"], ["r"]), node("MatMul", ["x", "x"], ["y"])]
    inputs = [value("q", [4], dtype), value("x", [1024, 1024])]
    proto = model(nodes, inputs, [value("r", [4], dtype), value("y", None)])
    with pytest.raises(UnsupportedError, match="ONNX Runtime cannot load this graph"):
        Oracle(load_model(proto), seed=0)


def test_sizes_are_found_by_trying() -> None:
    """Only an image of at least 32 pixels survives four poolings of 7."""
    nodes = [node("MaxPool", [f"x{i}"], [f"x{i + 1}"], kernel_shape=[7, 7]) for i in range(5)]
    proto = model(nodes, [value("x0", [1, 3, "height", "width"])], [value("x5", None)])
    assert Oracle(load_model(proto), seed=0).input_shapes["x0"][2] > 30


def test_why_there_is_no_reference_is_said() -> None:
    nodes = [node("RandomNormalLike", ["x"], ["y"], name="noise")]
    proto = model(nodes, [value("x", [4])], [value("y", [4])])
    with pytest.raises(UnsupportedError, match="'noise': RandomNormalLike gives another result in each run"):
        Oracle(load_model(proto), seed=0)
    proto = model([node("Reshape", ["x", "s"], ["y"])], [value("x", [5]), value("s", [2], INT64)], [value("y", None)])
    with pytest.raises(
        UnsupportedError, match=r"no inputs were found that the model runs with .*: give example_inputs"
    ):
        Oracle(load_model(proto), seed=0)


# --- bfloat16 ---


def in_bfloat16() -> ir.Model:
    converted = load_model(perceptron())
    ConvertFloat()(converted)
    return converted


def test_a_form_in_bfloat16_may_be_further_off_and_others_may_not(oracle: Oracle) -> None:
    off = [oracle.outputs[0] * (1 + 4e-3)]
    assert oracle.compare(off, in_bfloat16()).passed
    assert not oracle.compare(off, load_model(perceptron())).passed
    assert not oracle.compare([oracle.outputs[0] * 1.2], in_bfloat16()).passed


def test_a_form_that_computes_more_finely_gets_no_other_tolerance() -> None:
    coarse, fine = Tolerance.of(in_bfloat16()), Tolerance.of(load_model(perceptron()))
    assert coarse.widened_for(load_model(perceptron())) is coarse
    assert fine.widened_for(in_bfloat16()).error == coarse.error == pytest.approx(1.6e-2 * math.sqrt(6))


def test_a_few_rows_of_garbage_are_no_rounding_error() -> None:
    random = np.random.default_rng(0)
    right = random.standard_normal((256, 64)).astype(np.float32)
    tolerance = Tolerance(0.15, epsilon=EPSILON_PER_OP[ir.DataType.BFLOAT16])
    rounded = right + 0.1 * random.standard_normal(right.shape).astype(np.float32)
    assert tolerance.compare([rounded], [right], ["y"]).passed
    garbage = right.copy()
    garbage[7] = -garbage[7]
    found = tolerance.compare([garbage], [right], ["y"])
    assert found.error < 0.15
    assert "an element is off by" in found.reason
    assert dataclasses.replace(tolerance, epsilon=1e-5).compare([garbage], [right], ["y"]).passed
    assert dataclasses.replace(tolerance, rounds=True).compare([garbage], [right], ["y"]).passed


def test_what_magnifies_rounding_errors_may_be_as_far_off_as_they_make_it() -> None:
    """The difference of two large products: a hundredth of what was rounded."""
    text = """g (float[8,8] x) => (float[8,8] y) <float[8,8] w, float s = {1.03}> {
        a = MatMul(x, w) b = Mul(a, s) c = Sub(b, a) y = Relu(c) }"""
    weights = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> {text.replace("float[8,8] w, ", "")}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    original = load_model(proto)
    form = original.clone()
    ConvertFloat()(form)
    oracle = Oracle(original, seed=0)
    (rounded,) = run_reference(form, oracle.inputs)
    assert not oracle.compare([rounded], form).passed
    assert oracle.verify([rounded], "the form", form).passed
    with pytest.raises(VerificationError, match="the form does not compute"):
        oracle.verify([rounded[::-1]], "the form", form)
    with pytest.raises(VerificationError, match="the original does not compute"):
        oracle.verify([rounded], "the original", original)


def spots(shift: float, scale: float, count: int) -> tuple[ir.Model, ir.Model]:
    """A map of a few spots, which a `Sigmoid` ends, and its form in bfloat16."""
    text = f"""g (float[1,64] x) => (float[1,{count}] y) <float t = {{{shift}}}, float s = {{{scale}}}> {{
        a = MatMul(x, w) b = Mul(a, s) c = Add(b, t) y = Sigmoid(c) }}"""
    weights = np.random.default_rng(1).standard_normal((64, count)).astype(np.float32) / 8
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> {text}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    original = load_model(proto)
    form = original.clone()
    ConvertFloat()(form)
    return original, form


def test_where_a_spot_begins_is_a_matter_of_rounding() -> None:
    original, form = spots(-16, 6, 512)
    oracle = Oracle(original, seed=0)
    (rounded,) = run_reference(form, oracle.inputs)
    assert "an element is off by" in oracle.compare([rounded], form).reason
    assert oracle.verify([rounded], "the form", form).passed
    with pytest.raises(VerificationError, match="an element is off by"):
        wrong = rounded.copy()
        wrong[0, 0] += 4.2 * np.abs(rounded - oracle.outputs[0]).max()
        oracle.verify([wrong], "the form", form)


def test_nothing_at_all_is_no_result_however_much_rounding_costs() -> None:
    original, form = spots(-40, 12, 2048)
    oracle = Oracle(original, seed=1)
    with pytest.raises(VerificationError, match=r"its relative error is 1.0e\+00, 5.0e-01 is allowed"):
        oracle.verify([np.zeros_like(oracle.outputs[0])], "nothing at all", form)
