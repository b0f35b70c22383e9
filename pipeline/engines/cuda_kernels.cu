// Compiled when the engine is made, by NVRTC: pipeline/engines/cuda_kernels.py says what each is for. No headers are needed.
// HALF_BITS: 16-bit floats as they lie in memory; BF16 is defined for bfloat16, else they are IEEE float16. Channels come last everywhere.

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

union Eight {  // channels of a pixel, moved as 16 bytes
  uint4 bytes;
  half_bits values[8];
};

// features: (n, 8) vectors in place, n = pixels * (channels / 8); bias: (channels,) float.
extern "C" __global__ void bias_silu(uint4* features, const float* bias, int vectors_a_pixel, int vectors) {
  int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= vectors) return;
  Eight eight;
  eight.bytes = features[index];
  const float* own = bias + (index % vectors_a_pixel) * 8;
#pragma unroll
  for (int k = 0; k < 8; k++) {
    float x = to_float(eight.values[k]) + own[k];
    eight.values[k] = to_half(x / (1.0f + __expf(-x)));
  }
  features[index] = eight.bytes;
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

// The dynamic mask head for (images * slots) instances, one row of blocks each; those beyond their image's count are left out, and the
// others' masks lie side by side.
// features: (images, cells, 8); first: (n, 8, 11) of 8 features, x, y and 1; second (n, 8, 8) with bias (n, 8); third (n, 8) with bias (n).
// counts, offsets: (images,) int64; masks: (n, cells) float16.
#define CELLS_A_THREAD 4
extern "C" __global__ void instance_masks(const float* features, const float* first, const float* second, const float* second_bias,
                                          const float* third, const float* third_bias, const long long* counts,
                                          const long long* offsets, half_bits* masks, int slots, int width, int cells, float step) {
  int instance = blockIdx.y, image = instance / slots, slot = instance % slots;
  if (slot >= counts[image]) return;
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
  half_bits* out = masks + (offsets[image] + slot) * (long long)cells;
  const float4* in = (const float4*)features + (long long)image * cells * 2;
  int start = blockIdx.x * blockDim.x * CELLS_A_THREAD + threadIdx.x;
  for (int turn = 0; turn < CELLS_A_THREAD; turn++) {
    int cell = start + turn * blockDim.x;
    if (cell >= cells) return;
    float4 low = in[cell * 2], high = in[cell * 2 + 1];
    float x = (cell % width) * step, y = (cell / width) * step;
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
    out[cell] = to_float16(fminf(fmaxf(result, -65504.0f), 65504.0f));
  }
}
