"""Layers of guided-diffusion (Dhariwal & Nichol 2021) and improved-diffusion: residual blocks and attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.accelerate._layers import added, attend, is_group_norm, is_silu, normalize, pixels, rows_for
from fastscore.accelerate._swap import Finding, Fused, definer, hooked, why_unlike


class FusedResBlock(Fused):
    """Both norms with their activations, and the embedding: added, or scale and shift. Checkpointing stays."""

    names = ("ResBlock",)
    methods = ("forward", "_forward")

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        attributes = ("in_layers", "emb_layers", "out_layers", "skip_connection", "use_scale_shift_norm")
        if why := why_unlike(module, cls, attributes):
            return why
        first, second = module.in_layers, module.out_layers
        if not isinstance(first, nn.Sequential) or not isinstance(second, nn.Sequential) or len(first) != 3:
            return "its layers are not in the order GroupNorm, SiLU, convolution"
        if not all(len(part) > 2 and is_group_norm(part[0]) and is_silu(part[1]) for part in (first, second)):
            return "its norms are not GroupNorm, or SiLU does not follow"
        if hooked(*_bypassed(module)):
            return "a hook watches its norms or its activations"
        how = "scale and shift" if module.use_scale_shift_norm else "the embedding before"
        return [
            Finding("in_layers.0", "group_norm_silu", "group_norm_silu", ("in_layers", "in_layers.1")),
            Finding("out_layers.0", "group_norm_silu", f"group_norm_silu with {how}", ("out_layers", "out_layers.1")),
        ]

    def _forward(self: Any, x: Tensor, emb: Tensor) -> Tensor:
        if hooked(*_bypassed(self)):
            return super()._forward(x, emb)  # type: ignore[misc]
        h = normalize(self.in_layers[0], x)
        if getattr(self, "updown", False):
            h, x = self.h_upd(h), self.x_upd(x)
        h = self.in_layers[2](h)
        e = rows_for(self.emb_layers(emb), h)
        if self.use_scale_shift_norm:
            scale, shift = e.chunk(2, dim=1)
            h = normalize(self.out_layers[0], h, scale=scale, shift=shift)
        else:
            h = normalize(self.out_layers[0], h, add=e)
        for layer in list(self.out_layers)[2:]:
            h = layer(h)
        return self.skip_connection(x) + h


def _bypassed(block: Any) -> tuple[nn.Module, ...]:
    first, second = block.in_layers, block.out_layers
    return first, second, first[0], first[1], second[0], second[1]


class FusedQKVAttention(Fused):
    """Attention of queries, keys and values that come in one tensor."""

    kind = "attention"
    names = ("QKVAttention", "QKVAttentionLegacy")

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        # in improved-diffusion heads are folded into the batch before
        return why_unlike(module, cls, ()) or [Finding("", "attention", "attention")]

    def forward(self: Any, qkv: Tensor) -> Tensor:
        q, k, v = _split(qkv.transpose(1, 2), self)
        return attend(q, k, v).transpose(1, 2)


class FusedAttentionBlock(Fused):
    """Self-attention over pixels, its projections on rows in place of 1x1 convolutions. Checkpointing stays."""

    kind = "attention"
    names = ("AttentionBlock",)
    methods = ("forward", "_forward")

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        if why := why_unlike(module, cls, ("norm", "qkv", "attention", "proj_out")):
            return why
        if not is_group_norm(module.norm):
            return "its norm is not GroupNorm"
        if why := why_unlike(module.attention, FusedQKVAttention, ("n_heads",)):
            return f"of its attention: {why}"
        if any(type(layer).forward is not nn.Conv1d.forward for layer in (module.qkv, module.proj_out)):
            return "its projections are not Conv1d"
        if hooked(module.norm, module.qkv, module.attention, module.proj_out):
            return "a hook watches its layers"
        return [
            Finding("", "attention", "attention", ("attention", "qkv", "proj_out")),
            Finding("norm", "group_norm_silu", "group_norm_silu, without SiLU"),
        ]

    def _forward(self: Any, x: Tensor) -> Tensor:
        if hooked(self.norm, self.qkv, self.attention, self.proj_out):
            return super()._forward(x)  # type: ignore[misc]
        rows = pixels(normalize(self.norm, x, silu=False))
        q, k, v = _split(F.linear(rows, self.qkv.weight.squeeze(2), self.qkv.bias), self.attention)
        return added(x, F.linear(attend(q, k, v), self.proj_out.weight.squeeze(2), self.proj_out.bias))


def _name(layer: Any) -> str:
    cls = definer(layer, "forward")
    return "" if cls is None else cls.__name__


def _split(rows: Tensor, layer: Any) -> tuple[Tensor, ...]:
    """(B, N, 3 C) -> q, k, v (B, N, H, C / H): heads of three parts, or three parts of heads in the later order."""
    heads = getattr(layer, "n_heads", 1)
    if _name(layer).endswith("Legacy"):
        return rows.unflatten(2, (heads, 3, -1)).unbind(3)
    return rows.unflatten(2, (3, heads, -1)).unbind(2)


MIXINS: list[type[Fused]] = [FusedResBlock, FusedAttentionBlock, FusedQKVAttention]
