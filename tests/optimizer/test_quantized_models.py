"""`precision="int8"` and `"int4"` from end to end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer import CompiledModel, load, optimize
from optimizer.calibrated_passes import with_samples
from optimizer.calibration_files import read_sets
from optimizer.cli import main
from optimizer.errors import InputError, PrecisionError, VerificationError
from optimizer.frontends import load_model
from optimizer.ir.quantized import narrow_elements, shaken
from optimizer.pass_manager import Fixpoint
from optimizer.quantized_comparison import compare_quantized, loss_of
from optimizer.reference import Oracle, run_reference
from optimizer.report import Report, Verification
from optimizer.verification import verify_executable
from passes.convert_float import ConvertFloat
from passes.pipelines import in_precision
from passes.quantize_int4 import QuantizeInt4
from passes.quantize_int8 import QuantizeInt8
from tests.optimizer.build import model as build
from tests.optimizer.build import node, perceptron, perceptron_output, value

RNG = np.random.default_rng(0)
SETS = [{"x": RNG.standard_normal((6, 32)).astype(np.float32)} for _ in range(4)]
X = SETS[1]["x"]


def quantized(source: Any = None, target: str = "onnx", **options: Any) -> CompiledModel:
    options = {"precision": "int8", "progress": False, "cache": False, **options}
    return optimize(perceptron() if source is None else source, target, **options)


def network() -> onnx.ModelProto:
    weights = {
        "k": RNG.standard_normal((16, 3, 3, 3)).astype(np.float32),
        "w": RNG.standard_normal((16, 10)).astype(np.float32),
    }
    nodes = [
        node("Conv", ["x", "k"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"], name="relu"),
        node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        node("Flatten", ["p"], ["f"], name="flatten"),
        node("MatMul", ["f", "w"], ["y"], name="head"),
    ]
    return build(nodes, [value("x", ["batch", 3, 8, 8])], [value("y", ["batch", 10])], weights)


IMAGES = [{"x": RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)} for _ in range(3)]


@pytest.mark.parametrize("target", ["onnx", "cpu"])
@pytest.mark.parametrize("calibration", [None, SETS])
def test_it_computes_in_int8_and_says_what_that_loses(target: str, calibration: Any, tmp_path: Path) -> None:
    compiled = quantized(target=target, calibration=calibration)
    assert compiled.report.precision == "int8"
    checked = compiled.report.verification
    assert checked.error is not None and checked.tolerance is not None and checked.loss is not None
    assert checked.error <= checked.tolerance < 0.1
    assert 1e-3 < checked.loss < 0.05
    assert "against the quantized graph in ONNX Runtime" in str(compiled.report)
    assert "against the original: relative error" in str(compiled.report) and " dB)" in str(compiled.report)
    y = compiled(X)
    assert 1e-3 < loss_of([y], [perceptron_output(X)]) < 0.05
    assert narrow_elements(compiled.graph) == 32 * 64 + 64 * 8 + (2 if calibration else 0)
    compiled.save(tmp_path / "model.tersor")
    loaded = load(tmp_path / "model.tersor")
    np.testing.assert_array_equal(loaded(X), y)
    assert Report.from_dict(compiled.report.to_dict()).verification == checked


def test_convolutions_need_calibration() -> None:
    dynamic = quantized(network())
    assert dynamic.report.notes == ("precision int8: 1 layers are quantized, 1 are not (1 Conv)",)
    assert [(row.node, row.pass_name) for row in dynamic.report.near_misses if "calibration" in row.reason] == [
        ("conv", "quantize-int8")
    ]
    static = quantized(network(), calibration=iter(IMAGES))
    assert static.report.notes == ()
    text = "g (float[N] x) => (float[N] y) { y = Relu(x) }"
    nothing = quantized(ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]> {text}'))
    assert nothing.report.notes == ("nothing computes in int8: no layer was found that it is worth while for",)
    assert nothing.report.verification.loss is None


@pytest.mark.parametrize("target", ["onnx", "cpu"])
@pytest.mark.parametrize("calibration", [None, SETS])
def test_weights_of_4_bits(target: str, calibration: Any, tmp_path: Path) -> None:
    compiled = quantized(target=target, calibration=calibration, precision="int4")
    checked = compiled.report.verification
    assert checked.error is not None and checked.error <= 1e-4
    assert checked.loss is not None and 1e-2 < checked.loss < 0.2
    assert narrow_elements(compiled.graph) >= 32 * 64 + 64 * 8
    compiled.save(tmp_path / "model.tersor")
    np.testing.assert_array_equal(load(tmp_path / "model.tersor")(X), compiled(X))


def test_convolutions_of_4_bits_are_for_onnx_runtime() -> None:
    ours, theirs = (quantized(network(), target, precision="int4") for target in ("cpu", "onnx"))
    assert "1 are not (1 Conv)" in " ".join(ours.report.notes)
    assert narrow_elements(theirs.graph) > narrow_elements(ours.graph) >= 16 * 10


def test_progress_of_a_pass_that_goes_layer_by_layer() -> None:
    told: list[str] = []
    (pass_,) = with_samples([QuantizeInt4()], None, told.append)
    pass_(ir.from_proto(perceptron()))
    assert told == ["layer 1 of 2, first", "layer 2 of 2, second"]


def test_each_pass_is_checked() -> None:
    for calibration in (None, SETS):
        report = quantized(verify="each", calibration=calibration).report
        *exact, last = report.passes
        assert last.name.startswith("quantize-int8") and last.modified
        assert last.error is not None and 1e-3 < last.error < 0.05
        assert all(row.error is None or row.error < 1e-5 for row in exact)


def test_the_options_of_the_pass() -> None:
    compiled = quantized(passes="quantize-int8{calibrate_method=mse,nodes_to_exclude=second}", calibration=SETS)
    (row,) = compiled.report.passes
    assert row.name == "quantize-int8{calibrate_method=mse,nodes_to_exclude=second}"
    assert [node.name for node in compiled.graph.graph if node.op_type == "MatMul"] == ["first", "second"]
    assert narrow_elements(compiled.graph) == 32 * 64 + 1
    inside = quantized(passes=[Fixpoint((QuantizeInt8(),))], precision="float32", calibration=SETS)
    assert narrow_elements(inside.graph) > 32 * 64


def test_calibration_that_nothing_uses_is_refused() -> None:
    with pytest.raises(InputError, match="calibration is for passes that quantize, and there is none: ask for precis"):
        quantized(precision="float32", calibration=SETS)
    with pytest.raises(InputError, match="calibration set 0: "):
        quantized(calibration=[{"x": np.zeros((2, 5), np.float32)}])
    with pytest.raises(PrecisionError, match="'float16' is not available"):
        quantized(target="cpu", precision="float16")


def test_the_pass_is_added_once_and_for_the_kernels_of_the_target() -> None:
    assert [str(p) for p in in_precision([], "int8", "onnx", True)] == [
        "smooth-quant{alpha=0.75}",
        "quantize-int8{kernels=onnxruntime}",
    ]
    assert [str(p) for p in in_precision([], "int8", "cpu", False)] == ["quantize-int8{dynamic=true}"]
    assert in_precision([QuantizeInt8(percentile=99.0)], "int8") == [QuantizeInt8(percentile=99.0)]
    assert in_precision([], "bfloat16") == [ConvertFloat()]
    assert [str(p) for p in in_precision([], "int8", "cuda", False)] == [
        "quantize-int8{dynamic=true}",
        "convert-float{keep=Conv+ConvTranspose+DeformConv+DequantizeLinear+Gemm+MatMul+QuantizeLinear}",
    ]
    own = [ConvertFloat(keep="Conv")]
    assert in_precision(own, "int8", "cuda", False)[:2] == [*own, QuantizeInt8(dynamic=True)]


# --- Verification ---


def test_a_useless_result_is_an_error() -> None:
    """Calibration data that is a thousand times too small cuts everything off."""
    small = [{"x": SETS[0]["x"] / 1000}]

    class Wrong:
        def run(self, inputs: Any, num_threads: int) -> list[Any]:
            return [np.full((6, 8), np.nan, np.float32)]

    graph = load_model(perceptron())
    oracle = Oracle(graph, seed=0, given=[[X]])
    form = quantized(calibration=small).graph
    outputs = run_reference(form, [X])
    assert loss_of(outputs, oracle.outputs) > 0.9

    class Right(Wrong):
        inputs = outputs_ = ()

        def run(self, inputs: Any, num_threads: int) -> list[Any]:
            return outputs

    with pytest.raises(
        VerificationError, match=r"quantization leaves nothing of use: the relative error.*nodes_to_excl"
    ):
        verify_executable(Right(), oracle, Verification("final"), 1, form)  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match="does not compute what the quantized graph does"):
        verify_executable(Wrong(), oracle, Verification("final"), 1, form)  # type: ignore[arg-type]


def case() -> tuple[ir.Model, list[Any], list[Any]]:
    compiled = quantized(calibration=SETS, passes="quantize-int8")
    return compiled.graph, [X], [perceptron_output(X)]


@pytest.mark.parametrize("fault", ["zero point", "one channel", "one row", "unsigned"])
def test_wrong_kernels_are_caught(fault: str) -> None:
    form, inputs, original = case()
    right = run_reference(form, inputs)
    assert compare_quantized(right, original, form, inputs).passed
    (wrong,) = (right[0].copy(),)
    if fault == "zero point":
        shifted = form.clone()
        zero = next(v for v in shifted.graph.initializers.values() if v.dtype == ir.DataType.UINT8)
        assert zero.const_value is not None
        other = (zero.const_value.numpy().astype(np.int64) + 3).astype(np.uint8)
        quantize = next(node for node in shifted.graph if node.op_type == "QuantizeLinear")
        value_ = ir.Value(name="other", const_value=ir.tensor(other, name="other"))
        shifted.graph.register_initializer(value_)
        quantize.replace_input_with(2, value_)
        (wrong,) = run_reference(shifted, inputs)
    elif fault == "one channel":
        wrong[:, 3] *= 1.2
    elif fault == "one row":
        wrong[2] = wrong[1]
    else:
        wrong = np.abs(wrong)
    result = compare_quantized([wrong], original, form, inputs)
    assert not result.passed and result.tolerance < 0.06


def test_shaking_turns_numbers_at_a_boundary_only() -> None:
    form, inputs, _ = case()
    (right,), (other,) = run_reference(form, inputs), run_reference(shaken(form, 1e-3), inputs)
    assert 1e-5 < loss_of([other], [right]) < 0.02
    (same,) = run_reference(shaken(form, 0.0), inputs)
    np.testing.assert_array_equal(same, right)


def test_the_loss_is_that_of_the_worst_output() -> None:
    right = [np.array([3.0, 4.0]), np.array([1, 2, 3, 4])]
    assert loss_of([np.array([3.0, 4.5]), np.array([1, 2, 3, 4])], right) == pytest.approx(0.1)
    assert loss_of([np.array([3.0, 4.5]), np.array([1, 9, 3, 4])], right) == 0.25
    assert math.isinf(loss_of([np.array([3.0, np.nan]), right[1]], right))
    assert loss_of([], []) == 0


# --- The command line ---


def test_calibration_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(perceptron(), tmp_path / "model.onnx")
    for number, item in enumerate(SETS):
        np.savez(tmp_path / f"{number}.npz", x=item["x"])
    arguments = ["optimize", str(tmp_path / "model.onnx"), "--target", "onnx", "--precision", "int8", "--quiet"]
    assert main([*arguments, "--calibration", str(tmp_path), "-o", str(tmp_path / "int8.onnx"), "--no-cache"]) == 0
    assert "against the original: relative error" in capsys.readouterr().out
    saved = ir.load(tmp_path / "int8.onnx")
    expected = quantized(calibration=SETS).graph
    assert run_reference(saved, [X])[0].tolist() == run_reference(expected, [X])[0].tolist()
    (tmp_path / "9.npz").write_bytes(b"no archive")
    assert main([*arguments, "--calibration", str(tmp_path)]) == 2
    assert "cannot read the calibration inputs" in capsys.readouterr().err
    with pytest.raises(InputError, match="is no folder with"):
        read_sets(tmp_path / "missing")
    np.savez(tmp_path / "9.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="cannot read the calibration inputs"):
        list(read_sets(tmp_path))


# --- The cache, and files ---


def test_other_calibration_data_is_another_key(tmp_path: Path) -> None:
    def run(sets: Any) -> CompiledModel:
        return quantized(calibration=sets, cache=tmp_path)

    first = run(SETS)
    assert first.report.cached is None
    again = run([{"x": item["x"].copy()} for item in SETS])
    assert again.report.cached is not None
    assert again.report.verification == first.report.verification
    other = [{"x": item["x"].copy()} for item in SETS]
    other[3]["x"][5, 31] += 1
    assert run(other).report.cached is None
    assert run(SETS[:3]).report.cached is None
    assert run(None).report.cached is None
    assert any("not kept in the cache" in note for note in run(iter(SETS)).report.notes)


@pytest.mark.parametrize("target", ["onnx", "cpu"])
@pytest.mark.parametrize("calibration", [None, SETS])
def test_a_quantized_file_stays_quantized(target: str, calibration: Any, tmp_path: Path) -> None:
    compiled = quantized(target=target, calibration=calibration)
    compiled.save_onnx(tmp_path / "int8.onnx")
    onnx.checker.check_model(tmp_path / "int8.onnx", full_check=True)
    size = narrow_elements(compiled.graph)
    for precision in ("float32", "int8"):
        again = quantized(tmp_path / "int8.onnx", target, precision=precision)
        assert narrow_elements(again.graph) == size
        floats = [v.const_value for v in again.graph.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
        assert sum(tensor.size for tensor in floats if tensor is not None) < 64 * 8
        np.testing.assert_allclose(again(X), compiled(X), rtol=0, atol=0.02 * float(np.abs(compiled(X)).max()))


@pytest.mark.parametrize("target", ["onnx", "cpu"])
def test_a_quantized_network_of_convolutions_stays_quantized(target: str, tmp_path: Path) -> None:
    compiled = quantized(network(), target, calibration=IMAGES)
    compiled.save_onnx(tmp_path / "int8.onnx")
    again = quantized(tmp_path / "int8.onnx", target, precision="float32")
    # Both weights, and fewer zero points: equal ones have become one.
    assert 16 * 27 + 160 < narrow_elements(again.graph) <= narrow_elements(compiled.graph)
    assert sum(node.op_type == "QuantizeLinear" for node in again.graph.graph) > 1
    y, same = compiled(IMAGES[0]["x"]), again(IMAGES[0]["x"])
    np.testing.assert_allclose(same, y, rtol=0, atol=0.02 * float(np.abs(y).max()))


def test_the_same_call_gives_the_same_bytes() -> None:
    first, second = (ir.to_proto(quantized(calibration=SETS).graph).SerializeToString(deterministic=True) for _ in "ab")
    assert first == second
