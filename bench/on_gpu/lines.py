"""How a process hands results to ``bench/gpu.py``: a marked line of JSON each, as soon as there is one.

A line outlives its process. A file or a pipe that is read at the end would be lost if either side is killed.
"""

from __future__ import annotations

import json
import re
from typing import Any

MARK = "@result "


def emit(kind: str, **facts: Any) -> None:
    """Prints one result."""
    print(f"{MARK}{json.dumps({'kind': kind, **facts})}", flush=True)


def parse(line: str) -> dict[str, Any] | None:
    """The result in a line; ``None`` if it has none, or one that was cut off."""
    # pytest prints a dot or a letter per test in front.
    _, mark, text = line.partition(MARK)
    if not mark:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "kind" in found else None


def summary(line: str) -> int | None:
    """The number of errors in a summary of compute-sanitizer; ``None`` for another line."""
    found = re.search(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", line)
    return None if found is None else int(found[1] or found[2])
