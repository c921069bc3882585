"""No kernel of a benchmark case executes more than bench/results/counts-sm90.json says, with a margin of 3 %."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ptx import sources
from simt.cases import needs_harness
from simt.harness import ROOT

pytestmark = [needs_harness, pytest.mark.skipif(sources.left_out() is not None, reason=str(sources.left_out()))]


@pytest.mark.parametrize("direction", ["forward", "training"])
def test_as_many_instructions_as_were_counted(direction: str) -> None:
    command = [sys.executable, "bench/counts.py", "--passes", direction, "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
