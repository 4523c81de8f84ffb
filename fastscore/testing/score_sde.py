"""Golden cases of score_sde as `fastscore.compat.score_sde` takes them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscore.compat import score_sde
from fastscore.testing.golden import GoldenCase


def make_sde(arguments: dict[str, Any]) -> score_sde.SDE:
    """The SDE of a case, from its ``args["sde"]``."""
    options = {name: value for name, value in arguments.items() if name not in ("cls", "T")}
    sde: score_sde.SDE = getattr(score_sde, arguments["cls"])(**options)
    return sde


def scaler_of(case: GoldenCase) -> Callable[[Any], Any]:
    """Its inverse scaler."""
    return (lambda x: x) if case.args["inverse_scaler"] == "identity" else (lambda x: (x + 1) / 2)


def seeded(case: GoldenCase) -> Tensor:
    """Set the published seed; the state of the generator after the draws of the run, which give the recorded noise."""
    assert case.seed is not None
    torch.manual_seed(case.seed)
    if "noise" in case.tensors:
        for i, noise in enumerate(case.tensors["noise"]):
            # after the prior, colorization draws in the memory format of a product of matrices
            last = "gray" in case.tensors and i > 0
            drawn = torch.randn_like(noise.to(memory_format=torch.channels_last) if last else noise)
            # the logarithm and cosine of another instruction set round otherwise
            torch.testing.assert_close(drawn, noise, rtol=0, atol=5e-6)
    after = torch.get_rng_state()
    torch.manual_seed(case.seed)
    return after
