"""The network at times that every sample has for itself, and the linear algebra of one trial step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastscore.noise import Noise, PhiloxNoise
from fastscore.ops._unchecked import unchecked
from fastscore.samplers.hooks import Hooks, Moment
from fastscore.samplers.loop import check_kept, fitting
from fastscore.samplers.row_network import RowNetwork
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["Network", "Points", "constant", "folded"]


@dataclass(frozen=True)
class Points:
    """How the network is called, and read, at S times per sample.

    Attributes:
        t: the times, float64 (S, n).
        labels: what the network is told, (S, n).
        scales: factors of the points in front of the network, (S, n, 1 ...), or None.
        clean: rows of `linear_step` that turn an output into the clean image, (S, n, 3), or None.
        p, q: the target is ``p point + q output``, float64 (S, n).
    """

    t: Tensor
    labels: Tensor
    scales: Tensor | None
    clean: Tensor | None
    p: Tensor
    q: Tensor

    def select(self, rows: Tensor) -> Points:
        """The same for some of the samples."""

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.index_select(1, rows)

        t, labels, p, q = (tensor.index_select(1, rows) for tensor in (self.t, self.labels, self.p, self.q))
        return Points(t, labels, pick(self.scales), pick(self.clean), p, q)


@dataclass(frozen=True)
class _Place:
    """Where a network call was, for messages."""

    name: str
    t: Tensor
    exponent = None

    @property
    def place(self) -> str:
        return f"a trial of {self.name}, t = {float(self.t.max()):.6g}"


class Network:
    """A model with its convention and hooks, for states like x whose rows have times of their own.

    Args:
        name: of the solver, for messages.
        model, sde, convention, hooks, noise: of the run.
        x: a state of the whole batch.
        tolerance: ``(atol, rtol, kind)`` of `error_norm`.
    """

    def __init__(
        self,
        name: str,
        model: Callable[[Tensor, Tensor], Tensor],
        sde: SDE,
        convention: Convention,
        hooks: Hooks,
        noise: Noise,
        x: Tensor,
        tolerance: tuple[float, float, str],
    ) -> None:
        self.name, self.model, self.sde, self.convention, self.hooks = name, model, sde, convention, hooks
        self.ndim, self.dtype, self.device = x.ndim, x.dtype, x.device
        self.op_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.batch, self.noise = x.shape[0], noise
        if isinstance(noise, PhiloxNoise):
            self.noise = PhiloxNoise(noise.seed, noise.samples_for(self.batch, x.device))
        self._ops = unchecked(x.device)
        self._tolerance = tolerance

    def points(self, times: Tensor, target: str) -> Points:
        """Labels and conversions at the times (S, n), in one go."""
        convention, clean = self.convention, None
        labels = convention.labels(self.sde, times)
        if labels.dtype != torch.int64:
            labels = labels.to(self.op_dtype)
        scales = None
        if convention.prediction == "edm":
            scales = convention.input_scale(self.sde, times).to(self.dtype)
            scales = scales.reshape(*times.shape, *[1] * (self.ndim - 1))
        if self.hooks.on_denoised_used:
            clean = self.rows(*reversed(convention.coefficients(self.sde, times, "denoised")))
            convention = replace(convention, prediction="denoised")
        p, q = convention.coefficients(self.sde, times, target)
        return Points(times, labels, scales, clean, p, q)

    def __call__(
        self, x: Tensor, points: Points, i: int, index: int, rows: Tensor, others: Sequence[Tensor] = ()
    ) -> Tensor:
        """The network at x (n, ...), point i, in trial `index`.

        Args:
            rows: of the batch that x holds, int64 (n,).
            others: outputs that are still in use.
        """
        t = points.t[i]
        place = _Place(self.name, t)
        model = self.model.select(rows) if isinstance(self.model, RowNetwork) else self.model
        h = model(x if points.scales is None else x * points.scales[i], points.labels[i])
        h = fitting(h, x, place)
        if points.clean is not None:
            h = self.linear_step(h, [x], points.clean[i])
            return self.hooks.on_denoised(h, x, self.moment(index, t, rows))
        check_kept(h, x, others, place)
        return h

    def moment(self, index: int, t: Tensor, rows: Tensor) -> Moment:
        """What hooks are told of some rows of the batch (n,) at their times t, float64 (n,)."""
        return Moment(index, t, self.sde, self.noise_of(rows), rows, self.batch)

    def rows(self, *columns: Tensor) -> Tensor:
        """Rows of `linear_step` without noise, from columns (..., n)."""
        return torch.stack((*columns, torch.zeros_like(columns[0])), -1).to(self.op_dtype)

    def linear_step(
        self, x: Tensor, history: Sequence[Tensor], rows: Tensor, noise: tuple[Tensor | None, ...] = (None, None, None)
    ) -> Tensor:
        """`fastscore.ops.linear_step`, with what `draw` gave, or without noise."""
        return self._ops.linear_step(x, history, rows, *noise)

    def draw(self, x: Tensor, noise: Noise, number: int) -> tuple[Tensor | None, ...]:
        """Noise like x for `linear_step`: a tensor, or what a kernel needs to draw it."""
        if noise.counter_based:
            return None, noise.rng_table([number], self.device)[0], noise.samples_for(len(x), self.device)
        return noise.normal(x.shape, dtype=self.dtype, device=self.device, draw=number), None, None

    def error_norm(self, terms: Sequence[Tensor], weights: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`fastscore.ops.error_norm` at the sampler's tolerance, for weights (n, K) or (K,)."""
        return self._ops.error_norm(terms, weights.to(self.op_dtype), u, v, *self._tolerance)

    def noise_of(self, rows: Tensor) -> Noise:
        """Noise of some rows of the batch (m,)."""
        return self.noise.select(rows) if isinstance(self.noise, PhiloxNoise) else _Rows(self.noise, rows, self.batch)


class _Rows(Noise):
    """Some rows of noise that is drawn for the whole batch: a stream goes on as if nobody had left."""

    def __init__(self, noise: Noise, rows: Tensor, batch: int) -> None:
        self.noise, self.rows, self.batch = noise, rows, batch

    def normal(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        draw: int = 0,
    ) -> Tensor:
        whole = self.noise.normal((self.batch, *shape[1:]), dtype=dtype, device=device, draw=draw)
        return whole.index_select(0, self.rows)

    def rademacher(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        draw: int = 0,
    ) -> Tensor:
        whole = self.noise.rademacher((self.batch, *shape[1:]), dtype=dtype, device=device, draw=draw)
        return whole.index_select(0, self.rows)


@functools.cache
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A small tensor, copied to the device once."""
    return torch.tensor(values, dtype=torch.float64).to(device, dtype)


def folded(x_weights: Tensor, weights: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Points of an explicit scheme in terms of the state and of what the network gives, with nothing in between.

    A scheme in terms of m_j = p_j X_j + q_j h_j, h_j the output at its point X_j: X_0 = x, and
    X_i = v_i x + sum_{j < i} w_ij m_j, i = 1 ... R. A row may be something else, too, such as an error estimate.

    Args:
        x_weights: v, float64 (R, 1) or (R, n).
        weights: w, (R, J, n) for j = 0 ... J - 1, zero for j >= i.
        p, q: (J, n).

    Returns:
        Rows i = 1 ... R of weights of x, h_0 ... h_{J - 1}, and a zero: (R, n, J + 2).
    """
    count, outputs, n = weights.shape
    rows = weights.new_zeros(count + 1, n, outputs + 2)
    rows[0, :, 0] = 1
    rows[1:, :, 0] = x_weights
    own = weights.new_zeros(outputs, n, outputs + 2)  # the part of m_j that is its own output
    own.diagonal(1, 0, 2).copy_(q.t())
    # elementwise, in a fixed order: a product of matrices may round by how many samples there are
    columns = zip(weights[..., None].unbind(1), p[..., None].unbind(0), own.unbind(0), strict=True)
    for j, (weight, of_point, of_output) in enumerate(columns):
        term = rows[j] * of_point + of_output
        rows[j + 1 :].add_(weight[j:] * term)
    return rows[1:]
