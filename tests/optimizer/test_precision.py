"""`precision="bfloat16"` from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer import CompiledModel, load, optimize
from optimizer.bisection import bisect
from optimizer.cli import main
from optimizer.errors import PrecisionError
from optimizer.frontends import load_model
from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.walk import all_nodes
from optimizer.pass_manager import Pass
from optimizer.reference import Oracle, run_reference
from optimizer.verification import example_for
from passes.convert_float import ConvertFloat
from passes.pipelines import default_pipeline, in_precision
from passes.remove_unused import RemoveUnused
from tests.models.test_models import tiny_cases
from tests.optimizer.build import perceptron, perceptron_output
from tests.passes.transform import read

X = np.linspace(-1, 1, 96, dtype=np.float32).reshape(3, 32)


def narrow(source: Any, **options: Any) -> CompiledModel:
    return optimize(source, "cpu", precision="bfloat16", progress=False, **options)


def types(model: ir.Model) -> set[ir.DataType | None]:
    return {value.dtype for node in all_nodes(model) for value in node.outputs}


def test_it_computes_in_bfloat16_and_says_so(tmp_path: Path) -> None:
    compiled = narrow(perceptron())
    assert compiled.report.precision == "bfloat16"
    assert "precision bfloat16" in str(compiled.report)
    assert compiled.report.notes == ()
    error, allowed = compiled.report.verification.error, compiled.report.verification.tolerance
    assert error is not None and allowed is not None
    assert 1e-4 < error < 2e-2 < allowed < 0.1
    (y,) = [compiled(X)]
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, perceptron_output(X), rtol=0.05, atol=0.05)
    compiled.save(tmp_path / "model.tersor")
    loaded = load(tmp_path / "model.tersor")
    np.testing.assert_array_equal(loaded(X), y)
    assert loaded.report.precision == "bfloat16"
    assert any(node.op_type == "Cast" for node in loaded.graph.graph)
    compiled.diff().save(tmp_path / "diff.html")
    compiled.save_onnx(tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


@pytest.mark.parametrize("name", list(tiny_cases()))
def test_every_family_is_within_its_bound(name: str) -> None:
    case = tiny_cases()[name]
    compiled = narrow(case.model, example_inputs=case.example_inputs, fallback="error")
    verification = compiled.report.verification
    assert verification.error is not None and verification.tolerance is not None
    example = example_for(compiled.graph.graph, case.model, case.example_inputs)
    oracle = Oracle(load_model(case.model, example_inputs=case.example_inputs), seed=0, example=example)
    rounded = oracle.compare(run_reference(compiled.graph, oracle.inputs), compiled.graph)
    assert verification.error < 3 * rounded.error < 0.6
    made = [node for node in compiled.graph.graph if node.op_type in ("Attention", "Conv", "MatMul", "Gemm")]
    wide = [node for node in made if ir.DataType.FLOAT in {value.dtype for value in node.outputs}]
    # A Llama's table of angles is a product, too, where it is not folded.
    assert len(wide) <= 1 < len(made)


def test_each_pass_is_checked_in_its_own_precision() -> None:
    report = narrow(perceptron(), verify="each").report
    *exact, last = report.passes
    assert last.name == "convert-float" and last.modified
    assert last.error is not None and 1e-4 < last.error < 2e-2
    assert all(row.error is None or row.error < 1e-5 for row in exact)


class Halves(Pass):
    """Multiplies an argument of each product by 0.5: too much for any precision."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        def visit(editor: Editor, scope: Scope, node: ir.Node) -> None:
            first = node.inputs[0]
            if first is None or "half" in (first.name or ""):
                return
            half = editor.constant(scope, node, "factor", np.array(0.5, np.float32).astype(_numpy(first)))
            product = ir.node("Mul", [first, half])
            product.outputs[0].name, product.outputs[0].type = editor.fresh_name("half"), first.type
            scope.graph.insert_before(node, product)
            node.replace_input_with(0, product.outputs[0])

        return rewrite_nodes(model, visit, ("Gemm", "MatMul"))


def _numpy(value: ir.Value) -> Any:
    return ml_dtypes.bfloat16 if value.dtype == ir.DataType.BFLOAT16 else np.float32


def test_a_fault_behind_the_conversion_is_found_and_named() -> None:
    model = load_model(perceptron())
    oracle = Oracle(model, seed=0)
    pipeline = [*in_precision(default_pipeline("cpu"), "bfloat16"), Halves(), RemoveUnused()]
    found = bisect(model, pipeline, oracle)
    assert found.fault is not None
    assert found.fault.pass_name == "halves"
    assert found.fault.kind == "values"
    assert len(found.fault.model.graph) <= 3
    assert bisect(model, pipeline[:-2], oracle).fault is None


def test_passes_of_ones_own_are_followed_by_the_conversion() -> None:
    assert [row.name for row in narrow(perceptron(), passes="remove-unused").report.passes] == [
        "remove-unused",
        "convert-float",
    ]
    (row,) = narrow(perceptron(), passes=[ConvertFloat(keep="Relu")]).report.passes
    assert row.name == "convert-float{keep=Relu}"


def test_what_stays_in_another_type_is_noted() -> None:
    text = "g (double[2,2] x) => (double[2,2] y) { a = MatMul(x, x) y = Relu(a) }"
    first, second = narrow(read(text)).report.notes
    assert first == "precision bfloat16 is for float32: 2 values of double stay what they are"
    assert second.startswith("nothing computes in bfloat16")


def test_what_onnx_runtime_computes_for_us_it_computes_in_float32() -> None:
    """Pads that are computed at run time are not compiled."""
    model = read("""g (float[4,4] x, int64[4] p) => (float[M,N] y) <float low = {-1}> {
        a = MatMul(x, x) b = Pad(a, p, low) c = MatMul(b, b) y = Tanh(c) }""")
    compiled = narrow(model, example_inputs=(np.eye(4, dtype=np.float32), np.array([1, 0, 0, 1])))
    assert ir.DataType.BFLOAT16 in types(compiled.graph)
    assert any("Pad" in note for note in compiled.report.notes)
    x, pads = np.arange(16, dtype=np.float32).reshape(4, 4) / 64, np.array([1, 0, 0, 1])
    wide = np.pad(x @ x, ((1, 0), (0, 1)), constant_values=-1)
    np.testing.assert_allclose(compiled(x, pads), np.tanh(wide @ wide), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("saved", [False, True])
def test_bench_and_bisect_take_the_precision(saved: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(perceptron(), path)
    if saved:
        path = tmp_path / "model.tersor"
        narrow(perceptron()).save(path)
    bench = ["bench", str(path), "--rounds", "1", "--threads", "1", "--precision", "bfloat16", "--quiet", "--json"]
    assert main(bench) == 0
    assert '"onnxruntime_seconds"' in capsys.readouterr().out
    if not saved:
        assert main(["bisect", str(path), "--precision", "bfloat16", "--quiet"]) == 0
        assert "no fault" in capsys.readouterr().out
        assert main(["bisect", str(path), "--precision", "bfloat16", "--target", "onnx", "--quiet"]) == 2
        assert "not available for target 'onnx'" in capsys.readouterr().err


# --- float16 ---


@pytest.mark.parametrize("name", list(tiny_cases()))
def test_every_family_in_float16_in_onnx_runtime(name: str) -> None:
    case = tiny_cases()[name]
    compiled = optimize(
        case.model, "onnx", precision="float16", example_inputs=case.example_inputs, progress=False, cache=False
    )
    verification = compiled.report.verification
    assert verification.error is not None and verification.tolerance is not None
    assert 1e-5 < verification.error < verification.tolerance < 0.03
    made = [node for node in compiled.graph.graph if node.op_type in ("Attention", "Conv", "MatMul", "Gemm")]
    wide = [node for node in made if ir.DataType.FLOAT in {value.dtype for value in node.outputs}]
    assert len(wide) <= 1 < len(made)


def test_a_processor_refuses_float16_and_names_what_it_has() -> None:
    with pytest.raises(PrecisionError, match=r"'float16' is not available for target 'cpu'.*; bfloat16 takes as many"):
        optimize(perceptron(), "cpu", precision="float16", progress=False)


def test_what_stays_out_of_float16_is_noted() -> None:
    model = read("""g (float[4,4] x) => (float[4,4] y) <float[4,4] w = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}> {
        a = MatMul(x, w) e = Exp(a) y = MatMul(e, w) }""")
    (note,) = optimize(model, "onnx", precision="float16", progress=False).report.notes
    assert note == "precision float16: 1 operators stay float32, for range or accuracy (1 Exp)"


def test_float16_models_stay_what_they_are() -> None:
    model = read("g (float16[4,4] x) => (float16[4,4] y) { a = MatMul(x, x) y = Relu(a) }")
    compiled = optimize(model, "onnx", precision="float16", progress=False)
    assert types(compiled.graph) == {ir.DataType.FLOAT16} and compiled.report.notes == ()
