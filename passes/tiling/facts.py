"""What the search knows of a graph: its units of work, the values between them, and what each costs.

A *unit* is what becomes one kernel: an operator with the element-wise ones behind it that a compiler fuses to it, so
that what lies between them is never stored. A view (such as a Reshape) is no unit of its own either. The time of a unit
is that of its arithmetic or that of its way through memory, whichever is longer; only ratios of times are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from optimizer.ir.costs import Sizes, node_flops, peak_activation_bytes
from optimizer.ir.query import constant
from optimizer.ir.walk import subgraphs
from passes.tiling.cut import Cut, Request, Window
from passes.tiling.rules import ELEMENTWISE, VIEWS, cut_of

__all__ = ["BYTES_PER_SECOND", "Facts", "Unit", "is_product", "seconds"]

_FLOPS_PER_SECOND = 900e9
BYTES_PER_SECOND = 70e9
"""Of two cores at work, measured: convolutions by Winograd's method, and copies of what lies in the caches of strips.
Their ratio decides what a copy costs beside a product."""

_CACHE_LINE = 64
"""Bytes: what lies in another tensor begins at one."""

_IMAGE = 4
"""The rank of an image."""

_HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""What the element-wise operators behind it are fused to."""


def seconds(flops: float, moved_bytes: float) -> float:
    """The time of a kernel."""
    return max(flops / _FLOPS_PER_SECOND, moved_bytes / BYTES_PER_SECOND)


@dataclass(eq=False)
class Unit:
    """What becomes one kernel.

    Attributes:
        nodes: In order.
        reads: The values that it needs, weights apart.
        outputs: The values that it stores.
        inner: Bytes that the graphs inside its nodes need meanwhile.
        seconds: What it takes.
    """

    nodes: list[ir.Node]
    reads: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    inner: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class Facts:
    """One graph.

    Args:
        model: Only its main graph is looked at; its sizes are known.
        fused: Whether a compiler fuses element-wise operators.
    """

    model: ir.Model
    fused: bool
    sizes: Sizes = field(init=False)
    unstored: set[ir.Value] = field(init=False)
    units: list[Unit] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = Sizes(self.model)
        self.opset = self.model.opset_imports.get("", 0)
        self._bytes: dict[ir.Value, int] = {}
        self._shapes: dict[ir.Value, tuple[int, ...] | None] = {}
        self._cuts: dict[tuple[ir.Node, int, Window], Cut | None] = {}
        self._signatures: dict[ir.Node, tuple[str, str, str]] = {}
        nodes = [node for node in self.model.graph if constant(node.outputs[0] if node.outputs else None) is None]
        self.unstored = {value for node in nodes for value in node.outputs if self._is_unstored(value)}
        place = {node: number for number, node in enumerate(nodes)}
        # A product that turns out to be stored runs where its last node stands, not where that is found out.
        self.units = sorted(self._units(nodes), key=lambda unit: place[unit.nodes[-1]])

    def shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The sizes of a value; `None` where they are not plain numbers."""
        if value is None:
            return None
        if value not in self._shapes:
            self._shapes[value] = None if self.sizes.is_symbolic(value) else tuple(self.sizes.shape(value))
        return self._shapes[value]

    def cut(self, node: ir.Node, output: int, window: Window) -> Cut | None:
        """How a window of an output is computed; `None` if it cannot be."""
        key = (node, output, window)
        if key not in self._cuts:
            self._cuts[key] = cut_of(Request(node, output, window, self.shape, self.opset))
        return self._cuts[key]

    def bytes(self, value: ir.Value) -> int:
        """The memory of a value."""
        if value not in self._bytes:
            self._bytes[value] = self.sizes.bytes(value)
        return self._bytes[value]

    def is_stored(self, value: ir.Value | None) -> bool:
        """Whether the value takes memory for activations."""
        return value is not None and constant(value) is None and not value.is_initializer()

    def is_apart(self, value: ir.Value) -> bool:
        """Whether it has memory of its own, as the outputs of a compiled graph do."""
        return self.fused and value.is_graph_output() and not value.is_graph_input()

    def is_joined(self, whole: ir.Value, axis: int) -> bool:
        """Whether a compiler writes pieces along an axis where they belong in the whole, so that nothing is copied.

        That takes a piece that is one range of memory. A compiler keeps the channels of images last.
        """
        shape = self.shape(whole) or ()
        if len(shape) == _IMAGE and axis == 1:
            return False
        before = shape[:1] if len(shape) == _IMAGE else shape[:axis]
        return self.fused and not self.is_apart(whole) and axis < _IMAGE - 1 and all(size == 1 for size in before)

    def is_aligned(self, whole: ir.Value, axis: int, rows: int = 1) -> bool:
        """Whether what comes behind so many elements of an axis begins at a cache line, as kernels want it."""
        shape = self.shape(whole) or ()
        return axis < len(shape) and self.bytes(whole) // max(shape[axis], 1) * rows % _CACHE_LINE == 0

    def _is_unstored(self, value: ir.Value) -> bool:
        """Whether its only user is fused to its producer, or it is a view that one node reads."""
        node, uses = value.producer(), value.uses()
        if node is None or len(uses) != 1 or value.is_graph_output() or len(node.outputs) != 1:
            return False
        ((user, _),) = uses
        if user.graph is not node.graph:
            return False
        if node.op_type in VIEWS and node.domain == "":
            return True
        if not self.fused or user.op_type not in ELEMENTWISE or user.domain != "":
            return False
        joins = node.op_type in ELEMENTWISE or node.op_type in _HEAVY
        return joins and node.domain == "" and self.shape(value) == self.shape(user.outputs[0])

    def _units(self, nodes: Sequence[ir.Node]) -> Iterator[Unit]:
        waiting: dict[ir.Value, list[ir.Node]] = {}
        for node in nodes:
            joined: list[ir.Node] = []
            for value in dict.fromkeys(node.inputs):
                before = [] if value is None else waiting.pop(value, [])
                if _heavy(before) and _heavy([*joined, node]):
                    # A kernel has one product: the other one is stored.
                    self.unstored.difference_update(before[-1].outputs)
                    yield self._unit(before)
                else:
                    joined = [*joined, *before]
            if node.outputs[0] in self.unstored:
                waiting[node.outputs[0]] = [*joined, node]
            else:
                yield self._unit([*joined, node])

    def _unit(self, nodes: list[ir.Node]) -> Unit:
        made = {value for node in nodes for value in node.outputs}
        reads = dict.fromkeys(v for node in nodes for v in _reads(node) if v not in made and self.is_stored(v))
        outputs = tuple(value for value in nodes[-1].outputs if value.name)
        inner = max((peak_activation_bytes(body, self.sizes) for n in nodes for body in subgraphs(n)), default=0)
        moved = sum(map(self.bytes, (*reads, *outputs)))
        return Unit(nodes, tuple(reads), outputs, inner, seconds(sum(map(self.flops, nodes)), moved))

    def signature(self, node: ir.Node) -> tuple[str, str, str]:
        """What the node is, its operands apart."""
        if node not in self._signatures:
            attributes = sorted(f"{name}={attribute.value}" for name, attribute in node.attributes.items())
            self._signatures[node] = (node.domain, node.op_type, ",".join(attributes))
        return self._signatures[node]

    def flops(self, node: ir.Node) -> int:
        """The arithmetic of a node."""
        return node_flops(node, self.sizes)


def is_product(value: ir.Value | None) -> bool:
    """Whether a value is what a product gives, a tensor of its own."""
    node = None if value is None else value.producer()
    return node is not None and node.domain == "" and node.op_type in _HEAVY


def _heavy(nodes: Sequence[ir.Node]) -> bool:
    return any(node.op_type in _HEAVY for node in nodes)


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    for body in subgraphs(node):
        inside = set(body.inputs)
        for inner in body:
            inside.update(inner.outputs)
        for value in (*body.outputs, *(v for inner in body for v in _reads(inner))):
            if value not in inside:
                yield value
