"""Layers of ddim (Song et al. 2021, "Denoising diffusion implicit models"): residual blocks and attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.accelerate._layers import added, attend, is_group_norm, normalize, pixels, rows_for
from fastscore.accelerate._swap import Finding, Fused, definer, hooked, why_unlike


class FusedResnetBlock(Fused):
    """Both norms with their activations, and the time embedding."""

    names = ("ResnetBlock",)

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        layers = ("norm1", "conv1", "temb_proj", "norm2", "dropout", "conv2")
        if why := why_unlike(module, cls, (*layers, "in_channels", "out_channels", "use_conv_shortcut")):
            return why
        if not is_group_norm(module.norm1) or not is_group_norm(module.norm2):
            return "its norms are not GroupNorm"
        if not _silu_by_name(module):
            return "its activation, a function named nonlinearity, is not SiLU or not found"
        if hooked(module.norm1, module.norm2):
            return "a hook watches its norms"
        return [
            Finding("norm1", "group_norm_silu", "group_norm_silu"),
            Finding("norm2", "group_norm_silu", "group_norm_silu with the time embedding before"),
        ]

    def forward(self: Any, x: Tensor, temb: Tensor | None) -> Tensor:
        if temb is None or hooked(self.norm1, self.norm2):
            return super().forward(x, temb)  # type: ignore[misc]
        h = self.conv1(normalize(self.norm1, x))
        e = rows_for(self.temb_proj(F.silu(temb)), h)
        h = self.conv2(self.dropout(normalize(self.norm2, h, add=e)))
        if self.in_channels != self.out_channels:
            x = (self.conv_shortcut if self.use_conv_shortcut else self.nin_shortcut)(x)
        return x + h


def _silu_by_name(block: Any) -> bool:
    """Whether the function that the block's module calls `nonlinearity` gives what SiLU gives."""
    cls = definer(block, "forward")
    function = getattr(vars(cls)["forward"], "__globals__", {}).get("nonlinearity")
    probe = torch.linspace(-20, 20, 41, dtype=torch.float64)
    return function is not None and torch.allclose(function(probe.clone()), F.silu(probe), rtol=1e-12, atol=1e-12)


class FusedAttnBlock(Fused):
    """Self-attention of one head over the pixels of an image, its projections on rows in place of 1x1 convolutions."""

    kind = "attention"
    names = ("AttnBlock",)

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        if why := why_unlike(module, cls, ("norm", "q", "k", "v", "proj_out")):
            return why
        layers = (module.q, module.k, module.v, module.proj_out)
        if not is_group_norm(module.norm) or any(type(layer).forward is not nn.Conv2d.forward for layer in layers):
            return "its norm is not GroupNorm, or its projections are not Conv2d"
        if hooked(module.norm, *layers):
            return "a hook watches its layers"
        return [
            Finding("", "attention", "attention", ("q", "k", "v", "proj_out")),
            Finding("norm", "group_norm_silu", "group_norm_silu, without SiLU"),
        ]

    def forward(self: Any, x: Tensor) -> Tensor:
        if hooked(self.norm, self.q, self.k, self.v, self.proj_out):
            return super().forward(x)  # type: ignore[misc]
        rows = pixels(normalize(self.norm, x, silu=False))
        q, k, v = (_projected(layer, rows).unsqueeze(2) for layer in (self.q, self.k, self.v))
        return added(x, _projected(self.proj_out, attend(q, k, v)))


def _projected(layer: Any, rows: Tensor) -> Tensor:
    return F.linear(rows, layer.weight.flatten(1), layer.bias)


MIXINS: list[type[Fused]] = [FusedResnetBlock, FusedAttnBlock]
