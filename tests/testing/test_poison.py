"""The fixture of conftest.py that poisons fresh memory does so."""

import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_fresh_memory_is_nan(dtype):
    x = torch.ones(4, 3, dtype=dtype)
    fresh = [
        torch.empty(4, 3, dtype=dtype),
        torch.empty_like(x),
        torch.empty_like(x.T, memory_format=torch.preserve_format),
        torch.empty_strided((4, 3), (1, 4), dtype=dtype),
        x.new_empty(5),
    ]
    assert all(t.isnan().all() for t in fresh)
    assert (torch.empty(3, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()


@pytest.mark.no_poison  # shows that the mark works
def test_mark_switches_it_off():
    assert not torch.are_deterministic_algorithms_enabled()
