"""What `fastscore.accelerate` did and did not do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fastscore.engine import Engine


@dataclass(frozen=True)
class Entry:
    """A layer.

    Attributes:
        name: qualified, as in `named_modules()`; "" is the model itself.
        kind: "group_norm_silu", "attention", "resample", or "conv3x3".
        note: what runs in its place, or why it was left alone.
    """

    name: str
    kind: str
    note: str


@dataclass
class Report:
    """What was replaced, what was left alone and why; `print` it for a table.

    Attributes:
        replaced: one entry for each layer that a fused op computes now.
        left_alone: one for each layer of the kinds that are looked for, and that are computed as before.
        own: how many modules of fastscore.nn the model has: they run fused ops without our doing.
        engine: with `optimize="cpu"`: the programs so far, and why there is none for some arguments.
    """

    replaced: list[Entry] = field(default_factory=list)
    left_alone: list[Entry] = field(default_factory=list)
    own: int = 0
    engine: Engine | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Replaced layers of each kind."""
        return dict(Counter(entry.kind for entry in self.replaced))

    def __str__(self) -> str:
        programs = [] if self.engine is None else self.engine.describe()
        if not self.replaced and self.own and not programs:
            return f"nothing to do: the network is made of {self.own} layers of fastscore.nn, which run fused ops"
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items()) or "nothing"
        lines = [f"replaced: {counts}", *_table(self.replaced)]
        # one line for all convolutions: there are as many as other layers together, and nothing to say of each
        convolutions = [entry for entry in self.left_alone if entry.kind == "conv3x3"]
        others = [entry for entry in self.left_alone if entry.kind != "conv3x3"]
        if convolutions:
            others.append(Entry(f"{len(convolutions)} layers", "conv3x3", convolutions[0].note))
        return "\n".join([*lines, f"left alone: {len(self.left_alone)}", *_table(others), *programs])


def _table(entries: list[Entry]) -> list[str]:
    names = [entry.name or "(the model)" for entry in entries]
    width = max(map(len, names), default=0)
    kinds = max((len(entry.kind) for entry in entries), default=0)
    return [f"  {name:{width}}  {e.kind:{kinds}}  {e.note}" for name, e in zip(names, entries, strict=True)]
