"""Every native operator against its twin, by one list of problems, on each device and on two streams of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from hiermt.native import extension
from support.operator_cases import DTYPES, OperatorCase, cases, compare

CASES = cases()


@pytest.fixture(params=["cpu", "cuda", "cuda-own-stream"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device; on a GPU, torch's default stream or one of its own."""
    name = request.param.split("-")[0]
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if (reason := extension.why_not_native(name)) is not None:
        pytest.skip(reason)
    torch.use_deterministic_algorithms(True, warn_only=True)  # cuBLAS, not ours, asks for a setting
    with torch.cuda.stream(torch.cuda.Stream()) if request.param.endswith("stream") else nullcontext():
        yield name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_equals_the_twin(case: OperatorCase, dtype: torch.dtype, device: str) -> None:
    if device == "cpu" and dtype == torch.float16:
        pytest.skip("the CPU kernels know no float16")
    compare(case, device, dtype)


def test_every_operator_has_a_case() -> None:
    forward = {name for name in extension.OPERATORS if not name.endswith("_backward")}
    assert {case.op for case in CASES} == forward
