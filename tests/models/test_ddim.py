"""The U-Net of DDPM as in ermongroup/ddim: golden numbers of the published code."""

import dataclasses
from pathlib import Path

import pytest
import torch

from fastscore.models import DDIMConfig, DDIMUNet, create
from fastscore.models import ddim as ddim_module
from fastscore.testing.golden_networks import load_networks

GOLDEN = load_networks(Path(__file__).parents[1] / "golden" / "networks", "ddim")["ddim_model"]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def golden_network():
    published = {**GOLDEN.config["model"], **GOLDEN.config["data"]}
    names = {field.name for field in dataclasses.fields(DDIMConfig)}
    return create(DDIMConfig(**{k: v for k, v in published.items() if k in names}))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_golden_float32(memory_format):
    GOLDEN.assert_agrees(golden_network(), FORMATS[memory_format])


def test_golden_float64(monkeypatch, published_positional_embedding):
    monkeypatch.setattr(ddim_module, "positional_embedding", published_positional_embedding)
    for name, actual in zip(("out", "vjp"), GOLDEN.evaluate(golden_network(), torch.float64), strict=True):
        expected = GOLDEN.tensors[f"{name}_f64"]
        # sums of up to 1e3 terms in another order
        assert (actual - expected).norm() < 1e-13 * expected.norm()


def test_keys_and_order_are_the_published_ones():
    network = golden_network()
    assert isinstance(network, DDIMUNet)
    assert list(network.state_dict()) == list(GOLDEN.state_dict)
    assert [name for name, _ in network.named_parameters()] == GOLDEN.trained
