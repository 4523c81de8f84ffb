"""GroupNorm with embedding inputs and SiLU."""

from ._group_norm_silu_fwd import group_norm_silu_fwd

__all__ = ["group_norm_silu_fwd"]
