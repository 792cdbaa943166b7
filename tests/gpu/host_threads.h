// Enough of CUDA's language to run a kernel on a processor: a block's threads are fibers, which meet at barriers.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Shared memory is static: blocks run one after the other.

struct Three { unsigned x, y, z; };
static Three threadIdx, blockIdx;

#define VECTORS(name, type)                                                            \
  struct name##2 { type x, y; };                                                       \
  struct name##4 { type x, y, z, w; };                                                 \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                     \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
VECTORS(float, float)
VECTORS(int, int)
VECTORS(uint, unsigned)
VECTORS(char, signed char)
VECTORS(uchar, unsigned char)
VECTORS(longlong, long long)

template <class A, class B> inline std::common_type_t<A, B> max(A a, B b) { return a > b ? a : b; }
template <class A, class B> inline std::common_type_t<A, B> min(A a, B b) { return a < b ? a : b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define CUDART_INF_F INFINITY
#define CUDART_INF double(INFINITY)
#define CUDART_NAN_F NAN
inline float __expf(float x) { return expf(x); }

// What the emulation of tensor cores, which is OpenCL, asks of a device.
#define __local
#define __global
#define uint unsigned
#define uchar unsigned char
#define ushort unsigned short
#define ulong unsigned long
#define CLK_LOCAL_MEM_FENCE
#define get_local_id(axis) int(threadIdx.x)
#define barrier(fence) __syncthreads()
static ulong tersor_scratch[1024 * 3];
inline uint vload4(int i, const uchar* from) { uint word; memcpy(&word, from + 4 * i, 4); return word; }
inline uint as_uint(uint word) { return word; }
inline uint as_uint(float value) { uint word; memcpy(&word, &value, 4); return word; }
inline float as_float(uint word) { float value; memcpy(&value, &word, 4); return value; }
struct half {
  ushort bits;
  half() = default;
  half(float value);
  operator float() const;
};
inline float vload_half(int i, const half* from) {
  int bits = from[i].bits, exponent = bits >> 10 & 31, rest = bits & 1023;
  float value = exponent == 0    ? ldexpf(rest, -24)
                : exponent == 31 ? (rest ? NAN : INFINITY)
                                 : ldexpf(rest | 1024, exponent - 25);
  return bits >> 15 ? -value : value;
}
inline half::operator float() const { return vload_half(0, this); }
inline half::half(float value) {  // to the nearest, ties to even
  float size = fabsf(value);
  ushort sign = std::signbit(value) ? 0x8000 : 0;
  if (value != value) bits = 0x7fff;
  else if (size >= 65520.0f) bits = sign | 0x7c00;
  else if (size < 0x1p-14f) bits = sign | (ushort)rintf(size * 0x1p24f);
  else {
    uint word;
    memcpy(&word, &size, 4);
    bits = sign | (ushort)((word + 0xfff + (word >> 13 & 1) - (112u << 23)) >> 13);
  }
}
inline void vstore_half_rte(float value, int i, half* to) { to[i] = half(value); }
inline half __float2half_rn(float value) { return half(value); }
inline float __half2float(half value) { return value; }
inline void __syncthreads();

struct nv_bfloat16 {
  ushort bits;
  nv_bfloat16() = default;
  nv_bfloat16(float value) {  // to the nearest, ties to even
    uint word;
    memcpy(&word, &value, 4);
    bits = value != value ? 0x7fc0 : (word + 0x7fff + (word >> 16 & 1)) >> 16;
  }
  operator float() const { return as_float(uint(bits) << 16); }
};
inline nv_bfloat16 __float2bfloat16_rn(float value) { return nv_bfloat16(value); }

static ucontext_t scheduler, *current;

inline void __syncthreads() { swapcontext(current, &scheduler); }

static void (*body)(void**);
static void** parameters;
static bool done;

static void fiber() {
  body(parameters);
  done = true;
}

// Runs all blocks; false if some threads of a block end while others wait at a barrier.
static bool run(void (*kernel)(void**), void** given, const unsigned* grid, const unsigned* block) {
  const size_t threads = size_t(block[0]) * block[1] * block[2], stack = 1 << 16;
  std::vector<ucontext_t> contexts(threads);
  std::vector<char> stacks(threads * stack);
  body = kernel;
  parameters = given;
  for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x) {
        for (size_t i = 0; i < threads; ++i) {
          getcontext(&contexts[i]);
          contexts[i].uc_stack.ss_sp = &stacks[i * stack];
          contexts[i].uc_stack.ss_size = stack;
          contexts[i].uc_link = &scheduler;
          makecontext(&contexts[i], fiber, 0);
        }
        for (size_t ended = 0; ended == 0;) {
          for (size_t i = 0; i < threads; ++i) {
            threadIdx = {unsigned(i % block[0]), unsigned(i / block[0] % block[1]), unsigned(i / block[0] / block[1])};
            done = false;
            current = &contexts[i];
            swapcontext(&scheduler, current);
            ended += done;
          }
          if (ended != 0 && ended != threads) return false;
        }
      }
  return true;
}
