// Products by vdpbf16ps. Every element is summed pair by pair in the order of K whatever T and the
// threads are.
#pragma once

#include "products.h"

#include <array>
#include <cstring>
#include <utility>
#include <vector>

namespace tessera::vectors {

constexpr int64_t kTile = 12;        // rows: 2 · 12 sums, 2 weights and one input in registers
constexpr int64_t kPairs = 1024;     // pairs of inputs that a tile takes at once
constexpr int64_t kInputs = 96 * kPairs;  // pairs that a thread takes through its panels: of L2
constexpr int64_t kGroup = 16;       // panels whose sums are kept aside, where there are more pairs
constexpr int64_t kAhead = 2048;     // bytes that a single tile prefetches

// Where one tile reads and writes. `partial` keeps sums between blocks of pairs.
struct Tile {
  const bf16* x;
  int64_t x_stride;  // between rows; packed inputs have none
  const bf16* weight;
  int64_t width;  // columns of the panel
  int64_t pairs;
  const char* ahead;  // prefetched, one or two lines a pair
  bool first, last;
  float* partial;
  const bf16* bias;
  char* out;
  int64_t out_stride;  // bytes
  bool wide;
};

inline __m512bh as_pairs(__m512i bits) { return (__m512bh)bits; }

// R rows times one panel. `packed`: the inputs lie as [pairs][R][2].
template <int R, bool packed, bool whole, int lines>
__attribute__((always_inline)) inline void run_tile(const Tile& t) {
  const __mmask16 left = whole ? 0xffff : columns_of_half(t.width, 0);
  const __mmask16 right = whole ? 0xffff : columns_of_half(t.width, 1);
  __m512 sums[R][2];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    sums[r][0] = t.first ? _mm512_setzero_ps() : _mm512_loadu_ps(t.partial + r * kPanel);
    sums[r][1] = t.first ? _mm512_setzero_ps() : _mm512_loadu_ps(t.partial + r * kPanel + 16);
  }
  const bf16* weight = t.weight;
  const int64_t step = whole ? 2 * kPanel : 2 * t.width;
  const char* ahead = t.ahead;
  for (int64_t k = 0; k < t.pairs; ++k, weight += step) {
    if constexpr (lines > 0) {
      _mm_prefetch(ahead, lines > 1 ? _MM_HINT_T0 : _MM_HINT_T1);
      if constexpr (lines > 1) _mm_prefetch(ahead + 64, _MM_HINT_T0);
      ahead += 64 * lines;
    }
    const __m512bh w0 = as_pairs(whole ? _mm512_loadu_si512(weight)
                                       : _mm512_maskz_loadu_epi32(left, weight));
    const __m512bh w1 = as_pairs(whole ? _mm512_loadu_si512(weight + 32)
                                       : _mm512_maskz_loadu_epi32(right, weight + 32));
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const bf16* at = packed ? t.x + 2 * (k * R + r) : t.x + r * t.x_stride + 2 * k;
      int32_t pair;
      std::memcpy(&pair, at, sizeof pair);
      const __m512bh input = as_pairs(_mm512_set1_epi32(pair));
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], input, w0);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], input, w1);
    }
  }
  if (!t.last) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      _mm512_storeu_ps(t.partial + r * kPanel, sums[r][0]);
      _mm512_storeu_ps(t.partial + r * kPanel + 16, sums[r][1]);
    }
    return;
  }
  for (int half = 0; half < 2; ++half) {
    const __mmask16 mask = half ? right : left;
    const __m512 bias = bias_of_half(t.bias, half, mask);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      store_half(t.out + r * t.out_stride, half, mask, t.wide, _mm512_add_ps(sums[r][half], bias));
    }
  }
}

using RunTile = void (*)(const Tile&);

template <int R, bool packed, int lines>
void run_rows(const Tile& t) {
  if (t.width == kPanel) {
    run_tile<R, packed, true, lines>(t);
  } else {
    run_tile<R, packed, false, lines>(t);
  }
}

template <bool packed, int lines, int... R>
constexpr std::array<RunTile, kTile> tiles(std::integer_sequence<int, R...>) {
  return {run_rows<R + 1, packed, lines>...};
}

template <bool packed, int lines>
constexpr std::array<RunTile, kTile> kTiles =
    tiles<packed, lines>(std::make_integer_sequence<int, kTile>());

// Up to 12 rows: one tile a panel, the weights read once from memory.
inline void run_few(const Product& p, int64_t begin, int64_t end) {
  Tile t{.x = p.x, .x_stride = p.x_stride, .pairs = p.pairs, .first = true, .last = true};
  t.out_stride = p.out_stride();
  t.wide = p.wide;
  for (int64_t panel = begin; panel < end; ++panel) {
    t.weight = p.panel_weight(panel);
    t.width = p.width(panel);
    t.ahead = reinterpret_cast<const char*>(t.weight) + kAhead;
    t.bias = p.panel_bias(panel);
    t.out = p.panel_out(0, panel);
    kTiles<false, 2>[p.rows - 1](t);
  }
}

// Rows [r][2·k] as tiles [pairs][R][2].
inline void pack_inputs(const bf16* x, int64_t stride, int64_t rows, int64_t pairs, bf16* out) {
  constexpr int64_t at_once = 64;  // what is written stays in L1
  for (int64_t begin = 0; begin < pairs; begin += at_once) {
    const int64_t end = std::min(begin + at_once, pairs);
    for (int64_t r = 0; r < rows; ++r) {
      const bf16* row = x + r * stride;
      bf16* to = out + 2 * r;
      for (int64_t k = begin; k < end; ++k) std::memcpy(to + 2 * k * rows, row + 2 * k, 4);
    }
  }
}

// Panels [begin, end) for all rows: blocks of rows and pairs that stay in L2.
inline void run_many(const Product& p, int64_t begin, int64_t end) {
  static thread_local std::vector<bf16> inputs;
  static thread_local std::vector<float> partials;
  const int64_t pair_blocks = (p.pairs + kPairs - 1) / kPairs;
  const int64_t most_rows = kInputs / ((p.pairs + pair_blocks - 1) / pair_blocks);
  const int64_t row_blocks = (p.rows + most_rows - 1) / most_rows;
  const int64_t group = pair_blocks == 1 ? end - begin : kGroup;
  inputs.resize(2 * kInputs);
  if (pair_blocks > 1) partials.resize(most_rows * kPanel * kGroup);
  for (int64_t block = 0; block < row_blocks; ++block) {
    const int64_t row = part_begin(p.rows, block, row_blocks);
    const int64_t rows = part_begin(p.rows, block + 1, row_blocks) - row;
    const int64_t count = (rows + kTile - 1) / kTile;
    for (int64_t low = begin; low < end; low += group) {
      for (int64_t pair_block = 0; pair_block < pair_blocks; ++pair_block) {
        const int64_t pair = part_begin(p.pairs, pair_block, pair_blocks);
        const int64_t pairs = part_begin(p.pairs, pair_block + 1, pair_blocks) - pair;
        for (int64_t i = 0; i < count; ++i) {
          const int64_t at = part_begin(rows, i, count);
          const int64_t high = part_begin(rows, i + 1, count);
          pack_inputs(p.x + (row + at) * p.x_stride + 2 * pair, p.x_stride, high - at, pairs,
                      inputs.data() + at * 2 * pairs);
        }
        for (int64_t panel = low; panel < std::min(low + group, end); ++panel) {
          Tile t{.width = p.width(panel), .pairs = pairs};
          t.weight = p.panel_weight(panel) + pair * 2 * t.width;
          t.first = pair_block == 0;
          t.last = pair_block == pair_blocks - 1;
          t.bias = p.panel_bias(panel);
          t.out_stride = p.out_stride();
          t.wide = p.wide;
          const char* next =
              reinterpret_cast<const char*>(t.weight + kPanel * 2 * p.pairs);
          for (int64_t i = 0; i < count; ++i) {
            const int64_t at = part_begin(rows, i, count);
            const int64_t size = part_begin(rows, i + 1, count) - at;
            t.x = inputs.data() + at * 2 * pairs;
            t.partial = partials.data() + ((panel - low) * most_rows + at) * kPanel;
            t.out = p.panel_out(row + at, panel);
            t.ahead = next + (i == 1 ? 64 * pairs : 0);
            (i < 2 ? kTiles<true, 1> : kTiles<true, 0>)[size - 1](t);
          }
        }
      }
    }
  }
}

inline void run(const Product& p, int64_t begin, int64_t end) {
  if (p.rows <= kTile) {
    run_few(p, begin, end);
  } else {
    run_many(p, begin, end);
  }
}

}  // namespace tessera::vectors
