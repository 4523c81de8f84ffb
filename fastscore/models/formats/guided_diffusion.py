"""Options of ADM from a state dict of guided-diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastscore.models.formats.stored import Keys, Layout


def layout(state: Mapping[str, Tensor]) -> Layout:
    """What the state dict says of an `ADMConfig`. Raises ValueError where keys are missing that would tell.

    It does not tell how the channels of attention are split into heads.
    """
    keys = Keys.of(state)
    channels = keys["time_embed.0.weight"][1]
    stages = keys.count("output_blocks.{}.")
    up = [(i, kind) for i in range(stages) if (kind := _upsamples(keys, i))]
    num_res_blocks = up[0][0] if up else stages - 1
    starts = [1 + level * (num_res_blocks + 1) for level in range(len(up) + 1)]
    widths = [keys[f"input_blocks.{start}.0.in_layers.2.weight"][0] for start in starts]
    embedded = keys["input_blocks.1.0.emb_layers.1.weight"][0]
    options: dict[str, Any] = {
        "in_channels": keys["input_blocks.0.0.weight"][1],
        "out_channels": keys["out.2.weight"][0],
        "model_channels": channels,
        "channel_mult": tuple(w // channels if w % channels == 0 else w / channels for w in widths),
        "num_res_blocks": num_res_blocks,
        "attention_resolutions": tuple(
            2**level for level, start in enumerate(starts) if f"input_blocks.{start}.1.qkv.weight" in keys
        ),
        "num_classes": keys["label_emb.weight"][0] if "label_emb.weight" in keys else None,
        "use_scale_shift_norm": embedded == 2 * widths[0],
        "resblock_updown": bool(up) and up[0][1] == "block",
    }
    return Layout("adm", options, ("image_size", "num_heads or num_head_channels", "use_new_attention_order"))


def _upsamples(keys: Keys, stage: int) -> str | None:
    """What doubles the image size at the end of a stage on the way up."""
    for layer in (1, 2):  # attention may stand before it
        if f"output_blocks.{stage}.{layer}.conv.weight" in keys:
            return "conv"
        if f"output_blocks.{stage}.{layer}.in_layers.2.weight" in keys:
            return "block"
    return None
