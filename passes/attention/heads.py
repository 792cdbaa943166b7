"""Queries, keys and values of any rank as the four axes of an `Attention`.

Letters: B batch, H query heads, K key and value heads, S queries, T keys, D and E head sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from optimizer.ir.query import is_op
from optimizer.ir.shape_info import Dims
from optimizer.ir.shapes import Shapes
from optimizer.ir.views import Axes, Stage, Step, chain_back, nearest, stages_of, viewed
from passes.attention.build import NotFused
from passes.attention.scores import Match
from passes.attention.uniform import scalar

__all__ = ["Operands", "Source", "check_heads", "source_among", "source_of", "stages_behind"]

_RANK = 4


@dataclass(frozen=True)
class Operands:
    """The shapes of what is multiplied.

    Attributes:
        query: `[B, H, S, D]`, or shorter.
        key: `[B, K, D, T]`, or shorter.
        value: `[B, K, T, E]`, or shorter; K is 1 in one of them where it is H in the other, too.
    """

    query: Dims
    key: Dims
    value: Dims

    @property
    def scores(self) -> Dims:
        """`[B, H, S, T]`, or shorter."""
        return (*self.query[:-1], self.key[-1])

    @property
    def missing(self) -> tuple[int, ...]:
        """The axes that they lack: three axes are batch, positions and head size."""
        return tuple(range(len(self.query) - 2, 2))


def check_heads(shapes: Shapes, found: Match) -> Operands:
    """The shapes, when they are those of an attention.

    Raises:
        NotFused: They are not, or are not known to be.
    """
    query, key, value = (_known(shapes, x) for x in (found.query, found.key, found.value))
    names = f"the query {found.query.name!r}, the key {found.key.name!r} and the value {found.value.name!r}"
    if not 2 <= len(query) <= 4:
        raise NotFused(f"the query {found.query.name!r} has rank {len(query)}, an Attention takes 2 to 4")
    if not len(query) == len(key) == len(value):
        raise NotFused(f"{names} have ranks {len(query)}, {len(key)} and {len(value)}")
    if query[-1] != key[-2] or key[-1] != value[-2]:
        raise NotFused(f"{names} are not known to have sizes that go together")
    if len(query) == _RANK:
        _check_groups(query, key, value, names)
    elif not query[:-2] == key[:-2] == value[:-2]:
        raise NotFused(f"{names} are not known to have the same batch")
    if len({shapes.dtype(x) for x in (found.query, found.key, found.value)}) != 1:
        raise NotFused(f"{names} differ in type")
    return Operands(query, key, value)


def _known(shapes: Shapes, value: ir.Value) -> Dims:
    dims = shapes.dims(value)
    if dims is None:
        raise NotFused(f"the shape of {value.name!r} is not known")
    return dims


def _check_groups(query: Dims, key: Dims, value: Dims, names: str) -> None:
    if not query[0] == key[0] == value[0]:
        raise NotFused(f"{names} are not known to have the same batch")
    heads, *others = query[1], key[1], value[1]
    # A matrix product only repeats a single head.
    if any(other != heads and not (other == 1 and isinstance(heads, int)) for other in others):
        raise NotFused(f"{names} have {heads}, {others[0]} and {others[1]} heads")


@dataclass(frozen=True)
class Source:
    """A value, and the nodes that make four axes of it.

    Attributes:
        value: The value.
        steps: The nodes.
        factor: What the result is still to be multiplied by.
        passed: The nodes that are passed over.
    """

    value: ir.Value
    steps: list[Step]
    factor: float
    passed: list[ir.Node]


def source_of(shapes: Shapes, value: ir.Value, *, transposed: bool = False, scaled: bool = True) -> Source:
    """Where an operand with four axes is best made from.

    Views are followed back, and multiplications by one number, which the scale of an `Attention` can take over.

    Args:
        shapes: What is known of the values.
        value: The operand.
        transposed: Whether its last two axes are to be swapped.
        scaled: Whether multiplications are followed back.
    """
    stages = stages_behind(shapes, value, scaled=scaled)
    *outer, before, last = stages[0].axes
    missing = ((),) * (_RANK - len(stages[0].axes))
    found = source_among(stages, (*outer, *missing, *((last, before) if transposed else (before, last))))
    assert found is not None, "the value itself can always be transposed, and axes of size 1 be added"
    return found


def stages_behind(shapes: Shapes, value: ir.Value, *, scaled: bool = True) -> list[Stage]:
    """What the value is a view of, or a multiple by one number where it is `scaled`."""
    return stages_of(shapes, chain_back(value, _through if scaled else viewed))


def source_among(stages: Sequence[Stage], wanted: Axes) -> Source | None:
    """The stage from which a value with the axes `wanted` is best made; `None` when it can be made from none."""
    found = nearest(stages, wanted)
    if found is None:
        return None
    index, steps = found
    passed = [node for stage in stages[:index] if (node := stage.value.producer()) is not None]
    return Source(stages[index].value, steps, math.prod(_factor(node) or 1.0 for node in passed), passed)


def _through(node: ir.Node) -> ir.Value | None:
    """What a node is a view of, or multiplies by one positive number."""
    if _factor(node) is None:
        return viewed(node)
    return node.inputs[0] if scalar(node.inputs[0]) is None else node.inputs[1]


def _factor(node: ir.Node) -> float | None:
    """The positive number that a node multiplies its other input by."""
    if not is_op(node, "Mul", "Div") or len(node.inputs) != 2:
        return None
    right = scalar(node.inputs[1])
    number = right if node.op_type == "Div" or right is not None else scalar(node.inputs[0])
    if number is None or not 0 < number < math.inf or (right is not None and scalar(node.inputs[0]) is not None):
        return None
    return 1 / number if node.op_type == "Div" else number
