import math

import pytest
import torch

from fastscore.testing import assert_error_within_budget, max_error, ulp_distance


def _softmax_case(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(64, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    return x.double().softmax(-1), x.softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_plain_pytorch_passes_its_own_budget(dtype):
    oracle, plain = _softmax_case(dtype)
    report = assert_error_within_budget(plain, oracle, plain, "softmax")
    assert report.error == report.reference_error
    assert 0 <= report.used <= 0.5


def test_budget_is_twice_plain_error_plus_rounding_band():
    oracle = torch.tensor([1.0, -2.0], dtype=torch.float64)
    plain = torch.tensor([1.0 + 2**-20, -2.0])
    band = 2**-24 * 2
    for sign in (1, -1):
        inside = (oracle + sign * torch.tensor([0.0, 1.9 * (2**-20 + band)], dtype=torch.float64)).float()
        report = assert_error_within_budget(inside, oracle, plain, "inside")
        assert report.budget == pytest.approx(2 * (2**-20 + band), rel=1e-12)
        outside = (oracle + sign * torch.tensor([0.0, 2.3 * (2**-20 + band)], dtype=torch.float64)).float()
        with pytest.raises(AssertionError, match=r"outside: error .* at \(1,\), plain PyTorch .* want -2\.0"):
            assert_error_within_budget(outside, oracle, plain, "outside")
    assert_error_within_budget(outside, oracle, plain, "gradient", factor=3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_fail_wherever_they_stand(bad):
    oracle, plain = _softmax_case(torch.float32)
    broken = plain.clone()
    broken[3, 4] = bad
    with pytest.raises(AssertionError, match=r"1 non-finite of 2112 in actual, first at \(3, 4\)"):
        assert_error_within_budget(broken, oracle, plain, "x")
    with pytest.raises(AssertionError, match="non-finite of 2112 in low_precision_ref"):
        assert_error_within_budget(plain, oracle, broken, "x")
    with pytest.raises(AssertionError, match="non-finite of 2112 in oracle64"):
        assert_error_within_budget(plain, broken.double(), plain, "x")


def test_shape_and_dtype_must_agree():
    oracle, plain = _softmax_case(torch.float32)
    with pytest.raises(AssertionError, match=r"shape \(64, 1\), oracle64 has \(64, 33\)"):
        assert_error_within_budget(plain[:, :1], oracle, plain, "x")
    with pytest.raises(AssertionError, match=r"shape \(64, 33\), low_precision_ref has \(33, 64\)"):
        assert_error_within_budget(plain, oracle, plain.T, "x")
    with pytest.raises(AssertionError, match=r"dtype torch\.float64, low_precision_ref has torch\.float32"):
        assert_error_within_budget(plain.double(), oracle, plain, "x")
    with pytest.raises(TypeError, match=r"oracle64 must be float64, got torch\.float32"):
        assert_error_within_budget(plain, plain, plain, "x")


def test_empty_tensors_have_no_error():
    empty = torch.zeros(0, 3)
    assert assert_error_within_budget(empty, empty.double(), empty, "empty").error == 0
    assert max_error(empty, empty.double()) == (0.0, ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_ulp_distance_counts_representable_numbers(dtype):
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    values = torch.tensor([1.0, -1.0, 0.0, -0.0, 3.0, tiny], dtype=dtype)
    assert ulp_distance(values, values).tolist() == [0] * 6
    assert ulp_distance(values[2:3], values[3:4]).item() == 0
    assert ulp_distance(values[5:], -values[5:]).item() == 2
    eps = torch.finfo(dtype).eps
    near = torch.tensor([1 + 3 * eps, -1 - 2 * eps, 2 - eps], dtype=dtype)
    assert ulp_distance(near, torch.tensor([1.0, -1.0, 2.0], dtype=dtype)).tolist() == [3, 2, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ulp_distance_steps_with_nextafter(dtype):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = x
    for _ in range(5):
        y = torch.nextafter(y, torch.tensor(torch.inf, dtype=dtype))
    assert (ulp_distance(x, y) == 5).all()
    assert (ulp_distance(y, x) == 5).all()


def test_ulp_distance_saturates_and_refuses():
    huge = torch.tensor([1e300], dtype=torch.float64)
    assert ulp_distance(huge, -huge).item() == torch.iinfo(torch.int64).max
    with pytest.raises(ValueError, match="NaN"):
        ulp_distance(huge, huge * math.nan)
    with pytest.raises(ValueError, match="must agree"):
        ulp_distance(huge, huge.float())
    with pytest.raises(TypeError, match="floating point"):
        ulp_distance(torch.ones(1, dtype=torch.int32), torch.ones(1, dtype=torch.int32))
