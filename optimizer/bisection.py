"""`tersor bisect`: which pass broke a model, and at which node."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from optimizer.comparison import Comparison
from optimizer.errors import ExecutionError, InputError, PassError, UnsupportedError, VerificationError
from optimizer.fault import Fault
from optimizer.ir.fingerprint import fingerprint
from optimizer.ir.provenance import label, mark_originals
from optimizer.localize import Difference, first_difference
from optimizer.pass_check import Breach, breach_of
from optimizer.pass_manager import Fixpoint, Pass, call_pass
from optimizer.reference import Oracle, run_reference
from optimizer.verify_each import find_fault

__all__ = ["Bisection", "PairResult", "bisect", "compare_pair"]

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Bisection:
    """What bisecting a pipeline found.

    Attributes:
        steps: The pass runs that changed the model, in order, as pipeline strings.
        runs: How many times a model was run to find the fault.
        fault: The first fault, `None` if the pipeline keeps its contract on this model.
    """

    steps: tuple[str, ...]
    runs: int
    fault: Fault | None

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        fault = None if self.fault is None else self.fault.to_dict()
        return {"steps": list(self.steps), "runs": self.runs, "fault": fault}


@dataclasses.dataclass(frozen=True)
class PairResult:
    """What comparing a model with what an optimizer made of it found.

    Attributes:
        values: How many values both models name, and so could be compared.
        comparison: Of the outputs.
        difference: The first value that differs; `None` if none does.
        node_before: The label of the node that computes this value in the first model.
    """

    values: int
    comparison: Comparison
    difference: Difference | None
    node_before: str

    @property
    def passed(self) -> bool:
        """Whether the outputs are the same."""
        return self.comparison.passed

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        found = None if self.difference is None else dataclasses.asdict(self.difference)
        return {
            "values": self.values,
            "passed": self.passed,
            "error": self.comparison.error,
            "tolerance": self.comparison.tolerance,
            "reason": self.comparison.reason,
            "difference": found,
            "node_before": self.node_before,
        }


def bisect(model: ir.Model, pipeline: Sequence[Pass], oracle: Oracle, progress: Progress = lambda _: None) -> Bisection:
    """Find the first pass of a pipeline that breaks its contract on a model.

    The passes run once; copies of the model between them share its weights. Half of the steps are then discarded with
    each run of a model, until the first after which the result is wrong is left. What can be seen without a run, such
    as a pass that fails or is not true to what it changed, is looked for in the steps before that.

    Args:
        model: Not changed.
        pipeline: The passes.
        oracle: What the model computes.
        progress: Told what is going on.
    """
    progress("running the passes")
    history = _History(model.clone())
    failure = history.run(pipeline)
    steps = history.steps
    wrong, runs = _first_wrong(steps, oracle, progress)
    fault = None
    for index, step in enumerate(steps[: wrong + 1]):
        cases = oracle.cases if index == wrong else ()
        found = breach_of(step.pass_, step.before, step.after, step.modified, cases, oracle.tolerance)
        if isinstance(found, Breach):
            progress(f"looking for the smallest model that shows what {step.pass_.name} does")
            fault = find_fault(step.pass_, step.before, step.after, found, oracle)
            break
    if fault is None and failure is not None:
        fault = find_fault(failure.pass_, failure.before, failure.before, Breach("failed", failure.error), oracle)
    return Bisection(tuple(str(step.pass_) for step in steps), runs, fault)


def compare_pair(before: ir.Model, after: ir.Model, oracle: Oracle) -> PairResult:
    """Find the first node at which an optimized model, made by any tool, differs from the original.

    Args:
        before: The original; its inputs and outputs have the same names in `after`.
        after: What became of it.
        oracle: What `before` computes.

    Raises:
        InputError: The interfaces differ.
        ExecutionError, UnsupportedError: `after` does not run.
    """
    inputs = _interface(before), _interface(after)
    if inputs[0] != inputs[1]:
        raise InputError(f"the two models have other inputs and outputs, {inputs[0]} and {inputs[1]}: they are no pair")
    names = [value.name or "" for value in before.graph.outputs]
    allowed = oracle.tolerance.widened_for(after)
    comparison = allowed.compare(run_reference(after, oracle.inputs), oracle.outputs, names)
    makers = {value.name: node for node in before.graph for value in node.outputs if value.name}
    shared = [value.name for node in after.graph for value in node.outputs if value.name in makers]
    difference = None
    if not comparison.passed:
        difference = first_difference(before, after, oracle.inputs, oracle.tolerance)
    node_before = label(makers[difference.value]) if difference is not None else ""
    return PairResult(len(shared), comparison, difference, node_before)


def _interface(model: ir.Model) -> tuple[list[str | None], list[str | None]]:
    return [value.name for value in model.graph.inputs], [value.name for value in model.graph.outputs]


@dataclasses.dataclass(frozen=True)
class _Step:
    pass_: Pass
    modified: bool
    before: ir.Model
    after: ir.Model


@dataclasses.dataclass(frozen=True)
class _Failure:
    pass_: Pass
    before: ir.Model
    error: str


class _History:
    """A model and what each pass made of it."""

    def __init__(self, model: ir.Model) -> None:
        mark_originals(model)
        self.steps: list[_Step] = []
        self._model = model
        self._last, self._mark = model.clone(), fingerprint(model)

    def run(self, passes: Sequence[Pass]) -> _Failure | None:
        """Run passes until one fails."""
        try:
            for pass_ in passes:
                self._run_one(pass_)
        except PassError as error:
            return _Failure(self._running, self._last, str(error))
        return None

    def _run_one(self, pass_: Pass) -> bool:
        if isinstance(pass_, Fixpoint):
            return pass_.run_with(self._run_one)
        self._running = pass_
        modified = call_pass(pass_, self._model)[0].modified
        mark = fingerprint(self._model)
        if modified or mark != self._mark:
            copy = self._model.clone()
            self.steps.append(_Step(pass_, modified, self._last, copy))
            self._last, self._mark = copy, mark
        return modified


def _first_wrong(steps: Sequence[_Step], oracle: Oracle, progress: Progress) -> tuple[int, int]:
    """The index of the first step after which the result is wrong (the number of steps if none), and the runs made."""
    runs = 0

    def is_right(index: int) -> bool:
        nonlocal runs
        runs += 1
        progress(f"running the model after step {index + 1} of {len(steps)}, {steps[index].pass_.name}")
        return _is_right(steps[index].after, oracle)

    if not steps or is_right(len(steps) - 1):
        return len(steps), runs
    low, high = -1, len(steps) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if is_right(middle):
            low = middle
        else:
            high = middle
    return high, runs


def _is_right(model: ir.Model, oracle: Oracle) -> bool:
    tolerance = oracle.tolerance.widened_for(model)
    names = [value.name or "" for value in model.graph.outputs]
    for case in oracle.cases:
        try:
            outputs = run_reference(model, case.inputs)
        except (ExecutionError, UnsupportedError, VerificationError):
            return False
        if len(outputs) != len(case.outputs) or not tolerance.compare(outputs, case.outputs, names).passed:
            return False
    return True
