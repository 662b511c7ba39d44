// Small products in cache: C [M, 16 v] += A [M, w words] × B [w words, 16 v].
//
// A word is 32 bits: one float, or two bf16 that are multiplied with two and summed (vdpbf16ps).
// Each element of C is summed word by word in one lane, so that it is the same whatever M is, and
// words of zeros at the end change nothing.
#pragma once

#include "vectors.h"

namespace tessera {

template <typename T>
constexpr int64_t kPerWord = 4 / sizeof(T);

template <typename T>
inline __m512 dot(__m512 sum, int32_t a, __m512i b) {
  const __m512i all = _mm512_set1_epi32(a);
  if constexpr (sizeof(T) == 4) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(all), _mm512_castsi512_ps(b), sum);
  } else {
    return _mm512_dpbf16_ps(sum, (__m512bh)all, (__m512bh)b);
  }
}

// Sizes in words; `more` adds to what C holds.
struct Product {
  const int32_t* a;
  int64_t a_stride;
  const int32_t* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int64_t words;
  bool more;
};

template <typename T, int R, int V>
inline void tile(const Product& p, int64_t row, int64_t column) {
  __m512 sum[R][V];
  float* c = p.c + row * p.c_stride + column;
  const int32_t* a = p.a + row * p.a_stride;
  const int32_t* b = p.b + column;
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      sum[r][v] =
          p.more ? _mm512_loadu_ps(c + r * p.c_stride + v * kLanes) : _mm512_setzero_ps();
    }
  }
  for (int64_t w = 0; w < p.words; ++w) {
    __m512i wide[V];
    for (int v = 0; v < V; ++v) wide[v] = _mm512_loadu_si512(b + w * p.b_stride + v * kLanes);
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) sum[r][v] = dot<T>(sum[r][v], a[r * p.a_stride + w], wide[v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) _mm512_storeu_ps(c + r * p.c_stride + v * kLanes, sum[r][v]);
  }
}

template <typename T, int V>
inline void tile_rows(const Product& p, int64_t rows, int64_t column) {
  int64_t row = 0;
  for (; row + 6 <= rows; row += 6) tile<T, 6, V>(p, row, column);
  switch (rows - row) {
    case 5: return tile<T, 5, V>(p, row, column);
    case 4: return tile<T, 4, V>(p, row, column);
    case 3: return tile<T, 3, V>(p, row, column);
    case 2: return tile<T, 2, V>(p, row, column);
    case 1: return tile<T, 1, V>(p, row, column);
    default: return;
  }
}

template <typename T>
inline void multiply(const Product& p, int64_t rows, int64_t vectors) {
  int64_t v = 0;
  for (; v + 4 <= vectors; v += 4) tile_rows<T, 4>(p, rows, v * kLanes);
  switch (vectors - v) {
    case 3: return tile_rows<T, 3>(p, rows, v * kLanes);
    case 2: return tile_rows<T, 2>(p, rows, v * kLanes);
    case 1: return tile_rows<T, 1>(p, rows, v * kLanes);
    default: return;
  }
}

// Up to 16 words of a row of `count` elements from `first` on, zeros beyond; no row: zeros.
inline __m512i words(const float* row, int64_t first, int64_t count) {
  if (row == nullptr) return _mm512_setzero_si512();
  return _mm512_castps_si512(_mm512_maskz_loadu_ps(lanes(count - first), row + first));
}

inline __m512i words(const BFloat16* row, int64_t first, int64_t count) {
  if (row == nullptr || count <= first) return _mm512_setzero_si512();
  const int64_t left = count - first;
  const __mmask32 mask = left >= 32 ? ~__mmask32(0) : (__mmask32(1) << left) - 1;
  return _mm512_maskz_loadu_epi16(mask, row + first);
}

// 16 × 16 words; afterwards row i holds what was column i.
inline void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    for (int h = 0; h < 2; ++h) {
      r[4 * i + 2 * h] = _mm512_unpacklo_epi64(t[4 * i + h], t[4 * i + 2 + h]);
      r[4 * i + 2 * h + 1] = _mm512_unpackhi_epi64(t[4 * i + h], t[4 * i + 2 + h]);
    }
  }
  // r[4 i + c] now holds, in its 128-bit lane l, column 4 l + c of rows 4 i to 4 i + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512i low = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x44);
    const __m512i high = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xee);
    const __m512i low2 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x44);
    const __m512i high2 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xee);
    t[c] = _mm512_shuffle_i32x4(low, low2, 0x88);
    t[4 + c] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    t[8 + c] = _mm512_shuffle_i32x4(high, high2, 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// `keys` rows (a multiple of 16) of `dim` elements → [words, stride], a key in each column.
// `between` is called for every 16 × 16 words.
template <typename T, typename F>
inline void pack_columns(const T* const* rows, int64_t keys, int64_t dim, int32_t* to,
                         int64_t stride, const F& between) {
  for (int64_t first = 0; first < keys; first += kLanes) {
    for (int64_t at = 0; at < dim; at += kLanes * kPerWord<T>) {
      __m512i r[16];
      for (int i = 0; i < 16; ++i) r[i] = words(rows[first + i], at, dim);
      between();
      transpose(r);
      int32_t* out = to + at / kPerWord<T> * stride + first;
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * stride, r[i]);
    }
  }
}

// `keys` rows (even) of `dim` elements → [keys / elements of a word, stride], a channel in each
// column: a word holds that channel of the keys that are multiplied together. `between` is called
// for every two keys.
template <typename F>
inline void pack_rows(const float* const* rows, int64_t keys, int64_t dim, int32_t* to,
                      int64_t stride, const F& between) {
  for (int64_t n = 0; n < keys; ++n) {
    if (n % 2 == 0) between();
    for (int64_t at = 0; at < dim; at += kLanes) {
      _mm512_storeu_si512(to + n * stride + at, words(rows[n], at, dim));
    }
  }
}

template <typename F>
inline void pack_rows(const BFloat16* const* rows, int64_t keys, int64_t dim, int32_t* to,
                      int64_t stride, const F& between) {
  const __m512i order = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i order_high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (int64_t n = 0; n < keys; n += 2) {
    between();
    for (int64_t at = 0; at < dim; at += 2 * kLanes) {
      const __m512i even = words(rows[n], at, dim), odd = words(rows[n + 1], at, dim);
      const __m512i low = _mm512_unpacklo_epi16(even, odd);
      const __m512i high = _mm512_unpackhi_epi16(even, odd);
      int32_t* out = to + n / 2 * stride + at;
      _mm512_storeu_si512(out, _mm512_permutex2var_epi64(low, order, high));
      _mm512_storeu_si512(out + kLanes, _mm512_permutex2var_epi64(low, order_high, high));
    }
  }
}

}  // namespace tessera
