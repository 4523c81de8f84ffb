"""linear_step in Triton against the reference: shapes with tails, dtypes, layouts, noise, derivatives."""

from importlib import import_module

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore.kernels import _states
from fastscore.kernels._launch import LAUNCHES, launch
from fastscore.ops import linear_step, linear_step_
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import LAYOUTS, as_layout
from fastscore.testing.linear_step import make_case

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# one element, less than a tile, more than one, whole Philox blocks of pixels and parts of them
SHAPES = ((3,), (2, 3), (3, 2163), (2, 3, 8, 8), (5, 3, 7, 9), (2, 300, 2, 3), (2, 3, 4, 5, 6))


def assert_parity(actual: Tensor, x: Tensor, history: list[Tensor], rows: Tensor, keywords: dict[str, Tensor]) -> None:
    plain = reference.linear_step(x, history, rows, **keywords)
    assert actual.stride() == plain.stride()
    in64 = {k: v.double() if v.is_floating_point() else v for k, v in keywords.items()}
    oracle = reference.linear_step(x.double(), [h.double() for h in history], rows.double(), **in64)
    assert_error_within_budget(actual, oracle, plain, "linear_step", factor=8.0 if x.dtype == torch.float64 else 2.0)


@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_by_shape(shape: tuple[int, ...], dtype: torch.dtype, noise: str, device: torch.device) -> None:
    for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
        for per_sample in (False, True):
            x, history, rows, keywords = make_case(
                shape, dtype, layout, noise=noise, per_sample=per_sample, device=device
            )
            assert_parity(linear_step(x, history, rows, **keywords), x, history, rows, keywords)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "empty"])
def test_parity_by_layout_and_in_place(layout: str, device: torch.device) -> None:
    for noise in ("drawn", "given", "none"):
        x, history, rows, keywords = make_case((4, 3, 6, 10), torch.float32, layout, noise=noise, device=device)
        out = linear_step(x, history, rows, **keywords)
        assert_parity(out, x, history, rows, keywords)
        if layout == "expanded":
            continue  # cannot be written to
        again = as_layout(x.clone(), layout)
        assert linear_step_(again, [*history[:1], again], rows, **keywords) is again
        assert torch.equal(again, linear_step(x, [history[0], x], rows, **keywords))


@pytest.mark.parametrize("terms", range(7))
def test_parity_by_history(terms: int, device: torch.device) -> None:
    x, history, rows, keywords = make_case((3, 50), torch.float32, "contiguous", terms, "drawn", device=device)
    assert_parity(linear_step(x, history, rows, **keywords), x, history, rows, keywords)


def test_operands_may_differ_in_layout(device: torch.device) -> None:
    x, history, rows, _ = make_case((4, 3, 6, 10), torch.float32, "contiguous", 4, "none", device=device)
    want = linear_step(x, history, rows)
    mixed = [as_layout(h, layout) for h, layout in zip(history, LAYOUTS[:4], strict=True)]
    for layout in ("contiguous", "channels_last", "permuted", "sliced"):
        assert torch.equal(linear_step(as_layout(x, layout), mixed, rows), want)


def test_operands_that_overlap_in_part_are_refused(device: torch.device) -> None:
    memory = torch.randn(3, 40, device=device)
    rows = torch.ones(3, device=device)
    with pytest.raises(RuntimeError, match="shares memory with the tensor that is written, in part"):
        linear_step_(memory[:2], [memory[1:]], rows)
    linear_step_(memory, [], rows[:2])


def test_empty(device: torch.device) -> None:
    rows = torch.ones(3, device=device)
    for shape in ((0, 3, 4, 4), (2, 0), (2, 3, 0, 4)):
        x = torch.empty(shape, device=device)
        assert linear_step(x, [x], rows).shape == shape
    assert not LAUNCHES
    linear_step(torch.ones(1, device=device), [], rows[:2])


@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_noise_of_weight_zero_is_not_looked_at(noise: str, device: torch.device) -> None:
    x, history, rows, keywords = make_case((3, 40), torch.float32, "contiguous", noise=noise, device=device)
    rows[-1] = 0
    if noise == "given":
        keywords["noise"] = torch.full_like(x, float("nan"))
    assert torch.equal(linear_step(x, history, rows, **keywords), linear_step(x, history, rows))


def test_offsets_of_64_bits(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What large states take, on small ones."""
    cases = [
        make_case((2, 3, 8, 8), torch.float32, layout, noise=noise, device=device)
        for layout in ("contiguous", "channels_last")
        for noise in ("drawn", "given")
    ]
    before = [linear_step(x, history, rows, **keywords) for x, history, rows, keywords in cases]
    module = import_module("fastscore.kernels.linear_step")  # not the function of the same name
    monkeypatch.setattr(module, "launch", lambda *args, **options: launch(*args, **(options | {"wide": True})))
    for (x, history, rows, keywords), want in zip(cases, before, strict=True):
        assert torch.equal(linear_step(x, history, rows, **keywords), want)


def test_a_row_does_not_depend_on_its_batch(device: torch.device) -> None:
    for layout in ("contiguous", "channels_last"):
        x, history, rows, keywords = make_case((4, 3, 7, 9), torch.float32, layout, noise="drawn", device=device)
        whole = linear_step(x, history, rows, **keywords)
        for b in range(4):
            alone = {"rng": keywords["rng"], "samples": keywords["samples"][b : b + 1]}
            assert torch.equal(linear_step(x[b : b + 1], [h[b : b + 1] for h in history], rows, **alone)[0], whole[b])


def test_derivatives_run_on_the_kernel(device: torch.device) -> None:
    x, history, rows, keywords = make_case((2, 3, 4, 5), torch.float64, "contiguous", noise="drawn", device=device)
    inputs = [t.requires_grad_() for t in (x, rows, *history)]

    def run(x: Tensor, rows: Tensor, *history: Tensor) -> Tensor:
        return linear_step(x, history, rows, **keywords)

    def plain(x: Tensor, rows: Tensor, *history: Tensor) -> Tensor:
        return reference.linear_step(x, history, rows, **keywords)

    grad = torch.randn_like(x)
    for got, want in zip(
        torch.autograd.grad(run(*inputs), inputs, grad), torch.autograd.grad(plain(*inputs), inputs, grad), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    values = tuple(t.detach() for t in inputs)
    tangents = tuple(torch.randn_like(t) for t in values)
    got, want = (torch.func.jvp(f, values, tangents)[1] for f in (run, plain))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert LAUNCHES["linear_step_kernel"] > 5


def test_tiles_cover_every_element_once(device: torch.device) -> None:
    assert _states.Layout(5, 1).tiles == 1
    assert _states.Layout(_states.BLOCK, 1).tiles == 1
    assert _states.Layout(_states.BLOCK + 1, 1).tiles == 2
    rows = torch.tensor([1.0, 1.0, 0.0], device=device).repeat(3, 1)  # one for each sample, which keeps them apart
    for shape in ((3, 5, 41, 13), (3, 3, 32, 32)):
        state = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
        assert (linear_step_(state, [torch.ones_like(state)], rows) == 1).all()
