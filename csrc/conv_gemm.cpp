#include "conv_gemm.h"

#include "conv_args.h"
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
  pixel_stride(x, op, "x");  // before its sizes are asked for
  pixel_stride(out, op, "out");
  check_weights(weights, outputs, kernel, x.size(1));
  TORCH_CHECK_VALUE(stride == 1 || stride == 2, op, ": stride must be 1 or 2, got ", stride);
  TORCH_CHECK_VALUE(padding >= 0 && padding < kernel, op, ": padding must be at least 0 and less than kernel, ", kernel,
                    ", got ", padding);
  check_out(x, outputs, stride, padding, upsample, out);
  set_surroundings(args, x, outputs, {bias, shift, residual, scale, gain, offset, silu, upsample}, out, op);
  if (out.numel() == 0) return;
  args.weights = weights.const_data_ptr<float>();
  args.height = x.size(2);
  args.width = x.size(3);
  args.out_height = out.size(2);
  args.out_width = out.size(3);
  args.kernel = static_cast<int>(kernel);
  args.stride = static_cast<int>(stride);
  args.padding = static_cast<int>(padding);
  launch(args);
}

}  // namespace fastscore
