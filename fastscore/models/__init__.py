"""Score networks, and the trained ones that come with the package."""

from __future__ import annotations

from pathlib import Path

import torch

from fastscore.models.adm import ADM, ADMConfig
from fastscore.models.base import NetworkConfig, ScoreNetwork
from fastscore.models.bundle import load_bundle, save_bundle
from fastscore.models.checkpoint import load_checkpoint
from fastscore.models.classifier import Classifier, ClassifierConfig
from fastscore.models.ddim import DDIMConfig, DDIMUNet
from fastscore.models.mlp import MLP, MLPConfig
from fastscore.models.ncsn import NCSN, NCSNConfig
from fastscore.models.ncsnpp import NCSNpp, NCSNppConfig
from fastscore.models.ncsnv2 import NCSNv2, NCSNv2Config
from fastscore.models.registry import ARCHITECTURES, create
from fastscore.models.zoo import Published, configs, describe

__all__ = [
    "ADM",
    "ARCHITECTURES",
    "MLP",
    "NCSN",
    "ADMConfig",
    "Classifier",
    "ClassifierConfig",
    "DDIMConfig",
    "DDIMUNet",
    "MLPConfig",
    "NCSNConfig",
    "NCSNpp",
    "NCSNppConfig",
    "NCSNv2",
    "NCSNv2Config",
    "NetworkConfig",
    "Published",
    "ScoreNetwork",
    "configs",
    "create",
    "describe",
    "load",
    "load_bundle",
    "load_checkpoint",
    "names",
    "save_bundle",
]

_WEIGHTS = Path(__file__).parent / "weights"
_BUNDLED = ("emoji32", "mnist32", "mnist32-classifier")


def names() -> list[str]:
    """The trained models that `load` knows."""
    return list(_BUNDLED)


def load(name: str, *, device: torch.device | str = "cpu") -> ScoreNetwork:
    """A trained model that comes with the package, in eval mode, with float32 parameters.

    "emoji32": `ADM` of 3.7 million parameters for emoji (3, 32, 32) in [-1, 1], VP SDE, with the 8 classes in
        `.card["classes"]` and a null class: for `fastscore.control.ClassifierFreeGuidance`, or called without one.
    "mnist32": DDPM++ of 1.3 million parameters for MNIST digits padded to (1, 32, 32) in [-1, 1], VP SDE.
    "mnist32-classifier": `Classifier` of 0.1 million parameters for such digits noised by that SDE, for
        `fastscore.control.ClassifierGuidance`.

    It carries `.sde`, `.convention`, `.shape` (C, H, W), `.config` and `.card` (seed and command of the training).
    Raises ValueError for a name that is not in `names()`.
    """
    if name not in _BUNDLED:
        raise ValueError(f"model must be one of {', '.join(_BUNDLED)}, got {name!r}")
    return load_bundle(_WEIGHTS / f"{name}.safetensors", device=device)
