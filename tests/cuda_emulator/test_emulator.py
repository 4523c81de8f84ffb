"""The emulator: it finds what is planted, and computes what a GPU computes."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"

# ------------------------------------------------------------------------------------------------ defects


@pytest.fixture(scope="module")
def defects(compile_cuda):
    return compile_cuda("tests/cuda_emulator/defects.cu", "tests/cuda_emulator/defects.cpp")


class DefectArgs(ctypes.Structure):
    _fields_ = (
        *(("data", ctypes.c_void_p), ("count", ctypes.c_int64)),
        *(("defect", ctypes.c_int), ("planted", ctypes.c_bool)),
    )


THREAD = r"block \(\d, 0, 0\), thread \(\d+, 0, 0\): "
# What the report says, in the order of the table in defects.cu.
DEFECTS = {
    "missing_barrier": THREAD + r"shared memory tile: element \d+ is read before anybody wrote it",
    "missing_syncwarp": THREAD + r"shared memory tile: race: reads element \d+, which thread \(\d+, 0, 0\) wrote",
    "overwritten_while_read": THREAD + r"shared memory total: race: (reads|writes) element 0, which thread "
    r"\(\d+, 0, 0\) (wrote|read), with no barrier between",
    "written_twice": THREAD + r"shared memory total: race: writes element 0, which thread \(\d+, 0, 0\) wrote",
    "atomic_and_plain": THREAD + r"shared memory count: race: (reads|writes) element 0, which thread",
    "uninitialized": THREAD + r"shared memory tile: element \d*[13579] is read before anybody wrote it",
    "left_by_another_block": r"block \(1, .*shared memory \(dynamic\): element \d+ is read before anybody wrote it",
    "beyond_shared": THREAD + r"shared memory \(dynamic\): element 64 is out of bounds: it has 64",
    "beyond_global": r"AddressSanitizer: heap-buffer-overflow",
    "misaligned_global": THREAD + r"undefined behavior: misaligned pointer to .*Vec.* \(device.h:\d+",
    "misaligned_float4": THREAD + r"undefined behavior: misaligned pointer to .*float4",
    "misaligned_shared": THREAD + r"shared memory tile: the address of element \d+ is no multiple of 16 bytes",
    "divergent_barrier": THREAD + r"divergent barrier: waits at __syncthreads \(defects.cu:\d+\) while thread "
    r"\(\d+, 0, 0\) waits at another \(defects.cu:\d+\)",
    "return_before_barrier": r"block \(\d, 0, 0\): deadlock: threads \(0, 0, 0\) to \(39, 0, 0\): at __syncthreads "
    r"\(defects.cu:\d+\); threads \(40, 0, 0\) to \(63, 0, 0\): finished",
    "lane_that_never_comes": r"deadlock: threads \(0, 0, 0\) to \(31, 0, 0\): finished; threads \(32, 0, 0\) to "
    r"\(34, 0, 0\): in a warp-wide operation with mask 0xffffffff \(device.h:\d+\); thread \(35, 0, 0\): finished; ",
    "caller_not_in_mask": THREAD + r"the mask 0xffff of a warp-wide operation \(defects.cu:\d+\) does not name the "
    r"caller, lane (1[6-9]|2\d|3[01])",
    "source_not_in_mask": THREAD + r"a shuffle \(defects.cu:\d+\) reads from lane (1[6-9]|2\d|3[01]), which its mask",
    "different_masks": r"deadlock: .*with mask 0xffffffff .*with mask 0xffffff \(",
    "signed_overflow": THREAD + r"undefined behavior: signed integer overflow in a multiplication \(defects.cu:\d+",
    "shift_too_far": r"thread \((31|63), 0, 0\): undefined behavior: shift by a wrong amount",
    "beyond_registers": THREAD + r"undefined behavior: pointer to memory too small for 'float'",
    "too_large_for_an_int": THREAD + r"undefined behavior: a floating point number outside of the range",
    "divided_by_zero": r"thread \(0, 0, 0\): undefined behavior: division by zero",
    "too_much_static_shared": r"shared memory large: the block declares 49156 bytes, and has 49152",
    "too_much_shared_together": r"shared memory large: the block has 49408 bytes with the dynamic ones, allowed are "
    r"49152",
}


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_found(defects, address_sanitizer: bool, defect: str, order: int) -> None:
    def run(planted: bool) -> torch.Tensor:
        data = torch.arange(64.0)
        args = DefectArgs(data.data_ptr(), data.numel(), list(DEFECTS).index(defect), planted)
        with defects.order(order):
            defects.defect(args)
        return data

    run(planted=False)
    if defect == "beyond_global" and not address_sanitizer:
        pytest.skip("found by AddressSanitizer: see test_sanitized.py")
    with pytest.raises(RuntimeError) as error:
        run(planted=True)
    print(error.value)
    assert re.search(DEFECTS[defect], str(error.value)), error.value
    run(planted=False)  # nothing of the failed launch is left


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("source", ["defects", "probes"])
def test_nvcc_compiles_the_same(source: str, tmp_path: Path) -> None:
    """What is emulated exists."""
    includes = [f"-I{HERE}", f"-I{CSRC}", f"-I{CSRC}/include"]
    command = ["nvcc", "-std=c++20", "-arch=sm_90", *includes, "-c", HERE / f"{source}.cu", "-o", tmp_path / "kernel.o"]
    subprocess.run(command, check=True)


# ------------------------------------------------------------------------------------------------ threads and warps


def test_indices(probe) -> None:
    grid, block = (3, 2, 4), (5, 7, 2)
    out = probe("indices", None, torch.empty(24, 70, 6, dtype=torch.int32), grid=grid, block=block)
    for place, sizes in ((0, grid), (3, block)):
        number = torch.arange(24 if place == 0 else 70)
        want = torch.stack([number % sizes[0], number // sizes[0] % sizes[1], number // sizes[0] // sizes[1]], dim=1)
        want = want[:, None].expand(24, 70, 3) if place == 0 else want.expand(24, 70, 3)
        assert torch.equal(out[..., place : place + 3].long(), want)


@pytest.mark.parametrize("width", [32, 16, 8, 2, 1])
@pytest.mark.parametrize("number", [0, 1, 3, 5, 16, 17, 31])
def test_shuffles(probe, number: int, width: int) -> None:
    values = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = probe("shuffles", values, torch.empty(64, 4, dtype=torch.float64), number=number, width=width)
    for t in range(64):
        lane, warp = t % 32, t // 32 * 32
        first, last = lane // width * width, lane // width * width + width - 1
        sources = [first + number % width, lane - number, lane + number, lane ^ number]  # instruction shfl of PTX
        inside = [True, sources[1] >= first, sources[2] <= last, sources[3] <= last]
        want = [values[warp + (source if good else lane)] for source, good in zip(sources, inside, strict=True)]
        assert out[t].tolist() == torch.stack(want).tolist()


def test_a_width_must_be_a_power_of_two(probe) -> None:
    values = torch.zeros(256, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="the width of a shuffle must be a power of two up to 32, got 12"):
        probe("shuffles", values, values.clone(), number=1, width=12)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("order", [0, 3])
def test_votes(probes, probe, share: float, order: int) -> None:
    said = (torch.rand(64, generator=torch.Generator().manual_seed(1)) < share).int() * 5
    with probes.order(order):
        out = probe("votes", said, torch.empty(64, 7, dtype=torch.int64))
    for t in range(64):
        half = said[t // 16 * 16 : t // 16 * 16 + 16] != 0
        ballot = sum(1 << i for i in range(16) if half[i]) << (t % 32 // 16 * 16)
        yes = int((said != 0).sum())
        want = [ballot, half.any(), half.all(), yes, yes > 0, yes == 64, half.sum()]
        assert out[t].tolist() == [int(w) for w in want]


def test_order(probes, probe) -> None:
    """Blocks and threads in order, or in another that the seed decides."""

    def tickets(seed: int) -> list[int]:
        with probes.order(seed):
            return probe("tickets", torch.empty(1, dtype=torch.int32), torch.empty(128, dtype=torch.int32)).tolist()

    assert tickets(0) == list(range(128))
    assert sorted(tickets(1)) == list(range(128))
    assert tickets(1) == tickets(1)
    assert len({tuple(tickets(seed)) for seed in range(4)}) == 4


def test_atomics(probe) -> None:
    values = torch.randint(-1000, 1000, (128,), dtype=torch.int32, generator=torch.Generator().manual_seed(2))
    out = torch.tensor([7, int(values[40]), 3, 0, 0, 0, 0, 0, 0], dtype=torch.int32)
    probe("atomics", values, out)
    first, total = int(values[0]), int(values.sum())
    shared = [first + total, int(values.max()), int(values.min())]
    assert out.tolist() == [7 + total, -1, first, *shared, 3, 128 % 100, 128]


def test_dynamic_shared_memory(probe) -> None:
    values = torch.arange(512.0)
    want = values.view(128, 4).flip(0).reshape(-1)
    assert torch.equal(probe("dynamic_shared", values, torch.empty(512), number=2048), want)
    with pytest.raises(RuntimeError, match="100000 bytes of dynamic shared memory, allowed are 49152"):
        probe("dynamic_shared", values, torch.empty(512), number=100_000, width=1)
    with pytest.raises(RuntimeError, match="cudaError 1: invalid argument"):
        probe("dynamic_shared", values, torch.empty(512), number=227 * 1024 + 1)
    assert torch.equal(probe("dynamic_shared", values, torch.empty(512), number=100_000), want)
    with pytest.raises(RuntimeError, match=r"element \d+ is out of bounds: it has 511"):
        probe("dynamic_shared", values, torch.empty(512), number=2044)


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((1, 1, 1), (1025, 1, 1), r"a block of \(1025, 1, 1\) threads"),
        ((1, 1, 1), (1, 1, 65), r"a block of \(1, 1, 65\) threads"),
        ((1, 1, 1), (0, 1, 1), r"a block of \(0, 1, 1\) threads"),
        ((1, 65536, 1), (1, 1, 1), r"a grid of \(1, 65536, 1\) blocks"),
    ],
)
def test_limits_of_a_launch(probe, grid: tuple[int, ...], block: tuple[int, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        probe("indices", None, torch.empty(0), grid=grid, block=block)


def test_structures_must_agree(probes) -> None:
    with pytest.raises(RuntimeError, match="ProbeArgs has 56 bytes, got 8"):
        probes.run_votes(ctypes.c_int64(0))


# ------------------------------------------------------------------------------------------------ elements

HALVES = torch.arange(-(2**15), 2**15, dtype=torch.int32).short()
SPECIAL = [0.0, -0.0, 2.0**-24, 2.0**-25, 2.0**-25 * 1.0001, 65504.0, 65519.99, 65520.0, 1e38, float("inf")]


def floats() -> torch.Tensor:
    """All halves, all that lie in the middle between two, their neighbors, special values, and random bits."""
    half = HALVES.view(torch.float16).float()
    low = HALVES.view(torch.bfloat16).float()
    ties = [half * (1 + 2.0**-11), low * (1 + 2.0**-8), (half[1:] + half[:-1]) / 2, (low[1:] + low[:-1]) / 2]
    random = torch.randint(-(2**31), 2**31, (1 << 17,), generator=torch.Generator().manual_seed(3)).int()
    near = [half, low, *ties]
    infinity = torch.tensor(float("inf"))
    near += [value.nextafter(sign * infinity) for value in near for sign in (-1, 1)]
    special = torch.tensor(SPECIAL)
    return torch.cat([*near, special, -special, random.view(torch.float32)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversions(probe, dtype: torch.dtype) -> None:
    first = 0 if dtype == torch.float16 else 2
    given = HALVES.view(dtype)
    wide = probe("conversions", given, torch.empty(2**16), count=2**16, number=first)
    assert torch.equal(wide[~given.isnan()].view(torch.int32), given[~given.isnan()].float().view(torch.int32))
    assert wide[given.isnan()].isnan().all()

    given = floats()
    out = probe("conversions", given, torch.empty_like(given, dtype=dtype), count=given.numel(), number=first + 1)
    numbers = ~given.isnan()
    assert torch.equal(out[numbers].view(torch.int16), given[numbers].to(dtype).view(torch.int16))
    assert (out[~numbers].view(torch.int16) == 0x7FFF).all()
    assert (~numbers).any()
