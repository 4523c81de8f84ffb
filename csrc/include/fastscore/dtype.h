// The element types of tensors, as plain data that CPU and CUDA code agree on.
#pragma once

#include <cstdint>

namespace fastscore {

enum class Dtype : std::int32_t { f32, f64, bf16, f16 };

// Storage of the 16-bit types on the CPU; arithmetic happens in float.
struct bf16 {
  std::uint16_t bits;
};
struct f16 {
  std::uint16_t bits;
};

}  // namespace fastscore
