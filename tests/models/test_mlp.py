"""The network for data of low dimension: the same in plain PyTorch, and that it learns a score."""

import pytest
import torch
from torch.nn import functional as F

import fastscore
from fastscore.models import MLPConfig, create
from fastscore.nn.time_embedding import positional_embedding


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
def test_equals_the_formula(embedding):
    torch.manual_seed(0)
    fourier = embedding == "fourier"
    network = create(MLPConfig(dim=3, nf=8, num_layers=2, embedding_type=embedding, scale_by_sigma=fourier)).double()
    x, labels = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0.01, 0.5, 2.0, 50.0], dtype=torch.float64)
    if fourier:
        phase = 2 * torch.pi * labels.log()[:, None] * network.fourier.W
        features = torch.cat([phase.sin(), phase.cos()], 1)
    else:
        features = positional_embedding(labels, 8, torch.float64)
    e = F.silu(network.time_1(F.silu(network.time_0(features))))
    h = network.input(x)
    for layer in network.layers:
        h = h + layer.dense_1(F.silu(layer.dense_0(F.silu(h)) + layer.time(e)))
    expected = network.output(F.silu(h))
    if fourier:
        expected = expected / labels[:, None]
    torch.testing.assert_close(network(x, labels), expected, rtol=1e-12, atol=1e-12)


def test_learns_the_noise_in_gaussian_data():
    """Against the exact answer, sigma (x - alpha mean) / (alpha^2 std^2 + sigma^2)."""
    torch.manual_seed(0)
    network = create(MLPConfig(dim=2, nf=32, num_layers=2))
    sde, mean, std = fastscore.VPSDE(), torch.tensor([1.0, -0.5]), torch.tensor([0.2, 0.6])

    def draw(count):
        t, noise = torch.rand(count, dtype=torch.float64), torch.randn(count, 2)
        alpha, sigma = (value.float()[:, None] for value in sde.marginal(t))
        x = alpha * (mean + std * torch.randn(count, 2)) + sigma * noise
        return x, 999 * t, noise, sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(400):
        x, labels, noise, _ = draw(256)
        loss = (network(x, labels) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, labels, _, exact = draw(4000)
    with torch.no_grad():
        error = (network(x, labels) - exact).square().mean() / exact.square().mean()
        blind = (network(x, labels.flip(0)) - exact).square().mean() / exact.square().mean()
    print(f"relative error {error:.3g}, with labels of other samples {blind:.3g}")
    assert error < 0.05
    assert blind > 4 * error
