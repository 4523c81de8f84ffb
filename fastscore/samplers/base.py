"""What all samplers share, and what every fixed-step sampler does with its plan: start, loop, check, return."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from fastscore.noise import Noise, as_noise
from fastscore.samplers.cuda_graph import StepGraph
from fastscore.samplers.hooks import Hook, Hooks
from fastscore.samplers.loop import Run, checked_result, run_rows, tables, with_progress
from fastscore.samplers.plan import Plan
from fastscore.samplers.table import Table
from fastscore.score import Convention, convention_of
from fastscore.sde import SDE, VESDE

__all__ = [
    "Callback",
    "FixedStepSampler",
    "SampleInfo",
    "Sampler",
    "check_choice",
    "check_count",
    "check_number",
    "evaluating",
]

Callback = Callable[[int, Any, Tensor], None]  # index, what was done (a Step, or a Trial), and the state


@dataclass(frozen=True)
class SampleInfo:
    """What a run did: network calls per sample, wall-clock seconds, and the plan it followed, if it had one."""

    nfe: int
    seconds: float
    plan: Plan | None = None


class Sampler(ABC):
    """What all samplers share: the model and how to read it, and where sampling starts and stops.

    Args:
        sde: the forward SDE; ``sde.until(t)`` for a sampler that begins at t, with a state that it is given.
        model: called as ``model(x, labels)`` with x of shape (B, ...) and labels of shape (B,); returns a tensor of
            x's shape.
        eps: the time at which sampling stops; by default the SDE's published one (1e-5 for VE, 1e-3 for VP and sub-VP,
            1 / N for N discrete levels).
        convention: how to read the model; by default ``model.convention``, or what was published with the SDE.

    Raises:
        ValueError, TypeError: for arguments outside what is listed, before any work is done.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        eps: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        name = type(self).__name__
        if not isinstance(sde, SDE):
            raise TypeError(
                f"{name}: sde must be a fastscore SDE (VESDE, VPSDE, SubVPSDE, DiscreteVPSDE), got {type(sde).__name__}"
            )
        if not callable(model):
            raise TypeError(f"{name}: model must be callable as model(x, labels), got {type(model).__name__}")
        if convention is not None and not isinstance(convention, Convention):
            raise TypeError(f"{name}: convention must be a fastscore.Convention, got {type(convention).__name__}")
        eps = sde.sampling_eps if eps is None else eps
        check_number(name, "eps", eps, above=0.0, below=sde.T)
        self.sde, self.model, self.eps = sde, model, float(eps)
        self.start = sde.T  # the time of the first state
        self.convention = convention or convention_of(model, sde)

    @torch.no_grad()
    def sample(
        self,
        shape_or_latent: Sequence[int] | Tensor,
        *,
        seed: int = 0,
        noise: Noise | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        hooks: Sequence[Hook] = (),
        check_finite: bool = False,
        progress: bool = False,
        callback: Callback | None = None,
        return_info: bool = False,
        cuda_graph: bool = False,
    ) -> Tensor | tuple[Tensor, SampleInfo]:
        """Draw samples.

        Args:
            shape_or_latent: the shape (B, ...) of the batch, started from the prior; or the state at t = 1 itself,
                left unchanged.
            seed: names the noise: sample i of a seed is the same on every machine and in every batch split.
            noise: where noise comes from, in place of seed: ``PhiloxNoise``, ``TorchNoise`` or ``ReplayNoise``.
            dtype, device: of the state; by default those of the latent, else float32 on the device of the model's
                parameters.
            hooks: `fastscore.samplers.Hook` objects, called in order before and after every step, at every clean
                image that the network predicts, and with the samples at the end.
            check_finite: look for NaN and infinity after every step, at the price of a host synchronization each; the
                result is always checked.
            progress: show a progress bar.
            callback: called as ``callback(index, step, x)`` after every row of the plan, with a state of its own.
            return_info: also return a `SampleInfo`.
            cuda_graph: capture a step as a CUDA graph and replay it, so that the host has nothing to do per step; kept
                for further runs on the same shape. For samplers with fixed steps on CUDA tensors, with counter-based
                noise, without hooks, callback and check_finite; the model must allow capture (static shapes, no value
                read on the host). The numbers are the same.

        Returns:
            Samples of shape (B, ...), on the scale of the data the model was trained on; with ``return_info`` a pair.

        Raises:
            ValueError, TypeError: for a bad argument, or a network output of another shape or device than the state.
            NonFiniteError: if the state is not finite; with ``check_finite`` it names the step and the time.
        """
        every = Hooks(hooks)
        x, source = self._start(shape_or_latent, seed, noise, dtype, device)
        if cuda_graph:
            self._check_graph(x, source, every, check_finite, callback)
        with evaluating(self.model):
            x, info = self._run(
                x,
                source,
                every,
                check_finite=check_finite,
                progress=progress,
                callback=callback,
                cuda_graph=cuda_graph,
            )
        x = every.at_end(x)
        return (x, info) if return_info else x

    @abstractmethod
    def _run(
        self,
        x: Tensor,
        noise: Noise,
        hooks: Hooks,
        *,
        check_finite: bool,
        progress: bool,
        callback: Callback | None,
        cuda_graph: bool,
    ) -> tuple[Tensor, SampleInfo]:
        """Sample from the state x, which may be overwritten."""

    def _check_graph(
        self, x: Tensor, noise: Noise, hooks: Hooks, check_finite: bool, callback: Callback | None
    ) -> None:
        """Raise unless the run can be captured."""
        name = type(self).__name__
        if not isinstance(self, FixedStepSampler):
            raise ValueError(f"{name}: cuda_graph must be False, as this sampler chooses its steps while it runs")
        if x.device.type != "cuda":
            raise ValueError(f"{name}: cuda_graph=True needs a state on a CUDA device, got one on {x.device}")
        if not noise.counter_based:
            raise ValueError(
                f"{name}: cuda_graph=True needs counter-based noise, PhiloxNoise, got {type(noise).__name__}"
            )
        for argument, given in (("hooks", hooks), ("callback", callback), ("check_finite", check_finite)):
            if given:
                raise ValueError(
                    f"{name}: {argument} cannot be used with cuda_graph=True: the host takes no part in a step"
                )

    def _start(
        self,
        shape_or_latent: Sequence[int] | Tensor,
        seed: int,
        noise: Noise | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> tuple[Tensor, Noise]:
        name = type(self).__name__
        source = as_noise(seed, noise)
        if isinstance(shape_or_latent, Tensor):
            latent = shape_or_latent
            if not latent.is_floating_point() or latent.ndim < 1:
                raise ValueError(
                    f"{name}: the latent must be a floating-point tensor of shape (B, ...), "
                    f"got {latent.dtype} of shape {tuple(latent.shape)}"
                )
            # a copy: the loop writes in place
            return latent.detach().to(device or latent.device, dtype or latent.dtype, copy=True), source
        shape = tuple(shape_or_latent)
        if not shape or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in shape):
            raise ValueError(f"{name}: the shape must be (B, ...) in integers >= 0, got {shape}")
        dtype = dtype or torch.float32
        if not dtype.is_floating_point:
            raise ValueError(f"{name}: dtype must be a floating-point type, got {dtype}")
        device = torch.device(device) if device is not None else _device_of(self.model)
        return self._first_state(shape, source, dtype, device), source

    def _first_state(self, shape: Sequence[int], noise: Noise, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw the state at `start`, of shape (B, ...): the prior."""
        x = self.sde.prior_sample(shape, noise=noise, dtype=dtype, device=device)
        if isinstance(self.sde, VESDE) and self.start < self.sde.T:
            x *= float(self.sde.sigma(self.start)) / self.sde.prior_std
        return x


class FixedStepSampler(Sampler):
    """A fixed-step sampler: a plan, computed on the host in float64, and one loop that runs it.

    Args:
        sde, model, eps, convention: see `Sampler`.
        steps: number of steps N.
        clip: the clean image that the network predicts is clipped to [-clip, clip] at every call; None: it is not.

    A sampler keeps the memory that it worked in, a few states, for its next run on the same shape.
    """

    norm = "batch"

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int,
        eps: float | None = None,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, eps=eps, convention=convention)
        name = type(self).__name__
        check_count(name, "steps", steps, 1)
        if clip is not None and not 0 < clip < math.inf:
            raise ValueError(f"{name}: clip must be a positive number or None, got {clip!r}")
        self.steps, self.clip = steps, clip
        self._plans: dict[bool, Plan] = {}
        self._buffers: dict[object, deque[Tensor]] = {}
        self._graphs: dict[object, StepGraph] = {}

    @abstractmethod
    def _tabulate(self, table: Table) -> None:
        """Write the rows down."""

    def plan(self) -> Plan:
        """The table of this sampler; ``print(sampler.plan())`` shows every coefficient."""
        return self._plan(denoised=False)

    def _plan(self, denoised: bool) -> Plan:
        if denoised not in self._plans:
            table = Table(self.sde, self.convention, denoised=denoised, clip=self.clip)
            self._tabulate(table)
            self._plans[denoised] = table.plan()
        return self._plans[denoised]

    def _run(
        self,
        x: Tensor,
        noise: Noise,
        hooks: Hooks,
        *,
        check_finite: bool,
        progress: bool,
        callback: Callback | None,
        cuda_graph: bool,
    ) -> tuple[Tensor, SampleInfo]:
        plan = self._plan(denoised=hooks.on_denoised_used)
        start = time.perf_counter()
        like = x.shape, x.stride(), x.dtype, x.device, x.is_inference()
        if cuda_graph:
            x = self._run_graph(plan, x, noise, like, progress)
            return checked_result(x), SampleInfo(plan.nfe, time.perf_counter() - start, plan)
        buffers = self._buffers.pop(like, deque())  # a run at the same time in another thread has its own
        per_sample = self.norm == "sample"
        run = Run(plan, self.model, x, noise, self.sde, per_sample, hooks, check_finite, callback, buffers)
        run_rows(run, tables(run), with_progress(plan.steps) if progress else plan.steps)
        self._buffers = {like: buffers}
        return checked_result(x), SampleInfo(plan.nfe, time.perf_counter() - start, plan)

    def _run_graph(self, plan: Plan, x: Tensor, noise: Noise, like: object, progress: bool) -> Tensor:
        graph = self._graphs.get(like)
        if graph is None or graph.run.model is not self.model:
            run = Run(plan, self.model, x, noise, self.sde, self.norm == "sample", Hooks(()), False, None, deque())
            given = tables(run)
            graph = StepGraph(run, given)
        else:
            graph.run.x.copy_(x)
            graph.run.noise = noise
            given = tables(graph.run)
        self._graphs = {}  # none that an error has left in between
        graph(given, with_progress if progress else iter)
        self._graphs = {like: graph}
        return graph.run.x.clone()


def check_count(owner: str, name: str, value: int, least: int) -> None:
    """Raise unless value is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{owner}: {name} must be at least {least}, got {value}")


def check_number(
    owner: str,
    name: str,
    value: float,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Raise unless value is a finite number, at least `least`, at most `most`, above `above` and below `below`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{owner}: {name} must be a number, got {value!r}")
    if math.isfinite(value) and least <= value <= most and above < value < below:
        return
    bounds = (("at least", least), ("above", above), ("at most", most), ("below", below))
    wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound))
    raise ValueError(f"{owner}: {name} must be a finite number{wanted and ' ' + wanted}, got {value!r}")


def check_choice(owner: str, name: str, value: object, known: Sequence[str]) -> None:
    """Raise unless value is one of the known names."""
    if value not in known:
        raise ValueError(f"{owner}: {name} must be one of {', '.join(known)}, got {value!r}")


def _device_of(model: object) -> torch.device:
    parameter = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Dropout off while sampling; the mode the caller had comes back."""
    if not (isinstance(model, nn.Module) and model.training):
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
