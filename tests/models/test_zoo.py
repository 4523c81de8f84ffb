"""Names of published configurations: what they are made of, and that they make networks."""

import json

import pytest
import torch

from fastscore import models
from fastscore.models.schedules import make_sde
from fastscore.schedule import DiscreteVPSDE
from fastscore.score import Convention
from fastscore.sde import VESDE, VPSDE, SubVPSDE


def meta(config):
    """The network without memory for its parameters."""
    with torch.device("meta"):
        return models.create(config)


@pytest.mark.parametrize("name", models.configs())
def test_every_name_says_all_and_its_options_survive_json(name):
    published = models.describe(name)
    options = json.loads(json.dumps(published.config.to_dict()))
    assert models.registry.config_from_dict(options) == published.config
    assert options["architecture"] in models.ARCHITECTURES
    sde = published.make_sde()
    t = torch.tensor(0.5, dtype=torch.float64)
    assert all(torch.isfinite(c) for c in published.convention.coefficients(sde, t, "score"))
    repository, _, where = published.source.partition(" ")
    assert repository.count("/") == 1
    assert where


@pytest.mark.parametrize(
    ("name", "sde", "convention"),
    [
        ("ncsnpp-cifar10", VESDE(0.01, 50.0), Convention("score", "noise_index", 1000)),
        ("ncsnpp-cifar10-continuous", VESDE(0.01, 50.0), Convention("score", "sigma")),
        ("ddpmpp-cifar10", VPSDE(0.1, 20.0), Convention("noise", "chain_index", 1000)),
        ("ddpmpp-cifar10-deep", VPSDE(0.1, 20.0), Convention("noise", "scaled_time")),
        ("ncsnpp-cifar10-subvp-deep", SubVPSDE(0.1, 20.0), Convention("noise", "scaled_time")),
        ("ncsnpp-ffhq-1024", VESDE(0.01, 1348.0), Convention("score", "sigma")),
        ("ddpm-celebahq-256", VPSDE(0.1, 20.0), Convention("noise", "chain_index", 1000)),
        ("ncsnpp-church-256", VESDE(0.01, 380.0), Convention("score", "sigma")),
    ],
)
def test_a_name_gives_network_sde_and_convention(name, sde, convention):
    network = meta(name)
    assert network.config == models.describe(name).config
    assert (network.sde, network.convention) == (sde, convention)
    if isinstance(sde, VESDE):
        assert (network.config.sigma_min, network.config.sigma_max) == (sde.sigma_min, sde.sigma_max)
    assert network.config.centered is not isinstance(sde, VESDE)


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [
        ("ncsnpp-cifar10-continuous", 62.76, 571),
        ("ncsnpp-cifar10-deep", 107.59, 963),
        ("ddpmpp-cifar10-continuous", 61.80, 564),
        ("ddpmpp-cifar10-deep", 106.63, 956),
        ("ddpm-cifar10", 35.22, 308),
    ],
)
def test_published_sizes_of_score_sde(name, parameters, tensors):
    network = meta(name)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(parameters, abs=0.005)
    assert len(list(network.parameters())) == tensors
    assert len(network.state_dict()) == tensors + 1  # and `sigmas`


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [
        ("ddim-cifar10", 35.75, 328),  # as many as diffusers counts in its layout
        ("ddim-celeba-64", 78.70, None),
        ("ddim-bedroom-256", 113.67, None),
    ],
)
def test_published_sizes_of_ddim(name, parameters, tensors):
    network = meta(name)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(parameters, abs=0.005)
    assert tensors is None or len(network.state_dict()) == tensors


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("adm-imagenet-64", 295.90),
        ("adm-imagenet-128", 421.53),
        ("adm-imagenet-256", 553.84),
        ("adm-imagenet-256-uncond", 552.81),
        ("adm-imagenet-512", 559.00),
    ],
)
def test_published_sizes_of_adm(name, parameters):
    """Table 11 of arXiv 2105.05233 has 296, 422, 554 and 559 million."""
    assert sum(p.numel() for p in meta(name).parameters()) / 1e6 == pytest.approx(parameters, abs=0.005)


SIGMA_MAX = {"cifar10": 50.0, "celeba": 90.0, "bedroom": 378.0, "church": 380.0, "celebahq": 348.0, "ffhq": 348.0}


@pytest.mark.parametrize(
    "name", [name for name, p in models.zoo.PUBLISHED.items() if (p.sde, p.config.architecture) == ("VESDE", "ncsnpp")]
)
def test_largest_noise_of_ve_networks(name):
    """For the data in [0, 1] of each; arXiv 2011.13456, appendix C for CIFAR-10, its configurations for the others."""
    expected = 1348.0 if name.endswith("-1024") else SIGMA_MAX[name.split("-")[1]]
    published = models.describe(name)
    assert published.make_sde() == VESDE(0.01, expected)
    assert (published.config.sigma_max, published.config.num_scales) == (
        expected,
        2000 if name.endswith(("-256", "-1024")) else 1000,
    )


def test_unknown_name_lists_close_ones():
    with pytest.raises(ValueError, match=r"no configuration 'ncsnpp-cifar-deep'; close ones are ncsnpp-cifar10-deep,"):
        models.create("ncsnpp-cifar-deep")
    with pytest.raises(ValueError, match=r"no configuration 'zzz'; close ones are .*ncsnpp-cifar10"):
        models.create("zzz")


def test_discrete_schedules_are_those_of_the_training():
    linear, cosine = meta("ddim-church-256").sde, meta("adm-imagenet-64").sde
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(linear.log_alphas, 0.5 * torch.log1p(-betas).cumsum(0), rtol=1e-12, atol=0)
    assert torch.equal(meta("adm-imagenet-256").sde.log_alphas, linear.log_alphas)
    f = torch.cos((torch.arange(1000, dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2).square()
    # arXiv 2102.09672, eq. 17; its last beta is clipped
    torch.testing.assert_close(2 * cosine.log_alphas[:-1], (f[1:] / f[0]).log(), rtol=1e-9, atol=0)
    assert cosine.num_timesteps == 1000


def test_unknown_architecture():
    with pytest.raises(ValueError, match=r"architecture must be one of ncsnpp, .*got 'vit'"):
        models.create({"architecture": "vit"})
    with pytest.raises(ValueError, match="architecture must be 'ncsnpp' for NCSNppConfig, got 'adm'"):
        models.NCSNppConfig.from_dict({"architecture": "adm"})


def test_sde_of_a_card():
    assert make_sde("VPSDE", {"beta_min": 0.2, "beta_max": 10.0}) == VPSDE(0.2, 10.0)
    sde = make_sde("DiscreteVPSDE", {"schedule": "linear", "n": 10, "beta_end": 0.1})
    assert torch.equal(sde.log_alphas, DiscreteVPSDE.linear(10, 1e-4, 0.1).log_alphas)
    with pytest.raises(ValueError, match="sde must be one of VESDE, VPSDE, SubVPSDE, DiscreteVPSDE, got 'OU'"):
        make_sde("OU", {})
    with pytest.raises(ValueError, match="schedule must be one of linear, scaled_linear, cosine, sqrt, got None"):
        make_sde("DiscreteVPSDE", {})
