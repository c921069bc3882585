"""No pass of a benchmark case executes more than bench/results/counts-sm90.json says, with a margin of 3 %.

Nor do the loads of a neighbour in the stacks take more wavefronts than they did. Lanes with distinct addresses take 4,
fewer where some read the same one.
"""

from __future__ import annotations

import json
import re
import sys

import pytest

from ptx import sources
from ptx.test_counts import module
from simt.cases import needs_harness
from simt.program import ROOT

pytestmark = [needs_harness, pytest.mark.skipif(sources.left_out() is not None, reason=str(sources.left_out()))]


PASSES = json.loads((ROOT / "bench" / "results" / "counts-sm90.json").read_text())["counts"]
GATHERS = {
    "stocks-100 training": {"gatv2_stack_fwd_kernel<float,16,4>": 4.0, "gatv2_stack_bwd_kernel<float,16,false>": 7.5},
    "stocks-3200 training": {"gatv2_stack_fwd_kernel<float,16,1>": 6.8, "gatv2_stack_bwd_kernel<float,16,false>": 7.1},
}


@pytest.mark.parametrize("name", PASSES)
def test_as_many_instructions_as_were_counted(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case, direction = name.split()
    monkeypatch.setattr(sys, "argv", ["counts.py", "--cases", case, "--passes", direction, "--check"])
    status = module("counts", monkeypatch).main()
    printed = capsys.readouterr().out
    assert status == 0, printed
    found = dict(re.findall(r"^(.*): ([\d.]+) wavefronts a load of a neighbour$", printed, re.MULTILINE))
    for kernel, most in GATHERS.get(name, {}).items():
        assert 3 <= float(found[kernel]) <= most, printed
