"""The architectures, and networks made from a name or from options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastscore.models import zoo
from fastscore.models.adm import ADM
from fastscore.models.base import NetworkConfig, ScoreNetwork
from fastscore.models.classifier import Classifier
from fastscore.models.ddim import DDIMUNet
from fastscore.models.mlp import MLP
from fastscore.models.ncsn import NCSN
from fastscore.models.ncsnpp import NCSNpp
from fastscore.models.ncsnv2 import NCSNv2

_NETWORKS: tuple[type[ScoreNetwork], ...] = (NCSNpp, DDIMUNet, ADM, NCSN, NCSNv2, MLP, Classifier)
ARCHITECTURES = {network.config_type.architecture: network for network in _NETWORKS}


def config_from_dict(values: Mapping[str, Any]) -> NetworkConfig:
    """The options of a network from a parsed JSON object with "architecture"; without it, they are those of "ncsnpp".

    Raises:
        ValueError: an architecture that is not in `ARCHITECTURES`, or what the config of that architecture refuses.
    """
    architecture = values.get("architecture", "ncsnpp")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    return ARCHITECTURES[architecture].config_type.from_dict(values)


def create(config: str | NetworkConfig | Mapping[str, Any]) -> ScoreNetwork:
    """An untrained network.

    Args:
        config: a published configuration by name (`fastscore.models.configs()` lists them), which also sets `.sde` and
            `.convention`; or the options of a network, an `NCSNppConfig` or its like, or a mapping of its fields with
            the key "architecture" ("ncsnpp" if absent), as `to_dict` gives it.

    Raises:
        ValueError: an unknown name, architecture or option, or a value that is not accepted.
        TypeError: config is none of these.
    """
    published = zoo.describe(config) if isinstance(config, str) else None
    if published is not None:
        config = published.config
    elif isinstance(config, Mapping):
        config = config_from_dict(config)
    if not isinstance(config, NetworkConfig):
        raise TypeError(f"config must be a name, a NetworkConfig or a mapping, got {type(config).__name__}")
    network = ARCHITECTURES[config.architecture](config)
    if published is not None:
        network.sde, network.convention = published.make_sde(), published.convention
    return network
