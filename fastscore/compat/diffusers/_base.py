"""What all schedulers here share: coefficients that are made once, the place in the schedule, and the fused step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastscore import _checks
from fastscore.compat.diffusers._rows import PREDICTIONS, STATE, Rows
from fastscore.ops import linear_step, solver_step
from fastscore.samplers.base import check_choice, check_number
from fastscore.samplers.grid import Node
from fastscore.samplers.plan import OUTPUT
from fastscore.samplers.table import Table
from fastscore.samplers.thresholding import quantile

__all__ = ["FusedStep", "Generators", "common", "draw", "refuse"]

Generators = torch.Generator | list[torch.Generator] | None


def draw(like: Tensor, generator: Generators, dtype: torch.dtype | None = None) -> Tensor:
    """Standard normals as diffusers draws them for a network output."""
    noise: Tensor = randn_tensor(like.shape, generator=generator, device=like.device, dtype=dtype or like.dtype)
    return noise


def refuse(owner: str, config: Any, **accepted: object) -> None:
    """Raise unless the options of a configuration have the one value that is accepted, or do not exist."""
    for name, value in accepted.items():
        if config.get(name, value) != value:
            raise ValueError(f"{owner}: {name} must be {value!r}, got {config[name]!r}, which is not supported")


class FusedStep(SchedulerMixin, ConfigMixin):
    """Stands before a stock scheduler, whose configuration, time grid and counters it uses.

    Rows of coefficients are made when the time grid is, in float64 on the host, and moved to a device once.
    """

    _predictions: Sequence[str] = tuple(PREDICTIONS)

    # of the stock schedulers
    timesteps: Tensor
    sigmas: Tensor
    begin_index: int | None
    _step_index: int | None

    def register_to_config(self, **kwargs: Any) -> None:
        """Take the configuration; the constructor does so before anything else."""
        super().register_to_config(**kwargs)
        self._check()
        self._restart()

    def _check(self) -> None:
        """Raise a ValueError for configurations that are not supported."""
        owner, config = type(self).__name__, self.config
        check_choice(owner, "prediction_type", config.prediction_type, tuple(self._predictions))
        if config.get("thresholding", False):
            ratio, most = config.dynamic_thresholding_ratio, config.sample_max_value
            check_number(owner, "dynamic_thresholding_ratio", ratio, above=0.0, most=1.0)
            check_number(owner, "sample_max_value", most, above=0.0)

    def _check_signal(self, node: Node, t: int) -> None:
        """Raise where the prediction says nothing of the clean image."""
        if node.alpha == 0 and self.config.prediction_type == "epsilon":
            raise ValueError(
                f"{type(self).__name__}: there is no signal at timestep {t}; prediction_type must be 'sample' or "
                "'v_prediction', got 'epsilon'"
            )

    def _clip(self) -> float | None:
        """Bound of the clean image; infinity where it follows the image."""
        if self.config.get("thresholding", False):
            return 1.0 if self.config.sample_max_value == 1 else math.inf
        return float(self.config.clip_sample_range) if self.config.get("clip_sample", False) else None

    def _tabulate(self, *options: Any) -> Table:
        """Write down the steps from place `_first` on, for the options that a step has."""
        raise NotImplementedError

    def _restart(self) -> None:
        """The time grid is new: forget the run and what was made for it."""
        self._made: dict[tuple[float, ...], Rows] = {}
        self._grid: list[float] = []
        self._grid_of: Tensor | None = None
        self._history: deque[Tensor] = deque()
        self._state: Tensor | None = None
        self._first = 0

    def _timetable(self) -> list[float]:
        """The time steps on the host."""
        if self._grid_of is not self.timesteps:  # they can be assigned to
            self._made.clear()
            self._grid, self._grid_of = self.timesteps.tolist(), self.timesteps
            # of equal ones the last is found, as in diffusers: Heun's method starts there
            self._places = {value: i for i, value in enumerate(self._grid)}
        return self._grid

    def _rows(self, *options: float) -> Rows:
        """The rows from place `_first` on."""
        self._timetable()
        key = self._first, *options
        if key not in self._made:
            rows = Rows(self._tabulate(*options).plan(), apart=self._clip() == math.inf)
            rows.coefficients.on(self.timesteps.device, torch.float32)  # by set_timesteps, not by the first step
            self._made[key] = rows
        return self._made[key]

    def _on_host(self, timestep: float | Tensor) -> float:
        """The value of a time step; of one of `timesteps` without waiting for the device."""
        if not isinstance(timestep, Tensor):
            return timestep
        grid = self._timetable()
        if timestep.device.type != "cpu" and timestep.dim() == 0:
            mine = self.timesteps
            if timestep.untyped_storage().data_ptr() == mine.untyped_storage().data_ptr():
                return grid[(timestep.storage_offset() - mine.storage_offset()) // mine.stride(0)]
        return timestep.item()

    def _index(self, timestep: float | Tensor) -> int:
        """The place of a time step."""
        value, count = self._on_host(timestep), len(self._timetable())
        if value not in self._places:
            raise ValueError(
                f"{type(self).__name__}: timestep must be one of the scheduler's {count} timesteps, got {value!r}"
            )
        return self._places[value]

    def _init_step_index(self, timestep: float | Tensor) -> None:
        self._step_index = self._index(timestep) if self.begin_index is None else self.begin_index
        self._first = self._step_index

    def _place(self, timestep: float | Tensor) -> int:
        """The place of a step of a scheduler that counts its steps."""
        if self._step_index is None:
            self._init_step_index(timestep)
        i = self._step_index
        assert i is not None
        if not 0 <= i < len(self._timetable()):
            raise ValueError(
                f"{type(self).__name__}: all {len(self._grid)} steps are done; call set_timesteps before another run"
            )
        return i

    def _fused(
        self,
        rows: Rows,
        k: int,
        model_output: Tensor,
        sample: Tensor,
        noise: Tensor | None = None,
        exponent: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The next state and the prediction, by row k."""
        owner = type(self).__name__
        x, h, dtype = common(owner, model_output, sample)
        row_dtype = _checks.accumulation_dtype(dtype)
        row = rows.coefficients.on(x.device, row_dtype)[k]
        history = []
        for source in rows.sources[k]:
            if source == STATE:
                assert self._state is not None
                history.append(self._state)
            else:
                history.append(h if source == OUTPUT else self._history[source - 1])
        noise = None if noise is None else noise.to(dtype)
        exponent = None if exponent is None else exponent.to(dtype)
        if rows.conversions is not None:
            h = self._thresholded(linear_step(x, (h,), rows.conversions.on(x.device, row_dtype)[k]))
        out, prediction = solver_step(x, h, history, row, exponent=exponent, noise=noise)
        if rows.memory > 0:
            if self._history.maxlen != rows.memory:
                self._history = deque(self._history, maxlen=rows.memory)
            self._history.appendleft(prediction)
        self._state = x if rows.stages[k] else None
        return out, prediction

    def _thresholded(self, clean: Tensor) -> Tensor:
        """The clean image with the dynamic thresholding of Saharia et al., arXiv 2205.11487, section 2.3."""
        bound = quantile(clean.abs().reshape(len(clean), -1), self.config.dynamic_thresholding_ratio)
        bound = bound.clamp(1.0, self.config.sample_max_value).to(clean.dtype)  # the largest wins, as in diffusers
        bound = bound.reshape(-1, *[1] * (clean.ndim - 1))
        return clean.clamp(-bound, bound) / bound


def common(owner: str, model_output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
    """State and output of the network in the wider of their dtypes, and that dtype."""
    _checks.is_state(owner, "sample", sample)
    _checks.is_state(owner, "model_output", model_output)
    dtype = sample.dtype
    if model_output.dtype != dtype:
        dtype = torch.promote_types(dtype, model_output.dtype)
    x, h = sample.to(dtype), model_output.to(dtype)
    _checks.matches(owner, "model_output", h, x, "sample")
    return x, h, dtype
