"""The networks that runtimes are timed on."""

import copy

import pytest
import torch

from fastscore.models import create
from fastscore.nn.attention import AttentionBlock
from fastscore.nn.conv3x3 import Conv3x3
from fastscore.nn.group_norm_silu import GroupNormSiLU
from fastscore.testing import unets

SMALL = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (8,), "image_size": 16, "init_scale": 1.0}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"embedding_type": "positional", "scale_by_sigma": False, "fir": False, "progressive_input": "none"},
        {"fir": False, "resblock_type": "ddpm", "progressive": "residual", "progressive_input": "residual"},
        {"progressive": "output_skip", "progressive_input": "input_skip", "fir_kernel": (1, 2, 1)},
    ],
    ids=["ncsnpp", "ddpmpp", "no-fir", "skips"],
)
def test_on_torch_computes_the_same_without_an_op_of_ours(options):
    torch.manual_seed(0)
    model = unets._moved(create({**SMALL, **options})).double()
    keys = list(model.state_dict())
    plain = unets.on_torch(model)
    assert list(plain.state_dict()) == keys
    kinds = {type(layer) for layer in plain.modules()}
    assert not kinds & {AttentionBlock, Conv3x3, GroupNormSiLU}
    assert AttentionBlock in {type(layer) for layer in model.modules()}  # it was a copy
    x, labels = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([0.3, 7.0], dtype=torch.float64)
    with torch.no_grad(), torch.profiler.profile() as profile:
        got = plain(x, labels)
    called = {event.key for event in profile.key_averages()}
    assert not {name for name in called if name.startswith("fastscore::")}
    with torch.no_grad():
        torch.testing.assert_close(got, model(x, labels), rtol=1e-12, atol=1e-12)


def test_no_branch_is_silent():
    torch.manual_seed(0)
    with torch.device("meta"):
        network = unets.score_sde("ddpmpp-cifar10-continuous")
    assert network.config.init_scale == 1
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(61.8e6, rel=0.01)
    small = unets._moved(create(SMALL))
    assert all(bool((p != 0).any() and (p != 1).any()) for p in small.parameters())
    assert not small.training


def test_the_ddpm_of_diffusers_has_the_published_size():
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        assert sum(p.numel() for p in unets.ddpm_cifar10().parameters()) == 35_746_307


def test_relative_error_is_that_of_the_worst_sample():
    exact = torch.tensor([[3.0, 4.0], [300.0, 400.0]], dtype=torch.float64)
    got = copy.deepcopy(exact)
    got[0, 0] += 0.5
    got[1, 1] += 1
    assert unets.relative_error(got, exact) == pytest.approx(0.1)
