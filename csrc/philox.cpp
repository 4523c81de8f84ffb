#include "philox.h"

#include "tensors.h"

namespace fastscore {

at::Tensor philox_noise(const char* op, const at::Tensor& rng, const at::Tensor& samples, at::IntArrayRef shape,
                        at::ScalarType dtype, PhiloxLaunch launch) {
  TORCH_CHECK_TYPE(rng.scalar_type() == at::kLong && samples.scalar_type() == at::kLong, op,
                   ": rng and samples must be int64, got ", rng.scalar_type(), " and ", samples.scalar_type());
  TORCH_CHECK_VALUE(rng.dim() == 1 && rng.size(0) == 2, op, ": rng must have shape (2,), got ", rng.sizes());
  TORCH_CHECK_VALUE(!shape.empty(), op, ": shape must have a batch dimension, got ()");
  TORCH_CHECK_VALUE(samples.dim() == 1 && samples.size(0) == shape[0], op, ": samples must have shape (", shape[0],
                    ",), got ", samples.sizes());
  TORCH_CHECK_VALUE(samples.device() == rng.device(), op, ": samples must be on ", rng.device(), ", got ",
                    samples.device());
  const at::Tensor out = new_result(shape, dense_strides(shape, Layout::contiguous), rng.options().dtype(dtype));
  const at::Tensor state = rng.contiguous(), index = samples.contiguous();
  PhiloxArgs args;
  args.dtype = dtype_of(out, op, "dtype");
  if (out.numel() == 0) return out;
  args.out = out.mutable_data_ptr();
  args.rng = state.const_data_ptr<std::int64_t>();
  args.samples = index.const_data_ptr<std::int64_t>();
  args.batch = shape[0];
  args.size = out.numel() / args.batch;
  launch(args, out);
  return out;
}

}  // namespace fastscore
