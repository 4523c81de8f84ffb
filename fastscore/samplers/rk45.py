"""The Dormand-Prince pair of order 5(4) for the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.samplers.adaptive import AdaptiveSampler, Proposal, Running
from fastscore.samplers.base import check_number
from fastscore.samplers.per_sample import Network, Points, constant, folded
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["RK45Sampler"]

# Dormand and Prince 1980, table 2: times of the stages, their weights, the 5th-order weights minus the 4th-order ones.
# The last stage is the new state, so its slope is the first of the next step.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)
_STAGES = (
    (1 / 5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (3 / 40, 9 / 40, 0.0, 0.0, 0.0, 0.0, 0.0),
    (44 / 45, -56 / 15, 32 / 9, 0.0, 0.0, 0.0, 0.0),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0.0, 0.0, 0.0),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0.0, 0.0),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_WEIGHTS = tuple(weight for row in (*_STAGES, _ERROR) for weight in row)

_SAFETY, _LEAST, _MOST = 0.9, 0.2, 10.0  # of the factor by which a step is changed


class RK45Sampler(AdaptiveSampler):
    """The probability-flow ODE from t = 1 to eps by Dormand and Prince's Runge-Kutta pair of order 5(4).

    Stage points, new state and error estimate are linear in the state and the network's outputs; their coefficients are
    computed per sample in float64, and slopes never exist as tensors. A trial costs six network calls, as the last
    slope of an accepted step is the first of the next; finding the first step costs two more.

    Args:
        sde, model, rtol, atol, max_steps, eps, convention: see `AdaptiveSampler`.
        norm: ``"batch"``: the steps of ``scipy.integrate.solve_ivp(method="RK45")`` on the flattened batch, its first
            step, error norm and controller. ``"sample"``: the same per sample, with the stabilized controller of
            Hairer and Wanner, h <- 0.9 h e^-0.17 e_last^0.04 (Solving ODEs II, section IV.2, beta = 0.04).
        first_step: length of the first step in t, positive; None: found from two slopes (Hairer, Norsett and Wanner,
            Solving ODEs I, section II.4).
        denoise: return the clean image that the network predicts at the end (Tweedie's formula), with one more call.

    The state's dtype bounds what tolerance means: with float32, rtol below 1e-6 is lost in rounding.

    Source: Dormand and Prince 1980, table 2; probability flow: Song et al., arXiv 2011.13456, eq. 13 and appendix D.
    """

    solver, scale = "rk45", "sum"

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        norm: str = "sample",
        max_steps: int = 1000,
        first_step: float | None = None,
        eps: float | None = None,
        denoise: bool = False,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(
            sde, model, rtol=rtol, atol=atol, norm=norm, max_steps=max_steps, denoise=denoise, eps=eps,
            convention=convention,
        )  # fmt: skip
        if first_step is not None:
            check_number("RK45Sampler", "first_step", first_step, above=0.0)
        self.first_step = first_step
        # (exponent of the error, exponent of the error of the last accepted step)
        self._exponents = (0.17, 0.04) if norm == "sample" else (0.2, 0.0)

    def _begin(self, run: Running, net: Network) -> None:
        run.control["rejected"] = torch.zeros_like(run.t, dtype=torch.bool)
        run.control["log_error"] = torch.full_like(run.t, math.log(1e-4))
        if self.first_step is not None:
            run.h = torch.full_like(run.t, self.first_step)
            return
        (p, q), points = self._slopes(run.t[None], net)
        h = self._output(run, net, points, 0)
        size = self._norm(net, [run.x], torch.ones_like(p), run.x)
        slope = self._norm(net, [run.x, h], torch.cat([p, q]), run.x)
        tiny = (size < 1e-5) | (slope < 1e-5)
        length = torch.where(tiny, 1e-6, 0.01 * size / slope)
        length = torch.minimum(length, run.t - self.eps)
        # an Euler step of that length, to see how the slope changes
        (p_next, q_next), points = self._slopes((run.t - length)[None], net)
        point = net.linear_step(run.x, [h], net.rows(1 - length * p[0], -length * q[0]))
        h_next = net(point, points, 0, 0, run.rows, [h])
        run.nfe = run.nfe + 1
        change = self._norm(net, [run.x, h, point, h_next], torch.cat([-p, -q, p_next, q_next]), run.x) / length
        steepest = torch.maximum(slope, change)
        longer = torch.exp(torch.log(0.01 / steepest) / 5)
        longer = torch.where(steepest <= 1e-15, (1e-3 * length).clamp_min(1e-6), longer)
        run.h = torch.minimum(torch.minimum(100 * length, longer), run.t - self.eps)

    def _propose(self, run: Running, net: Network, index: int) -> Proposal:
        device, remaining = run.t.device, run.t - self.eps
        h = torch.minimum(run.h, remaining)
        arrived = run.h >= remaining
        t = torch.where(arrived, self.eps, run.t - h)
        times = run.t - h * constant(_NODES, torch.float64, device)[:, None]
        times[-1] = t
        (p, q), points = self._slopes(times, net)
        p, q = torch.cat([p, p[-1:]]), torch.cat([q, q[-1:]])
        weights = -h * constant(_WEIGHTS, torch.float64, device).reshape(7, 7, 1)
        begin = constant((1.0,) * 6 + (0.0,), torch.float64, device)[:, None]  # an error has no x
        rows = folded(begin, weights, p, q).to(net.op_dtype)
        outputs = [self._output(run, net, points, index)]
        x = run.x
        for i in range(6):
            x = net.linear_step(run.x, outputs, rows[i, :, : i + 3])
            outputs.append(net(x, points, min(i + 1, 5), index, run.rows, outputs))
        error = net.error_norm([run.x, *outputs], rows[6, :, :8], run.x, x)
        return Proposal(x, t, h, error, arrived, 6, output=outputs[-1])

    def _decide(self, run: Running, proposal: Proposal, error: Tensor) -> tuple[Tensor, Tensor]:
        now, last = self._exponents
        accept = error < 1
        log_error = error.log()
        factor = _SAFETY * torch.exp(-now * log_error)
        longest = torch.where(run.control["rejected"], 1.0, _MOST)
        growth = torch.minimum(factor * torch.exp(last * run.control["log_error"]), longest)
        factor = torch.where(accept, growth, factor).nan_to_num(nan=_LEAST).clamp_min(_LEAST)
        run.control["rejected"] = ~accept
        run.control["log_error"] = torch.where(accept, log_error.clamp_min(math.log(1e-4)), run.control["log_error"])
        return accept, proposal.h * factor

    def _slopes(self, times: Tensor, net: Network) -> tuple[tuple[Tensor, Tensor], Points]:
        """``(p, q)``, float64 (S, n), of ``dx/dt = p x + q h`` at the times (S, n)."""
        points = net.points(times, "score")
        half = -0.5 * self.sde.diffusion(times).square()
        return (self.sde.drift_coefficient(times) + half * points.p, half * points.q), points

    def _norm(self, net: Network, terms: list[Tensor], weights: Tensor, x: Tensor) -> Tensor:
        """Of a combination of terms with weights (K, n), relative to the tolerance at x."""
        return self._shared(net.error_norm(terms, weights.t().contiguous(), x, x))
