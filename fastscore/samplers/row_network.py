"""Networks that know something of every sample of the batch, such as its class."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

__all__ = ["RowNetwork"]


class RowNetwork(nn.Module, ABC):
    """A network that has something of its own for every row of the batch.

    Adaptive samplers, which drop the samples that have arrived, call `select(rows)` in place of the network itself.
    """

    @abstractmethod
    def select(self, rows: Tensor) -> RowNetwork:
        """The network for some rows of the batch, int64 (n,), in that order."""
