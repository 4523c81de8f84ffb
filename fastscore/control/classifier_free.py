"""Classifier-free guidance: away from what a conditional network says without the condition."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastscore._checks import accumulation_dtype, wrong_type, wrong_value
from fastscore.control.labels import check_labels
from fastscore.samplers.base import check_count, check_number
from fastscore.samplers.row_network import RowNetwork
from fastscore.score import Convention

__all__ = ["ClassifierFreeGuidance"]


class ClassifierFreeGuidance(RowNetwork):
    """A class-conditional network as the model of a sampler: ``h = h_null + scale (h_label - h_null)``.

    One network call of 2 n rows per call, or of n where the scale is 1 or 0. Samplers read h by the convention of the
    network, whatever it predicts.

    Args:
        network: called as ``network(x, times, labels)`` with int64 labels (2 n,); its `convention`, if it has one, is
            that of the guided network.
        labels: the class of every sample, int64 (B,), or (1,) for all of them, in [0, classes).
        classes: number of classes.
        null: the label that stands for no class, >= 0; by default `classes`, the one after the last.
        scale: 1: the conditional network; 0: the unconditional one; the w of the paper is ``scale - 1``.
        rescale: in [0, 1]: how much of the way h is brought back to the standard deviation, over each sample, of
            h_label; 0: not at all. Published: 0.7.

    Raises:
        TypeError, ValueError: labels are not int64 or out of range, or another bad argument; when sampling, there is
            not one label per sample, or the network's output is not like its input.

    Source: Ho and Salimans, arXiv 2207.12598, eq. 6; rescaling: Lin et al., arXiv 2305.08891, eq. 15 and 16.
    """

    labels: Tensor

    def __init__(
        self,
        network: nn.Module,
        labels: Tensor,
        classes: int,
        *,
        scale: float,
        null: int | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__()
        name = "ClassifierFreeGuidance"
        if not callable(network):
            wrong_type(name, "network", "be callable as network(x, times, labels)", type(network).__name__)
        check_number(name, "scale", scale)
        check_number(name, "rescale", rescale, least=0.0, most=1.0)
        self.register_buffer("labels", check_labels(name, labels, classes), persistent=False)
        self.null = classes if null is None else null
        check_count(name, "null", self.null, 0)
        self.network, self.scale, self.rescale = network, float(scale), float(rescale)
        self.training = getattr(network, "training", False)  # samplers give back the mode that they find
        convention = getattr(network, "convention", None)
        if isinstance(convention, Convention):
            self.convention = convention

    def select(self, rows: Tensor) -> ClassifierFreeGuidance:
        if len(self.labels) == 1:
            return self
        some = copy.copy(self)
        some._buffers = {"labels": self.labels.index_select(0, rows)}
        return some

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """h (n, ...) at x (n, ...) and times (n,)."""
        n = len(x)
        if len(self.labels) not in (1, n):
            accepted = f"hold 1 label, or one per sample of the batch, {n}"
            wrong_value("ClassifierFreeGuidance", "labels", accepted, len(self.labels))
        labels = self.labels.expand(n)
        null = torch.full_like(labels, self.null)
        if self.scale in (0, 1) and not self.rescale:
            return self._called(x, times, labels if self.scale else null)
        both = self._called(torch.cat([x, x]), torch.cat([times, times]), torch.cat([labels, null]))
        conditional, unconditional = both.to(accumulation_dtype(both.dtype)).chunk(2)
        guided = torch.lerp(unconditional, conditional, self.scale)
        if self.rescale:
            spread, target = (h.flatten(1).std(1).reshape(-1, *[1] * (x.ndim - 1)) for h in (guided, conditional))
            guided = guided * torch.lerp(torch.ones_like(spread), target / spread, self.rescale)
        return guided.to(both.dtype)

    def _called(self, x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        h = self.network(x, times, labels)
        if h.shape != x.shape:
            accepted = f"return a tensor like its input, {tuple(x.shape)}"
            wrong_value("ClassifierFreeGuidance", "network", accepted, tuple(h.shape))
        return h
