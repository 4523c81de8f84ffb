"""ADM: golden numbers of the published code, its two orders of heads, classes."""

import dataclasses
from pathlib import Path

import pytest
import torch

from fastscore.models import ADMConfig, create
from fastscore.testing.golden_networks import load_networks

CASES = load_networks(Path(__file__).parents[1] / "golden" / "networks", "guided")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def golden_network(case):
    names = {field.name for field in dataclasses.fields(ADMConfig)}
    return create(ADMConfig(**{name: value for name, value in case.config.items() if name in names}))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_golden_float32(name, memory_format):
    CASES[name].assert_agrees(golden_network(CASES[name]), FORMATS[memory_format])


@pytest.mark.parametrize("name", CASES)
def test_keys_and_order_are_the_published_ones(name):
    case, network = CASES[name], golden_network(CASES[name])
    assert list(network.state_dict()) == list(case.state_dict)
    assert [name for name, _ in network.named_parameters()] == case.trained
