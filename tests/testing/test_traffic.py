import pytest
import torch

from fastscore.testing.traffic import HostSyncError, Traffic, host_reads, no_host_sync, traffic_per_step


def _count(run, state):
    with Traffic(state) as traffic:
        run()
    return traffic.count


def test_reads_and_writes_are_counted_in_sizes_of_the_state():
    x, h = torch.ones(4, 100), torch.ones(4, 100)
    small = torch.ones(4, 1)
    big, first = torch.ones(40, 100), torch.arange(4)
    for run, moved in [
        (lambda: x + h, 3),  # two reads, one write
        (lambda: x + x, 2),  # the same memory is read once
        (lambda: x * 2, 2),
        (lambda: x.mul_(1.0), 2),  # in place: read and written
        (lambda: x.add_(h), 3),
        (lambda: x.zero_(), 1),  # overwritten, not read
        (lambda: x.copy_(h), 2),
        (lambda: torch.randn_like(x), 1),  # allocation is free, the draw is written
        (lambda: torch.zeros_like(x), 1),
        (lambda: x.norm(dim=1), 1),  # the result is small
        (lambda: small * 2, 0),
        (lambda: x * small, 2),
        (lambda: torch.mul(x, h, out=x), 3),
        (lambda: x.double(), 3),  # writes twice the bytes
        (lambda: small.expand(4, 100) * 2, 1),  # an expanded tensor is small in memory
        (lambda: torch.cat([x, h]), 4),
        (lambda: big.index_select(0, first), 2),  # reads what it writes, not all of big
        (lambda: big.index_copy_(0, first, x), 2),
    ]:
        assert _count(run, x).moved == moved


def test_views_and_allocations_are_calls_without_traffic():
    x = torch.ones(4, 100)
    count = _count(lambda: (x.view(400), x.transpose(0, 1), x[1:], torch.empty_like(x)), x)
    assert count.calls == 4
    assert (count.full, count.moved) == (0, 0)


def test_full_operators_and_names():
    x = torch.ones(4, 100)
    count = _count(lambda: (x + 1) * torch.ones(1), x)
    assert (count.calls, count.full, count.moved) == (3, 2, 4)
    assert count.by_op["aten::add"] == (1, 2)
    assert str(count) == "3 operators, 2 full, 4.0 state sizes"


def test_traffic_per_step_removes_set_up():
    state = torch.ones(4, 100)

    def run(steps):
        x = state.clone()
        for _ in range(steps):
            x = x * 2 + 1
        return x.sum()

    step = traffic_per_step(run, state)
    assert (step.calls, step.full, step.moved) == (2, 2, 4)
    assert set(step.by_op) == {"aten::mul", "aten::add"}


def test_published_langevin_corrector_costs_what_the_survey_says():
    """Song et al. 2021, algorithm 4, one operator per term, as score_sde writes it: 47 - 27 calls in the survey."""
    x, grad = torch.ones(8, 3, 32, 32), torch.ones(8, 3, 32, 32)

    def correct():
        noise = torch.randn_like(x)
        grad_norm = torch.norm(grad.reshape(8, -1), dim=-1).mean()
        noise_norm = torch.norm(noise.reshape(8, -1), dim=-1).mean()
        step = (0.16 * noise_norm / grad_norm) ** 2 * 2 * torch.ones(8)
        mean = x + step[:, None, None, None] * grad
        return mean + torch.sqrt(step * 2)[:, None, None, None] * noise

    assert _count(correct, x).moved == 13


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.cpu(),
        lambda x: bool(x[0] > 0),
        lambda x: float(x[0]),
        lambda x: int(x[0]),
        lambda x: [0, 1, 2][x[0].long()],
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: torch.unique(x),
        lambda x: torch.where(x > 0),
    ],
)
def test_reading_a_value_on_the_host_raises(read):
    x = torch.ones(3)
    read(x)
    with no_host_sync(), pytest.raises(HostSyncError, match=r"reads a value on the host"):
        read(x)
    read(x)


def test_device_arithmetic_passes_without_host_reads():
    x, table = torch.ones(3, 4), torch.arange(6.0).view(3, 2)
    with no_host_sync():
        for row in table:
            x = x * row[0] + row[1:] * torch.randn_like(x)
        x = x.to(x.device).float() + x.mean()
    assert x.shape == (3, 4)


def test_copies_from_a_device_to_the_host_raise():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(3, device="cuda")
        with no_host_sync():
            y = x * 2
            y.to("cuda", torch.float64)
            with pytest.raises(HostSyncError, match="copies from cuda:0 to the host"):
                y.to("cpu")
            with pytest.raises(HostSyncError, match="copies from cuda:0 to the host"):
                torch.empty(3).copy_(y)


def test_host_reads_are_listed_once_each():
    x = torch.arange(4.0)
    with host_reads() as found:
        assert (x * 2).tolist() == [0, 2, 4, 6]
        assert x[1].item() == 1
        assert bool(x[1] > 0)
        assert len(x.nonzero()) == 3
        assert len(x[x > 1]) == 2
        y = x + 1
    assert float(y[0]) == 1  # outside
    assert [message.split()[0] for message in found] == [
        *("Tensor.tolist", "Tensor.item", "Tensor.__bool__", "aten::nonzero", "aten::index"),
    ]
