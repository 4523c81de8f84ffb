"""Folders of diffusers: golden numbers of its U-Nets in the layouts of DDPM and NCSN++, and the installed package."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastscore.models import DDIMUNet, NCSNpp, create, load_checkpoint
from fastscore.models.formats import diffusers_keys
from fastscore.schedule import DiscreteVPSDE
from fastscore.score import Convention
from fastscore.sde import VESDE
from fastscore.testing.golden_networks import load_networks

CASES = load_networks(Path(__file__).parents[1] / "golden" / "networks", "diffusers")
WEIGHTS = "diffusion_pytorch_model.safetensors"
LEGACY = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def write(folder, case, rename=lambda key: key, **changed):
    """The folder that save_pretrained would have written."""
    folder.mkdir(exist_ok=True)
    config = {"_class_name": "UNet2DModel", "_diffusers_version": "0.42.1", **case.config, **changed}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({rename(key): value.contiguous() for key, value in case.state_dict.items()}, folder / WEIGHTS)
    return folder


def assert_golden(network, case):
    tensors = case.tensors | {"labels": case.tensors["timestep"]}
    dataclasses.replace(case, tensors=tensors, state_dict=network.state_dict()).assert_agrees(network)


@pytest.mark.parametrize("name", CASES)
def test_golden(name, tmp_path):
    network = load_checkpoint(write(tmp_path, CASES[name]))
    assert type(network) is {"diffusers_ddpm": DDIMUNet, "diffusers_ncsnpp": NCSNpp}[name]
    assert not network.training
    assert_golden(network, CASES[name])


def test_older_names_of_attention(tmp_path):
    def old(key):
        for new, name in LEGACY.items():
            key = key.replace(f".{new}.", f".{name}.") if ".attentions." in key else key
        return key

    case = CASES["diffusers_ddpm"]
    assert any(".proj_attn." in old(key) for key in case.state_dict)
    assert_golden(load_checkpoint(write(tmp_path, case, old)), case)


def live(layout, tmp_path):
    """A random network of the installed package, two levels down with attention in the middle one, and its folder."""
    diffusers = pytest.importorskip("diffusers")
    skip = "Skip" if layout == "ncsnpp" else ""
    options = {
        "sample_size": 16,
        "layers_per_block": 2,
        "block_out_channels": (32, 64, 32),
        "down_block_types": tuple(f"{attention}{skip}DownBlock2D" for attention in ("", "Attn", "")),
        "up_block_types": tuple(f"{attention}{skip}UpBlock2D" for attention in ("", "Attn", "")),
        "norm_eps": 1e-6,
        "attention_head_dim": None,
        **(
            {
                "time_embedding_type": "fourier",
                "mid_block_scale_factor": math.sqrt(2),
                "norm_num_groups": None,
                "center_input_sample": True,
            }
            if layout == "ncsnpp"
            else {"downsample_padding": 0, "freq_shift": 1, "flip_sin_to_cos": False}
        ),
    }
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**options).eval()
    network.save_pretrained(tmp_path)
    return network


@pytest.mark.parametrize("layout", ["ddpm", "ncsnpp"])
def test_installed_package(layout, tmp_path):
    theirs, ours = live(layout, tmp_path), load_checkpoint(tmp_path)
    x = torch.randn(2, 3, 16, 16)
    labels = torch.tensor([3.0, 700.0]) if layout == "ddpm" else torch.tensor([0.05, 1.5])
    with torch.no_grad():
        expected = theirs(x, labels).sample
        error = (ours(x, labels) - expected).abs().max()
    assert error <= 1e-5 * expected.abs().max()


def test_attended_groups_matter(tmp_path):
    """diffusers normalizes narrow attended levels in other groups than score_sde."""
    case = CASES["diffusers_ncsnpp"]
    network = load_checkpoint(write(tmp_path, case))
    assert network.config.attended_groups == 32
    other = NCSNpp(dataclasses.replace(network.config, attended_groups=None))
    other.load_state_dict(network.state_dict())
    with pytest.raises(AssertionError, match="out is off by"):
        assert_golden(other, case)


def test_attended_groups_that_do_not_divide(tmp_path):
    network = load_checkpoint(write(tmp_path, CASES["diffusers_ncsnpp"]))
    with pytest.raises(ValueError, match="attended_groups must divide the 32 channels of an attended level, got 24"):
        NCSNpp(dataclasses.replace(network.config, attended_groups=24))
    with pytest.raises(ValueError, match="attended_groups must be an integer of at least 1, got 0"):
        dataclasses.replace(network.config, attended_groups=0)


def test_wide_networks_are_those_of_score_sde(tmp_path):
    """From 128 channels on, all groups are 32: no option of its own."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        network = diffusers.UNet2DModel(
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(128, 128),
            down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
            up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
            time_embedding_type="fourier",
            norm_eps=1e-6,
            attention_head_dim=None,
            mid_block_scale_factor=math.sqrt(2),
            norm_num_groups=None,
        )
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **network.config}))
    save_file({key: torch.zeros(value.shape) for key, value in network.state_dict().items()}, tmp_path / WEIGHTS)
    config = load_checkpoint(tmp_path).config
    assert config.attended_groups is None
    assert config.centered


PUBLISHED = {
    "ddim-cifar10": {
        "sample_size": 32,
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        **{"downsample_padding": 0, "freq_shift": 1, "flip_sin_to_cos": False},
    },
    "ncsnpp-celebahq-256": {
        "sample_size": 256,
        "block_out_channels": (128, 128, 256, 256, 256, 256, 256),
        "down_block_types": (*["SkipDownBlock2D"] * 4, "AttnSkipDownBlock2D", *["SkipDownBlock2D"] * 2),
        "up_block_types": (*["SkipUpBlock2D"] * 2, "AttnSkipUpBlock2D", *["SkipUpBlock2D"] * 4),
        **{"time_embedding_type": "fourier", "mid_block_scale_factor": math.sqrt(2), "norm_num_groups": None},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    """Every tensor of the published networks has its place, in the shape it has there."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel(norm_eps=1e-6, attention_head_dim=None, **PUBLISHED[name])
        ours = create(name).state_dict()
    places = diffusers_keys.ddpm_places if name == "ddim-cifar10" else diffusers_keys.ncsnpp_places
    found = diffusers_keys.renamed(theirs.state_dict(), places(theirs.config))
    assert {key: value.shape for key, value in found.items()} == {
        key: value.shape for key, value in ours.items() if key != "sigmas"
    }


SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 1e-3, "beta_end": 0.03, "beta_schedule": "linear"}


@pytest.mark.parametrize("place", [".", "../scheduler"])
def test_the_sde_of_a_scheduler_of_ddpm(tmp_path, place):
    folder = write(tmp_path / "unet", CASES["diffusers_ddpm"])
    assert load_checkpoint(folder).sde is None
    (folder / place).mkdir(exist_ok=True)
    (folder / place / "scheduler_config.json").write_text(json.dumps({**SCHEDULER, "prediction_type": "v_prediction"}))
    network = load_checkpoint(folder)
    expected = DiscreteVPSDE.linear(1000, 1e-3, 0.03, min_log_snr=None)
    assert torch.equal(network.sde.log_alphas, expected.log_alphas)
    assert network.convention == Convention("v", "timestep")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("scaled_linear", DiscreteVPSDE.scaled_linear(1000, 1e-3, 0.03, min_log_snr=None)),
        ("squaredcos_cap_v2", DiscreteVPSDE.cosine(1000, min_log_snr=None)),
    ],
)
def test_other_schedules(tmp_path, schedule, expected):
    folder = write(tmp_path, CASES["diffusers_ddpm"])
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER | {"beta_schedule": schedule}))
    network = load_checkpoint(folder)
    assert torch.equal(network.sde.log_alphas, expected.log_alphas)
    assert network.convention == Convention("noise", "timestep")


@pytest.mark.parametrize(
    "change", [{"trained_betas": [0.1]}, {"beta_schedule": "sigmoid"}, {"rescale_betas_zero_snr": True}]
)
def test_a_schedule_that_we_do_not_have_is_not_guessed(tmp_path, change):
    folder = write(tmp_path, CASES["diffusers_ddpm"])
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER | change))
    assert load_checkpoint(folder).sde is None


def test_the_sde_of_a_scheduler_of_score_sde(tmp_path):
    folder = write(tmp_path, CASES["diffusers_ncsnpp"])
    levels = {"sigma_min": 0.02, "sigma_max": 348.0, "num_train_timesteps": 500}
    (folder / "scheduler_config.json").write_text(json.dumps(levels))
    network = load_checkpoint(folder)
    assert network.sde == VESDE(0.02, 348.0)
    assert network.convention == Convention("score", "sigma")
    assert network.sigmas.shape == (500,)
    assert_golden(network, CASES["diffusers_ncsnpp"])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ddpm", {"norm_eps": 1e-5}, "norm_eps must be 1e-06, got 1e-05"),
        ("ddpm", {"flip_sin_to_cos": True}, "flip_sin_to_cos must be False, got True"),
        ("ddpm", {"attention_head_dim": 8}, "attention_head_dim must be None, got 8"),
        ("ddpm", {"num_class_embeds": 10}, "num_class_embeds must be None, got 10"),
        ("ddpm", {"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types must be"),
        ("ddpm", {"time_embedding_dim": 64}, "time_embedding_dim must be 128, got 64"),
        ("ncsnpp", {"mid_block_scale_factor": 1}, "mid_block_scale_factor must be 1.414"),
        ("ncsnpp", {"norm_num_groups": 32}, "norm_num_groups must be None, got 32"),
        ("ddpm", {"_class_name": "UNet1DModel"}, "must hold a UNet2DModel with .* got UNet1DModel"),
    ],
)
def test_other_networks_are_refused(tmp_path, name, change, message):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(write(tmp_path, CASES[f"diffusers_{name}"], **change))


def test_an_option_that_the_file_leaves_out_has_its_default(tmp_path):
    folder = write(tmp_path, CASES["diffusers_ddpm"])
    config = json.loads((folder / "config.json").read_text())
    del config["freq_shift"]  # of which the default is 0
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="freq_shift must be 1, got 0"):
        load_checkpoint(folder)


def test_image_size_that_the_folder_does_not_say(tmp_path):
    folder = write(tmp_path, CASES["diffusers_ddpm"], sample_size=None)
    with pytest.raises(ValueError, match="does not say image_size of its network 'ddim'"):
        load_checkpoint(folder)
    assert_golden(load_checkpoint(folder, config={"image_size": 16}), CASES["diffusers_ddpm"])


def test_config_that_contradicts_the_folder(tmp_path):
    folder = write(tmp_path, CASES["diffusers_ddpm"])
    with pytest.raises(ValueError, match=r"config has ch 64, .* has 32"):
        load_checkpoint(folder, config={"ch": 64})
    with pytest.raises(ValueError, match=r"config has ch 128, .* has 32"):
        load_checkpoint(folder, config="ddim-cifar10")
    with pytest.raises(ValueError, match=r"config is of a network 'ncsnpp', .* holds a network 'ddim'"):
        load_checkpoint(folder, config="ncsnpp-cifar10")


def test_what_does_not_fit_is_named(tmp_path):
    folder = write(tmp_path, CASES["diffusers_ddpm"])
    state = load_file(folder / WEIGHTS)
    state["extra.weight"] = state.pop("conv_out.bias")
    save_file(state, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"1 missing \(conv_out.bias\); 1 unexpected \(extra.weight\)"):
        load_checkpoint(folder)


@pytest.mark.parametrize("missing", ["config.json", WEIGHTS])
def test_incomplete_folder(tmp_path, missing):
    folder = write(tmp_path, CASES["diffusers_ddpm"])
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no .*{missing}"):
        load_checkpoint(folder)


def test_weights_without_their_folder(tmp_path):
    write(tmp_path, CASES["diffusers_ddpm"])
    with pytest.raises(ValueError, match=r"has the keys of diffusers: give the folder that has its config\.json"):
        load_checkpoint(tmp_path / WEIGHTS)
