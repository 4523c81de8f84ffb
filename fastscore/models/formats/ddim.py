"""Options of the U-Net of ddim from its state dict."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastscore.models.formats.stored import Keys, Layout


def layout(state: Mapping[str, Tensor]) -> Layout:
    """What the state dict says of a `DDIMConfig`. Raises ValueError where keys are missing that would tell."""
    keys = Keys.of(state)
    ch, in_channels = keys["conv_in.weight"][:2]
    levels = keys.count("down.{}.")
    widths = [keys[f"down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    if any(width % ch for width in widths):
        raise ValueError(f"levels of {widths} channels are no multiples of the first convolution's {ch}")
    options = {
        "in_channels": in_channels,
        "out_ch": keys["conv_out.weight"][0],
        "ch": ch,
        "ch_mult": tuple(width // ch for width in widths),
        "num_res_blocks": keys.count("down.0.block.{}."),
    }
    attended = tuple(level for level in range(levels) if f"down.{level}.attn.0.q.weight" in keys)
    return Layout("ddim", options, ("image_size",), attended)
