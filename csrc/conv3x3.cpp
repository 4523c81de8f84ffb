#include "conv3x3.h"

#include "checks.h"
#include "conv_args.h"
#include "pixel_rows.h"
#include "tensors.h"

namespace fastscore {
namespace {

constexpr const char* op = "conv3x3_winograd";

// In float32, in one piece.
std::optional<at::Tensor> parameter(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional(tensor->to(at::kFloat).contiguous()) : std::nullopt;
}

void check_dtype(const at::Tensor& x) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, op,
                   ": x must be float32 or bfloat16, got ", x.scalar_type());
}

void check_weights(const at::Tensor& weights, std::int64_t outputs, std::int64_t tile, std::int64_t channels) {
  TORCH_CHECK_VALUE(tile == 2 || tile == 4, op, ": tile must be 2 or 4, got ", tile);
  TORCH_CHECK_VALUE(outputs >= 1, op, ": outputs must be at least 1, got ", outputs);
  const std::int64_t panel = conv3x3_panel();
  const std::int64_t packed[] = {(outputs + panel - 1) / panel, (tile + 2) * (tile + 2), channels, panel};
  TORCH_CHECK_VALUE(weights.sizes() == at::IntArrayRef(packed) && weights.is_contiguous(), op,
                    ": weights must be contiguous, of shape ", at::IntArrayRef(packed), ", got ", weights.sizes());
  TORCH_CHECK_TYPE(weights.scalar_type() == at::kFloat, op, ": weights must be float32, got ", weights.scalar_type());
}

}  // namespace

at::Tensor conv3x3(const at::Tensor& x, const at::Tensor& weights, std::int64_t outputs, std::int64_t tile,
                   const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& shift,
                   const std::optional<at::Tensor>& residual, double scale, const std::optional<at::Tensor>& gain,
                   const std::optional<at::Tensor>& offset, bool silu, Conv3x3Launch launch) {
  TORCH_CHECK_VALUE(x.dim() == 4, op, ": x must have shape (B, C, H, W), got ", x.sizes());
  TORCH_CHECK_VALUE(outputs >= 1, op, ": outputs must be at least 1, got ", outputs);
  const bool last = !has_layout(x, Layout::contiguous) && has_layout(x, Layout::channels_last);
  const at::DimVector sizes = {x.size(0), outputs, x.size(2), x.size(3)};
  const at::Tensor out = new_result(sizes, dense_strides(sizes, Layout::channels_last), x.options());
  constexpr auto images = at::MemoryFormat::ChannelsLast;
  if (residual) check_like(op, "residual", *residual, out, "the result");
  const auto beside = residual ? std::optional(residual->contiguous(images)) : std::nullopt;
  conv3x3_into(x.contiguous(images), weights, outputs, tile, parameter(bias), parameter(shift), beside, scale,
               parameter(gain), parameter(offset), silu, false, std::nullopt, out, launch);
  return last ? out : out.contiguous();
}

void conv3x3_into(const at::Tensor& x, const at::Tensor& weights, std::int64_t outputs, std::int64_t tile,
                  const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& shift,
                  const std::optional<at::Tensor>& residual, double scale, const std::optional<at::Tensor>& gain,
                  const std::optional<at::Tensor>& offset, bool silu, bool upsample,
                  const std::optional<at::Tensor>& statistics, const at::Tensor& out, Conv3x3Launch launch) {
  Conv3x3Args args;
  check_dtype(x);
  pixel_stride(x, op, "x", x.scalar_type());  // before its sizes are asked for
  pixel_stride(out, op, "out", x.scalar_type());
  const std::int64_t batch = x.size(0), channels = x.size(1), times = upsample ? 2 : 1;
  const std::int64_t expected[] = {batch, outputs, times * x.size(2), times * x.size(3)};
  TORCH_CHECK_VALUE(out.sizes() == at::IntArrayRef(expected), op, ": out must have shape ", at::IntArrayRef(expected),
                    ", got ", out.sizes());
  check_weights(weights, outputs, tile, channels);
  set_surroundings(args, x, outputs, {bias, shift, residual, scale, gain, offset, silu, upsample}, out, op);
  if (statistics) {
    const std::int64_t strips = (out.size(2) + tile - 1) / tile;
    args.statistics_stride = strip_stride(*statistics, batch, strips, outputs, op);
    args.statistics = statistics->mutable_data_ptr<float>();
  }
  if (out.numel() == 0) return;
  args.weights = weights.const_data_ptr<float>();
  args.height = out.size(2);
  args.width = out.size(3);
  args.tile = static_cast<int>(tile);
  launch(args);
}

}  // namespace fastscore
