"""How a plan is run as k-diffusion's loops do it: levels, network with extra arguments, callback, progress, noise."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.noise import Noise, PhiloxNoise
from fastscore.samplers.base import check_number
from fastscore.samplers.hooks import Hooks
from fastscore.samplers.loop import Run, checked_result, run_rows, tables
from fastscore.samplers.plan import Plan, Step
from fastscore.score import Convention
from fastscore.sde import VESDE

__all__ = [
    *("DENOISER", "Call", "Denoiser", "ExtraArgs", "Levels", "Report"),
    *("drawing", "progress", "range_of", "starts", "step_of_row"),
]

DENOISER = Convention("denoised", "sigma")
Denoiser = Callable[..., Tensor]  # model(x, sigma, **extra_args) -> the clean image; sigma (B,)
Report = Callable[[dict[str, Any]], object]  # what users give as callback
ExtraArgs = Mapping[str, Any] | None
Seen = Callable[[int, Tensor, Tensor], None]  # number of the step, state, clean image predicted there


@dataclass(frozen=True)
class Levels:
    """The noise levels of a run.

    Attributes:
        sigmas: as given, (n + 1,).
        values: the same on the host.
        sde: one with all positive levels at times in (0, 1].
        times: of the positive levels, float64.
        clean: whether the last level is 0.
    """

    sigmas: Tensor
    values: list[float]
    sde: VESDE
    times: Tensor
    clean: bool

    @classmethod
    def of(cls, owner: str, sigmas: object) -> Levels:
        """The levels of a tensor.

        Raises:
            TypeError, ValueError: it is not a floating-point tensor (n + 1,), n >= 1, finite, falling strictly, >= 0.
        """
        _checks.is_state(owner, "sigmas", sigmas)
        assert isinstance(sigmas, Tensor)
        values = sigmas.detach().to("cpu", torch.float64)
        falling = values.ndim == 1 and len(values) > 1 and bool((values.diff() < 0).all())
        if not falling or not bool(torch.isfinite(values).all()) or float(values[-1]) < 0:
            raise ValueError(
                f"{owner}: sigmas must have shape (n + 1,), n >= 1, be finite, fall strictly and end at 0 or above, "
                f"got {values.tolist() if values.ndim == 1 else f'shape {tuple(values.shape)}'}"
            )
        positive = values[values > 0]
        sde = _between(float(positive[-1]), float(positive[0]))
        times = sde.inverse_log_snr(-2 * positive.log()).clamp(max=1)
        return cls(sigmas, values.tolist(), sde, times, len(positive) < len(values))

    @property
    def options(self) -> dict[str, Any]:
        """What every sampler on these levels is made with."""
        steps = len(self.sigmas) - 1
        return {"steps": steps, "spacing": self.times, "denoise": self.clean, "convention": DENOISER}

    def ends(self, plan: Plan) -> list[tuple[Tensor, Tensor]]:
        """Where the step of every row begins, and the level that the row makes; 0-d each."""
        made = _levels_made(plan, self.sde).to(self.sigmas)
        return [
            (self.sigmas[i], made[k] if row.stage else self.sigmas[i + 1])
            for k, (i, row) in enumerate(zip(step_of_row(plan), plan.steps, strict=True))
        ]

    def ways(self, plan: Plan) -> list[float]:
        """How far that is."""
        made = _levels_made(plan, self.sde).tolist()
        return [self.values[i] - level for i, level in zip(step_of_row(plan), made, strict=True)]


def range_of(owner: str, sigma_min: float, sigma_max: float) -> tuple[VESDE, float]:
    """The SDE of a run from sigma_max to sigma_min, and the time of sigma_min.

    Raises:
        TypeError, ValueError: not ``0 < sigma_min < sigma_max``.
    """
    check_number(owner, "sigma_min", sigma_min, above=0.0)
    check_number(owner, "sigma_max", sigma_max, above=sigma_min)
    sde = _between(float(sigma_min), float(sigma_max))
    return sde, float(sde.inverse_log_snr(-2 * torch.tensor(sigma_min, dtype=torch.float64).log()))


def _between(sigma_min: float, sigma_max: float) -> VESDE:
    return VESDE(sigma_min / 2, sigma_max)  # samplers ask for a positive time at their end


def step_of_row(plan: Plan) -> list[int]:
    """The number of the step that every row belongs to; churn before the first step belongs to it."""
    numbers, now = [], 0
    for row in plan.steps:
        numbers.append(now)
        now += row.label is not None and not row.stage
    return numbers


def starts(plan: Plan) -> list[int]:
    """The rows with the first network call of a step."""
    rows = plan.steps
    return [k for k, row in enumerate(rows) if row.label is not None and (k == 0 or not rows[k - 1].stage)]


def _levels_made(plan: Plan, sde: VESDE) -> Tensor:
    """Of every row, float64."""
    levels = sde.sigma(torch.tensor([row.t_next for row in plan.steps], dtype=torch.float64))
    return torch.where(torch.tensor([row.t_next > 0 for row in plan.steps]), levels, 0.0)


def drawing(plan: Plan, where: Callable[[Step], bool]) -> Plan:
    """The plan whose rows draw noise where k-diffusion does, also noise without weight."""
    return Plan(tuple(replace(row, draws=where(row)) for row in plan.steps), plan.clip)


def progress(owner: str, total: int | None, disable: bool | None) -> AbstractContextManager[Any]:
    """A progress bar; None where `disable` is true. ``disable=None`` shows it on a terminal alone."""
    if disable:
        return nullcontext()
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(f"{owner}: a progress bar needs tqdm: pip install tqdm; or give disable=True") from error
    bar: AbstractContextManager[Any] = tqdm(total=total, disable=disable)
    return bar


@dataclass(frozen=True)
class Call:
    """What every function here is given.

    Attributes:
        owner: its name, for messages.
        model, x, extra_args, callback, disable: as given.
    """

    owner: str
    model: Denoiser
    x: Tensor
    extra_args: ExtraArgs
    callback: Report | None
    disable: bool | None

    def __post_init__(self) -> None:
        owner = self.owner
        if not callable(self.model):
            raise TypeError(f"{owner}: model must be callable as model(x, sigma), got {type(self.model).__name__}")
        _checks.is_state(owner, "x", self.x)
        if self.extra_args is not None and not isinstance(self.extra_args, Mapping):
            raise TypeError(f"{owner}: extra_args must be a dict or None, got {type(self.extra_args).__name__}")
        if self.callback is not None and not callable(self.callback):
            raise TypeError(f"{owner}: callback must be callable or None, got {type(self.callback).__name__}")

    def denoise(self, point: Tensor, sigma: Tensor) -> Tensor:
        """The network's clean image."""
        return self.model(point, sigma.to(self.x.dtype), **(self.extra_args or {}))

    def follow(self, plan: Plan, levels: Levels, noise: Noise | None = None) -> Tensor:
        """Run a plan on given levels."""
        callback, sigmas = self.callback, levels.sigmas
        if callback is None:
            return self.run(plan, levels.sde, noise, None)
        hats = levels.sde.sigma(torch.tensor([plan.steps[k].t for k in starts(plan)], dtype=torch.float64)).to(sigmas)

        def seen(i: int, x: Tensor, denoised: Tensor) -> None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": hats[i], "denoised": denoised})

        return self.run(plan, levels.sde, noise, seen)

    def run(
        self, plan: Plan, sde: VESDE, noise: Noise | None, seen: Seen | None, *, bar_of_calls: bool = False
    ) -> Tensor:
        """Follow a plan from a copy of x.

        Args:
            noise: of the rows that draw; None where none does.
            seen: called at the first network call of every step, before the state moves.
            bar_of_calls: the progress bar counts network calls, not steps.

        Raises:
            NonFiniteError: the result is not finite.
        """
        first, numbers, now = set(starts(plan)), step_of_row(plan), 0

        with torch.no_grad(), progress(self.owner, plan.nfe if bar_of_calls else len(first), self.disable) as bar:

            def rows() -> Iterator[Step]:
                nonlocal now
                for k, row in enumerate(plan.steps):
                    now = k
                    yield row
                    if bar is not None and row.label is not None and (bar_of_calls or not row.stage):
                        bar.update()

            def network(point: Tensor, sigma: Tensor) -> Tensor:
                denoised = self.denoise(point, sigma)
                if seen is not None and now in first:
                    seen(numbers[now], point.clone(), denoised)  # a copy: the state is overwritten
                return denoised

            source = noise or PhiloxNoise(0)
            given = Run(plan, network, self.x.detach().clone(), source, sde, False, Hooks(()), False, None, deque())
            run_rows(given, tables(given), rows())
            return checked_result(given.x)
