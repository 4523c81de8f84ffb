"""Training score networks and classifiers of noisy images: losses, weight averages, the trainer."""

from fastscore.training.classifier import ClassifierTrainer, classification_loss
from fastscore.training.config import CONFIGS, TrainingConfig
from fastscore.training.ema import EMA
from fastscore.training.losses import denoising_loss, draw_times
from fastscore.training.trainer import Trainer

__all__ = [
    "CONFIGS",
    "EMA",
    "ClassifierTrainer",
    "Trainer",
    "TrainingConfig",
    "classification_loss",
    "denoising_loss",
    "draw_times",
]
