"""Trained networks from the checkpoints of other codebases."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastscore.models import zoo
from fastscore.models.base import NetworkConfig, ScoreNetwork
from fastscore.models.bundle import load_bundle
from fastscore.models.formats import ddim, diffusers, guided_diffusion, ncsn, pickled, safetensors, score_sde
from fastscore.models.formats.stored import Layout, Stored
from fastscore.models.registry import ARCHITECTURES, config_from_dict
from fastscore.models.schedules import make_sde
from fastscore.score import Convention

# How keys start that only one architecture has, and what its keys and shapes say of the options.
_LAYOUTS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Tensor]], Layout]]] = {
    "ncsnpp": (("all_modules.",), score_sde.layout),
    "ddim": (("temb.dense.", "down.0.block."), ddim.layout),
    "adm": (("input_blocks.", "middle_block."), guided_diffusion.layout),
    "ncsn": (("normalizer.embed.",), ncsn.ncsn),
    "ncsnv2": (("normalizer.alpha",), ncsn.ncsnv2),
}


@dataclass(frozen=True)
class _Given:
    """What the caller says of the network.

    Attributes:
        options: by name; `complete`: all of them.
        sde, sde_options, convention: those of a published configuration, or of a card.
    """

    options: dict[str, Any]
    complete: bool = False
    sde: str | None = None
    sde_options: dict[str, Any] = field(default_factory=dict)
    convention: Convention | None = None


def load_checkpoint(
    path: Path | str,
    *,
    weights: str = "ema",
    config: str | NetworkConfig | Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> ScoreNetwork:
    """The network of a checkpoint, with float32 parameters, in eval mode.

    Read are the training checkpoints of score_sde, ncsn, ncsnv2, ddim and k-diffusion, the state dicts of these and of
    guided-diffusion (`.pth`, `.pt`, `.safetensors`), folders of diffusers with the U-Net of DDPM or NCSN++, and bundles
    (`save_bundle`). Pickles are read without running what is in them.

    Keys and shapes tell most options. What they do not tell has to be given; `dropout` and initial scales, which a
    trained network does not need, have the defaults of its config unless given, and so has `fir_kernel`.

    Args:
        path: a file, or the folder of a diffusers model.
        weights: "ema", the averages that are sampled from, or "raw", those of the last step of training. Files with
            one set of weights give that.
        config: what the file does not say: a name of `fastscore.models.configs()`, which also sets `.sde` and
            `.convention`; a `NetworkConfig`; a mapping of options, as few as needed; or a mapping with "network" (such
            options) and, together, "sde", "sde_options" and "convention", as in the card of a bundle.
        device: where the network goes.

    Returns:
        The network. `.sde` and `.convention` are None unless a name, a card, or the file says them, or the network
        divides its output by noise levels, as those of VE SDEs do. Where they are set, `.card` suits `save_bundle`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file that is damaged, of no known kind, or could run code; a network of no known architecture;
            options that are not given; weights that do not fit.
        TypeError: config is none of the above.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights must be 'ema' or 'raw', got {weights!r}")
    given = _given(config)
    stored = _read(Path(path))
    if stored is None:
        if config is not None:
            raise ValueError(f"config must be None for {path}, whose card says what it is")
        return load_bundle(path, device=device)
    if stored.trains and stored.averaged is None and weights == "ema":
        raise ValueError(f"{path} holds no averaged weights: its raw ones are loaded by weights='raw'")
    layout = _layout(stored, given, path)
    network = ARCHITECTURES[layout.architecture](_config(layout, given, path))
    _fill(network, stored, weights, path)
    _tell(network, layout, given, {"file": Path(path).name, "format": stored.format, "weights": weights})
    return network.to(device).eval()


def _given(config: object) -> _Given:
    if config is None:
        return _Given({})
    if isinstance(config, str):
        published = zoo.describe(config)
        return _Given(
            published.config.to_dict(), True, published.sde, dict(published.sde_options), published.convention
        )
    if isinstance(config, NetworkConfig):
        return _Given(config.to_dict(), True)
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a name, a NetworkConfig or a mapping, got {type(config).__name__}")
    if "network" not in config:
        return _Given(dict(config))
    if missing := [name for name in ("sde", "sde_options", "convention") if name not in config]:
        raise ValueError(f"config with network must have sde, sde_options and convention, too; {missing[0]} is missing")
    make_sde(config["sde"], config["sde_options"])  # refuses what it does not know
    return _Given(
        dict(config["network"]), False, config["sde"], dict(config["sde_options"]), Convention(**config["convention"])
    )


def _read(path: Path) -> Stored | None:
    """None for a bundle."""
    if path.is_dir():
        return diffusers.read(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if path.suffix != ".safetensors":
        return pickled.read(path)
    state, metadata = safetensors.read(path)
    return None if "card" in metadata else Stored("state dict", state)


def _layout(stored: Stored, given: _Given, path: Path | str) -> Layout:
    """What the file says of the options; nothing where the caller gives them all."""
    layout = stored.layout
    if layout is None:
        architecture = _architecture(stored, path)
        layout = Layout(architecture, {})
        if not given.complete:
            try:
                layout = _LAYOUTS[architecture][1](stored.raw)
            except ValueError as error:
                raise ValueError(
                    f"{path} looks like a network {architecture!r}, but does not tell its options: {error}. With a "
                    "config that gives them all, all that does not fit is listed"
                ) from error
    if (named := given.options.get("architecture", layout.architecture)) != layout.architecture:
        raise ValueError(f"config is of a network {named!r}, {path} holds a network {layout.architecture!r}")
    return layout


def _architecture(stored: Stored, path: Path | str) -> str:
    for name, (starts, _) in _LAYOUTS.items():
        if any(key.startswith(starts) for key in stored.raw):
            return name
    if any(key.startswith(("down_blocks.", "up_blocks.")) for key in stored.raw):
        raise ValueError(f"{path} has the keys of diffusers: give the folder that has its config.json, too")
    first = ", ".join(list(stored.raw)[:3])
    raise ValueError(
        f"{path} ({stored.format}) holds no network of {', '.join(_LAYOUTS)}: its keys are {first} ... . Load it by "
        "the code that wrote it; fastscore.accelerate and the samplers take any module"
    )


def _config(layout: Layout, given: _Given, path: Path | str) -> NetworkConfig:
    """All options: what the file says, and what is given."""
    options = {"architecture": layout.architecture, **layout.options, **given.options}
    if layout.attended is not None and isinstance(size := options.get("image_size"), int):
        options.setdefault("attn_resolutions", tuple(size >> level for level in layout.attended))
    missing = [names for names in layout.unsaid if all(options.get(name) is None for name in names.split(" or "))]
    if missing:
        raise ValueError(
            f"{path} does not say {', '.join(missing)} of its network {layout.architecture!r}: give them in config, as "
            f"a mapping, or all of them by a name{_fitting(layout)}"
        )
    config = config_from_dict(options)
    for name, value in layout.options.items():
        if getattr(config, name) != value:
            raise ValueError(f"config has {name} {getattr(config, name)!r}, {path} has {value!r}")
    return config


def _fitting(layout: Layout) -> str:
    """Published configurations that agree with a file."""
    names = [
        name
        for name, published in zoo.PUBLISHED.items()
        if published.config.architecture == layout.architecture
        and all(getattr(published.config, option) == value for option, value in layout.options.items())
    ]
    return f"; {', '.join(names)} may fit" if names else " (no published one fits)"


def _fill(network: ScoreNetwork, stored: Stored, weights: str, path: Path | str) -> None:
    """Put the weights in, or raise a ValueError that says which do not fit."""
    own = network.state_dict()
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    state = dict(stored.raw)
    if stored.format == "diffusers" and "sigmas" in own:
        state["sigmas"] = own["sigmas"]  # a buffer of ours
    averaged = stored.averaged if weights == "ema" else None
    if isinstance(averaged, Mapping):
        state = {key: value for key, value in state.items() if key not in trained} | dict(averaged)
    elif averaged is not None:
        if len(averaged) != len(trained):
            raise ValueError(f"{path} holds averages of {len(averaged)} parameters, the network trains {len(trained)}")
        state |= dict(zip(trained, averaged, strict=True))
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    differing = [key for key in own if key in shapes and shapes[key] != tuple(own[key].shape)]
    problems = [
        _listed("missing", [key for key in own if key not in state]),
        _listed("unexpected", [key for key in state if key not in own]),
        _listed("of another shape", [f"{key} {shapes[key]}, not {tuple(own[key].shape)}" for key in differing]),
    ]
    if any(problems):
        raise ValueError(f"{path} does not fit {network.config}: {'; '.join(filter(None, problems))}")
    _check_levels(own, state, path)
    network.load_state_dict(state)


def _listed(what: str, keys: list[str]) -> str:
    """How many keys there are, and the first of them."""
    return f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else ""


def _check_levels(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path | str) -> None:
    """The noise levels of the file are those of the config."""
    if "sigmas" not in own:
        return
    ours, theirs = own["sigmas"].double(), state["sigmas"].double()
    if not torch.allclose(ours, theirs, rtol=1e-4, atol=0.0):
        ends = [f"{float(sigmas[0]):.6g} to {float(sigmas[-1]):.6g}" for sigmas in (ours, theirs)]
        raise ValueError(f"config has noise levels sigmas from {ends[0]}, {path} has them from {ends[1]}")


def _tell(network: ScoreNetwork, layout: Layout, given: _Given, source: dict[str, str]) -> None:
    """Set the SDE, the convention and the card, as far as they are known."""
    sde, options, convention = given.sde, given.sde_options, given.convention
    if sde is None:
        sde, options, convention = layout.sde, layout.sde_options, layout.convention
    if sde is None and (layout.architecture == "ncsnv2" or getattr(network.config, "scale_by_sigma", False)):
        sde, options, convention = _variance_exploding(network.config)
    if sde is None or convention is None:
        return
    network.sde, network.convention = make_sde(sde, options), convention
    card = {
        "network": network.config.to_dict(),
        "sde": sde,
        "sde_options": options,
        "convention": dataclasses.asdict(convention),
        "source": source,
    }
    network.card = json.loads(json.dumps(card))  # as it is read again


def _variance_exploding(config: Any) -> tuple[str, dict[str, Any], Convention]:
    """The SDE of networks that return a score, divided by the noise level that they are told."""
    options = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max}
    if getattr(config, "embedding_type", None) == "fourier":
        return "VESDE", options, Convention("score", "sigma")
    return "VESDE", options, Convention("score", "noise_index", config.num_scales)
