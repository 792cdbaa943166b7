"""quantize-int4: AWQ, which scales the inputs of layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.calibration import Samples
from optimizer.errors import InputError
from optimizer.ir.edit import Editor, Scope
from passes.quantization.awq import fold_scales
from passes.quantization.blocks import Floats
from passes.quantization.emit import NOTE
from passes.quantization.weight_layers import OPERATORS, find_layers
from passes.quantize_int4 import QuantizeInt4
from tests.passes.int4_graphs import answers, correlated, model_of, quantized, samples_of


def weights_of(*shape: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


NORMALIZED = {
    "LayerNormalization": "n = LayerNormalization(x, s, b)",
    "RMSNormalization": "n = RMSNormalization(x, s)",
    "Mul": "n = Mul(s, x)",
}
TAIL = "y = MatMul(n, w) z = Gemm<transB = 1>(n, v)"


def normalized(kind: str, more: str = "", output: str = "") -> ir.Model:
    text = f"g (float[M,32] x) => (float[M,8] y, float[M,6] z{output}) {{ {NORMALIZED[kind]} {TAIL} {more} }}"
    weights = {"s": weights_of(32), "w": weights_of(32, 8, seed=2), "v": weights_of(6, 32, seed=3)}
    if kind == "LayerNormalization":
        weights["b"] = weights_of(32, seed=4)
    return model_of(text, weights)


def folded(model: ir.Model, scales: Floats) -> ir.Model:
    result = model.clone()
    editor = Editor(result)
    layers = find_layers(editor, Scope(result.graph, 23), OPERATORS, ())
    assert len(layers) == 2
    fold_scales(editor, layers, scales)
    assert editor.modified
    return result


def same(model: ir.Model, other: ir.Model) -> None:
    x = weights_of(7, 32, seed=9)
    for wanted, found in zip(answers(model, {"x": x}), answers(other, {"x": x}), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


SCALES = np.exp(weights_of(32, seed=5))


# --- The folded graph computes the same ---


@pytest.mark.parametrize("kind", NORMALIZED)
def test_a_normalization_takes_the_scales(kind: str) -> None:
    model = normalized(kind)
    result = folded(model, SCALES)
    assert [node.op_type for node in result.graph] == [kind, "MatMul", "Gemm"]
    same(model, result)


@pytest.mark.parametrize(
    ("more", "output"), [("r = Neg(n)", ", float[M,32] r"), ("", ", float[M,32] n")], ids=["other user", "graph output"]
)
@pytest.mark.parametrize("kind", NORMALIZED)
def test_what_others_read_stays(kind: str, more: str, output: str) -> None:
    model = normalized(kind, more, output)
    result = folded(model, SCALES)
    assert [node.op_type for node in result.graph if node.op_type != "Neg"] == [kind, "Mul", "MatMul", "Gemm"]
    same(model, result)


@pytest.mark.parametrize(
    "front",
    [
        "n = LayerNormalization<axis = 0>(x, s)",
        "n = Mul(x, k)",
        "n = Mul(x, x)",
        "n = RMSNormalization(x, t)",
        "n = Neg(x)",
    ],
    ids=["other axis", "scalar factor", "no constant", "computed scale", "other operator"],
)
def test_other_inputs_are_multiplied(front: str) -> None:
    text = f"g (float[7,32] x, float[32] t) => (float[7,8] y, float[7,6] z) {{ {front} {TAIL} }}"
    weights = {"w": weights_of(32, 8), "v": weights_of(6, 32)}
    if "axis" in front:
        weights["s"] = weights_of(7, 32)
    if ", k)" in front:
        weights["k"] = np.array([2], np.float32)
    model = model_of(text, weights)
    result = folded(model, SCALES)
    assert [node.op_type for node in result.graph][1:] == ["Mul", "MatMul", "Gemm"]
    given = {"x": weights_of(7, 32, seed=9), "t": weights_of(32, seed=8)}
    for wanted, found in zip(answers(model, given), answers(result, given), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_an_input_of_the_graph_is_multiplied() -> None:
    model = model_of(f"g (float[M,32] n) => (float[M,8] y, float[M,6] z) {{ {TAIL} }}",
                     {"w": weights_of(32, 8), "v": weights_of(6, 32)})  # fmt: skip
    result = folded(model, SCALES)
    assert [node.op_type for node in result.graph] == ["Mul", "MatMul", "Gemm"]
    given = {"n": weights_of(7, 32, seed=9)}
    for wanted, found in zip(answers(model, given), answers(result, given), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


# --- The pass ---


def test_awq_is_much_better_where_a_few_inputs_are_large() -> None:
    model = model_of(f"g (float[M,32] n) => (float[M,8] y, float[M,6] z) {{ {TAIL} }}",
                     {"w": weights_of(32, 8), "v": weights_of(6, 32)})  # fmt: skip
    x = weights_of(400, 32, seed=9)
    x[:, ::8] *= 30
    plain = quantized(model, QuantizeInt4(method="rtn", block_size=16))
    aware = quantized(model, QuantizeInt4(method="awq", block_size=16, samples=samples_of(model, x)))
    wanted, found, other = (answers(each, {"n": x}) for each in (model, aware, plain))
    for index in range(2):
        error, of_rtn = (np.linalg.norm(each[index] - wanted[index]) for each in (found, other))
        assert error < 0.6 * of_rtn
        notes = [json.loads(n.metadata_props[NOTE]) for n in aware.graph if n.op_type == "DequantizeLinear"]
        assert notes[index]["method"] == "awq"
        assert notes[index]["error"] == pytest.approx(error / np.linalg.norm(wanted[index]), rel=0.02)


def test_what_cannot_be_scaled_is_quantized_without() -> None:
    model = model_of(
        """g (float[16,M] x, int64[N] i) => (float[M,8] y, float[N,32] z) {
            y = Gemm<transA = 1>(x, w) z = Gather(v, i) }""",
        {"w": weights_of(16, 8), "v": weights_of(6, 32)},
    )
    samples = Samples([[correlated(16, 40), np.array([1])]])
    result = quantized(model, QuantizeInt4(method="awq", block_size=16, samples=samples))
    assert [node.op_type for node in result.graph] == ["DequantizeLinear", "Gemm", "DequantizeLinear", "Gather"]


def test_awq_goes_on_with_the_scales_that_it_had(tmp_path: Path) -> None:
    model = normalized("RMSNormalization")
    x = weights_of(100, 32, seed=9)
    x[:, ::8] *= 30
    samples = samples_of(model, x)
    wanted = quantized(model, QuantizeInt4(method="awq", block_size=16, samples=samples))

    def stop(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        QuantizeInt4(method="awq", block_size=16, samples=samples, resume=str(tmp_path), progress=stop)(model.clone())
    resumed = quantized(model, QuantizeInt4(method="awq", block_size=16, samples=samples, resume=str(tmp_path)))
    for one, other in zip(answers(wanted, {"x": x}), answers(resumed, {"x": x}), strict=True):
        assert np.array_equal(one, other)


def test_awq_asks_for_data() -> None:
    with pytest.raises(InputError, match="method=awq} needs calibration data"):
        QuantizeInt4(method="awq")(normalized("Mul"))
