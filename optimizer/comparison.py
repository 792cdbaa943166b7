"""How far a result may be from the reference.

**Error.** For float outputs, the norm of the difference over the norm of the reference, over the elements that are
finite. NaN and infinities must stand at the same places. Integers, truth values and strings must be equal.

**Tolerance.** One operator may be off by `EPSILON_PER_OP` of the coarsest float type in the graph: 1e-5 for float32,
some hundred units in the last place, which covers sums in another order and approximated functions. Rounding errors of
operators that follow each other are independent, so they grow with the square root of the longest chain of operators
(Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019): 250 operators in a row may be off by
1.6e-4.
`Sigmoid` is accurate to the last place of its range, 1, and no better: ONNX Runtime computes it as a quotient of
polynomials, which is off by 1e-7 where the result is 1e-8. What it gives, and what only moves that, may be off by
`SIGMOID_ERROR` in the mean square whatever its size.
For bfloat16 the chain's bound is so wide (0.2 after 150 operators) that a few rows of garbage could hide below it. So
no element may be off by more than `OUTLIER` times the tolerance, in units of the reference's root mean square: rounding
errors are spread evenly, and the largest of a million is five times their own mean. Where a `Sigmoid` or a `Softmax`
at the end of a model makes a few large numbers of many small ones, rounding alone can exceed that: see
`optimizer.reference.Oracle.verify`.
Where the graph rounds to integers or chooses (`QuantizeLinear`, `ArgMax`, ...), a tiny difference can turn one value
into its neighbour: then 1 % of an integer output's elements may differ, and a float output by 1 %.
A form whose weights were rounded to 8 bits or fewer is another model; what it loses is for its user to judge. It is
refused when it is of no use to anybody, with more than `USELESS` of the result wrong; `optimizer.quantized_comparison`
says whether it is computed rightly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.executable import Array
from optimizer.ir.quantized import narrow_elements
from optimizer.ir.walk import all_nodes, subgraphs

__all__ = ["EPSILON_PER_OP", "USELESS", "Comparison", "Tolerance", "compare"]

EPSILON_PER_OP: Mapping[ir.DataType, float] = {
    ir.DataType.DOUBLE: 1e-9,
    ir.DataType.FLOAT: 1e-5,
    ir.DataType.FLOAT16: 2e-3,
    ir.DataType.BFLOAT16: 1.6e-2,
}
"""The relative error allowed to one operator, by the coarsest float type in the graph."""

OUTLIER = 8.0
"""How many times the tolerance, in units of the reference's root mean square, one element may be off in bfloat16."""

ROUNDED = 1e-2
"""The share of integers that may differ, and the relative error of floats, where the graph rounds or chooses."""

USELESS = 0.5
"""The relative error of a form from which on it is of no use, whatever it is for."""

SIGMOID_ERROR = 2.0**-22
"""The absolute error of a `Sigmoid` in float32: two units in the last place of 1."""

_MOVES = frozenset({"Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""They give elements of their first input, as those are."""

# fmt: off
_CHOOSES = frozenset({
    "ArgMax", "ArgMin", "DynamicQuantizeLinear", "NonMaxSuppression", "QLinearConv", "QLinearMatMul", "QuantizeLinear",
    "Round", "TopK", "Unique",
})
# fmt: on


@dataclass(frozen=True)
class Comparison:
    """How far a result is from the reference.

    Attributes:
        error: The largest error among the outputs; infinity when shape, type, or the places of NaN differ.
        tolerance: The largest error that is allowed.
        output: The name of the output with the largest error.
        reason: What is wrong with it, `""` if nothing.
        largest: How far the worst element of any output is off, in units of the reference's root mean square.
    """

    error: float
    tolerance: float
    output: str
    reason: str
    largest: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the result is good."""
        return not self.reason


@dataclass(frozen=True)
class Tolerance:
    """What may differ between two forms of a model.

    Attributes:
        error: The relative error that its float outputs may have.
        rounds: Whether some integers may differ, too.
        absolute: The absolute error, in the mean square, that values may have whatever their size, by name.
        epsilon: The relative error allowed to one operator.
        narrow: How many elements of the model's weights have 8 bits or fewer.
        largest: What one element may be off by at least, in units of the reference's root mean square.
    """

    error: float
    rounds: bool = False
    absolute: Mapping[str, float] = field(default_factory=dict)
    epsilon: float = EPSILON_PER_OP[ir.DataType.FLOAT]
    narrow: int = 0
    largest: float = 0.0

    @classmethod
    def of(cls, model: ir.Model) -> Tolerance:
        """What is allowed to the results of a model. See the module's docstring."""
        coarsest = _coarsest(model)
        growth = coarsest * math.sqrt(max(1, _longest_chain(model.graph)))
        rounds = any(node.op_type in _CHOOSES for node in all_nodes(model))
        error = max(growth, ROUNDED) if rounds else growth
        return cls(error, rounds, _absolute_errors(model), coarsest, narrow_elements(model))

    def widened_for(self, result: ir.Model) -> Tolerance:
        """What is allowed to a form of the model that a pass made: more, if it computes in a coarser type.

        Args:
            result: The form that gave the results.
        """
        if self.is_rounded_in(result):
            return replace(Tolerance.of(result), error=USELESS, rounds=True, absolute=self.absolute)
        if _coarsest(result) <= self.epsilon:
            return self
        other = Tolerance.of(result)
        return replace(other, rounds=self.rounds or other.rounds, absolute=self.absolute)

    def is_rounded_in(self, result: ir.Model) -> bool:
        """Whether weights of the model were rounded to 8 bits or fewer in a form of it."""
        return narrow_elements(result) > self.narrow

    def compare(self, outputs: Sequence[Any], reference: Sequence[Any], names: Sequence[str]) -> Comparison:
        """Hold outputs against those of the reference; see `compare`."""
        coarse = self.epsilon >= EPSILON_PER_OP[ir.DataType.BFLOAT16] and not self.rounds
        outlier = max(OUTLIER * self.error, self.largest) if coarse else math.inf
        return compare(
            outputs, reference, names, self.error, rounds=self.rounds, absolute=self.absolute, outlier=outlier
        )


def _coarsest(model: ir.Model) -> float:
    """The relative error allowed to one operator of the model."""
    found = {value.dtype for node in all_nodes(model) for value in node.outputs} & EPSILON_PER_OP.keys()
    floats = {dtype for dtype in found if dtype is not None}
    return max(EPSILON_PER_OP[dtype] for dtype in floats or {ir.DataType.FLOAT})


def _absolute_errors(model: ir.Model) -> dict[str, float]:
    found: dict[str, float] = {}
    for node in all_nodes(model):
        given = node.inputs[0].name if node.inputs and node.inputs[0] is not None else None
        if node.op_type == "Sigmoid" or (node.op_type in _MOVES and given in found):
            found.update((value.name, SIGMOID_ERROR) for value in node.outputs if value.name)
    return found


def _longest_chain(graph: ir.Graph) -> int:
    depth: dict[ir.Value, int] = {}
    for node in graph:
        inner = sum(_longest_chain(body) for body in subgraphs(node))
        before = max((depth.get(value, 0) for value in node.inputs if value is not None), default=0)
        depth.update(dict.fromkeys(node.outputs, before + 1 + inner))
    return max(depth.values(), default=0)


def compare(
    outputs: Sequence[Any],
    reference: Sequence[Any],
    names: Sequence[str],
    tolerance: float,
    *,
    rounds: bool = False,
    absolute: Mapping[str, float] | None = None,
    outlier: float = math.inf,
) -> Comparison:
    """Hold the outputs of a model against those of the reference.

    Args:
        outputs: Arrays, lists of arrays for sequences, `None` for absent optionals.
        reference: The same from the oracle.
        names: The outputs' names, for the message.
        tolerance: For float outputs.
        rounds: Whether some integers may differ, too.
        absolute: What float outputs may be off by in the mean square whatever their size, by name.
        outlier: How far one element may be off, in units of the reference's root mean square.
    """
    largest = 0.0
    worst = Comparison(0.0, tolerance, names[0] if names else "", "")
    for name, actual, expected in zip(names, outputs, reference, strict=True):
        limits = _Limits(tolerance, rounds, (absolute or {}).get(name, 0.0), outlier)
        error, reason = _compare_values(actual, expected, limits)
        largest = max(largest, _largest(actual, expected))
        if (bool(reason), error) > (bool(worst.reason), worst.error):
            worst = Comparison(error, tolerance, name, reason)
    return replace(worst, largest=largest)


def _largest(actual: Any, expected: Any) -> float:
    """Of two arrays of floats of the same shape; 0 of anything else."""
    if not isinstance(actual, np.ndarray) or not isinstance(expected, np.ndarray) or actual.shape != expected.shape:
        return 0.0
    if not np.issubdtype(expected.dtype, np.floating) or not expected.size:
        return 0.0
    finite = np.isfinite(expected) & np.isfinite(actual)
    scale = float(np.linalg.norm(expected[finite].astype(np.float64))) / math.sqrt(max(1, int(finite.sum())))
    off = np.abs(actual[finite].astype(np.float64) - expected[finite])
    return float(off.max()) / scale if scale > 0 and off.size else 0.0


@dataclass(frozen=True)
class _Limits:
    """The arguments of `compare`, for one output."""

    tolerance: float
    rounds: bool
    absolute: float
    outlier: float


def _compare_values(actual: Any, expected: Any, limits: _Limits) -> tuple[float, str]:
    if expected is None or isinstance(expected, (list, tuple)) or actual is None:
        return _compare_sequences(actual, expected, replace(limits, absolute=0.0))
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return math.inf, f"its shape is {actual.shape}, it must be {expected.shape}"
    if expected.dtype.kind in "OSU":
        return (0.0, "") if _texts(actual) == _texts(expected) else (math.inf, "its strings differ")
    if actual.dtype != expected.dtype:
        return math.inf, f"its type is {actual.dtype}, it must be {expected.dtype}"
    if expected.dtype.kind in "biu" or "int" in expected.dtype.name:
        return _compare_integers(actual, expected, limits)
    return _compare_floats(actual, expected, limits)


def _compare_sequences(actual: Any, expected: Any, limits: _Limits) -> tuple[float, str]:
    if expected is None or not isinstance(actual, (list, tuple)) or not isinstance(expected, (list, tuple)):
        return (0.0, "") if actual is None and expected is None else (math.inf, "one of the two is absent")
    if len(actual) != len(expected):
        return math.inf, f"it has {len(actual)} elements, it must have {len(expected)}"
    results = [_compare_values(a, e, limits) for a, e in zip(actual, expected, strict=True)]
    return max(results, default=(0.0, ""), key=lambda result: (bool(result[1]), result[0]))


def _texts(array: Array) -> list[str]:
    return [item.decode() if isinstance(item, bytes) else str(item) for item in array.reshape(-1).tolist()]


def _compare_integers(actual: Array, expected: Array, limits: _Limits) -> tuple[float, str]:
    differing = int(np.count_nonzero(actual != expected))
    share = differing / max(1, expected.size)
    most = USELESS if limits.tolerance >= USELESS else ROUNDED
    allowed = max(1, int(expected.size * most)) if limits.rounds else 0
    return share, f"{differing} of its {expected.size} elements differ" if differing > allowed else ""


def _compare_floats(actual: Array, expected: Array, limits: _Limits) -> tuple[float, str]:
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, e = actual.astype(wide), expected.astype(wide)
    finite = np.isfinite(e)
    if not np.array_equal(a[~finite], e[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return math.inf, "NaN or infinity stand at other places"
    if not finite.any():
        return 0.0, ""
    off = a[finite] - e[finite]
    scale, distance = float(np.linalg.norm(e[finite])), float(np.linalg.norm(off))
    error = distance / scale if scale > 0 else distance
    if distance <= limits.absolute * math.sqrt(off.size):
        return error, ""
    if error > limits.tolerance:
        return error, f"its relative error is {error:.1e}, {limits.tolerance:.1e} is allowed"
    most = limits.outlier
    worst = float(np.abs(off).max()) * math.sqrt(off.size) / scale if scale > 0 and math.isfinite(most) else 0.0
    return error, f"an element is off by {worst:.1e} of the mean size, {most:.1e} is allowed" if worst > most else ""
