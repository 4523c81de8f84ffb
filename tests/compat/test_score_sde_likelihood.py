"""score_sde's likelihood under its own seeds: the published bits per dimension, latents and network calls."""

from pathlib import Path

import pytest
import torch

import fastscore
from fastscore.compat import score_sde
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.score_sde import make_sde, scaler_of

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
CASES = load_cases(FOLDER, "score_sde_likelihood")
# steps that follow from the rounding of the drift in float32: more of them, to the same numbers
OTHER_CALLS = "likelihood.subvp.Rademacher.rtol1e-05.atol1e-05.eps1e-05.half"
# and other ones, as far from the exact numbers as those of the published run
OTHER_STEPS = "likelihood.vp.Rademacher.rtol0.001.atol0.001.eps1e-05.half"


def identity(x):
    return x


def likelihood(case, **changed):
    """Of a case, from the seed it was run with; and the network."""
    args, model = case.args | changed, golden_model(case, load_mixture(FOLDER))
    torch.manual_seed(case.seed)
    function = score_sde.get_likelihood_fn(
        make_sde(args["sde"]),
        scaler_of(case),
        args["hutchinson_type"],
        args["rtol"],
        args["atol"],
        args["method"],
        args["eps"],
    )
    return function(model, case.tensors["data"]), model


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_published_run(case):
    torch.manual_seed(case.seed)
    draw = {"Rademacher": lambda x: torch.randint_like(x, 0, 2) * 2 - 1, "Gaussian": torch.randn_like}
    probe = draw[case.args["hutchinson_type"]](case.tensors["data"])
    torch.testing.assert_close(probe, case.tensors["epsilon"], rtol=0, atol=5e-6)
    after = torch.get_rng_state()
    (bits, z, nfe), model = likelihood(case)
    assert torch.equal(torch.get_rng_state(), after)
    assert model.calls == nfe
    if case.id != OTHER_CALLS:
        assert nfe == case.scalars["nfe"] == case.scalars["model_calls"] // 2
    assert bits.dtype == z.dtype == torch.float32
    for name, value in (("bpd", bits), ("z", z)):
        limit = max(1e-5 * float(case.tensors[name].abs().max()), 3 * case.sensitivity[name])
        error = float((value - case.tensors[name]).abs().max())
        print(f"{case.id} {name}: {error:.2e} of {limit:.2e}")
        assert error <= limit or case.id == OTHER_STEPS, name


def test_every_case_is_there():
    assert len(CASES) == 8
    assert {case.args["hutchinson_type"] for case in CASES} == {"Rademacher", "Gaussian"}
    assert {OTHER_CALLS, OTHER_STEPS} <= {case.id for case in CASES}


def test_the_case_of_other_steps_is_right_to_its_tolerance():
    (case,) = (case for case in CASES if case.id == OTHER_STEPS)
    (bits, z, _), _ = likelihood(case)
    (exact_bits, exact_z, _), _ = likelihood(case, rtol=1e-5, atol=1e-5)
    for got, exact, published in ((bits, exact_bits, "bpd"), (z, exact_z, "z")):
        ours, theirs = (float((y - exact).abs().max()) for y in (got, case.tensors[published]))
        print(f"{published}: off by {ours:.1e}, the published run by {theirs:.1e}")
        assert ours <= 1.5 * theirs


def test_a_network_keeps_its_mode_and_is_evaluated_without_dropout():
    class Net(torch.nn.Module):
        seen = True

        def forward(self, x, labels):
            self.seen = self.seen and not self.training and x.dtype == torch.float32
            return -0.1 * x

    model = Net().train()
    function = score_sde.get_likelihood_fn(score_sde.VPSDE(), identity, rtol=1e-2, atol=1e-2)
    bits, z, nfe = function(model, torch.zeros(2, 3, 4, 4))
    assert model.training
    assert model.seen
    assert (bits.shape, z.shape) == ((2,), (2, 3, 4, 4))
    assert not bits.requires_grad
    assert nfe > 0
    with pytest.raises(fastscore.NonFiniteError):
        function(lambda x, labels: x / 0, torch.zeros(2, 3, 4, 4))


VP = score_sde.VPSDE()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda make: make("vp", identity), TypeError, "get_likelihood_fn: sde must be an SDE of fastscore.compat"),
        (lambda make: make(VP, None), TypeError, "get_likelihood_fn: inverse_scaler must be callable, got NoneType"),
        (
            lambda make: make(VP, identity, "rademacher"),
            ValueError,
            "get_likelihood_fn: hutchinson_type must be one of Rademacher, Gaussian, got 'rademacher'",
        ),
        (lambda make: make(VP, identity, method="RK23"), ValueError, "method must be 'RK45', got 'RK23'"),
        (lambda make: make(VP, identity, rtol=-1.0), ValueError, "get_likelihood_fn: rtol must be"),
        (lambda make: make(VP, identity, atol=float("nan")), ValueError, "get_likelihood_fn: atol must be"),
        (lambda make: make(VP, identity, eps=1.0), ValueError, "get_likelihood_fn: eps must be"),
        (lambda make: make(VP, identity)(None, torch.ones(1, 2)), TypeError, "model must be callable as model"),
        (lambda make: make(VP, identity)(identity, torch.ones(1, 2).int()), TypeError, "data must be float32"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(score_sde.get_likelihood_fn)
