"""`fastscore samplers`: the samplers, and the options of one."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

import fastscore


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    listing = commands.add_parser("samplers", help="list the samplers, or the options of one")
    listing.add_argument("name", nargs="?", help="a sampler: show what it takes")
    listing.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.name is None:
        for name in fastscore.samplers.names():
            entry = fastscore.samplers.describe(name)
            print(f"{name:<20} {entry.calls:>9}  {entry.summary}")
        print("\nnetwork calls for N steps in the second column; `fastscore samplers NAME` lists the options of one")
        return
    entry = fastscore.samplers.describe(args.name)
    print(f"{args.name}: {entry.summary}; fastscore.{entry.make.__name__}\n")
    parameters = inspect.signature(entry.make).parameters
    for name in entry.accepted:
        default = entry.options.get(name, parameters[name].default)
        print(f"  {name:<18} " + ("(needed)" if name in entry.required else f"{default!r}"))
    print(f"\n{inspect.getdoc(entry.make)}")
