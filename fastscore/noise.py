"""Where noise comes from: a function of counters, torch's generators, or a recording.

`PhiloxNoise` is a function, not a stream: the noise of a sample depends on (seed, sample, draw, element) alone, so it
is the same in every batch, on every device, with any number of threads, before and after a restart. The kernels draw it
themselves and never store it. `TorchNoise` and `ReplayNoise` are streams, where the order of the calls decides.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["Noise", "PhiloxNoise", "ReplayNoise", "TorchNoise", "as_noise"]

Device = torch.device | str | None
MAX_DRAW = 2**32 - 1


class Noise(ABC):
    """Standard normals and random signs for the draws of a run.

    Attributes:
        counter_based: whether kernels can draw the noise themselves, from `rng_table` and `samples_for`.
    """

    counter_based: bool = False

    @abstractmethod
    def normal(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: Device = None, draw: int = 0
    ) -> Tensor:
        """Standard normals of `shape` (B, ...). `draw` says which of a run: 0 for the prior, i + 1 for step i."""

    @abstractmethod
    def rademacher(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: Device = None, draw: int = 0
    ) -> Tensor:
        """Random signs, +1 or -1 with probability 1/2 each, of `shape` (B, ...)."""

    def rng_table(self, draws: Iterable[int], device: Device = None) -> Tensor:
        """Rows (seed, draw), int64 (len(draws), 2): what a kernel takes as `rng`, for every draw of a run at once."""
        raise TypeError(f"{type(self).__name__} is not counter-based: it has no seed to hand to a kernel")

    def samples_for(self, batch: int, device: Device = None) -> Tensor:
        """Index of the sample in each row, int64 (batch,): what a kernel takes as `samples`."""
        raise TypeError(f"{type(self).__name__} is not counter-based: it does not know one sample from another")


class PhiloxNoise(Noise):
    """Counter-based noise: Philox 4x32-10 (Salmon et al. 2011) at (seed, sample, draw, element).

    Row b of a batch is sample `samples[b]`. To compute samples 64 to 127 of a run elsewhere, or in another order, give
    their indices: `PhiloxNoise(seed, samples=range(64, 128))` makes rows 64 to 127 of `PhiloxNoise(seed)`.

    Args:
        seed: any int64.
        samples: index of the sample in each row, int64 (B,) or a sequence of integers, all within int64; by default
            0, 1, 2 ..., for any batch.

    Raises:
        TypeError, ValueError: the seed or a sample is not an int64, or `samples` is not one-dimensional.
    """

    counter_based = True

    def __init__(self, seed: int, samples: Tensor | Sequence[int] | None = None) -> None:
        self.seed = _int64("PhiloxNoise", "seed", seed)
        self.samples = None if samples is None else _index_tensor("PhiloxNoise", "samples", samples)

    def normal(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: Device = None, draw: int = 0
    ) -> Tensor:
        from fastscore.ops.philox import philox_normal

        return philox_normal(shape, *self._counters(shape, draw, device), dtype)

    def rademacher(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: Device = None, draw: int = 0
    ) -> Tensor:
        from fastscore.ops.philox import philox_rademacher

        return philox_rademacher(shape, *self._counters(shape, draw, device), dtype)

    def rng_table(self, draws: Iterable[int], device: Device = None) -> Tensor:
        numbers = [_draw("PhiloxNoise", draw) for draw in draws]
        table = torch.empty(len(numbers), 2, dtype=torch.int64)
        table[:, 0] = self.seed
        table[:, 1] = torch.tensor(numbers, dtype=torch.int64)
        return table.to(device=device)

    def samples_for(self, batch: int, device: Device = None) -> Tensor:
        if self.samples is None:
            return torch.arange(batch, device=device)
        if len(self.samples) != batch:
            raise ValueError(f"PhiloxNoise: samples holds {len(self.samples)} indices, but the batch has {batch} rows")
        return self.samples.to(device=device)

    def select(self, rows: Tensor | Sequence[int]) -> PhiloxNoise:
        """The noise of some rows only: what they would have drawn in the whole batch.

        Args:
            rows: indices of rows, (n,) integers, or a mask of booleans (B,).
        """
        if isinstance(rows, Tensor) and rows.dtype == torch.bool:
            rows = rows.nonzero().squeeze(1) if rows.dim() == 1 else rows
        rows = _index_tensor("PhiloxNoise.select", "rows", rows)
        return PhiloxNoise(self.seed, rows if self.samples is None else self.samples[rows.to(self.samples.device)])

    def _counters(self, shape: Sequence[int], draw: int, device: Device) -> tuple[Tensor, Tensor]:
        if len(shape) == 0:
            raise ValueError("PhiloxNoise: shape must be (B, ...), got ()")
        rng = torch.tensor([self.seed, _draw("PhiloxNoise", draw)], device=device)
        return rng, self.samples_for(shape[0], rng.device)

    def __repr__(self) -> str:
        return f"PhiloxNoise({self.seed}{'' if self.samples is None else f', samples={self.samples.tolist()}'})"


class TorchNoise(Noise):
    """Noise of torch's generators, in the order in which it is asked for, as the published implementations draw it.

    Args:
        generator: the generator, on the device of the noise; by default torch's global one, see `torch.manual_seed`.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"TorchNoise: generator must be a torch.Generator or None, got {type(generator).__name__}")
        self.generator = generator

    def normal(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: Device = None, draw: int = 0
    ) -> Tensor:
        self._check(device)
        return torch.randn(tuple(shape), generator=self.generator, dtype=dtype, device=device)

    def rademacher(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: Device = None, draw: int = 0
    ) -> Tensor:
        self._check(device)
        return 2 * torch.randint(0, 2, tuple(shape), generator=self.generator, dtype=dtype, device=device) - 1

    def _check(self, device: Device) -> None:
        asked = torch.get_default_device() if device is None else torch.device(device)
        if self.generator is not None and self.generator.device.type != asked.type:
            raise ValueError(
                f"TorchNoise: the generator is on {self.generator.device}, but noise is asked for on {asked}; "
                f"make it there: torch.Generator({asked.type!r})"
            )


class ReplayNoise(Noise):
    """A recording: gives copies of the tensors in order, whatever they are asked for as.

    Args:
        tensors: one per draw.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = list(tensors)
        for i, tensor in enumerate(self.tensors):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"ReplayNoise: tensors[{i}] must be a tensor, got {type(tensor).__name__}")
        self.position = 0

    def normal(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: Device = None, draw: int = 0
    ) -> Tensor:
        return self._next(shape, dtype, device)

    def rademacher(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: Device = None, draw: int = 0
    ) -> Tensor:
        return self._next(shape, dtype, device)

    def rewind(self) -> None:
        """Start again at the first tensor."""
        self.position = 0

    def _next(self, shape: Sequence[int], dtype: torch.dtype, device: Device) -> Tensor:
        count, i = len(self.tensors), self.position
        if i == count:
            raise ValueError(f"ReplayNoise: the recording holds {count} tensors, and one more is asked for")
        tensor = self.tensors[i]
        asked = tensor.new_empty(0, device=device).device if device is not None else torch.get_default_device()
        if tensor.shape != tuple(shape):
            raise ValueError(
                f"ReplayNoise: tensors[{i}] has shape {tuple(tensor.shape)}, but noise of {tuple(shape)} is asked for"
            )
        if tensor.dtype != dtype:
            raise TypeError(f"ReplayNoise: tensors[{i}] is {tensor.dtype}, but noise of {dtype} is asked for")
        if tensor.device != asked:
            raise ValueError(f"ReplayNoise: tensors[{i}] is on {tensor.device}, but noise on {asked} is asked for")
        self.position += 1
        return tensor.clone()  # a sampler may go on in it


def as_noise(seed: int = 0, noise: Noise | None = None) -> Noise:
    """The noise given, or `PhiloxNoise(seed)`."""
    if noise is None:
        return PhiloxNoise(seed)
    if not isinstance(noise, Noise):
        hint = "; wrap it: TorchNoise(generator)" if isinstance(noise, torch.Generator) else ""
        raise TypeError(f"noise must be PhiloxNoise, TorchNoise or ReplayNoise, got {type(noise).__name__}{hint}")
    return noise


def _int64(owner: str, name: str, value: object) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{owner}: {name} must fit in 64 bits, [-2^63, 2^63), got {number}")
    return number


def _draw(owner: str, value: int) -> int:
    number = _int64(owner, "draw", value)
    if not 0 <= number <= MAX_DRAW:
        raise ValueError(f"{owner}: draw must lie in [0, 2^32), got {number}")
    return number


def _index_tensor(owner: str, name: str, value: Tensor | Sequence[int]) -> Tensor:
    if isinstance(value, Tensor):
        if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
            raise TypeError(f"{owner}: {name} must hold integers, got {value.dtype}")
        if value.dim() != 1:
            raise ValueError(f"{owner}: {name} must have one dimension, got shape {tuple(value.shape)}")
        return value.to(torch.int64)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{owner}: {name} must be a sequence of integers or an integer tensor, got {value!r}")
    return torch.tensor([_int64(owner, name, index) for index in value], dtype=torch.int64)
