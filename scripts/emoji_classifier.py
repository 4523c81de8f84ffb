"""A small classifier of clean emoji, and emoji that it has not seen to try it on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digit_classifier import replace_file
from fastscore.training.classifier import shifted
from fastscore.training.data import LabeledImages, to_signed_unit


class EmojiClassifier(nn.Module):
    """(B, 3, 32, 32) emoji in [-1, 1] -> logits (B, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(_block(3, 32, stride=2), _block(32, 64), _pooled(64, 128), _pooled(128, 128))
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(x).mean((2, 3))))


def _block(channels: int, out: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def _pooled(channels: int, out: int) -> nn.Module:
    return nn.Sequential(nn.MaxPool2d(2), _block(channels, out))


def split(emoji: LabeledImages, share: float = 0.2) -> tuple[LabeledImages, LabeledImages]:
    """(training, held out): a share of the emoji is held out, each together with its mirror image."""
    images, labels, classes = emoji
    keys = [min(image.numpy().tobytes(), image.flip(2).numpy().tobytes()) for image in images]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    chosen = torch.rand(len(numbers), generator=torch.Generator().manual_seed(0)) < share
    held_out = chosen[torch.tensor([numbers[key] for key in keys])]
    parts = [LabeledImages(images[rows], labels[rows], classes) for rows in (~held_out, held_out)]
    return parts[0], parts[1]


def train(emoji: LabeledImages, epochs: int = 30, batch: int = 64) -> EmojiClassifier:
    """AdamW on cross-entropy; each image shifted by up to 3 pixels, brighter or darker, and with noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = EmojiClassifier(len(emoji.classes)).train()
        optimizer = torch.optim.AdamW(classifier.parameters(), 2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for rows in torch.randperm(len(emoji.images)).split(batch):
                x = shifted(to_signed_unit(emoji.images[rows]), 3)
                x = x * (0.8 + 0.4 * torch.rand(len(x), 1, 1, 1)) + 0.05 * torch.randn_like(x)
                optimizer.zero_grad()
                F.cross_entropy(classifier(x), emoji.labels[rows], label_smoothing=0.05).backward()
                optimizer.step()
            schedule.step()
    return classifier.eval()


def load(path: Path, emoji: LabeledImages) -> EmojiClassifier:
    """The classifier of an earlier run, or a new one, trained and kept."""
    if not path.exists():
        replace_file(path, partial(torch.save, train(emoji).state_dict()))
    classifier = EmojiClassifier(len(emoji.classes))
    classifier.load_state_dict(torch.load(path, weights_only=True))
    return classifier.eval()
