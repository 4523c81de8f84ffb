"""Convergence orders of DPM-Solver and DPM-Solver++ on data whose score is known, in float64."""

import itertools
import math
from functools import cache

import pytest
import torch

from fastscore import VESDE, VPSDE, DPMSolverSampler
from fastscore.testing.statistics import AnalyticModel, mixture_2d, ve_perturbation, vp_perturbation

DATA = mixture_2d()
SETTINGS = {  # and where to stop: the mixture has taken shape there
    "vp": (VPSDE(), AnalyticModel(DATA, vp_perturbation(), "noise"), 0.02),
    "ve": (VESDE(0.01, 10.0), AnalyticModel(DATA, ve_perturbation, "score"), 0.2),
}
Z = torch.randn(8, *DATA.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def end_of_flow(setting, **options):
    sde, model, eps = SETTINGS[setting]
    return DPMSolverSampler(sde, model, eps=eps, **options).sample(Z * sde.prior_std)


@cache
def exact(setting):
    """Far finer than all that is measured; its own error is below 1e-8."""
    return end_of_flow(setting, steps=3000, order=3, method="singlestep_fixed", algorithm="dpmsolver")


def measured_slope(setting, sizes, **options):
    calls = options["order"] if options["method"] != "multistep" else 1
    errors = [float((end_of_flow(setting, steps=n * calls, **options) - exact(setting)).abs().max()) for n in sizes]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    print(setting, options, [f"{e:.1e}" for e in errors], [f"{s:.2f}" for s in slopes])
    return slopes[-1]


PATHS = [("vp", "log_snr"), ("ve", "karras"), ("vp", "linear")]
COMBINATIONS = [
    pytest.param(*path, *rest, id="-".join(map(str, (*path, *rest))))
    for path in PATHS
    for rest in itertools.product(
        ["multistep", "singlestep_fixed"], ["dpmsolver++", "dpmsolver"], ["midpoint", "taylor"], [1, 2, 3]
    )
    if rest[0] == "singlestep_fixed" or (rest[2:] != ("midpoint", 3) and path != ("vp", "linear"))
    if rest[2:] != ("taylor", 1)  # there is one order 1
]


@pytest.mark.parametrize(("setting", "spacing", "method", "algorithm", "solver_type", "order"), COMBINATIONS)
def test_convergence_order(setting, spacing, method, algorithm, solver_type, order):
    """Even in t, the first steps of VP are so long that the slopes of multistep are not there yet: left out."""
    options = {"method": method, "algorithm": algorithm, "solver_type": solver_type, "order": order, "spacing": spacing}
    assert measured_slope(setting, (128, 256), **options) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
@pytest.mark.parametrize("setting", ["vp", "ve"])
def test_the_published_multistep_of_order_three_has_order_two(setting, algorithm):
    """Its curvature has half the weight of the Taylor expansion, which leaves an error of h^2 in the end."""
    options = {"method": "multistep", "algorithm": algorithm, "order": 3}
    assert measured_slope(setting, (512, 1024), **options) == pytest.approx(2, abs=0.2)
    taylor = measured_slope(setting, (128, 256), **options, solver_type="taylor")
    assert taylor == pytest.approx(3, abs=0.2)
