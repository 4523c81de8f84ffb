"""SDEdit: samples that keep the coarse features of a given image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastscore import _checks
from fastscore.noise import Noise, as_noise
from fastscore.samplers.base import SampleInfo, Sampler

__all__ = ["sdedit"]


def sdedit(
    sampler: Sampler, images: Tensor, *, seed: int = 0, noise: Noise | None = None, **options: Any
) -> Tensor | tuple[Tensor, SampleInfo]:
    """Samples from images that are noised to the time where the sampler begins.

    The later that time, the more of an image is made anew: a sampler for ``sde.until(0.5)`` begins at t = 0.5, with all
    its steps between there and the end.

    Args:
        sampler: any sampler, commonly made for ``sde.until(t)``.
        images: (B, ...), floating-point, on the scale of the data: photographs, sketches, strokes of color.
        seed: names the noise, draw 0 for the images and the others for the steps.
        noise: where it comes from, in place of seed.
        options: of `Sampler.sample`, such as ``hooks``, ``progress`` or ``return_info``. With
            `fastscore.control.Inpainting` a part of the image stays as it is.

    Returns:
        Samples like images; with ``return_info`` a pair.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
        NonFiniteError: see `Sampler.sample`.

    Source: Meng et al., arXiv 2108.01073, section 3 and algorithms 1 and 2.
    """
    if not isinstance(sampler, Sampler):
        _checks.wrong_type("sdedit", "sampler", "be a fastscore Sampler", type(sampler).__name__)
    _checks.is_state("sdedit", "images", images)
    source = as_noise(seed, noise)
    wide = _checks.accumulation_dtype(images.dtype)
    alpha, sigma = sampler.sde.marginal(sampler.start)
    start = alpha * images.to(wide) + sigma * source.normal(images.shape, dtype=wide, device=images.device, draw=0)
    return sampler.sample(start.to(images.dtype), noise=source, **options)
