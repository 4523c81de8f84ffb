"""The variational bound of a discrete-time diffusion model on the code length of quantized data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fastscore import _checks
from fastscore.likelihood.bits import check_levels, level_range
from fastscore.likelihood.chain import VARIANCES, chain_steps, normal_divergence, prior_divergence
from fastscore.likelihood.decoder import discretized_log_prob
from fastscore.noise import Noise, as_noise
from fastscore.samplers.base import check_choice, check_number, evaluating
from fastscore.samplers.loop import NonFiniteError, fitting, with_progress
from fastscore.samplers.timesteps import level_path
from fastscore.schedule import DiscreteVPSDE
from fastscore.score import Convention, convention_of
from fastscore.sde import SDE

__all__ = ["VariationalBound", "variational_bound"]

_OWNER = "variational_bound"


@dataclass(frozen=True)
class VariationalBound:
    """An upper bound of -log2 P(levels) / D for every sample of a batch, and its parts; float64.

    Columns of (B, T) belong to the T network calls, from the most noise down. One draw of noise stands for each
    expectation.

    Attributes:
        bits_per_dim: the bound, ``prior`` and all ``terms``, (B,).
        prior: L_T in bits per dimension, (B,).
        terms: L_{t-1} in bits per dimension, the last one L_0, (B, T).
        xstart_mse: mean squared error of the clean image that the network predicts, on the scale of the data, (B, T).
        mse: that of the noise which belongs to this clean image, (B, T).
        rate: bits per dimension that a receiver needs to have the state which the network sees, (B, T).
        distortion: root mean squared error of the clean image predicted from it, in levels, (B, T). With
            ``bits_per_dim`` the receiver has the data itself.
        t: times of the network calls, on the host, (T,).
    """

    bits_per_dim: Tensor
    prior: Tensor
    terms: Tensor
    xstart_mse: Tensor
    mse: Tensor
    rate: Tensor
    distortion: Tensor
    t: Tensor


@torch.no_grad()
def variational_bound(
    sde: SDE,
    model: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    *,
    data_range: Sequence[float],
    bits: int = 8,
    variance: str = "fixed_small",
    steps: int | None = None,
    spacing: str | Tensor | None = None,
    offset: int = 0,
    clip: float | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    noise: Noise | None = None,
    eps: float | None = None,
    convention: Convention | None = None,
    progress: bool = False,
) -> VariationalBound:
    """Computes the bound on the code length of quantized data under the chain that `DDPMSampler` samples from.

    ``L_T + sum L_{t-1} + L_0``: the KL divergence of the prior, and of each step of the chain, from what the forward
    process leaves, and the code length of the data under the last step, a normal density integrated over the intervals
    of the levels. The network is called once per step. The variance of the last step is that of the posterior a step
    before, and so is the lower end of its range if it is learned, as published.

    Args:
        sde: the forward SDE; a `DiscreteVPSDE` has the levels that its network was trained on.
        model: called as ``model(x, labels)``, as for a `Sampler`.
        x0: the levels (B, ...), integers in [0, 2^bits); or data at levels, floating-point.
        data_range: (low, high), what the levels 0 and 2^bits - 1 stand for; published: (-1, 1). (In `bits_per_dim` high
            is the level 2^bits.)
        bits: depth of the data, 1 to 16.
        variance: of a step, ``"fixed_small"``, ``"fixed_large"`` or ``"learned_range"``, see `DDPMSampler`.
        steps, spacing, offset: the levels or times of the chain, two at least, see `DDPMSampler`.
        clip: the clean image that the network predicts is clipped to [-clip, clip]; None: it is not.
        dtype: of what the network sees, where x0 are levels.
        seed: names the noise. Column k has draw k + 1; that of a sample is the same in every batch.
        noise: where the noise comes from, in place of seed.
        eps: the last time of a grid of times; by default the SDE's published one. Where the last two times are close,
            noise at eps that is not below the width of a level is dear: the last step is taken to be narrow, too.
        convention: how to read the model; by default ``model.convention``, or what was published with the SDE.
        progress: show a progress bar.

    Returns:
        A `VariationalBound`. Not differentiable.

    Raises:
        ValueError, TypeError: an argument does not fit, or the model's output; the message names it.
        NonFiniteError: the model's output is not finite.

    Source: Ho et al., arXiv 2006.11239, eq. 5; rate and distortion: section 4.3; learned variances: Nichol and
    Dhariwal, arXiv 2102.09672, eq. 15.
    """
    low, high = level_range(_OWNER, data_range, bits)
    levels, clean, dtype = _quantized(x0, low, high, bits, dtype)
    check_choice(_OWNER, "variance", variance, VARIANCES)
    if not isinstance(sde, SDE):
        _checks.wrong_type(_OWNER, "sde", "be a fastscore SDE", type(sde).__name__)
    sde.check_prior(_OWNER)
    if not callable(model):
        _checks.wrong_type(_OWNER, "model", "be callable as model(x, labels)", type(model).__name__)
    if convention is not None and not isinstance(convention, Convention):
        _checks.wrong_type(_OWNER, "convention", "be a fastscore.Convention", type(convention).__name__)
    if clip is not None:
        check_number(_OWNER, "clip", clip, above=0.0)
    eps = sde.sampling_eps if eps is None else eps
    check_number(_OWNER, "eps", eps, above=0.0, below=sde.T)
    read, source = convention or convention_of(model, sde), as_noise(seed, noise)
    every = sde.num_timesteps if isinstance(sde, DiscreteVPSDE) else 1000
    path = level_path(_OWNER, sde, read, spacing, steps, default_steps=every, offset=offset, end=eps, clean=True)
    if len(path) < 3:
        _checks.wrong_value(_OWNER, "steps", "be at least 2: the last step has the variance of the one before", 1)

    t = torch.tensor([node.t for node in path[:-1]], dtype=torch.float64)
    chain = chain_steps(sde, read, path, variance, levels.device)
    wide = _checks.accumulation_dtype(dtype)
    labels = read.labels(sde, t).to(levels.device)[:, None].expand(-1, len(levels)).contiguous()
    labels = labels.to(wide) if labels.is_floating_point() else labels
    calls = [_Call(node.t, 0.0 if variance == "learned_range" else None) for node in path[:-1]]
    rows = list(zip(chain, labels, calls, strict=True))
    terms, errors = [], []
    with evaluating(model):
        for k, (step, label, call) in enumerate(with_progress(rows) if progress else rows):
            z = source.normal(levels.shape, dtype=wide, device=levels.device, draw=k + 1)
            x = (step.alpha * clean + step.sigma * z).to(dtype)
            fed = (x * step.scale).to(dtype) if read.prediction == "edm" else x
            h, v = fitting(model(fed, label), x, call), None
            if variance == "learned_range":
                h, v = h.chunk(2, 1)
            guess = step.p * x.double() + step.q * h.double()
            guess = guess if clip is None else guess.clamp(-clip, clip)
            log_variance = step.model_log_variance(v)
            if call is calls[-1]:
                nats = -discretized_log_prob(levels, guess, 0.5 * log_variance, low, high, bits)
            else:
                nats = normal_divergence(step, log_variance, clean - guess)
            terms.append(_mean(nats) / math.log(2))
            errors.append(_mean((clean - guess).square()))
    prior = _mean(prior_divergence(sde, path[0], clean)) / math.log(2)
    return _result(prior, torch.stack(terms, 1), torch.stack(errors, 1), t, sde, (2**bits - 1) / (high - low))


@dataclass(frozen=True)
class _Call:
    """Where the network was called, for messages."""

    t: float
    exponent: float | None

    @property
    def place(self) -> str:
        return f"{_OWNER}, t = {self.t:.6g}"


def _quantized(
    x0: Tensor, low: float, high: float, bits: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Levels int64, what they stand for in float64, and the dtype that the network gets."""
    per_unit = (2**bits - 1) / (high - low)
    if isinstance(x0, Tensor) and x0.is_floating_point():
        _checks.is_state(_OWNER, "x0", x0)
        places = (x0.double() - low) * per_unit
        levels, dtype = places.nan_to_num(nan=-1.0).round().to(torch.int64), x0.dtype
        off = ~((places - levels).abs() <= 0.05) | (levels < 0) | (levels >= 2**bits)  # float16 rounds 8 bits by 0.03
        if bool(off.any()):
            accepted = f"lie at the {2**bits} levels from {low:g} to {high:g}, or be the levels, as integers"
            example = float(x0[off][0])
            _checks.wrong_value(_OWNER, "x0", accepted, f"{example:g} and others, {int(off.sum())} in all")
    else:
        check_levels(_OWNER, "x0", x0, bits)
        if dtype not in _checks.FLOATING:
            _checks.wrong_type(_OWNER, "dtype", "be float32, float64, bfloat16 or float16", dtype)
        levels = x0.to(torch.int64)
    return levels, low + levels.double() / per_unit, dtype


def _mean(values: Tensor) -> Tensor:
    """Over the elements of a sample (B, ...): (B,)."""
    return values.reshape(len(values), math.prod(values.shape[1:])).mean(1)


def _result(
    prior: Tensor, terms: Tensor, errors: Tensor, t: Tensor, sde: SDE, levels_per_unit: float
) -> VariationalBound:
    bad = ~torch.isfinite(terms)
    if not isinstance(terms, FakeTensor) and bool(bad.any()):
        at = float(t[int(bad.any(0).nonzero()[0])])
        raise NonFiniteError(f"{_OWNER}: the term of t = {at:.6g} is not finite: the network's output there is not")
    paid = prior[:, None] + terms.cumsum(1)
    return VariationalBound(
        bits_per_dim=paid[:, -1],
        prior=prior,
        terms=terms,
        xstart_mse=errors,
        mse=errors * sde.log_snr(t).exp().to(errors.device),
        rate=torch.cat([prior[:, None], paid[:, :-1]], 1),
        distortion=errors.sqrt() * levels_per_unit,
        t=t,
    )
