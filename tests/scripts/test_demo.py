"""scripts/demo.py: the picture and every figure of its table, with a small network in the trained one's place."""

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import fastscore

SCRIPT = Path(__file__).parents[2] / "scripts" / "demo.py"


class TinyModel(torch.nn.Module):
    sde = fastscore.VPSDE()
    convention = fastscore.Convention("noise", label="scaled_time")
    config = SimpleNamespace(centered=True)
    shape = (1, 16, 16)  # larger than the table of coefficients, which would be counted as a state
    calls = 0

    def forward(self, x, labels):
        TinyModel.calls += 1
        return torch.tanh(x) * (labels[:, None, None, None] / 999)


@pytest.fixture
def demo(monkeypatch):
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.models, "load", lambda name: TinyModel())
    return module


def test_demo(demo, tmp_path, capsys, monkeypatch):
    out = tmp_path / "deep" / "digits.png"
    monkeypatch.setattr(sys, "argv", ["demo.py", "--num", "5", "--steps", "30", "--seed", "4", "--out", str(out)])
    TinyModel.calls = 0
    demo.main()
    table = dict(re.findall(r"^(\S.*?|  in .*?) {2,}(\S.*)$", capsys.readouterr().out, re.MULTILINE))
    assert table["network calls per image (NFE)"].split() == ["60", "60"]
    assert TinyModel.calls >= 120
    assert float(table["relative difference of the images"]) < 1e-5  # float32 sums in another order, 60 steps
    fused, reference = map(float, table["memory traffic per step, in state sizes [1]"].split())
    assert fused == 8  # predictor: x and h in, x out; corrector: x and h in twice, x out
    assert reference > 3 * fused
    total, network, sampler = (
        [float(s) for s in table[k].split()] for k in ("seconds", "  in the network", "  in the sampler")
    )
    assert np.allclose(np.add(network, sampler), total, atol=0.011)  # three figures rounded to 0.01

    model = TinyModel()
    again = fastscore.PCSampler(model.sde, model, steps=30, norm="sample").sample((5, *model.shape), seed=4)
    with Image.open(out) as image:
        assert np.array_equal(np.asarray(image), fastscore._output.image_grid(again / 2 + 0.5).numpy())
