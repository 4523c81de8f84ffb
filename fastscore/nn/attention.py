"""Self-attention over the pixels of an image, in the layouts of published checkpoints."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.nn.layers import NIN, conv, norm
from fastscore.ops import attention


class AttentionBlock(nn.Module):
    """x + attention(GroupNorm(x)), one head: (B, C, H, W) -> the same. `skip_scale` multiplies the sum.

    As in score_sde (Song et al. 2021, App. H): the projections are `NIN_0` ... `NIN_3`.
    """

    def __init__(
        self, channels: int, *, skip_scale: float = 1.0, init_scale: float = 0.0, num_groups: int | None = None
    ):
        super().__init__()
        self.GroupNorm_0 = norm(channels, silu=False, num_groups=num_groups)
        self.NIN_0 = NIN(channels, channels)
        self.NIN_1 = NIN(channels, channels)
        self.NIN_2 = NIN(channels, channels)
        self.NIN_3 = NIN(channels, channels, scale=init_scale)
        self.skip_scale = skip_scale

    def forward(self, x: Tensor) -> Tensor:
        rows = _rows(self.GroupNorm_0(x))
        query, key, value = (layer(rows).unsqueeze(1) for layer in (self.NIN_0, self.NIN_1, self.NIN_2))
        update = self.NIN_3(attention(query, key, value).squeeze(1))
        return (x + _image(update, x)) * self.skip_scale


class ConvAttentionBlock(nn.Module):
    """x + attention(GroupNorm(x)), one head, 32 groups: (B, C, H, W) -> the same.

    As in DDPM (Ho et al. 2020, arXiv 2006.11239, App. B): the projections `q`, `k`, `v`, `proj_out` are 1x1
    convolutions.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels, silu=False, num_groups=32)
        self.q = conv(channels, channels, 1)
        self.k = conv(channels, channels, 1)
        self.v = conv(channels, channels, 1)
        self.proj_out = conv(channels, channels, 1, scale=0.0)

    def forward(self, x: Tensor) -> Tensor:
        rows = _rows(self.norm(x))
        query, key, value = (_pointwise(layer, rows).unsqueeze(1) for layer in (self.q, self.k, self.v))
        update = _pointwise(self.proj_out, attention(query, key, value).squeeze(1))
        return x + _image(update, x)


class MultiHeadAttentionBlock(nn.Module):
    """x + attention(GroupNorm(x)), several heads, 32 groups: (B, C, H, W) -> the same.

    As in ADM (Dhariwal and Nichol 2021, arXiv 2105.05233, App. A): `qkv` and `proj_out` are 1-D convolutions over the
    pixels. The channels of qkv are ordered by head, then by query, key and value; with `new_order` the other way round.

    Raises ValueError if the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int, *, new_order: bool = False):
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"num_heads must divide the {channels} channels of an attended level, got {heads}")
        self.norm = norm(channels, silu=False, num_groups=32, eps=1e-5)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)  # type: ignore[arg-type]
        self.heads, self.new_order = heads, new_order

    def forward(self, x: Tensor) -> Tensor:
        rows = _pointwise(self.qkv, _rows(self.norm(x)))  # (B, HW, 3C)
        if self.new_order:
            query, key, value = rows.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            query, key, value = rows.unflatten(2, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        attended = attention(query, key, value).transpose(1, 2).flatten(2)
        return x + _image(_pointwise(self.proj_out, attended), x)


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW, C): free of copies if channels-last."""
    return x.flatten(2).transpose(1, 2)


def _image(rows: Tensor, like: Tensor) -> Tensor:
    return rows.transpose(1, 2).reshape(like.shape)


def _pointwise(layer: nn.Conv1d | nn.Conv2d, rows: Tensor) -> Tensor:
    """A convolution of size 1 as a product with its matrix."""
    return F.linear(rows, layer.weight.flatten(1), layer.bias)
