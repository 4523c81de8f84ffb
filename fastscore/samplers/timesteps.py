"""Which noise levels of a discrete schedule a sampler visits."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.samplers.grid import CLEAN, SPACINGS, Node, nodes, path
from fastscore.schedule import DiscreteVPSDE
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["LEVEL_SPACINGS", "level_path", "timesteps"]

_SECTIONS = re.compile(r"ddim[1-9]\d*|\d+(,\d+)*")


def level_path(
    owner: str,
    sde: SDE,
    convention: Convention,
    spacing: str | Tensor | None,
    steps: int | None,
    *,
    default_steps: int,
    offset: int = 0,
    end: float,
    clean: bool,
) -> list[Node]:
    """The nodes that a sampler steps over, from noise to data.

    Args:
        owner: whom an error is reported for.
        spacing: see `timesteps`, for levels; else see `fastscore.samplers.grid.time_grid`. None: ``"trailing"`` over
            the levels of a `DiscreteVPSDE`, ``"linear"`` in the time of the others.
        steps: number of steps; None: as many as the spacing names, or `default_steps`.
        end: the time of the last node, unless `clean`: the last step then leads to the clean image.

    Raises:
        ValueError: for a spacing that does not fit the SDE or the number of steps, an end above the last level, or a
            first level without signal with a network that predicts the noise or the score there.
    """
    levels = isinstance(sde, DiscreteVPSDE)
    if spacing is None:
        spacing = "trailing" if levels else "linear"
    if (isinstance(spacing, Tensor) and spacing.is_floating_point()) or spacing in tuple(SPACINGS):
        if steps is None:
            steps = len(spacing) - 1 + clean if isinstance(spacing, Tensor) else default_steps
        return path(owner, sde, spacing, steps, end, clean=clean)
    if not isinstance(sde, DiscreteVPSDE):
        raise ValueError(
            f"{owner}: spacing={spacing!r} counts the levels of a DiscreteVPSDE; {type(sde).__name__} takes "
            f"{', '.join(SPACINGS)}, or a floating-point tensor of times"
        )
    there = max(round(sde.T * sde.num_timesteps), 1)
    chosen = timesteps(owner, spacing, there, steps, default_steps=min(default_steps, there), offset=offset)
    grid = nodes(sde, sde.times(chosen))
    if grid[0].alpha == 0 and convention.prediction in ("noise", "score"):
        raise ValueError(
            f"{owner}: there is no signal at timestep {chosen[0]}, and a network that predicts the "
            f"{convention.prediction} says nothing of the clean image there; prediction must be 'denoised' or 'v'"
        )
    if not clean and end > grid[-1].t:
        raise ValueError(f"{owner}: eps must be at most the time of the last timestep, {grid[-1].t:.6g}, got {end!r}")
    return [*grid, CLEAN if clean else nodes(sde, torch.tensor([end], dtype=torch.float64))[0]]


def timesteps(
    owner: str, spacing: str | Tensor, levels: int, steps: int | None, *, default_steps: int, offset: int = 0
) -> list[int]:
    """Indices of levels, falling, each in [0, levels).

    Args:
        owner: whom an error is reported for.
        spacing: with N levels and S steps,

            * ``"linspace"``, ``"leading"``, ``"trailing"``: evenly spaced, with both ends, with 0 (plus `offset`),
              with N - 1 (Lin et al., arXiv 2305.08891, table 2);
            * ``"uniform"``, ``"quad"``: ``floor(N / S) i``, of which there are more than S below N where S does not
              divide N, and ``i^2 0.8 N / (S - 1)^2`` rounded down, of which equal ones are one (Song et al., arXiv
              2010.02502, appendix D.2, as published);
            * numbers such as ``"25"`` or ``"10,15,5"``: the levels are split evenly into sections, from the first up,
              and so many are taken from each, with both ends; ``"ddim25"``: the stride with which there are 25,
              from 0 (Nichol and Dhariwal, arXiv 2102.09672, section 4, as published);
            * the indices themselves, a tensor of integers (S,).
        steps: S; None: what the spacing names, or `default_steps`.
        offset: added to every index of ``"leading"``.
    """
    if offset and spacing != "leading":
        raise ValueError(f"{owner}: offset belongs to spacing='leading', got offset={offset!r} with {spacing!r}")
    if isinstance(spacing, Tensor):
        if spacing.ndim != 1 or not len(spacing) or spacing.is_complex() or spacing.dtype == torch.bool:
            raise ValueError(
                f"{owner}: spacing, given as timesteps, must be integers of shape (S,), S >= 1, "
                f"got {spacing.dtype} of shape {tuple(spacing.shape)}"
            )
        rising = spacing.tolist()[::-1]
    elif spacing in LEVEL_SPACINGS:
        count = default_steps if steps is None else steps
        if count > levels:
            raise ValueError(f"{owner}: steps must be at most the number of levels, {levels}, got {count}")
        rising = [i + offset for i in LEVEL_SPACINGS[spacing](levels, count)]
    elif isinstance(spacing, str) and _SECTIONS.fullmatch(spacing):
        rising = _stride(owner, spacing, levels) if spacing.startswith("ddim") else _sections(owner, spacing, levels)
    else:
        raise ValueError(
            f"{owner}: spacing must be one of {', '.join([*LEVEL_SPACINGS, *SPACINGS])}, section counts such as '25', "
            f"'10,15,5' or 'ddim25', a tensor of timesteps, or a tensor of times, got {spacing!r}"
        )
    if any(late <= early for early, late in itertools.pairwise(rising)) or rising[0] < 0:
        raise ValueError(f"{owner}: timesteps must fall strictly to 0 or more, got {rising[::-1]}")
    if rising[-1] >= levels:
        raise ValueError(f"{owner}: timesteps must lie below the number of levels, {levels}, got {rising[-1]}")
    if steps not in (None, len(rising)) and spacing not in LEVEL_SPACINGS:
        raise ValueError(f"{owner}: spacing={spacing!r} names {len(rising)} timesteps, but steps is {steps}")
    return rising[::-1]


def _linspace(n: int, steps: int) -> list[int]:
    stride = (n - 1) / max(steps - 1, 1)
    return [round(i * stride) for i in range(steps)]


def _leading(n: int, steps: int) -> list[int]:
    return [i * (n // steps) for i in range(steps)]


def _trailing(n: int, steps: int) -> list[int]:
    stride = n - (n - n / steps)  # its rounding decides ties, as published
    return [round(n - i * stride) - 1 for i in range(steps)][::-1]


def _uniform(n: int, steps: int) -> list[int]:
    return list(range(0, n, n // steps))


def _quad(n: int, steps: int) -> list[int]:
    stride = math.sqrt(0.8 * n) / max(steps - 1, 1)
    return sorted({int((i * stride) ** 2) for i in range(steps)})


LEVEL_SPACINGS: dict[str, Callable[[int, int], list[int]]] = {
    "linspace": _linspace,
    "leading": _leading,
    "trailing": _trailing,
    "uniform": _uniform,
    "quad": _quad,
}


def _sections(owner: str, spacing: str, levels: int) -> list[int]:
    counts = [int(count) for count in spacing.split(",")]
    chosen, start = [], 0
    for i, count in enumerate(counts):
        size = levels // len(counts) + (i < levels % len(counts))
        if not 1 <= count <= size:
            raise ValueError(f"{owner}: spacing={spacing!r} must take 1 to {size} of the {size} levels of section {i}")
        stride, position = (size - 1) / max(count - 1, 1), 0.0
        for _ in range(count):
            chosen.append(start + round(position))
            position += stride  # a sum, whose rounding decides ties, as published
        start += size
    return chosen


def _stride(owner: str, spacing: str, levels: int) -> list[int]:
    count = int(spacing.removeprefix("ddim"))
    for stride in range(1, levels):
        if len(range(0, levels, stride)) == count:
            return list(range(0, levels, stride))
    raise ValueError(f"{owner}: spacing={spacing!r}: no stride takes {count} of {levels} levels")
