"""csrc/cuda/group_norm_silu*.cu against the reference, in the emulator."""

import ctypes
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastscore._checks import accumulation_dtype
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NAMES = ("weight", "bias", "add", "scale", "shift")
KINDS = {"forward": 0, "backward": 1, "jvp": 2}
SPECIFICATION = importlib.import_module("fastscore.reference.group_norm_silu")
SOURCES = ("", "_forward", "_derivatives", "_parameters")

Case = dict[str, Tensor]


@pytest.fixture(scope="module")
def kernel(compile_cuda):
    sources = (f"csrc/cuda/group_norm_silu{part}.cu" for part in SOURCES)
    built = compile_cuda(*sources, "tests/cuda_emulator/group_norm_silu.cpp")
    built.library.group_norm_silu_scratch.restype = ctypes.c_size_t
    return built


def is_last(x: Tensor) -> bool:
    return not x[:1].is_contiguous() and x[:1].movedim(1, -1).is_contiguous()


@pytest.fixture(scope="module")
def launch(kernel) -> Callable[..., tuple[list[Tensor], int]]:
    """`launch(kind, x, num_groups, values, ...)`: what the kernels give, and how much scratch they took."""

    class Parameter(ctypes.Structure):
        _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64), ("dtype", ctypes.c_int32))

        @classmethod
        def of(cls, tensor: Tensor | None) -> "Parameter":
            if tensor is None:
                return cls()
            return cls(tensor.data_ptr(), tensor.stride(0) if tensor.ndim == 2 else 0, kernel.DTYPES[tensor.dtype])

    class Args(ctypes.Structure):
        _fields_ = (
            *(("kind", ctypes.c_int32), ("dtype", ctypes.c_int32), ("silu", ctypes.c_bool), ("eps", ctypes.c_double)),
            *((name, ctypes.c_int64) for name in ("batch", "channels", "groups", "pixels")),
            *(("x", kernel.Operand), ("other", kernel.Operand)),
            *(("value", Parameter * 5), ("tangent", Parameter * 5)),
            *((name, ctypes.c_void_p) for name in ("mean", "rstd", "out")),
            *(("channels_last", ctypes.c_bool), ("gradients", ctypes.c_void_p * 5), ("scratch", ctypes.c_void_p)),
        )

    def run(
        kind: str,
        x: Tensor,
        num_groups: int,
        values: Case,
        *,
        other: Tensor | None = None,
        tangents: Case | None = None,
        statistics: tuple[Tensor, Tensor] | None = None,
        eps: float = 1e-5,
        silu: bool = True,
    ) -> tuple[list[Tensor], int]:
        n, c = x.shape[:2]
        real = accumulation_dtype(x.dtype)
        last = is_last(x)
        out = x.new_empty(x.movedim(1, -1).shape).movedim(-1, 1) if last else x.new_empty(x.shape)
        mean, rstd = statistics or (torch.empty(n, num_groups, dtype=real), torch.empty(n, num_groups, dtype=real))
        gradients = [torch.empty_like(values[name]) if name in values else None for name in NAMES]
        args = Args(
            kind=KINDS[kind],
            dtype=kernel.DTYPES[x.dtype],
            silu=silu,
            eps=eps,
            batch=n,
            channels=c,
            groups=num_groups,
            pixels=x[0, 0].numel() if x.numel() else 0,
            x=kernel.Operand.of(x),
            other=kernel.Operand() if other is None else kernel.Operand.of(other),
            value=tuple(Parameter.of(values.get(name)) for name in NAMES),
            tangent=tuple(Parameter.of((tangents or {}).get(name)) for name in NAMES),
            mean=mean.data_ptr(),
            rstd=rstd.data_ptr(),
            out=out.data_ptr(),
            channels_last=last,
            gradients=tuple(None if g is None or kind != "backward" else g.data_ptr() for g in gradients),
        )
        size = kernel.library.group_norm_silu_scratch(ctypes.byref(args))
        scratch = torch.empty(size // 8 + 1, dtype=torch.float64)  # poisoned
        args.scratch = scratch.data_ptr()
        kernel.group_norm_silu(args)
        if kind == "forward":
            return [out, mean, rstd], size
        return ([out] if kind == "jvp" else [out, *(g for g in gradients if g is not None)]), size

    return run


def make_case(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    names: str = "weight bias add scale shift",
    mean: float = 0.0,
    parameter_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Case]:
    n, c = shape[:2]
    x = make_input(shape, layout, dtype=dtype, mean=mean)
    values = {
        name: make_input((c,) if name in ("weight", "bias") else (n, c), dtype=parameter_dtype or dtype, seed=seed)
        for seed, name in enumerate(NAMES, 1)
        if name in names.split()
    }
    return x, values


def in_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


def assert_parity(results: list[Tensor], specification: Callable[..., Any], arguments: list[Any], factor: int) -> None:
    """The results err at most `factor` times as much as the specification in the same dtype."""
    oracles = specification(*map(in_double, arguments))
    plains = specification(*arguments)
    if isinstance(plains, Tensor):
        oracles, plains = (oracles,), (plains,)
    oracles, plains = ([t for t in some if t.numel()] for some in (oracles, plains))
    assert len(results) == len(plains)
    for k, (result, oracle, plain) in enumerate(zip(results, oracles, plains, strict=True)):
        assert result.stride() == plain.stride()
        if result.dtype == torch.float64:
            # Oracle and kernel round alike; terms of order one, a sum of k of them is off by about sqrt(k) as much.
            size = max(float(oracle.abs().max()), 1.0) * max(arguments[0].numel() / result.numel(), 1.0) ** 0.5
            torch.testing.assert_close(result, oracle, rtol=0, atol=32 * torch.finfo(torch.float64).eps * size)
        else:
            assert_error_within_budget(result, oracle, plain, f"result {k} of {tuple(arguments[0].shape)}", factor)


def assert_forward(launch, x: Tensor, num_groups: int, values: Case, silu: bool = True) -> int:
    results, scratch = launch("forward", x, num_groups, values, silu=silu)
    arguments = [x, *(values.get(name) for name in NAMES), num_groups, 1e-5, silu]
    assert_parity(results[:1], lambda *given: SPECIFICATION.group_norm_silu_fwd(*given)[0], arguments, 2)
    # PyTorch adds the statistics up in float64. In float32 a sum of deviations is off by some roundings of their size.
    _, mean, rstd = results
    z = x.double() + SPECIFICATION._per_channel(values.get("add"), x).double()
    groups = z.reshape(x.shape[0], num_groups, -1)
    true_mean = groups.mean(-1)
    true_rstd = ((groups - true_mean[..., None]).square().mean(-1) + 1e-5).rsqrt()
    eps = torch.finfo(mean.dtype).eps * (4 if mean.dtype == torch.float64 else 1)  # there the truth is rounded, too
    assert (((mean - true_mean).abs() - eps * true_mean.abs()) * true_rstd <= 2 * eps).all()
    assert ((rstd / true_rstd - 1).abs() <= 4 * eps).all()
    return scratch


def statistics(x: Tensor, num_groups: int, values: Case) -> tuple[Tensor, Tensor]:
    inputs = (values.get(name) for name in NAMES)
    return SPECIFICATION.group_norm_silu_fwd(x, *inputs, num_groups, 1e-5, True)[1:]


def assert_backward(launch, x: Tensor, num_groups: int, values: Case, silu: bool = True) -> int:
    grad_y = make_input(tuple(x.shape), "channels_last" if is_last(x) else "contiguous", dtype=x.dtype, seed=20)
    known = statistics(x, num_groups, values)
    results, scratch = launch("backward", x, num_groups, values, other=grad_y, statistics=known, silu=silu)
    arguments = [grad_y, x, *(values.get(name) for name in NAMES), *known, num_groups, silu]
    assert_parity(results, SPECIFICATION.group_norm_silu_bwd, arguments, 3)
    return scratch


def assert_jvp(launch, x: Tensor, num_groups: int, values: Case, tangents: str, silu: bool = True) -> int:
    """`tangents`: the names of those that are there."""
    n, c = x.shape[:2]
    layout = "channels_last" if is_last(x) else "contiguous"
    x_t = make_input(tuple(x.shape), layout, dtype=x.dtype, seed=30) if "x" in tangents.split() else None
    shapes = {name: (c,) if name in ("weight", "bias") else (n, c) for name in NAMES}
    given = {
        name: make_input(shapes[name], dtype=x.dtype, seed=seed)
        for seed, name in enumerate(NAMES, 31)
        if name in tangents.split()
    }
    known = statistics(x, num_groups, values)
    results, scratch = launch("jvp", x, num_groups, values, other=x_t, tangents=given, statistics=known, silu=silu)
    inputs = [values.get(name) for name in NAMES]
    arguments = [x, *inputs, *known, x_t, *(given.get(name) for name in NAMES), num_groups, silu]
    assert_parity(results, SPECIFICATION.group_norm_silu_jvp, arguments, 3)
    return scratch


SHAPES = (
    ((2, 16, 1, 1), 2),  # one pixel
    ((3, 6, 3, 5), 6),  # a group is a channel
    ((2, 6, 5, 3), 1),  # tails
    ((2, 32, 8, 8), 8),
    ((1, 96, 7, 7), 24),
    ((1, 192, 4, 4), 2),  # 96 channels a group
    ((1, 24, 16, 16), 8),  # three channels a group
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_value(launch, layout: str, dtype: torch.dtype) -> None:
    for shape, num_groups in SHAPES:
        x, values = make_case(shape, dtype, layout)
        assert assert_forward(launch, x, num_groups, values) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_derivatives(launch, layout: str, dtype: torch.dtype) -> None:
    for shape, num_groups in SHAPES:
        x, values = make_case(shape, dtype, layout)
        # Scratch of one kernel: two means of each group, three sums over each channel.
        real = accumulation_dtype(dtype).itemsize
        n, c = shape[:2]
        assert assert_backward(launch, x, num_groups, values) == real * n * (2 * num_groups + 3 * c)
        assert assert_jvp(launch, x, num_groups, values, "x weight bias add scale shift") == 0


def split_shape(dtype: torch.dtype, channels: int, groups: int, runs: int) -> tuple[int, ...]:
    """A sample whose groups hold a little more than a block of 1024 threads can, in so many runs each."""
    words = runs * 1024 * 16 // dtype.itemsize
    return 1, channels, words * groups // channels // 64 + 1, 64


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_of_split_groups(launch, dtype: torch.dtype, layout: str) -> None:
    runs = 4 if dtype == torch.float64 else 7  # there a block has 512 threads
    for channels, groups in ((2, 1), (8, 2)):
        x, values = make_case(split_shape(dtype, channels, groups, runs), dtype, layout)
        assert assert_forward(launch, x, groups, values) > 0
    x, values = make_case((1, 3, 99, 101), dtype, layout)  # no whole words
    assert assert_forward(launch, x, 1, values) > 0


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_of_split_groups(launch, dtype: torch.dtype, layout: str) -> None:
    for shape, groups in ((split_shape(dtype, 8, 2, 3), 2), ((1, 3, 65, 67), 1)):
        x, values = make_case(shape, dtype, layout)
        real = accumulation_dtype(dtype).itemsize
        assert assert_backward(launch, x, groups, values) > real * (2 * groups + 3 * shape[1])
        assert assert_jvp(launch, x, groups, values, "x weight bias add scale shift") > 0


def test_groups_wider_than_a_block(launch) -> None:
    """Channels last, a group of 512 channels is cut along them, too."""
    for names in ("weight bias add scale shift", ""):
        x, values = make_case((2, 512, 3, 5), layout="channels_last", names=names)
        assert assert_forward(launch, x, 1, values) > 0
        assert (assert_backward(launch, x, 1, values) > 4 * 2 * (2 + 3 * 512)) == bool(names)
        assert assert_jvp(launch, x, 1, values, "x add") > 0


@pytest.mark.parametrize(
    ("dtype", "layout", "pixels"),
    [(torch.bfloat16, "channels_last", (109, 46)), (torch.float64, "contiguous", (2, 2))],
)
def test_shared_memory_that_compile_kernels_reckons_with(kernel, launch, dtype, layout, pixels, monkeypatch) -> None:
    """What the shapes that take the most ask for is what the occupancy of the kernels is computed from."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    specimens = importlib.import_module("kernel_specimens").CUDA_SPECIMENS
    element = "double" if dtype == torch.float64 else "__nv_bfloat16"
    for name, check, width in zip(("forward", "derivative"), (assert_forward, assert_backward), pixels, strict=True):
        x, _ = make_case((1, 512, 1, width), dtype, layout)
        check(launch, x, 1, {})
        kernel_name = f"group_norm_silu_{name}_kernel<{element}, 1>"
        specimen = next(specimen for pattern, specimen in specimens.items() if re.search(pattern, kernel_name))
        assert kernel.dynamic_shared() == specimen.shared


def test_blocks_that_take_several_tiles(launch) -> None:
    # Without add: in a group of one channel it has no effect, and its gradient is rounding alone.
    x, values = make_case((1, 1, 481, 479), names="weight bias scale shift")
    knows = 4 * 4 * 65  # 129 tiles of 256 threads with 7 elements each, two for a block
    assert assert_forward(launch, x, 1, values) == knows
    assert_backward(launch, x, 1, values)
    assert_jvp(launch, x, 1, values, "x weight")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("names", ["", "weight", "bias", "add", "scale", "shift", "weight bias", "add scale shift"])
def test_parameters_that_are_there(launch, names: str, layout: str) -> None:
    for silu in (True, False):
        x, values = make_case((2, 16, 4, 8), torch.bfloat16, layout, names, parameter_dtype=torch.float32)
        assert_forward(launch, x, 4, values, silu)
        assert_backward(launch, x, 4, values, silu)
        x, values = make_case((2, 16, 4, 8), layout=layout, parameter_dtype=torch.float16)
        assert_jvp(launch, x, 4, values, names, silu)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_parameters_of_each_sample_or_shared(launch, layout: str) -> None:
    """weight and bias may have rows, and add, scale and shift may be shared."""
    x, values = make_case((3, 16, 4, 8), layout=layout)
    rows = {name: make_input((3, 16), seed=50 + k) for k, name in enumerate(("weight", "bias"))}
    shared = {name: values[name][0] for name in ("add", "scale", "shift")}
    assert_forward(launch, x, 4, rows | shared)
    assert_backward(launch, x, 4, rows | shared)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 8, 12, 12), (1, 4, 130, 128)])
def test_large_mean(launch, shape: tuple[int, ...], layout: str) -> None:
    for names in ("weight bias", "weight bias add scale shift"):
        x, values = make_case(shape, layout=layout, names=names, mean=1e3)
        assert_forward(launch, x, 2, values)
        assert_backward(launch, x, 2, values)
        assert_jvp(launch, x, 2, values, "x")


def test_constant_groups_have_the_value_of_the_bias(launch) -> None:
    x, values = make_case((1, 8, 8, 8), names="bias")
    x.fill_(1234.567)
    y, mean, rstd = launch("forward", x, 2, values, silu=False)[0]
    assert torch.equal(y, values["bias"][:, None, None].expand_as(x[0])[None])
    assert torch.equal(mean, x[:, :2, 0, 0])
    torch.testing.assert_close(rstd, torch.full((1, 2), 1e-5).rsqrt(), rtol=2e-7, atol=0)


def test_strided_batch(launch) -> None:
    x, values = make_case((3, 16, 8, 8))
    for inside in (x.repeat(1, 2, 1, 1)[:, :16], x.to(memory_format=torch.channels_last).repeat_interleave(2, 0)[::2]):
        assert inside.stride(0) == 2 * x.stride(0)
        assert_forward(launch, inside, 4, values)
        assert_backward(launch, inside, 4, values)
        assert_jvp(launch, inside, 4, values, "x weight")


def test_empty(launch) -> None:
    for shape in ((0, 8, 4, 4), (2, 8, 0, 4)):
        x, values = make_case(shape)
        assert launch("forward", x, 4, values)[1] == 0
        assert launch("backward", x, 4, values, other=x, statistics=(x.new_ones(2, 4),) * 2)[1] == 0


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(3, 16, 8, 8), (3, 4, 72, 72)])
def test_bits(kernel, launch, shape: tuple[int, ...], layout: str) -> None:
    """They depend neither on the order of blocks and threads nor on the other samples."""
    x, values = make_case(shape, layout=layout)
    known = statistics(x, 2, values)

    def results(rows: slice) -> list[Tensor]:
        mine = {name: value if value.ndim == 1 else value[rows] for name, value in values.items()}
        derivative = {"other": x[rows], "statistics": (known[0][rows], known[1][rows])}
        everything = [launch("forward", x[rows], 2, mine)[0], launch("jvp", x[rows], 2, mine, **derivative)[0]]
        grad_x, _, _, *rest = launch("backward", x[rows], 2, mine, **derivative)[0]  # not what is summed over samples
        return [*everything[0], *everything[1], grad_x, *rest]

    want = results(slice(None))
    for seed in (1, 2):
        with kernel.order(seed):
            assert all(map(torch.equal, results(slice(None)), want))
    for n in range(3):
        assert all(
            torch.equal(alone, all_of[n : n + 1]) for alone, all_of in zip(results(slice(n, n + 1)), want, strict=True)
        )
