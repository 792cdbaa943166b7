"""Bytes looked up in a table of 256: four vectors of 64, of which one instruction reads two by an index of seven bits.

The table is part of the operation's name, so that the code generator needs nothing besides. `vpermi2b` of AVX512_VBMI
finds the bytes in both halves of the table, and the highest bit of the index says which of them counts. The rest of a
row, fewer than 16 codes, is read from memory byte by byte.
"""

from __future__ import annotations

import functools
import hashlib

from tvm import tirx
from tvm.ir import Call

from backends.cpu.operations import operation
from backends.relax.loops import Expr

__all__ = ["definitions", "looked_up"]

_PREFIX = "tersor.table_"
_LANES = (1, 2, 4, 8, 16)
_HALF = 128

_SIXTEEN = """
declare <64 x i8> @llvm.x86.avx512.vpermi2var.qi.512(<64 x i8>, <64 x i8>, <64 x i8>)
define <16 x i32> @{name}_16(<16 x i32> %i) alwaysinline {{
  %at = bitcast <16 x i32> %i to <64 x i8>
  %low = call <64 x i8> @llvm.x86.avx512.vpermi2var.qi.512(<64 x i8> {parts[0]}, <64 x i8> %at, <64 x i8> {parts[1]})
  %high = call <64 x i8> @llvm.x86.avx512.vpermi2var.qi.512(<64 x i8> {parts[2]}, <64 x i8> %at, <64 x i8> {parts[3]})
  %first = bitcast <64 x i8> %low to <16 x i32>
  %second = bitcast <64 x i8> %high to <16 x i32>
  %is = icmp sgt <16 x i32> %i, splat (i32 127)
  %both = select <16 x i1> %is, <16 x i32> %second, <16 x i32> %first
  %r = and <16 x i32> %both, splat (i32 255)
  ret <16 x i32> %r
}}
"""
_ONE = """
@{name}_bytes = private unnamed_addr constant [256 x i8] [{elements}]
define i32 @{name}_1(i32 %i) alwaysinline {{
  %at = sext i32 %i to i64
  %place = getelementptr [256 x i8], ptr @{name}_bytes, i64 0, i64 %at
  %byte = load i8, ptr %place
  %r = zext i8 %byte to i32
  ret i32 %r
}}
"""


def looked_up(code: Expr, table: bytes) -> Expr:
    """The bytes at codes.

    Args:
        code: int32 from 0 to 255, one or a vector.
        table: 256 bytes.
    """
    return tirx.call_intrin(str(code.expr_ty()), _operation(table.hex()), code)


def definitions(called: set[str]) -> list[str]:
    """The functions, in LLVM's language, behind the tables among the operations that are called."""
    found = []
    for operator in sorted(name for name in called if name.startswith(_PREFIX)):
        table = bytes.fromhex(operator.removeprefix(_PREFIX))
        name = _function(operator.removeprefix(_PREFIX))
        elements = [f"i8 {byte}" for byte in table]
        parts = [f"<{', '.join(elements[first : first + 64])}>" for first in range(0, 256, 64)]
        found.append(_ONE.format(name=name, elements=", ".join(elements)))
        found += [_narrow(name, lanes) for lanes in _LANES[1:-1]]
        found.append(_SIXTEEN.format(name=name, parts=parts))
    return found


def _narrow(name: str, lanes: int) -> str:
    vector = f"<{lanes} x i32>"
    lines = [f"define {vector} @{name}_{lanes}({vector} %i) alwaysinline {{"]
    before = "poison"
    for lane in range(lanes):
        lines += [
            f"  %c{lane} = extractelement {vector} %i, i64 {lane}",
            f"  %b{lane} = call i32 @{name}_1(i32 %c{lane})",
            f"  %r{lane} = insertelement {vector} {before}, i32 %b{lane}, i64 {lane}",
        ]
        before = f"%r{lane}"
    return "\n".join([*lines, f"  ret {vector} {before}", "}", ""])


@functools.cache
def _function(table: str) -> str:
    return f"tersor_table_{hashlib.sha256(table.encode()).hexdigest()[:16]}"


def _operation(table: str) -> tirx.op.Op:
    return operation(_PREFIX + table, _lowered, vectorizable=True)


def _lowered(call: Call) -> Expr:
    dtype = str(call.expr_ty())
    lanes = dtype.partition("x")[2] or "1"
    return tirx.call_pure_extern(dtype, f"{_function(str(call.op.name).removeprefix(_PREFIX))}_{lanes}", *call.args)
