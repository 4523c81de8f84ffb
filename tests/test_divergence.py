"""The divergence of vector fields whose Jacobian is known, exactly and by random probes."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fastscore
from fastscore import PhiloxNoise, ReplayNoise, divergence
from fastscore.testing.memory import peak_memory
from fastscore.testing.statistics import CountingModel, RecordingModel

MODES = ["vjp", "jvp"]
RANDOM = ["hutchinson", "hutch++"]


def matrix(size, seed=0):
    """Neither symmetric nor diagonal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, size, dtype=torch.float64, generator=generator) + torch.eye(size, dtype=torch.float64)


def linear(jacobian):
    return lambda x: (x.flatten(1) @ jacobian.T.to(x.dtype)).reshape(x.shape)


def curved(x):
    """Diagonal part and neighbors: Jacobian cos(x_i) + 0.3 (1 - tanh(x_i)^2) on the diagonal."""
    flat = x.flatten(1)
    return (flat.sin() + 0.3 * flat.tanh() + 0.5 * flat.roll(1, 1).square()).reshape(x.shape)


def curved_divergence(x):
    flat = x.double().flatten(1)
    return (flat.cos() + 0.3 * (1 - flat.tanh().square())).sum(1)


def samples(*shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(3, 2), (4, 3, 2, 2), (2, 192), (5,), (0, 4)])
def test_exact(shape, mode):
    x = samples(*shape)
    if len(shape) == 1:
        result = divergence(lambda x: x**3, x, method="exact", mode=mode)
        torch.testing.assert_close(result.divergence, 3 * x**2)
        return
    result = divergence(curved, x, method="exact", mode=mode)
    torch.testing.assert_close(result.value, curved(x))
    torch.testing.assert_close(result.divergence, curved_divergence(x))
    assert (result.standard_error == 0).all()
    assert result.products.shape == (1, len(x))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("method", RANDOM)
def test_an_estimate_is_the_mean_of_its_products_and_within_its_error(method, kind, mode):
    size, batch = 12, 64
    jacobian = matrix(size)
    x = samples(batch, size)
    result = divergence(linear(jacobian), x, method=method, mode=mode, kind=kind, probes=6, seed=3)
    torch.testing.assert_close(result.value, x @ jacobian.T)
    torch.testing.assert_close(result.divergence, result.products.mean(0))
    torch.testing.assert_close(result.standard_error, result.products.std(0) / 6**0.5)
    # one Jacobian, independent probes: the mean over the batch is off by its own statistical error
    errors = result.divergence - jacobian.trace()
    spread = errors.std() / batch**0.5
    assert spread > 0
    assert errors.mean().abs() < 3 * spread


@pytest.mark.parametrize("mode", MODES)
def test_the_probes_are_those_of_the_op(mode):
    """By its definition, eps . (J eps), from the probes that `fastscore.ops.hutchinson_probe` documents."""
    jacobian, x, noise = matrix(8), samples(5, 2, 2, 2), PhiloxNoise(11, samples=[4, 9, 0, 2, 7])
    result = divergence(linear(jacobian), x, mode=mode, probes=3, noise=noise, draw=6, kind="gaussian")
    for k in range(3):
        eps = noise.normal(x.shape, dtype=x.dtype, draw=6 + k).flatten(1)
        torch.testing.assert_close(result.products[k], torch.einsum("bi,ij,bj->b", eps, jacobian, eps))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", RANDOM)
def test_recorded_probes(method, mode):
    """Given as tensors, the same probes give the same numbers."""
    jacobian, x, noise = matrix(6), samples(4, 6), PhiloxNoise(5)
    drawn = [noise.normal(x.shape, dtype=x.dtype, draw=k) for k in range(4)]
    count = 4 if method == "hutchinson" else 2
    options = {"method": method, "mode": mode, "probes": count, "kind": "gaussian"}
    ours = divergence(linear(jacobian), x, noise=noise, **options)
    replayed = divergence(linear(jacobian), x, noise=ReplayNoise(drawn), **options)
    torch.testing.assert_close(replayed.products, ours.products)


@pytest.mark.parametrize("mode", MODES)
def test_hutch_plus_plus_follows_its_algorithm(mode):
    """Literally, with S and G the probes: Q = qr(J S), tr(Q^T J Q) + tr(G^T (I - Q Q^T) J (I - Q Q^T) G) / K."""
    size, count = 10, 3
    jacobian, x, noise = matrix(size), samples(2, size), PhiloxNoise(8)
    result = divergence(linear(jacobian), x, method="hutch++", mode=mode, probes=count, noise=noise, kind="gaussian")
    drawn = torch.stack([noise.normal(x.shape, dtype=x.dtype, draw=k) for k in range(2 * count)], 2)
    a = jacobian.T if mode == "vjp" else jacobian
    for b in range(2):
        q = torch.linalg.qr(a @ drawn[b, :, :count]).Q
        g = drawn[b, :, count:] - q @ (q.T @ drawn[b, :, count:])
        expected = (q.T @ a @ q).trace() + (g.T @ a @ g).trace() / count
        torch.testing.assert_close(result.divergence[b], expected)


@pytest.mark.parametrize("mode", MODES)
def test_hutch_plus_plus_is_exact_where_the_sketch_spans_all(mode):
    low_rank = matrix(20)[:, :3] @ matrix(20, seed=2)[:3]
    x = samples(3, 20)
    result = divergence(linear(low_rank), x, method="hutch++", mode=mode, probes=3, kind="gaussian")
    torch.testing.assert_close(result.divergence, low_rank.trace().expand(3))
    full = divergence(linear(matrix(4)), x[:, :4], method="hutch++", mode=mode, probes=5)
    torch.testing.assert_close(full.divergence, matrix(4).trace().expand(3))


def test_hutch_plus_plus_has_the_smaller_error():
    """A spectrum that falls: at the same number of products, 48, with the same seed."""
    values = torch.logspace(0, -4, 64, dtype=torch.float64)
    basis = torch.linalg.qr(matrix(64)).Q
    jacobian, x = basis @ torch.diag(values) @ basis.T, samples(200, 64)
    errors = {
        method: (divergence(linear(jacobian), x, method=method, probes=k).divergence - values.sum()).square().mean()
        for method, k in (("hutchinson", 48), ("hutch++", 16))
    }
    assert errors["hutch++"] < errors["hutchinson"] / 4


def test_the_error_falls_as_one_over_the_root_of_k():
    jacobian, x = matrix(24), samples(2000, 24)
    errors, stated = {}, {}
    for k in (4, 16, 64):
        result = divergence(linear(jacobian), x, probes=k, seed=k)
        errors[k] = float((result.divergence - jacobian.trace()).square().mean().sqrt())
        stated[k] = float(result.standard_error.square().mean().sqrt())
        # the variance of a Rademacher estimate: twice the squares of the symmetric part off the diagonal
        symmetric = (jacobian + jacobian.T) / 2
        exact = (2 * (symmetric - symmetric.diag().diag()).square().sum() / k) ** 0.5
        assert errors[k] == pytest.approx(float(exact), rel=0.06)  # 2000 samples: 1.6% standard deviation
        assert stated[k] == pytest.approx(float(exact), rel=0.06)
    assert errors[4] / errors[16] == pytest.approx(2, rel=0.1)
    assert errors[16] / errors[64] == pytest.approx(2, rel=0.1)


def test_one_probe_has_no_standard_error():
    assert divergence(curved, samples(2, 3)).standard_error.isnan().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", RANDOM)
def test_a_sample_does_not_depend_on_its_batch(method, mode):
    x = samples(6, 3, 4, 4, dtype=torch.float32)
    options = {"method": method, "mode": mode, "probes": 3}
    whole = divergence(curved, x, seed=2, **options)
    some = divergence(curved, x[2:4], noise=PhiloxNoise(2, samples=[2, 3]), **options)
    torch.testing.assert_close(some.products, whole.products[:, 2:4], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_memory_formats(dtype, memory_format, mode):
    x = samples(3, 4, 4, 4, dtype=dtype).contiguous(memory_format=memory_format)
    result = divergence(curved, x, mode=mode, probes=4, kind="gaussian")
    truth = divergence(curved, x.double(), mode=mode, probes=4, kind="gaussian")
    assert result.value.dtype == dtype
    assert result.divergence.dtype == torch.float32
    limit = {torch.float32: 1e-4, torch.bfloat16: 1.0, torch.float16: 0.1}[dtype]  # 64 terms, 5 roundings in each
    torch.testing.assert_close(result.products.double(), truth.products, rtol=0, atol=limit)


class Quadratic(RecordingModel):
    def evaluate(self, x, label):
        return torch.roll(x.square(), 1, 1) + 0.5 * x


@pytest.mark.parametrize(
    ("method", "mode", "calls"),
    [("hutchinson", "vjp", 1), ("hutchinson", "jvp", 1), ("exact", "vjp", 1), ("exact", "jvp", 1),
     ("hutch++", "vjp", 1), ("hutch++", "jvp", 2)],
)  # fmt: skip
@pytest.mark.parametrize("probes", [1, 8])
def test_network_calls(method, mode, calls, probes):
    model = CountingModel(Quadratic())
    x, label = samples(2, 5), torch.zeros(2)
    divergence(lambda x: model(x, label), x, method=method, mode=mode, probes=probes)
    assert model.calls == calls
    assert model.samples == 2 * calls  # and no call on a batch blown up by the probes


@pytest.mark.parametrize("mode", MODES)
def test_a_bundled_network_through_the_fused_ops(mode):
    """The Jacobian of mnist32 along one probe, against central differences of the network."""
    model = fastscore.models.load("mnist32").eval()
    x, label, noise = samples(1, 1, 32, 32, dtype=torch.float32) * 0.5, torch.tensor([0.3]), PhiloxNoise(0)
    result = divergence(lambda x: model(x, label), x, mode=mode, probes=2, noise=noise)
    with torch.no_grad():
        torch.testing.assert_close(result.value, model(x, label), rtol=1e-4, atol=1e-4)
        for k in range(2):
            eps, h = noise.rademacher(x.shape, draw=k), 1e-2
            slope = (model(x + h * eps, label) - model(x - h * eps, label)) / (2 * h)
            expected = float((eps * slope).sum())
            size = float((eps * slope).square().sum().sqrt())
            assert abs(float(result.products[k, 0]) - expected) < 0.05 * size


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "trace"}, ValueError, "method must be one of hutchinson, exact, hutch"),
        ({"mode": "fd"}, ValueError, "mode must be one of vjp, jvp, got 'fd'"),
        ({"probes": 0}, ValueError, "probes must be at least 1, got 0"),
        ({"probes": 1.0}, TypeError, "probes must be an int, got float"),
        ({"kind": "uniform"}, ValueError, "kind must be one of rademacher, gaussian"),
        ({"draw": -1}, ValueError, "draw must lie in"),
        ({"noise": 3}, TypeError, "noise must be PhiloxNoise"),
    ],
)
def test_bad_options_are_named(options, error, words):
    calls = []
    with pytest.raises(error, match=words):
        divergence(lambda x: calls.append(x) or x, samples(2, 3), **options)
    assert not calls


@pytest.mark.parametrize("mode", MODES)
def test_bad_fields_and_states_are_named(mode):
    x = samples(2, 3)
    with pytest.raises(TypeError, match="x must be float32"):
        divergence(curved, x.long(), mode=mode)
    with pytest.raises(TypeError, match="field must be callable"):
        divergence(x, x, mode=mode)
    with pytest.raises(TypeError, match="field must return a tensor, got tuple"):
        divergence(lambda x: (x, x), x, mode=mode)
    with pytest.raises(ValueError, match=r"field must return a tensor like x, \(2, 3\)"):
        divergence(lambda x: x[:, :2], x, mode=mode)
    if mode == "vjp":
        with pytest.raises(ValueError, match="field must depend on x by operations that autograd sees"):
            divergence(lambda x: x.detach().sin(), x, mode=mode)


class Convolved(torch.nn.Module):
    """Convolutions of every kind that tangents go through, one of them with weights that depend on x."""

    def __init__(self):
        super().__init__()
        options = {"dtype": torch.float64}
        self.one = torch.nn.Conv1d(2, 4, 3, padding="same", dilation=2, **options)
        self.two = torch.nn.Conv2d(2, 2, (1, 3), padding=(0, 1), groups=2, **options)
        self.three = torch.nn.Conv3d(2, 1, 1, bias=False, **options)

    def forward(self, x):
        h = self.one(x).tanh().unflatten(1, (2, 2))
        h = self.two(h).sin().unsqueeze(2).expand(-1, -1, 2, -1, -1)
        h = self.three(h)[:, 0]
        own = torch.cat([F.conv1d(x[i : i + 1], x[i].mean(1).reshape(1, 2, 1)) for i in range(len(x))])
        return h[:, 0] + own


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_convolutions_in_forward_mode(method):
    torch.manual_seed(0)
    net, x = Convolved(), samples(2, 2, 5)
    for probes in (1, 3):
        reverse, forward = (divergence(net, x, method=method, mode=mode, probes=probes, seed=2) for mode in MODES)
        torch.testing.assert_close(forward.value, net(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(forward.products, reverse.products, rtol=1e-11, atol=1e-11)


class Convolutions(TorchDispatchMode):
    """Rows that go through convolutions, by torch or by the fused op; the gradient of an input is one too."""

    def __init__(self):
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.partition("::")[2] in ("convolution", "convolution_backward", "conv3x3_winograd"):
            self.rows += len(args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("probes", [1, 3])
def test_no_convolution_too_many(probes):
    """Through a U-Net with attention: one for the value, one for each probe; none of zeros, none twice."""
    model = fastscore.models.load("mnist32")
    layers = sum(isinstance(layer, torch.nn.Conv2d) for layer in model.modules())
    x, label = samples(1, 1, 32, 32, dtype=torch.float32), torch.tensor([500.0])
    for mode in MODES:
        with Convolutions() as seen:
            divergence(lambda x: model(x, label), x, mode=mode, probes=probes)
        assert seen.rows == layers * (1 + probes)


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_large_states_take_a_backward_pass_each(method):
    """The same numbers as all vectors in one."""
    x = samples(2, 100 if method == "exact" else 10_000)
    options = {"method": method, "probes": 2, "seed": 3}
    reverse, forward = (divergence(curved, x, mode=mode, **options) for mode in MODES)
    assert 2**14 // x.numel() < (100 if method == "exact" else 2)
    torch.testing.assert_close(reverse.products, forward.products, rtol=1e-9, atol=1e-9)


def test_forward_mode_holds_at_most_half_the_memory_of_reverse_mode():
    model = fastscore.models.load("mnist32")
    x, label = samples(16, 1, 32, 32, dtype=torch.float32), torch.full((16,), 500.0)
    peaks = {}
    for mode in MODES:
        run = partial(divergence, lambda x: model(x, label), x, mode=mode)
        run()
        peaks[mode] = peak_memory(run, x.device)
    print({mode: f"{peak / 2**20:.1f} MiB" for mode, peak in peaks.items()})
    assert peaks["jvp"] <= peaks["vjp"] / 2
