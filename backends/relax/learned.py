"""Scalars that a model has learned: arguments of a kernel, not numbers in its code.

A network that scales and shifts each layer by a scalar of its own would otherwise get a kernel for every layer, alike
but for one number. A number that the architecture repeats, such as the 3 and the 6 of a hard swish, stays in the code.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

_ARITHMETIC = ("Add", "Div", "Mul", "Sub")
_FEW = 4
"""Different numbers in the place of one operator; below that there is little to share."""
_REPEATED = 3
"""So often the architecture's own numbers occur, at least."""


def learned_scalars(graph: ir.Graph, constants: Mapping[str, np.ndarray]) -> frozenset[str]:
    """The names of the scalar initializers that kernels take as arguments."""
    places: dict[str, list[tuple[str, float]]] = defaultdict(list)
    occurrences: Counter[tuple[str, float]] = Counter()
    others: set[str] = set()
    for node in graph:
        for name in (value.name or "" for value in node.inputs if value is not None):
            array = constants.get(name)
            if array is None or array.size != 1 or array.dtype.kind != "f":
                continue
            key = (node.op_type, float(array.reshape(-1)[0]))
            occurrences[key] += 1
            places[name].append(key)
            if node.op_type not in _ARITHMETIC or node.domain not in ("", "ai.onnx"):
                others.add(name)
    rare = {key for key, count in occurrences.items() if count < _REPEATED}
    different = Counter(op_type for op_type, _ in rare)
    return frozenset(
        name
        for name, keys in places.items()
        if name not in others and all(key in rare and different[key[0]] >= _FEW for key in keys)
    )
