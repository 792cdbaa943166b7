"""Vectors of float32 rounded to bytes and laid side by side, by x86's packing instructions.

Up to four vectors become one of bytes: each number is rounded to a whole one, ties to even, and moved; two instructions
narrow pairs of vectors to 16 bits and a third narrows both pairs to 8, and all of them saturate, so that no number has
to be bounded beforehand. They work within 128 bits; one permutation brings the bytes in order. Narrowing each vector by
itself takes twice as many instructions, of more parts, and as many stores as there are vectors.

TVM knows none of these instructions; see `backends.cpu.quads`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Call, Op

from backends.cpu.operations import operation
from backends.relax.loops import Expr
from optimizer.target import Cpu

__all__ = ["TOGETHER", "definitions", "packed_bytes", "packs"]

TOGETHER = (4, 2, 1)
"""How many vectors are packed at a time."""
_PREFIX = "tersor.packed_bytes_"
_MOVED = {"uint8": "usw", "int8": "ssw"}
_LANES = {
    16: ("avx512.mask.cvtps2dq.512", ", <16 x i32> zeroinitializer, i16 -1, i32 4", "avx512.packssdw.512"),
    8: ("avx.cvt.ps2dq.256", "", "avx2.packssdw"),
    4: ("sse2.cvtps2dq", "", "sse2.packssdw.128"),
}
"""By the lanes of a vector: the conversion, what it takes besides the vector, and the first packing instruction."""
_MASKED = {16: ", <16 x i32>, i16, i32"}
_NARROW = {16: "avx512.pack{kind}b.512", 8: "avx2.pack{kind}b", 4: "sse2.pack{kind}b.128"}


def packs(cpu: Cpu) -> bool:
    """Whether the processor has the instructions, for vectors as long as its registers."""
    return cpu.architecture == "x86_64" and cpu.lanes in _LANES


def packed_bytes(vectors: Sequence[Expr], dtype: str, more: int) -> Expr:
    """The bytes of vectors of float32, one after the other.

    Args:
        vectors: as many as one of `TOGETHER`, none of their numbers 2**31 or above; what lies below -2**31, or is no
            number, becomes the lowest byte.
        dtype: "uint8" or "int8".
        more: is added to the rounded numbers, 0 or a little above.
    """
    lanes = int(str(vectors[0].expr_ty()).partition("x")[2])
    result = f"{dtype}x{lanes * len(vectors)}"
    return tirx.call_intrin(result, _operation(f"{dtype}_{lanes}_{len(vectors)}"), *vectors, tirx.const(more, "int32"))


def definitions(called: set[str]) -> list[str]:
    """The functions, in LLVM's language, behind the operations that are called."""
    found, declared = [], set()
    for operator in sorted(name for name in called if name.startswith(_PREFIX)):
        dtype, lanes, count = operator.removeprefix(_PREFIX).split("_")
        declarations, function = _function(dtype, int(lanes), int(count))
        declared |= set(declarations)
        found.append(function)
    return [*sorted(declared), *found]


def _operation(name: str) -> Op:
    return operation(_PREFIX + name, _lowered)


def _lowered(call: Call) -> Expr:
    name = str(call.op.name).replace(".", "_")
    return tirx.call_pure_extern(str(call.expr_ty()), name, *call.args)


@functools.cache
def _function(dtype: str, lanes: int, count: int) -> tuple[list[str], str]:
    """What it declares, and its definition."""
    convert, options, pack = _LANES[lanes]
    narrow = _NARROW[lanes].format(kind=_MOVED[dtype])
    whole, words, octets = f"<{lanes} x i32>", f"<{2 * lanes} x i16>", f"<{4 * lanes} x i8>"
    floats, result = f"<{lanes} x float>", f"<{lanes * count} x i8>"
    declarations = [
        f"declare {whole} @llvm.x86.{convert}({floats}{_MASKED.get(lanes, '')})\n",
        f"declare {words} @llvm.x86.{pack}({whole}, {whole})\n",
        f"declare {octets} @llvm.x86.{narrow}({words}, {words})\n",
    ]
    parameters = ", ".join(f"{floats} %x{i}" for i in range(count))
    lines = [
        f"define {result} @tersor_packed_bytes_{dtype}_{lanes}_{count}({parameters}, i32 %more) alwaysinline {{",
        f"  %one = insertelement {whole} poison, i32 %more, i64 0",
        f"  %each = shufflevector {whole} %one, {whole} poison, {whole} zeroinitializer",
    ]
    for i in range(count):
        lines += [
            f"  %d{i} = call {whole} @llvm.x86.{convert}({floats} %x{i}{options})",
            f"  %m{i} = add {whole} %d{i}, %each",
        ]
    pairs = [(f"%m{i}", f"%m{min(i + 1, count - 1)}") for i in range(0, count, 2)]
    lines += [f"  %w{i} = call {words} @llvm.x86.{pack}({whole} {a}, {whole} {b})" for i, (a, b) in enumerate(pairs)]
    groups = lanes // 4
    places = ", ".join(f"i32 {4 * group + vector}" for vector in range(count) for group in range(groups))
    size = groups * count
    lines += [
        f"  %b = call {octets} @llvm.x86.{narrow}({words} %w0, {words} %w{len(pairs) - 1})",
        f"  %q = bitcast {octets} %b to {whole}",
        f"  %p = shufflevector {whole} %q, {whole} poison, <{size} x i32> <{places}>",
        f"  %r = bitcast <{size} x i32> %p to {result}",
        f"  ret {result} %r",
        "}\n",
    ]
    return declarations, "\n".join(lines)
