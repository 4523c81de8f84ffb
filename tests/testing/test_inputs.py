import pytest
import torch

from fastscore.testing.inputs import LAYOUTS, as_layout, make_input


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("expanded", "empty")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts_hold_the_same_values(layout, dtype):
    plain = make_input((3, 4, 5, 6), dtype=dtype, mean=1e3)
    assert torch.equal(make_input((3, 4, 5, 6), layout, dtype=dtype, mean=1e3), plain)
    assert plain.double().mean() == pytest.approx(1e3, rel=1e-3)


def test_layouts_are_what_they_say():
    x = make_input((3, 4, 5, 6))
    assert x.is_contiguous()
    assert as_layout(x, "channels_last").stride() == (120, 1, 24, 4)
    assert as_layout(x, "permuted").stride() == (1, 3, 12, 60)
    sliced = as_layout(x, "sliced")
    assert not sliced.is_contiguous()
    assert sliced.storage_offset() > 0
    assert (
        torch.as_strided(sliced, (sliced.untyped_storage().size() // 4,), (1,), 0).isnan().sum()
        == 7 * 9 * 11 * 13 - 360
    )
    assert as_layout(x, "expanded").stride() == (0, 30, 6, 1)
    assert torch.equal(as_layout(x, "expanded")[2], x[0])
    assert as_layout(x, "empty").shape == (0, 4, 5, 6)
    with pytest.raises(ValueError, match=r"layout must be one of contiguous, .*, got 'weird'"):
        as_layout(x, "weird")
