"""What the rounding of each layer costs is measured for each layer alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer import Report, load
from optimizer.calibration import Samples
from optimizer.errors import UnsupportedError
from optimizer.frontends import load_model
from optimizer.layer_boards import grouped
from optimizer.layer_errors import LayerError, layer_table, ranked
from optimizer.layer_slices import find_slices
from optimizer.quantization_report import LayerErrorRecorder, measure_layers
from optimizer.quantized_comparison import loss_of
from optimizer.reference import run_reference
from optimizer.report_page import page_of
from optimizer.text import render
from passes.quantize_int8 import QuantizeInt8
from passes.remove_unused import RemoveUnused
from tests.optimizer.build import perceptron
from tests.optimizer.test_quantized_models import IMAGES, SETS, X, network, quantized


def both(source: Any, sets: Any, **options: Any) -> tuple[ir.Model, ir.Model]:
    before = load_model(source)
    after = before.clone()
    QuantizeInt8(samples=Samples.of(before.graph, sets), **options)(after)
    return before, after


@pytest.mark.parametrize(
    "options",
    [{}, {"kernels": "onnxruntime"}, {"dynamic": True}, {"dynamic": True, "kernels": "onnxruntime"}],
    ids=str,
)
def test_the_effect_of_a_layer_is_that_of_a_model_with_this_layer_alone_quantized(options: dict[str, Any]) -> None:
    before, after = both(perceptron(), SETS, bias_correction=False, **options)
    rows = measure_layers(before, after, [[X]])
    assert [(row.node, row.operator, row.weight) for row in rows] == [
        ("first", "MatMul", "int8"),
        ("second", "MatMul", "int8"),
    ]
    (exact,) = run_reference(before, [X])
    for row, other in zip(rows, ("second", "first"), strict=True):
        alone = both(perceptron(), SETS, bias_correction=False, nodes_to_exclude=other, **options)[1]
        assert row.effect == pytest.approx(loss_of(run_reference(alone, [X]), [exact]), rel=0.02)
    # Nothing follows the last layer, and nothing before it is rounded.
    assert rows[1].effect == pytest.approx(rows[1].error, rel=1e-3)


def test_the_error_of_a_layer_is_taken_with_exact_inputs_over_all_sets() -> None:
    before, after = both(network(), IMAGES)
    rows = {row.node: row for row in measure_layers(before, after, [[item["x"]] for item in IMAGES])}
    assert list(rows) == ["conv", "head"]
    names = ["c", "y"]
    part = before.clone()
    part.graph.outputs.insert(0, next(v for n in part.graph for v in n.outputs if v.name == "c"))
    part.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    alone = part.clone()
    QuantizeInt8(samples=Samples.of(before.graph, IMAGES), nodes_to_exclude="head")(alone)
    noise = signal = 0.0
    for item in IMAGES:
        exact, rounded = (run_reference(m, [item["x"]])[names.index("c")] for m in (part, alone))
        noise, signal = noise + float(np.sum((rounded - exact) ** 2)), signal + float(np.sum(exact**2))
    assert rows["conv"].error == pytest.approx(np.sqrt(noise / signal), rel=0.02)


def test_a_layer_that_is_an_output_and_read_by_another() -> None:
    source = perceptron()
    source.graph.output.add().CopyFrom(source.graph.value_info.add(name="h"))
    source.graph.output[1].type.tensor_type.elem_type = 1
    before, after = both(source, SETS)
    rows = measure_layers(before, after, [[X]])
    assert [row.node for row in rows] == ["first", "second"]
    assert all(row.effect is not None and row.effect > 1e-3 for row in rows)


def chain() -> onnx.ModelProto:
    """Five products with a connection around the second and third, an output in the middle, and one before them all."""
    text = """<ir_version: 10, opset_import: ["" : 23]>
        chain (float[N,32] x) => (float[N,32] y, float[N,32] c, float[N,32] r) {
            r = Relu(x)
            a = MatMul(r, w0) b = Tanh(a) c = MatMul(b, w1) d = Relu(c) e = MatMul(d, w2)
            f = Add(e, b) g = MatMul(f, w3) h = Tanh(g) y = MatMul(h, w4)
        }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(4)
    for i in range(5):
        weight = (rng.standard_normal((32, 32)) / 6).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, f"w{i}"))
    return model


@pytest.mark.parametrize("together", [1, 2, 3])
def test_the_effect_of_a_layer_is_measured_from_its_group_on(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as when all of the model is run for each layer."""
    sets = [{"x": np.random.default_rng(i).standard_normal((6, 32)).astype(np.float32)} for i in range(2)]
    before, after = both(chain(), sets)
    inputs = [[item["x"]] for item in sets]
    whole = measure_layers(before, after, inputs)
    monkeypatch.setattr("optimizer.layer_boards._TOGETHER", together)
    groups = grouped(before, find_slices(before, after))
    assert [len(group.layers) for group in groups] == {1: [1] * 5, 2: [2, 2, 1], 3: [3, 2]}[together]
    assert groups[-1].later == (0,)  # the others are computed in front of it
    assert all(len(group.crossing) <= 2 for group in groups)
    found = measure_layers(before, after, inputs)
    assert [row.node for row in found] == [row.node for row in whole]
    assert len(found) == 5
    for row, other in zip(found, whole, strict=True):
        assert row.error == other.error
        assert row.effect == pytest.approx(other.effect, rel=1e-4) and row.effect is not None and row.effect > 1e-3


def test_what_was_not_quantized_is_no_row() -> None:
    before, after = both(perceptron(), SETS, nodes_to_exclude="second")
    assert [row.node for row in measure_layers(before, after, [[X]])] == ["first"]
    assert measure_layers(before, before.clone(), [[X]]) == []
    assert measure_layers(before, after, []) == []


def test_the_runs_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = both(perceptron(), SETS)
    flops = 2 * 2 * 6 * (32 * 64 + 64 * 8)
    monkeypatch.setattr("optimizer.quantization_report._MOST_FLOPS", 1.5 * flops)
    rows = measure_layers(before, after, [[X]])
    assert [row.effect is None for row in sorted(rows, key=lambda row: -row.error)] == [False, True]
    monkeypatch.setattr("optimizer.quantization_report._MOST_BYTES", 100)
    with pytest.raises(UnsupportedError, match="its weights are over"):
        measure_layers(before, after, [[X]])
    recorder = LayerErrorRecorder([[X]])
    pass_ = QuantizeInt8(dynamic=True)
    recorder.before_pass(pass_, before)
    recorder.after_pass(pass_, after, True, 0.0)
    assert recorder.notes == ["what each layer of quantize-int8 costs was not measured: its weights are over 0 MiB"]


def test_only_passes_that_quantize_are_measured() -> None:
    before, after = both(perceptron(), SETS)
    recorder = LayerErrorRecorder([[X]])
    for pass_, modified in ((RemoveUnused(), True), (QuantizeInt8(dynamic=True), False)):
        recorder.before_pass(pass_, before)
        recorder.after_pass(pass_, after, modified, 0.0)
    assert not recorder.rows and not recorder.notes


ROWS = (
    LayerError("a", "Conv", "int8", 0.01, 0.001, ("a", "b")),
    LayerError("b", "MatMul", "int4", 0.1, 0.2),
    LayerError("c", "Gemm", "int8", 0.5),
)


def test_the_layers_that_cost_most_come_first() -> None:
    assert [row.node for row in ranked(ROWS)] == ["b", "a", "c"]
    text = render(*layer_table(ROWS))
    (line,) = [line for line in text.splitlines() if "MatMul" in line]
    assert "int4" in line and "20.0 dB" in line and "2.0e-01" in line
    many = [LayerError(f"n{i}", "Conv", "int8", 0.1, i / 100) for i in range(14)]
    text = render(*layer_table(many))
    assert "n13" in text and "n3 " not in text
    assert "and 4 more quantized layers that cost less" in text


def test_the_report_has_the_table(tmp_path: Path) -> None:
    compiled = quantized(calibration=SETS)
    report = compiled.report
    assert [row.operator for row in report.layers] == ["Gemm", "MatMul"]
    assert report.layers == tuple(ranked(report.layers))
    assert "quantized layers, those that cost most first" in str(report)
    page = page_of(report)
    assert "Quantized layers, those that cost most first" in page and "<code>second</code>" in page
    assert Report.from_dict(report.to_dict()).layers == report.layers
    compiled.save(tmp_path / "model.tersor")
    assert load(tmp_path / "model.tersor").report.layers == report.layers
    plain = quantized(precision="float32").report
    assert plain.layers == () and "quantized layers" not in str(plain) and "Quantized layers" not in page_of(plain)
