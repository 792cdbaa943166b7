"""Fuse rotary position embeddings into the standard `RotaryEmbedding` operator.

Letters: B batch, H heads, S positions, D head size, R rotated elements of a head, c cosines, s sines.

1.  x * cc + Concat(-x2, x1) * ss          where x1, x2 are the halves of x and cc = Concat(c, c)
2.  Concat(x1 * c - x2 * s, x2 * c + x1 * s)
3.  The same with the even and the odd elements in the place of the halves (`interleaved`): the elements are put
    together again alternately.
4.  Concat(any of these on x[..., :R], x[..., R:]), where only a part of each head is rotated.

`x` is `[B, H, S, D]`, `[B, S, H, D]` or `[B, S, D]`; which axis the heads are is told by where the cosines have the
positions. The cosines must be known to be the same for both elements of a pair. ONNX Runtime wants them written out for
each batch, so they are expanded to it.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.query import is_op, only_user
from optimizer.ir.shape_info import Dims
from optimizer.ir.shapes import Shapes
from optimizer.pass_manager import Pass
from passes.attention.build import NotFused, Place, sweep
from passes.rotary.angles import Recipe, half_of
from passes.rotary.parts import halves, joined, last_size, part_of

__all__ = ["FuseRotaryEmbedding"]

_FIRST_OPSET = 23
_Made = dict[tuple[ir.Graph, ir.Value, bool, object], ir.Value]
"""The angles that there are already: all heads of all layers share them."""


@dataclasses.dataclass(frozen=True)
class FuseRotaryEmbedding(Pass):
    """Fuses rotary position embeddings."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse wherever it can be done."""
        made: _Made = {}
        return rewrite_nodes(model, functools.partial(_fuse, made), ("Add", "Concat", "Reshape"))


@dataclass(frozen=True)
class _Rotation:
    """A rotation, as it is written.

    Attributes:
        x: What is rotated.
        cosine: `[..., D]`, or `[..., D / 2]` where `halved`.
        sine: The same.
        interleaved: Whether neighbours are a pair, rather than elements half a head apart.
        halved: Whether each angle is there once.
        last: The node that gives the result.
        nodes: The nodes that it stands for.
    """

    x: ir.Value
    cosine: ir.Value
    sine: ir.Value
    interleaved: bool
    halved: bool
    last: ir.Node
    nodes: tuple[ir.Node, ...]


def _fuse(made: _Made, editor: Editor, scope: Scope, node: ir.Node) -> None:
    found = _turned_sum(editor.shapes, node) if is_op(node, "Add") else _joined_sums(editor.shapes, node)
    if found is None:
        return
    try:
        _replace(made, editor, scope, node, _with_rest(editor.shapes, found))
    except NotFused as reason:
        editor.miss(node, str(reason))


# --- The match ---


def _turned_sum(shapes: Shapes, node: ir.Node) -> _Rotation | None:
    """`x * cc + turned(x) * ss`."""
    for index in (0, 1):
        plain, turned = (_product(node.inputs[i]) for i in (index, 1 - index))
        if plain is None or turned is None:
            continue
        for place in (0, 1):
            found = _turned(shapes, turned.inputs[place])
            sine, cosine = turned.inputs[1 - place], None if found is None else _other(plain, found[0])
            if found is not None and cosine is not None and sine is not None:
                return _Rotation(found[0], cosine, sine, found[1], False, node, (plain, turned, *found[2], node))
    return None


def _turned(shapes: Shapes, value: ir.Value | None) -> tuple[ir.Value, bool, tuple[ir.Node, ...]] | None:
    """The `x` of which a value is `-x2` and `x1` joined, and whether alternately."""
    pair, size = joined(shapes, value), last_size(shapes, value)
    if pair is None or size is None or value is None:
        return None
    left, right, interleaved = pair
    negated = left.producer()
    if negated is None or not is_op(negated, "Neg"):
        return None
    first, second = part_of(shapes, right), part_of(shapes, negated.inputs[0])
    if first is None or halves(first, second, size) is not interleaved or last_size(shapes, first.source) != size:
        return None
    made = [right.producer(), negated.inputs[0].producer() if negated.inputs[0] is not None else None, negated]
    return first.source, interleaved, tuple(n for n in (*made, value.producer()) if n is not None)


def _joined_sums(shapes: Shapes, node: ir.Node) -> _Rotation | None:
    """`x1 * c - x2 * s` and `x2 * c + x1 * s` joined."""
    if not is_op(node, "Concat", "Reshape"):
        return None
    pair = joined(shapes, node.outputs[0])
    size = last_size(shapes, node.outputs[0])
    if pair is None or size is None:
        return None
    real, imaginary = pair[0].producer(), pair[1].producer()
    if real is None or imaginary is None or not is_op(real, "Sub") or not is_op(imaginary, "Add"):
        return None
    products = [_product(value) for value in (*real.inputs, *imaginary.inputs)]
    known = [product for product in products if product is not None]
    if len(known) != 4:
        return None
    for first, second in ((known[2], known[3]), (known[3], known[2])):
        for x1, cosine in _both_ways(known[0]):
            for x2, sine in _both_ways(known[1]):
                matches = _other(first, x2) is cosine and _other(second, x1) is sine
                source = part_of(shapes, x1)
                if matches and source is not None and halves(source, part_of(shapes, x2), size) is pair[2]:
                    parts = [n for n in (x1.producer(), x2.producer()) if n is not None]
                    nodes = (*known, real, imaginary, *parts, node)
                    return _Rotation(source.source, cosine, sine, pair[2], True, node, nodes)
    return None


def _product(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and is_op(node, "Mul") else None


def _both_ways(product: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    left, right = product.inputs
    return [] if left is None or right is None else [(left, right), (right, left)]


def _other(product: ir.Node, value: ir.Value) -> ir.Value | None:
    """The other factor."""
    left, right = product.inputs
    return right if left is value else left if right is value else None


def _with_rest(shapes: Shapes, found: _Rotation) -> tuple[_Rotation, int]:
    """The rotation of whole heads where the rest of each is put behind the rotated part, and how much is rotated."""
    part, result = part_of(shapes, found.x), found.last.outputs[0]
    user = only_user(result)
    size = last_size(shapes, found.x) or 0
    if part is None or user is None or not is_op(user, "Concat") or (part.start, part.stop, part.step) != (0, size, 1):
        return found, size
    pair, whole = joined(shapes, user.outputs[0]), last_size(shapes, part.source)
    rest = None if pair is None else part_of(shapes, pair[1])
    if pair is None or pair[0] is not result or pair[2] or rest is None or rest.source is not part.source:
        return found, size
    if (rest.start, rest.stop, rest.step) != (size, whole, 1):
        return found, size
    parts = [n for n in (found.x.producer(), pair[1].producer()) if n is not None]
    return dataclasses.replace(found, x=part.source, last=user, nodes=(*found.nodes, *parts, user)), size


# --- The replacement ---


def _replace(made: _Made, editor: Editor, scope: Scope, start: ir.Node, matched: tuple[_Rotation, int]) -> None:
    found, rotated = matched
    shapes = editor.shapes
    if scope.opset < _FIRST_OPSET:
        raise NotFused(f"opset {scope.opset} has no RotaryEmbedding, opset {_FIRST_OPSET} has")
    x = shapes.dims(found.x)
    if x is None or len(x) not in (3, 4):
        raise NotFused(f"what is rotated, {found.x.name!r}, is not known to have three or four axes")
    angles = [_angles(shapes, found, value, x, rotated) for value in (found.cosine, found.sine)]
    heads_axis = angles[0][1]
    if heads_axis != angles[1][1]:
        raise NotFused(f"the cosines {found.cosine.name!r} and the sines {found.sine.name!r} differ in shape")
    attributes: dict[str, int] = {"interleaved": 1} if found.interleaved else {}
    if rotated != x[-1]:
        attributes["rotary_embedding_dim"] = rotated
    # Where the match began: whatever comes later in the graph can share the angles.
    place = Place(editor, scope, start, found.nodes)
    values = []
    for value, (recipe, _) in zip((found.cosine, found.sine), angles, strict=True):
        key = (scope.graph, value, found.interleaved, x[0])
        if key not in made:
            made[key] = _fit(place, shapes, found, value, recipe(place), x, heads_axis)
        values.append(made[key])
    _put(editor, place, found, x, heads_axis, values, attributes)


def _angles(shapes: Shapes, found: _Rotation, value: ir.Value, x: Dims, rotated: int) -> tuple[Recipe, int | None]:
    """How to make the angles once, and which axis of `x` the heads are.

    Raises:
        NotFused: It is not known that they are those of a rotation.
    """
    dims = shapes.dims(value)
    size = rotated // 2 if found.halved else rotated
    if dims is None or len(dims) > len(x) or not dims or dims[-1] != size:
        raise NotFused(f"the angles {value.name!r} do not have {size} elements for each position")
    if shapes.dtype(value) != shapes.dtype(found.x):
        raise NotFused(f"the angles {value.name!r} are of another type than what is rotated, {found.x.name!r}")
    padded = (1,) * (len(x) - len(dims)) + dims
    axis = _heads_axis(padded, x)
    if axis is None or padded[0] not in (1, x[0]):
        raise NotFused(
            f"the angles {value.name!r} of shape [{', '.join(map(str, dims))}] are not known to be one for each "
            f"position of {found.x.name!r}, whose shape is [{', '.join(map(str, x))}]"
        )
    if axis == 2 and not isinstance(x[2], int):
        raise NotFused(f"the number of heads of {found.x.name!r} is not known")
    recipe = (lambda place: value) if found.halved else half_of(shapes, value, interleaved=found.interleaved)
    if recipe is None:
        raise NotFused(f"the angles {value.name!r} are not known to be the same for both elements of a pair")
    return recipe, axis or None


def _heads_axis(angles: Dims, x: Dims) -> int | None:
    """0 where there is none."""
    if len(x) == 3:
        return 0 if angles[1] == x[1] else None
    if angles[1] == 1 and angles[2] == x[2]:
        return 1
    return 2 if angles[2] == 1 and angles[1] == x[1] else None


def _fit(
    place: Place, shapes: Shapes, found: _Rotation, old: ir.Value, angles: ir.Value, x: Dims, heads_axis: int | None
) -> ir.Value:
    """The angles as `[B, S, D / 2]`."""
    dims = shapes.dims(old) or ()
    axis = None if heads_axis is None else heads_axis - (len(x) - len(dims))
    rank = len(dims)
    if axis is not None and axis >= 0:
        angles = place.add("Squeeze", [angles, place.ints([axis], "heads_axis")], name=angles.name)
        rank -= 1
    if rank == 2:
        angles = place.add("Unsqueeze", [angles, place.ints([0], "batch_axis")], name=angles.name)
    if x[0] == 1 or (len(dims) == len(x) and dims[0] == x[0]):
        return angles
    if isinstance(x[0], int):
        return place.add("Expand", [angles, place.ints([x[0], 1, 1], "batch")], name=angles.name)
    batch = place.add("Shape", [found.x], {"start": 0, "end": 1}, "batch")
    shape = place.add("Concat", [batch, place.ints([1, 1], "ones")], {"axis": 0}, "batch")
    return place.add("Expand", [angles, shape], name=angles.name)


def _put(
    editor: Editor,
    place: Place,
    found: _Rotation,
    x: Dims,
    heads_axis: int | None,
    angles: list[ir.Value],
    attributes: dict[str, int],
) -> None:
    value = found.x
    if heads_axis is None:
        attributes["num_heads"] = 1
    if heads_axis == 2:
        heads, size = int(str(x[2])), int(str(x[3]))
        attributes["num_heads"] = heads
        value = place.add("Reshape", [value, place.ints([0, 0, heads * size], "packed_shape")], name=value.name)
    new = ir.node("RotaryEmbedding", [value, *angles], attributes)
    if heads_axis == 2:
        rotated = place.insert(new, found.last.outputs[0].name)
        new = ir.node("Reshape", [rotated, place.ints([0, 0, int(str(x[2])), int(str(x[3]))], "heads_shape")])
    editor.substitute(found.last, new, found.nodes)
    sweep(editor, found.nodes)
