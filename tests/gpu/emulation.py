"""The instructions of `backends.gpu.tensor_instructions` in plain OpenCL, as the PTX ISA says what each thread gets.

Threads of a warp exchange their registers through local memory. So a kernel that was written for tensor cores runs on
any device (or processor: `tests.gpu.host_cuda`), and its layouts of fragments are proved without an NVIDIA GPU.
"""

from __future__ import annotations

import re

__all__ = ["FUNCTIONS", "emulated"]

_KERNEL = re.compile(r"^(__kernel void \w+\(.*\) \{)$", re.MULTILINE)

FUNCTIONS = """
#define tersor_copy(to, from, index, bytes, exists) \\
  tersor_copy_bytes((__local uint*)(to), (__global const uchar*)((from) + ((exists) ? (index) : 0)), bytes, exists)
#define tersor_commit()
#define tersor_wait(n)
#define tersor_matrices(a, from) tersor_matrices_(a, from, tersor_scratch, 0)
#define tersor_matrices_turned(a, from) tersor_matrices_(a, from, tersor_scratch, 1)
#define tersor_product_f16(d, a, b) tersor_product_(d, a, b, (__local uint*)tersor_scratch, 0)
#define tersor_product_u8(d, a, b) tersor_product_u8_(d, a, b, (__local uint*)tersor_scratch)
#define tersor_product_bf16(d, a, b) tersor_product_(d, a, b, (__local uint*)tersor_scratch, 1)
#define tersor_quad_max(x) tersor_quad_(x, (__local float*)tersor_scratch, 1)
#define tersor_quad_sum(x) tersor_quad_(x, (__local float*)tersor_scratch, 0)

uint tersor_pair_f16(float low, float high) {
  ushort both[2];
  vstore_half_rte(low, 0, (half*)both);
  vstore_half_rte(high, 1, (half*)both);
  return both[0] | ((uint)both[1] << 16);
}

uint tersor_brain(float value) {
  uint bits = as_uint(value);
  return value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

uint tersor_pair_bf16(float low, float high) { return tersor_brain(low) | (tersor_brain(high) << 16); }

void tersor_quad_(float* x, __local float* scratch, int largest) {
  int thread = get_local_id(0);
  for (int step = 1; step < 4; step *= 2) {
    scratch[thread] = *x;
    barrier(CLK_LOCAL_MEM_FENCE);
    float other = scratch[thread ^ step];
    barrier(CLK_LOCAL_MEM_FENCE);
    *x = largest ? fmax(*x, other) : *x + other;
  }
}

void tersor_copy_bytes(__local uint* to, __global const uchar* from, int bytes, int exists) {
  for (int i = 0; i < bytes / 4; ++i) to[i] = exists ? as_uint(vload4(i, from)) : 0u;
}

void tersor_matrices_(uint* a, __local const uint* from, __local ulong* scratch, int turned) {
  int thread = get_local_id(0), warp = thread / 32 * 32, lane = thread % 32;
  scratch[thread] = (ulong)from;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (int j = 0; j < 4; ++j) {
    int first = warp + 8 * j, column = 2 * (lane % 4);
    __local const ushort* row = (__local const ushort*)scratch[first + lane / 4];
    __local const ushort* even = (__local const ushort*)scratch[first + column];
    __local const ushort* odd = (__local const ushort*)scratch[first + column + 1];
    uint low = turned ? even[lane / 4] : row[column], high = turned ? odd[lane / 4] : row[column + 1];
    a[j] = low | (high << 16);
  }
  barrier(CLK_LOCAL_MEM_FENCE);
}

float tersor_element(uint word, int high, int brain) {
  ushort bits = high ? word >> 16 : word & 0xffff;
  return brain ? as_float((uint)bits << 16) : vload_half(0, (const half*)&bits);
}

void tersor_product_(float* d, const uint* a, const uint* b, __local uint* scratch, int brain) {
  int thread = get_local_id(0), warp = thread / 32 * 32, lane = thread % 32;
  for (int i = 0; i < 4; ++i) scratch[thread * 6 + i] = a[i];
  for (int i = 0; i < 2; ++i) scratch[thread * 6 + 4 + i] = b[i];
  barrier(CLK_LOCAL_MEM_FENCE);
  for (int i = 0; i < 4; ++i) {
    int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 16; ++k) {
      uint left = scratch[(warp + row % 8 * 4 + k % 8 / 2) * 6 + row / 8 + k / 8 * 2];
      uint right = scratch[(warp + column * 4 + k % 8 / 2) * 6 + 4 + k / 8];
      d[i] += tersor_element(left, k % 2, brain) * tersor_element(right, k % 2, brain);
    }
  }
  barrier(CLK_LOCAL_MEM_FENCE);
}

void tersor_product_u8_(int* d, const uint* a, const uint* b, __local uint* scratch) {
  int thread = get_local_id(0), warp = thread / 32 * 32, lane = thread % 32;
  for (int i = 0; i < 4; ++i) scratch[thread * 6 + i] = a[i];
  for (int i = 0; i < 2; ++i) scratch[thread * 6 + 4 + i] = b[i];
  barrier(CLK_LOCAL_MEM_FENCE);
  for (int i = 0; i < 4; ++i) {
    int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 32; ++k) {
      uint left = scratch[(warp + row % 8 * 4 + k % 16 / 4) * 6 + row / 8 + k / 16 * 2];
      uint right = scratch[(warp + column * 4 + k % 16 / 4) * 6 + 4 + k / 16];
      d[i] += (int)(uchar)(left >> (k % 4 * 8)) * (int)(char)(right >> (k % 4 * 8));
    }
  }
  barrier(CLK_LOCAL_MEM_FENCE);
}
"""


def emulated(source: str) -> str:
    """The OpenCL program with the functions that its kernels call, if they call any."""
    if "tersor_product_" not in source:
        return source
    return FUNCTIONS + _KERNEL.sub(r"\1\n  __local ulong tersor_scratch[256 * 3];", source)
