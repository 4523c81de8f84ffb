"""What ops must move and do: every op has a cost, and the numbers are those counted by hand."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastscore import _library, ops
from fastscore.ops import _cost

X = torch.zeros(4, 3, 8, 8)
SIZE = X.numel() * 4


class Costs(TorchDispatchMode):
    """Keeps the cost of every op of fastscore that is called."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        namespace, name = func._schema.name.split("::")
        if namespace == "fastscore":
            self.found.append(ops.cost(name, args, out, **(kwargs or {})))
        return out


def sizes(call):
    """State sizes that the one op in a call moves, small change left out."""
    with Costs() as costs:
        call()
    (found,) = costs.found
    assert found.operations > X.numel() / 2
    return found.bytes // SIZE


def test_every_op_has_a_cost():
    assert _cost.named() == set(_library.OVERLOADS[None])


RNG = {"rng": torch.zeros(2, dtype=torch.int64), "samples": torch.arange(4)}


@pytest.mark.parametrize(
    ("call", "moved"),
    [
        (lambda: ops.linear_step(X, [], torch.ones(2)), 2),
        (lambda: ops.linear_step(X, [X, X], torch.ones(4), **RNG), 4),
        (lambda: ops.linear_step(X, [X], torch.ones(3), noise=X), 4),
        (lambda: ops.linear_step_(X.clone(), [X], torch.ones(3), **RNG), 3),
        (lambda: ops.masked_replace_(X.clone(), X, X > 0, torch.ones(2), **RNG), 3),
        (lambda: ops.solver_step(X, X, [X], torch.ones(8), **RNG), 5),
        (lambda: ops.solver_step_(X.clone(), X, [], torch.ones(7)), 3),
        (lambda: ops.solver_step_(X.clone(), X, [], torch.ones(7), m=X.clone()), 4),
        (lambda: ops.langevin_step_(X.clone(), X, torch.ones(3), **RNG), 5),
        (lambda: ops.error_norm([X.clone(), X.clone()], torch.ones(2), X, X, atol=1.0, rtol=1.0), 3),
        (lambda: ops.philox_normal(X.shape, RNG["rng"], RNG["samples"]), 1),
        (lambda: ops.group_norm_silu(X, 3), 2),
    ],
)
def test_bytes_are_those_counted_by_hand(call, moved):
    assert sizes(call) == moved


def test_an_expanded_tensor_is_as_large_as_its_memory():
    assert ops.size(X[:1].expand(64, -1, -1, -1), None, [torch.zeros(2)]) == SIZE // 4 + 8
    assert ops.size(torch.zeros(0, 3)) == 0


def test_convolutions_in_given_memory_count_the_products_that_they_make():
    x = torch.zeros(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    out, weight = torch.zeros_like(x), torch.zeros(8, 8, 3, 3)
    plain = (None, None, None, 1.0, None, None, False, False)
    native = torch.ops.fastscore
    packed = native.conv3x3_weights(weight, 4, False), native.conv_gemm_weights(weight)
    with Costs() as costs:
        native.conv3x3_winograd_into(x, packed[0], 8, 4, *plain, None, out)
        native.conv_gemm_into(x, packed[1], 8, 3, 1, 1, *plain, out)
    by_winograd, direct = costs.found
    assert by_winograd.operations == 2 * (2 * 2 * 2) * 36 * 8 * 8  # tiles of 4 x 4, at 36 points
    assert direct.operations == 2 * 2 * 36 * 9 * 8 * 8
    assert [cost.bytes for cost in costs.found] == [ops.size(x, out, weights) for weights in packed]
