"""What a sampling loop may cost: network calls, memory traffic, host synchronization, and which kernels run."""

import itertools

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, EulerMaruyamaSampler, PCSampler, SubVPSDE
from fastscore.testing.traffic import HostSyncError, no_host_sync, traffic_per_step

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
PREDICTORS = ("euler_maruyama", "reverse_diffusion", "ancestral", "none")
CORRECTORS = ("langevin", "ald", "none")
SHAPE = (4, 3, 8, 8)
STEPS = 24  # the VP chain does not exist with 20 or fewer


class _Output(torch.nn.Module):
    """A network that costs nothing: returns a tensor it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("out", torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.out


def _traffic(make):
    return traffic_per_step(lambda n: make(n).sample(SHAPE, seed=0), torch.empty(SHAPE), (STEPS, STEPS + 4))


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("predictor", [p for p in PREDICTORS if p != "none"])
def test_a_predictor_step_moves_at_most_four_states(sde, predictor):
    count = _traffic(lambda n: PCSampler(SDES[sde], _Output(), predictor, "none", steps=n))
    assert 0 < count.moved <= 4, count.by_op
    assert count.full == 1, count.by_op


@pytest.mark.parametrize("sde", SDES)
def test_an_euler_maruyama_step_moves_at_most_four_states(sde):
    count = _traffic(lambda n: EulerMaruyamaSampler(SDES[sde], _Output(), steps=n))
    assert 0 < count.moved <= 4, count.by_op


@pytest.mark.parametrize(("corrector", "moved"), [("langevin", 5), ("ald", 3)])
@pytest.mark.parametrize("sde", SDES)
def test_a_corrector_step_moves_the_least_it_can(sde, corrector, moved):
    """Langevin reads state and score twice, once for the norm, and writes the state; nothing else is touched."""
    count = _traffic(lambda n: PCSampler(SDES[sde], _Output(), "none", corrector, steps=n))
    assert count.moved == moved, count.by_op
    assert count.full == 1, count.by_op


class _Watched(_Output):
    """Forbids host reads from its first call on; `release` ends that."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left, self.region = calls, None

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        if self.region is None:
            self.region = no_host_sync()
            self.region.__enter__()
        self.left -= 1
        if self.left == 0:  # the last step, and what follows the loop, is not between steps
            self.release()
        return super().forward(x, label)

    def release(self) -> None:
        if self.region is not None:
            self.region.__exit__(None, None, None)
            self.region = None


COMBINATIONS = [(s, p, c) for s, p, c in itertools.product(SDES, PREDICTORS, CORRECTORS) if (p, c) != ("none", "none")]


@pytest.mark.parametrize(("sde", "predictor", "corrector"), COMBINATIONS)
@pytest.mark.parametrize("norm", ["batch", "sample"])
def test_no_host_synchronization_between_steps(sde, predictor, corrector, norm):
    calls = STEPS * ((predictor != "none") + (corrector != "none"))
    model = _Watched(calls)
    sampler = PCSampler(SDES[sde], model, predictor, corrector, norm=norm, steps=STEPS)
    try:
        assert torch.isfinite(sampler.sample(SHAPE, seed=0)).all()
    finally:
        model.release()
    assert model.left == 0


def test_checking_every_step_is_noticed_as_synchronization():
    """The region of the test above does see reads inside the loop: check_finite=True reads once a step."""
    model = _Watched(6)
    try:
        with pytest.raises(HostSyncError):
            PCSampler(VESDE(), model, steps=3).sample(SHAPE, check_finite=True)
    finally:
        model.release()


def test_the_loop_traces_with_fake_cuda_tensors():
    """A machine without a GPU shows that nothing between steps is left on the host: fake CUDA tensors refuse it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = _Output().to("cuda")
        model.out = torch.empty(SHAPE, device="cuda")
        x = torch.empty(SHAPE, device="cuda")
        coefficients = torch.empty(3, device="cuda")
        rng, samples = (
            torch.empty(2, dtype=torch.int64, device="cuda"),
            torch.empty(4, dtype=torch.int64, device="cuda"),
        )
        with no_host_sync():
            out = fastscore.ops.linear_step(x, [model(x, None)], coefficients, rng=rng, samples=samples)
            out = fastscore.ops.langevin_step(out, model(x, None), coefficients, rng=rng, samples=samples)
        assert out.device.type == "cuda"
        assert out.shape == x.shape


@pytest.mark.parametrize("corrector_steps", [1, 2])
def test_network_calls_are_counted_and_no_more(corrector_steps):
    from fastscore.testing.statistics import CountingModel

    model = CountingModel(_Output())
    sampler = PCSampler(VPSDE(), model, steps=STEPS, corrector_steps=corrector_steps)
    _, info = sampler.sample(SHAPE, return_info=True)
    assert model.calls == info.nfe == sampler.plan().nfe == STEPS * (1 + corrector_steps)
    assert model.samples == model.calls * SHAPE[0]


@pytest.mark.skipif(fastscore._backend.why_not("cpu") is not None, reason="the native library is not built")
def test_each_step_is_one_native_kernel():
    from fastscore import _C

    before = _C.launches()
    PCSampler(VESDE(), _Output(), "reverse_diffusion", "langevin", steps=7).sample(SHAPE)
    launched = {k: v - before.get(k, 0) for k, v in _C.launches().items() if v != before.get(k, 0)}
    by_op = {}
    for name, count in launched.items():
        by_op[name.split(".")[0]] = by_op.get(name.split(".")[0], 0) + count
    assert by_op["linear_step"] >= 7
    assert by_op["langevin_step"] == 7
