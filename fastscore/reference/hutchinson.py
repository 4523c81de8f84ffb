"""Hutchinson's estimator of a trace: probes, and their products with a Jacobian, in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastscore.reference.philox import philox_normal, philox_rademacher


def hutchinson(jvp: Tensor, rng: Tensor, samples: Tensor, kind: str = "rademacher") -> tuple[Tensor, Tensor]:
    """Mean over k of eps_k . (J eps_k), and these products; arguments as in `fastscore.ops.hutchinson`."""
    dtype = torch.float64 if jvp.dtype == torch.float64 else torch.float32
    eps = hutchinson_probe(jvp.shape[1:], rng, samples, jvp.shape[0], kind, dtype)
    products = (eps * jvp.to(dtype)).to(torch.float64)
    sums = products.flatten(2).sum(2) if jvp.dim() > 2 else products
    return sums.mean(0).to(dtype), sums.to(dtype)


def hutchinson_probe(
    shape: Sequence[int],
    rng: Tensor,
    samples: Tensor,
    probes: int = 1,
    kind: str = "rademacher",
    dtype: torch.dtype = torch.float32,
    *,
    channels_last: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """eps (K, *shape); arguments as in `fastscore.ops.hutchinson_probe`, and a factor for each row, (K, B)."""
    draw = {"rademacher": philox_rademacher, "gaussian": philox_normal}[kind]
    first = dtype if weight is None else torch.float64 if dtype == torch.float64 else torch.float32
    next_draw = torch.tensor([0, 1], device=rng.device)
    eps = torch.stack([draw(shape, rng + k * next_draw, samples, first) for k in range(probes)])
    if weight is not None:
        eps = (weight.reshape(*weight.shape, *[1] * (len(shape) - 1)) * eps).to(dtype)
    return eps.movedim(2, -1).contiguous().movedim(-1, 2) if channels_last else eps
