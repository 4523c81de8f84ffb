"""A network as a function of continuous time that predicts noise, with guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastscore.compat.dpm_solver.schedule import NoiseScheduleVP
from fastscore.samplers.base import check_choice, check_number
from fastscore.score import Convention

__all__ = ["NoisePrediction", "model_wrapper"]

PREDICTIONS = {"noise": "noise", "x_start": "denoised", "v": "v", "score": "score"}
GUIDANCE = ("uncond", "classifier", "classifier-free")
TIMESTEPS = 1000  # labels of "discrete" lie in [0, 1000) for any number of levels

Function = Callable[[Tensor, Tensor], Tensor]


class NoisePrediction:
    """A function ``(x, t) -> noise`` of a state (B, ...) and times (B,) or (1,).

    `DPM_Solver` does not call it: it calls `network` and folds the conversion to noise into its own coefficients.

    Args:
        network: ``(x, label) -> h``.
        convention: what h and label are.
        noise_schedule: the schedule that the conversion is by.
    """

    def __init__(self, network: Function, convention: Convention, noise_schedule: NoiseScheduleVP) -> None:
        self.network, self.convention, self.noise_schedule = network, convention, noise_schedule

    def __call__(self, x: Tensor, t_continuous: Tensor) -> Tensor:
        sde, shape = self.noise_schedule.sde, (-1, *[1] * (x.ndim - 1))
        t = t_continuous.to(torch.float64).reshape(-1).expand(len(x))
        h = self.network(x, self.convention.labels(sde, t).to(t_continuous.dtype))
        p, q = (value.to(x.dtype).reshape(shape) for value in self.convention.coefficients(sde, t, "noise"))
        return p * x + q * h


def model_wrapper(
    model: Callable[..., Tensor],
    noise_schedule: NoiseScheduleVP,
    model_type: str = "noise",
    model_kwargs: Mapping[str, Any] | None = None,
    guidance_type: str = "uncond",
    condition: Tensor | None = None,
    unconditional_condition: Tensor | None = None,
    guidance_scale: float = 1.0,
    classifier_fn: Callable[..., Tensor] | None = None,
    classifier_kwargs: Mapping[str, Any] | None = None,
) -> NoisePrediction:
    """Make a network a noise prediction in continuous time.

    Args:
        model: ``model(x, t_input, **model_kwargs)``, with classifier-free guidance ``model(x, t_input, condition,
            **model_kwargs)``, of x (B, ...) and t_input (B,): ``1000 (t - 1 / N)`` with a discrete schedule, where it
            may be fractional, else t.
        noise_schedule: a `NoiseScheduleVP`.
        model_type: what model returns: ``"noise"``, ``"x_start"``, ``"v"`` or ``"score"``.
        model_kwargs: further arguments of model.
        guidance_type: ``"uncond"``; ``"classifier"``: scale times the gradient of classifier_fn is added to the score
            (arXiv 2105.05233); ``"classifier-free"``: one call of twice the batch, for ``u + scale (c - u)`` of the
            predictions u without and c with the condition (arXiv 2207.12598).
        condition, unconditional_condition: what the network or the classifier is told, (B, ...). Without
            unconditional_condition, or with a scale of 1, classifier-free guidance calls the network with the
            condition alone.
        guidance_scale: scale.
        classifier_fn: ``classifier_fn(x, t_input, condition, **classifier_kwargs)``, log-probabilities (B,).
        classifier_kwargs: further arguments of classifier_fn.

    Raises:
        TypeError, ValueError: for arguments outside what is listed, or ones that the guidance needs and are missing.
    """
    name = "model_wrapper"
    if not callable(model):
        raise TypeError(f"{name}: model must be callable as model(x, t_input), got {type(model).__name__}")
    if not isinstance(noise_schedule, NoiseScheduleVP):
        raise TypeError(f"{name}: noise_schedule must be a NoiseScheduleVP, got {type(noise_schedule).__name__}")
    check_choice(name, "model_type", model_type, tuple(PREDICTIONS))
    check_choice(name, "guidance_type", guidance_type, GUIDANCE)
    check_number(name, "guidance_scale", guidance_scale)
    discrete = noise_schedule.schedule == "discrete"
    prediction = PREDICTIONS[model_type]
    convention = Convention(prediction, "timestep", TIMESTEPS) if discrete else Convention(prediction, "time")
    kwargs = dict(model_kwargs or {})

    def told(x: Tensor, t_input: Tensor, cond: Tensor | None = None) -> Tensor:
        return model(x, t_input, **kwargs) if cond is None else model(x, t_input, cond, **kwargs)

    if guidance_type == "classifier":
        if classifier_fn is None:
            raise ValueError(f"{name}: guidance_type='classifier' needs classifier_fn, got None")
        plain = NoisePrediction(told, convention, noise_schedule)
        log_prob = classifier_fn
        options = dict(classifier_kwargs or {})

        def guided(x: Tensor, t: Tensor) -> Tensor:
            t_input = convention.labels(noise_schedule.sde, t).to(t.dtype)
            with torch.enable_grad():
                at = x.detach().requires_grad_(True)
                (gradient,) = torch.autograd.grad(log_prob(at, t_input, condition, **options).sum(), at)
            sigma = noise_schedule.marginal_std(t).reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
            return plain(x, t) - guidance_scale * sigma * gradient

        return NoisePrediction(guided, Convention("noise", "time"), noise_schedule)

    if guidance_type == "uncond":
        return NoisePrediction(told, convention, noise_schedule)
    if guidance_scale == 1 or unconditional_condition is None:
        return NoisePrediction(lambda x, t_input: told(x, t_input, condition), convention, noise_schedule)
    if condition is None:
        raise ValueError(f"{name}: guidance_type='classifier-free' needs condition, got None")
    conditions = torch.cat([unconditional_condition, condition])

    def both(x: Tensor, t_input: Tensor) -> Tensor:
        # what is predicted is affine in the output with the same weights, so outputs are combined in its place
        without, with_condition = told(torch.cat([x, x]), torch.cat([t_input, t_input]), conditions).chunk(2)
        return torch.lerp(without, with_condition, guidance_scale)

    return NoisePrediction(both, convention, noise_schedule)
