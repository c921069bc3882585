"""Long forms of tests, which run under ``make soak`` alone."""

from __future__ import annotations

import os
from typing import Any

import pytest

_LONG = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(os.environ.get("HIERMT_SOAK") != "1", reason="takes minutes: make soak"),
]


def long(*values: Any) -> Any:
    """Parameters of the long form of a test."""
    return pytest.param(*values, marks=_LONG)
