// A product of bf16 [T, K] with a weight [N, K] that was packed in place.
//
// Packed: panels of 32 columns of the product (rows of the weight), one after the other. A panel
// holds for each pair of inputs k, k+1 the two values of its first column, of its second one, …:
// what one vdpbf16ps, and each row of a tile of AMX, takes. The last panel is as narrow as N leaves
// it, so that packed bytes are plain bytes.
#pragma once

#include "common.h"

namespace tessera {

constexpr int64_t kPanel = 32;  // columns

struct Product {
  const bf16* x;
  int64_t rows, x_stride, pairs;
  const bf16* weight;
  int64_t columns;
  const bf16* bias;
  char* out;
  bool wide;  // results stay float32

  int64_t out_bytes() const { return wide ? sizeof(float) : sizeof(bf16); }
  int64_t out_stride() const { return columns * out_bytes(); }
  int64_t panels() const { return (columns + kPanel - 1) / kPanel; }
  int64_t width(int64_t panel) const { return std::min(kPanel, columns - panel * kPanel); }
  const bf16* panel_weight(int64_t panel) const { return weight + panel * kPanel * 2 * pairs; }
  const bf16* panel_bias(int64_t panel) const {
    return bias == nullptr ? nullptr : bias + panel * kPanel;
  }
  char* panel_out(int64_t row, int64_t panel) const {
    return out + (row * columns + panel * kPanel) * out_bytes();
  }
};

inline __mmask16 columns_of_half(int64_t width, int half) {
  const int64_t count = std::clamp<int64_t>(width - 16 * half, 0, 16);
  return (1u << count) - 1;
}

inline __m512 bias_of_half(const bf16* bias, int half, __mmask16 mask) {
  if (bias == nullptr) return _mm512_setzero_ps();
  const __m256i bits = _mm256_maskz_loadu_epi16(mask, bias + 16 * half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline void store_half(char* row, int half, __mmask16 mask, bool wide, __m512 sum) {
  if (wide) {
    _mm512_mask_storeu_ps(row + half * 64, mask, sum);
  } else {
    _mm256_mask_storeu_epi16(row + half * 32, mask, (__m256i)_mm512_cvtneps_pbh(sum));
  }
}

}  // namespace tessera
