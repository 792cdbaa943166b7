"""Sizes as plain data: computed by the run, from the symbolic sizes that its tensors show."""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Call

from backends.relax.size_value import Formula
from backends.relax.values import Refused

_BINARY = {
    tirx.Add: "+",
    tirx.Sub: "-",
    tirx.Mul: "*",
    tirx.FloorDiv: "//",
    tirx.FloorMod: "%",
    tirx.Max: "max",
    tirx.Min: "min",
    tirx.LT: "<",
    tirx.LE: "<=",
    tirx.EQ: "==",
    tirx.NE: "!=",
    tirx.And: "and",
    tirx.Or: "or",
    tirx.Div: "/",
}


def formula(expr: tirx.Expr) -> Formula:
    """An expression over symbolic sizes as nested lists: a number, a name, or [operator, operands...].

    Raises:
        Refused: it has an operator that sizes cannot have.
    """
    if isinstance(expr, tirx.IntImm):
        return int(expr.value)
    if isinstance(expr, tirx.Var):
        return str(expr.name)
    if isinstance(expr, tirx.Select):
        return ["if", formula(expr.condition), formula(expr.true_value), formula(expr.false_value)]
    if isinstance(expr, Call) and str(getattr(expr.op, "name", "")).rpartition(".")[2] == "if_then_else":
        return ["if", *(formula(part) for part in expr.args)]
    if isinstance(expr, tirx.Cast):
        return formula(expr.value)
    for kind, operator in _BINARY.items():
        if isinstance(expr, kind):
            return [operator, formula(expr.a), formula(expr.b)]
    raise Refused(f"a size computed as {expr}")
