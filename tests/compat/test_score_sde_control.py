"""score_sde's inpainting and colorization under its own seeds: the published images, network inputs and labels."""

from pathlib import Path

import pytest
import torch

from fastscore.compat import score_sde
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.score_sde import make_sde, scaler_of, seeded
from fastscore.testing.traffic import no_host_sync

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
CASES = load_cases(FOLDER, "score_sde_control")
SHAPE = (2, 3, 4, 4)
MAKERS = {"inpaint": score_sde.get_pc_inpainter, "colorize": score_sde.get_pc_colorizer}


def identity(x):
    return x


def network(x, labels):
    return 0.3 * torch.tanh(x) + 1e-4 * labels.to(x.dtype).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_published_run(case):
    args, model, after = case.args, golden_model(case, load_mixture(FOLDER)), seeded(case)
    model.record = True
    run = MAKERS[case.id.split(".")[0]](
        make_sde(args["sde"]),
        score_sde.get_predictor(args["predictor"]),
        score_sde.get_corrector(args["corrector"]),
        scaler_of(case),
        args["snr"],
        args["n_steps"],
        args["probability_flow"],
        args["continuous"],
        args["denoise"],
        args["eps"],
    )
    given = ("data", "mask") if "mask" in case.tensors else ("gray",)
    x = run(model, *(case.tensors[name] for name in given))
    assert torch.equal(torch.get_rng_state(), after)
    assert model.calls == case.scalars["model_calls"]
    # rounding alone, of a basis in float32 at states up to 200; the exact deviation of VP would be off by up to 1e-3
    rounding = 2e-6 if "mask" in case.tensors else 4e-6
    bound = rounding * max(1.0, case.scalars["result_abs_max"])
    error = float((x - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.2e} of {bound:.2e}")
    assert error <= bound
    labels = torch.stack([label[0].double() for label in model.labels])
    expected = case.tensors["call_labels"].double().reshape(len(labels), -1)[:, 0]
    torch.testing.assert_close(labels, expected, rtol=2e-6, atol=2e-5)
    assert model.inputs
    for call, state in model.inputs.items():
        expected = case.tensors[f"call_x_{call}"]
        torch.testing.assert_close(state, expected, rtol=0, atol=rounding * max(1.0, float(expected.abs().max())))


def test_every_case_is_there():
    assert [sum(case.id.startswith(name) for case in CASES) for name in MAKERS] == [5, 4]


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize(("predictor", "corrector"), [("none", "ald"), ("reverse_diffusion", None)])
def test_the_known_part_at_the_end(predictor, corrector, denoise):
    """Without noise where denoising is asked for; masks may broadcast, and be of any dtype."""
    sde, eps = score_sde.VPSDE(N=25), 1e-3
    data = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = sde.marginal_prob(data, torch.full((2,), eps))
    options = {"continuous": True, "denoise": denoise, "eps": eps}
    results = []
    for mask in (torch.arange(4) < 2, (torch.arange(4) < 2).float().expand(SHAPE)):
        torch.manual_seed(0)
        x = score_sde.get_pc_inpainter(sde, predictor, corrector, identity, 0.16, **options)(network, data, mask)
        left = (x - mean)[..., :2] / float(std[0])
        assert bool((left == 0).all()) == denoise
        results.append(x)
        if not denoise:
            assert 0.5 < float(left.std()) < 1.5
    assert torch.equal(*results)
    gray = data.mean(1, keepdim=True).expand(SHAPE)
    x = score_sde.get_pc_colorizer(sde, predictor, corrector, identity, 0.16, **options)(network, gray)
    left = (x - sde.marginal_prob(gray, torch.full((2,), eps))[0]).mean(1) * 3**0.5
    if denoise:
        assert float(left.abs().max()) < 4e-7 * float(x.abs().max())
    else:
        assert 0.5 < float((left / std[0]).std()) < 1.5
    assert float(x.std(1).mean()) > 0.1


@pytest.mark.parametrize("maker", MAKERS)
def test_nothing_is_read_on_the_host_between_the_steps(maker):
    sde, calls = score_sde.VESDE(N=6), []
    region = no_host_sync()

    def watched(x, labels):
        if not calls:
            region.__enter__()
        calls.append(labels)
        if len(calls) == 12:
            region.__exit__(None, None, None)
        return network(x, labels)

    image = torch.zeros(SHAPE)
    given = (image, torch.ones(4)) if maker == "inpaint" else (image,)
    MAKERS[maker](sde, "reverse_diffusion", "langevin", identity, 0.16, continuous=True)(watched, *given)
    assert len(calls) == 12


def make(maker="inpaint", **changed):
    options = {
        "sde": score_sde.VPSDE(N=25),
        "predictor": "reverse_diffusion",
        "corrector": None,
        "inverse_scaler": identity,
        "snr": 0.1,
    }
    return MAKERS[maker](**(options | changed))


IMAGE = torch.zeros(SHAPE)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make(sde="vp"), TypeError, "get_pc_inpainter: sde must be an SDE of fastscore.compat.score_sde"),
        (lambda: make("colorize", inverse_scaler=1), TypeError, "get_pc_colorizer: inverse_scaler must be callable"),
        (lambda: make(predictor="x"), ValueError, "name must be one of euler_maruyama"),
        (lambda: make(corrector=3), TypeError, "get_pc_inpainter: corrector must be one of"),
        (lambda: make(n_steps=-1), ValueError, "get_pc_inpainter: n_steps must be at least 0"),
        (lambda: make(predictor=None), ValueError, "get_pc_inpainter: predictor and corrector must not both be none"),
        (
            lambda: make("colorize", predictor=None, corrector="ald", n_steps=0),
            ValueError,
            "get_pc_colorizer: predictor and corrector must not both be none",
        ),
        (lambda: make(eps=0.0), ValueError, "eps must be"),
        (lambda: make()(None, IMAGE, IMAGE), TypeError, "get_pc_inpainter: model must be callable"),
        (lambda: make()(network, IMAGE.long(), IMAGE), TypeError, "get_pc_inpainter: data must be float32"),
        (lambda: make()(network, IMAGE, None), TypeError, "get_pc_inpainter: mask must be a tensor, got NoneType"),
        (
            lambda: make()(network, IMAGE, torch.ones(5)),
            ValueError,
            r"get_pc_inpainter: mask must broadcast to the shape of data, \(2, 3, 4, 4\), got \(5,\)",
        ),
        (lambda: make()(network, IMAGE, torch.ones(4, device="meta")), ValueError, "mask must be on the device of"),
        (
            lambda: make("colorize")(network, IMAGE[:, :1]),
            ValueError,
            r"get_pc_colorizer: gray_scale_img must have shape \(B, 3, H, W\), got \(2, 1, 4, 4\)",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
