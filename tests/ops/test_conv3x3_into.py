"""conv3x3_winograd_into: slices of wider tensors against float64, upsampling, what stays untouched, bad arguments."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fastscore import _library, reference
from fastscore.reference.conv3x3 import conv3x3_weights, conv3x3_winograd_into
from fastscore.testing.inputs import among_channels, apart, make_input
from fastscore.testing.ops import run_on

RAW = torch.ops.fastscore.conv3x3_winograd_into
native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")
# (B, C, H, W), outputs, upsample, of x: one pixel, less than a vector, cut tiles, several depths, panels and blocks
CASES = [
    ((1, 3, 1, 1), 2, False), ((2, 5, 7, 6), 9, False), ((3, 40, 9, 5), 70, False), ((2, 260, 8, 8), 24, False),
    ((5, 64, 16, 16), 40, False), ((1, 1, 1, 1), 1, True), ((2, 70, 5, 3), 20, True), ((3, 24, 8, 8), 100, True),
]  # fmt: skip


class Case:
    """The tensors of a call, images among other channels and rows of parameters apart; and what must come out."""

    def __init__(self, shape: tuple[int, ...], outputs: int, upsample: bool, tile: int, *without: str):
        batch, channels, height, width = shape
        times = 2 if upsample else 1
        images = batch, outputs, times * height, times * width
        self.weight = make_input((outputs, channels, 3, 3), scale=(9 * channels) ** -0.5, seed=1)
        parts: dict[str, Tensor] = {
            "bias": make_input((outputs,), seed=2),
            "shift": apart(make_input((batch, outputs), seed=3), 3),
            "residual": among_channels(make_input(images, seed=4), 2, 5)[0],
            "gain": apart(make_input((batch, channels), seed=5), 1),
            "offset": apart(make_input((batch, channels), seed=6), 4),
        }
        self.parts = {name: None if name in without else part for name, part in parts.items()}
        self.silu, self.scale = "silu" not in without, 0.5**0.5
        self.x = among_channels(make_input(shape), 1, 2)[0]
        self.upsample, self.tile, self.outputs = upsample, tile, outputs
        self.out, self.whole = among_channels(torch.zeros(images), 3, 1)
        self.statistics = torch.full((batch, -(-images[2] // tile), 3, outputs), float("nan"))

    def arguments(self, weights: Tensor) -> tuple:
        p = self.parts
        around = p["bias"], p["shift"], p["residual"], self.scale, p["gain"], p["offset"], self.silu
        return self.x, weights, self.outputs, self.tile, *around, self.upsample, self.statistics, self.out

    def run(self) -> Tensor:
        RAW(*self.arguments(torch.ops.fastscore.conv3x3_weights(self.weight, self.tile, False)))
        return self.whole

    def expected(self, dtype: torch.dtype) -> Tensor:
        x = self.x.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.upsample else self.x
        parts = {name: None if part is None else part.to(dtype) for name, part in self.parts.items()}
        x = x.to(dtype, memory_format=torch.channels_last)
        return reference.conv3x3(x, self.weight.to(dtype), **parts, silu=self.silu, scale=self.scale)

    def check(self, whole: Tensor, statistics: Tensor) -> None:
        """At most twice the error of torch's convolution in the norm; nothing but the slice was written."""
        exact, out = self.expected(torch.float64), whole[:, 3:-1]
        error, theirs = (float((v - exact).norm() / exact.norm()) for v in (out, self.expected(torch.float32)))
        assert error <= 2 * max(theirs, 3e-7), (error, theirs)  # of few channels the transforms alone err by 3e-7
        assert whole[:, :3].isnan().all()
        assert whole[:, -1:].isnan().all()
        check_statistics(statistics, out, self.tile)


def check_statistics(actual: Tensor, out: Tensor, tile: int) -> None:
    """A center among the values, and float32 sums of differences from it: as good as those of the strip, summed up."""
    assert actual.shape[1] == len(out.split(tile, 2))
    for strip, moments in zip(out.double().split(tile, 2), actual.double().unbind(1), strict=True):
        pixels = strip.flatten(2)
        (center, total, squares), n = moments.unbind(1), pixels.shape[2]
        off = pixels - center[..., None]
        assert (center <= pixels.amax(2) + 1e-6 * center.abs()).all()
        assert (center >= pixels.amin(2) - 1e-6 * center.abs()).all()
        assert ((total - off.sum(2)).abs() <= 1e-6 * off.abs().sum(2) + 6e-8 * n * center.abs()).all()
        assert ((squares - off.square().sum(2)).abs() <= 1e-6 * off.square().sum(2) + 1e-12).all()


@native
@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_slices_of_wider_tensors(case, tile):
    made = Case(*case, tile)
    made.check(made.run(), made.statistics)


@native
@pytest.mark.parametrize("without", [("gain", "offset"), ("gain", "offset", "silu"), ("silu",), ("residual", "shift")])
@pytest.mark.parametrize("upsample", [False, True])
def test_parts_may_be_missing(without, upsample):
    made = Case((2, 20, 6, 7), 18, upsample, 4, *without)
    made.check(made.run(), made.statistics)


@native
def test_every_instruction_set(isa, tmp_path):
    cases = [Case(*case, tile) for case in CASES for tile in (2, 4)]
    program = """
results = []
for x, weight, outputs, tile, bias, shift, residual, scale, gain, offset, silu, upsample, statistics, _, whole in cases:
    out = whole[:, 3:-1]
    weights = torch.ops.fastscore.conv3x3_weights(weight, tile, False)
    around = bias, shift, residual, scale, gain, offset, silu, upsample
    torch.ops.fastscore.conv3x3_winograd_into(x, weights, outputs, tile, *around, statistics, out)
    results.append((whole, statistics))
"""
    results, launches = run_on(isa, program, [(*c.arguments(c.weight), c.whole) for c in cases], tmp_path)
    assert launches == {f"conv3x3_winograd.{isa}": len(cases), f"conv3x3_weights.{isa}": len(cases)}
    for made, written in zip(cases, results, strict=True):
        made.check(*written)


@native
@pytest.mark.parametrize("tile", [2, 4])
def test_statistics_of_large_means(tile):
    made = Case((2, 40, 18, 10), 18, False, tile, "residual", "gain", "offset", "silu")
    made.parts["bias"] = made.parts["bias"] + 1e3
    made.run()
    check_statistics(made.statistics, made.out, tile)
    assert (made.out.mean().abs() / made.out.std()) > 500


@native
def test_statistics_may_be_a_slice_of_channels():
    made = Case((2, 20, 6, 7), 18, False, 4)
    made.run()
    expected, whole = made.statistics.clone(), torch.full((2, 2, 3, 25), float("nan"))
    made.statistics = whole[..., 3:21]
    made.run()
    assert torch.equal(made.statistics, expected)
    assert int(whole.isnan().sum()) == whole.numel() - expected.numel()


@native
def test_without_statistics_the_result_is_the_same():
    made = Case((2, 20, 6, 7), 18, False, 4)
    expected = made.run().clone()
    made.statistics = None
    made.whole[:] = float("nan")
    torch.testing.assert_close(made.run(), expected, rtol=0, atol=0, equal_nan=True)


@native
@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bfloat16_is_float32_rounded_once(case, tile):
    """Bit for bit, in slices of wider tensors; and the statistics are of what was not rounded yet."""
    wide, narrow = Case(*case, tile), Case(*case, tile)
    narrow.x = among_channels(wide.x.bfloat16(), 1, 2)[0]
    narrow.parts["residual"] = among_channels(wide.parts["residual"].bfloat16(), 2, 5)[0]
    narrow.out, narrow.whole = among_channels(wide.out.bfloat16(), 3, 1)
    wide.x.copy_(narrow.x)
    wide.parts["residual"].copy_(narrow.parts["residual"])
    assert torch.equal(narrow.run().nan_to_num(7.0), wide.run().bfloat16().nan_to_num(7.0))
    assert torch.equal(narrow.statistics, wide.statistics)


@native
def test_statistics_tell_of_what_is_not_finite():
    made = Case((1, 5, 8, 8), 6, False, 4, "residual")
    made.x[0, 2, 0, 0] = float("nan")
    made.run()
    assert made.statistics[0, 0].isnan().all()
    assert made.statistics[0, 1].isfinite().all()


@native
def test_the_residual_may_be_out():
    made = Case((2, 20, 6, 7), 18, False, 4)
    made.out.copy_(made.parts["residual"])
    made.parts["residual"] = made.out.clone()
    expected = made.expected(torch.float64)
    made.parts["residual"] = made.out
    torch.testing.assert_close(made.run()[:, 3:-1].double(), expected, rtol=1e-5, atol=1e-5)


@native
def test_x_and_out_may_be_channels_of_one_tensor():
    made = Case((2, 20, 6, 7), 18, False, 2)
    whole = torch.full((2, 6, 7, 40), float("nan")).movedim(-1, 1)
    whole[:, :20] = made.x
    made.x, made.out = whole[:, :20], whole[:, 20:38]
    made.run()
    torch.testing.assert_close(made.out.double(), made.expected(torch.float64), rtol=1e-5, atol=1e-5)
    assert whole[:, 38:].isnan().all()


@pytest.mark.parametrize("upsample", [False, True])
def test_the_reference_is_the_convolution(upsample):
    made = Case((2, 20, 6, 7), 18, upsample, 4)
    weights = conv3x3_weights(made.weight, 4, 16)
    conv3x3_winograd_into(*made.arguments(weights))
    made.check(made.whole, made.statistics)


def test_fake_tensors_are_written_by_nobody():
    with FakeTensorMode():
        x, weights = torch.empty(1, 4, 4, 2).movedim(-1, 1), torch.empty(1, 36, 2, 16)
        around = None, None, None, 1.0, None, None, False
        out = torch.empty(1, 8, 8, 3).movedim(-1, 1)
        assert RAW(x, weights, 3, 4, *around, True, None, out) is None


@native
@pytest.mark.parametrize(
    ("error", "message", "wrong"),
    [
        (ValueError, "x must be channels last, or a slice of the channels of such a tensor, got", {"x": "contiguous"}),
        (ValueError, "x must be channels last", {"x": "columns"}),
        (ValueError, "out must be channels last", {"out": "contiguous"}),
        (ValueError, "residual must be channels last", {"residual": "contiguous"}),
        (ValueError, r"out must have shape \[2, 9, 6, 8\], got \[2, 9, 12, 16\]", {"upsample": False}),
        (ValueError, "x must share no memory with out", {"x": "overlap"}),
        (ValueError, "residual must share no memory with out", {"residual": "overlap"}),
        (TypeError, "x must be float32 or bfloat16, got Double", {"x": "double"}),
        (TypeError, "out must be float32, got BFloat16", {"out": "narrow"}),
        (TypeError, "residual must have the dtype of out, Float, got BFloat16", {"residual": "narrow"}),
        (TypeError, "out must be bfloat16, got Float", {"x": "narrow"}),
        (TypeError, "bias must be float32, got BFloat16", {"bias": "narrow"}),
        (ValueError, r"weights must be contiguous, of shape", {"tile": 2}),
        (ValueError, "tile must be 2 or 4, got 3", {"tile": 3}),
        (ValueError, r"shift must have shape \[2, 9\], got \[2, 5\]", {"shift": "columns"}),
        (ValueError, "shift must have rows without gaps, got strides", {"shift": "contiguous"}),
        (ValueError, r"statistics must have shape \[2, 3, 3, 9\], got \[2, 2, 3, 9\]", {"statistics": "too few"}),
        (ValueError, "statistics must be contiguous, or a slice of the channels", {"statistics": "contiguous"}),
        (ValueError, "bias must have no gaps, got strides", {"bias": "gaps"}),
        (ValueError, "gain and offset must come together", {"offset": "none"}),
    ],
)
def test_bad_arguments_are_refused(error, message, wrong):
    made = Case((2, 5, 6, 8), 9, True, 4)
    weights = torch.ops.fastscore.conv3x3_weights(made.weight, 4, False)
    change = {
        "contiguous": lambda t: t.contiguous() if t.dim() == 4 else t.t().contiguous().t(),
        "columns": lambda t: t[..., :5],
        "double": lambda t: t.double(),
        "narrow": lambda t: t.bfloat16(),
        "gaps": lambda t: t.repeat_interleave(2)[::2],
        "none": lambda t: None,
    }
    for name, how in wrong.items():
        if name in ("tile", "upsample"):
            setattr(made, name, how)
        elif name == "statistics" and how == "too few":
            made.statistics = made.statistics[:, :-1]
        elif name == "statistics":
            made.statistics = made.statistics.mT.contiguous().mT
        elif how == "overlap" and name == "x":
            made.x = made.whole.as_strided((2, 5, 6, 8), (6 * 8 * 13, 1, 8 * 13, 13))
        elif how == "overlap":
            made.parts["residual"] = made.whole[:, 4:]
        elif name in ("x", "out"):
            setattr(made, name, change[how](getattr(made, name)))
        else:
            made.parts[name] = change[how](made.parts[name])
    with pytest.raises(error, match=f"conv3x3_winograd: {message}"):
        RAW(*made.arguments(weights))
