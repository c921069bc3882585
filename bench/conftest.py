"""Options that select the cases, and the description of the machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from hiermt.native import extension


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--competitors", default="pyg,twin,native", help="comma-separated, see bench/cases.py")
    parser.addoption("--cases", default="stocks-3200,stocks-100", help="comma-separated, or all")
    parser.addoption("--passes", default="forward,training", help="comma-separated")


def cpu_name() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@pytest.fixture
def machine() -> dict[str, Any]:
    """Machine and software, recorded with every figure."""
    build = extension.native_status().build
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "isa": build.get("cpu_isa"),
        "allocator": "tuned" if os.environ.get("MALLOC_TRIM_THRESHOLD_") else "default",
        "python": platform.python_version(),
    }
