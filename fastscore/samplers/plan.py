"""The table that a fixed-step sampler is: every coefficient of every step, known before the first network call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["LANGEVIN", "LINEAR", "OUTPUT", "POINT", "Plan", "Step"]

LINEAR = "linear"
LANGEVIN = "langevin"
POINT = -1  # an age: not an output, but the noisy point that the network has just seen
OUTPUT = -2  # an age: what the network has just given, before it is clipped or a hook sees it


@dataclass(frozen=True)
class Step:
    """One row of a plan: the network is called, giving h, and the state moves.

    ``"linear"``: ``x <- a x + sum_k b_k m_k + s z``, ``coefficients = (a, b ..., s)``; m_k is what the network gave
    ``ages[k]`` calls ago (0: just now; POINT: the point it saw; OUTPUT: just now, before ``denoise``).
    ``"langevin"``: ``g = p x + q h, e = tau (|z| / |g|)^2, x <- x + e g + sqrt(2 e) z``, ``coefficients``
    ``(p, q, tau)``.

    Attributes:
        name: what the row belongs to, e.g. a predictor or a solver and its stage.
        kind: ``"linear"`` or ``"langevin"``.
        t: time of the point that the network sees, or of the state where it is not called.
        t_next: time of the point that the row makes.
        label: what the network is told, an integer where the convention counts levels; None: it is not called.
        input_scale: factor of the point in front of the network.
        coefficients, ages: see above.
        stage: the row makes the point that the next call sees and leaves the state as it is.
        denoise: ``(p, q)`` with clean image ``p point + q h``, put in place of h; where it is clipped, or hooks see it.
        keep: ``(p, q)``; ``p point + q h``, after ``denoise``, is put in place of h and serves later rows, too.
        exponent: e of ``s exp(e v)``, the scale of z where the network also gives v (learned variance); else None.
        draws: whether noise is asked for (a recording has one tensor for every row that draws).
    """

    name: str
    kind: str
    t: float
    t_next: float
    label: float | int | None
    input_scale: float
    coefficients: tuple[float, ...]
    ages: tuple[int, ...] = (0,)
    stage: bool = False
    denoise: tuple[float, float] | None = None
    keep: tuple[float, float] | None = None
    exponent: float | None = None
    draws: bool = True

    @property
    def place(self) -> str:
        """For messages."""
        return f"step {self.name}, t = {self.t:.6g}"


@dataclass(frozen=True)
class Plan:
    """The steps of a sampler in order. ``print(plan)`` shows the table.

    Row i draws its noise as draw number i + 1; draw 0 is the prior.
    """

    steps: tuple[Step, ...]
    clip: float | None = None

    @cached_property
    def nfe(self) -> int:
        """Network calls per sample."""
        return sum(step.label is not None for step in self.steps)

    @cached_property
    def memory(self) -> int:
        """How many outputs of the network are in use at a time."""
        return 1 + max((age for step in self.steps for age in step.ages), default=0)

    def solver_row(self, i: int, converted: bool = False) -> tuple[float, ...] | None:
        """Row i for `fastscore.ops.solver_step`, where that op does all of it; else None.

        Args:
            converted: the output of the network is converted before (a hook sees it).
        """
        step = self.steps[i]
        conversions = [c for c in (step.denoise, step.keep) if c is not None and not converted]
        between = step.stage or (i > 0 and self.steps[i - 1].stage) or min(step.ages, default=0) < 0
        needed = conversions or step.exponent is not None
        if step.kind != LINEAR or step.label is None or between or not needed or len(conversions) > 1:
            return None
        p, q = conversions[0] if conversions else (0.0, 1.0)
        bound = math.inf if self.clip is None or step.denoise is None or converted else self.clip
        a, *b, s = step.coefficients
        weights = dict(zip(step.ages, b, strict=True))
        terms = [weights.get(age, 0.0) for age in range(max(step.ages, default=0) + 1)]
        if len(terms) > 4:
            return None
        return (p, q, bound, a, *terms, s, step.exponent or 0.0)

    def labels(self, batch: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """All labels, one row a step, repeated over the batch: shape (steps, batch), int64 for integer labels."""
        given = [step.label for step in self.steps if step.label is not None]
        integer = bool(given) and all(isinstance(label, int) for label in given)
        filled = [0 if step.label is None else step.label for step in self.steps]
        labels = torch.tensor(filled, dtype=torch.int64 if integer else torch.float64)
        labels = labels.to(device, torch.int64 if integer else dtype)
        return labels[:, None].expand(-1, batch).contiguous()

    def input_scales(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor | None:
        """Factors of the point in front of the network, shape (steps,), or None where all of them are 1."""
        if all(step.input_scale == 1 for step in self.steps):
            return None
        return torch.tensor([step.input_scale for step in self.steps], dtype=torch.float64).to(device, dtype)

    def __str__(self) -> str:
        head = f"{'step':>5}  {'update':<24} {'t':>9} {'label':>10}  coefficients"
        rule = (
            "linear: x <- a x + sum b_k m_k + s z, m_k the network's output k calls ago;  langevin: g = p x + q h, "
            "e = tau (|z| / |g|)^2, x <- x + e g + sqrt(2 e) z;  * makes the next call's input, and leaves x"
        )
        rows = [f"{i:>5}  {_row(step)}" for i, step in enumerate(self.steps)]
        return "\n".join([f"{self.nfe} network calls", rule, head, *rows])


def _row(step: Step) -> str:
    names = (
        ["p", "q", "tau"]
        if step.kind == LANGEVIN
        else ["a", *({POINT: "point", OUTPUT: "h"}.get(age, f"b{age}") for age in step.ages), "s"]
    )
    parts = [f"{name} = {value:.8g}" for name, value in zip(names, step.coefficients, strict=True)]
    if step.exponent is not None:
        parts.append(f"e = {step.exponent:.8g}")
    parts += [
        f"{name} = {value[0]:.6g} point + {value[1]:.6g} h"
        for name, value in (("x0", step.denoise), ("m0", step.keep))
        if value is not None
    ]
    label = "-" if step.label is None else f"{step.label:.5g}"
    return f"{step.name + '*' * step.stage:<24} {step.t:>9.6f} {label:>10}  {', '.join(parts)}"
