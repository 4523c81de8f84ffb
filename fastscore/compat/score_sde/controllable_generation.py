"""The published inpainting and colorization: predictor-corrector sampling with the known part put in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.compat.score_sde.correctors import Corrector
from fastscore.compat.score_sde.predictors import Predictor
from fastscore.compat.score_sde.sampling import check_sde, pc_engine, with_model
from fastscore.compat.score_sde.score import Model
from fastscore.compat.score_sde.sde import SDE
from fastscore.noise import TorchNoise
from fastscore.ops import linear_step
from fastscore.samplers import Hook, PCSampler
from fastscore.samplers.hooks import Moment

__all__ = ["get_pc_colorizer", "get_pc_inpainter"]

# The published orthonormal basis of the colors, one vector a column, the first one gray, in its digits.
_BASIS = torch.tensor(
    [
        [5.7735014e-01, -8.1649649e-01, 4.7008697e-08],
        [5.7735026e-01, 4.0824834e-01, 7.0710671e-01],
        [5.7735026e-01, 4.0824822e-01, -7.0710683e-01],
    ]
)


def get_pc_inpainter(
    sde: SDE,
    predictor: type[Predictor] | str | None,
    corrector: type[Corrector] | str | None,
    inverse_scaler: Callable[[Tensor], Tensor],
    snr: float,
    n_steps: int = 1,
    probability_flow: bool = False,
    continuous: bool = False,
    denoise: bool = True,
    eps: float = 1e-5,
) -> Callable[[Model, Tensor, Tensor], Tensor]:
    """Inpainting by replacement of the known pixels, after the corrector and after the predictor of every time.

    Args:
        sde, predictor, corrector, inverse_scaler, snr, n_steps, probability_flow, continuous, eps: see
            `get_pc_sampler`; predictor and corrector must not both be none.
        denoise: the known pixels end without noise; the unknown ones keep that of the last step, as published.

    Returns:
        ``pc_inpainter(model, data, mask)``, which gives images like data: data (B, ...) floating-point on the scale of
        the network, mask of a shape that broadcasts to that of data, 1 where a pixel is known and 0 elsewhere.

    Raises:
        ValueError, TypeError: for other arguments, here, or for another network, data or mask, there.
        NotImplementedError: for `AncestralSamplingPredictor` with sub-VP.
    """
    owner = "get_pc_inpainter"
    check_sde(owner, sde, inverse_scaler)
    prepared = pc_engine(owner, sde, predictor, corrector, snr, n_steps, probability_flow, continuous, False, eps)
    times = _Times(owner, sde, prepared)

    def pc_inpainter(model: Model, data: Tensor, mask: Tensor) -> Tensor:
        sampler = with_model(owner, prepared, model)
        _checks.is_state(owner, "data", data)
        if not isinstance(mask, Tensor):
            _checks.wrong_type(owner, "mask", "be a tensor", type(mask).__name__)
        _checks.same_device(owner, "mask", mask, data, "data")
        try:
            weight = mask.to(data.dtype).expand(data.shape)
        except RuntimeError:
            _checks.wrong_value(
                owner, "mask", f"broadcast to the shape of data, {tuple(data.shape)}", tuple(mask.shape)
            )
        hook = _Pixels(times, data, denoise, weight)
        x = torch.lerp(sde.prior_sampling(data.shape).to(data), data, weight)
        return inverse_scaler(cast(Tensor, sampler.sample(x, noise=TorchNoise(), hooks=[hook])))

    return pc_inpainter


def get_pc_colorizer(
    sde: SDE,
    predictor: type[Predictor] | str | None,
    corrector: type[Corrector] | str | None,
    inverse_scaler: Callable[[Tensor], Tensor],
    snr: float,
    n_steps: int = 1,
    probability_flow: bool = False,
    continuous: bool = False,
    denoise: bool = True,
    eps: float = 1e-5,
) -> Callable[[Model, Tensor], Tensor]:
    """Colorization, which is `get_pc_inpainter` of the gray coordinate in an orthonormal basis of the colors.

    Returns:
        ``pc_colorizer(model, gray_scale_img)``, which gives images like its argument: (B, 3, H, W) floating-point on
        the scale of the network, of which the gray coordinate counts.

    Raises:
        ValueError, TypeError: for other arguments, here, or for another network or image, there.
        NotImplementedError: for `AncestralSamplingPredictor` with sub-VP.
    """
    owner = "get_pc_colorizer"
    check_sde(owner, sde, inverse_scaler)
    prepared = pc_engine(owner, sde, predictor, corrector, snr, n_steps, probability_flow, continuous, False, eps)
    times = _Times(owner, sde, prepared)

    def pc_colorizer(model: Model, gray_scale_img: Tensor) -> Tensor:
        sampler = with_model(owner, prepared, model)
        _checks.is_state(owner, "gray_scale_img", gray_scale_img)
        if gray_scale_img.ndim != 4 or gray_scale_img.shape[1] != 3:
            shape = tuple(gray_scale_img.shape)
            _checks.wrong_value(owner, "gray_scale_img", "have shape (B, 3, H, W)", shape)
        hook = _Gray(times, gray_scale_img, denoise)
        x = sde.prior_sampling(gray_scale_img.shape).to(gray_scale_img)
        x[:, 0] = 0  # the red channel, where the gray coordinate is meant, as published
        x = (x + hook.lift * hook.known).contiguous(memory_format=torch.channels_last)
        x = cast(Tensor, sampler.sample(x, noise=_ChannelsLast(), hooks=[hook]))
        return inverse_scaler(x.contiguous())

    return pc_colorizer


class _ChannelsLast(TorchNoise):
    """Noise drawn in the memory format that the published change of basis leaves, on which its order depends."""

    def normal(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        draw: int = 0,
    ) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=device, memory_format=torch.channels_last).normal_()


class _Times:
    """The rows of a sampler by the times they belong to, and the marginals at these times.

    Attributes:
        corrections: rows before the predictor's.
        rows: in all.
        marginals: alpha and the published standard deviation, float32 (N, 2).
    """

    def __init__(self, owner: str, sde: SDE, prepared: PCSampler) -> None:
        self.corrections = 0 if prepared.corrector == "none" else prepared.corrector_steps
        self.rows = self.corrections + (prepared.predictor != "none")
        if not self.rows:
            raise ValueError(f"{owner}: predictor and corrector must not both be none, got no step to take")
        t = torch.linspace(1, prepared.eps, sde.N)
        self.marginals = torch.stack(sde.marginal_prob(torch.ones(sde.N), t), 1)


class _Published(Hook, ABC):
    """Puts the known part in where the published code does, noised to the time of the step before.

    Args:
        times: of the sampler.
        known: the known part, shaped like `part` of a state.
        denoise: the known part ends without noise.
    """

    def __init__(self, times: _Times, known: Tensor, denoise: bool) -> None:
        self.times, self.known, self.denoise = times, known, denoise
        rows = times.marginals.to(known.device, _checks.accumulation_dtype(known.dtype))
        self._rows = rows.unbind(0)

    @abstractmethod
    def part(self, z: Tensor) -> Tensor:
        """The noise of the known part, of that of a state."""

    @abstractmethod
    def put(self, x: Tensor, known: Tensor) -> Tensor:
        """The state with this known part."""

    def before_step(self, x: Tensor, moment: Moment) -> Tensor | None:
        return None if self.times.corrections else self._noised(x, moment)

    def after_step(self, x: Tensor, moment: Moment) -> Tensor:
        row = moment.index % self.times.rows
        for last in (self.times.corrections - 1, self.times.rows - 1):  # the same one where there is no predictor
            if row == last:
                x = self._noised(x, moment)
        return x

    def at_end(self, samples: Tensor) -> Tensor:
        return self.put(samples, linear_step(self.known, (), self._rows[-1])) if self.denoise else samples

    def _noised(self, x: Tensor, moment: Moment) -> Tensor:
        row = self._rows[moment.index // self.times.rows]
        return self.put(x, linear_step(self.known, (), row, noise=self.part(moment.normal(x))))


class _Pixels(_Published):
    """Known pixels; weight (B, ...): 1 where a pixel is known."""

    def __init__(self, times: _Times, known: Tensor, denoise: bool, weight: Tensor) -> None:
        super().__init__(times, known, denoise)
        self.weight = weight

    def part(self, z: Tensor) -> Tensor:
        return z

    def put(self, x: Tensor, known: Tensor) -> Tensor:
        return torch.lerp(x, known, self.weight)


class _Gray(_Published):
    """The gray coordinate, of images (B, 3, H, W), is known."""

    def __init__(self, times: _Times, image: Tensor, denoise: bool) -> None:
        basis = _BASIS.to(image.device, _checks.accumulation_dtype(image.dtype))
        self.gray = basis[:, 0].reshape(3, 1, 1)
        self.lift = torch.linalg.inv(basis)[0].reshape(3, 1, 1)
        super().__init__(times, self._coordinate(image).to(image.dtype), denoise)

    def part(self, z: Tensor) -> Tensor:
        return z[:, :1]

    def put(self, x: Tensor, known: Tensor) -> Tensor:
        return (x + self.lift * (known - self._coordinate(x))).to(x.dtype)

    def _coordinate(self, x: Tensor) -> Tensor:
        return (self.gray * x).sum(1, keepdim=True)
