"""NCSN: its keys, its noise levels, its published configurations."""

from pathlib import Path

import pytest
import torch

from fastscore import models
from fastscore.models import NCSNConfig, create
from fastscore.score import Convention
from fastscore.sde import VESDE
from fastscore.testing.golden_networks import load_networks

GOLDEN = load_networks(Path(__file__).parents[1] / "golden" / "networks", "ncsnv2")


def conditional(keys):
    """The keys of NCSNv2 with one table of scales and shifts a norm, a norm for every convolution of RefineNet."""
    found = []
    for key in keys:
        block, _, last = key.rpartition(".")
        if key == "sigmas" or last in ("gamma", "beta"):
            continue
        if last == "alpha":
            found.append(f"{block}.embed.weight")
        elif block.endswith("_conv") and block.startswith("refine"):
            found += [f"{block[:-5]}_norm.embed.weight", key]
        elif block.endswith((".msf.convs.1", ".crp.convs.1")) and last == ("bias" if ".msf" in block else "weight"):
            prefix = block.removesuffix("convs.1")
            found += [key, f"{prefix}norms.0.embed.weight", f"{prefix}norms.1.embed.weight"]
        else:
            found.append(key)
    return found


@pytest.mark.parametrize(("depth", "golden", "tensors"), [(4, "ncsnv2", 173), (5, "ncsnv2_deeper", 217)])
def test_keys_and_order_are_the_published_ones(depth, golden, tensors):
    network = create(NCSNConfig(image_size=8, nf=4, depth=depth, num_scales=3))
    expected = conditional(GOLDEN[golden].state_dict)
    assert list(network.state_dict()) == [name for name, _ in network.named_parameters()] == expected
    assert len(expected) == tensors
    embedded = {tuple(p.shape) for name, p in network.named_parameters() if name.endswith("embed.weight")}
    assert embedded == {(3, 3 * width) for width in ((4, 8) if depth == 4 else (4, 8, 16))}


def test_a_noise_level_uses_its_own_row_of_every_norm():
    torch.manual_seed(0)
    network = create(NCSNConfig(image_size=8, nf=4, num_scales=3))
    out = network(torch.rand(2, 3, 8, 8), torch.tensor([2, 1]))
    out.square().sum().backward()
    for name, parameter in network.named_parameters():
        if name.endswith("embed.weight"):
            assert parameter.grad.abs().amax(1).ne(0).tolist() == [False, True, True], name


@pytest.mark.parametrize(
    ("name", "shape", "nf"),
    [("ncsn-mnist", (1, 28, 28), 64), ("ncsn-cifar10", (3, 32, 32), 128), ("ncsn-celeba-32", (3, 32, 32), 128)],
)
def test_published_configurations(name, shape, nf):
    with torch.device("meta"):
        network = create(name)
    assert (network.shape, network.config.nf, network.config.num_scales) == (shape, nf, 10)
    assert network.config.depth == 4
    assert not network.config.centered
    assert (network.sde, network.convention) == (VESDE(0.01, 1.0), Convention("score", "noise_index", 10))
    assert models.describe(name).source == "ermongroup/ncsn configs/anneal.yml"
