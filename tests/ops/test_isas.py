"""The tests of the kernels and the vector math once more for every instruction set that this machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hiermt.native import extension

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

HERE = Path(__file__).resolve().parent
FILES = ("test_contract.py", "test_vmath.py")
# What depends on the width of a vector. The rest is the same on every set, the form of a graph and the phases of a wide
# one too.
CHOSEN = "(test_vmath or test_equals_twin or part_alone or at_most_twice or windows_equal) and not graph_prepare"
CHOSEN += "".join(f" and not {name}-" for name in ("wide", "loops", "directed", "star", "parts", "edges", "node"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_kernels_of(isa: str) -> None:
    """Those of the best set, which the other tests run, are left out."""
    build = extension.native_status().build
    if isa not in build["cpu_isas"]:
        pytest.skip(f"{isa} is not in this build")
    if isa == build["cpu_isa"]:
        pytest.skip(f"{isa} is what the other tests run")
    environment = {**os.environ, "HIERMT_CPU_ISA": isa}
    script = "from hiermt import _C; print(_C.build_info()['cpu_isa'])"
    chosen = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    if chosen.stdout.strip() != isa:
        pytest.skip(f"this machine has no {isa}")
    files = [str(HERE / file) for file in FILES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", CHOSEN, *files],
        env=environment,
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
