"""Operators whose numbers may not fit float16, which ends at 65,504 and loses precision below 6.1e-5.

1. `SQUARING`: they add up squares, or as many numbers as an axis has, in the type of their inputs. So does the product
   of a value with itself, and any power. Operators that ONNX defines to compute in float32, such as
   `LayerNormalization` and `Softmax`, do not: only what they read and give is float16.
2. Operators that read a constant beyond the range, or a single number below it, such as the 1e-12 in a norm. A mask is
   none of these: in a sum or a choice that ends in a `Softmax` a smaller number does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from optimizer.ir.narrow_float import NarrowFloat
from optimizer.ir.query import constant, is_op, tensor_of

__all__ = ["beyond_range", "masks_scores"]

# fmt: off
SQUARING = frozenset({
    "LpNormalization", "LpPool", "LRN", "MeanVarianceNormalization", "Pow", "ReduceL1", "ReduceL2", "ReduceSum",
    "ReduceSumSquare",
})
_VIEWS = frozenset({"Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
# fmt: on
_MASKING = _VIEWS | {"Add", "Cast", "Mul", "Where"}

IsFloat = Callable[[ir.Value], bool]


def beyond_range(nodes: Iterable[ir.Node], is_float: IsFloat, to: NarrowFloat) -> set[ir.Node]:
    """The nodes that stay in float32 because of their range.

    Args:
        nodes: Those of a graph and of the graphs inside it.
        is_float: Whether a value is a float32 tensor.
        to: The type that others are to have.
    """
    if not to.is_short_of_range:
        return set()
    return {node for node in nodes if not node.domain and (_squares(node) or _reads_beyond(node, is_float, to))}


def masks_scores(value: ir.Value) -> bool:
    """Whether all that a value is read for is to be added to, or chosen as, what a `Softmax` reads."""
    users = [user for user, _ in value.uses()]
    return bool(users) and not value.is_graph_output() and all(_masks(user) for user in users)


def _masks(user: ir.Node) -> bool:
    return is_op(user, "Softmax") or (is_op(user, *_MASKING) and masks_scores(user.outputs[0]))


def _squares(node: ir.Node) -> bool:
    return node.op_type in SQUARING or (is_op(node, "Mul") and node.inputs[0] is node.inputs[1])


def _reads_beyond(node: ir.Node, is_float: IsFloat, to: NarrowFloat) -> bool:
    tensors = [constant(value) for value in node.inputs if value is not None and is_float(value)]
    if is_op(node, "ConstantOfShape", "Constant") and "value" in node.attributes:
        tensors.append(tensor_of(node.attributes["value"]))
    found = [tensor.numpy() for tensor in tensors if tensor is not None]
    if any(a.size == 1 and (np.abs(a) < to.smallest).all() and a.any() for a in found):
        return True
    too_large = any((np.isfinite(a) & (np.abs(a) > to.largest)).any() for a in found)
    return too_large and not (is_op(node, *_MASKING, "ConstantOfShape") and masks_scores(node.outputs[0]))
