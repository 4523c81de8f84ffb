#include "cpu/error_norm.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <utility>
#include <vector>

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/simd/error_norm.h"
#include "tensors.h"

namespace fastscore {
namespace {

constexpr const char* op = "error_norm";
// Elements of a tile, and the fewest pixels it has; elements that one thread should read before a second is worth
// waking. The tiles must depend on the shape alone.
constexpr std::int64_t tile_elements = 8192, tile_pixels = 64, grain_reads = 65536;

LaunchCounter launches("error_norm");

void check(at::TensorList terms, const at::Tensor& coefficients, const at::Tensor& u, const at::Tensor& v,
           std::string_view kind) {
  TORCH_CHECK_VALUE(u.device().is_cpu(), op, ": u must be a CPU tensor, got one on ", u.device());
  TORCH_CHECK_VALUE(u.dim() >= 1, op, ": u must have a batch dimension, got shape ()");
  check_like(op, "v", v, u, "u");
  TORCH_CHECK_VALUE(!terms.empty() && terms.size() <= max_error_terms, op, ": terms must hold 1 to ", max_error_terms,
                    " tensors, got ", terms.size());
  for (const at::Tensor& term : terms) check_like(op, "terms", term, u, "u");
  check_coefficients(op, coefficients, u, static_cast<std::int64_t>(terms.size()));
  TORCH_CHECK_VALUE(kind == "sum" || kind == "max", op, ": kind must be 'sum' or 'max', got '", kind, "'");
}

// The mean over each sample from the sums of its tiles, added up in order of the tiles, and its root.
template <class Real>
void norms_from(const std::vector<double>& sums, std::int64_t tiles, std::int64_t elements, at::Tensor& out) {
  auto* norm = out.mutable_data_ptr<Real>();
  for (std::int64_t b = 0; b < out.size(0); ++b) {
    double total = 0;
    for (std::int64_t t = b * tiles; t < (b + 1) * tiles; ++t) total += sums[t];
    norm[b] = static_cast<Real>(std::sqrt(total / static_cast<double>(elements)));
  }
}

}  // namespace

at::Tensor error_norm_cpu(at::TensorList terms, const at::Tensor& coefficients, const at::Tensor& u,
                          const at::Tensor& v, double atol, double rtol, std::string_view kind) {
  check(terms, coefficients, u, v, kind);
  at::Tensor out = coefficients.new_zeros({u.size(0)});
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
                       args.channels > 1 && args.channels <= error_norm_channels;
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

  const std::int64_t pixels = std::max(tile_elements / args.channels / 16 * 16, tile_pixels);
  const ErrorNormTiles tiles{pixels, (args.pixels + pixels - 1) / pixels};
  const std::int64_t reads = std::min(pixels, args.pixels) * args.channels * (args.term_count + 2);
  std::vector<double> sums(args.batch * tiles.per_sample);
  const auto kernel = FASTSCORE_KERNEL(error_norm);
  at::parallel_for(0, args.batch * tiles.per_sample, std::max<std::int64_t>(grain_reads / reads, 1),
                   [&](std::int64_t begin, std::int64_t end) { kernel(args, tiles, sums.data(), begin, end); });
  if (args.dtype == Dtype::f64) {
    norms_from<double>(sums, tiles.per_sample, elements, out);
  } else {
    norms_from<float>(sums, tiles.per_sample, elements, out);
  }
  launches.cpu();
  return out;
}

}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  m.impl("error_norm", fastscore::error_norm_cpu);
}
