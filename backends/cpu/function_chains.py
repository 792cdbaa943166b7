"""Functions of functions, sin(tanh(x)): the inner one is stored in a vector of its own first.

Each becomes arithmetic with variables bound inside the expression (`polynomials`). TVM's code generator simplifies what
it binds with all earlier variables written out, so that four functions inside one another take a minute: a polynomial
of ten terms of a polynomial of ten terms. A load is opaque to it, and LLVM keeps the vector in a register.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from backends.cpu.polynomials import expand, function_name, is_function
from backends.relax.loops import BufferLoad, BufferStore, Expr, Stmt, Var, allocate, i64, local, sequence, vectorized

__all__ = ["nested_too_deep", "stored"]

_ARGUMENTS = {"exp": 8, "sigmoid": 8, "tanh": 12, "erf": 12, "log": 60, "sin": 40, "cos": 40}
"""About how often a function's arithmetic has the argument in it, written out."""
_LONGEST = 6000
"""Below that a kernel compiles in two seconds; tanh(log(1 + exp(x))) is."""


def stored(lanes: int, value: Callable[[Expr], Expr], store: Callable[[Expr, Expr], Stmt]) -> Stmt:
    """A vector of values, their functions as polynomials.

    Args:
        lanes: of the vector; 1 for a scalar.
        value: of a lane.
        store: stores the value of a lane.
    """
    buffers: list[Var] = []

    def body(lane: Expr) -> Stmt:
        steps: list[Stmt] = []

        def apart(node: Call) -> Expr:
            if not is_function(node) or not _has_function(node.args[0]):
                return node
            argument = node.args[0]
            buffer = local([lanes], str(argument.expr_ty()), "argument")
            buffers.append(buffer)
            steps.append(BufferStore(buffer, expand(argument), [lane]))
            again: Expr = getattr(tirx, function_name(node))(BufferLoad(buffer, [lane]))
            return again

        last = tvm_ffi.structural_map(value(lane), (Call, apart))
        return sequence([*steps, store(lane, expand(last))])

    nest = body(i64(0)) if lanes == 1 else sequence([vectorized(lanes, body)])
    return allocate(buffers, nest) if buffers else nest


def nested_too_deep(value: Expr) -> bool:
    """Whether a value has so many functions inside one another that they must be `stored` one by one."""
    return _length(value) > _LONGEST


def _length(expr: Expr) -> int:
    """About how long the innermost argument makes an expression that is written out."""
    return max((_ARGUMENTS[function_name(node)] * _length(node.args[0]) for node in _functions(expr)), default=1)


def _has_function(expr: Expr) -> bool:
    return bool(_functions(expr))


def _functions(expr: Expr) -> list[Call]:
    found: list[Call] = []
    tvm_ffi.structural_walk(expr, (Call, lambda node: found.append(node) if is_function(node) else None))
    return found
