"""scripts/plot_benchmarks.py draws benchmark JSON."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="scripts/plot_benchmarks.py draws with it")
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import plot_benchmarks


@pytest.fixture
def data():
    def entry(op, case, contender, median, **info):
        return {"stats": {"median": median}, "extra_info": {"op": op, "case": case, "contender": contender, **info}}

    return {
        "machine_info": {"fastscore": {"cpu": "Acme 1", "threads": 2, "capability": "AVX2", "commit": "abc"}},
        "benchmarks": [
            entry("network", "U-Net batch 4", "eager", 0.3),
            entry("network", "U-Net batch 4", "OpenVINO", 0.25),
            entry("network", "U-Net batch 4", "fastscore", 0.1, floor_seconds=None),
            entry("network_memory", "of ours", "fastscore", 0.1, floor_seconds=None),
            entry("pc_step", "VE", "eager", 6e-3),
            entry("pc_step", "VE", "fastscore", 2e-3, floor_seconds=1e-3),
            entry("ddim", "(1, 3, 4, 4)", "peer", 5e-3),
            entry("ddim", "(1, 3, 4, 4)", "fastscore", 0.1e-3, floor_seconds=1e-5),
            entry("likelihood", "mnist32", "published", 5.0),
        ],
    }


def test_bars_are_times_in_that_of_ours(data):
    found = plot_benchmarks.cases(data)
    networks, ops, samplers = (plot_benchmarks.bars(found, of) for of in ("networks", "ops", "samplers"))
    assert networks == {"U-Net batch 4": pytest.approx({"eager": 3, "OpenVINO": 2.5, "fastscore": 1})}
    assert ops == {"pc_step VE": pytest.approx({"eager": 3, "fastscore": 1, "floor": 0.5})}
    assert samplers == {"ddim (1, 3, 4, 4)": pytest.approx({"peer": 50, "fastscore": 1})}


@pytest.mark.parametrize("of", ["networks", "ops", "samplers"])
def test_a_drawing_takes_its_place_when_it_is_complete(tmp_path, data, of, monkeypatch):
    (tmp_path / "b.json").write_text(json.dumps(data))
    out = tmp_path / "made" / "bars.png"
    written = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: written.append(self.name) or replace(self, target))
    assert plot_benchmarks.main([str(tmp_path / "b.json"), str(out), "--of", of]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in out.parent.iterdir()] == ["bars.png"]
    assert written
    assert written[0] != "bars.png"


def test_nothing_to_draw_is_said(tmp_path, data, capsys):
    data["benchmarks"] = data["benchmarks"][-1:]
    (tmp_path / "b.json").write_text(json.dumps(data))
    assert plot_benchmarks.main([str(tmp_path / "b.json"), str(tmp_path / "bars.png")]) == 2
    assert "no rows of networks" in capsys.readouterr().err
    assert not (tmp_path / "bars.png").exists()
