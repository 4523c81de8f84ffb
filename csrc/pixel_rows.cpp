#include "pixel_rows.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace fastscore {

std::int64_t pixel_stride(const at::Tensor& image, const char* op, const char* name, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(image.dim() == 4, op, ": ", name, " must have shape (B, C, H, W), got ", image.sizes());
  const char* accepted = dtype == at::kFloat ? "float32" : "bfloat16";
  TORCH_CHECK_TYPE(image.scalar_type() == dtype, op, ": ", name, " must be ", accepted, ", got ", image.scalar_type());
  const auto size = image.sizes(), stride = image.strides();
  if (image.numel() == 0) return std::max<std::int64_t>(size[1], 1);
  std::int64_t row = std::max<std::int64_t>(size[1], 1);
  if (size[3] > 1)
    row = stride[3];
  else if (size[2] > 1)
    row = stride[2];
  else if (size[0] > 1)
    row = stride[0];
  const bool fits = row >= size[1] && (size[1] == 1 || stride[1] == 1) && (size[3] == 1 || stride[3] == row) &&
                    (size[2] == 1 || stride[2] == size[3] * row) &&
                    (size[0] == 1 || stride[0] == size[2] * size[3] * row);
  TORCH_CHECK_VALUE(fits, op, ": ", name, " must be channels last, or a slice of the channels of such a tensor, got ",
                    "shape ", size, " with strides ", stride);
  return row;
}

ParameterRows parameter_rows(const std::optional<at::Tensor>& parameter, std::int64_t rows, std::int64_t columns,
                             const char* op, const char* name) {
  if (!parameter) return {};
  TORCH_CHECK_VALUE(parameter->dim() == 2 && parameter->size(0) == rows && parameter->size(1) == columns, op, ": ",
                    name, " must have shape [", rows, ", ", columns, "], got ", parameter->sizes());
  TORCH_CHECK_TYPE(parameter->scalar_type() == at::kFloat, op, ": ", name, " must be float32, got ",
                   parameter->scalar_type());
  TORCH_CHECK_VALUE(columns <= 1 || rows == 0 || parameter->stride(1) == 1, op, ": ", name,
                    " must have rows without gaps, got strides ", parameter->strides());
  return {parameter->const_data_ptr<float>(), parameter->stride(0)};
}

const float* parameter_row(const std::optional<at::Tensor>& parameter, std::int64_t columns, const char* op,
                           const char* name) {
  if (!parameter) return nullptr;
  TORCH_CHECK_VALUE(parameter->dim() == 1 && parameter->size(0) == columns, op, ": ", name, " must have shape [",
                    columns, "], got ", parameter->sizes());
  TORCH_CHECK_TYPE(parameter->scalar_type() == at::kFloat, op, ": ", name, " must be float32, got ",
                   parameter->scalar_type());
  TORCH_CHECK_VALUE(columns <= 1 || parameter->stride(0) == 1, op, ": ", name, " must have no gaps, got strides ",
                    parameter->strides());
  return parameter->const_data_ptr<float>();
}

std::int64_t strip_stride(const at::Tensor& statistics, std::int64_t batch, std::int64_t strips, std::int64_t channels,
                          const char* op) {
  const std::int64_t shape[] = {batch, strips, 3, channels};
  TORCH_CHECK_VALUE(statistics.sizes() == at::IntArrayRef(shape), op, ": statistics must have shape ",
                    at::IntArrayRef(shape), ", got ", statistics.sizes());
  TORCH_CHECK_TYPE(statistics.scalar_type() == at::kFloat, op, ": statistics must be float32, got ",
                   statistics.scalar_type());
  const auto stride = statistics.strides();
  const std::int64_t row = stride[2];
  const bool fits = row >= channels && (channels == 1 || stride[3] == 1) && (strips <= 1 || stride[1] == 3 * row) &&
                    (batch <= 1 || stride[0] == strips * 3 * row);
  TORCH_CHECK_VALUE(fits, op,
                    ": statistics must be contiguous, or a slice of the channels of such a tensor, got strides ",
                    stride, " for shape ", statistics.sizes());
  return row;
}

void check_apart(const at::Tensor& image, const at::Tensor& out, const char* op, const char* name) {
  if (image.numel() == 0 || out.numel() == 0) return;
  const at::ScalarType dtype = out.scalar_type();
  const std::int64_t row = pixel_stride(out, op, "out", dtype), other = pixel_stride(image, op, name, dtype);
  const auto length = [](const at::Tensor& t, std::int64_t stride) {
    return (t.numel() / t.size(1) - 1) * stride + t.size(1);
  };
  const auto size = static_cast<std::int64_t>(out.element_size());
  const auto *written = static_cast<const char*>(out.const_data_ptr()),
             *read = static_cast<const char*>(image.const_data_ptr());
  if (read + length(image, other) * size <= written || written + length(out, row) * size <= read) return;
  const std::int64_t between = ((read - written) / size % row + row) % row;
  TORCH_CHECK_VALUE(row == other && between >= out.size(1) && between + image.size(1) <= row, op, ": ", name,
                    " must share no memory with out");
}

}  // namespace fastscore
