// Norms, activations and rotary positions, each one pass over its rows.
//
// T rows, h channels, d head dim. Arithmetic is in float; a row's result depends on that row alone.
#include <ATen/Parallel.h>

#include <cmath>
#include <optional>

#include "common.h"
#include "vectors.h"

namespace tessera {
namespace {

// Elements that are worth a thread of their own.
constexpr int64_t kShare = 16384;

template <typename F>
void over_rows(int64_t rows, int64_t width, const F& run) {
  const int64_t grain = std::max<int64_t>(1, kShare / std::max<int64_t>(1, width));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) run(row);
  });
}

template <typename F>
void by_type(const at::Tensor& x, const F& run) {
  if (x.scalar_type() == at::kBFloat16) {
    run(BFloat16());
  } else {
    TORCH_CHECK(x.scalar_type() == at::kFloat, "bf16 or fp32 is needed, not ", x.scalar_type());
    run(float());
  }
}

template <typename T>
T* data(const at::Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

void check_rows(const at::Tensor& x) {
  TORCH_CHECK(x.dim() >= 2 && x.dim() <= 3 && x.stride(-1) == 1,
              "rows of side by side channels are needed");
}

// Where row `row` of [rows, h] or [T, n, h] begins.
int64_t begin_of(const at::Tensor& x, int64_t row) {
  if (x.dim() == 2) return row * x.stride(0);
  return row / x.size(1) * x.stride(0) + row % x.size(1) * x.stride(1);
}

// y = norm(x + delta); the sum is written over x. Without `delta`, x is only read. Layer norm where
// `centred`: the mean is taken off first, and `bias` added.
template <typename T>
void norm_row(T* x, const T* delta, const T* weight, const T* bias, bool centred, float epsilon,
              int64_t width, T* y) {
  __m512 sum = _mm512_setzero_ps();
  __m512 squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < width; i += kLanes) {
    const __mmask16 mask = lanes(width - i);
    __m512 value = load(x + i, mask);
    if (delta != nullptr) {
      value = rounded(T(), _mm512_add_ps(value, load(delta + i, mask)));
      store(x + i, value, mask);
    }
    sum = _mm512_add_ps(sum, value);
    squares = _mm512_fmadd_ps(value, value, squares);
  }
  float mean = 0.0f;
  float spread = _mm512_reduce_add_ps(squares) / width;
  if (centred) {
    mean = _mm512_reduce_add_ps(sum) / width;
    squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += kLanes) {
      const __mmask16 mask = lanes(width - i);
      const __m512 off = _mm512_maskz_sub_ps(mask, load(x + i, mask), _mm512_set1_ps(mean));
      squares = _mm512_fmadd_ps(off, off, squares);
    }
    spread = _mm512_reduce_add_ps(squares) / width;
  }
  const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(spread + epsilon));
  for (int64_t i = 0; i < width; i += kLanes) {
    const __mmask16 mask = lanes(width - i);
    __m512 value = _mm512_sub_ps(load(x + i, mask), _mm512_set1_ps(mean));
    value = _mm512_mul_ps(_mm512_mul_ps(value, scale), load(weight + i, mask));
    if (bias != nullptr) value = _mm512_add_ps(value, load(bias + i, mask));
    store(y + i, value, mask);
  }
}

void norm_into(const at::Tensor& x, const at::Tensor* delta, const at::Tensor& weight,
               const std::optional<at::Tensor>& bias, bool centred, double epsilon,
               const at::Tensor& out) {
  const int64_t width = x.size(-1), rows = width == 0 ? 0 : x.numel() / width;
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    over_rows(rows, width, [&](int64_t row) {
      norm_row<T>(data<T>(x) + begin_of(x, row),
                  delta == nullptr ? nullptr : data<T>(*delta) + begin_of(*delta, row),
                  data<T>(weight), bias ? data<T>(*bias) : nullptr, centred, epsilon, width,
                  data<T>(out) + row * width);
    });
  });
}

void check_norm(const at::Tensor& x, const at::Tensor& weight,
                const std::optional<at::Tensor>& bias) {
  check_rows(x);
  TORCH_CHECK(weight.dim() == 1 && weight.size(0) == x.size(-1) && weight.is_contiguous() &&
                  weight.scalar_type() == x.scalar_type(),
              "a norm's weight is one number for each channel, in the format of its input");
  TORCH_CHECK(!bias || (bias->sizes() == weight.sizes() && bias->is_contiguous() &&
                        bias->scalar_type() == x.scalar_type()),
              "a norm's bias is like its weight");
}

at::Tensor norm(const at::Tensor& x, const at::Tensor& weight,
                const std::optional<at::Tensor>& bias, bool centred, double epsilon) {
  check_norm(x, weight, bias);
  at::Tensor out = at::empty(x.sizes(), x.options());
  norm_into(x, nullptr, weight, bias, centred, epsilon, out);
  return out;
}

at::Tensor add_norm(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight,
                    const std::optional<at::Tensor>& bias, bool centred, double epsilon) {
  check_norm(x, weight, bias);
  check_rows(delta);
  TORCH_CHECK(delta.sizes() == x.sizes() && delta.scalar_type() == x.scalar_type(),
              "what is added is like the residual");
  at::Tensor out = at::empty(x.sizes(), x.options());
  norm_into(x, &delta, weight, bias, centred, epsilon, out);
  return out;
}

// silu(x) = x σ(x); gelu with tanh (arXiv 1606.08415) = x σ(2 √(2/π) (x + 0.044715 x³)).
inline __m512 activated(__m512 x, bool gelu) {
  if (!gelu) return _mm512_mul_ps(x, sigmoid(x));
  const __m512 cubic =
      _mm512_fmadd_ps(_mm512_mul_ps(_mm512_mul_ps(x, x), x), _mm512_set1_ps(0.044715f), x);
  return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(cubic, _mm512_set1_ps(1.5957691216057308f))));
}

// wide [T, c], or [T, 2c] of gate and up where `gated` → [T, c].
at::Tensor activation(const at::Tensor& wide, bool gelu, bool gated) {
  check_rows(wide);
  TORCH_CHECK(wide.dim() == 2, "activations are [T, c]");
  const int64_t rows = wide.size(0), width = gated ? wide.size(1) / 2 : wide.size(1);
  at::Tensor out = at::empty({rows, width}, wide.options());
  by_type(wide, [&](auto zero) {
    using T = decltype(zero);
    over_rows(rows, 4 * width, [&](int64_t row) {
      const T* gate = data<T>(wide) + row * wide.stride(0);
      T* to = data<T>(out) + row * width;
      for (int64_t i = 0; i < width; i += kLanes) {
        const __mmask16 mask = lanes(width - i);
        __m512 value = activated(load(gate + i, mask), gelu);
        if (gated) value = _mm512_mul_ps(value, load(gate + width + i, mask));
        store(to + i, value, mask);
      }
    });
  });
  return out;
}

// Channels i and i + dim/2 of each head of x [T, n, d] are turned by the row's angles, in place;
// cos and sin [T, dim/2] in float.
void rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t rows = x.size(0), heads = x.size(1), half = cos.size(1);
  TORCH_CHECK(x.dim() == 3 && x.stride(2) == 1 && 2 * half <= x.size(2), "x is [T, n, d], dim ≤ d");
  TORCH_CHECK(cos.scalar_type() == at::kFloat && cos.is_contiguous() && cos.size(0) == rows &&
                  sin.scalar_type() == at::kFloat && sin.is_contiguous() &&
                  sin.sizes() == cos.sizes(),
              "cos and sin are float, [T, dim / 2]");
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    over_rows(rows, heads * half, [&](int64_t row) {
      const float* c = data<float>(cos) + row * half;
      const float* s = data<float>(sin) + row * half;
      for (int64_t head = 0; head < heads; ++head) {
        T* left = data<T>(x) + row * x.stride(0) + head * x.stride(1);
        T* right = left + half;
        for (int64_t i = 0; i < half; i += kLanes) {
          const __mmask16 mask = lanes(half - i);
          const __m512 a = load(left + i, mask), b = load(right + i, mask);
          const __m512 cosine = load(c + i, mask), sine = load(s + i, mask);
          store(left + i, _mm512_fmsub_ps(a, cosine, _mm512_mul_ps(b, sine)), mask);
          store(right + i, _mm512_fmadd_ps(b, cosine, _mm512_mul_ps(a, sine)), mask);
        }
      }
    });
  });
}

at::Tensor norm_meta(const at::Tensor& x, const at::Tensor&, const std::optional<at::Tensor>&, bool,
                     double) {
  return at::empty_symint(x.sym_sizes(), x.options());
}

at::Tensor add_norm_meta(const at::Tensor& x, const at::Tensor&, const at::Tensor&,
                         const std::optional<at::Tensor>&, bool, double) {
  return at::empty_symint(x.sym_sizes(), x.options());
}

at::Tensor activation_meta(const at::Tensor& wide, bool, bool gated) {
  const c10::SymInt width = gated ? wide.sym_size(1) / 2 : wide.sym_size(1);
  return at::empty_symint({wide.sym_size(0), width}, wide.options());
}

void rotate_meta(const at::Tensor&, const at::Tensor&, const at::Tensor&) {}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tessera_native, library) {
  library.def("norm(Tensor x, Tensor weight, Tensor? bias, bool centred, float epsilon) -> Tensor");
  library.def(
      "add_norm(Tensor(a!) x, Tensor delta, Tensor weight, Tensor? bias, bool centred, "
      "float epsilon) -> Tensor");
  library.def("activation(Tensor wide, bool gelu, bool gated) -> Tensor");
  library.def("rotate(Tensor(a!) x, Tensor cos, Tensor sin) -> ()");
}

TORCH_LIBRARY_IMPL(tessera_native, CPU, library) {
  library.impl("norm", norm);
  library.impl("add_norm", add_norm);
  library.impl("activation", activation);
  library.impl("rotate", rotate);
}

TORCH_LIBRARY_IMPL(tessera_native, Meta, library) {
  library.impl("norm", norm_meta);
  library.impl("add_norm", add_norm_meta);
  library.impl("activation", activation_meta);
  library.impl("rotate", rotate_meta);
}

}  // namespace tessera
