"""Whether a pass kept its contract on one model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from optimizer.comparison import Comparison, Tolerance
from optimizer.errors import ExecutionError, PassError, UnsupportedError, VerificationError
from optimizer.ir.census import undone_fusions
from optimizer.ir.fingerprint import describe, fingerprint
from optimizer.pass_manager import Pass, call_pass
from optimizer.reference import Case, run_reference
from optimizer.shared_weights import SharedWeights

__all__ = ["Breach", "breach_of", "run_and_check"]


@dataclass(frozen=True)
class Breach:
    """How a pass broke its contract.

    Attributes:
        kind: `"failed"` (it raised an error), `"modified"` (it said something untrue about having changed the model),
            `"interface"`, `"order"` (two runs gave different models), `"census"` (it took a fused operator apart),
            `"invalid"` (no runtime runs the model any more) or `"values"` (the model computes something else).
        reason: In words, for people.
        case: Which of the inputs shows it.
        error: The relative error, for `"values"`.
    """

    kind: str
    reason: str
    case: int = 0
    error: float | None = None


def breach_of(
    pass_: Pass,
    before: ir.Model,
    after: ir.Model,
    modified: bool,
    cases: Sequence[Case],
    tolerance: Tolerance,
    shared: SharedWeights | None = None,
) -> Breach | float | None:
    """Hold a model after a pass against the model before it.

    Args:
        pass_: The pass.
        before: The model that it was given.
        after: The model that it left.
        modified: What it says of whether it changed the model.
        cases: Inputs, and what the original model makes of them.
        tolerance: How far from that a result may be.
        shared: Keeps the weights from run to run.

    Returns:
        How the contract is broken; if it is not, the largest relative error, or `None` if nothing was changed.
    """
    changed = fingerprint(before) != fingerprint(after)
    if changed != modified:
        truth = "changed" if changed else "did not change"
        return Breach("modified", f"it says modified={modified} but {truth} the model")
    if not changed:
        return None
    return _structure(pass_, before, after) or _values(after, cases, tolerance, shared)


def run_and_check(
    pass_: Pass, model: ir.Model, cases: Sequence[Case], tolerance: Tolerance
) -> tuple[ir.Model, Breach | float | None]:
    """Run a pass on a copy of a model and check it.

    Returns:
        The copy as the pass left it, and what `breach_of` says.
    """
    copy = model.clone()
    try:
        modified = call_pass(pass_, copy)[0].modified
    except PassError as error:
        return copy, Breach("failed", str(error))
    return copy, breach_of(pass_, model, copy, modified, cases, tolerance)


def _structure(pass_: Pass, before: ir.Model, after: ir.Model) -> Breach | None:
    old, new = _interface(before), _interface(after)
    if old != new:
        return Breach("interface", f"it changed the interface from {old} to {new}")
    again = before.clone()
    pass_(again)
    if fingerprint(again) != fingerprint(after):
        lines = difflib.unified_diff(list(describe(after)), list(describe(again)), lineterm="", n=0)
        first = next((line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")), "")
        return Breach("order", f"two runs on the same model gave different results: {first.strip()}")
    undone = undone_fusions(before, after, getattr(pass_, "undoes", frozenset()))
    if undone:
        return Breach("census", f"it took fused operators apart: {', '.join(undone)}")
    return None


def _values(
    after: ir.Model, cases: Sequence[Case], tolerance: Tolerance, shared: SharedWeights | None
) -> Breach | float:
    names = [value.name or "" for value in after.graph.outputs]
    allowed = tolerance.widened_for(after)
    worst = 0.0
    for number, case in enumerate(cases):
        try:
            outputs = run_reference(after, case.inputs, shared)
        except (ExecutionError, UnsupportedError, VerificationError) as error:
            return Breach("invalid", f"the model does not run any more: {error}", number)
        result: Comparison = allowed.compare(outputs, case.outputs, names)
        if not result.passed:
            reason = f"output {result.output!r}: {result.reason}"
            return Breach("values", reason, number, result.error)
        worst = max(worst, result.error)
    return worst


def _interface(model: ir.Model) -> list[tuple[str | None, Any, str]]:
    return [(v.name, str(v.type), str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]
