"""Fuse the formulas of the piecewise linear activations.

1. `Clip(x + 3, 0, 6) / 6`, or `Clip(a * x + b, 0, c) * d` with `c * d = 1`  ->  `HardSigmoid(x)`
2. `x * HardSigmoid(x)` with `alpha = 1/6` and `beta = 0.5`, or `x * Clip(x + 3, 0, 6) / 6` in any order  ->
   `HardSwish(x)`

It is done when

1. the bounds and factors are constants of one element;
2. the type is floating point;
3. nothing else needs the result of Clip or HardSigmoid: it would be computed twice.

`HardSwish` is a standard operator since opset 14.
"""

from __future__ import annotations

import dataclasses
import functools

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.formula import Formula, Terms, arithmetic_inputs
from optimizer.ir.match import close, remove_dead, scalar, survivor
from optimizer.ir.query import FLOATS, float_attribute, input_at, is_op, only_user
from optimizer.pass_manager import Pass

__all__ = ["FuseHardSwish"]

_AROUND = ("Div", "Mul")
_MAX_DISTANCE = 2

_Around = dict[ir.Value, tuple[ir.Node, int]]
"""For a value computed from Clip or HardSigmoid by products: that node, and how many steps it is away."""


@dataclasses.dataclass(frozen=True)
class FuseHardSwish(Pass):
    """Turns the formulas of piecewise linear activations into their operators."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse wherever it can be done."""
        return rewrite_nodes(model, functools.partial(_visit, {}), ("Clip", "HardSigmoid", *_AROUND))


def _visit(around: _Around, editor: Editor, scope: Scope, node: ir.Node) -> None:
    if scope.opset < 14:
        return
    if is_op(node, "Clip", "HardSigmoid"):
        around[node.outputs[0]] = (node, 0)
        return
    near = [around[value] for value in node.inputs if value in around] if is_op(node, *_AROUND) else []
    if not near or near[0][0].graph is not node.graph or near[0][1] == _MAX_DISTANCE:
        return
    core, distance = near[0]
    around[node.outputs[0]] = (core, distance + 1)
    new = _fuse(editor, node, core)
    if new is not None and new.op_type == "HardSigmoid":
        around[new.outputs[0]] = (new, 0)


@dataclasses.dataclass(frozen=True)
class _Match:
    """`result` in `x` and `t`; `t` is `argument` in `x` between 0 and `upper`."""

    x: ir.Value
    argument: Terms
    upper: float
    result: Terms
    nodes: tuple[ir.Node, ...]


def _fuse(editor: Editor, node: ir.Node, core: ir.Node) -> ir.Node | None:
    for match in _matches(editor, node, core):
        dtype = editor.shapes.dtype(match.x)
        new = _replacement(match, dtype) if dtype in FLOATS else None
        if new is None:
            continue
        stays = survivor(core, node, match.nodes)
        if stays is not None:
            editor.miss(node, f"{stays}, so {core.op_type} would be computed twice")
            return None
        if new.op_type == "HardSigmoid" and _is_swish_next(node, match.x):
            return None
        nodes = [item for item in match.nodes if item is not node]
        editor.substitute(node, new, nodes)
        remove_dead(editor, nodes)
        return new
    return None


def _matches(editor: Editor, node: ir.Node, core: ir.Node) -> list[_Match]:
    found = []
    source = core.inputs[0]
    for x in [] if source is None else reversed(arithmetic_inputs(source, node.graph, depth=2)):
        dims = editor.shapes.dims(x)
        formula = Formula({x: "x", core.outputs[0]: "t"}, node.graph, 0 if dims is None else len(dims))
        result, argument = formula.read(node.outputs[0]), formula.read(source)
        if result is None or argument is None:
            continue
        if core.op_type == "HardSigmoid":
            alpha, beta = float_attribute(core, "alpha", 0.2), float_attribute(core, "beta", 0.5)
            argument = {letters: alpha * number for letters, number in argument.items()}
            argument[""] = argument.get("", 0.0) + beta
            upper: float | None = 1.0
        else:
            upper = scalar(input_at(core, 2)) if scalar(input_at(core, 1)) == 0 else None
        if upper is not None and upper > 0:
            found.append(_Match(x, argument, upper, result, (*formula.nodes, core)))
    return found


def _replacement(match: _Match, dtype: ir.DataType | None) -> ir.Node | None:
    """`t` is `upper * HardSigmoid(x; slope / upper, shift / upper)`."""
    if not set(match.argument) <= {"", "x"} or "x" not in match.argument:
        return None
    alpha, beta = match.argument["x"] / match.upper, match.argument.get("", 0.0) / match.upper
    if set(match.result) == {"tx"} and close(match.result["tx"] * match.upper, 1, dtype):
        return ir.node("HardSwish", [match.x]) if close(alpha, 1 / 6, dtype) and close(beta, 0.5, dtype) else None
    if set(match.result) == {"t"} and close(match.result["t"] * match.upper, 1, dtype):
        return ir.node("HardSigmoid", [match.x], {"alpha": float(alpha), "beta": float(beta)})
    return None


def _is_swish_next(node: ir.Node, x: ir.Value) -> bool:
    """Whether the next product makes more of it than this one."""
    user = only_user(node.outputs[0])
    return is_op(user, "Mul") and user is not None and x in user.inputs and node.op_type in _AROUND
