"""Chains of Reshape, Transpose, Squeeze and Unsqueeze: where each part of a value's axes comes from.

Every axis is a product of *atoms*, the outermost first. An atom is an axis of the value at the far end of the chain,
or a part of one that a Reshape has split off. So `Transpose(Reshape(x[B, S, 32], [B, S, 4, 8]), [0, 2, 1, 3])` has the
axes `B, 4, S, 8`, and `x` in the same atoms is `B, S, 4*8`: what is wanted in other axes, however it was written, is
made from whichever stage of the chain is nearest to them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_ir as ir

from optimizer.ir.query import input_at, ints_attribute, is_op
from optimizer.ir.reshape import reshape_target
from optimizer.ir.shape_info import Dims
from optimizer.ir.shapes import Shapes
from optimizer.ir.symbolic import Dim, exact_div, product

__all__ = [
    "Atom",
    "Axes",
    "Stage",
    "Step",
    "atoms_of",
    "axes_after",
    "chain_back",
    "dims_of",
    "followed_on",
    "regrouped",
    "stages_of",
    "steps_between",
]

VIEWS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity")


@dataclass(eq=False)
class Atom:
    """A part of an axis that is never torn apart, or one that has been, with its parts."""

    size: Dim
    parts: tuple[Atom, Atom] | None = field(default=None)

    def leaves(self) -> tuple[Atom, ...]:
        """The atoms that it now consists of, the outermost first."""
        if self.parts is None:
            return (self,)
        return self.parts[0].leaves() + self.parts[1].leaves()

    def split(self, outer: Dim, inner: Dim) -> tuple[Atom, Atom]:
        """Tear it apart."""
        self.parts = (Atom(outer), Atom(inner))
        return self.parts


Axis: TypeAlias = tuple[Atom, ...]
Axes: TypeAlias = tuple[Axis, ...]
"""An axis of size 1 has no atoms."""


@dataclass(frozen=True)
class Stage:
    """A value of a chain, with its axes in the atoms of the chain's far end."""

    value: ir.Value
    _axes: Axes

    @property
    def axes(self) -> Axes:
        """The axes in the atoms as they are split by now."""
        return tuple(tuple(leaf for atom in axis for leaf in atom.leaves()) for axis in self._axes)


@dataclass(frozen=True)
class Step:
    """A node to make.

    Attributes:
        op_type: Transpose, Reshape, Squeeze or Unsqueeze.
        numbers: The permutation, the shape as a Reshape takes it, or the axes.
        dims: The shape that it gives.
    """

    op_type: str
    numbers: tuple[int, ...]
    dims: Dims


def viewed(node: ir.Node) -> ir.Value | None:
    """What a node changes only the axes of; `None` for any other node."""
    return input_at(node, 0) if is_op(node, *VIEWS) else None


def chain_back(value: ir.Value, through: Callable[[ir.Node], ir.Value | None] = viewed) -> list[ir.Value]:
    """The value, and what it is a view of, the nearest first, as far as its own graph goes.

    Args:
        value: Where to begin.
        through: The input that a node is a view of, or `None`; it may see through nodes that keep the shape as well.
    """
    chain = [value]
    while (node := chain[-1].producer()) is not None and (source := through(node)) is not None:
        producer = source.producer()
        if producer is not None and producer.graph is not node.graph:
            break
        chain.append(source)
    return chain


def followed_on(shapes: Shapes, value: ir.Value, axes: Axes, besides: ir.Node | None = None) -> list[Stage]:
    """The value, and what is a view of it, the nearest first, as long as each is only used for the next one.

    Args:
        shapes: What is known of the values.
        value: Where to begin.
        axes: Its axes.
        besides: A node that may use the first value as well.
    """
    stages = [Stage(value, axes)]
    while True:
        value = stages[-1].value
        users = {use.node for use in value.uses()} - {besides}
        node = users.pop() if len(users) == 1 and not value.is_graph_output() else None
        dims = None if node is None or viewed(node) is not value else shapes.dims(node.outputs[0])
        after = None if node is None or dims is None else axes_after(node, stages[-1].axes, dims)
        if node is None or after is None:
            return stages
        stages.append(Stage(node.outputs[0], after))
        besides = None


def stages_of(shapes: Shapes, chain: Sequence[ir.Value]) -> list[Stage]:
    """The stages of a chain, in its order.

    Args:
        shapes: What is known of the values.
        chain: As `chain_back` gives it.

    Returns:
        A stage for each value, as far back as the chain can be followed; empty when the shape of the first value is
        not known.
    """
    known = 0
    while known < len(chain) and shapes.dims(chain[known]) is not None:
        known += 1
    for length in range(known, 0, -1):
        stages = _followed(shapes, chain[:length])
        if stages is not None:
            return stages
    return []


def _followed(shapes: Shapes, chain: Sequence[ir.Value]) -> list[Stage] | None:
    """From the far end to the near one; `None` when a Reshape cannot be followed."""
    far = shapes.dims(chain[-1]) or ()
    stages = [Stage(chain[-1], tuple(() if dim == 1 else (Atom(dim),) for dim in far))]
    for value in reversed(chain[:-1]):
        node = value.producer()
        assert node is not None, "a view is given by a node"
        axes = axes_after(node, stages[-1].axes, shapes.dims(value) or ())
        if axes is None:
            return None
        stages.append(Stage(value, axes))
    return stages[::-1]


def axes_after(node: ir.Node, axes: Axes, dims: Dims) -> Axes | None:
    """The axes of what a view gives, `dims` being its shape; `None` when a Reshape cannot be followed."""
    if node.op_type != "Transpose":
        return regrouped(axes, dims)
    order = ints_attribute(node, "perm") or tuple(reversed(range(len(axes))))
    return tuple(axes[axis] for axis in order) if sorted(order) == list(range(len(axes))) else None


def regrouped(axes: Axes, dims: Dims) -> Axes | None:
    """The axes of a Reshape to `dims`; atoms are split where an axis ends inside them.

    One axis of which the size is some expression that is made of no atoms gets those that all others leave over: a
    Reshape keeps the number of elements.
    """
    rest = list(atoms_of(axes))
    front: list[Axis] = []
    for dim in dims:
        axis = _taken(rest, dim)
        if axis is None:
            break
        front.append(axis)
    if len(front) == len(dims):
        return None if rest else tuple(front)
    if isinstance(dims[len(front)], int):
        return None
    back: list[Axis] = []
    for dim in reversed(dims[len(front) + 1 :]):
        axis = _taken(rest, dim, last=True)
        if axis is None:
            return None
        back.append(axis)
    middle = tuple(leaf for atom in rest for leaf in atom.leaves())
    return (*front, middle, *reversed(back)) if middle else None


def _taken(rest: list[Atom], size: Dim, *, last: bool = False) -> Axis | None:
    """The first or the last atoms, whose product is `size`; they are taken out of `rest` when there are such."""
    axis: list[Atom] = []
    left = [leaf for atom in rest for leaf in atom.leaves()]
    while size != 1:
        if not left:
            return None
        atom = left.pop(-1 if last else 0)
        quotient = exact_div(size, atom.size)
        if quotient is None:
            other = exact_div(atom.size, size)
            if other is None:
                return None
            if last:
                kept, atom = atom.split(other, size)
            else:
                atom, kept = atom.split(size, other)
            left.insert(len(left) if last else 0, kept)
            quotient = 1
        axis.insert(0 if last else len(axis), atom)
        size = quotient
    rest[:] = left
    return tuple(axis)


def nearest(stages: Sequence[Stage], wanted: Axes) -> tuple[int, list[Step]] | None:
    """The stage from which a value with the axes `wanted` is made so that the fewest nodes are left.

    Returns:
        The number of the stage and the nodes to make; `None` when it can be made from none.
    """
    best: tuple[int, int, list[Step]] | None = None
    free = freed(stages)
    for index, stage in enumerate(stages):
        steps = steps_between(stage.axes, wanted)
        if steps is not None and (best is None or len(steps) - free[index] < best[0]):
            best = (len(steps) - free[index], index, steps)
    return None if best is None else best[1:]


def freed(stages: Sequence[Stage]) -> list[int]:
    """For each stage, how many nodes fall away when the user of the first one uses this one instead."""
    counts = [0]
    for index, stage in enumerate(stages[:-1]):
        falls = len(stage.value.uses()) == 1 and not stage.value.is_graph_output() and counts[-1] == index
        counts.append(counts[-1] + falls)
    return counts


def atoms_of(axes: Axes) -> tuple[Atom, ...]:
    """All atoms in order."""
    return tuple(atom for axis in axes for atom in axis)


def dims_of(axes: Axes) -> Dims:
    """The shape."""
    return tuple(product(atom.size for atom in axis) for axis in axes)


def steps_between(given: Axes, wanted: Axes) -> list[Step] | None:
    """The fewest nodes that make a value with the axes `wanted` of one with the axes `given`.

    Returns:
        At most three; `None` when they do not consist of the same atoms, or a Reshape has no constant to say it with.
    """
    if {*atoms_of(given)} != {*atoms_of(wanted)}:
        return None
    if given == wanted:
        return []
    if atoms_of(given) == atoms_of(wanted):
        return _joined([_reshape(given, wanted)])
    pieces = _pieces(given, wanted)
    # Axes of size 1 are put in front, for the Transpose to take them to where they are wanted.
    ready = given if _covers(given, pieces) else ((),) * sum(not axis for axis in wanted) + pieces
    order = _order(ready, wanted)
    turned = tuple(ready[axis] for axis in order)
    steps: list[list[Step] | None] = [] if ready == given else [_reshape(given, ready)]
    steps.append([Step("Transpose", order, dims_of(turned))])
    if turned != wanted:
        steps.append(_reshape(turned, wanted))
    return _joined(steps)


def _joined(parts: Sequence[list[Step] | None]) -> list[Step] | None:
    steps: list[Step] = []
    for part in parts:
        if part is None:
            return None
        steps += part
    return steps


def _reshape(given: Axes, wanted: Axes) -> list[Step] | None:
    dims = dims_of(wanted)
    if [axis for axis in given if axis] == [axis for axis in wanted if axis]:
        if all(given):
            return [Step("Unsqueeze", tuple(index for index, axis in enumerate(wanted) if not axis), dims)]
        if all(wanted):
            return [Step("Squeeze", tuple(index for index, axis in enumerate(given) if not axis), dims)]
    target = reshape_target(dims, dims_of(given))
    return None if target is None else [Step("Reshape", target, dims)]


def _pieces(given: Axes, wanted: Axes) -> Axes:
    """The atoms of `given` in their order, in the longest runs that stay together in one axis of `wanted`."""
    after: dict[Atom, Atom] = {}
    for axis in wanted:
        after.update(itertools.pairwise(axis))
    runs: list[list[Atom]] = []
    for atom in atoms_of(given):
        if runs and after.get(runs[-1][-1]) is atom:
            runs[-1].append(atom)
        else:
            runs.append([atom])
    return tuple(map(tuple, runs))


def _covers(given: Axes, pieces: Axes) -> bool:
    """Whether the axes of `given` that are longer than 1 are the pieces, so that it can be transposed as it is."""
    return [axis for axis in given if axis] == list(pieces)


def _order(ready: Axes, wanted: Axes) -> tuple[int, ...]:
    """The permutation; axes of size 1 take the places where `wanted` has them."""
    place = {axis[0]: index for index, axis in enumerate(ready) if axis}
    ones = [index for index, axis in enumerate(ready) if not axis]
    order: list[int] = []
    for axis in wanted:
        if axis:
            order += [place[atom] for atom in axis if atom in place]
        elif ones:
            order.append(ones.pop(0))
    return (*order, *ones)
