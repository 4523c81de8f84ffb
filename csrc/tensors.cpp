#include "tensors.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty_strided.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastscore {

c10::SmallVector<std::int64_t, 6> dense_strides(at::IntArrayRef sizes, Layout layout) {
  c10::SmallVector<std::int64_t, 6> strides(sizes.size());
  std::int64_t expected = 1;
  const auto next = [&](std::size_t d) {
    strides[d] = expected;
    expected *= std::max<std::int64_t>(sizes[d], 1);
  };
  const bool last = layout == Layout::channels_last && sizes.size() > 1;
  if (last) next(1);
  for (std::size_t d = sizes.size(); d-- > 0;)
    if (!(last && d == 1)) next(d);
  return strides;
}

bool has_layout(const at::Tensor& tensor, Layout layout) {
  if (layout == Layout::other) return true;
  if (tensor.numel() == 0) return true;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const std::size_t dims = sizes.size();
  std::int64_t expected = 1;
  const auto next = [&](std::size_t d) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
    return true;
  };
  const bool last = layout == Layout::channels_last && dims > 1;
  if (last && !next(1)) return false;
  for (std::size_t d = dims; d-- > (last ? 2 : 1);)
    if (!next(d)) return false;
  return true;
}

at::Tensor to_layout(const at::Tensor& tensor, Layout layout) {
  if (has_layout(tensor, layout)) return tensor;
  at::Tensor copy = tensor.new_empty_strided(tensor.sizes(), dense_strides(tensor.sizes(), layout));
  copy.copy_(tensor);
  return copy;
}

at::Tensor new_result(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options) {
  const at::Tensor out = at::empty_strided(sizes, strides, options);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // From 32 MiB on glibc maps every block anew, and page faults take longer than the arithmetic: 8,192 of them, or 16.
  constexpr std::size_t always_mapped = 32 << 20, huge = 2 << 20;
  if (out.is_cpu() && out.nbytes() >= always_mapped) {
    const auto begin = reinterpret_cast<std::uintptr_t>(out.mutable_data_ptr());
    const std::uintptr_t first = (begin + huge - 1) / huge * huge, last = (begin + out.nbytes()) / huge * huge;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: nothing is lost if it is refused
  }
#endif
  return out;
}

at::Tensor new_result_like(const at::Tensor& x) {
  const bool dense = x.numel() > 0 && x.is_non_overlapping_and_dense();
  const auto contiguous = dense_strides(x.sizes(), Layout::contiguous);
  return new_result(x.sizes(), dense ? x.strides() : at::IntArrayRef(contiguous), x.options());
}

at::Tensor safe_to_read(const at::Tensor& read, const at::Tensor& written) {
  at::assert_no_partial_overlap(read, written);
  const bool unclear = at::get_overlap_status(read, written) == at::MemOverlapStatus::TooHard;
  return unclear && read.is_alias_of(written) ? read.clone() : read;
}

Dtype dtype_of(const at::Tensor& tensor, const char* op, const char* argument) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Dtype::f32;
    case at::kDouble:
      return Dtype::f64;
    case at::kBFloat16:
      return Dtype::bf16;
    case at::kHalf:
      return Dtype::f16;
    default:
      TORCH_CHECK_TYPE(false, op, ": ", argument, " must be float32, float64, bfloat16 or float16, got ",
                       tensor.scalar_type());
  }
}

}  // namespace fastscore
