"""Draw digits twice from the same noise, with the fused kernels and with the plain PyTorch reference, and compare."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore import _backend, models
from fastscore._output import writer
from fastscore.noise import Noise
from fastscore.reference.samplers import pc_sampler
from fastscore.score import Convention
from fastscore.sde import SDE
from fastscore.testing.traffic import traffic_per_step

Shape = tuple[int, ...]
Network = Callable[[Tensor, Tensor], Tensor]
PC: dict[str, Any] = {"predictor": "reverse_diffusion", "corrector": "langevin", "snr": 0.16, "norm": "sample"}


class Timed:
    """A network that remembers how often it was called and how long that took."""

    def __init__(self, network: Network) -> None:
        self.network, self.calls, self.seconds = network, 0, 0.0

    def __call__(self, x: Tensor, labels: Tensor) -> Tensor:
        start = time.perf_counter()
        h = self.network(x, labels)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return h


def fused(sde: SDE, network: Network, convention: Convention, shape: Shape, noise: Noise, steps: int) -> Tensor:
    """Our sampler: a table, and one fused kernel per row of it."""
    sampler = fastscore.PCSampler(sde, network, steps=steps, convention=convention, **PC)
    samples = sampler.sample(shape, noise=noise)
    assert isinstance(samples, Tensor)
    return samples


def plain(sde: SDE, network: Network, convention: Convention, shape: Shape, noise: Noise, steps: int) -> Tensor:
    """The algorithm as the paper prints it, one PyTorch operation per term; the network runs on the reference too."""
    with fastscore.backend("reference"):
        x = sde.prior_sample(shape, noise=noise)
        return pc_sampler(sde, network, x, noise, convention, steps=steps, eps=sde.sampling_eps, **PC)


def main() -> None:
    """Parse the arguments, draw, write the picture, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--num", type=int, default=64, help="digits to draw")
    parser.add_argument("--steps", type=int, default=100, help="steps in time, each a corrector and a predictor")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--out", type=Path, default=Path("out/demo/digits.png"), help="the picture")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write = writer(args.out)

    model = models.load("mnist32")
    sde, convention = model.sde, model.convention
    assert sde is not None, "a trained model has both"
    assert convention is not None
    shape = (args.num, *model.shape)
    philox = fastscore.PhiloxNoise(args.seed)
    # The reference is handed the same noise ready made, and so is not charged for drawing it.
    recording = fastscore.ReplayNoise([philox.normal(shape, draw=i) for i in range(2 * args.steps + 1)])
    runs: dict[str, tuple[Callable[..., Tensor], Noise, Noise]] = {
        "fused": (fused, philox, philox),
        "reference": (plain, recording, fastscore.TorchNoise()),
    }
    samples, networks, seconds, traffic = {}, {}, {}, {}
    still = torch.zeros(shape)  # in place of the network's output, where the sampler's own traffic is counted
    start = time.perf_counter()
    fastscore.accelerate(model, optimize="cpu", example=(still, torch.zeros(args.num)))
    ready = time.perf_counter() - start
    with torch.no_grad():
        model(still, torch.zeros(args.num))  # the first call of a process sets up threads and memory
    for name, (run, noise, noise_of_traffic) in runs.items():
        print(f"drawing {args.num} digits in {args.steps} steps, {name} ...", flush=True)
        networks[name] = Timed(model)
        start = time.perf_counter()
        samples[name] = run(sde, networks[name], convention, shape, noise, args.steps)
        seconds[name] = time.perf_counter() - start
        short = partial(run, sde, lambda x, labels: still, convention, shape, noise_of_traffic)
        traffic[name] = traffic_per_step(short, still, steps=(32, 36))  # a VP chain needs more than beta_max = 20

    settings = {"model": "mnist32", "seed": args.seed, "steps": args.steps, **PC}
    write(samples["fused"], centered=model.config.centered, settings=settings)
    difference = (samples["fused"] - samples["reference"]).norm() / samples["reference"].norm()

    def row(label: str, value: Callable[[str], float], form: str) -> None:
        print(f"{label:<44}" + "".join(f"{value(name):>12{form}}" for name in runs))

    cpu = torch.device("cpu")
    print(f"\n{args.num} images, {args.steps} steps of predictor and corrector, seed {args.seed}")
    print(
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, backend {_backend.resolve(cpu)}\n"
    )
    print(" " * 44 + "".join(f"{name:>12}" for name in runs))
    row("network calls per image (NFE)", lambda name: networks[name].calls, "d")
    row("seconds", lambda name: seconds[name], ".2f")
    row("  in the network", lambda name: networks[name].seconds, ".2f")
    row("  in the sampler", lambda name: seconds[name] - networks[name].seconds, ".2f")
    print(f"{'seconds to trace and plan the network':<44}{ready:>12.2f}")
    row("memory traffic per step, in state sizes [1]", lambda name: traffic[name].moved, ".1f")
    row("operators per step", lambda name: traffic[name].calls, ".0f")
    print(f"{'relative difference of the images':<44}{difference:>24.1e}\n")
    print("[1] what the sampler itself reads and writes, network left out, in one corrector and one predictor step")
    print(args.out)


if __name__ == "__main__":
    main()
