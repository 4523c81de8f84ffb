"""The training loop: it learns, and a killed run goes on to the same bits."""

import dataclasses
import math

import pytest
import torch

from fastscore.models import ADMConfig, MLPConfig, NCSNppConfig
from fastscore.training import trainer as trainer_module
from fastscore.training.config import CONFIGS, TrainingConfig
from fastscore.training.trainer import Trainer, plot_log, read_log

NETWORK = NCSNppConfig(
    image_size=8,
    num_channels=1,
    nf=8,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(),
    dropout=0.1,
    fir=False,
    progressive_input="none",
    embedding_type="positional",
    scale_by_sigma=False,
    centered=True,
)
CONFIG = TrainingConfig(name="tiny", network=NETWORK, steps=12, batch=4, warmup=2, seed=5)


@pytest.fixture(autouse=True)
def one_thread(threads):
    """The tensors are tiny: on a busy machine a second thread costs more than all else."""
    with threads(1):
        yield


@pytest.fixture
def images():
    return torch.randint(0, 256, (10, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def states_equal(a, b):
    assert a.step == b.step
    for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(x, y)
    for x, y in zip(a.ema.shadow, b.ema.shadow, strict=True):
        assert torch.equal(x, y)
    for x, y in zip(a.optimizer.state.values(), b.optimizer.state.values(), strict=True):
        assert all(torch.equal(x[key], y[key]) for key in ("step", "exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_killed_run_goes_on_to_the_same_bits(images, tmp_path, precision):
    config = dataclasses.replace(CONFIG, precision=precision)
    whole = Trainer(config, images, tmp_path / "whole")
    assert whole.run()

    first = Trainer(config, images, tmp_path / "killed")
    assert not first.run(save_every=5, stop=lambda: first.step >= 7)
    torch.rand(3)  # whatever torch's own generator did meanwhile
    second = Trainer(config, images, tmp_path / "killed")
    assert second.step == 7
    assert second.run()
    states_equal(whole, second)


def test_death_without_a_last_save_loses_the_updates_since_the_checkpoint_only(images, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "LOG_EVERY", 5)
    config = dataclasses.replace(CONFIG, steps=14)
    whole = Trainer(config, images, tmp_path / "whole")
    whole.run()

    dying = Trainer(config, images, tmp_path / "died")

    def die(step, loss):
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dying.run(save_every=4, report=die)
    resumed = Trainer(config, images, tmp_path / "died")
    assert resumed.step == 4
    resumed.run(save_every=4)
    states_equal(whole, resumed)
    logs = [read_log(tmp_path / name / "loss.csv") for name in ("whole", "died")]
    assert [row["step"] for row in logs[0]] == [5, 10]
    for ours, theirs in zip(*logs, strict=True):
        assert ours["loss"] == theirs["loss"]


def test_seed_decides_everything(images, tmp_path):
    runs = [Trainer(dataclasses.replace(CONFIG, seed=seed), images, tmp_path / f"{i}") for i, seed in enumerate((5, 6))]
    assert not torch.equal(runs[0].parameters[2], runs[1].parameters[2])
    assert runs[0]._indices(0).tolist() != runs[1]._indices(0).tolist()


def test_torchs_own_generator_is_left_alone(images, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    Trainer(CONFIG, images, tmp_path).update()
    assert torch.equal(torch.rand(2), expected)


def test_every_image_once_an_epoch(images, tmp_path):
    trainer = Trainer(CONFIG, images, tmp_path)
    epochs = [torch.cat([trainer._indices(2 * epoch + piece) for piece in range(2)]).tolist() for epoch in range(2)]
    for rows in epochs:
        assert len(set(rows)) == 8  # 10 images in batches of 4: two are left out, others each time
    assert epochs[0] != epochs[1]


def classes_told(trainer, monkeypatch, updates):
    """The classes that the network is told, update by update, and the rows of the images they belong to."""
    told = []
    forward = trainer.model.forward

    def recording(x, times, y):
        told.append(y)
        return forward(x, times, y)

    monkeypatch.setattr(trainer.model, "forward", recording)
    rows = []
    for _ in range(updates):
        rows.append(trainer._indices(trainer.step))
        trainer.update()
    return torch.stack(told), torch.stack(rows)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_network_is_told_the_class_of_each_image_or_none(tmp_path, monkeypatch, dropout):
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(40) % 3
    network = ADMConfig(
        image_size=8,
        in_channels=1,
        out_channels=1,
        model_channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        num_classes=4,
        null_class=True,
    )
    config = dataclasses.replace(CONFIG, network=network, batch=20, label_dropout=dropout)
    trainer = Trainer(config, images, tmp_path, labels=labels)
    told, rows = classes_told(trainer, monkeypatch, 6)
    hidden = told == 3
    assert torch.equal(told[~hidden], labels[rows][~hidden])
    assert hidden.double().mean() == pytest.approx(dropout, abs=4 * (dropout * (1 - dropout) / 120) ** 0.5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels must be given for its classes, got NoneType"),
        (torch.zeros(9, dtype=torch.int64), r"labels must have shape \(10,\), like images, got \(9,\)"),
        (torch.full((10,), 3), r"labels must lie in \[0, 3\)"),
    ],
    ids=["none", "shape", "range"],
)
def test_bad_labels_are_refused(images, tmp_path, labels, message):
    network = ADMConfig(image_size=8, model_channels=32, channel_mult=(1,), num_classes=4, null_class=True)
    with pytest.raises(ValueError, match=message):
        Trainer(dataclasses.replace(CONFIG, network=network), images, tmp_path, labels=labels)
    with pytest.raises(ValueError, match="labels must be None for a network without classes, got Tensor"):
        Trainer(CONFIG, images, tmp_path, labels=torch.zeros(10, dtype=torch.int64))


def test_learning_rate(images, tmp_path):
    config = dataclasses.replace(CONFIG, lr=1.0, warmup=4, steps=12)
    trainer = Trainer(config, images, tmp_path)

    def rates(trainer):
        for trainer.step in range(12):
            yield trainer.learning_rate()

    cosine = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(1, 9)]
    assert list(rates(trainer)) == pytest.approx([0.25, 0.5, 0.75, 1.0, *cosine], abs=1e-12)
    trainer.config = dataclasses.replace(config, schedule="constant")
    assert list(rates(trainer)) == [0.25, 0.5, 0.75, *[1.0] * 9]


def test_it_learns(tmp_path):
    """One constant image: the noise can be told from the input, and the loss of saying nothing is 1."""
    images = torch.full((8, 1, 8, 8), 200, dtype=torch.uint8)
    trainer = Trainer(dataclasses.replace(CONFIG, steps=120, batch=8, lr=5e-3), images, tmp_path)
    trainer.run()
    losses = [row["loss"] for row in read_log(tmp_path / "loss.csv")]
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] < 0.5


def test_other_config_is_not_resumed(images, tmp_path):
    trainer = Trainer(CONFIG, images, tmp_path)
    trainer.save()
    with pytest.raises(ValueError, match=r"checkpoint.pt was made with other values of lr, seed: use its config"):
        Trainer(dataclasses.replace(CONFIG, lr=0.5, seed=1), images, tmp_path)


def test_checkpoint_is_replaced_as_a_whole(images, tmp_path, monkeypatch):
    trainer = Trainer(CONFIG, images, tmp_path)
    trainer.save()
    before = trainer.checkpoint.read_bytes()

    def disk_full(state, path):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    trainer.update()
    with pytest.raises(OSError, match="no space"):
        trainer.save()
    assert trainer.checkpoint.read_bytes() == before


def test_non_finite_loss_stops_the_run(images, tmp_path):
    trainer = Trainer(CONFIG, images, tmp_path)
    with torch.no_grad():
        trainer.parameters[0].fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="step 0: the loss is nan"):
        trainer.update()


@pytest.mark.parametrize(
    "images",
    [torch.zeros(10, 1, 8, 8), torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(10, 8, 8, dtype=torch.uint8)],
)
def test_bad_images_are_refused(images, tmp_path):
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, C, H, W\) with N of at least the batch of 4, got"):
        Trainer(CONFIG, images, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"batch": 1.5}, "batch must be an integer of at least 1, got 1.5"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"sde": "VP"}, "sde must be one of VESDE, VPSDE, SubVPSDE, got 'VP'"),
        ({"schedule": "linear"}, "schedule must be one of cosine, constant, got 'linear'"),
        ({"precision": "float16"}, "precision must be one of float32, bfloat16, got 'float16'"),
    ],
)
def test_bad_config_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


OTHER_ARCHITECTURE = dataclasses.replace(CONFIG, name="mlp", network=MLPConfig(dim=3))


@pytest.mark.parametrize("config", [CONFIG, OTHER_ARCHITECTURE, *CONFIGS.values()], ids=lambda config: config.name)
def test_config_survives_a_checkpoint(config, tmp_path):
    torch.save(config.to_dict(), tmp_path / "config.pt")
    assert TrainingConfig.from_dict(torch.load(tmp_path / "config.pt", weights_only=True)) == config


def test_loss_curve(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws the loss curve")
    (tmp_path / "loss.csv").write_text("step,loss,lr,images_per_second\n50,0.5,0.001,10\n100,0.25,0.001,10\n")
    plot_log(tmp_path / "loss.csv", tmp_path / "loss.png", "a title")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
