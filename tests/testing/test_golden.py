"""The golden files replay: the analytic networks and the recorded noise give the recorded path."""

import dataclasses
from pathlib import Path

import pytest
import torch

from fastscore.testing.golden import golden_cond_fn, golden_model, load_cases, load_mixture

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = load_cases(GOLDEN / "samplers", "score_sde_pc", "pc.")
COUNTS = {
    "score_sde_ode": 14,
    "dpm": 438,
    "diffusers": 58,
    "k": 42,
    "edm": 12,
    "ddim": 10,
    "guided": 16,
    "ncsnv2": 4,
    "cm": 11,
    "alexia": 5,
}


@pytest.fixture(scope="module")
def mixture():
    return load_mixture(GOLDEN / "samplers")


def test_all_cases_of_the_survey_are_here():
    assert len(CASES) == 71
    assert len({case.id for case in CASES}) == 71
    assert len(load_cases(GOLDEN / "sde_tables", "score_sde")) == 5
    assert {name: len({case.id for case in load_cases(GOLDEN / "samplers", name)}) for name in COUNTS} == COUNTS
    with pytest.raises(ValueError, match=r"no case in .* starts with 'nothing'"):
        load_cases(GOLDEN / "samplers", "score_sde_pc", "nothing")


def test_tolerance_is_the_larger_of_1e_5_and_three_times_the_noise():
    by_id = {case.id: case for case in CASES}
    assert by_id["pc.ve.euler_maruyama+none.N25.n1"].tolerance == pytest.approx(1.239e-5)
    case = by_id["pc.vp.reverse_diffusion+langevin.N30.n2"]
    assert case.noise_of() == 2.7e-05
    assert case.tolerance == pytest.approx(8.1e-05)


def test_float64_results_are_held_to_1e_10():
    cases = [case for name in COUNTS for case in load_cases(GOLDEN / "samplers", name)]
    double = [case for case in cases if case.tensors["result"].dtype == torch.float64]
    assert {case.id for case in double} == {c.id for c in cases if c.id.startswith("edm.") or ".f64" in c.id}
    assert len(double) == 16
    for case in double:
        assert case.tolerance == 1e-10 * max(1.0, case.scalars["result_abs_max"])
    assert min(case.tolerance for case in cases if case not in double) == 1e-5


def test_unknown_networks_and_missing_guidance_are_refused(mixture):
    with pytest.raises(ValueError, match=r"pc.ve.euler.*: unknown model 'other'"):
        golden_model(dataclasses.replace(CASES[0], model="other"), mixture)
    with pytest.raises(ValueError, match=r"pc.ve.euler.*: has no cond_fn"):
        golden_cond_fn(CASES[0], mixture)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensors_are_complete(case):
    tensors = case.tensors
    assert set(tensors) == set(case.meaning)
    assert tensors["noise"].shape[1:] == tuple(case.args["shape"])
    assert tensors["result"].abs().max() == pytest.approx(case.scalars["result_abs_max"], rel=1e-3)
    assert len(tensors.get("call_labels", ())) == case.scalars["model_calls"]


@pytest.mark.parametrize("name", COUNTS)
def test_tensors_of_the_other_samplers_are_complete(name, mixture):
    without_labels = ("ode.", "df.ScoreSdeVe", "ncsnv2.interpolation")
    for case in load_cases(GOLDEN / "samplers", name):
        tensors = case.tensors
        assert set(tensors) == set(case.meaning), case.id
        assert tensors["result"].abs().max() == pytest.approx(case.scalars["result_abs_max"], rel=1e-3), case.id
        if case.id.startswith(without_labels):
            assert "call_labels" not in tensors, case.id
        else:
            assert len(tensors["call_labels"]) == case.scalars["model_calls"], case.id
        x = torch.zeros(2, 3, 8, 8, dtype=tensors["result"].dtype)
        out = golden_model(case, mixture)(x, torch.ones(2))
        assert out.dtype == x.dtype, case.id
        assert torch.isfinite(out).all(), case.id


VE_EULER = [c for c in CASES if c.id.startswith("pc.ve.euler_maruyama+none") and not c.args["probability_flow"]]


@pytest.mark.parametrize("case", VE_EULER, ids=str)
def test_golden_network_reproduces_a_published_run(case, mixture):
    """Euler-Maruyama of the VE SDE written out (Song et al. 2021, eq. 6 and 30), with nothing of fastscore in it."""
    model, noise = golden_model(case, mixture), case.tensors["noise"].double()
    sde, times = case.args["sde"], case.tensors["timesteps"].double()
    ratio = sde["sigma_max"] / sde["sigma_min"]
    x = sde["sigma_max"] * noise[0]
    for i, t in enumerate(times):
        sigma = sde["sigma_min"] * ratio**t
        g = sigma * (2 * torch.log(torch.tensor(ratio, dtype=torch.float64))).sqrt()
        mean = x + g**2 * model(x, sigma.expand(len(x))) / sde["N"]
        x = mean + g / sde["N"] ** 0.5 * noise[i + 1]
    result = mean if case.args["denoise"] else x
    assert (result - case.tensors["result"]).abs().max() <= case.tolerance


@pytest.mark.parametrize("name", ["ve_discrete", "vp_continuous", "subvp_continuous", "vp_discrete"])
def test_golden_networks_see_the_recorded_states(name, mixture):
    """One VP / sub-VP / discrete step from a recorded state to the end is as good as its label: the score must be
    finite, and near the end must point at the mixture with the strength of its perturbation."""
    case = next(c for c in CASES if c.model == f"score_sde/{name}")
    model = golden_model(case, mixture)
    index = max(int(key.split("_")[-1]) for key in case.tensors if key.startswith("call_x_"))
    x, label = case.tensors[f"call_x_{index}"], case.tensors["call_labels"][index]
    out = model(x, label.expand(len(x)))
    alpha, sigma = model.perturb(label.double().reshape(1))
    score = out.double() / (1 if name == "ve_discrete" else -sigma)
    variance = alpha**2 * mixture.std**2 + sigma**2
    posterior = (x.double() + variance * score) / alpha
    weights = mixture.responsibilities(x, alpha.expand(len(x)), sigma.expand(len(x)))
    torch.testing.assert_close(posterior, torch.tensordot(weights, mixture.means, 1), rtol=1e-4, atol=1e-5)
