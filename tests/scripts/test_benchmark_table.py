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
            "fastscore": {"cpu": "Acme 1", "threads": 2, "capability": "AVX2", "torch": "2.9", "load": 0.1}
        },
        "benchmarks": [
            _entry("eager", 512.3e-6, traffic_in_state_sizes=32.0),
            _entry("torch.compile", 2.5e-3, traffic_in_state_sizes=None),
            _entry(
                "fastscore",
                80e-6,
                traffic_in_state_sizes=8.02,
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
    readme.write_text("<!-- benchmarks:begin -->\n<!-- benchmarks:end -->\n<!-- other:begin -->\n<!-- other:end -->\n")
    done = _run(tmp_path / "b.json", readme, "--section", "other")
    assert done.returncode == 0, done.stderr
    text = readme.read_text()
    assert text.startswith(
        "<!-- benchmarks:begin -->\n<!-- benchmarks:end -->\n<!-- other:begin -->\n| likelihood, mnist32 |"
    )
    assert "| published | 400.00 ms |  |  | 3 MiB |\n" in text
    assert "| vjp | 200.00 ms | **2.0x** |  | 3 MiB |\n" in text
    assert "| vjp, 8 probes | 900.00 ms |  | 4.0 | 3 MiB |\n" in text


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
    row = "| `pc_step` VE (16, 3, 32, 32) float32 | 512 µs | 2.50 ms | 80 µs | **6.4x** | 31.2x | 32 → 8 |"
    assert text.count(row) == 1
    assert "| `ddim` | diffusers | 90 µs → 9 µs **10.0x** | 16 → 3 |" in text
    assert "Measured on Acme 1, 2 threads, AVX2, PyTorch 2.9, load by other work 0.1, on 2025-01-02" in text
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
