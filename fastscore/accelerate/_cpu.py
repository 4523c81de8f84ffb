"""`accelerate(model, optimize="cpu")`: the engine in front of a network, and its 3x3 convolutions for what is left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastscore.accelerate._swap import Finding, Fused, definer, swap
from fastscore.accelerate.report import Entry, Report
from fastscore.engine import Engine, untouched
from fastscore.ops.conv3x3 import conv3x3


class FusedConv2d(Fused):
    """A 3x3 convolution by `fastscore.ops.conv3x3`, with its gradients."""

    kind = "conv3x3"

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        return None

    def forward(self: Any, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type) or x.dim() != 4 or x.dtype != self.weight.dtype:
            return super().forward(x)  # type: ignore[misc]
        return conv3x3(x, self.weight, self.bias)


class FusedNetwork(Fused):
    """A network whose calls go to the engine where that can take them; else in channels-last through its layers."""

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        return None

    def prepare(self: Any) -> None:
        self._fused_engine = Engine()

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        taken, result = self._fused_engine(self, args, kwargs)
        if taken:
            return result
        if untouched():
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        args, kwargs = pytree.tree_map(_channels_last, (args, kwargs))
        return pytree.tree_map(_contiguous, super().forward(*args, **kwargs))  # type: ignore[misc]


def optimize_for_cpu(model: Any, report: Report) -> Report:
    """Put the engine in front of `model`, and exchange the convolutions in it."""
    kept = []
    for entry in report.left_alone:
        module = model.get_submodule(entry.name)
        if entry.kind == "conv3x3" and isinstance(module, nn.Conv2d) and _plain(module):
            if not isinstance(module, FusedConv2d):
                swap(module, FusedConv2d)
            report.replaced.append(Entry(entry.name, "conv3x3", "conv3x3"))
        else:
            kept.append(entry)
    report.left_alone[:] = kept
    if not isinstance(model, FusedNetwork):
        swap(model, FusedNetwork)
    report.engine = model._fused_engine
    return report


def _plain(layer: nn.Conv2d) -> bool:
    settings = (layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    cls = definer(layer, "forward")
    return settings == ((1, 1), (1, 1), (1, 1), 1, "zeros") and cls is nn.Conv2d and "forward" not in vars(layer)


def _channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == 4 and value.device.type == "cpu":
        return value.contiguous(memory_format=torch.channels_last)
    return value


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) and value.dim() == 4 else value
