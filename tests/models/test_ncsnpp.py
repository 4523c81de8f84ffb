"""NCSN++ / DDPM++: golden outputs of the published code, published sizes, derivatives, every option."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastscore.models import NCSNpp, NCSNppConfig, create
from fastscore.models import ncsnpp as ncsnpp_module
from fastscore.testing.golden_networks import load_networks

CASES = load_networks(Path(__file__).parents[1] / "golden" / "networks", "score_sde")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


DDPM = {  # what the published options of "ddpm" leave unsaid
    **{"resblock_type": "ddpm", "fir": False, "skip_rescale": False, "num_groups": 32},
    **{"progressive_input": "none", "embedding_type": "positional"},
}


def golden_network(case):
    published = {**case.config["model"], **case.config["data"]}
    names = {field.name for field in dataclasses.fields(NCSNppConfig)}
    options = {k: v for k, v in published.items() if k in names} | (DDPM if published["name"] == "ddpm" else {})
    return NCSNpp(NCSNppConfig.from_dict(options))


def relative(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_golden_float32(name, memory_format):
    CASES[name].assert_agrees(golden_network(CASES[name]), FORMATS[memory_format])


@pytest.mark.parametrize("name", CASES)
def test_golden_float64(name, monkeypatch, published_positional_embedding):
    monkeypatch.setattr(ncsnpp_module, "positional_embedding", published_positional_embedding)
    out, vjp = CASES[name].evaluate(golden_network(CASES[name]), torch.float64)
    # sums of up to 1e3 terms in another order
    assert relative(out, CASES[name].tensors["out_f64"]) < 1e-13
    assert relative(vjp, CASES[name].tensors["vjp_f64"]) < 1e-13


@pytest.mark.parametrize("name", CASES)
def test_keys_and_order_are_the_published_ones(name):
    case, network = CASES[name], golden_network(CASES[name])
    assert list(network.state_dict()) == list(case.state_dict)
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained == case.trained
    torch.testing.assert_close(network.sigmas, case.state_dict["sigmas"], rtol=1e-14, atol=0)


DDPMPP = {
    "fir": False,
    "progressive_input": "none",
    "embedding_type": "positional",
    "scale_by_sigma": False,
    "centered": True,
}


SMALL = {"image_size": 8, "num_channels": 2, "nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,)}
OPTIONS = list(
    itertools.product(
        ("biggan", "ddpm"), (True, False), ("none", "output_skip", "residual"), ("none", "input_skip", "residual")
    )
)


def small(dtype=torch.float32, **options):
    torch.manual_seed(0)
    # init_scale 1: with the published 0 most branches start silent, and nothing behind them would be tested
    return create({**SMALL, "dropout": 0.0, "init_scale": 1.0, **options}).to(dtype).eval()


def small_input(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 2, 8, 8, dtype=dtype, generator=generator), torch.tensor([0.3, 20.0], dtype=dtype)


@pytest.mark.parametrize("combine", ["sum", "cat"])
@pytest.mark.parametrize(("kind", "fir", "output", "input"), OPTIONS)
def test_every_option_builds_runs_and_uses_all_its_parameters(kind, fir, output, input, combine):
    network = small(
        resblock_type=kind, fir=fir, progressive=output, progressive_input=input, progressive_combine=combine
    )
    x, labels = small_input()
    out = network(x, labels)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    out.square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    # a bias in front of a softmax over the keys cancels
    assert [name for name in silent if not name.endswith("NIN_1.b")] == []


@pytest.mark.parametrize("progressive", ["none", "output_skip", "residual"])
@pytest.mark.parametrize("progressive_input", ["none", "input_skip", "residual"])
def test_pyramids_have_their_keys(progressive, progressive_input):
    """Modules of the pyramids, counted by hand: Combine or Downsample; per level to-image pairs or Upsample."""
    plain = {key.split(".")[1] for key in small(progressive_input="none").state_dict() if "all_modules" in key}
    network = small(progressive=progressive, progressive_input=progressive_input)
    keys = {key.split(".")[1] for key in network.state_dict() if "all_modules" in key}
    more = {"none": 0, "input_skip": 1, "residual": 1}[progressive_input]
    more += {"none": 0, "output_skip": 2, "residual": 3}[progressive]
    assert len(keys) - len(plain) == more


def test_forward_mode_agrees_with_finite_differences_and_with_reverse_mode():
    network = small(torch.float64, progressive="output_skip", progressive_input="input_skip")
    x, labels = small_input(torch.float64)
    generator = torch.Generator().manual_seed(2)
    v, w = (torch.randn(x.shape, dtype=x.dtype, generator=generator) for _ in range(2))

    def f(y):
        return network(y, labels)

    out, jvp = torch.func.jvp(f, (x,), (v,))
    # attention adds up in another order where there is no tangent; the output is divided by sigmas down to 0.01
    torch.testing.assert_close(out, f(x), rtol=0, atol=1e-12)
    h = 1e-5
    finite = (f(x + h * v) - f(x - h * v)) / (2 * h)
    # central differences err by h^2 times a third derivative, and by 1e-16 / h
    torch.testing.assert_close(jvp, finite, rtol=1e-6, atol=1e-7 * finite.detach().abs().max().item())

    _, pullback = torch.func.vjp(f, x)
    (vjp,) = pullback(w)
    torch.testing.assert_close((w * jvp).sum(), (vjp * v).sum(), rtol=1e-11, atol=0)


def test_batched_tangents_equal_one_at_a_time():
    """What trace estimators with several probes need."""
    network = small(torch.float64)
    x, labels = small_input(torch.float64)
    tangents = torch.randn(3, *x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))

    def jvp(v):
        return torch.func.jvp(lambda y: network(y, labels), (x,), (v,))[1]

    torch.testing.assert_close(torch.func.vmap(jvp)(tangents), torch.stack([jvp(v) for v in tangents]))


def test_parameter_gradients_agree_with_finite_differences():
    network = small(torch.float64, embedding_type="positional", fir=False, progressive_input="residual")
    x, labels = small_input(torch.float64)
    probe = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    loss = (network(x, labels) * probe).sum()
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    generator = torch.Generator().manual_seed(4)
    direction = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters.values()]
    expected = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))

    def shifted(h):
        moved = {n: p + h * d for (n, p), d in zip(parameters.items(), direction, strict=True)}
        return (torch.func.functional_call(network, moved, (x, labels)) * probe).sum()

    h = 1e-6
    with torch.no_grad():
        torch.testing.assert_close((shifted(h) - shifted(-h)) / (2 * h), expected, rtol=1e-6, atol=0)


def test_channels_last_gives_the_same_numbers_and_stays_channels_last():
    network = small(torch.float64)
    x, labels = small_input(torch.float64)
    expected = network(x, labels)
    network.to(memory_format=torch.channels_last)
    out = network(x.contiguous(memory_format=torch.channels_last), labels)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", [{}, DDPMPP], ids=["ncsnpp", "ddpmpp"])
@pytest.mark.slow
def test_compiles_without_graph_breaks(options):
    network = small(**options)
    x, labels = small_input()
    with torch.no_grad():
        expected = network(x, labels)
        out = torch.compile(network, fullgraph=True)(x, labels)
    assert relative(out, expected) < 1e-5  # float32 sums in another order


def test_traces_to_one_graph():
    """The quick part of the test above: dynamo alone, no code generation."""
    network = small()
    x, labels = small_input()
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(network, fullgraph=True, backend="eager")(x, labels), network(x, labels)
        )


def test_every_normalization_runs_in_the_fused_kernel():
    native = pytest.importorskip("fastscore._C", reason="the native extension is not built")
    network = small()
    norms = sum(isinstance(module, torch.nn.GroupNorm) for module in network.modules())
    native.reset_launches()
    with torch.no_grad():
        network(*small_input())
    launches = {name.split(".")[0]: count for name, count in native.launches().items()}
    assert launches == {"group_norm_silu_fwd": norms}


def test_samples_do_not_see_their_batchmates():
    network = small(torch.float64)
    x, labels = small_input(torch.float64)
    torch.testing.assert_close(network(x, labels)[:1], network(x[:1], labels[:1]), rtol=1e-11, atol=1e-12)


def test_data_range_is_an_affine_map_of_the_input():
    x, labels = small_input()
    unit, signed = small(centered=False), small(centered=True)
    torch.testing.assert_close(unit(x, labels), signed(2 * x - 1, labels), rtol=0, atol=0)


@pytest.mark.parametrize("embedding", ["fourier", "positional"])
def test_scale_by_sigma_divides_the_output(embedding):
    x, labels = small_input()
    scaled = small(embedding_type=embedding, scale_by_sigma=True)
    plain = small(embedding_type=embedding, scale_by_sigma=False)
    sigma = labels if embedding == "fourier" else scaled.sigmas[labels.long()].float()
    torch.testing.assert_close(scaled(x, labels) * sigma[:, None, None, None], plain(x, labels))


def test_unconditional_network_takes_no_notice_of_the_time():
    network = small(conditional=False, scale_by_sigma=False)
    x, labels = small_input()
    torch.testing.assert_close(network(x, labels), network(x, labels + 1), rtol=0, atol=0)
    assert not any("Dense" in key for key in network.state_dict())


def test_time_matters_for_a_conditional_network():
    network = small(scale_by_sigma=False)
    x, labels = small_input()
    assert (network(x, labels) - network(x, labels + 1)).abs().max() > 1e-3


def test_dropout_acts_in_training_only():
    network = small(dropout=0.5)
    x, labels = small_input()
    torch.testing.assert_close(network(x, labels), network(x, labels), rtol=0, atol=0)
    network.train()
    assert not torch.equal(network(x, labels), network(x, labels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, DDPMPP], ids=["ncsnpp", "ddpmpp"])
def test_half_precision(options, dtype):
    network, (x, labels) = small(**options), small_input()
    expected = network(x, labels)
    out = network.to(dtype)(x.to(dtype), labels)
    assert out.dtype == dtype
    # some forty roundings of relative size eps / 2, most of them averaged out
    assert relative(out.detach(), expected.detach()) < 10 * torch.finfo(dtype).eps


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake_tensors(device):
    with FakeTensorMode(), torch.device(device):
        network = create(SMALL)
        out = network(torch.empty(5, 2, 8, 8), torch.empty(5))
    assert out.shape == (5, 2, 8, 8)
    assert out.device.type == device


def test_empty_batch():
    assert small()(torch.empty(0, 2, 8, 8), torch.empty(0)).shape == (0, 2, 8, 8)


def test_config_survives_json():
    config = NCSNppConfig(**SMALL, fir_kernel=(1, 2, 1))
    assert NCSNppConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((2, 3, 8, 8), 2, r"x must have shape \(B, 2, 8, 8\), got \(2, 3, 8, 8\)"),
        ((2, 2, 8), 2, r"x must have shape \(B, 2, 8, 8\), got \(2, 2, 8\)"),
        ((2, 2, 8, 8), 1, r"labels must have shape \(2,\), one for every sample, got \(1,\)"),
    ],
)
def test_wrong_shapes_are_refused(shape, labels, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape), torch.ones(labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resblock_type": "resnet"}, "resblock_type must be one of biggan, ddpm, got 'resnet'"),
        ({"progressive": "skip"}, "progressive must be one of none, output_skip, residual, got 'skip'"),
        ({"progressive_input": "x"}, "progressive_input must be one of none, input_skip, residual, got 'x'"),
        ({"progressive_combine": "mul"}, "progressive_combine must be one of sum, cat, got 'mul'"),
        ({"embedding_type": "learned"}, "embedding_type must be one of fourier, positional, got 'learned'"),
        ({"nf": 2}, "nf must be at least 4"),
        ({"nf": 8.0}, "nf must be an integer of at least 1, got 8.0"),
        ({"num_res_blocks": 0}, "num_res_blocks must be an integer of at least 1, got 0"),
        ({"ch_mult": ()}, "ch_mult must hold"),
        ({"image_size": 9}, "image_size must be divisible by 2 for 2 levels, got 9"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"fir_kernel": (1,)}, "fir_kernel must have at least 2 taps"),
        ({"sigma_min": 60.0}, "sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, got 60.0 and 50.0"),
        ({"num_groups": 0}, "num_groups must be an integer of at least 1, got 0"),
        ({"num_groups": 3}, "a layer of 8 channels cannot be normalized in 3 groups"),
        ({"nf": 9}, "a layer of 9 channels cannot be normalized in 2 groups"),
        ({"nf": 24, "ch_mult": (1, 5)}, "a layer of 240 channels .* in 32 groups"),
        ({"channels": 3}, "unknown option channels; NCSNppConfig has image_size, num_channels"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create({**SMALL, **options})


def test_create_refuses_what_is_no_config():
    with pytest.raises(TypeError, match="config must be a name, a NetworkConfig or a mapping, got int"):
        create(3)
