"""Say arithmetic with fewer or cheaper operators.

`c` is a constant of one element that adds no axes.

1.  Pow(x, 2) -> Mul(x, x); Pow(x, -1) and Div(1, x) -> Reciprocal(x)
2.  Pow(x, 0.5) -> Sqrt(x), where `x` is provably not negative and no -0.0: Pow gives infinity for minus infinity and
    0.0 for -0.0, Sqrt gives NaN and -0.0
3.  Div(x, c) -> Mul(x, 1 / c), where `c` is made of powers of two and so is `1 / c`, without overflow or underflow
4.  Mul(x, -1) -> Neg(x); Neg(Neg(x)) -> x; Not(Not(x)) -> x
5.  Add(x, Neg(y)) -> Sub(x, y); Sub(x, Neg(y)) -> Add(x, y); Mul(Neg(x), Neg(y)) -> Mul(x, y), Div likewise
6.  Mul(x, Reciprocal(y)) -> Div(x, y); Div(x, Reciprocal(y)) -> Mul(x, y): one rounding less
7.  Abs(Neg(x)) -> Abs(x); an operator that changes nothing the second time: Abs, Ceil, Floor, Relu, Round, Sign
8.  Where(Not(c), x, y) -> Where(c, y, x)
9.  Unsqueeze of a reduction over the same axes -> the reduction, keeping them; Squeeze likewise
10. Mul(Mul(x, c), d) and Add(Add(x, c), d) of integers -> one operator: they wrap around alike

Where two nodes become one, nothing else may use the inner one. All rules but 1, where Pow may round its last bit
otherwise, and 6 give the same bits, for -0.0, NaN and infinities too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.match import either_order, producer, remove_dead, scalar
from optimizer.ir.query import FLOATS, constant, input_at, int_attribute, ints_attribute, is_op, known_ints, only_user
from optimizer.ir.signs import is_positive_or_plus_zero
from optimizer.pass_manager import Pass

__all__ = ["ReduceStrength"]

_REDUCTIONS = tuple(
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
)

_Result = tuple[ir.Node | ir.Value, tuple[ir.Node, ...]]
"""What takes the place of the node, and the nodes whose work that does too."""


@dataclasses.dataclass(frozen=True)
class ReduceStrength(Pass):
    """Simplifies arithmetic without changing what it gives."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply every rule in topological order, until none applies: a rule can take away what stopped another."""
        result = rewrite_nodes(model, _reduce, _RULES)
        modified = result.modified
        while result.modified:
            result = rewrite_nodes(model, _reduce, _RULES)
        return ir.passes.PassResult(model, modified)


def _reduce(editor: Editor, scope: Scope, node: ir.Node) -> None:
    left: ir.Node | None = node
    while left is not None:
        left = _step(editor, scope, left)


def _step(editor: Editor, scope: Scope, node: ir.Node) -> ir.Node | None:
    """Apply the first rule that does; what it makes may be reduced further."""
    for rule in _RULES.get(node.op_type, ()) if is_op(node, node.op_type) else ():
        result = rule(editor, scope, node)
        if result is None:
            continue
        new, inner = result
        if isinstance(new, ir.Node):
            editor.substitute(node, new, inner)
        elif not editor.bypass(node, new):
            continue
        remove_dead(editor, inner)
        return new if isinstance(new, ir.Node) else None
    return None


def _number(editor: Editor, value: ir.Value | None, other: ir.Value | None) -> float | None:
    """A constant of one element that gives `other` no more axes."""
    tensor = constant(value)
    dims = editor.shapes.dims(other)
    if tensor is None or len(tensor.shape) > (0 if dims is None else len(dims)):
        return None
    return scalar(value)


def _is_float(editor: Editor, value: ir.Value | None) -> bool:
    return editor.shapes.dtype(value) in FLOATS


def _inner(node: ir.Node, index: int, *op_types: str) -> ir.Node | None:
    """The node that gives an input, when nothing else uses it."""
    value = input_at(node, index)
    found = producer(value, node.graph, *op_types)
    return found if found is not None and value is not None and only_user(value) is node else None


# --- 1, 2. Powers ---


def _power(editor: Editor, scope: Scope, node: ir.Node) -> _Result | None:
    x = node.inputs[0]
    exponent = _number(editor, input_at(node, 1), x)
    if x is None or exponent is None:
        return None
    if exponent == 2:
        return ir.node("Mul", [x, x]), ()
    if exponent == -1 and _is_float(editor, x):
        return ir.node("Reciprocal", [x]), ()
    if exponent == 0.5 and _is_float(editor, x) and is_positive_or_plus_zero(x):
        return ir.node("Sqrt", [x]), ()
    return None


def _one_over(editor: Editor, scope: Scope, node: ir.Node) -> _Result | None:
    x = input_at(node, 1)
    if x is None or _number(editor, node.inputs[0], x) != 1 or not _is_float(editor, x):
        return None
    return ir.node("Reciprocal", [x]), ()


# --- 3, 4. Factors ---


def _by_power_of_two(editor: Editor, scope: Scope, node: ir.Node) -> _Result | None:
    x, value = node.inputs[0], input_at(node, 1)
    divisor = constant(value)
    if x is None or value is None or divisor is None or divisor.dtype not in FLOATS or divisor.size == 0:
        return None
    elements = divisor.numpy()
    mantissas = np.abs(np.frexp(elements.astype(np.float64))[0])
    if not (mantissas == 0.5).all():
        return None
    limits: Any = ml_dtypes.finfo(elements.dtype)  # type: ignore[no-untyped-call]
    wide = 1 / elements.astype(np.float64)
    if not ((np.abs(wide) >= float(limits.smallest_normal)) & (np.abs(wide) <= float(limits.max))).all():
        return None
    return ir.node("Mul", [x, editor.constant(scope, node, value.name, np.asarray(wide, elements.dtype))]), ()


def _negate(editor: Editor, scope: Scope, node: ir.Node) -> _Result | None:
    for x, factor in either_order(node):
        if _number(editor, factor, x) == -1 and _is_float(editor, x):
            return ir.node("Neg", [x]), ()
    return None


def _twice(editor: Editor, scope: Scope, node: ir.Node) -> _Result | None:
    """What undoes itself, whatever else uses the inner one."""
    inner = producer(node.inputs[0], node.graph, node.op_type)
    return None if inner is None or inner.inputs[0] is None else (inner.inputs[0], (inner,))


# --- 5, 6. Signs and reciprocals inside ---


def _inside(op_type: str, becomes: str, *, either: bool) -> Callable[[Editor, Scope, ir.Node], _Result | None]:
    """`node(x, op_type(y))` becomes `becomes(x, y)`; with `either`, also `node(op_type(y), x)`."""

    def rule(editor: Editor, scope: Scope, node: ir.Node) -> _Result | None:
        for index in (1, 0) if either else (1,):
            inner = _inner(node, index, op_type)
            x = input_at(node, 1 - index)
            if inner is not None and x is not None and inner.inputs[0] is not None and _is_float(editor, x):
                return ir.node(becomes, [x, inner.inputs[0]]), (inner,)
        return None

    return rule


def _both_negated(editor: Editor, scope: Scope, node: ir.Node) -> _Result | None:
    left, right = _inner(node, 0, "Neg"), _inner(node, 1, "Neg")
    if left is None or right is None or not _is_float(editor, node.inputs[0]):
        return None
    return ir.node(node.op_type, [left.inputs[0], right.inputs[0]]), (left, right)


# --- 7, 8. Nothing new the second time ---


def _again(editor: Editor, scope: Scope, node: ir.Node) -> _Result | None:
    inner = producer(node.inputs[0], node.graph, node.op_type)
    return None if inner is None else (inner.outputs[0], ())


def _abs_of_neg(editor: Editor, scope: Scope, node: ir.Node) -> _Result | None:
    inner = _inner(node, 0, "Neg")
    return None if inner is None else (ir.node("Abs", [inner.inputs[0]]), (inner,))


def _where_not(editor: Editor, scope: Scope, node: ir.Node) -> _Result | None:
    inner = _inner(node, 0, "Not")
    return None if inner is None else (ir.node("Where", [inner.inputs[0], node.inputs[2], node.inputs[1]]), (inner,))


# --- 9. Axes put back ---


def _axes_put_back(editor: Editor, scope: Scope, node: ir.Node) -> _Result | None:
    keep = int(node.op_type == "Unsqueeze")
    reduction = _inner(node, 0, *_REDUCTIONS, "ArgMax", "ArgMin")
    if reduction is None or int_attribute(reduction, "keepdims", 1) == keep:
        return None
    dims, wanted = editor.shapes.dims(reduction.inputs[0]), known_ints(input_at(node, 1))
    reduced = _reduced(reduction)
    if dims is None or not wanted or reduced is None:
        return None
    if {axis % len(dims) for axis in reduced} != {axis % len(dims) for axis in wanted}:
        return None
    attributes = {**reduction.attributes, "keepdims": ir.AttrInt64("keepdims", keep)}
    return ir.Node("", reduction.op_type, reduction.inputs, attributes), (reduction,)


def _reduced(reduction: ir.Node) -> tuple[int, ...] | None:
    if reduction.op_type.startswith("Arg"):
        return (int_attribute(reduction, "axis", 0),)
    if len(reduction.inputs) > 1:
        return known_ints(reduction.inputs[1])
    return ints_attribute(reduction, "axes")


# --- 10. Constants one after the other ---


def _wrapping(editor: Editor, scope: Scope, node: ir.Node) -> _Result | None:
    for value, last in either_order(node):
        inner = producer(value, node.graph, node.op_type)
        if inner is None or only_user(value) is not node:
            continue
        for x, first in either_order(inner):
            a, b = _number(editor, first, x), _number(editor, last, x)
            dtype = editor.shapes.dtype(x)
            if a is None or b is None or dtype is None or not dtype.is_integer():
                continue
            left, right = constant(first), constant(last)
            assert left is not None and right is not None, "it has a number"
            with np.errstate(over="ignore"):
                items = left.numpy().reshape(-1), right.numpy().reshape(-1)
                result = items[0] + items[1] if node.op_type == "Add" else items[0] * items[1]
            return ir.node(node.op_type, [x, editor.constant(scope, node, last.name, result.reshape(()))]), (inner,)
    return None


_Rule = Callable[[Editor, Scope, ir.Node], _Result | None]
_RULES: dict[str, tuple[_Rule, ...]] = {
    "Abs": (_again, _abs_of_neg),
    "Add": (_inside("Neg", "Sub", either=True), _wrapping),
    "Ceil": (_again,),
    "Div": (_one_over, _by_power_of_two, _both_negated, _inside("Reciprocal", "Mul", either=False)),
    "Floor": (_again,),
    "Mul": (_negate, _both_negated, _inside("Reciprocal", "Div", either=True), _wrapping),
    "Neg": (_twice,),
    "Not": (_twice,),
    "Pow": (_power,),
    "Relu": (_again,),
    "Round": (_again,),
    "Sign": (_again,),
    "Squeeze": (_axes_put_back,),
    "Sub": (_inside("Neg", "Add", either=False),),
    "Unsqueeze": (_axes_put_back,),
    "Where": (_where_not,),
}
