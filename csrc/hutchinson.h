// The torch side of hutchinson and hutchinson_probe.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>
#include <tuple>

#include "fastscore/hutchinson.h"

namespace fastscore {

using HutchinsonLaunch = void (*)(const HutchinsonArgs& args, const at::Tensor& out);
using HutchinsonProbeLaunch = void (*)(const HutchinsonProbeArgs& args, const at::Tensor& out);

// Check what would crash a kernel, and launch.
std::tuple<at::Tensor, at::Tensor> hutchinson(const at::Tensor& jvp, const at::Tensor& rng, const at::Tensor& samples,
                                              std::string_view kind, HutchinsonLaunch launch);
at::Tensor hutchinson_probe(const at::Tensor& rng, const at::Tensor& samples, const std::optional<at::Tensor>& weight,
                            std::int64_t probes, at::IntArrayRef shape, at::ScalarType dtype, std::string_view kind,
                            bool channels_last, HutchinsonProbeLaunch launch);

void hutchinson_launch_cpu(const HutchinsonArgs& args, const at::Tensor& out);
void hutchinson_probe_launch_cpu(const HutchinsonProbeArgs& args, const at::Tensor& out);

}  // namespace fastscore
