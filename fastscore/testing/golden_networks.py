"""Published networks with small random weights: their outputs and input gradients, and how far ours may be from them.

A folder holds one JSON manifest per implementation and the tensors of each network as safetensors. Needs safetensors.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


@dataclass(frozen=True)
class GoldenNetwork:
    """A network that a published implementation evaluated in eval mode.

    Attributes:
        id: also the name of its file.
        config: the options that its implementation took.
        tensors: `x`, the labels, `y` (classes, where it takes them), `probe`, `out`, `vjp` = d sum(out * probe) / dx,
            and where they could be had `out_f64`, `vjp_f64`, the same computed in float64.
        state_dict: float32, in the published order.
        trained: the keys of the parameters that require a gradient, in the published order.
        noise: "out" and "vjp" -> the largest rounding error of the published float32 computation that was measured,
            absolute: against float64, under jitter of 1e-7, and with another order of the Fourier product.
    """

    id: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    state_dict: dict[str, Tensor]
    trained: list[str]
    noise: dict[str, float]

    def evaluate(
        self, network: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
    ) -> tuple[Tensor, Tensor]:
        """`(out, vjp)` of another network, in eval mode and with these weights, that computes in the given dtype."""
        network.eval().to(dtype).load_state_dict(self.state_dict)
        network.to(memory_format=memory_format)
        x = self.tensors["x"].to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        labels = self.tensors["labels" if "labels" in self.tensors else "timesteps"]
        out = network(x, labels, **({"y": self.tensors["y"]} if "y" in self.tensors else {}))
        (vjp,) = torch.autograd.grad(out, x, self.tensors["probe"].to(dtype))
        return out.detach(), vjp

    def assert_agrees(self, network: nn.Module, memory_format: torch.memory_format = torch.contiguous_format) -> None:
        """In float32, `out` and `vjp` lie within 1e-5 of the largest value, or three times `noise` where it is more."""
        for name, actual in zip(("out", "vjp"), self.evaluate(network, torch.float32, memory_format), strict=True):
            expected = self.tensors[name]
            assert actual.dtype == torch.float32
            assert actual.shape == expected.shape, f"{self.id}: {name} has shape {tuple(actual.shape)}"
            error = float((actual - expected).abs().max())
            allowed = max(1e-5 * float(expected.abs().max()), 3 * self.noise[name])
            assert error <= allowed, f"{self.id}: {name} is off by {error:.3g}, allowed are {allowed:.3g}"


def load_networks(folder: str | Path, manifest: str) -> dict[str, GoldenNetwork]:
    """The networks of `<folder>/<manifest>.json` by id."""
    cases = json.loads((Path(folder) / f"{manifest}.json").read_text())["cases"]
    return {case["id"]: _network(Path(folder), case) for case in cases}


def _network(folder: Path, case: dict[str, Any]) -> GoldenNetwork:
    stored = load_file(folder / case["file"])
    weights = case["state_dict"]
    state = {key: stored.pop(weights["prefix"] + key) for key in weights["keys_in_order"]}
    state = {key: value.float() if value.dtype == torch.float16 else value for key, value in state.items()}
    noise = {}
    for name in ("out", "vjp"):
        product = case["scalars"].get("effect_of_fourier_product_order", {})
        measured = (
            case["fp32_sensitivity"]["max_abs_diff"][name],
            case["scalars"].get(f"fp32_vs_f64_{name}", 0.0),
            product.get(name, 0.0),
        )
        noise[name] = max(measured)
    trained = weights["parameters_requires_grad_order"]
    return GoldenNetwork(case["id"], case["config"], stored, state, trained, noise)
