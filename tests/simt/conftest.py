"""Every test of the CUDA kernels runs them twice: as source under the shim, and as what nvcc makes of them."""

from __future__ import annotations

import pytest

from ptx import sources


@pytest.fixture(params=["source", "ptx"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which kernels the harness runs."""
    if request.param == "ptx":
        reason = sources.missing()
        if reason is not None:
            pytest.skip(reason)
        monkeypatch.setenv("HIERMT_SIMT_PTX", str(sources.runner_map()))
    return str(request.param)
