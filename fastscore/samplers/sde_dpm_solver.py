"""SDE-DPM-Solver and SDE-DPM-Solver++: exponential integrators of the reverse-time SDE in log-SNR."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable

from torch import Tensor

from fastscore.samplers.base import FixedStepSampler, check_choice, check_count, check_number
from fastscore.samplers.dpm_solver_formulas import TARGETS, Flow, multistep_orders
from fastscore.samplers.grid import CLEAN, Node, node_at, path
from fastscore.samplers.table import Expression, Table
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["SDEDPMSolver2SSampler", "SDEDPMSolverSampler", "stochastic_flow"]


class SDEDPMSolverSampler(FixedStepSampler):
    """Multistep SDE-DPM-Solver++ (or SDE-DPM-Solver) of order 1 to 3: one network call and one draw a step.

    It solves ``dx = (f x - (1 + eta) g^2 score / 2) dt + sqrt(eta) g dw``, whose law at every time is the same for any
    eta: ``eta=1`` is the reverse-time SDE, ``eta=0`` the probability-flow ODE and this sampler `DPMSolverSampler`.

    `order` counts the terms of the expansion in which the prediction is integrated. For the ODE it is the order of
    convergence, except that the published third order has its last term at half its weight and converges with order 2
    (``solver_type="taylor"`` has it in full). For eta > 0 the path is rough and the weak order is 1 for order 1 and
    at most 2 for the others, on linear problems.

    Every step draws noise of its own, independent of all others. The noise of two runs with other numbers of steps is
    therefore not that of one Brownian path: refining the grid gives another sample of the same law, not a better
    approximation of the same sample.

    Args:
        sde, model, steps, eps, clip, convention: see `FixedStepSampler`.
        order: 1, 2 or 3; the first steps have lower order.
        algorithm: ``"dpmsolver++"``: the clean image is integrated; ``"dpmsolver"``: the noise.
        solver_type: the terms of second order: ``"midpoint"``, or ``"heun"``, which integrates the slope exactly;
            ``"taylor"``: as ``"heun"``, and the third order term in full.
        eta: rate of the noise, >= 0.
        s_noise: standard deviation of the noise, >= 0.
        spacing: ``"karras"``, ``"log_snr"``, ``"linear"`` or ``"quadratic"``, see
            `fastscore.samplers.grid.time_grid`, or the times themselves: as many as there are steps; without `denoise`
            one more.
        rho: exponent of the Karras grid, at least 1.
        lower_order_final: if there are fewer than 15 steps, the last has order 1 and the one before at most order 2.
        denoise: the last step leads from eps to the clean image; else the last step leads to eps.

    Source: Lu et al., arXiv 2211.01095, section 6 and appendix; eta, s_noise and order 3 as in k-diffusion's
    dpmpp_2m_sde (``lower_order_final=False``) and dpmpp_3m_sde (the same and ``solver_type="heun"``).
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int = 20,
        order: int = 2,
        algorithm: str = "dpmsolver++",
        solver_type: str = "midpoint",
        eta: float = 1.0,
        s_noise: float = 1.0,
        spacing: str | Tensor = "karras",
        rho: float = 7.0,
        lower_order_final: bool = True,
        denoise: bool = True,
        eps: float | None = None,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=steps, eps=eps, clip=clip, convention=convention)
        owner = "SDEDPMSolverSampler"
        check_count(owner, "order", order, 1)
        if order > 3:
            raise ValueError(f"{owner}: order must be 1, 2 or 3, got {order}")
        check_choice(owner, "algorithm", algorithm, tuple(TARGETS))
        check_choice(owner, "solver_type", solver_type, ("midpoint", "heun", "taylor"))
        for name, value in (("eta", eta), ("s_noise", s_noise)):
            check_number(owner, name, value, least=0.0)
        self.order, self.algorithm, self.solver_type = order, algorithm, solver_type
        self.eta, self.s_noise = float(eta), float(s_noise)
        self.lower_order_final, self.denoise = bool(lower_order_final), bool(denoise)
        self._path = path(owner, sde, spacing, steps, self.eps, rho, clean=self.denoise)
        self.start = self._path[0].t
        self.plan()

    def _tabulate(self, table: Table) -> None:
        known: deque[tuple[float, Expression]] = deque(maxlen=self.order)
        orders = multistep_orders(self.steps, self.order, self.lower_order_final, self.denoise)
        slope, curvature = self.solver_type != "midpoint", 1.0 if self.solver_type == "taylor" else 0.5
        for order, (s, t) in zip(orders, itertools.pairwise(self._path), strict=True):
            if t.sigma == 0:
                # both algorithms end at the clean image that is predicted, without noise
                table.step(table.evaluate("denoised", s), t, name="denoise")
                continue
            m = table.evaluate(TARGETS[self.algorithm], s, keep=self.order > 1)
            flow, noise = stochastic_flow(self.algorithm, self.eta, s, t)
            earlier = [((log_ratio - s.log_ratio) / flow.h, old) for log_ratio, old in known]
            if order == 1:
                moved = flow.first(table.x, m)
            elif order == 2:
                moved = flow.second(table.x, m, earlier[0], slope)
            else:
                moved = flow.third(table.x, m, earlier[0], earlier[1], curvature)
            table.step(moved, t, noise=self.s_noise * noise, name=f"sde-{self.algorithm} {order}M")
            known.appendleft((s.log_ratio, m))


def stochastic_flow(algorithm: str, eta: float, s: Node, t: Node) -> tuple[Flow, float]:
    """The way of the mean from s to t, and the standard deviation of the noise gathered on it."""
    h = t.log_ratio - s.log_ratio
    if algorithm == "dpmsolver":
        z, ratio, scale = h, t.alpha / s.alpha, (1 + eta) * t.sigma
        noise = t.sigma * math.sqrt(eta * math.expm1(2 * h))
    else:
        z, ratio, scale = -(1 + eta) * h, t.sigma / s.sigma * math.exp(-eta * h), t.alpha
        noise = t.sigma * math.sqrt(-math.expm1(-2 * eta * h))
    phi1 = math.expm1(z)
    phi2 = phi1 / z - 1
    return Flow(ratio, (scale * phi1, scale * phi2, scale * (phi2 / z - 0.5)), h), noise


class SDEDPMSolver2SSampler(FixedStepSampler):
    """Singlestep SDE-DPM-Solver++ of order 2: a look at a middle point in each step, two network calls a step.

    In ``y = x / alpha`` and ``s = sigma / alpha``, from s to s1: ``up = eta s1 sqrt(1 - (s1 / s)^2)``,
    ``down = sqrt(s1^2 - up^2)``, ``y <- (down / s) y + (1 - down / s) D + s_noise up z`` with
    ``D = (1 - 1 / 2r) D_0 + D_1 / 2r``; D_0 and D_1 are the clean images predicted at s and at a middle point, in whose
    log s it is the part r of the way. Where that way leads and how the middle point is made, `stage_noise` says:

    ``"path"``: to s1, by the same formula with D_0 alone; the noise of the end continues that of the middle, as on one
        path of the SDE. Weak order 2 on linear problems.
    ``"independent"``: the same, but middle and end have independent noise, as in k-diffusion's dpmpp_sde with plain
        normals (its Brownian tree makes them dependent). Weak order 1.
    ``"none"``: to down, without noise; the only noise is that of the end (k-diffusion's dpmpp_2s_ancestral). Weak order
        2 on linear problems.

    The noise of different steps is always independent: see `SDEDPMSolverSampler`.

    Args:
        sde, model, steps, eps, clip, convention: see `FixedStepSampler`.
        stage_noise: ``"path"``, ``"independent"`` or ``"none"``.
        r: where the middle point lies, in (0, 1).
        eta: share of the noise that is fresh, 0 to 1; 0 is DPM-Solver++(2S).
        s_noise: standard deviation of the fresh noise, >= 0.
        spacing, rho, denoise: see `SDEDPMSolverSampler`. The step to the clean image has one network call.

    Source: Lu et al., arXiv 2211.01095, algorithm 1 and section 6; the variants but ``"path"`` are k-diffusion's.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int = 20,
        stage_noise: str = "path",
        r: float = 0.5,
        eta: float = 1.0,
        s_noise: float = 1.0,
        spacing: str | Tensor = "karras",
        rho: float = 7.0,
        denoise: bool = True,
        eps: float | None = None,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=steps, eps=eps, clip=clip, convention=convention)
        owner = "SDEDPMSolver2SSampler"
        check_choice(owner, "stage_noise", stage_noise, ("path", "independent", "none"))
        check_number(owner, "r", r, above=0.0, below=1.0)
        check_number(owner, "eta", eta, least=0.0, most=1.0)
        check_number(owner, "s_noise", s_noise, least=0.0)
        self.stage_noise, self.r, self.eta, self.s_noise = stage_noise, float(r), float(eta), float(s_noise)
        self.denoise = bool(denoise)
        self._path = path(owner, sde, spacing, steps, self.eps, rho, clean=self.denoise)
        self.start = self._path[0].t
        self.plan()

    def _tabulate(self, table: Table) -> None:
        for s, t in itertools.pairwise(self._path):
            y, first = table.x / s.alpha, table.evaluate("denoised", s)
            if t.sigma == 0:
                table.step(first, CLEAN, name="denoise")
                continue
            down, up = self._ancestral(s.ratio, t.ratio)
            way = (down if self.stage_noise == "none" else t.ratio) / s.ratio
            middle = node_at(self.sde, s.ratio * way**self.r)
            to, gathered = (middle.ratio, 0.0) if self.stage_noise == "none" else self._ancestral(s.ratio, middle.ratio)
            mean = middle.alpha * (to / s.ratio * y + (1 - to / s.ratio) * first)
            table.stage(mean, middle, noise=middle.alpha * self.s_noise * gathered, name="middle")
            point, look = table.point, 1 / (2 * self.r)
            clean = (1 - look) * first + look * table.evaluate("denoised", middle)
            moved = t.alpha * (down / s.ratio * y + (1 - down / s.ratio) * clean)
            if self.stage_noise == "path":
                # what is left at the end of the noise at the middle, and what is added after it
                left = self._ancestral(middle.ratio, t.ratio)[0] / middle.ratio
                moved = moved + t.alpha / middle.alpha * left * (point - mean)
                up = math.sqrt(max(up**2 - (left * gathered) ** 2, 0.0))
            table.step(moved, t, noise=t.alpha * self.s_noise * up, name="sde-dpmsolver++ 2S")

    def _ancestral(self, s: float, s1: float) -> tuple[float, float]:
        """From s on the way to s1: where a deterministic step ends, and the noise from there to s1."""
        up = self.eta * s1 * math.sqrt((s - s1) * (s + s1)) / s
        return math.sqrt((s1 - up) * (s1 + up)), up
