"""The one loop that runs every plan: a network call and one fused kernel per row, no host synchronization between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fastscore.noise import Noise
from fastscore.ops._unchecked import unchecked
from fastscore.samplers.hooks import Hooks, Moment
from fastscore.samplers.plan import LANGEVIN, POINT, Plan, Step
from fastscore.sde import SDE

__all__ = [
    *("NonFiniteError", "Row", "Run", "Tables"),
    *("check_kept", "checked_result", "fitting", "run_rows", "tables", "with_progress"),
]

Item = TypeVar("Item")


class NonFiniteError(ArithmeticError):
    """The state of a sampler holds NaN or infinity."""


class Call(Protocol):
    """What is said of a network call whose output does not fit."""

    @property
    def exponent(self) -> float | None:
        """Not None where the network gives twice the channels; see `Step`."""

    @property
    def place(self) -> str:
        """Where the call was."""


@dataclass
class Run:
    """What a run works with.

    Attributes:
        plan: the table.
        model: ``h = model(x, labels)``, labels of shape (B,).
        x: state of shape (B, ...), overwritten.
        noise: counter-based noise is drawn inside the kernels; any other is asked for one tensor per row that draws.
        sde: handed to hooks.
        per_sample: Langevin norms per sample in place of means over the batch.
        hooks, check_finite, callback: see `Sampler.sample`.
        buffers: memory like x to keep outputs in, the oldest first, of an earlier run or empty; fresh memory is dear on
            a CPU.
        outputs: the last outputs, newest first.
    """

    plan: Plan
    model: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    noise: Noise
    sde: SDE
    per_sample: bool
    hooks: Hooks
    check_finite: bool
    callback: Callable[[int, Step, Tensor], None] | None
    buffers: deque[Tensor]
    outputs: deque[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = deque(maxlen=self.plan.memory)


class Tables(NamedTuple):
    """What the rows of a plan read on the device, one entry per row.

    Attributes:
        rows: coefficients.
        labels: (B,) each.
        scales: of the point in front of the network, or None where all are 1.
        counters: (seed, draw) of the row's noise, int64 (2,), or None where noise is not drawn by a counter.
        samples: the index of every sample, int64 (B,), or None likewise.
    """

    rows: Sequence[Row]
    labels: Sequence[Tensor]
    scales: Tensor | None
    counters: Sequence[Tensor | None]
    samples: Tensor | None


def tables(run: Run) -> Tables:
    """The tables of a run, moved to the device at once; makes room for the outputs that are kept."""
    plan, x = run.plan, run.x
    op_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = _prepared(plan, op_dtype, x, through_hooks=run.hooks.on_denoised_used)
    labels = plan.labels(x.shape[0], op_dtype, x.device).unbind(0)
    scales = plan.input_scales(x.dtype, x.device)
    counters: Sequence[Tensor | None] = [None] * len(plan.steps)
    samples = None
    if run.noise.counter_based:
        counters = run.noise.rng_table(range(1, len(plan.steps) + 1), x.device).unbind(0)
        samples = run.noise.samples_for(x.shape[0], x.device)
    if plan.memory > 1 and any(row.solver is not None for row in rows):
        run.buffers.extend(torch.empty_like(x) for _ in range(plan.memory - len(run.buffers)))
    return Tables(rows, labels, scales, counters, samples)


def run_rows(run: Run, given: Tables, steps: Iterable[Step], *, first: int = 0, copies: bool = False) -> None:
    """Move the state along some steps of the plan, from its row `first` on.

    Args:
        given: the tables, of which entry k belongs to the k-th step.
        copies: outputs of the network that are kept are copied to `run.buffers`.
    """
    x, hooks, noise, sde, model, plan = run.x, run.hooks, run.noise, run.sde, run.model, run.plan
    buffers, outputs = run.buffers, run.outputs
    rows, labels, scales, counters, samples = given
    ops = unchecked(x.device)
    point = x
    for k, (step, row) in enumerate(zip(steps, rows, strict=True)):
        i = first + k
        if hooks and point is x:
            hooks.before_step(x, _moment(i, step.t, x, sde, noise))
        raw, h, exponent = point, None, None
        if step.label is not None:
            h = fitting(model(point if scales is None else point * scales[k], labels[k]), x, step)
            if step.exponent is not None:
                h, exponent = h.chunk(2, 1)
            raw = h
            for conversion in row.conversions:
                h = ops.linear_step(h, [point], conversion, None, None, None)
                if conversion is row.conversions[0] and step.denoise is not None:
                    h = h if plan.clip is None else h.clamp_(-plan.clip, plan.clip)
                    h = h if not hooks else hooks.on_denoised(h, point, _moment(i, step.t, x, sde, noise))
            if plan.memory > 1 and row.solver is None and not row.conversions:
                check_kept(h, point, outputs, step)
        z = rng = ids = None
        if step.draws:
            if samples is None:
                z = noise.normal(x.shape, dtype=x.dtype, device=x.device, draw=i + 1)
            else:
                rng, ids = counters[k], samples
        if row.solver is not None:
            history = [outputs[age] for age in range(row.terms)]
            m = None
            if buffers:
                m = buffers[0]  # what is in it has grown too old to be used
                buffers.rotate(-1)
            ops.solver_step_(x, h, history, row.solver, exponent, z, rng, ids, m=m)
            if m is not None:
                outputs.appendleft(m)
        else:
            if h is not None:
                if copies:
                    h = buffers[0].copy_(h)
                    buffers.rotate(-1)
                outputs.appendleft(h)
            if step.kind == LANGEVIN:
                ops.langevin_step_(x, h, row.coefficients, z, rng, ids, run.per_sample)
            else:
                history = [outputs[age] if age >= 0 else point if age == POINT else raw for age in step.ages]
                if step.stage:
                    point = ops.linear_step(x, history, row.coefficients, z, rng, ids)
                else:
                    ops.linear_step_(x, history, row.coefficients, z, rng, ids)
        if not step.stage:
            point = x
            if hooks:
                hooks.after_step(x, _moment(i, step.t_next, x, sde, noise))
        if run.check_finite and not bool(torch.isfinite(point).all()):
            raise NonFiniteError(
                f"the state is not finite after step {i} ({step.name}) at t = {step.t:.6g}: the network output there "
                f"was {'finite' if h is None or bool(torch.isfinite(h).all()) else 'not finite'}"
            )
        if run.callback is not None:
            run.callback(i, step, x.clone())


@dataclass(frozen=True)
class Row:
    """The coefficients of a row on the device: of the network's output turned into other things, and of the update."""

    conversions: tuple[Tensor, ...]
    coefficients: Tensor
    solver: Tensor | None  # coefficients of solver_step, where it does conversion and update in one
    terms: int


def _prepared(plan: Plan, dtype: torch.dtype, x: Tensor, through_hooks: bool) -> list[Row]:
    """All coefficients, moved to the device at once."""
    rows: list[tuple[float, ...]] = []
    shapes = []
    for i, step in enumerate(plan.steps):
        solver = plan.solver_row(i, through_hooks)
        conversions = [c for c in (step.denoise, step.keep) if c is not None]
        if solver is not None and not through_hooks:
            conversions = []
        rows += [(q, p, 0.0) for p, q in conversions]
        rows.append(step.coefficients)
        if solver is not None:
            rows.append(solver)
        shapes.append((len(conversions), 0 if solver is None else len(solver) - 7, solver is not None))
    flat = torch.tensor([value for row in rows for value in row], dtype=torch.float64)
    placed = iter(flat.to(x.device, dtype).split([len(row) for row in rows]))
    return [
        Row(tuple(islice(placed, count)), next(placed), next(placed) if solved else None, terms)
        for count, terms, solved in shapes
    ]


def check_kept(h: Tensor, point: Tensor, outputs: Iterable[Tensor], step: Call) -> None:
    """What is used again later must not be memory that the network, or the update, writes to."""
    if isinstance(h, FakeTensor):
        return
    place = h.data_ptr()
    if h.numel() and any(place == other.data_ptr() for other in (point, *outputs)):
        raise ValueError(
            "the network returned memory that it had returned before, or its input; this sampler uses several outputs "
            f"at once, so return a new tensor at every call, such as output.clone() (at {step.place})"
        )


def _moment(index: int, t: float, x: Tensor, sde: SDE, noise: Noise) -> Moment:
    return Moment(index, torch.full((x.shape[0],), t, dtype=torch.float64, device=x.device), sde, noise)


def checked_result(x: Tensor) -> Tensor:
    """The samples, which must be finite."""
    # one pass over x, where isfinite takes five
    if x.numel() and not isinstance(x, FakeTensor) and not bool(torch.isfinite(torch.stack(torch.aminmax(x))).all()):
        raise NonFiniteError(
            "the samples are not finite; sample with check_finite=True to learn at which step and time it began"
        )
    return x


def fitting(h: object, x: Tensor, step: Call) -> Tensor:
    """The network's output in the state's dtype; raises where it is not a tensor like the state."""
    shape = x.shape if step.exponent is None else (x.shape[0], 2 * x.shape[1], *x.shape[2:])
    if type(h) is Tensor and h.shape == shape and h.dtype == x.dtype and h.device == x.device:
        return h
    if not isinstance(h, Tensor):
        raise TypeError(f"the network must return a tensor, got {type(h).__name__} at {step.place}")
    if h.shape != shape or h.device != x.device:
        what = "like its input" if step.exponent is None else "with twice the channels of its input"
        raise ValueError(
            f"the network must return a tensor {what}, {tuple(shape)} on {x.device}, "
            f"got {tuple(h.shape)} on {h.device} at {step.place}"
        )
    if not h.is_floating_point():
        raise TypeError(f"the network must return a floating-point tensor, got {h.dtype} at {step.place}")
    return h.to(x.dtype)


def with_progress(steps: Iterable[Item]) -> Iterable[Item]:
    """A progress bar over the steps."""
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from error
    return tqdm(steps, desc="sampling", unit="step")
