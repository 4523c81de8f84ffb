"""A residual multilayer perceptron for data of low dimension, with the time embeddings of NCSN++ and DDPM++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.models.base import NetworkConfig, ScoreNetwork
from fastscore.nn.layers import dense
from fastscore.nn.time_embedding import GaussianFourierProjection, positional_embedding


@dataclass(frozen=True)
class MLPConfig(NetworkConfig):
    """Everything that shapes the network.

    dim: of the data, (B, dim).
    nf, num_layers: width of the hidden layers, and number of residual blocks.
    embedding_type: "positional" (labels are 999 t or an index) or "fourier" (labels are sigma; its width in
        `fourier_scale`).
    scale_by_sigma: divide the output by sigma, the label, for a network that returns the score; only with "fourier".
    """

    architecture: ClassVar[str] = "mlp"

    dim: int = 2
    nf: int = 128
    num_layers: int = 3
    embedding_type: str = "positional"
    fourier_scale: float = 1.0
    scale_by_sigma: bool = False

    def __post_init__(self) -> None:
        self._check_integers("dim", "num_layers")
        self._check_integers("nf", least=2)
        self._check_choices({"embedding_type": ("fourier", "positional")})
        if self.scale_by_sigma and self.embedding_type != "fourier":
            raise ValueError("scale_by_sigma must be False unless embedding_type is 'fourier', whose labels are sigma")


class ResidualLayer(nn.Module):
    """Two dense layers with the time between them: (B, nf), (B, nf) -> (B, nf)."""

    def __init__(self, width: int):
        super().__init__()
        self.dense_0, self.time, self.dense_1 = dense(width, width), dense(width, width), dense(width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """`embedding` is the activated time embedding, SiLU(e)."""
        return h + self.dense_1(F.silu(self.dense_0(F.silu(h)) + self.time(embedding)))


class MLP(ScoreNetwork):
    """(B, dim) data and (B,) time labels -> (B, dim), in the dtype of the data."""

    config_type = MLPConfig
    config: MLPConfig

    def __init__(self, config: MLPConfig):
        super().__init__()
        self.config = c = config
        features = c.nf
        if c.embedding_type == "fourier":
            self.fourier = GaussianFourierProjection(c.nf, c.fourier_scale)
            features = 2 * c.nf
        self.time_0, self.time_1 = dense(features, c.nf), dense(c.nf, c.nf)
        self.input = dense(c.dim, c.nf)
        self.layers = nn.ModuleList(ResidualLayer(c.nf) for _ in range(c.num_layers))
        self.output = dense(c.nf, c.dim)

    @property
    def shape(self) -> tuple[int]:
        """(dim,)."""
        return (self.config.dim,)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self._check_input(x, labels)
        if self.config.embedding_type == "fourier":
            features = self.fourier(labels.double().log())
        else:
            features = positional_embedding(labels, self.config.nf, x.dtype)
        embedding = F.silu(self.time_1(F.silu(self.time_0(features.to(x.dtype)))))
        h = self.input(x)
        for layer in self.layers:
            h = layer(h, embedding)
        out: Tensor = self.output(F.silu(h))
        return out / labels.to(x.dtype)[:, None] if self.config.scale_by_sigma else out
