"""The U-Nets of diffusers, accelerated: live, against the installed package."""

import copy

import pytest
import torch
from torch import nn

import fastscore
from fastscore.accelerate import Entry

diffusers = pytest.importorskip("diffusers", reason="diffusers is what is accelerated here")


def ddpm(**options) -> nn.Module:
    """The layout of google/ddpm-cifar10-32, narrower."""
    torch.manual_seed(0)
    settings = {
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (32, 64, 64, 64),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "norm_eps": 1e-6,
        "attention_head_dim": None,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
    }
    return diffusers.UNet2DModel(**settings | options)


def ncsnpp(**options) -> nn.Module:
    """The layout of google/ncsnpp-ffhq-1024, smaller: skip pyramids, FIR filters, sums divided by sqrt(2)."""
    torch.manual_seed(0)
    settings = {
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (32, 64, 64),
        "time_embedding_type": "fourier",
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "norm_eps": 1e-6,
        "mid_block_scale_factor": 2**0.5,
        "attention_head_dim": None,
        "norm_num_groups": None,
    }
    return diffusers.UNet2DModel(**settings | options)


def images(size: int = 16, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


TIMES = torch.tensor([3.0, 500.0])


def test_ddpm_is_the_same(same):
    report = same(ddpm(), (images(), TIMES.long()), {"group_norm_silu_fwd": 33, "attention_fwd": 4})
    assert report.counts == {"group_norm_silu": 33, "attention": 4}
    assert Entry("conv_norm_out", "group_norm_silu", "group_norm_silu with conv_act") in report.replaced
    assert {entry.kind for entry in report.left_alone} == {"conv3x3"}
    assert len(report.left_alone) == 36


def test_ncsnpp_is_the_same(same):
    # a block filters both of its branches: two launches for one layer
    ops = {"group_norm_silu_fwd": 36, "attention_fwd": 3, "resample": 12}
    report = same(ncsnpp(), (images(), TIMES), ops)
    assert report.counts == {"group_norm_silu": 36, "attention": 3, "resample": 9}


@pytest.mark.parametrize(
    ("norms", "attentions", "options"),
    [
        (19, 3, {"resnet_time_scale_shift": "scale_shift"}),
        (21, 3, {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"}),
        (19, 2, {"attention_head_dim": 8, "add_attention": False, "dropout": 0.3}),
    ],
    ids=["scale-shift", "resnet-resampling", "heads-dropout"],
)
def test_options_of_ddpm(same, norms, attentions, options):
    layout = {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    model = ddpm(block_out_channels=(32, 32), **layout, **options)
    same(model, (images(8), TIMES.long()), {"group_norm_silu_fwd": norms, "attention_fwd": attentions})


@pytest.mark.parametrize("kernel", [(1, 3, 3, 1), (1, 2, 5, 1, 1, 2), (1, 1)])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("name", ["FirDownsample2D", "FirUpsample2D"])
def test_fir_layers(same, name, conv, kernel):
    from diffusers.models import resnet

    layer = getattr(resnet, name)(3, 5, use_conv=conv, fir_kernel=kernel)
    report = same(layer, (images(8),), {"resample": 1})
    assert report.replaced == [Entry("", "resample", "resample")]


def test_transformer_blocks_and_other_processors_are_left_alone():
    model = ddpm()
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

    class Mine(AttnProcessor2_0):
        pass

    first, second, *_ = (m for m in model.modules() if isinstance(m, Attention))
    first.set_processor(Mine())
    second.set_processor(AttnProcessor())
    model.cross = Attention(8, cross_attention_dim=4)
    model.plain = Attention(8)
    left = {e.name: e.note for e in fastscore.accelerate(model).left_alone if e.kind == "attention"}
    assert left == {
        "down_blocks.1.attentions.0": "Attention: its processor is Mine, not the default one",
        "cross": "Attention: it is cross-attention",
        "plain": "Attention: it is not over the pixels of an image, which has a residual",
    }
    assert type(first) is Attention

    # a processor that comes later is used
    class Zero:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
            return torch.zeros_like(hidden_states)

    assert type(second) is not Attention
    second.set_processor(Zero())
    assert second(torch.ones(1, 64, 4, 4)).abs().max() == 0


def test_the_written_out_processor_is_replaced(same):
    from diffusers.models.attention_processor import Attention, AttnProcessor

    settings = {"heads": 2, "dim_head": 4, "norm_num_groups": 2, "residual_connection": True, "bias": True}
    for scale_qk in (True, False):
        layer = Attention(8, processor=AttnProcessor(), scale_qk=scale_qk, rescale_output_factor=1.5, **settings)
        same(layer, (torch.randn(2, 8, 4, 3),), {"group_norm_silu_fwd": 1, "attention_fwd": 1})


def test_other_activations_and_filters_are_left_alone():
    report = fastscore.accelerate(ddpm(act_fn="mish", block_out_channels=(32, 32, 32, 32)))
    notes = {e.note for e in report.left_alone if e.name == "mid_block.resnets.0"}
    assert notes == {"ResnetBlock2D: its activation is Mish, not SiLU"}

    from diffusers.models.resnet import ResnetBlock2D

    block = ResnetBlock2D(in_channels=32, down=True, kernel="sde_vp", temb_channels=None)
    block.downsample = lambda x: x[:, :, ::2, ::2]  # no filter: called as it is
    report = fastscore.accelerate(block)
    assert report.counts == {"group_norm_silu": 2}
    x = torch.randn(2, 32, 4, 4)
    fast = block(x, None)
    fastscore.restore(block)
    assert torch.allclose(fast, block(x, None), rtol=1e-5, atol=1e-6)


def test_a_training_step_is_the_same():
    stock = ddpm(dropout=0.1).train()
    fast = copy.deepcopy(stock)
    fastscore.accelerate(fast)
    losses = []
    for model in (stock, fast):
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            loss = (model(images(), TIMES.long()).sample - images()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[2:] == pytest.approx(losses[:2], rel=1e-5)
    assert losses[1] < losses[0]
    for a, b in zip(fast.parameters(), stock.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [ddpm, ncsnpp])
def test_autocast_gives_the_dtypes_of_stock(make):
    model = make().eval()
    dtypes = {}

    def note(name):
        return lambda module, inputs, output: dtypes.setdefault(name, []).append(
            output.dtype if isinstance(output, torch.Tensor) else None
        )

    watched = [
        n
        for n, m in model.named_modules()
        if type(m).__name__ in ("ResnetBlock2D", "Attention", "FirUpsample2D", "FirDownsample2D")
    ]
    for name in watched:
        model.get_submodule(name).register_forward_hook(note(name))
    results = []
    for _ in range(2):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            results.append(model(images(), TIMES).sample)
        fastscore.accelerate(model)
    assert all(stock == fast for stock, fast in dtypes.values())
    assert any(stock is torch.bfloat16 for stock, _ in dtypes.values())
    assert results[0].dtype == results[1].dtype
    exact = model.float()(images(), TIMES).sample
    errors = [(r - exact).abs().max().item() for r in results]
    assert errors[1] <= 2 * errors[0]


def test_compile_in_one_graph():
    """Sums that are divided by NumPy's sqrt(2), resampling, attention: all of it traces."""
    from diffusers.models.unets.unet_2d_blocks import AttnSkipDownBlock2D

    block = AttnSkipDownBlock2D(32, 32, 16, attention_head_dim=32)
    arguments = torch.randn(2, 32, 8, 8), torch.randn(2, 16), images(8)
    want = block(*arguments)[0]
    assert fastscore.accelerate(block).counts == {"group_norm_silu": 5, "attention": 1, "resample": 2}
    got = torch.compile(block, fullgraph=True, backend="aot_eager")(*arguments)[0]
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_verify_knows_what_the_network_takes():
    for options in ({}, {"num_class_embeds": 3}):
        model = ddpm(
            block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), **options
        )
        assert fastscore.accelerate(model, verify=True).counts["group_norm_silu"] > 0


def test_gradient_checkpointing():
    model = ddpm(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)).train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            fastscore.accelerate(model)
            model.enable_gradient_checkpointing()
        loss = model(images(8), TIMES).sample.square().sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    largest = max(g.abs().max() for g in gradients[0])
    for stock, fast in zip(*gradients, strict=True):
        assert (stock - fast).abs().max() <= 1e-4 * largest
