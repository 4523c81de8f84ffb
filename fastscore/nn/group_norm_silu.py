"""GroupNorm with embedding inputs and SiLU as a module."""

from __future__ import annotations

from torch import Tensor, nn

from fastscore.ops.group_norm_silu import group_norm_silu


class GroupNormSiLU(nn.GroupNorm):
    """`torch.nn.GroupNorm`, the time embedding before or after it, and SiLU, by `fastscore.ops.group_norm_silu`.

    The constructor takes what `torch.nn.GroupNorm` takes, and `silu`; the state dict is that of `torch.nn.GroupNorm`
    (`weight`, `bias`), so the weights of a norm followed by an activation load as they are.

    Args:
        num_groups: a divisor of num_channels.
        num_channels: C.
        eps: added to the variance.
        affine: whether there are weight and bias, (C,) each.
        bias: False leaves the bias out.
        silu: False leaves the activation out.

    Shapes: x (N, C, *spatial); add, scale, shift (N, C) -> (N, C, *spatial).
    Errors: those of `fastscore.ops.group_norm_silu`, when it is called.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: object = None,
        dtype: object = None,
        *,
        bias: bool = True,
        silu: bool = True,
    ):
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        if not bias:
            self.register_parameter("bias", None)
        self.silu = silu

    def forward(
        self, x: Tensor, add: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """silu(GroupNorm(x + add) * (1 + scale) + shift)."""
        return group_norm_silu(
            x,
            self.num_groups,
            self.weight,
            self.bias,
            add=add,
            scale=scale,
            shift=shift,
            eps=self.eps,
            silu=self.silu,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, silu={self.silu}"
