"""Devices and numbers of threads for the operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from hiermt.native import extension

GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda", "cuda-own-stream") if torch.cuda.is_available()]


@pytest.fixture(params=["cpu", *GPU])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device; on a GPU, torch's default stream or one of its own."""
    name = request.param.split("-")[0]
    if (reason := extension.why_not_native(name)) is not None:
        pytest.skip(reason)
    torch.use_deterministic_algorithms(True, warn_only=True)  # cuBLAS, not ours, asks for a setting
    with torch.cuda.stream(torch.cuda.Stream()) if request.param.endswith("stream") else nullcontext():
        yield name


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
