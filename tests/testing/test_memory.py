"""Peak memory, on code whose allocations are known."""

import torch

from fastscore.testing.memory import peak_memory

CPU = torch.device("cpu")


def test_what_is_held_at_once_counts():
    def run():
        first = torch.empty(1000, 1000)
        second = torch.empty(500, 1000)
        del first
        return second, torch.empty(700, 1000)

    kept = torch.empty(10_000_000)  # before it began
    assert peak_memory(run, CPU) == 4 * 1_500_000
    assert kept.numel() == 10_000_000


def test_what_an_operator_allocates_inside_counts():
    x = torch.rand(100, 100, 100)
    assert peak_memory(lambda: x.transpose(0, 2).reshape(-1).mean(), CPU) >= 4 * x.numel()
    assert peak_memory(lambda: torch.nn.functional.glu(x.transpose(0, 1), 0).sum(), CPU) >= 2 * x.numel()


def test_a_tape_holds_what_it_saved():
    x = torch.rand(1000, 100, requires_grad=True)

    def layers(grad):
        def run():
            with torch.set_grad_enabled(grad):
                y = x
                for _ in range(10):
                    y = y.sin()
                return y

        return run

    sizes = [peak_memory(layers(grad), CPU) / x.numel() / 4 for grad in (False, True)]
    assert sizes[0] == 2
    assert sizes[1] == 10
