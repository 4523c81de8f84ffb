"""Source-checkout alias of the top-level kernels/ folder; wheels map that folder here and leave this file out."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "kernels")]
