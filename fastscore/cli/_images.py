"""Images of 8 bits from files: NumPy arrays, single images, or folders of them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastscore.cli._arguments import UsageError

__all__ = ["Images", "read_images"]

_ARRAYS = (".npy", ".npz")
_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_MODES = {1: ("L", "1"), 3: ("RGB", "P")}  # of Pillow, that lose nothing on the way to this many channels


class Images(NamedTuple):
    """levels: uint8 (N, C, H, W). names: where each comes from. digest: of levels and their order."""

    levels: Tensor
    names: list[str]
    digest: str


def read_images(paths: Sequence[Path], shape: tuple[int, ...]) -> Images:
    """All images of some files and folders, in the order given, of a folder by file name; each must be (C, H, W).

    Raises:
        UsageError: nothing is there, or something else than images of that shape.
    """
    arrays, names = [], []
    for path in paths:
        if not path.exists():
            raise UsageError(f"--data: there is no {str(path)!r}")
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in _ENDINGS)
            if not files:
                raise UsageError(f"--data: the folder {str(path)!r} holds no {', '.join(_ENDINGS)}")
        for file in files:
            if file.suffix.lower() in _ARRAYS:
                array = _shaped(file, _array(file), shape)
                names += [f"{file}[{index}]" for index in range(len(array))]
            elif file.suffix.lower() in _ENDINGS:
                array = _image(file, shape)
                names.append(str(file))
            else:
                raise UsageError(
                    f"--data: {str(file)!r} must end in {', '.join((*_ARRAYS, *_ENDINGS))}, or be a folder"
                )
            arrays.append(array)
    levels = np.ascontiguousarray(np.concatenate(arrays))
    if not len(levels):
        raise UsageError(f"--data: there is no image in {', '.join(map(str, paths))}")
    return Images(torch.from_numpy(levels), names, hashlib.sha256(levels.data).hexdigest()[:16])


def _array(file: Path) -> np.ndarray:
    """The array of an .npy, or the one of an .npz that can hold images."""
    try:
        found = np.load(file)
        if isinstance(found, np.ndarray):
            return found
        with found:
            arrays = {name: found[name] for name in found.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"--data: {file} is no file of NumPy arrays: {error}") from None
    images = [array for array in arrays.values() if array.dtype == np.uint8 and array.ndim > 1]
    if len(images) != 1:
        held = ", ".join(f"{name}: {array.dtype} {array.shape}" for name, array in arrays.items())
        raise UsageError(f"--data: {file} must hold one array of uint8 images, but holds {held or 'nothing'}")
    return images[0]


def _shaped(file: Path, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Uint8 (N, C, H, W), of an array that may also be (N, H, W, C), or (N, H, W) for one channel."""
    channels, *size = shape
    if array.dtype == np.uint8 and array.shape[1:] == shape:
        return array
    if array.dtype == np.uint8 and array.shape[1:] == (*size, channels):
        return np.moveaxis(array, -1, 1)
    if array.dtype == np.uint8 and channels == 1 and array.shape[1:] == tuple(size):
        return array[:, None]
    wanted = " or ".join(f"(N, {', '.join(map(str, s))})" for s in (shape, (*size, channels)))
    raise UsageError(f"--data: {file} must be uint8 of shape {wanted}, got {array.dtype} {array.shape}")


def _image(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    channels, height, width = shape
    with Image.open(file) as image:
        if image.mode not in _MODES.get(channels, ()) or image.size != (width, height):
            accepted = f"{width}x{height} pixels in {channels} channel{'s' if channels > 1 else ''} of 8 bits"
            got = f"{image.width}x{image.height} in mode {image.mode}"
            raise UsageError(f"--data: {file} must have {accepted}, got {got}")
        pixels = np.asarray(image.convert(_MODES[channels][0]))
    return pixels.reshape(1, height, width, channels).transpose(0, 3, 1, 2)
