"""Files of safetensors."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and its metadata.

    Raises FileNotFoundError, or ValueError for a file that is cut off or of another kind.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("weights are stored as safetensors: pip install safetensors") from error

    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
