"""Networks as files: weights in safetensors (float16 by default), and a card in JSON that says what they are.

A card is a JSON object: `network` (its options and `architecture`, "ncsnpp" if absent), `sde` and `sde_options`
(`make_sde`), `convention`, and whatever else is worth telling: the seed, the command. It is stored twice: beside the
weights for people, inside them for `load`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastscore.models.base import ScoreNetwork
from fastscore.models.formats import safetensors
from fastscore.models.registry import create
from fastscore.models.schedules import make_sde
from fastscore.score import Convention


def save_bundle(path: Path | str, model: nn.Module, card: dict[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """Write PATH (.safetensors) and the card beside it (.json). Trained parameters are rounded to `dtype`."""
    from safetensors.torch import save_file

    path = Path(path)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors = {
        name: (value.to(dtype) if name in trained else value).detach().cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"card": json.dumps(card)})
    temporary.chmod(0o644)  # safetensors makes it private
    os.replace(temporary, path)
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")


def load_bundle(path: Path | str, *, device: torch.device | str = "cpu") -> ScoreNetwork:
    """The network of a bundle, with float32 parameters, in eval mode.

    It carries `.sde`, `.convention` (`fastscore.score.Convention`), `.shape` (C, H, W), `.config` and `.card`.
    Raises FileNotFoundError, or ValueError for a file that is cut off, is no bundle, or does not fit its own card.
    """
    path = Path(path)
    state, metadata = safetensors.read(path)
    if "card" not in metadata:
        raise ValueError(f"{path} has no card in its metadata: it was not written by save_bundle")

    card = json.loads(metadata["card"])
    model = create(card["network"])
    own = model.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or sorted(name for name in own if own[name].shape != state[name].shape)
    if wrong:
        raise ValueError(
            f"{path} does not fit its own card: {len(wrong)} of {len(own)} tensors are missing, unknown or of another "
            f"shape, the first is {wrong[0]}"
        )
    model.load_state_dict(state)
    model.sde = make_sde(card["sde"], card["sde_options"])
    model.convention = Convention(**card["convention"])
    model.card = card
    return model.to(device).eval()
