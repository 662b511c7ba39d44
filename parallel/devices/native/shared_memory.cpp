// Collectives of the ranks of one host, through memory that all of them have mapped.
//
// A segment begins with a line of flags for each rank; then come two slots for each. In its s-th
// exchange a rank writes into its slot s mod 2, raises its flag to s, and reads the others' slots
// once their flags are there. Whoever raises a flag to s has read all of exchange s - 1, so that a
// slot is free again two exchanges later without another word.
//
// Sums are in float, in the order of ranks, rounded once: all ranks get the same.
#include "common.h"
#include "flags.h"
#include "vectors.h"

#include <ATen/Parallel.h>
#include <c10/util/Half.h>

#include <cstring>
#include <vector>

namespace tessera {
namespace {

constexpr int64_t kShare = 32768;  // elements that are worth a thread of their own

class Segment {
 public:
  Segment(const at::Tensor& memory, int64_t index, int64_t ranks)
      : base_(static_cast<char*>(memory.data_ptr())), index_(index), ranks_(ranks) {
    TORCH_CHECK(memory.scalar_type() == at::kByte && memory.is_contiguous() && ranks > 1 &&
                    index >= 0 && index < ranks,
                "a segment is bytes, and the rank one of several");
    slot_ = (memory.numel() / ranks - kLine) / 2 / kLine * kLine;
    TORCH_CHECK(slot_ > 0, "a segment of ", memory.numel(), " bytes is too small");
  }

  int64_t index() const { return index_; }
  int64_t ranks() const { return ranks_; }
  int64_t slot_bytes() const { return slot_; }

  // Where this rank writes for the exchange to come.
  char* mine() { return slot(index_, flag(index_).value() + 1); }

  // Everybody's slot of this exchange may be read from here on, until the next one begins.
  void exchange() {
    now_ = flag(index_).value() + 1;
    flag(index_).raise(now_);
    for (int64_t rank = 0; rank < ranks_; ++rank) {
      if (rank != index_) flag(rank).wait(now_);
    }
  }

  const char* of(int64_t rank) { return slot(rank, now_); }

 private:
  Flag& flag(int64_t rank) { return *reinterpret_cast<Flag*>(base_ + rank * kLine); }

  char* slot(int64_t rank, uint32_t exchange) {
    return base_ + ranks_ * kLine + (2 * rank + exchange % 2) * slot_;
  }

  char* base_;
  int64_t index_, ranks_, slot_ = 0;
  uint32_t now_ = 0;
};

using tessera::load;
using tessera::store;

inline __m512 load(const c10::Half* from, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from));
}

inline void store(c10::Half* to, __m512 value, __mmask16 mask) {
  _mm256_mask_storeu_epi16(to, mask, _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

template <typename F>
void by_float_type(const at::Tensor& x, const F& run) {
  switch (x.scalar_type()) {
    case at::kBFloat16: return run(BFloat16());
    case at::kHalf: return run(c10::Half());
    case at::kFloat: return run(float());
    default: TORCH_CHECK(false, "sums are of bf16, fp16 or fp32, not ", x.scalar_type());
  }
}

void copy(char* to, const char* from, int64_t bytes) {
  at::parallel_for(0, bytes, 4 * kShare, [&](int64_t begin, int64_t end) {
    std::memcpy(to + begin, from + begin, end - begin);
  });
}

// to[i] = the sum over ranks of what lies `offset` elements into their slots.
template <typename T>
void sum(Segment& segment, int64_t offset, int64_t count, T* to) {
  at::parallel_for(0, count, kShare, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kLanes) {
      const __mmask16 mask = lanes(end - i);
      __m512 total = load(reinterpret_cast<const T*>(segment.of(0)) + offset + i, mask);
      for (int64_t rank = 1; rank < segment.ranks(); ++rank) {
        const T* from = reinterpret_cast<const T*>(segment.of(rank)) + offset + i;
        total = _mm512_add_ps(total, load(from, mask));
      }
      store(to + i, total, mask);
    }
  });
}

void all_reduce(const at::Tensor& x, const at::Tensor& memory, int64_t index, int64_t ranks) {
  TORCH_CHECK(x.is_contiguous(), "an array that is summed is contiguous");
  Segment segment(memory, index, ranks);
  by_float_type(x, [&](auto zero) {
    using T = decltype(zero);
    T* data = static_cast<T*>(x.data_ptr());
    const int64_t most = segment.slot_bytes() / sizeof(T);
    for (int64_t at = 0; at < x.numel(); at += most) {
      const int64_t count = std::min(most, x.numel() - at);
      copy(segment.mine(), reinterpret_cast<char*>(data + at), count * sizeof(T));
      segment.exchange();
      sum<T>(segment, 0, count, data + at);
    }
  });
}

// x [rows, …] → [rows / ranks, …].
at::Tensor reduce_scatter(const at::Tensor& x, const at::Tensor& memory, int64_t index,
                          int64_t ranks) {
  TORCH_CHECK(x.is_contiguous() && x.size(0) % ranks == 0,
              "an array that is scattered is contiguous, and the ranks divide its rows");
  Segment segment(memory, index, ranks);
  std::vector<int64_t> shape(x.sizes().vec());
  shape[0] /= ranks;
  at::Tensor out = at::empty(shape, x.options());
  by_float_type(x, [&](auto zero) {
    using T = decltype(zero);
    const T* data = static_cast<const T*>(x.data_ptr());
    const int64_t share = out.numel(), most = segment.slot_bytes() / sizeof(T) / ranks;
    for (int64_t at = 0; at < share; at += most) {
      const int64_t count = std::min(most, share - at);
      T* mine = reinterpret_cast<T*>(segment.mine());
      for (int64_t rank = 0; rank < ranks; ++rank) {
        copy(reinterpret_cast<char*>(mine + rank * most),
             reinterpret_cast<const char*>(data + rank * share + at), count * sizeof(T));
      }
      segment.exchange();
      sum<T>(segment, index * most, count, static_cast<T*>(out.data_ptr()) + at);
    }
  });
  return out;
}

// x [rows, sizes[index]] → [rows, sum of sizes], pieces side by side; of any type.
at::Tensor all_gather(const at::Tensor& x, at::IntArrayRef sizes, const at::Tensor& memory,
                      int64_t index) {
  const int64_t ranks = sizes.size(), item = x.element_size();
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && x.size(1) == sizes[index],
              "a piece that is gathered is contiguous, [rows, its size]");
  Segment segment(memory, index, ranks);
  int64_t whole = 0, widest = 0;
  for (int64_t size : sizes) {
    whole += size * item;
    widest = std::max(widest, size * item);
  }
  at::Tensor out = at::empty({x.size(0), whole / item}, x.options());
  const char* data = static_cast<const char*>(x.data_ptr());
  char* to = static_cast<char*>(out.data_ptr());
  const int64_t width = std::min(widest, segment.slot_bytes());
  const int64_t most_rows = width == 0 ? 1 : segment.slot_bytes() / width;
  for (int64_t row = 0; row < x.size(0); row += most_rows) {
    const int64_t rows = std::min(most_rows, x.size(0) - row);
    for (int64_t left = 0; left < widest; left += width) {
      const auto taken = [&](int64_t rank) {
        return std::clamp<int64_t>(sizes[rank] * item - left, 0, width);
      };
      char* mine = segment.mine();
      const int64_t own = taken(index);
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(mine + r * own, data + (row + r) * sizes[index] * item + left, own);
      }
      segment.exchange();
      int64_t begin = left;
      for (int64_t rank = 0; rank < ranks; begin += sizes[rank++] * item) {
        const int64_t bytes = taken(rank);
        for (int64_t r = 0; r < rows; ++r) {
          std::memcpy(to + (row + r) * whole + begin, segment.of(rank) + r * bytes, bytes);
        }
      }
    }
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tessera_native, library) {
  library.def("all_reduce_(Tensor(a!) x, Tensor(b!) segment, int index, int ranks) -> ()");
  library.def("reduce_scatter(Tensor x, Tensor(b!) segment, int index, int ranks) -> Tensor");
  library.def("all_gather(Tensor x, int[] sizes, Tensor(b!) segment, int index) -> Tensor");
}

TORCH_LIBRARY_IMPL(tessera_native, CPU, library) {
  library.impl("all_reduce_", all_reduce);
  library.impl("reduce_scatter", reduce_scatter);
  library.impl("all_gather", all_gather);
}

}  // namespace tessera
