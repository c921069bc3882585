"""Operators on x whose offsets pass 2^31 and 2^32 elements, on the CPU."""

from __future__ import annotations

import sys

import pytest
import torch

from hiermt.native import extension
from support.calls import compare
from support.far import Far, memory_file, problems

REASON = "needs memfd_create" if sys.platform != "linux" else extension.why_not_native("cpu")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.mark.hostile("large-index")
@pytest.mark.parametrize("far", problems(), ids=str)
def test_offsets_past_32_bits(far: Far) -> None:
    with memory_file() as path:
        compare(far.problem, torch.float32, layout=far.layout(path))
