"""The rows of a plan as coefficients of one `solver_step` each, which gives the next state and the prediction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fastscore.samplers.grid import CLEAN, Node
from fastscore.samplers.plan import Plan, Step
from fastscore.samplers.table import Table
from fastscore.score import Convention
from fastscore.sde import VPSDE

__all__ = ["PREDICTIONS", "STATE", "Coefficients", "Rows", "falling_levels", "level", "table", "unscaled_level"]

PREDICTIONS = {"epsilon": "noise", "sample": "denoised", "v_prediction": "v"}
STATE = -3  # a source of a row: the state before the last stage
Scalar = TypeVar("Scalar", float, Tensor)


@dataclass(frozen=True)
class _Unscaled(Convention):
    """How to read a variance-preserving network where the state is divided by alpha, that is, at nodes of alpha 1."""

    def conversion(self, alpha: Scalar, sigma: Scalar, target: str) -> tuple[Scalar | float, Scalar | float]:
        norm = (alpha * alpha + sigma * sigma) ** -0.5
        p, q = super().conversion(norm * alpha, norm * sigma, target)
        return p * norm, q


def table(prediction_type: str, *, clip: float | None = None, denoised: bool = True, unscaled: bool = False) -> Table:
    """A table to write steps down in.

    Args:
        prediction_type: diffusers' name of what the network predicts.
        clip: bound of the clean image.
        denoised: the predictions that the rows give are clean images.
        unscaled: the state is divided by alpha: nodes are those of `unscaled_level`.
    """
    convention = (_Unscaled if unscaled else Convention)(PREDICTIONS[prediction_type], "time")
    return Table(VPSDE(), convention, denoised=denoised, clip=clip)  # the nodes know their levels, no SDE is asked


# No solver looks at the time of a node, which is given as 0.


def level(alpha_cumprod: float) -> Node:
    """The node of a level of the schedule."""
    return Node(0.0, math.sqrt(alpha_cumprod), math.sqrt(1 - alpha_cumprod))


def _ratio_level(sigma: float) -> Node:
    alpha = 1 / math.hypot(1.0, sigma)
    return Node(0.0, alpha, alpha * sigma) if sigma else CLEAN


def falling_levels(owner: str, sigmas: Sequence[float]) -> list[Node]:
    """The variance-preserving nodes whose sigma / alpha falls so; the last two may be the same.

    Raises:
        ValueError: two others are the same, as where so many steps are asked for that a time step is visited twice.
    """
    for i, (sigma, after) in enumerate(itertools.pairwise(sigmas[:-1])):
        if after >= sigma:
            raise ValueError(
                f"{owner}: sigmas must fall, got {sigma:g} and {after:g} at steps {i} and {i + 1}; "
                "num_inference_steps may be too large for the time steps to differ"
            )
    return [_ratio_level(sigma) for sigma in sigmas]


def unscaled_level(sigma: float) -> Node:
    """The node with sigma / alpha = `sigma` where the state is divided by alpha."""
    return Node(0.0, 1.0, sigma)


class Coefficients:
    """Rows of numbers, moved at once to each device and dtype that asks for them."""

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        self._lengths = [len(row) for row in rows]
        self._values = [value for row in rows for value in row]
        self._placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """One tensor a row."""
        if (device, dtype) not in self._placed:
            with torch.inference_mode(False):  # they may be used outside it later, where gradients are taken
                flat = torch.tensor(self._values, dtype=dtype, device=device)
                self._placed[device, dtype] = flat.split(self._lengths)
        return self._placed[device, dtype]


class Rows:
    """The rows of a plan for `solver_step`.

    Attributes:
        coefficients: (p, q, c, a, b_0, b_1 ..., s, e) of every row.
        sources: of every row, where the history behind b_1 ... comes from: k: the prediction k rows ago;
            `fastscore.samplers.plan.OUTPUT`: what the network has just given; `STATE`.
        stages: whether a row makes a point for the network only, and the state stays.
        memory: how many earlier predictions are in use.
        conversions: (p, q, 0) of every row where what they give is made by `linear_step` before, and p, q, c of
            `coefficients` leave it as it is; else None.

    Args:
        apart: whether there are conversions, because something is done to the prediction in between.
    """

    def __init__(self, plan: Plan, *, apart: bool = False) -> None:
        before = [False, *(step.stage for step in plan.steps)]
        rows = [_row(step, plan.clip, staged) for step, staged in zip(plan.steps, before, strict=False)]
        self.conversions = Coefficients([(*row[:2], 0.0) for row, _ in rows]) if apart else None
        self.coefficients = Coefficients([(0.0, 1.0, math.inf, *row[3:]) if apart else row for row, _ in rows])
        self.sources = [sources for _, sources in rows]
        self.stages = [step.stage for step in plan.steps]
        self.memory = plan.memory - 1


def _row(step: Step, clip: float | None, staged: bool) -> tuple[tuple[float, ...], tuple[int, ...]]:
    assert step.denoise is None or step.keep is None, f"{step.name}: two conversions"
    p, q = step.denoise or step.keep or (0.0, 1.0)
    bound = math.inf if clip is None or step.denoise is None else clip
    a, *b, s = step.coefficients
    weights = dict(zip(step.ages, b, strict=True))
    if staged:  # what is given is the point that the network saw
        weights[STATE], a = a, 0.0
    first = weights.pop(0, 0.0)
    return (p, q, bound, a, first, *weights.values(), s, step.exponent or 0.0), tuple(weights)
