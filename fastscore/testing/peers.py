"""Other people's samplers, for tests and benchmarks side by side. Needs diffusers, k-diffusion, torchdiffeq, torchsde.

k-diffusion is installed without its dependencies (wandb, CLIP, kornia ...): of it, the samplers alone are loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType


def k_diffusion_sampling() -> ModuleType:
    """``k_diffusion.sampling``, without what the package imports around it.

    Raises:
        ImportError: it, or something it needs, is not installed.
    """
    if "k_diffusion.sampling" in sys.modules:
        return sys.modules["k_diffusion.sampling"]
    spec = importlib.util.find_spec("k_diffusion")  # finds the package without running it
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("k-diffusion is not installed: pip install --no-deps k-diffusion")
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    before = dict(sys.modules)
    sys.modules["k_diffusion"] = package
    if importlib.util.find_spec("torchvision") is None:  # for its images on disk; no sampler uses it
        transforms = ModuleType("torchvision.transforms")
        transforms.functional = ModuleType("torchvision.transforms.functional")  # type: ignore[attr-defined]
        sys.modules |= {"torchvision": ModuleType("torchvision"), "torchvision.transforms": transforms}
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name in ("k_diffusion", "torchvision", "torchvision.transforms"):
            sys.modules.pop(name, None)
            if name in before:
                sys.modules[name] = before[name]
