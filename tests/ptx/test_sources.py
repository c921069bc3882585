"""Every kernel that nvcc makes is understood, instruction by instruction, and is one that the runner can launch."""

from __future__ import annotations

import subprocess

import pytest

from ptx import sources
from simt import program

pytestmark = pytest.mark.skipif(sources.left_out() is not None, reason=str(sources.left_out()))


def test_every_instruction_is_known() -> None:
    tool = program.build(program.PTX_TOOL)
    paths = {kernel.path for kernel in sources.kernels()}
    decoded = 0
    for path in sorted(paths):
        result = subprocess.run([str(tool), str(path)], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        decoded += int(result.stdout)
    assert decoded == len(sources.kernels()) > 300


def test_the_runner_launches_what_nvcc_makes() -> None:
    """Both compilers instantiate the same kernels, so that none is only ever run as source."""
    assert {kernel.name for kernel in sources.kernels()} == set(sources.addresses().values())
