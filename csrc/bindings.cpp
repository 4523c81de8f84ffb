// The module fastscore._C: build information, launch counters, the raw launchers of each backend, CUDA registration.
// The only file that knows pybind11 and the CUDA streams of torch.
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include "cpu/dispatch.h"
#include "cpu/error_norm.h"
#include "cpu/langevin_step.h"
#include "cpu/philox.h"
#include "cpu/solver_step.h"
#include "group_norm_silu.h"
#include "linear_step.h"

#ifdef FASTSCORE_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/linear_step.h"
#endif

namespace py = pybind11;
using OptionalTensor = std::optional<at::Tensor>;

namespace fastscore {
namespace {

void check_device(const at::Tensor& x, at::DeviceType type, const char* launcher) {
  TORCH_CHECK_VALUE(x.device().type() == type, launcher, ": x must be a ", c10::DeviceTypeName(type, true),
                    " tensor, got one on ", x.device());
}

at::Tensor linear_step_cpu(const at::Tensor& x, const std::vector<at::Tensor>& history, const at::Tensor& coefficients,
                           const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples) {
  check_device(x, at::kCPU, "linear_step_cpu");
  return linear_step(x, history, coefficients, noise, rng, samples, linear_step_launch_cpu);
}

#ifdef FASTSCORE_WITH_CUDA
LaunchCounter linear_step_launches("linear_step");

void linear_step_launch_cuda(const LinearStepArgs& args, const at::Tensor& out) {
  const c10::cuda::CUDAGuard guard(out.device());
  C10_CUDA_CHECK(cuda::linear_step(args, c10::cuda::getCurrentCUDAStream()));
  linear_step_launches.cuda();
}

at::Tensor linear_step_cuda(const at::Tensor& x, const std::vector<at::Tensor>& history, const at::Tensor& coefficients,
                            const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples) {
  check_device(x, at::kCUDA, "linear_step_cuda");
  return linear_step(x, history, coefficients, noise, rng, samples, linear_step_launch_cuda);
}
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
}
#endif

PYBIND11_MODULE(_C, m) {
  using namespace fastscore;
  selected_isa();  // reads the environment now, not at the first call
  m.doc() = "Native kernels of fastscore: build information, launch counters, raw launchers.";
  m.def("build_info", &build_info, "What was compiled, and the instruction set chosen for this CPU.");
  m.def("launches", &launches, "How often each kernel has run, by op and instruction set or 'cuda'.");
  m.def("reset_launches", &LaunchCounter::reset, "Sets all counts of `launches` to zero.");

  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("linear_step_cpu", &linear_step_cpu, release, py::arg("x"), py::arg("history"), py::arg("coefficients"),
        py::arg("noise") = py::none(), py::arg("rng") = py::none(), py::arg("samples") = py::none());
  m.def(
      "error_norm_cpu",
      [](const std::vector<at::Tensor>& terms, const at::Tensor& coefficients, const at::Tensor& u, const at::Tensor& v,
         double atol, double rtol,
         std::string_view kind) { return error_norm_cpu(terms, coefficients, u, v, atol, rtol, kind); },
      release, py::arg("terms"), py::arg("coefficients"), py::arg("u"), py::arg("v"), py::arg("atol"), py::arg("rtol"),
      py::arg("kind") = "sum");
  m.def("group_norm_silu_fwd_cpu", &group_norm_silu_fwd_cpu, release);
  m.def("group_norm_silu_bwd_cpu", &group_norm_silu_bwd_cpu, release);
  m.def("group_norm_silu_jvp_cpu", &group_norm_silu_jvp_cpu, release);
  m.def("langevin_step_cpu", &langevin_step_cpu, release, py::arg("x"), py::arg("h"), py::arg("coefficients"),
        py::arg("noise") = py::none(), py::arg("rng") = py::none(), py::arg("samples") = py::none(),
        py::arg("per_sample") = false);
  m.def(
      "solver_step_cpu",
      [](const at::Tensor& x, const at::Tensor& h, const std::vector<at::Tensor>& history,
         const at::Tensor& coefficients, const OptionalTensor& exponent, const OptionalTensor& noise,
         const OptionalTensor& rng, const OptionalTensor& samples) {
        return solver_step_cpu(x, h, history, coefficients, exponent, noise, rng, samples);
      },
      release, py::arg("x"), py::arg("h"), py::arg("history"), py::arg("coefficients"),
      py::arg("exponent") = py::none(), py::arg("noise") = py::none(), py::arg("rng") = py::none(),
      py::arg("samples") = py::none());
  m.def("philox_words_cpu", &philox_words_cpu, release, py::arg("rng"), py::arg("samples"), py::arg("first_blocks"),
        py::arg("count"));
#ifdef FASTSCORE_WITH_CUDA
  m.def("linear_step_cuda", &linear_step_cuda, release, py::arg("x"), py::arg("history"), py::arg("coefficients"),
        py::arg("noise") = py::none(), py::arg("rng") = py::none(), py::arg("samples") = py::none());
#endif
}
