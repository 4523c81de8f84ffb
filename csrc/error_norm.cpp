#include "error_norm.h"

#include <utility>

#include "checks.h"
#include "tensors.h"

namespace fastscore {
namespace {

constexpr const char* op = "error_norm";
constexpr std::int64_t max_channels = 256;  // of the channels-last path; more are rearranged

void check(at::TensorList terms, const at::Tensor& coefficients, const at::Tensor& u, const at::Tensor& v,
           std::string_view kind) {
  TORCH_CHECK_VALUE(u.dim() >= 1, op, ": u must have a batch dimension, got shape ()");
  check_like(op, "v", v, u, "u");
  TORCH_CHECK_VALUE(!terms.empty() && terms.size() <= max_error_terms, op, ": terms must hold 1 to ", max_error_terms,
                    " tensors, got ", terms.size());
  for (const at::Tensor& term : terms) check_like(op, "terms", term, u, "u");
  check_coefficients(op, coefficients, u, static_cast<std::int64_t>(terms.size()));
  TORCH_CHECK_VALUE(kind == "sum" || kind == "max", op, ": kind must be 'sum' or 'max', got '", kind, "'");
}

}  // namespace

at::Tensor error_norm(at::TensorList terms, const at::Tensor& coefficients, const at::Tensor& u, const at::Tensor& v,
                      double atol, double rtol, std::string_view kind, ErrorNormLaunch launch) {
  check(terms, coefficients, u, v, kind);
  const at::Tensor out = coefficients.new_zeros({u.size(0)});
  if (u.numel() == 0) return out;

  ErrorNormArgs args;
  args.dtype = dtype_of(u, op, "u");
  args.atol = atol;
  args.rtol = rtol;
  args.larger = kind == "max";
  args.batch = u.size(0);
  const std::int64_t elements = u.numel() / args.batch;
  // Channels are told from pixels where torch knows of channels-last, unless there is but one pixel.
  if (u.dim() > 3 && u.size(1) < elements) args.channels = u.size(1);
  args.pixels = elements / args.channels;
  args.channels_last = !has_layout(u, Layout::contiguous) && has_layout(u, Layout::channels_last) &&
                       args.channels > 1 && args.channels <= max_channels;
  const Layout layout = args.channels_last ? Layout::channels_last : Layout::contiguous;

  c10::SmallVector<std::pair<at::Tensor, at::Tensor>, 2> rearranged;  // from and to; one tensor may come several times
  const auto operand = [&](const at::Tensor& tensor) {
    const auto in_layout = [&]() -> const at::Tensor& {
      if (has_layout(tensor, layout)) return tensor;
      for (const auto& [from, to] : rearranged)
        if (from.const_data_ptr() == tensor.const_data_ptr() && from.strides() == tensor.strides()) return to;
      return rearranged.emplace_back(tensor, to_layout(tensor, layout)).second;
    };
    const at::Tensor& use = in_layout();
    return ErrorNormArgs::Operand{use.const_data_ptr(), use.stride(0)};
  };
  for (const at::Tensor& term : terms) args.terms[args.term_count++] = operand(term);
  args.u = operand(u);
  args.v = operand(v);

  const at::Tensor rows = coefficients.stride(-1) == 1 ? coefficients : coefficients.contiguous();
  args.coefficients = rows.const_data_ptr();
  args.coefficient_stride = rows.dim() == 2 ? rows.stride(0) : 0;

  args.out = out.mutable_data_ptr();
  launch(args, out);
  return out;
}

}  // namespace fastscore
