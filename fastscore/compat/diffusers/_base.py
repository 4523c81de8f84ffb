"""What all schedulers here share: coefficients that are made once, the place in the schedule, and the fused step."""

from __future__ import annotations

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
from fastscore.ops import solver_step
from fastscore.samplers.base import check_choice
from fastscore.samplers.plan import OUTPUT

__all__ = ["FusedStep", "common", "draw", "refuse"]

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

    predictions: Sequence[str] = tuple(PREDICTIONS)

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
        check_choice(owner, "prediction_type", config.prediction_type, tuple(self.predictions))
        if config.get("thresholding", False) and config.sample_max_value != 1:
            raise ValueError(
                f"{owner}: with thresholding=True, sample_max_value must be 1, with which it is a clamp to [-1, 1], "
                f"got {config.sample_max_value!r}"
            )

    def _clip(self) -> float | None:
        """Bound of the clean image."""
        if self.config.get("thresholding", False):
            return 1.0
        return float(self.config.clip_sample_range) if self.config.get("clip_sample", False) else None

    def _restart(self) -> None:
        """The time grid is new: forget everything and make the rows."""
        self._tables: dict[Any, Any] = {}
        self._grid: list[float] = []
        self._grid_of: Tensor | None = None
        self._history: deque[Tensor] = deque()
        self._state: Tensor | None = None
        self._first = 0

    def _timetable(self) -> list[float]:
        """The time steps on the host."""
        if self._grid_of is not self.timesteps:  # they can be assigned to
            self._tables.clear()
            self._grid, self._grid_of = self.timesteps.tolist(), self.timesteps
        return self._grid

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
        """The place of a time step; of equal ones the second, as in diffusers: Heun's method starts there."""
        value = self._on_host(timestep)
        places = [i for i, known in enumerate(self._timetable()) if known == value][:2]
        if not places:
            raise ValueError(
                f"{type(self).__name__}: timestep must be one of the scheduler's {len(self._grid)} timesteps, "
                f"got {value!r}"
            )
        return places[-1]

    def _init_step_index(self, timestep: float | Tensor) -> None:
        self._step_index = self._index(timestep) if self.begin_index is None else self.begin_index
        self._first = self._step_index
        self._history.clear()
        self._state = None

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
        row = rows.coefficients.on(x.device, _checks.accumulation_dtype(dtype))[k]
        history = []
        for source in rows.sources[k]:
            if source == STATE:
                assert self._state is not None
                history.append(self._state)
            else:
                history.append(h if source == OUTPUT else self._history[source - 1])
        noise = None if noise is None else noise.to(dtype)
        exponent = None if exponent is None else exponent.to(dtype)
        out, prediction = solver_step(x, h, history, row, exponent=exponent, noise=noise)
        if rows.memory:
            if self._history.maxlen != rows.memory:
                self._history = deque(self._history, maxlen=rows.memory)
            self._history.appendleft(prediction)
        self._state = x if rows.stages[k] else None
        return out, prediction


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
