"""The published predictors: names for the samplers, and objects whose `update_fn` makes one step."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fastscore.compat.score_sde.sde import SDE, ScoreFn, subVPSDE
from fastscore.ops import linear_step
from fastscore.samplers.base import check_choice
from fastscore.samplers.predictors import PREDICTORS

__all__ = [
    *("AncestralSamplingPredictor", "EulerMaruyamaPredictor", "NonePredictor", "Predictor"),
    *("ReverseDiffusionPredictor", "get_predictor"),
]


class Predictor:
    """A predictor.

    Args:
        sde: of `fastscore.compat.score_sde`.
        score_fn: ``score_fn(x, t)``, as of `get_score_fn`.
        probability_flow: follow the probability-flow ODE, without noise.
    """

    row: ClassVar[str]  # its name in `fastscore.samplers.predictors`

    def __init__(self, sde: SDE, score_fn: ScoreFn, probability_flow: bool = False) -> None:
        self.sde, self.score_fn, self.probability_flow = sde, score_fn, probability_flow

    def update_fn(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """One step from x (B, ...) at t (B,): the new state, and the same without its noise."""
        step = PREDICTORS[self.row]
        if step is None:
            return x, x
        update = step(self.sde.engine, self.sde.engine_time(t).cpu(), self.sde.N, self.probability_flow)
        columns = update.x_factor, update.score_factor, update.noise_factor
        rows = torch.stack(columns, -1).to(x.device, torch.promote_types(x.dtype, torch.float32))
        score = self.score_fn(x, t)
        return linear_step(x, [score], rows, noise=torch.randn_like(x)), linear_step(x, [score], rows)


class EulerMaruyamaPredictor(Predictor):
    """Euler-Maruyama with step 1 / N."""

    row = "euler_maruyama"


class ReverseDiffusionPredictor(Predictor):
    """The chain of N steps run backward."""

    row = "reverse_diffusion"


class AncestralSamplingPredictor(Predictor):
    """Ancestral sampling of DDPM (VP) and SMLD (VE).

    Raises:
        NotImplementedError: for sub-VP.
        ValueError: with probability_flow.
    """

    row = "ancestral"

    def __init__(self, sde: SDE, score_fn: ScoreFn, probability_flow: bool = False) -> None:
        super().__init__(sde, score_fn, probability_flow)
        if isinstance(sde, subVPSDE):
            raise NotImplementedError("AncestralSamplingPredictor: sde must be VESDE or VPSDE, got subVPSDE")
        if probability_flow:
            raise ValueError("AncestralSamplingPredictor: probability_flow must be False, got True")


class NonePredictor(Predictor):
    """Leaves the state as it is."""

    row = "none"


_BY_NAME: dict[str, type[Predictor]] = {
    "euler_maruyama": EulerMaruyamaPredictor,
    "reverse_diffusion": ReverseDiffusionPredictor,
    "ancestral_sampling": AncestralSamplingPredictor,
    "none": NonePredictor,
}


def get_predictor(name: str) -> type[Predictor]:
    """The class registered as ``"euler_maruyama"``, ``"reverse_diffusion"``, ``"ancestral_sampling"`` or ``"none"``.

    Raises:
        ValueError: for another name.
    """
    check_choice("get_predictor", "name", name, tuple(_BY_NAME))
    return _BY_NAME[name]


def as_predictor(owner: str, given: type[Predictor] | str | None) -> type[Predictor]:
    """The class that is given, by itself or by name; None for none."""
    if given is None or isinstance(given, str):
        return get_predictor("none" if given is None else given)
    if given not in _BY_NAME.values():
        raise TypeError(f"{owner}: predictor must be one of {', '.join(_BY_NAME)}, its class or None, got {given!r}")
    return given
