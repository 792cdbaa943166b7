"""Fuse the formulas of the Gaussian error linear unit.

1. `0.5 * x * (1 + Erf(x / sqrt(2)))`  ->  `Gelu(x)`
2. `0.5 * x * (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`  ->  `Gelu(x)` with `approximate = "tanh"`; so does
   `x * Sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 * x^3))`, which is the same function
3. `x * Sigmoid(1.702 * x)`, or with any other factor  ->  `Swish(x)`, at opset 24

The formula is compared as a polynomial of `x` and of what Erf, Tanh or Sigmoid gives, so the order of the factors and
where they are multiplied do not matter. It is done when

1. the numbers are these up to rounding;
2. the type is floating point, for `Gelu` not double: its definition has numbers of single precision;
3. nothing else needs the result of Erf, Tanh or Sigmoid: it would be computed twice.

`Gelu` is a standard operator since opset 20, `Swish` since 24. ONNX Runtime 1.31.1 has no `Swish` of its own and
expands it at opset 24 only: with a later one nothing could check the result, so the formula stays.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.formula import Formula, Terms, arithmetic_inputs
from optimizer.ir.match import close, remove_dead, scalar, survivor
from optimizer.ir.query import FLOATS, is_op, only_user
from optimizer.pass_manager import Pass

__all__ = ["FuseGelu"]

_CORES = ("Erf", "Sigmoid", "Tanh")
_AROUND = ("Add", "Div", "Mul", "Neg", "Sub")
_MAX_DISTANCE = 5
_SLOPE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715
_SWISH_OPSET = 24
_DOUBLE = "Gelu of double is defined with numbers of single precision"

_Around = dict[ir.Value, tuple[ir.Node, int]]
"""For a value computed from Erf, Tanh or Sigmoid by arithmetic: that node, and how many steps it is away."""


@dataclasses.dataclass(frozen=True)
class FuseGelu(Pass):
    """Turns the formulas of GELU into `Gelu`, and those of SiLU into `Swish`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse wherever it can be done."""
        return rewrite_nodes(model, functools.partial(_visit, {}), (*_CORES, *_AROUND))


@dataclasses.dataclass(frozen=True)
class _Match:
    """`result`, in `x` and `t`, where `t` is the core of `argument`, in `x`."""

    x: ir.Value
    core: ir.Node
    argument: Terms
    result: Terms
    nodes: tuple[ir.Node, ...]


def _visit(around: _Around, editor: Editor, scope: Scope, node: ir.Node) -> None:
    if is_op(node, *_CORES):
        around[node.outputs[0]] = (node, 0)
        return
    if scope.opset < 20 or not is_op(node, *_AROUND):
        return
    near = [around[value] for value in node.inputs if value is not None and value in around]
    if not near or near[0][1] == _MAX_DISTANCE or near[0][0].graph is not node.graph:
        return
    core, distance = near[0]
    around[node.outputs[0]] = (core, distance + 1)
    match = _read(editor, node, core)
    if match is not None:
        _fuse(editor, scope, node, match)


def _read(editor: Editor, node: ir.Node, core: ir.Node) -> _Match | None:
    if core.inputs[0] is None:
        return None
    for x in arithmetic_inputs(core.inputs[0], node.graph, depth=5):
        dims = editor.shapes.dims(x)
        formula = Formula({x: "x", core.outputs[0]: "t"}, node.graph, 0 if dims is None else len(dims))
        result = formula.read(node.outputs[0])
        argument = formula.read(core.inputs[0])
        if result is not None and argument is not None and "tx" in result and editor.shapes.dtype(x) in FLOATS:
            return _Match(x, core, argument, result, (*formula.nodes, core))
    return None


def _fuse(editor: Editor, scope: Scope, node: ir.Node, match: _Match) -> None:
    new, refusal = _replacement(scope, match, editor.shapes.dtype(match.x))
    if new is not None:
        reason = survivor(match.core, node, match.nodes)
        refusal = None if reason is None else f"{reason}, so {match.core.op_type} would be computed twice"
    if refusal is not None:
        if not _goes_on(node):
            editor.miss(node, refusal)
    elif new is not None:
        nodes = [item for item in match.nodes if item is not node]
        editor.substitute(node, new, nodes)
        remove_dead(editor, nodes)


def _replacement(scope: Scope, match: _Match, dtype: ir.DataType | None) -> tuple[ir.Node | None, str | None]:
    """The node that computes it, or why there is none; neither when it is something else altogether."""
    if match.core.op_type == "Sigmoid":
        return _gate(scope, match, dtype)
    wanted = {"x": math.sqrt(0.5)} if match.core.op_type == "Erf" else {"x": _SLOPE, "xxx": _SLOPE * _CUBIC}
    if set(match.argument) != set(wanted) or set(match.result) - {"tx", "x"}:
        return None, None
    if match.result.get("tx", 0) < 0:  # Both functions are odd.
        argument = {letters: -number for letters, number in match.argument.items()}
        result = {**match.result, "tx": -match.result["tx"]}
        match = dataclasses.replace(match, argument=argument, result=result)
    refusal = _differs(match.argument, wanted, dtype) or _differs(match.result, {"x": 0.5, "tx": 0.5}, dtype)
    if refusal is None and dtype == ir.DataType.DOUBLE:
        refusal = _DOUBLE
    if refusal is not None:
        return None, refusal
    return _gelu(match.x, tanh=match.core.op_type == "Tanh"), None


def _gate(scope: Scope, match: _Match, dtype: ir.DataType | None) -> tuple[ir.Node | None, str | None]:
    if set(match.result) != {"tx"} or not close(match.result["tx"], 1, dtype):
        return None, None
    if set(match.argument) == {"x", "xxx"}:
        refusal = _differs(match.argument, {"x": 2 * _SLOPE, "xxx": 2 * _SLOPE * _CUBIC}, dtype)
        refusal = refusal or (_DOUBLE if dtype == ir.DataType.DOUBLE else None)
        return (None, refusal) if refusal else (_gelu(match.x, tanh=True), None)
    if set(match.argument) != {"x"}:
        return None, None
    alpha = match.argument["x"]
    if scope.opset == _SWISH_OPSET:
        return ir.node("Swish", [match.x], {} if alpha == 1 else {"alpha": float(alpha)}), None
    if alpha == 1:
        return None, None
    return (
        None,
        f"x * Sigmoid({alpha:.6g} * x) is an operator at opset {_SWISH_OPSET} only, and the model has {scope.opset}",
    )


def _gelu(x: ir.Value, *, tanh: bool) -> ir.Node:
    return ir.node("Gelu", [x], {"approximate": "tanh"} if tanh else None)


def _differs(found: Terms, wanted: Terms, dtype: ir.DataType | None) -> str | None:
    for letters, number in wanted.items():
        if not close(found.get(letters), number, dtype):
            term = {"tx": "the function times x", "xxx": "x^3"}.get(letters, letters)
            return f"the factor of {term} is {found.get(letters, 0.0):.10g}, not {number:.10g}"
    return None


def _goes_on(node: ir.Node) -> bool:
    """Whether the formula may not be complete yet."""
    user = only_user(node.outputs[0])
    return is_op(user, *_AROUND) and user is not None and any(scalar(value) is not None for value in user.inputs)
