"""The console command `fastscore`: sample images from a trained model, import models, say what is installed."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

import fastscore
from fastscore import _backend, _library, models
from fastscore._output import writer

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


class _UsageError(Exception):
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (default: those of the process) and return its exit code.

    Mistakes of the caller are one line on stderr and code 2; Ctrl-C is code 130 and leaves no file behind.
    """
    try:
        args = _parser().parse_args(argv)
        args.run(args)
    except KeyboardInterrupt:
        print("fastscore: interrupted", file=sys.stderr)
        return 130
    except _EXPECTED as error:
        print("fastscore: error:", " ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        return 2
    return 0


_EXPECTED = (
    _UsageError,
    ValueError,
    OSError,
    ImportError,
    torch.OutOfMemoryError,
    fastscore.BackendUnavailableError,
    fastscore.NonFiniteError,
)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fastscore", description="Sample from score-based and diffusion models with fused kernels.")
    parser.add_argument("--version", action="version", version=f"fastscore {fastscore.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _add_sample(commands)
    _add_import(commands)
    listing = commands.add_parser("samplers", help="list the samplers, or the options of one")
    listing.add_argument("name", nargs="?", help="a sampler: show what it takes")
    listing.set_defaults(run=_samplers)
    info = commands.add_parser("info", help="say what this installation can do")
    info.set_defaults(run=_info)
    return parser


def _add_sample(commands: Any) -> None:
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
    add("--model", default="mnist32", help="name of a bundled model, or a file that import-checkpoint wrote")
    add("--sampler", default="pc", metavar="NAME", help="`fastscore samplers` lists them")
    add("--steps", type=int, help="steps in time (200 for pc and others of its kind, else the sampler's own default)")
    add(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the sampler, as in --option eta=0.5; `fastscore samplers NAME` lists them; can be repeated",
    )
    add("--num", type=_positive, default=64, help="number of images")
    add("--seed", type=int, default=0, help="seed of the noise")
    add("--batch", type=_positive, default=64, help="images that go through the network at once")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    add("--backend", help="which kernels run: auto, reference, cpu, triton or cuda", default=argparse.SUPPRESS)
    add("--threads", type=_positive, help="CPU threads (torch's choice unless given)", default=argparse.SUPPRESS)
    sample.set_defaults(run=_sample)


def _add_import(commands: Any) -> None:
    importing = commands.add_parser(
        "import-checkpoint",
        help="turn a checkpoint of another codebase into a file for `fastscore sample --model`",
        description="Turn a checkpoint of score_sde, ncsn, ncsnv2, ddim, guided-diffusion or k-diffusion, or a folder "
        "of diffusers, into a file for `fastscore sample --model`: float32 weights, and what is known of the network.",
    )
    add = importing.add_argument
    add("checkpoint", type=Path, help="file or folder to read")
    add("out", type=Path, help="file to write: .safetensors, and a .json beside it for people")
    add("--weights", choices=("ema", "raw"), default="ema", help="averaged (default), or of the last step of training")
    add(
        "--config",
        metavar="NAME",
        help="what the checkpoint does not say of the network: a published configuration by name, or a .json file of "
        "options, alone or as network with sde, sde_options and convention",
    )
    importing.set_defaults(run=_import)


def _import(args: argparse.Namespace) -> None:
    if args.out.suffix != ".safetensors":
        raise _UsageError(f"the output file must end in .safetensors, got {str(args.out)!r}")
    if args.out.is_dir() or args.out.resolve() == args.checkpoint.resolve():
        raise _UsageError(
            f"the output file must be neither a directory nor the checkpoint itself, got {str(args.out)!r}"
        )
    if not args.out.parent.is_dir():
        raise _UsageError(f"the directory of the output file does not exist: {str(args.out.parent)!r}")
    config = args.config
    if config is not None and config.endswith(".json"):
        try:
            config = json.loads(Path(config).read_text())
        except json.JSONDecodeError as error:
            raise _UsageError(f"--config {args.config}: no JSON: {error}") from None
    try:
        model = models.load_checkpoint(args.checkpoint, weights=args.weights, config=config)
    except TypeError as error:
        raise _UsageError(str(error)) from None
    if model.card is None:
        raise _UsageError(
            f"{args.checkpoint} does not say the SDE of its network, and a file of ours has one: give --config a "
            "published name, or a .json file with network, sde, sde_options and convention"
        )
    models.save_bundle(args.out, model, model.card, dtype=torch.float32)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {model.card['network']['architecture']}, {parameters:,} parameters, SDE {model.card['sde']}")


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _sample(args: argparse.Namespace) -> None:
    write = writer(args.out)
    options = _options(args)
    if hasattr(args, "threads"):
        torch.set_num_threads(args.threads)
    device = _device(args.device)
    with fastscore.backend(args.backend) if hasattr(args, "backend") else nullcontext():
        running = _backend.resolve(device)
        load = models.load_bundle if args.model.endswith(".safetensors") else models.load
        model = load(args.model).to(device)
        assert model.sde is not None  # every model of a file has one
        try:
            sampler = fastscore.sampler(args.sampler, model.sde, model, **options)
        except TypeError as error:
            raise _UsageError(str(error)) from None
        start = time.perf_counter()
        samples, calls = _draw(sampler, model, args.num, args.batch, args.seed)
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
            raise _UsageError(f"--option takes NAME=VALUE, such as eta=0.5, got {text!r}")
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
    sampler: fastscore.Sampler, model: models.ScoreNetwork, num: int, batch: int, seed: int
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
                (len(rows), *model.shape), noise=noise, callback=lambda *_: bar.update(), return_info=True
            )
            parts.append(x.cpu())
            calls += int(torch.as_tensor(info.nfe).expand(len(rows)).sum())
    mean = calls / num
    return torch.cat(parts), int(mean) if mean == int(mean) else round(mean, 1)


def _samplers(args: argparse.Namespace) -> None:
    if args.name is None:
        for name in fastscore.samplers.names():
            entry = fastscore.samplers.describe(name)
            print(f"{name:<20} {entry.calls:>9}  {entry.summary}")
        print("\nnetwork calls for N steps in the second column; `fastscore samplers NAME` lists the options of one")
        return
    entry = fastscore.samplers.describe(args.name)
    print(f"{args.name}: {entry.summary}; fastscore.{entry.make.__name__}\n")
    parameters = inspect.signature(entry.make).parameters
    for name in entry.accepted:
        default = entry.options.get(name, parameters[name].default)
        print(f"  {name:<18} " + ("(needed)" if name in entry.required else f"{default!r}"))
    print(f"\n{inspect.getdoc(entry.make)}")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise _UsageError(f"--device: {name!r} is no device; accepted are cpu, cuda, cuda:0, ...") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise _UsageError(f"--device {name}: torch sees no CUDA device here")
    return device


def _info(_: argparse.Namespace) -> None:
    build = _library.build_info()
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"fastscore  {fastscore.__version__}")
    print(f"python     {platform.python_version()}, {platform.system()} {platform.machine()}")
    print(f"torch      {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"processor  {_processor()}, capability {capability}")
    if build:
        cuda = f"CUDA {build['cuda']} for {build['cuda_archs']}" if build["cuda"] else "no CUDA"
        print(f"kernels    compiled for {', '.join(build['isas'])}; {build['isa']} in use; {cuda}")
    print("backends")
    for name in _backend.BACKENDS:
        reason = _backend.why_not(name)
        print(f"  {name:<9}  " + ("there" if reason is None else f"not there: {reason}"))
    print("devices")
    for index in range(-1, torch.cuda.device_count()):
        device = torch.device("cpu") if index < 0 else torch.device("cuda", index)
        what = _processor() if index < 0 else torch.cuda.get_device_name(index)
        print(f"  {device!s:<9}  {what}, backend {_backend.resolve(device)}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or not x86
        return platform.processor() or platform.machine()
