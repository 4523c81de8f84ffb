"""The published samplers: functions of a network that give samples and the number of network calls."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.compat.score_sde.correctors import Corrector, as_corrector
from fastscore.compat.score_sde.predictors import Predictor, as_predictor
from fastscore.compat.score_sde.score import Model, checked_model, convention_of, get_score_fn
from fastscore.compat.score_sde.sde import SDE, like
from fastscore.noise import TorchNoise
from fastscore.samplers import PCSampler, RK45Sampler
from fastscore.samplers.adaptive import AdaptiveInfo
from fastscore.samplers.base import FixedStepSampler, check_count, evaluating
from fastscore.samplers.grid import nodes
from fastscore.samplers.predictors import reverse_diffusion
from fastscore.samplers.table import Table
from fastscore.score import Convention

__all__ = [
    *("DriftAsScore", "check_sde", "get_ode_sampler", "get_pc_sampler", "get_sampling_fn", "pc_engine", "with_model"),
]

PCFunction = Callable[[Model], tuple[Tensor, int]]
Result = tuple[Tensor, AdaptiveInfo]


class ODEFunction(Protocol):
    """Samples by the ODE solver."""

    def __call__(self, model: Model, z: Tensor | None = None) -> tuple[Tensor, int]:
        """Samples (B, ...) and network calls; z (B, ...): the state at t = 1, else drawn from the prior."""


def get_sampling_fn(
    config: Any, sde: SDE, shape: Sequence[int], inverse_scaler: Callable[[Tensor], Tensor], eps: float
) -> PCFunction | ODEFunction:
    """The sampler that a configuration asks for, `get_pc_sampler` or `get_ode_sampler`.

    Args:
        config: with ``sampling.method``, ``"pc"`` or ``"ode"``, ``sampling.noise_removal`` and ``device``; and for
            ``"pc"`` with ``sampling.predictor``, ``corrector``, ``snr``, ``n_steps_each`` and ``probability_flow``,
            and ``training.continuous``.
        sde, shape, inverse_scaler, eps: see `get_pc_sampler`.

    Raises:
        ValueError, TypeError: for another method, and as the two functions do.
    """
    sampling, method = config.sampling, config.sampling.method
    if str(method).lower() == "ode":
        return get_ode_sampler(
            sde, shape, inverse_scaler, denoise=sampling.noise_removal, eps=eps, device=config.device
        )
    if str(method).lower() == "pc":
        return get_pc_sampler(
            sde,
            shape,
            sampling.predictor.lower(),
            sampling.corrector.lower(),
            inverse_scaler,
            sampling.snr,
            n_steps=sampling.n_steps_each,
            probability_flow=sampling.probability_flow,
            continuous=config.training.continuous,
            denoise=sampling.noise_removal,
            eps=eps,
            device=config.device,
        )
    raise ValueError(f"get_sampling_fn: config.sampling.method must be 'pc' or 'ode', got {method!r}")


def get_pc_sampler(
    sde: SDE,
    shape: Sequence[int],
    predictor: type[Predictor] | str | None,
    corrector: type[Corrector] | str | None,
    inverse_scaler: Callable[[Tensor], Tensor],
    snr: float,
    n_steps: int = 1,
    probability_flow: bool = False,
    continuous: bool = False,
    denoise: bool = True,
    eps: float = 1e-3,
    device: torch.device | str = "cuda",
) -> PCFunction:
    """Predictor-corrector sampling with ``sde.N`` steps from t = 1 to eps.

    Args:
        sde: of `fastscore.compat.score_sde`.
        shape: of a batch, (B, ...).
        predictor, corrector: a class, or the name it is registered as; None for none.
        inverse_scaler: from the scale of the network to that of the data.
        snr: signal-to-noise ratio of the corrector's steps, >= 0.
        n_steps: corrector steps per time, >= 0.
        probability_flow: follow the probability-flow ODE in the predictor.
        continuous: whether the network was trained on continuous times.
        denoise: leave out the noise of the last predictor step.
        eps: the time at which sampling stops.
        device: of the samples and of the network.

    Returns:
        ``pc_sampler(model)``, which gives the samples and ``N (n_steps + 1)``.

    Raises:
        ValueError, TypeError: for other arguments, here, or for another network, there.
        NotImplementedError: for `AncestralSamplingPredictor` with sub-VP.
    """
    owner = "get_pc_sampler"
    shape, place = _checked(owner, sde, shape, inverse_scaler, device)
    prepared = pc_engine(owner, sde, predictor, corrector, snr, n_steps, probability_flow, continuous, denoise, eps)

    def pc_sampler(model: Model) -> tuple[Tensor, int]:
        sampler = with_model(owner, prepared, model)
        x = cast(Tensor, sampler.sample(sde.prior_sampling(shape).to(place), noise=TorchNoise()))
        return inverse_scaler(x), sde.N * (n_steps + 1)

    return pc_sampler


def pc_engine(
    owner: str,
    sde: SDE,
    predictor: type[Predictor] | str | None,
    corrector: type[Corrector] | str | None,
    snr: float,
    n_steps: int,
    probability_flow: bool,
    continuous: bool,
    denoise: bool,
    eps: float,
) -> PCSampler:
    """The sampler of `get_pc_sampler`, whose arguments these are, without a network."""
    predict, correct = as_predictor(owner, predictor), as_corrector(owner, corrector)
    predict(sde, _unused, probability_flow)
    check_count(owner, "n_steps", n_steps, 0)
    return PCSampler(
        sde.engine,
        _unused,
        predict.row,
        correct.row,
        snr=snr,
        steps=sde.N,
        corrector_steps=n_steps,
        probability_flow=probability_flow,
        eps=eps,
        denoise=denoise,
        convention=convention_of(sde, continuous),
    )


def with_model(owner: str, prepared: PCSampler, model: Model) -> PCSampler:
    """The sampler, with its table, around a network."""
    sampler = copy.copy(prepared)
    sampler.model = checked_model(owner, model)
    return sampler


def get_ode_sampler(
    sde: SDE,
    shape: Sequence[int],
    inverse_scaler: Callable[[Tensor], Tensor],
    denoise: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "RK45",
    eps: float = 1e-3,
    device: torch.device | str = "cuda",
) -> ODEFunction:
    """The probability-flow ODE from t = 1 to eps by Dormand-Prince 5(4), for networks of continuous times.

    The state is float64 and the drift float32, as published. Where rtol is as small as the rounding of the drift, that
    rounding decides the steps, and the number of calls can be another.

    Args:
        sde, shape, inverse_scaler, eps, device: see `get_pc_sampler`.
        denoise: take out the noise that is left by the mean of a reverse-diffusion step, with one more network call
            that is not counted.
        rtol, atol: relative and absolute tolerance.
        method: ``"RK45"``.

    Returns:
        ``ode_sampler(model, z=None)``, which gives float32 samples and the number of network calls of the solver; z is
        the state at t = 1, drawn from the prior if None.

    Raises:
        ValueError, TypeError: for other arguments, here, or for another network or z, there.
    """
    owner = "get_ode_sampler"
    shape, place = _checked(owner, sde, shape, inverse_scaler, device)
    if method != "RK45":
        raise ValueError(f"{owner}: method must be 'RK45', got {method!r}")
    # what they refuse is refused now
    _solver(sde, _unused, rtol, atol, eps)
    if denoise:
        _LastStep(sde, _unused, eps).plan()

    @torch.no_grad()
    def ode_sampler(model: Model, z: Tensor | None = None) -> tuple[Tensor, int]:
        solver = _solver(sde, checked_model(owner, model), rtol, atol, eps)
        if z is not None:
            _checks.is_state(owner, "z", z)
            if z.shape != shape:
                _checks.wrong_value(owner, "z", f"have shape {shape}", tuple(z.shape))
        x = (sde.prior_sampling(shape) if z is None else z).to(place)
        with evaluating(model):
            # without a limit on trials, NaN must end the run
            x, info = cast(Result, solver.sample(x.double(), check_finite=True, return_info=True))
        x = x.float()
        if denoise:
            x = cast(Tensor, _LastStep(sde, model, eps).sample(x, noise=TorchNoise()))
        return inverse_scaler(x), int(info.nfe[0]) if len(x) else 0

    return ode_sampler


class DriftAsScore:
    """The score for which the engine, in float64, has the drift of the ODE as computed in float32.

    Which steps the solver takes depends on that rounding.
    """

    def __init__(self, sde: SDE, model: Model) -> None:
        self.engine = sde.engine
        self.flow = sde.reverse(get_score_fn(sde, model, continuous=True), probability_flow=True)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        drift, _ = self.flow.sde(x.float(), t.float())
        g = self.engine.diffusion(t)
        return 2 * (self.engine.drift(x, t) - drift.double()) / like(x, g.square())


class _LastStep(FixedStepSampler):
    """The mean of the chain's reverse step at eps; its noise is drawn, as published, and not used."""

    def __init__(self, sde: SDE, model: Model, eps: float) -> None:
        super().__init__(sde.engine, model, steps=1, eps=eps, convention=convention_of(sde, continuous=True))
        self.chain = sde.N

    def _tabulate(self, table: Table) -> None:
        time = torch.tensor([self.eps], dtype=torch.float64)
        (node,) = nodes(self.sde, time)
        ((x, score, _),) = reverse_diffusion(self.sde, time, self.chain, False).rows()
        table.step(x * table.x + score * table.evaluate("score", node), node, draws=True, name="denoise")


def _solver(sde: SDE, model: Model, rtol: float, atol: float, eps: float) -> RK45Sampler:
    return RK45Sampler(
        sde.engine,
        DriftAsScore(sde, model),
        rtol=rtol,
        atol=atol,
        norm="batch",
        max_steps=sys.maxsize,  # as published
        eps=eps,
        convention=Convention("score", "time"),
    )


def _checked(
    owner: str, sde: SDE, shape: Sequence[int], inverse_scaler: object, device: torch.device | str
) -> tuple[tuple[int, ...], torch.device]:
    """Shape and device, of arguments that are accepted."""
    check_sde(owner, sde, inverse_scaler)
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in sizes):
        raise ValueError(f"{owner}: shape must be (B, ...) in integers >= 0, got {shape!r}")
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{owner}: device must be one that torch sees, got {str(device)!r} without a CUDA device")
    return sizes, place


def check_sde(owner: str, sde: object, inverse_scaler: object) -> None:
    """Raise unless these are an SDE of ours and a function."""
    if not isinstance(sde, SDE):
        raise TypeError(f"{owner}: sde must be an SDE of fastscore.compat.score_sde, got {type(sde).__name__}")
    if not callable(inverse_scaler):
        raise TypeError(f"{owner}: inverse_scaler must be callable, got {type(inverse_scaler).__name__}")


def _unused(x: Tensor, labels: Tensor) -> Tensor:
    """Stands for the network while arguments are checked."""
    raise AssertionError
