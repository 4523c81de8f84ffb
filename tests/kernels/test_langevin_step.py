"""langevin_step in Triton against the reference: shapes with tails, dtypes, layouts, norms, noise, derivatives."""

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore.kernels import _sums
from fastscore.kernels._launch import LAUNCHES, launch
from fastscore.ops import langevin_step, langevin_step_, philox_normal
from fastscore.testing.inputs import LAYOUTS, as_layout, make_input
from fastscore.testing.langevin_step import assert_parity, make_case

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# one element, less than a tile, more than one, whole Philox blocks of pixels and parts of them
SHAPES = ((3,), (2, 3), (3, 2163), (2, 3, 8, 8), (5, 3, 7, 9), (2, 300, 2, 3), (2, 3, 4, 5, 6))


@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_by_shape(shape: tuple[int, ...], dtype: torch.dtype, noise: str, device: torch.device) -> None:
    for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
        for per_sample, rows in ((False, False), (True, True)):
            x, h, coefficients, keywords = make_case(shape, dtype, layout, noise, rows, device=device)
            actual = langevin_step(x, h, coefficients, per_sample=per_sample, **keywords)
            assert_parity(actual, x, h, coefficients, keywords, per_sample)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "empty"])
def test_parity_by_layout_and_in_place(layout: str, device: torch.device) -> None:
    for noise in ("drawn", "given"):
        for per_sample in (False, True):
            x, h, coefficients, keywords = make_case((4, 3, 6, 10), layout=layout, noise=noise, device=device)
            out = langevin_step(x, h, coefficients, per_sample=per_sample, **keywords)
            assert_parity(out, x, h, coefficients, keywords, per_sample)
            if layout == "expanded":
                continue  # cannot be written to
            again = as_layout(x.clone(), layout)
            assert langevin_step_(again, h, coefficients, per_sample=per_sample, **keywords) is again
            assert torch.equal(again, out)


@pytest.mark.parametrize("mean", [1e-3, 1e3])
def test_parity_far_from_zero(mean: float, device: torch.device) -> None:
    x, _, coefficients, keywords = make_case((3, 3, 16, 16), device=device)
    h = make_input((3, 3, 16, 16), mean=mean, scale=mean, seed=1, device=device)
    actual = langevin_step(x, h, coefficients, per_sample=True, **keywords)
    assert_parity(actual, x, h, coefficients, keywords, True)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_many_samples_and_many_tiles(
    rows: bool, per_sample: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More samples, and more tiles, than the second stage takes at once."""
    monkeypatch.setattr(_sums, "_AT_ONCE", 4)
    assert _sums.extent(1) == (4, 1)
    assert _sums.extent(9) == (1, 4)
    for shape in ((11, 5), (2, 9000)):
        x, h, coefficients, keywords = make_case(shape, rows=rows, device=device)
        actual = langevin_step(x, h, coefficients, per_sample=per_sample, **keywords)
        assert_parity(actual, x, h, coefficients, keywords, per_sample)


def test_operands_may_differ_in_layout(device: torch.device) -> None:
    x, h, coefficients, keywords = make_case((4, 3, 6, 10), noise="given", rows=True, device=device)
    for of_x, of_h, of_z in (("channels_last", "sliced", "permuted"), ("sliced", "channels_last", "contiguous")):
        moved = {"noise": as_layout(keywords["noise"], of_z)}
        x, h = as_layout(x, of_x), as_layout(h, of_h)
        actual = langevin_step(x, h, coefficients.t().contiguous().t(), **moved)
        assert_parity(actual, x, h, coefficients, moved, False)


def test_the_state_as_network_output_and_parts_of_it(device: torch.device) -> None:
    x, _, coefficients, keywords = make_case((3, 40), device=device)
    want = langevin_step(x, x, coefficients, **keywords)
    assert torch.equal(langevin_step_(x, x, coefficients, **keywords), want)
    memory = make_input((4, 40), device=device)
    with pytest.raises(RuntimeError, match="shares memory with the tensor that is written, in part"):
        langevin_step_(memory[:3], memory[1:], coefficients, **keywords)


@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_no_score_no_step(noise: str, device: torch.device) -> None:
    x, h, _, keywords = make_case((3, 40), noise=noise, device=device)
    coefficients = torch.tensor([0.0, 1.0, 0.1], device=device)
    h[1] = 0
    each = langevin_step(x, h, coefficients, per_sample=True, **keywords)
    assert torch.equal(each[1], x[1])
    assert not torch.isclose(each[0], x[0]).all()
    assert torch.equal(langevin_step(x, torch.zeros_like(h), coefficients, **keywords), x)
    together = langevin_step(x, h, coefficients, **keywords)
    assert torch.isfinite(together).all()
    assert not torch.isclose(together[1], x[1]).any()  # only the mean has to differ from 0
    coefficients[2] = 0
    assert torch.equal(langevin_step(x, h, coefficients, **keywords), x)


def test_nan_stays_in_its_sample(device: torch.device) -> None:
    for noise in ("drawn", "given"):
        x, h, coefficients, keywords = make_case((3, 40), noise=noise, device=device)
        h[1, 7] = float("nan")
        bad = torch.isnan(langevin_step(x, h, coefficients, per_sample=True, **keywords))
        assert bad.any(1).tolist() == [False, True, False]
        assert torch.isnan(langevin_step(x, h, coefficients, **keywords)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drawn_is_the_noise_function(dtype: torch.dtype, device: torch.device) -> None:
    """Also in its norm, which is that of the radii where a sample has whole Philox blocks."""
    for shape in ((2, 3, 32, 32), (2, 2, 5, 7)):
        for layout in ("contiguous", "channels_last"):
            x, h, coefficients, keywords = make_case(shape, dtype, layout, device=device)
            z = as_layout(philox_normal(x.shape, keywords["rng"], keywords["samples"], dtype), layout)
            drawn = langevin_step(x, h, coefficients, per_sample=True, **keywords)
            given = langevin_step(x, h, coefficients, per_sample=True, noise=z)
            torch.testing.assert_close(drawn, given, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_kernels_and_what_they_read(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """State and output are read by two kernels, the state is written by one, and nothing of their size is stored."""
    read: list[str] = []
    x, h, coefficients, keywords = make_case((4, 3, 6, 10), device=device)

    def recorded(kernel: Any, programs: int, of: torch.device, *args: Any, **options: Any) -> None:
        flat = [t for arg in args for t in (arg if isinstance(arg, tuple) else (arg,)) if isinstance(t, Tensor)]
        large = [t for t in flat if t.numel() >= x.numel()]
        read.extend(f"{kernel.__name__}.{'h' if t is h else 'x' if t is x else 'new'}" for t in large)
        launch(kernel, programs, of, *args, **options)

    for op in ("langevin_step", "linear_step"):
        monkeypatch.setattr(import_module(f"fastscore.kernels.{op}"), "launch", recorded)
    for per_sample in (False, True):
        LAUNCHES.clear()
        read.clear()
        langevin_step(x, h, coefficients, per_sample=per_sample, **keywords)
        assert LAUNCHES == {"langevin_norms_kernel": 1, "langevin_rows_kernel": 1, "linear_step_kernel": 1}
        assert sorted(read) == [
            "langevin_norms_kernel.h",
            "langevin_norms_kernel.x",
            "linear_step_kernel.h",
            "linear_step_kernel.new",
            "linear_step_kernel.x",
        ]


def test_empty(device: torch.device) -> None:
    row, rng = torch.ones(3, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    for shape in ((0, 3, 4, 4), (2, 0), (2, 3, 0, 4)):
        x, samples = torch.empty(shape, device=device), torch.arange(shape[0], device=device)
        assert langevin_step(x, x, row, rng=rng, samples=samples).shape == shape
        assert langevin_step_(x, x, row, rng=rng, samples=samples) is x
    assert not LAUNCHES
    x, h, coefficients, keywords = make_case((1,), device=device)
    langevin_step(x, h, coefficients, **keywords)


def test_offsets_of_64_bits(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What large states take, on small ones."""
    cases = [
        make_case((2, 3, 8, 8), layout=layout, noise=noise, device=device)
        for layout in ("contiguous", "channels_last")
        for noise in ("drawn", "given")
    ]
    before = [langevin_step(x, h, coefficients, **keywords) for x, h, coefficients, keywords in cases]
    wide = []

    def widened(*args: Any, **options: Any) -> None:
        wide.append("wide" in options)
        launch(*args, **(options | ({"wide": True} if "wide" in options else {})))

    for op in ("langevin_step", "linear_step"):
        monkeypatch.setattr(import_module(f"fastscore.kernels.{op}"), "launch", widened)
    for (x, h, coefficients, keywords), want in zip(cases, before, strict=True):
        assert torch.equal(langevin_step(x, h, coefficients, **keywords), want)
    assert wide == [True, False, True] * len(cases)


def test_a_row_does_not_depend_on_its_batch(device: torch.device) -> None:
    for layout in ("contiguous", "channels_last"):
        for noise in ("drawn", "given"):
            x, h, coefficients, keywords = make_case((4, 3, 7, 9), layout=layout, noise=noise, device=device)
            whole = langevin_step(x, h, coefficients, per_sample=True, **keywords)
            for b in range(4):
                one = slice(b, b + 1)
                alone = {k: v if k == "rng" else v[one] for k, v in keywords.items()}
                assert torch.equal(langevin_step(x[one], h[one], coefficients, per_sample=True, **alone)[0], whole[b])


@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_derivatives_run_on_the_kernel(per_sample: bool, noise: str, device: torch.device) -> None:
    x, h, coefficients, keywords = make_case((2, 3, 4, 5), torch.float64, noise=noise, rows=True, device=device)
    inputs = [t.requires_grad_() for t in (x, h, coefficients)]

    def run(function: Any, x: Tensor, h: Tensor, rows: Tensor) -> Tensor:
        return function(x, h, rows, per_sample=per_sample, **keywords)

    grad = torch.randn_like(x)
    got, want = (torch.autograd.grad(run(f, *inputs), inputs, grad) for f in (langevin_step, reference.langevin_step))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    values = tuple(t.detach() for t in inputs)
    tangents = tuple(torch.randn_like(t) for t in values)
    got, want = (
        torch.func.jvp(lambda *a, f=f: run(f, *a), values, tangents) for f in (langevin_step, reference.langevin_step)
    )
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    many = torch.stack([values[0], 2 * values[0]])
    before = LAUNCHES["langevin_norms_kernel"]
    mapped = torch.func.vmap(lambda state: run(langevin_step, state, *values[1:]))(many)
    assert LAUNCHES["langevin_norms_kernel"] == before + (1 if per_sample else 2)
    for one, state in zip(mapped, many, strict=True):
        torch.testing.assert_close(one, run(reference.langevin_step, state, *values[1:]), rtol=1e-12, atol=1e-12)
