"""Between two latents: the shortest way on a sphere."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.samplers.base import check_count

__all__ = ["slerp"]


def slerp(a: Tensor, b: Tensor, points: int | Tensor) -> Tensor:
    """Spherical linear interpolation, ``sin((1 - w) theta) / sin(theta) a + sin(w theta) / sin(theta) b``.

    Theta is the angle between the two ends of a sample. Where both are draws of N(0, I) the points between them have
    the norm of such a draw, too, which those of a straight line have not.

    Args:
        a, b: the ends (B, ...), floating-point, every sample different from 0.
        points: n evenly spaced points with both ends, at least 2; or the weights w of b, (n,).

    Returns:
        (n, B, ...), in the dtype of a.

    Raises:
        TypeError, ValueError: an argument does not fit, or the ends of a sample are 0, not finite, or opposite to each
            other, so that there is no shortest way; the message names it.

    Source: Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985; of latents: Song et al., arXiv
    2010.02502, section 5.3.
    """
    op = "slerp"
    _checks.is_state(op, "a", a)
    _checks.matches(op, "b", b, a, of="a")
    w = _weights(op, points).to(a.device)
    first, last = (end.reshape(len(end), -1).to(torch.float64) for end in (a, b))
    lengths = torch.stack([first.norm(dim=1), last.norm(dim=1)])
    if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
        _checks.wrong_value(op, "a and b", "be finite, and different from 0 in every sample", "0, NaN or infinity")
    u, v = first / lengths[0, :, None], last / lengths[1, :, None]
    # unlike the inverse cosine, exact for small angles (Kahan)
    theta = 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))
    opposite = torch.pi - theta < 1e-6
    if bool(opposite.any()):
        which = f"sample {int(opposite.nonzero()[0])}"
        _checks.wrong_value(op, "a and b", "not be opposite to each other, which leaves no shortest way", which)
    w = w[:, None]
    of_a, of_b = ((share * theta).sin() / theta.sin() for share in (1 - w, w))
    same = theta == 0
    of_a, of_b = torch.where(same, 1 - w, of_a), torch.where(same, w, of_b)
    return (of_a[..., None] * first + of_b[..., None] * last).reshape(len(w), *a.shape).to(a.dtype)


def _weights(op: str, points: int | Tensor) -> Tensor:
    if not isinstance(points, Tensor):
        check_count(op, "points", points, 2)
        return torch.linspace(0, 1, points, dtype=torch.float64)
    if points.ndim != 1 or not points.is_floating_point():
        _checks.wrong_value(
            op, "points", "be a number, or floating-point weights (n,)", f"{points.dtype} {tuple(points.shape)}"
        )
    return points.to(torch.float64)
