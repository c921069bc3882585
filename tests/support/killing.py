"""Runs work again and again in processes that are killed at random moments, until one of them comes to its end.

``python -m support.killing MODULE FUNCTION FOLDER KILLS SECONDS`` imports the module once and forks. A child calls
``FUNCTION(FOLDER)``; the first KILLS children are killed, at the latest SECONDS after the work began. Prints how many
children were killed at work.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


def killed_again_and_again(module: str, function: str, folder: Path, kills: int, seconds: float) -> int:
    """Runs the above in a process of its own; the number of children killed at work."""
    command = [sys.executable, "-m", "support.killing", module, function, str(folder), str(kills), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


def _child(work: Any, folder: Path, started: int) -> None:
    code = 1
    try:
        os.write(started, b"x")
        work(folder)
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code)


def main(module: str, function: str, folder: str, kills: str, seconds: str) -> int:
    import torch

    # No thread of torch may run before a fork, so each child has one thread, too.
    torch.set_num_threads(1)
    work, generator, killed = getattr(importlib.import_module(module), function), random.Random(0), 0
    for i in range(int(kills) + 1):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            _child(work, Path(folder), write)
        os.read(read, 1)
        os.close(read)
        os.close(write)
        if i < int(kills):
            time.sleep(generator.uniform(0, float(seconds)))
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == -signal.SIGKILL:
            killed += 1
        elif status != 0:
            return status
    print(killed)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
