"""Where a run's work and memory go, operator by operator.

`optimizer.ir.usage` measures it. Apart, so that a saved report needs no ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["OperatorUsage", "Usage"]


@dataclass(frozen=True)
class OperatorUsage:
    """What all nodes of one operator and element type need in one run.

    Attributes:
        operator: Its name.
        dtype: The element type that it computes, such as `float32`; `""` where that is not known.
        nodes: How many there are.
        flops: Floating-point operations, as `optimizer.ir.costs` counts them.
        weight_bytes: Bytes of weights that are read; of a table that rows are gathered from, those rows.
        moved_bytes: Bytes of activations that are read and written.
    """

    operator: str
    dtype: str
    nodes: int
    flops: int
    weight_bytes: int
    moved_bytes: int


@dataclass(frozen=True)
class Usage:
    """What a graph needs in one run; lower bounds where sizes are not known.

    Attributes:
        operators: One row for each operator and element type, in no special order.
        memory: Bytes of activations alive after each node, in the order of the nodes; thinned out to some hundreds,
            the peak kept.
        peak_node: The label of the node that runs when most is alive.
        cache_bytes: The last cache of the machine: what fits stays there from run to run.
    """

    operators: tuple[OperatorUsage, ...]
    memory: tuple[int, ...]
    peak_node: str
    cache_bytes: int

    @property
    def flops(self) -> int:
        """Of all operators."""
        return sum(row.flops for row in self.operators)

    @property
    def weight_bytes(self) -> int:
        """Of all operators."""
        return sum(row.weight_bytes for row in self.operators)

    @property
    def moved_bytes(self) -> int:
        """Of all operators."""
        return sum(row.moved_bytes for row in self.operators)

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "operators": [asdict(row) for row in self.operators], "memory": list(self.memory)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Usage:
        """The inverse.

        Raises:
            KeyError, TypeError: The data is nothing of the kind.
        """
        rows = tuple(OperatorUsage(**row) for row in data["operators"])
        return cls(rows, tuple(data["memory"]), data["peak_node"], data["cache_bytes"])
