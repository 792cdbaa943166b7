"""How much of a model a `PrecisionPolicy` has time to measure."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from optimizer.calibration import Samples
from optimizer.ir.costs import model_costs
from optimizer.ir.query import is_op
from optimizer.layer_slices import LAYERS
from optimizer.precision_policy import PrecisionPolicy

__all__ = ["learns_again", "makes_later", "split_sets"]

_MANY_SETS = 8
"""From so many sets on, a quarter is kept from what learns, to measure with."""
_MOST_MEASURED = 8
_MOST_FLOPS = 1e13
"""For the runs with one layer in another form: some two minutes on two cores. One set is measured with in any case."""
_SAME_SIZE = ("auto", "gptq", "hqq")
"""Methods whose codes and scales have the sizes of those that are rounded to nearest."""
_LEARNING = ("auto", "gptq")
"""Those of them that learn from data, each layer by itself."""


def split_sets(model: ir.Model, samples: Samples) -> tuple[Samples, list[list[Any]], float]:
    """The sets to learn from, those to measure with, others if there are enough, and how often there is time for it."""
    sets = list(samples)
    shapes = {v.name or "": x.shape for v, x in zip(model.graph.inputs, sets[0], strict=True) if hasattr(x, "shape")}
    runs = _MOST_FLOPS / max(1, model_costs(model, shapes).flops)
    most = min(_MOST_MEASURED, max(1, int(runs / max(1, sum(is_op(node, *LAYERS) for node in model.graph)))))
    if len(sets) < _MANY_SETS:
        return samples, sets[:most], runs / min(most, len(sets))
    step = max(4, -(-len(sets) // most))
    measured = sets[::step]
    return Samples([given for index, given in enumerate(sets) if index % step]), measured, runs / len(measured)


def makes_later(policy: PrecisionPolicy, model: ir.Model, forms: int, runs: float) -> bool:
    """Whether 4-bit weights are rounded to nearest for the search, and made as the policy asks only after it."""
    large = runs < forms * sum(is_op(node, *LAYERS) for node in model.graph)
    return large and policy.bounds_bytes and policy.method in _SAME_SIZE


def learns_again(policy: PrecisionPolicy, samples: Samples, learned: Samples) -> bool:
    """Whether the 4-bit weights of a mix are made once more when it is found, from the sets it was measured with, too.

    A budget that is an error or a metric was met by the weights as they were; these stay.
    """
    return len(learned) < len(samples) and policy.bounds_bytes and policy.method in _LEARNING
