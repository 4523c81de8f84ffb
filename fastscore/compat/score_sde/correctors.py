"""The published correctors: names for the samplers, and objects whose `update_fn` makes its steps."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fastscore.compat.score_sde.sde import SDE, ScoreFn
from fastscore.ops import linear_step
from fastscore.samplers.base import check_choice
from fastscore.samplers.correctors import CORRECTORS
from fastscore.samplers.plan import LANGEVIN

__all__ = ["AnnealedLangevinDynamics", "Corrector", "LangevinCorrector", "NoneCorrector", "get_corrector"]


class Corrector:
    """A corrector.

    Args:
        sde: of `fastscore.compat.score_sde`.
        score_fn: ``score_fn(x, t)``, as of `get_score_fn`.
        snr: signal-to-noise ratio of a step, >= 0.
        n_steps: number of steps, >= 0.
    """

    row: ClassVar[str]  # its name in `fastscore.samplers.correctors`

    def __init__(self, sde: SDE, score_fn: ScoreFn, snr: float, n_steps: int) -> None:
        self.sde, self.score_fn, self.snr, self.n_steps = sde, score_fn, snr, n_steps

    def update_fn(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """All steps from x (B, ...) at t (B,): the new state, and the same without the noise of the last step."""
        correct, mean = CORRECTORS[self.row], x
        if correct is None:
            return x, mean
        update = correct(self.sde.engine, self.sde.engine_time(t).cpu(), self.sde.N, self.snr)
        factor = update.score_factor.to(x.device)
        for _ in range(self.n_steps):
            score, noise, step = self.score_fn(x, t), torch.randn_like(x), factor
            if update.kind == LANGEVIN:  # norms are means over the batch, as published
                step = factor * (_mean_norm(noise) / _mean_norm(score)) ** 2
            rows = torch.stack((torch.ones_like(step), step, (2 * step).sqrt()), -1)
            rows = rows.to(torch.promote_types(x.dtype, torch.float32))
            x, mean = linear_step(x, [score], rows, noise=noise), linear_step(x, [score], rows)
        return x, mean


class LangevinCorrector(Corrector):
    """Langevin dynamics, whose step comes from the norms of score and noise (arXiv 2011.13456, algorithms 4 and 5)."""

    row = "langevin"


class AnnealedLangevinDynamics(Corrector):
    """Langevin dynamics, whose step comes from the standard deviation at t."""

    row = "ald"


class NoneCorrector(Corrector):
    """Leaves the state as it is."""

    row = "none"


_BY_NAME: dict[str, type[Corrector]] = {
    "langevin": LangevinCorrector,
    "ald": AnnealedLangevinDynamics,
    "none": NoneCorrector,
}


def get_corrector(name: str) -> type[Corrector]:
    """The class registered as ``"langevin"``, ``"ald"`` or ``"none"``.

    Raises:
        ValueError: for another name.
    """
    check_choice("get_corrector", "name", name, tuple(_BY_NAME))
    return _BY_NAME[name]


def as_corrector(owner: str, given: type[Corrector] | str | None) -> type[Corrector]:
    """The class that is given, by itself or by name; None for none."""
    if given is None or isinstance(given, str):
        return get_corrector("none" if given is None else given)
    if given not in _BY_NAME.values():
        raise TypeError(f"{owner}: corrector must be one of {', '.join(_BY_NAME)}, its class or None, got {given!r}")
    return given


def _mean_norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v.flatten(1), dim=1, dtype=torch.float64).mean()
