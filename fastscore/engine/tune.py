"""Measures which method is the fastest for the 3x3 convolutions of a network, on this machine, and keeps the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from fastscore.engine.trace import native
from fastscore.engine.values import pixel_rows
from fastscore.ops import _plans
from fastscore.ops._plans import Shape
from fastscore.ops.conv3x3 import cheapest

_ROUNDS, _SLICE = 5, 4e-3


def tune(shapes: Iterable[Shape], threads: int) -> Path:
    """Measure what the table of this machine does not know yet, and store it; returns its file."""
    unknown = [shape for shape in dict.fromkeys(shapes) if _plans.planned(shape, threads) is None]
    file = _plans.store({shape: fastest(measure(shape)) for shape in unknown}, threads)
    cheapest.cache_clear()
    return file


def fastest(seconds: dict[str, list[float]]) -> str:
    """The method whose best round took the least: work by others only adds."""
    return min(seconds, key=lambda method: min(seconds[method]))


def measure(shape: Shape) -> dict[str, list[float]]:
    """Seconds of a call by each method, in rounds in which they take turns."""
    runs = _runs(shape)
    repeats = {method: max(1, int(_SLICE / max(_time(run, 1), 1e-7))) for method, run in runs.items()}
    seconds: dict[str, list[float]] = {method: [] for method in runs}
    for _ in range(_ROUNDS):
        for method, run in runs.items():
            seconds[method].append(_time(run, repeats[method]))
    return seconds


def _runs(shape: Shape) -> dict[str, Callable[[], Any]]:
    batch, channels, height, width, outputs = shape
    x = torch.empty_like(pixel_rows((batch, channels, height, width)), device="cpu").normal_()
    out = torch.empty_like(pixel_rows((batch, outputs, height, width)), device="cpu")
    weight, bias = torch.randn(outputs, channels, 3, 3), torch.randn(outputs)
    behind, front = (bias, None, None, 1.0), (None, None, False, False)

    def winograd(tile: int) -> Callable[[], Any]:
        packed = native.conv3x3_weights.default(weight, tile, False)
        return lambda: native.conv3x3_winograd_into.default(x, packed, outputs, tile, *behind, *front, None, out)

    packed = native.conv_gemm_weights.default(weight)
    return {
        "direct": lambda: native.conv_gemm_into.default(x, packed, outputs, 3, 1, 1, *behind, *front, out),
        "winograd2": winograd(2),
        "winograd4": winograd(4),
    }


def _time(run: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats
