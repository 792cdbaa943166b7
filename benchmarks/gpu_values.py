"""Integer expressions of a kernel's code as numbers, over arrays of threads, blocks and turns of loops."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import tirx
from tvm.ir import Call, TensorLoad

__all__ = ["Array", "Number", "Values", "element_bytes", "in_memory", "loads_in", "name_of", "operands"]

Array = npt.NDArray[Any]
Number = Any
"""An integer or an array of them; `None` where it depends on data."""

_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    tirx.Add: lambda a, b: a + b,
    tirx.Sub: lambda a, b: a - b,
    tirx.Mul: lambda a, b: a * b,
    tirx.FloorDiv: lambda a, b: a // b,
    tirx.FloorMod: lambda a, b: a % b,
    tirx.Div: lambda a, b: np.sign(a) * (np.abs(a) // b),
    tirx.Mod: lambda a, b: np.sign(a) * (np.abs(a) % b),
    tirx.Min: np.minimum,
    tirx.Max: np.maximum,
    tirx.EQ: lambda a, b: a == b,
    tirx.NE: lambda a, b: a != b,
    tirx.LT: lambda a, b: a < b,
    tirx.LE: lambda a, b: a <= b,
    tirx.GT: lambda a, b: a > b,
    tirx.GE: lambda a, b: a >= b,
    tirx.BitwiseAnd: lambda a, b: a & b,
    tirx.BitwiseOr: lambda a, b: a | b,
    tirx.BitwiseXor: lambda a, b: a ^ b,
    tirx.LShift: lambda a, b: a << b,
    tirx.RShift: lambda a, b: a >> b,
}


@dataclass
class Values:
    """What is known of variables.

    Attributes:
        sizes: symbolic sizes, by name.
        variables: ids, counters of loops and what was given a name.
        registers: what a thread keeps, by buffer and place.
    """

    sizes: Mapping[str, int]
    variables: dict[Any, Number]
    registers: dict[tuple[Any, int], Number] = field(default_factory=dict)

    def value(self, expr: Any) -> Number:
        """An integer expression as a number or an array; `None` where it depends on data."""
        if isinstance(expr, int):
            return expr
        if isinstance(expr, tirx.IntImm):
            return int(expr.value)
        if isinstance(expr, tirx.Var):
            found = self.variables.get(expr)
            return self.sizes.get(str(expr.name)) if found is None else found
        if isinstance(expr, tirx.Cast):
            return self.value(expr.value) if "int" in str(expr.value.expr_ty()) or _is_bool(expr.value) else None
        if isinstance(expr, (tirx.And, tirx.Or)):
            return self._both(expr)
        if isinstance(expr, tirx.Not):
            inner = self.value(expr.a)
            return None if inner is None else np.logical_not(inner)
        if isinstance(expr, TensorLoad):
            index = expr.indices[0]
            known = not in_memory(expr.source) and len(expr.indices) == 1 and isinstance(index, tirx.IntImm)
            return self.registers.get((expr.source, int(index.value))) if known else None
        operation = _OPERATIONS.get(type(expr))
        if operation is not None:
            a, b = self.value(expr.a), self.value(expr.b)
            return None if a is None or b is None else operation(a, b)
        return self._called(expr)

    def condition(self, expr: Any) -> Array:
        """Where a condition holds; everywhere, if that depends on data."""
        met = self.value(expr)
        return np.array(True) if met is None else np.asarray(met, bool)

    def _both(self, expr: Any) -> Number:
        """Of two conditions one of which is unknown, the other says what is known."""
        a, b = self.value(expr.a), self.value(expr.b)
        if a is None or b is None:
            return (a if b is None else b) if isinstance(expr, tirx.And) else None
        return np.logical_and(a, b) if isinstance(expr, tirx.And) else np.logical_or(a, b)

    def _called(self, expr: Any) -> Number:
        if not isinstance(expr, (Call, tirx.Select)):
            return None
        if isinstance(expr, tirx.Select) or name_of(expr) == "if_then_else":
            parts = (expr.condition, expr.true_value, expr.false_value) if isinstance(expr, tirx.Select) else expr.args
            values: list[Any] = [self.value(part) for part in parts]
            return None if any(v is None for v in values) else np.where(*values)
        name = name_of(expr)
        arguments: list[Any] = [None] if name == "address_of" else [self.value(a) for a in expr.args]
        if any(a is None for a in arguments):
            return None
        if name == "likely":
            return arguments[0]
        simple = {"shift_right": np.right_shift, "shift_left": np.left_shift, "bitwise_and": np.bitwise_and}
        return simple[name](*arguments) if name in simple else None


def _is_bool(expr: Any) -> bool:
    return str(expr.expr_ty()) == "bool"


def in_memory(buffer: Any) -> bool:
    """Whether a buffer lies in the device's memory."""
    return str(buffer.scope()) in ("global", "")


def name_of(call: Call) -> str:
    """Of what is called, without its dialect."""
    return str(getattr(call.op, "name", "")).rpartition(".")[2]


_FIELDS = ("a", "b", "value", "condition", "true_value", "false_value", "base", "body")


@functools.cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(name for name in _FIELDS if hasattr(kind, name))


def operands(value: Any) -> list[Any]:
    """The expressions that one is made of."""
    names = _fields(type(value))  # type: ignore[arg-type]  # it is hashable
    parts = value.args if isinstance(value, Call) else [getattr(value, name) for name in names]
    return [part for part in parts if isinstance(part, tvm.ir.Expr)]


def loads_in(value: Any) -> Iterator[TensorLoad]:
    """All loads in an expression."""
    if isinstance(value, TensorLoad):
        yield value
    for part in operands(value):
        yield from loads_in(part)


def element_bytes(dtype: str) -> int:
    """Of a scalar type."""
    return 1 if dtype == "bool" else max(1, int("".join(c for c in dtype if c.isdigit()) or "8") // 8)
