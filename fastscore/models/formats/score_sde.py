"""Options of NCSN++, DDPM++ and DDPM from a state dict of score_sde: modules in a row, `all_modules.{i}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastscore.models.formats.stored import Keys, Layout


class _Modules:
    """The modules of a state dict in order, and what they are."""

    def __init__(self, keys: Keys):
        self.shapes: dict[int, Keys] = {}
        for key, shape in keys.items():
            name, _, rest = key.partition(".")
            index, _, leaf = rest.partition(".")
            if name == "all_modules" and index.isdecimal():
                self.shapes.setdefault(int(index), Keys())[leaf] = shape
        self.kinds = [self._kind(i) for i in range(max(self.shapes) + 1)]
        self.blocks = [i for i, kind in enumerate(self.kinds) if kind == "block"]

    def _kind(self, i: int) -> str:
        shapes = self.shapes.get(i, Keys())
        if "weight" in shapes:
            return {1: "norm", 2: "dense", 4: "conv"}.get(len(shapes["weight"]), "unknown")
        for leaf, kind in (
            ("W", "fourier"),
            ("Conv_1.weight", "block"),
            ("NIN_3.W", "attention"),
            ("Conv2d_0.weight", "fir"),
        ):
            if leaf in shapes:
                return kind
        if "Conv_0.weight" in shapes:
            return "combine" if shapes["Conv_0.weight"][2:] == (1, 1) else "resample"
        return "unknown" if shapes else "empty"

    def widths(self, i: int) -> tuple[int, int]:
        """Channels into and out of a block."""
        out, channels = self.shapes[i]["Conv_0.weight"][:2]
        return channels, out

    def resamples(self, i: int) -> bool:
        """On the way down: a block with a shortcut that keeps the width, or what is no block."""
        if self.kinds[i] == "block":
            channels, out = self.widths(i)
            return channels == out and "Conv_2.weight" in self.shapes[i]
        return self.kinds[i] in ("fir", "resample", "empty")


def layout(state: Mapping[str, Tensor]) -> Layout:
    """What the state dict says of an `NCSNppConfig`. Raises ValueError where keys are missing that would tell."""
    keys = Keys.of(state)
    modules = _Modules(keys)
    kinds, shapes = modules.kinds, modules.shapes
    fourier = kinds[0] == "fourier"
    conditional = kinds[int(fourier)] == "dense"
    first = int(fourier) + 2 * conditional
    if kinds[first] != "conv":
        raise ValueError(f"all_modules.{first} is no convolution")
    nf, num_channels = shapes[first]["weight"][:2]

    # in published code only the network "ddpm" runs with blocks of this kind
    ddpm = not any("Conv_2.weight" in shapes[i] for i in modules.blocks)
    step = next((i for i in range(first + 1, len(kinds)) if modules.resamples(i)), None)
    num_blocks = len(modules.blocks)
    if step is None:
        levels, per_level = 1, (num_blocks - 3) // 2
        expected = 2 * per_level + 3
    else:
        per_level = sum(i < step for i in modules.blocks)
        each, fixed = (2 * per_level + 1, 2) if ddpm else (2 * per_level + 3, 0)
        levels = (num_blocks - fixed) // each
        expected = each * levels + fixed
    if expected != num_blocks or per_level < 1 or levels < 1:
        raise ValueError(f"there are {num_blocks} residual blocks, which make no U-Net of equal levels")

    stride = per_level + (not ddpm)  # of the way down, where steps between levels are blocks or not
    starts = [modules.blocks[level * stride] for level in range(levels)]
    widths = [modules.widths(i)[1] for i in starts]
    if any(width % nf for width in widths):
        raise ValueError(f"levels of {widths} channels are no multiples of the first convolution's {nf}")

    options: dict[str, Any] = {
        "num_channels": num_channels,
        "nf": nf,
        "ch_mult": tuple(width // nf for width in widths),
        "num_res_blocks": per_level,
        "resblock_type": "ddpm" if ddpm else "biggan",
        "embedding_type": "fourier" if fourier else "positional",
        "conditional": conditional,
        "num_groups": 32 if ddpm else None,
        **_pyramids(modules, step, num_channels),
        **noise_levels(state),
    }
    unsaid = ["image_size", "scale_by_sigma", "centered"]
    if ddpm:
        options |= {"fir": False, "skip_rescale": False, "resamp_with_conv": step is None or kinds[step] != "empty"}
    else:
        unsaid.append("skip_rescale")
        if convolved := {"fir", "resample"} & set(kinds):
            options["fir"] = "fir" in convolved
        else:
            unsaid.append("fir")
    attended = tuple(level for level, start in enumerate(starts) if kinds[start + 1] == "attention")
    return Layout("ncsnpp", options, tuple(unsaid), attended)


def _pyramids(modules: _Modules, step: int | None, num_channels: int) -> dict[str, str]:
    """`step`: the first module on the way down that changes the size; one level has no pyramids."""
    kinds, shapes = modules.kinds, modules.shapes
    options = {"progressive": "none", "progressive_input": "none"}
    if step is None:
        return options
    if kinds[step + 1] == "combine":
        options["progressive_input"] = "input_skip"
        image = shapes[step + 1]["Conv_0.weight"][0]
        following = modules.widths(next(i for i in modules.blocks if i > step))[0]
        options["progressive_combine"] = "sum" if following == image else "cat"
    elif kinds[step] == "block" and kinds[step + 1] in ("fir", "resample"):
        options["progressive_input"] = "residual"
    norms = [i for i, kind in enumerate(kinds) if kind == "norm"]
    if not norms:
        raise ValueError("there is no normalization before the output")
    if len(norms) > 1:
        features = any(kind in ("fir", "resample") for kind in kinds[norms[0] :])
        options["progressive"] = "residual" if features else "output_skip"
    return options


def noise_levels(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of the descending buffer `sigmas`, without the rounding of its exponentials."""
    if "sigmas" not in state:
        raise ValueError("there is no sigmas")
    sigmas = state["sigmas"].double()
    digits = 6 if state["sigmas"].dtype.itemsize < 8 else 12
    sigma_max, sigma_min = (float(f"{float(sigmas[i]):.{digits}g}") for i in (0, -1))
    return {"sigma_min": sigma_min, "sigma_max": sigma_max, "num_scales": len(sigmas)}
