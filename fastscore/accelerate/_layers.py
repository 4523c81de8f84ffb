"""Layers of other people's networks as the fused ops see them: norms, activations, attention, resampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastscore.accelerate._swap import definer
from fastscore.nn.resample import fir_taps
from fastscore.ops import attention, group_norm_silu, resample
from fastscore.ops.resample import MAX_TAPS

# ------------------------------------------------------------------------------------------------ norms


def is_group_norm(module: object) -> bool:
    """torch's GroupNorm, guided-diffusion's that computes in float32, or EDM's that casts its parameters."""
    cls = definer(module, "forward")
    if cls is nn.GroupNorm:
        return True
    if cls is None or "forward" in vars(module):
        return False
    if cls.__name__ == "GroupNorm32":
        return isinstance(module, nn.GroupNorm)
    attributes = ("num_groups", "eps", "weight", "bias")
    return cls.__name__ == "GroupNorm" and all(hasattr(module, name) for name in attributes)


def is_silu(module: object) -> bool:
    """torch's SiLU, or a class of that name (or Swish) that holds nothing."""
    cls = definer(module, "forward")
    if cls is nn.SiLU:
        return True
    if not isinstance(module, nn.Module) or cls is None or cls.__name__ not in ("SiLU", "Swish"):
        return False
    return not any(module.parameters()) and not any(module.buffers()) and not any(module.children())


def normalize(
    norm: Any,
    x: Tensor,
    *,
    silu: bool = True,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """`fastscore.ops.group_norm_silu` with the parameters of a module that `is_group_norm`."""
    return group_norm_silu(
        x, norm.num_groups, norm.weight, norm.bias, add=add, scale=scale, shift=shift, eps=norm.eps, silu=silu
    )


def as_returned_by(norm: Any, x: Tensor) -> Tensor:
    """x in the dtype that the norm returns: under autocast on a GPU that is float32, but for GroupNorm32.

    For norms whose result may be seen; where a convolution follows, it would cast the result back.
    """
    if x.is_cuda and torch.is_autocast_enabled("cuda") and x.dtype is not torch.float64:
        cls = definer(norm, "forward")
        return x if cls is not None and cls.__name__ == "GroupNorm32" else x.float()
    return x


def rows_for(embedding: Tensor, x: Tensor) -> Tensor:
    """(1, C) or (N, C) -> (N, C): an embedding of one time for all samples."""
    return embedding if embedding.shape[0] == x.shape[0] else embedding.expand(x.shape[0], -1)


# ------------------------------------------------------------------------------------------------ attention


def pixels(x: Tensor) -> Tensor:
    """(B, C, ...) -> (B, N, C), rows in memory: the one copy that all projections share; none if channels-last."""
    return x.flatten(2).transpose(1, 2).contiguous()


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v: q, k, v (B, N, H, D) -> (B, N, H D), with no copy."""
    return attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale).transpose(1, 2).flatten(2)


def added(x: Tensor, rows: Tensor, factor: float = 1.0) -> Tensor:
    """factor * (x + rows): x (B, C, ...), rows (B, N, C) of its pixels; in the layout of x."""
    return scaled(x + rows.transpose(1, 2).reshape(x.shape), factor)


def scaled(x: Tensor, factor: float) -> Tensor:
    """x * factor, at no cost where that is x."""
    return x if factor == 1 else x * factor


# ------------------------------------------------------------------------------------------------ resampling


def taps_of(kernel: Sequence[float] | None, gain: float = 1.0) -> Tensor | None:
    """The two-dimensional filter (L, L), float32, or None where the op takes no such filter."""
    kernel = (1, 1) if kernel is None else kernel
    if isinstance(kernel, Tensor) or not 2 <= len(kernel) <= MAX_TAPS:
        return None
    return gain * fir_taps(kernel)


def on_device_of(x: Tensor, module: Any) -> Tensor:
    """The taps of a fused module. Not a buffer: nobody is to find, cast or average it; it moves when it is used."""
    if module._fused_taps.device != x.device:
        module._fused_taps = module._fused_taps.to(x.device)
    taps: Tensor = module._fused_taps
    return taps


def upsample(x: Tensor, taps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W), zeros between the pixels; `taps` sum to 4."""
    length = taps.shape[0]
    return resample(x, taps, up=2, padding=((length + 1) // 2, (length - 2) // 2))


def downsample(x: Tensor, taps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H/2, W/2)."""
    length = taps.shape[0]
    return resample(x, taps, down=2, padding=((length - 1) // 2, (length - 2) // 2))


def convolve(x: Tensor, taps: Tensor, layer_taps: int) -> Tensor:
    """FIR in front of a convolution of `layer_taps` with stride 2 and no padding of its own."""
    pad = taps.shape[0] + layer_taps - 3
    return resample(x, taps, padding=((pad + 1) // 2, pad // 2))


def as_convolution_takes_it(x: Tensor) -> Tensor:
    """x in the dtype that a convolution returns: under autocast, that of autocast."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype is not torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def resamples_by(function: Callable[[Tensor], Tensor], fused: Callable[[Tensor], Tensor]) -> bool:
    """Whether two functions of images give the same for a random one: for functions that do not say what they do."""
    probe = torch.randn(1, 2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got, want = function(probe), fused(probe)
    return got.shape == want.shape and torch.allclose(got, want, rtol=1e-6, atol=1e-6)  # taps are float32
