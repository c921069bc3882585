"""Writing a file as the package does, here and in a process of its own."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hiermt.io import files as _files
from hiermt.io.files import atomic_write

# By its path, as importing the package takes seconds.
LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("files", {_files.__file__!r})
files = sys.modules["files"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
"""


def write(path: Any, text: str = "new") -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def quota(most: int) -> Iterator[None]:
    """No file may grow beyond so many bytes. Within a test alone: pytest reports it into a file that may be longer."""
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
