"""Source lines of a kernel's PTX, which nvcc's option -lineinfo adds to it (HIERMT_PTX_LINES=1)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ptx.sources import Kernel

_LOC = re.compile(r"\s*\.loc\t(\d+) (\d+) (\d+)(?:, function_name [^,]+, inlined_at (\d+) (\d+) (\d+))?")


class Place(NamedTuple):
    """A place in a source: number of the file, line, column."""

    file: int
    line: int
    column: int


@cache
def _files(path: Path) -> dict[int, Path]:
    return {int(number): Path(name) for number, name in re.findall(r'\t\.file\t(\d+) "(.*)"', path.read_text())}


def by_source(kernel: Kernel, lines: Mapping[str, float]) -> tuple[Counter[str], Counter[str]]:
    """Instructions by source line: those of the line itself, and with those of the functions inlined there.

    Args:
        kernel (Kernel): whose PTX has source lines.
        lines (mapping): instructions by the line of the kernel's text, counted from 1.

    The PTX names the caller of a place only where it is inlined last before it, so the second is an estimate where a
    function is inlined several times.
    """
    text = kernel.path.read_bytes()[kernel.begin : kernel.begin + kernel.size].decode()
    own: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    callers: dict[Place, Place | None] = {}
    at: Place | None = None
    for number, line in enumerate(text.splitlines(), 1):
        found = _LOC.match(line)
        if found is not None:
            file, row, column, *caller = (int(part) for part in found.groups() if part is not None)
            at = Place(file, row, column)
            callers[at] = Place(*caller) if caller else None
        count = lines.get(str(number))
        if count is None or at is None:
            continue
        # Each line once, also of a function that calls itself.
        named: dict[str, None] = {}
        one: Place | None = at
        for _ in range(50):
            if one is None:
                break
            named[f"{_files(kernel.path)[one.file].name}:{one.line}"] = None
            one = callers.get(one)
        own[next(iter(named))] += count
        inclusive.update(dict.fromkeys(named, count))
    return own, inclusive
