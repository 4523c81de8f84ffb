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
from fastscore.models.ncsnpp import NCSNpp
from fastscore.reference.samplers import pc_sampler
from fastscore.testing.traffic import traffic_per_step

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


def fused(model: NCSNpp, network: Network, shape: tuple[int, ...], steps: int, seed: int) -> Tensor:
    """Our sampler: a table, and one fused kernel per row of it."""
    sampler = fastscore.PCSampler(model.sde, network, steps=steps, convention=model.convention, **PC)
    samples = sampler.sample(shape, seed=seed)
    assert isinstance(samples, Tensor)
    return samples


def plain(model: NCSNpp, network: Network, shape: tuple[int, ...], steps: int, seed: int) -> Tensor:
    """The algorithm as the paper prints it, one PyTorch operation per term, with the network on the reference too."""
    noise = fastscore.PhiloxNoise(seed)
    with fastscore.backend("reference"):
        x = model.sde.prior_sample(shape, noise=noise)
        return pc_sampler(
            model.sde, network, x, noise, model.convention, steps=steps, eps=model.sde.sampling_eps, **PC
        )


def main() -> None:
    """Parse the arguments, draw, print the comparison, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--num", type=int, default=64, help="digits to draw")
    parser.add_argument("--steps", type=int, default=200, help="steps in time, each a corrector and a predictor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/demo/digits.png"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write = writer(args.out)

    model = models.load("mnist32")
    shape = (args.num, *model.shape)
    still = torch.zeros(shape)  # stands in for the network's output where only the sampler's own traffic counts
    columns = {}
    for name, run in (("fused", fused), ("reference", plain)):
        network = Timed(model)
        print(f"drawing {args.num} digits, {args.steps} PC steps: {name} ...", flush=True)
        start = time.perf_counter()
        samples = run(model, network, shape, args.steps, args.seed)
        seconds = time.perf_counter() - start
        own = partial(run, model, lambda x, labels: still, shape, seed=args.seed)
        # VP chains need more steps than beta_max = 20
        traffic = traffic_per_step(lambda steps, own=own: own(steps=steps), still, steps=(32, 36))
        columns[name] = (samples, network, seconds, traffic)

    (a, fast, fast_seconds, fast_traffic), (b, slow, slow_seconds, slow_traffic) = columns.values()
    write(a, centered=model.config.centered, settings={"model": "mnist32", "seed": args.seed, "steps": args.steps, **PC})
    difference = float((a - b).norm() / b.norm())
    backend = _backend.resolve(torch.device("cpu"))
    print(f"""
mnist32, {args.num} images {"x".join(map(str, model.shape))}, seed {args.seed}, {args.steps} steps; {platform.machine()}, \
{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, torch {torch.__version__}

                                             {"fused (" + backend + ")":>14} {"reference":>14}
network calls per image (NFE)                {fast.calls:>14} {slow.calls:>14}
seconds                                      {fast_seconds:>14.2f} {slow_seconds:>14.2f}
  in the network                             {fast.seconds:>14.2f} {slow.seconds:>14.2f}
  in the sampler                             {fast_seconds - fast.seconds:>14.2f} {slow_seconds - slow.seconds:>14.2f}
memory traffic per step, in state sizes [1]  {fast_traffic.moved:>14.1f} {slow_traffic.moved:>14.1f}
operators per step                           {fast_traffic.calls:>14.0f} {slow_traffic.calls:>14.0f}
relative difference of the images            {difference:>14.1e}

[1] reads and writes of tensors as large as the state, outside the network, in one corrector and one predictor step
{args.out}""")


if __name__ == "__main__":
    main()
