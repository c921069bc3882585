"""Instructions of a kernel by source line, from the line information that nvcc writes into PTX."""

from __future__ import annotations

from pathlib import Path

from ptx.lines import by_source
from ptx.sources import Kernel

# Line 20 of a.cu calls a function that b.cuh has from line 5 on, and it one of line 9.
TEXT = """.visible .entry kernel()
{
\t.loc\t1 10 3
\tadd.s32 \t%r1, %r2, %r3;
\t.loc\t2 5 7, function_name $L__info_string0, inlined_at 1 20 2
\tadd.s32 \t%r1, %r2, %r3;
\t.loc\t2 9 1, function_name $L__info_string1, inlined_at 2 5 7
\tadd.s32 \t%r1, %r2, %r3;
}
"""


def test_instructions_count_where_they_are_and_where_they_are_inlined(tmp_path: Path) -> None:
    path = tmp_path / "one.ptx"
    head = ".version 8.0\n"
    path.write_text(f'{head}{TEXT}\t.file\t1 "/source/a.cu"\n\t.file\t2 "/source/b.cuh"\n')
    kernel = Kernel("kernel", "kernel", path, len(head), len(TEXT))
    own, inclusive = by_source(kernel, {"4": 1, "6": 10, "8": 100})
    assert own == {"a.cu:10": 1, "b.cuh:5": 10, "b.cuh:9": 100}
    assert inclusive == {"a.cu:10": 1, "a.cu:20": 110, "b.cuh:5": 110, "b.cuh:9": 100}
