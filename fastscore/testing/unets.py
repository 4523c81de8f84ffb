"""U-Nets of published sizes with random weights, and on torch's own layers: what runtimes are timed and held to.

The weights reach every branch: those that training starts at zero are not, and no bias is 0 and no gain 1.
"""

import copy
from dataclasses import replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastscore import reference
from fastscore.models import NCSNppConfig, ScoreNetwork, create, describe
from fastscore.nn.attention import AttentionBlock
from fastscore.nn.conv3x3 import Conv3x3
from fastscore.nn.group_norm_silu import GroupNormSiLU
from fastscore.nn.resample import Downsample, Upsample

Network = TypeVar("Network", bound=nn.Module)


def ddpm_cifar10() -> nn.Module:
    """The U-Net of DDPM for CIFAR-10 (Ho et al. 2020) as diffusers has it: google/ddpm-cifar10-32, 35.7 M weights.

    (B, 3, 32, 32) and timesteps (B,) in [0, 999] -> an object whose `.sample` is (B, 3, 32, 32). Needs diffusers.
    """
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_eps=1e-6,
        attention_head_dim=None,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
    )
    return _moved(network)


def score_sde(name: str) -> ScoreNetwork:
    """A published configuration of NCSN++ or DDPM++ (`fastscore.models.configs`), with no branch that starts silent."""
    config = describe(name).config
    assert isinstance(config, NCSNppConfig), name
    return _moved(create(replace(config, init_scale=1.0)))


def _moved(network: Network) -> Network:
    """Biases and gains a tenth away from where they start."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def on_torch(model: ScoreNetwork) -> ScoreNetwork:
    """A copy of an NCSN++, DDPM++ or DDPM of `fastscore.models` on the layers of torch, with the same state dict.

    Attention is torch's fused one, and a FIR filter a depthwise convolution.
    """
    model = copy.deepcopy(model)
    for layer in model.modules():
        layer.__class__ = _ON_TORCH.get(type(layer), type(layer))
    return model


class _Norm(nn.GroupNorm):
    silu: bool

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        x = x if add is None else x + add[:, :, None, None]
        y = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return F.silu(y) if self.silu else y


class _Attention(AttentionBlock):
    def forward(self, x: Tensor) -> Tensor:
        rows = self.GroupNorm_0(x).flatten(2).transpose(1, 2)
        query, key, value = (layer(rows).unsqueeze(1) for layer in (self.NIN_0, self.NIN_1, self.NIN_2))
        update = self.NIN_3(F.scaled_dot_product_attention(query, key, value).squeeze(1))
        return (x + update.transpose(1, 2).reshape(x.shape)) * self.skip_scale


class _Upsample(Upsample):
    def forward(self, x: Tensor) -> Tensor:
        if self.taps is None:
            return super().forward(x)
        length = self.taps.shape[0]
        x = reference.resample(x, self.taps, up=2, padding=((length + 1) // 2, (length - 2) // 2))
        return x if self.conv_name is None else getattr(self, self.conv_name)(x)


class _Downsample(Downsample):
    def forward(self, x: Tensor) -> Tensor:
        if self.taps is None:
            return super().forward(x)
        stride, extra = (2, -1) if self.conv_name is None else (1, 1)
        length = self.taps.shape[0] + extra
        x = reference.resample(x, self.taps, down=stride, padding=(length // 2, (length - 1) // 2))
        return x if self.conv_name is None else getattr(self, self.conv_name)(x)


_ON_TORCH: dict[type[nn.Module], type[nn.Module]] = {
    AttentionBlock: _Attention,
    Conv3x3: nn.Conv2d,
    Downsample: _Downsample,
    GroupNormSiLU: _Norm,
    Upsample: _Upsample,
}


def relative_error(got: Tensor, exact: Tensor) -> float:
    """The largest of the samples' |got - exact| / |exact|, in 2-norms over the sample."""
    error, size = ((t.double()).flatten(1).norm(dim=1) for t in (got - exact, exact))
    return float((error / size).max())
