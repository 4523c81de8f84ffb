"""How the kernels of attention are cut: into blocks, pieces of the head dimension and slices of the results."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ._autotune import fastest, shared_memory


def pieces_of(size: int, largest: int) -> tuple[tuple[int, int, bool], ...]:
    """`size` columns as powers of two of 16 or more: of each its start, its width, and whether it ends beyond."""
    pieces = []
    start = 0
    while start < size:
        width = largest
        while width > 16 and width > size - start and size - start <= width - width // 4:
            width //= 2
        pieces.append((start, width, start + width > size))
        start += width
    return tuple(pieces)


# Of a program of each kind: results, tiles of scores, blocks that it holds, and blocks that it reads on its walk.
TILES = {"fwd": (1, 1, 1, 2), "jvp": (2, 2, 2, 4), "grad_q": (1, 2, 2, 2), "grad_kv": (2, 2, 2, 2)}


class Plan(NamedTuple):
    """How a kernel is cut.

    Attributes:
        block_n, block_m: queries and keys of a block.
        piece: the widest piece of the head dimension; a power of two.
        width: columns of a slice; a power of two. A head dimension up to this is not sliced.
        resident: whether the block that a program holds stays in registers and shared memory, or is read again.
        warps, stages: of a program, and of its loads ahead.
    """

    block_n: int
    block_m: int
    piece: int
    width: int
    resident: bool
    warps: int
    stages: int


def plan_of(kind: str, size: int, itemsize: int) -> Plan:
    """A function of the head dimension and the dtype alone: what fits in registers and 99 KB of shared memory."""
    if itemsize == 8:
        return Plan(16, 16, 16, 32, False, 2, 1)
    if itemsize == 4:  # no tensor cores: operands lie in registers as well
        if kind == "fwd":
            return Plan(32, 32 if size <= 64 else 16, 16, 128, size <= 128, 4, 1)
        if size <= 64:
            return Plan(16 if kind == "grad_kv" else 32, 16 if kind == "jvp" else 32, 16, 64, True, 4, 1)
        return Plan(32, 16, 16, 32, False, 4, 1)
    if size <= 64:
        return Plan(64, 32 if kind == "jvp" else 64, 64, 256, True, 4, 2)
    if size <= 96 and kind.startswith("grad"):  # two pieces
        return Plan(32, 64, 128, 256, True, 8, 2)
    if size <= 128 and kind == "jvp":
        return Plan(64, 32, 128, 256, True, 8, 2)
    if size <= 128:
        return Plan(64, 64, 128, 256, True, 4 if kind == "fwd" else 8, 2)
    if size <= 256 and kind == "fwd":
        return Plan(64, 32, 128, 256, True, 8, 2)
    if size < 256:  # several pieces, with two results each, take too many registers
        return Plan(32, 32, 64 if kind == "jvp" else 128, 128, True, 4, 1)
    if size == 256:
        return Plan(32, 32, 128, 256, True, 8, 1)
    return Plan(64 if kind == "fwd" else 32, 32, 64, 256, False, 8, 1)


def on_amd(kind: str, plan: Plan) -> Plan:
    """A plan on wavefronts of 64: more than 4 have half the registers each; masks, in scalar ones, limit the blocks."""
    walked = "block_n" if kind == "grad_kv" else "block_m"
    rows = min(getattr(plan, walked), 16 if kind == "jvp" else 32)
    return plan._replace(warps=min(plan.warps, 4), **{walked: rows})


def config(kind: str, q: Tensor, n: int, m: int) -> dict[str, Any]:
    """What a kernel is compiled for: like its rounding, a function of the shape of a sample and the dtype alone."""
    return options_of(own_plan(kind, q), q, n, m)


def own_plan(kind: str, q: Tensor) -> Plan:
    """`plan_of` for a tensor, on the GPUs that this torch is for."""
    plan = plan_of(kind, q.shape[-1], q.element_size())
    return on_amd(kind, plan) if torch.version.hip and q.element_size() == 2 else plan


def options_of(plan: Plan, q: Tensor, n: int, m: int) -> dict[str, Any]:
    """What a kernel with a plan is compiled for."""
    size = q.shape[-1]
    slices = triton.cdiv(size, plan.width)
    pieces = pieces_of(size, plan.piece)
    return {
        "size": size,
        "pieces": pieces,
        "columns": pieces if slices == 1 else ((0, plan.width, size % plan.width != 0),),
        "slices": slices,
        "resident": plan.resident,
        "precision": precision_of(q),
        "block_n": min(plan.block_n, max(16, triton.next_power_of_2(n))),
        "block_m": min(plan.block_m, max(16, triton.next_power_of_2(m))),
        "num_warps": plan.warps,
        "num_stages": plan.stages,
    }


def candidates(kind: str, q: Tensor, n: int, m: int, shared: int) -> list[dict[str, Any]]:
    """Configurations around the plan, it not among them, that are likely to fit in registers and in `shared` bytes.

    Other blocks with its warps and stages, then other warps, and other stages.
    """
    plan = own_plan(kind, q)
    most = 4 if torch.version.hip else 8
    blocks = product(*((size // 2, size, 2 * size) for size in plan[:2]))
    plans = [plan._replace(block_n=block_n, block_m=block_m) for block_n, block_m in blocks]
    plans += [plan._replace(warps=warps) for warps in (plan.warps // 2, 2 * plan.warps) if warps <= most]
    plans += [plan._replace(stages=stages) for stages in (1, 2, 3)]
    own, found = options_of(plan, q, n, m), []
    for other in plans:
        options = options_of(other, q, n, m)
        if min(other[:2]) >= 16 and options != own and options not in found and fits(kind, options, q, shared):
            found.append(options)
    return found


def fits(kind: str, options: dict[str, Any], q: Tensor, shared: int) -> bool:
    """Whether half the registers suffice for what a program adds up, and `shared` bytes for blocks and loads ahead."""
    results, scores, held, walked = TILES[kind]
    rows, others = (options[block] for block in ("block_n", "block_m")[:: -1 if kind == "grad_kv" else 1])
    width = sum(width for _, width, _ in options["pieces"])
    threads = options["num_warps"] * (64 if torch.version.hip else 32)
    numbers = results * rows * sum(width for _, width, _ in options["columns"]) + scores * rows * others
    registers = numbers * max(q.element_size(), 4) // 4 / threads
    kept = (held * rows * options["resident"] + walked * others * options["num_stages"]) * width * q.element_size()
    return registers <= 128 and kept <= shared


def chosen(kind: str, q: Tensor, n: int, m: int, start: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """`config`; with FASTSCORE_AUTOTUNE=1 the fastest of it and the candidates. start: starts the kernel."""
    return fastest(
        (f"attention_{kind}_kernel", *q.shape[1:], n, m, precision_of(q)),
        config(kind, q, n, m),
        lambda: candidates(kind, q, n, m, shared_memory(q.device)),
        start,
        q,
    )


def precision_of(q: Tensor) -> str:
    """How products of float32 are taken: TF32 only where torch is allowed to, too."""
    return "tf32" if q.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"
