#!/usr/bin/env python
"""Turn the JSON of `pytest benchmarks/ --benchmark-only --benchmark-json=FILE` into the README's table.

    python scripts/benchmark_table.py out/benchmarks.json            # print it
    python scripts/benchmark_table.py out/benchmarks.json README.md  # put it between the markers of README.md
    python scripts/benchmark_table.py out/likelihood.json README.md --section likelihood-benchmarks  # between others

Everything between `<!-- benchmarks:begin -->` and `<!-- benchmarks:end -->` is replaced; numbers are never typed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
COMMAND = "pytest benchmarks/ --benchmark-only --benchmark-json=out/benchmarks.json"

Cases = dict[tuple[str, str], dict[str, dict[str, Any]]]  # (op, case) -> contender -> entry


def table(data: dict[str, Any]) -> str:
    """Markdown: kernels, one row per case, and samplers beside their peers; times are medians, speed-ups paired."""
    cases: Cases = {}
    for entry in data["benchmarks"]:
        info = entry["extra_info"]
        cases.setdefault((info["op"], info["case"]), {})[info["contender"]] = entry
    fused = {op for (op, _), entries in cases.items() if "sdpa" in entries}  # of these torch has a fused kernel itself
    kernels = {key: entries for key, entries in cases.items() if "eager" in entries and key[0] not in fused}
    attention = {key: entries for key, entries in cases.items() if key[0] in fused}
    samplers = {key: entries for key, entries in cases.items() if "peer" in entries}
    parts = []
    if kernels:
        parts.append(_kernels(kernels, "torch.compile"))
    if attention:
        parts.append(_kernels(attention, "sdpa"))
    if samplers:
        parts.append(_samplers(samplers))
    parts += [_likelihood(entries) for entries in cases.values() if "published" in entries]
    caption = _machine(data)
    if kernels or attention or samplers:
        caption += " Traffic is memory read and written in sizes of the state, eager → fastscore."
    return "\n\n".join([*parts, caption])


def _kernels(cases: Cases, other: str) -> str:
    """Cases beside eager and one other contender, which may be missing in some."""
    rows = [
        f"| per call or step | eager | {other} | fastscore | against eager | against {other} | traffic |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (op, case), entries in cases.items():
        info = entries["fastscore"]["extra_info"]
        cells = [
            _time(entries[name]["stats"]["median"]) if name in entries else "" for name in ("eager", other, "fastscore")
        ]
        cells.append(f"**{info['speedups']['eager']:.1f}x**")
        cells.append(f"{info['speedups'][other]:.1f}x" if other in entries else "")
        cells.append(
            f"{_sizes(entries['eager']['extra_info']['traffic_in_state_sizes'])} → "
            f"{_sizes(info['traffic_in_state_sizes'])}"
        )
        rows.append(f"| `{op}` {case} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _samplers(cases: Cases) -> str:
    shapes = list(dict.fromkeys(case for _, case in cases))
    head = ["per network call, network left out", "beside", *shapes, f"traffic at {shapes[-1]}"]
    rows = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(shapes) + 1)]
    for op in dict.fromkeys(op for op, _ in cases):
        cells, traffic, about = [], "", ""
        for shape in shapes:
            entries = cases.get((op, shape))
            if entries is None:
                cells.append("")
                continue
            peer, ours = entries["peer"], entries["fastscore"]
            info = ours["extra_info"]
            times = f"{_time(peer['stats']['median'])} → {_time(ours['stats']['median'])}"
            cells.append(f"{times} **{info['speedups']['peer']:.1f}x**")
            before = _sizes(peer["extra_info"]["traffic_in_state_sizes"])
            traffic, about = f"{before} → {_sizes(info['traffic_in_state_sizes'])}", info["about"]
        rows.append(f"| `{op}` | {about} | " + " | ".join([*cells, traffic]) + " |")
    return "\n".join(rows)


def _likelihood(entries: dict[str, dict[str, Any]]) -> str:
    """One row per contender, beside the published scheme and the same with one probe."""
    case = next(iter(entries.values()))["extra_info"]["case"]
    rows = [
        f"| likelihood, {case} | per evaluation | against published | times one probe | peak memory |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, entry in entries.items():
        info, one = entry["extra_info"], name.partition(",")[0]
        alike = one == name != "published"  # the published scheme has one probe
        speedup = f"**{info['speedups']['published']:.1f}x**" if alike else ""
        times = "" if one == name else f"{1 / info['speedups'][one]:.1f}"
        memory = f"{info['peak_bytes'] / 2**20:.0f} MiB"
        rows.append(f"| {name} | {_time(entry['stats']['median'])} | {speedup} | {times} | {memory} |")
    return "\n".join(rows)


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _sizes(count: float | None) -> str:
    return "?" if count is None else f"{count:.1f}".removesuffix(".0")


def _machine(data: dict[str, Any]) -> str:
    info = data["machine_info"]["fastscore"]
    return (
        f"Measured on {info.get('gpu', info['cpu'])}, {info['threads']} threads, {info['capability']}, "
        f"PyTorch {info['torch']}, load by other work {info['load']}, on {data['datetime'][:10]}, by `{COMMAND}`. "
        "Contenders take turns; times are medians, speed-ups are medians of the ratio within a round."
    )


def replace(text: str, new: str, begin: str = BEGIN, end: str = END) -> str:
    """The text with everything between the markers replaced."""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected {begin} and, after it, {end} once each")
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    return f"{head}{begin}\n{new}\n{end}{tail}"


def main() -> int:
    """Command line; exit code 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(description="Turn benchmark JSON into a Markdown table.")
    parser.add_argument("json", type=Path, help="file written by --benchmark-json")
    parser.add_argument("readme", type=Path, nargs="?", help="file with the two markers; without it, print")
    parser.add_argument("--section", default="benchmarks", help="name of the markers (default: benchmarks)")
    arguments = parser.parse_args()
    begin, end = f"<!-- {arguments.section}:begin -->", f"<!-- {arguments.section}:end -->"
    try:
        text = table(json.loads(arguments.json.read_text()))
        if arguments.readme is None:
            print(text)
        else:
            arguments.readme.write_text(replace(arguments.readme.read_text(), text, begin, end))
            print(f"wrote the table into {arguments.readme}")
    except (OSError, ValueError, KeyError) as error:
        print(f"benchmark_table: {error!r}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
