"""GroupNorm with embedding inputs and SiLU, in plain PyTorch: the specification of `fastscore.ops.group_norm_silu`.

With z = x + add and the mean and variance of z over each group of channels of each sample,

    xhat = (z - mean) / sqrt(var + eps)     GroupNorm: Wu & He 2018, eqs. 1, 2 and 7
    h = xhat * weight + bias                eq. 6
    v = h * (1 + scale) + shift             adaptive GroupNorm: Dhariwal & Nichol 2021, section 3.1
    y = v * sigmoid(v), or v                SiLU: Elfwing et al. 2017, eq. 1

16-bit inputs are computed in float32 and rounded once, at the end. `group_norm_silu` is differentiable by torch. The
other three functions are the raw operators `torch.ops.fastscore.group_norm_silu_*` in plain tensor arithmetic; torch
can differentiate them too, and second derivatives are made that way. There, weight and bias may be (N, C) as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = True,
) -> Tensor:
    """The specification; arguments, shapes and dtypes as in `fastscore.ops.group_norm_silu`, unchecked."""
    op_dtype = _op_dtype(x)
    v = x.to(op_dtype)
    if add is not None:
        v = v + _per_channel(add, x)
    if v.numel():
        weight, bias = (p if p is None else p.to(op_dtype) for p in (weight, bias))
        v = torch.group_norm(v, num_groups, weight, bias, eps, False)
    elif weight is not None or bias is not None:  # torch refuses samples of no pixels; the gradients are zeros
        v = v * _per_channel(weight, x) + _per_channel(bias, x)
    if scale is not None:
        v = v * (1 + _per_channel(scale, x))
    if shift is not None:
        v = v + _per_channel(shift, x)
    if silu:
        v = F.silu(v)
    return v.to(x.dtype)


def group_norm_silu_fwd(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y and the statistics of z = x + add: mean and 1 / sqrt(var + eps), (N, num_groups) in the op dtype."""
    z = x.to(_op_dtype(x)) + _per_channel(add, x)
    groups = _grouped(z, num_groups)  # (N, G, elements of a group)
    if groups.shape[-1]:
        var, mean = torch.var_mean(groups, dim=-1, correction=0)
    else:
        var = mean = z.new_zeros(groups.shape[:2])
    rstd = torch.rsqrt(var + eps)
    _, _, v = _pre_activation(x, weight, bias, add, scale, shift, mean, rstd)
    y = F.silu(v) if silu else v
    return _like_x(y, x), mean, rstd


def group_norm_silu_into(x: Tensor, *rest: Any) -> None:
    """Writes y to the last argument; the others are those of `group_norm_silu_fwd`."""
    *settings, out = rest
    out.copy_(group_norm_silu_fwd(x, *settings)[0])


def group_norm_silu_bwd(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias, add, scale, shift; those of absent parameters are empty, of shape (0,).

    With gh = dL/dh and gn = dL/dxhat = gh * weight, and means over the group,
    grad_x = rstd * (gn - mean(gn) - xhat * mean(gn * xhat)).
    """
    xhat, h, v = _pre_activation(x, weight, bias, add, scale, shift, mean, rstd)
    grad_v = grad_y.to(v.dtype)
    if silu:
        grad_v = grad_v * _silu_slope(v)
    grad_h = grad_v * (1 + _per_channel(scale, x))
    grad_xhat = grad_h if weight is None else grad_h * _per_channel(weight, x)
    centered = grad_xhat - _group_mean(grad_xhat, num_groups) - xhat * _group_mean(grad_xhat * xhat, num_groups)
    grad_z = _per_group(rstd, x) * centered

    def total(gradient: Tensor, parameter: Tensor | None) -> Tensor:
        if parameter is None:
            return gradient.new_empty(0)
        per_sample = gradient.flatten(2).sum(-1) if gradient.ndim > 2 else gradient
        return (per_sample if parameter.ndim == 2 else per_sample.sum(0)).to(parameter.dtype)

    return (
        _like_x(grad_z, x),
        total(grad_h * xhat, weight),
        total(grad_h, bias),
        total(grad_z, add),
        total(grad_v * h, scale),
        total(grad_v, shift),
    )


def group_norm_silu_jvp(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    x_t: Tensor | None,
    weight_t: Tensor | None,
    bias_t: Tensor | None,
    add_t: Tensor | None,
    scale_t: Tensor | None,
    shift_t: Tensor | None,
    num_groups: int,
    silu: bool,
) -> Tensor:
    """The tangent of y along the given tangents; None is a zero tangent."""
    xhat, h, v = _pre_activation(x, weight, bias, add, scale, shift, mean, rstd)
    z_t = torch.zeros_like(xhat) if x_t is None else x_t.to(xhat.dtype)
    z_t = z_t + _per_channel(add_t, x)
    centered = z_t - _group_mean(z_t, num_groups) - xhat * _group_mean(z_t * xhat, num_groups)
    xhat_t = _per_group(rstd, x) * centered
    h_t = xhat_t if weight is None else xhat_t * _per_channel(weight, x)
    h_t = h_t + xhat * _per_channel(weight_t, x) + _per_channel(bias_t, x)
    v_t = h_t * (1 + _per_channel(scale, x)) + h * _per_channel(scale_t, x) + _per_channel(shift_t, x)
    y_t = v_t * _silu_slope(v) if silu else v_t
    return _like_x(y_t, x)


def channels_last(x: Tensor) -> bool:
    """Whether the samples of x are dense with channels fastest, and not with channels slowest as well."""

    def dense(dims: Sequence[int]) -> bool:
        expected = 1
        for d in dims:
            if x.shape[d] != 1:
                if x.stride(d) != expected:
                    return False
                expected *= x.shape[d]
        return True

    spatial = range(x.ndim - 1, 1, -1)
    return x.ndim > 2 and x.numel() > 0 and not dense([*spatial, 1]) and dense([1, *spatial])


def empty_like_x(x: Tensor) -> Tensor:
    """Uninitialized, as the kernels allocate results: channels last where x is, else contiguous."""
    if channels_last(x):
        return x.new_empty(x.movedim(1, -1).shape).movedim(-1, 1)
    return x.new_empty(x.shape)


def _like_x(result: Tensor, x: Tensor) -> Tensor:
    """`result` in the dtype of x and in the memory format of `empty_like_x`."""
    result = result.to(x.dtype)
    if channels_last(x):
        return result.movedim(1, -1).contiguous().movedim(-1, 1)
    return result.contiguous()


def _op_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _per_channel(parameter: Tensor | None, x: Tensor) -> Tensor:
    """(C,) or (N, C) made to broadcast against (N, C, *spatial), in the op dtype; zero where there is none."""
    if parameter is None:
        return x.new_zeros((), dtype=_op_dtype(x))
    return parameter.to(_op_dtype(x)).reshape(*parameter.shape, *[1] * (x.ndim - 2))


def _per_group(statistic: Tensor, x: Tensor) -> Tensor:
    """(N, G) made to broadcast against (N, C, *spatial)."""
    channels = statistic.repeat_interleave(x.shape[1] // statistic.shape[1], dim=1)
    return channels.reshape(*channels.shape, *[1] * (x.ndim - 2))


def _grouped(z: Tensor, num_groups: int) -> Tensor:
    n, c = z.shape[:2]
    return z.reshape(n, num_groups, c // num_groups * z.shape[2:].numel())


def _group_mean(z: Tensor, num_groups: int) -> Tensor:
    groups = _grouped(z, num_groups)
    return _per_group(groups.sum(-1) / max(groups.shape[-1], 1), z)


def _pre_activation(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """xhat, h and v of the module docstring."""
    z = x.to(_op_dtype(x)) + _per_channel(add, x)
    xhat = (z - _per_group(mean, x)) * _per_group(rstd, x)
    h = xhat if weight is None else xhat * _per_channel(weight, x)
    h = h + _per_channel(bias, x)
    v = h * (1 + _per_channel(scale, x)) + _per_channel(shift, x)
    return xhat, h, v


def _silu_slope(v: Tensor) -> Tensor:
    """d silu(v) / dv = sigmoid(v) (1 + v (1 - sigmoid(v)))."""
    sigmoid = torch.sigmoid(v)
    return sigmoid * (1 + v * (1 - sigmoid))
