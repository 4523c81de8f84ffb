"""The probability-flow ODE from data to noise, with the integral of its divergence in the state."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.likelihood.divergence import check_output, estimate
from fastscore.likelihood.probes import Probes
from fastscore.noise import PhiloxNoise
from fastscore.ops import linear_step
from fastscore.samplers.adaptive import Running
from fastscore.samplers.hooks import Hooks
from fastscore.samplers.loop import NonFiniteError, with_progress
from fastscore.samplers.ode import ODE_METHODS
from fastscore.samplers.per_sample import Network, Points
from fastscore.samplers.rk45 import RK45Sampler
from fastscore.samplers.row_network import RowNetwork
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["AdaptiveFlow", "AugmentedSlope", "fixed_step_flow"]


class AugmentedSlope(RowNetwork):
    """The slope of a state (n, D + K): x, flattened, and for each probe the integral of its divergence.

    The state is float64, being a sum of many small terms; the network is run in the dtype of the data, the divergence
    is that of the slope of x in float32, or float64 for float64.

    Args:
        model, sde, convention: of the flow.
        dtype: of the data.
        probes, method, mode: of the divergence, see `estimate`; probes for the data (B, ...) in float32, or float64.
    """

    def __init__(
        self,
        model: Callable[[Tensor, Tensor], Tensor],
        sde: SDE,
        convention: Convention,
        dtype: torch.dtype,
        probes: Probes,
        method: str,
        mode: str,
    ) -> None:
        super().__init__()
        self.model, self.sde, self.convention = model, sde, convention
        self.dtype, self.probes, self.method, self.mode = dtype, probes, method, mode
        self.shape, self.dims, self._sums = probes.shape[1:], math.prod(probes.shape[1:]), probes.dtype
        labels = convention.labels(sde, torch.tensor([sde.T], dtype=torch.float64))
        self._label_dtype = self._sums if labels.is_floating_point() else labels.dtype
        self._format = torch.channels_last if probes.last and len(probes.shape) == 4 else torch.contiguous_format

    def select(self, rows: Tensor) -> AugmentedSlope:
        """The slope of some rows of the batch (n,), with their probes."""
        model = self.model.select(rows) if isinstance(self.model, RowNetwork) else self.model
        probes = self.probes.select(rows)
        return AugmentedSlope(model, self.sde, self.convention, self.dtype, probes, self.method, self.mode)

    def start(self, x: Tensor) -> Tensor:
        """The state at the data."""
        integrals = {"exact": 1, "hutchinson": self.probes.count, "hutch++": self.probes.count // 2}[self.method]
        flat = x.reshape(len(x), self.dims).to(torch.float64)
        return torch.cat([flat, flat.new_zeros(len(x), integrals)], 1)

    def data(self, state: Tensor) -> Tensor:
        """x (n, ...) of a state."""
        return self._shaped(state).to(self.dtype)

    def _shaped(self, state: Tensor) -> Tensor:
        x = state[:, : self.dims].reshape(-1, *self.shape)
        return x.to(self._sums).contiguous(memory_format=self._format)

    def told(self, t: Tensor) -> Tensor:
        """What a call has to know at times (S, n): label, input scale, and p and q of ``dx/dt = p x + q h``; float64.

        Returns:
            (S, n, 4).
        """
        p, q = self.convention.coefficients(self.sde, t, "score")
        half = -0.5 * self.sde.diffusion(t).square()
        labels, scale = self.convention.labels(self.sde, t).to(t), self.convention.input_scale(self.sde, t)
        return torch.stack((labels, scale, self.sde.drift_coefficient(t) + half * p, half * q), -1)

    def forward(self, state: Tensor, told: Tensor) -> Tensor:
        """The slope (n, D + K), at what was told for a time, (n, 4)."""
        labels = told[:, 0].to(self._label_dtype)
        columns = told[:, 1:].to(self._sums).reshape(-1, 3, *[1] * len(self.shape))
        scale, p, q = columns.unbind(1)

        def drift(x: Tensor) -> Tensor:
            fed = (x * scale if self.convention.prediction == "edm" else x).to(self.dtype)
            h = self.model(fed, labels)
            check_output("log_likelihood", "model", h, fed)
            return p * x + q * h.to(x.dtype)

        value, traces = estimate("log_likelihood", drift, self._shaped(state), self.probes, self.method, self.mode)
        return torch.cat([value.reshape(-1, self.dims), traces.T], 1).to(torch.float64)


class AdaptiveFlow(RK45Sampler):
    """`RK45Sampler` on the augmented state; its time u runs down from 1 to eps, while t = 1 + eps - u runs up.

    Args:
        slope: in the place of the network.
        rtol, atol, norm, max_steps, eps: see `RK45Sampler`.
    """

    model: AugmentedSlope

    def __init__(
        self, slope: AugmentedSlope, *, rtol: float, atol: float, norm: str, max_steps: int, eps: float
    ) -> None:
        super().__init__(
            slope.sde, slope, rtol=rtol, atol=atol, norm=norm, max_steps=max_steps, eps=eps, convention=slope.convention
        )

    def flow(self, state: Tensor, progress: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The state at t = 1, evaluations int64 (B,), and whether a sample arrived there, bool (B,)."""
        nothing = {"check_finite": False, "callback": None, "cuda_graph": False}
        x, info = self._run(state, PhiloxNoise(0), Hooks(()), progress=progress, **nothing)  # type: ignore[arg-type]
        return x, info.nfe, info.finished

    def _begin(self, run: Running, net: Network) -> None:
        super()._begin(run, net)
        bad = ~torch.isfinite(run.h)
        if bool(bad.any()):  # no shorter step would help
            raise NonFiniteError(self._non_finite(0, run, bad))

    def _slopes(self, times: Tensor, net: Network) -> tuple[tuple[Tensor, Tensor], Points]:
        """The model gives the slope in t itself, so that p = 0, and q = -1 as u runs the other way."""
        p, q = torch.zeros_like(times), torch.full_like(times, -1.0)
        told = self.model.told(self.eps + (self.sde.T - times))
        return (p, q), Points(times, told, None, None, p, q)

    def _non_finite(self, index: int, run: Running, failed: Tensor) -> str:
        at = float((self.eps + (self.sde.T - run.t[failed])).min())
        return (
            f"log_likelihood: the error of trial {index} from t = {at:.6g} is not finite: "
            "the data, the network's output or its derivative is not"
        )

    def _warn(self, done: object) -> None:
        warnings.warn(
            f"log_likelihood: some samples have not reached t = {self.sde.T:g} within {self.max_steps} trials "
            "(max_steps), or need steps too short to move; their log-likelihood is NaN",
            RuntimeWarning,
            stacklevel=5,
        )


def fixed_step_flow(slope: AugmentedSlope, state: Tensor, times: Tensor, method: str, progress: bool) -> Tensor:
    """The state at the last of some rising times (N + 1,), float64, by one of `ODE_METHODS`."""
    stages, weights = ODE_METHODS[method]
    lengths = times.diff()
    # step sizes travel as tensors, as labels do: what the loop needs is on the device before it starts
    rows = [_coefficients(row, lengths).to(state.device) for row in (*stages, weights)]
    fractions = torch.tensor([0.0, *map(sum, stages)], dtype=torch.float64)
    told = slope.told(times[:-1, None] + lengths[:, None] * fractions).to(state.device)
    steps = list(zip(told, *rows, strict=True))
    for at, *coefficients in with_progress(steps) if progress else steps:
        slopes: list[Tensor] = []
        point = state
        for label, row in zip(at, coefficients, strict=True):
            slopes.append(slope(point, label.expand(len(state), -1)))
            point = linear_step(state, slopes, row)
        state = point
    return state


def _coefficients(weights: tuple[float, ...], lengths: Tensor) -> Tensor:
    """Rows of `linear_step` (N, K + 2) for a state plus the steps (N,) times K slopes with these weights."""
    scaled = lengths[:, None] * torch.tensor(weights, dtype=torch.float64)
    edge = torch.zeros_like(lengths)[:, None]
    return torch.cat([edge + 1, scaled, edge], 1)
