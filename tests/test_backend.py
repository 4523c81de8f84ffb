"""Choosing a backend: by default, by name, by environment; and what is said where one is not there."""

import subprocess
import sys
from os import environ

import pytest
import torch

from fastscore import _backend, _library
from fastscore._backend import BackendUnavailableError, available_backends, backend, resolve, why_not
from fastscore.ops import linear_step

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda"), torch.device("meta")
native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")


def test_reference_is_always_there() -> None:
    assert why_not("reference") is None
    assert available_backends()[0] == "reference"
    assert set(available_backends()) <= set(_backend.BACKENDS)


@native
def test_auto_takes_the_kernel_of_the_device() -> None:
    assert resolve(CPU) == "cpu"
    assert resolve(META) == "reference"
    assert resolve(CUDA) == ("cuda" if why_not("cuda") is None else "reference")


@native
def test_choosing_runs_that_backend() -> None:
    x, row = torch.randn(3, 5), torch.ones(2)

    def launched() -> int:
        _library.NATIVE.reset_launches()
        linear_step(x, [], row)
        return sum(_library.NATIVE.launches().values())

    assert launched() == 1
    with backend("reference"):
        assert resolve(CPU) == resolve(META) == "reference"
        assert launched() == 0
        with backend("cpu"):
            assert launched() == 1
            with backend("auto"):
                assert launched() == 1
        assert launched() == 0
    assert launched() == 1


def test_the_choice_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), backend("reference"):
        raise KeyError
    assert _backend.forced is None


@native
def test_a_backend_refuses_other_devices() -> None:
    message = "backend 'cpu' takes cpu tensors, got one on meta; choose another backend, or 'auto', or move the tensor"
    with backend("cpu"):
        with pytest.raises(ValueError, match=message):
            linear_step(torch.zeros(2, device="meta"), [], torch.zeros(2, device="meta"))
        with pytest.raises(ValueError, match="got one on cuda"):
            resolve(CUDA)


def test_triton_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_backend, "INTERPRETED", False)
    message = r"'triton' is not available: torch sees no GPU; TRITON_INTERPRET=1, set before Python starts"
    with pytest.raises(BackendUnavailableError, match=message), backend("triton"):
        pass
    assert issubclass(BackendUnavailableError, RuntimeError)
    monkeypatch.setattr(_backend, "INTERPRETED", True)
    assert why_not("triton") is None
    monkeypatch.setattr(_library, "TRITON", False)
    assert str(why_not("triton")).startswith("triton is not installed; it comes with")


def test_triton_takes_the_place_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without the CUDA kernels: no nvcc, or not one of NVIDIA's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_library, "build_info", lambda: {"cuda": None})
    assert resolve(CUDA) == "triton"


def test_every_op_has_a_kernel_on_cuda_tensors() -> None:
    """Of C++, or else of Triton."""
    for name in _library.OVERLOADS["triton"]:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastscore::{name}", "CUDA"), name


def test_a_backend_without_a_kernel_for_an_op_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_library.OVERLOADS, "cpu", {})
    with backend("cpu"), pytest.raises(BackendUnavailableError, match="backend 'cpu' has no kernel for linear_step;"):
        linear_step(torch.zeros(2), [], torch.zeros(2))


def test_cuda_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "NATIVE", object())
    monkeypatch.setattr(_library, "build_info", lambda: {"cuda": None})
    assert "built without CUDA kernels; rebuild it with FASTSCORE_BUILD_CUDA=1" in str(why_not("cuda"))
    monkeypatch.setattr(_library, "build_info", lambda: {"cuda": "13.0"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees no CUDA device (the kernels are built in)" in str(why_not("cuda"))
    with pytest.raises(BackendUnavailableError, match="torch sees no CUDA device"), backend("cuda"):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert why_not("cuda") is None
    assert resolve(CUDA) == "cuda"
    monkeypatch.setattr(_library, "NATIVE", None)
    monkeypatch.setattr(_library, "WHY_NOT_NATIVE", "it is gone")
    assert str(why_not("cuda")).startswith("it is gone; build it with `pip install")


def test_unknown_names() -> None:
    with (
        pytest.raises(ValueError, match="backend must be one of auto, reference, cpu, triton, cuda, got 'gpu'"),
        backend("gpu"),
    ):
        pass
    with pytest.raises(ValueError, match="backend must be one of reference, cpu, triton, cuda, got 'gpu'"):
        why_not("gpu")


@pytest.mark.parametrize(
    ("value", "printed", "error"),
    [
        ("reference", "imported reference", ""),
        ("auto", "imported cpu", ""),
        (
            "tpu",
            "imported",
            "ValueError: FASTSCORE_BACKEND must be one of auto, reference, cpu, triton, cuda, got",
        ),
        ("triton", "imported", "BackendUnavailableError: FASTSCORE_BACKEND: 'triton' is not available: torch sees"),
    ],
)
def test_environment(value: str, printed: str, error: str) -> None:
    """A name that cannot be had is an error when it is first used, not at import."""
    code = """if True:
        import torch
        from fastscore import _backend
        print("imported", end=" ", flush=True)
        print(_backend.resolve(torch.device("cpu")))
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environ | {"FASTSCORE_BACKEND": value}, capture_output=True, text=True)
    assert done.stdout.strip() == printed
    assert error in done.stderr
    assert (done.returncode == 0) == (not error)


def test_environment_says_where_the_name_came_from() -> None:
    assert _backend._choose("auto", "FASTSCORE_BACKEND") is None
    with pytest.raises(BackendUnavailableError, match=r"^FASTSCORE_BACKEND: 'triton' is not available"):
        _backend._choose("triton", "FASTSCORE_BACKEND")
