"""The table that a fixed-step sampler is: every coefficient of every step, known before the first network call."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["LANGEVIN", "LINEAR", "Plan", "Step", "Update", "make_steps"]

LINEAR = "linear"
LANGEVIN = "langevin"


@dataclass(frozen=True)
class Update:
    """A family of updates in terms of the score, one row per time, float64 of shape (N,).

    LINEAR: ``x <- x_factor x + score_factor score + noise_factor z``. LANGEVIN: ``x <- x + e score + sqrt(2 e) z`` with
    ``e = score_factor (|z| / |score|)^2``; the other factors are unused.
    """

    kind: str
    x_factor: Tensor
    score_factor: Tensor
    noise_factor: Tensor

    def denoised(self) -> Update:
        """The same without the noise of its last row."""
        noise_factor = self.noise_factor.clone()
        noise_factor[-1] = 0
        return replace(self, noise_factor=noise_factor)


@dataclass(frozen=True)
class Step:
    """One row of a plan: the network is called once at ``label``, giving h, and the state moves.

    Attributes:
        name: the predictor or corrector that the row belongs to.
        kind: ``"linear"``: ``x <- a x + b h + s z`` with ``coefficients = (a, b, s)``; ``"langevin"``:
            ``g = p x + q h, e = tau (|z| / |g|)^2, x <- x + e g + sqrt(2 e) z`` with ``coefficients = (p, q, tau)``.
        t: the time.
        label: what the network is told; an integer where the convention counts noise levels.
        input_scale: factor of x in front of the network.
    """

    name: str
    kind: str
    t: float
    label: float | int
    input_scale: float
    coefficients: tuple[float, float, float]


@dataclass(frozen=True)
class Plan:
    """The steps of a sampler in order. ``print(plan)`` shows the table.

    Row i draws its noise as draw number i + 1; draw 0 is the prior.
    """

    steps: tuple[Step, ...]

    @property
    def nfe(self) -> int:
        """Network calls per sample."""
        return len(self.steps)

    def coefficients(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """All coefficients, cast once from float64: shape (steps, 3)."""
        return torch.tensor([s.coefficients for s in self.steps], dtype=torch.float64).reshape(-1, 3).to(device, dtype)

    def labels(self, batch: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """All labels, one row a step, repeated over the batch: shape (steps, batch), int64 for integer labels."""
        integer = bool(self.steps) and all(isinstance(s.label, int) for s in self.steps)
        labels = torch.tensor([s.label for s in self.steps], dtype=torch.int64 if integer else torch.float64)
        labels = labels.to(device, torch.int64 if integer else dtype)
        return labels[:, None].expand(-1, batch).contiguous()

    def input_scales(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor | None:
        """Factors of x in front of the network, shape (steps,), or None where all of them are 1."""
        if all(s.input_scale == 1 for s in self.steps):
            return None
        return torch.tensor([s.input_scale for s in self.steps], dtype=torch.float64).to(device, dtype)

    def __str__(self) -> str:
        head = f"{'step':>5}  {'update':<20} {'t':>9} {'label':>10}  coefficients"
        legend = {LINEAR: "a = {:.8g}, b = {:.8g}, s = {:.8g}", LANGEVIN: "p = {:.8g}, q = {:.8g}, tau = {:.8g}"}
        rows = [
            f"{i:>5}  {s.name:<20} {s.t:>9.6f} {s.label:>10.5g}  {legend[s.kind].format(*s.coefficients)}"
            for i, s in enumerate(self.steps)
        ]
        rule = (
            "linear: x <- a x + b h + s z;  langevin: g = p x + q h, e = tau (|z| / |g|)^2, x <- x + e g + sqrt(2 e) z"
        )
        return "\n".join([f"{self.nfe} network calls", rule, head, *rows])


def make_steps(name: str, update: Update, sde: SDE, convention: Convention, times: Tensor) -> list[Step]:
    """Fold the network's convention (``score = p x + q h``) into an update: one step per time, in float64."""
    p, q = convention.coefficients(sde, times)
    if update.kind == LANGEVIN:
        table = torch.stack([p, q, update.score_factor], 1)
    else:
        a = update.x_factor + update.score_factor * p
        table = torch.stack([a, update.score_factor * q, update.noise_factor], 1)
    columns = (times.tolist(), convention.labels(sde, times).tolist(), convention.input_scale(sde, times).tolist())
    return [
        Step(name, update.kind, t, label, scale, (row[0], row[1], row[2]))
        for t, label, scale, row in zip(*columns, table.tolist(), strict=True)
    ]
