"""Which results of a graph are put together from pieces."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from optimizer.ir.provenance import makers, origins
from optimizer.ir.query import is_op

__all__ = ["piece_counts"]


def piece_counts(model: ir.Model, maker: str) -> list[int]:
    """The number of pieces of each result: of those that are concatenated, then of those that are sums.

    Args:
        model: The graph.
        maker: The name of the pass that cut it.
    """
    made = [node for node in model.graph if maker in makers(node)]
    joined = [len(node.inputs) for node in made if is_op(node, "Concat")]
    sums = Counter(origins(node) for node in made if _adds_a_piece(node))
    return [*joined, *(additions + 1 for additions in sums.values())]


def _adds_a_piece(node: ir.Node) -> bool:
    """Whether it stands for the same nodes as the product that it adds."""
    value = node.inputs[0] if is_op(node, "Add") else None
    product = None if value is None else value.producer()
    return product is not None and not is_op(product, "Add") and origins(product) == origins(node) != ()
