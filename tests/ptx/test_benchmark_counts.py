"""No pass of a benchmark case executes more than bench/results/counts-sm90.json says, with a margin of 3 %."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ptx import sources
from simt.cases import needs_harness
from simt.harness import ROOT

pytestmark = [needs_harness, pytest.mark.skipif(sources.left_out() is not None, reason=str(sources.left_out()))]


PASSES = json.loads((ROOT / "bench" / "results" / "counts-sm90.json").read_text())["counts"]


@pytest.mark.parametrize("name", PASSES)
def test_as_many_instructions_as_were_counted(name: str) -> None:
    case, direction = name.split()
    command = [sys.executable, "bench/counts.py", "--cases", case, "--passes", direction, "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
