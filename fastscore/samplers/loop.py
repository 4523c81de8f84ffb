"""The one loop that runs every plan: a network call and one fused kernel per row, no host synchronization between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fastscore.noise import Noise
from fastscore.ops._unchecked import unchecked
from fastscore.samplers.plan import LINEAR, Plan, Step

__all__ = ["NonFiniteError", "run_plan"]


class NonFiniteError(ArithmeticError):
    """The state of a sampler holds NaN or infinity."""


def run_plan(
    plan: Plan,
    model: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    noise: Noise,
    *,
    per_sample: bool = False,
    check_finite: bool = False,
    progress: bool = False,
    callback: Callable[[int, Step, Tensor], None] | None = None,
) -> Tensor:
    """Run a plan from the state x, which is overwritten and returned.

    Args:
        plan: the table.
        model: ``h = model(x, labels)``, labels of shape (B,).
        x: state of shape (B, ...).
        noise: counter-based noise is drawn inside the kernels; any other is asked for one tensor per step, in order,
            also for steps that do not use it (published implementations draw it there too).
        per_sample: Langevin norms per sample in place of means over the batch.
        check_finite, progress, callback: see `Sampler.sample`.
    """
    op_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    coefficients = plan.coefficients(op_dtype, x.device).unbind(0)
    labels = plan.labels(x.shape[0], op_dtype, x.device).unbind(0)
    scales = plan.input_scales(x.dtype, x.device)
    counters: Sequence[Tensor | None] = [None] * plan.nfe
    samples = None
    if noise.counter_based:
        counters = noise.rng_table(range(1, plan.nfe + 1), x.device).unbind(0)
        samples = noise.samples_for(x.shape[0], x.device)
    linear_step_, langevin_step_ = unchecked(x.device)
    like = x.shape, x.dtype, x.device
    rows = zip(_with_progress(plan.steps) if progress else plan.steps, coefficients, labels, counters, strict=True)
    for i, (step, row, label, rng) in enumerate(rows):
        h = model(x if scales is None else x * scales[i], label)
        if type(h) is not Tensor or (h.shape, h.dtype, h.device) != like:
            h = _fitting(h, x, step)
        z = None
        if samples is None:
            z = noise.normal(x.shape, dtype=x.dtype, device=x.device, draw=i + 1)
        if step.kind == LINEAR:
            linear_step_(x, [h], row, z, rng, samples)
        else:
            langevin_step_(x, h, row, z, rng, samples, per_sample)
        if check_finite and not bool(torch.isfinite(x).all()):
            raise NonFiniteError(
                f"the state is not finite after step {i} ({step.name}) at t = {step.t:.6g}: "
                f"the network output there was {'finite' if bool(torch.isfinite(h).all()) else 'not finite'}"
            )
        if callback is not None:
            callback(i, step, x.clone())
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(
            "the samples are not finite; sample with check_finite=True to learn at which step and time it began"
        )
    return x


def _fitting(h: object, x: Tensor, step: Step) -> Tensor:
    """The network's output as the state's dtype; raises where it is not a tensor like the state."""
    where = f"at step {step.name}, t = {step.t:.6g}"
    if not isinstance(h, Tensor):
        raise TypeError(f"the network must return a tensor, got {type(h).__name__} {where}")
    if h.shape != x.shape or h.device != x.device:
        raise ValueError(
            f"the network must return a tensor like its input, {tuple(x.shape)} on {x.device}, "
            f"got {tuple(h.shape)} on {h.device} {where}"
        )
    if not h.is_floating_point():
        raise TypeError(f"the network must return a floating-point tensor, got {h.dtype} {where}")
    return h.to(x.dtype)


def _with_progress(steps: tuple[Step, ...]) -> Iterable[Step]:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from error
    return tqdm(steps, desc="sampling", unit="step")
