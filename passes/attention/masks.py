"""What is done to the scores, as the one mask that an `Attention` takes.

Letters: B batch, H heads, S queries, T keys.

A row that sees nothing is where things differ, and what the graph gives there is kept:

* A finite mask gives it the softmax of its scores, or the same weight for every key when the number added is so large
  that nothing of a score is left in the sum. An added mask does the same.
* Minus infinity gives it NaN. `Attention` gives zeros, so the mask's row is made NaN: `mask + (m - m)`, where `m` is
  the row's largest element, adds 0 to every other row.
* Where the graph replaces those NaN by 0, as exporters write PyTorch's attention, a boolean mask says it all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from optimizer.ir.query import is_op
from optimizer.ir.shape_info import Dims
from optimizer.ir.shapes import Shapes
from optimizer.ir.symbolic import Dim, is_at_least
from optimizer.ir.views import chain_back, stages_of
from passes.attention.build import NotFused, Place
from passes.attention.causal import BIG, causal_bias_offset, causal_offset
from passes.attention.scores import Bias, Choice, Match
from passes.attention.uniform import bound, uniform

__all__ = ["check_masks", "fit_mask", "make_mask"]


def check_masks(shapes: Shapes, found: Match, scores: Dims) -> None:
    """Every mask can be one of an `Attention`.

    Args:
        shapes: What is known of the values.
        found: The match; masks that change nothing are taken out of it.
        scores: The shape of the scores, `[B, H, S, T]` or shorter.

    Raises:
        NotFused: One cannot.
    """
    found.masks = [mask for mask in found.masks if not _is_nothing(mask)]
    found.masks = [_unstretched(shapes, mask) for mask in found.masks]
    dtype = shapes.dtype(found.query)
    for mask in found.masks:
        value = mask.value if isinstance(mask, Bias) else mask.condition
        dims = shapes.dims(value)
        if dims is None:
            raise NotFused(f"the shape of the mask {value.name!r} is not known")
        if len(dims) > len(scores):
            raise NotFused(f"the mask {value.name!r} has rank {len(dims)}, the scores have rank {len(scores)}")
        if any(dim not in (1, score) for dim, score in zip(reversed(dims), reversed(scores), strict=False)):
            shape = ", ".join(map(str, dims))
            raise NotFused(
                f"the mask {value.name!r} of shape [{shape}] is not known to fit the scores, "
                f"whose shape is [{', '.join(map(str, scores))}]"
            )
        if dims[-1:] != scores[-1:]:
            raise NotFused(f"the mask {value.name!r} says the same of every key")
        if isinstance(mask, Bias) and shapes.dtype(value) != dtype:
            raise NotFused(f"the mask {value.name!r} is of another type than the query {found.query.name!r}")


def make_mask(place: Place, shapes: Shapes, found: Match) -> ir.Value | None:
    """The mask's value, with as many axes and of such sizes as what the graph has; `None` when there is none."""
    if not found.masks:
        return None
    condition = _condition(place, found)
    if condition is not None:
        return condition
    dtype = shapes.dtype(found.query)
    assert dtype is not None, "the masks have been checked against it"
    parts = [_added(place, mask, dtype) for mask in found.masks]
    total = parts[0]
    for part in parts[1:]:
        total = place.add("Add", [part, total], name="attention_mask")
    return _with_nan(place, total) if found.keeps_nan and _may_hide_all(shapes, found.masks) else total


def _unstretched(shapes: Shapes, mask: Bias | Choice) -> Bias | Choice:
    """The mask before an Expand: it is added in smaller form as well, as far as the axes of the scores go."""
    value = mask.value if isinstance(mask, Bias) else mask.condition
    node = value.producer()
    if node is None or not is_op(node, "Expand") or node.inputs[0] is None:
        return mask
    before, after = shapes.dims(node.inputs[0]), shapes.dims(value)
    if before is None or after is None or before[-2:] != after[-2:]:
        return mask
    if isinstance(mask, Bias):
        return dataclasses.replace(mask, value=node.inputs[0])
    return dataclasses.replace(mask, condition=node.inputs[0])


def _is_nothing(mask: Bias | Choice) -> bool:
    if isinstance(mask, Bias):
        return uniform(mask.value) == 0.0
    return uniform(mask.condition) == float(mask.seen)


def _condition(place: Place, found: Match) -> ir.Value | None:
    """One boolean mask, where NaN become 0 as they do in an `Attention`."""
    if found.keeps_nan or len(found.masks) != 1:
        return None
    (mask,) = found.masks
    choice = _as_choice(mask)
    if choice is None or choice.fill != -math.inf:
        return None
    return choice.condition if choice.seen else place.add("Not", [choice.condition], name="attention_mask")


def _as_choice(mask: Bias | Choice) -> Choice | None:
    """An added mask that is `Where(condition, 0, number)`."""
    if isinstance(mask, Choice):
        return mask
    node = mask.value.producer()
    if node is None or not is_op(node, "Where") or node.inputs[0] is None:
        return None
    first, second = uniform(node.inputs[1]), uniform(node.inputs[2])
    if first == 0 and second is not None:
        return Choice(node.inputs[0], True, second * mask.factor)
    return Choice(node.inputs[0], False, first * mask.factor) if second == 0 and first is not None else None


def _added(place: Place, mask: Bias | Choice, dtype: ir.DataType) -> ir.Value:
    """The mask as what is added to the scores."""
    kind = dtype.numpy()
    choice = _as_choice(mask)
    if choice is not None and choice.fill <= -BIG:
        mask = choice
    if isinstance(mask, Bias):
        if mask.factor == 1:
            return mask.value
        return place.add("Mul", [mask.value, place.constant(np.array(mask.factor, kind))], name=mask.value.name)
    hidden = mask.fill if mask.fill == -math.inf else _hiding(dtype)
    zero, fill = (place.constant(np.array(number, kind), "attention_fill") for number in (0.0, hidden))
    values = (zero, fill) if mask.seen else (fill, zero)
    return place.add("Where", [mask.condition, *values], name="attention_mask")


def _hiding(dtype: ir.DataType) -> float:
    """A number that leaves nothing of a score in the sum: the scores of a row that sees nothing are equal then.

    It is not the least of its type: of that, ONNX Runtime 1.31.1 believes that it means minus infinity.
    """
    return float(ir.DataType(dtype).min) * (1 - 1 / 16)


def _may_hide_all(shapes: Shapes, masks: Sequence[Bias | Choice]) -> bool:
    """Whether minus infinity may be added to a whole row."""
    infinite = [mask for mask in masks if not _is_finite(shapes, mask)]
    if not infinite:
        return False
    offset = _offset(shapes, infinite[0]) if len(masks) == 1 else None
    return offset is None or not is_at_least(offset, 0)


def _is_finite(shapes: Shapes, mask: Bias | Choice) -> bool:
    return math.isfinite(mask.fill if isinstance(mask, Choice) else bound(shapes, mask.value) * mask.factor)


def _offset(shapes: Shapes, mask: Bias | Choice) -> Dim | None:
    if isinstance(mask, Bias):
        return causal_bias_offset(shapes, mask.value)
    return causal_offset(shapes, mask.condition, seen=mask.seen)


def _with_nan(place: Place, mask: ir.Value) -> ir.Value:
    axes = place.ints([-1], "last_axis")
    largest = place.add("ReduceMax", [mask, axes], {"keepdims": 1}, "attention_mask_largest")
    nothing = place.add("Sub", [largest, largest], name="attention_mask_nan")
    return place.add("Add", [mask, nothing], name="attention_mask")


# --- What ONNX Runtime takes: two axes at least, and the queries written out ---


def fit_mask(place: Place, shapes: Shapes, found: Match, scores: Dims, mask: ir.Value) -> ir.Value:
    """The mask with the axes that an `Attention` wants: `[B|1, H|1, S, T]`, or the last two or three of them."""
    sizes = _sizes(shapes, found, scores)
    lacking = len(scores) == 3 and len(sizes) == 3 and sizes[0] != 1
    if lacking:
        mask, sizes = (
            place.add("Unsqueeze", [mask, place.ints([1], "heads_axis")], name=mask.name),
            (sizes[0], 1, *sizes[1:]),
        )
    if len(sizes) > 1 and sizes[-2] == scores[-2]:
        return mask
    rows = _rows(place, shapes, found, scores)
    return place.add("Expand", [mask, rows], name=mask.name)


def _sizes(shapes: Shapes, found: Match, scores: Dims) -> Dims:
    """The shape of all masks together."""
    ranks = [shapes.dims(mask.value if isinstance(mask, Bias) else mask.condition) or () for mask in found.masks]
    rank = max(map(len, ranks))
    columns = zip(*((1,) * (rank - len(dims)) + dims for dims in ranks), strict=True)
    wanted = scores[len(scores) - rank :]
    return tuple(1 if all(dim == 1 for dim in column) else size for column, size in zip(columns, wanted, strict=True))


def _rows(place: Place, shapes: Shapes, found: Match, scores: Dims) -> ir.Value:
    """The shape `[S, 1]`."""
    if isinstance(scores[-2], int):
        return place.ints([scores[-2], 1], "attention_rows")
    for stage in reversed(stages_of(shapes, chain_back(found.query))):
        dims = shapes.dims(stage.value) or ()
        if scores[-2] in dims:
            axis = dims.index(scores[-2])
            size = place.add("Shape", [stage.value], {"start": axis, "end": axis + 1}, "attention_rows")
            return place.add("Concat", [size, place.ints([1], "one")], {"axis": 0}, "attention_rows")
    raise AssertionError("the query itself has that axis")
