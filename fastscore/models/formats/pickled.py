"""Files of torch.save, read without running what is in them, and the containers that codebases put around weights.

score_sde: a dict of `model`, `ema` and others; its averages are a list without names. ncsn, ncsnv2 and ddim: a list
that starts with the state dict and has the averages fifth. k-diffusion: a dict of `model` and `model_ema`. Others: the
state dict.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fastscore.models.formats.stored import Stored


def read(path: Path) -> Stored:
    """The weights of a file of torch.save.

    Raises:
        ValueError: a pickle of more than tensors, NumPy numbers and plain values, which could run code; a file that is
            damaged; content that is of no known codebase.
    """
    content = _load(path)
    if isinstance(content, Mapping):
        if _is_state(content):
            return Stored("state dict", _state(content))
        model, averaged = content.get("model"), content.get("model_ema")
        shadow = ema.get("shadow_params") if isinstance(ema := content.get("ema"), Mapping) else None
        if _is_state(model) and isinstance(shadow, list) and all(isinstance(value, Tensor) for value in shadow):
            return Stored("score_sde", _state(model), shadow, trains=True)
        if _is_state(model) and _is_state(averaged):
            return Stored("k-diffusion", _state(model), _state(averaged), trains=True)
        found = f"a dict of {', '.join(map(str, list(content)[:8]))}"
    elif isinstance(content, list | tuple) and content and _is_state(content[0]):
        averaged = _state(content[4]) if len(content) > 4 and _is_state(content[4]) else None
        return Stored("list", _state(content[0]), averaged, trains=True)
    else:
        found = f"a {type(content).__name__}"
    raise ValueError(
        f"{path} holds {found}; accepted are checkpoints of score_sde (model, ema), of ncsn, ncsnv2 and ddim (a list), "
        "of k-diffusion (model, model_ema), and state dicts"
    )


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_numpy_numbers()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        found = f"its pickle calls {named[1]}" if named else "its pickle holds more than these, or it is none"
        raise ValueError(
            f"{path} was not loaded: only tensors and plain values are accepted, as all else can run code; {found}"
        ) from error
    except Exception as error:  # bytes that are cut off or changed fail in many ways
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged or no checkpoint ({type(error).__name__}: {reason})") from error


def _numpy_numbers() -> list[Any]:
    """score_sde keeps its learning rate as a NumPy number, which is a harmless call."""
    try:
        import numpy
    except ModuleNotFoundError:
        return []
    core = getattr(numpy, "_core", None) or numpy.core
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # before and since NumPy 2
    return [*((core.multiarray.scalar, name) for name in names), numpy.dtype, type(numpy.dtype("float64"))]


def _is_state(content: object) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _state(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of DataParallel."""
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value for key, value in content.items()}
