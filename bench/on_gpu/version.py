"""Which sources ran: the commit where git knows it, and a digest that finds it again where it does not."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

# What decides how fast and how right a kernel is; documents and results do not.
SOURCES = ("csrc", "hiermt", "bench", "cmake", "CMakeLists.txt", "setup.py")
SUFFIXES = (".py", ".cu", ".cuh", ".cpp", ".h", ".sh", ".txt")


def digest(root: Path) -> str:
    """A short hash of the sources."""
    total = hashlib.sha256()
    for name in SOURCES:
        path = root / name
        for one in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if one.is_file() and one.suffix in SUFFIXES:
                total.update(f"{one.relative_to(root)}\0".encode() + one.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def commit(root: Path) -> str | None:
    """``COMMIT`` of the environment, or git's; ``None`` in a tree without git or with changed sources."""
    if os.environ.get("COMMIT"):
        return os.environ["COMMIT"][:12]
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != root.resolve() or _git(root, "status", "--porcelain", "--", *SOURCES) != "":
        return None
    return _git(root, "rev-parse", "--short=10", "HEAD") or None


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
