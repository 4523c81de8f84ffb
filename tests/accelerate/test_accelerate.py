"""accelerate and restore on any module: what is found, what is left alone, and what goes on working."""

import io
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fastscore
from fastscore import models
from fastscore.accelerate import Entry, Report

CONVOLUTION = 'torch\'s own; optimize="cpu" takes those of stride 1 and padding 1'
ONE = {"group_norm_silu_fwd": 1}
LEFT = [Entry("1", "group_norm_silu", "no SiLU is seen to follow it: what calls it is no layer that is known here")]


def net(*between: nn.Module, affine: bool = True) -> nn.Sequential:
    """A convolution, a norm, whatever stands between, an activation, and another convolution."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.GroupNorm(2, 8, eps=0.1, affine=affine),
        *between,
        nn.SiLU(),
        nn.Conv2d(8, 3, 3, padding=1),
    )


def image() -> torch.Tensor:
    return torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_and_an_activation_in_a_sequence(same, affine):
    report = same(net(affine=affine), (image(),), ONE)
    assert report.replaced == [Entry("1", "group_norm_silu", "group_norm_silu")]
    assert report.left_alone == [Entry("3", "conv3x3", CONVOLUTION)]


def test_norms_that_end_a_sequence_and_stand_in_others(same):
    norm = nn.GroupNorm(2, 8)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.SiLU()), nn.Sequential(norm, nn.SiLU(inplace=True))
    )
    report = same(model, (image(),), {"group_norm_silu_fwd": 2})
    assert report.counts == {"group_norm_silu": 2}  # of two sequences, with one norm


def test_what_stands_between_or_is_no_silu_is_left_alone():
    for model in (net(nn.Dropout(0.0)), nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.ReLU())):
        report = fastscore.accelerate(model)
        assert report.replaced == []
        assert [e for e in report.left_alone if e.kind != "conv3x3"] == LEFT


class OwnSiLU(nn.SiLU):
    def forward(self, x):
        return 2 * x


class Skipping(nn.Sequential):
    def forward(self, x):
        return self[3](self[1](self[0](x)))


def test_subclasses_that_do_something_else_are_left_alone():
    other = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), OwnSiLU())
    assert fastscore.accelerate(other).replaced == []
    skipping = Skipping(*net())
    assert fastscore.accelerate(skipping).replaced == []
    patched = net()
    patched.forward = lambda x: patched[0](x)
    assert fastscore.accelerate(patched).replaced == []


def test_a_subclass_that_does_the_same_is_replaced(same):
    class Same(nn.Sequential):
        pass

    same(Same(*net()), (image(),), ONE)


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
@pytest.mark.parametrize("layer", [1, 2])
def test_a_watched_layer_is_called(hook, layer):
    model = net()
    calls = []
    handle = getattr(model[layer], hook)(lambda *args: calls.append(1) and None)
    report = fastscore.accelerate(model)
    assert report.replaced == []
    assert report.left_alone[0] == Entry("", "group_norm_silu", "Sequential: a hook watches its norm or its activation")
    handle.remove()

    assert fastscore.accelerate(model).counts == {"group_norm_silu": 1}
    getattr(model[layer], hook)(lambda *args: calls.append(1) and None)  # one that comes later
    before = fastscore_launches()
    model(image().requires_grad_()).sum().backward()
    assert calls == [1]
    assert fastscore_launches() == before


def fastscore_launches() -> int:
    native = fastscore.ops.group_norm_silu.__globals__["_backend"]._library.NATIVE
    return sum(native.launches().values())


def test_layers_of_a_sequence_may_be_taken_out():
    """As in blocks with scale and shift, which call the norm alone and the rest after it."""
    model, x = net(), image()
    want = model[2:](model[1](model[0](x))), model[:2](x)
    fastscore.accelerate(model)
    assert torch.equal(model[2:](model[1](model[0](x))), want[0])
    assert torch.equal(model[:2](x), want[1])


def test_parametrized_weights(same):
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    model = net()
    parametrize.register_parametrization(model[1], "weight", Double())
    same(model, (image(),), ONE)


def test_loading_and_moving():
    model, other, x = net(), net(), image()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    fastscore.accelerate(model)
    model.load_state_dict(other.state_dict(), strict=True)
    assert torch.allclose(model(x), other(x), atol=1e-5)
    assert model.double()(x.double()).dtype is torch.float64
    assert model.bfloat16()(x.bfloat16()).dtype is torch.bfloat16
    assert not model.eval()[1].training
    assert model.train()[1].training


def test_saving_a_whole_model():
    model, x = net(), image()
    fastscore.accelerate(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded) is type(model)
    assert torch.equal(loaded(x), model(x))
    fastscore.restore(loaded)
    assert type(loaded) is nn.Sequential


@pytest.mark.parametrize("grad", [False, True])
def test_compile(grad):
    model, x = net(), image()
    want = model(x)
    fastscore.accelerate(model)
    with torch.set_grad_enabled(grad):
        got = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    assert torch.allclose(got, want, atol=1e-5)
    if grad:
        got.sum().backward()
        gradient = model[1].weight.grad.clone()
        model.zero_grad()
        fastscore.restore(model)
        model(x).sum().backward()
        assert torch.allclose(gradient, model[1].weight.grad, rtol=1e-4, atol=1e-5)


def test_forward_mode_and_vmap():
    model, x = net(), image()
    v = torch.randn_like(x)
    want = torch.func.jvp(model, (x,), (v,))[1]
    fastscore.accelerate(model)
    assert torch.allclose(torch.func.jvp(model, (x,), (v,))[1], want, atol=1e-5)
    assert torch.allclose(torch.func.vmap(lambda a: model(a[None])[0])(x), model(x), atol=1e-5)


def test_our_own_networks_have_nothing_to_do():
    report = fastscore.accelerate(models.create("ncsnpp-cifar10"))
    assert report.replaced == []
    assert report.left_alone == []
    assert re.fullmatch("nothing to do: the network is made of .* fastscore.*", str(report))


def test_the_report_is_a_table():
    report = fastscore.accelerate(nn.Sequential(net(), nn.GroupNorm(1, 3), nn.Conv2d(3, 3, 3)))
    assert str(report).splitlines() == [
        "replaced: 1 group_norm_silu",
        "  0.1  group_norm_silu  group_norm_silu",
        "left alone: 3",
        "  1         group_norm_silu  no SiLU is seen to follow it: what calls it is no layer that is known here",
        f"  2 layers  conv3x3          {CONVOLUTION}",
    ]
    assert str(Report()).startswith("replaced: nothing")


# ------------------------------------------------------------------------------------------------ verify


def test_verify_passes_and_leaves_no_trace():
    model = net(nn.Identity())[:1].append(nn.GroupNorm(2, 8)).append(nn.SiLU()).append(nn.Dropout(0.5)).train()
    model[1].eval()
    state = torch.get_rng_state()
    for example in (image(), (image(),), {"input": image()}):
        assert fastscore.accelerate(model, verify=True, example=example).counts == {"group_norm_silu": 1}
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model] == [True, False, True, True]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("wrong", ["value", "gradient"])
def test_verify_restores_a_model_that_is_not_the_same(monkeypatch, wrong):
    from importlib import import_module

    layers = import_module("fastscore.accelerate._layers")
    right = layers.group_norm_silu

    def broken(x, *args, **options):
        if wrong == "value":
            return right(x, *args, **options) * 1.001
        return right(x + 0.01 * (x - x.detach()), *args, **options)

    monkeypatch.setattr(layers, "group_norm_silu", broken)
    model = net()
    with pytest.raises(RuntimeError, match=r"not the same; it has been restored: .*has error .* is allowed"):
        fastscore.accelerate(model, verify=True, example=image())
    assert type(model) is nn.Sequential
    fastscore.accelerate(model, verify=True, example=image(), tolerance=0.5)


def test_arguments():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
        fastscore.accelerate({})
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        fastscore.restore([])
    with pytest.raises(ValueError, match="example must be given for verify=True: what Sequential takes is not known"):
        fastscore.accelerate(net(), verify=True)
    with pytest.raises(ValueError, match="example is for verify=True and optimize='cpu'"):
        fastscore.accelerate(net(), example=image())
    with pytest.raises(ValueError, match="tolerance is for verify=True"):
        fastscore.accelerate(net(), tolerance=1e-5)
