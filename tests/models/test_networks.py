"""What every architecture owes its users: derivatives, memory formats, dtypes, tracing, files, checks."""

import dataclasses
import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastscore.models import (
    ADMConfig,
    DDIMConfig,
    MLPConfig,
    NCSNConfig,
    NCSNppConfig,
    NCSNv2Config,
    create,
    load_bundle,
    save_bundle,
)
from fastscore.nn.instance_norm_plus import InstanceNormPlus

_DDIM = DDIMConfig(
    image_size=8, in_channels=2, out_ch=2, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.0
)
_ADM = ADMConfig(
    image_size=8,
    in_channels=2,
    out_channels=4,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(2,),
    num_heads=2,
)
_ADM_CLASSES = dataclasses.replace(
    _ADM, num_classes=3, num_head_channels=16, resblock_updown=True, use_new_attention_order=True
)
_NCSNPP = NCSNppConfig(
    image_size=8, num_channels=2, nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.0
)
CONFIGS = {
    "ncsnpp": _NCSNPP,
    "ddpmpp": dataclasses.replace(
        _NCSNPP,
        fir=False,
        progressive_input="none",
        embedding_type="positional",
        scale_by_sigma=False,
        centered=True,
        fir_kernel=(1, 2, 1),
    ),
    "ddim": _DDIM,
    "adm": _ADM,
    "adm-classes": _ADM_CLASSES,
    "adm-added-embedding": dataclasses.replace(_ADM, use_scale_shift_norm=False),
    "ncsn": NCSNConfig(image_size=8, num_channels=2, nf=8, num_scales=30),
    "ncsnv2": NCSNv2Config(image_size=8, num_channels=2, nf=8),
    "mlp": MLPConfig(dim=3, nf=16, num_layers=2),
    "mlp-fourier": MLPConfig(dim=3, nf=16, num_layers=2, embedding_type="fourier", scale_by_sigma=True),
}
IMAGES = [name for name in CONFIGS if not name.startswith("mlp")]
each_network = pytest.mark.parametrize("name", CONFIGS)


def make(name, dtype=torch.float32):
    """The network with random weights everywhere: as made, most of its branches are silent."""
    torch.manual_seed(0)
    network = create(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * parameter[0].numel() ** -0.5)
    return network.to(dtype)


def inputs(network, dtype=torch.float32, batch=2):
    """Data, labels, and classes where the network takes them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *network.shape, dtype=dtype, generator=generator)
    labels = torch.tensor([3.0, 20.0], dtype=dtype)[:batch]
    classes = getattr(network.config, "num_classes", None)
    return (x, labels) if classes is None else (x, labels, torch.tensor([2, 0])[:batch])


def relative(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@each_network
def test_runs_and_uses_all_its_parameters(name):
    network = make(name)
    x, *others = inputs(network)
    out = network(x, *others)
    channels = getattr(network.config, "out_channels", x.shape[1])
    assert out.shape == (x.shape[0], channels, *x.shape[2:])
    out.square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    # a bias in front of a softmax over the keys cancels
    assert [name for name in silent if not name.endswith(("NIN_1.b", ".k.bias"))] == []


@each_network
def test_forward_mode_agrees_with_finite_differences_and_with_reverse_mode(name):
    network = make(name, torch.float64)
    x, *others = inputs(network, torch.float64)

    def f(y):
        return network(y, *others)

    generator = torch.Generator().manual_seed(2)
    v = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    out, jvp = torch.func.jvp(f, (x,), (v,))
    torch.testing.assert_close(out, f(x), rtol=1e-12, atol=1e-12)
    h = 1e-5
    finite = (f(x + h * v) - f(x - h * v)) / (2 * h)
    # central differences err by h^2 times a third derivative, and by 1e-16 / h
    torch.testing.assert_close(jvp, finite, rtol=1e-6, atol=1e-7 * finite.detach().abs().max().item())
    w = torch.randn(out.shape, dtype=x.dtype, generator=generator)
    (vjp,) = torch.func.vjp(f, x)[1](w)
    torch.testing.assert_close((w * jvp).sum(), (vjp * v).sum(), rtol=1e-10, atol=1e-10)


@each_network
def test_parameter_gradients_agree_with_finite_differences(name):
    network = make(name, torch.float64)
    arguments = inputs(network, torch.float64)
    parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(4)
    probe = torch.randn(network(*arguments).shape, dtype=torch.float64, generator=generator)
    gradients = torch.autograd.grad((network(*arguments) * probe).sum(), list(parameters.values()))
    direction = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters.values()]
    expected = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))

    def shifted(h):
        moved = {n: p + h * d for (n, p), d in zip(parameters.items(), direction, strict=True)}
        return (torch.func.functional_call(network, moved, arguments) * probe).sum()

    h = 1e-6
    with torch.no_grad():
        # the curvature along a direction in which all parameters move is large: errors of h^2 times it
        torch.testing.assert_close((shifted(h) - shifted(-h)) / (2 * h), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", IMAGES)
def test_channels_last_gives_the_same_numbers_and_stays_channels_last(name):
    network = make(name, torch.float64)
    x, *others = inputs(network, torch.float64)
    expected = network(x, *others)
    network.to(memory_format=torch.channels_last)
    out = network(x.contiguous(memory_format=torch.channels_last), *others)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    assert out.is_contiguous(memory_format=torch.channels_last)


@each_network
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    network = make(name)
    x, *others = inputs(network)
    expected = network(x, *others)
    out = network.to(dtype)(x.to(dtype), *others)
    assert out.dtype == dtype
    # some forty roundings of relative size eps / 2, most of them averaged out
    assert relative(out.detach(), expected.detach()) < 10 * torch.finfo(dtype).eps


@each_network
def test_autocast_forward_and_backward(name):
    network = make(name)
    x, *others = inputs(network)
    expected = network(x, *others)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x, *others)
    assert relative(out.detach(), expected.detach()) < 10 * torch.finfo(torch.bfloat16).eps
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["ncsnpp", "ddim", "adm-classes", "ncsnv2", "mlp-fourier"])
def test_traces_to_one_graph(name):
    """Dynamo alone, no code generation."""
    network = make(name)
    arguments = inputs(network)
    with torch.no_grad():
        out = torch.compile(network, fullgraph=True, backend="eager")(*arguments)
        torch.testing.assert_close(out, network(*arguments))


@each_network
@pytest.mark.slow
def test_compiles_without_graph_breaks(name):
    network = make(name)
    arguments = inputs(network)
    with torch.no_grad():
        out = torch.compile(network, fullgraph=True)(*arguments)
        assert relative(out, network(*arguments)) < 1e-5  # float32 sums in another order


@each_network
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake_tensors(name, device):
    with FakeTensorMode(), torch.device(device):
        network = create(CONFIGS[name])
        classes = [torch.zeros(5, dtype=torch.int64)] if getattr(network.config, "num_classes", None) else []
        out = network(torch.empty(5, *network.shape), torch.ones(5), *classes)
    assert out.shape[0] == 5
    assert out.device.type == device


@pytest.mark.parametrize("name", IMAGES)
def test_every_normalization_runs_in_the_fused_kernel(name):
    native = pytest.importorskip("fastscore._C", reason="the native extension is not built")
    network = make(name)
    norms = sum(isinstance(module, (torch.nn.GroupNorm, InstanceNormPlus)) for module in network.modules())
    native.reset_launches()
    with torch.no_grad():
        network(*inputs(network))
    launches = {name.split(".")[0]: count for name, count in native.launches().items()}
    assert launches["group_norm_silu_fwd"] == norms


@each_network
def test_samples_do_not_see_their_batchmates(name):
    network = make(name, torch.float64)
    whole, alone = inputs(network, torch.float64), inputs(network, torch.float64, batch=1)
    alone = (whole[0][:1], *alone[1:])
    torch.testing.assert_close(network(*whole)[:1], network(*alone), rtol=1e-11, atol=1e-12)


@each_network
def test_time_matters(name):
    network = make(name)
    x, labels, *classes = inputs(network)
    assert (network(x, labels, *classes) - network(x, labels + 1, *classes)).abs().max() > 1e-3


@each_network
def test_empty_batch(name):
    network = make(name)
    assert network(*(argument[:0] for argument in inputs(network))).shape[0] == 0


@pytest.mark.parametrize("name", ["ncsnpp", "ddim", "adm"])
def test_dropout_acts_in_training_only(name):
    torch.manual_seed(0)
    network = create(dataclasses.replace(CONFIGS[name], dropout=0.5))
    network.load_state_dict(make(name).state_dict())
    arguments = inputs(network)
    assert not torch.equal(network(*arguments), network(*arguments))
    torch.testing.assert_close(network.eval()(*arguments), make(name)(*arguments), rtol=0, atol=0)


@each_network
def test_options_survive_json(name):
    options = json.loads(json.dumps(CONFIGS[name].to_dict()))
    assert create(options).config == CONFIGS[name]


@each_network
def test_weights_files_bring_back_the_network(name, tmp_path):
    network = make(name)
    card = {
        "network": CONFIGS[name].to_dict(),
        "sde": "DiscreteVPSDE",
        "sde_options": {"schedule": "linear", "n": 20, "beta_end": 0.5},
        "convention": {"prediction": "noise", "label": "timestep"},
    }
    save_bundle(tmp_path / "net.safetensors", network, card, dtype=torch.float32)
    loaded = load_bundle(tmp_path / "net.safetensors")
    assert type(loaded) is type(network)
    assert loaded.sde.num_timesteps == 20
    assert torch.equal(loaded(*inputs(network)), network(*inputs(network)))


@each_network
def test_wrong_shapes_are_refused(name):
    network = make(name)
    x, labels, *classes = inputs(network)
    with pytest.raises(ValueError, match=r"x must have shape \(B, .*\), got "):
        network(x[:, :1], labels, *classes)
    with pytest.raises(ValueError, match=r"x must have shape \(B, .*\), got "):
        network(x[0], labels, *classes)
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), one for every sample, got \(1,\)"):
        network(x, labels[:1], *classes)


@pytest.mark.parametrize(
    ("name", "y", "error", "message"),
    [
        ("adm", torch.tensor([0, 1]), ValueError, "y must be None: the network was made without num_classes"),
        ("adm-classes", None, ValueError, "y must be given: the network is conditioned on 3 classes"),
        ("adm-classes", torch.tensor([0.0, 1.0]), TypeError, "y must be int64, classes from 0 to 2, got torch.float32"),
        ("adm-classes", torch.tensor([0]), ValueError, r"y must have shape \(2,\), one class for every sample, got"),
    ],
)
def test_wrong_classes_are_refused(name, y, error, message):
    network = make(name)
    with pytest.raises(error, match=message):
        network(*inputs(network)[:2], y)


def test_the_null_class_is_the_last_one_and_stands_for_no_class():
    network = create({**CONFIGS["adm-classes"].to_dict(), "null_class": True})
    torch.nn.init.normal_(network.out["2"].weight)
    x, labels, _ = inputs(network)
    assert torch.equal(network(x, labels), network(x, labels, torch.tensor([2, 2])))
    assert not torch.equal(network(x, labels), network(x, labels, torch.tensor([2, 1])))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ddim", {"ch": 16}, "a layer of 16 channels cannot be normalized in 32 groups"),
        ("ddim", {"ch": 0}, "ch must be an integer of at least 1, got 0"),
        ("ddim", {"image_size": 9}, "image_size must be divisible by 2 for 2 levels, got 9"),
        ("ddim", {"ch_mult": (0,)}, "ch_mult must hold one multiplier of at least 1 a level"),
        ("ddim", {"nf": 3}, "unknown option nf; DDIMConfig has image_size, in_channels"),
        ("adm", {"model_channels": 48}, "a layer of 48 channels cannot be normalized in 32 groups"),
        ("adm", {"channel_mult": (0.25,)}, "channel_mult must hold one multiplier of at least 0.5 a level"),
        ("adm", {"num_heads": 3}, "num_heads must divide the 64 channels of an attended level, got 3"),
        (
            "adm",
            {"num_head_channels": 24},
            "num_head_channels must divide the 64 channels of an attended level, got 24",
        ),
        ("adm", {"num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ("adm", {"num_classes": True}, "num_classes must be an integer of at least 1, got True"),
        ("adm", {"null_class": True}, "null_class must be False without num_classes, got True"),
        ("adm", {"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ("mlp", {"dim": 0}, "dim must be an integer of at least 1, got 0"),
        ("mlp", {"nf": 1}, "nf must be an integer of at least 2, got 1"),
        ("mlp", {"embedding_type": "x"}, "embedding_type must be one of fourier, positional, got 'x'"),
        ("mlp", {"scale_by_sigma": True}, "scale_by_sigma must be False unless embedding_type is 'fourier'"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create({**CONFIGS[name].to_dict(), **options})
