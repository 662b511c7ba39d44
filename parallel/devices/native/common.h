// What the kernels share. Operators are registered in each .cpp by TORCH_LIBRARY_FRAGMENT.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace tessera {

using bf16 = uint16_t;  // the bits

inline float widen(bf16 bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof value);
  return value;
}

// Part `index` of `count` equal ones of [0, total): its begin.
inline int64_t part_begin(int64_t total, int64_t index, int64_t count) {
  return total * index / count;
}

}  // namespace tessera
