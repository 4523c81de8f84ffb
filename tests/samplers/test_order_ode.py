"""Orders of convergence of the fixed-step ODE methods and of EDM's sampler, on a mixture of Gaussians in float64."""

import functools
import itertools
import math

import pytest
import torch

from fastscore import VESDE, VPSDE, EDMSampler, EulerAncestralSampler, ODESampler
from fastscore.testing.statistics import AnalyticModel, mixture_2d, ve_perturbation, vp_perturbation

# a gentle VP, whose sigma / alpha starts at 7: from 150, orders show with many more steps only
SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(0.1, 8.0)}
END = {"ve": 0.3, "vp": 0.1}  # sigma / alpha of 0.08 and 0.23, where the modes have parted


def network(sde_name):
    if sde_name == "ve":
        return AnalyticModel(mixture_2d(), ve_perturbation, "score")
    return AnalyticModel(mixture_2d(), vp_perturbation(0.1, 8.0), "noise")


def latent(sde_name):
    z = torch.randn(8, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return z * SDES[sde_name].prior_std


@functools.cache
def exact(sde_name):
    """The flow to END, by the classical method on a fine grid of another kind than those that are tested."""
    sampler = ODESampler(
        SDES[sde_name], network(sde_name), steps=400, method="rk4", spacing="log_snr", eps=END[sde_name]
    )
    return sampler.sample(latent(sde_name))


CASES = [
    *(("ode", {"method": "euler", "spacing": spacing}, 1, 200) for spacing in ("linear", "karras")),
    *(("ode", {"method": "heun", "spacing": spacing}, 2, 100) for spacing in ("linear", "quadratic", "log_snr")),
    *(("ode", {"method": "rk4", "spacing": spacing}, 4, 50) for spacing in ("linear", "karras")),
    ("edm", {"order": 1}, 1, 200),
    ("edm", {}, 2, 100),
    ("edm", {"rho": 3.0}, 2, 100),
    ("edm", {"alpha": 0.5}, 2, 100),
    ("edm", {"alpha": 0.7, "stage_rho": 3.0}, 2, 100),
    ("edm", {"alpha": 0.5, "stage_rho": math.inf}, 2, 100),
    ("ancestral", {"eta": 0.0}, 1, 200),
    ("ancestral", {"eta": 0.0, "order": 2}, 2, 100),
]


def sampler_of(family, sde_name, steps, options):
    common = {"steps": steps, "eps": END[sde_name], **options}
    if family == "ode":
        return ODESampler(SDES[sde_name], network(sde_name), **common)
    cls = EDMSampler if family == "edm" else EulerAncestralSampler
    return cls(SDES[sde_name], network(sde_name), denoise=False, **common)


@pytest.mark.parametrize("sde_name", SDES)
@pytest.mark.parametrize(("family", "options", "order", "steps"), CASES)
def test_order(family, sde_name, options, order, steps):
    errors = []
    for n in (steps, 2 * steps):
        x = sampler_of(family, sde_name, n, options).sample(latent(sde_name))
        errors.append(float((x - exact(sde_name)).norm()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    print(family, sde_name, options, [f"{e:.2e}" for e in errors], [f"{s:.3f}" for s in slopes])
    assert errors[0] < 0.1
    assert abs(slopes[0] - order) < 0.2
