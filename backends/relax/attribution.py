"""Which nodes of the graph a kernel computes.

The variables of an emitted function are named after the node that made them. Fusion keeps none of these names, and
gives kernels that are alike one body. So both forms of a function, before and after fusion, are numbered by value: a
number stands for an operation on numbers, whatever the variable that holds the result. What a fused function computes
is then found among what was emitted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import tvm
from tvm import relax

_LABEL = re.compile(r"n(\d+)_")

Labels = dict[int, set[str]]
"""Number of a value -> names of the nodes that made it."""


def label(index: int) -> str:
    """What the variables are called that the node at that position of a segment makes."""
    return f"n{index}_"


class Attribution:
    """Follows the values of a module through fusion.

    Args:
        nodes: for each function of the module that runs a segment, the names of the segment's nodes.
    """

    def __init__(self, nodes: Mapping[str, Sequence[str]]) -> None:
        self._nodes = nodes
        self._numbers: dict[tuple[object, ...], int] = {}
        self._tuples: dict[int, list[int]] = {}
        self._labels: Labels = {}

    def emitted(self, module: tvm.IRModule) -> None:
        """Take note of the values of a module whose operations are kernels already, but not fused."""
        for entry, names in self._nodes.items():
            values = self._parameters(module[entry], entry)
            waiting: list[int] = []  # of what a node needed, but did not name
            for binding in _bindings(module[entry]):
                number = values[binding.var] = self._number(binding.value, values)
                waiting.append(number)
                found = _LABEL.match(binding.var.name)
                if found:
                    for value in waiting:
                        self._labels.setdefault(value, set()).add(names[int(found[1])])
                    waiting = []

    def fused(self, module: tvm.IRModule) -> dict[str, list[str]]:
        """The nodes that each kernel of the module after fusion computes, in the order of the graph."""
        kernels: dict[str, set[str]] = {}
        for entry in self._nodes:
            values = self._parameters(module[entry], entry)
            for binding in _bindings(module[entry]):
                call = binding.value
                if isinstance(call, relax.Call) and isinstance(call.op, tvm.ir.GlobalVar):
                    inner, values[binding.var] = self._inlined(module[call.op], call, values)
                    computed = kernels.setdefault(call.op.name_hint, set())
                    computed.update(*(self._labels.get(number, ()) for number in inner))
                    continue
                values[binding.var] = self._number(call, values)
                if _is_kernel(call):
                    kernels.setdefault(call.args[0].name_hint, set()).update(self._labels.get(values[binding.var], ()))
        order = {name: i for i, name in enumerate(name for names in self._nodes.values() for name in names)}
        return {kernel: sorted(computed, key=lambda name: order[name]) for kernel, computed in kernels.items()}

    def _parameters(self, function: relax.Function, entry: str) -> dict[relax.Var, int]:
        return {var: self._known("parameter", entry, i) for i, var in enumerate(function.params)}

    def _inlined(
        self, function: relax.Function, call: relax.Call, values: Mapping[relax.Var, int]
    ) -> tuple[list[int], int]:
        """The numbers of what a fused function computes inside, and of its result."""
        given = [self._number(arg, values) for arg in call.args]
        own = dict(zip(function.params, given, strict=True))
        inner = []
        for binding in _bindings(function):
            own[binding.var] = self._number(binding.value, own)
            inner.append(own[binding.var])
        return inner, self._number(function.body.body, own)

    def _number(self, expr: relax.Expr, values: Mapping[relax.Var, int]) -> int:
        """The number of an expression; shapes are left out, as they may be written in several ways."""
        if isinstance(expr, relax.Var):
            return values.get(expr, -1)
        if isinstance(expr, relax.Tuple):
            fields = [self._number(field, values) for field in expr.fields]
            number = self._known("tuple", *fields)
            self._tuples[number] = fields
            return number
        if isinstance(expr, relax.TupleGetItem):
            whole = self._number(expr.tuple_value, values)
            index = int(expr.index)
            return self._tuples[whole][index] if whole in self._tuples else self._known("item", whole, index)
        if isinstance(expr, relax.Call):
            name = expr.op.name if isinstance(expr.op, tvm.ir.Op) else "call"
            return self._known(name, *(self._number(arg, values) for arg in expr.args))
        if isinstance(expr, tvm.ir.GlobalVar):
            return self._known("kernel", expr.name_hint)
        return -1

    def _known(self, *key: object) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def _bindings(function: relax.Function) -> list[relax.VarBinding]:
    return [b for block in function.body.blocks for b in block.bindings if isinstance(b, relax.VarBinding)]


def _is_kernel(expr: relax.Expr) -> bool:
    return (
        isinstance(expr, relax.Call)
        and expr.op == tvm.ir.Op.get("relax.call_tir")
        and isinstance(expr.args[0], tvm.ir.GlobalVar)
    )
