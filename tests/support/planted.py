"""Faults that are planted, one at least for each class of docs/faults.md, and the tests that must find them.

Run as ``make planted``: the tree is copied, the tests pass there as it is, and with each fault one of them fails. A
fault that none finds is a hole in the tests. By hand, for some classes::

    PYTHONPATH=.:tests python -m support.planted [CLASS ...] [--no-cpp]

The texts are checked in every test run: each occurs once in its file, and every class has a fault.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from support.planted_faults import FAULTS

ROOT = Path(__file__).resolve().parents[2]
# What a build leaves in the tree and a copy needs.
BUILT = ("hiermt/libhiermt.so", "hiermt/_C.py")
# Ends a test that a fault makes hang; a killed run has found it, too.
SECONDS = 300


def copied(folder: Path) -> None:
    """The files of the tree that Git tracks or does not ignore, and what the build made."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    for name in [*listed.stdout.decode().split("\0"), *BUILT]:
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}


def tested(folder: Path, tests: Sequence[str]) -> tuple[str, str]:
    """Runs tests in a copy: ``passed``, ``failed``, or ``skipped`` if nothing ran; and what pytest said last."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-W", "ignore", "--tb=line"]
    try:
        done = subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=folder,
            env=_environment(folder),
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS * len(tests),
        )
    except subprocess.TimeoutExpired:
        return "failed", "it did not end"
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    if done.returncode not in (0, 1) and done.returncode > 0 and done.returncode < 128:
        raise RuntimeError(f"pytest could not run {tests}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    if done.returncode == 0:
        return ("passed" if " passed" in lines[-1] else "skipped"), lines[-1]
    return "failed", next((line for line in reversed(lines) if line.startswith(("FAILED", "ERROR"))), lines[-1])


def _built(folder: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = {**_environment(folder), "FORCE_CUDA": "0"}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)


def holes(classes: Sequence[str] | None = None, cpp: bool = True) -> list[str]:
    """Plants each fault in a copy of the tree, and returns the classes of which one stays unseen."""
    wanted = {name: faults for name, faults in FAULTS.items() if not classes or name in classes}
    unseen = []
    with tempfile.TemporaryDirectory(prefix="hiermt-planted-") as place:
        folder = Path(place)
        copied(folder)
        chosen = [(name, one) for name, faults in wanted.items() for one in faults if cpp or not one.compiled]
        outcome, line = tested(folder, sorted({one.test for _, one in chosen}))
        print(f"without a fault: {outcome}: {line}", flush=True)
        if outcome != "passed":
            raise RuntimeError("the tests fail without a fault")
        for name, fault in sorted(chosen, key=lambda pair: pair[1].compiled):
            if fault.gpu and not torch.cuda.is_available():
                print(f"{'no GPU':8} {name}", flush=True)
                continue
            begin, source = time.monotonic(), folder / fault.file
            before = source.read_text("utf-8")
            source.write_text(fault.planted(before), "utf-8")
            try:
                if fault.compiled:
                    _built(folder)
                outcome, line = tested(folder, [fault.test])
            finally:
                source.write_text(before, "utf-8")
            red = outcome == "failed"
            seen = "red" if red else "NOT SEEN"
            print(f"{seen:8} {name:18} {time.monotonic() - begin:4.0f} s  {fault.file}: {line[:150]}", flush=True)
            unseen += [] if red else [name]
    return unseen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("classes", nargs="*", help="classes of docs/faults.md (default: all)")
    parser.add_argument("--no-cpp", action="store_true", help="without the faults that need a build")
    options = parser.parse_args()
    unseen = holes(options.classes, not options.no_cpp)
    print(f"not seen: {', '.join(unseen)}" if unseen else "every fault was seen")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
