"""DPM-Solver with adaptive steps in the log signal-to-noise ratio."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscore.samplers.adaptive import SHRINK, AdaptiveSampler, Proposal, Running
from fastscore.samplers.base import check_choice, check_number
from fastscore.samplers.per_sample import Network, constant, folded
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["DPMSolverAdaptive", "PIDController"]

_ALGORITHMS = ("dpmsolver", "dpmsolver++")
_RATIOS = {2: (0.5,), 3: (1 / 3, 2 / 3)}  # of the step, where the points between lie


@dataclass(frozen=True)
class PIDController:
    """Proportional-integral-derivative control of the step, as k-diffusion has it.

    With e_n = error + 1e-8 of this trial and e_{n-1}, e_{n-2} of the last accepted ones, and k the order,
    ``u = e_n^(-(P + I + D) / k) e_{n-1}^((P + 2 D) / k) e_{n-2}^(-D / k)`` is limited to ``w = 1 + atan(u - 1)``; the
    trial is accepted where w >= accept_safety, and the next step is w times as long.

    Args:
        pcoeff, icoeff, dcoeff: P, I and D.
        accept_safety: positive, below 1 + pi / 2.

    Source: Soederlind, "Digital filters in adaptive time-stepping", ACM TOMS 29 (2003); the limiter: Soederlind and
    Wang, J. Comput. Appl. Math. 185 (2006).
    """

    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: float = 0.81

    def __post_init__(self) -> None:
        for name in ("pcoeff", "icoeff", "dcoeff"):
            check_number("PIDController", name, getattr(self, name))
        check_number("PIDController", "accept_safety", self.accept_safety, above=0.0, below=2.57)


class DPMSolverAdaptive(AdaptiveSampler):
    """DPM-Solver-12 or -23: two solvers of neighboring orders share their network calls and judge each other.

    Steps are taken in lambda = log(alpha / sigma). A trial costs `order` network calls, and one less after a rejection,
    as the call at the state is kept. The error is the root mean square of (x_high - x_low) / delta, where delta =
    max(atol, rtol max(|x_low|, |x_previous|)) and x_previous is the lower-order solution of the last accepted step.

    Args:
        sde, model, max_steps, eps, convention: see `AdaptiveSampler`.
        order: 2 for DPM-Solver-12, 3 for DPM-Solver-23.
        algorithm: ``"dpmsolver"`` integrates the noise that is predicted, ``"dpmsolver++"`` the clean image.
        rtol, atol: tolerances; published are 0.05 and 0.0078 (images in [-1, 1]).
        h_init: length of the first step in lambda, positive.
        safety: theta; the next step is safety error^(-1 / order) times as long, and a trial is accepted where its error
            is at most 1.
        controller: a `PIDController` in place of that rule; safety is not used then.
        norm: ``"sample"``: every sample has its own steps; ``"max"``: one step, from the largest error norm of a sample
            (as the authors' code); ``"batch"``: one step, from the root mean square over the batch (as k-diffusion).
        t_err: a sample has arrived within this distance in t of eps, not negative.
        denoise: return the clean image that the network predicts at the end, with one more call.

    Source: Lu et al., arXiv 2206.00927, appendix C and algorithms 1 and 2; arXiv 2211.01095 for ``"dpmsolver++"``.
    """

    norms = ("sample", "batch", "max")
    solver, scale = "dpm_solver", "max"

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        order: int = 3,
        algorithm: str = "dpmsolver",
        rtol: float = 0.05,
        atol: float = 0.0078,
        h_init: float = 0.05,
        safety: float = 0.9,
        controller: PIDController | None = None,
        norm: str = "sample",
        t_err: float = 1e-5,
        max_steps: int = 1000,
        eps: float | None = None,
        denoise: bool = False,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(
            sde, model, rtol=rtol, atol=atol, norm=norm, max_steps=max_steps, denoise=denoise, eps=eps,
            convention=convention,
        )  # fmt: skip
        name = "DPMSolverAdaptive"
        check_choice(name, "algorithm", algorithm, _ALGORITHMS)
        if isinstance(order, bool) or order not in _RATIOS:
            raise ValueError(f"{name}: order must be 2 (DPM-Solver-12) or 3 (DPM-Solver-23), got {order!r}")
        check_number(name, "h_init", h_init, above=0.0)
        check_number(name, "safety", safety, above=0.0)
        check_number(name, "t_err", t_err, least=0.0)
        if controller is not None and not isinstance(controller, PIDController):
            raise TypeError(f"{name}: controller must be a PIDController or None, got {type(controller).__name__}")
        self.order, self.algorithm, self.h_init = order, algorithm, float(h_init)
        self.safety, self.controller, self.t_err = float(safety), controller, float(t_err)
        first, self._end = (0.5 * sde.log_snr(torch.tensor([sde.T, self.eps], dtype=torch.float64))).tolist()
        if first == -math.inf:
            raise ValueError(
                f"{name}: the schedule has no signal left at t = 1 (log SNR of minus infinity), where steps in log SNR "
                "cannot start; drop its last levels (min_log_snr)"
            )

    def _begin(self, run: Running, net: Network) -> None:
        run.control["lambda"] = 0.5 * self.sde.log_snr(run.t)
        run.h = torch.full_like(run.t, self.h_init)
        run.kept["previous"] = run.x

    def _propose(self, run: Running, net: Network, index: int) -> Proposal:
        begin = run.control["lambda"]
        remaining = self._end - begin
        h = torch.minimum(run.h, remaining)
        ratios = constant((0.0, *_RATIOS[self.order], 1.0), torch.float64, h.device)
        lambdas = begin + h * ratios[:, None]
        times = self.sde.inverse_log_snr(2 * lambdas)
        times[0], times[-1] = run.t, torch.where(run.h >= remaining, self.eps, times[-1])
        plus = self.algorithm == "dpmsolver++"
        points = net.points(times[:-1], "denoised" if plus else "noise")
        alpha, sigma = self.sde.marginal(times)
        lead, other, y = (sigma, alpha, -h) if plus else (alpha, sigma, h)
        x_weights, weights = _pair(lead / lead[0], other, y, self.order)
        rows = folded(x_weights, weights, points.p, points.q).to(net.op_dtype)
        outputs = [self._output(run, net, points, index)]
        for i in range(1, self.order):
            point = net.linear_step(run.x, outputs, rows[i - 1, :, : i + 2])
            outputs.append(net(point, points, i, index, run.rows, outputs))
        low = net.linear_step(run.x, outputs[:-1], rows[-2, :, : self.order + 1])
        high = net.linear_step(run.x, outputs, rows[-1])
        difference = constant((1.0, -1.0), net.op_dtype, h.device)
        error = net.error_norm([high, low], difference, low, run.kept["previous"])
        return Proposal(
            high,
            times[-1],
            h,
            error,
            arrived=times[-1] <= self.eps + self.t_err,
            calls=self.order - 1,
            control={"lambda": lambdas[-1]},
            kept={"previous": low},
        )

    def _decide(self, run: Running, proposal: Proposal, error: Tensor) -> tuple[Tensor, Tensor]:
        if self.controller is not None:
            return self._controlled(run, error, self.controller)
        factor = self.safety * torch.exp(-error.log() / self.order)
        return error <= 1, proposal.h * _finite_or_shorter(factor, error)

    def _controlled(self, run: Running, error: Tensor, pid: PIDController) -> tuple[Tensor, Tensor]:
        p, i, d = pid.pcoeff / self.order, pid.icoeff / self.order, pid.dcoeff / self.order
        now = (error + 1e-8).log()
        last, before = run.control.get("last", now), run.control.get("before", now)
        u = torch.exp(-(p + i + d) * now + (p + 2 * d) * last - d * before)
        factor = 1 + torch.atan(u - 1)
        accept = factor >= pid.accept_safety
        run.control["last"] = torch.where(accept, now, last)
        run.control["before"] = torch.where(accept, last, before)
        return accept, run.h * _finite_or_shorter(factor, error)


def _finite_or_shorter(factor: Tensor, error: Tensor) -> Tensor:
    return torch.where(torch.isfinite(error), factor, SHRINK)


def _pair(lead: Tensor, other: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Weights of x (R, n) and of the predictions (R, J, n) in the points between, the lower and the higher solution.

    Args:
        lead: alpha of the nodes over that of the first for noise, (J + 1, n); sigma for the clean image.
        other: sigma of the nodes for noise; alpha for the clean image.
        y: the step in lambda for noise, its negative for the clean image, (n,): the formulas are the same then.
    """
    zero = torch.zeros_like(y)
    ratios = (*_RATIOS[order], 1.0)
    phi = [other[k + 1] * torch.expm1(r * y) for k, r in enumerate(ratios)]
    if order == 2:
        (r,) = _RATIOS[2]
        x_weights = torch.stack((lead[1], lead[2], lead[2]))
        low, slope = [-phi[1], zero], phi[1] / (2 * r)
        rows = [[-phi[0], zero], low, [slope - phi[1], -slope]]
    else:
        r1, r2 = _RATIOS[3]
        x_weights = torch.stack((lead[1], lead[2], lead[3], lead[3]))
        middle = (phi[1] / (r2 * y) - other[2]) * (r2 / r1)
        slope, bend = phi[2] / (2 * r1), (phi[2] / y - other[3]) / r2
        rows = [
            [-phi[0], zero, zero],
            [middle - phi[1], -middle, zero],
            [slope - phi[2], -slope, zero],
            [bend - phi[2], zero, -bend],
        ]
    return x_weights, torch.stack([torch.stack(row) for row in rows])
