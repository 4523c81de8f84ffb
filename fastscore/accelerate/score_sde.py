"""Layers of score_sde_pytorch (Song et al. 2021): residual blocks, attention, FIR resampling."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.accelerate._layers import (
    added,
    attend,
    convolve,
    downsample,
    is_group_norm,
    is_silu,
    normalize,
    on_device_of,
    pixels,
    rows_for,
    scaled,
    taps_of,
    upsample,
)
from fastscore.accelerate._swap import Finding, Fused, definer, hooked, why_unlike


class FusedResnetBlock(Fused):
    """The blocks of DDPM, DDPM++ and NCSN++: both norms with their activations, the time embedding, resampling."""

    names = ("ResnetBlockBigGANpp", "ResnetBlockDDPMpp", "ResnetBlockDDPM")

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        if why := why_unlike(module, cls, ("GroupNorm_0", "Conv_0", "GroupNorm_1", "Dropout_0", "Conv_1", "act")):
            return why
        if not is_group_norm(module.GroupNorm_0) or not is_group_norm(module.GroupNorm_1):
            return "its norms are not GroupNorm"
        if not is_silu(module.act):
            return f"its activation is {type(module.act).__name__}, not SiLU"
        if hooked(module.GroupNorm_0, module.GroupNorm_1, module.act):
            return "a hook watches its norms or its activation"
        found = [
            Finding("GroupNorm_0", "group_norm_silu", "group_norm_silu", ("act",)),
            Finding("GroupNorm_1", "group_norm_silu", "group_norm_silu with the time embedding before"),
        ]
        if _resamples(module) and module.fir:
            if taps_of(module.fir_kernel) is None:
                return "its filter is longer than resample takes"
            found.append(Finding("", "resample", "resample"))
        return found

    def prepare(self: Any) -> None:
        if _resamples(self) and self.fir:
            self._fused_taps = taps_of(self.fir_kernel, 4 if self.up else 1)

    def forward(self: Any, x: Tensor, temb: Tensor | None = None) -> Tensor:
        if hooked(self.GroupNorm_0, self.GroupNorm_1, self.act):
            return super().forward(x, temb)  # type: ignore[misc]
        h, channels = normalize(self.GroupNorm_0, x), x.shape[1]
        if _resamples(self):
            h, x = self._resampled(h), self._resampled(x)
        h = self.Conv_0(h)
        e = None if temb is None else rows_for(self.Dense_0(self.act(temb)), h)
        h = self.Conv_1(self.Dropout_0(normalize(self.GroupNorm_1, h, add=e)))
        if hasattr(self, "Conv_2"):
            x = self.Conv_2(x)
        elif h.shape[1] != channels:
            x = self.NIN_0(x)
        return scaled(x + h, math.sqrt(0.5) if getattr(self, "skip_rescale", False) else 1.0)

    def _resampled(self: Any, x: Tensor) -> Tensor:
        if self.fir:
            return (upsample if self.up else downsample)(x, on_device_of(x, self))
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.up else F.avg_pool2d(x, 2)


def _resamples(block: Any) -> bool:
    return getattr(block, "up", False) or getattr(block, "down", False)


class FusedAttnBlock(Fused):
    """Self-attention of one head over the pixels of an image."""

    kind = "attention"
    names = ("AttnBlockpp", "AttnBlock")

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        if why := why_unlike(module, cls, ("GroupNorm_0", "NIN_0", "NIN_1", "NIN_2", "NIN_3")):
            return why
        layers = _projections(module)
        if not is_group_norm(module.GroupNorm_0) or not all(hasattr(n, "W") and hasattr(n, "b") for n in layers):
            return "its norm is not GroupNorm, or its projections have no W and b"
        if hooked(module.GroupNorm_0, *layers):
            return "a hook watches its norm or a projection"
        return [
            Finding("", "attention", "attention", ("NIN_0", "NIN_1", "NIN_2", "NIN_3")),
            Finding("GroupNorm_0", "group_norm_silu", "group_norm_silu, without SiLU"),
        ]

    def forward(self: Any, x: Tensor) -> Tensor:
        layers = _projections(self)
        if hooked(self.GroupNorm_0, *layers):
            return super().forward(x)  # type: ignore[misc]
        rows = pixels(normalize(self.GroupNorm_0, x, silu=False))
        q, k, v = (_nin(layer, rows).unsqueeze(2) for layer in layers[:3])
        update = _nin(layers[3], attend(q, k, v))
        return added(x, update, math.sqrt(0.5) if getattr(self, "skip_rescale", False) else 1.0)


def _projections(block: Any) -> tuple[Any, ...]:
    return block.NIN_0, block.NIN_1, block.NIN_2, block.NIN_3


def _nin(layer: Any, rows: Tensor) -> Tensor:
    return F.linear(rows, layer.W.t(), layer.b)


class FusedResampling(Fused):
    """Up- and downsampling between blocks, with the FIR filter and without a convolution."""

    kind = "resample"
    names = ("Upsample", "Downsample")

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        if why := why_unlike(module, cls, ("fir", "with_conv", "fir_kernel")):
            return why
        if not module.fir:
            return "it has no FIR filter"
        if module.with_conv:
            return None  # its convolution has the filter: FusedConv2d
        if taps_of(module.fir_kernel) is None:
            return "its filter is longer than resample takes"
        return [Finding("", "resample", "resample")]

    def prepare(self: Any) -> None:
        cls = definer(self, "forward")
        self._fused_up = cls is not None and cls.__name__ == "Upsample"
        self._fused_taps = taps_of(self.fir_kernel, 4 if self._fused_up else 1)

    def forward(self: Any, x: Tensor) -> Tensor:
        return (upsample if self._fused_up else downsample)(x, on_device_of(x, self))


class FusedConv2d(Fused):
    """A convolution with stride 2 behind the FIR filter, for the input pyramid of NCSN++."""

    kind = "resample"
    names = ("Conv2d",)

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        if isinstance(module, nn.Conv2d) or not hasattr(module, "resample_kernel"):
            return None
        if why := why_unlike(module, cls, ("weight", "up", "down", "use_bias")):
            return why
        if not module.down:
            return "it does not downsample"
        if taps_of(module.resample_kernel) is None:
            return "its filter is longer than resample takes"
        return [Finding("", "resample", "resample, and the convolution as before")]

    def prepare(self: Any) -> None:
        self._fused_taps = taps_of(self.resample_kernel)

    def forward(self: Any, x: Tensor) -> Tensor:
        x = convolve(x, on_device_of(x, self), self.weight.shape[-1])
        return F.conv2d(x, self.weight, self.bias if self.use_bias else None, stride=2)


MIXINS: list[type[Fused]] = [FusedResnetBlock, FusedAttnBlock, FusedResampling, FusedConv2d]
