"""Steps of a sampler as a CUDA graph: captured once, replayed for every step, with nothing left to do on the host.

What changes from step to step - coefficients, labels, counters of the noise - lies in tables on the device. The graph
first copies the row that a counter on the device names to fixed places, then makes the steps from there, and counts on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from fastscore.samplers.loop import Row, Run, Tables, run_rows
from fastscore.samplers.plan import Step

__all__ = ["Blocks", "StepGraph", "find_blocks"]

_LEAST = 3  # blocks that are worth a capture: one runs before it, so that kernels are loaded


@dataclass(frozen=True)
class Blocks:
    """Rows that repeat.

    Attributes:
        start: the first one.
        rows: rows of a block.
        count: blocks.
        copies: whether outputs of the network that one block keeps for the next are to be copied.
    """

    start: int
    rows: int
    count: int
    copies: bool

    @property
    def end(self) -> int:
        """The first row behind them."""
        return self.start + self.rows * self.count


def find_blocks(steps: Sequence[Step], rows: Sequence[Row], memory: int) -> Blocks | None:
    """The longest stretch of rows that repeat with a period, or None where nothing repeats often enough.

    Args:
        memory: how many outputs of the network are kept; where a block needs those of the block before, it makes a
            multiple of them, so that they come to lie where they lay.
    """
    likeness = [_likeness(step, row) for step, row in zip(steps, rows, strict=True)]
    best: Blocks | None = None
    starts = [i for i in range(len(steps)) if i == 0 or not steps[i - 1].stage]
    for start in starts[: 4 * memory + 4]:
        for period in range(1, (len(steps) - start) // _LEAST + 1):
            if best is not None and period > 8 * max(memory, best.rows):
                break
            block = range(start, start + period)
            kept = _keeps(steps, rows, block)
            rings = kept or any(rows[i].solver is not None for i in block)
            calls = sum(steps[i].label is not None for i in block)
            if steps[block[-1]].stage or (memory > 1 and rings and calls % memory):
                continue
            alike = period
            while start + alike < len(steps) and likeness[start + alike] == likeness[start + alike % period]:
                alike += 1
            copies = kept and any(rows[i].solver is None for i in block)
            found = Blocks(start, period, alike // period, copies)
            if found.count >= _LEAST and (best is None or found.rows * found.count > best.rows * best.count):
                best = found
    return best


def _likeness(step: Step, row: Row) -> tuple[object, ...]:
    """What two rows must share to be run by the same kernels on the same memory."""
    structure = (step.kind, step.ages, step.stage, step.draws, type(step.label), step.exponent is None)
    return (*structure, step.denoise is None, len(row.conversions), row.solver is None, row.terms)


def _keeps(steps: Sequence[Step], rows: Sequence[Row], block: range) -> bool:
    """Whether a row of the block uses an output of before the block."""
    calls = 0
    for i in block:
        if rows[i].solver is not None:
            if rows[i].terms > calls:
                return True
            calls += 1
        else:
            calls += steps[i].label is not None
            if max(steps[i].ages, default=-1) >= calls:
                return True
    return False


def capture(block: Callable[[], None]) -> Callable[[], None]:
    """Capture what a function starts on the current CUDA device; returns what replays it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        block()
    return graph.replay


def aside(block: Callable[[], None]) -> None:
    """Run a function on a stream of its own, as what runs before a capture must."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        block()
    torch.cuda.current_stream().wait_stream(stream)


class StepGraph:
    """The steps of a plan by a graph, for any number of runs on states like the first.

    Args:
        run: of which the state, the model and the memory stay in use.
        given: its tables.

    Raises:
        ValueError: too few steps are alike.
    """

    def __init__(self, run: Run, given: Tables) -> None:
        steps = run.plan.steps
        found = find_blocks(steps, given.rows, run.plan.memory)
        if found is None:
            raise ValueError(
                f"cuda_graph: a plan of {len(steps)} rows has no {_LEAST} blocks that are alike; take more steps, or "
                "cuda_graph=False"
            )
        self.run, self.blocks = run, found
        self._replay: Callable[[], None] | None = None
        if (found.copies or run.buffers) and len(run.buffers) < run.plan.memory:
            run.buffers.extend(torch.empty_like(run.x) for _ in range(run.plan.memory - len(run.buffers)))
        self._steps = steps[found.start : found.start + found.rows]
        self._at = torch.zeros(1, dtype=torch.int64, device=run.x.device)
        self._tables = self._of_blocks(given)
        self._now = [table[:1].clone() for table in self._tables]
        self._samples = None if given.samples is None else given.samples.clone()
        self._ring = list(run.buffers)
        self._here = self._views(given.rows)

    def __call__(self, given: Tables, progress: Callable[[range], Iterable[int]] = iter) -> None:
        """Run the plan from `run.x` on, with the tables of this run. `progress` wraps what counts the blocks."""
        run, found, steps = self.run, self.blocks, self.run.plan.steps
        for table, new in zip(self._tables, self._of_blocks(given), strict=True):
            table.copy_(new)
        if self._samples is not None and given.samples is not None:
            self._samples.copy_(given.samples)
        self._at.zero_()
        run.outputs.clear()
        run.buffers.clear()
        run.buffers.extend(self._ring)  # in the order of the capture
        run_rows(run, _cut(given, 0, found.start), steps[: found.start], copies=found.copies)
        for _ in progress(range(found.count)):
            if self._replay is not None:
                self._replay()
            else:
                aside(self._block)
                self._replay = capture(self._block)
        run_rows(run, _cut(given, found.end, len(steps)), steps[found.end :], first=found.end, copies=found.copies)

    def _block(self) -> None:
        for table, now in zip(self._tables, self._now, strict=True):
            torch.index_select(table, 0, self._at, out=now)
        run_rows(self.run, self._here, self._steps, copies=self.blocks.copies)
        self._at.add_(1)

    def _of_blocks(self, given: Tables) -> list[Tensor]:
        """The tables with one row per block: coefficients, labels, scales and counters, those that there are."""
        found = self.blocks
        values = torch.cat([piece for row in given.rows[found.start : found.end] for piece in _pieces(row)])
        labels = torch.stack(list(given.labels[found.start : found.end]))
        result = [values, labels]
        if given.scales is not None:
            result.append(given.scales[found.start : found.end])
        counters = [c for c in given.counters[found.start : found.end] if c is not None]
        if counters:
            result.append(torch.stack(counters))
        return [table.reshape(found.count, -1) for table in result]

    def _views(self, rows: Sequence[Row]) -> Tables:
        """The tables of one block, at the fixed places."""
        found, now = self.blocks, [table[0] for table in self._now]
        own = rows[found.start : found.start + found.rows]
        pieces = iter(now[0].split([len(piece) for row in own for piece in _pieces(row)]))
        here = [
            Row(
                tuple(next(pieces) for _ in row.conversions),
                next(pieces),
                None if row.solver is None else next(pieces),
                row.terms,
            )
            for row in own
        ]
        labels = now[1].reshape(found.rows, -1).unbind(0)
        rest = now[2:]
        drawn = self._samples is not None
        counters: Sequence[Tensor | None] = rest[-1].reshape(found.rows, 2).unbind(0) if drawn else [None] * found.rows
        scales = rest[0] if len(rest) > drawn else None
        return Tables(here, labels, scales, counters, self._samples)


def _pieces(row: Row) -> Iterable[Tensor]:
    return chain(row.conversions, (row.coefficients,), () if row.solver is None else (row.solver,))


def _cut(given: Tables, start: int, end: int) -> Tables:
    scales = None if given.scales is None else given.scales[start:end]
    return Tables(given.rows[start:end], given.labels[start:end], scales, given.counters[start:end], given.samples)
