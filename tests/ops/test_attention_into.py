"""attention_into: against float64, at most twice the error of torch's; what it may read and write; bad arguments."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from fastscore import _library
from fastscore.reference.attention import attention_into as reference
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input
from fastscore.testing.ops import run_on

OP = torch.ops.fastscore.attention_into.default
pytestmark = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")
# (B, heads, N, D): one query, less than a panel and parts of one, several blocks of keys; several runs of terms; parts
# of vectors
SHAPES = [
    (2, 1, 1, 32), (1, 2, 16, 64), (2, 1, 64, 256), (1, 1, 256, 512), (2, 3, 100, 40), (1, 1, 1500, 64),
    (3, 2, 7, 5), (1, 1, 300, 1), (1, 1, 2049, 8),
]  # fmt: skip


def make_case(shape: tuple[int, ...], size: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v; scores have the standard deviation size^2."""
    q, k, v = (make_input(shape, seed=seed) for seed in range(3))
    return size * q, size * k, v


def call(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    out = q.new_empty(q.shape)
    OP(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, out)
    return out


def close_to(actual: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> None:
    exact, plain = q.new_empty(q.shape, dtype=torch.float64), F.scaled_dot_product_attention(q, k, v, scale=scale)
    reference(q.double(), k.double(), v.double(), q.shape[-1] ** -0.5 if scale is None else scale, exact)
    assert_error_within_budget(actual, exact, plain, "attention")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_by_shape(shape):
    case = make_case(shape)
    close_to(call(*case), *case)


@pytest.mark.parametrize("shape", [(1, 2, 64, 64), (1, 1, 1500, 32)], ids=str)
@pytest.mark.parametrize("size", [5.0, 30.0])
def test_large_scores(shape, size):
    """Up to 4,000: the greatest is subtracted, also where it comes with a later block of keys."""
    q, k, v = make_case(shape, size)
    close_to(call(q, k, v), q, k, v)
    k[:, :, -1] = 2 * q[:, :, 0]
    close_to(call(q, k, v), q, k, v)
    k[:, :, 0] = k[:, :, -1]
    close_to(call(q, k, v), q, k, v)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 1.0])
def test_any_scale(scale):
    case = make_case((1, 2, 50, 8))
    close_to(call(*case, scale), *case, scale)


@pytest.mark.parametrize(("batch", "heads", "rows", "channels"), [(2, 1, 64, 256), (1, 4, 100, 40), (2, 2, 1100, 8)])
def test_views(batch, heads, rows, channels):
    """q, k and v of one tensor, and a result among others: to the bit what dense ones give, and no neighbor touched."""
    case = make_case((batch, heads, rows, channels))
    wanted = call(*case)
    qkv = torch.full((batch, rows, 3, heads, channels + 1), float("nan"))
    views = [qkv[:, :, i, :, :channels].movedim(2, 1).copy_(t) for i, t in enumerate(case)]
    memory = torch.full((batch, rows + 1, heads, channels + 3), float("nan"))
    out = memory[:, :rows, :, :channels].movedim(2, 1)
    OP(*views, channels**-0.5, out)
    assert torch.equal(out, wanted)
    assert int(memory.isnan().sum()) == memory.numel() - wanted.numel()


def test_bits_do_not_depend_on_threads_or_batch(threads):
    case = make_case((5, 3, 130, 48))
    with threads(1):
        wanted = call(*case)
    with threads(2):
        assert torch.equal(call(*case), wanted)
    for i in range(5):
        assert torch.equal(call(*(t[i : i + 1] for t in case)), wanted[i : i + 1])


def test_every_instruction_set(isa, tmp_path):
    cases = [make_case(shape) for shape in SHAPES]
    program = """results = []
for q, k, v in cases:
    results.append(q.new_empty(q.shape))
    torch.ops.fastscore.attention_into(q, k, v, q.shape[-1] ** -0.5, results[-1])"""
    results, launches = run_on(isa, program, cases, tmp_path)
    assert launches == {f"attention_into.{isa}": len(cases)}
    for case, actual in zip(cases, results, strict=True):
        close_to(actual, *case)


@pytest.mark.parametrize("which", range(3))
def test_nan_shows(which):
    case = make_case((1, 1, 20, 8))
    case[which][0, 0, 3, 2] = float("nan")
    out = call(*case)
    if which == 0:
        assert out[0, 0, 3].isnan().all()
        assert int(out.isnan().sum()) == 8
    else:
        assert out[0, 0, :, 2].isnan().all()


def test_no_rows_and_fake_tensors():
    assert call(*(torch.ones(0, 2, 3, 4),) * 3).shape == (0, 2, 3, 4)
    with FakeTensorMode():
        assert call(*(torch.ones(1, 2, 3, 4),) * 3).shape == (1, 2, 3, 4)


Q = torch.ones(1, 2, 3, 4)
BAD = [
    (ValueError, r"q must have shape \(B, heads, N, D\), got \[3, 4\]", {"q": Q[0, 0]}),
    (TypeError, "q must be float32", {"q": Q.double()}),
    (ValueError, r"k must have the shape of q, \[1, 2, 3, 4\], got \[1, 2, 4, 4\]", {"k": torch.ones(1, 2, 4, 4)}),
    (TypeError, "v must have the dtype of q", {"v": Q.half()}),
    (ValueError, r"out must have the shape of q, \[1, 2, 3, 4\], got \[2, 3, 4\]", {"out": Q[0]}),
    (ValueError, "q must have rows without gaps", {"q": torch.ones(1, 2, 4, 3).mT}),
    (ValueError, "v must have rows without gaps", {"v": torch.ones(1, 2, 3, 8)[..., ::2]}),
    (ValueError, "out must have rows without gaps", {"out": torch.ones(1, 2, 4, 3).mT}),
]


@pytest.mark.parametrize(("error", "message", "wrong"), BAD, ids=[m for _, m, _ in BAD])
def test_bad_arguments(error, message, wrong):
    untouched = torch.full_like(Q, 7.0)
    with pytest.raises(error, match=message):
        OP(*({"q": Q, "k": Q, "v": Q, "scale": 1.0, "out": untouched} | wrong).values())
    assert (untouched == 7).all()
