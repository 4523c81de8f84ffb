"""How a table is written down: as the paper writes the solver, in the state and in what the network predicts.

`Table` folds the network's convention into every row, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from fastscore.samplers.grid import Node
from fastscore.samplers.plan import LANGEVIN, LINEAR, OUTPUT, POINT, Plan, Step
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["Expression", "Table"]

Symbol = tuple[str, int]


class Expression:
    """A linear combination of the state and of the network's outputs; supports +, -, * and / with numbers."""

    def __init__(self, terms: dict[Symbol, float]) -> None:
        self.terms = terms

    def __add__(self, other: Expression) -> Expression:
        symbols = {**self.terms, **other.terms}
        return Expression({s: self.terms.get(s, 0.0) + other.terms.get(s, 0.0) for s in symbols})

    def __sub__(self, other: Expression) -> Expression:
        return self + -1.0 * other

    def __mul__(self, factor: float) -> Expression:
        return Expression({s: factor * weight for s, weight in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Expression:
        return self * (1.0 / divisor)

    def __neg__(self) -> Expression:
        return self * -1.0


@dataclass(frozen=True)
class _Call:
    """A network call that waits for the row it belongs to."""

    node: Node
    marginal: tuple[float, float]
    denoise: tuple[float, float] | None
    keep: tuple[float, float] | None


class Table:
    """Collects the rows of a plan.

    A solver asks for predictions with `evaluate` and moves with `step`, or with `stage` to a point where only the
    network looks::

        x = table.x
        d0 = table.evaluate("denoised", node)
        table.stage(..., middle)
        d1 = table.evaluate("denoised", middle)
        table.step(a * x + b * d0 + c * d1, next_node)

    An expression with the state in it is good until the next `step`. With ``keep=True`` a prediction outlives it.

    Args:
        sde, convention: how network outputs are read.
        denoised: hand the clean image to hooks at every call.
        clip: bound of the clean image, or None.
    """

    def __init__(self, sde: SDE, convention: Convention, *, denoised: bool = False, clip: float | None = None) -> None:
        self.sde, self.convention, self.clip = sde, convention, clip
        self._through_denoised = denoised or clip is not None
        self._rows: list[Step] = []
        self._calls = 0
        self._version = 0
        self._noisy_points = 0
        self._call: _Call | None = None
        self._point: Expression = self.x  # what the next call sees
        self._node: Node | None = None  # where the state lies, once a step has led there

    @property
    def x(self) -> Expression:
        """The state as it is now."""
        return Expression({("x", self._version): 1.0})

    @property
    def point(self) -> Expression:
        """What the network has just seen, or will see next: the state, or what a `stage` made."""
        return self._point

    def evaluate(self, target: str, node: Node, *, keep: bool = False) -> Expression:
        """Call the network at the current point, which lies at `node`; gives what is asked for.

        Args:
            target: ``"score"``, ``"noise"``, ``"denoised"`` or ``"v"``.
            keep: the result is used after the next `step`, too.
        """
        assert self._call is None, "two calls at one point"
        alpha, sigma = node.alpha, node.sigma
        if self.convention.follows_chain:
            time = torch.tensor(node.t, dtype=torch.float64)
            alpha, sigma = (float(value) for value in self.convention.marginal(self.sde, time))
        denoise, convention = None, self.convention
        if self._through_denoised:
            denoise = convention.conversion(alpha, sigma, "denoised")
            convention = replace(convention, prediction="denoised")
        p, q = convention.conversion(alpha, sigma, target)
        output = Expression({("m", self._calls): 1.0})
        kept = (p, q) if keep and p != 0 else None
        self._call = _Call(node, (alpha, sigma), denoise, kept)
        self._calls += 1
        return output if kept else p * self._point + q * output

    def untouched(self, target: str) -> Expression:
        """What the network predicts at the point of the last `evaluate`, neither clipped nor seen by hooks.

        For the row of that call alone.
        """
        call = self._call
        assert call is not None, "no call waits for its row"
        p, q = self.convention.conversion(*call.marginal, target)
        converted = call.denoise is not None or call.keep is not None
        return p * self._point + q * Expression({("h" if converted else "m", self._calls - 1): 1.0})

    def step(
        self, expression: Expression, node: Node, *, noise: float = 0.0, draws: bool | None = None,
        exponent: float | None = None, name: str = "",
    ) -> None:  # fmt: skip
        """Move the state to `expression` plus `noise` times a standard normal; it lies at `node` then.

        Args:
            draws: ask for noise; by default where its weight is not zero.
            exponent: e, where noise is scaled by ``exp(e v)`` with v from the network.
        """
        draws = noise != 0 if draws is None else draws
        self._emit(expression, node, noise, draws, name, exponent=exponent)
        self._version += 1
        self._point, self._node = self.x, node

    def stage(self, expression: Expression, node: Node, *, noise: float = 0.0, name: str = "") -> None:
        """Let the next call look at `expression` plus noise, at `node`; the state stays."""
        self._emit(expression, node, noise, noise != 0, name, stage=True)
        self._noisy_points += noise != 0
        self._point = expression if noise == 0 else Expression({("y", self._noisy_points): 1.0})

    def langevin(self, tau: float, node: Node, name: str = "") -> None:
        """A step along the score whose length follows from norms and tau; the state stays at `node`."""
        score = self.evaluate("score", node)
        p, q = score.terms.get(("x", self._version), 0.0), score.terms["m", self._calls - 1]
        self._rows.append(self._row(name, LANGEVIN, node, (p, q, tau), (0,)))
        self._version += 1
        self._point = self.x

    def plan(self) -> Plan:
        """What was collected."""
        assert self._call is None, "a call without a row"
        called = [i for i, row in enumerate(self._rows) if row.label is not None]
        times = torch.tensor([self._rows[i].t for i in called], dtype=torch.float64)
        labels = self.convention.labels(self.sde, times).tolist()
        scales = self.convention.input_scale(self.sde, times).tolist()
        rows = list(self._rows)
        for i, label, scale in zip(called, labels, scales, strict=True):
            rows[i] = replace(rows[i], label=label, input_scale=scale)
        return Plan(tuple(rows), self.clip)

    def _emit(
        self, expression: Expression, node: Node, noise: float, draws: bool, name: str, *,
        stage: bool = False, exponent: float | None = None,
    ) -> None:  # fmt: skip
        assert all(math.isfinite(weight) for weight in expression.terms.values()), f"{name}: {expression.terms}"
        terms = {symbol: weight for symbol, weight in expression.terms.items() if weight != 0}
        a = terms.pop(("x", self._version), 0.0)
        ages = {self._age(symbol, name): weight for symbol, weight in terms.items()}
        order = tuple(sorted(ages))
        row = self._row(name, LINEAR, node, (a, *(ages[age] for age in order), noise), order)
        self._rows.append(replace(row, stage=stage, exponent=exponent, draws=draws))

    def _age(self, symbol: Symbol, name: str) -> int:
        kind, index = symbol
        if kind == "m":
            return self._calls - 1 - index
        if kind == "h":
            assert index == self._calls - 1, f"{name}: the network has been called since {symbol}"
            return OUTPUT
        assert (kind, index) == ("y", self._noisy_points), f"{name}: the state is not any more what {symbol} was"
        return POINT

    def _row(self, name: str, kind: str, node: Node, row: tuple[float, ...], ages: tuple[int, ...]) -> Step:
        call, self._call = self._call, None
        if call is None:
            return Step(name, kind, (self._node or node).t, node.t, None, 1.0, row, ages)
        return Step(name, kind, call.node.t, node.t, 0, 1.0, row, ages, denoise=call.denoise, keep=call.keep)
