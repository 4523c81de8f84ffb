"""Layers as EDM has them, in names, attributes and meaning, accelerated."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscore
from fastscore.accelerate import Entry


class GroupNorm(nn.Module):
    def __init__(self, num_channels, num_groups=2, eps=1e-5):
        super().__init__()
        self.num_groups, self.eps = num_groups, eps
        self.weight, self.bias = nn.Parameter(torch.ones(num_channels)), nn.Parameter(torch.zeros(num_channels))

    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Conv2d(nn.Module):
    def __init__(self, n_in, n_out, kernel, up=False, down=False, taps=(1, 1), fused_resample=False, bias=True):
        super().__init__()
        self.in_channels, self.out_channels = n_in, n_out
        self.up, self.down, self.fused_resample = up, down, fused_resample
        self.weight = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.randn(n_out)) if kernel and bias else None
        row = torch.tensor(taps, dtype=torch.float32)
        filtered = (row[:, None] * row[None] / row.sum() ** 2)[None, None]
        self.register_buffer("resample_filter", filtered if up or down else None)

    def forward(self, x):
        def each(f, channels):
            return f.tile([channels, 1, 1, 1])

        f = None if self.resample_filter is None else self.resample_filter.to(x.dtype)
        before = 0 if f is None else (f.shape[-1] - 1) // 2
        border = 0 if self.weight is None else self.weight.shape[-1] // 2
        c, n = self.in_channels, self.out_channels
        if self.fused_resample and self.up and self.weight is not None:
            x = F.conv_transpose2d(x, each(f * 4, c), groups=c, stride=2, padding=max(before - border, 0))
            x = F.conv2d(x, self.weight, padding=max(border - before, 0))
        elif self.fused_resample and self.down and self.weight is not None:
            x = F.conv2d(x, self.weight, padding=border + before)
            x = F.conv2d(x, each(f, n), groups=n, stride=2)
        else:
            if self.up:
                x = F.conv_transpose2d(x, each(f * 4, c), groups=c, stride=2, padding=before)
            if self.down:
                x = F.conv2d(x, each(f, c), groups=c, stride=2, padding=before)
            if self.weight is not None:
                x = F.conv2d(x, self.weight, padding=border)
        return x if self.bias is None else x + self.bias.reshape(1, -1, 1, 1)


class UNetBlock(nn.Module):
    def __init__(
        self, n_in, n_out, emb, up=False, down=False, heads=0, skip_scale=1.0, adaptive_scale=True, taps=(1, 1)
    ):
        super().__init__()
        self.num_heads, self.dropout, self.skip_scale, self.adaptive_scale = heads, 0.2, skip_scale, adaptive_scale
        self.norm0, self.norm1 = GroupNorm(n_in), GroupNorm(n_out)
        self.conv0 = Conv2d(n_in, n_out, 3, up, down, taps)
        self.affine = nn.Linear(emb, n_out * (2 if adaptive_scale else 1))
        self.conv1 = Conv2d(n_out, n_out, 3)
        self.skip = (
            Conv2d(n_in, n_out, 1 if n_in != n_out else 0, up, down, taps) if n_in != n_out or up or down else None
        )
        if heads:
            self.norm2, self.qkv, self.proj = GroupNorm(n_out), Conv2d(n_out, 3 * n_out, 1), Conv2d(n_out, n_out, 1)

    def forward(self, x, emb):
        first, x = x, self.conv0(F.silu(self.norm0(x)))
        e = self.affine(emb)[:, :, None, None].to(x.dtype)
        if self.adaptive_scale:
            scale, shift = e.chunk(2, dim=1)
            x = F.silu(torch.addcmul(shift, self.norm1(x), scale + 1))
        else:
            x = F.silu(self.norm1(x + e))
        x = self.conv1(F.dropout(x, p=self.dropout, training=self.training))
        x = (x + (first if self.skip is None else self.skip(first))) * self.skip_scale
        if self.num_heads:
            b, c, h, w = x.shape
            qkv = self.qkv(self.norm2(x)).reshape(b * self.num_heads, c // self.num_heads, 3, h * w)
            q, k, v = qkv.unbind(2)
            weights = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(k.shape[1])).softmax(2)
            a = torch.einsum("nqk,nck->ncq", weights, v)
            x = (self.proj(a.reshape(x.shape)) + x) * self.skip_scale
        return x


GENERATOR = torch.Generator().manual_seed(1)
X, EMB = torch.randn(2, 8, 6, 4, generator=GENERATOR), torch.randn(2, 5, generator=GENERATOR)
TAPS = (1, 3, 2, 1)  # not symmetric: a flipped filter would show


@pytest.mark.parametrize("adaptive_scale", [False, True])
@pytest.mark.parametrize("out", [8, 12])
def test_blocks(same, adaptive_scale, out):
    block = UNetBlock(8, out, 5, adaptive_scale=adaptive_scale, skip_scale=0.5**0.5)
    assert same(block, (X, EMB), {"group_norm_silu_fwd": 2}).counts == {"group_norm_silu": 2}


@pytest.mark.parametrize("heads", [1, 2])
def test_blocks_with_attention(same, heads):
    block = UNetBlock(8, 8, 5, heads=heads, skip_scale=0.5**0.5)
    report = same(block, (X, EMB), {"group_norm_silu_fwd": 3, "attention_fwd": 1})
    assert report.replaced == [
        Entry("norm0", "group_norm_silu", "group_norm_silu"),
        Entry("norm1", "group_norm_silu", "group_norm_silu with scale and shift"),
        Entry("norm2", "group_norm_silu", "group_norm_silu, without SiLU"),
        Entry("qkv", "attention", "attention"),
    ]


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("taps", [(1, 1), TAPS])
def test_blocks_that_resample(same, way, taps):
    block = UNetBlock(8, 8, 5, taps=taps, **{way: True})
    report = same(block, (X, EMB), {"group_norm_silu_fwd": 2, "resample": 2})
    assert report.counts == {"group_norm_silu": 2, "resample": 2}


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("taps", [(1, 1), TAPS, (1, 2, 5, 4, 2, 1)])
@pytest.mark.parametrize(("kernel", "fused"), [(3, False), (3, True), (1, True), (0, False)])
def test_convolutions(same, way, taps, kernel, fused):
    layer = Conv2d(8, 8 if kernel == 0 else 4, kernel, taps=taps, fused_resample=fused, **{way: True})
    report = same(layer, (X,), {"resample": 1})
    assert report.replaced == [Entry("", "resample", "resample, and the convolution as before")]


def test_autocast_gives_the_dtypes_of_stock():
    for options in ({"heads": 2}, {"up": True}, {"down": True, "taps": TAPS}):
        block = UNetBlock(8, 8, 5, **options).eval()
        with torch.autocast("cpu", torch.bfloat16):
            want = block(X, EMB)
            fastscore.accelerate(block)
            got = block(X, EMB)
        assert got.dtype == want.dtype
        assert (got - want).abs().max() <= 0.05 * want.abs().max()  # some roundings of 2^-8 apart


def test_what_is_left_alone():
    model = nn.ModuleDict(
        {"long": Conv2d(8, 8, 3, up=True, taps=[1] * 9), "none": Conv2d(8, 8, 3), "norm": GroupNorm(8)}
    )
    report = fastscore.accelerate(model)
    assert report.replaced == []
    assert [entry.name for entry in report.left_alone] == ["long", "norm"]
    assert report.left_alone[0].note == "Conv2d: its filter is longer than resample takes, or a single tap"
    block = UNetBlock(8, 8, 5, heads=1)
    block.qkv.register_forward_hook(lambda *args: None)
    assert fastscore.accelerate(block).left_alone[0].note == "UNetBlock: a hook watches its norms or its qkv"
