"""NCSNv2: golden numbers of the published code, its keys, its published configurations."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fastscore.models import NCSNv2Config, create
from fastscore.nn.refinenet import MultiResolutionFusion
from fastscore.score import Convention
from fastscore.sde import VESDE
from fastscore.testing.golden_networks import load_networks

GOLDEN = load_networks(Path(__file__).parents[1] / "golden" / "networks", "ncsnv2")
DEPTHS = {"ncsnv2": 4, "ncsnv2_deeper": 5}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
each_network = pytest.mark.parametrize("name", DEPTHS)


def golden_network(name):
    data, model = GOLDEN[name].config["data"], GOLDEN[name].config["model"]
    return create(
        NCSNv2Config(
            image_size=data["image_size"],
            num_channels=data["channels"],
            nf=model["ngf"],
            depth=DEPTHS[name],
            num_scales=model["num_classes"],
            sigma_min=model["sigma_end"],
            sigma_max=model["sigma_begin"],
            centered=data["rescaled"] or data["logit_transform"],
        )
    )


@each_network
@pytest.mark.parametrize("memory_format", FORMATS)
def test_golden_float32(name, memory_format):
    GOLDEN[name].assert_agrees(golden_network(name), FORMATS[memory_format])


@each_network
def test_golden_float64(name, monkeypatch):
    """Published code adds up the branches of a fusion in float32 even when all else is float64."""

    def fuse(self, xs, labels):
        total = torch.zeros(())
        for x, conv in zip(xs, self.convs, strict=True):
            h = F.interpolate(conv(x), xs[0].shape[2:], mode="bilinear", align_corners=True)
            total = (total.double() + h).float()
        return total.double()

    monkeypatch.setattr(MultiResolutionFusion, "forward", fuse)
    golden = GOLDEN[name]
    for kind, actual in zip(("out", "vjp"), golden.evaluate(golden_network(name), torch.float64), strict=True):
        expected = golden.tensors[f"{kind}_f64"]
        # sums of up to 1e3 terms in another order
        assert (actual - expected).norm() < 1e-13 * expected.norm()


@each_network
def test_keys_order_and_noise_levels_are_the_published_ones(name):
    network, golden = golden_network(name), GOLDEN[name]
    assert list(network.state_dict()) == list(golden.state_dict)
    assert [key for key, _ in network.named_parameters()] == golden.trained
    torch.testing.assert_close(network.sigmas.float(), golden.state_dict["sigmas"], rtol=2e-7, atol=0)


def test_blocks_of_the_deepest_are_in_published_order():
    network = create(NCSNv2Config(image_size=8, nf=2, depth=6))
    names = [name for name, _ in network.named_children()]
    assert names[:3] == ["begin_conv", "normalizer", "end_conv"]
    assert names[3:9] == ["res1", "res2", "res3", "res31", "res4", "res5"]
    assert names[9:] == ["refine1", "refine2", "refine3", "refine31", "refine4", "refine5"]


def test_labels_of_a_time_find_the_noise_that_the_network_has_seen():
    network, sde, convention = (
        create(NCSNv2Config(nf=2, num_scales=20)),
        VESDE(),
        Convention("score", "noise_index", 20),
    )
    times = torch.linspace(0, 1, 20, dtype=torch.float64)
    labels = convention.labels(sde, times)
    assert labels.tolist() == list(range(19, -1, -1))
    torch.testing.assert_close(network.sigmas[labels], convention.marginal(sde, times)[1], rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("name", "image_size", "depth", "levels", "sigma_max"),
    [
        ("ncsnv2-cifar10", 32, 4, 232, 50.0),
        ("ncsnv2-celeba-64", 64, 4, 500, 90.0),
        ("ncsnv2-deeper-church-64", 64, 5, 788, 140.0),
        ("ncsnv2-deeper-bedroom-128", 128, 5, 1086, 190.0),
        ("ncsnv2-deeper-tower-128", 128, 5, 1086, 190.0),
        ("ncsnv2-deepest-ffhq-256", 256, 6, 2311, 348.0),
    ],
)
def test_published_configurations(name, image_size, depth, levels, sigma_max):
    """Song and Ermon 2020, arXiv 2006.09011, appendix B."""
    with torch.device("meta"):
        network = create(name)
    config = network.config
    assert (network.shape, config.nf, config.depth) == ((3, image_size, image_size), 128, depth)
    assert network.sigmas.shape == (levels,)
    assert (config.sigma_min, config.sigma_max, config.centered) == (0.01, sigma_max, False)
    assert network.sde == VESDE(0.01, sigma_max)
    assert network.convention == Convention("score", "noise_index", levels)


def test_published_size():
    with torch.device("meta"):
        network = create("ncsnv2-cifar10")
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(29.69, abs=0.005)
    assert len(network.state_dict()) == 154


def test_levels_that_are_no_range_are_refused():
    with pytest.raises(ValueError, match="sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, got"):
        NCSNv2Config(sigma_min=1.0, sigma_max=0.5)
