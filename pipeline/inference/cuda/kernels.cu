// Compiled by NVRTC when the engine is created, without headers. pipeline/inference/cuda/kernels.py describes each kernel.
// HALF_BITS: the bits of a 16-bit float: bfloat16 if BF16 is defined, else IEEE float16. All layouts are channels last.

#ifdef __CUDACC__  // tests run the kernels on the host, with conversions of their own (tests/support/cuda_on_host.h)
typedef unsigned short half_bits;

__device__ __forceinline__ float to_float(half_bits value) {
#ifdef BF16
  return __uint_as_float((unsigned int)value << 16);
#else
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
  return wide;
#endif
}

__device__ __forceinline__ half_bits to_half(float value) {
  half_bits narrow;
#ifdef BF16
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow) : "f"(value));
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(value));
#endif
  return narrow;
}

__device__ __forceinline__ half_bits to_float16(float value) {
  half_bits narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(value));
  return narrow;
}

#endif

union Eight {  // channels of a pixel, moved as 16 bytes
  uint4 bytes;
  half_bits values[8];
};

__device__ __forceinline__ float2 to_floats(unsigned int pair) { return make_float2(to_float(pair & 0xffff), to_float(pair >> 16)); }

__device__ __forceinline__ unsigned int to_halves(float low, float high) { return to_half(low) | (unsigned int)to_half(high) << 16; }

// The maximum of from[step * first] ... from[step * last] per channel; NaN counts as the largest value, as in PyTorch.
__device__ __forceinline__ Eight largest(const Eight* from, int first, int last, int step) {
  Eight best = from[step * first];
  for (int place = first + 1; place <= last; place++) {
    Eight other = from[step * place];
#pragma unroll
    for (int k = 0; k < 8; k++) {
      float here = to_float(best.values[k]), there = to_float(other.values[k]);
      if (there > here || there != there) best.values[k] = other.values[k];
    }
  }
  return best;
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

// features: (pixels, vectors_a_pixel); bias: (channels,) float; added: shaped like features, added after SiLU, or null.
// out: like features, but with a stride of out_pitch vectors between pixels: it may be a slice of wider pixels, or features itself.
extern "C" __global__ void bias_silu(const uint4* features, const float4* bias, const uint4* added, uint4* out, int vectors_a_pixel,
                                     int out_pitch, int vectors) {
  int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= vectors) return;
  int pixel = index / vectors_a_pixel, vector = index - pixel * vectors_a_pixel;
  Eight eight, other;
  eight.bytes = features[index];
  other.bytes = added ? added[index] : make_uint4(0, 0, 0, 0);
  float4 low = bias[vector * 2], high = bias[vector * 2 + 1];
  float own[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int k = 0; k < 8; k++) eight.values[k] = to_half(silu(to_float(eight.values[k]) + own[k]) + to_float(other.values[k]));
  out[(long long)pixel * out_pitch + vector] = eight.bytes;
}

// A depthwise 5x5 convolution with zero padding, then SiLU. A thread computes two channels (a pair) of four columns and
// walks down the rows: the weights stay in registers, and each loaded row contributes to five rows of results.
// features, out: (images, height, width, pairs); weights: (25, pairs); bias: (pairs,). gridDim: (columns x pairs, groups of rows, images).
#define COLUMNS 4
extern "C" __global__ void __launch_bounds__(128) depthwise_silu(const unsigned int* features, const float2* weights, const float2* bias,
                                                                 unsigned int* out, int height, int width, int pairs, int rows) {
  int index = blockIdx.x * blockDim.x + threadIdx.x;
  int pair = index % pairs, left = index / pairs * COLUMNS;
  if (left >= width) return;
  int top = blockIdx.y * rows, bottom = min(top + rows, height), row_pitch = width * pairs;
  const unsigned int* in = features + (long long)blockIdx.z * height * row_pitch + pair;
  out += (long long)blockIdx.z * height * row_pitch + pair;
  float2 w[25], sums[5][COLUMNS], start = bias[pair];
#pragma unroll
  for (int tap = 0; tap < 25; tap++) w[tap] = weights[tap * pairs + pair];
#pragma unroll
  for (int k = 0; k < 5; k++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) sums[k][c] = start;
  unsigned int next[COLUMNS + 4] = {};
  for (int y = top - 3; y < bottom + 2; y++) {  // compute row y while row y + 1 is loaded
    float2 row[COLUMNS + 4];
#pragma unroll
    for (int c = 0; c < COLUMNS + 4; c++) row[c] = to_floats(next[c]);
    bool there = y + 1 >= 0 && y + 1 < height;
#pragma unroll
    for (int c = 0; c < COLUMNS + 4; c++) {
      int x = left + c - 2;
      next[c] = there && x >= 0 && x < width ? in[(y + 1) * row_pitch + x * pairs] : 0u;
    }
    if (y < top - 2) continue;
#pragma unroll
    for (int k = 0; k < 5; k++) {  // results of row y - 2 + k
      if (y - 2 + k < top || y - 2 + k >= bottom) continue;
#pragma unroll
      for (int tap = 0; tap < 5; tap++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          sums[k][c].x += row[c + tap].x * w[(4 - k) * 5 + tap].x;
          sums[k][c].y += row[c + tap].y * w[(4 - k) * 5 + tap].y;
        }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      if (y - 2 >= top && left + c < width) out[(y - 2) * row_pitch + (left + c) * pairs] = to_halves(silu(sums[0][c].x), silu(sums[0][c].y));
#pragma unroll
      for (int k = 0; k < 4; k++) sums[k][c] = sums[k + 1][c];
      sums[4][c] = start;
    }
  }
}

// Max pools of 5x5, 9x9 and 13x13 cells, as three successive 5x5 pools. A block computes one vector of channels of one image.
// pixels: (images, height x width, 4 * vectors): the first quarter is the input; the pools are written to the other three.
#define MOST_POOLED_CELLS 1536
extern "C" __global__ void chained_pools(uint4* pixels, int height, int width, int vectors) {
  __shared__ Eight now[MOST_POOLED_CELLS], rows[MOST_POOLED_CELLS];
  int cells = height * width, pitch = 4 * vectors;
  uint4* own = pixels + (long long)blockIdx.y * cells * pitch + blockIdx.x;
  for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) now[cell].bytes = own[(long long)cell * pitch];
  for (int pool = 1; pool < 4; pool++) {
    __syncthreads();
    for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
      int x = cell % width;
      rows[cell] = largest(now + cell, max(-2, -x), min(2, width - 1 - x), 1);
    }
    __syncthreads();
    for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
      int y = cell / width;
      now[cell] = largest(rows + cell, max(-2, -y), min(2, height - 1 - y), width);
      own[(long long)cell * pitch + pool * vectors] = now[cell].bytes;
    }
  }
}

// Greedy non-maximum suppression within each label, best box first. One block per image, one thread per box, at most 512 boxes.
// boxes: (images, count) x1 y1 x2 y2; labels: (images, count); alive: the boxes to consider; kept: those that remain.
#define BOXES 512
#define WORDS (BOXES / 32)
extern "C" __global__ void __launch_bounds__(BOXES) greedy_nms(const float4* boxes, const long long* labels, const unsigned char* alive,
                                                               unsigned char* kept, int count, float threshold) {
  __shared__ float4 own[BOXES];
  __shared__ int label[BOXES];
  __shared__ unsigned int suppressed[BOXES][WORDS + 1];  // bits of the later boxes that a box suppresses; the last word is padding
  __shared__ unsigned int gone[WORDS];
  int box = threadIdx.x, first = blockIdx.x * count;
  bool there = box < count;
  own[box] = there ? boxes[first + box] : make_float4(0, 0, 0, 0);
  label[box] = there ? (int)labels[first + box] : -1;
  unsigned int living = __ballot_sync(0xffffffffu, there && alive[first + box]);
  if (box % 32 == 0) gone[box / 32] = ~living;
  __syncthreads();
  float4 mine = own[box];
  float area = __fmul_rn(mine.z - mine.x, mine.w - mine.y);  // rounded as in PyTorch: no fused multiply-add
  for (int word = 0; word < WORDS; word++) {
    unsigned int bits = 0;
    for (int bit = 0; bit < 32; bit++) {
      int other = word * 32 + bit;
      if (other <= box || label[other] != label[box]) continue;
      float4 b = own[other];
      float width = fmaxf(fminf(mine.z, b.z) - fmaxf(mine.x, b.x), 0.0f), height = fmaxf(fminf(mine.w, b.w) - fmaxf(mine.y, b.y), 0.0f);
      float both = __fmul_rn(width, height);
      if (both / (area + __fmul_rn(b.z - b.x, b.w - b.y) - both) > threshold) bits |= 1u << bit;
    }
    suppressed[box][word] = bits;
  }
  __syncthreads();
  if (box < 32) {  // one warp visits the remaining boxes; each lane holds the suppressed bits of 32 boxes
    unsigned int dead = box < WORDS ? gone[box] : 0;
    for (int word = 0; word < WORDS; word++) {
      unsigned int left = ~__shfl_sync(0xffffffffu, dead, word);
      while (left) {
        int bit = __ffs(left) - 1;
        if (box < WORDS) dead |= suppressed[word * 32 + bit][box];
        left = ~__shfl_sync(0xffffffffu, dead, word) & ~((2u << bit) - 1);
      }
    }
    if (box < WORDS) gone[box] = dead;
  }
  __syncthreads();
  if (there) kept[first + box] = !(gone[box / 32] >> (box % 32) & 1);
}

// bytes: (n, 3); mean, std: (3,) float; out: (n, 8), the last five channels zero.
extern "C" __global__ void normalise(const unsigned char* bytes, const float* mean, const float* std, uint4* out, int pixels) {
  int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= pixels) return;
  Eight eight;
  eight.bytes = make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int k = 0; k < 3; k++) eight.values[k] = to_half(((float)bytes[index * 3 + k] - mean[k]) / std[k]);
  out[index] = eight.bytes;
}

// The dynamic mask head for (images * slots) instances, one column of blocks each. Slots beyond the image's count are skipped; the
// masks of the others are stored one after another, each of the size of its image's grid.
// features: (images, cells, 8); first: (n, 8, 11) of 8 features, x, y and 1; second (n, 8, 8) with bias (n, 8); third (n, 8) with bias (n).
// counts, offsets (in cells): (images,) int64; grids: (images, 2) int64 width and height; masks: float16.
#define CELLS_PER_THREAD 4
extern "C" __global__ void instance_masks(const float* features, const float* first, const float* second, const float* second_bias,
                                          const float* third, const float* third_bias, const long long* counts,
                                          const long long* offsets, const long long* grids, half_bits* masks, int slots, int width,
                                          int cells, float step) {
  int instance = blockIdx.x, image = instance / slots, slot = instance % slots;
  int own_width = (int)grids[image * 2], own_cells = own_width * (int)grids[image * 2 + 1];
  int first_cell = blockIdx.y * blockDim.x * CELLS_PER_THREAD;
  if (slot >= counts[image] || first_cell >= own_cells) return;
  __shared__ float weights[8 * 11 + 8 * 8 + 8 + 8 + 1];
  float *w1 = weights, *w2 = w1 + 88, *b2 = w2 + 64, *w3 = b2 + 8, *b3 = w3 + 8;
  for (int i = threadIdx.x; i < 88; i += blockDim.x) w1[i] = first[instance * 88 + i];
  for (int i = threadIdx.x; i < 64; i += blockDim.x) w2[i] = second[instance * 64 + i];
  if (threadIdx.x < 8) {
    b2[threadIdx.x] = second_bias[instance * 8 + threadIdx.x];
    w3[threadIdx.x] = third[instance * 8 + threadIdx.x];
  }
  if (threadIdx.x == 0) *b3 = third_bias[instance];
  __syncthreads();
  half_bits* out = masks + offsets[image] + (long long)slot * own_cells;
  const float4* in = (const float4*)features + (long long)image * cells * 2;
  for (int turn = 0; turn < CELLS_PER_THREAD; turn++) {
    int own = first_cell + turn * blockDim.x + threadIdx.x;
    if (own >= own_cells) return;
    int row = own / own_width, column = own - row * own_width, cell = row * width + column;
    float4 low = in[cell * 2], high = in[cell * 2 + 1];
    float x = column * step, y = row * step;
    float one[8], two[8], result = *b3;
#pragma unroll
    for (int k = 0; k < 8; k++) {
      const float* w = w1 + k * 11;
      float sum = w[0] * low.x + w[1] * low.y + w[2] * low.z + w[3] * low.w + w[4] * high.x + w[5] * high.y + w[6] * high.z + w[7] * high.w;
      one[k] = fmaxf(sum + w[8] * x + w[9] * y + w[10], 0.0f);
    }
#pragma unroll
    for (int k = 0; k < 8; k++) {
      float sum = b2[k];
#pragma unroll
      for (int j = 0; j < 8; j++) sum += w2[k * 8 + j] * one[j];
      two[k] = fmaxf(sum, 0.0f);
    }
#pragma unroll
    for (int k = 0; k < 8; k++) result += w3[k] * two[k];
    out[own] = to_float16(fminf(fmaxf(result, -65504.0f), 65504.0f));
  }
}
