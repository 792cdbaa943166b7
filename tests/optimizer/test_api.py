"""`optimize()` as a whole: every option works or is refused, nothing is half done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import optimizer
from optimizer import CompiledModel, Target, load, optimize
from optimizer.errors import (
    InputError,
    PipelineError,
    PrecisionError,
    TargetError,
    TersorError,
    UnsupportedError,
    VerificationError,
)
from optimizer.pass_manager import Pass
from passes.remove_unused import RemoveUnused
from tests.optimizer.build import INT64, model, node, perceptron, perceptron_output, value

X = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)


def quick(*args: Any, **options: Any) -> CompiledModel:
    return optimize(*args, **{"target": "onnx", "progress": False, **options})


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = """
import sys
import optimizer
heavy = ["numpy", "torch", "tvm", "onnx", "onnx_ir", "onnxruntime", "rich", "passes", "backends", "optimizer.api"]
loaded = [name for name in heavy if name in sys.modules]
assert optimizer.__all__
sys.exit(", ".join(loaded) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_there() -> None:
    assert set(optimizer.__all__) <= set(dir(optimizer))
    assert all(getattr(optimizer, name).__name__ == name for name in optimizer.__all__)
    with pytest.raises(AttributeError, match="module 'optimizer' has no attribute 'optimise'"):
        _ = optimizer.optimise


@pytest.mark.parametrize("target", ["onnx", "cpu"])
def test_a_model_from_file_to_file(tmp_path: Path, target: str) -> None:
    onnx.save(perceptron(), tmp_path / "model.onnx")
    compiled = optimize(tmp_path / "model.onnx", target, progress=False)
    np.testing.assert_allclose(compiled(X), perceptron_output(X), rtol=1e-4, atol=1e-4)
    assert compiled.report.verification.error is not None
    assert compiled.report.target == target
    compiled.save(tmp_path / "model.tersor")
    np.testing.assert_array_equal(load(tmp_path / "model.tersor")(X), compiled(X))


def test_the_callers_model_is_not_changed() -> None:
    proto = perceptron()
    owned = ir.from_proto(proto)
    text = str(owned)
    quick(owned, passes="eliminate-identities,remove-unused")
    assert str(owned) == text


def test_the_same_options_give_the_same_graph() -> None:
    first, second = (ir.to_proto(quick(perceptron()).graph).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_a_target_can_be_an_object() -> None:
    assert quick(perceptron(), target=Target.parse("onnx")).target == "onnx"


def test_passes_can_be_chosen() -> None:
    compiled = quick(perceptron(), passes="eliminate-identities,remove-unused")
    assert [row.name for row in compiled.report.passes] == ["eliminate-identities", "remove-unused"]
    assert not quick(perceptron(), passes="").report.passes
    assert not quick(perceptron(), passes=[]).report.passes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "gpu"}, TargetError, "unknown target 'gpu'"),
        ({"target": 3}, TargetError, "target must be a string or an optimizer.Target, not int"),
        (
            {"precision": "fp8"},
            PrecisionError,
            "unknown precision 'fp8'; known: float32, bfloat16, float16, int8, int4",
        ),
        (
            {"precision": "bfloat16"},
            PrecisionError,
            "'bfloat16' is not available for target 'onnx'; available: float32",
        ),
        ({"precision": "float16", "target": "cpu"}, PrecisionError, "target 'cpu'; available: float32, bfloat16, int8"),
        ({"calibration": [X]}, InputError, "calibration is for passes that quantize, and there is none"),
        ({"memory_budget": "much"}, InputError, "memory_budget must be a positive number of bytes, or one such as"),
        (
            {"passes": "fold-constant"},
            PipelineError,
            "no pass is called 'fold-constant'; did you mean 'fold-constants'",
        ),
        ({"passes": ["fold-constants"]}, PipelineError, "a pipeline string or a list of passes, it holds 'fold-cons"),
        ({"passes": 5}, PipelineError, "passes must be a pipeline string or a list of passes, not int"),
        ({"verify": "sometimes"}, InputError, "verify must be one of 'off', 'final', 'each', not 'sometimes'"),
        ({"fallback": "cuda"}, InputError, "fallback must be one of 'onnxruntime', 'error', not 'cuda'"),
        ({"seed": -1}, InputError, "seed must be an integer of at least 0, not -1"),
        ({"example_inputs": X.T}, InputError, r"must have shape \[batch, 32\], not \(32, 3\): axis 1 is fixed"),
        ({"example_inputs": (X, X)}, InputError, "2 inputs were given, the model takes 1"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], error: type[TersorError], message: str) -> None:
    with pytest.raises(error, match=message):
        quick(perceptron(), **options)


def test_options_are_checked_before_the_model_is_read() -> None:
    with pytest.raises(PrecisionError):
        quick("missing.onnx", precision="float64")


# --- Verification ---


class Breaks(Pass):
    """Negates the result."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        (output,) = model.graph.outputs
        producer = output.producer()
        assert producer is not None
        if producer.op_type == "Neg":
            return ir.passes.PassResult(model, False)
        negated = ir.node("Neg", [output])
        negated.outputs[0].name = "negated"
        negated.outputs[0].type, negated.outputs[0].shape = output.type, output.shape
        model.graph.append(negated)
        model.graph.outputs[0] = negated.outputs[0]
        return ir.passes.PassResult(model, True)


class BreaksTypes(Breaks):
    """Leaves a graph that nothing can run."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        result = super().call(model)
        producer = model.graph.outputs[0].producer()
        assert producer is not None
        producer.op_type = "NoSuchOperator"
        return result


def test_a_wrong_result_is_not_returned() -> None:
    with pytest.raises(VerificationError, match="the compiled model does not compute what the original model does"):
        quick(perceptron(), passes=[Breaks()])


@pytest.mark.parametrize("pass_", [Breaks(), BreaksTypes()])
def test_a_pass_that_breaks_the_model_is_named_and_rolled_back(
    pass_: Pass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compiled = quick(perceptron(), passes=[pass_, RemoveUnused()], verify="each")
    np.testing.assert_allclose(compiled(X), perceptron_output(X), rtol=1e-4, atol=1e-4)
    (note,) = (note for note in compiled.report.notes if pass_.name in note)
    assert "it was rolled back" in note
    assert (tmp_path / "tersor-faults" / pass_.name / "model.onnx").exists()
    assert [row.modified for row in compiled.report.passes] == [False, False]


def test_a_fault_that_cannot_be_saved_is_still_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tersor-faults").write_text("in the way")
    compiled = quick(perceptron(), passes=[Breaks()], verify="each")
    assert any("cannot be written" in note for note in compiled.report.notes)


def test_verification_can_be_off() -> None:
    compiled = quick(perceptron(), passes=[Breaks()], verify="off")
    np.testing.assert_allclose(compiled(X), -perceptron_output(X), rtol=1e-4, atol=1e-4)
    assert str(compiled.report.verification) == 'not verified: verify="off"'


def test_what_could_not_be_verified_is_said_and_not_an_error() -> None:
    proto = model([node("Reshape", ["x", "s"], ["y"])], [value("x", [6]), value("s", [2], INT64)], [value("y", None)])
    compiled = quick(proto)
    assert compiled.report.verification.error is None
    assert "give example_inputs" in str(compiled.report)
    verified = quick(proto, example_inputs={"s": np.array([2, 3]), "x": X[0, :6]})
    assert verified.report.verification.error == 0


def test_example_inputs_say_which_sizes_are_run_and_counted() -> None:
    small, large = (quick(perceptron(), example_inputs=X[:rows]).report.before.flops for rows in (1, 3))
    assert large == 3 * small


def test_a_module_is_verified_with_the_shapes_of_its_example() -> None:
    linear = torch.nn.Linear(4, 2)
    batch = torch.export.Dim("batch")
    compiled = quick(linear, example_inputs=(torch.zeros(5, 4),), dynamic_shapes={"input": {0: batch}})
    assert compiled.report.verification.error is not None
    assert compiled.report.before.flops == 2 * 5 * 4 * 2 + 5 * 2
    tensor = torch.randn(7, 4)
    torch.testing.assert_close(compiled(tensor), linear(tensor).detach())


# --- Going wrong ---


def test_an_operator_that_the_target_cannot_compile(tmp_path: Path) -> None:
    nodes = [node("StringConcat", ["x", "x"], ["y"])]
    strings = onnx.TensorProto.STRING
    proto = model(nodes, [value("x", [2], strings)], [value("y", None, strings)])
    compiled = optimize(proto, "cpu", progress=False)
    assert compiled(["a", "b"]).tolist() == ["aa", "bb"]
    assert "StringConcat" in "\n".join(compiled.report.notes)
    with pytest.raises(UnsupportedError, match="StringConcat"):
        optimize(proto, "cpu", fallback="error", progress=False)


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("backends.relax.client.PROCESS.ask", interrupt)
    with pytest.raises(KeyboardInterrupt):
        optimize(perceptron(), "cpu", progress=False)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert optimize(perceptron(), "cpu", progress=False)(X).shape == (3, 8)


def test_progress_is_shown_when_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    quick(perceptron(), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if ":" not in line] == [
        "reading the model",
        "running the reference",
        "optimizing the graph",
        "compiling",
        "verifying",
    ]
    quick(perceptron(), progress=None)
    assert capfd.readouterr() == ("", "")
