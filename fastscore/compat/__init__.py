"""The signatures of other code bases on this engine: one module each, imported by itself, so that none is needed."""
