"""A bundled model together with its data, its classes, and how samples of a class are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import fastscore
from captions import to_bytes
from fastscore import models
from fastscore.control import ClassifierFreeGuidance, ClassifierGuidance
from fastscore.samplers import Hook, Sampler
from fastscore.sde import SDE
from fastscore.training.data import DATASETS, LabeledImages, to_signed_unit

SCALE = {"mnist32": 4.0, "emoji32": 3.0}  # of the guidance to a class
# where the strokes of a seven-segment display go, in quarters of a digit's height, and which of them each digit has
_STROKES = ((0, 0, 2, 0), (2, 0, 2, 2), (2, 2, 2, 4), (0, 4, 2, 4), (0, 2, 0, 4), (0, 0, 0, 2), (0, 2, 2, 2))
_DIGITS = ("012345", "12", "01643", "01623", "5612", "05623", "056234", "012", "0123456", "012356")


@dataclass(frozen=True)
class Artist:
    """A bundled model by its name, or a file of scripts/train.py; the seed of its noise; a folder for its data."""

    model: str
    seed: int
    folder: Path

    @cached_property
    def network(self) -> models.ScoreNetwork:
        """Called without a class."""
        return (models.load_bundle if self.model.endswith(".safetensors") else models.load)(self.model)

    @cached_property
    def card(self) -> dict[str, Any]:
        """What the network says of its training."""
        assert self.network.card is not None
        return self.network.card

    @property
    def name(self) -> str:
        """Of the config that it was trained by."""
        return str(self.card["name"])

    @property
    def sde(self) -> SDE:
        """That of its training."""
        assert self.network.sde is not None
        return self.network.sde

    @property
    def data(self) -> LabeledImages:
        """What it was trained on."""
        name = self.card["training"]["dataset"]
        return DATASETS[name](self.folder / f"{name}.npz")

    @cached_property
    def guide(self) -> models.ScoreNetwork:
        """The network that knows of classes: itself, or a classifier."""
        conditional = isinstance(self.network, models.ADM)
        return self.network if conditional else models.load(f"{self.name}-classifier")

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        assert self.guide.card is not None
        return tuple(self.guide.card["classes"])

    def sampler(
        self, name: str = "dpmpp-2m-sde", *, steps: int = 25, model: Any = None, sde: SDE | None = None, **options: Any
    ) -> Sampler:
        """A sampler of the network, unless another model is given."""
        return fastscore.sampler(name, sde or self.sde, model or self.network, steps=steps, **options)

    def draw(self, count: int, sampler: Sampler | None = None, hooks: Sequence[Hook] = ()) -> Tensor:
        """Samples, uint8 (count, C, H, W)."""
        shape = (count, *self.network.shape)
        samples = (sampler or self.sampler()).sample(shape, seed=self.seed, hooks=hooks, progress=True)
        assert isinstance(samples, Tensor)
        return to_bytes(samples)

    def draw_classes(self, labels: Tensor, scale: float | None = None, **options: Any) -> Tensor:
        """Samples of classes, int64 (B,), uint8 (B, C, H, W); the options are those of `sampler`."""
        count, scale = len(self.classes), SCALE[self.name] if scale is None else scale
        if self.guide is self.network:
            model = ClassifierFreeGuidance(self.network, labels, count, scale=scale)
            return self.draw(len(labels), self.sampler(model=model, **options))
        hook = ClassifierGuidance(self.guide, labels, count, scale=scale)
        return self.draw(len(labels), self.sampler(**options), [hook])

    def some_data(self, count: int) -> Tensor:
        """Images (count, C, H, W) in [-1, 1], of one class after the other."""
        images, labels, classes = self.data
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))
        of_class = [order[labels[order] == label] for label in range(len(classes))]
        rows = [int(of_class[i % len(classes)][i // len(classes)]) for i in range(count)]
        return to_signed_unit(images[rows])

    def drawings(self) -> Tensor:
        """Coarse images (10, C, H, W) in [-1, 1]: digits of a seven-segment display, or mosaics of the data."""
        if self.network.shape[0] == 1:
            return torch.stack([_seven_segments(strokes) for strokes in _DIGITS])
        return (
            self.some_data(10)
            .unfold(2, 4, 4)
            .unfold(3, 4, 4)
            .mean((4, 5))
            .repeat_interleave(4, 2)
            .repeat_interleave(4, 3)
        )


def _seven_segments(strokes: str, size: int = 32) -> Tensor:
    """A digit in white on black with its center of mass in the middle, (1, size, size) in [-1, 1]."""
    unit = size // 6
    corners = [[unit * corner for corner in _STROKES[int(stroke)]] for stroke in strokes]
    lengths = [abs(x1 - x0) + abs(y1 - y0) for x0, y0, x1, y1 in corners]
    left, top = (
        size / 2 - sum(n * (c[k] + c[k + 2]) / 2 for n, c in zip(lengths, corners, strict=True)) / sum(lengths)
        for k in (0, 1)
    )
    picture = Image.new("L", (size, size))
    pen = ImageDraw.Draw(picture)
    for x0, y0, x1, y1 in corners:
        pen.line((left + x0, top + y0, left + x1, top + y1), 255, 3)
    return to_signed_unit(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)).reshape(1, size, size)
