"""scripts/benchmark_table.py turns benchmark JSON into the README's table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_table.py"


def _entry(contender, median, **info):
    extra = {"op": "pc_step", "case": "VE (16, 3, 32, 32) float32", "contender": contender, **info}
    return {"stats": {"median": median}, "extra_info": extra}


@pytest.fixture
def data():
    return {
        "datetime": "2025-01-02T03:04:05",
        "machine_info": {
            "fastscore": {
                "cpu": "Acme 1",
                "threads": 2,
                "capability": "AVX2",
                "torch": "2.9",
                "openvino": "1.2",
                "commit": "abc",
                "load": 0.1,
            }
        },
        "benchmarks": [
            _entry("eager", 512.3e-6, traffic_in_state_sizes=32.0),
            _entry("torch.compile", 2.5e-3, traffic_in_state_sizes=None),
            _entry(
                "fastscore",
                80e-6,
                traffic_in_state_sizes=8.02,
                floor_seconds=40e-6,
                speedups={"eager": 6.44, "torch.compile": 31.25},
            ),
            _entry("peer", 90e-6, op="ddim", case="(1, 3, 4, 4)", traffic_in_state_sizes=16.0),
            _entry(
                "fastscore",
                9e-6,
                op="ddim",
                case="(1, 3, 4, 4)",
                traffic_in_state_sizes=3.0,
                speedups={"peer": 10.0},
                about="diffusers",
            ),
        ],
    }


def test_a_likelihood_has_a_row_a_contender(tmp_path, data):
    def entry(contender, median, speedups):
        return _entry(contender, median, op="likelihood", case="mnist32", speedups=speedups, peak_bytes=3 * 2**20)

    data["benchmarks"] = [
        entry("published", 0.4, {}),
        entry("vjp", 0.2, {"published": 2.04}),
        entry("vjp, 8 probes", 0.9, {"published": 0.44, "vjp": 0.25}),
    ]
    (tmp_path / "b.json").write_text(json.dumps(data))
    readme = tmp_path / "README.md"
    begin, end = "<!-- likelihood-benchmarks:begin -->\n", "<!-- likelihood-benchmarks:end -->\n"
    readme.write_text(f"<!-- benchmarks:begin -->\n<!-- benchmarks:end -->\n{begin}{end}")
    done = _run(tmp_path / "b.json", readme, "--section", "likelihood-benchmarks")
    assert done.returncode == 0, done.stderr
    text = readme.read_text()
    assert text.startswith(f"<!-- benchmarks:begin -->\n<!-- benchmarks:end -->\n{begin}| likelihood, mnist32 |")
    assert "| published | 400.00 ms |  |  | 3 MiB |\n" in text
    assert "| vjp | 200.00 ms | **2.0x** |  | 3 MiB |\n" in text
    assert "| vjp, 8 probes | 900.00 ms |  | 4.0 | 3 MiB |\n" in text


def test_a_convolution_is_beside_the_better_memory_format(tmp_path, data):
    info = {"op": "conv3x3", "case": "c", "traffic_in_state_sizes": 2.0, "floor_seconds": None}
    data["benchmarks"] = [
        _entry("eager", 4e-3, **info),
        _entry("eager, channels last", 3e-3, **info),
        _entry("fastscore", 1e-3, **info, speedups={"eager": 4.04, "eager, channels last": 3.03}),
    ]
    (tmp_path / "b.json").write_text(json.dumps(data))
    assert (
        "| `conv3x3` c | 4.00 ms (3.00 ms) |  | 1.00 ms |  | **3.0x** |  | 2 → 2 |\n"
        in _run(tmp_path / "b.json").stdout
    )


def test_networks_have_their_errors_and_are_beside_the_best(tmp_path, data):
    def entry(contender, median, error, **info):
        seen = {
            "relative_error": error,
            "ready_seconds": 2.04,
            "page_faults": 7,
            "op": "network",
            "case": "U-Net batch 4",
        }
        return _entry(contender, median, **{**seen, **info})

    def memory(contender, size):
        case = f"U-Net batch 16, forward of {contender}"
        return _entry(contender, 1.0, op="network_memory", case=case, peak_bytes=size * 2**20)

    data["benchmarks"] += [
        entry("eager", 0.2, 1.31e-6),
        entry("OpenVINO", 0.18, 2.31e-6),
        entry("fastscore", 0.1, 3.31e-6, speedups={"eager": 2.0, "OpenVINO": 1.806}),
        entry("eager", 0.5, 0.0, case="other"),
        entry("fastscore", 0.1, 0.0, case="other", speedups={"eager": 5.0}),
        _entry("eager", 0.6, op="network_training", case="U-Net batch 4, both"),
        _entry("fastscore", 0.3, op="network_training", case="U-Net batch 4, both", speedups={"eager": 1.95}),
        memory("eager", 100),
        memory("fastscore", 80),
    ]
    (tmp_path / "b.json").write_text(json.dumps(data))
    text = _run(tmp_path / "b.json", "--section", "network-benchmarks").stdout
    rows = [
        "| forward; relative error | eager | OpenVINO | fastscore | against the best other |",
        "| U-Net batch 4 | 200.00 ms; 1.3e-06 | 180.00 ms; 2.3e-06 | 100.00 ms; 3.3e-06 | **1.81x** (OpenVINO) |",
        "| other | 500.00 ms; 0.0e+00 |  | 100.00 ms; 0.0e+00 | **5.00x** (eager) |",
        "| other | 2.0 s; 7 |  | 2.0 s; 7 |",
        "| U-Net batch 4, both | 600.00 ms | 300.00 ms | **1.95x** |",
        "| U-Net batch 16, forward, peak memory | 100 MiB | 80 MiB | 0.80 of it |",
    ]
    assert all(f"{row}\n" in text for row in rows), text
    assert "pc_step" not in text
    assert "U-Net" not in _run(tmp_path / "b.json").stdout


def test_a_section_without_rows_is_refused(tmp_path, data):
    (tmp_path / "b.json").write_text(json.dumps(data))
    done = _run(tmp_path / "b.json", "--section", "network-benchmarks")
    assert done.returncode == 2
    assert "no rows of the section network-benchmarks" in done.stderr


def _run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=60)


def test_table_is_written_between_the_markers(tmp_path, data):
    (tmp_path / "b.json").write_text(json.dumps(data))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmarks:begin -->\nold\n<!-- benchmarks:end -->\nafter\n")
    for _ in range(2):
        done = _run(tmp_path / "b.json", readme)
        assert done.returncode == 0, done.stderr
    text = readme.read_text()
    assert text.startswith("before\n<!-- benchmarks:begin -->\n| per call")
    assert text.endswith("\n<!-- benchmarks:end -->\nafter\n")
    assert "old" not in text
    row = "| `pc_step` VE (16, 3, 32, 32) float32 | 512 µs | 2.50 ms | 80 µs | 40 µs | **6.4x** | 31.2x | 32 → 8 |"
    assert text.count(row) == 1
    assert "| `ddim` | diffusers | 90 µs → 9 µs **10.0x** | 16 → 3 |" in text
    assert "Measured on Acme 1, 2 threads, AVX2, PyTorch 2.9, OpenVINO 1.2, load by other work 0.1, " in text
    assert "on 2025-01-02, at commit abc, by" in text
    assert _run(tmp_path / "b.json").stdout.count(row) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no markers", "expected <!-- benchmarks:begin -->"),
        ("<!-- benchmarks:end --><!-- benchmarks:begin -->", "after it"),
    ],
)
def test_missing_markers_are_refused_and_nothing_is_written(tmp_path, data, text, message):
    (tmp_path / "b.json").write_text(json.dumps(data))
    readme = tmp_path / "README.md"
    readme.write_text(text)
    done = _run(tmp_path / "b.json", readme)
    assert done.returncode == 2
    assert message in done.stderr
    assert readme.read_text() == text


def test_unusable_json_is_one_line(tmp_path, data):
    del data["machine_info"]
    (tmp_path / "b.json").write_text(json.dumps(data))
    done = _run(tmp_path / "b.json")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "machine_info" in done.stderr
