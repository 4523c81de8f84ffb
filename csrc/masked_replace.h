// The torch side of masked_replace, shared by the CPU and the CUDA registration.
#pragma once

#include <ATen/core/Tensor.h>

#include "fastscore/masked_replace.h"

namespace fastscore {

using MaskedReplaceLaunch = void (*)(const MaskedReplaceArgs& args, const at::Tensor& x);

// Checks what would crash a kernel, brings the operands to one layout, and launches.
void masked_replace_(const at::Tensor& x, const at::Tensor& known, const at::Tensor& mask,
                     const at::Tensor& coefficients, const std::optional<at::Tensor>& noise,
                     const std::optional<at::Tensor>& rng, const std::optional<at::Tensor>& samples,
                     MaskedReplaceLaunch launch);

}  // namespace fastscore
