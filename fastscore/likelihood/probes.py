"""The random probes of a divergence estimate: drawn where they are used, or held."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.noise import Noise, PhiloxNoise
from fastscore.ops.hutchinson import KINDS, hutchinson, hutchinson_probe
from fastscore.reference.group_norm_silu import channels_last

__all__ = ["METHODS", "Probes"]

METHODS = ("hutchinson", "exact", "hutch++")


@dataclass(frozen=True)
class Probes:
    """K probes for each sample of a batch.

    Attributes:
        shape: (B, ...), that of the state.
        dtype: of the state.
        last: whether the samples of the state are stored with channels fastest.
        count: K.
        kind: "rademacher" or "gaussian".
        rng, samples: of `fastscore.ops.hutchinson`, for counter-based noise.
        held: the probes (K, B, ...), for other noise, else None.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    last: bool
    count: int
    kind: str
    rng: Tensor
    samples: Tensor
    held: Tensor | None

    @staticmethod
    def of(op: str, x: Tensor, noise: Noise, method: str, probes: int, kind: str, draw: int = 0) -> Probes:
        """Probes for x (B, ...), from draw number `draw` on; messages name `op`.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        if method not in METHODS:
            _checks.wrong_value(op, "method", f"be one of {', '.join(METHODS)}", repr(method))
        if isinstance(probes, bool) or not isinstance(probes, int):
            _checks.wrong_type(op, "probes", "be an int", type(probes).__name__)
        if probes < 1:
            _checks.wrong_value(op, "probes", "be at least 1", probes)
        if kind not in KINDS:
            _checks.wrong_value(op, "kind", f"be one of {', '.join(KINDS)}", repr(kind))
        count = {"hutchinson": probes, "exact": 0, "hutch++": 2 * probes}[method]
        held = None
        if not noise.counter_based and count:
            draw_one = noise.rademacher if kind == "rademacher" else noise.normal
            draws = range(draw, draw + count)
            held = torch.stack([draw_one(x.shape, dtype=x.dtype, device=x.device, draw=i) for i in draws])
        counters = noise if noise.counter_based else PhiloxNoise(0)
        rng, samples = counters.rng_table([draw], x.device)[0], counters.samples_for(len(x), x.device)
        return Probes(tuple(x.shape), x.dtype, channels_last(x), count, kind, rng, samples, held)

    def select(self, rows: Tensor) -> Probes:
        """Those of some rows (n,)."""
        held = None if self.held is None else self.held.index_select(1, rows)
        samples = self.samples.index_select(0, rows)
        return replace(self, shape=(len(rows), *self.shape[1:]), samples=samples, held=held)

    def tensor(self) -> Tensor:
        """The probes, (K, B, ...)."""
        if self.held is not None:
            return self.held
        return hutchinson_probe(
            self.shape, self.rng, self.samples, self.count, self.kind, self.dtype, channels_last=self.last
        )

    def products(self, images: Tensor) -> Tensor:
        """The products of each probe with its image under the Jacobian (K, B, ...): (K, B)."""
        if self.held is None:
            return hutchinson(images, self.rng, self.samples, self.kind)[1]
        terms = self.held.double() * images.double()
        products = terms.flatten(2).sum(2) if terms.dim() > 2 else terms
        return products.to(_checks.accumulation_dtype(self.dtype))
