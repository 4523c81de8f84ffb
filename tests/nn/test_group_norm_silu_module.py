"""GroupNormSiLU: a drop-in for torch.nn.GroupNorm followed by SiLU."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastscore import _library
from fastscore.nn import GroupNormSiLU
from fastscore.ops import group_norm_silu
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input


def trained(module: nn.GroupNorm) -> nn.GroupNorm:
    """Weights that are not 1 and 0."""
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.add_(0.3 * make_input(tuple(parameter.shape), dtype=parameter.dtype, seed=seed))
    return module


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_equals_group_norm_and_silu(layout: str, silu: bool) -> None:
    plain = trained(nn.GroupNorm(8, 32, eps=1e-6))
    fused = GroupNormSiLU(8, 32, eps=1e-6, silu=silu)
    assert fused.load_state_dict(plain.state_dict()).missing_keys == []
    x = make_input((2, 32, 9, 9), layout)
    act = F.silu if silu else nn.Identity()
    exact = act(copy.deepcopy(plain).double()(x.double()))
    assert_error_within_budget(fused(x), exact, act(plain(x)), "GroupNormSiLU")


def test_embeddings_reach_the_op() -> None:
    module = trained(GroupNormSiLU(4, 12, eps=1e-3))
    x = make_input((2, 12, 5, 5))
    add, scale, shift = (make_input((2, 12), seed=k) for k in (1, 2, 3))
    expected = group_norm_silu(x, 4, module.weight, module.bias, add=add, scale=scale, shift=shift, eps=1e-3)
    assert torch.equal(module(x, add, scale, shift), expected)
    for name, value in {"add": add, "scale": scale, "shift": shift}.items():
        alone = module(x, **{name: value})
        assert torch.equal(alone, group_norm_silu(x, 4, module.weight, module.bias, eps=1e-3, **{name: value}))
        assert not torch.equal(alone, module(x))


def test_state_dict_and_repr() -> None:
    assert list(GroupNormSiLU(2, 4).state_dict()) == ["weight", "bias"]
    assert list(GroupNormSiLU(2, 4, affine=False).state_dict()) == []
    assert repr(GroupNormSiLU(2, 4, silu=False)) == f"GroupNormSiLU({nn.GroupNorm(2, 4).extra_repr()}, silu=False)"
    assert isinstance(GroupNormSiLU(2, 4), nn.GroupNorm)


def test_without_affine_or_bias() -> None:
    x = make_input((2, 4, 3, 3))
    assert torch.equal(GroupNormSiLU(2, 4, affine=False)(x), group_norm_silu(x, 2))
    module = trained(GroupNormSiLU(2, 4, bias=False))
    assert list(module.state_dict()) == ["weight"]
    assert torch.equal(module(x), group_norm_silu(x, 2, module.weight))


def test_dtype_argument_and_mixed_dtypes() -> None:
    module = GroupNormSiLU(2, 4, dtype=torch.bfloat16)
    assert module(make_input((2, 4, 3, 3), dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert GroupNormSiLU(2, 4)(make_input((2, 4, 3, 3), dtype=torch.float16)).dtype == torch.float16
    with pytest.raises(TypeError, match=r"weight must be float64 for torch\.float64 x, got torch\.float32"):
        GroupNormSiLU(2, 4)(make_input((2, 4, 3, 3), dtype=torch.float64))


@pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")
def test_training_step_runs_the_kernels() -> None:
    module = trained(GroupNormSiLU(4, 12))
    _library.NATIVE.reset_launches()
    module(make_input((2, 12, 5, 5))).square().sum().backward()
    isa = _library.build_info()["isa"]
    assert _library.NATIVE.launches() == {f"group_norm_silu_{kind}.{isa}": 1 for kind in ("bwd", "fwd")}
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_compile_and_deepcopy() -> None:
    torch._dynamo.reset()
    module = trained(GroupNormSiLU(4, 12))
    x, add = make_input((2, 12, 5, 5)), make_input((2, 12), seed=1)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, add), module(x, add))


def test_fewer_groups_than_asked_for_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_channels"):
        GroupNormSiLU(5, 12)
    with pytest.raises(ValueError, match="weight must have shape"):
        GroupNormSiLU(4, 12)(make_input((2, 8, 5, 5)))
