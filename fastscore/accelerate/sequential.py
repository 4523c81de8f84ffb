"""GroupNorm and SiLU next to each other: in torch's Sequential, and as two layers of a module that calls them so."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from fastscore.accelerate._layers import as_returned_by, is_group_norm, is_silu, normalize
from fastscore.accelerate._swap import Finding, Fused, definer, hooked

_CASTING = (nn.modules.conv._ConvNd, nn.Linear)  # under autocast they cast what they get


class FusedSequential(Fused):
    """Runs every GroupNorm that a SiLU follows with it. The layers stay as they are: others may call or slice them."""

    names = ("Sequential",)

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        if definer(module, "forward") is not nn.Sequential or "forward" in vars(module):
            return None
        layers = list(module.named_children())
        pairs = [
            (name, norm, then, act)
            for (name, norm), (then, act) in pairwise(layers)
            if is_group_norm(norm) and is_silu(act)
        ]
        free = [
            Finding(name, "group_norm_silu", "group_norm_silu", (then,))
            for name, norm, then, act in pairs
            if not hooked(norm, act)
        ]
        return free or ("a hook watches its norm or its activation" if pairs else None)

    def forward(self: Any, input: Any) -> Any:
        layers, i = list(self), 0
        while i < len(layers):
            layer = layers[i]
            if i + 1 < len(layers) and _pair(layer, layers[i + 1]):
                casts = i + 2 < len(layers) and isinstance(layers[i + 2], _CASTING)
                input = normalize(layer, input if casts else as_returned_by(layer, input))
                i += 2
            else:
                input = layer(input)
                i += 1
        return input


def _pair(norm: nn.Module, act: nn.Module) -> bool:
    return is_group_norm(norm) and is_silu(act) and not hooked(norm, act)


class FusedNorm(Fused):
    """A GroupNorm that applies the activation its owner calls next."""

    _fused_act: tuple[nn.Module]

    def forward(self: Any, x: Tensor) -> Tensor:
        if hooked(self, *self._fused_act):
            return super().forward(x)  # type: ignore[misc]
        return normalize(self, as_returned_by(self, x))


class FusedActivation(Fused):
    """A SiLU that its norm has applied."""

    _fused_norm: tuple[nn.Module]

    def forward(self: Any, x: Tensor) -> Tensor:
        if hooked(self, *self._fused_norm):
            return super().forward(x)  # type: ignore[misc]
        return x


MIXINS: list[type[Fused]] = [FusedSequential]
