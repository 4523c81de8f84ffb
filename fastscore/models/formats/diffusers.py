"""Folders that `UNet2DModel.save_pretrained` of diffusers writes, as the U-Nets of DDPM and NCSN++ that they hold.

A `config.json` of diffusers leaves out what had its default when it was written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastscore.models.formats.diffusers_keys import ddpm_places, ncsnpp_places, renamed
from fastscore.models.formats.safetensors import read as read_safetensors
from fastscore.models.formats.stored import Layout, Stored
from fastscore.score import Convention

WEIGHTS = "diffusion_pytorch_model.safetensors"

_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "mid_block_type": "UNetMidBlock2D",
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
_NEEDED = ("block_out_channels", "down_block_types", "up_block_types")
# what both networks are
_BOTH = {
    "mid_block_type": "UNetMidBlock2D",
    "act_fn": "silu",
    "attn_norm_num_groups": None,
    "norm_eps": 1e-6,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
_DDPM = {
    **_BOTH,
    "center_input_sample": False,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "mid_block_scale_factor": 1,
    "downsample_padding": 0,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "norm_num_groups": 32,
}
_PREDICTIONS = {"epsilon": "noise", "sample": "denoised", "v_prediction": "v"}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


def read(folder: Path) -> Stored:
    """The weights of a folder under the keys of `fastscore.models.DDIMUNet` or `NCSNpp`.

    Raises:
        FileNotFoundError: the folder lacks `config.json` or the weights.
        ValueError: a model that is neither; the message names the options.
    """
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"there is no {folder / name}: a folder of diffusers has config.json and {WEIGHTS}")
    config = _read_json(folder / "config.json")
    if config.get("_class_name") != "UNet2DModel" or not all(name in config for name in _NEEDED):
        raise ValueError(f"{folder} must hold a UNet2DModel with {', '.join(_NEEDED)}, got {config.get('_class_name')}")
    config = _DEFAULTS | config
    state, _ = read_safetensors(folder / WEIGHTS)
    if config["time_embedding_type"] == "fourier":
        layout, places = _ncsnpp(config, folder), ncsnpp_places(config)
    else:
        layout, places = _ddpm(config, folder), ddpm_places(config)
    return Stored("diffusers", renamed(state, places), layout=_scheduled(layout, folder))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(values).__name__}")
    return values


def _ddpm(config: dict[str, Any], folder: Path) -> Layout:
    attended = _attended(config, folder, "{}DownBlock2D", "{}UpBlock2D")
    _refuse(config, folder, {**_DDPM, **_one_head(config, attended)})
    options = {
        **_sizes(config, "ch"),
        "out_ch": config["out_channels"],
        "in_channels": config["in_channels"],
    }
    return Layout("ddim", options, ("image_size",), attended)


def _ncsnpp(config: dict[str, Any], folder: Path) -> Layout:
    attended = _attended(config, folder, "{}SkipDownBlock2D", "{}SkipUpBlock2D")
    widths = config["block_out_channels"]
    accepted = {**_BOTH, **_one_head(config, attended), "out_channels": config["in_channels"]}
    if min(widths[0], widths[-1]) < 128 or config["norm_num_groups"] != 32:  # from 128 channels on both are 32 groups
        accepted["norm_num_groups"] = None
    scale = config["mid_block_scale_factor"]  # of the other blocks it is the square root of two
    accepted["mid_block_scale_factor"] = scale if math.isclose(scale, math.sqrt(2), rel_tol=1e-6) else math.sqrt(2)
    _refuse(config, folder, accepted)
    narrow = any(widths[level] < 128 for level in attended)
    if narrow and any(width % 32 for width in widths):
        raise ValueError(f"{folder}: block_out_channels must be multiples of 32 for attention, got {widths}")
    options = {
        **_sizes(config, "nf"),
        "num_channels": config["in_channels"],
        "centered": not config["center_input_sample"],
        "resblock_type": "biggan",
        "fir": True,
        "fir_kernel": (1, 3, 3, 1),
        "skip_rescale": True,
        "progressive": "output_skip",
        "progressive_input": "input_skip",
        "progressive_combine": "sum",
        "embedding_type": "fourier",
        "scale_by_sigma": True,
        "conditional": True,
        "attended_groups": 32 if narrow else None,
    }
    return Layout("ncsnpp", options, ("image_size",), attended)


def _sizes(config: dict[str, Any], width: str) -> dict[str, Any]:
    """Options that are called the same in both; `width`: the name of the base width."""
    widths = config["block_out_channels"]
    if any(w % widths[0] for w in widths):
        raise ValueError(f"block_out_channels must be multiples of the first, got {widths}")
    size = config["sample_size"]
    return {
        width: widths[0],
        "ch_mult": tuple(w // widths[0] for w in widths),
        "num_res_blocks": config["layers_per_block"],
        **({"image_size": size} if isinstance(size, int) else {}),
    }


def _attended(config: dict[str, Any], folder: Path, down: str, up: str) -> tuple[int, ...]:
    """Levels with attention, which have to be the same on the way down and up."""
    types = config["down_block_types"]
    attended = tuple(level for level, name in enumerate(types) if name.startswith("Attn"))
    prefixes = ["Attn" * (level in attended) for level in range(len(types))]
    _refuse(
        config,
        folder,
        {
            "down_block_types": [down.format(prefix) for prefix in prefixes],
            "up_block_types": [up.format(prefix) for prefix in reversed(prefixes)],
        },
    )
    return attended


def _one_head(config: dict[str, Any], attended: tuple[int, ...]) -> dict[str, Any]:
    """Both networks have one head of all channels, and an embedding four times as wide as the first level."""
    widths, size = config["block_out_channels"], config["attention_head_dim"]
    single = all(size == widths[level] for level in (*attended, -1))
    return {
        "attention_head_dim": size if single else None,
        "time_embedding_dim": None if config["time_embedding_dim"] is None else 4 * widths[0],
        "time_embedding_type": "fourier" if config["time_embedding_type"] == "fourier" else "positional",
    }


def _refuse(config: dict[str, Any], folder: Path, accepted: Mapping[str, Any]) -> None:
    """Raise unless all options are those that are accepted."""
    wrong = [
        f"{name} must be {value!r}, got {config[name]!r}" for name, value in accepted.items() if value != config[name]
    ]
    if wrong:
        raise ValueError(
            f"{folder} holds a UNet2DModel that is no U-Net of DDPM or NCSN++: {'; '.join(wrong)}. "
            "fastscore.accelerate takes any UNet2DModel"
        )


def _scheduled(layout: Layout, folder: Path) -> Layout:
    """With the SDE of the scheduler beside the model, or in the pipeline around it, if it is one that we have."""
    places = (folder / "scheduler_config.json", folder.parent / "scheduler" / "scheduler_config.json")
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return layout
    config = _read_json(path)
    options = dict(layout.options)
    sde: tuple[str, dict[str, Any]] | None = None
    if layout.architecture == "ncsnpp" and {"sigma_min", "sigma_max"} <= config.keys():
        levels = {"sigma_min": config["sigma_min"], "sigma_max": config["sigma_max"]}
        options |= {**levels, "num_scales": config.get("num_train_timesteps", 2000)}
        sde, convention = ("VESDE", levels), Convention("score", "sigma")
    elif layout.architecture == "ddim" and _is_chain(config):
        schedule, prediction = _SCHEDULES[config["beta_schedule"]], config.get("prediction_type", "epsilon")
        chain: dict[str, Any] = {"schedule": schedule, "n": config["num_train_timesteps"], "min_log_snr": None}
        if schedule != "cosine":
            chain |= {"beta_start": config["beta_start"], "beta_end": config["beta_end"]}
        sde, convention = ("DiscreteVPSDE", chain), Convention(_PREDICTIONS[prediction], "timestep")
    if sde is None:
        return layout
    return Layout(
        layout.architecture,
        options,
        layout.unsaid,
        layout.attended,
        sde=sde[0],
        sde_options=sde[1],
        convention=convention,
    )


def _is_chain(config: dict[str, Any]) -> bool:
    """The betas are given by a formula that we have."""
    return (
        {"num_train_timesteps", "beta_start", "beta_end"} <= config.keys()
        and config.get("beta_schedule") in _SCHEDULES
        and config.get("trained_betas") is None
        and not config.get("rescale_betas_zero_snr", False)
        and config.get("prediction_type", "epsilon") in _PREDICTIONS
    )
