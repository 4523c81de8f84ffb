#include "conv_gemm.h"

#include "checks.h"
#include "pixel_rows.h"

namespace fastscore {
namespace {

constexpr const char* op = "conv_gemm";

void check_weights(const at::Tensor& weights, std::int64_t outputs, std::int64_t kernel, std::int64_t channels) {
  TORCH_CHECK_VALUE(channels >= 1, op, ": x must have at least 1 channel, got ", channels);
  TORCH_CHECK_VALUE(outputs >= 1, op, ": outputs must be at least 1, got ", outputs);
  TORCH_CHECK_VALUE(kernel == 1 || kernel == 3, op, ": kernel must be 1 or 3, got ", kernel);
  const std::int64_t panel = conv_gemm_panel();
  const std::int64_t packed[] = {(outputs + panel - 1) / panel, kernel * kernel * channels, panel};
  TORCH_CHECK_VALUE(weights.sizes() == at::IntArrayRef(packed) && weights.is_contiguous(), op,
                    ": weights must be contiguous, of shape ", at::IntArrayRef(packed), ", got ", weights.sizes());
  TORCH_CHECK_TYPE(weights.scalar_type() == at::kFloat, op, ": weights must be float32, got ", weights.scalar_type());
}

// The last row and column of `out` begin inside of the image: further ones would be sums of zeros.
void check_out(const at::Tensor& x, std::int64_t outputs, std::int64_t stride, std::int64_t padding, bool upsample,
               const at::Tensor& out) {
  bool fits = out.size(0) == x.size(0) && out.size(1) == outputs;
  for (const int side : {2, 3})
    fits = fits && (out.size(side) - 1) * stride - padding < (upsample ? 2 : 1) * x.size(side);
  TORCH_CHECK_VALUE(fits, op, ": out must have shape [", x.size(0), ", ", outputs,
                    ", H, W] with no window beyond x of ", "shape ", x.sizes(), ", got ", out.sizes());
}

}  // namespace

void conv_gemm_into(const at::Tensor& x, const at::Tensor& weights, std::int64_t outputs, std::int64_t kernel,
                    std::int64_t stride, std::int64_t padding, const std::optional<at::Tensor>& bias,
                    const std::optional<at::Tensor>& shift, const std::optional<at::Tensor>& residual, double scale,
                    const std::optional<at::Tensor>& gain, const std::optional<at::Tensor>& offset, bool silu,
                    bool upsample, const at::Tensor& out, ConvGemmLaunch launch) {
  ConvGemmArgs args;
  args.x_stride = pixel_stride(x, op, "x");
  args.out_stride = pixel_stride(out, op, "out");
  args.batch = x.size(0);
  args.channels = x.size(1);
  check_weights(weights, outputs, kernel, args.channels);
  TORCH_CHECK_VALUE(stride == 1 || stride == 2, op, ": stride must be 1 or 2, got ", stride);
  TORCH_CHECK_VALUE(padding >= 0 && padding < kernel, op, ": padding must be at least 0 and less than kernel, ", kernel,
                    ", got ", padding);
  check_out(x, outputs, stride, padding, upsample, out);
  args.bias = parameter_row(bias, outputs, op, "bias");
  const ParameterRows shifts = parameter_rows(shift, args.batch, outputs, op, "shift");
  args.shift = shifts.data;
  args.shift_stride = shifts.stride;
  TORCH_CHECK_VALUE(gain.has_value() == offset.has_value(), op, ": gain and offset must come together");
  const ParameterRows gains = parameter_rows(gain, args.batch, args.channels, op, "gain");
  args.gain = gains.data;
  args.gain_stride = gains.stride;
  const ParameterRows offsets = parameter_rows(offset, args.batch, args.channels, op, "offset");
  args.offset = offsets.data;
  args.offset_stride = offsets.stride;
  if (residual) {
    check_like(op, "residual", *residual, out, "out");
    args.residual_stride = pixel_stride(*residual, op, "residual");
    args.residual = residual->const_data_ptr<float>();
    const bool in_place = args.residual == out.const_data_ptr<float>() && args.residual_stride == args.out_stride;
    if (!in_place) check_apart(*residual, out, op, "residual");
  }
  check_apart(x, out, op, "x");
  if (out.numel() == 0) return;
  args.x = x.const_data_ptr<float>();
  args.out = out.mutable_data_ptr<float>();
  args.weights = weights.const_data_ptr<float>();
  args.height = x.size(2);
  args.width = x.size(3);
  args.out_height = out.size(2);
  args.out_width = out.size(3);
  args.outputs = outputs;
  args.kernel = static_cast<int>(kernel);
  args.stride = static_cast<int>(stride);
  args.padding = static_cast<int>(padding);
  args.upsample = upsample;
  args.silu = silu;
  args.scale = static_cast<float>(scale);
  launch(args);
}

}  // namespace fastscore
