"""Where in one piece of memory every intermediate tensor lies: two share a place where they do not live together."""

from __future__ import annotations

from collections.abc import Sequence

from fastscore.engine.values import Call, Root

_LINE = 64


def lifetimes(calls: Sequence[Call], results: Sequence[Root], kept: set[Root]) -> dict[Root, tuple[int, int]]:
    """Planned root -> the first and the last call that touches it; results and what is kept live to the end."""
    lives: dict[Root, tuple[int, int]] = {}
    for at, call in enumerate(calls):
        for ref in call.refs():
            if ref.root.planned:
                lives[ref.root] = (lives.get(ref.root, (at, at))[0], at)
    for root in results:
        if root.planned:
            lives[root] = (lives.get(root, (0, 0))[0], len(calls))
    return {root: (0, len(calls)) if root in kept else life for root, life in lives.items()}


def places(lives: dict[Root, tuple[int, int]]) -> tuple[dict[Root, int], int]:
    """Offsets in bytes, and the size of it all: largest first, each at the lowest place that is free while it lives."""
    found: dict[Root, int] = {}
    total = 0
    for root in sorted(lives, key=_bytes, reverse=True):
        first, last = lives[root]
        taken = sorted(
            (offset, offset + _bytes(other))
            for other, offset in found.items()
            if lives[other][0] <= last and first <= lives[other][1]
        )
        at = 0
        for begin, end in taken:
            if at + _bytes(root) <= begin:
                break
            at = max(at, end)
        found[root] = at
        total = max(total, at + _bytes(root))
    return found, total


def _bytes(root: Root) -> int:
    return -(-root.elements * root.dtype.itemsize // _LINE) * _LINE
