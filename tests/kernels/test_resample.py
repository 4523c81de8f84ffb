"""resample in Triton against the reference: every tap that may hit or miss, both formats, dtypes, derivatives."""

from importlib import import_module

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore._checks import accumulation_dtype
from fastscore.kernels._launch import LAUNCHES, launch
from fastscore.ops import resample
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import LAYOUTS, make_input

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FORMATS = ("contiguous", "channels_last")
# As NCSN++ pads for filters of L taps: upsampling, downsampling, and in front of a convolution.
MODES = {
    "up": lambda length: {"up": 2, "padding": ((length - 1) // 2 + 1, (length - 2) // 2)},
    "down": lambda length: {"down": 2, "padding": ((length - 1) // 2, (length - 2) // 2)},
    "filter": lambda length: {"padding": ((length + 1) // 2, length // 2)},
}


def make_taps(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Neither symmetric nor separable."""
    return make_input((length, length), dtype=accumulation_dtype(dtype), device=device, seed=9)


def assert_parity(x: Tensor, taps: Tensor, **options: object) -> None:
    actual = resample(x, taps, **options)
    plain = reference.resample(x, taps, **options)
    assert actual.stride() == plain.stride()
    if x.dtype == torch.float64:  # as many roundings as there are taps, in both
        size = reference.resample(x.abs(), taps.abs(), **options)
        assert ((actual - plain).abs() <= 2 * taps.numel() * 2.0**-53 * size).all()
    else:
        oracle = reference.resample(x.double(), taps.double(), **options)
        assert_error_within_budget(actual, oracle, plain, "resample")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (1, 5, 8, 12), (3, 1, 2, 2)], ids=str)
def test_parity(shape: tuple[int, ...], mode: str, dtype: torch.dtype, device: torch.device) -> None:
    for layout in FORMATS:
        x = make_input(shape, layout, dtype=dtype, device=device)
        assert_parity(x, make_taps(4, dtype, device), **MODES[mode](4))


@pytest.mark.parametrize("length", [2, 3, 5, 6])
@pytest.mark.parametrize("mode", MODES)
def test_parity_by_length(length: int, mode: str, device: torch.device) -> None:
    for layout in FORMATS:
        x = make_input((2, 2, 5, 6), layout, device=device)
        assert_parity(x, make_taps(length, x.dtype, device), **MODES[mode](length))


def test_longest_filter_and_one_tap(device: torch.device) -> None:
    for layout in FORMATS:
        x = make_input((1, 2, 5, 6), layout, device=device)
        assert_parity(x, make_taps(8, x.dtype, device), up=2, padding=(4, 3))
        assert_parity(x, make_taps(1, x.dtype, device), down=2)


@pytest.mark.parametrize("padding", [(0, 0), (0, 5), (7, 0), (6, 9)])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_parity_by_padding(up: int, down: int, padding: tuple[int, int], device: torch.device) -> None:
    """Also more zeros than the filter is long: then the adjoint crops."""
    for layout in FORMATS:
        x = make_input((1, 2, 5, 6), layout, dtype=torch.float64, device=device)
        taps = make_taps(3, x.dtype, device)
        options = {"up": up, "down": down, "padding": padding}
        assert_parity(x, taps, **options)
        x.requires_grad_()
        grad = make_input(tuple(reference.resample(x, taps, **options).shape), dtype=x.dtype, device=device, seed=2)
        results = [torch.autograd.grad(f(x, taps, **options), x, grad)[0] for f in (resample, reference.resample)]
        torch.testing.assert_close(*results, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "empty"])
def test_parity_by_layout(layout: str, device: torch.device) -> None:
    x = make_input((3, 4, 6, 8), layout, device=device)
    for mode in MODES.values():
        assert_parity(x, make_taps(4, x.dtype, device), **mode(4))
    assert_parity(x[:, :3], make_taps(4, x.dtype, device), up=2, padding=(2, 1))
    assert_parity(x[:, :, 1:5], make_taps(4, x.dtype, device), down=2, padding=(1, 1))


def test_several_tiles(device: torch.device) -> None:
    """More channels, cells and columns than one program takes."""
    taps = make_taps(4, torch.float32, device)
    for shape, layout in (
        ((1, 130, 4, 2), "channels_last"),
        ((1, 1, 2, 260), "contiguous"),
        ((2, 40, 5, 4), "contiguous"),
    ):
        x = make_input(shape, layout, device=device)
        for mode in MODES.values():
            assert_parity(x, taps, **mode(4))


def test_empty(device: torch.device) -> None:
    taps = make_taps(4, torch.float32, device)
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)):
        x = torch.empty(shape, device=device)
        assert torch.equal(resample(x, taps, up=2, padding=(2, 2)), reference.resample(x, taps, up=2, padding=(2, 2)))
    assert not LAUNCHES
    resample(torch.ones(1, 1, 2, 2, device=device), taps, padding=(2, 2))


@pytest.mark.parametrize("layout", FORMATS)
def test_zeros_are_not_multiplied(layout: str, device: torch.device) -> None:
    """An infinite pixel reaches the outputs whose taps hit it, and no other."""
    x = torch.zeros(1, 2, 5, 5, device=device).contiguous(
        memory_format=getattr(torch, f"{layout}_format", torch.channels_last)
    )
    x[0, 1, 2, 2] = float("inf")
    out = resample(x, torch.ones(2, 2, device=device), up=2, padding=(1, 0))
    assert (out == float("inf")).nonzero().tolist() == [[0, 1, i, j] for i in (4, 5) for j in (4, 5)]
    assert not torch.isnan(out).any()


def test_offsets_of_64_bits(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What large images take, on small ones."""
    taps = make_taps(4, torch.float32, device)
    cases = [
        (make_input((2, 3, 6, 7), layout, device=device), mode(4)) for layout in FORMATS for mode in MODES.values()
    ]
    before = [resample(x, taps, **options) for x, options in cases]
    module = import_module("fastscore.kernels.resample")
    monkeypatch.setattr(module, "launch", lambda *args, **options: launch(*args, **(options | {"wide": True})))
    for (x, options), want in zip(cases, before, strict=True):
        assert torch.equal(resample(x, taps, **options), want)


@pytest.mark.parametrize("layout", FORMATS)
def test_an_image_does_not_depend_on_its_batch(layout: str, device: torch.device) -> None:
    x, taps = make_input((3, 2, 7, 9), layout, device=device), make_taps(4, torch.float32, device)
    for mode in MODES.values():
        whole = resample(x, taps, **mode(4))
        for b in range(3):
            assert torch.equal(resample(x[b : b + 1], taps, **mode(4))[0], whole[b])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_derivatives_run_on_the_kernel(mode: str, dtype: torch.dtype, device: torch.device) -> None:
    options = MODES[mode](4)
    x = make_input((2, 3, 6, 7), "channels_last", dtype=dtype, device=device).requires_grad_()
    taps = make_taps(4, dtype, device)
    out = resample(x, taps, **options)
    grad, tangent = torch.randn_like(out), torch.randn_like(x)
    LAUNCHES.clear()
    (got,) = torch.autograd.grad(out, x, grad)
    assert LAUNCHES.total() == 1
    exact = torch.func.vjp(lambda v: reference.resample(v, taps.double(), **options), x.detach().double())[1]
    plain = torch.func.vjp(lambda v: reference.resample(v, taps, **options), x.detach())[1]
    factor = 3 if dtype == torch.bfloat16 else 8  # in float64 the oracle rounds as much as the kernel does
    assert_error_within_budget(got, exact(grad.double())[0], plain(grad)[0], "gradient", factor=factor)
    moved = torch.func.jvp(lambda v: resample(v, taps, **options), (x.detach(),), (tangent,))[1]
    assert torch.equal(moved, resample(tangent, taps, **options))
    assert LAUNCHES.total() == 4
