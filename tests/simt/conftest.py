"""Tests of the CUDA kernels run them as source under the shim; with HIERMT_PTX=1, as nvcc compiles them, too."""

from __future__ import annotations

import pytest

from ptx import sources


@pytest.fixture(params=["source", "ptx"] if sources.wanted() else ["source"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which kernels the harness runs."""
    if request.param == "ptx":
        reason = sources.missing()
        if reason is not None:
            pytest.skip(reason)
        monkeypatch.setenv("HIERMT_SIMT_PTX", str(sources.runner_map()))
    return str(request.param)
