"""Published configurations by name: options, SDE and convention of the networks that papers trained."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any

from fastscore.models.adm import ADMConfig
from fastscore.models.base import NetworkConfig
from fastscore.models.ddim import DDIMConfig
from fastscore.models.ncsn import NCSNConfig
from fastscore.models.ncsnpp import NCSNppConfig
from fastscore.models.ncsnv2 import NCSNv2Config
from fastscore.models.schedules import make_sde
from fastscore.score import Convention
from fastscore.sde import SDE


@dataclass(frozen=True)
class Published:
    """A published configuration.

    Attributes:
        config: the options of the network.
        sde, sde_options: name and options of the SDE, for `make_sde`.
        convention: what the network predicts, and how it is told the time.
        source: the repository, and the name of the configuration there.
    """

    config: NetworkConfig
    sde: str
    sde_options: dict[str, Any] = field(repr=False)
    convention: Convention
    source: str

    def make_sde(self) -> SDE:
        """The SDE that the network was trained with."""
        return make_sde(self.sde, self.sde_options)


def configs() -> list[str]:
    """The names that `fastscore.models.create` knows."""
    return list(PUBLISHED)


def describe(name: str) -> Published:
    """A published configuration. Raises ValueError for an unknown name, and names those that are close."""
    if name not in PUBLISHED:
        close = difflib.get_close_matches(name, PUBLISHED, n=4, cutoff=0.5) or list(PUBLISHED)
        raise ValueError(f"there is no configuration {name!r}; close ones are {', '.join(close)}")
    return PUBLISHED[name]


def _score_sde(config: NCSNppConfig, sde: str, source: str, *, continuous: bool = True) -> Published:
    options: dict[str, Any]
    if sde == "VESDE":
        options = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max}
        convention = (
            Convention("score", "sigma") if continuous else Convention("score", "noise_index", config.num_scales)
        )
    else:
        options = {"beta_min": 0.1, "beta_max": 20.0}
        convention = Convention("noise", "scaled_time")
        if not continuous:
            convention = Convention("noise", "chain_index", config.num_scales)
    return Published(config, sde, options, convention, f"yang-song/score_sde_pytorch configs/{source}")


# Song et al. 2021, arXiv 2011.13456, appendix H; in [0, 1] for VE, in [-1, 1] for VP and sub-VP
_NCSNPP = NCSNppConfig()
_NCSNPP_VP = dataclasses.replace(_NCSNPP, embedding_type="positional", scale_by_sigma=False, centered=True)
_DDPMPP = dataclasses.replace(_NCSNPP_VP, fir=False, progressive_input="none")
_DDPM = dataclasses.replace(
    _DDPMPP, resblock_type="ddpm", num_res_blocks=2, fir=False, skip_rescale=False, num_groups=32
)
_DDPM_256 = dataclasses.replace(_DDPM, image_size=256, ch_mult=(1, 1, 2, 2, 4, 4), dropout=0.0, sigma_max=378.0)
_HIGH_RESOLUTION = dataclasses.replace(
    _NCSNPP,
    image_size=256,
    ch_mult=(1, 1, 2, 2, 2, 2, 2),
    num_res_blocks=2,
    dropout=0.0,
    progressive="output_skip",
    progressive_input="input_skip",
    sigma_max=378.0,
    num_scales=2000,
)
_MEGAPIXEL = dataclasses.replace(
    _HIGH_RESOLUTION, image_size=1024, nf=16, ch_mult=(1, 2, 4, 8, 16, 32, 32, 32), num_res_blocks=1, sigma_max=1348.0
)


def _sigma(config: NCSNppConfig, sigma_max: float) -> NCSNppConfig:
    return dataclasses.replace(config, sigma_max=sigma_max)


def _deep(config: NCSNppConfig) -> NCSNppConfig:
    return dataclasses.replace(config, num_res_blocks=8)


def _ddim(config: DDIMConfig, source: str) -> Published:
    """1000 linear betas from 1e-4 to 0.02; data in [-1, 1] (Ho et al. 2020, arXiv 2006.11239, section 4)."""
    options = {"schedule": "linear", "n": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    return Published(
        config, "DiscreteVPSDE", options, Convention("noise", "timestep"), f"ermongroup/ddim configs/{source}"
    )


_DDIM = DDIMConfig()
_DDIM_256 = dataclasses.replace(_DDIM, image_size=256, ch_mult=(1, 1, 2, 2, 4, 4), dropout=0.0)


def _adm(config: ADMConfig, weights: str, schedule: str = "linear") -> Published:
    """1000 levels, all of which are kept; data in [-1, 1]; `weights` is the name of the published file."""
    options = {"schedule": schedule, "n": 1000, "min_log_snr": None}
    source = f"openai/guided-diffusion README, {weights}.pt"
    return Published(config, "DiscreteVPSDE", options, Convention("noise", "timestep"), source)


def _attended(image_size: int) -> tuple[int, ...]:
    """Factors of downsampling to 32, 16 and 8 pixels."""
    return tuple(image_size // size for size in (32, 16, 8))


# Dhariwal and Nichol 2021, arXiv 2105.05233, table 11
_ADM_256 = ADMConfig(
    image_size=256,
    model_channels=256,
    channel_mult=(1, 1, 2, 2, 4, 4),
    num_res_blocks=2,
    attention_resolutions=_attended(256),
    num_head_channels=64,
    resblock_updown=True,
)
_ADM_LSUN = dataclasses.replace(_ADM_256, dropout=0.1)
_ADM_IMAGENET_256 = dataclasses.replace(_ADM_256, num_classes=1000)
_ADM_IMAGENET_64 = dataclasses.replace(
    _ADM_IMAGENET_256,
    image_size=64,
    model_channels=192,
    channel_mult=(1, 2, 3, 4),
    num_res_blocks=3,
    attention_resolutions=_attended(64),
    dropout=0.1,
    use_new_attention_order=True,
)
_ADM_IMAGENET_128 = dataclasses.replace(
    _ADM_IMAGENET_256,
    image_size=128,
    channel_mult=(1, 1, 2, 3, 4),
    attention_resolutions=_attended(128),
    num_heads=4,
    num_head_channels=None,
)
_ADM_IMAGENET_512 = dataclasses.replace(
    _ADM_IMAGENET_256,
    image_size=512,
    channel_mult=(0.5, 1, 1, 2, 2, 4, 4),
    attention_resolutions=_attended(512),
)


def _smld(config: NCSNConfig | NCSNv2Config, sigma_max: float, source: str) -> Published:
    """Noise levels from sigma_max down to 0.01, evenly spaced in log; data in [0, 1]."""
    options = {"sigma_min": 0.01, "sigma_max": sigma_max}
    return Published(
        config, "VESDE", options, Convention("score", "noise_index", config.num_scales), f"ermongroup/{source}"
    )


def _ncsnv2(image_size: int, depth: int, num_scales: int, sigma_max: float, source: str) -> Published:
    config = NCSNv2Config(image_size=image_size, depth=depth, num_scales=num_scales, sigma_max=sigma_max)
    return _smld(config, sigma_max, f"ncsnv2 configs/{source}.yml")


_NCSN = NCSNConfig()  # ten levels from 1 down (Song and Ermon 2019, arXiv 1907.05600, section 5)

PUBLISHED: dict[str, Published] = {
    "ncsnpp-cifar10": _score_sde(
        dataclasses.replace(_NCSNPP, embedding_type="positional"), "VESDE", "ve/cifar10_ncsnpp", continuous=False
    ),
    "ncsnpp-cifar10-continuous": _score_sde(_NCSNPP, "VESDE", "ve/cifar10_ncsnpp_continuous"),
    "ncsnpp-cifar10-deep": _score_sde(_deep(_NCSNPP), "VESDE", "ve/cifar10_ncsnpp_deep_continuous"),
    "ncsnpp-cifar10-vp": _score_sde(_NCSNPP_VP, "VPSDE", "vp/cifar10_ncsnpp", continuous=False),
    "ncsnpp-cifar10-vp-continuous": _score_sde(_NCSNPP_VP, "VPSDE", "vp/cifar10_ncsnpp_continuous"),
    "ncsnpp-cifar10-vp-deep": _score_sde(_deep(_NCSNPP_VP), "VPSDE", "vp/cifar10_ncsnpp_deep_continuous"),
    "ncsnpp-cifar10-subvp-continuous": _score_sde(_NCSNPP_VP, "SubVPSDE", "subvp/cifar10_ncsnpp_continuous"),
    "ncsnpp-cifar10-subvp-deep": _score_sde(_deep(_NCSNPP_VP), "SubVPSDE", "subvp/cifar10_ncsnpp_deep_continuous"),
    "ddpmpp-cifar10": _score_sde(_DDPMPP, "VPSDE", "vp/cifar10_ddpmpp", continuous=False),
    "ddpmpp-cifar10-continuous": _score_sde(_DDPMPP, "VPSDE", "vp/cifar10_ddpmpp_continuous"),
    "ddpmpp-cifar10-deep": _score_sde(_deep(_DDPMPP), "VPSDE", "vp/cifar10_ddpmpp_deep_continuous"),
    "ddpmpp-cifar10-subvp-continuous": _score_sde(_DDPMPP, "SubVPSDE", "subvp/cifar10_ddpmpp_continuous"),
    "ddpmpp-cifar10-subvp-deep": _score_sde(_deep(_DDPMPP), "SubVPSDE", "subvp/cifar10_ddpmpp_deep_continuous"),
    "ddpm-cifar10": _score_sde(_DDPM, "VPSDE", "vp/ddpm/cifar10", continuous=False),
    "ddpm-cifar10-continuous": _score_sde(_DDPM, "VPSDE", "vp/ddpm/cifar10_continuous"),
    "ddpm-cifar10-subvp-continuous": _score_sde(_DDPM, "SubVPSDE", "subvp/cifar10_ddpm_continuous"),
    "ddpm-cifar10-ve": _score_sde(
        dataclasses.replace(_DDPM, scale_by_sigma=True, centered=False), "VESDE", "ve/cifar10_ddpm", continuous=False
    ),
    "ddpm-bedroom-256": _score_sde(_DDPM_256, "VPSDE", "vp/ddpm/bedroom", continuous=False),
    "ddpm-church-256": _score_sde(_DDPM_256, "VPSDE", "vp/ddpm/church", continuous=False),
    "ddpm-celebahq-256": _score_sde(_DDPM_256, "VPSDE", "vp/ddpm/celebahq", continuous=False),
    "ncsnpp-celeba-64": _score_sde(
        dataclasses.replace(_NCSNPP, image_size=64, embedding_type="positional", sigma_max=90.0),
        "VESDE",
        "ve/celeba_ncsnpp",
        continuous=False,
    ),
    "ncsnpp-bedroom-256": _score_sde(_HIGH_RESOLUTION, "VESDE", "ve/bedroom_ncsnpp_continuous"),
    "ncsnpp-church-256": _score_sde(_sigma(_HIGH_RESOLUTION, 380.0), "VESDE", "ve/church_ncsnpp_continuous"),
    "ncsnpp-celebahq-256": _score_sde(_sigma(_HIGH_RESOLUTION, 348.0), "VESDE", "ve/celebahq_256_ncsnpp_continuous"),
    "ncsnpp-ffhq-256": _score_sde(_sigma(_HIGH_RESOLUTION, 348.0), "VESDE", "ve/ffhq_256_ncsnpp_continuous"),
    "ncsnpp-celebahq-1024": _score_sde(_MEGAPIXEL, "VESDE", "ve/celebahq_ncsnpp_continuous"),
    "ncsnpp-ffhq-1024": _score_sde(_MEGAPIXEL, "VESDE", "ve/ffhq_ncsnpp_continuous"),
    "ddim-cifar10": _ddim(_DDIM, "cifar10.yml"),
    "ddim-celeba-64": _ddim(dataclasses.replace(_DDIM, image_size=64, ch_mult=(1, 2, 2, 2, 4)), "celeba.yml"),
    "ddim-bedroom-256": _ddim(_DDIM_256, "bedroom.yml"),
    "ddim-church-256": _ddim(_DDIM_256, "church.yml"),
    "adm-imagenet-64": _adm(_ADM_IMAGENET_64, "64x64_diffusion", "cosine"),
    "adm-imagenet-128": _adm(_ADM_IMAGENET_128, "128x128_diffusion"),
    "adm-imagenet-256": _adm(_ADM_IMAGENET_256, "256x256_diffusion"),
    "adm-imagenet-256-uncond": _adm(_ADM_256, "256x256_diffusion_uncond"),
    "adm-imagenet-512": _adm(_ADM_IMAGENET_512, "512x512_diffusion"),
    "adm-bedroom-256": _adm(_ADM_LSUN, "lsun_bedroom"),
    "adm-cat-256": _adm(_ADM_LSUN, "lsun_cat"),
    "adm-horse-256": _adm(_ADM_LSUN, "lsun_horse"),
    "ncsn-mnist": _smld(
        dataclasses.replace(_NCSN, image_size=28, num_channels=1, nf=64), 1.0, "ncsn configs/anneal.yml"
    ),
    "ncsn-cifar10": _smld(_NCSN, 1.0, "ncsn configs/anneal.yml"),
    "ncsn-celeba-32": _smld(_NCSN, 1.0, "ncsn configs/anneal.yml"),
    "ncsnv2-cifar10": _ncsnv2(32, 4, 232, 50.0, "cifar10"),
    "ncsnv2-celeba-64": _ncsnv2(64, 4, 500, 90.0, "celeba"),
    "ncsnv2-deeper-church-64": _ncsnv2(64, 5, 788, 140.0, "church"),
    "ncsnv2-deeper-bedroom-128": _ncsnv2(128, 5, 1086, 190.0, "bedroom"),
    "ncsnv2-deeper-tower-128": _ncsnv2(128, 5, 1086, 190.0, "tower"),
    "ncsnv2-deepest-ffhq-256": _ncsnv2(256, 6, 2311, 348.0, "ffhq"),
}
