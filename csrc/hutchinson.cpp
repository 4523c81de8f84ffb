#include "hutchinson.h"

#include <ATen/ops/empty_strided.h>

#include "checks.h"
#include "tensors.h"

namespace fastscore {
namespace {

bool are_signs(const char* op, std::string_view kind) {
  TORCH_CHECK_VALUE(kind == "rademacher" || kind == "gaussian", op, ": kind must be 'rademacher' or 'gaussian', got '",
                    kind, "'");
  return kind == "rademacher";
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> hutchinson(const at::Tensor& jvp, const at::Tensor& rng, const at::Tensor& samples,
                                              std::string_view kind, HutchinsonLaunch launch) {
  constexpr const char* op = "hutchinson";
  TORCH_CHECK_VALUE(jvp.dim() >= 2 && jvp.size(0) >= 1, op, ": jvp must have shape (K, B, ...) with K >= 1, got ",
                    jvp.sizes());
  check_noise(op, jvp.select(0, 0), std::nullopt, rng, samples);
  HutchinsonArgs args;
  args.dtype = dtype_of(jvp, op, "jvp");
  args.signs = are_signs(op, kind);
  args.probes = jvp.size(0);
  args.batch = jvp.size(1);
  const auto options = jvp.options().dtype(args.dtype == Dtype::f64 ? at::kDouble : at::kFloat);
  const at::Tensor estimate = at::empty_strided({args.batch}, {1}, options);
  const at::Tensor products = at::empty_strided({args.probes, args.batch}, {args.batch, 1}, options);
  if (jvp.numel() == 0) return {estimate.zero_(), products.zero_()};

  const at::Tensor rows = jvp.select(0, 0);
  const bool contiguous = has_layout(rows, Layout::contiguous);
  const bool last = !contiguous && has_layout(rows, Layout::channels_last);
  const at::Tensor source = contiguous || last ? jvp : jvp.contiguous();
  const at::Tensor state = rng.contiguous(), index = samples.contiguous();
  args.jvp = source.const_data_ptr();
  args.probe_stride = source.stride(0);
  args.sample_stride = source.stride(1);
  args.estimate = estimate.mutable_data_ptr();
  args.products = products.mutable_data_ptr();
  args.rng = state.const_data_ptr<std::int64_t>();
  args.samples = index.const_data_ptr<std::int64_t>();
  args.channels = last ? jvp.size(2) : 1;
  args.pixels = jvp.numel() / (args.probes * args.batch * args.channels);
  launch(args, estimate);
  return {estimate, products};
}

at::Tensor hutchinson_probe(const at::Tensor& rng, const at::Tensor& samples, const std::optional<at::Tensor>& weight,
                            std::int64_t probes, at::IntArrayRef shape, at::ScalarType dtype, std::string_view kind,
                            bool channels_last, HutchinsonProbeLaunch launch) {
  constexpr const char* op = "hutchinson_probe";
  TORCH_CHECK_VALUE(probes >= 1, op, ": probes must be at least 1, got ", probes);
  TORCH_CHECK_VALUE(shape.size() >= (channels_last ? 2 : 1), op, ": shape must be (B, ...), or (B, C, ...), got ",
                    shape);
  const auto inner = dense_strides(shape, channels_last ? Layout::channels_last : Layout::contiguous);
  at::DimVector sizes = {probes}, strides = {std::max<std::int64_t>(c10::multiply_integers(shape), 1)};
  sizes.append(shape.begin(), shape.end());
  strides.append(inner.begin(), inner.end());
  const at::Tensor out = new_result(sizes, strides, rng.options().dtype(dtype));
  check_noise(op, out.select(0, 0), std::nullopt, rng, samples);
  HutchinsonProbeArgs args;
  args.dtype = dtype_of(out, op, "dtype");
  args.signs = are_signs(op, kind);
  args.probes = probes;
  args.batch = shape[0];
  at::Tensor factor;
  if (weight) {
    const at::ScalarType real = args.dtype == Dtype::f64 ? at::kDouble : at::kFloat;
    TORCH_CHECK_TYPE(weight->scalar_type() == real, op, ": weight must be ", real, ", got ", weight->scalar_type());
    TORCH_CHECK_VALUE(weight->sizes() == at::IntArrayRef({probes, shape[0]}), op, ": weight must have shape (", probes,
                      ", ", shape[0], "), got ", weight->sizes());
    TORCH_CHECK_VALUE(weight->device() == out.device(), op, ": weight must be on ", out.device(), ", got ",
                      weight->device());
    factor = weight->contiguous();
    args.weight = factor.const_data_ptr();
  }
  if (out.numel() == 0) return out;

  const at::Tensor state = rng.contiguous(), index = samples.contiguous();
  args.out = out.mutable_data_ptr();
  args.rng = state.const_data_ptr<std::int64_t>();
  args.samples = index.const_data_ptr<std::int64_t>();
  args.channels = channels_last ? shape[1] : 1;
  args.pixels = out.numel() / (probes * args.batch * args.channels);
  launch(args, out);
  return out;
}

}  // namespace fastscore
