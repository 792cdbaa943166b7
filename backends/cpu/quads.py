"""Products of four bytes that add up in int32.

Four neighbours of the reduced axis share a 32-bit lane, the first in the lowest byte: of one factor bytes without a
sign, of the other with one. AVX512_VNNI and AVX-VNNI multiply the bytes of a lane and add all four products to an
int32 in one instruction (`vpdpbusd`). Elsewhere on x86, even and odd bytes are widened to 16 bits and multiplied with
`pmaddwd`, which is exact, unlike `pmaddubsw`, which saturates. Other processors widen each byte to 32 bits. All give
the same sums: four products are at most 130,560, and no step saturates.

TVM knows none of these instructions. They are brought in as functions in LLVM's own language, which LLVM then inlines.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.ir import Call, Op

from backends.cpu.operations import operation
from backends.relax.loops import Expr
from optimizer.target import Cpu

__all__ = ["PRODUCTS", "QUAD", "add_quads", "definitions", "is_bytes", "quad"]

QUAD = 4
"""Bytes in a lane."""
PRODUCTS = {"vpdpbusd": "tersor.quad_product_vnni", "pmaddwd": "tersor.quad_product_madd"}
"""The operation for each instruction."""
_LANES = (4, 8, 16)
_SHARED = {4: "128", 8: "256", 16: "512"}
_MADD = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}

_VNNI_IR = """
declare <{n} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{n} x i32>, <{bytes} x i8>, <{bytes} x i8>)
define <{n} x i32> @tersor_quad_product_vnni_{n}(<{n} x i32> %sum, <{n} x i32> %a, <{n} x i32> %b) alwaysinline {{
  %x = bitcast <{n} x i32> %a to <{bytes} x i8>
  %y = bitcast <{n} x i32> %b to <{bytes} x i8>
  %r = call <{n} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{n} x i32> %sum, <{bytes} x i8> %x, <{bytes} x i8> %y)
  ret <{n} x i32> %r
}}
"""

_MADD_IR = """
declare <{n} x i32> @llvm.x86.{madd}(<{words} x i16>, <{words} x i16>)
define <{n} x i32> @tersor_quad_product_madd_{n}(<{n} x i32> %sum, <{n} x i32> %a, <{n} x i32> %b) alwaysinline {{
  %low = and <{n} x i32> %a, splat (i32 16711935)
  %x = bitcast <{n} x i32> %low to <{words} x i16>
  %aw = bitcast <{n} x i32> %a to <{words} x i16>
  %u = lshr <{words} x i16> %aw, splat (i16 8)
  %bw = bitcast <{n} x i32> %b to <{words} x i16>
  %moved = shl <{words} x i16> %bw, splat (i16 8)
  %y = ashr <{words} x i16> %moved, splat (i16 8)
  %v = ashr <{words} x i16> %bw, splat (i16 8)
  %even = call <{n} x i32> @llvm.x86.{madd}(<{words} x i16> %x, <{words} x i16> %y)
  %odd = call <{n} x i32> @llvm.x86.{madd}(<{words} x i16> %u, <{words} x i16> %v)
  %both = add <{n} x i32> %even, %odd
  %r = add <{n} x i32> %sum, %both
  ret <{n} x i32> %r
}}
"""


def is_bytes(dtype: str) -> bool:
    """Whether elements of the type are multiplied four at a time."""
    return dtype in ("uint8", "int8")


def add_quads(total: Expr, a: Expr, b: Expr, cpu: Cpu) -> Expr:
    """`total` plus the four products of each lane.

    Args:
        total: int32.
        a: int32, each lane four bytes without a sign.
        b: int32, each lane four bytes with one.
        cpu: the target.
    """
    dtype = str(total.expr_ty())
    lanes = int(dtype.partition("x")[2] or 1)
    instruction = _instruction(cpu)
    if instruction is not None and lanes in _LANES:
        return tirx.call_intrin(dtype, _operation(PRODUCTS[instruction]), total, a, b)
    for place in range(QUAD):
        total = total + _byte(a, place, signed=False) * _byte(b, place, signed=True)
    return total


def quad(elements: list[Expr]) -> Expr:
    """Up to four bytes (or vectors of them) as one 32-bit integer; zeros in place of those that there are not."""
    result: Expr | None = None
    for place, element in enumerate(elements):
        bits = tirx.reinterpret(_like(element, "uint8"), element)
        moved = tirx.Cast(_like(element, "int32"), bits)
        if place:
            moved = tirx.shift_left(moved, tirx.const(8 * place, _like(element, "int32")))
        result = moved if result is None else tirx.bitwise_or(result, moved)
    assert result is not None
    return result


def definitions(called: set[str]) -> list[str]:
    """The functions, in LLVM's language, behind the operations that are called."""
    found: list[str] = []
    if PRODUCTS["vpdpbusd"] in called:
        found += [_VNNI_IR.format(n=n, bits=_SHARED[n], bytes=QUAD * n) for n in _LANES]
    if PRODUCTS["pmaddwd"] in called:
        found += [_MADD_IR.format(n=n, madd=_MADD[n], words=2 * n) for n in _LANES]
    return found


def _operation(name: str) -> Op:
    return operation(name, _LOWERED[name])


def _instruction(cpu: Cpu) -> str | None:
    if cpu.architecture != "x86_64":
        return None
    return "vpdpbusd" if cpu.vnni else "pmaddwd"


def _byte(quads: Expr, place: int, *, signed: bool) -> Expr:
    """One of the bytes of each lane, as int32."""
    dtype = str(quads.expr_ty())
    if signed:
        moved = tirx.shift_left(quads, tirx.const(24 - 8 * place, dtype)) if place < QUAD - 1 else quads
        return tirx.shift_right(moved, tirx.const(24, dtype))
    moved = tirx.shift_right(quads, tirx.const(8 * place, dtype)) if place else quads
    return tirx.bitwise_and(moved, tirx.const(255, dtype))


def _like(value: Expr, element: str) -> str:
    _, x, lanes = str(value.expr_ty()).partition("x")
    return f"{element}{x}{lanes}"


def _function(name: str) -> Callable[[Call], Expr]:
    def lowered(call: Call) -> Expr:
        dtype = str(call.expr_ty())
        lanes = dtype.partition("x")[2]
        return tirx.call_pure_extern(dtype, f"tersor_{name.partition('.')[2]}_{lanes}", *call.args)

    return lowered


_LOWERED = {name: _function(name) for name in PRODUCTS.values()}
