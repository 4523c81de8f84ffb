"""Options from keys and shapes: those of every published configuration, and of small networks with every option."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from fastscore import models
from fastscore.models import load_checkpoint
from fastscore.models.formats import ddim, guided_diffusion, ncsn, score_sde
from fastscore.testing.golden_networks import load_networks

LAYOUTS = {"ncsnpp": score_sde.layout, "ddim": ddim.layout, "adm": guided_diffusion.layout}
LAYOUTS |= {"ncsn": ncsn.ncsn, "ncsnv2": ncsn.ncsnv2}
GOLDEN = Path(__file__).parents[1] / "golden" / "networks"

# what nobody needs who does not train, or who tells every class; and what no state dict tells
UNNEEDED = {"dropout", "init_scale", "fourier_scale", "null_class"}
UNSAID = {
    "ncsnpp": {"image_size", "centered", "scale_by_sigma", "skip_rescale", "fir", "fir_kernel"},
    "ddim": {"image_size"},
    "adm": {"image_size", "num_heads", "num_head_channels", "use_new_attention_order"},
    "ncsn": {"image_size", "centered"},
    "ncsnv2": {"image_size", "centered"},
}


def state_of(network):
    """Without memory for the parameters; `sigmas` has its values, which tell the noise levels."""
    with torch.device("meta"):
        made = models.create(network)
    state = made.state_dict()
    if "sigmas" in state:
        c = made.config
        ends = torch.tensor([c.sigma_max, c.sigma_min], dtype=torch.float64).log()
        state["sigmas"] = torch.linspace(*ends, c.num_scales, dtype=torch.float64).exp().to(state["sigmas"].dtype)
    return made.config, state


def assert_told(config, state, ignored=()):
    layout = LAYOUTS[config.architecture](state)
    assert layout.architecture == config.architecture
    told = dict(layout.options)
    if layout.attended is not None:
        sizes = [config.image_size >> level for level in range(len(config.ch_mult))]
        told["attn_resolutions"] = tuple(config.image_size >> level for level in layout.attended)
        assert set(told["attn_resolutions"]) == set(sizes) & set(config.attn_resolutions)
        del told["attn_resolutions"]
    for name, value in told.items():
        if name not in ignored:
            assert getattr(config, name) == value, name
    fields = {field.name for field in dataclasses.fields(config)}
    untold = fields - set(told) - UNNEEDED - set(ignored) - {"attn_resolutions"}
    assert untold <= UNSAID[config.architecture], untold
    named = {name for names in layout.unsaid for name in names.split(" or ")}
    assert untold - {"fir_kernel"} == named - set(ignored)


@pytest.mark.parametrize("name", models.configs())
def test_published_configurations(name):
    config, state = state_of(name)
    # of blocks that resample, and of pyramids that are not there, there is nothing to tell
    assert_told(config, state, ("resamp_with_conv", "progressive_combine", "attended_groups"))


SMALL = {"image_size": 16, "num_channels": 2, "nf": 8, "num_res_blocks": 2, "sigma_max": 348.0, "num_scales": 7}


@pytest.mark.parametrize("combine", ["sum", "cat"])
@pytest.mark.parametrize("embedding", ["fourier", "positional"])
@pytest.mark.parametrize(
    ("fir", "output", "input"),
    list(itertools.product((True, False), ("none", "output_skip", "residual"), ("none", "input_skip", "residual"))),
)
def test_options_of_ncsnpp(fir, output, input, embedding, combine):
    for widths, attended in (((1, 2, 2), (8, 4)), ((2, 1), (16,))):
        options = {
            "fir": fir,
            "progressive": output,
            "progressive_input": input,
            "progressive_combine": combine,
            "embedding_type": embedding,
            "ch_mult": widths,
            "attn_resolutions": attended,
        }
        ignored = ["resamp_with_conv", "attended_groups"] + ["progressive_combine"] * (input != "input_skip")
        assert_told(*state_of(SMALL | options), ignored)


@pytest.mark.parametrize("convolved", [True, False])
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("conditional", [True, False])
def test_options_of_ddpm(convolved, levels, blocks, conditional):
    options = {
        **{"resblock_type": "ddpm", "fir": False, "skip_rescale": False, "progressive_input": "none"},
        **{"embedding_type": "positional", "num_groups": 32, "nf": 32, "ch_mult": (1, 2, 1)[:levels]},
        **{"resamp_with_conv": convolved, "num_res_blocks": blocks, "conditional": conditional},
        "attn_resolutions": (16, 4),
    }
    ignored = ["attended_groups", "progressive_combine"] + ["resamp_with_conv"] * (levels == 1)
    assert_told(*state_of(SMALL | options), ignored)


def test_one_level_of_ncsnpp():
    options = {"ch_mult": (1,), "attn_resolutions": (16,), "progressive_input": "none"}
    assert_told(*state_of(SMALL | options), ("resamp_with_conv", "attended_groups", "progressive_combine"))


@pytest.mark.parametrize("updown", [True, False])
@pytest.mark.parametrize("multipliers", [(1,), (0.5, 1, 2), (1, 1)])
@pytest.mark.parametrize("attended", [(1, 2), (2,), ()])
@pytest.mark.parametrize("others", [{}, {"num_classes": 5, "use_scale_shift_norm": False, "out_channels": 3}])
def test_options_of_adm(updown, multipliers, attended, others):
    attended = tuple(factor for factor in attended if factor < 2 ** len(multipliers))
    options = {
        **{"architecture": "adm", "image_size": 16, "model_channels": 64, "num_res_blocks": 2},
        **{"resblock_updown": updown, "channel_mult": multipliers, "attention_resolutions": attended},
    }
    assert_told(*state_of(options | others), ["resblock_updown"] * (len(multipliers) == 1))


@pytest.mark.parametrize("attended", [(16, 4), (8,), ()])
@pytest.mark.parametrize("blocks", [1, 2])
def test_options_of_ddim(attended, blocks):
    options = {"architecture": "ddim", "image_size": 16, "ch": 32, "ch_mult": (1, 2, 3), "num_res_blocks": blocks}
    assert_told(*state_of(options | {"attn_resolutions": attended, "in_channels": 1, "out_ch": 2}))


PLAIN = [
    *(("score_sde", name, {}) for name in ("ncsnpp_ve_cont", "ddpmpp_vp_cont", "ncsnpp_highres", "ddpm_vp")),
    ("score_sde", "ncsnpp_ve_discrete", {}),
    ("ddim", "ddim_model", {"image_size": 16}),
    ("ncsnv2", "ncsnv2", {"image_size": 16, "centered": False}),
    ("ncsnv2", "ncsnv2_deeper", {"image_size": 32, "centered": False}),
    ("guided", "guided_unet", {"image_size": 16, "num_heads": 2, "use_new_attention_order": False}),
    ("guided", "guided_unet_classcond", {"image_size": 16, "num_head_channels": 16, "use_new_attention_order": False}),
]


@pytest.mark.parametrize(("manifest", "name", "options"), PLAIN)
def test_golden_networks_from_their_state_dicts(manifest, name, options, tmp_path):
    case = load_networks(GOLDEN, manifest)[name]
    if manifest == "score_sde":
        published = {**case.config["model"], **case.config["data"]}
        names = {"image_size", "centered", "scale_by_sigma"} | (set() if name == "ddpm_vp" else {"fir", "skip_rescale"})
        options = {option: published[option] for option in names}
    torch.save(case.state_dict, tmp_path / "model.pt")
    network = load_checkpoint(tmp_path / "model.pt", config=options)
    state = network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in case.state_dict.items())
    case.assert_agrees(network)
