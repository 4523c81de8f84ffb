"""Layers as guided-diffusion and improved-diffusion have them, in names, attributes and meaning, accelerated."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastscore
from fastscore.accelerate import Entry


class GroupNorm32(nn.GroupNorm):
    def forward(self, x):
        return super().forward(x.float() if x.dtype is not torch.float64 else x).type(x.dtype)


class SiLU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Resize(nn.Module):
    def __init__(self, up):
        super().__init__()
        self.up = up

    def forward(self, x):
        return F.interpolate(x, scale_factor=2) if self.up else F.avg_pool2d(x, 2)


class ResBlock(nn.Module):
    def __init__(self, channels, out_channels, emb, scale_shift=False, up=False, down=False, use_checkpoint=False):
        super().__init__()
        self.use_scale_shift_norm, self.updown, self.use_checkpoint = scale_shift, up or down, use_checkpoint
        self.in_layers = nn.Sequential(
            GroupNorm32(2, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.h_upd, self.x_upd = (Resize(up), Resize(up)) if self.updown else (nn.Identity(), nn.Identity())
        self.emb_layers = nn.Sequential(SiLU(), nn.Linear(emb, out_channels * (2 if scale_shift else 1)))
        last = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.out_layers = nn.Sequential(GroupNorm32(2, out_channels), SiLU(), nn.Dropout(0.2), last)
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, emb):
        if self.use_checkpoint:
            return checkpoint(self._forward, x, emb, use_reentrant=False)
        return self._forward(x, emb)

    def _forward(self, x, emb):
        if self.updown:
            h = self.in_layers[-1](self.h_upd(self.in_layers[:-1](x)))
            x = self.x_upd(x)
        else:
            h = self.in_layers(x)
        e = self.emb_layers(emb).type(h.dtype)[..., None, None]
        if self.use_scale_shift_norm:
            scale, shift = torch.chunk(e, 2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + e)
        return self.skip_connection(x) + h


class QKVAttentionLegacy(nn.Module):
    def __init__(self, n_heads):
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv):
        b, width, n = qkv.shape
        q, k, v = qkv.reshape(b * self.n_heads, width // self.n_heads, n).chunk(3, dim=1)
        scale = 1 / math.sqrt(math.sqrt(q.shape[1]))
        weights = torch.einsum("bct,bcs->bts", q * scale, k * scale).softmax(-1)
        return torch.einsum("bts,bcs->bct", weights, v).reshape(b, -1, n)


class QKVAttention(nn.Module):
    def __init__(self, n_heads):
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv):
        b, _, n = qkv.shape
        q, k, v = (part.reshape(b * self.n_heads, -1, n) for part in qkv.chunk(3, dim=1))
        weights = torch.einsum("bct,bcs->bts", q, k).div(math.sqrt(q.shape[1])).softmax(-1)
        return torch.einsum("bts,bcs->bct", weights, v).reshape(b, -1, n)


class AttentionBlock(nn.Module):
    def __init__(self, channels, attention):
        super().__init__()
        self.norm, self.attention = GroupNorm32(2, channels), attention
        self.qkv, self.proj_out = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        return checkpoint(self._forward, x, use_reentrant=False)

    def _forward(self, x):
        rows = x.flatten(2)
        return (rows + self.proj_out(self.attention(self.qkv(self.norm(rows))))).reshape(x.shape)


class Folded(AttentionBlock):
    """As improved-diffusion has it: heads are folded into the batch before attention, which knows none."""

    def _forward(self, x):
        rows = x.flatten(2)
        qkv = self.qkv(self.norm(rows))
        h = self.attention(qkv.reshape(qkv.shape[0] * 2, -1, qkv.shape[2]))
        return (rows + self.proj_out(h.reshape(x.shape[0], -1, h.shape[2]))).reshape(x.shape)


GENERATOR = torch.Generator().manual_seed(1)
X, EMB = torch.randn(2, 8, 6, 4, generator=GENERATOR), torch.randn(2, 5, generator=GENERATOR)


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("options", [{}, {"up": True}, {"down": True}, {"use_checkpoint": True}])
def test_residual_blocks(same, scale_shift, options):
    block = ResBlock(8, 12, 5, scale_shift, **options)
    report = same(block, (X, EMB), {"group_norm_silu_fwd": 2})
    how = "scale and shift" if scale_shift else "the embedding before"
    assert report.replaced == [
        Entry("in_layers.0", "group_norm_silu", "group_norm_silu"),
        Entry("out_layers.0", "group_norm_silu", f"group_norm_silu with {how}"),
    ]


@pytest.mark.parametrize("attention", [QKVAttention, QKVAttentionLegacy])
@pytest.mark.parametrize("heads", [1, 2])
def test_attention(same, attention, heads):
    block = AttentionBlock(8, attention(heads))
    report = same(block, (X,), {"group_norm_silu_fwd": 1, "attention_fwd": 1})
    assert report.counts == {"group_norm_silu": 1, "attention": 1}
    same(attention(heads), (torch.randn(2, 24, 7),), {"attention_fwd": 1})


def test_a_subclass_of_attention_keeps_its_order(same):
    class Mine(QKVAttentionLegacy):
        pass

    same(AttentionBlock(8, Mine(2)), (X,), {"group_norm_silu_fwd": 1, "attention_fwd": 1})


def test_heads_folded_into_the_batch(same):
    attention = QKVAttentionLegacy(1)
    report = same(Folded(8, attention), (X,), {"attention_fwd": 1})
    assert report.replaced == [Entry("attention", "attention", "attention")]
    assert report.left_alone[0] == Entry("", "attention", "Folded: its _forward() is not that of AttentionBlock")


def test_sixteen_bits_keep_their_dtype():
    """As after convert_to_fp16: convolutions in 16 bits, norms in float32."""
    block = ResBlock(8, 8, 5, True).eval()
    for part in (block.in_layers[2], block.out_layers[3], block.emb_layers[1]):
        part.bfloat16()
    x, emb = X.bfloat16(), EMB.bfloat16()
    want = block(x, emb)
    fastscore.accelerate(block)
    got = block(x, emb)
    assert got.dtype is want.dtype is torch.bfloat16
    assert (got - want).abs().max() <= 0.03 * want.abs().max()  # four roundings of 2^-8 apart


def test_what_is_left_alone():
    block = ResBlock(8, 8, 5)
    block.out_layers[0].register_forward_hook(lambda *args: None)
    report = fastscore.accelerate(block)
    assert report.left_alone[0] == Entry("", "group_norm_silu", "ResBlock: a hook watches its norms or its activations")
    assert [entry.name for entry in report.replaced] == ["in_layers.0"]  # as a plain sequence
    attention = AttentionBlock(8, nn.Identity())
    why = "AttentionBlock: of its attention: its forward() is not that of QKVAttention"
    assert fastscore.accelerate(attention).left_alone[0] == Entry("", "attention", why)
