"""Golden numbers: cases that the published implementations computed, with the noise they drew, read from a folder.

A folder holds one JSON manifest per implementation and the tensors as safetensors. `load_cases` gives the cases,
`golden_model` the analytic network (of `golden_models`) a case was run with. Needs safetensors.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fastscore.testing import golden_models as models
from fastscore.testing.statistics import (
    AnalyticModel,
    Mixture,
    Perturbation,
    RecordingModel,
    ve_perturbation,
    vp_perturbation,
)


@dataclass(frozen=True)
class GoldenCase:
    """One run of a published implementation.

    Attributes:
        id: e.g. ``pc.vp.reverse_diffusion+langevin.N30.n2``; also the pytest id.
        function: the published function.
        args: every argument that matters, as it took it.
        model: the name of the analytic network, for `golden_model`.
        scalars: counts and measured errors of the published code.
        meaning: tensor name -> what it holds.
        seed: of torch's generator in the published run, where its draws can be had again from it.
    """

    id: str
    path: Path
    prefix: str
    function: str
    args: dict[str, Any]
    model: str
    scalars: dict[str, Any]
    sensitivity: dict[str, float]
    meaning: dict[str, str]
    seed: int | None
    _keys: dict[str, tuple[str, int | None]] = field(repr=False)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the case by name, in the dtype of the file; read when first asked for."""
        with safe_open(self.path, "pt") as file:
            read = {name: (file.get_tensor(key), count) for name, (key, count) in self._keys.items()}
        return {name: tensor if count is None else tensor[:count] for name, (tensor, count) in read.items()}

    def noise_of(self, name: str = "result") -> float:
        """The rounding noise of an output as measured on the published code: jitter, and distance to float64."""
        return max(self.sensitivity.get(name, 0.0), float(self.scalars.get("diff_vs_float64_run") or 0.0))

    @property
    def tolerance(self) -> float:
        """Largest absolute difference of `result` that is accepted.

        1e-5 (1e-10 where it is float64) relative to its largest value (at least 1), or three times the case's own
        rounding noise if larger.
        """
        relative = 1e-10 if self.tensors["result"].dtype == torch.float64 else 1e-5
        return max(relative * max(1.0, float(self.scalars["result_abs_max"])), 3.0 * self.noise_of())

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
        function=entry["function"],
        args=entry["args"],
        model=entry.get("model", ""),
        scalars=entry.get("scalars", {}),
        sensitivity=entry.get("fp32_sensitivity", {}).get("max_abs_diff", {}),
        meaning={name: info["meaning"] for name, info in entry["tensors"].items()},
        seed=entry.get("torch_seed"),
        _keys=keys,
    )


def load_mixture(folder: str | Path) -> Mixture:
    """The mixture of three Gaussians that every golden network was derived from (``mixture.safetensors``)."""
    with safe_open(Path(folder) / "mixture.safetensors", "pt") as file:
        means, weights, std = (file.get_tensor(name).double() for name in ("means", "weights", "std"))
    return Mixture(means, weights, float(std))


def golden_model(case: GoldenCase, mixture: Mixture) -> RecordingModel:
    """The analytic network a case was run with: float64 inside, output in the dtype of its input; labels are [B].

    What label and output are is said by `models` in the manifest of the case. With `record` set, the network keeps its
    labels, and its inputs at the calls whose input the case holds (`call_x_<i>`).
    """
    if case.model not in _NETWORKS:
        raise ValueError(f"{case.id}: unknown model {case.model!r}")
    model = _NETWORKS[case.model](case, mixture)
    model.keep = {int(name.removeprefix("call_x_")) for name in case.meaning if name.startswith("call_x_")}
    return model


def golden_cond_fn(case: GoldenCase, mixture: Mixture) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The classifier gradient of a guided case: (x, label [B], y [B]) -> grad_x log p(y | x), in the dtype of x."""
    if case.args.get("cond_fn") != "guided/cond_fn":
        raise ValueError(f"{case.id}: has no cond_fn")
    return models.ClassifierGradient(mixture, _guided_perturbation(case))


_Builder = Callable[[GoldenCase, Mixture], RecordingModel]


def _ve(case: GoldenCase, mixture: Mixture) -> RecordingModel:
    return AnalyticModel(mixture, ve_perturbation, "score")


def _ve_table(name: str) -> _Builder:
    def build(case: GoldenCase, mixture: Mixture) -> RecordingModel:
        sigmas = case.tensors[name].double()
        return AnalyticModel(mixture, models.table_perturbation(torch.ones_like(sigmas), sigmas), "score")

    return build


def _vp(case: GoldenCase, mixture: Mixture) -> RecordingModel:
    sde = case.args["sde"]
    perturb = vp_perturbation(sde["beta_min"], sde["beta_max"], label_scale=999.0, subvp=sde["cls"] == "subVPSDE")
    return AnalyticModel(mixture, perturb, "noise")


def _vp_discrete(case: GoldenCase, mixture: Mixture) -> RecordingModel:
    alphas, sigmas = (case.tensors[name].double() for name in ("sqrt_alphas_cumprod", "sqrt_1m_alphas_cumprod"))
    return AnalyticModel(mixture, models.table_perturbation(alphas, sigmas), "noise")


def _fast_sampling(case: GoldenCase, mixture: Mixture) -> RecordingModel:
    sde = case.args["sde"]
    if sde["cls"] == "VESDE":
        return AnalyticModel(mixture, models.geometric_perturbation(sde["sigma_min"], sde["sigma_max"]), "score")
    perturb = vp_perturbation(sde["beta_min"], sde["beta_max"], label_scale=1.0, subvp=sde["cls"] == "subVPSDE")
    return AnalyticModel(mixture, perturb, "score")


def _dpm(case: GoldenCase, mixture: Mixture) -> RecordingModel:
    schedule = case.args["noise_schedule"]
    prediction = {"x_start": "denoised"}.get(case.args["model_type"], case.args["model_type"])
    if schedule["schedule"] == "linear":
        beta_min, beta_max = schedule["continuous_beta_0"], schedule["continuous_beta_1"]
        return AnalyticModel(mixture, vp_perturbation(beta_min, beta_max, label_scale=1.0), prediction)
    n = schedule["total_N"]  # shorter than the table where dpm-solver cuts its end off
    perturb = models.chain_perturbation(case.tensors["betas"][:n], lambda label: label / 1000 * n)
    return AnalyticModel(mixture, perturb, prediction)


def _diffusers(case: GoldenCase, mixture: Mixture) -> RecordingModel:
    prediction = case.args["config"].get("prediction_type", "epsilon")
    prediction = {"epsilon": "noise", "sample": "denoised", "v_prediction": "v"}[prediction]
    return AnalyticModel(mixture, models.chain_perturbation(case.tensors["betas"]), prediction)


def _denoiser(case: GoldenCase, mixture: Mixture) -> RecordingModel:
    return AnalyticModel(mixture, ve_perturbation, "denoised")


def _ddpm(case: GoldenCase, mixture: Mixture) -> RecordingModel:
    return AnalyticModel(mixture, models.chain_perturbation(case.tensors["betas"]), "noise")


def _guided_perturbation(case: GoldenCase) -> Perturbation:
    scale = case.args["label_scale"]
    return models.chain_perturbation(case.tensors["betas"], lambda label: (label / scale).round())


def _guided(case: GoldenCase, mixture: Mixture) -> RecordingModel:
    prediction = {"EPSILON": "noise", "START_X": "denoised"}[case.args["model_mean_type"]]
    model = AnalyticModel(mixture, _guided_perturbation(case), prediction)
    return models.WithVariance(model) if case.args["model_var_type"] == "learned_range" else model


def _consistency(case: GoldenCase, mixture: Mixture) -> RecordingModel:
    return models.ConsistencyFunction(mixture.means[0], mixture.std, case.args["t_min"])


def _karras(case: GoldenCase, mixture: Mixture) -> RecordingModel:
    args = case.args
    if args["distillation"]:
        consistency = models.ConsistencyFunction(mixture.means[0], mixture.std, args["sigma_min"])
        return models.KarrasNetwork(consistency, args["sigma_data"], args["sigma_min"])
    return models.KarrasNetwork(_denoiser(case, mixture), args["sigma_data"])


_NETWORKS: dict[str, _Builder] = {
    "score_sde/ve_continuous": _ve,
    "score_sde/ve_discrete": _ve_table("sigmas_desc"),
    "score_sde/vp_continuous": _vp,
    "score_sde/subvp_continuous": _vp,
    "score_sde/vp_discrete": _vp_discrete,
    "fast_sampling/score": _fast_sampling,
    "dpm/linear": _dpm,
    "dpm/discrete": _dpm,
    "diffusers/ddpm": _diffusers,
    "diffusers/ve": _ve,
    "k/denoiser": _denoiser,
    "edm/denoiser": _denoiser,
    "ddpm/index": _ddpm,
    "guided/index": _guided,
    "ncsnv2/score": _ve_table("sigmas"),
    "cm/gaussian_consistency": _consistency,
    "cm/network": _karras,
}
