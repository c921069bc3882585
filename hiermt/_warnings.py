"""Warnings that point at the caller."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path


def warn(message: str, category: type[Warning], folder: Path) -> None:
    """Warns of the line that called into a folder of the package, however deep the call is."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(str(folder)):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
