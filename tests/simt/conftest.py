"""Tests of the CUDA kernels run them as source under the shim; as nvcc compiles them, too, where that is asked for.

With HIERMT_PTX=1 all tests do, for many minutes; in every run those that are marked ``compiled``, if the build holds
the PTX of its kernels.
"""

from __future__ import annotations

import pytest

from ptx import sources


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Two runs of a test, or one."""
    chosen = metafunc.definition.get_closest_marker("compiled") is not None and sources.left_out() is None
    metafunc.parametrize("kernels", ["source", "ptx"] if sources.wanted() or chosen else ["source"], indirect=True)


@pytest.fixture(autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which kernels the harness runs."""
    if request.param == "ptx":
        reason = sources.missing()
        if reason is not None:
            pytest.skip(reason)
        monkeypatch.setenv("HIERMT_SIMT_PTX", str(sources.runner_map()))
    return str(request.param)
