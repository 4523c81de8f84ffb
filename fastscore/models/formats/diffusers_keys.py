"""Where the weights of diffusers go in our U-Nets of DDPM and NCSN++."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

# Places of a network: its module there, its module here, and the names of the layers inside of it, there -> here.
Places = Iterator[tuple[str, str, Mapping[str, str]]]

_SAME = {"": ""}
_DDPM_BLOCK = {
    **{name: name for name in (".norm1", ".conv1", ".norm2", ".conv2")},
    **{".time_emb_proj": ".temb_proj", ".conv_shortcut": ".nin_shortcut"},
}
_DDPM_ATTENTION = {".group_norm": ".norm", ".to_q": ".q", ".to_k": ".k", ".to_v": ".v", ".to_out.0": ".proj_out"}
_NCSNPP_BLOCK = {
    **{".norm1": ".GroupNorm_0", ".conv1": ".Conv_0", ".time_emb_proj": ".Dense_0"},
    **{".norm2": ".GroupNorm_1", ".conv2": ".Conv_1", ".conv_shortcut": ".Conv_2"},
}
_NCSNPP_ATTENTION = {
    **{".group_norm": ".GroupNorm_0", ".to_q": ".NIN_0", ".to_k": ".NIN_1", ".to_v": ".NIN_2", ".to_out.0": ".NIN_3"}
}


def ddpm_places(config: dict[str, Any]) -> Places:
    """For `DDIMUNet`."""
    levels, blocks = len(config["block_out_channels"]), config["layers_per_block"]
    yield "time_embedding.linear_1", "temb.dense.0", _SAME
    yield "time_embedding.linear_2", "temb.dense.1", _SAME
    yield "conv_in", "conv_in", _SAME
    for level in range(levels):
        for way, index, step in (("down", level, "downsample"), ("up", levels - 1 - level, "upsample")):
            theirs, ours = f"{way}_blocks.{index}", f"{way}.{level}"
            for n in range(blocks + (way == "up")):
                yield f"{theirs}.resnets.{n}", f"{ours}.block.{n}", _DDPM_BLOCK
                yield f"{theirs}.attentions.{n}", f"{ours}.attn.{n}", _DDPM_ATTENTION
            yield f"{theirs}.{step}rs.0.conv", f"{ours}.{step}.conv", _SAME
    yield "mid_block.resnets.0", "mid.block_1", _DDPM_BLOCK
    yield "mid_block.attentions.0", "mid.attn_1", _DDPM_ATTENTION
    yield "mid_block.resnets.1", "mid.block_2", _DDPM_BLOCK
    yield "conv_norm_out", "norm_out", _SAME
    yield "conv_out", "conv_out", _SAME


def ncsnpp_places(config: dict[str, Any]) -> Places:
    """For `NCSNpp`, where modules have numbers."""
    for index, (theirs, layers) in enumerate(_ncsnpp_modules(config)):
        yield theirs, f"all_modules.{index}", layers


def _ncsnpp_modules(config: dict[str, Any]) -> Iterator[tuple[str, Mapping[str, str]]]:
    levels, blocks = len(config["block_out_channels"]), config["layers_per_block"]
    attended = [name.startswith("Attn") for name in config["down_block_types"]]
    yield "time_proj", {".weight": ".W"}
    yield "time_embedding.linear_1", _SAME
    yield "time_embedding.linear_2", _SAME
    yield "conv_in", _SAME
    for level in range(levels):
        here = f"down_blocks.{level}"
        for n in range(blocks):
            yield f"{here}.resnets.{n}", _NCSNPP_BLOCK
            if attended[level]:
                yield f"{here}.attentions.{n}", _NCSNPP_ATTENTION
        if level + 1 < levels:
            yield f"{here}.resnet_down", _NCSNPP_BLOCK
            yield f"{here}.skip_conv", {"": ".Conv_0"}
    yield "mid_block.resnets.0", _NCSNPP_BLOCK
    yield "mid_block.attentions.0", _NCSNPP_ATTENTION
    yield "mid_block.resnets.1", _NCSNPP_BLOCK
    for level in reversed(range(levels)):
        here = f"up_blocks.{levels - 1 - level}"
        for n in range(blocks + 1):
            yield f"{here}.resnets.{n}", _NCSNPP_BLOCK
        if attended[level]:
            yield f"{here}.attentions.0", _NCSNPP_ATTENTION
        if level > 0:
            yield f"{here}.skip_norm", _SAME
            yield f"{here}.skip_conv", _SAME
            yield f"{here}.resnet_up", _NCSNPP_BLOCK
        else:
            yield "conv_norm_out", _SAME
            yield "conv_out", _SAME


def renamed(state: Mapping[str, Tensor], places: Places) -> dict[str, Tensor]:
    """Under our keys; what has no place keeps its key."""
    names = {there + inner: here + layers[inner] for there, here, layers in places for inner in layers}
    ours = {}
    for key, value in state.items():
        key = _current(key)
        layer, _, leaf = key.rpartition(".")
        if key in names:
            ours[names[key]] = value
        elif layer not in names:
            ours[key] = value
        elif ".NIN_" in names[layer]:  # matrices act from the right, and are called W and b
            ours[f"{names[layer]}.{'W' if leaf == 'weight' else 'b'}"] = value.T if leaf == "weight" else value
        elif ".attn" in names[layer] and leaf == "weight" and value.dim() == 2:  # projections are 1x1 convolutions
            ours[f"{names[layer]}.{leaf}"] = value[:, :, None, None]
        else:
            ours[f"{names[layer]}.{leaf}"] = value
    return ours


def _current(key: str) -> str:
    """Older versions had other names for the projections of attention."""
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return re.sub(r"(attentions\.\d+\.)(query|key|value|proj_attn)\.", lambda m: f"{m[1]}{names[m[2]]}.", key)
