"""`fastscore sample`: images drawn from a trained model."""

from __future__ import annotations

import argparse
import ast
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore._output import writer
from fastscore.cli._arguments import UsageError, add_network, network, positive
from fastscore.cli._classes import add_class, conditioned
from fastscore.samplers import Hook


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sample = commands.add_parser(
        "sample",
        help="draw images from a trained model",
        description="Draw images from a trained model. The noise of image i depends on the seed and on i alone.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = sample.add_argument
    add(
        "--out",
        required=True,
        type=Path,
        default=argparse.SUPPRESS,
        help="file to write: .png (a grid) or .npz (the array `samples`, float32)",
    )
    add_network(add, batch=64)
    add("--sampler", default="pc", metavar="NAME", help="`fastscore samplers` lists them")
    add("--steps", type=int, help="steps in time (200 for pc and others of its kind, else the sampler's own default)")
    add(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the sampler, as in --option eta=0.5; `fastscore samplers NAME` lists them; can be repeated",
    )
    add_class(add)
    add("--num", type=positive, default=64, help="number of images")
    sample.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    write = writer(args.out)
    options = _options(args)
    with network(args) as (model, running):
        assert model.sde is not None  # every model of a file has one
        if running == "cpu":
            fastscore.accelerate(model, optimize="cpu")
        try:
            network_of_class, hooks = conditioned(args, model)
            sampler = fastscore.sampler(args.sampler, model.sde, network_of_class, **options)
        except TypeError as error:
            raise UsageError(str(error)) from None
        start = time.perf_counter()
        samples, calls = _draw(sampler, model.shape, args.num, args.batch, args.seed, hooks)
        seconds = time.perf_counter() - start
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "run"}
    settings |= {"fastscore": fastscore.__version__, "nfe": calls, "backend": running}
    write(samples, centered=model.config.centered, settings=settings)
    shape = "x".join(map(str, samples.shape[1:]))
    print(
        f"{args.out}: {args.num} images {shape} of {args.model}, seed {args.seed}, "
        f"{calls} network calls each, {seconds:.1f} s, backend {running}"
    )


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What the sampler is made with."""
    entry = fastscore.samplers.describe(args.sampler)
    options: dict[str, Any] = {}
    for text in args.option:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--option takes NAME=VALUE, such as eta=0.5, got {text!r}")
        try:
            options[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            options[name] = value  # a word
    if args.steps is not None:
        options["steps"] = args.steps
    elif entry.make in (fastscore.PCSampler, fastscore.EulerMaruyamaSampler):
        options.setdefault("steps", 200)  # their own default, 1000, is long on a CPU
    if "norm" in entry.accepted:
        options.setdefault("norm", "sample")  # so that an image does not depend on the others, or on --batch
    return options


def _draw(
    sampler: fastscore.Sampler, shape: tuple[int, ...], num: int, batch: int, seed: int, hooks: list[Hook]
) -> tuple[Tensor, int | float]:
    """Samples 0 ... num - 1 of the seed, `batch` at a time, and how often the network was called for one of them."""
    from tqdm import tqdm

    parts, calls = [], 0
    total = None  # an adaptive sampler does not know
    if isinstance(sampler, fastscore.samplers.FixedStepSampler):
        total = math.ceil(num / batch) * len(sampler.plan().steps)
    with tqdm(total=total, desc="sampling", unit="step", disable=None) as bar:
        for first in range(0, num, batch):
            rows = range(first, min(first + batch, num))
            noise = fastscore.PhiloxNoise(seed, samples=rows)
            x, info = sampler.sample(
                (len(rows), *shape), noise=noise, hooks=hooks, callback=lambda *_: bar.update(), return_info=True
            )
            parts.append(x.cpu())
            calls += int(torch.as_tensor(info.nfe).expand(len(rows)).sum())
    mean = calls / num
    return torch.cat(parts), int(mean) if mean == int(mean) else round(mean, 1)
