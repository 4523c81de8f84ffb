"""fastscore import-checkpoint: from a foreign file to samples."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fastscore
from fastscore import cli
from fastscore.models import load_bundle, load_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "networks"
CHECKPOINT = GOLDEN / "checkpoint_ncsnpp_ve.pth"
OPTIONS = {"image_size": 16, "centered": False, "scale_by_sigma": True, "skip_rescale": True}
CARD = {
    "network": OPTIONS,
    "sde": "VESDE",
    "sde_options": {"sigma_min": 0.01, "sigma_max": 40.0},
    "convention": {"prediction": "score", "label": "sigma"},
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config" / "options.json"
    path.parent.mkdir()
    path.write_text(json.dumps(OPTIONS))
    return path


def run(*args):
    return cli.main([*map(str, args)])


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_import_and_sample(tmp_path, config, capsys, weights):
    out, samples = tmp_path / "net.safetensors", tmp_path / "x.npz"
    assert run("import-checkpoint", CHECKPOINT, out, "--config", config, "--weights", weights) == 0
    assert capsys.readouterr().out.startswith(f"{out}: ncsnpp, ")
    tensors = load_file(GOLDEN / "checkpoint_ncsnpp_ve.safetensors")
    network = load_bundle(out)
    expected = tensors[f"out_{weights}"]
    with torch.no_grad():
        error = (network(tensors["x"], tensors["labels"]) - expected).abs().max()
    assert error <= 1e-5 * expected.abs().max()
    assert run("sample", "--model", out, "--steps", 3, "--num", 2, "--out", samples) == 0
    fastscore.accelerate(network, optimize="cpu")  # as the command does
    drawn = fastscore.PCSampler(network.sde, network, steps=3, norm="sample").sample((2, 3, 16, 16), seed=0)
    assert np.array_equal(np.load(samples)["samples"], drawn.numpy())
    assert sorted(os.listdir(tmp_path)) == ["config", "net.json", "net.safetensors", "x.npz"]


def test_a_card_says_the_sde(tmp_path, config):
    config.write_text(json.dumps(CARD))
    assert run("import-checkpoint", CHECKPOINT, tmp_path / "net.safetensors", "--config", config) == 0
    assert load_bundle(tmp_path / "net.safetensors").sde == fastscore.VESDE(0.01, 40.0)


def test_a_published_name(tmp_path):
    network = fastscore.models.create("ncsnv2-cifar10")
    torch.save(network.state_dict(), tmp_path / "x.pth")
    assert run("import-checkpoint", tmp_path / "x.pth", tmp_path / "net.safetensors", "--config", "ncsnv2-cifar10") == 0
    loaded = load_checkpoint(tmp_path / "net.safetensors")
    assert loaded.config == network.config
    assert torch.equal(loaded.begin_conv.weight, network.begin_conv.weight)  # float32, not rounded


@pytest.mark.parametrize(
    ("out", "message"),
    [("net.pt", "the output file must end in .safetensors"), ("no/net.safetensors", "directory .* does not exist")],
)
def test_a_bad_output_name_is_refused_before_any_work(tmp_path, capsys, monkeypatch, out, message):
    monkeypatch.setattr(fastscore.models, "load_checkpoint", lambda *args, **options: pytest.fail("it was loaded"))
    assert run("import-checkpoint", CHECKPOINT, tmp_path / out) == 2
    assert_refused(capsys, message)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("folder", [True, False])
def test_an_output_that_would_replace_what_is_there(tmp_path, capsys, folder):
    out = tmp_path / "net.safetensors"
    out.mkdir() if folder else out.write_bytes(b"weights")
    assert run("import-checkpoint", CHECKPOINT if folder else out, out) == 2
    assert_refused(capsys, "neither a directory nor the checkpoint itself")
    assert out.is_dir() if folder else out.read_bytes() == b"weights"


def assert_refused(capsys, message):
    error = capsys.readouterr().err
    assert error.startswith("fastscore: error: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "--config .*options.json: no JSON"),
        ("[1]", "config must be a name, a NetworkConfig or a mapping, got list"),
        ('{"image_size": 16}', "does not say scale_by_sigma, centered, skip_rescale"),
        (json.dumps(OPTIONS | {"scale_by_sigma": False}), "does not say the SDE of its network"),
    ],
)
def test_a_config_that_does_not_do(tmp_path, config, capsys, text, message):
    config.write_text(text)
    assert run("import-checkpoint", CHECKPOINT, tmp_path / "net.safetensors", "--config", config) == 2
    assert_refused(capsys, message)
    assert os.listdir(tmp_path) == ["config"]


def test_a_bundle_that_is_not_there(tmp_path, capsys):
    assert run("sample", "--model", tmp_path / "no.safetensors", "--out", tmp_path / "x.png") == 2
    assert_refused(capsys, "there is no weights file .*no.safetensors")
