// Products of bf16 [T, K] with a packed weight [N, K], summed in float32 and rounded to bf16 once,
// or left as they are; and how weights are packed. A row's result doesn't know what else is in the
// batch.
#include "products.h"
#include "products_tiles.h"
#include "products_vectors.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <cstring>
#include <vector>

namespace tessera {
namespace {

const bf16* bits(const at::Tensor& tensor) {
  return static_cast<const bf16*>(tensor.const_data_ptr());
}

void check_weight(const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2 && weight.scalar_type() == at::kBFloat16 &&
                  weight.is_contiguous() && weight.size(1) % 2 == 0,
              "a packed weight is a whole bf16 [N, K] with K even");
}

std::atomic<bool> without_tiles = false;

// Whether products go by AMX's tiles where the processor has them; says whether they do now.
bool use_tiles(bool wanted) {
  without_tiles = !wanted;
  return wanted && tiles::usable();
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
  const bool tiled = tiles::usable() && !without_tiles;
  const int64_t panels = p.panels();
  const int threads = static_cast<int>(std::min<int64_t>(at::get_num_threads(), panels));
#pragma omp parallel num_threads(threads)
  {
    const int64_t index = omp_get_thread_num(), count = omp_get_num_threads();
    const int64_t begin = part_begin(panels, index, count);
    const int64_t end = part_begin(panels, index + 1, count);
    tiled ? tiles::run(p, begin, end) : vectors::run(p, begin, end);
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
  library.def("use_tiles(bool wanted) -> bool", tessera::use_tiles);
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
