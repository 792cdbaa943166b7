"""Keep one of several equal initializers.

Equal means: the same type, shape and bits. The first one is kept; one in a graph around serves the subgraphs too. To
find equal ones among many of the same shape, a few bytes of each are compared first, so that weights are not read in
full.

Not merged are initializers that are inputs or outputs of their graph.
"""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Hashable

import onnx_ir as ir

from optimizer.ir.tensors import same_content
from optimizer.ir.walk import subgraphs
from optimizer.pass_manager import Pass

__all__ = ["DeduplicateInitializers"]

_SAMPLE = 64
"""How many elements of the front and of the back are compared first."""


@dataclasses.dataclass(frozen=True)
class DeduplicateInitializers(Pass):
    """Merges equal initializers."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge in the main graph, then in its subgraphs, then in those of functions."""
        modified = _merge_in(model.graph, ChainMap())
        for function in model.functions.values():
            modified |= _merge_in(function.graph, ChainMap())
        return ir.passes.PassResult(model, modified)


def _merge_in(graph: ir.Graph, seen: ChainMap[Hashable, list[ir.Value]]) -> bool:
    modified = False
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        key = _sample(tensor)
        same = next((kept for kept in seen.get(key, ()) if _equal(kept, tensor)), None)
        if same is None:
            seen[key] = [*seen.get(key, ()), value]
            continue
        value.replace_all_uses_with(same)
        del graph.initializers[name]
        modified = True
    for node in graph:
        for subgraph in subgraphs(node):
            modified |= _merge_in(subgraph, seen.new_child())
    return modified


def _equal(kept: ir.Value, tensor: ir.TensorProtocol) -> bool:
    return kept.const_value is not None and same_content(kept.const_value, tensor)


def _sample(tensor: ir.TensorProtocol) -> Hashable:
    elements = tensor.numpy()
    # A flat iterator reads these alone, also where the elements lie in another order.
    parts = (elements.flat[:_SAMPLE], elements.flat[max(0, elements.size - _SAMPLE) :])
    shape = tuple(tensor.shape.numpy())
    if elements.dtype.kind in "OSU":
        return tensor.dtype, shape, *(tuple(part.tolist()) for part in parts)
    return tensor.dtype, shape, *(part.tobytes() for part in parts)
