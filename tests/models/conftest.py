"""Shared by the tests of networks."""

import math

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(threads):
    """The tensors are tiny: on a busy machine a second thread costs more than all else."""
    with threads(1):
        yield


@pytest.fixture
def published_positional_embedding():
    """Published code computes these sinusoids in float32 even when all else is float64."""

    def embed(labels, features, dtype):
        half = features // 2
        phase = labels.float()[:, None] * torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
        return torch.cat([phase.sin(), phase.cos()], dim=1).to(dtype)

    return embed
