"""Runs scripts in forks of a process that has imported torch, because the import takes longer than the scripts."""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SERVER = """
import json, os, sys, traceback
import torch

for line in sys.stdin:
    request = json.loads(line)
    fork = os.fork()
    if fork == 0:
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        for number, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
            os.dup2(os.open(path, os.O_RDWR), number)
        sys.path[0] = request["folder"]
        status = 0
        try:
            exec(compile(request["script"], "script", "exec"), {"__name__": "__main__"})
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), flush=True)
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    # From a folder without hiermt, so that a script imports the one in its own folder.
    found = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=pipe, stdout=pipe, text=True, cwd=tempfile.gettempdir()
    )
    atexit.register(found.kill)
    return found


def run(script: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs `script` in `folder`, which is the first place of imports, under `environment`."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        request = {
            "script": script,
            "folder": str(folder),
            "environment": environment,
            "out": out.name,
            "err": err.name,
        }
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(script, status, out.read(), err.read())
