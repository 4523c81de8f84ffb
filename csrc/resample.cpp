#include "resample.h"

#include <ATen/MemoryOverlap.h>

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

void run(const at::Tensor& x, const at::Tensor& taps, std::int64_t up, std::int64_t down, std::int64_t before,
         bool flip, const at::Tensor& out, bool last, ResampleLaunch launch) {
  if (x.numel() == 0 || out.numel() == 0) {
    out.zero_();
    return;
  }
  const at::Tensor source = to_layout(x, last ? Layout::channels_last : Layout::contiguous), filter = taps.contiguous();
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
  args.out_height = out.size(2);
  args.out_width = out.size(3);
  args.channels_last = last;
  args.taps = filter.const_data_ptr();
  args.length = static_cast<int>(taps.size(0));
  args.flip = flip;
  args.up = static_cast<int>(up);
  args.down = static_cast<int>(down);
  args.before = before;
  launch(args, out);
}

}  // namespace

at::Tensor resample(const at::Tensor& x, const at::Tensor& taps, std::int64_t up, std::int64_t down,
                    std::int64_t before, at::IntArrayRef size, bool flip, ResampleLaunch launch) {
  check(x, taps, up, down, size);
  const bool last = !has_layout(x, Layout::contiguous) && has_layout(x, Layout::channels_last);
  const at::DimVector sizes = {x.size(0), x.size(1), size[0], size[1]};
  const auto strides = dense_strides(sizes, last ? Layout::channels_last : Layout::contiguous);
  const at::Tensor out = new_result(sizes, strides, x.options());
  run(x, taps, up, down, before, flip, out, last, launch);
  return out;
}

void resample_into(const at::Tensor& x, const at::Tensor& taps, std::int64_t up, std::int64_t down, std::int64_t before,
                   bool flip, const at::Tensor& out, ResampleLaunch launch) {
  TORCH_CHECK_VALUE(out.dim() == 4, op, ": out must have shape (B, C, H', W'), got ", out.sizes());
  check(x, taps, up, down, out.sizes().slice(2));
  TORCH_CHECK_VALUE(out.size(0) == x.size(0) && out.size(1) == x.size(1), op, ": out must have shape [", x.size(0),
                    ", ", x.size(1), ", H', W'], got ", out.sizes());
  TORCH_CHECK_TYPE(out.scalar_type() == x.scalar_type(), op, ": out must be ", x.scalar_type(), " as x is, got ",
                   out.scalar_type());
  TORCH_CHECK_VALUE(out.device() == x.device(), op, ": out must be on ", x.device(), ", got ", out.device());
  const bool last = !has_layout(out, Layout::contiguous);
  TORCH_CHECK_VALUE(has_layout(out, last ? Layout::channels_last : Layout::contiguous), op,
                    ": out must have dense samples, contiguous or channels last, got strides ", out.strides());
  at::assert_no_internal_overlap(out);
  at::assert_no_overlap(out, x);
  run(x, taps, up, down, before, flip, out, last, launch);
}

}  // namespace fastscore
