"""Pictures made of rows of images, with words beside and above them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, PAPER = (30, 30, 30), (255, 255, 255)
GAP, MARGIN, LINE = 4, 12, 18  # pixels


@dataclass(frozen=True)
class Row:
    """Words, which may hold line breaks, and the images to the right of them, uint8 (N, 1 or 3, H, W)."""

    words: str
    images: Tensor


@dataclass(frozen=True)
class Sheet:
    """What a picture shows: a title, the rows, and words above the columns; all of these words may be empty.

    scale: a pixel of an image becomes a square of so many.
    """

    title: str
    rows: Sequence[Row]
    columns: Sequence[str] = field(default=())
    scale: int = 2

    def draw(self) -> Image.Image:
        """The picture, RGB."""
        font, bold = ImageFont.load_default(13), ImageFont.load_default(15)
        size = self.scale * max(row.images.shape[-1] for row in self.rows) + GAP
        most = max(len(row.images) for row in self.rows)
        words = max(int(ImageDraw.Draw(Image.new("1", (1, 1))).multiline_textbbox((0, 0), row.words, font)[2])
                    for row in self.rows)  # fmt: skip
        left, top = 2 * MARGIN + words if words else MARGIN, MARGIN + 2 * LINE + (LINE if self.columns else 0)
        width = max(left + most * size - GAP, int(MARGIN + bold.getlength(self.title))) + MARGIN
        picture = Image.new("RGB", (width, top + len(self.rows) * size - GAP + MARGIN), PAPER)
        pen = ImageDraw.Draw(picture)
        pen.text((MARGIN, MARGIN), self.title, INK, bold)
        for column, name in enumerate(self.columns):
            pen.text((left + column * size + (size - GAP) // 2, top - LINE // 2), name, INK, font, "mm")
        for number, row in enumerate(self.rows):
            y = top + number * size
            pen.multiline_text((left - MARGIN, y + (size - GAP) // 2), row.words, INK, font, "rm", align="right")
            for column, image in enumerate(row.images):
                side = size - GAP
                tile = _pillow(image).resize((side, side), Image.Resampling.NEAREST)
                picture.paste(tile, (left + column * size, y))
        return picture


def _pillow(image: Tensor) -> Image.Image:
    """uint8 (1 or 3, H, W) as RGB."""
    return Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def to_bytes(samples: Tensor) -> Tensor:
    """Samples in [-1, 1], clipped, as uint8."""
    return ((samples.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
