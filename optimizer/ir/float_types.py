"""Which float32 values of a graph are to be of 16 bits, so that the fewest conversions are left.

Products and convolutions are to be of 16 bits: they are what takes the time. What these are not allowed for or not
good enough for, and the interface of the graph, stays float32. Everything between, which could be either, is divided by
the cheapest cut (`optimizer.ir.min_cut`), where a value that one side makes and the other reads costs one conversion,
however often it is read; between two cheapest cuts, more is of 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from optimizer.ir.edit import Scope
from optimizer.ir.float_range import beyond_range
from optimizer.ir.float_sensitive import sensitive_nodes
from optimizer.ir.float_slots import Slot, input_slots, output_slots
from optimizer.ir.min_cut import SINK, SOURCE, UNLIMITED, Network
from optimizer.ir.narrow_float import NarrowFloat
from optimizer.ir.query import constant
from optimizer.ir.shapes import Shapes
from optimizer.ir.walk import subgraphs

__all__ = ["HEAVY", "Division", "divide", "nested_scopes"]

IsFloat = Callable[[ir.Value], bool]

HEAVY = frozenset({"Attention", "Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Division:
    """What is to be of 16 bits.

    Attributes:
        nodes: The nodes of which all `OWN` inputs and outputs are of 16 bits.
        fixed_heavy: Products and convolutions for which ONNX does not allow the type.
        is_float: Whether a value was a float32 tensor when it was divided.
    """

    nodes: dict[ir.Node, None]
    fixed_heavy: list[ir.Node]
    is_float: IsFloat


def nested_scopes(scope: Scope) -> Iterator[Scope]:
    """A scope, and those of the graphs inside it."""
    yield scope
    for node in scope.graph:
        for graph in subgraphs(node):
            yield from nested_scopes(Scope(graph, scope.opset, scope.in_function, parent=scope))


def divide(scope: Scope, shapes: Shapes, to: NarrowFloat, keep: Collection[str] = ()) -> Division:
    """Decide for each node of a graph, and of the graphs inside it.

    Args:
        scope: The graph.
        shapes: The types of all values.
        to: The type of 16 bits.
        keep: Operators that stay float32.
    """
    scopes = list(nested_scopes(scope))
    nodes = [(node, each.opset) for each in scopes for node in each.graph]
    known: dict[ir.Value, bool] = {}

    def is_float32(value: ir.Value) -> bool:
        if value not in known:
            type_ = shapes.type(value)
            known[value] = isinstance(type_, ir.TensorType) and type_.dtype == ir.DataType.FLOAT
        return known[value]

    def is_known(value: ir.Value) -> bool:
        return shapes.type(value) is not None

    plain = [node for node, _ in nodes]
    fixed = sensitive_nodes(plain, is_float32, keep) | beyond_range(plain, is_float32, to)
    problem = _Problem(is_float32, is_known, fixed, to.onnx)
    for node, opset in nodes:
        problem.add(node, opset)
    for each in scopes:
        problem.read(SINK, (value for value in each.graph.outputs if is_float32(value)))
    return problem.solve()


@dataclass
class _Problem:
    """The network: a node of it for each node that may be of either type.

    Attributes:
        is_float: Whether a value is a float32 tensor.
        is_known: Whether the type of a value is known.
        sensitive: The nodes that stay float32.
        narrow: `NarrowFloat.onnx` of the type of 16 bits.
    """

    is_float: IsFloat
    is_known: IsFloat
    sensitive: set[ir.Node]
    narrow: str
    _network: Network = field(default_factory=Network)
    _side_of: dict[ir.Node, int] = field(default_factory=dict)
    _maker: dict[ir.Value, int] = field(default_factory=dict)
    _readers: dict[ir.Value, dict[int, None]] = field(default_factory=dict)
    _fixed_heavy: list[ir.Node] = field(default_factory=list)

    def add(self, node: ir.Node, opset: int) -> None:
        """Take a node in."""
        read = [(value, slot) for value, slot in input_slots(node, opset, self.narrow) if value is not None]
        given = [(value, slot) for value, slot in output_slots(node, opset, self.narrow) if value.name]
        inputs, outputs = ([each for each in slots if self.is_float(each[0])] for slots in (read, given))
        if not inputs and not outputs:
            return
        owned = [value for value, slot in (*read, *given) if slot is Slot.OWN]
        own = all(map(self.is_known, owned)) and any(map(self.is_float, owned))
        if node.op_type in HEAVY and not own and node.domain == "":
            self._fixed_heavy.append(node)
        side = SINK if not own or node in self.sensitive else SOURCE if node.op_type in HEAVY else self._network.node()
        if own:
            self._side_of[node] = side
        self._maker.update((value, side if slot is Slot.OWN else SINK) for value, slot in outputs)
        for value, slot in inputs:
            if slot is not Slot.FREE:
                self.read(side if slot is Slot.OWN else SINK, (value,))

    def read(self, side: int, values: Iterable[ir.Value]) -> None:
        """Note who reads values; a constant is of whatever type it is read in."""
        for value in values:
            if constant(value) is None:
                self._readers.setdefault(value, {})[side] = None

    def solve(self) -> Division:
        """Divide."""
        for value, readers in self._readers.items():
            self._price(self._maker.get(value, SINK), [*readers])
        sink_side = self._network.sink_side()
        nodes = dict.fromkeys(node for node, side in self._side_of.items() if side not in sink_side)
        if SOURCE not in self._side_of.values():
            nodes.clear()  # nothing would be faster
        return Division(nodes, self._fixed_heavy, self.is_float)

    def _price(self, maker: int, readers: list[int]) -> None:
        """One conversion when any reader is on the other side than the maker."""
        if len(readers) == 1:
            self._network.edge(maker, readers[0], 1)
            self._network.edge(readers[0], maker, 1)
            return
        narrow, wide = self._network.node(), self._network.node()
        self._network.edge(maker, wide, 1)
        self._network.edge(narrow, maker, 1)
        for reader in readers:
            self._network.edge(wide, reader, UNLIMITED)
            self._network.edge(reader, narrow, UNLIMITED)
