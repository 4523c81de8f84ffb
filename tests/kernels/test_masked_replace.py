"""masked_replace_ in Triton against the reference: shapes with tails, dtypes, layouts, noise."""

from importlib import import_module

import pytest
import torch

from fastscore.kernels._launch import LAUNCHES, launch
from fastscore.ops import masked_replace_
from fastscore.testing.inputs import LAYOUTS, as_layout
from fastscore.testing.masked_replace import assert_parity, make_case

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# one element, less than a tile, more than one, whole Philox blocks of pixels and parts of them
SHAPES = ((3,), (2, 3), (3, 2163), (2, 3, 8, 8), (5, 3, 7, 9), (2, 300, 2, 3), (2, 3, 4, 5, 6))


def replaced(case, layout="contiguous"):
    state = as_layout(case[0].clone(), "contiguous" if layout == "expanded" else layout)
    return masked_replace_(state, *case[1:4], **case[4])


@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_by_shape(shape: tuple[int, ...], dtype: torch.dtype, noise: str, device: torch.device) -> None:
    for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
        case = make_case(shape, dtype, layout, noise, per_sample=len(shape) > 2, device=device)
        assert_parity(replaced(case, layout), case)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "empty"])
def test_parity_by_layout(layout: str, device: torch.device) -> None:
    for noise in ("drawn", "given", "none"):
        case = make_case((4, 3, 6, 10), torch.float32, layout, noise, device=device)
        assert_parity(replaced(case, layout), case)


def test_empty(device: torch.device) -> None:
    for shape in ((0, 3, 4, 4), (2, 0), (2, 3, 0, 4)):
        x = torch.empty(shape, device=device)
        assert masked_replace_(x, x, x > 0, torch.ones(2, device=device)).shape == shape
    assert not LAUNCHES
    replaced(make_case((1,), device=device))


@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_noise_of_weight_zero_is_not_looked_at(noise: str, device: torch.device) -> None:
    x, known, mask, rows, keywords = make_case((3, 40), noise=noise, device=device)
    rows[1] = 0
    if noise == "given":
        keywords["noise"] = torch.full_like(x, torch.nan)
    without = masked_replace_(x.clone(), known, mask, rows)
    assert torch.equal(masked_replace_(x.clone(), known, mask, rows, **keywords), without)


def test_offsets_of_64_bits(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What large states take, on small ones."""
    cases = [make_case((2, 3, 8, 8), layout=layout, device=device) for layout in ("contiguous", "channels_last")]
    before = [replaced(case, "channels_last") for case in cases]
    module = import_module("fastscore.kernels.masked_replace")
    monkeypatch.setattr(module, "launch", lambda *args, **options: launch(*args, **(options | {"wide": True})))
    for case, want in zip(cases, before, strict=True):
        assert torch.equal(replaced(case, "channels_last"), want)


def test_operands_that_overlap_in_part_are_refused(device: torch.device) -> None:
    memory, mask = torch.randn(3, 40, device=device), torch.ones(2, 40, device=device) > 0
    with pytest.raises(RuntimeError, match="shares memory with the tensor that is written, in part"):
        masked_replace_(memory[:2], memory[1:], mask, torch.ones(2, device=device))
    masked_replace_(memory[:2], memory[:2], mask, torch.ones(2, device=device))
