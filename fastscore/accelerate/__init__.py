"""Fused layers for anybody's network, in place and reversible: `accelerate`, `restore`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastscore.accelerate._cpu import FusedNetwork, optimize_for_cpu
from fastscore.accelerate._verify import examples, same
from fastscore.accelerate._walk import accelerate_modules, restore_modules
from fastscore.accelerate.report import Entry, Report

__all__ = ["Entry", "Report", "accelerate", "restore"]


def accelerate(
    model: nn.Module,
    *,
    optimize: str | None = None,
    tune: bool = False,
    verify: bool = False,
    example: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
    tolerance: float | None = None,
) -> Report:
    """Let the fused ops of `fastscore.ops` compute the layers of `model` that they can compute, in place.

    It knows GroupNorm followed by SiLU with what stands around them in residual blocks (time embedding, scale and
    shift), self-attention over pixels, and FIR resampling, in diffusers, guided-diffusion, score_sde_pytorch, EDM and
    ddim, and in any `torch.nn.Sequential`. No parameter is copied, no module is added, the keys of the state dict stay:
    each module gets a subclass of its own class. Loading weights, training, hooks, copies, `to`, autocast and
    torch.compile work as before. What it does not know for certain, it leaves alone.

    With `optimize="cpu"` the whole network becomes one program besides, where nothing is to be differentiated: at the
    first call with arguments of a shape it is traced by `torch.export`, and from then on it runs as fused convolutions
    (Winograd's, with norm, activation, time embedding, residual and concatenation in the same pass), matrix products
    and attention, channels-last, in memory planned beforehand; the time embedding is computed only when the time
    changes. Weights may change; transformed ones, up to four times as large, are kept beside them. Every other call
    (gradients, training, autocast, hooks on layers, other devices and dtypes, numbers in place of tensors) runs the
    fused layers, 3x3 convolutions among them. A network that cannot be traced does so always; the report says why.

    Args:
        model: any; accelerating it twice changes nothing the second time.
        optimize: "cpu", or None for fused layers alone.
        tune: with `optimize` and an example: measure for some seconds how this machine computes each 3x3 convolution
            fastest, and keep that in a file of the user's cache (or $FASTSCORE_CACHE), for all programs to come.
        verify: run the model in evaluation mode before and after, and compare outputs and gradients of the inputs.
        example: for `verify`, and with `optimize` to make the program at once and not at the first call: the arguments
            of the model, as a tensor, a tuple, or a mapping of names; for `verify` not needed for UNet2DModel of
            diffusers.
        tolerance: for `verify`: of the largest error of an output, relative to its largest value; ten times as much
            for gradients. By default 1e-5 for float32, and what rounds like it for other dtypes.

    Returns:
        Report: what was replaced, and what was left alone and why.

    Raises:
        TypeError: `model` is no module.
        ValueError: `optimize` is unknown; `tune` lacks what it is for; `verify` needs an example, or there is one
            without `verify` and `optimize`.
        RuntimeError: `verify` found a larger error; the model has been restored.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    if optimize not in (None, "cpu"):
        raise ValueError(f"accelerate: optimize must be None or 'cpu', got {optimize!r}")
    if not verify and tolerance is not None:
        raise ValueError("accelerate: tolerance is for verify=True, got verify=False")
    if not verify and optimize is None and example is not None:
        raise ValueError("accelerate: example is for verify=True and optimize='cpu', got neither")
    if tune and (optimize is None or example is None or verify):
        raise ValueError("accelerate: tune=True is for optimize='cpu' with an example, and without verify")
    whole = optimize is not None or isinstance(model, FusedNetwork)

    def change() -> Report:
        report = accelerate_modules(model)
        return optimize_for_cpu(model, report) if whole else report

    if verify:
        arguments = examples(model, example)
        restore_modules(model)  # what is compared with is the model without us
        return same(model, arguments, change, lambda: restore_modules(model), tolerance)
    report = change()
    if example is not None:
        args, kwargs = examples(model, example)
        assert report.engine is not None
        report.engine.prepare(model, args, kwargs, measure=tune)
    return report


def restore(model: nn.Module) -> None:
    """Undo `fastscore.accelerate`: every module of `model` has its own class again. Does nothing to other models.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be a torch.nn.Module, got {type(model).__name__}")
    restore_modules(model)
