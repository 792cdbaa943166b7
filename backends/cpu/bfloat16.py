"""Arithmetic on bfloat16: products of pairs that add up in float32, and rounding.

Two neighbours of the reduced axis share a 32-bit lane, the first in the low half. A processor with AVX512_BF16
multiplies both halves of a lane and adds the products to a float32 in one instruction (`vdpbf16ps`), and rounds a
vector in one (`vcvtneps2bf16`). Both take numbers below 2^-126 (denormal ones) for zero. Elsewhere the halves are
widened, which is exact, and multiplied as float32.

TVM knows neither instruction. They are brought in as functions in LLVM's own language, which LLVM then inlines.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Op, StringImm

from backends.cpu import byte_packing, tables
from backends.cpu.amounts import element_bytes
from backends.cpu.operations import OPAQUE, OPAQUE_IR, operation
from backends.cpu.quads import definitions
from backends.relax.loops import BufferLoad, Expr, Stmt, TensorLoad

__all__ = ["add_products", "imported", "is_pair_product", "neighbours", "pair", "pair_product", "rounded"]

_PRODUCT = "tersor.pair_product"
_ROUND = "tersor.round_to_bfloat16"
_LANES = 16
"""Pairs in a vector of `vdpbf16ps`."""
_ROUNDED_LANES = (1, 2, 4, 8, 16, 32)

_PRODUCT_IR = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x float> @tersor_pair_product(<16 x float> %sum, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sum, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %r
}
"""

_ROUND_IR = """
define {bits} @tersor_round_{lanes}({wide} %x) alwaysinline {{
  %r = fptrunc {wide} %x to {narrow}
  %bits = bitcast {narrow} %r to {bits}
  ret {bits} %bits
}}
"""


def _operation(name: str) -> Op:
    return operation(name, _LOWERED[name], vectorizable=name == _ROUND)


def pair_product(total: Expr, a: Expr, b: Expr) -> Expr:
    """`total` plus the products of both halves of `a` and `b`, for `half.computed_in_float32` to write out.

    Args:
        total: bfloat16 in name: the kernel's own buffers are float32.
        a: int32, each lane a pair of bfloat16.
        b: the same.
    """
    return tirx.call_intrin(str(total.expr_ty()), _operation(_PRODUCT), total, a, b)


def pair(first: Expr, second: Expr | None) -> Expr:
    """Two bfloat16 (or vectors of them) as one 32-bit integer; zero in place of a second one that there is not."""
    low = _bits(first)
    return low if second is None else tirx.bitwise_or(low, tirx.shift_left(_bits(second), _number(16, low)))


def neighbours(load: TensorLoad, start: Expr, lanes: int = 1) -> Expr:
    """Elements of bfloat16 (or bytes) that lie next to each other, as 32-bit integers of two (or of four).

    Args:
        load: any element of the row.
        start: the first one's last index.
        lanes: how many integers.
    """
    count = lanes * (4 // element_bytes(load.source.dtype))
    elements = BufferLoad(load.source, [*load.indices[:-1], tirx.Ramp(start, tirx.const(1, "int64"), count)])
    return tirx.reinterpret("int32" if lanes == 1 else f"int32x{lanes}", elements)


def is_pair_product(value: Expr) -> bool:
    """Whether the expression is a call of `pair_product`."""
    return isinstance(value, Call) and value.op.same_as(_operation(_PRODUCT))


def add_products(total: Expr, a: Expr, b: Expr, *, native: bool) -> Expr:
    """The same on a float32 total.

    Args:
        total: float32.
        a: int32, each lane a pair of bfloat16.
        b: the same.
        native: whether the processor has AVX512_BF16.
    """
    if native and str(total.expr_ty()) == f"float32x{_LANES}":
        return tirx.call_intrin(str(total.expr_ty()), _operation(_PRODUCT), total, a, b)
    return total + _low(a) * _low(b) + _high(a) * _high(b)


def rounded(value: Expr) -> Expr:
    """A float32 rounded to the nearest bfloat16, ties to even, as uint16; for processors with AVX512_BF16."""
    return tirx.call_intrin(_like(value, "uint16"), _operation(_ROUND), value)


def imported(body: Stmt) -> Stmt:
    """The body of a function with the definitions of what it calls."""
    called: set[str] = set()
    tvm_ffi.structural_walk(body, (Call, lambda call: called.add(str(getattr(call.op, "name", "")))))
    needed = [_PRODUCT_IR] if _PRODUCT in called else []
    needed += [_round_ir(lanes) for lanes in _ROUNDED_LANES] if _ROUND in called else []
    needed += definitions(called) + tables.definitions(called) + byte_packing.definitions(called)
    needed += [OPAQUE_IR] if OPAQUE in called else []
    if not needed:
        return body
    return tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", StringImm("".join(needed)), body)


def _low(pairs: Expr) -> Expr:
    return tirx.reinterpret(_like(pairs, "float32"), tirx.shift_left(pairs, _number(16, pairs)))


def _high(pairs: Expr) -> Expr:
    return tirx.reinterpret(_like(pairs, "float32"), tirx.bitwise_and(pairs, _number(-65536, pairs)))


def _bits(value: Expr) -> Expr:
    return tirx.Cast(_like(value, "int32"), tirx.reinterpret(_like(value, "uint16"), value))


def _number(value: int, like: Expr) -> Expr:
    return tirx.const(value, str(like.expr_ty()))


def _like(value: Expr, element: str) -> str:
    """A type with as many lanes as the value's."""
    _, x, lanes = str(value.expr_ty()).partition("x")
    return f"{element}{x}{lanes}"


def _product_function(call: Call) -> Expr:
    return tirx.call_pure_extern(str(call.expr_ty()), "tersor_pair_product", *call.args)


def _round_function(call: Call) -> Expr:
    lanes = str(call.expr_ty()).partition("x")[2] or "1"
    return tirx.call_pure_extern(str(call.expr_ty()), f"tersor_round_{lanes}", *call.args)


def _round_ir(lanes: int) -> str:
    def vector(element: str) -> str:
        return element if lanes == 1 else f"<{lanes} x {element}>"

    return _ROUND_IR.format(lanes=lanes, wide=vector("float"), narrow=vector("bfloat"), bits=vector("i16"))


_LOWERED = {_PRODUCT: _product_function, _ROUND: _round_function}
"""What becomes of an operation when everything else has been lowered."""
