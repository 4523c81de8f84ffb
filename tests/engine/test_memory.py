"""Places in the arena: tensors that live together do not overlap, and the arena is smaller than all of them."""

import random

import torch

from fastscore.engine.memory import lifetimes, places
from fastscore.engine.values import Call, Ref, Root


def test_places_do_not_overlap():
    chance = random.Random(0)
    for _ in range(50):
        lives = {}
        for _ in range(40):
            first = chance.randrange(60)
            lives[Root(torch.float32, chance.randrange(1, 500))] = first, min(60, first + chance.randrange(8))
        found, total = places(lives)
        ends = {root: offset + root.elements * 4 for root, offset in found.items()}
        assert max(ends.values()) <= total
        assert total < sum(root.elements * 4 for root in lives)
        for a, b in ((a, b) for a in lives for b in lives if a is not b):
            apart = lives[a][1] < lives[b][0] or lives[b][1] < lives[a][0]
            assert apart or ends[a] <= found[b] or ends[b] <= found[a]
        assert all(offset % 64 == 0 for offset in found.values())


def test_lifetimes():
    a, b, c, held = (Root(torch.float32, 4) for _ in range(4))
    held.get = lambda: torch.zeros(4)
    ref = {root: Ref(root, torch.empty(4, device="meta")) for root in (a, b, c, held)}
    calls = [
        Call(print, (ref[held], ref[a]), writes=(ref[a],)),
        Call(print, ([ref[a]],), {"out": ref[b]}, writes=(ref[b],)),
        Call(print, (ref[b],), {"out": ref[c]}, writes=(ref[c],)),
    ]
    assert lifetimes(calls, [a], set()) == {a: (0, 3), b: (1, 2), c: (2, 2)}
    assert lifetimes(calls, [], {b}) == {a: (0, 1), b: (0, 3), c: (2, 2)}
