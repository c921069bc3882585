"""The tests of the kernels and the vector math once more for every instruction set that this machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hiermt.native import extension
from support import scripts

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

HERE = Path(__file__).resolve().parent
SCRIPT = """
import sys, pytest
from hiermt import _C

if _C.build_info()["cpu_isa"] != {isa!r}:
    sys.exit(77)
files = ["ops/test_contract.py", "ops/test_vmath.py"]
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", {chosen!r}, *files]))
"""
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
    done = scripts.run(SCRIPT.format(isa=isa, chosen=CHOSEN), HERE.parent, {**os.environ, "HIERMT_CPU_ISA": isa})
    if done.returncode == 77:
        pytest.skip(f"this machine has no {isa}")
    assert done.returncode == 0, done.stdout[-4000:]
