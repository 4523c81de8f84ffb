"""What a network predicts and how it is told the time, and the exact conversion to score, noise or clean image.

Every prediction h that networks make is linear in what samplers need, ``score = p x + q h`` with p and q depending on
the time alone; samplers fold p and q into their own coefficients, so a conversion costs nothing at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastscore.schedule import DiscreteVPSDE
from fastscore.sde import SDE, VESDE

__all__ = ["LABELS", "PREDICTIONS", "Convention", "convention_of"]

PREDICTIONS = ("score", "noise", "denoised", "v", "edm")
Scalar = TypeVar("Scalar", float, Tensor)
LABELS = (
    *("time", "scaled_time", "sigma", "log_sigma"),
    *("chain_index", "noise_index", "timestep", "rounded_timestep"),
)


@dataclass(frozen=True)
class Convention:
    """How to read a network ``h = network(x, label)`` for ``x = alpha x_0 + sigma eps``.

    Args:
        prediction: what h is.
            ``"score"``: the gradient of the log-density; ``"noise"``: eps; ``"denoised"``: the clean image x_0;
            ``"v"``: ``alpha eps - sigma x_0`` (Salimans and Ho, arXiv 2202.00512, section 4);
            ``"edm"``: the raw network F of a preconditioned denoiser (Karras et al., arXiv 2206.00364, eq. 7 and
            table 1), which is fed ``c_in x``.
        label: the second argument of the network, float32 of shape (B,) unless noted.
            ``"time"``: t; ``"scaled_time"``: 999 t (VP networks of score_sde); ``"chain_index"``: ``t (N - 1)``, N =
            num_scales, of a network trained on the N-step chain (DDPM); ``"noise_index"``: ``round((1 - t) (N - 1))``
            as int64, counting the noise levels downward (SMLD, NCSN); ``"sigma"``: sigma / alpha (VE networks of
            score_sde); ``"log_sigma"``: ``log(sigma / alpha) / 4`` (EDM); ``"timestep"``: the index of a DDPM network,
            ``(t - 1 / M) N`` with M levels in the schedule (`DiscreteVPSDE`) and N = num_scales, M unless given:
            between two levels it is fractional; ``"rounded_timestep"``: the same rounded half to even, int64.
        num_scales: N of the two index labels, which need it, and of the two timestep labels.
        sigma_data: standard deviation of the data in the EDM preconditioning; used by ``prediction="edm"`` alone.

    Raises:
        ValueError: for an unknown prediction or label, or an index label without num_scales.
    """

    prediction: str = "score"
    label: str = "time"
    num_scales: int | None = None
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        for name, value, known in (("prediction", self.prediction, PREDICTIONS), ("label", self.label, LABELS)):
            if value not in known:
                raise ValueError(f"Convention: {name} must be one of {', '.join(known)}, got {value!r}")
        missing = self.num_scales is None and not self.follows_chain
        if not missing and (not isinstance(self.num_scales, int) or self.num_scales < 1):
            raise ValueError(
                f"Convention: label={self.label!r} needs num_scales, the number of noise levels of the training, "
                f"as an integer >= 1, got {self.num_scales!r}"
            )
        if not self.sigma_data > 0:
            raise ValueError(f"Convention: sigma_data must be positive, got {self.sigma_data!r}")

    @property
    def follows_chain(self) -> bool:
        """Whether the network was trained on a chain of num_scales levels, whose marginal it has seen."""
        return self.label in ("chain_index", "noise_index")

    def marginal(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)``, float64, that the network has seen at t: the chain's for index labels, else the SDE's."""
        if not self.follows_chain:
            return sde.marginal(t)
        n = self.num_scales or 1
        if self.label == "noise_index":
            t = 1 - self.labels(sde, t).to(torch.float64) / max(n - 1, 1)
        return sde.chain_marginal(t, n)

    def labels(self, sde: SDE, t: Tensor) -> Tensor:
        """Labels of the times t: float64, or int64 for ``"noise_index"`` and ``"rounded_timestep"``."""
        t = torch.as_tensor(t, dtype=torch.float64)
        n = self.num_scales or 1
        if self.label in ("timestep", "rounded_timestep"):
            levels = getattr(sde, "num_timesteps", self.num_scales)
            if levels is None:
                raise ValueError(
                    f"Convention: label={self.label!r} needs num_scales with {type(sde).__name__}, which has no levels"
                )
            timestep = (t - 1 / levels) * (self.num_scales or levels)
            nearest = timestep.round()
            if self.label == "rounded_timestep":
                return nearest.to(torch.int64)
            return torch.where((timestep - nearest).abs() < 1e-9, nearest, timestep)  # levels have whole numbers
        match self.label:
            case "time":
                return t
            case "scaled_time":
                return 999 * t
            case "chain_index":
                return t * (n - 1)
            case "noise_index":
                return ((1 - t) * (n - 1)).round().to(torch.int64)
        alpha, sigma = sde.marginal(t)
        return sigma / alpha if self.label == "sigma" else (sigma / alpha).log() / 4

    def input_scale(self, sde: SDE, t: Tensor) -> Tensor:
        """Factor of x in front of the network, float64: ``c_in / alpha`` for ``"edm"``, else 1."""
        alpha, sigma = self.marginal(sde, t)
        if self.prediction != "edm":
            return torch.ones_like(sigma)
        return (sigma.square() + (alpha * self.sigma_data).square()).rsqrt()

    def coefficients(self, sde: SDE, t: Tensor, target: str = "score") -> tuple[Tensor, Tensor]:
        """``(p, q)``, float64, with ``target = p x + q h`` at the times t.

        Args:
            target: ``"score"``, ``"noise"``, ``"denoised"`` or ``"v"``.
        """
        alpha, sigma = self.marginal(sde, t)
        zero = torch.zeros_like(sigma)
        p, q = self.conversion(alpha, sigma, target)
        return zero + p, zero + q

    def conversion(self, alpha: Scalar, sigma: Scalar, target: str) -> tuple[Scalar | float, Scalar | float]:
        """The same for a given marginal ``x = alpha x_0 + sigma eps``, in floats or tensors."""
        if target not in PREDICTIONS[:4]:
            raise ValueError(f"coefficients: target must be one of {', '.join(PREDICTIONS[:4])}, got {target!r}")
        if target == self.prediction:
            return 0.0, 1.0
        noise: tuple[Scalar | float, Scalar | float]
        clean: tuple[Scalar | float, Scalar | float]
        match self.prediction:  # both (p, q) of the noise and of the clean image, each in the form that does not cancel
            case "score":
                noise, clean = (0.0, -sigma), (1 / alpha, sigma * sigma / alpha)
            case "noise":
                noise, clean = (0.0, 1.0), (1 / alpha, -sigma / alpha)
            case "denoised":
                noise, clean = (1 / sigma, -alpha / sigma), (0.0, 1.0)
            case "v":
                power = alpha * alpha + sigma * sigma
                noise, clean = (sigma / power, alpha / power), (alpha / power, -sigma / power)
            case _:
                data = alpha * self.sigma_data
                power = sigma * sigma + data * data
                noise = (sigma / power, -data * power**-0.5)
                clean = (alpha * self.sigma_data**2 / power, sigma * self.sigma_data * power**-0.5)
        match target:
            case "score":
                return -noise[0] / sigma, -noise[1] / sigma
            case "noise":
                return noise
            case "denoised":
                return clean
        return alpha * noise[0] - sigma * clean[0], alpha * noise[1] - sigma * clean[1]


def convention_of(model: nn.Module | object, sde: SDE) -> Convention:
    """The convention a model carries as ``model.convention``, else the one published with the SDE.

    score_sde's continuous networks: VE ones return the score and take sigma; VP and sub-VP ones return the noise and
    take 999 t. Networks of a `DiscreteVPSDE` return the noise and take the timestep.
    """
    carried = getattr(model, "convention", None)
    if isinstance(carried, Convention):
        return carried
    if isinstance(sde, DiscreteVPSDE):
        return Convention("noise", "timestep")
    return Convention("score", "sigma") if isinstance(sde, VESDE) else Convention("noise", "scaled_time")
