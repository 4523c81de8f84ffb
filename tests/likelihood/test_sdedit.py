"""SDEdit: the law of the samples, what they keep of the image, and every sampler on a part of the time."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastscore
from fastscore import VESDE, VPSDE, Convention, DDPMSampler, DiscreteVPSDE, PhiloxNoise, SubVPSDE, sdedit
from fastscore.control import Inpainting
from fastscore.samplers import FixedStepSampler, Hook, ProgressiveGeneration, describe, names
from fastscore.testing.fake_cuda import Devices, can_index_fake_cuda
from fastscore.testing.networks import Smooth
from fastscore.testing.statistics import (
    AnalyticModel,
    Gaussian,
    assert_same_law,
    mixture_2d,
    ve_perturbation,
    vp_perturbation,
    z_threshold,
)

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE()}
PERTURB = {"ve": ve_perturbation, "vp": vp_perturbation(), "subvp": vp_perturbation(subvp=True)}
LAW = Gaussian(torch.tensor([0.3, -0.2]).reshape(2, 1, 1), torch.diag(torch.tensor([0.3, 0.1])).double())
NEEDED = {"langevin": {"step_size": 1e-4}, "annealed-langevin": {"step_size": 1e-5}}
ADAPTIVE = [name for name in names() if describe(name).calls == "adaptive"]


def exact(name, law):
    return AnalyticModel(law, PERTURB[name], "score" if name == "ve" else "noise")


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize(
    ("sampler", "options", "stochastic"),
    [
        ("rk45", {"rtol": 1e-4, "atol": 1e-4}, False),
        ("ode-rk4", {"steps": 40, "spacing": "log_snr"}, False),
        ("euler-maruyama", {"steps": 400}, True),
        ("reverse-diffusion", {"steps": 400}, True),
        ("ddpm", {"steps": 200, "spacing": "log_snr"}, True),
    ],
)
def test_data_keeps_its_law_and_what_is_known_of_itself(sampler, options, stochastic, name):
    """What is noised to t and sampled back has the law of the data; its covariance with the data is a closed form."""
    at, data = 0.4, LAW.sample(4000, seed=1)
    sde = SDES[name].until(at)
    made = fastscore.sampler(sampler, sde, exact(name, LAW), **options)
    x = sdedit(made, data, seed=2)
    # samplers that end with noise of eps, or in steps of finite length, are off by less than the error of 4000 draws
    assert_same_law(x, LAW, f"{sampler} {name}")
    alpha, sigma = sde.marginal(at)
    variance = LAW.covariance.diag()
    noisy = alpha**2 * variance + sigma**2
    # the reverse SDE draws from the posterior, the flow scales the state
    kept = alpha**2 * variance**2 / noisy if stochastic else alpha * variance**1.5 / noisy.sqrt()
    centered = (data - LAW.mean).flatten(1) * (x - LAW.mean).flatten(1)
    z = (centered.mean(0) - kept) / (centered.std(0) / len(data) ** 0.5)
    print(f"covariance with the data {centered.mean(0).tolist()}, expected {kept.tolist()}")
    assert float(z.abs().max()) < z_threshold(2)


@pytest.mark.parametrize("sampler", names())
def test_every_sampler_begins_there(sampler):
    """No network call above t = 0.4, nor a step that is wasted; hooks see the time as it is."""
    sde, times = VPSDE().until(0.4), []

    class Watching(Hook):
        def on_denoised(self, denoised, x, moment):
            assert moment.sde is sde
            times.append(float(moment.t.max()))

    def network(x, t):
        assert float(t.max()) < (0.5 if sampler == "edm-churn" else 0.4 + 1e-6)  # churn adds noise first
        return torch.tanh(x)

    convention = Convention("denoised" if sampler == "consistency" else "noise", "time")
    options = {} if sampler in ADAPTIVE else {"steps": 24}
    made = fastscore.sampler(sampler, sde, network, convention=convention, **NEEDED.get(sampler, {}), **options)
    images = torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2)
    x, info = sdedit(made, images, seed=1, hooks=[Watching()], return_info=True)
    assert x.isfinite().all()
    assert x.shape == images.shape
    if sampler != "langevin":
        assert times[0] == pytest.approx(0.4, abs=0.1 if sampler == "edm-churn" else 1e-12)
    whole = fastscore.sampler(sampler, VPSDE(), network, convention=convention, **NEEDED.get(sampler, {}), **options)
    if isinstance(made, FixedStepSampler):
        assert info.nfe == whole.plan().nfe


def test_all_levels_up_to_one_are_the_end_of_all_levels():
    sde = DiscreteVPSDE.linear(50, 1e-3, 0.2)
    whole, part = (DDPMSampler(s, Smooth()).plan() for s in (sde, sde.until(0.3)))
    assert [step.label for step in part.steps] == list(range(14, -1, -1))
    assert part.steps == whole.steps[-15:]
    few = fastscore.sampler("ddim", sde.until(0.3), Smooth(), steps=5)
    assert [step.label for step in few.plan().steps] == [14, 11, 8, 5, 2]
    assert few.start == 0.3


def test_the_noise_is_that_of_the_sample():
    sde, images = VPSDE().until(0.6), torch.linspace(-1, 1, 24).reshape(3, 2, 2, 2)
    seen = []

    class First(Hook):
        def before_step(self, x, moment):
            seen.append(x.clone())

    sampler = fastscore.sampler("ddpm", sde, Smooth(), steps=5, convention=Convention("noise", "time"))
    kept = images.clone()
    whole = sdedit(sampler, images, seed=4, hooks=[First()])
    alpha, sigma = (float(value) for value in sde.marginal(0.6))
    z = PhiloxNoise(4).normal(images.shape, draw=0)
    torch.testing.assert_close(seen[0], alpha * images + sigma * z)
    assert torch.equal(images, kept)
    some = sdedit(sampler, images[[2, 0]], noise=PhiloxNoise(4, samples=[2, 0]))
    assert torch.equal(some, whole[[2, 0]])
    half = sdedit(sampler, images.bfloat16(), seed=4)
    assert half.dtype == torch.bfloat16


def test_a_part_can_be_kept():
    images, known = torch.ones(2, 1, 4, 4), torch.arange(4) < 2
    sampler = fastscore.sampler(
        "dpmpp-2m", VPSDE().until(0.5), Smooth(), steps=6, convention=Convention("noise", "time")
    )
    x = sdedit(sampler, images, hooks=[Inpainting(images, known)])
    assert torch.equal(x[..., :2], images[..., :2])
    assert not torch.equal(x[..., 2:], images[..., 2:])


def test_a_longer_way_keeps_less():
    """Of a mixture: from t = 0.9 the mode is drawn anew, from t = 0.03 it stays."""
    law = mixture_2d()
    data = law.sample(500, seed=3)
    home = law.responsibilities(data).argmax(1)
    stayed = []
    for at in (0.03, 0.9):
        sampler = fastscore.sampler("rk45", VPSDE().until(at), exact("vp", law), rtol=1e-3, atol=1e-3)
        stayed.append(float((law.responsibilities(sdedit(sampler, data)).argmax(1) == home).double().mean()))
    assert stayed[0] > 0.99
    assert stayed[1] == pytest.approx(float(law.weights.square().sum()), abs=0.1)


@pytest.mark.skipif(not can_index_fake_cuda(), reason="this torch needs a driver to index fake CUDA tensors")
def test_on_cuda_tensors():
    model = lambda x, t: x.tanh() + t[:, None]  # noqa: E731
    options = {"steps": 3, "convention": Convention("noise", "time")}
    samplers = [fastscore.sampler(name, VPSDE().until(0.5), model, **options) for name in ("ddpm", "dpmpp-2m")]
    for sampler in samplers:
        sdedit(sampler, torch.zeros(4, 3), hooks=[ProgressiveGeneration([0.5])])  # makes the plan, on the host
    devices, progress = Devices(), ProgressiveGeneration([0.5, 0.1])
    with FakeTensorMode(allow_non_fake_inputs=True), devices:
        for sampler in samplers:
            x = sdedit(sampler, torch.empty(4, 3, device="cuda"), hooks=[progress])
            assert x.device.type == progress.images.device.type == "cuda"
    assert not any(op.startswith("aten::_local_scalar") for op in devices.called)


def test_bad_arguments_are_named():
    sampler = fastscore.sampler("ddpm", VPSDE().until(0.5), Smooth(), steps=5)
    with pytest.raises(TypeError, match="sdedit: sampler must be a fastscore Sampler, got str"):
        sdedit("ddpm", torch.zeros(1, 2))
    with pytest.raises(TypeError, match=r"sdedit: images must be float32, .* got torch\.uint8"):
        sdedit(sampler, torch.zeros(1, 2, dtype=torch.uint8))
    with pytest.raises(TypeError, match="sdedit: images must be a tensor, got tuple"):
        sdedit(sampler, (1, 2))
    with pytest.raises(ValueError, match=r"sde must reach t = 1, its prior, got one that ends at 0\.5"):
        sampler.sample((1, 2))
    with pytest.raises(ValueError, match=r"log_likelihood: sde must reach t = 1"):
        fastscore.log_likelihood(VPSDE().until(0.5), Smooth(), torch.zeros(1, 2))
