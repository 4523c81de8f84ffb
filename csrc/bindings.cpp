// The module fastscore._C: build information, launch counters, the raw launchers of each backend, CUDA registration.
// The only file that knows pybind11 and the CUDA streams of torch.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include "conv3x3.h"
#include "conv_gemm.h"
#include "cpu/dispatch.h"
#include "error_norm.h"
#include "group_norm_silu.h"
#include "hutchinson.h"
#include "langevin_step.h"
#include "linear_step.h"
#include "masked_replace.h"
#include "philox.h"
#include "resample.h"
#include "solver_step.h"

#ifdef FASTSCORE_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/error_norm.h"
#include "cuda/group_norm_silu.h"
#include "cuda/hutchinson.h"
#include "cuda/langevin_step.h"
#include "cuda/linear_step.h"
#include "cuda/masked_replace.h"
#include "cuda/philox.h"
#include "cuda/resample.h"
#include "cuda/solver_step.h"
#endif

namespace py = pybind11;
using OptionalTensor = std::optional<at::Tensor>;

namespace fastscore {
namespace {

// The raw launchers of one device: what torch dispatches to, with `launch` of that device and no other.
void check_device(const at::Tensor& x, at::DeviceType type, const char* op, const char* argument = "x") {
  const std::string name = c10::DeviceTypeName(type, true);
  TORCH_CHECK_VALUE(x.device().type() == type, op, "_", name, ": ", argument, " must be a ", name,
                    " tensor, got one on ", x.device());
}

template <at::DeviceType device, auto launch>
at::Tensor linear_step_on(const at::Tensor& x, const std::vector<at::Tensor>& history, const at::Tensor& coefficients,
                          const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples) {
  check_device(x, device, "linear_step");
  return linear_step(x, history, coefficients, noise, rng, samples, launch);
}

template <at::DeviceType device, auto launch>
std::tuple<at::Tensor, at::Tensor> solver_step_on(const at::Tensor& x, const at::Tensor& h,
                                                  const std::vector<at::Tensor>& history,
                                                  const at::Tensor& coefficients, const OptionalTensor& exponent,
                                                  const OptionalTensor& noise, const OptionalTensor& rng,
                                                  const OptionalTensor& samples) {
  check_device(x, device, "solver_step");
  return solver_step(x, h, history, coefficients, exponent, noise, rng, samples, launch);
}

template <at::DeviceType device, auto launch>
at::Tensor langevin_step_on(const at::Tensor& x, const at::Tensor& h, const at::Tensor& coefficients,
                            const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples,
                            bool per_sample) {
  check_device(x, device, "langevin_step");
  return langevin_step(x, h, coefficients, noise, rng, samples, per_sample, launch);
}

template <at::DeviceType device, auto launch>
at::Tensor error_norm_on(const std::vector<at::Tensor>& terms, const at::Tensor& coefficients, const at::Tensor& u,
                         const at::Tensor& v, double atol, double rtol, std::string_view kind) {
  check_device(u, device, "error_norm", "u");
  return error_norm(terms, coefficients, u, v, atol, rtol, kind, launch);
}

template <at::DeviceType device, auto launch>
at::Tensor resample_on(const at::Tensor& x, const at::Tensor& taps, std::int64_t up, std::int64_t down,
                       std::int64_t before, const std::vector<std::int64_t>& size, bool flip) {
  check_device(x, device, "resample");
  return resample(x, taps, up, down, before, size, flip, launch);
}

template <at::DeviceType device, auto launch>
std::tuple<at::Tensor, at::Tensor> hutchinson_on(const at::Tensor& jvp, const at::Tensor& rng,
                                                 const at::Tensor& samples, std::string_view kind) {
  check_device(jvp, device, "hutchinson", "jvp");
  return hutchinson(jvp, rng, samples, kind, launch);
}

template <at::DeviceType device, auto launch>
at::Tensor hutchinson_probe_on(const at::Tensor& rng, const at::Tensor& samples, const OptionalTensor& weight,
                               std::int64_t probes, const std::vector<std::int64_t>& shape, at::ScalarType dtype,
                               std::string_view kind, bool channels_last) {
  check_device(rng, device, "hutchinson_probe", "rng");
  return hutchinson_probe(rng, samples, weight, probes, shape, dtype, kind, channels_last, launch);
}

// Gives Python linear_step_cpu or linear_step_cuda, and so on.
template <at::DeviceType device, auto linear, auto solver, auto langevin, auto error, auto resampling, auto products,
          auto probes, const GroupNormSiluLaunch& norm>
void define_launchers(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  const auto name = [](const char* op) { return op + ("_" + c10::DeviceTypeName(device, true)); };
  m.def(name("linear_step").c_str(), &linear_step_on<device, linear>, release, py::arg("x"), py::arg("history"),
        py::arg("coefficients"), py::arg("noise") = py::none(), py::arg("rng") = py::none(),
        py::arg("samples") = py::none());
  m.def(name("solver_step").c_str(), &solver_step_on<device, solver>, release, py::arg("x"), py::arg("h"),
        py::arg("history"), py::arg("coefficients"), py::arg("exponent") = py::none(), py::arg("noise") = py::none(),
        py::arg("rng") = py::none(), py::arg("samples") = py::none());
  m.def(name("langevin_step").c_str(), &langevin_step_on<device, langevin>, release, py::arg("x"), py::arg("h"),
        py::arg("coefficients"), py::arg("noise") = py::none(), py::arg("rng") = py::none(),
        py::arg("samples") = py::none(), py::arg("per_sample") = false);
  m.def(name("error_norm").c_str(), &error_norm_on<device, error>, release, py::arg("terms"), py::arg("coefficients"),
        py::arg("u"), py::arg("v"), py::arg("atol"), py::arg("rtol"), py::arg("kind") = "sum");
  m.def(name("resample").c_str(), &resample_on<device, resampling>, release, py::arg("x"), py::arg("taps"),
        py::arg("up"), py::arg("down"), py::arg("before"), py::arg("size"), py::arg("flip"));
  m.def(name("hutchinson").c_str(), &hutchinson_on<device, products>, release, py::arg("jvp"), py::arg("rng"),
        py::arg("samples"), py::arg("kind"));
  m.def(name("hutchinson_probe").c_str(), &hutchinson_probe_on<device, probes>, release, py::arg("rng"),
        py::arg("samples"), py::arg("weight"), py::arg("probes"), py::arg("shape"), py::arg("dtype"), py::arg("kind"),
        py::arg("channels_last"));
  m.def(name("group_norm_silu_fwd").c_str(), &GroupNormSiluOn<norm, group_norm_silu_fwd>::call, release);
  m.def(name("group_norm_silu_bwd").c_str(), &GroupNormSiluOn<norm, group_norm_silu_bwd>::call, release);
  m.def(name("group_norm_silu_jvp").c_str(), &GroupNormSiluOn<norm, group_norm_silu_jvp>::call, release);
}

#ifdef FASTSCORE_WITH_CUDA
// Enqueues on the stream that torch has chosen for the device of `out`.
template <class Args>
void enqueue(cudaError_t (*op)(const Args&, cudaStream_t), const Args& args, const at::Tensor& out,
             LaunchCounter& launches) {
  const c10::cuda::CUDAGuard guard(out.device());
  C10_CUDA_CHECK(op(args, c10::cuda::getCurrentCUDAStream()));
  launches.cuda();
}

// The same with memory for sums, which the allocator keeps for this stream until the kernels are done with it.
template <class Args>
void enqueue_with_scratch(cudaError_t (*op)(const Args&, cudaStream_t), std::int64_t (*doubles)(const Args&), Args args,
                          const at::Tensor& out, LaunchCounter& launches) {
  const c10::cuda::CUDAGuard guard(out.device());
  const at::Tensor scratch = at::empty({doubles(args)}, out.options().dtype(at::kDouble));
  args.scratch = scratch.mutable_data_ptr<double>();
  enqueue(op, args, out, launches);
}

LaunchCounter linear_step_launches("linear_step"), solver_step_launches("solver_step"),
    langevin_step_launches("langevin_step"), error_norm_launches("error_norm"), philox_normal_launches("philox_normal"),
    philox_rademacher_launches("philox_rademacher"), resample_launches("resample"), hutchinson_launches("hutchinson"),
    hutchinson_probe_launches("hutchinson_probe"), masked_replace_launches("masked_replace");

void linear_step_launch_cuda(const LinearStepArgs& args, const at::Tensor& out) {
  enqueue(cuda::linear_step, args, out, linear_step_launches);
}
void masked_replace_launch_cuda(const MaskedReplaceArgs& args, const at::Tensor& x) {
  enqueue(cuda::masked_replace, args, x, masked_replace_launches);
}
void solver_step_launch_cuda(const SolverStepArgs& args, const at::Tensor& out) {
  enqueue(cuda::solver_step, args, out, solver_step_launches);
}
void langevin_step_launch_cuda(const LangevinStepArgs& args, const at::Tensor& out) {
  enqueue_with_scratch(cuda::langevin_step, cuda::langevin_step_scratch, args, out, langevin_step_launches);
}
void error_norm_launch_cuda(const ErrorNormArgs& args, const at::Tensor& out) {
  enqueue_with_scratch(cuda::error_norm, cuda::error_norm_scratch, args, out, error_norm_launches);
}
void philox_normal_launch_cuda(const PhiloxArgs& args, const at::Tensor& out) {
  enqueue(cuda::philox_normal, args, out, philox_normal_launches);
}
void philox_rademacher_launch_cuda(const PhiloxArgs& args, const at::Tensor& out) {
  enqueue(cuda::philox_rademacher, args, out, philox_rademacher_launches);
}
void resample_launch_cuda(const ResampleArgs& args, const at::Tensor& out) {
  enqueue(cuda::resample, args, out, resample_launches);
}
void hutchinson_launch_cuda(const HutchinsonArgs& args, const at::Tensor& out) {
  enqueue_with_scratch(cuda::hutchinson, cuda::hutchinson_scratch, args, out, hutchinson_launches);
}
void hutchinson_probe_launch_cuda(const HutchinsonProbeArgs& args, const at::Tensor& out) {
  enqueue(cuda::hutchinson_probe, args, out, hutchinson_probe_launches);
}

LaunchCounter group_norm_silu_launches[] = {LaunchCounter("group_norm_silu_fwd"), LaunchCounter("group_norm_silu_bwd"),
                                            LaunchCounter("group_norm_silu_jvp")};

void group_norm_silu_run_cuda(const GroupNormSiluCall& call) {
  const c10::cuda::CUDAGuard guard(call.out.device());
  cuda::GroupNormSiluArgs args{call.args};
  args.channels_last = call.layout == Layout::channels_last;
  const auto gradient = [&](int k) {
    return call.gradients[k].defined() ? call.gradients[k].mutable_data_ptr() : nullptr;
  };
  args.gradients = {gradient(0), gradient(1), gradient(2), gradient(3), gradient(4)};
  const auto bytes = static_cast<std::int64_t>(cuda::group_norm_silu_scratch(args));
  const at::Tensor scratch = at::empty({bytes}, call.out.options().dtype(at::kByte));
  args.scratch = scratch.mutable_data_ptr();
  enqueue(cuda::group_norm_silu, args, call.out, group_norm_silu_launches[static_cast<int>(args.kind)]);
}
constexpr GroupNormSiluLaunch group_norm_silu_cuda = {at::kCUDA, group_norm_silu_run_cuda};
#endif

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["isas"] = compiled_isas();
  info["isa"] = isa_name(selected_isa());
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();
#endif
#ifdef FASTSCORE_WITH_CUDA
  info["cuda"] = FASTSCORE_CUDA_VERSION;
  info["cuda_archs"] = FASTSCORE_CUDA_ARCHS;
#else
  info["cuda"] = py::none();
  info["cuda_archs"] = py::none();
#endif
  return info;
}

py::dict launches() {
  py::dict result;
  for (const auto& [name, count] : LaunchCounter::all()) result[py::str(name)] = count;
  return result;
}

}  // namespace
}  // namespace fastscore

#ifdef FASTSCORE_WITH_CUDA
TORCH_LIBRARY_IMPL(fastscore, CUDA, m) {
  using namespace fastscore;
  m.impl("linear_step", [](const at::Tensor& x, at::TensorList history, const at::Tensor& coefficients,
                           const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples) {
    return linear_step(x, history, coefficients, noise, rng, samples, linear_step_launch_cuda);
  });
  m.impl("linear_step_", [](at::Tensor x, at::TensorList history, const at::Tensor& coefficients,
                            const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples) {
    linear_step_(x, history, coefficients, noise, rng, samples, linear_step_launch_cuda);
  });
  m.impl("masked_replace_",
         [](at::Tensor x, const at::Tensor& known, const at::Tensor& mask, const at::Tensor& coefficients,
            const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples) {
           masked_replace_(x, known, mask, coefficients, noise, rng, samples, masked_replace_launch_cuda);
         });
  m.impl("solver_step", [](const at::Tensor& x, const at::Tensor& h, at::TensorList history,
                           const at::Tensor& coefficients, const OptionalTensor& exponent, const OptionalTensor& noise,
                           const OptionalTensor& rng, const OptionalTensor& samples) {
    return solver_step(x, h, history, coefficients, exponent, noise, rng, samples, solver_step_launch_cuda);
  });
  m.impl("solver_step_", [](const at::Tensor& x, const at::Tensor& h, at::TensorList history,
                            const at::Tensor& coefficients, const OptionalTensor& exponent, const OptionalTensor& noise,
                            const OptionalTensor& rng, const OptionalTensor& samples, const OptionalTensor& m) {
    solver_step_(x, h, history, coefficients, exponent, noise, rng, samples, m, solver_step_launch_cuda);
  });
  m.impl("langevin_step",
         [](const at::Tensor& x, const at::Tensor& h, const at::Tensor& coefficients, const OptionalTensor& noise,
            const OptionalTensor& rng, const OptionalTensor& samples, bool per_sample) {
           return langevin_step(x, h, coefficients, noise, rng, samples, per_sample, langevin_step_launch_cuda);
         });
  m.impl("langevin_step_",
         [](at::Tensor x, const at::Tensor& h, const at::Tensor& coefficients, const OptionalTensor& noise,
            const OptionalTensor& rng, const OptionalTensor& samples, bool per_sample) {
           langevin_step_(x, h, coefficients, noise, rng, samples, per_sample, langevin_step_launch_cuda);
         });
  m.impl("error_norm", [](at::TensorList terms, const at::Tensor& coefficients, const at::Tensor& u,
                          const at::Tensor& v, double atol, double rtol, std::string_view kind) {
    return error_norm(terms, coefficients, u, v, atol, rtol, kind, error_norm_launch_cuda);
  });
  m.impl("philox_normal",
         [](const at::Tensor& rng, const at::Tensor& samples, at::IntArrayRef shape, at::ScalarType dtype) {
           return philox_noise("philox_normal", rng, samples, shape, dtype, philox_normal_launch_cuda);
         });
  m.impl("philox_rademacher",
         [](const at::Tensor& rng, const at::Tensor& samples, at::IntArrayRef shape, at::ScalarType dtype) {
           return philox_noise("philox_rademacher", rng, samples, shape, dtype, philox_rademacher_launch_cuda);
         });
  m.impl("resample", [](const at::Tensor& x, const at::Tensor& taps, std::int64_t up, std::int64_t down,
                        std::int64_t before, at::IntArrayRef size,
                        bool flip) { return resample(x, taps, up, down, before, size, flip, resample_launch_cuda); });
  m.impl("group_norm_silu_fwd", GroupNormSiluOn<group_norm_silu_cuda, group_norm_silu_fwd>::call);
  m.impl("group_norm_silu_bwd", GroupNormSiluOn<group_norm_silu_cuda, group_norm_silu_bwd>::call);
  m.impl("group_norm_silu_jvp", GroupNormSiluOn<group_norm_silu_cuda, group_norm_silu_jvp>::call);
  m.impl("hutchinson",
         [](const at::Tensor& jvp, const at::Tensor& rng, const at::Tensor& samples, std::string_view kind) {
           return hutchinson(jvp, rng, samples, kind, hutchinson_launch_cuda);
         });
  m.impl("hutchinson_probe",
         [](const at::Tensor& rng, const at::Tensor& samples, const OptionalTensor& weight, std::int64_t probes,
            at::IntArrayRef shape, at::ScalarType dtype, std::string_view kind, bool channels_last) {
           return hutchinson_probe(rng, samples, weight, probes, shape, dtype, kind, channels_last,
                                   hutchinson_probe_launch_cuda);
         });
}
#endif

PYBIND11_MODULE(_C, m) {
  using namespace fastscore;
  selected_isa();  // reads the environment now, not at the first call
  m.doc() = "Native kernels of fastscore: build information, launch counters, raw launchers.";
  m.def("build_info", &build_info, "What was compiled, and the instruction set chosen for this CPU.");
  m.def("launches", &launches, "How often each kernel has run, by op and instruction set or 'cuda'.");
  m.def("reset_launches", &LaunchCounter::reset, "Sets all counts of `launches` to zero.");

  m.def("conv3x3_panel", &conv3x3_panel, "Outputs whose transformed weights lie side by side on this CPU.");
  m.def("conv_gemm_panel", &conv_gemm_panel, "Outputs whose packed weights lie side by side on this CPU.");
  m.def("philox_words_cpu", &philox_words_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("rng"),
        py::arg("samples"), py::arg("first_blocks"), py::arg("count"));
  define_launchers<at::kCPU, linear_step_launch_cpu, solver_step_launch_cpu, langevin_step_launch_cpu,
                   error_norm_launch_cpu, resample_launch_cpu, hutchinson_launch_cpu, hutchinson_probe_launch_cpu,
                   group_norm_silu_cpu>(m);
#ifdef FASTSCORE_WITH_CUDA
  define_launchers<at::kCUDA, linear_step_launch_cuda, solver_step_launch_cuda, langevin_step_launch_cuda,
                   error_norm_launch_cuda, resample_launch_cuda, hutchinson_launch_cuda, hutchinson_probe_launch_cuda,
                   group_norm_silu_cuda>(m);
#endif
}
