"""Golden numbers: cases that the published implementations computed, with the noise they drew, read from a folder.

A folder holds one JSON manifest per implementation and the tensors as safetensors. `load_cases` gives the cases,
`golden_model` the analytic network a case was run with. Needs safetensors.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fastscore.testing.statistics import AnalyticModel, Mixture, Perturbation, vp_perturbation


@dataclass(frozen=True)
class GoldenCase:
    """One run of a published implementation.

    Attributes:
        id: e.g. ``pc.vp.reverse_diffusion+langevin.N30.n2``; also the pytest id.
        args: every argument that matters, as the published function took it.
        model: the name of the analytic network, for `golden_model`.
        scalars: counts and measured errors of the published code.
        meaning: tensor name -> what it holds.
    """

    id: str
    path: Path
    prefix: str
    args: dict[str, Any]
    model: str
    scalars: dict[str, Any]
    sensitivity: dict[str, float]
    meaning: dict[str, str]
    _keys: dict[str, tuple[str, int | None]] = field(repr=False)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the case by name, in the dtype of the file; read when first asked for."""
        with safe_open(self.path, "pt") as file:
            read = {name: (file.get_tensor(key), count) for name, (key, count) in self._keys.items()}
        return {name: tensor if count is None else tensor[:count] for name, (tensor, count) in read.items()}

    def noise_of(self, name: str = "result") -> float:
        """The float32 noise of an output as measured on the published code: jitter, and distance to float64."""
        return max(self.sensitivity.get(name, 0.0), float(self.scalars.get("diff_vs_float64_run") or 0.0))

    @property
    def tolerance(self) -> float:
        """Largest absolute difference of `result` that is accepted.

        1e-5 relative to its largest value (at least 1), or three times the case's own float32 noise if larger.
        """
        return max(1e-5 * max(1.0, float(self.scalars["result_abs_max"])), 3.0 * self.noise_of())

    def __str__(self) -> str:
        return self.id


def load_cases(folder: str | Path, manifest: str, prefix: str = "") -> list[GoldenCase]:
    """The cases of ``folder/manifest.json`` whose id starts with `prefix`, in the order of the file."""
    folder = Path(folder)
    data = json.loads((folder / f"{manifest}.json").read_text())
    cases = [_case(folder, entry) for entry in data["cases"] if entry["id"].startswith(prefix)]
    if not cases:
        raise ValueError(f"no case in {folder / manifest}.json starts with {prefix!r}")
    return cases


def _case(folder: Path, entry: dict[str, Any]) -> GoldenCase:
    keys = {
        name: (info.get("shared_key") or entry["prefix"] + name, info.get("count"))
        for name, info in entry["tensors"].items()
    }
    return GoldenCase(
        id=entry["id"],
        path=folder / entry["file"],
        prefix=entry["prefix"],
        args=entry["args"],
        model=entry["model"],
        scalars=entry.get("scalars", {}),
        sensitivity=entry.get("fp32_sensitivity", {}).get("max_abs_diff", {}),
        meaning={name: info["meaning"] for name, info in entry["tensors"].items()},
        _keys=keys,
    )


def load_mixture(folder: str | Path) -> Mixture:
    """The mixture of three Gaussians that every golden network was derived from (``mixture.safetensors``)."""
    with safe_open(Path(folder) / "mixture.safetensors", "pt") as file:
        means, weights, std = (file.get_tensor(name).double() for name in ("means", "weights", "std"))
    return Mixture(means, weights, float(std))


def golden_model(case: GoldenCase, mixture: Mixture) -> AnalyticModel:
    """The analytic network a case of score_sde was run with: float64 inside, output in the dtype of its input.

    VE networks return the score at label sigma (continuous) or at an index into the descending table of sigmas
    (discrete). VP and sub-VP networks predict the noise at label 999 t, or t (N - 1) truncated to an index.
    """
    sde = case.args["sde"]
    if case.model == "score_sde/ve_continuous":
        return AnalyticModel(mixture, lambda label: (torch.ones_like(label), label), "score")
    if case.model == "score_sde/ve_discrete":
        sigmas = case.tensors["sigmas_desc"].double()
        return AnalyticModel(mixture, _lookup(torch.ones_like(sigmas), sigmas), "score")
    if case.model in ("score_sde/vp_continuous", "score_sde/subvp_continuous"):
        subvp = case.model.startswith("score_sde/subvp")
        perturb = vp_perturbation(sde["beta_min"], sde["beta_max"], label_scale=999.0, subvp=subvp)
        return AnalyticModel(mixture, perturb, "noise")
    if case.model == "score_sde/vp_discrete":
        alphas = case.tensors["sqrt_alphas_cumprod"].double()
        sigmas = case.tensors["sqrt_1m_alphas_cumprod"].double()
        return AnalyticModel(mixture, _lookup(alphas, sigmas), "noise")
    raise ValueError(f"{case.id}: unknown model {case.model!r}")


def _lookup(alphas: Tensor, sigmas: Tensor) -> Perturbation:
    def perturb(label: Tensor) -> tuple[Tensor, Tensor]:
        index = label.long().cpu()
        return alphas[index].to(label.device), sigmas[index].to(label.device)

    return perturb
