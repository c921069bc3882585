"""What the tests of ``bench/gpu.py`` share."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"
GPU = {"gpu": "NVIDIA H100 80GB HBM3", "torch": "2.11.0", "cuda": "13.0", "capability": [9, 0]}
FIGURE = "from on_gpu.lines import emit; emit('figure', case='{}', competitor='native', ms=0.5, how='graph replay')"


def part(name: str) -> Any:
    """A module of ``bench/on_gpu``."""
    return importlib.import_module(f"on_gpu.{name}")


def python(code: str, limit: float = 60, name: str = "child") -> Any:
    """A command that runs Python code."""
    return part("process").Command(name, [sys.executable, "-c", code], limit)


def kept(record: Any) -> dict[str, Any]:
    """What a record has written."""
    return json.loads((record.folders[0] / f"{record.stem()}.json").read_text())  # type: ignore[no-any-return]


def log(record: Any) -> str:
    """The log of a run."""
    return (record.logs[0] / "make-gpu.log").read_text()  # type: ignore[no-any-return]
