"""Training a classifier of noisy images, for classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233, 4.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fastscore.score import Convention
from fastscore.sde import SDE
from fastscore.training.losses import noised
from fastscore.training.trainer import Trainer

__all__ = ["ClassifierTrainer", "classification_loss", "shifted"]

SHIFT = 2  # pixels


def classification_loss(
    network: Callable[[Tensor, Tensor], Tensor],
    sde: SDE,
    x0: Tensor,
    labels: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    convention: Convention,
) -> Tensor:
    """-log p(label | x_t) of every sample, in nats, float32 (B,) (float64 for float64 data).

    x0, noise: (B, ...) clean data and standard normal noise. t: (B,) times in (0, T]. labels: int64 (B,).
    network: called as network(x_t, times), gives logits (B, classes). convention: whose label says how it is told t.
    """
    x, times = noised(sde, x0, t, noise, convention)
    return F.cross_entropy(network(x, times).to(x0.dtype), labels, reduction="none")


def shifted(images: Tensor, most: int) -> Tensor:
    """Each image (B, C, H, W) moved by -most to most pixels in both directions; its border fills what comes free.

    The moves are of torch's own generator.
    """
    height, width = images.shape[2:]
    wide = F.pad(images, (most,) * 4, mode="replicate")
    corners = torch.randint(0, 2 * most + 1, (len(images), 2)).tolist()
    crops = [one[:, y : y + height, x : x + width] for one, (y, x) in zip(wide, corners, strict=True)]
    return torch.stack(crops)


class ClassifierTrainer(Trainer):
    """Trains a `fastscore.models.Classifier` by cross-entropy over uniform times, on images shifted by up to 2 pixels.

    Takes what `Trainer` takes; `weighting`, `reduce_mean` and `label_dropout` of the config have no meaning here.
    """

    objective = "cross-entropy"

    def _losses(self, x0: Tensor, labels: Tensor | None, t: Tensor, noise: Tensor) -> Tensor:
        assert labels is not None  # a classifier has classes
        return classification_loss(
            self.model,
            self.sde,
            shifted(x0, SHIFT),
            labels.to(self.device),
            t,
            noise,
            convention=self.config.convention,
        )
