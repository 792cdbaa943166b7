"""The figures of a graph's costs; `optimizer.ir.costs` computes them. Apart, so that a saved report needs no ONNX."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Costs"]


@dataclass(frozen=True)
class Costs:
    """The costs of a graph.

    Attributes:
        nodes: Number of nodes, those of subgraphs included.
        parameters: Number of elements of all weights.
        bytes: Size of all weights.
        flops: Floating-point operations of one run; each branch of an `If` and one turn of a loop count once.
        peak_activation_bytes: The most memory that values, weights apart, need at one time.
        symbolic: Whether a dimension was not known, so that the last two are lower bounds.
    """

    nodes: int
    parameters: int
    bytes: int
    flops: int
    peak_activation_bytes: int
    symbolic: bool

    def to_dict(self) -> dict[str, int | bool]:
        """JSON types."""
        return dict(self.__dict__)
