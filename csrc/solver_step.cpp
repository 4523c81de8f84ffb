#include "solver_step.h"

#include <ATen/MemoryOverlap.h>

#include "checks.h"
#include "tensors.h"

namespace fastscore {
namespace {

constexpr const char* op = "solver_step";
constexpr std::int64_t max_channels = 256;  // of the channels-last path; more are rearranged

using OptionalTensor = std::optional<at::Tensor>;

// What a step reads.
struct Inputs {
  at::Tensor x, h;
  c10::SmallVector<at::Tensor, solver_max_history> history;
  at::Tensor coefficients;
  OptionalTensor exponent, noise, rng, samples;

  void check() const {
    TORCH_CHECK_VALUE(x.dim() >= 1, op, ": x must have a batch dimension, got shape ()");
    check_like(op, "h", h, x);
    TORCH_CHECK_VALUE(history.size() <= solver_max_history, op, ": history must hold at most ", solver_max_history,
                      " tensors, got ", history.size());
    for (const at::Tensor& m : history) check_like(op, "history", m, x);
    check_coefficients(op, coefficients, x, static_cast<std::int64_t>(history.size()) + 7);
    if (exponent) check_like(op, "exponent", *exponent, x);
    check_noise(op, x, noise, rng, samples);
  }

  // Makes the others safe to read while x is written.
  void guard() {
    h = safe_to_read(h, x);
    for (at::Tensor& m : history) m = safe_to_read(m, x);
    if (exponent) exponent = safe_to_read(*exponent, x);
    if (noise) noise = safe_to_read(*noise, x);
  }

  // Refuses memory that is read here.
  void keep_from(const at::Tensor& m) const {
    at::assert_no_overlap(m, x);
    at::assert_no_overlap(m, h);
    for (const at::Tensor& earlier : history) at::assert_no_overlap(m, earlier);
    if (exponent) at::assert_no_overlap(m, *exponent);
    if (noise) at::assert_no_overlap(m, *noise);
  }
};

// Runs the kernel; `out`, which may be x, and `m`, which may be undefined, have the layout.
void run(const at::Tensor& out, const at::Tensor& m, const Inputs& in, Layout layout, SolverStepLaunch launch) {
  SolverStepArgs args;
  args.dtype = dtype_of(in.x, op, "x");
  args.batch = in.x.size(0);
  args.channels = layout == Layout::channels_last ? in.x.size(1) : 1;
  args.pixels = in.x.numel() / (args.batch * args.channels);
  const std::int64_t sample_size = args.pixels * args.channels;
  bool flat = true;  // all samples of all operands lie one behind the other

  const auto stride_of = [&](const at::Tensor& tensor) {
    const std::int64_t stride = args.batch == 1 ? sample_size : tensor.stride(0);
    flat &= stride == sample_size;
    return stride;
  };
  c10::SmallVector<at::Tensor, 4> rearranged;
  const auto operand = [&](const at::Tensor& tensor) {
    const at::Tensor* use = &tensor;
    if (!has_layout(tensor, layout)) use = &rearranged.emplace_back(to_layout(tensor, layout));
    return SolverStepArgs::Operand{use->const_data_ptr(), stride_of(*use)};
  };
  args.x = operand(in.x);
  args.h = operand(in.h);
  for (const at::Tensor& earlier : in.history) args.history[args.history_count++] = operand(earlier);
  if (in.exponent && (in.noise || in.rng)) args.exponent = operand(*in.exponent);
  if (in.noise) args.noise = operand(*in.noise);
  args.out = {out.mutable_data_ptr(), stride_of(out)};
  if (m.defined()) args.m = {m.mutable_data_ptr(), stride_of(m)};

  const at::Tensor rows = in.coefficients.stride(-1) == 1 ? in.coefficients : in.coefficients.contiguous();
  args.coefficients = rows.const_data_ptr();
  args.coefficient_stride = rows.dim() == 2 ? rows.stride(0) : 0;
  at::Tensor state, index;
  if (in.rng) {
    state = in.rng->contiguous();
    index = in.samples->contiguous();
    args.rng = state.const_data_ptr<std::int64_t>();
    args.samples = index.const_data_ptr<std::int64_t>();
  } else if (flat && args.coefficient_stride == 0) {
    // Nothing tells the samples apart: they are one.
    args.pixels = in.x.numel();
    args.channels = args.batch = 1;
  }
  launch(args, out);
}

// Picks the layout by `out`; `m` has the strides of it, or is undefined.
void compute(const at::Tensor& out, const at::Tensor& m, const Inputs& in, SolverStepLaunch launch) {
  if (out.numel() == 0) return;
  if (has_layout(out, Layout::contiguous)) {
    run(out, m, in, Layout::contiguous, launch);
  } else if (has_layout(out, Layout::channels_last) && out.size(1) <= max_channels) {
    run(out, m, in, Layout::channels_last, launch);
  } else {
    const auto strides = dense_strides(out.sizes(), Layout::contiguous);
    const at::Tensor dense_out = out.new_empty_strided(out.sizes(), strides);
    const at::Tensor dense_m = m.defined() ? m.new_empty_strided(m.sizes(), strides) : m;
    run(dense_out, dense_m, in, Layout::contiguous, launch);
    out.copy_(dense_out);
    if (m.defined()) m.copy_(dense_m);
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> solver_step(const at::Tensor& x, const at::Tensor& h, at::TensorList history,
                                               const at::Tensor& coefficients, const OptionalTensor& exponent,
                                               const OptionalTensor& noise, const OptionalTensor& rng,
                                               const OptionalTensor& samples, SolverStepLaunch launch) {
  const Inputs in{x, h, {history.begin(), history.end()}, coefficients, exponent, noise, rng, samples};
  in.check();
  const at::Tensor out = new_result_like(x), m = new_result_like(x);
  compute(out, m, in, launch);
  return {out, m};
}

void solver_step_(const at::Tensor& x, const at::Tensor& h, at::TensorList history, const at::Tensor& coefficients,
                  const OptionalTensor& exponent, const OptionalTensor& noise, const OptionalTensor& rng,
                  const OptionalTensor& samples, const OptionalTensor& m, SolverStepLaunch launch) {
  Inputs in{x, h, {history.begin(), history.end()}, coefficients, exponent, noise, rng, samples};
  in.check();
  at::assert_no_internal_overlap(x);
  in.guard();
  if (!m) return compute(x, {}, in, launch);
  check_like(op, "m", *m, x);
  at::assert_no_internal_overlap(*m);
  in.keep_from(*m);
  if (m->strides() == x.strides()) return compute(x, *m, in, launch);
  const at::Tensor kept = x.new_empty_strided(x.sizes(), x.strides());
  compute(x, kept, in, launch);
  m->copy_(kept);
}

}  // namespace fastscore
