"""GroupNorm with embedding inputs and SiLU: add before the norm, weight, bias, scale and shift after it.

A group that fits into the registers of one program is read once. A larger one is split over many programs, so that a
single large image fills the GPU as well: partial statistics of chunks first, then every program combines those of its
groups and writes its chunk. Memory traffic, in sizes of x (parameters, statistics and partial sums are a few percent):

           one pass                        split
    fwd    2: x, y                         3: x twice, y
    bwd    3: x, grad_y, grad_x            5: x and grad_y twice, grad_x
    jvp    3: x, x_t, y_t (2 without x_t)  5: x and x_t twice, y_t (2 where z_t is 0)

What is read for the second time is read in reverse order: what the first pass read last may still be in the L2 cache.
"""

from ._group_norm_silu_bwd import group_norm_silu_bwd
from ._group_norm_silu_fwd import group_norm_silu_fwd
from ._group_norm_silu_jvp import group_norm_silu_jvp

__all__ = ["group_norm_silu_bwd", "group_norm_silu_fwd", "group_norm_silu_jvp"]
