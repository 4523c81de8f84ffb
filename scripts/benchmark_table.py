#!/usr/bin/env python
"""Turn the JSON of `pytest benchmarks/ --benchmark-only --benchmark-json=FILE` into the README's tables.

    python scripts/benchmark_table.py out/benchmarks.json            # print that of ops and samplers
    python scripts/benchmark_table.py out/benchmarks.json README.md  # put it between the markers of README.md
    python scripts/benchmark_table.py out/benchmarks.json README.md --section network-benchmarks
    python scripts/benchmark_table.py out/benchmarks.json README.md --section likelihood-benchmarks

Everything between `<!-- benchmarks:begin -->` and `<!-- benchmarks:end -->` is replaced, or between the markers of the
section; numbers are never typed.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
PEERS = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "diffusers": "diffusers", "k-diffusion": "k-diffusion"}
CHANNELS_LAST = "eager, channels last"
COMMAND = "pytest benchmarks/ --benchmark-only --benchmark-json=out/benchmarks.json"

Cases = dict[tuple[str, str], dict[str, dict[str, Any]]]  # (op, case) -> contender -> entry


def table(data: dict[str, Any], section: str = "benchmarks") -> str:
    """Markdown of a section: times are medians, speed-ups paired. Raises ValueError where the JSON has no row of it."""
    parts, note = SECTIONS[section](cases(data))
    if not parts:
        raise ValueError(f"no rows of the section {section}")
    return "\n\n".join([*parts, f"{_machine(data)} {note}".rstrip()])


def cases(data: dict[str, Any]) -> Cases:
    """The entries of each case."""
    found: Cases = {}
    for entry in data["benchmarks"]:
        info = entry["extra_info"]
        found.setdefault((info["op"], info["case"]), {})[info["contender"]] = entry
    return found


def _ops_and_samplers(cases: Cases) -> tuple[list[str], str]:
    """Kernels, one row per case, and samplers beside their peers."""
    ops = {key: entries for key, entries in cases.items() if "eager" in entries and not key[0].startswith("network")}
    fused = {op for (op, _), entries in ops.items() if "sdpa" in entries}  # of these torch has a fused kernel itself
    kernels = {key: entries for key, entries in ops.items() if key[0] not in fused}
    attention = {key: entries for key, entries in ops.items() if key[0] in fused}
    samplers = {key: entries for key, entries in cases.items() if "peer" in entries}
    parts = []
    if kernels:
        parts.append(_kernels(kernels, "torch.compile"))
    if attention:
        parts.append(_kernels(attention, "sdpa"))
    if samplers:
        parts.append(_samplers(samplers))
    return parts, (
        "Traffic is memory read and written in sizes of the state, eager → fastscore. The floor is a copy that moves "
        "as many bytes as the kernels must, timed in the same rounds, or their multiply-adds at the rate of a product "
        "of large matrices, whichever takes longer."
    )


def _likelihoods(cases: Cases) -> tuple[list[str], str]:
    return [_likelihood(entries) for entries in cases.values() if "published" in entries], ""


def _networks(cases: Cases) -> tuple[list[str], str]:
    """Times and errors of the forward, what it takes to begin, and ours beside eager in training and memory."""
    forwards = {case: entries for (op, case), entries in cases.items() if op == "network"}
    parts = []
    if forwards:
        names = list(dict.fromkeys(name for entries in forwards.values() for name in entries))
        rows = [
            "| forward; relative error | " + " | ".join(names) + " | against the best other |",
            "|---|" + "---:|" * (len(names) + 1),
        ]
        begin = [
            "| until the first result; page faults of the second call | " + " | ".join(names) + " |",
            "|---|" + "---:|" * len(names),
        ]
        for case, entries in forwards.items():
            cells = [
                f"{_time(entries[name]['stats']['median'])}; {entries[name]['extra_info']['relative_error']:.1e}"
                if name in entries
                else ""
                for name in names
            ]
            others = {name: entry["stats"]["median"] for name, entry in entries.items() if name != "fastscore"}
            best = min(others, key=others.__getitem__)
            speedup = entries["fastscore"]["extra_info"]["speedups"][best]
            rows.append(f"| {case} | " + " | ".join(cells) + f" | **{speedup:.2f}x** ({best}) |")
            cells = [
                "{ready_seconds:.1f} s; {page_faults}".format(**entries[name]["extra_info"]) if name in entries else ""
                for name in names
            ]
            begin.append(f"| {case} | " + " | ".join(cells) + " |")
        parts += ["\n".join(rows), "\n".join(begin)]
    compared = []
    for (op, case), entries in cases.items():
        if op == "network_training":
            times = " | ".join(_time(entries[name]["stats"]["median"]) for name in ("eager", "fastscore"))
            compared.append(
                f"| {case} | {times} | **{entries['fastscore']['extra_info']['speedups']['eager']:.2f}x** |"
            )
    memory = {
        name: entry for (op, _), entries in cases.items() if op == "network_memory" for name, entry in entries.items()
    }
    if memory:
        peak = {name: entry["extra_info"]["peak_bytes"] for name, entry in memory.items()}
        case = memory["eager"]["extra_info"]["case"].removesuffix(" of eager")
        both = " | ".join(f"{peak[name] / 2**20:.0f} MiB" for name in ("eager", "fastscore"))
        compared.append(f"| {case}, peak memory | {both} | {peak['fastscore'] / peak['eager']:.2f} of it |")
    if compared:
        parts.append("\n".join(["| | eager | fastscore | against eager |", "|---|---:|---:|---:|", *compared]))
    return parts, (
        "Errors are the largest of a sample's 2-norm relative to its output in float64. The best other is the one of "
        "the least median."
    )


SECTIONS: dict[str, Callable[[Cases], tuple[list[str], str]]] = {
    "benchmarks": _ops_and_samplers,
    "likelihood-benchmarks": _likelihoods,
    "network-benchmarks": _networks,
}
"""Markers of the README -> tables and a note from the cases."""


def _kernels(cases: Cases, other: str) -> str:
    """Cases beside eager, in its two memory formats where both were timed, and one other contender, if it is there."""
    rows = [
        f"| per call or step | eager (channels last) | {other} | fastscore | floor | against eager | against {other} "
        "| traffic |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (op, case), entries in cases.items():
        info = entries["fastscore"]["extra_info"]
        times = {name: entry["stats"]["median"] for name, entry in entries.items()}
        eager = [name for name in ("eager", CHANNELS_LAST) if name in times]
        cells = [_time(times["eager"]) + (f" ({_time(times[CHANNELS_LAST])})" if CHANNELS_LAST in times else "")]
        cells += [_time(times[name]) if name in times else "" for name in (other, "fastscore")]
        cells.append("" if info["floor_seconds"] is None else _time(info["floor_seconds"]))
        cells.append(f"**{info['speedups'][min(eager, key=times.__getitem__)]:.1f}x**")
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
        f"PyTorch {info['torch']}{_peers(info)}, load by other work {info['load']}, on {data['datetime'][:10]}, at "
        f"commit {info['commit']}, by `{COMMAND}`. "
        "Contenders take turns; times are medians, speed-ups are medians of the ratio within a round."
    )


def _peers(info: dict[str, Any]) -> str:
    return "".join(f", {title} {info[name]}" for name, title in PEERS.items() if name in info)


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
    parser.add_argument("--section", choices=SECTIONS, default="benchmarks", help="name of the markers, and its tables")
    arguments = parser.parse_args()
    begin, end = f"<!-- {arguments.section}:begin -->", f"<!-- {arguments.section}:end -->"
    try:
        text = table(json.loads(arguments.json.read_text()), arguments.section)
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
