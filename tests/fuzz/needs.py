"""What the differential fuzzer needs."""

from __future__ import annotations

import importlib.util

import pytest

from hiermt.native import extension

REASON = extension.why_not_native("cpu")
if REASON is None and importlib.util.find_spec("torch_geometric") is None:
    REASON = "the oracle needs torch-geometric"
needs_both = pytest.mark.skipif(REASON is not None, reason=str(REASON))
