"""From where the inputs of an `Attention` are taken, and to where its results go.

An `Attention` has the axes `[B, H, S, D]`. A graph with fewer lacks some, or folds batch and heads into one axis:

    q[B * H, S, D]  ->  q[B, H, S, D]

The latter is told by where the first axis comes from: the heads were cut out of one axis together with `D`. Masks are
unfolded in the same way, and the results where they are seen in four axes again.

Letters: B batch, H heads, S queries, T keys, D and E head sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from optimizer.ir.shape_info import Dims
from optimizer.ir.shapes import Shapes
from optimizer.ir.symbolic import Dim, exact_div
from optimizer.ir.views import Atom, Axes, Stage, Step, followed_on, regrouped, steps_between
from optimizer.ir.walk import nested_graphs, subgraphs
from passes.attention.build import NotFused
from passes.attention.heads import Operands, Source, source_among, source_of, stages_behind
from passes.attention.scores import Bias, Match

__all__ = ["Layout", "Result", "before_product", "layout_of"]

_FOLDED_RANK = 3


@dataclass(frozen=True)
class Result:
    """What an output of the `Attention` takes the place of.

    Attributes:
        value: The value.
        steps: The nodes that make it of `[B, H, S, E]` or `[B, H, S, T]`.
        passed: The nodes that are passed over.
    """

    value: ir.Value
    steps: list[Step]
    passed: list[ir.Node]


@dataclass(frozen=True)
class Layout:
    """The surroundings of an `Attention`.

    Attributes:
        sources: Of queries, keys and values.
        masks: Where masks are taken from, by the value that they have been until now; left out where it stays.
        scores: The shape of the scores in the axes of the masks.
        result: What the first output becomes.
        weights: What the probabilities become, where they are needed.
    """

    sources: list[Source]
    masks: dict[ir.Value, Source]
    scores: Dims
    result: Result
    weights: Result | None

    @property
    def passed(self) -> list[ir.Node]:
        """All nodes that are passed over."""
        results = [self.result] if self.weights is None else [self.result, self.weights]
        sources = [*self.sources, *self.masks.values()]
        return [node for source in sources for node in source.passed] + [
            node for result in results for node in result.passed
        ]


def layout_of(shapes: Shapes, found: Match, operands: Operands) -> Layout:
    """The layout that fits an attention that has been checked."""
    folded = _folded(shapes, found, operands)
    if folded is not None:
        return folded
    sources = [source_of(shapes, found.query), source_of(shapes, found.key, transposed=True)]
    sources.append(source_of(shapes, found.value, scaled=False))
    result = _squeezed(found.last.outputs[0], operands, (*operands.query[:-1], operands.value[-1]))
    weights = None if found.weights is None else _squeezed(found.weights, operands, operands.scores)
    return Layout(sources, {}, operands.scores, result, weights)


def _squeezed(value: ir.Value, operands: Operands, dims: Dims) -> Result:
    return Result(value, [Step("Squeeze", operands.missing, dims)] if operands.missing else [], [])


# --- Batch and heads in one axis ---


def _folded(shapes: Shapes, found: Match, operands: Operands) -> Layout | None:
    """The layout in which they are apart; `None` where they are not known to be folded, or cannot be taken apart."""
    query = stages_behind(shapes, found.query)
    heads = _heads(query) if len(operands.query) == _FOLDED_RANK else None
    batch = None if heads is None else exact_div(operands.query[0], heads)
    if heads is None or batch is None:
        return None
    outer = batch, heads
    sources = [
        _unfolded(query, operands.query, outer),
        _unfolded(stages_behind(shapes, found.key), operands.key, outer, transposed=True),
        _unfolded(stages_behind(shapes, found.value, scaled=False), operands.value, outer),
    ]
    values = [mask.value if isinstance(mask, Bias) else mask.condition for mask in found.masks]
    masks = {value: _mask(shapes, value, outer) for value in values if _is_folded(shapes.dims(value))}
    rows, keys, size = operands.query[-2], operands.key[-1], operands.value[-1]
    result = _result(shapes, found.last.outputs[0], (*outer, rows, size), None)
    weights = None
    if found.weights is not None:
        weights = _result(shapes, found.weights, (*outer, rows, keys), found.last)
    parts = [*sources, *masks.values()]
    if None in parts or result is None or (weights is None and found.weights is not None):
        return None
    return Layout(
        [source for source in sources if source is not None],
        {value: source for value, source in masks.items() if source is not None},
        (*outer, rows, keys),
        result,
        weights,
    )


def _is_folded(dims: Dims | None) -> bool:
    return dims is not None and len(dims) == _FOLDED_RANK and dims[0] != 1


def _heads(stages: Sequence[Stage]) -> int | None:
    """The number of heads in the first axis: they were cut out of an axis in which `D` comes next."""
    outer, *_, last = stages[0].axes
    if not outer or not last or not isinstance(outer[-1].size, int):
        return None
    pairs = (pair for stage in stages for axis in stage.axes for pair in itertools.pairwise(axis))
    return outer[-1].size if (outer[-1], last[0]) in pairs else None


def _unfolded(
    stages: Sequence[Stage], dims: Dims, outer: tuple[Dim, Dim], *, transposed: bool = False
) -> Source | None:
    axes = regrouped(stages[0].axes, (*outer, *dims[1:]))
    if axes is None:
        return None
    batch, heads, before, last = axes
    return source_among(stages, (batch, heads, *((last, before) if transposed else (before, last))))


def _mask(shapes: Shapes, value: ir.Value, outer: tuple[Dim, Dim]) -> Source | None:
    return _unfolded(stages_behind(shapes, value, scaled=False), shapes.dims(value) or (), outer)


def _result(shapes: Shapes, value: ir.Value, dims: Dims, besides: ir.Node | None) -> Result | None:
    """Where the value is first seen in axes that can be made of the four."""
    four: Axes = tuple(() if dim == 1 else (Atom(dim),) for dim in dims)
    batch, heads, rows, last = four
    stages = followed_on(shapes, value, ((*batch, *heads), rows, last), besides)
    for index, stage in enumerate(stages):
        steps = steps_between(four, stage.axes)
        if steps is not None:
            passed = [node for passed in stages[1 : index + 1] if (node := passed.value.producer()) is not None]
            return Result(stage.value, steps, passed)
    return None


# --- Probabilities that are used besides ---


def before_product(graph: ir.Graph, found: Match) -> list[ir.Node]:
    """The nodes that need the probabilities, and stand before the product with the values, in order.

    Raises:
        NotFused: No node can give both the product and the probabilities.
    """
    if found.weights is None:
        return []
    producer = found.weights.producer()
    if producer is None or producer.graph is not graph:
        raise NotFused(f"the probabilities {found.weights.name!r} are used outside of the subgraph, too")
    late: list[ir.Node] = []
    needing = {found.weights}
    for node in itertools.takewhile(lambda node: node is not found.last, graph):
        if not needing.isdisjoint(_given(node)):
            late.append(node)
            needing.update(node.outputs)
    if found.value in needing:
        raise NotFused(f"the value {found.value.name!r} depends on the probabilities {found.weights.name!r}")
    return late


def _given(node: ir.Node) -> Iterator[ir.Value | None]:
    """What a node needs, its subgraphs included."""
    yield from node.inputs
    for subgraph in subgraphs(node):
        for graph in nested_graphs(subgraph):
            for inner in graph:
                yield from inner.inputs
