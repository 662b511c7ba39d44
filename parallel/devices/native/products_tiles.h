// Products by the tiles of AMX: 16 rows × 32 inputs times 32 inputs × 16 columns at once.
//
// Every element is summed in the order of K in steps of 32 inputs, whatever T and the threads are:
// a tile's rows don't know of one another, and sums that are kept between blocks stay float32.
// Where K leaves a narrower step, zeros fill it.
#pragma once

#include "products.h"

#include <cstring>
#include <vector>

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tessera::tiles {

#ifdef __AMX_BF16__

constexpr int64_t kRows = 16;               // of a tile; two tiles of rows are taken at once
constexpr int64_t kInputs = 32;             // of K that a step takes
constexpr int64_t kStepBytes = kInputs * kPanel * 2;
constexpr int64_t kSteps = 8;               // a panel's weights of so many steps stay in L1
constexpr int64_t kBlockSteps = 64;         // steps that a thread takes through a group of panels
constexpr int64_t kPacked = 1 << 20;        // bytes of inputs that it takes along: half of L2
constexpr int64_t kGroup = 16;              // panels whose sums are kept between those blocks
constexpr int64_t kAhead = kStepBytes;      // bytes that are fetched ahead for few rows

// Linux lends the tiles' state to a process that asks for it.
inline bool usable() {
  constexpr long kRequest = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return granted;
}

struct alignas(64) Shapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3 are sums (rows by columns), 4 and 5 inputs, 6 and 7 weights.
class Tiles {
 public:
  Tiles(int64_t upper, int64_t lower) {
    Shapes shapes;
    const int64_t rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    for (int i = 0; i < 8; ++i) {
      shapes.rows[i] = static_cast<uint8_t>(rows[i]);
      shapes.bytes[i] = rows[i] > 0 ? 64 : 0;
    }
    asm volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// `count` steps of up to 32 rows times one panel, added to `sums` [32][32] or put there.
struct Steps {
  const char* inputs;
  int64_t input_row, input_step, lower;  // bytes: between rows, between steps, to the 17th row
  const char* weights;                   // [pairs][32 columns][2]
  int64_t count;
  float* sums;
  bool first;
  const char* ahead;  // fetched on the way, so many lines a step (a multiple of 4)
  int64_t lines;
};

template <bool both, _mm_hint near>
inline void run_steps(const Steps& s) {
  constexpr int64_t row = kPanel * sizeof(float);
  asm volatile("" ::: "memory");  // what was written before is what the tiles read
  if (s.first) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (both) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, s.sums, row);
    _tile_loadd(1, s.sums + 16, row);
    if constexpr (both) {
      _tile_loadd(2, s.sums + kRows * kPanel, row);
      _tile_loadd(3, s.sums + kRows * kPanel + 16, row);
    }
  }
  const char* inputs = s.inputs;
  const char* weights = s.weights;
  const char* ahead = s.ahead;
  const auto fetch = [&] {  // a quarter, between loads: all at once would hold them up
    for (int64_t line = 0; line < s.lines; line += 4, ahead += 64) _mm_prefetch(ahead, near);
  };
  for (int64_t i = 0; i < s.count; ++i, inputs += s.input_step, weights += kStepBytes) {
    fetch();
    _tile_loadd(6, weights, kPanel * 4);
    fetch();
    _tile_loadd(7, weights + 64, kPanel * 4);
    fetch();
    _tile_loadd(4, inputs, s.input_row);
    fetch();
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (both) {
      _tile_loadd(5, inputs + s.lower, s.input_row);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, s.sums, row);
  _tile_stored(1, s.sums + 16, row);
  if constexpr (both) {
    _tile_stored(2, s.sums + kRows * kPanel, row);
    _tile_stored(3, s.sums + kRows * kPanel + 16, row);
  }
}

inline void write(const Product& p, int64_t row, int64_t rows, int64_t panel, const float* sums) {
  for (int half = 0; half < 2; ++half) {
    const __mmask16 mask = columns_of_half(p.width(panel), half);
    const __m512 bias = bias_of_half(p.panel_bias(panel), half, mask);
    char* out = p.panel_out(row, panel);
    for (int64_t r = 0; r < rows; ++r, out += p.out_stride()) {
      const __m512 sum = _mm512_loadu_ps(sums + r * kPanel + 16 * half);
      store_half(out, half, mask, p.wide, _mm512_add_ps(sum, bias));
    }
  }
}

// Steps of a panel as the tiles want them: where it is narrow, or K ends within a step, a copy.
class Weights {
 public:
  const char* at(const Product& p, int64_t panel, int64_t step, int64_t count) {
    const int64_t width = p.width(panel), pair = step * kInputs / 2;
    const bf16* from = p.panel_weight(panel) + pair * 2 * width;
    const int64_t pairs = count * kInputs / 2, have = std::min(p.pairs - pair, pairs);
    if (width == kPanel && have == pairs) return reinterpret_cast<const char*>(from);
    copy_.assign(pairs * 2 * kPanel, 0);
    for (int64_t k = 0; k < have; ++k) {
      std::memcpy(copy_.data() + k * 2 * kPanel, from + k * 2 * width, 2 * width * sizeof(bf16));
    }
    return reinterpret_cast<const char*>(copy_.data());
  }

 private:
  std::vector<bf16> copy_;
};

// Rows as [tiles of rows][steps][16 rows][32 inputs], zeros where there are none.
inline void pack_inputs(const Product& p, int64_t row, int64_t rows, int64_t step, int64_t steps,
                        bf16* out) {
  const int64_t begin = step * kInputs, have = std::min(2 * p.pairs - begin, steps * kInputs);
  for (int64_t first = 0; first < rows; first += kRows, out += steps * kRows * kInputs) {
    for (int64_t r = 0; r < kRows; ++r) {
      bf16* to = out + r * kInputs;
      const bf16* from = p.x + (row + first + r) * p.x_stride + begin;
      const int64_t left = first + r < rows ? have : 0;
      for (int64_t k = 0; k < steps * kInputs; k += kInputs, to += kRows * kInputs) {
        const int64_t count = std::clamp<int64_t>(left - k, 0, kInputs);
        const __mmask32 mask = count == kInputs ? ~__mmask32(0) : (__mmask32(1) << count) - 1;
        _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(mask, from + k));
      }
    }
  }
}

// Up to 32 rows, read where they are; the weights are read once, from memory.
inline void run_few(const Product& p, int64_t begin, int64_t end) {
  const int64_t steps = (2 * p.pairs + kInputs - 1) / kInputs;
  const int64_t whole = 2 * p.pairs / kInputs;
  const bool both = p.rows > kRows;
  const auto few = both ? run_steps<true, _MM_HINT_T0> : run_steps<false, _MM_HINT_T0>;
  bf16 rest[2 * kRows * kInputs] = {};  // the narrower step
  for (int64_t r = 0; r < p.rows && whole < steps; ++r) {
    std::memcpy(rest + r * kInputs, p.x + r * p.x_stride + whole * kInputs,
                (2 * p.pairs - whole * kInputs) * sizeof(bf16));
  }
  alignas(64) float sums[2 * kRows * kPanel];
  Weights weights;
  const Tiles tiles(std::min(p.rows, kRows), both ? p.rows - kRows : 0);
  for (int64_t panel = begin; panel < end; ++panel) {
    Steps s{reinterpret_cast<const char*>(p.x), p.x_stride * 2, kInputs * 2,
            kRows * p.x_stride * 2,             nullptr,        whole,
            sums,                               true};
    if (whole > 0) {
      s.weights = weights.at(p, panel, 0, whole);
      s.ahead = s.weights + kAhead;
      s.lines = kStepBytes / 64;
      few(s);
    }
    if (whole < steps) {
      s.first = whole == 0;
      s.inputs = reinterpret_cast<const char*>(rest);
      s.input_row = kInputs * 2;
      s.lower = kRows * kInputs * 2;
      s.weights = weights.at(p, panel, whole, 1);
      s.count = 1;
      s.lines = 0;
      few(s);
    }
    write(p, 0, p.rows, panel, sums);
  }
}

// Panels [begin, end) for all rows, in blocks of rows and steps whose inputs stay in L2.
inline void run_many(const Product& p, int64_t begin, int64_t end) {
  static thread_local std::vector<bf16> inputs;
  static thread_local std::vector<float> sums;
  const int64_t steps = (2 * p.pairs + kInputs - 1) / kInputs;
  const int64_t step_blocks = (steps + kBlockSteps - 1) / kBlockSteps;
  const int64_t most_steps = (steps + step_blocks - 1) / step_blocks;
  const int64_t tile_rows = (p.rows + kRows - 1) / kRows;
  const int64_t most_tiles = std::max<int64_t>(2, kPacked / (most_steps * kRows * kInputs * 2));
  const int64_t row_blocks = (tile_rows + most_tiles - 1) / most_tiles;
  const int64_t group = step_blocks == 1 ? end - begin : kGroup;
  const int64_t tile_bytes = kRows * kInputs * 2;
  inputs.resize(most_tiles * most_steps * kRows * kInputs);
  sums.resize(most_tiles * kRows * kPanel * (step_blocks == 1 ? 1 : kGroup));
  Weights weights;
  const Tiles shapes(kRows, kRows);
  for (int64_t block = 0; block < row_blocks; ++block) {
    const int64_t row = part_begin(tile_rows, block, row_blocks) * kRows;
    const int64_t next_row = part_begin(tile_rows, block + 1, row_blocks) * kRows;
    const int64_t rows = std::min(p.rows, next_row) - row;
    const int64_t pairs_of_tiles = (rows + 2 * kRows - 1) / (2 * kRows);
    for (int64_t low = begin; low < end; low += group) {
      for (int64_t step_block = 0; step_block < step_blocks; ++step_block) {
        const int64_t first = part_begin(steps, step_block, step_blocks);
        const int64_t last = part_begin(steps, step_block + 1, step_blocks);
        pack_inputs(p, row, rows, first, last - first, inputs.data());
        for (int64_t panel = low; panel < std::min(low + group, end); ++panel) {
          const int64_t slot = step_blocks == 1 ? 0 : panel - low;
          float* kept = sums.data() + slot * most_tiles * kRows * kPanel;
          for (int64_t step = first; step < last; step += kSteps) {
            const int64_t count = std::min(kSteps, last - step);
            Steps s{.weights = weights.at(p, panel, step, count), .count = count};
            s.input_row = kInputs * 2;
            s.input_step = tile_bytes;
            s.lower = (last - first) * tile_bytes;
            s.first = step == 0;
            s.ahead = s.weights + 2 * count * kStepBytes;
            s.lines = (kStepBytes / 256 + pairs_of_tiles - 1) / pairs_of_tiles * 4;
            for (int64_t r = 0; r < rows; r += 2 * kRows) {
              const int64_t tile = r / kRows * (last - first) + step - first;
              s.inputs = reinterpret_cast<const char*>(inputs.data()) + tile * tile_bytes;
              s.sums = kept + r * kPanel;
              (rows - r > kRows ? run_steps<true, _MM_HINT_T1> : run_steps<false, _MM_HINT_T1>)(s);
              s.ahead += count * s.lines * 64;
            }
          }
          if (last == steps) write(p, row, rows, panel, kept);
        }
      }
    }
  }
}

inline void run(const Product& p, int64_t begin, int64_t end) {
  if (p.rows <= 2 * kRows) {
    run_few(p, begin, end);
  } else {
    run_many(p, begin, end);
  }
}

#else

inline bool usable() { return false; }
inline void run(const Product&, int64_t, int64_t) {}

#endif

}  // namespace tessera::tiles
