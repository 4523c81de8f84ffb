"""The 71 published predictor-corrector runs, replayed with their noise through the tables and through the reference."""

from pathlib import Path

import pytest
import torch

from fastscore import VESDE, VPSDE, Convention, PCSampler, SubVPSDE
from fastscore.noise import ReplayNoise
from fastscore.reference.samplers import pc_sampler
from fastscore.testing.golden import golden_model, load_cases, load_mixture

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
CASES = load_cases(FOLDER, "score_sde_pc")
CLASSES = {"VESDE": VESDE, "VPSDE": VPSDE, "subVPSDE": SubVPSDE}


def setting(case):
    """SDE, analytic network, convention, and the arguments that PCSampler and its reference share."""
    args, sde_args = case.args, dict(case.args["sde"])
    n = sde_args.pop("N")
    sde_args.pop("T")
    sde = CLASSES[sde_args.pop("cls")](**sde_args)
    convention = None
    if not args["continuous"]:
        convention = (
            Convention("score", "noise_index", n) if isinstance(sde, VESDE) else Convention("noise", "chain_index", n)
        )
    options = {
        "predictor": args["predictor"].removesuffix("_sampling"),
        "corrector": args["corrector"],
        "snr": args["snr"],
        "steps": n,
        "corrector_steps": args["n_steps"],
        "probability_flow": args["probability_flow"],
        "eps": args["eps"],
        "denoise": args["denoise"],
    }
    model = golden_model(case, load_mixture(FOLDER))
    model.record = True
    return sde, model, convention, options


def published_scale(case, x):
    return x if case.args["inverse_scaler"] == "identity" else (x + 1) / 2


def assert_golden(case, x, model):
    result = case.tensors["result"]
    error = float((published_scale(case, x) - result).abs().max())
    print(f"{case.id}: {error:.2e} of {case.tolerance:.2e}")
    assert error <= case.tolerance
    if model.labels:  # the path as well as the end
        labels = torch.stack([label[0].double() for label in model.labels])
        expected = case.tensors["call_labels"].double().reshape(len(labels), -1)[:, 0]
        torch.testing.assert_close(labels, expected, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_sampler_equals_published(case, backend):
    import fastscore

    sde, model, convention, options = setting(case)
    noise = ReplayNoise(list(case.tensors["noise"]))
    sampler = PCSampler(sde, model, convention=convention, **options)
    with fastscore.backend(backend):
        x, info = sampler.sample(case.args["shape"], noise=noise, return_info=True)
    assert info.nfe == case.scalars["model_calls"] == model.calls
    assert_golden(case, x, model)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_literal_reference_equals_published(case):
    sde, model, convention, options = setting(case)
    noise = ReplayNoise(list(case.tensors["noise"]))
    convention = convention or PCSampler(sde, model, steps=30).convention
    x = sde.prior_sample(case.args["shape"], noise=noise)
    assert_golden(case, pc_sampler(sde, model, x, noise, convention, **options), model)
