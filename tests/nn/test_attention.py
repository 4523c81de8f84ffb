"""The attention block against torch's own attention."""

import pytest
import torch
from torch.nn import functional as F

from fastscore.nn.attention import AttentionBlock


def rows(layer, h):
    return torch.einsum("bchw,cd->bhwd", h, layer.W).flatten(1, 2) + layer.b


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_scaled_dot_product_attention(memory_format):
    torch.manual_seed(0)
    block = AttentionBlock(8, skip_scale=0.5, init_scale=1.0).double()
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64).contiguous(memory_format=memory_format)
    h = F.group_norm(x, 2, block.GroupNorm_0.weight, block.GroupNorm_0.bias, eps=1e-6)
    attended = F.scaled_dot_product_attention(rows(block.NIN_0, h), rows(block.NIN_1, h), rows(block.NIN_2, h))
    update = (attended @ block.NIN_3.W + block.NIN_3.b).transpose(1, 2).reshape(x.shape)
    out = block(x)
    torch.testing.assert_close(out, 0.5 * (x + update), rtol=1e-12, atol=1e-12)
    assert out.is_contiguous(memory_format=memory_format)


def test_starts_as_the_identity():
    block = AttentionBlock(8)
    x = torch.randn(2, 8, 3, 5)
    torch.testing.assert_close(block(x), x, rtol=0, atol=1e-4)
