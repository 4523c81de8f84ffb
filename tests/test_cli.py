"""The command `fastscore`: its files, its exit codes and every sentence it refuses with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import fastscore
from fastscore import cli
from fastscore._output import image_grid, writer
from fastscore.samplers import describe


class TinyModel(torch.nn.Module):
    """Noise prediction of data N(0, I) in [-1, 1]; element-wise, so that its bits do not depend on the batch."""

    sde = fastscore.VPSDE()
    convention = fastscore.Convention("noise", label="scaled_time")
    config = SimpleNamespace(centered=True)

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.shape = (channels, 4, 4)

    def forward(self, x, labels):
        return x * (1 + labels[:, None, None, None] / 999) / 2


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(fastscore.models, "load", lambda name: TinyModel())


def run(*args: object) -> int:
    steps = [] if {"rk45", "dpm-adaptive-12"} & set(args) else ["--steps", "25"]
    return cli.main(["sample", *steps, *map(str, args)])


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.usefixtures("tiny")
class TestSample:
    def test_npz_holds_the_samples_of_the_python_api(self, tmp_path):
        out = tmp_path / "digits.npz"
        assert run("--num", 5, "--seed", 3, "--out", out) == 0
        model = TinyModel()
        expected = fastscore.PCSampler(model.sde, model, steps=25, norm="sample").sample((5, 1, 4, 4), seed=3)
        saved = np.load(out)
        assert saved["samples"].dtype == np.float32
        assert np.array_equal(saved["samples"], expected.numpy())
        settings = json.loads(str(saved["settings"]))
        assert (settings["seed"], settings["steps"], settings["nfe"]) == (3, 25, 50)
        assert files(tmp_path) == ["digits.npz"]

    def test_png_is_the_grid_of_the_npz(self, tmp_path):
        assert run("--num", 3, "--out", tmp_path / "a.npz") == 0
        assert run("--num", 3, "--out", tmp_path / "a.PNG") == 0
        samples = torch.from_numpy(np.load(tmp_path / "a.npz")["samples"])
        with Image.open(tmp_path / "a.PNG") as image:
            assert image.mode == "L"
            assert json.loads(image.info["fastscore"])["num"] == 3
            assert np.array_equal(np.asarray(image), image_grid(samples / 2 + 0.5).numpy())

    def test_an_image_does_not_depend_on_the_batch_split(self, tmp_path):
        for batch in (1, 3, 8):
            assert run("--num", 8, "--batch", batch, "--out", tmp_path / f"{batch}.npz") == 0
        one, three, eight = (np.load(tmp_path / f"{b}.npz")["samples"] for b in (1, 3, 8))
        assert np.array_equal(one, eight)
        assert np.array_equal(three, eight)

    def test_norm_batch_does_depend_on_it(self, tmp_path):
        for batch in (1, 8):
            assert run("--num", 8, "--batch", batch, "--option", "norm=batch", "--out", tmp_path / f"{batch}.npz") == 0
        one, eight = (np.load(tmp_path / f"{b}.npz")["samples"] for b in (1, 8))
        assert not np.array_equal(one, eight)

    def test_every_option_reaches_the_sampler(self, tmp_path):
        base = ["--num", 2, "--out", tmp_path / "x.npz"]
        assert run(*base) == 0
        seen = [np.load(tmp_path / "x.npz")["samples"]]
        for options in (
            ["--seed", 1],
            ["--steps", 26],
            ["--sampler", "euler-maruyama"],
            ["--sampler", "euler-maruyama", "--option", "probability_flow=True"],
            ["--sampler", "dpmpp-2m"],
            ["--sampler", "dpmpp-2m", "--steps", 7],
            ["--sampler", "ddim", "--option", "eta=0.5"],
            ["--sampler", "ddim", "--option", "eta=sigma_hat"],
            ["--sampler", "edm", "--option", "s_churn=20", "--option", "s_noise=1.01"],
            ["--sampler", "rk45", "--option", "rtol=1e-2"],
            ["--option", "predictor=ancestral"],
            ["--option", "corrector=ald"],
            ["--option", "corrector_steps=2"],
            ["--option", "snr=0.2"],
            ["--option", "denoise=False"],
        ):
            assert run(*base, *options) == 0
            samples = np.load(tmp_path / "x.npz")["samples"]
            assert not any(np.array_equal(samples, other) for other in seen), options
            seen.append(samples)

    @pytest.mark.parametrize("name", ["ddpm", "dpm-solver-3s", "unipc-2", "dpm-adaptive-12"])
    def test_an_image_depends_on_seed_and_number_alone(self, tmp_path, name):
        for batch in (1, 4):
            assert run("--num", 4, "--batch", batch, "--sampler", name, "--out", tmp_path / f"{batch}.npz") == 0
        one, four = (np.load(tmp_path / f"{b}.npz")["samples"] for b in (1, 4))
        assert np.array_equal(one, four)

    def test_backend_and_threads(self, tmp_path, capsys, threads):
        with threads(torch.get_num_threads()):
            assert run("--num", 2, "--backend", "reference", "--threads", 1, "--out", tmp_path / "x.npz") == 0
            assert torch.get_num_threads() == 1
        assert "backend reference" in capsys.readouterr().out

    def test_says_what_it_did(self, tmp_path, capsys):
        assert run("--num", 2, "--out", tmp_path / "x.npz") == 0
        line = capsys.readouterr().out
        assert f"{tmp_path / 'x.npz'}: 2 images 1x4x4 of mnist32, seed 0, 50 network calls each, " in line

    def test_replaces_an_older_file(self, tmp_path):
        out = tmp_path / "x.npz"
        out.write_bytes(b"old")
        assert run("--num", 1, "--out", out) == 0
        assert np.load(out)["samples"].shape == (1, 1, 4, 4)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--steps", 0], "steps must be at least 1, got 0"),
            (["--option", "snr=-1"], "snr must be a finite number at least 0, got -1"),
            (["--option", "corrector_steps=-1"], "corrector_steps must be at least 0, got -1"),
            (["--option", "predictor=heun"], "predictor must be one of euler_maruyama, reverse_diffusion, ancestral"),
            (["--option", "corrector=mala"], "corrector must be one of langevin, ald, none, got 'mala'"),
            (["--option", "norm=layer"], "norm must be one of batch, sample, got 'layer'"),
            (["--option", "snr"], "--option takes NAME=VALUE, such as eta=0.5, got 'snr'"),
            (["--option", "=3"], "--option takes NAME=VALUE, such as eta=0.5, got '=3'"),
            (
                ["--sampler", "euler-maruyama", "--option", "snr=1"],
                "euler-maruyama has no option 'snr'; it takes steps",
            ),
            (["--sampler", "rk45", "--steps", 5], "rk45 has no option 'steps'; it takes rtol, atol"),
            (["--sampler", "langevin"], "langevin needs the option 'step_size'"),
            (["--sampler", "dpmpp2m"], "there is no sampler 'dpmpp2m'; did you mean dpmpp-2m"),
            (["--num", 0], "argument --num: must be at least 1, got 0"),
            (["--batch", 0], "argument --batch: must be at least 1, got 0"),
            (["--threads", -2], "argument --threads: must be at least 1, got -2"),
            (["--num", "many"], "argument --num: must be an integer, got 'many'"),
            (["--backend", "tpu"], "backend must be one of auto, reference, cpu, triton, cuda, got 'tpu'"),
            (["--backend", "triton"], "'triton' is not available: "),
            (["--device", "abacus"], "--device: 'abacus' is no device; accepted are cpu, cuda, cuda:0, ..."),
            (["--colour", "red"], "unrecognized arguments: --colour red"),
        ],
    )
    def test_refusals(self, tmp_path, capsys, options, message):
        assert run("--num", 2, "--out", tmp_path / "x.png", *options) == 2
        error = capsys.readouterr().err
        assert error.startswith("fastscore: error: ")
        assert message in error
        assert error.count("\n") == 1
        assert files(tmp_path) == []

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
    def test_no_cuda(self, tmp_path, capsys):
        assert run("--device", "cuda", "--out", tmp_path / "x.png") == 2
        assert capsys.readouterr().err == "fastscore: error: --device cuda: torch sees no CUDA device here\n"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("x.jpg", "the output file must end in .png or .npz, got '{}'"),
        ("x", "the output file must end in .png or .npz, got '{}'"),
        ("nowhere/x.png", "the directory of the output file does not exist: "),
        ("folder.png", "the output file '{}' is a directory"),
    ],
)
def test_a_bad_output_name_is_refused_before_any_work(tmp_path, capsys, monkeypatch, out, message):
    monkeypatch.setattr(fastscore.models, "load", lambda name: pytest.fail("the model was loaded"))
    (tmp_path / "folder.png").mkdir()
    assert run("--out", tmp_path / out) == 2
    assert message.format(tmp_path / out) in capsys.readouterr().err
    assert files(tmp_path) == ["folder.png"]


def test_unknown_model(tmp_path, capsys):
    assert run("--model", "nobody", "--out", tmp_path / "x.png") == 2
    error = capsys.readouterr().err
    assert error.startswith("fastscore: error: ")
    assert "'nobody'" in error
    assert "mnist32" in error
    assert files(tmp_path) == []


def test_a_network_that_fails_leaves_no_file(tmp_path, capsys, monkeypatch):
    class Broken(TinyModel):
        def forward(self, x, labels):
            return x * float("nan")

    monkeypatch.setattr(fastscore.models, "load", lambda name: Broken())
    assert run("--out", tmp_path / "x.png") == 2
    assert "not finite" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_ctrl_c_is_130_and_leaves_no_file(tmp_path, capsys, monkeypatch):
    class Interrupted(TinyModel):
        def forward(self, x, labels):
            raise KeyboardInterrupt

    monkeypatch.setattr(fastscore.models, "load", lambda name: Interrupted())
    assert run("--out", tmp_path / "x.png") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "fastscore: interrupted"
    assert files(tmp_path) == []


def test_a_write_that_fails_keeps_the_old_file(tmp_path):
    out = tmp_path / "x.png"
    out.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"1 or 3 channels, got 2; write an \.npz"):
        writer(out)(torch.zeros(1, 2, 4, 4), centered=False, settings={})
    assert out.read_bytes() == b"old"
    assert files(tmp_path) == ["x.png"]


def test_image_grid():
    images = torch.zeros(3, 1, 2, 2)
    images[0], images[1], images[2] = 0.5, 2.0, -1.0
    grid = image_grid(images, gap=1)
    assert grid.dtype == torch.uint8
    assert grid.tolist() == [
        [128, 128, 0, 255, 255],
        [128, 128, 0, 255, 255],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    color = image_grid(torch.ones(1, 3, 2, 5) * torch.tensor([0.0, 0.2, 1.0])[:, None, None])
    assert color.shape == (2, 5, 3)
    assert color[0, 0].tolist() == [0, 51, 255]


def test_info_names_every_backend_and_its_reason(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"fastscore  {fastscore.__version__}\n" in out
    assert torch.__version__ in out
    assert f"{torch.get_num_threads()} threads" in out
    backends = out.split("backends\n")[1].split("devices\n")[0].splitlines()
    assert [line.split()[0] for line in backends] == ["reference", "cpu", "triton", "cuda"]
    for line in backends:
        name, said = line.split(maxsplit=1)
        reason = fastscore._backend.why_not(name)
        assert said == ("there" if reason is None else f"not there: {reason}")
    assert f", backend {fastscore._backend.resolve(torch.device('cpu'))}\n" in out.split("devices\n")[1]


@pytest.mark.parametrize("arguments", [["--version"], ["sample", "--help"]])
def test_python_dash_m(arguments):
    done = subprocess.run([sys.executable, "-m", "fastscore", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "fastscore" in done.stdout


def test_no_command(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().err == "fastscore: error: the following arguments are required: COMMAND\n"


class TestSamplers:
    def test_lists_every_name_with_one_line(self, capsys):
        assert cli.main(["samplers"]) == 0
        lines = capsys.readouterr().out.splitlines()
        for name in fastscore.samplers.names():
            assert sum(line.startswith(f"{name} ") and describe(name).summary in line for line in lines) == 1

    @pytest.mark.parametrize("name", fastscore.samplers.names())
    def test_shows_the_options_of_one(self, capsys, name):
        assert cli.main(["samplers", name]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{name}: {describe(name).summary}; fastscore.")
        assert all(f"  {option} " in out for option in describe(name).accepted)

    def test_refuses_an_unknown_one(self, capsys):
        assert cli.main(["samplers", "edn"]) == 2
        assert "there is no sampler 'edn'; did you mean edm" in capsys.readouterr().err
