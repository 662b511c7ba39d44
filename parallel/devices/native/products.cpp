// Products of bf16 [T, K] with a weight [N, K] that was packed in place, summed in float32 and
// rounded to bf16 once, or left as they are.
//
// Packed: panels of 32 columns of the product (rows of the weight), one after the other. A panel
// holds for each pair of inputs k, k+1 the two values of its first column, of its second one, …:
// what one vdpbf16ps takes. The last panel is as narrow as N leaves it, so that packed bytes are
// plain bytes. Every element of a product is summed pair by pair in the order of K whatever T and
// the threads are: a row's result doesn't know what else is in the batch.
#include "common.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>

#include <array>
#include <cstring>
#include <utility>
#include <vector>

namespace tessera {
namespace {

constexpr int64_t kPanel = 32;       // columns
constexpr int64_t kTile = 12;        // rows: 2 · 12 sums, 2 weights and one input in registers
constexpr int64_t kPairs = 1024;     // pairs of inputs that a tile takes at once
constexpr int64_t kInputs = 96 * kPairs;  // pairs that a thread takes through its panels: of L2
constexpr int64_t kGroup = 16;       // panels whose sums are kept aside, where there are more pairs
constexpr int64_t kAhead = 2048;     // bytes that a single tile prefetches

struct Product {
  const bf16* x;
  int64_t rows, x_stride, pairs;
  const bf16* weight;
  int64_t columns;
  const bf16* bias;
  char* out;
  bool wide;  // results stay float32
  int64_t out_bytes() const { return wide ? sizeof(float) : sizeof(bf16); }
};

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
  const __mmask16 left = whole ? 0xffff : (1u << std::min<int64_t>(t.width, 16)) - 1;
  const __mmask16 right = whole ? 0xffff : (1u << std::max<int64_t>(t.width - 16, 0)) - 1;
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
    __m512 bias = _mm512_setzero_ps();
    if (t.bias != nullptr) {
      const __m256i bits = _mm256_maskz_loadu_epi16(mask, t.bias + 16 * half);
      bias = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const __m512 sum = _mm512_add_ps(sums[r][half], bias);
      char* to = t.out + r * t.out_stride;
      if (t.wide) {
        _mm512_mask_storeu_ps(to + half * 64, mask, sum);
      } else {
        _mm256_mask_storeu_epi16(to + half * 32, mask, (__m256i)_mm512_cvtneps_pbh(sum));
      }
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

inline int64_t panel_width(const Product& p, int64_t panel) {
  return std::min(kPanel, p.columns - panel * kPanel);
}

// Up to 12 rows: one tile a panel, the weights read once from memory.
void run_few(const Product& p, int64_t begin, int64_t end) {
  Tile t{.x = p.x, .x_stride = p.x_stride, .pairs = p.pairs, .first = true, .last = true};
  t.out_stride = p.columns * p.out_bytes();
  t.wide = p.wide;
  for (int64_t panel = begin; panel < end; ++panel) {
    t.weight = p.weight + panel * kPanel * 2 * p.pairs;
    t.width = panel_width(p, panel);
    t.ahead = reinterpret_cast<const char*>(t.weight) + kAhead;
    t.bias = p.bias == nullptr ? nullptr : p.bias + panel * kPanel;
    t.out = p.out + panel * kPanel * p.out_bytes();
    kTiles<false, 2>[p.rows - 1](t);
  }
}

// Rows [r][2·k] as tiles [pairs][R][2].
void pack_inputs(const bf16* x, int64_t stride, int64_t rows, int64_t pairs, bf16* out) {
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
void run_many(const Product& p, int64_t begin, int64_t end) {
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
          Tile t{.width = panel_width(p, panel), .pairs = pairs};
          t.weight = p.weight + panel * kPanel * 2 * p.pairs + pair * 2 * t.width;
          t.first = pair_block == 0;
          t.last = pair_block == pair_blocks - 1;
          t.bias = p.bias == nullptr ? nullptr : p.bias + panel * kPanel;
          t.out_stride = p.columns * p.out_bytes();
          t.wide = p.wide;
          const char* next =
              reinterpret_cast<const char*>(t.weight + kPanel * 2 * p.pairs);
          for (int64_t i = 0; i < count; ++i) {
            const int64_t at = part_begin(rows, i, count);
            const int64_t size = part_begin(rows, i + 1, count) - at;
            t.x = inputs.data() + at * 2 * pairs;
            t.partial = partials.data() + ((panel - low) * most_rows + at) * kPanel;
            t.out = p.out + ((row + at) * p.columns + panel * kPanel) * p.out_bytes();
            t.ahead = next + (i == 1 ? 64 * pairs : 0);
            (i < 2 ? kTiles<true, 1> : kTiles<true, 0>)[size - 1](t);
          }
        }
      }
    }
  }
}

const bf16* bits(const at::Tensor& tensor) {
  return static_cast<const bf16*>(tensor.const_data_ptr());
}

void check_weight(const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2 && weight.scalar_type() == at::kBFloat16 &&
                  weight.is_contiguous() && weight.size(1) % 2 == 0,
              "a packed weight is a whole bf16 [N, K] with K even");
}

at::Tensor product(const at::Tensor& x, const at::Tensor& weight,
                   const std::optional<at::Tensor>& bias, bool wide) {
  check_weight(weight);
  const int64_t columns = weight.size(0), inner = weight.size(1);
  TORCH_CHECK(x.dim() == 2 && x.size(1) == inner && x.scalar_type() == at::kBFloat16 &&
                  x.stride(1) == 1,
              "inputs are bf16 [T, ", inner, "], rows without gaps");
  at::Tensor out = at::empty({x.size(0), columns},
                             x.options().dtype(wide ? at::kFloat : at::kBFloat16));
  if (out.numel() == 0) return out;
  Product p{bits(x), x.size(0), x.stride(0), inner / 2, bits(weight), columns, nullptr,
            static_cast<char*>(out.mutable_data_ptr()), wide};
  if (bias.has_value()) {
    TORCH_CHECK(bias->scalar_type() == at::kBFloat16 && bias->is_contiguous() &&
                    bias->numel() == columns,
                "the bias is bf16 [", columns, "]");
    p.bias = bits(*bias);
  }
  const int64_t panels = (columns + kPanel - 1) / kPanel;
  const int threads = static_cast<int>(std::min<int64_t>(at::get_num_threads(), panels));
#pragma omp parallel num_threads(threads)
  {
    const int64_t index = omp_get_thread_num(), count = omp_get_num_threads();
    const int64_t begin = part_begin(panels, index, count);
    const int64_t end = part_begin(panels, index + 1, count);
    if (p.rows <= kTile) {
      run_few(p, begin, end);
    } else {
      run_many(p, begin, end);
    }
  }
  return out;
}

at::Tensor product_meta(const at::Tensor& x, const at::Tensor& weight,
                        const std::optional<at::Tensor>&, bool wide) {
  return at::empty_symint({x.sym_size(0), weight.sym_size(0)},
                          x.options().dtype(wide ? at::kFloat : at::kBFloat16));
}

void pack(at::Tensor weight) {
  check_weight(weight);
  const int64_t columns = weight.size(0), inner = weight.size(1);
  const int64_t panels = (columns + kPanel - 1) / kPanel;
  bf16* values = static_cast<bf16*>(weight.mutable_data_ptr());
#pragma omp parallel num_threads(at::get_num_threads())
  {
    std::vector<bf16> plain(kPanel * inner);
#pragma omp for
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t width = std::min(kPanel, columns - panel * kPanel);
      bf16* at = values + panel * kPanel * inner;
      std::memcpy(plain.data(), at, width * inner * sizeof(bf16));
      for (int64_t k = 0; k < inner; k += 2) {
        for (int64_t c = 0; c < width; ++c) {
          std::memcpy(at + k * width + 2 * c, plain.data() + c * inner + k, 4);
        }
      }
    }
  }
}

void pack_meta(at::Tensor) {}

at::Tensor packed_rows(const at::Tensor& weight, const at::Tensor& ids) {
  check_weight(weight);
  TORCH_CHECK(ids.dim() == 1 && ids.scalar_type() == at::kLong && ids.is_contiguous(),
              "ids are int64 [T]");
  const int64_t columns = weight.size(0), inner = weight.size(1), rows = ids.size(0);
  const int64_t* wanted = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows; ++i) {
    TORCH_CHECK_INDEX(wanted[i] >= 0 && wanted[i] < columns, "id ", wanted[i],
                      " is out of range: the table has ", columns, " rows");
  }
  at::Tensor out = at::empty({rows, inner}, weight.options());
  bf16* values = static_cast<bf16*>(out.mutable_data_ptr());
  const bf16* packed = bits(weight);
  const int threads = static_cast<int>(std::clamp<int64_t>(rows / 8, 1, at::get_num_threads()));
#pragma omp parallel for num_threads(threads)
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t panel = wanted[i] / kPanel, column = wanted[i] % kPanel;
    const int64_t width = std::min(kPanel, columns - panel * kPanel);
    const bf16* from = packed + panel * kPanel * inner + 2 * column;
    for (int64_t k = 0; k < inner; k += 2) {
      std::memcpy(values + i * inner + k, from + k * width, 4);
    }
  }
  return out;
}

at::Tensor packed_rows_meta(const at::Tensor& weight, const at::Tensor& ids) {
  return at::empty_symint({ids.sym_size(0), weight.sym_size(1)}, weight.options());
}

}  // namespace
}  // namespace tessera

TORCH_LIBRARY_FRAGMENT(tessera_native, library) {
  library.def("product(Tensor x, Tensor weight, Tensor? bias, bool wide) -> Tensor");
  library.def("pack_(Tensor(a!) weight) -> ()");
  library.def("packed_rows(Tensor weight, Tensor ids) -> Tensor");
}

TORCH_LIBRARY_IMPL(tessera_native, CPU, library) {
  library.impl("product", tessera::product);
  library.impl("pack_", tessera::pack);
  library.impl("packed_rows", tessera::packed_rows);
}

TORCH_LIBRARY_IMPL(tessera_native, Meta, library) {
  library.impl("product", tessera::product_meta);
  library.impl("pack_", tessera::pack_meta);
  library.impl("packed_rows", tessera::packed_rows_meta);
}
