#include "conv_args.h"

#include "checks.h"
#include "pixel_rows.h"
#include "tensors.h"

namespace fastscore {

void set_surroundings(ConvArgs& args, const at::Tensor& x, std::int64_t outputs, const Surroundings& around,
                      const at::Tensor& out, const char* op) {
  const at::ScalarType dtype = x.scalar_type();
  args.dtype = dtype_of(x, op, "x");
  args.batch = x.size(0);
  args.channels = x.size(1);
  args.outputs = outputs;
  args.x_stride = pixel_stride(x, op, "x", dtype);
  args.out_stride = pixel_stride(out, op, "out", dtype);
  args.upsample = around.upsample;
  args.silu = around.silu;
  args.scale = static_cast<float>(around.scale);
  args.bias = parameter_row(around.bias, outputs, op, "bias");
  const ParameterRows shifts = parameter_rows(around.shift, args.batch, outputs, op, "shift");
  args.shift = shifts.data;
  args.shift_stride = shifts.stride;
  TORCH_CHECK_VALUE(around.gain.has_value() == around.offset.has_value(), op, ": gain and offset must come together");
  const ParameterRows gains = parameter_rows(around.gain, args.batch, args.channels, op, "gain");
  args.gain = gains.data;
  args.gain_stride = gains.stride;
  const ParameterRows offsets = parameter_rows(around.offset, args.batch, args.channels, op, "offset");
  args.offset = offsets.data;
  args.offset_stride = offsets.stride;
  if (around.residual) {
    check_like(op, "residual", *around.residual, out, "out");
    args.residual_stride = pixel_stride(*around.residual, op, "residual", dtype);
    args.residual = around.residual->const_data_ptr();
    const bool in_place = args.residual == out.const_data_ptr() && args.residual_stride == args.out_stride;
    if (!in_place) check_apart(*around.residual, out, op, "residual");
  }
  check_apart(x, out, op, "x");
  args.x = x.const_data_ptr();
  if (out.numel() != 0) args.out = out.mutable_data_ptr();
}

}  // namespace fastscore
