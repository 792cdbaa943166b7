"""The oracle: what a model computes.

The original model runs in ONNX Runtime with its graph optimizations off, in a process of its own
(`optimizer.reference_process`); where that cannot load it, in `onnx.reference`. `optimizer.comparison` says how far
from that a result may be.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.comparison import EPSILON_PER_OP, USELESS, Comparison, Tolerance
from optimizer.errors import ExecutionError, UnsupportedError, VerificationError
from optimizer.executable import Array
from optimizer.ir.query import RANDOM_OPERATORS
from optimizer.ir.walk import all_nodes
from optimizer.ir.widen import has_bfloat16
from optimizer.reference_process import run_in_process
from optimizer.sample_inputs import candidate_inputs, inputs_of_other_sizes
from optimizer.shared_weights import SharedWeights
from optimizer.target import detect_cpu

__all__ = ["Case", "Oracle", "run_reference"]

_TIMES_ROUNDING = 4.0
"""Two runs that round at other places differ in luck: with two outputs, one in ten is off by three times the other."""

_OVERFLOW = (
    "; float16 ends at 65,504: precision='bfloat16' has the range of float32, convert-float{keep=} excepts operators"
)


@dataclass(frozen=True)
class Case:
    """A run of the original model.

    Attributes:
        inputs: One for each input of the graph.
        outputs: One for each of its outputs.
    """

    inputs: list[Any]
    outputs: list[Any]


class Oracle:
    """The outputs of a model on seeded inputs, computed once.

    Attributes:
        cases: What the model was run with, and what it gave: one run, and where other sizes of its symbolic dimensions
            were asked for and run, another.
        input_shapes: The shapes of the first case's inputs, by name.
        tolerance: What is allowed to the same graph in another form.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        seed: int,
        example: Sequence[Array] | None = None,
        dims: Mapping[str, int] | None = None,
        other_sizes: bool = False,
        given: Sequence[Sequence[Any]] = (),
    ) -> None:
        """Find inputs with which the model runs, and run it.

        Args:
            model: In canonical form; not changed.
            seed: For the inputs.
            example: Inputs that are known to run.
            dims: Sizes of symbolic dimensions, by name.
            other_sizes: Whether to run it with a second set of sizes, too, if it has symbolic dimensions.
            given: Sets of inputs to run it with as they are, instead of made up ones: the first, and for `other_sizes`
                the second.

        Raises:
            UnsupportedError: No runtime can run the model, or it gives other results each time.
            VerificationError: The runtime crashed or hung.
        """
        random = next((node for node in all_nodes(model) if node.op_type in RANDOM_OPERATORS), None)
        if random is not None:
            raise UnsupportedError(f"{random.op_type} gives another result in each run", node=random.name or "")
        self._names = [value.name or "" for value in model.graph.outputs]
        self.tolerance = Tolerance.of(model)
        with SharedWeights() as shared:
            made_up = candidate_inputs(model.graph, seed, example, dims)
            first = _first_that_runs(model, [list(given[0])] if given else made_up, shared)
            more: Iterable[list[Any]] = ()
            if other_sizes:
                others = inputs_of_other_sizes(model.graph, seed, first.inputs)
                more = [list(inputs) for inputs in given[1:2]] if given else others
            with contextlib.suppress(UnsupportedError):
                self.cases: tuple[Case, ...] = (first,)
                self.cases = (first, _first_that_runs(model, more, shared))
        self.input_shapes = _shapes(model, first.inputs)

    @property
    def inputs(self) -> list[Any]:
        """The inputs of the first case."""
        return self.cases[0].inputs

    @property
    def outputs(self) -> list[Any]:
        """The outputs of the first case."""
        return self.cases[0].outputs

    def compare(self, outputs: Sequence[Any], form: ir.Model | None = None) -> Comparison:
        """Hold results on the inputs of the first case against the reference.

        Args:
            outputs: The results.
            form: The graph that gave them, if it may compute in a coarser type than the original.
        """
        tolerance = self.tolerance if form is None else self.tolerance.widened_for(form)
        return tolerance.compare(outputs, self.outputs, self._names)

    def verify(self, outputs: Sequence[Any], what: str, form: ir.Model | None = None) -> Comparison:
        """Like `compare`, but a bad result is an error, unless the form itself computes nothing better.

        Raises:
            VerificationError: The result is not that of the original model.
        """
        result = self.compare(outputs, form)
        if not result.passed and form is not None and self._is_narrower(form):
            result = self._beside_rounding(outputs, form) or result
        if not result.passed:
            hint = _OVERFLOW if math.isinf(result.error) and form is not None and _has_float16(form) else ""
            raise VerificationError(
                f"{what} does not compute what the original model does: output {result.output!r}: {result.reason}{hint}"
            )
        return result

    def _is_narrower(self, form: ir.Model) -> bool:
        return has_bfloat16(form) or (
            self.tolerance.epsilon < EPSILON_PER_OP[ir.DataType.FLOAT16] and _has_float16(form)
        )

    def _beside_rounding(self, outputs: Sequence[Any], form: ir.Model) -> Comparison | None:
        """Compare once more, with what rounding each result costs a model that magnifies errors; `None` if too much."""
        tolerance = self.tolerance.widened_for(form)
        try:
            rounded = tolerance.compare(run_reference(form, self.inputs), self.outputs, self._names)
        except (ExecutionError, UnsupportedError):
            return None
        if rounded.error > USELESS:
            return None
        error = max(tolerance.error, min(USELESS, _TIMES_ROUNDING * rounded.error))
        largest = _TIMES_ROUNDING * rounded.largest
        return replace(tolerance, error=error, largest=largest).compare(outputs, self.outputs, self._names)


def _has_float16(form: ir.Model) -> bool:
    return any(value.dtype == ir.DataType.FLOAT16 for node in all_nodes(form) for value in node.outputs)


def run_reference(model: ir.Model, inputs: Sequence[Any], shared: SharedWeights | None = None) -> list[Any]:
    """Run a model once, without any optimization, in a process of its own.

    Args:
        model: Not changed.
        inputs: One for each input of the graph.
        shared: Keeps the weights for further runs; without it each run copies those that lie in no file.

    Raises:
        UnsupportedError: No runtime can load the model.
        ExecutionError: The runtime failed on these inputs.
        VerificationError: The runtime crashed or hung.
    """
    if shared is None:
        with SharedWeights() as own:
            return run_reference(model, inputs, own)
    shapes = _shapes(model, inputs)
    return run_in_process(model, inputs, shared, num_threads=detect_cpu().cores, input_shapes=shapes)


def _shapes(model: ir.Model, inputs: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    pairs = zip(model.graph.inputs, inputs, strict=True)
    return {value.name or "": array.shape for value, array in pairs if isinstance(array, np.ndarray)}


def _first_that_runs(model: ir.Model, candidates: Iterable[list[Any]], shared: SharedWeights) -> Case:
    failure = "its inputs are too large to be made up"
    for inputs in candidates:
        try:
            return Case(inputs, run_reference(model, inputs, shared))
        except ExecutionError as error:
            failure = str(error)
    raise UnsupportedError(f"no inputs were found that the model runs with ({failure}): give example_inputs")
