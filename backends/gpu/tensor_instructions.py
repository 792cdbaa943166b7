"""NVIDIA's instructions for tensor cores and asynchronous copies, as functions that kernels call.

Kernels call them by name; their bodies are CUDA, and stand in front of a program that uses them. Fragments are the
32-bit registers of the threads of a warp, as the PTX ISA lays them out (sections on `mma` and `ldmatrix`). Shared
memory is counted in words of 32 bits.

    tersor_copy(to, from, index, bytes, exists)   16, 8 or 4 bytes from memory, elements of `size` bytes, or zeros
    tersor_commit(), tersor_wait(n)               what was copied so far is a group; all groups but the last n are there
    tersor_matrices(a, from)                      four 8 x 8 matrices of 16-bit elements; a thread gives a row's address
    tersor_matrices_turned(b, from)               the same, each transposed
    tersor_product_f16, _bf16(sums, a, b)         16 x 8 sums of float32 += a (16 x 16) x b (16 x 8)
    tersor_product_u8(sums, a, b)                 16 x 8 sums of int32 += a (16 x 32 of uint8) x b (32 x 8 of int8)
    tersor_pair_f16, _bf16(low, high)             two float32, rounded, in 32 bits
    tersor_quad_max, _sum(x)                      of the four neighbours that share a row of sums, to each of them
"""

from __future__ import annotations

import re

from tvm import tirx
from tvm.tirx import BufferLoad, Expr, Stmt, Var

from backends.gpu.threads import Place, i32

__all__ = ["PRODUCTS", "commit", "copy", "matrices", "multiply", "pair", "quad", "wait", "with_instructions"]

PRODUCTS = {"float16": "tersor_product_f16", "bfloat16": "tersor_product_bf16", "uint8": "tersor_product_u8"}
"""The product of each type that tensor cores multiply."""

_PRODUCT = """__device__ __forceinline__ void tersor_product_NAME(float* d, const unsigned* a, const unsigned* b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.NAME.NAME.f32 "
    "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
"""
_BYTES = """__device__ __forceinline__ void tersor_product_u8(int* d, const unsigned* a, const unsigned* b) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
    "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
    : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
"""
_MATRICES = """__device__ __forceinline__ void tersor_matricesNAME(unsigned* a, const unsigned* from) {
  unsigned place = (unsigned)__cvta_generic_to_shared(from);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4TURN.shared.b16 {%0,%1,%2,%3}, [%4];"
    : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(place));
}
"""
_PAIR = """__device__ __forceinline__ unsigned tersor_pair_NAME(float low, float high) {
  unsigned both;
  asm("cvt.rn.NAMEx2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
"""
_QUAD = """__device__ __forceinline__ void tersor_quad_NAME(float* x) {
  *x = FUNCTION(*x, __shfl_xor_sync(0xffffffffu, *x, 1));
  *x = FUNCTION(*x, __shfl_xor_sync(0xffffffffu, *x, 2));
}
"""
_CUDA = (
    _MATRICES.replace("NAME", "").replace("TURN", "")
    + _MATRICES.replace("NAME", "_turned").replace("TURN", ".trans")
    + _PRODUCT.replace("NAME", "f16")
    + _PRODUCT.replace("NAME", "bf16")
    + _BYTES
    + _PAIR.replace("NAME", "f16")
    + _PAIR.replace("NAME", "bf16")
    + _QUAD.replace("NAME", "max").replace("FUNCTION(", "fmaxf(")
    + _QUAD.replace("NAME", "sum").replace("FUNCTION(", "__fadd_rn(")
    + """template <int bytes>
__device__ __forceinline__ void tersor_copy_bytes(unsigned* to, const void* from, bool exists) {
  unsigned place = (unsigned)__cvta_generic_to_shared(to);
  int size = exists ? bytes : 0;  // the rest is filled with zeros
  if (bytes == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(place), "l"(from), "r"(size));
  if (bytes == 8) asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" :: "r"(place), "l"(from), "r"(size));
  if (bytes == 4) asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" :: "r"(place), "l"(from), "r"(size));
}
#define tersor_copy(to, from, index, bytes, exists) \\
  tersor_copy_bytes<bytes>(to, (from) + ((exists) ? (index) : 0), exists)
#define tersor_commit() asm volatile("cp.async.commit_group;")
#define tersor_wait(n) asm volatile("cp.async.wait_group %0;" :: "n"(n) : "memory")
"""
)
_KERNEL = re.compile(r'^extern "C" __global__', re.MULTILINE)


def with_instructions(source: str) -> str:
    """The CUDA program with the functions that it calls in front of its kernels."""
    first = _KERNEL.search(source)
    return (
        source
        if first is None or "tersor_" not in source
        else source[: first.start()] + _CUDA + source[first.start() :]
    )


def _call(name: str, *arguments: Expr) -> Stmt:
    return tirx.Evaluate(tirx.call_extern("void", name, *arguments))


def _address(buffer: Var, place: Place) -> Expr:
    return tirx.address_of(BufferLoad(buffer, [i32(place)]))


def copy(memory: Var, word: Expr, source: Var, index: Expr, size: int, exists: Expr) -> Stmt:
    """Ask for `size` bytes at an element of a buffer in memory to come to a word of shared memory."""
    return _call("tersor_copy", _address(memory, word), source.data, index, i32(size), exists)


def commit() -> Stmt:
    """What was asked for since the last commit is a group."""
    return _call("tersor_commit")


def wait(groups: int) -> Stmt:
    """Until all but the last so many groups have come."""
    return _call("tersor_wait", i32(groups))


def matrices(target: Var, place: Place, memory: Var, word: Expr, *, turned: bool = False) -> Stmt:
    """Four matrices to four registers; `word`: of the row that this thread names."""
    return _call(f"tersor_matrices{'_turned' if turned else ''}", _address(target, place), _address(memory, word))


def multiply(dtype: str, sums: Var, at: Place, a: Var, a_at: Place, b: Var, b_at: Place) -> Stmt:
    """One instruction of a tensor core."""
    return _call(PRODUCTS[dtype], _address(sums, at), _address(a, a_at), _address(b, b_at))


def pair(dtype: str, low: Expr, high: Expr) -> Expr:
    """Two float32 as neighbours of 16 bits in a uint32."""
    return tirx.call_pure_extern("uint32", f"tersor_pair_{'f16' if dtype == 'float16' else 'bf16'}", low, high)


def quad(function: str, values: Var, place: Place) -> Stmt:
    """The `"max"` or `"sum"` of a float32 of four threads, in its place in each of them."""
    return _call(f"tersor_quad_{function}", _address(values, place))
