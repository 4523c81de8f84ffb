"""Attention on a GPU in flash form: no score leaves the registers, in value, in backward and in forward mode.

A program holds a block of queries (for the gradients of k and v: of keys) and walks over the blocks of the others.
Head dimensions that are no power of two are cut into pieces that are, so that little is multiplied with padding; where
the results of a block are too large for the registers, its columns are cut into slices, with a program each.
"""

from ._attention_bwd import attention_bwd
from ._attention_fwd import attention_fwd
from ._attention_jvp import attention_jvp

__all__ = ["attention_bwd", "attention_fwd", "attention_jvp"]
