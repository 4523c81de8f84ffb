"""Where control reaches into a sampler: around a step, at the clean image the network predicts, and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fastscore.noise import Noise
from fastscore.sde import SDE

__all__ = ["Hook", "Moment"]

_FIRST_DRAW, _DRAWS = 2**31, 256  # beyond the draws of any sampler; draws of one moment


@dataclass(frozen=True)
class Moment:
    """When a hook is called.

    Attributes:
        index: number of the step, or of the trial of an adaptive sampler.
        t: time of the state that is handed over, float64 of shape (B,).
        sde: the forward SDE; ``sde.marginal(t)`` gives alpha and sigma.
        noise: noise of the rows that are handed over (adaptive samplers drop finished ones).
        rows: which rows of the batch are handed over, int64 (n,); None: all.
        batch: how many rows the batch has; None: as many as are handed over.
    """

    index: int
    t: Tensor
    sde: SDE
    noise: Noise
    rows: Tensor | None = None
    batch: int | None = None

    def of_rows(self, value: Tensor, name: str) -> Tensor:
        """What belongs to the rows that are handed over, of a value (B, ...) for the whole batch, or (1, ...) for all.

        Raises:
            ValueError: for another number of rows; calls the value by its name.
        """
        batch = len(self.t) if self.batch is None else self.batch
        if len(value) not in (1, batch):
            raise ValueError(f"{name} must have 1 row, or one per sample of the batch, {batch}, got {len(value)}")
        return value if self.rows is None or len(value) == 1 else value.index_select(0, self.rows)

    def normal(self, like: Tensor, draw: int = 0) -> Tensor:
        """Standard normals like a state. The same (sample, index, draw) gives the same; draw counts from 0 to 255."""
        return self.noise.normal(like.shape, dtype=like.dtype, device=like.device, draw=self._number(draw))

    def drawn(self, like: Tensor, draw: int = 0) -> dict[str, Tensor]:
        """`normal(like, draw)` as an op takes it: its ``rng`` and ``samples``, or ``noise`` that has no counter."""
        if not self.noise.counter_based:
            return {"noise": self.normal(like, draw)}
        # a copy that the host does not wait for
        rng = self.noise.rng_table([self._number(draw)])[0].to(like.device, non_blocking=True)
        return {"rng": rng, "samples": self.noise.samples_for(like.shape[0], like.device)}

    def _number(self, draw: int) -> int:
        if not 0 <= draw < _DRAWS:
            raise ValueError(f"normal: draw must lie in [0, {_DRAWS}), got {draw}")
        return _FIRST_DRAW + self.index * _DRAWS + draw


class Hook:
    """Called by every sampler; override what is needed. What is returned replaces what came, None leaves it.

    `on_denoised` is called at every network call, also at those between two states of the sampler; the others at
    states alone. A hook must treat every row of the batch by itself, and must not write into what it is given, but
    for the state before or after a step, which it may overwrite and return.
    """

    def before_step(self, x: Tensor, moment: Moment) -> Tensor | None:
        """The state x (B, ...) before a step; `moment.t` is its time."""
        return None

    def on_denoised(self, denoised: Tensor, x: Tensor, moment: Moment) -> Tensor | None:
        """The clean image (B, ...) that the network predicts at the point x, at time `moment.t`."""
        return None

    def after_step(self, x: Tensor, moment: Moment) -> Tensor | None:
        """The state x (B, ...) after a step; `moment.t` is its new time."""
        return None

    def at_end(self, samples: Tensor) -> Tensor | None:
        """The samples (B, ...) of the whole batch, when all is done."""
        return None


class Hooks:
    """Several hooks as one, called in order."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        for i, hook in enumerate(hooks):
            if not isinstance(hook, Hook):
                raise TypeError(f"hooks[{i}] must be a fastscore.samplers.Hook, got {type(hook).__name__}")
        self._before, self._denoised, self._after, self._end = (
            [getattr(hook, name) for hook in hooks if getattr(type(hook), name) is not getattr(Hook, name)]
            for name in ("before_step", "on_denoised", "after_step", "at_end")
        )

    def __bool__(self) -> bool:
        return bool(self._before or self._denoised or self._after or self._end)

    @property
    def states_used(self) -> bool:
        """Whether a state may be changed."""
        return bool(self._before or self._after)

    @property
    def on_denoised_used(self) -> bool:
        """Whether the clean image has to be formed."""
        return bool(self._denoised)

    def before_step(self, x: Tensor, moment: Moment) -> None:
        """Run them; x is written to."""
        for hook in self._before:
            _replace(x, hook(x, moment), "before_step")

    def on_denoised(self, denoised: Tensor, x: Tensor, moment: Moment) -> Tensor:
        """Run them and return the clean image."""
        for hook in self._denoised:
            new = hook(denoised, x, moment)
            if new is not None:
                denoised = _checked(denoised, new, "on_denoised")
        return denoised

    def after_step(self, x: Tensor, moment: Moment) -> None:
        """Run them; x is written to."""
        for hook in self._after:
            _replace(x, hook(x, moment), "after_step")

    def at_end(self, samples: Tensor) -> Tensor:
        """Run them and return the samples."""
        for hook in self._end:
            new = hook(samples)
            if new is not None:
                samples = _checked(samples, new, "at_end")
        return samples


def _replace(x: Tensor, new: Tensor | None, name: str) -> None:
    if new is not None and new is not x:
        x.copy_(_checked(x, new, name))


def _checked(old: Tensor, new: object, name: str) -> Tensor:
    if not isinstance(new, Tensor):
        raise TypeError(f"{name}: a hook must return a tensor or None, got {type(new).__name__}")
    if new.shape != old.shape or new.device != old.device:
        raise ValueError(
            f"{name}: a hook must return a tensor like the one it is given, {tuple(old.shape)} on {old.device}, "
            f"got {tuple(new.shape)} on {new.device}"
        )
    return new.to(old.dtype)
