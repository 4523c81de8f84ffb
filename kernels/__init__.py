"""Triton kernels, one file per op; installed as `fastscore.kernels`. Code here must not register anything at import."""
