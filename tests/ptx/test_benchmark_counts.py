"""No pass of a benchmark case executes more than bench/results/counts-sm90.json says, with a margin of 3 %."""

from __future__ import annotations

import json
import sys

import pytest

from ptx import sources
from ptx.test_counts import module
from simt.cases import needs_harness
from simt.program import ROOT

pytestmark = [needs_harness, pytest.mark.skipif(sources.left_out() is not None, reason=str(sources.left_out()))]


PASSES = json.loads((ROOT / "bench" / "results" / "counts-sm90.json").read_text())["counts"]


@pytest.mark.parametrize("name", PASSES)
def test_as_many_instructions_as_were_counted(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case, direction = name.split()
    monkeypatch.setattr(sys, "argv", ["counts.py", "--cases", case, "--passes", direction, "--check"])
    status = module("counts", monkeypatch).main()
    assert status == 0, capsys.readouterr().out
