"""Training score networks: losses, weight averages, the trainer."""

from fastscore.training.config import CONFIGS, TrainingConfig
from fastscore.training.ema import EMA
from fastscore.training.losses import denoising_loss, draw_times
from fastscore.training.trainer import Trainer

__all__ = ["CONFIGS", "EMA", "Trainer", "TrainingConfig", "denoising_loss", "draw_times"]
