"""The classifier of noisy images: derivatives, dtypes, tracing, files, guidance by it, refusals."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastscore
from fastscore.control import ClassifierGuidance
from fastscore.models import Classifier, ClassifierConfig, create, load_bundle, save_bundle

CONFIG = ClassifierConfig(image_size=8, num_channels=2, num_classes=3, nf=8, ch_mult=(1, 2))
CARD = {"network": CONFIG.to_dict(), "sde": "VPSDE", "sde_options": {}, "convention": {"label": "time"}}


def make(dtype=torch.float64):
    """With random weights everywhere: as made, the second half of every block is silent."""
    torch.manual_seed(0)
    network = create(CONFIG).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape) * parameter[0].numel() ** -0.5)
    return network.to(dtype)


def inputs(dtype=torch.float64, batch=2):
    x = torch.randn(batch, 2, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0.1, 0.7], dtype=dtype)[:batch]


def test_logits_come_from_every_parameter():
    network = make()
    logits = network(*inputs())
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    assert [name for name, p in network.named_parameters() if not p.grad.any()] == []


def test_levels_and_blocks():
    network = create({**CONFIG.to_dict(), "ch_mult": [1, 2, 3], "num_res_blocks": 2})
    assert isinstance(network, Classifier)
    assert [block.resample is not None for block in network.blocks] == [False, False, *[True, False, False] * 2]
    assert network.output.in_features == 24


def test_gradients_in_the_image_agree_in_both_modes_and_with_differences():
    network, (x, t) = make(), inputs()
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    out, tangent = torch.func.jvp(lambda y: network(y, t), (x,), (v,))
    w = torch.randn(out.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.func.vjp(lambda y: network(y, t), x)[1](w)
    torch.testing.assert_close((w * tangent).sum(), (gradient * v).sum(), rtol=1e-10, atol=1e-10)
    h = 1e-5  # central differences err by h^2 times a third derivative, and by 1e-16 / h
    difference = (network(x + h * v, t) - network(x - h * v, t)) / (2 * h)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-8)


def test_times_matter_and_batchmates_do_not():
    network, (x, t) = make(), inputs()
    both = network(x, t)
    torch.testing.assert_close(network(x[:1], t[:1]), both[:1], rtol=1e-11, atol=1e-12)
    assert (network(x, t + 0.01) - both).abs().max() > 1e-3
    assert network(x[:0], t[:0]).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    network, (x, t) = make(torch.float32), inputs(torch.float32)
    expected = network(x, t).detach()
    logits = network.to(dtype)(x.to(dtype), t)  # times stay float32, as samplers hand them over
    assert logits.dtype == dtype
    # some twenty roundings of relative size eps / 2, most of them averaged out
    assert (logits.float() - expected).norm() < 10 * torch.finfo(dtype).eps * expected.norm()


def test_channels_last_gives_the_same_logits():
    network, (x, t) = make(), inputs()
    expected = network(x, t)
    network.to(memory_format=torch.channels_last)
    logits = network(x.contiguous(memory_format=torch.channels_last), t)
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-12)


def test_traces_to_one_graph():
    network, (x, t) = make(torch.float32), inputs(torch.float32)
    with torch.no_grad():
        out = torch.compile(network, fullgraph=True, backend="eager")(x, t)
        torch.testing.assert_close(out, network(x, t))


def test_fake_cuda_tensors():
    with FakeTensorMode(), torch.device("cuda"):
        logits = create(CONFIG)(torch.empty(5, 2, 8, 8), torch.ones(5))
    assert (logits.shape, logits.device.type) == ((5, 3), "cuda")


def test_files_bring_it_back(tmp_path):
    network = make(torch.float32)
    save_bundle(tmp_path / "net.safetensors", network, CARD, dtype=torch.float32)
    loaded = load_bundle(tmp_path / "net.safetensors")
    assert loaded.config == create(json.loads(json.dumps(CONFIG.to_dict()))).config == CONFIG
    assert torch.equal(loaded(*inputs(torch.float32)), network(*inputs(torch.float32)))


def test_guidance_tells_it_the_time():
    """What reaches it without further options is t itself, and its gradient is what is added."""
    network, (x, _) = make(), inputs()
    seen = []

    class Listening(torch.nn.Module):
        def forward(self, x, t):
            seen.append(t.clone())
            return network(x, t)

    class Last(fastscore.samplers.Hook):
        def on_denoised(self, denoised, x, moment):
            self.found = denoised, x.clone(), moment

    last, labels, sde = Last(), torch.tensor([2, 0]), fastscore.VPSDE()
    sampler = fastscore.sampler("ddim", sde, lambda x, t: 0.1 * x, steps=3, convention=fastscore.Convention("denoised"))
    sampler.sample(x, hooks=[ClassifierGuidance(Listening(), labels, 3, scale=2.0), last])
    denoised, point, moment = last.found
    torch.testing.assert_close(seen[-1], moment.t, rtol=0, atol=0)
    assert seen[0][0] == 1
    point.requires_grad_()
    chosen = network(point, moment.t).log_softmax(1)[[0, 1], labels].sum()
    alpha, sigma = (value.reshape(-1, 1, 1, 1) for value in sde.marginal(moment.t))
    expected = 0.1 * point + 2 * sigma**2 / alpha * torch.autograd.grad(chosen, point)[0]
    torch.testing.assert_close(denoised, expected.detach(), rtol=1e-10, atol=1e-10)


def test_wrong_shapes_are_refused():
    network, (x, t) = make(), inputs()
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2, 8, 8\), got \(2, 1, 8, 8\)"):
        network(x[:, :1], t)
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), one for every sample, got \(1,\)"):
        network(x, t[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ({"nf": 3}, "nf must be an integer of at least 4, got 3"),
        ({"ch_mult": ()}, "ch_mult must hold one multiplier of at least 1 a level"),
        ({"image_size": 9}, "image_size must be divisible by 2 for 2 levels, got 9"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"attention": True}, "unknown option attention; ClassifierConfig has image_size, num_channels"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create({**CONFIG.to_dict(), **options})
