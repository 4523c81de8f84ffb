"""Layers as score_sde_pytorch has them, in names, attributes and meaning, accelerated."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscore
from fastscore.accelerate import Entry
from fastscore.reference import resample as fir

FIR = (1, 3, 2, 1)  # not symmetric: a flipped filter would show


def taps(kernel, gain=1):
    row = torch.tensor(kernel, dtype=torch.float64)
    return gain * (torch.outer(row, row) / row.sum() ** 2).float()


def up_fir(x, kernel):
    n = len(kernel)
    return fir(x, taps(kernel, 4), up=2, padding=((n - 1) // 2 + 1, (n - 2) // 2))


def down_fir(x, kernel):
    n = len(kernel)
    return fir(x, taps(kernel), down=2, padding=((n - 1) // 2, (n - 2) // 2))


class NIN(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(n_in, n_out)), nn.Parameter(torch.randn(n_out))

    def forward(self, x):
        return torch.einsum("bchw,cd->bdhw", x, self.W) + self.b[:, None, None]


class AttnBlockpp(nn.Module):
    def __init__(self, channels, skip_rescale=False):
        super().__init__()
        self.GroupNorm_0 = nn.GroupNorm(2, channels, eps=1e-6)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (NIN(channels, channels) for _ in range(4))
        self.skip_rescale = skip_rescale

    def forward(self, x):
        h = self.GroupNorm_0(x)
        q, k, v = self.NIN_0(h), self.NIN_1(h), self.NIN_2(h)
        scores = torch.einsum("bchw,bcij->bhwij", q, k) * x.shape[1] ** -0.5
        weights = scores.flatten(3).softmax(-1).reshape(scores.shape)
        h = self.NIN_3(torch.einsum("bhwij,bcij->bchw", weights, v))
        return (x + h) / math.sqrt(2) if self.skip_rescale else x + h


class AttnBlock(AttnBlockpp):
    def __init__(self, channels):
        super().__init__(channels)
        del self.skip_rescale

    def forward(self, x):
        self.skip_rescale = False
        try:
            return AttnBlockpp.forward(self, x)
        finally:
            del self.skip_rescale


class ResnetBlockBigGANpp(nn.Module):
    def __init__(
        self, act, in_ch, out_ch, temb_dim=None, up=False, down=False, dropout=0.1, fir=False, skip_rescale=True
    ):
        super().__init__()
        self.GroupNorm_0 = nn.GroupNorm(2, in_ch, eps=1e-6)
        self.up, self.down, self.fir, self.fir_kernel = up, down, fir, FIR
        self.Conv_0 = nn.Conv2d(in_ch, out_ch, 3, padding=1)
        if temb_dim is not None:
            self.Dense_0 = nn.Linear(temb_dim, out_ch)
        self.GroupNorm_1 = nn.GroupNorm(2, out_ch, eps=1e-6)
        self.Dropout_0 = nn.Dropout(dropout)
        self.Conv_1 = nn.Conv2d(out_ch, out_ch, 3, padding=1)
        if in_ch != out_ch or up or down:
            self.Conv_2 = nn.Conv2d(in_ch, out_ch, 1)
        self.skip_rescale, self.act, self.in_ch, self.out_ch = skip_rescale, act, in_ch, out_ch

    def resampled(self, x):
        if self.up:
            return up_fir(x, self.fir_kernel) if self.fir else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        b, c, h, w = x.shape
        return down_fir(x, self.fir_kernel) if self.fir else x.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))

    def forward(self, x, temb=None):
        h = self.act(self.GroupNorm_0(x))
        if self.up or self.down:
            h, x = self.resampled(h), self.resampled(x)
        h = self.Conv_0(h)
        if temb is not None:
            h = h + self.Dense_0(self.act(temb))[:, :, None, None]
        h = self.Conv_1(self.Dropout_0(self.act(self.GroupNorm_1(h))))
        if self.in_ch != self.out_ch or self.up or self.down:
            x = self.Conv_2(x)
        return (x + h) / math.sqrt(2) if self.skip_rescale else x + h


class ResnetBlockDDPMpp(nn.Module):
    def __init__(self, act, in_ch, out_ch, temb_dim=None, conv_shortcut=False, skip_rescale=False):
        super().__init__()
        self.GroupNorm_0, self.GroupNorm_1 = nn.GroupNorm(2, in_ch, eps=1e-6), nn.GroupNorm(2, out_ch, eps=1e-6)
        self.Conv_0, self.Conv_1 = nn.Conv2d(in_ch, out_ch, 3, padding=1), nn.Conv2d(out_ch, out_ch, 3, padding=1)
        self.Dropout_0 = nn.Dropout(0.1)
        if temb_dim is not None:
            self.Dense_0 = nn.Linear(temb_dim, out_ch)
        if in_ch != out_ch and conv_shortcut:
            self.Conv_2 = nn.Conv2d(in_ch, out_ch, 3, padding=1)
        elif in_ch != out_ch:
            self.NIN_0 = NIN(in_ch, out_ch)
        self.skip_rescale, self.act, self.out_ch, self.conv_shortcut = skip_rescale, act, out_ch, conv_shortcut

    def forward(self, x, temb=None):
        h = self.Conv_0(self.act(self.GroupNorm_0(x)))
        if temb is not None:
            h = h + self.Dense_0(self.act(temb))[:, :, None, None]
        h = self.Conv_1(self.Dropout_0(self.act(self.GroupNorm_1(h))))
        if x.shape[1] != self.out_ch:
            x = self.Conv_2(x) if self.conv_shortcut else self.NIN_0(x)
        return (x + h) / math.sqrt(2) if self.skip_rescale else x + h


class Upsample(nn.Module):
    def __init__(self, fir=True):
        super().__init__()
        self.fir, self.with_conv, self.fir_kernel = fir, False, FIR

    def forward(self, x):
        return up_fir(x, self.fir_kernel) if self.fir else F.interpolate(x, scale_factor=2)


class Downsample(nn.Module):
    def __init__(self, with_conv=False, in_ch=None):
        super().__init__()
        self.fir, self.with_conv, self.fir_kernel = True, with_conv, FIR
        if with_conv:
            self.Conv2d_0 = Conv2d(in_ch, in_ch, 3, down=True)

    def forward(self, x):
        return self.Conv2d_0(x) if self.with_conv else down_fir(x, self.fir_kernel)


class Conv2d(nn.Module):
    def __init__(self, in_ch, out_ch, kernel, up=False, down=False, use_bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_ch, in_ch, kernel, kernel))
        self.bias = nn.Parameter(torch.randn(out_ch)) if use_bias else None
        self.up, self.down, self.resample_kernel, self.use_bias = up, down, FIR, use_bias

    def forward(self, x):
        if self.down:
            pad = len(self.resample_kernel) - 2 + self.weight.shape[-1] - 1
            x = fir(x, taps(self.resample_kernel), padding=((pad + 1) // 2, pad // 2))
            x = F.conv2d(x, self.weight, stride=2)
        else:
            x = F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2)
        return x + self.bias.reshape(1, -1, 1, 1) if self.use_bias else x


GENERATOR = torch.Generator().manual_seed(1)
X, TEMB = torch.randn(2, 8, 6, 4, generator=GENERATOR), torch.randn(2, 5, generator=GENERATOR)
NORMS = {"group_norm_silu_fwd": 2}


@pytest.mark.parametrize(
    "resampled", [{}, {"up": True}, {"down": True}, {"up": True, "fir": True}, {"down": True, "fir": True}]
)
@pytest.mark.parametrize("out", [8, 12])
def test_biggan_blocks(same, resampled, out):
    block = ResnetBlockBigGANpp(nn.SiLU(), 8, out, 5, **resampled)
    resamples = {"resample": 2} if "fir" in resampled else {}
    report = same(block, (X, TEMB), NORMS | resamples)
    assert report.counts == {"group_norm_silu": 2} | ({"resample": 1} if resamples else {})


@pytest.mark.parametrize("options", [{}, {"conv_shortcut": True}, {"skip_rescale": True}])
def test_ddpmpp_blocks(same, options):
    for out in (8, 12):
        same(ResnetBlockDDPMpp(nn.SiLU(), 8, out, 5, **options), (X, TEMB), NORMS)


def test_blocks_without_time(same):
    same(ResnetBlockDDPMpp(nn.SiLU(), 8, 8), (X,), NORMS)
    same(ResnetBlockBigGANpp(nn.SiLU(), 8, 8, skip_rescale=False), (X,), NORMS)


@pytest.mark.parametrize("skip_rescale", [False, True])
def test_attention(same, skip_rescale):
    block = AttnBlockpp(8, skip_rescale)
    report = same(block, (X,), {"group_norm_silu_fwd": 1, "attention_fwd": 1})
    assert report.counts == {"group_norm_silu": 1, "attention": 1}


def test_attention_of_the_first_ddpm(same):
    same(AttnBlock(8), (X,), {"group_norm_silu_fwd": 1, "attention_fwd": 1})


@pytest.mark.parametrize(
    "make", [Upsample, Downsample, lambda: Downsample(True, 8), lambda: Conv2d(8, 4, 3, down=True, use_bias=False)]
)
def test_resampling(same, make):
    assert same(make(), (X,), {"resample": 1}).counts == {"resample": 1}


def test_what_is_left_alone():
    model = nn.ModuleDict(
        {
            "nearest": Upsample(fir=False),
            "plain": Conv2d(8, 8, 3),
            "relu": ResnetBlockDDPMpp(nn.ReLU(), 8, 8),
        }
    )
    report = fastscore.accelerate(model)
    assert report.replaced == []
    assert [e for e in report.left_alone if e.kind != "conv3x3"][:3] == [
        Entry("nearest", "resample", "Upsample: it has no FIR filter"),
        Entry("plain", "resample", "Conv2d: it does not downsample"),
        Entry("relu", "group_norm_silu", "ResnetBlockDDPMpp: its activation is ReLU, not SiLU"),
    ]
    fast = AttnBlockpp(8)
    fast.NIN_1.register_forward_hook(lambda *args: None)
    why = "AttnBlockpp: a hook watches its norm or a projection"
    assert fastscore.accelerate(fast).left_alone[0] == Entry("", "attention", why)
