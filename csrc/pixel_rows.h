// Images (B, C, H, W) as rows of pixels: the channels of a pixel side by side, pixels equally far apart. That is
// channels-last memory, or a slice of its channels. And parameters per sample, (B, columns), float32, rows that may
// lie apart.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace fastscore {

// Elements from pixel to pixel, or an error that names the argument. Strides of dimensions of size 1 do not matter.
// dtype: float32 or bfloat16.
std::int64_t pixel_stride(const at::Tensor& image, const char* op, const char* name, at::ScalarType dtype = at::kFloat);

// Rows of a parameter: where they begin, and elements from one to the next.
struct ParameterRows {
  const float* data = nullptr;
  std::int64_t stride = 0;
};

// `parameter` of shape (rows, columns), or nothing.
ParameterRows parameter_rows(const std::optional<at::Tensor>& parameter, std::int64_t rows, std::int64_t columns,
                             const char* op, const char* name);

// `parameter` of shape (columns,), or nothing.
const float* parameter_row(const std::optional<at::Tensor>& parameter, std::int64_t columns, const char* op,
                           const char* name);

// Statistics by strips of rows, (B, strips, 3, C), float32, as conv3x3 writes them: elements from row to row. They may
// be a slice of the channels of such a tensor.
std::int64_t strip_stride(const at::Tensor& statistics, std::int64_t batch, std::int64_t strips, std::int64_t channels,
                          const char* op);

// No element of `out` is one of `image`, which is of its dtype; they may be channels of the same pixels.
void check_apart(const at::Tensor& image, const at::Tensor& out, const char* op, const char* name);

}  // namespace fastscore
