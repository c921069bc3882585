"""What finds the kernels that no test launches."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptx import sources
from simt import harness, launched
from simt.cases import launches as launches_of
from simt.cases import needs_harness, scan

SCAN = "gated_scan_fwd_register_kernel<float,ProjectedRows<float>,{},false>"


def test_a_kernel_counts_by_name() -> None:
    kernels = {16: "one_kernel<float>", 32: "two_kernel<float>", 48: "one_kernel<float>"}
    assert launched.never_launched(kernels, [48]) == ["two_kernel<float>"]
    assert launched.never_launched(kernels, [16, 32, 32]) == []


@needs_harness
def test_the_harness_records_what_it_launches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "launched"
    monkeypatch.setenv("HIERMT_SIMT_LAUNCHES", str(record))
    monkeypatch.delenv("HIERMT_SIMT_PTX", raising=False)
    launches_of(scan(16))
    names = sources.addresses(harness.SOURCE)
    found = {names[int(line, 16)] for line in record.read_text().split()}
    assert len(found) == 2 and SCAN.format(16) in found
    assert launched.main([str(record)]) == 1
    said = capsys.readouterr().out
    assert f"\n  {SCAN.format(32)}\n" in said and SCAN.format(16) not in said
