"""group_affine_into: GroupNorm as a gain and an offset, against float64; what it may read and write; bad arguments."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from fastscore import _library
from fastscore.reference.group_affine import group_affine_into as reference
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input
from fastscore.testing.ops import run_on

OP = torch.ops.fastscore.group_affine_into.default
pytestmark = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")
# (B, C, H, W), groups: groups of 1, 4, 5, 8, 12 and 16 channels, all in one; one pixel, one block and several, the last
# one cut off; fewer channels than a vector
SHAPES = [
    ((2, 32, 5, 7), 32), ((3, 128, 8, 8), 32), ((2, 35, 9, 4), 7), ((1, 256, 16, 17), 32), ((2, 384, 4, 4), 32),
    ((1, 512, 9, 9), 32), ((4, 3, 6, 5), 1), ((2, 64, 1, 1), 16), ((1, 8, 64, 65), 2),
]  # fmt: skip


def pixels(image: Tensor, gap: int = 0) -> Tensor:
    """The image as rows of pixels, with `gap` channels of NaN behind each."""
    batch, channels, height, width = image.shape
    memory = image.new_full((batch, height, width, channels + gap), float("nan")).movedim(-1, 1)
    return memory[:, :channels].copy_(image)


def make_case(shape: tuple[int, ...], mean: float = 0.0) -> tuple[Tensor, ...]:
    """x and the parameters: weight, bias, scale, shift. Every channel has a mean and a deviation of its own."""
    batch, channels = shape[:2]
    x = make_input(shape) * make_input((channels, 1, 1), mean=1.0, scale=0.2, seed=1)
    x = x + make_input((batch, channels, 1, 1), mean=mean, seed=2)
    sizes = ((channels,), (channels,), (batch, channels), (batch, channels))
    return pixels(x), *(make_input(size, seed=seed) for seed, size in enumerate(sizes, 3))


def call(
    x: Tensor, groups: int, *parameters: Tensor | None, eps: float = 1e-5, strips: Tensor | None = None, rows: int = 0
) -> tuple[Tensor, Tensor]:
    gain, offset = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
    OP(x, groups, eps, *parameters, strips, rows, gain, offset)
    return gain, offset


def strips_of(x: Tensor, rows: int) -> Tensor:
    """Of strips of so many rows, a center and sums of differences from it and of their squares: (B, strips, 3, C)."""
    found = []
    for strip in x.double().split(rows, 2):
        center = strip[:, :, 0, :2].mean(2).float()
        off = strip - center.double()[:, :, None, None]
        found.append(torch.stack([center, off.sum((2, 3)).float(), off.square().sum((2, 3)).float()], 1))
    return torch.stack(found, 1)


def expected(x: Tensor, groups: int, *parameters: Tensor | None, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """The definition, in the dtype of x."""
    gain, offset = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
    reference(x, groups, eps, *parameters, None, 0, gain, offset)
    return gain, offset


def close_to(actual: tuple[Tensor, Tensor], x: Tensor, groups: int, *parameters: Tensor | None) -> None:
    wide = expected(x.double(), groups, *(p if p is None else p.double() for p in parameters))
    plain = expected(x, groups, *parameters)
    for name, ours, exact, theirs in zip(("gain", "offset"), actual, wide, plain, strict=True):
        assert_error_within_budget(ours, exact, theirs, name)


@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_by_shape(shape, groups, mean):
    x, *parameters = make_case(shape, mean)
    close_to(call(x, groups, *parameters), x, groups, *parameters)


@pytest.mark.parametrize("gap", [0, 5])
@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_of_strips_x_is_not_read(shape, groups, mean, rows, gap):
    x, *parameters = make_case(shape, mean)
    strips = strips_of(x, rows)
    whole = torch.full((*strips.shape[:3], shape[1] + gap), float("nan"))
    strips = whole[..., : shape[1]].copy_(strips)
    actual = call(torch.full_like(x, float("nan")), groups, *parameters, strips=strips, rows=rows)
    close_to(actual, x, groups, *parameters)


@pytest.mark.parametrize("given", range(4))
def test_each_parameter_alone(given):
    x, *parameters = make_case((2, 24, 5, 6), 3.0)
    parameters = [p if i == given else None for i, p in enumerate(parameters)]
    close_to(call(x, 6, *parameters), x, 6, *parameters)


def normalizes(x: Tensor, groups: int, weight=None, bias=None, scale=None, shift=None) -> None:
    """gain x + offset is GroupNorm."""

    def norm(x, weight, bias, scale, shift):
        h = F.group_norm(x, groups, weight, bias, 1e-3)
        return h if scale is None else h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]

    values = (x, weight, bias, scale, shift)
    gain, offset = (t[:, :, None, None] for t in call(x, groups, *values[1:], eps=1e-3))
    exact = norm(*(t if t is None else t.double() for t in values))
    assert_error_within_budget(torch.addcmul(offset, x, gain), exact, norm(*values), "group norm")


def test_it_is_group_norm():
    x, *parameters = make_case((3, 96, 11, 13), 1e3)
    normalizes(x, 32, *parameters)


@pytest.mark.parametrize("outlier", [0, 1, 100])
def test_a_pixel_far_from_all_others(outlier):
    """Also where it is among those whose mean is the center of its block."""
    x = make_input((1, 8, 16, 16))
    x[0, 0].view(-1)[outlier] = 1e4
    normalizes(pixels(x), 2)


@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_slices_of_channels(shape, groups):
    """To the bit what dense images give, and nothing else is read or written."""
    x, *parameters = make_case(shape)
    wanted = call(x, groups, *parameters)
    rows = [torch.full((shape[0], 2, shape[1] + 3), float("nan")) for _ in range(4)]
    inside = [r[:, 1, : shape[1]] for r in rows]
    apart = [*parameters[:2], *(view.copy_(p) for view, p in zip(inside, parameters[2:], strict=False))]
    OP(pixels(x, 5), groups, 1e-5, *apart, None, 0, *inside[2:])
    for view, row, want in zip(inside[2:], rows[2:], wanted, strict=True):
        assert torch.equal(view, want)
        assert int(row.isnan().sum()) == row.numel() - want.numel()


@pytest.mark.parametrize("shape", [(1, 128, 40, 40), (7, 64, 32, 32)])
def test_bits_do_not_depend_on_threads_or_batch(shape, threads):
    x, *parameters = make_case(shape, 10.0)
    with threads(1):
        wanted = call(x, 32, *parameters)
    with threads(2):
        assert all(map(torch.equal, call(x, 32, *parameters), wanted))
    for i in range(shape[0]):
        alone = call(x[i : i + 1], 32, *parameters[:2], *(p[i : i + 1] for p in parameters[2:]))
        assert all(map(torch.equal, alone, (w[i : i + 1] for w in wanted)))


def test_every_instruction_set(isa, tmp_path):
    cases = []
    for shape, groups in SHAPES:
        x, *parameters = make_case(shape, 1e3)
        strips = strips_of(x, 4)
        cases += [((x, *parameters), groups, None), ((x, *parameters), groups, strips)]
    program = """results = []
for (x, *parameters), groups, strips in cases:
    gain, offset = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
    torch.ops.fastscore.group_affine_into(x, groups, 1e-5, *parameters, strips, 4, gain, offset)
    results.append((gain, offset))"""
    results, launches = run_on(isa, program, cases, tmp_path)
    assert launches == {f"group_affine_into.{isa}": len(cases)}
    for ((x, *parameters), groups, _), actual in zip(cases, results, strict=True):
        close_to(actual, x, groups, *parameters)


def test_the_reference_is_the_definition():
    x, *parameters = (t.double() for t in make_case((2, 12, 3, 5), 2.0))
    weight, bias, scale, shift = parameters
    gain, offset = expected(x, 3, *parameters)
    h = F.group_norm(x, 3, weight, bias) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    torch.testing.assert_close(x * gain[:, :, None, None] + offset[:, :, None, None], h)


def test_no_samples_and_fake_tensors():
    gain, offset = call(torch.ones(0, 4, 2, 2), 2, None, None, None, None)
    assert gain.shape == offset.shape == (0, 4)
    with FakeTensorMode():
        assert call(torch.ones(2, 4, 3, 3), 2, None, None, None, None)[0].shape == (2, 4)


X, ROW, ROWS = pixels(torch.ones(2, 4, 3, 3)), torch.ones(4), torch.ones(2, 4)
BAD = [
    (ValueError, "x must have shape", {"x": torch.ones(2, 4, 3)}),
    (TypeError, "x must be float32", {"x": X.double()}),
    (ValueError, "x must be channels last, or a slice", {"x": torch.ones(2, 4, 3, 3)}),
    (ValueError, "x must have pixels", {"x": torch.ones(2, 4, 0, 3)}),
    (ValueError, "groups must divide the 4 channels of x, got 3", {"groups": 3}),
    (ValueError, "groups must divide the 4 channels of x, got 0", {"groups": 0}),
    (ValueError, "eps must be at least 0, got -1", {"eps": -1.0}),
    (ValueError, r"weight must have shape \[4\], got \[5\]", {"weight": torch.ones(5)}),
    (TypeError, "bias must be float32", {"bias": ROW.half()}),
    (ValueError, r"scale must have shape \[2, 4\], got \[4\]", {"scale": ROW}),
    (ValueError, "shift must have rows without gaps", {"shift": torch.ones(4, 2).t()}),
    (ValueError, r"gain must have shape \[2, 4\], got \[4\]", {"gain": ROW}),
    (ValueError, r"statistics must have shape \[2, 2, 3, 4\], got \[2, 3, 3, 4\]", {"strips": torch.ones(2, 3, 3, 4)}),
    (TypeError, "statistics must be float32", {"strips": torch.ones(2, 2, 3, 4).double()}),
    (ValueError, "statistics must be contiguous, or a slice", {"strips": torch.ones(2, 2, 4, 3).mT}),
    (ValueError, "strip_rows must be at least 1, got 0", {"strips": torch.ones(2, 2, 3, 4), "strip_rows": 0}),
    (TypeError, "offset must be float32", {"offset": ROWS.double()}),
]


@pytest.mark.parametrize(("error", "message", "wrong"), BAD, ids=[str(m) for _, m, _ in BAD])
def test_bad_arguments(error, message, wrong):
    right = {"x": X, "groups": 2, "eps": 1e-5, "weight": ROW, "bias": ROW, "scale": ROWS, "shift": ROWS}
    untouched = torch.full((2, 4), 7.0)
    right |= {"strips": None, "strip_rows": 2, "gain": untouched, "offset": untouched.clone()}
    with pytest.raises(error, match=message):
        OP(*(right | wrong).values())
    assert (untouched == 7).all()
