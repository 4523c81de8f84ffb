#!/usr/bin/env python
"""Draw the JSON of `pytest benchmarks/ --benchmark-only --benchmark-json=FILE` as bars.

    python scripts/plot_benchmarks.py out/benchmarks.json out/networks.png             # forwards of networks
    python scripts/plot_benchmarks.py out/benchmarks.json out/ops.png --of ops         # ops, beside their floors
    python scripts/plot_benchmarks.py out/benchmarks.json out/samplers.png --of samplers

A bar is the median time of a contender in that of fastscore: of 1 is as fast, of 2 takes twice as long.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmark_table import Cases, cases

COLORS = {
    "eager": "#8c8c8c",
    "eager, channels last": "#bdbdbd",
    "torch.compile": "#e08f3c",
    "sdpa": "#e08f3c",
    "OpenVINO": "#6a51a3",
    "ONNX Runtime": "#3a86b8",
    "peer": "#3a86b8",
    "fastscore": "#2a9d5c",
}


def kind(op: str, entries: dict[str, Any]) -> str:
    """The drawing that a case belongs to: "networks", "ops" or "samplers"; "" for none."""
    if "fastscore" not in entries or len(entries) < 2:
        return ""
    if op.startswith("network"):
        return "networks"
    return "ops" if "eager" in entries else "samplers"


def bars(found: Cases, of: str) -> dict[str, dict[str, float]]:
    """Label of a case -> contender -> its time in that of fastscore, and "floor" where there is one."""
    result = {}
    for (op, case), entries in found.items():
        if kind(op, entries) != of:
            continue
        ours = entries["fastscore"]["stats"]["median"]
        times = {name: entry["stats"]["median"] / ours for name, entry in entries.items()}
        floor = entries["fastscore"]["extra_info"].get("floor_seconds")
        if floor is not None and of == "ops":
            times["floor"] = floor / ours
        result[case if of == "networks" else f"{op} {case}"] = times
    return result


def draw(groups: dict[str, dict[str, float]], title: str, out: Path) -> None:
    """A group of bars for each case, from top to bottom, in a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in COLORS if any(name in times for times in groups.values())]
    rows = sum(len([name for name in names if name in times]) + 1 for times in groups.values())
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.2 * rows), layout="constrained")
    y, ticks, largest = 0.0, [], max(max(times.values()) for times in groups.values())
    logarithmic = largest > 10
    for times in groups.values():
        present = [name for name in names if name in times]
        for i, name in enumerate(present):
            axes.barh(y + i, times[name], 0.9, color=COLORS[name], label=name)
            axes.annotate(f" {times[name]:.2f}", (times[name], y + i), va="center", fontsize=7)
        if "floor" in times:
            axes.vlines(times["floor"], y - 0.5, y + len(present) - 0.5, "#c0392b", label="floor")
        ticks.append(y + (len(present) - 1) / 2)
        y += len(present) + 1
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(ticks, groups, fontsize=8)
    axes.set_ylim(y - 1, -1)
    axes.axvline(1, color=COLORS["fastscore"], linewidth=0.8, linestyle=":")
    axes.margins(x=0.08)
    axes.set_xlabel("time, in that of fastscore" + (", logarithmic" if logarithmic else ""))
    axes.set_title(title, fontsize=9)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = [name for name in (*names, "floor") if name in handles]
    figure.legend(
        [handles[name] for name in order], order, fontsize=8, loc="outside lower center", ncols=4, frameon=False
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        figure.savefig(unfinished, dpi=150, format="png")
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
        plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Command line; exit code 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(description="Draw benchmark JSON as bars.")
    parser.add_argument("json", type=Path, help="file written by --benchmark-json")
    parser.add_argument("out", type=Path, help="the PNG")
    parser.add_argument("--of", choices=("networks", "ops", "samplers"), default="networks")
    options = parser.parse_args(arguments)
    try:
        data = json.loads(options.json.read_text())
        info = data["machine_info"]["fastscore"]
        groups = bars(cases(data), options.of)
        if not groups:
            raise ValueError(f"no rows of {options.of}")
        title = (
            f"{info.get('gpu', info['cpu'])}, {info['threads']} threads, {info['capability']}, commit {info['commit']}"
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        draw(groups, title, options.out)
    except (OSError, ValueError, KeyError) as error:
        print(f"plot_benchmarks: {error!r}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
