"""The instruction sets that tests of native kernels run on."""

import pytest

from fastscore.testing.ops import ISAS, why_not_on


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set of the native library that this CPU has."""
    reason = why_not_on(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param
