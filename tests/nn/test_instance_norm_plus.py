"""InstanceNorm++ against its formula, sample by sample and channel by channel."""

import pytest
import torch

from fastscore.nn.instance_norm_plus import InstanceNormPlus


def expected_norm(x, gamma, alpha, beta):
    """gamma, alpha, beta (B, C)."""
    out = torch.empty_like(x)
    for n in range(x.shape[0]):
        means = torch.stack([channel.mean() for channel in x[n]])
        center = means.sum() / len(means)
        spread = ((means - center) ** 2).sum() / (len(means) - 1)
        for c, channel in enumerate(x[n]):
            normalized = (channel - means[c]) / (((channel - means[c]) ** 2).mean() + 1e-5).sqrt()
            mean = (means[c] - center) / (spread + 1e-5).sqrt()
            out[n, c] = gamma[n, c] * (normalized + alpha[n, c] * mean) + beta[n, c]
    return out


def random_input(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    # small enough that eps counts, and with channels that differ
    x = 0.01 * torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=generator)
    x = x + 0.01 * torch.randn(3, 4, 1, 1, dtype=torch.float64, generator=generator)
    return x.to(dtype)


def random_norm(num_classes=None):
    torch.manual_seed(1)
    norm = InstanceNormPlus(4, num_classes).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    return norm


def parameters_of_samples(norm, labels):
    """gamma, alpha, beta (B, 4)."""
    if norm.conditional:
        return [norm.embed.weight[labels, 4 * part : 4 * part + 4] for part in range(3)]
    return [p.expand(len(labels), 4) for p in (norm.gamma, norm.alpha, norm.beta)]


@pytest.mark.parametrize("num_classes", [None, 7])
def test_equals_the_formula_and_its_gradients(num_classes):
    norm, labels = random_norm(num_classes), torch.tensor([6, 0, 2])
    x = random_input().requires_grad_()
    out, expected = norm(x, labels), expected_norm(x, *parameters_of_samples(norm, labels))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
    probe = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    inputs = [x, *norm.parameters()]
    gradients = zip(torch.autograd.grad(out, inputs, probe), torch.autograd.grad(expected, inputs, probe), strict=True)
    for actual, wanted in gradients:
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12 * wanted.abs().max().item())


@pytest.mark.parametrize("num_classes", [None, 7])
def test_low_precision_rounds_the_result_alone(num_classes):
    """Also where the means of the channels are far from zero and close to each other."""
    norm, labels = random_norm(num_classes), torch.tensor([6, 0, 2])
    x = (8 + 100 * random_input()).bfloat16()
    expected = expected_norm(x.double(), *parameters_of_samples(norm, labels))
    out = norm.float()(x, labels)
    assert out.dtype == torch.bfloat16
    # half a unit in the last place of the result, and float32 sums of values around 8
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-5)


def test_a_single_channel_is_refused():
    with pytest.raises(ValueError, match="channels must be at least 2, to have a variance over them, got 1"):
        InstanceNormPlus(1)


def test_starts_near_the_plain_norm():
    torch.manual_seed(0)
    for norm in (InstanceNormPlus(512), InstanceNormPlus(16, 32)):
        state = norm.state_dict()
        if norm.conditional:
            assert state["embed.weight"].shape == (32, 48)
            state = dict(zip(("gamma", "alpha", "beta"), state["embed.weight"].chunk(3, 1), strict=True))
        assert not state["beta"].any()
        for name in ("gamma", "alpha"):
            # 512 draws: four standard errors of mean and standard deviation
            assert state[name].mean().item() == pytest.approx(1, abs=4 * 0.02 / 512**0.5)
            assert state[name].std().item() == pytest.approx(0.02, rel=4 / 1024**0.5)
