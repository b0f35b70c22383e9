// What pipeline/inference/cuda/kernels.cu needs to be C++ for the host: see cuda_on_host.py. A block's threads are threads, its blocks come in turn.
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#define __device__ static
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)
#define __shared__ static
#define __expf std::exp

using std::max;
using std::min;

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned int x, y, z, w; };
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) { return {x, y, z, w}; }

struct Place { int x, y, z; };
static thread_local Place threadIdx, blockIdx;
static Place blockDim;

struct Warp {
  std::barrier<> meeting{32};
  unsigned int values[32];
};
static std::unique_ptr<std::barrier<>> block_meeting;
static std::vector<std::unique_ptr<Warp>> warps;

static void __syncthreads() { block_meeting->arrive_and_wait(); }

static Warp& exchange(unsigned int value) {
  Warp& warp = *warps[threadIdx.x / 32];
  warp.meeting.arrive_and_wait();
  warp.values[threadIdx.x % 32] = value;
  warp.meeting.arrive_and_wait();
  return warp;
}

static unsigned int __shfl_sync(unsigned int, unsigned int value, int lane) { return exchange(value).values[lane]; }

static unsigned int __ballot_sync(unsigned int, bool voice) {
  Warp& warp = exchange(voice);
  unsigned int voices = 0;
  for (int lane = 0; lane < 32; lane++) voices |= warp.values[lane] << lane;
  return voices;
}

static float __fmul_rn(float one, float other) { return one * other; }

static int __ffs(unsigned int bits) { return __builtin_ffs((int)bits); }

typedef unsigned short half_bits;

static half_bits to_float16(float value) {
  _Float16 narrow = (_Float16)value;
  half_bits bits;
  std::memcpy(&bits, &narrow, 2);
  return bits;
}

static float to_float(half_bits bits) {
#ifdef BF16
  unsigned int wide_bits = (unsigned int)bits << 16;
  float wide;
  std::memcpy(&wide, &wide_bits, 4);
  return wide;
#else
  _Float16 narrow;
  std::memcpy(&narrow, &bits, 2);
  return (float)narrow;
#endif
}

static half_bits to_half(float value) {
#ifdef BF16
  unsigned int bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return 0x7fff;
  return (half_bits)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to the nearest, ties to even
#else
  return to_float16(value);
#endif
}

// Calls a kernel for each block of the grid with all its threads. `together`: they meet at barriers; else one after the other will do.
template <class... Arguments, size_t... Number>
static void start(void (*kernel)(Arguments...), void** arguments, std::index_sequence<Number...>, Place grid, int threads, bool together) {
  auto run = [&](Place block, int thread) {
    blockIdx = block, threadIdx = {thread, 0, 0};
    kernel(*(Arguments*)arguments[Number]...);
  };
  blockDim = {threads, 1, 1};
  for (int z = 0; z < grid.z; z++)
    for (int y = 0; y < grid.y; y++)
      for (int x = 0; x < grid.x; x++) {
        if (!together) {
          for (int thread = 0; thread < threads; thread++) run({x, y, z}, thread);
          continue;
        }
        block_meeting = std::make_unique<std::barrier<>>(threads);
        warps.clear();
        for (int warp = 0; warp * 32 < threads; warp++) warps.push_back(std::make_unique<Warp>());
        std::vector<std::jthread> all;
        for (int thread = 0; thread < threads; thread++)
          all.emplace_back([&, thread] {
            run({x, y, z}, thread);
            block_meeting->arrive_and_drop();
          });
      }
}

#define ENTRY(kernel, together)                                                                                        \
  template <class... Arguments>                                                                                        \
  static void start_##kernel(void (*function)(Arguments...), void** arguments, Place grid, int threads) {              \
    start(function, arguments, std::index_sequence_for<Arguments...>{}, grid, threads, together);                      \
  }                                                                                                                    \
  extern "C" void run_##kernel(int x, int y, int z, int threads, void** arguments) {                                   \
    start_##kernel(kernel, arguments, {x, y, z}, threads);                                                             \
  }
