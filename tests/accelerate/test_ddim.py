"""Layers as ddim has them, in names, attributes and meaning, accelerated."""

import pytest
import torch
from torch import nn

import fastscore
from fastscore.accelerate import Entry


def nonlinearity(x):
    return x * torch.sigmoid(x)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels, out_channels, temb_channels, conv_shortcut=False):
        super().__init__()
        self.in_channels, self.out_channels, self.use_conv_shortcut = in_channels, out_channels, conv_shortcut
        self.norm1, self.norm2 = nn.GroupNorm(2, in_channels, eps=1e-6), nn.GroupNorm(2, out_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.temb_proj, self.dropout = nn.Linear(temb_channels, out_channels), nn.Dropout(0.1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels and conv_shortcut:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        elif in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x, temb):
        h = self.conv1(nonlinearity(self.norm1(x)))
        h = h + self.temb_proj(nonlinearity(temb))[:, :, None, None]
        h = self.conv2(self.dropout(nonlinearity(self.norm2(h))))
        if self.in_channels != self.out_channels:
            x = self.conv_shortcut(x) if self.use_conv_shortcut else self.nin_shortcut(x)
        return x + h


class AttnBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(2, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weights = (torch.einsum("bcn,bcm->bnm", q, k) * x.shape[1] ** -0.5).softmax(2)
        return x + self.proj_out(torch.einsum("bnm,bcm->bcn", weights, v).reshape(x.shape))


GENERATOR = torch.Generator().manual_seed(1)
X, TEMB = torch.randn(2, 8, 6, 4, generator=GENERATOR), torch.randn(2, 5, generator=GENERATOR)


@pytest.mark.parametrize(("out", "conv"), [(8, False), (12, False), (12, True)])
def test_residual_blocks(same, out, conv):
    report = same(ResnetBlock(8, out, 5, conv), (X, TEMB), {"group_norm_silu_fwd": 2})
    assert report.counts == {"group_norm_silu": 2}


def test_attention(same):
    report = same(AttnBlock(8), (X,), {"group_norm_silu_fwd": 1, "attention_fwd": 1})
    assert report.counts == {"group_norm_silu": 1, "attention": 1}


def test_another_activation_is_left_alone(monkeypatch):
    monkeypatch.setitem(ResnetBlock.forward.__globals__, "nonlinearity", torch.relu)
    report = fastscore.accelerate(ResnetBlock(8, 8, 5))
    why = "ResnetBlock: its activation, a function named nonlinearity, is not SiLU or not found"
    assert report.left_alone[0] == Entry("", "group_norm_silu", why)
    assert report.replaced == []
