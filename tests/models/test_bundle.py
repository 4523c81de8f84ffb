"""Weights files: what goes in comes out, and what is broken is refused in a sentence."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastscore import models
from fastscore.models import create, load_bundle, save_bundle
from fastscore.score import Convention
from fastscore.sde import VPSDE

OPTIONS = {
    "image_size": 8,
    "num_channels": 1,
    "nf": 8,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (4,),
}
CARD = {
    "network": OPTIONS,
    "sde": "VPSDE",
    "sde_options": {"beta_min": 0.2, "beta_max": 10.0},
    "convention": {"prediction": "noise", "label": "scaled_time"},
    "seed": 3,
    "command": "python scripts/train.py",
}


@pytest.fixture
def bundle(tmp_path):
    torch.manual_seed(0)
    network = create({**OPTIONS, "init_scale": 1.0}).eval()
    save_bundle(tmp_path / "net.safetensors", network, CARD)
    return tmp_path / "net.safetensors", network


def test_round_trip(bundle):
    path, network = bundle
    loaded = load_bundle(path)
    for name, parameter in list(network.named_parameters())[1:]:  # the first are the fixed frequencies
        other = loaded.get_parameter(name)
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, parameter.half().float(), rtol=0, atol=0)
    assert torch.equal(loaded.sigmas, network.sigmas)
    assert not loaded.training
    assert loaded.sde == VPSDE(0.2, 10.0)
    assert loaded.convention == Convention("noise", "scaled_time")
    assert loaded.shape == (1, 8, 8)
    assert loaded.config.nf == 8
    assert loaded.card == json.loads(path.with_suffix(".json").read_text())
    assert loaded.card["seed"] == 3


def test_float32_round_trip_computes_the_same(tmp_path):
    network = create(OPTIONS).eval()
    save_bundle(tmp_path / "net.safetensors", network, CARD, dtype=torch.float32)
    x, t = torch.rand(1, 1, 8, 8), torch.tensor([0.5])
    assert torch.equal(load_bundle(tmp_path / "net.safetensors")(x, t), network(x, t))


def test_fixed_frequencies_are_not_rounded(bundle):
    path, network = bundle
    assert not torch.equal(network.all_modules[0].W, network.all_modules[0].W.half().float())
    assert torch.equal(load_bundle(path).all_modules[0].W, network.all_modules[0].W)


def test_everybody_may_read_the_file(bundle):
    assert bundle[0].stat().st_mode & 0o444 == 0o444


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no weights file .*none.safetensors"):
        load_bundle(tmp_path / "none.safetensors")


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_truncated_file(bundle, size):
    path, _ = bundle
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"net.safetensors is damaged or no safetensors file"):
        load_bundle(path)


def test_file_without_a_card(bundle):
    path, _ = bundle
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match=r"net.safetensors has no card in its metadata"):
        load_bundle(path)


def change(path, edit_tensors=lambda t: None, **card):
    tensors = load_file(path)
    edit_tensors(tensors)
    save_file(tensors, path, metadata={"card": json.dumps({**CARD, **card})})


@pytest.mark.parametrize(
    ("edit", "first"),
    [
        (lambda t: t.pop("all_modules.1.bias"), "1 of .* tensors .* the first is all_modules.1.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 of .* the first is extra"),
        (lambda t: t.update(sigmas=torch.zeros(3)), "1 of .* the first is sigmas"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_tensors_that_do_not_fit_the_card(bundle, edit, first):
    change(bundle[0], edit)
    with pytest.raises(ValueError, match=f"does not fit its own card: {first}"):
        load_bundle(bundle[0])


def test_card_of_another_network(bundle):
    change(bundle[0], network={**OPTIONS, "nf": 12})
    with pytest.raises(ValueError, match="does not fit its own card"):
        load_bundle(bundle[0])


def test_card_of_a_network_we_do_not_know(bundle):
    change(bundle[0], network={**OPTIONS, "heads": 2})
    with pytest.raises(ValueError, match="unknown option heads"):
        load_bundle(bundle[0])


def test_unknown_name():
    with pytest.raises(ValueError, match="model must be one of emoji32, mnist32, mnist32-classifier, got 'mnist64'"):
        models.load("mnist64")
    assert models.names() == ["emoji32", "mnist32", "mnist32-classifier"]


def test_importing_the_models_does_not_import_safetensors():
    code = "import sys, fastscore.models; assert 'safetensors' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
