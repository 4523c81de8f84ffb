"""The noise function: known answers, C++ against PyTorch bit for bit, normals to 4 units in the last place."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fastscore import _backend, _library, reference
from fastscore.ops import philox_normal, philox_rademacher
from fastscore.reference.philox import _radius, _unit_vector, philox_words

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SEEDS = (0, 1, -1, 2**63 - 1, -(2**63), 0x299F31D0A4093822)
SAMPLES = (0, 1, -1, 2**31, 2**32 - 1, 2**32, 2**40 + 3, 2**63 - 1, -(2**63))
DRAWS = (0, 1, 2**31, 2**32 - 1)

native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")


def rng(seed: int, draw: int) -> Tensor:
    return torch.tensor([seed, draw])


def ulps(actual: Tensor, exact: Tensor) -> Tensor:
    """Distance in units in the last place of the exact value, rounded to the dtype of `actual`."""
    rounded = exact.to(actual.dtype).abs()
    unit = torch.nextafter(rounded, torch.full_like(rounded, math.inf)).double() - rounded.double()
    return (actual.double() - exact).abs() / unit


def int64(low: int, high: int) -> int:
    word = low | high << 32
    return word - 2**64 if word >= 2**63 else word


# Random123's own known answers (kat_vectors, philox4x32 10): counter, key, words.
KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    block, draw, *sample = counter
    got = philox_words(int64(*key), draw, int64(*sample), block)
    assert tuple(got.tolist()) == words


@native
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers_native(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    block, draw, *sample = counter
    state, index = torch.tensor([[int64(*key), draw]]), torch.tensor([int64(*sample)])
    assert tuple(_library.NATIVE.philox_words_cpu(state, index, torch.tensor([block]), 1).flatten().tolist()) == words


def random_counters(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(seed, draw) pairs, samples and first blocks, random and extreme."""
    generator = torch.Generator().manual_seed(0)

    def integers(bits: int, extremes: tuple[int, ...]) -> Tensor:
        random = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)
        random = random >> torch.randint(0, 64, (count,), generator=generator)  # of every magnitude
        random[: len(extremes)] = torch.tensor(extremes)
        random = random[torch.randperm(count, generator=generator)]
        return random if bits == 64 else random & (2**bits - 1)

    state = torch.stack((integers(64, SEEDS), integers(32, DRAWS)), -1)
    return state, integers(64, SAMPLES), integers(32, (0, 1, 2**32 - 1, 2**32 - 9))


@native
def test_words_bit_for_bit() -> None:
    state, samples, first = random_counters(5_000)
    count = 37  # no multiple of any vector; runs past block 2^32 - 1 wrap around
    want = philox_words(state[:, :1], state[:, 1:], samples[:, None], first[:, None] + torch.arange(count))
    assert torch.equal(_library.NATIVE.philox_words_cpu(state, samples, first, count), want)


PROBE = """
import sys, torch
from fastscore import _library
from fastscore.ops import philox_normal, philox_rademacher
state, samples, first, shape = torch.load(sys.argv[1])
out = [_library.NATIVE.philox_words_cpu(state, samples, first, 37)]
out += [philox_normal(shape, state[0], samples[: shape[0]], d) for d in (torch.float32, torch.float64)]
out += [philox_rademacher(shape, state[0], samples[: shape[0]])]
torch.save((out, _library.NATIVE.launches()), sys.argv[2])
"""


@native
@pytest.mark.parametrize(("capability", "isa"), [("default", "baseline"), ("avx2", "avx2"), ("avx512", "avx512")])
def test_every_instruction_set(capability: str, isa: str, tmp_path) -> None:
    best = {"AVX2": 1, "AVX512": 2}.get(torch.backends.cpu.get_cpu_capability(), 0)
    if {"baseline": 0, "avx2": 1, "avx512": 2}[isa] > best:
        pytest.skip(f"this CPU has no {isa}")
    state, samples, first = random_counters(500)
    shape = (7, 4099)
    torch.save((state, samples, first, shape), tmp_path / "case")
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    subprocess.run([sys.executable, "-c", PROBE, tmp_path / "case", tmp_path / "out"], env=environment, check=True)
    (words, single, double, signs), launches = torch.load(tmp_path / "out")
    assert launches == {f"philox_normal.{isa}": 2, f"philox_rademacher.{isa}": 1}
    want = philox_words(state[:, :1], state[:, 1:], samples[:, None], first[:, None] + torch.arange(37))
    assert torch.equal(words, want)
    exact = reference.philox_normal(shape, state[0], samples[:7], torch.float64)
    assert ulps(single, exact).max() <= 4
    assert ulps(double, exact).max() <= 4
    assert torch.equal(signs, reference.philox_rademacher(shape, state[0], samples[:7]))


@native
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, 200_000),
        (torch.float64, 50_000),
        pytest.param(torch.float32, 10_000_000, marks=pytest.mark.slow),
        pytest.param(torch.float64, 2_000_000, marks=pytest.mark.slow),
    ],
)
def test_normals_within_four_ulp(dtype: torch.dtype, size: int, threads) -> None:
    worst = 0.0
    with threads(1):  # a hundred small operations, whose threads would wait for each other on a busy machine
        for seed in range(10):
            key, samples = rng(seed * 0x123456789ABCDEF, seed), torch.tensor([seed - 5])
            exact = reference.philox_normal((1, size), key, samples, torch.float64)
            worst = max(worst, float(ulps(philox_normal((1, size), key, samples, dtype), exact).max()))
    print(f"{dtype}: at most {worst:.2f} ulp in {10 * size} draws")
    assert worst <= 4


def test_reference_rounds_once() -> None:
    key, samples = rng(5, 6), torch.arange(3)
    exact = reference.philox_normal((3, 50), key, samples, torch.float64)
    for dtype in DTYPES:
        assert torch.equal(reference.philox_normal((3, 50), key, samples, dtype), exact.to(dtype))


def test_extreme_words() -> None:
    radius = _radius(torch.tensor([0, 2**32 - 1, 2**31]))
    want = [math.sqrt(66 * math.log(2)), 0.0, math.sqrt(-2 * math.log(0.5))]  # 2^-33 is lost beside 1/2
    torch.testing.assert_close(radius, torch.tensor(want, dtype=torch.float64), rtol=1e-15, atol=0)
    words = torch.tensor([k * 2**30 + d for k in range(4) for d in (0, 1, 2**29 - 1, 2**29, 2**30 - 1)] + [2**32 - 1])
    cosine, sine = _unit_vector(words)
    angles = [math.tau * int(w) / 2**32 for w in words]
    torch.testing.assert_close(cosine, torch.tensor([math.cos(a) for a in angles]).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(sine, torch.tensor([math.sin(a) for a in angles]).double(), rtol=0, atol=1e-7)
    quarters = torch.stack(_unit_vector(torch.arange(4) << 30), -1)
    assert quarters.tolist() == [[1, 0], [0, 1], [-1, 0], [0, -1]]  # exactly: what math.cos cannot give
    assert float(_unit_vector(torch.tensor(2**30 - 1))[0]) == pytest.approx(math.tau / 2**32, rel=1e-15)


@native
@pytest.mark.parametrize("size", [1, 3, 4, 31, 33, 127, 129, 1023, 1024, 1025, 2600])
def test_rademacher_equals_the_reference(size: int) -> None:
    for dtype in DTYPES:
        args = ((3, size), rng(-7, 2**32 - 1), torch.tensor([0, 2**40, -1]), dtype)
        signs = philox_rademacher(*args)
        assert torch.equal(signs, reference.philox_rademacher(*args))
        assert signs.abs().eq(1).all()


@pytest.mark.parametrize(
    "draw", [philox_normal, philox_rademacher, reference.philox_normal, reference.philox_rademacher]
)
def test_a_function_of_its_counters(draw) -> None:
    key, samples = rng(3, 4), torch.tensor([10, 2**33, -4, 7])
    whole = draw((4, 700), key, samples)
    assert torch.equal(draw((4, 7, 100), key, samples), whole.view(4, 7, 100)), "the shape of a sample"
    assert torch.equal(draw((4, 333), key, samples), whole[:, :333]), "its size"
    assert torch.equal(draw((2, 700), key, samples[[3, 1]]), whole[[3, 1]]), "the batch"
    assert torch.equal(draw((4,), key, samples), whole[:, 0])
    assert draw((4, 0, 3), key, samples).shape == (4, 0, 3)
    assert draw((0, 5), key, samples[:0]).shape == (0, 5)
    for other in (rng(4, 4), rng(3 + 2**32, 4), rng(3, 5)):
        assert draw((4, 700), other, samples).ne(whole).float().mean() > 0.4
    for shift in (1, 2**32):
        assert draw((4, 700), key, samples + shift).ne(whole).float().mean() > 0.4


@native
def test_bits_do_not_depend_on_threads(threads) -> None:
    for draw in (philox_normal, philox_rademacher):
        results = []
        for count in (1, 2):
            with threads(count):
                results.append(draw((5, 20_000), rng(1, 2), torch.arange(5)))
        assert torch.equal(*results)


@native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_is_the_rounded_single(dtype: torch.dtype) -> None:
    args = ((3, 5000), rng(1, 2), torch.arange(3))
    assert torch.equal(philox_normal(*args, dtype), philox_normal(*args).to(dtype))


@native
def test_what_ran() -> None:
    args = ((3, 50), rng(1, 2), torch.arange(3))
    isa = _library.build_info()["isa"]
    _library.NATIVE.reset_launches()
    fused = philox_normal(*args), philox_rademacher(*args)
    assert _library.NATIVE.launches() == {f"philox_normal.{isa}": 1, f"philox_rademacher.{isa}": 1}
    with _backend.backend("reference"):
        plain = philox_normal(*args), philox_rademacher(*args)
    assert _library.NATIVE.launches() == {f"philox_normal.{isa}": 1, f"philox_rademacher.{isa}": 1}
    torch.testing.assert_close(fused, plain)


@pytest.mark.parametrize("name", ["philox_normal", "philox_rademacher"])
def test_opcheck(name: str) -> None:
    op = getattr(torch.ops.fastscore, name)
    for shape in ((3, 5), (3,), (3, 0), (3, 2, 4, 4)):
        for dtype in DTYPES:
            torch.library.opcheck(op, (rng(1, 2), torch.arange(3), shape, dtype))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake(device: str) -> None:
    with FakeTensorMode():
        key, samples = rng(1, 2).to(device), torch.arange(3, device=device)
        for function in (philox_normal, philox_rademacher):
            out = function((3, 4, 5), key, samples, torch.bfloat16)
            assert (out.shape, out.dtype, out.device.type) == ((3, 4, 5), torch.bfloat16, device)
        assert reference.philox_normal((3, 4, 5), key, samples).device.type == device


def test_compile() -> None:
    for function in (philox_normal, philox_rademacher, reference.philox_normal):
        args = ((3, 4, 5), rng(-1, 2**32 - 1), torch.tensor([-1, 0, 2**62]))
        torch.testing.assert_close(torch.compile(function, fullgraph=True)(*args), function(*args), rtol=1e-6, atol=0)


BAD = [
    (ValueError, r"shape must be \(B, ...\), got \(\)", {"shape": ()}),
    (TypeError, "dtype must be float32, float64, bfloat16 or float16, got torch.int64", {"dtype": torch.int64}),
    (TypeError, "rng must be an int64 tensor, .*, got list", {"rng": [1, 2]}),
    (TypeError, "rng must be an int64 tensor, .*, got torch.float32", {"rng": torch.zeros(2)}),
    (ValueError, r"rng must have shape \(2,\), .*, got \(3,\)", {"rng": torch.arange(3)}),
    (ValueError, r"samples must have shape \(2,\), .*, got \(3,\)", {"samples": torch.arange(3)}),
    (TypeError, "samples must be an int64 tensor, .*, got torch.int32", {"samples": torch.arange(2).int()}),
    (ValueError, "samples must be on the device of .*, got meta", {"samples": torch.arange(2, device="meta")}),
]


@pytest.mark.parametrize(("error", "message", "changed"), BAD, ids=[message[:40] for _, message, _ in BAD])
@pytest.mark.parametrize("function", [philox_normal, philox_rademacher])
def test_bad_arguments(function, error: type[Exception], message: str, changed: dict) -> None:
    arguments = {"shape": (2, 3), "rng": rng(1, 2), "samples": torch.arange(2)} | changed
    with pytest.raises(error, match=f"^{function.__name__}: {message}"):
        function(**arguments)


@native
def test_the_raw_op_refuses_what_would_crash_it() -> None:
    op, key, samples = torch.ops.fastscore.philox_normal, rng(1, 2), torch.arange(2)
    for error, message, args in (
        (ValueError, r"rng must have shape \(2,\), got \[1\]", (key[:1], samples, (2, 3), torch.float32)),
        (TypeError, "rng and samples must be int64, got Float", (key.float(), samples, (2, 3), torch.float32)),
        (ValueError, "shape must have a batch dimension", (key, samples, (), torch.float32)),
        (ValueError, r"samples must have shape \(3,\), got \[2\]", (key, samples, (3, 3), torch.float32)),
        (TypeError, "dtype must be float32, .* got Int", (key, samples, (2, 3), torch.int32)),
    ):
        with pytest.raises(error, match=f"^philox_normal: {message}"):
            op(*args)
    with pytest.raises(ValueError, match="philox_words_cpu: wants"):
        _library.NATIVE.philox_words_cpu(key, samples, samples, 1)
