"""Layers of diffusers: ResnetBlock2D, Attention over pixels, FirUpsample2D and FirDownsample2D."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.accelerate._layers import (
    as_convolution_takes_it,
    attend,
    convolve,
    downsample,
    is_group_norm,
    is_silu,
    normalize,
    on_device_of,
    pixels,
    resamples_by,
    rows_for,
    scaled,
    taps_of,
    upsample,
)
from fastscore.accelerate._swap import Finding, Fused, hooked, why_unlike
from fastscore.ops import resample

# A class, and the norm and the activation that its forward() calls one after the other.
PAIRS = {
    "UNet2DModel": ("conv_norm_out", "conv_act"),
    "UNet2DConditionModel": ("conv_norm_out", "conv_act"),
    "Encoder": ("conv_norm_out", "conv_act"),
    "Decoder": ("conv_norm_out", "conv_act"),
    "SkipUpBlock2D": ("skip_norm", "act"),
    "AttnSkipUpBlock2D": ("skip_norm", "act"),
}


class FusedResnetBlock2D(Fused):
    """Both norms with their activations, the time embedding and the FIR filter; the sum's division by 1 is left out."""

    names = ("ResnetBlock2D",)

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        layers = ("norm1", "conv1", "time_emb_proj", "norm2", "dropout", "conv2", "nonlinearity", "conv_shortcut")
        settings = ("upsample", "downsample", "time_embedding_norm", "skip_time_act", "output_scale_factor")
        if why := why_unlike(module, cls, layers + settings):
            return why
        if not is_group_norm(module.norm1) or not is_group_norm(module.norm2):
            return "its norms are not GroupNorm"
        if not is_silu(module.nonlinearity):
            return f"its activation is {type(module.nonlinearity).__name__}, not SiLU"
        if hooked(module.norm1, module.norm2, module.nonlinearity):
            return "a hook watches its norms or its activation"
        embedding = {"default": " with the time embedding before", "scale_shift": " with scale and shift"}
        second = embedding.get(module.time_embedding_norm, "")
        found = [
            Finding("norm1", "group_norm_silu", "group_norm_silu", ("nonlinearity",)),
            Finding("norm2", "group_norm_silu", f"group_norm_silu{second}"),
        ]
        if name := _fir_of(module):
            found.append(Finding(name, "resample", "resample"))
        return found

    def prepare(self: Any) -> None:
        self._fused_fir = _fir_of(self)
        self._fused_taps = taps_of((1, 3, 3, 1), gain=4 if self._fused_fir == "upsample" else 1)
        self._fused_scale = 1 / float(self.output_scale_factor)  # NumPy's float is a tensor to torch.compile

    def forward(self: Any, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        embeds = self.time_emb_proj is not None
        unusual = args or kwargs or embeds == (temb is None) or (not embeds and self.time_embedding_norm != "default")
        if unusual or hooked(self.norm1, self.norm2, self.nonlinearity):
            return super().forward(input_tensor, temb, *args, **kwargs)  # type: ignore[misc]
        x, h = input_tensor, normalize(self.norm1, input_tensor)
        if self.upsample is not None or self.downsample is not None:
            x, h = self._resampled(x), self._resampled(h)
        h = self.conv1(h)
        add = scale = shift = None
        if embeds:
            assert temb is not None
            e = rows_for(self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb)), h)
            if self.time_embedding_norm == "default":
                add = e
            elif self.time_embedding_norm == "scale_shift":
                scale, shift = e.chunk(2, dim=1)
        h = normalize(self.norm2, h, add=add, scale=scale, shift=shift)
        h = self.conv2(self.dropout(h))
        if self.conv_shortcut is not None:
            # as published: for the strides of gradients, and because dropout draws in the order of memory
            x = self.conv_shortcut(x.contiguous() if self.training else x)
        return scaled(x + h, self._fused_scale)

    def _resampled(self: Any, x: Tensor) -> Tensor:
        if self._fused_fir is not None:
            return _RESAMPLE[self._fused_fir](as_convolution_takes_it(x), on_device_of(x, self))
        result: Tensor = (self.upsample or self.downsample)(x)
        return result


_RESAMPLE = {"upsample": upsample, "downsample": downsample}


def _fir_of(block: Any) -> str | None:
    """Which of both the block does by a plain function that turns out to be the FIR filter (1, 3, 3, 1)."""
    for name, gain in (("upsample", 4), ("downsample", 1)):
        function, taps = getattr(block, name), taps_of((1, 3, 3, 1), gain)
        assert taps is not None
        if function is None or isinstance(function, nn.Module):
            continue
        if resamples_by(function, lambda x, name=name, taps=taps: _RESAMPLE[name](x, taps)):  # type: ignore[misc]
            return name
    return None


class FusedAttention(Fused):
    """Self-attention over the pixels of an image, its residual and its scale."""

    kind = "attention"
    names = ("Attention",)

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        layers = ("group_norm", "spatial_norm", "norm_q", "norm_k", "to_q", "to_k", "to_v", "to_out", "processor")
        settings = ("heads", "residual_connection", "rescale_output_factor", "is_cross_attention", "upcast_attention")
        if why := why_unlike(module, cls, (*layers, *settings, "added_kv_proj_dim", "inner_dim", "inner_kv_dim")):
            return why
        if not _stock_processor(module):
            return f"its processor is {type(module.processor).__name__}, not the default one"
        if module.is_cross_attention or module.added_kv_proj_dim is not None:
            return "it is cross-attention"
        if not module.residual_connection:
            return "it is not over the pixels of an image, which has a residual"
        unknown = (module.spatial_norm, module.norm_q, module.norm_k)
        if any(layer is not None for layer in unknown) or module.to_out is None or module.upcast_attention:
            return "it normalizes queries and keys, normalizes by position, or casts"
        if module.inner_dim != module.inner_kv_dim or module.inner_dim % module.heads:
            return "its keys have other heads than its queries"
        found = [Finding("", "attention", "attention")]
        if module.group_norm is not None:
            if not is_group_norm(module.group_norm):
                return "its norm is not GroupNorm"
            if hooked(module.group_norm):
                return "a hook watches its norm"
            found.append(Finding("group_norm", "group_norm_silu", "group_norm_silu, without SiLU"))
        return found

    def prepare(self: Any) -> None:
        self._fused_scale = 1 / float(self.rescale_output_factor)

    def forward(
        self: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        x, norm = hidden_states, self.group_norm
        known = kwargs.keys() <= {"temb"}  # the middle block gives it; spatial_norm alone would take it
        unusual = encoder_hidden_states is not None or attention_mask is not None or not known or x.dim() != 4
        if unusual or not _stock_processor(self) or (norm is not None and hooked(norm)):
            return super().forward(x, encoder_hidden_states, attention_mask, **kwargs)  # type: ignore[misc]
        rows = pixels(x if norm is None else normalize(norm, x, silu=False))
        heads = (self.heads, -1)
        q, k, v = (layer(rows).unflatten(-1, heads) for layer in (self.to_q, self.to_k, self.to_v))
        rows = attend(q, k, v, None if type(self.processor).__name__ == "AttnProcessor2_0" else self.scale)
        for layer in self.to_out:
            rows = layer(rows)
        # in this order the sum is channels-last, as the published one is
        return scaled(rows.transpose(1, 2).reshape(x.shape) + x, self._fused_scale)


def _stock_processor(attention: Any) -> bool:
    cls = type(attention.processor)
    return cls.__name__ in ("AttnProcessor2_0", "AttnProcessor") and cls.__module__.startswith("diffusers.")


class FusedFirUpsample2D(Fused):
    """The FIR filter; where a convolution comes before, that is torch's transposed one as before."""

    kind = "resample"
    names = ("FirUpsample2D",)
    gain = 4

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        if why := why_unlike(module, cls, ("fir_kernel", "use_conv")):
            return why
        if taps_of(module.fir_kernel) is None:
            return "its filter is longer than resample takes"
        if module.use_conv and hooked(module.Conv2d_0):
            return "a hook watches its convolution"
        return [Finding("", "resample", "resample")]

    def prepare(self: Any) -> None:
        self._fused_taps = taps_of(self.fir_kernel, self.gain)

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        x, taps = as_convolution_takes_it(hidden_states), on_device_of(hidden_states, self)
        if not self.use_conv:
            return upsample(x, taps)
        layer, pad = self.Conv2d_0, taps.shape[0] - 4
        x = F.conv_transpose2d(x, layer.weight.flip(2, 3).transpose(0, 1), stride=2)
        x = resample(x, taps, padding=((pad + 1) // 2 + 1, pad // 2 + 1))
        return x + layer.bias[:, None, None]


class FusedFirDownsample2D(FusedFirUpsample2D):
    """The FIR filter; where a convolution follows, that has the stride."""

    names = ("FirDownsample2D",)
    gain = 1

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        x, taps = as_convolution_takes_it(hidden_states), on_device_of(hidden_states, self)
        if not self.use_conv:
            return downsample(x, taps)
        layer = self.Conv2d_0
        return F.conv2d(convolve(x, taps, 3), layer.weight, layer.bias, stride=2)


MIXINS: list[type[Fused]] = [FusedResnetBlock2D, FusedAttention, FusedFirUpsample2D, FusedFirDownsample2D]
