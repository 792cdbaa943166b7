"""`tersor explain` and `tersor bisect` as they are typed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from optimizer.bisection import compare_pair
from optimizer.cli import main
from optimizer.errors import InputError
from optimizer.ir.edit import rewrite_nodes
from optimizer.pass_manager import Pass
from optimizer.reference import Oracle
from passes.registry import PASSES
from tests.optimizer.faulty_passes import SwapOperands, model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ir.save(model(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@dataclasses.dataclass(frozen=True)
class Hesitate(Pass):
    """Says why it does not touch a Relu."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        def visit(editor: Any, _: object, node: ir.Node) -> None:
            if node.op_type == "Relu":
                editor.miss(node, "it is a Relu")

        return rewrite_nodes(model, visit)


@pytest.fixture
def more_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for pass_ in (Hesitate, SwapOperands):
        monkeypatch.setitem(PASSES, pass_().name, pass_)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_explain_says_what_was_made_and_what_nearly_was(
    path: Path, more_passes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = "merge-transposes,hesitate,remove-unused"
    code, found = run(capsys, "explain", path, "hesitate", "--passes", pipeline)
    assert code == 0
    assert found["made"] == []
    assert [(miss["node"], miss["reason"]) for miss in found["near_misses"]] == [("Relu(r)", "it is a Relu")]
    assert main(["explain", str(path), "hesitate", "--passes", pipeline]) == 0
    assert "it is a Relu" in capsys.readouterr().out
    assert main(["explain", str(path), "remove-unused", "--passes", pipeline]) == 0
    assert "nothing in this model looks like what remove-unused is for" in capsys.readouterr().out


def test_explain_names_the_passes_that_there_are(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(path), "fold-constant", "--passes", "fold-constants"]) == 2
    assert "did you mean 'fold-constants'?" in capsys.readouterr().err


def test_bisect_names_the_pass_and_saves_the_smallest_model(
    path: Path, more_passes: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = "merge-transposes,swap-operands,remove-unused"
    code, found = run(capsys, "bisect", path, "--passes", pipeline, "-o", tmp_path / "out", "--quiet")
    assert code == 1
    assert (found["fault"]["pass"], found["fault"]["node"]) == ("swap-operands", "Sub(s)")
    assert (Path(found["saved"]) / "model.onnx").exists()
    assert main(["bisect", str(path), "--passes", pipeline, "--quiet"]) == 1
    assert "pass 'swap-operands' at node 'Sub(s)'" in capsys.readouterr().out


def test_bisect_finds_no_fault_in_the_default_pipeline(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(capsys, "bisect", path, "--quiet")
    assert code == 0
    assert found["fault"] is None


def broken(source: Path, target: Path) -> None:
    """As if another optimizer had sorted the operands of a Sub."""
    proto = onnx.load(source)
    (sub,) = (node for node in proto.graph.node if node.op_type == "Sub")
    sub.input[:] = reversed(sub.input)
    onnx.save(proto, target)


def test_a_pair_of_models_is_compared_value_by_value(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(path, tmp_path / "after.onnx")
    code, found = run(capsys, "bisect", path, tmp_path / "after.onnx", "--quiet")
    assert code == 1
    assert found["difference"]["value"] == "s"
    assert found["node_before"] == "Sub(s)"
    assert main(["bisect", str(path), str(path), "--quiet"]) == 0
    assert "the outputs agree" in capsys.readouterr().out


def test_what_onnx_runtime_made_of_a_model(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own operators run as well; a fault in front of them is found."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    for source, name in ((path, "good"), (tmp_path / "wrong.onnx", "bad")):
        if name == "bad":
            broken(path, source)
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    assert run(capsys, "bisect", path, tmp_path / "good.onnx", "--quiet")[0] == 0
    code, found = run(capsys, "bisect", path, tmp_path / "bad.onnx", "--quiet")
    assert code == 1
    assert found["difference"]["value"] == "s"


def test_two_models_that_are_no_pair() -> None:
    other = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (float[2] q) { q = Neg(x) }')
    with pytest.raises(InputError, match="they are no pair"):
        compare_pair(model(), other, Oracle(model(), seed=0))


def test_options_that_do_not_go_together(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bisect", str(path), str(path), "--passes", "remove-unused"]) == 2
    assert "leave them out" in capsys.readouterr().err
