// The products of tiles.h by AMX: bf16, words a multiple of 16, and rows as `padded` has them.
#pragma once

#include "amx.h"
#include "tiles.h"

namespace tessera::amx {

// Rows that must be there: those beyond what is asked for may hold anything.
inline int64_t padded(int64_t rows) {
  return rows <= kRows ? rows : (rows + kRows - 1) / kRows * kRows;
}

#ifdef __AMX_BF16__

// Tiles 0 to 3 are sums side by side, 4 is A, 5 to 7 are of B.
inline Rows shape(int64_t rows) {
  const int64_t r = rows < kRows ? rows : kRows;
  return {r, r, r, r, r, kRows, kRows, kRows};
}

template <int V>
inline void tile(const Product& p, int64_t row, int64_t column) {
  float* c = p.c + row * p.c_stride + column;
  const int64_t c_bytes = 4 * p.c_stride, b_bytes = 4 * p.b_stride;
  if (p.more) {
    _tile_loadd(0, c, c_bytes);
    if constexpr (V > 1) _tile_loadd(1, c + kWords, c_bytes);
    if constexpr (V > 2) _tile_loadd(2, c + 2 * kWords, c_bytes);
    if constexpr (V > 3) _tile_loadd(3, c + 3 * kWords, c_bytes);
  } else {
    _tile_zero(0);
    if constexpr (V > 1) _tile_zero(1);
    if constexpr (V > 2) _tile_zero(2);
    if constexpr (V > 3) _tile_zero(3);
  }
  for (int64_t w = 0; w < p.words; w += kWords) {
    const int32_t* b = p.b + w * p.b_stride + column;
    _tile_loadd(4, p.a + row * p.a_stride + w, 4 * p.a_stride);
    _tile_loadd(5, b, b_bytes);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (V > 1) {
      _tile_loadd(6, b + kWords, b_bytes);
      _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (V > 2) {
      _tile_loadd(7, b + 2 * kWords, b_bytes);
      _tile_dpbf16ps(2, 4, 7);
    }
    if constexpr (V > 3) {
      _tile_loadd(5, b + 3 * kWords, b_bytes);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_stored(0, c, c_bytes);
  if constexpr (V > 1) _tile_stored(1, c + kWords, c_bytes);
  if constexpr (V > 2) _tile_stored(2, c + 2 * kWords, c_bytes);
  if constexpr (V > 3) _tile_stored(3, c + 3 * kWords, c_bytes);
}

inline void multiply(const Product& p, int64_t rows, int64_t vectors) {
  written();
  for (int64_t row = 0; row < rows; row += kRows) {
    for (int64_t v = 0; v < vectors; v += 4) {
      const int64_t column = v * kLanes;
      switch (vectors - v) {
        case 1: tile<1>(p, row, column); break;
        case 2: tile<2>(p, row, column); break;
        case 3: tile<3>(p, row, column); break;
        default: tile<4>(p, row, column);
      }
    }
  }
}

#endif

}  // namespace tessera::amx
