"""What a training run is made of, as plain values that go into checkpoints and model cards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from fastscore.models.adm import ADMConfig
from fastscore.models.base import NetworkConfig
from fastscore.models.classifier import ClassifierConfig
from fastscore.models.ncsnpp import NCSNppConfig
from fastscore.models.registry import config_from_dict
from fastscore.models.schedules import SDES
from fastscore.score import Convention
from fastscore.sde import SDE
from fastscore.training.emoji import CLASSES
from fastscore.training.losses import WEIGHTINGS


@dataclass(frozen=True)
class TrainingConfig:
    """A run: network, SDE, data, optimization.

    steps, batch: number of updates and images in each. lr, warmup: Adam's rate rises linearly over `warmup` updates,
        then stays ("constant") or falls to 0 at the last one ("cosine"), by `schedule`.
    ema: decay of the weight average. grad_clip: largest gradient norm.
    eps: smallest training time. stratified: one time in each of `batch` equal intervals (Kingma et al. 2021,
        arXiv 2107.00630, App. I.1) in place of independent ones.
    weighting, reduce_mean: see `fastscore.training.losses.denoising_loss`.
    precision: "float32", or "bfloat16" for autocast (the weights stay float32).
    channels_last: keep weights and images in that memory format.
    label_dropout: share of images that get the null class of the network in place of their own, so that it learns to do
        without (Ho and Salimans 2022, arXiv 2207.12598, algorithm 1).
    """

    name: str
    network: NetworkConfig
    sde: str = "VPSDE"
    sde_options: dict[str, float] = field(default_factory=dict)
    convention: Convention = field(default_factory=lambda: Convention("noise", "scaled_time"))
    dataset: str = "mnist"
    steps: int = 10_000
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 200
    schedule: str = "cosine"
    ema: float = 0.999
    grad_clip: float = 1.0
    eps: float = 1e-5
    stratified: bool = True
    weighting: str = "noise"
    reduce_mean: bool = True
    precision: str = "float32"
    channels_last: bool = False
    label_dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("warmup", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        for name, allowed in (
            ("sde", tuple(SDES)),
            ("weighting", WEIGHTINGS),
            ("schedule", ("cosine", "constant")),
            ("precision", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("lr", "grad_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")

        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout must be in [0, 1), got {self.label_dropout!r}")
        if self.label_dropout and not getattr(self.network, "null_class", False):
            raise ValueError(f"label_dropout must be 0 for a network without null_class, got {self.label_dropout!r}")

    @property
    def classes(self) -> int | None:
        """Number of classes that the network is conditioned on, beside the null class; None: none."""
        classes: int | None = getattr(self.network, "num_classes", None)
        return classes if classes is None else classes - getattr(self.network, "null_class", False)

    def make_sde(self) -> SDE:
        return SDES[self.sde](**self.sde_options)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "network": self.network.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        network, convention = config_from_dict(values["network"]), Convention(**values["convention"])
        return cls(**{**values, "network": network, "convention": convention})


_DDPMPP = NCSNppConfig(
    fir=False,
    progressive_input="none",
    embedding_type="positional",
    scale_by_sigma=False,
    centered=True,
)

CONFIGS: dict[str, TrainingConfig] = {
    # DDPM++ for 32x32 gray images, small enough for one CPU core
    "mnist32": TrainingConfig(
        name="mnist32",
        network=dataclasses.replace(
            _DDPMPP, num_channels=1, nf=32, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(8,), dropout=0.05
        ),
        # at late times the noise is the input, up to a factor that the normalization layers remove: a network that
        # predicts v does not have to find it again, and deterministic samplers do not blow its error up
        convention=Convention("v", "scaled_time"),
        weighting="prediction",
        steps=10_000,
        batch=32,
        lr=1e-3,
        precision="bfloat16",
    ),
    # class-conditional color images of 32x32
    "emoji32": TrainingConfig(
        name="emoji32",
        network=ADMConfig(
            image_size=32,
            in_channels=3,
            out_channels=3,
            model_channels=32,
            channel_mult=(2, 3, 4),
            num_res_blocks=1,
            attention_resolutions=(4,),
            dropout=0.05,
            num_classes=len(CLASSES) + 1,
            null_class=True,
            num_head_channels=32,
        ),
        convention=Convention("v", "scaled_time"),
        weighting="prediction",
        dataset="emoji",
        steps=9_000,
        batch=32,
        lr=1e-3,
        ema=0.9995,
        precision="bfloat16",
        channels_last=True,
        label_dropout=0.1,
    ),
    # for classifier guidance of mnist32
    "mnist32-classifier": TrainingConfig(
        name="mnist32-classifier",
        network=ClassifierConfig(image_size=32, num_channels=1, num_classes=10, nf=16, ch_mult=(1, 2, 4), dropout=0.1),
        convention=Convention(label="time"),
        steps=5_000,
        batch=64,
        lr=2e-3,
        precision="bfloat16",
    ),
}
