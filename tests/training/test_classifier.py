"""Training a classifier of noisy images: its loss, the shifts of the images, and the loop."""

import math

import pytest
import torch

from fastscore.models import ClassifierConfig
from fastscore.score import Convention
from fastscore.sde import VESDE, VPSDE, SubVPSDE
from fastscore.training import ClassifierTrainer, TrainingConfig, classification_loss
from fastscore.training.classifier import SHIFT, shifted
from fastscore.training.trainer import read_log

TIME = Convention(label="time")
CONFIG = TrainingConfig(
    name="tiny",
    network=ClassifierConfig(image_size=8, num_channels=1, num_classes=2, nf=8, ch_mult=(1, 2), dropout=0.1),
    convention=TIME,
    steps=10,
    batch=4,
    warmup=2,
    seed=5,
)


@pytest.fixture(autouse=True)
def one_thread(threads):
    """The tensors are tiny: on a busy machine a second thread costs more than all else."""
    with threads(1):
        yield


@pytest.fixture
def bars():
    """Lying bars are of class 0, standing ones of class 1."""
    images = torch.zeros(12, 1, 8, 8, dtype=torch.uint8)
    for i in range(6):
        images[i, 0, i + 1] = images[6 + i, 0, :, i + 1] = 255
    return images, torch.arange(12) // 6


@pytest.mark.parametrize("sde", [VESDE(), VPSDE(), SubVPSDE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("label", ["time", "sigma"])
def test_loss_of_a_linear_classifier(sde, label):
    """Logits A x_t + b t, from the formulas: log-sum-exp less the logit of the class."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(4, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    a, b = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((5, 3), (5,)))
    t, y = torch.tensor([0.01, 0.3, 0.7, 1.0], dtype=torch.float64), torch.tensor([4, 0, 2, 2])
    loss = classification_loss(
        lambda x, told: x @ a.T + told[:, None] * b, sde, x0, y, t, noise, convention=Convention(label=label)
    )
    for i in range(4):
        alpha, sigma = (float(value) for value in sde.marginal(t[i]))
        told = float(t[i]) if label == "time" else sigma / alpha
        logits = [float((alpha * x0[i] + sigma * noise[i]) @ a[k]) + told * float(b[k]) for k in range(5)]
        expected = math.log(sum(math.exp(logit - max(logits)) for logit in logits)) + max(logits) - logits[y[i]]
        assert loss[i].item() == pytest.approx(expected, rel=1e-10)


def test_wrong_shapes_are_refused():
    x0 = torch.zeros(2, 1, 2, 2)
    with pytest.raises(ValueError, match=r"t must have shape \(2,\), one time for every sample, got \(3,\)"):
        classification_loss(lambda x, t: x, VPSDE(), x0, torch.zeros(2), torch.ones(3), x0, convention=TIME)


def test_shifted_images_are_pieces_of_wider_ones():
    images = torch.arange(200 * 2 * 4 * 5, dtype=torch.float32).reshape(200, 2, 4, 5)
    torch.manual_seed(0)
    moved, found = shifted(images, 1), set()
    for image, result in zip(images, moved, strict=True):
        rows, columns = torch.arange(4), torch.arange(5)
        for y in (-1, 0, 1):
            for x in (-1, 0, 1):
                if torch.equal(result, image[:, (rows + y).clamp(0, 3)][..., (columns + x).clamp(0, 4)]):
                    found.add((y, x))
                    break
            else:
                continue
            break
        else:
            pytest.fail("a result is no shifted image")
    assert len(found) == 9
    torch.manual_seed(0)
    assert torch.equal(shifted(images, 1), moved)


def test_it_learns_bars_wherever_they_stand(bars, tmp_path):
    images, labels = bars
    config = TrainingConfig(**{**vars(CONFIG), "steps": 150, "batch": 12, "lr": 5e-3})
    trainer = ClassifierTrainer(config, images, tmp_path, labels=labels)
    trainer.run()
    losses = [row["loss"] for row in read_log(tmp_path / "loss.csv")]
    assert losses[0] < 1.2 * math.log(2)
    assert losses[-1] < 0.8 * math.log(2)  # of saying nothing, which is the best at late times
    with torch.no_grad(), trainer.ema.averaged(trainer.model.eval()) as model:
        logits = model(trainer.images, torch.full((12,), 0.01))
    assert torch.equal(logits.argmax(1), labels)


def test_killed_run_goes_on_to_the_same_bits(bars, tmp_path):
    images, labels = bars
    whole = ClassifierTrainer(CONFIG, images, tmp_path / "whole", labels=labels)
    assert whole.run()
    first = ClassifierTrainer(CONFIG, images, tmp_path / "killed", labels=labels)
    assert not first.run(stop=lambda: first.step >= 6)
    torch.rand(3)  # whatever torch's own generator did meanwhile
    second = ClassifierTrainer(CONFIG, images, tmp_path / "killed", labels=labels)
    assert second.step == 6
    assert second.run()
    for x, y in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(x, y)


def test_images_of_a_batch_are_shifted_and_keep_their_labels(bars, tmp_path, monkeypatch):
    images, labels = bars
    trainer = ClassifierTrainer(CONFIG, images, tmp_path, labels=labels)
    seen = []

    def loss(network, sde, x0, y, t, noise, *, convention):
        seen.append((x0, y, convention))
        return classification_loss(network, sde, x0, y, t, noise, convention=convention)

    monkeypatch.setattr("fastscore.training.classifier.classification_loss", loss)
    for _ in range(3):
        trainer.update()
    for step, (x0, y, convention) in enumerate(seen):
        rows = trainer._indices(step)
        assert torch.equal(y, labels[rows])
        assert convention == TIME
        standing = (x0[:, 0] == x0[:, 0, :1]).all(2).all(1)  # all rows alike
        assert torch.equal(standing.long(), y)
        assert not torch.equal(x0, trainer.images[rows])
    assert SHIFT == 2  # what the docstring says


def test_labels_are_needed(bars, tmp_path):
    with pytest.raises(ValueError, match="labels must be given for its classes, got NoneType"):
        ClassifierTrainer(CONFIG, bars[0], tmp_path)
