"""The one loop that runs every plan: a network call and one fused kernel per row, no host synchronization between."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fastscore.noise import Noise
from fastscore.ops import langevin_step_, linear_step_
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
    counters = samples = None
    if noise.counter_based:
        counters = noise.rng_table(range(1, plan.nfe + 1), x.device).unbind(0)
        samples = noise.samples_for(x.shape[0], x.device)
    for i, step in enumerate(_with_progress(plan.steps) if progress else plan.steps):
        h = model(x if scales is None else x * scales[i], labels[i])
        h = _checked_output(h, x, step)
        source = (
            {"rng": counters[i], "samples": samples}
            if counters is not None
            else {"noise": noise.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=i + 1)}
        )
        if step.kind == LINEAR:
            linear_step_(x, [h], coefficients[i], **source)
        else:
            langevin_step_(x, h, coefficients[i], per_sample=per_sample, **source)
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


def _checked_output(h: Tensor, x: Tensor, step: Step) -> Tensor:
    if not isinstance(h, Tensor):
        raise TypeError(
            f"the network must return a tensor, got {type(h).__name__} at step {step.name}, t = {step.t:.6g}"
        )
    if h.shape != x.shape or h.device != x.device:
        raise ValueError(
            f"the network must return a tensor like its input, {tuple(x.shape)} on {x.device}, "
            f"got {tuple(h.shape)} on {h.device}"
        )
    if not h.is_floating_point():
        raise TypeError(f"the network must return a floating-point tensor, got {h.dtype}")
    return h if h.dtype == x.dtype else h.to(x.dtype)


def _with_progress(steps: tuple[Step, ...]) -> Iterable[Step]:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from error
    return tqdm(steps, desc="sampling", unit="step")
