"""Finds the layers of a model that fused ops can compute, exchanges them, and puts them back."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from fastscore.accelerate import ddim, diffusers, edm, guided_diffusion, score_sde, sequential
from fastscore.accelerate._layers import is_group_norm, is_silu
from fastscore.accelerate._swap import Finding, Fused, definer, hooked, mixins_of, swap, unswap
from fastscore.accelerate.report import Entry, Report
from fastscore.accelerate.sequential import FusedActivation, FusedNorm

_PEERS = (diffusers, score_sde, ddim, guided_diffusion, edm, sequential)
MIXINS = [mixin for peer in _PEERS for mixin in peer.MIXINS]
PAIRS = diffusers.PAIRS
_CONVOLUTION = 'torch\'s own; optimize="cpu" takes those of stride 1 and padding 1'


def accelerate_modules(model: nn.Module) -> Report:
    """Exchange what can be exchanged."""
    report = Report()
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    covered: set[int] = set()  # modules that a module above them computes

    for name, module in model.named_modules():
        if _is_own(module):
            report.own += 1
            covered |= {id(child) for child in module.modules()}
            continue
        if id(module) in covered:
            continue
        covered |= _exchange(report, name, module)
        covered |= _exchange_pair(report, name, module, uses)
        if id(module) not in covered:
            _say_why_not(report, name, module)
    return report


def restore_modules(model: nn.Module) -> None:
    """Undo it."""
    for module in model.modules():
        while isinstance(module, Fused):
            unswap(module)


def _exchange(report: Report, name: str, module: nn.Module) -> set[int]:
    """Exchange `module` if a mixin takes it; returns what has been dealt with."""
    reasons = []
    for mixin in _mixins_of(module):
        plan = mixin.plan(module)
        if isinstance(plan, list):
            if not isinstance(module, Fused):
                swap(module, mixin)
            report.replaced += [Entry(_join(name, found.part), found.kind, found.by) for found in plan]
            return {id(module.get_submodule(path)) for path in _paths(plan) if _is_module(module, path)}
        if plan is not None:
            reasons.append((mixin, plan))
    if reasons:
        mixin, why = reasons[0]
        report.left_alone.append(Entry(name, mixin.kind, f"{type(module).__name__}: {why}"))
    return set()


def _mixins_of(module: nn.Module) -> list[type[Fused]]:
    if isinstance(module, Fused):
        return [mixin for mixin in mixins_of(type(module)) if hasattr(mixin, "names")]
    names = {
        cls.__name__ for cls in type(module).__mro__ if not cls.__module__.startswith("torch.") or cls is nn.Sequential
    }
    return [mixin for mixin in MIXINS if names & set(mixin.names)]


def _exchange_pair(report: Report, name: str, module: nn.Module, uses: Counter[int]) -> set[int]:
    """The same for a norm and an activation that `module` is known to call one after the other."""
    cls = definer(module, "forward")
    if cls is None or cls.__name__ not in PAIRS or "forward" in vars(module):
        return set()
    attributes = PAIRS[cls.__name__]
    norm: Any = getattr(module, attributes[0], None)
    act: Any = getattr(module, attributes[1], None)
    if not is_group_norm(norm) or not is_silu(act):
        return set()
    where = _join(name, attributes[0])
    if hooked(norm, act):
        report.left_alone.append(Entry(where, "group_norm_silu", "a hook watches the norm or the activation"))
    elif uses[id(norm)] > 1 or uses[id(act)] > 1:
        report.left_alone.append(Entry(where, "group_norm_silu", "the norm or the activation has a second owner"))
    else:
        if not isinstance(norm, Fused):
            swap(norm, FusedNorm)
            swap(act, FusedActivation)
            norm._fused_act, act._fused_norm = (act,), (norm,)  # tuples: not submodules
        report.replaced.append(Entry(where, "group_norm_silu", f"group_norm_silu with {attributes[1]}"))
    return {id(norm), id(act)}


def _say_why_not(report: Report, name: str, module: Any) -> None:
    if is_group_norm(module):
        why = "no SiLU is seen to follow it: what calls it is no layer that is known here"
        report.left_alone.append(Entry(name, "group_norm_silu", why))
    elif isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
        report.left_alone.append(Entry(name, "conv3x3", _CONVOLUTION))


def _is_own(module: nn.Module) -> bool:
    cls = definer(module, "forward")
    return cls is not None and cls.__module__.startswith(("fastscore.nn.", "fastscore.models."))


def _paths(plan: list[Finding]) -> list[str]:
    return [path for found in plan for path in (found.part, *found.along)]


def _is_module(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _join(name: str, part: str) -> str:
    return f"{name}.{part}" if name and part else name or part
