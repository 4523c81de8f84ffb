#include "fastscore/group_affine.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/simd/group_affine.h"
#include "cpu/workspace.h"
#include "pixel_rows.h"

namespace fastscore {
namespace {

constexpr const char* op = "group_affine_into";
constexpr std::int64_t block_elements = 16384;  // of a block, and what one thread should have before a second is worth
                                                // waking

LaunchCounter launches(op);

float* output(const at::Tensor& tensor, std::int64_t batch, std::int64_t channels, const char* name,
              std::int64_t& stride) {
  const ParameterRows rows = parameter_rows(tensor, batch, channels, op, name);
  stride = rows.stride;
  return const_cast<float*>(rows.data);
}

void group_affine_into(const at::Tensor& x, std::int64_t groups, double eps, const std::optional<at::Tensor>& weight,
                       const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& scale,
                       const std::optional<at::Tensor>& shift, const std::optional<at::Tensor>& strips,
                       std::int64_t strip_rows, const at::Tensor& gain, const at::Tensor& offset) {
  GroupAffineArgs args;
  args.pixel_stride = pixel_stride(x, op, "x");
  args.batch = x.size(0);
  args.channels = x.size(1);
  args.pixels = x.size(2) * x.size(3);
  TORCH_CHECK_VALUE(groups >= 1 && args.channels % groups == 0, op, ": groups must divide the ", args.channels,
                    " channels of x, got ", groups);
  TORCH_CHECK_VALUE(args.pixels >= 1, op, ": x must have pixels, got shape ", x.sizes());
  TORCH_CHECK_VALUE(eps >= 0, op, ": eps must be at least 0, got ", eps);
  args.groups = groups;
  args.eps = eps;
  args.weight = parameter_row(weight, args.channels, op, "weight");
  args.bias = parameter_row(bias, args.channels, op, "bias");
  const ParameterRows scales = parameter_rows(scale, args.batch, args.channels, op, "scale");
  const ParameterRows shifts = parameter_rows(shift, args.batch, args.channels, op, "shift");
  args.scale = {scales.data, scales.stride};
  args.shift = {shifts.data, shifts.stride};
  args.gain = output(gain, args.batch, args.channels, "gain", args.gain_stride);
  args.offset = output(offset, args.batch, args.channels, "offset", args.offset_stride);
  args.rows = std::min(args.pixels, std::clamp<std::int64_t>(block_elements / args.channels, 16, 128));
  if (strips) {
    TORCH_CHECK_VALUE(strip_rows >= 1, op, ": strip_rows must be at least 1, got ", strip_rows);
    args.rows = strip_rows * x.size(3);
  }
  args.blocks = (args.pixels + args.rows - 1) / args.rows;
  args.partial_stride = strips ? strip_stride(*strips, args.batch, args.blocks, args.channels, op) : args.channels;
  if (x.numel() == 0) return;

  static thread_local Workspace partial, totals;
  args.totals = totals.get<double>(args.batch * 2 * args.channels);
  const auto run = [&](auto kernel, std::int64_t count, std::int64_t elements) {
    at::parallel_for(0, count, std::max<std::int64_t>(block_elements / elements, 1),
                     [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
  };
  if (strips) {
    args.partial = const_cast<float*>(strips->const_data_ptr<float>());  // which is only read now
  } else {
    args.x = x.const_data_ptr<float>();
    args.partial = partial.get<float>(args.batch * args.blocks * 3 * args.channels);
    run(FASTSCORE_KERNEL(group_affine_sum), args.batch * args.blocks, args.rows * args.channels);
  }
  run(FASTSCORE_KERNEL(group_affine_finish), args.batch, args.blocks * args.channels);
  launches.cpu();
}

}  // namespace
}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  m.impl("group_affine_into", fastscore::group_affine_into);
}
