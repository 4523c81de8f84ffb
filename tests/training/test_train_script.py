"""scripts/train.py as a person runs it: interrupt, go on, finish, mistakes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastscore.models import load_bundle

pytest.importorskip("tqdm", reason="the progress bar of scripts/train.py")
pytest.importorskip("matplotlib", reason="the loss curve of scripts/train.py")

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"


def command(out, *options):
    return [sys.executable, str(SCRIPT), "--out", str(out), "--threads", "1", *options]


def run(out, *options):
    return subprocess.run(command(out, *options), capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def out(tmp_path):
    """An output folder with a small stand-in for the MNIST cache."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (8, 1, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", images=images, labels=np.zeros(8, np.int64))
    return tmp_path


def test_terminated_run_saves_and_the_same_command_finishes_it(out):
    options = ("--steps", "6", "--batch", "2", "--save-every", "1000")
    process = subprocess.Popen(command(out, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = out / "loss.csv"  # written when the first update begins
    deadline = time.monotonic() + 100
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 143, stderr
    assert "the same command goes on from there" in stdout
    assert (out / "checkpoint.pt").exists()

    done = run(out, *options)
    assert done.returncode == 0, done.stderr
    network = load_bundle(out / "mnist32.safetensors")
    assert network.shape == (1, 32, 32)
    assert network.card["steps_made"] == 6
    assert network.card["command"].endswith(" ".join(options))


def test_config_of_the_checkpoint_is_held_to(out):
    assert run(out, "--steps", "1", "--batch", "2").returncode == 0
    other = run(out, "--steps", "2", "--batch", "2")
    assert other.returncode == 2
    assert other.stderr.strip().splitlines()[-1].startswith("train.py: ")
    assert "checkpoint.pt was made with other values of steps" in other.stderr
    assert "Traceback" not in other.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "0"), "train.py: steps must be an integer of at least 1, got 0"),
        (("--config", "imagenet"), "argument --config: invalid choice: 'imagenet'"),
        (("--batch", "9"), "train.py: images must be uint8 (N, C, H, W) with N of at least the batch of 9"),
    ],
)
def test_mistakes_are_one_line_and_code_2(out, options, message):
    failed = run(out, *options)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
