#include "resample.h"

#include "tensors.h"

namespace fastscore {
namespace {

constexpr const char* op = "resample";
constexpr std::int64_t max_side = std::int64_t{1} << 30;

void check(const at::Tensor& x, const at::Tensor& taps, std::int64_t up, std::int64_t down, at::IntArrayRef size) {
  TORCH_CHECK_VALUE(x.dim() == 4, op, ": x must have shape (B, C, H, W), got ", x.sizes());
  const at::ScalarType real = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_TYPE(taps.scalar_type() == real, op, ": taps must be ", real, " for ", x.scalar_type(), " x, got ",
                   taps.scalar_type());
  TORCH_CHECK_VALUE(taps.dim() == 2 && taps.size(0) == taps.size(1) && taps.size(0) >= 1 && taps.size(0) <= max_taps,
                    op, ": taps must have shape (L, L), 1 <= L <= ", max_taps, ", got ", taps.sizes());
  TORCH_CHECK_VALUE(taps.device() == x.device(), op, ": taps must be on ", x.device(), ", got ", taps.device());
  TORCH_CHECK_VALUE(up >= 1 && down >= 1 && up * down <= 2, op, ": up and down must be 1 or 2, not both 2, got ", up,
                    " and ", down);
  TORCH_CHECK_VALUE(size.size() == 2 && size[0] >= 0 && size[1] >= 0, op, ": size must be (H', W'), got ", size);
  for (const std::int64_t side : {x.size(2), x.size(3), size[0], size[1]})
    TORCH_CHECK_VALUE(side < max_side, op, ": heights and widths must be below 2^30, got ", side);
}

}  // namespace

at::Tensor resample(const at::Tensor& x, const at::Tensor& taps, std::int64_t up, std::int64_t down,
                    std::int64_t before, at::IntArrayRef size, bool flip, ResampleLaunch launch) {
  check(x, taps, up, down, size);
  const bool last = !has_layout(x, Layout::contiguous) && has_layout(x, Layout::channels_last);
  const Layout layout = last ? Layout::channels_last : Layout::contiguous;
  const at::DimVector sizes = {x.size(0), x.size(1), size[0], size[1]};
  const at::Tensor out = new_result(sizes, dense_strides(sizes, layout), x.options());
  if (x.numel() == 0 || out.numel() == 0) return out.zero_();

  const at::Tensor source = to_layout(x, layout), filter = taps.contiguous();
  ResampleArgs args;
  args.dtype = dtype_of(x, op, "x");
  args.x = source.const_data_ptr();
  args.x_stride = source.stride(0);
  args.out = out.mutable_data_ptr();
  args.out_stride = out.stride(0);
  args.batch = x.size(0);
  args.channels = x.size(1);
  args.height = x.size(2);
  args.width = x.size(3);
  args.out_height = size[0];
  args.out_width = size[1];
  args.channels_last = last;
  args.taps = filter.const_data_ptr();
  args.length = static_cast<int>(taps.size(0));
  args.flip = flip;
  args.up = static_cast<int>(up);
  args.down = static_cast<int>(down);
  args.before = before;
  launch(args, out);
  return out;
}

}  // namespace fastscore
