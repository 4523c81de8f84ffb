#include "checks.h"

#include <c10/util/Exception.h>

namespace fastscore {

void check_like(const char* op, const char* argument, const at::Tensor& tensor, const at::Tensor& x, const char* of) {
  TORCH_CHECK_VALUE(tensor.sizes() == x.sizes(), op, ": ", argument, " must have the shape of ", of, ", ", x.sizes(),
                    ", got ", tensor.sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == x.scalar_type(), op, ": ", argument, " must have the dtype of ", of, ", ",
                   x.scalar_type(), ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == x.device(), op, ": ", argument, " must be on ", x.device(), ", got ",
                    tensor.device());
}

void check_coefficients(const char* op, const at::Tensor& coefficients, const at::Tensor& x, std::int64_t columns) {
  const auto real = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_TYPE(coefficients.scalar_type() == real, op, ": coefficients must be ", real, " for ", x.scalar_type(),
                   " tensors, got ", coefficients.scalar_type());
  TORCH_CHECK_VALUE(coefficients.device() == x.device(), op, ": coefficients must be on ", x.device(), ", got ",
                    coefficients.device());
  const bool row = coefficients.dim() == 1 && coefficients.size(0) == columns;
  const bool table = coefficients.dim() == 2 && coefficients.size(0) == x.size(0) && coefficients.size(1) == columns;
  TORCH_CHECK_VALUE(row || table, op, ": coefficients must have shape (", columns, ",) or (", x.size(0), ", ", columns,
                    "), got ", coefficients.sizes());
}

void check_noise(const char* op, const at::Tensor& x, const std::optional<at::Tensor>& noise,
                 const std::optional<at::Tensor>& rng, const std::optional<at::Tensor>& samples) {
  TORCH_CHECK_VALUE(!noise || (!rng && !samples), op, ": give noise, or rng and samples, not both");
  TORCH_CHECK_VALUE(rng.has_value() == samples.has_value(), op, ": rng and samples go together");
  if (noise) check_like(op, "noise", *noise, x);
  if (!rng) return;
  TORCH_CHECK_TYPE(rng->scalar_type() == at::kLong && samples->scalar_type() == at::kLong, op,
                   ": rng and samples must be int64, got ", rng->scalar_type(), " and ", samples->scalar_type());
  TORCH_CHECK_VALUE(rng->dim() == 1 && rng->size(0) == 2, op, ": rng must have shape (2,), got ", rng->sizes());
  TORCH_CHECK_VALUE(samples->dim() == 1 && samples->size(0) == x.size(0), op, ": samples must have shape (", x.size(0),
                    ",), got ", samples->sizes());
  TORCH_CHECK_VALUE(rng->device() == x.device() && samples->device() == x.device(), op, ": rng and samples must be on ",
                    x.device(), ", got ", rng->device(), " and ", samples->device());
}

}  // namespace fastscore
