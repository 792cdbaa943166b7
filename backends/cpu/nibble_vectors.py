"""A vector of 32-bit words, each with eight 4-bit codes, as vectors of numbers: one for each of the words' rows.

A vector of 16 float32 can be looked up in by 16 indices in one instruction (`vpermps` of AVX-512), of which only the
lowest four bits count: a shifted word is an index as it is, and any 16 numbers can stand for the codes. Elsewhere codes
are masked and converted, and other numbers than the codes themselves are read from memory.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, StringImm

from backends.relax.loops import BufferLoad, Expr, Stmt, Var
from backends.relax.nibbles import shift
from optimizer.target import Cpu

__all__ = ["imported", "looked_up", "looks_up", "numbers"]

_LANES = 16
_LOOK_UP = "tersor_look_up"
_LOOK_UP_IR = f"""
declare <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float>, <16 x i32>)
define <16 x float> @{_LOOK_UP}(<16 x float> %table, <16 x i32> %at) alwaysinline {{
  %r = call <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float> %table, <16 x i32> %at)
  ret <16 x float> %r
}}
"""


def looks_up(cpu: Cpu) -> bool:
    """Whether a vector holds a table of 16 numbers, and the processor finds them by index."""
    return cpu.architecture == "x86_64" and cpu.lanes == _LANES


def looked_up(words: Expr, row: int, table: Expr) -> Expr:
    """The numbers of the table that the codes of a row stand for; for processors that look up.

    Args:
        words: int32x16.
        row: which of the eight codes of each word.
        table: float32x16.
    """
    return tirx.call_pure_extern(f"float32x{_LANES}", _LOOK_UP, table, _shifted(words, row))


def numbers(words: Expr, row: int, lanes: int, table: Var | None) -> Expr:
    """The same for any processor: the codes themselves, or elements of a buffer of 16 numbers."""
    code = tirx.bitwise_and(_shifted(words, row), _like(words, 15))
    if table is None:
        return tirx.Cast("float32" if lanes == 1 else f"float32x{lanes}", code)
    return BufferLoad(table, [code])


def imported(body: Stmt) -> Stmt:
    """The body of a function with the definition of what it calls."""
    found: list[Call] = []

    def note(call: Call) -> None:
        if any(isinstance(a, StringImm) and a.value == _LOOK_UP for a in call.args[:1]):
            found.append(call)

    tvm_ffi.structural_walk(body, (Call, note))
    if not found:
        return body
    return tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", StringImm(_LOOK_UP_IR), body)


def _shifted(words: Expr, row: int) -> Expr:
    return words if shift(row) == 0 else tirx.shift_right(words, _like(words, shift(row)))


def _like(words: Expr, value: int) -> Expr:
    return tirx.const(value, str(words.expr_ty()))
