"""How fast are the products of K probes with a Jacobian, against probes that are drawn, stored and read again?"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastscore.ops import hutchinson, hutchinson_probe
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input
from fastscore.testing.timing import Case, compiled


def _stored(jvp: Tensor, eps: Tensor) -> Tensor:
    return (eps * jvp).flatten(2).sum(2).mean(0)


def _case(shape: tuple[int, ...], kind: str, device: torch.device) -> Case:
    jvp = make_input(shape, device=device)
    rng, samples = torch.tensor([7, 1], device=device), torch.arange(shape[1], device=device)
    eps = hutchinson_probe(shape[1:], rng, samples, shape[0], kind)
    by_compiler = compiled(_stored, device)

    def check() -> None:
        exact = _stored(jvp.double(), hutchinson_probe(shape[1:], rng, samples, shape[0], kind, torch.float64))
        assert_error_within_budget(hutchinson(jvp, rng, samples, kind)[0], exact, _stored(jvp, eps), "hutchinson")

    return Case(
        "hutchinson",
        f"{shape} float32, {kind}",
        {
            "eager": lambda: _stored(jvp, eps),
            "torch.compile": lambda: by_compiler(jvp, eps),
            "fastscore": lambda: hutchinson(jvp, rng, samples, kind),
        },
        check,
        jvp,
        about="eager and torch.compile read probes that were drawn before, which is not timed",
    )


CASES: dict[str, Callable[[torch.device], Case]] = {
    "one-probe": lambda device: _case((1, 16, 3, 32, 32), "rademacher", device),
    "eight-probes": lambda device: _case((8, 16, 3, 32, 32), "rademacher", device),
    "eight-gaussian": lambda device: _case((8, 16, 3, 32, 32), "gaussian", device),
}


@pytest.mark.parametrize("name", CASES)
def test_hutchinson(report, name, contender, device):
    report(CASES[name](device), contender)
