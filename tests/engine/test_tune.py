"""The measured plan: made when somebody asks, kept on disk, and used from then on."""

import json
import warnings

import pytest
import torch
from torch import nn

import fastscore
from fastscore.engine import tune as tuning
from fastscore.ops import _plans
from fastscore.ops.conv3x3 import cheapest

SHAPE = (1, 16, 8, 8, 16)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTSCORE_CACHE", str(tmp_path))
    _plans._table.cache_clear()
    cheapest.cache_clear()
    yield
    _plans._table.cache_clear()
    cheapest.cache_clear()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1)).eval()


def names(model: nn.Module) -> list[str]:
    (program,) = model._fused_engine.programs.values()
    return [name for name in program.calls if name.startswith("conv")]


@pytest.mark.parametrize(
    ("method", "name"),
    [("direct", "conv_gemm"), ("winograd2", "conv3x3 F(2x2)"), ("winograd4", "conv3x3 F(4x4)")],
)
def test_a_program_does_what_was_measured(monkeypatch, tmp_path, method, name):
    x = torch.randn(1, 16, 8, 8)
    plain = net()
    fastscore.accelerate(plain, optimize="cpu", example=x)
    assert not list(tmp_path.iterdir())  # nobody asked
    monkeypatch.setattr(tuning, "fastest", lambda seconds: method)
    model = net()
    fastscore.accelerate(model, optimize="cpu", example=x, tune=True)
    assert names(model) == [name, name]
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == {"1x16x8x8 to 16": method}
    _plans._table.cache_clear()  # as in another process
    cheapest.cache_clear()
    monkeypatch.setattr(tuning, "measure", lambda shape: pytest.fail("measured again"))
    again = net()
    fastscore.accelerate(again, optimize="cpu", example=x, tune=True)
    assert names(again) == [name, name]
    with torch.no_grad():
        torch.testing.assert_close(again(x), plain(x), rtol=1e-5, atol=1e-5)


def test_all_methods_are_measured():
    seconds = tuning.measure(SHAPE)
    assert sorted(seconds) == ["direct", "winograd2", "winograd4"]
    assert all(len(rounds) == 5 and min(rounds) > 0 for rounds in seconds.values())
    assert tuning.fastest({"direct": [3.0, 2.0], "winograd2": [9.0, 1.0]}) == "winograd2"


@pytest.mark.parametrize("content", ["{", "[]", '{"1x16x8x8 to 16": "fast"}'])
def test_a_file_that_is_no_table_is_left_out(content):
    threads = torch.get_num_threads()
    default = cheapest(*SHAPE, threads)
    file = _plans.path(threads)
    file.write_text(content)
    _plans._table.cache_clear()
    cheapest.cache_clear()
    with pytest.warns(UserWarning, match="is left out, delete it or measure again"):
        assert cheapest(*SHAPE, threads) == default
    _plans.store({SHAPE: "winograd2"}, threads)
    cheapest.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cheapest(*SHAPE, threads) == "winograd2"


def test_another_number_of_threads_has_another_table():
    _plans.store({SHAPE: "winograd2"}, 1)
    assert _plans.planned(SHAPE, 1) == "winograd2"
    assert _plans.planned(SHAPE, 2) is None


def test_tune_needs_an_example():
    with pytest.raises(ValueError, match="tune=True is for optimize='cpu' with an example"):
        fastscore.accelerate(net(), optimize="cpu", tune=True)
