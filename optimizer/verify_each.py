"""`verify="each"`: every pass is checked; what a faulty one did is taken back, and the smallest model shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from optimizer.comparison import Tolerance
from optimizer.errors import ArtifactError, ExecutionError, PassError, UnsupportedError, VerificationError
from optimizer.fault import Fault
from optimizer.ir.provenance import label, origins
from optimizer.localize import Difference, first_difference
from optimizer.pass_check import Breach, breach_of, run_and_check
from optimizer.pass_manager import Pass
from optimizer.reference import Case, Oracle, run_reference
from optimizer.shared_weights import SharedWeights
from optimizer.shrink import smallest_part

__all__ = ["VerifyEach", "find_fault"]


_SHOWN_BY_RUNNING = {"values", "invalid"}
_ABOUT_A_NODE = {*_SHOWN_BY_RUNNING, "failed", "modified"}


class VerifyEach:
    """A guard that runs the graph after each pass that changed it, and rejects a pass that broke it.

    Attributes:
        errors: One for each pass that ran: its relative error, `None` if it changed nothing or was rejected.
        faults: What was rejected.
        notes: The same in words, with the folder in which the smallest model is.

    Args:
        oracle: What the model computes.
        folder: Where the smallest model of each fault is saved.
    """

    def __init__(self, oracle: Oracle, folder: Path) -> None:
        self.errors: list[float | None] = []
        self.faults: list[Fault] = []
        self.notes: list[str] = []
        self._oracle = oracle
        self._folder = folder
        self._shared = SharedWeights()

    def __enter__(self) -> VerifyEach:
        return self

    def __exit__(self, *_: object) -> None:
        self._shared.close()

    def accepts(self, pass_: Pass, before: ir.Model, after: ir.Model, modified: bool) -> bool:
        """Compare; see `optimizer.instruments.Guard`."""
        oracle = self._oracle
        found = breach_of(pass_, before, after, modified, oracle.cases, oracle.tolerance, self._shared)
        if isinstance(found, Breach):
            self._reject(pass_, before, after, found)
            return False
        self.errors.append(found)
        return True

    def failed(self, pass_: Pass, before: ir.Model, error: PassError) -> None:
        """See `optimizer.instruments.Guard`."""
        self._reject(pass_, before, before, Breach("failed", str(error)))

    def _reject(self, pass_: Pass, before: ir.Model, after: ir.Model, breach: Breach) -> None:
        fault = find_fault(pass_, before, after, breach, self._oracle)
        self.errors.append(None)
        self.faults.append(fault)
        try:
            where = (
                f"the smallest model that shows it ({len(fault.model.graph)} nodes) is in {fault.save(self._folder)}"
            )
        except ArtifactError as error:
            where = str(error)
        self.notes.append(f"{fault}; it was rolled back; {where}")


def find_fault(pass_: Pass, before: ir.Model, after: ir.Model, breach: Breach, oracle: Oracle) -> Fault:
    """Find the node that first goes wrong, and the smallest part of the model that shows it.

    Args:
        pass_: It broke its contract.
        before: The model that it was given.
        after: The model that it left.
        breach: What `optimizer.pass_check` found.
        oracle: What the original model computes.
    """
    case = oracle.cases[breach.case]
    difference = None
    if breach.kind == "values":
        difference = first_difference(before, after, case.inputs, oracle.tolerance)
    changed = _changed_values(before, after)
    suspects = [difference.value] if difference is not None else changed or _all_values(before)
    suspects += [value.name or "" for value in before.graph.outputs]

    def shows(part: ir.Model, inputs: list[Any]) -> bool:
        return _still_broken(pass_, part, inputs, breach.kind)

    model, inputs = smallest_part(before, case.inputs, suspects, shows)
    if difference is None and (changed or breach.kind == "failed") and breach.kind in _ABOUT_A_NODE:
        difference = _node_of(model, before)
    reason = breach.reason if difference is None or not difference.reason else difference.reason
    return Fault(
        pass_name=pass_.name,
        pipeline=str(pass_),
        kind=breach.kind,
        reason=reason,
        node=difference.node if difference is not None else "",
        origins=difference.origins if difference is not None else (),
        model=model,
        inputs=inputs,
    )


def _still_broken(pass_: Pass, part: ir.Model, inputs: list[Any], kind: str) -> bool:
    cases = []
    if kind in _SHOWN_BY_RUNNING:
        try:
            cases = [Case(inputs, run_reference(part, inputs))]
        except (ExecutionError, UnsupportedError, VerificationError):
            return False
    found = run_and_check(pass_, part, cases, Tolerance.of(part))[1]
    return isinstance(found, Breach) and (found.kind == kind or {found.kind, kind} == _SHOWN_BY_RUNNING)


def _node_of(part: ir.Model, before: ir.Model) -> Difference | None:
    """The last node of the smallest part, as the node that the fault is about."""
    if not len(part.graph) or len(part.graph) == len(before.graph) > 1:
        return None
    last = part.graph[-1]
    return Difference(last.outputs[0].name or "", label(last), origins(last), "", 0.0)


def _changed_values(before: ir.Model, after: ir.Model) -> list[str]:
    """Names of values of `before` that `after` computes in another way or not at all, in order."""
    new = {value.name: _made_by(node) for node in after.graph for value in node.outputs}
    return [
        value.name or ""
        for node in before.graph
        for value in node.outputs
        if value.name and new.get(value.name) != _made_by(node)
    ]


def _all_values(model: ir.Model) -> list[str]:
    return [value.name or "" for node in model.graph for value in node.outputs if value.name]


def _made_by(node: ir.Node) -> tuple[object, ...]:
    return (
        node.op_identifier(),
        tuple(value.name if value is not None else None for value in node.inputs),
        tuple(sorted((name, str(attribute)) for name, attribute in node.attributes.items())),
    )
