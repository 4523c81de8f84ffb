"""The least time that parts of sampling can take on a GPU, from the bytes they move and the operations they do.

    python scripts/roofline.py                       # H100
    python scripts/roofline.py --gpu A100 MI300X     # others: H100 A100 RTX4090 MI300X
    python scripts/roofline.py --bandwidth 900 --peak 120 --vector-peak 15    # a GPU of your own, GB/s and TFLOP/s

No GPU is needed: the calls are made on CUDA tensors without memory, and counted at the dispatcher. A kernel takes at
least the larger of its bytes over the bandwidth and its operations over the peak, of tensor cores for what multiplies
matrices. Eager PyTorch is counted as one kernel per operator, its inputs read and its outputs written once. Launches,
caches and what no kernel reaches of a peak are left out: these are predictions to hold measurements against.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import fastscore
from benchmark_table import replace
from fastscore import VESDE, Convention, PCSampler, TorchNoise, ops
from fastscore.models import NCSNpp, NCSNppConfig
from fastscore.reference.samplers import pc_sampler
from fastscore.testing.group_norm_silu import eager as eager_group_norm_silu
from fastscore.testing.meter import Kernel, Meter

# the modules, not their functions
_group_norm_silu = import_module("fastscore.reference.group_norm_silu")
_attention_op = import_module("fastscore.ops.attention")


@dataclass(frozen=True)
class GPU:
    """Bandwidth in GB/s; peaks in TFLOP/s: float32 outside of tensor cores, TF32 and 16 bits on them, dense."""

    name: str
    bandwidth: float
    vector: float
    tf32: float
    half: float

    def seconds(self, kernel: Kernel) -> float:
        """The floor of a kernel's time."""
        peak = self.vector
        if kernel.matrix:
            peak = self.half if kernel.half else self.tf32
        return max(kernel.cost.bytes / (1e9 * self.bandwidth), kernel.cost.operations / (1e12 * peak))


# Data sheets: H100 SXM, A100 SXM 80 GB, GeForce RTX 4090, Instinct MI300X.
GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("H100", 3350, 67, 494.7, 989.4),
        GPU("A100", 2039, 19.5, 156, 312),
        GPU("RTX4090", 1008, 82.6, 82.6, 165.2),
        GPU("MI300X", 5300, 163.4, 653.7, 1307.4),
    )
}


BEGIN, END = "<!-- roofline:begin -->", "<!-- roofline:end -->"


def kernels(make: Callable[[], Callable[[], Any]]) -> list[Kernel]:
    """What the call that `make` gives starts, on CUDA tensors without memory; attention by our kernel."""
    ours = patch.object(_attention_op, "_torch_is_better", lambda *_: False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), ours:
        call = make()
        with Meter("cuda") as meter:
            call()
    return meter.kernels


# ------------------------------------------------------------------------------------------------ what is predicted


class Part(NamedTuple):
    """What is predicted: a call of ours, the same in eager PyTorch, and how often each is repeated in it."""

    name: str
    ours: Callable[[], list[Kernel]]
    eager: Callable[[], list[Kernel]]


def _rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def _step(run: Callable[[int], list[Kernel]]) -> list[Kernel]:
    """One step of a loop: what 3 steps start beside what 2 do."""
    few, many = (Counter(run(n)) for n in (2, 3))
    return list((many - few).elements())


def _pc_step(shape: tuple[int, ...]) -> Part:
    sde, convention = VESDE(), Convention("score", "sigma")
    outputs: dict[str, Tensor] = {}

    def network(x: Tensor, _: Tensor) -> Tensor:
        return outputs.setdefault("h", torch.empty_like(x))

    samplers = {n: PCSampler(sde, network, steps=n, convention=convention) for n in (2, 3)}

    def ours(steps: int) -> list[Kernel]:
        outputs.clear()
        return kernels(lambda: partial(samplers[steps].sample, shape, device="cuda"))

    def eager(steps: int) -> list[Kernel]:
        # its schedule is made of tensors whose values it needs: so with memory, on the CPU
        outputs.clear()
        x, noise = torch.zeros(shape), TorchNoise()
        with Meter("cpu") as meter:
            pc_sampler(
                sde, network, x, noise, convention, predictor="reverse_diffusion", corrector="langevin", steps=steps
            )
        return meter.kernels

    return Part(f"PC step without network, float32 {shape}", partial(_step, ours), partial(_step, eager))


def _both(name: str, make: Callable[[], Callable[[], Any]]) -> Part:
    """A call as it runs on a GPU, and with every op as eager PyTorch has it."""

    def eager() -> list[Kernel]:
        # the reference converts to float32 and back, which no network does
        with fastscore.backend("reference"), patch.object(_group_norm_silu, "group_norm_silu", eager_group_norm_silu):
            return kernels(make)

    return Part(name, partial(kernels, make), eager)


def _group_norm(shape: tuple[int, ...], dtype: torch.dtype) -> Part:
    def make() -> Callable[[], Any]:
        x, weight, bias = (_rand(*size, dtype=dtype) for size in (shape, shape[1:2], shape[1:2]))
        return lambda: ops.group_norm_silu(x, 32, weight, bias)

    return _both(f"GroupNorm + SiLU, {_short(dtype)} {shape}", make)


def _attention(shape: tuple[int, ...], dtype: torch.dtype) -> Part:
    return _both(
        f"attention, {_short(dtype)} {shape}",
        lambda: partial(ops.attention, *(_rand(*shape, dtype=dtype) for _ in range(3))),
    )


def _network(batch: int, dtype: torch.dtype) -> Part:
    def make() -> Callable[[], Any]:
        torch.set_default_dtype(dtype)
        try:
            with torch.device("cuda"):
                network = NCSNpp(NCSNppConfig()).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        return partial(network, _rand(batch, 3, 32, 32, dtype=dtype), _rand(batch, dtype=dtype))

    return _both(f"NCSN++ (CIFAR-10) forward, {_short(dtype)} ({batch}, 3, 32, 32)", make)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def parts() -> list[Part]:
    """All that is predicted."""
    bf16 = torch.bfloat16
    return [
        _pc_step((64, 3, 32, 32)),
        _pc_step((16, 3, 256, 256)),
        _group_norm((64, 128, 32, 32), bf16),
        _group_norm((4, 128, 256, 256), bf16),
        _attention((64, 1, 256, 256), bf16),
        _attention((4, 8, 4096, 64), bf16),
        _network(64, torch.float32),
    ]


def table(gpu: GPU, counted: list[tuple[str, list[Kernel], list[Kernel]]]) -> str:
    """Markdown: the floors of ours and of eager, and their ratio."""
    lines = [
        f"| {gpu.name}, {gpu.bandwidth:g} GB/s | ours: kernels | MB | floor | eager: kernels | MB | floor | ratio |",
        "|---|" + "---:|" * 7,
    ]
    for name, ours, eager in counted:
        cells, floors = [], []
        for found in (ours, eager):
            floors.append(sum(gpu.seconds(kernel) for kernel in found))
            moved = sum(kernel.cost.bytes for kernel in found)
            cells.append(f"{len(found)} | {moved / 1e6:.3g} | {1e6 * floors[-1]:.3g} µs")
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {floors[1] / floors[0]:.2f} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Count, predict, print."""
    parser = argparse.ArgumentParser(description="Predict floors of GPU time from bytes and operations.")
    parser.add_argument("--gpu", nargs="+", choices=GPUS, default=["H100"])
    parser.add_argument("--bandwidth", type=float, help="GB/s of a GPU of your own")
    parser.add_argument("--peak", type=float, help="its TFLOP/s of matrix products")
    parser.add_argument("--vector-peak", type=float, help="its TFLOP/s in float32 outside of tensor cores")
    parser.add_argument("--readme", type=Path, help="write the tables between the markers of this file")
    options = parser.parse_args(arguments)
    own = (options.bandwidth, options.peak, options.vector_peak)
    if any(value is not None for value in own):
        if not all(value is not None and value > 0 for value in own):
            parser.error(f"--bandwidth, --peak and --vector-peak go together and are positive, got {own}")
        gpus = [GPU("your GPU", options.bandwidth, options.vector_peak, options.peak, options.peak)]
    else:
        gpus = [GPUS[name] for name in options.gpu]
    counted = [(part.name, part.ours(), part.eager()) for part in parts()]
    text = "\n".join(table(gpu, counted) for gpu in gpus)
    print(text)
    if options.readme:
        options.readme.write_text(replace(options.readme.read_text(), text.rstrip(), BEGIN, END))


if __name__ == "__main__":
    main()
