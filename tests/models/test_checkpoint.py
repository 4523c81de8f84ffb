"""Checkpoints of other codebases: golden outputs, every container, and files that are wrong, cut off or malicious."""

import copy
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastscore.models import DDIMConfig, NCSNppConfig, create, load_bundle, load_checkpoint, save_bundle
from fastscore.score import Convention
from fastscore.sde import VESDE, VPSDE
from fastscore.testing.golden_networks import load_networks

GOLDEN = Path(__file__).parents[1] / "golden" / "networks"
SCORE_SDE = {"image_size": 16, "centered": False, "scale_by_sigma": True, "skip_rescale": True}
NCSNV2 = {"image_size": 16, "centered": False}
CHECKPOINTS = {
    "checkpoint_ncsnpp_ve": (SCORE_SDE, Convention("score", "sigma")),
    "checkpoint_ncsnv2": (NCSNV2, Convention("score", "noise_index", 10)),
}


def assert_output(network, name, weights):
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    expected = tensors[f"out_{weights}"]
    with torch.no_grad():
        error = (network(tensors["x"], tensors["labels"]) - expected).abs().max()
    assert error <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_golden_training_checkpoints(name, weights):
    options, convention = CHECKPOINTS[name]
    network = load_checkpoint(GOLDEN / f"{name}.pth", weights=weights, config=options)
    assert_output(network, name, weights)
    assert network.sde == VESDE(0.01, 50.0)
    assert network.convention == convention
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_averages_are_the_default():
    assert_output(load_checkpoint(GOLDEN / "checkpoint_ncsnpp_ve.pth", config=SCORE_SDE), "checkpoint_ncsnpp_ve", "ema")


@pytest.fixture(scope="module")
def content():
    """What the golden file of score_sde holds."""
    return torch.load(GOLDEN / "checkpoint_ncsnpp_ve.pth", weights_only=False)


@pytest.fixture
def saved(tmp_path):
    def save(content, name="x.pth", **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


def test_formats_of_older_versions(saved, content):
    path = saved(content, _use_new_zipfile_serialization=False)
    assert_output(load_checkpoint(path, config=SCORE_SDE), "checkpoint_ncsnpp_ve", "ema")


def test_numbers_of_numpy_1(tmp_path):
    """Which called the module of its scalars numpy.core."""
    with (
        zipfile.ZipFile(GOLDEN / "checkpoint_ncsnpp_ve.pth") as old,
        zipfile.ZipFile(tmp_path / "x.pth", "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in (tmp_path / "x.pth").read_bytes()
    assert_output(load_checkpoint(tmp_path / "x.pth", config=SCORE_SDE), "checkpoint_ncsnpp_ve", "ema")


# one network of ddim in every container that is a list or a dict, with averages that differ from the raw weights

DDIM = {"image_size": 16}


@pytest.fixture(scope="module")
def ddim():
    case = load_networks(GOLDEN, "ddim")["ddim_model"]
    return case, {key: 0.5 * value for key, value in case.state_dict.items()}


def parallel(state):
    return {f"module.{key}": value for key, value in state.items()}


@pytest.mark.parametrize("prefix", [parallel, dict])
def test_list_of_ddim(ddim, saved, prefix):
    case, other = ddim
    path = saved([prefix(other), {"state": {}, "param_groups": []}, 3, 400, case.state_dict])
    case.assert_agrees(load_checkpoint(path, config=DDIM))
    raw = load_checkpoint(path, weights="raw", config=DDIM)
    assert torch.equal(raw.conv_in.weight, other["conv_in.weight"])


def test_list_without_averages(ddim, saved):
    case, _ = ddim
    path = saved([parallel(case.state_dict), {"state": {}}])
    with pytest.raises(ValueError, match="holds no averaged weights: its raw ones are loaded by weights='raw'"):
        load_checkpoint(path, config=DDIM)
    case.assert_agrees(load_checkpoint(path, config=DDIM, weights="raw"))


def test_k_diffusion_with_a_network_of_ours(ddim, saved):
    case, other = ddim
    path = saved({"model": other, "model_ema": case.state_dict, "opt": {}, "step": 3, "gns_stats": None})
    case.assert_agrees(load_checkpoint(path, config=DDIM))
    assert torch.equal(load_checkpoint(path, weights="raw", config=DDIM).conv_in.bias, other["conv_in.bias"])


def test_k_diffusion_with_a_network_of_its_own(saved):
    state = {"inner_model.u_net.d_blocks.0.0.main.0.weight": torch.zeros(3)}
    path = saved({"model": state, "model_ema": state, "step": 3})
    with pytest.raises(ValueError, match=r"\(k-diffusion\) holds no network of ncsnpp, ddim, adm, .*d_blocks"):
        load_checkpoint(path)


def test_plain_state_dict_in_safetensors(ddim, tmp_path):
    case, _ = ddim
    save_file(case.state_dict, tmp_path / "x.safetensors")
    for weights in ("ema", "raw"):  # there is one set
        case.assert_agrees(load_checkpoint(tmp_path / "x.safetensors", config=DDIM, weights=weights))


def test_half_precision_becomes_float32(ddim, saved):
    case, _ = ddim  # whose values float16 can hold
    path = saved({key: value.half() for key, value in case.state_dict.items()})
    case.assert_agrees(load_checkpoint(path, config=DDIM))


# what the caller says


def test_a_name_sets_sde_and_convention(saved):
    network = create("ncsnv2-cifar10")
    path = saved(network.state_dict())
    loaded = load_checkpoint(path, config="ncsnv2-cifar10")
    assert loaded.config == network.config
    assert (loaded.sde, loaded.convention) == (network.sde, network.convention)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_a_config_object(ddim, saved):
    case, _ = ddim
    config = DDIMConfig(image_size=16, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,))
    network = load_checkpoint(saved(case.state_dict), config=config)
    assert network.config == config
    assert network.sde is None
    assert network.card is None
    case.assert_agrees(network)


def test_a_card(ddim, saved, tmp_path):
    case, _ = ddim
    card = {
        "network": {"image_size": 16, "dropout": 0.3},
        "sde": "VPSDE",
        "sde_options": {"beta_min": 0.2, "beta_max": 10.0},
        "convention": {"prediction": "v", "label": "scaled_time"},
    }
    network = load_checkpoint(saved(case.state_dict), config=card)
    assert network.sde == VPSDE(0.2, 10.0)
    assert network.convention == Convention("v", "scaled_time")
    assert network.config.dropout == 0.3
    with pytest.raises(ValueError, match=r"config with network must have sde, .*; convention is missing"):
        load_checkpoint(tmp_path / "x.pth", config={k: v for k, v in card.items() if k != "convention"})


def test_a_loaded_network_can_be_bundled(tmp_path):
    network = load_checkpoint(GOLDEN / "checkpoint_ncsnpp_ve.pth", config=SCORE_SDE)
    save_bundle(tmp_path / "x.safetensors", network, network.card, dtype=torch.float32)
    for loaded in (load_bundle(tmp_path / "x.safetensors"), load_checkpoint(tmp_path / "x.safetensors")):
        assert_output(loaded, "checkpoint_ncsnpp_ve", "ema")
        assert loaded.card == network.card
        assert loaded.card["source"] == {"file": "checkpoint_ncsnpp_ve.pth", "format": "score_sde", "weights": "ema"}
    with pytest.raises(ValueError, match=r"config must be None for .*, whose card says what it is"):
        load_checkpoint(tmp_path / "x.safetensors", config=SCORE_SDE)


def test_what_has_to_be_said_is_asked_for():
    with pytest.raises(ValueError, match=r"does not say image_size, scale_by_sigma, centered, skip_rescale of its"):
        load_checkpoint(GOLDEN / "checkpoint_ncsnpp_ve.pth")
    with pytest.raises(ValueError, match=r"does not say centered of its network 'ncsnv2'"):
        load_checkpoint(GOLDEN / "checkpoint_ncsnv2.pth", config={"image_size": 16})


def test_published_configurations_that_fit_are_suggested(saved):
    with torch.device("meta"):
        keys = create("ddim-cifar10").state_dict()
    path = saved({key: torch.zeros(1).expand(value.shape) for key, value in keys.items()})
    with pytest.raises(ValueError, match=r"does not say image_size .* by a name; ddim-cifar10 may fit"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (3, TypeError, "config must be a name, a NetworkConfig or a mapping, got int"),
        ("nobody", ValueError, "there is no configuration 'nobody'"),
        ({**SCORE_SDE, "image_size": "16"}, ValueError, "image_size must be an integer"),
        ({**SCORE_SDE, "image_size": None}, ValueError, "does not say image_size of"),
        ({"heads": 2, **SCORE_SDE}, ValueError, "unknown option heads"),
        ({"nf": 16, **SCORE_SDE}, ValueError, "config has nf 16, .* has 8"),
        ({"sigma_max": 90.0, **SCORE_SDE}, ValueError, "config has sigma_max 90.0, .* has 50.0"),
        ("ddim-cifar10", ValueError, "config is of a network 'ddim', .* holds a network 'ncsnpp'"),
    ],
)
def test_config_that_is_wrong(config, error, message):
    with pytest.raises(error, match=message):
        load_checkpoint(GOLDEN / "checkpoint_ncsnpp_ve.pth", config=config)


def test_noise_levels_of_a_full_config_are_checked():
    config = NCSNppConfig(image_size=16, nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,), sigma_max=90.0)
    with pytest.raises(ValueError, match=r"noise levels sigmas from 90 to 0.01, .* has them from 50 to 0.01"):
        load_checkpoint(GOLDEN / "checkpoint_ncsnpp_ve.pth", config=config)


def test_weights_that_nobody_has():
    with pytest.raises(ValueError, match="weights must be 'ema' or 'raw', got 'best'"):
        load_checkpoint(GOLDEN / "checkpoint_ncsnpp_ve.pth", weights="best")


# files that are wrong

FULL = NCSNppConfig(image_size=16, nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,))


def test_keys_that_do_not_fit_are_counted_and_named(content, saved):
    model = dict(content["model"])
    for index in range(1, 6):
        del model[next(key for key in model if key.startswith(f"module.all_modules.{10 + index}."))]
    model["module.extra"] = torch.zeros(1)
    model["module.all_modules.0.W"] = torch.zeros(3)
    path = saved({**content, "model": model})
    message = (
        r"5 missing \(\S+, \S+, \S+, \.\.\.\); 1 unexpected \(extra\); 1 of another shape \(\S+W \(3,\), not \(8,\)\)"
    )
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, weights="raw", config=FULL)


def test_keys_that_would_tell_the_options_are_missing(content, saved):
    model = {key: value for key, value in content["model"].items() if "all_modules.3." not in key}
    with pytest.raises(
        ValueError, match=r"looks like a network 'ncsnpp', but does not tell its options: all_modules.3"
    ):
        load_checkpoint(saved({**content, "model": model}), config=SCORE_SDE)
    with pytest.raises(ValueError, match=r"2 missing \(all_modules.3.weight, all_modules.3.bias\)"):
        load_checkpoint(saved({**content, "model": model}), weights="raw", config=FULL)


def test_averages_of_another_number_of_parameters(content, saved):
    changed = copy.deepcopy(content)
    changed["ema"]["shadow_params"].pop()
    with pytest.raises(ValueError, match="holds averages of 155 parameters, the network trains 156"):
        load_checkpoint(saved(changed), config=SCORE_SDE)


def test_averages_in_another_order(content, saved):
    changed = copy.deepcopy(content)
    changed["ema"]["shadow_params"].reverse()
    with pytest.raises(ValueError, match="of another shape"):
        load_checkpoint(saved(changed), config=SCORE_SDE)


def test_a_parameter_without_average_is_missing(ddim, saved):
    """Its raw value is no substitute."""
    case, other = ddim
    averaged = {key: value for key, value in case.state_dict.items() if key != "conv_out.bias"}
    with pytest.raises(ValueError, match=r"1 missing \(conv_out.bias\)"):
        load_checkpoint(saved([other, {}, 0, 0, averaged]), config=DDIM)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "net": {}}, "holds a dict of epoch, net; accepted are checkpoints of score_sde"),
        ([1, 2], "holds a list; accepted are"),
        ({"model_ema": {"a": torch.zeros(1)}}, "holds a dict of model_ema; accepted are"),
        ({"model": {"a": torch.zeros(1)}, "ema": {"shadow_params": [3]}}, "holds a dict of model, ema; accepted are"),
        (7, "holds a int; accepted are"),
        ({"fc.weight": torch.zeros(2)}, r"\(state dict\) holds no network of .*: its keys are fc.weight"),
    ],
)
def test_content_of_no_known_kind(saved, content, message):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(saved(content))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file(content, saved, part, zipped):
    path = saved(content, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ValueError, match=r"x.pth (is damaged or no checkpoint|was not loaded)"):
        load_checkpoint(path, config=SCORE_SDE)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "x.pth").write_text("hello, world")
    with pytest.raises(ValueError, match=r"x.pth is damaged or no checkpoint \("):
        load_checkpoint(tmp_path / "x.pth")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*none.pth"):
        load_checkpoint(tmp_path / "none.pth")


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def malicious(kind, target):
    if kind == "alone":
        return Malicious(target)
    if kind == "optimizer":
        return {
            "model": {"all_modules.0.W": torch.zeros(1)},
            "ema": {"shadow_params": []},
            "optimizer": Malicious(target),
        }
    return [{"conv_in.weight": torch.zeros(1)}, Malicious(target)]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["alone", "optimizer", "list"])
def test_a_pickle_that_wants_to_run_code_is_refused(saved, tmp_path, kind, zipped):
    target = tmp_path / "made"
    path = saved(malicious(kind, target), _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"was not loaded: only tensors and plain values .* its pickle calls posix\.mkdir$"
    ):
        load_checkpoint(path)
    assert not target.exists()
    torch.load(path, weights_only=False)  # the file is as bad as it should be
    assert target.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_bare_pickle_is_refused(tmp_path, protocol):
    target = tmp_path / "made"
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Malicious(target), protocol=protocol))
    with pytest.raises(ValueError, match="was not loaded: only tensors and plain values are accepted"):
        load_checkpoint(tmp_path / "x.pkl")
    assert not target.exists()
