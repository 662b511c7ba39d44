// Attention over the block cache, read in place through the block tables.
//
// T tokens of the step in S sequences, H query and K KV heads, d head dim, G queries per KV head.
// A tile is some tokens of one sequence times the queries of one KV head: its rows share every key
// and value that is read. Keys are taken 64 at a time with an online softmax (arXiv 2205.14135)
// within splits of 512 that are merged in order (flash-decoding). Both are cut at multiples of the
// absolute position, so that a row's result depends on its own context alone: neither on the batch
// nor on how its prompt was cut into chunks nor on the number of threads.
#include <ATen/Parallel.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "common.h"
#include "tiles.h"
#include "tiles_amx.h"

namespace tessera {
namespace {

constexpr int64_t kKeys = 64;
constexpr int64_t kSplit = 512;
constexpr int64_t kRows = 64;
constexpr float kNone = -std::numeric_limits<float>::infinity();
// Work, in about cycles, that is worth waking other threads for.
constexpr int64_t kWake = 20000;

int64_t ceil_to(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

template <typename T>
struct Problem {
  const T* query;
  int64_t query_row, query_head;
  const T* keys;
  const T* values;
  const int64_t* tables;
  int64_t table_row;
  const int64_t* contexts;
  const int64_t* starts;
  T* out;
  int64_t sequences, heads, kv_heads, dim, block_tokens;
  int64_t window;  // 0: none
  float scale;     // times log2 e
  std::vector<std::vector<int64_t>> groups;  // the queries of each KV head

  int64_t words() const { return (dim + kPerWord<T> - 1) / kPerWord<T>; }
  int64_t padded_words() const { return ceil_to(words(), kLanes); }
  int64_t padded_dim() const { return ceil_to(dim, 2 * kLanes); }
  int64_t first_key(int64_t position) const {
    return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
  }
};

struct Tile {
  int64_t sequence, kv, row, tokens, position;
  int64_t begin, end;  // keys
  int64_t first_split() const { return begin / kSplit; }
  int64_t splits() const { return (end - 1) / kSplit - first_split() + 1; }
};

// One thread's part: tiles of the same tokens under `heads` KV heads side by side, or one split of
// one tile, whose result is kept at `partial`.
struct Share {
  const Tile* tile;
  int64_t heads;
  int64_t split;  // -1: all
  float* partial;
  int64_t cost;
};

// Sums that aren't divided yet: [rows, padded dim] with each row's highest score and its weight.
struct Sums {
  float* values;
  float* highest;
  float* weight;
};

Sums sums_at(float* memory, int64_t rows, int64_t stride) {
  const int64_t held = amx::padded(rows);
  return {memory, memory + held * stride, memory + held * (stride + 1)};
}

int64_t sums_size(int64_t rows, int64_t stride) { return amx::padded(rows) * (stride + 2); }

struct Scratch {
  std::vector<float> memory;
  float* take(int64_t size) {
    if (static_cast<int64_t>(memory.size()) < size + kLanes) memory.resize(size + kLanes);
    const auto at = reinterpret_cast<uintptr_t>(memory.data());
    return reinterpret_cast<float*>((at + 63) / 64 * 64);
  }
};

// Rows of keys that are multiplied together, then those of their values.
template <typename T>
struct KeyRows {
  const T* rows[2 * kKeys];
  int64_t count;
};

// Fetches the rows that come next, all heads of a share, while others are multiplied: a few lines at
// a time, since the processor waits when too many are under way, and in the order of memory, so that
// it goes ahead on its own.
template <typename T>
class Ahead {
 public:
  Ahead(const KeyRows<T>& keys, int64_t row_bytes)
      : row_(keys.rows), end_(keys.rows + 2 * keys.count), bytes_(row_bytes) {}

  int64_t lines() const { return (end_ - row_) * bytes_ / 64; }

  // Inlined: what does nothing but prefetch has no effect for the compiler, and its call is left out.
  __attribute__((always_inline)) void fetch(int64_t lines) {
    for (; lines > 0 && row_ < end_; --lines) {
      _mm_prefetch(reinterpret_cast<const char*>(*row_) + at_, _MM_HINT_T1);
      at_ += 64;
      if (at_ >= bytes_) {
        at_ = 0;
        ++row_;
      }
    }
  }

 private:
  const T* const* row_;
  const T* const* end_;
  int64_t bytes_, at_ = 0;
};

template <typename T>
class Worker {
 public:
  using Keys = KeyRows<T>;

  // For shares of at most so many rows in a tile, and so many tiles.
  Worker(const Problem<T>& problem, int64_t most_rows, int64_t most_heads, Scratch& scratch)
      : p_(problem) {
    const int64_t rows = amx::padded(most_rows);
    q_size_ = rows * p_.padded_words();
    sums_size_ = ceil_to(sums_size(rows, p_.padded_dim()), kLanes);
    const int64_t k = p_.padded_words() * kKeys, v = kKeys * p_.padded_dim(), s = rows * kKeys;
    float* memory = scratch.take(most_heads * (q_size_ + 2 * sums_size_) + k + v + 2 * s);
    auto next = [&](int64_t size) {
      float* at = memory;
      memory += size;
      return at;
    };
    q_ = reinterpret_cast<int32_t*>(next(most_heads * q_size_));
    k_ = reinterpret_cast<int32_t*>(next(k));
    v_ = reinterpret_cast<int32_t*>(next(v));
    scores_ = next(s);
    weights_ = reinterpret_cast<int32_t*>(next(s));
    total_ = next(most_heads * sums_size_);
    part_ = next(most_heads * sums_size_);
  }

  void run(const Share& share) {
    const Tile* tile = share.tile;
    for (int64_t h = 0; h < share.heads; ++h) load_query(tile[h], q_ + h * q_size_);
    if (share.split >= 0) return attend(share, share.split, share.partial);
    const int64_t first = tile->first_split();
    attend(share, first, total_);
    for (int64_t split = first + 1; split < first + tile->splits(); ++split) {
      attend(share, split, part_);
      for (int64_t h = 0; h < share.heads; ++h) {
        merge(sums(tile[h], part_ + h * sums_size_), sums(tile[h], total_ + h * sums_size_),
              rows(tile[h]));
      }
    }
    for (int64_t h = 0; h < share.heads; ++h) {
      write(tile[h], sums(tile[h], total_ + h * sums_size_));
    }
  }

  void join(const Tile& tile, float* partials) {
    const Sums total = sums(tile, partials);
    for (int64_t i = 1; i < tile.splits(); ++i) {
      merge(sums(tile, partials + i * sums_size(rows(tile), p_.padded_dim())), total, rows(tile));
    }
    write(tile, total);
  }

 private:
  const std::vector<int64_t>& group(const Tile& tile) const { return p_.groups[tile.kv]; }
  int64_t rows(const Tile& tile) const { return tile.tokens * group(tile).size(); }
  Sums sums(const Tile& tile, float* memory) const {
    return sums_at(memory, rows(tile), p_.padded_dim());
  }

  // Rows are tokens, and for each of them the group's queries.
  void load_query(const Tile& tile, int32_t* to) {
    const int64_t stride = p_.padded_words();
    for (int64_t t = 0; t < tile.tokens; ++t) {
      const T* row = p_.query + (tile.row + t) * p_.query_row;
      for (int64_t head : group(tile)) {
        const T* from = row + head * p_.query_head;
        for (int64_t w = 0; w < stride; w += kLanes) {
          _mm512_storeu_si512(to + w, words(from, w * kPerWord<T>, p_.dim));
        }
        to += stride;
      }
    }
  }

  // Where keys and values [first, last) of the first tile's head lie.
  void find(const Tile& tile, int64_t first, int64_t last, Keys& keys) const {
    const int64_t* table = p_.tables + tile.sequence * p_.table_row;
    const int64_t size = p_.block_tokens, row = p_.kv_heads * p_.dim;
    int64_t block = first / size, inside = first % size;
    keys.count = last - first;
    for (int64_t n = 0; n < keys.count; ++n) {
      const int64_t at = (table[block] * size + inside) * row + tile.kv * p_.dim;
      keys.rows[n] = p_.keys + at;
      keys.rows[keys.count + n] = p_.values + at;
      if (++inside == size) {
        inside = 0;
        ++block;
      }
    }
  }

  // One split of the share's tiles, each with its sums in `memory`.
  void attend(const Share& share, int64_t split, float* memory) {
    const Tile& tile = *share.tile;
    int64_t most = 0;
    for (int64_t h = 0; h < share.heads; ++h) {
      const int64_t count = rows(share.tile[h]);
      const Sums own = sums(share.tile[h], memory + h * sums_size_);
      std::fill_n(own.values, count * p_.padded_dim(), 0.0f);
      std::fill_n(own.highest, count, kNone);
      std::fill_n(own.weight, count, 0.0f);
      most = std::max(most, count);
    }
#ifdef __AMX_BF16__
    std::optional<amx::Tiles> shapes;
    if (tiled_) shapes.emplace(amx::shape(most));
#endif
    const int64_t begin = std::max(split * kSplit, tile.begin / kKeys * kKeys);
    const int64_t end = std::min((split + 1) * kSplit, tile.end);
    const int64_t row_bytes = share.heads * p_.dim * sizeof(T);
    Keys *now = &keys_[0], *then = &keys_[1];
    find(tile, begin, std::min(begin + kKeys, end), *now);
    for (int64_t first = begin; first < end; first += kKeys, std::swap(now, then)) {
      find(tile, first + now->count, std::clamp(end, first + now->count, first + 2 * kKeys), *then);
      Ahead<T> ahead(*then, row_bytes);
      for (int64_t h = 0; h < share.heads; ++h) {
        attend_keys(share.tile[h], first, *now, h, q_ + h * q_size_,
                    sums(share.tile[h], memory + h * sums_size_), ahead,
                    ahead.lines() / (share.heads - h));
      }
    }
  }

  // AMX sums whole words of 16: keys that aren't there weigh nothing and are zeros.
  void attend_keys(const Tile& tile, int64_t first, const Keys& keys, int64_t head,
                   const int32_t* query, const Sums& sums, Ahead<T>& ahead, int64_t lines) {
    const int64_t stride = p_.padded_dim(), queries = group(tile).size(), count = keys.count;
    const int64_t whole = ceil_to(count, tiled_ ? 2 * kLanes : kLanes);
    const int64_t valued = tiled_ ? whole : ceil_to(count, 2);
    const T *key_rows[kKeys], *value_rows[kKeys];
    for (int64_t n = 0; n < whole; ++n) {
      key_rows[n] = n < count ? keys.rows[n] + head * p_.dim : nullptr;
      value_rows[n] = n < count ? keys.rows[count + n] + head * p_.dim : nullptr;
    }
    const int64_t times = whole * p_.padded_words() / (kLanes * kLanes) + valued / 2 + rows(tile);
    const int64_t few = lines / times + 1;
    const auto fetch = [&] { ahead.fetch(few); };
    pack_columns(key_rows, whole, p_.dim, k_, kKeys, fetch);
    pack_rows(value_rows, valued, p_.dim, v_, stride, fetch);
    product({query, p_.padded_words(), k_, kKeys, scores_, kKeys,
             tiled_ ? p_.padded_words() : p_.words(), false},
            rows(tile), whole / kLanes);
    for (int64_t r = 0; r < rows(tile); ++r) {
      fetch();
      weigh(r, first, count, whole, tile.position + r / queries, sums);
    }
    product({weights_, kKeys / kPerWord<T>, v_, stride, sums.values, stride, valued / kPerWord<T>,
             true},
            rows(tile), ceil_to(p_.dim, kLanes) / kLanes);
  }

  void product(const Product& product, int64_t rows, int64_t vectors) const {
#ifdef __AMX_BF16__
    if (tiled_) return amx::multiply(product, rows, vectors);
#endif
    multiply<T>(product, rows, vectors);
  }

  // From the scores of a row to the weights of its keys, of which `whole` are written; what is
  // summed already is scaled.
  void weigh(int64_t row, int64_t first, int64_t count, int64_t whole, int64_t position,
             const Sums& sums) {
    const int64_t low = std::max<int64_t>(0, p_.first_key(position) - first);
    const int64_t high = std::min(count, position - first + 1);
    T* weights = reinterpret_cast<T*>(weights_) + row * kKeys;
    if (low >= high) {
      for (int64_t n = 0; n < whole; n += kLanes) store(weights + n, _mm512_setzero_ps(), 0xffff);
      return;
    }
    const __m512 none = _mm512_set1_ps(kNone), scale = _mm512_set1_ps(p_.scale);
    __m512 score[kKeys / kLanes], best = none;
    __mmask16 seen[kKeys / kLanes];
    const int64_t vectors = whole / kLanes;
    for (int64_t v = 0; v < vectors; ++v) {
      seen[v] = lanes(high - v * kLanes) & ~lanes(low - v * kLanes);
      score[v] = _mm512_mask_mul_ps(none, seen[v],
                                    _mm512_loadu_ps(scores_ + row * kKeys + v * kLanes), scale);
      best = _mm512_max_ps(best, score[v]);
    }
    const float before = sums.highest[row];
    const float highest = std::max(before, _mm512_reduce_max_ps(best));
    const __m512 top = _mm512_set1_ps(highest);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t v = 0; v < vectors; ++v) {
      const __m512 weight = _mm512_maskz_mov_ps(seen[v], exp2(_mm512_sub_ps(score[v], top)));
      sum = _mm512_add_ps(sum, weight);
      store(weights + v * kLanes, weight, 0xffff);
    }
    const float added = _mm512_reduce_add_ps(sum);
    if (highest != before && before != kNone) {
      const float shrunk = std::exp2(before - highest);
      sums.weight[row] *= shrunk;
      float* values = sums.values + row * p_.padded_dim();
      const __m512 factor = _mm512_set1_ps(shrunk);
      for (int64_t i = 0; i < p_.dim; i += kLanes) {
        _mm512_storeu_ps(values + i, _mm512_mul_ps(_mm512_loadu_ps(values + i), factor));
      }
    }
    sums.highest[row] = highest;
    sums.weight[row] += added;
  }

  void merge(const Sums& part, const Sums& total, int64_t rows) const {
    const int64_t stride = p_.padded_dim();
    for (int64_t r = 0; r < rows; ++r) {
      if (part.highest[r] == kNone) continue;
      const float highest = std::max(part.highest[r], total.highest[r]);
      const float own = std::exp2(part.highest[r] - highest);
      const float others = total.highest[r] == kNone ? 0.0f : std::exp2(total.highest[r] - highest);
      const __m512 a = _mm512_set1_ps(own), b = _mm512_set1_ps(others);
      for (int64_t i = 0; i < p_.dim; i += kLanes) {
        float* to = total.values + r * stride + i;
        const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(to), b);
        _mm512_storeu_ps(
            to, _mm512_fmadd_ps(_mm512_loadu_ps(part.values + r * stride + i), a, kept));
      }
      total.weight[r] = part.weight[r] * own + total.weight[r] * others;
      total.highest[r] = highest;
    }
  }

  void write(const Tile& tile, const Sums& total) const {
    const int64_t stride = p_.padded_dim();
    int64_t r = 0;
    for (int64_t t = 0; t < tile.tokens; ++t) {
      for (int64_t head : group(tile)) {
        T* out = p_.out + ((tile.row + t) * p_.heads + head) * p_.dim;
        const __m512 share = _mm512_set1_ps(1.0f / total.weight[r]);
        for (int64_t i = 0; i < p_.dim; i += kLanes) {
          const __m512 value = _mm512_loadu_ps(total.values + r * stride + i);
          store(out + i, _mm512_mul_ps(value, share), lanes(p_.dim - i));
        }
        ++r;
      }
    }
  }

  const Problem<T>& p_;
  const bool tiled_ = sizeof(T) == 2 && amx::usable();
  int64_t q_size_, sums_size_;
  int32_t *q_, *k_, *v_, *weights_;
  float *scores_, *total_, *part_;
  Keys keys_[2];
};

template <typename T>
std::vector<Tile> tiles(const Problem<T>& p) {
  std::vector<Tile> out;
  for (int64_t s = 0; s < p.sequences; ++s) {
    const int64_t count = p.starts[s + 1] - p.starts[s], past = p.contexts[s] - count;
    for (int64_t kv = 0; kv < p.kv_heads; ++kv) {
      const int64_t queries = p.groups[kv].size();
      if (queries == 0) continue;
      const int64_t step = std::max<int64_t>(1, kRows / queries);
      for (int64_t t = 0; t < count; t += step) {
        const int64_t tokens = std::min(step, count - t);
        out.push_back({s, kv, p.starts[s] + t, tokens, past + t, p.first_key(past + t),
                       past + t + tokens});
      }
    }
  }
  return out;
}

template <typename T>
void run(const Problem<T>& p) {
  thread_local Scratch partials;
  const std::vector<Tile> all = tiles(p);
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  int64_t rows = 1, heads = 1, size = 0, cost = 0;
  std::vector<Share> shares;
  std::vector<std::pair<const Tile*, int64_t>> divided;
  const bool divide = threads > 1 && static_cast<int64_t>(all.size()) < 4 * threads;
  for (size_t i = 0; i < all.size(); ++i) {
    const Tile& tile = all[i];
    const int64_t own = tile.tokens * p.groups[tile.kv].size();
    rows = std::max(rows, own);
    const int64_t splits = tile.splits(), per_key = (16 + 4 * own) * p.padded_dim() / 64;
    cost += (tile.end - tile.begin) * per_key;
    if (!divide || splits == 1) {
      const int64_t whole = (tile.end - tile.begin) * per_key;
      // A sequence's heads lie side by side, and are read as they lie.
      if (!divide && i > 0 && tile.tokens == 1 && tile.sequence == all[i - 1].sequence &&
          tile.row == all[i - 1].row && tile.kv == all[i - 1].kv + 1) {
        Share& last = shares.back();
        last.cost += whole;
        heads = std::max(heads, ++last.heads);
      } else {
        shares.push_back({&tile, 1, -1, nullptr, whole});
      }
      continue;
    }
    divided.push_back({&tile, size});
    for (int64_t j = 0; j < splits; ++j) {
      shares.push_back({&tile, 1, tile.first_split() + j, nullptr, kSplit * per_key});
      size += sums_size(own, p.padded_dim());
    }
  }
  float* memory = divided.empty() ? nullptr : partials.take(size);
  int64_t at = 0;
  for (Share& share : shares) {
    if (share.split < 0) continue;
    const int64_t own = share.tile->tokens * p.groups[share.tile->kv].size();
    share.partial = memory + at;
    at += sums_size(own, p.padded_dim());
  }
  // The long ones first, so that the last to end is a short one.
  std::stable_sort(shares.begin(), shares.end(),
                   [](const Share& a, const Share& b) { return a.cost > b.cost; });
  std::atomic<size_t> next{0};
  const int64_t used = cost < kWake ? 1 : std::min<int64_t>(threads, shares.size());
  at::parallel_for(0, used, 1, [&](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    Worker<T> worker(p, rows, heads, scratch);
    for (size_t i = next++; i < shares.size(); i = next++) worker.run(shares[i]);
  });
  if (divided.empty()) return;
  thread_local Scratch scratch;
  Worker<T> worker(p, 1, 1, scratch);
  for (const auto& [tile, offset] : divided) worker.join(*tile, memory + offset);
}

template <typename T>
void write_cache(const at::Tensor& fresh, const at::Tensor& cache, const int64_t* slots) {
  const int64_t tokens = fresh.size(0), heads = fresh.size(1), dim = fresh.size(2);
  const T* from = static_cast<const T*>(fresh.data_ptr());
  T* to = static_cast<T*>(cache.data_ptr());
  at::parallel_for(0, tokens, std::max<int64_t>(1, 32768 / (heads * dim)),
                   [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const T* row = from + t * fresh.stride(0) + h * fresh.stride(1);
        std::copy_n(row, dim, to + (slots[t] * heads + h) * dim);
      }
    }
  });
}

const int64_t* numbers(const at::Tensor& x, const char* what) {
  TORCH_CHECK(x.scalar_type() == at::kLong && x.is_contiguous(), what, " are whole int64");
  return x.data_ptr<int64_t>();
}

template <typename T>
void solve(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
           const at::Tensor& keys, const at::Tensor& values, const at::Tensor& slots,
           const at::Tensor& tables, const at::Tensor& contexts, const at::Tensor& starts,
           const std::optional<at::Tensor>& places, int64_t group, double scale, int64_t window,
           const at::Tensor& out) {
  write_cache<T>(key, keys, numbers(slots, "slots"));
  write_cache<T>(value, values, numbers(slots, "slots"));
  Problem<T> p;
  p.query = static_cast<const T*>(query.data_ptr());
  p.query_row = query.stride(0);
  p.query_head = query.stride(1);
  p.keys = static_cast<const T*>(keys.data_ptr());
  p.values = static_cast<const T*>(values.data_ptr());
  p.tables = tables.data_ptr<int64_t>();
  p.table_row = tables.stride(0);
  p.contexts = numbers(contexts, "contexts");
  p.starts = numbers(starts, "starts");
  p.out = static_cast<T*>(out.data_ptr());
  p.sequences = starts.size(0) - 1;
  p.heads = query.size(1);
  p.kv_heads = keys.size(2);
  p.dim = keys.size(3);
  p.block_tokens = keys.size(1);
  p.window = window;
  p.scale = static_cast<float>(scale * 1.4426950408889634);
  p.groups.resize(p.kv_heads);
  const int64_t* grid = places ? numbers(*places, "places") : nullptr;
  for (int64_t h = 0; h < p.heads; ++h) {
    p.groups.at((grid == nullptr ? h : grid[h]) / group).push_back(h);
  }
  run(p);
}

// query [T, H, d], key and value [T, K, d] (views of rows are fine), the cache's keys and values
// [blocks, block tokens, K, d], slots [T], tables [S, blocks], contexts [S], starts [S + 1];
// `places` [H]: where queries stand in a grid [K, group]. window 0: none. → [T, H, d].
at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const at::Tensor& keys, const at::Tensor& values, const at::Tensor& slots,
                  const at::Tensor& tables, const at::Tensor& contexts, const at::Tensor& starts,
                  const std::optional<at::Tensor>& places, int64_t group, double scale,
                  int64_t window) {
  const auto type = query.scalar_type();
  for (const at::Tensor* x : {&key, &value, &keys, &values}) {
    TORCH_CHECK(x->scalar_type() == type, "queries, keys, values and cache have one format");
  }
  for (const at::Tensor* x : {&query, &key, &value}) {
    TORCH_CHECK(x->dim() == 3 && x->stride(2) == 1, "rows of heads of side by side channels");
  }
  TORCH_CHECK(keys.dim() == 4 && keys.is_contiguous() && values.is_contiguous() &&
                  keys.sizes() == values.sizes(),
              "keys and values are [blocks, block tokens, K, d]");
  TORCH_CHECK(tables.scalar_type() == at::kLong && tables.stride(1) == 1 &&
                  tables.size(0) >= starts.size(0) - 1,
              "tables are int64 [S, blocks]");
  at::Tensor out = at::empty(query.sizes(), query.options());
  const auto solver = type == at::kBFloat16 ? solve<BFloat16> : solve<float>;
  TORCH_CHECK(type == at::kBFloat16 || type == at::kFloat, "bf16 or fp32 is needed, not ", type);
  solver(query, key, value, keys, values, slots, tables, contexts, starts, places, group, scale,
         window, out);
  return out;
}

at::Tensor attend_meta(const at::Tensor& query, const at::Tensor&, const at::Tensor&,
                       const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                       const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                       int64_t, double, int64_t) {
  return at::empty_symint(query.sym_sizes(), query.options());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tessera_native, library) {
  library.def(
      "attend(Tensor query, Tensor key, Tensor value, Tensor(a!) keys, Tensor(b!) values, "
      "Tensor slots, Tensor tables, Tensor contexts, Tensor starts, Tensor? places, int group, "
      "float scale, int window) -> Tensor");
}

TORCH_LIBRARY_IMPL(tessera_native, CPU, library) { library.impl("attend", attend); }

TORCH_LIBRARY_IMPL(tessera_native, Meta, library) { library.impl("attend", attend_meta); }

}  // namespace tessera
