"""conv_gemm_into: against float64, with slices of wider tensors, what stays untouched, bad arguments."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from fastscore import _library
from fastscore.reference.conv_gemm import conv_gemm_into, conv_gemm_weights
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import among_channels, apart, make_input
from fastscore.testing.ops import run_on

RAW = torch.ops.fastscore.conv_gemm_into
pack = torch.ops.fastscore.conv_gemm_weights
native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")


class Shape(NamedTuple):
    """Of a call: x (B, C, H, W), outputs, kernel, stride, padding, upsample, height and width of out."""

    x: tuple[int, int, int, int]
    outputs: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    upsample: bool = False
    size: tuple[int, int] | None = None  # that of x over the stride if None

    @property
    def out(self) -> tuple[int, int, int, int]:
        times = 2 if self.upsample else 1
        height, width = self.size or tuple(-(-times * n // self.stride) for n in self.x[2:])
        return self.x[0], self.outputs, height, width


SHAPES = [
    Shape((1, 1, 1, 1), 1),
    Shape((2, 300, 5, 5), 70),  # several panels and depths, a block that ends inside of an image
    Shape((3, 40, 10, 13), 20),  # several blocks
    Shape((2, 20, 9, 8), 16, stride=2),
    Shape((2, 6, 5, 4), 5, upsample=True),
    Shape((1, 1, 1, 1), 1, 3, padding=1),
    Shape((4, 3, 16, 16), 40, 3, padding=1),  # few channels, which are gathered
    Shape((2, 9, 12, 11), 3, 3, padding=1),  # few outputs
    Shape((1, 37, 6, 5), 8, 3, padding=1),
    Shape((2, 130, 4, 4), 33, 3, padding=1),
    Shape((3, 24, 7, 6), 35, 3, padding=1, upsample=True),
    Shape((2, 40, 9, 8), 17, 3, stride=2, padding=1),
    Shape((2, 40, 8, 8), 24, 3, stride=2),  # zeros behind the last row and column alone
    Shape((2, 20, 9, 7), 24, 3, stride=2, padding=1, upsample=True),
    Shape((2, 12, 6, 9), 10, 3, size=(4, 7)),  # zeros nowhere
    Shape((2, 12, 6, 9), 10, 3, padding=2, size=(8, 11)),
    *(Shape((1, 50, 1, rows), 100) for rows in range(1, 15)),  # linear layers
    Shape((1, 259, 1, 1), 300),
]
AROUND = (None, None, None, 1.0, None, None, False)  # nothing: bias, shift, residual, scale, gain, offset, silu
PARTS = ("bias", "shift", "residual", "gain", "offset", "silu")


def definition(shape: Shape, x: Tensor, weight: Tensor, parts: dict[str, Tensor], scale: float) -> Tensor:
    """Shifted products, in the dtype of x."""
    if "gain" in parts:
        x = x * parts["gain"][:, :, None, None] + parts["offset"][:, :, None, None]
    if "silu" in parts:
        x = x * torch.sigmoid(x)
    if shape.upsample:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    padded = F.pad(x, (shape.padding, 9, shape.padding, 9))
    out = x.new_zeros(shape.out)
    height, width = (shape.stride * n for n in shape.out[2:])
    for i in range(shape.kernel):
        for j in range(shape.kernel):
            read = padded[:, :, i : i + height : shape.stride, j : j + width : shape.stride]
            out = out + torch.einsum("bchw,kc->bkhw", read, weight[:, :, i, j])
    for name in ("bias", "shift"):
        if name in parts:
            out = out + parts[name].reshape(-1, shape.outputs, 1, 1)
    return (out + parts.get("residual", 0)) * scale


class Case:
    """The tensors of a call, images among other channels and rows of parameters apart; and what must come out."""

    def __init__(self, shape: Shape, *without: str):
        batch, channels = shape.x[:2]
        self.shape = shape
        taps = shape.kernel**2
        self.weight = make_input(
            (shape.outputs, channels, shape.kernel, shape.kernel), scale=(taps * channels) ** -0.5, seed=1
        )
        parts = {
            "bias": make_input((shape.outputs,), seed=2),
            "shift": apart(make_input((batch, shape.outputs), seed=3), 3),
            "residual": among_channels(make_input(shape.out, seed=4), 2, 5)[0],
            "gain": apart(make_input((batch, channels), seed=5), 1),
            "offset": apart(make_input((batch, channels), seed=6), 4),
            "silu": torch.tensor(True),
        }
        self.parts = {name: part for name, part in parts.items() if name not in without}
        self.scale = 0.5**0.5
        self.x = among_channels(make_input(shape.x), 1, 2)[0]
        self.out, self.whole = among_channels(torch.full(shape.out, float("nan")), 3, 1)

    def arguments(self) -> tuple:
        """All but the first three: of what lies in front of `out`."""
        s, get = self.shape, self.parts.get
        around = (
            get("bias"),
            get("shift"),
            get("residual"),
            self.scale,
            get("gain"),
            get("offset"),
            "silu" in self.parts,
        )
        return s.outputs, s.kernel, s.stride, s.padding, *around, s.upsample

    def run(self) -> Tensor:
        RAW(self.x, pack(self.weight), *self.arguments(), self.out)
        return self.whole

    def expected(self, dtype: torch.dtype) -> Tensor:
        parts = {name: part.to(dtype) for name, part in self.parts.items()}
        return definition(self.shape, self.x.to(dtype), self.weight.to(dtype), parts, self.scale)

    def check(self, whole: Tensor) -> None:
        """At most twice the error of plain torch, and nothing but the slice was written."""
        assert_error_within_budget(
            whole[:, 3:-1], self.expected(torch.float64), self.expected(torch.float32), str(self.shape)
        )
        assert whole[:, :3].isnan().all()
        assert whole[:, -1:].isnan().all()


@native
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_slices_of_wider_tensors(shape):
    made = Case(shape)
    made.check(made.run())


@native
@pytest.mark.parametrize("without", [("gain", "offset"), ("gain", "offset", "silu"), ("silu",), ("residual", "shift")])
@pytest.mark.parametrize("shape", [SHAPES[i] for i in (1, 4, 6, 7, 11)], ids=str)
def test_parts_may_be_missing(shape, without):
    made = Case(shape, *without)
    made.check(made.run())


@native
def test_alone_it_is_the_convolution():
    made = Case(Shape((2, 20, 6, 7), 18, 3, padding=1), *PARTS)
    made.scale = 1.0
    made.check(made.run())


@native
def test_every_instruction_set(isa, tmp_path):
    cases = [Case(shape) for shape in SHAPES]
    program = """
results = []
for x, weight, arguments, whole in cases:
    weights = torch.ops.fastscore.conv_gemm_weights(weight)
    torch.ops.fastscore.conv_gemm_into(x, weights, *arguments, whole[:, 3:-1])
    results.append(whole)
"""
    saved = [(made.x, made.weight, made.arguments(), made.whole) for made in cases]
    results, launches = run_on(isa, program, saved, tmp_path)
    assert launches == {f"conv_gemm.{isa}": len(cases), f"conv_gemm_weights.{isa}": len(cases)}
    for made, whole in zip(cases, results, strict=True):
        made.check(whole)


@native
@pytest.mark.parametrize("shape", SHAPES[:16], ids=str)
def test_what_is_left_in_scratch_memory_is_not_read(shape, threads):
    with threads(1):
        for kernel in (1, 3):
            before = Case(Shape((2, 67, 9, 11), 64, kernel, padding=kernel // 2))
            before.x.fill_(float("nan"))
            assert before.run()[:, 3:-1].isnan().all()
        made = Case(shape)
        made.check(made.run())


@native
@pytest.mark.parametrize(("kernel", "outputs"), [(1, 100), (3, 20), (3, 3)])
def test_bits_do_not_depend_on_batch_or_threads(kernel, outputs, threads):
    def run(*batch: int) -> Tensor:
        made = Case(Shape((12, 40, 5, 7), outputs, kernel, padding=kernel // 2), "shift", "gain", "offset", "residual")
        made.x, made.out = made.x[slice(*batch)], made.out[slice(*batch)]
        made.run()
        return made.out

    with threads(1):
        expected = run(12)
    for count in (1, 2, 3, 16):
        with threads(count):
            assert torch.equal(run(12), expected)
            assert torch.equal(run(5, 6), expected[5:6])


@native
def test_bits_of_a_row_do_not_depend_on_the_rows_beside():
    x, weights = make_input((14, 200)), pack(make_input((300, 200), seed=1))

    def run(rows: Tensor) -> Tensor:
        out = torch.empty(len(rows), 300)
        RAW(rows.t()[None, :, None], weights, 300, 1, 1, 0, *AROUND, False, out.t()[None, :, None])
        return out

    expected = run(x)
    for rows in range(1, 14):
        assert torch.equal(run(x[:rows]), expected[:rows])


@native
def test_the_residual_may_be_out():
    made = Case(Shape((2, 20, 6, 7), 18, 3, padding=1))
    expected = made.expected(torch.float64)
    made.out.copy_(made.parts["residual"])
    made.parts["residual"] = made.out
    torch.testing.assert_close(made.run()[:, 3:-1].double(), expected, rtol=1e-5, atol=1e-5)


@native
def test_x_and_out_may_be_channels_of_one_tensor():
    made = Case(Shape((2, 20, 6, 7), 18))
    whole = torch.full((2, 6, 7, 40), float("nan")).movedim(-1, 1)
    whole[:, :20] = made.x
    made.x, made.out = whole[:, :20], whole[:, 20:38]
    made.run()
    torch.testing.assert_close(made.out.double(), made.expected(torch.float64), rtol=1e-5, atol=1e-5)
    assert whole[:, 38:].isnan().all()


@native
@pytest.mark.parametrize("kernel", [1, 3])
def test_weights_are_packed_as_the_reference_does(kernel):
    weight = make_input((21, 35, kernel, kernel), "channels_last")
    packed = pack(weight)
    assert torch.equal(packed, conv_gemm_weights(weight, packed.shape[-1]))
    matrix = make_input((35, 21)).t()
    assert torch.equal(pack(matrix), pack(matrix[:, :, None, None]))


@pytest.mark.parametrize("shape", SHAPES[:16], ids=str)
def test_the_reference_is_the_definition(shape):
    made = Case(shape)
    x, *arguments = (t.double() if isinstance(t, Tensor) else t for t in (made.x, *made.arguments()))
    out = torch.empty(shape.out, dtype=torch.float64)
    conv_gemm_into(x, conv_gemm_weights(made.weight.double(), 16), *arguments, out)
    torch.testing.assert_close(out, made.expected(torch.float64), rtol=1e-12, atol=1e-12)


@native
def test_no_samples():
    out = torch.empty(0, 5, 4, 4)
    assert RAW(torch.empty(0, 3, 4, 4), pack(torch.ones(5, 3)), 5, 1, 1, 0, *AROUND, False, out) is None


def test_fake_tensors_are_written_by_nobody():
    with FakeTensorMode():
        x, weights = torch.empty(1, 4, 4, 2).movedim(-1, 1), pack(torch.empty(3, 2, 3, 3))
        assert weights.shape == (1, 18, weights.shape[2])
        out = torch.empty(1, 8, 8, 3).movedim(-1, 1)
        assert RAW(x, weights, 3, 3, 1, 1, *AROUND, True, out) is None


X, OUT = torch.zeros(2, 4, 4, 3).movedim(-1, 1), torch.zeros(2, 4, 4, 5).movedim(-1, 1)
NAMES = [argument.name for argument in RAW.default._schema.arguments]


@native
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"x must have shape \(B, C, H, W\), got \[3, 4, 4\]", {"x": X[0]}),
        (TypeError, "x must be float32, got Double", {"x": X.double()}),
        (ValueError, "x must be channels last, or a slice of the channels", {"x": X.contiguous()}),
        (ValueError, "out must be channels last, or a slice of the channels", {"out": OUT.contiguous()}),
        (ValueError, "x must have at least 1 channel, got 0", {"x": X[:, :0]}),
        (ValueError, "weights must be contiguous, of shape .* got", {"weights": torch.zeros(2, 3, 3)}),
        (ValueError, "weights must be contiguous, of shape .* got", {"x": X[:, :2]}),
        (ValueError, "outputs must be at least 1, got 0", {"outputs": 0}),
        (ValueError, "kernel must be 1 or 3, got 2", {"kernel": 2}),
        (ValueError, "stride must be 1 or 2, got 3", {"stride": 3}),
        (ValueError, "padding must be at least 0 and less than kernel, 1, got 1", {"padding": 1}),
        (ValueError, "padding must be at least 0 and less than kernel, 1, got -1", {"padding": -1}),
        (ValueError, r"out must have shape \[2, 5, H, W\] .* got \[2, 5, 4, 4\]", {"stride": 2}),
        (ValueError, r"out must have shape \[2, 5, H, W\] .* got \[2, 3, 4, 4\]", {"out": X.clone()}),
        (ValueError, r"bias must have shape \[5\], got \[3\]", {"bias": torch.zeros(3)}),
        (ValueError, r"shift must have shape \[2, 5\], got \[5\]", {"shift": torch.zeros(5)}),
        (ValueError, "residual must have", {"residual": X}),
        (ValueError, "gain and offset must come together", {"gain": torch.zeros(2, 3)}),
        (ValueError, "x must share no memory with out", {"x": OUT[:, :3]}),
    ],
)
def test_bad_arguments_are_refused(error, message, arguments):
    given = (X, pack(torch.zeros(5, 3)), 5, 1, 1, 0, *AROUND, False, OUT)
    with pytest.raises(error, match=f"conv_gemm: {message}"):
        RAW(**{**dict(zip(NAMES, given, strict=True)), **arguments})


@native
@pytest.mark.parametrize("weight", [torch.zeros(5), torch.zeros(5, 3, 2, 2), torch.zeros(5, 3, 1, 3)])
def test_bad_weights_are_refused(weight):
    with pytest.raises(ValueError, match="conv_gemm_weights: weight must have shape"):
        pack(weight)
    with pytest.raises(TypeError, match="conv_gemm_weights: weight must be float32, got Double"):
        pack(torch.zeros(5, 3, dtype=torch.float64))
