"""Samplers that choose their steps as they go: the loop, which decides on the device and drops arrived samples.

A trial makes a new state and an estimate of its error, in one norm per sample. Which samples accept it and how long
their next step is are tensors on the device; the host reads four counts per trial, once. With ``norm="sample"`` every
sample has its own time and step, and leaves the batch when it arrives, so that the network is not run for it any more.
"""

from __future__ import annotations

import time
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastscore.noise import Noise
from fastscore.samplers.base import Callback, SampleInfo, Sampler, check_choice, check_count, check_number
from fastscore.samplers.hooks import Hooks
from fastscore.samplers.loop import NonFiniteError, checked_result, with_progress
from fastscore.samplers.per_sample import Network, Points
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["SHRINK", "AdaptiveInfo", "AdaptiveSampler", "Proposal", "Running", "Trial"]

_SHORTEST = 10 * torch.finfo(torch.float64).eps  # of a step, relative to the time
SHRINK = 0.2  # a step whose error is not finite is tried again this much shorter


@dataclass(frozen=True)
class AdaptiveInfo(SampleInfo):
    """What a run did, per sample of the batch; tensors of shape (B,) on the device of the samples.

    Attributes:
        nfe: network calls, int64; their sum is the number of rows that the network was run on.
        accepted, rejected: trials, int64.
        finished: whether the sample arrived within the budget of trials.
        t: time of the state that is returned, float64.
    """

    nfe: Tensor  # type: ignore[assignment]
    accepted: Tensor = field(kw_only=True)
    rejected: Tensor = field(kw_only=True)
    finished: Tensor = field(kw_only=True)
    t: Tensor = field(kw_only=True)


@dataclass(frozen=True)
class Trial:
    """A trial as a callback sees it: one row per sample that was still under way.

    Attributes:
        name: of the solver.
        rows: the samples' rows in the batch, int64 (n,).
        t, t_next: where the trial began and where it went, float64 (n,).
        error: its error over the tolerance, float64 (n,).
        accepted: whether the samples went along, bool (n,).
    """

    name: str
    rows: Tensor
    t: Tensor
    t_next: Tensor
    error: Tensor
    accepted: Tensor


@dataclass
class Running:
    """The samples that are under way, one row each.

    Attributes:
        x: states (n, ...); hooks write to them.
        t: their times, float64 (n,).
        h: length that the controller wants for the next trial, float64 (n,), in the variable that the solver steps in.
        rows: rows of the batch, int64 (n,).
        noise: theirs.
        nfe, accepted: int64 (n,).
        control: what else the controller remembers, (n,) each.
        kept: tensors (n, ...) that belong to the state and are replaced with it.
        output: what the network gives at x and t, or None.
        stale: rows (m,) whose output is that of an earlier state, or None.
    """

    x: Tensor
    t: Tensor
    h: Tensor
    rows: Tensor
    noise: Noise
    nfe: Tensor
    accepted: Tensor
    control: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    output: Tensor | None = None
    stale: Tensor | None = None

    def select(self, index: Tensor, noise: Noise) -> Running:
        """Some of the rows; `stale` is left to the caller."""

        def pick(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, index)

        return Running(
            pick(self.x),
            pick(self.t),
            pick(self.h),
            pick(self.rows),
            noise,
            pick(self.nfe),
            pick(self.accepted),
            {name: pick(value) for name, value in self.control.items()},
            {name: pick(value) for name, value in self.kept.items()},
            None if self.output is None else pick(self.output),
        )


@dataclass(frozen=True)
class Proposal:
    """A step that a solver has tried.

    Attributes:
        x: the state after it (n, ...), in memory of its own.
        t: its time, float64 (n,).
        h: length of the step in the solver's variable, float64 (n,).
        error: norm of the estimated error over the tolerance, (n,).
        arrived: whether t is the end, bool (n,).
        calls: network calls beside the one at the state before.
        control, kept: new values of `Running.control` and `Running.kept` where the step is accepted.
        output: what the network gives at x, where the solver has it.
    """

    x: Tensor
    t: Tensor
    h: Tensor
    error: Tensor
    arrived: Tensor
    calls: int
    control: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    output: Tensor | None = None


class AdaptiveSampler(Sampler):
    """A sampler with adaptive steps.

    Args:
        sde, model, eps, convention: see `Sampler`.
        rtol, atol: relative and absolute tolerance, not negative, not both 0.
        norm: ``"sample"``: every sample has its own error norm and its own steps, and does not depend on its
            batchmates; ``"batch"``: one step for the whole batch, from the root mean square over all of it; some
            solvers take ``"max"``, the largest error norm of a sample.
        max_steps: budget of trials, at least 1. Samples that have not arrived by then are returned where they are, with
            a warning; `AdaptiveInfo` says which.
        denoise: one more network call at the end, which takes out the noise that is left.

    Rejected trials count as steps for hooks: `before_step` is called before every trial, `after_step` with the state
    after it, of which accepted rows are kept. A callback gets a `Trial` and the states of its rows.
    """

    norms: tuple[str, ...] = ("sample", "batch")
    solver: str
    scale: str  # of errors, "sum" or "max"; see `fastscore.ops.error_norm`

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        rtol: float,
        atol: float,
        norm: str,
        max_steps: int,
        denoise: bool,
        eps: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, eps=eps, convention=convention)
        name = type(self).__name__
        check_choice(name, "norm", norm, self.norms)
        check_count(name, "max_steps", max_steps, 1)
        check_number(name, "rtol", rtol, least=0.0)
        check_number(name, "atol", atol, least=0.0)
        if rtol == 0 and atol == 0:
            raise ValueError(f"{name}: rtol or atol must be positive, got 0 for both")
        self.rtol, self.atol, self.norm = float(rtol), float(atol), norm
        self.max_steps, self.denoise = max_steps, bool(denoise)
        # a label without a level in the schedule is found here
        self.convention.labels(sde, torch.tensor([sde.T], dtype=torch.float64))

    @abstractmethod
    def _begin(self, run: Running, net: Network) -> None:
        """Set `run.h` and whatever the solver keeps."""

    @abstractmethod
    def _propose(self, run: Running, net: Network, index: int) -> Proposal:
        """Try a step from every state, at most `run.h` long."""

    @abstractmethod
    def _decide(self, run: Running, proposal: Proposal, error: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows accept, bool (n,), and the length of their next step, float64 (n,); updates `run.control`."""

    def _clean_rows(self, points: Points) -> tuple[Tensor, Tensor]:
        """``(p, q)``, (n,) each, of the final denoising ``p x + q h``, from points of target ``"denoised"``."""
        return points.p[0], points.q[0]

    def _shared(self, error: Tensor) -> Tensor:
        """Error norms of the samples (n,), in float64; all the same where the batch shares its step."""
        error = error.to(torch.float64)
        if self.norm == "sample":
            return error
        return (error.amax() if self.norm == "max" else error.square().mean().sqrt()).expand_as(error)

    def _output(self, run: Running, net: Network, points: Points, index: int) -> Tensor:
        """What the network gives at the states; called for those rows alone that have a new one."""
        if run.output is None:
            run.output = net(run.x, points, 0, index, run.rows)
            run.nfe = run.nfe + 1
        elif run.stale is not None:
            some, rows = points.select(run.stale), run.rows.index_select(0, run.stale)
            new = net(run.x.index_select(0, run.stale), some, 0, index, rows)
            run.output = run.output.index_copy(0, run.stale, new)
            run.nfe = run.nfe.index_add(0, run.stale, torch.ones_like(run.stale))
        run.stale = None
        return run.output

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
    ) -> tuple[Tensor, AdaptiveInfo]:
        start = time.perf_counter()
        tolerance = self.atol, self.rtol, self.scale
        net = Network(self.solver, self.model, self.sde, self.convention, hooks, noise, x, tolerance)
        done = _Done(x)
        run = _started(x, self.sde.T, net.noise)
        budget = self.max_steps if len(x) else 0
        if budget:
            self._begin(run, net)
        steps = iter(range(budget))
        index = -1
        for index in with_progress(steps) if progress else steps:
            if hooks.states_used:
                hooks.before_step(run.x, net.moment(index, run.t, run.rows))
                run.output = None
            proposal = self._propose(run, net, index)
            run.nfe = run.nfe + proposal.calls
            error = self._shared(proposal.error)
            accept, run.h = self._decide(run, proposal, error)
            if hooks.states_used:
                hooks.after_step(proposal.x, net.moment(index, proposal.t, run.rows))
            arrived, bad = accept & proposal.arrived, ~torch.isfinite(error)
            stuck = ~accept & ~(run.h >= _SHORTEST * run.t)  # a step that is not a number, too
            failed = bad if check_finite else bad & stuck
            # the one read of this trial
            counts = torch.stack((accept, arrived, stuck, failed)).sum(1).tolist()
            if counts[3]:
                raise NonFiniteError(self._non_finite(index, run, failed))
            trial = Trial(self.solver, run.rows, run.t, proposal.t, error, accept)
            _commit(run, proposal, accept, counts[0])
            if callback is not None:
                callback(index, trial, run.x.clone())
            leaving = counts[1] + counts[2]
            if leaving:
                gone = arrived | stuck
                done.take(run, index + 1, arrived, counts[1], gone, leaving)
                if leaving == len(accept):
                    break
                left = _indices(~gone, len(accept) - leaving)
                rows = run.rows.index_select(0, left)
                run, accept = run.select(left, net.noise_of(rows)), accept.index_select(0, left)
            if proposal.output is None and run.output is not None:
                _mark_stale(run, accept, counts[0] - counts[1])
        else:
            if budget:
                nobody = torch.zeros_like(run.rows, dtype=torch.bool)
                done.take(run, budget, nobody, 0, ~nobody, len(run.rows))
        if self.denoise and done.arrived:
            self._denoise(done, net, index + 1)
        if done.arrived < len(x):
            self._warn(done)
        return checked_result(done.x), done.info(time.perf_counter() - start)

    def _denoise(self, done: _Done, net: Network, index: int) -> None:
        """One more call for the samples that have arrived."""
        rows = _indices(done.finished, done.arrived)
        everybody = done.arrived == len(done.x)
        x, t = (done.x, done.t) if everybody else (done.x.index_select(0, rows), done.t.index_select(0, rows))
        points = net.points(t[None], "denoised")
        p, q = self._clean_rows(points)
        clean = net.linear_step(x, [net(x, points, 0, index, rows)], net.rows(p, q))
        done.x = clean if everybody else done.x.index_copy(0, rows, clean)
        done.nfe = done.nfe + done.finished

    def _non_finite(self, index: int, run: Running, failed: Tensor) -> str:
        at = float(run.t[failed].max())
        return (
            f"{type(self).__name__}: the error of trial {index} from t = {at:.6g} is not finite: "
            "the network's output or the state is not"
        )

    def _warn(self, done: _Done) -> None:
        times = done.t[~done.finished]
        warnings.warn(
            f"{type(self).__name__}: {len(times)} of {len(done.x)} samples have not reached t = {self.eps:g} within "
            f"{self.max_steps} trials (max_steps), or need steps too short to move; they are returned as they are, at "
            f"t from {float(times.min()):.4g} to {float(times.max()):.4g}",
            RuntimeWarning,
            stacklevel=5,
        )


class _Done:
    """The samples that have left, in the order of the batch.

    Attributes:
        x, t: their states and times.
        arrived: how many of them arrived; the others were given up.
        nfe, accepted, trials, finished: see `AdaptiveInfo`.
    """

    def __init__(self, x: Tensor) -> None:
        zeros = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        self.x, self.t, self.arrived, self.left = x, zeros.double(), 0, 0
        self.nfe = self.accepted = self.trials = zeros
        self.finished = zeros.bool()

    def take(self, run: Running, trials: int, arrived: Tensor, arrivals: int, gone: Tensor, count: int) -> None:
        """Take over the `count` rows of a run that are `gone`; `arrivals` of them have `arrived`."""
        if self.left == 0:
            self.x = run.x if count == len(self.x) else torch.empty_like(run.x)
        index = _indices(gone, count)
        rows = run.rows.index_select(0, index)
        if self.x is not run.x:
            self.x.index_copy_(0, rows, run.x.index_select(0, index))
        self.t = self.t.index_copy(0, rows, run.t.index_select(0, index))
        self.nfe = self.nfe.index_copy(0, rows, run.nfe.index_select(0, index))
        self.accepted = self.accepted.index_copy(0, rows, run.accepted.index_select(0, index))
        self.trials = self.trials.index_fill(0, rows, trials)
        self.finished = self.finished.index_copy(0, rows, arrived.index_select(0, index))
        self.arrived, self.left = self.arrived + arrivals, self.left + count

    def info(self, seconds: float) -> AdaptiveInfo:
        """What is told of the run."""
        return AdaptiveInfo(
            self.nfe,
            seconds,
            accepted=self.accepted,
            rejected=self.trials - self.accepted,
            finished=self.finished,
            t=self.t,
        )


def _started(x: Tensor, t: float, noise: Noise) -> Running:
    batch = x.shape[0]
    rows = torch.arange(batch, device=x.device)
    times = torch.full((batch,), t, dtype=torch.float64, device=x.device)
    zeros = torch.zeros_like(rows)
    return Running(x, times, torch.zeros_like(times), rows, noise, zeros, zeros)


def _commit(run: Running, proposal: Proposal, accept: Tensor, accepted: int) -> None:
    """Let the rows that accept go along; all or none of them cost no copy."""
    run.accepted = run.accepted + accept
    if accepted == 0:
        return
    everybody = accepted == len(accept)

    def merged(new: Tensor, old: Tensor | None) -> Tensor:
        if everybody or old is None:
            return new
        return torch.where(accept.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    run.x, run.t = merged(proposal.x, run.x), merged(proposal.t, run.t)
    run.control |= {name: merged(new, run.control.get(name)) for name, new in proposal.control.items()}
    run.kept |= {name: merged(new, run.kept.get(name)) for name, new in proposal.kept.items()}
    if proposal.output is not None:
        run.output = merged(proposal.output, run.output)


def _mark_stale(run: Running, accept: Tensor, accepted: int) -> None:
    """The rows that moved on need the network again."""
    if accepted == len(accept):
        run.output = None
    elif accepted:
        run.stale = _indices(accept, accepted)


def _indices(mask: Tensor, count: int) -> Tensor:
    """Where a mask is true, in order; how often that is, is known, so the host need not wait."""
    return (~mask).to(torch.uint8).argsort(stable=True)[:count]
