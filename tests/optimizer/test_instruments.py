"""What instruments record and catch."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from optimizer.errors import PassError
from optimizer.instruments import FingerprintCheck, PassRecorder
from optimizer.pass_manager import Pass, PassManager


def model() -> ir.Model:
    return ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[3] x) => (float[3] y) { a = Relu(x) y = Neg(a) }""")


@dataclasses.dataclass(frozen=True)
class Change(Pass):
    """Does what `really` says, claims what `claimed` says."""

    really: bool = True
    claimed: bool = True

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self.really:
            model.graph[0].op_type += "x"
        return ir.passes.PassResult(model, self.claimed)


def test_recorder_measures_only_after_a_change() -> None:
    measured = []

    def measure(model: ir.Model) -> str:
        measured.append(model.graph[0].op_type)
        return measured[-1]

    recorder = PassRecorder(measure)
    PassManager([Change(), Change(really=False, claimed=False)]).run(model(), [recorder])
    first, second = recorder.records
    assert measured == ["Relu", "Relux"]
    assert (first.pass_name, first.modified, first.before, first.after) == ("change", True, "Relu", "Relux")
    assert (second.modified, second.before, second.after) == (False, "Relux", "Relux")
    assert second.pipeline == "change{really=false,claimed=false}"
    assert first.seconds >= 0


@pytest.mark.parametrize("value", [True, False])
def test_fingerprint_check_accepts_the_truth(value: bool) -> None:
    PassManager([Change(value, value)]).run(model(), [FingerprintCheck()])


@pytest.mark.parametrize(
    ("really", "message"), [(True, "says modified=False but changed"), (False, "says modified=True but did not change")]
)
def test_fingerprint_check_catches_a_lie(really: bool, message: str) -> None:
    with pytest.raises(PassError, match=f"pass 'change': {message} the model"):
        PassManager([Change(really, not really)]).run(model(), [FingerprintCheck()])
