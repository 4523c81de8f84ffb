"""Results to files, whole or not at all; samples as PNG grids and NumPy archives."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

__all__ = ["check_place", "image_grid", "replaced", "writer"]


def writer(path: Path) -> Callable[..., None]:
    """The function ``write(samples, *, centered, settings)`` that will write ``path``.

    What can be wrong with the name is found here, before any work is done. ``write`` puts samples of shape
    (N, C, H, W), data in [-1, 1] if centered and [0, 1] if not, into a PNG grid or unchanged into ``samples`` of an
    .npz; both carry the settings as JSON.

    Raises:
        ValueError: unknown ending, or no such directory.
    """
    formats = {".png": _save_png, ".npz": _save_npz}
    check_place(path, tuple(formats))
    save = formats[path.suffix.lower()]

    def write(samples: Tensor, *, centered: bool, settings: dict[str, Any]) -> None:
        with replaced(path) as file:
            save(file, samples.detach().cpu(), centered, json.dumps(settings))

    return write


def check_place(path: Path, endings: Sequence[str]) -> None:
    """Raise ValueError unless a file of this name, with one of these endings, can be written."""
    if path.suffix.lower() not in endings:
        raise ValueError(f"the output file must end in {' or '.join(endings)}, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"the output file {str(path)!r} is a directory")
    if not path.parent.is_dir():
        raise ValueError(f"the directory of the output file does not exist: {str(path.parent)!r}")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"the directory of the output file cannot be written to: {str(path.parent)!r}")


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file in the place of another: written under a name of its own, then renamed.

    Whoever looks sees the old file or the whole new one.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _save_npz(file: BinaryIO, samples: Tensor, centered: bool, settings: str) -> None:
    import numpy

    numpy.savez(file, samples=samples.float().numpy(), settings=settings)


def _save_png(file: BinaryIO, samples: Tensor, centered: bool, settings: str) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("fastscore", settings)
    grid = image_grid(samples / 2 + 0.5 if centered else samples)
    Image.fromarray(grid.numpy()).save(file, "PNG", pnginfo=text)


def image_grid(images: Tensor, gap: int = 2) -> Tensor:
    """Images in [0, 1], (N, C, H, W) with C = 1 or 3, side by side, about as many rows as columns.

    Returns:
        uint8 of shape (H', W') for one channel, (H', W', 3) for three; `gap` black pixels lie between the images.
    """
    count, channels, height, width = images.shape
    if channels not in (1, 3):
        raise ValueError(f"a PNG shows images of 1 or 3 channels, got {channels}; write an .npz")
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = torch.zeros(channels, rows * (height + gap) - gap, columns * (width + gap) - gap, dtype=torch.uint8)
    pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        grid[:, top : top + height, left : left + width] = image
    return grid[0] if channels == 1 else grid.permute(1, 2, 0).contiguous()
