#include "conv3x3.h"

#include "checks.h"
#include "tensors.h"

namespace fastscore {
namespace {

constexpr const char* op = "conv3x3_winograd";

// Rows and columns of a parameter: (columns,) for rows = 0.
const float* parameter(const std::optional<at::Tensor>& tensor, const char* name, std::int64_t rows,
                       std::int64_t columns, std::optional<at::Tensor>& keep) {
  if (!tensor) return nullptr;
  const at::DimVector shape = rows == 0 ? at::DimVector{columns} : at::DimVector{rows, columns};
  TORCH_CHECK_VALUE(tensor->sizes() == at::IntArrayRef(shape), op, ": ", name, " must have shape ", shape, ", got ",
                    tensor->sizes());
  TORCH_CHECK_TYPE(tensor->scalar_type() == at::kFloat, op, ": ", name, " must be float32, got ",
                   tensor->scalar_type());
  keep = tensor->contiguous();
  return keep->const_data_ptr<float>();
}

}  // namespace

at::Tensor conv3x3(const at::Tensor& x, const at::Tensor& weights, std::int64_t outputs, std::int64_t tile,
                   const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& shift,
                   const std::optional<at::Tensor>& residual, double scale, const std::optional<at::Tensor>& gain,
                   const std::optional<at::Tensor>& offset, bool silu, Conv3x3Launch launch) {
  TORCH_CHECK_VALUE(x.dim() == 4, op, ": x must have shape (B, C, H, W), got ", x.sizes());
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, op, ": x must be float32, got ", x.scalar_type());
  TORCH_CHECK_VALUE(tile == 2 || tile == 4, op, ": tile must be 2 or 4, got ", tile);
  const std::int64_t batch = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  const std::int64_t panel = conv3x3_panel();
  const at::DimVector packed = {(outputs + panel - 1) / panel, (tile + 2) * (tile + 2), channels, panel};
  TORCH_CHECK_VALUE(outputs >= 1 && weights.sizes() == at::IntArrayRef(packed) && weights.is_contiguous(), op,
                    ": weights must be contiguous, of shape ", packed, ", got ", weights.sizes());
  TORCH_CHECK_TYPE(weights.scalar_type() == at::kFloat, op, ": weights must be float32, got ", weights.scalar_type());
  TORCH_CHECK_VALUE(gain.has_value() == offset.has_value(), op, ": gain and offset must come together");

  const bool last = !has_layout(x, Layout::contiguous) && has_layout(x, Layout::channels_last);
  const at::DimVector sizes = {batch, outputs, height, width};
  at::Tensor out = x.new_empty_strided(sizes, dense_strides(sizes, Layout::channels_last));
  std::optional<at::Tensor> keep[5];
  Conv3x3Args args;
  args.bias = parameter(bias, "bias", 0, outputs, keep[0]);
  args.shift = parameter(shift, "shift", batch, outputs, keep[1]);
  args.gain = parameter(gain, "gain", batch, channels, keep[2]);
  args.offset = parameter(offset, "offset", batch, channels, keep[3]);
  if (residual) {
    check_like(op, "residual", *residual, out, "the result");
    keep[4] = residual->contiguous(at::MemoryFormat::ChannelsLast);
    args.residual = keep[4]->const_data_ptr<float>();
  }
  if (out.numel() != 0) {
    const at::Tensor source = x.contiguous(at::MemoryFormat::ChannelsLast);
    args.x = source.const_data_ptr<float>();
    args.out = out.mutable_data_ptr<float>();
    args.weights = weights.const_data_ptr<float>();
    args.batch = batch;
    args.height = height;
    args.width = width;
    args.channels = channels;
    args.outputs = outputs;
    args.tile = static_cast<int>(tile);
    args.silu = silu;
    args.scale = static_cast<float>(scale);
    launch(args);
  }
  return last ? out : out.contiguous();
}

}  // namespace fastscore
