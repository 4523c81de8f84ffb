"""The emulator: it finds what is planted, and computes what a GPU computes."""

import ctypes
import re

import pytest
import torch


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
