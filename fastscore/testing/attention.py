"""What tests and benchmarks of attention share: cases, what plain PyTorch makes of them, and parity with it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscore.ops import attention
from fastscore.testing.inputs import make_input
from fastscore.testing.tolerances import assert_error_within_budget

NAMES = ("q", "k", "v", "residual")


def make_case(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    residual: bool = True,
    scale: float = 1.0,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Tensors of a call by their names, of shape (B, H, N, M, D); q and k are normals times `scale`."""
    b, h, n, m, d = shape
    rows = {"q": n, "k": m, "v": m, "residual": n}
    names = NAMES if residual else NAMES[:3]
    return {
        name: make_input(
            (b, h, rows[name], d), dtype=dtype, device=device, seed=seed, scale=scale if name in ("q", "k") else 1.0
        )
        for seed, name in enumerate(names)
    }


def like(case: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Tangents for the tensors of a case: the same for every dtype, as bfloat16 holds them."""
    return {
        name: make_input(tuple(t.shape), dtype=torch.bfloat16, device=t.device, seed=seed + i).to(t.dtype)
        for i, (name, t) in enumerate(case.items())
    }


def eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    residual: Tensor | None = None,
    output_scale: float = 1.0,
) -> Tensor:
    """What networks write where they need a forward-mode derivative, in the dtype of q."""
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    y = torch.einsum("bhnm,bhmd->bhnd", torch.softmax(scores, -1), v)
    return (y if residual is None else y + residual) * output_scale


def positional(function: Callable[..., Tensor], **keywords: Any) -> Callable[..., Tensor]:
    """The function of q, k, v and, where it is given, the residual."""

    def call(*tensors: Tensor) -> Tensor:
        return function(*tensors[:3], residual=tensors[3] if len(tensors) > 3 else None, **keywords)

    return call


def values(function: Callable[..., Tensor], case: dict[str, Tensor], **keywords: Any) -> dict[str, Tensor]:
    """The result."""
    return {"y": positional(function, **keywords)(*case.values())}


def gradients(function: Callable[..., Tensor], case: dict[str, Tensor], **keywords: Any) -> dict[str, Tensor]:
    """The gradients of all tensors of a case."""
    leaves = [tensor.detach().requires_grad_() for tensor in case.values()]
    y = positional(function, **keywords)(*leaves)
    grad = like({"y": y}, 40)["y"]
    return dict(zip(case, torch.autograd.grad(y, leaves, grad), strict=True))


def tangents(function: Callable[..., Tensor], case: dict[str, Tensor], **keywords: Any) -> dict[str, Tensor]:
    """The result and its tangent."""
    call = positional(function, **keywords)
    result = torch.func.jvp(call, tuple(case.values()), tuple(like(case, 60).values()))
    return {"y": result[0], "y_t": result[1]}


QUANTITIES = {"value": values, "gradient": gradients, "tangent": tangents}


def assert_parity(quantity: str, case: dict[str, Tensor], **keywords: Any) -> None:
    """The op errs at most two (derivatives: three) times as much as `eager` does in the same dtype."""
    compute = QUANTITIES[quantity]
    actual, plain = (compute(function, case, **keywords) for function in (attention, eager))
    oracle = compute(eager, {name: t.double() for name, t in case.items()}, **keywords)
    for name, result in actual.items():
        label = f"{quantity} {name} of {tuple(case['q'].shape)}"
        if result.dtype == torch.float64:  # the oracle rounds alike: sums of some hundred terms of order one
            torch.testing.assert_close(result, oracle[name], rtol=1e-12, atol=1e-13)
        else:
            assert_error_within_budget(result, oracle[name], plain[name], label, factor=2 if quantity == "value" else 3)
