"""`fastscore likelihood`: bits per dimension of images under a trained model."""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore import models
from fastscore.cli._arguments import UsageError, add_network, network, positive
from fastscore.cli._images import Images, read_images
from fastscore.cli._records import Records
from fastscore.samplers.ode import ODE_METHODS

_COLUMNS = ("index", "image", "bits_per_dim", "standard_error", "log_likelihood", "nfe")


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    likelihood = commands.add_parser(
        "likelihood",
        help="measure the bits per dimension of images under a trained model",
        description="Measure the bits per dimension of images under a trained model, by the probability-flow ODE of "
        "uniformly dequantized pixels. Each image gets a line in the CSV file: its bits per dimension and their "
        "standard error over the probes, its log-likelihood in nats, and the network calls that were spent on it. "
        "Called again with the same settings, the command goes on where it was stopped. The noise of image i depends "
        "on the seed and on i alone.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = likelihood.add_argument
    add(
        "--data",
        required=True,
        nargs="+",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="uint8 arrays (.npy, .npz), image files, folders of images; of the shape that the model takes",
    )
    add("--out", required=True, type=Path, default=argparse.SUPPRESS, help="file to write, or to go on with: .csv")
    add("--probes", type=positive, default=1, help="random probes of the divergence; a standard error needs 2")
    add("--solver", choices=("rk45", *ODE_METHODS), default="rk45", help="adaptive steps, or fixed ones")
    add("--rtol", type=float, default=argparse.SUPPRESS, help="relative and absolute tolerance of rk45 (default: 1e-5)")
    add("--steps", type=positive, default=argparse.SUPPRESS, help="number of fixed steps; too few give nonsense")
    add("--limit", type=positive, help="measure the first images only; more of them can follow later")
    add_network(add, batch=16)
    likelihood.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    options = _options(args)
    with network(args) as (model, running):
        model = model.to(memory_format=torch.channels_last)  # faster convolutions
        images = read_images(args.data, model.shape)
        settings = {"model": args.model, "weights": _digest(model), "data": images.digest, "seed": args.seed, **options}
        records = Records(args.out, _COLUMNS, settings)
        count = min(args.limit or len(images.names), len(images.names))
        start = time.perf_counter()
        before = sum(index < count for index in records.rows)
        with tqdm(total=count, initial=before, desc="likelihood", unit="image", disable=None) as bar:
            for first in range(0, count, args.batch):
                rows = [i for i in range(first, min(first + args.batch, count)) if i not in records.rows]
                if rows:
                    records.add(_measured(model, images, rows, args, options))
                    bar.update(len(rows))
        seconds = time.perf_counter() - start
    print(f"{args.out}: {_summary(records, count)}, {args.model}, seed {args.seed}, {seconds:.1f} s, backend {running}")


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What `bits_per_dim` is called with."""
    options: dict[str, Any] = {"solver": args.solver, "probes": args.probes}
    adaptive = args.solver == "rk45"
    unfit, needed = ("steps", "rtol") if adaptive else ("rtol", "steps")
    if hasattr(args, unfit):
        raise UsageError(f"--{unfit} is not for --solver {args.solver}, which takes --{needed}")
    if adaptive:
        rtol = getattr(args, "rtol", 1e-5)
        return options | {"rtol": rtol, "atol": rtol}
    if not hasattr(args, "steps"):
        raise UsageError(f"--solver {args.solver} needs --steps")
    return options | {"steps": args.steps}


def _digest(model: models.ScoreNetwork) -> str:
    """Of the weights: a file of the same name may come to hold others."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _measured(
    model: models.ScoreNetwork, images: Images, rows: list[int], args: argparse.Namespace, options: dict[str, Any]
) -> list[tuple[int, list[str]]]:
    """The lines of some images."""
    assert model.sde is not None  # every model of a file has one
    result = fastscore.bits_per_dim(
        model.sde,
        model,
        images.levels[rows].to(args.device),
        data_range=(-1.0, 1.0) if model.config.centered else (0.0, 1.0),
        noise=fastscore.PhiloxNoise(args.seed, samples=rows),
        **options,
    )
    columns = (result.bits_per_dim, result.bits_standard_error, result.log_likelihood)
    values = torch.stack(columns, 1).tolist()
    return [
        (row, [images.names[row], *(f"{value:.9g}" for value in line), str(nfe)])
        for row, line, nfe in zip(rows, values, result.nfe.tolist(), strict=True)
    ]


def _summary(records: Records, count: int) -> str:
    """Mean, standard error and calls over the first images."""
    rows = [records.rows[index] for index in range(count)]
    bits = torch.tensor([float(row[1]) for row in rows], dtype=torch.float64)
    calls = sum(int(row[4]) for row in rows) / count
    kept = bits[~bits.isnan()]
    text = f"{_mean(kept)} bits/dim over {len(kept)} images, {calls:.4g} network calls each"
    return text if len(kept) == count else f"{text}, {count - len(kept)} that did not arrive left out"


def _mean(values: Tensor) -> str:
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{float(values.mean()):.4f} +- {error:.4f}"
