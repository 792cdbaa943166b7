"""Amounts of work as formulas over the sizes of a kernel's arguments, and what an expression costs a vector unit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from backends.cpu.polynomials import expand
from backends.relax.kernel import Axis, Kernel, Stage
from backends.relax.loops import Expr, TensorLoad, Var, known, loads_of, product, uses
from backends.relax.size_formula import formula
from backends.relax.size_value import Formula

__all__ = ["Cost", "argument_bytes", "cost_of", "element_bytes", "scaled", "total"]

_PRECISION = 1024
"""Factors of symbolic sizes are kept as so many parts of one."""
_DIVISION_CYCLES = 8.0
"""Between divisions or square roots of vectors (Fog's tables: 5 to 16)."""
_CALL_CYCLES = 20.0
"""A function of the C library, for one element."""
_FREE_CALLS = ("reinterpret", "address_of", "likely")
_SLOW_CALLS = ("sqrt",)
_VECTOR_CALLS = ("if_then_else", "isnan", "nearbyint", "round", "floor", "ceil", "trunc", "fabs", "fmod", "prefetch")
_PLAIN = (tirx.Max, tirx.Min, tirx.Select, tirx.Cast, tirx.EQ, tirx.NE, tirx.LT, tirx.LE, tirx.GT, tirx.GE)


def scaled(extents: Sequence[Expr | int], factor: float) -> Formula:
    """The product of sizes times a factor, rounded; a formula where a size is symbolic.

    Raises:
        Refused: a size is no formula.
    """
    size = product(list(extents))
    number = known(size)
    if number is not None:
        return round(number * factor)
    return ["//", ["*", formula(size), round(factor * _PRECISION)], _PRECISION]


def total(*amounts: Formula) -> Formula:
    """The sum."""
    fixed = sum(amount for amount in amounts if isinstance(amount, int))
    result: Formula = fixed
    for amount in amounts:
        if not isinstance(amount, int):
            result = ["+", result, amount]
    return result


@dataclass(frozen=True)
class Cost:
    """What one vector of an expression's values takes.

    Attributes:
        operations: Arithmetic, where a product and the sum that takes it count as one.
        slow: Cycles of divisions, roots and calls, which have a unit of their own.
        flops: Arithmetic for each element, products and sums counted alone.
    """

    operations: float
    slow: float
    flops: int

    def cycles(self, pipes: int) -> float:
        """Of a processor with so many pipes."""
        return max(self.operations / pipes, self.slow)


_TABLE_OPERATIONS = 5
"""Of `backends.cpu.tables`: two look-ups, a comparison, a choice, a mask."""


def cost_of(value: Expr, lanes: int) -> Cost:
    """Count the arithmetic of an expression as the code generator gets it; that of indices is left out."""
    sums = products = others = 0
    slow = 0.0

    def count(node: Expr) -> None:
        nonlocal sums, products, others, slow
        if id(node) in indices or "int64" in str(node.expr_ty()):
            return
        if isinstance(node, (tirx.Add, tirx.Sub)):
            sums += 1
        elif isinstance(node, tirx.Mul):
            products += 1
        elif isinstance(node, (tirx.Div, tirx.FloorDiv, tirx.FloorMod, tirx.Mod)):
            slow += _DIVISION_CYCLES
        elif isinstance(node, _PLAIN):
            others += 1

    def call(node: Call) -> None:
        nonlocal others, slow
        name = str(getattr(node.op, "name", "")).rpartition(".")[2]
        if name in _SLOW_CALLS:
            slow += _DIVISION_CYCLES
        elif name in _VECTOR_CALLS or name.startswith(("shift", "bitwise")):
            others += 1
        elif name.startswith("table_"):
            others += _TABLE_OPERATIONS
        elif name not in _FREE_CALLS:
            slow += _CALL_CYCLES * lanes

    expanded = expand(value)
    indices: set[int] = set()
    for kind in (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.FloorDiv, tirx.FloorMod, tirx.Mod, *_PLAIN):
        tvm_ffi.structural_walk(expanded, (kind, count))
    tvm_ffi.structural_walk(expanded, (Call, call))
    return Cost(max(sums, products) + others, slow, sums + products + others)


def element_bytes(dtype: object) -> int:
    """Of an element of a buffer."""
    digits = re.search(r"\d+", str(dtype))
    return max(1, int(digits[0]) // 8) if digits else 1


def argument_bytes(kernel: Kernel, without: Sequence[Var] = ()) -> Formula:
    """Bytes of the arguments that the stages read or write, each counted once.

    Of an argument that is larger than what reads it, such as the one that a slice or a gather looks into, only as much
    counts as is read.
    """
    amounts: list[Formula] = []
    for buffer in kernel.function.params:
        if not isinstance(buffer.ty, tirx.BufferType) or any(buffer.same_as(other) for other in without):
            continue
        readers = [(stage, load) for stage in kernel.stages for load in loads_of(stage.value)]
        touched = [_touched(stage, load) for stage, load in readers if load.source.same_as(buffer)]
        touched += [[a.extent for a in stage.spatial] for stage in kernel.stages if stage.buffer.same_as(buffer)]
        if touched:
            amounts.append(_least([list(buffer.shape), *touched], element_bytes(buffer.dtype)))
    return total(*amounts)


def _touched(stage: Stage, load: TensorLoad) -> list[Expr]:
    axes: list[Axis] = [a for a in stage.axes if any(uses(index, a.var) for index in load.indices)]
    return [a.extent for a in axes]


def _least(candidates: list[list[Expr]], itemsize: int) -> Formula:
    """The smallest of the known sizes; the buffer's own where none is known."""
    sizes = [size for size in (known(product(c)) for c in candidates) if size is not None]
    return min(sizes) * itemsize if sizes else scaled(candidates[0], itemsize)
