"""Whether a model with rounded weights is computed rightly, and what the rounding costs it.

Two questions, two references. What the quantized graph computes says whether the code for it is right: that is run in
ONNX Runtime without optimizations. What the original computes says what was lost: that stands in the report.

Two correct ways to compute a quantized graph do not give the same numbers: an activation within a rounding error of the
boundary between two codes falls to either side, is off by a whole step then, and pushes others over theirs. How much of
the result that is depends on the model, so it is measured: the graph is run once more with every number that it rounds
off by up to `SHAKE`, the error that is allowed to one operator of float32. Compiled code may be off by `TIMES_SHAKEN`
times the difference. In a deep model steps cause steps until two runs are as far apart as two other roundings of the
model would be, and both as far from the original; so `TIMES_SATURATED` times that is allowed at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from optimizer.comparison import EPSILON_PER_OP, USELESS, Comparison, Tolerance, compare
from optimizer.ir.quantized import shaken
from optimizer.reference import run_reference

__all__ = ["SHAKE", "TIMES_SATURATED", "TIMES_SHAKEN", "compare_quantized", "loss_of"]

SHAKE = EPSILON_PER_OP[ir.DataType.FLOAT]

TIMES_SHAKEN = 4.0
"""Which activations fall to another side is luck: with few of them, one run differs from the next by some times."""

TIMES_SATURATED = 2.0
"""The difference of two independent errors is 1.4 times one of them in the mean."""


def compare_quantized(
    outputs: Sequence[Any], original: Sequence[Any], form: ir.Model, inputs: Sequence[Any]
) -> Comparison:
    """Hold the outputs of compiled code against the quantized graph.

    Args:
        outputs: Of the compiled code.
        original: Of the original model.
        form: The quantized graph.
        inputs: What all were given.

    Raises:
        UnsupportedError: No runtime can load the graph.
        ExecutionError: It does not run.
    """
    names = [value.name or "" for value in form.graph.outputs]
    expected = run_reference(form, inputs)
    flips = loss_of(run_reference(shaken(form, SHAKE), inputs), expected)
    saturated = TIMES_SATURATED * max(flips, loss_of(expected, original))
    tolerance = Tolerance.of(form)
    error = max(tolerance.error, min(TIMES_SHAKEN * flips, saturated, USELESS))
    allowed = replace(tolerance, error=error)
    return allowed.compare(outputs, expected, names)


def loss_of(outputs: Sequence[Any], reference: Sequence[Any]) -> float:
    """The largest relative error of an output; infinity where one is not a number and the reference's is."""
    # Each is compared by itself: one that is off by too much would hide the others.
    pairs = zip(outputs, reference, strict=True)
    return max((compare([o], [r], [""], USELESS, rounds=True).error for o, r in pairs), default=0.0)
