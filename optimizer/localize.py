"""Where two forms of a model first differ: values with the same name are held against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from optimizer.comparison import Tolerance
from optimizer.errors import ExecutionError, UnsupportedError
from optimizer.ir.extract import with_outputs
from optimizer.ir.provenance import label, origins
from optimizer.reference import run_reference

__all__ = ["Difference", "first_difference", "values_of"]

_MOST_VALUES = 200
"""So many values are read in one run: all of a large model's at once could be more than its memory holds."""


@dataclass(frozen=True)
class Difference:
    """The first value that differs.

    Attributes:
        value: Its name, in both models.
        node: The label of the node that computes it in the second model.
        origins: Labels of the original nodes that this node stands for.
        reason: How it differs.
        error: Its relative error.
    """

    value: str
    node: str
    origins: tuple[str, ...]
    reason: str
    error: float


def values_of(model: ir.Model, inputs: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """What values of the main graph are in a run on `inputs`, by name; those of an unknown runtime type are left out.

    Raises:
        UnsupportedError: No runtime can load the model.
        ExecutionError: The runtime failed on these inputs.
    """
    given = {value.name or "": array for value, array in zip(model.graph.inputs, inputs, strict=True)}
    wanted = [name for name in names if name not in given]
    for start in range(0, len(wanted), _MOST_VALUES):
        extended = with_outputs(model, wanted[start : start + _MOST_VALUES])
        results = run_reference(extended, inputs)
        given.update({value.name or "": found for value, found in zip(extended.graph.outputs, results, strict=True)})
    return given


def first_difference(
    before: ir.Model, after: ir.Model, inputs: Sequence[Any], tolerance: Tolerance
) -> Difference | None:
    """The first value, in the order of `after`, that both models name and that is not the same in both.

    Args:
        before: The model that is right.
        after: What became of it.
        inputs: For both.
        tolerance: What is allowed to the results of `before`.
    """
    named = {value.name for node in before.graph for value in node.outputs if value.name}
    shared = [(value, node) for node in after.graph for value in node.outputs if value.name in named]
    names = [value.name or "" for value, _ in shared]
    try:
        right, found = values_of(before, inputs, names), values_of(after, inputs, names)
    except (ExecutionError, UnsupportedError):
        return None
    allowed = tolerance.widened_for(after)
    for (_, node), name in zip(shared, names, strict=True):
        result = allowed.compare([_like(found[name], right[name])], [right[name]], [name])
        if not result.passed:
            error = result.error if math.isfinite(result.error) else math.inf
            return Difference(name, label(node), origins(node), result.reason, error)
    return None


def _like(found: Any, right: Any) -> Any:
    """What a pass computes in bfloat16 instead of float32, to be compared."""
    types = [str(getattr(value, "dtype", None)) for value in (found, right)]
    return found.astype(right.dtype) if types == ["bfloat16", "float32"] else found
