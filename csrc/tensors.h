// Helpers of the torch side that more than one op needs.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>

#include "fastscore/dtype.h"

namespace fastscore {

// How the elements of one sample, tensor[b], lie in memory. `other` is everything that is not dense in one of two
// orders.
enum class Layout { contiguous, channels_last, other };

// Whether each sample is dense in the order given (dimensions of size 1 do not matter; samples may lie anywhere).
bool has_layout(const at::Tensor& tensor, Layout layout);

// The tensor itself where it has the layout, else a copy that does.
at::Tensor to_layout(const at::Tensor& tensor, Layout layout);

// `read` as an in-place op may read it while it writes `written`: a copy where the two share memory in a way that
// cannot be told, such as a row of `written` expanded over the batch; a RuntimeError where they overlap in part.
at::Tensor safe_to_read(const at::Tensor& read, const at::Tensor& written);

// The strides of a dense tensor of these sizes in the layout given.
c10::SmallVector<std::int64_t, 6> dense_strides(at::IntArrayRef sizes, Layout layout);

// A new tensor to be written as a whole. Where it is large and on a CPU, in huge pages if the system gives them.
at::Tensor new_result(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options);

// The same with the sizes and the type of x, and its strides if it is dense, else contiguous.
at::Tensor new_result_like(const at::Tensor& x);

// The element type, or a TypeError that names the op and the argument.
Dtype dtype_of(const at::Tensor& tensor, const char* op, const char* argument);

}  // namespace fastscore
