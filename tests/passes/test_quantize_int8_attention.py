"""quantize-int8 of Attention: which are taken, and what is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from backends.layer_speed import layer_speed
from optimizer.calibration import Samples
from optimizer.ir.near_miss import RewriteResult
from optimizer.layer_speed import AttentionWork, LayerWork
from optimizer.ort_session import OrtSession
from optimizer.reference import run_reference
from optimizer.target import Target
from optimizer.testing import check_pass
from passes.quantize_int8 import QuantizeInt8
from tests.passes.int8_graphs import error, operators
from tests.passes.transform import read

RNG = np.random.default_rng(0)
HEADS = "g (float[2,4,32,8] q, float[2,4,32,8] k, float[2,4,32,8] v) => (float[2,4,32,8] y) { y = Attention(q, k, v) }"
PARTS = """g (float[2,32,96] x) => (float[2,32,32] y) <int64[3] n = {32, 32, 32}> {
    h = Neg(x) q, k, v = Split<axis = -1>(h, n)
    y = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v) }"""


def faster(work: LayerWork | AttentionWork) -> tuple[float, float]:
    return 2.0, 1.0


def sets(model: ir.Model) -> list[np.ndarray]:
    shapes = [[size if isinstance(size, int) else 8 for size in x.shape or ()] for x in model.graph.inputs]
    types = [x.dtype.numpy() if x.dtype else np.float32 for x in model.graph.inputs]
    return [RNG.standard_normal(shape).astype(type_) for shape, type_ in zip(shapes, types, strict=True)]


def quantized(text: str, **options: Any) -> tuple[ir.Model, ir.Model, list[np.ndarray]]:
    model = read(text)
    arrays = sets(model)
    samples = Samples.of(model.graph, [tuple(arrays)])
    pass_ = QuantizeInt8(samples=samples, speed=options.pop("speed", faster), **options)
    return model, check_pass(pass_, model), arrays


@pytest.mark.parametrize(("text", "rounded"), [(HEADS, 3), (PARTS, 1)], ids=["heads", "parts"])
def test_operands_are_rounded(text: str, rounded: int) -> None:
    """A value that is split is rounded once, in front of the Split; ONNX Runtime gives the same."""
    model, result, arrays = quantized(text)
    assert operators(result).count("QuantizeLinear") == rounded
    assert operators(result).count("DequantizeLinear") == 3
    assert operators(result).count("Split") == operators(model).count("Split")
    assert 1e-3 < error(model, result, *arrays) < 0.03
    fast = OrtSession.from_model(result).run(arrays)[0]
    np.testing.assert_allclose(fast, run_reference(result, arrays)[0], rtol=0, atol=1e-3)


def test_the_middle_of_the_bytes_is_zero() -> None:
    _, result, _ = quantized(PARTS)
    for node in result.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = node.inputs[2]
            assert zero is not None and zero.const_value is not None
            assert (zero.const_value.numpy() == 128).all() and zero.dtype == ir.DataType.UINT8


@pytest.mark.parametrize(
    "change",
    [
        ("=> (float[2,32,32] y)", "=> (float[2,32,32] y, float[2,32,32] k)"),
        ("y = Attention", "z = Relu(q) y = Attention"),
        ("(q, k, v) }", "(k, q, v) }"),
        (
            PARTS[: PARTS.index("y = ")],
            "g (float[2,32,32] x) => (float[2,32,32] y) { q = Neg(x) k = Abs(x) v = Exp(x) ",
        ),
    ],
    ids=["output", "reader", "order", "no parts"],
)
def test_parts_that_are_rounded_by_themselves(change: tuple[str, str]) -> None:
    _, result, _ = quantized(PARTS.replace(*change))
    assert operators(result).count("QuantizeLinear") == 3


def left_alone(text: str, **options: Any) -> str:
    model = read(text)
    samples = Samples.of(model.graph, [tuple(sets(model))]) if "dynamic" not in options else None
    result = QuantizeInt8(**{"samples": samples, "speed": faster, **options})(model)
    assert isinstance(result, RewriteResult) and not result.modified
    return result.near_misses[0].reason


CACHE = """g (float[2,4,32,8] q, float[2,4,32,8] k, float[2,4,32,8] v, float[2,4,5,8] a, float[2,4,5,8] b)
    => (float[2,4,32,8] y) { y, c, d = Attention(q, k, v, , a, b) }"""


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        (HEADS, {"op_types_to_quantize": "MatMul"}, "not among the operators"),
        (HEADS, {"nodes_to_exclude": "Attention(y)"}, "excluded by name"),
        (HEADS, {"kernels": "onnxruntime"}, "ONNX Runtime has no"),
        (HEADS, {"dynamic": True}, "with calibration data only"),
        (HEADS, {"optimize_for": "size"}, "no weights"),
        (HEADS, {"speed": None}, "no tile model"),
        (HEADS, {"speed": lambda work: (1.0, 1.0)}, "predicted to be no faster"),
        (HEADS.replace("float[", "double["), {}, "'q' is double, not float"),
        (HEADS.replace("32,8]", "32,D]"), {}, "sizes of its heads"),
        (
            "g (float[1,1,16,4] q, float[1,1,1,4] k) => (float[1,1,16,4] y) <float[1,1,1,4] v = {1, 2, 3, 4}> {"
            " y = Attention(q, k, v) }",
            {},
            "is constant",
        ),
        (HEADS.replace("Attention(q", "Attention<softcap = 2.0>(q"), {}, "capped"),
        (CACHE, {}, "has a cache"),
        (
            HEADS.replace("[2,4,32,8] y)", "[2,4,32,8] y, float[2,4,32,8] c)").replace("{ y =", "{ y, c ="),
            {},
            "more than its result",
        ),
    ],
)
def test_attentions_that_are_left_alone(text: str, options: dict[str, Any], reason: str) -> None:
    assert reason in left_alone(text, **options)


def test_a_second_run_changes_nothing_and_says_nothing() -> None:
    _, result, arrays = quantized(HEADS)
    samples = Samples.of(result.graph, [tuple(arrays)])
    again = QuantizeInt8(samples=samples, speed=faster)(result)
    assert isinstance(again, RewriteResult) and not again.modified and not again.near_misses


WORK = AttentionWork(1, 12, 128, 128, 64, 64)


@pytest.mark.parametrize(
    ("work", "target", "is_faster"),
    [
        (WORK, "cpu:znver5", True),
        (AttentionWork(None, 12, None, None, 64, 64), "cpu:znver5", True),
        (WORK, "cpu:x86-64-v3", False),
        (AttentionWork(1, 12, 8, 128, 64, 64), "cpu:znver5", False),
        (AttentionWork(1, 12, 128, 128, 62, 64), "cpu:znver5", False),
    ],
)
def test_the_tile_model(work: AttentionWork, target: str, is_faster: bool) -> None:
    """Bytes win where four are multiplied at a time, and there are rows enough."""
    speed = layer_speed(Target.parse(target))
    assert speed is not None
    before, after = speed(work)
    assert (after < before) == is_faster
