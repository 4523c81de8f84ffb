// What would crash a kernel, checked behind the public functions too: the raw ops of torch.ops.fastscore can be called
// by anybody. fastscore/_checks.py says the same with more words.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace fastscore {

// `tensor` has the shape, dtype and device of x, which messages call `of`.
void check_like(const char* op, const char* argument, const at::Tensor& tensor, const at::Tensor& x,
                const char* of = "x");

// Shape (columns,) or (B, columns), in float32, or float64 for a float64 x.
void check_coefficients(const char* op, const at::Tensor& coefficients, const at::Tensor& x, std::int64_t columns);

// The noise is given, or drawn from rng (2,) and samples (B,), or neither.
void check_noise(const char* op, const at::Tensor& x, const std::optional<at::Tensor>& noise,
                 const std::optional<at::Tensor>& rng, const std::optional<at::Tensor>& samples);

}  // namespace fastscore
