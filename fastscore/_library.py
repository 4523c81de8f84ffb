"""The ops as torch knows them: schemas, fake versions, and the native library `fastscore._C`.

Schemas stand here and not in C++, so that an op is the same with and without the library. Kernels come from
TORCH_LIBRARY_IMPL in csrc, and from kernels/ for CUDA tensors where csrc has none; the reference stands in at
CompositeExplicitAutograd for every device that has no kernel. `fastscore_triton` holds the same ops on Triton kernels
alone, for who asks for them. A fake version tells shape, dtype and strides, nothing else. Derivatives are in
fastscore/ops.

To add an op: its schema, fake and reference below; csrc/cpu/<op>.cpp, csrc/cpu/simd/<op>.cpp and csrc/cuda/<op>.cu
(setup.py finds them); kernels/<op>.py with a function of the op's name; fastscore/reference/<op>.py;
fastscore/ops/<op>.py.
"""

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

from fastscore.reference._strides import is_dense
from fastscore.reference.error_norm import error_norm as _error_norm
from fastscore.reference.group_affine import group_affine_into as _group_affine_into
from fastscore.reference.hutchinson import hutchinson as _hutchinson
from fastscore.reference.hutchinson import hutchinson_probe as _hutchinson_probe
from fastscore.reference.langevin_step import langevin_step as _langevin_step
from fastscore.reference.linear_step import linear_step as _linear_step
from fastscore.reference.masked_replace import masked_replace as _masked_replace
from fastscore.reference.philox import philox_normal as _philox_normal
from fastscore.reference.philox import philox_rademacher as _philox_rademacher
from fastscore.reference.resample import resample_into as _resample_into
from fastscore.reference.resample import resample_to as _resample_to
from fastscore.reference.solver_step import solver_step as _solver_step

_attention = importlib.import_module("fastscore.reference.attention")  # the module, not its function
_conv3x3 = importlib.import_module("fastscore.reference.conv3x3")
_conv_gemm = importlib.import_module("fastscore.reference.conv_gemm")
_group_norm_silu = importlib.import_module("fastscore.reference.group_norm_silu")

_LIBRARY = torch.library.Library("fastscore", "FRAGMENT")
_TRITON = torch.library.Library("fastscore_triton", "FRAGMENT")
_NAMES: list[str] = []
_KERNELS: dict[str, Callable[..., Any]] = {}  # launchers of Triton kernels, by op


def define(schema: str, fake: Callable[..., Any], reference: Callable[..., Any], kernel: str | None = None) -> None:
    """Registers one op.

    Args:
        schema: "name(Tensor x, ...) -> Tensor".
        fake: its fake version.
        reference: what runs where there is no kernel.
        kernel: the file in kernels/ with a function of the op's name, if there is one.
    """
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    _NAMES.append(name)
    torch.library.register_fake(f"fastscore::{name}", fake, lib=_LIBRARY)
    if kernel is not None:
        _KERNELS[name] = launcher = _launcher(kernel, name)
        _TRITON.define(schema)
        for key in ("CPU", "CUDA"):  # Triton's interpreter takes tensors of the CPU
            _TRITON.impl(name, launcher, key)
        torch.library.register_fake(f"fastscore_triton::{name}", fake, lib=_TRITON)


def _launcher(kernel: str, name: str) -> Callable[..., Any]:
    """The function `name` of kernels/<kernel>.py, which is imported when it is first called."""

    def launch(*args: Any, **keywords: Any) -> Any:
        return getattr(importlib.import_module(f"fastscore.kernels.{kernel}"), name)(*args, **keywords)

    return launch


def _show_to_compiler(library: torch.library.Library, name: str) -> None:
    """torch.compile sees the Triton kernels of an op on CUDA tensors, and not the op; torch.export keeps the op.

    The rule is that of `torch.library.triton_op`. That one would define the op by `custom_op`, whose eager calls take
    several times longer. Its launcher may call torch and `launch` alone, and pass kernels no tensor inside a tuple.
    """

    def rule(mode: Any, op: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        from torch.export._trace import custom_triton_ops_decomposition_disabled

        known = all(t is Tensor or issubclass(t, (FakeTensor, FunctionalTensor)) for t in types)
        if args[0].device.type != "cuda" or not known or custom_triton_ops_decomposition_disabled():
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            return _KERNELS[name](*args, **(kwargs or {}))

    torch.library.register_torch_dispatch(f"{library.ns}::{name}", FunctionalTensorMode, rule, lib=library)


def _has_kernel(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"fastscore::{name}", key))


def like(x: Tensor) -> Tensor:
    """An uninitialized tensor as the kernels allocate it: strides of x where x is dense, else contiguous."""
    return x.new_empty_strided(x.shape, x.stride()) if is_dense(x) else x.new_empty(x.shape)


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("fastscore._C"), ""
    except ModuleNotFoundError as error:
        if error.name != "fastscore._C":
            raise
        return None, "the native library fastscore._C is not built"
    except ImportError as error:  # an undefined symbol: built against another torch
        raise ImportError(
            f"fastscore._C cannot be loaded; it was probably built against another torch than {torch.__version__}. "
            f"Rebuild it: pip install --no-build-isolation -e . (the loader says: {error})"
        ) from error


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # somebody keeps it from being imported
        return False


def build_info() -> dict[str, Any]:
    """What the native library was built with; empty if it is not built.

    Keys: "torch" (version), "isas" (compiled instruction sets), "isa" (the one in use), "openmp" (version of the
    standard, None without), "cuda" (version, None without), "cuda_archs" (str, None without).
    """
    return NATIVE.build_info() if NATIVE else {}


# ------------------------------------------------------------------------------------------------- linear_step

_LINEAR_STEP = "Tensor[] history, Tensor coefficients, Tensor? noise, Tensor? rng, Tensor? samples"


def _linear_step_out(
    x: Tensor,
    history: list[Tensor],
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
) -> Tensor:
    return _linear_step(x, history, coefficients, noise=noise, rng=rng, samples=samples)


def _linear_step_(x: Tensor, *rest: Any) -> None:
    x.copy_(_linear_step_out(x, *rest))


define(f"linear_step(Tensor x, {_LINEAR_STEP}) -> Tensor", lambda x, *_: like(x), _linear_step_out, "linear_step")
define(f"linear_step_(Tensor(a!) x, {_LINEAR_STEP}) -> ()", lambda x, *_: None, _linear_step_, "linear_step")

# ------------------------------------------------------------------------------------------------- masked_replace


def _masked_replace_(
    x: Tensor,
    known: Tensor,
    mask: Tensor,
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
) -> None:
    x.copy_(_masked_replace(x, known, mask, coefficients, noise=noise, rng=rng, samples=samples))


define(
    "masked_replace_(Tensor(a!) x, Tensor known, Tensor mask, Tensor coefficients, Tensor? noise, Tensor? rng, "
    "Tensor? samples) -> ()",
    lambda x, *_: None,
    _masked_replace_,
    "masked_replace",
)

# ------------------------------------------------------------------------------------------------- langevin_step

_LANGEVIN_STEP = "Tensor h, Tensor coefficients, Tensor? noise, Tensor? rng, Tensor? samples, bool per_sample"


def _langevin_step_out(
    x: Tensor,
    h: Tensor,
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
    per_sample: bool,
) -> Tensor:
    return _langevin_step(x, h, coefficients, noise=noise, rng=rng, samples=samples, per_sample=per_sample)


def _langevin_step_(x: Tensor, *rest: Any) -> None:
    x.copy_(_langevin_step_out(x, *rest))


define(
    f"langevin_step(Tensor x, {_LANGEVIN_STEP}) -> Tensor",
    lambda x, *_: like(x),
    _langevin_step_out,
    "langevin_step",
)
define(f"langevin_step_(Tensor(a!) x, {_LANGEVIN_STEP}) -> ()", lambda x, *_: None, _langevin_step_, "langevin_step")

# ------------------------------------------------------------------------------------------------- error_norm


def _error_norm_out(
    terms: list[Tensor], coefficients: Tensor, u: Tensor, v: Tensor, atol: float, rtol: float, kind: str
) -> Tensor:
    return _error_norm(terms, coefficients, u, v, atol=atol, rtol=rtol, kind=kind)


define(
    "error_norm(Tensor[] terms, Tensor coefficients, Tensor u, Tensor v, float atol, float rtol, str kind) -> Tensor",
    lambda terms, coefficients, u, *_: coefficients.new_empty(u.shape[:1]),
    _error_norm_out,
    "error_norm",
)

# ------------------------------------------------------------------------------------------------- solver_step

_SOLVER_STEP = (
    "Tensor h, Tensor[] history, Tensor coefficients, Tensor? exponent, Tensor? noise, Tensor? rng, Tensor? samples"
)


def _solver_step_out(
    x: Tensor,
    h: Tensor,
    history: list[Tensor],
    coefficients: Tensor,
    exponent: Tensor | None,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _solver_step(x, h, history, coefficients, exponent=exponent, noise=noise, rng=rng, samples=samples)


def _solver_step_(x: Tensor, *rest: Any, m: Tensor | None = None) -> None:
    out, kept = _solver_step_out(x, *rest)
    x.copy_(out)
    if m is not None:
        m.copy_(kept)


define(
    f"solver_step(Tensor x, {_SOLVER_STEP}) -> (Tensor out, Tensor m)",
    lambda x, *_: (like(x), like(x)),
    _solver_step_out,
    "solver_step",
)
define(
    f"solver_step_(Tensor(a!) x, {_SOLVER_STEP}, *, Tensor(b!)? m=None) -> ()",
    lambda x, *_, m=None: None,
    _solver_step_,
    "solver_step",
)

# ------------------------------------------------------------------------------------------------- philox


def _noise_fake(rng: Tensor, samples: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    return rng.new_empty(shape, dtype=dtype)


for _name, _reference in (("philox_normal", _philox_normal), ("philox_rademacher", _philox_rademacher)):
    define(
        f"{_name}(Tensor rng, Tensor samples, SymInt[] shape, ScalarType dtype) -> Tensor",
        _noise_fake,
        lambda rng, samples, shape, dtype, f=_reference: f(shape, rng, samples, dtype),
        "philox",
    )

# ------------------------------------------------------------------------------------------------- group_norm_silu

_PARAMETERS = "Tensor? weight, Tensor? bias, Tensor? add, Tensor? scale, Tensor? shift"
_TANGENTS = "Tensor? x_t, Tensor? weight_t, Tensor? bias_t, Tensor? add_t, Tensor? scale_t, Tensor? shift_t"


def _group_norm_silu_fwd_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    num_groups = rest[5]
    y = _group_norm_silu.empty_like_x(x)
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    return y, x.new_empty((x.shape[0], num_groups), dtype=dtype), x.new_empty((x.shape[0], num_groups), dtype=dtype)


def _group_norm_silu_bwd_fake(grad_y: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    parameters, mean = rest[:5], rest[5]
    gradients = [mean.new_empty(0) if p is None else p.new_empty(p.shape) for p in parameters]
    return _group_norm_silu.empty_like_x(x), *gradients


define(
    f"group_norm_silu_fwd(Tensor x, {_PARAMETERS}, int num_groups, float eps, bool silu)"
    " -> (Tensor y, Tensor mean, Tensor rstd)",
    _group_norm_silu_fwd_fake,
    _group_norm_silu.group_norm_silu_fwd,
    "group_norm_silu",
)
define(
    f"group_norm_silu_into(Tensor x, {_PARAMETERS}, int num_groups, float eps, bool silu, Tensor(a!) out) -> ()",
    lambda *_: None,
    _group_norm_silu.group_norm_silu_into,
)
define(
    f"group_norm_silu_bwd(Tensor grad_y, Tensor x, {_PARAMETERS}, Tensor mean, Tensor rstd, int num_groups, bool silu)"
    " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_add, Tensor grad_scale, Tensor grad_shift)",
    _group_norm_silu_bwd_fake,
    _group_norm_silu.group_norm_silu_bwd,
    "group_norm_silu",
)
define(
    f"group_norm_silu_jvp(Tensor x, {_PARAMETERS}, Tensor mean, Tensor rstd, {_TANGENTS}, int num_groups, bool silu)"
    " -> Tensor",
    lambda x, *_: _group_norm_silu.empty_like_x(x),
    _group_norm_silu.group_norm_silu_jvp,
    "group_norm_silu",
)

# ------------------------------------------------------------------------------------------------- group_affine

define(
    "group_affine_into(Tensor x, int groups, float eps, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, "
    "Tensor? strips, int strip_rows, Tensor(a!) gain, Tensor(b!) offset) -> ()",
    lambda *_: None,
    _group_affine_into,
)

# ------------------------------------------------------------------------------------------------- resample


def _resample_fake(x: Tensor, taps: Tensor, up: int, down: int, before: int, size: list[int], flip: bool) -> Tensor:
    if _group_norm_silu.channels_last(x):
        return x.new_empty((x.shape[0], *size, x.shape[1])).movedim(-1, 1)
    return x.new_empty((*x.shape[:2], *size))


define(
    "resample(Tensor x, Tensor taps, int up, int down, int before, SymInt[] size, bool flip) -> Tensor",
    _resample_fake,
    _resample_to,
    "resample",
)
define(
    "resample_into(Tensor x, Tensor taps, int up, int down, int before, bool flip, Tensor(a!) out) -> ()",
    lambda *_: None,
    _resample_into,
)

# ------------------------------------------------------------------------------------------------- conv3x3


def _conv3x3_weights_fake(weight: Tensor, tile: int, turned: bool) -> Tensor:
    outputs, channels = weight.shape[:2] if not turned else (weight.shape[1], weight.shape[0])
    shape = (-(-outputs // _panel()), (tile + 2) ** 2, channels, _panel())
    return weight.new_empty(shape, dtype=torch.promote_types(weight.dtype, torch.float32))


def _conv3x3_weights(weight: Tensor, tile: int, turned: bool) -> Tensor:
    return _conv3x3.conv3x3_weights(_conv3x3.turned(weight) if turned else weight, tile, _panel())


def _panel() -> int:
    return NATIVE.conv3x3_panel() if NATIVE else 16


def _conv3x3_fake(x: Tensor, weights: Tensor, outputs: int, *rest: Any) -> Tensor:
    if _group_norm_silu.channels_last(x):
        return x.new_empty((x.shape[0], *x.shape[2:], outputs)).movedim(-1, 1)
    return x.new_empty((x.shape[0], outputs, *x.shape[2:]))


define("conv3x3_weights(Tensor weight, int tile, bool turned) -> Tensor", _conv3x3_weights_fake, _conv3x3_weights)
define(
    "conv3x3_winograd(Tensor x, Tensor weights, int outputs, int tile, Tensor? bias, Tensor? shift, Tensor? residual, "
    "float scale, Tensor? gain, Tensor? offset, bool silu) -> Tensor",
    _conv3x3_fake,
    _conv3x3.conv3x3_winograd,
)
define(
    "conv3x3_winograd_into(Tensor x, Tensor weights, int outputs, int tile, Tensor? bias, Tensor? shift, "
    "Tensor? residual, float scale, Tensor? gain, Tensor? offset, bool silu, bool upsample, Tensor(a!)? statistics, "
    "Tensor(b!) out) -> ()",
    lambda *_: None,
    _conv3x3.conv3x3_winograd_into,
)

# ------------------------------------------------------------------------------------------------- conv_gemm


def _gemm_panel() -> int:
    return NATIVE.conv_gemm_panel() if NATIVE else 16


def _conv_gemm_weights_fake(weight: Tensor) -> Tensor:
    outputs, panel = weight.shape[0], _gemm_panel()
    return weight.new_empty(-(-outputs // panel), weight[0].numel(), panel)


define(
    "conv_gemm_weights(Tensor weight) -> Tensor",
    _conv_gemm_weights_fake,
    lambda weight: _conv_gemm.conv_gemm_weights(weight, _gemm_panel()),
)
define(
    "conv_gemm_into(Tensor x, Tensor weights, int outputs, int kernel, int stride, int padding, Tensor? bias, "
    "Tensor? shift, Tensor? residual, float scale, Tensor? gain, Tensor? offset, bool silu, bool upsample, "
    "Tensor(b!) out) -> ()",
    lambda *_: None,
    _conv_gemm.conv_gemm_into,
)

# ------------------------------------------------------------------------------------------------- attention

_QKV = "Tensor q, Tensor k, Tensor v"


def _laid_out(reference: Callable[..., tuple[Tensor, ...]], *places: int) -> Callable[..., tuple[Tensor, ...]]:
    """The reference with its results as the kernels lay them out: like the arguments at these places, one for each."""

    def run(*args: Any) -> tuple[Tensor, ...]:
        results = reference(*args)
        laid = (
            _attention.empty_like_q(args[i]).copy_(r) if r.dim() == 4 else r
            for i, r in zip(places, results, strict=False)
        )
        return *laid, *results[len(places) :]

    return run


def _attention_kept_fake(q: Tensor, residual: Tensor | None, output_scale: float, keep: bool) -> tuple[Tensor, Tensor]:
    apart = keep and _attention.keeps_attended(residual, output_scale)
    lse = q.new_empty(q.shape[:3] if keep else (0,), dtype=_attention.op_dtype(q))
    return _attention.empty_like_q(q) if apart else q.new_empty(0), lse


def _attention_fwd_fake(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, scale: float, output_scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _attention.empty_like_q(q), *_attention_kept_fake(q, residual, output_scale, keep)


def _attention_jvp_fake(q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    y, y_t = _attention.empty_like_q(q), _attention.empty_like_q(q)
    return y, y_t, *_attention_kept_fake(q, residual, *rest[-2:])


_ATTENTION: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    f"attention_fwd({_QKV}, Tensor? residual, float scale, float output_scale, bool keep)"
    " -> (Tensor y, Tensor attended, Tensor lse)": (_attention_fwd_fake, _laid_out(_attention.attention_fwd, 0, 0)),
    f"attention_bwd(Tensor grad_y, {_QKV}, Tensor attended, Tensor lse, float scale, float output_scale)"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)": (
        lambda grad_y, q, k, v, *_: tuple(_attention.empty_like_q(t) for t in (q, k, v)),
        _laid_out(_attention.attention_bwd, 1, 2, 3),
    ),
    f"attention_jvp({_QKV}, Tensor? residual, Tensor? q_t, Tensor? k_t, Tensor? v_t, Tensor? residual_t, float scale, "
    "float output_scale, bool keep) -> (Tensor y, Tensor y_t, Tensor attended, Tensor lse)": (
        _attention_jvp_fake,
        _laid_out(_attention.attention_jvp, 0, 0, 0),
    ),
}
for _schema, (_fake, _run) in _ATTENTION.items():
    define(_schema, _fake, _run, "attention")
    # On CPU nearly all of its time is products of matrices, which are torch's own in any case.
    _LIBRARY.impl(_schema[: _schema.index("(")], _run, "CPU")

define(f"attention_into({_QKV}, float scale, Tensor(a!) out) -> ()", lambda *_: None, _attention.attention_into)

# ------------------------------------------------------------------------------------------------- hutchinson


def _hutchinson_fake(jvp: Tensor, rng: Tensor, samples: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if jvp.dtype is torch.float64 else torch.float32
    return jvp.new_empty(jvp.shape[1:2], dtype=dtype), jvp.new_empty(jvp.shape[:2], dtype=dtype)


def _hutchinson_probe_out(
    rng: Tensor,
    samples: Tensor,
    weight: Tensor | None,
    probes: int,
    shape: list[int],
    dtype: torch.dtype,
    kind: str,
    channels_last: bool,
) -> Tensor:
    return _hutchinson_probe(shape, rng, samples, probes, kind, dtype, channels_last=channels_last, weight=weight)


def _hutchinson_probe_fake(
    rng: Tensor,
    samples: Tensor,
    weight: Tensor | None,
    probes: int,
    shape: list[int],
    dtype: torch.dtype,
    kind: str,
    channels_last: bool,
) -> Tensor:
    if channels_last:
        return rng.new_empty((probes, shape[0], *shape[2:], shape[1]), dtype=dtype).movedim(-1, 2)
    return rng.new_empty((probes, *shape), dtype=dtype)


define(
    "hutchinson(Tensor jvp, Tensor rng, Tensor samples, str kind) -> (Tensor estimate, Tensor products)",
    _hutchinson_fake,
    _hutchinson,
    "hutchinson",
)
define(
    "hutchinson_probe(Tensor rng, Tensor samples, Tensor? weight, SymInt probes, SymInt[] shape, ScalarType dtype, "
    "str kind, bool channels_last) -> Tensor",
    _hutchinson_probe_fake,
    _hutchinson_probe_out,
    "hutchinson",
)

# The libraries come last: they fill in kernels for ops defined above, C++ before Triton.
NATIVE, WHY_NOT_NATIVE = _load()
TRITON = _is_installed("triton")
_OPS, _TRITON_OPS = torch.ops.fastscore, torch.ops.fastscore_triton

# What runs an op under each choice of backend: as the dispatcher finds it by the device, or the one kernel asked for.
OVERLOADS: dict[str | None, dict[str, torch._ops.OpOverload]] = {
    None: {name: getattr(_OPS, name).default for name in _NAMES},
    **{
        key.lower(): {name: getattr(_OPS, name).default for name in _NAMES if _has_kernel(name, key)}
        for key in ("CPU", "CUDA")
    },
    "triton": {name: getattr(_TRITON_OPS, name).default for name in _KERNELS},
}
for _name in _KERNELS:
    if TRITON and _name not in OVERLOADS["cuda"]:
        _LIBRARY.impl(_name, _KERNELS[_name], "CUDA")
# Others gain nothing: a compiler has nothing to fuse into kernels that sum.
for _name in ("linear_step", "linear_step_", "solver_step", "solver_step_"):
    _show_to_compiler(_TRITON, _name)
    if TRITON and _name not in OVERLOADS["cuda"]:
        _show_to_compiler(_LIBRARY, _name)
