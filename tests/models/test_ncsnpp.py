"""NCSN++ / DDPM++: golden outputs of the published code, published sizes, derivatives, every option."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

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


def test_batched_tangents_equal_one_at_a_time():
    """What trace estimators with several probes need."""
    network = small(torch.float64)
    x, labels = small_input(torch.float64)
    tangents = torch.randn(3, *x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))

    def jvp(v):
        return torch.func.jvp(lambda y: network(y, labels), (x,), (v,))[1]

    torch.testing.assert_close(torch.func.vmap(jvp)(tangents), torch.stack([jvp(v) for v in tangents]))


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
