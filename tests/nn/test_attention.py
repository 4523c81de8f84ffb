"""The attention blocks against torch's own attention."""

import pytest
import torch
from torch.nn import functional as F

from fastscore.nn.attention import AttentionBlock, ConvAttentionBlock, MultiHeadAttentionBlock


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


def randomized(block):
    """In float64, with random weights everywhere: as made, the blocks are the identity."""
    torch.manual_seed(0)
    block = block.double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
    return block


FORMATS = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])


def image(channels, memory_format):
    x = torch.randn(2, channels, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=memory_format)


@FORMATS
def test_convolutions_as_projections(memory_format):
    block, x = randomized(ConvAttentionBlock(64)), image(64, memory_format)
    h = F.group_norm(x, 32, block.norm.weight, block.norm.bias, eps=1e-6)
    q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (block.q, block.k, block.v))
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
    out = block(x)
    torch.testing.assert_close(out, x + block.proj_out(attended), rtol=1e-11, atol=1e-11)
    assert out.is_contiguous(memory_format=memory_format)


@FORMATS
@pytest.mark.parametrize("new_order", [False, True])
def test_heads_in_both_published_orders(new_order, memory_format):
    block, x = randomized(MultiHeadAttentionBlock(96, 3, new_order=new_order)), image(96, memory_format)
    h = F.group_norm(x, 32, block.norm.weight, block.norm.bias, eps=1e-5)
    qkv = block.qkv(h.flatten(2))  # (B, 3C, HW)
    if new_order:  # query of all heads, key of all heads, value of all heads
        heads = [torch.cat([part.chunk(3, 1)[n] for part in qkv.chunk(3, 1)], 1) for n in range(3)]
    else:  # query, key and value of one head after the other
        heads = qkv.chunk(3, 1)
    rows = [[part.transpose(1, 2) for part in head.chunk(3, 1)] for head in heads]
    attended = torch.cat([F.scaled_dot_product_attention(*qkv_of_head) for qkv_of_head in rows], 2)
    out = block(x)
    expected = x + block.proj_out(attended.transpose(1, 2)).reshape(x.shape)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    assert out.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("heads", [0, 5])
def test_heads_that_do_not_divide_are_refused(heads):
    with pytest.raises(ValueError, match=f"num_heads must divide the 96 channels of an attended level, got {heads}"):
        MultiHeadAttentionBlock(96, heads)
