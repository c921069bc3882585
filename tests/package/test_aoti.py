"""The example of AOTInductor: a C++ program runs a package of the model, with the library and without Python.

It compiles for minutes, so it runs where HIERMT_TEST_AOTI=1 asks for it: ``make aoti``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hiermt.native import extension

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples/aoti"
TORCH = Path(torch.__file__).parent

pytestmark = pytest.mark.skipif(os.environ.get("HIERMT_TEST_AOTI") != "1", reason="compiles for minutes: make aoti")


def run(*command: object) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(text: str) -> torch.Tensor:
    return torch.tensor([[float(word) for word in line.split()] for line in text.splitlines()])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_program_in_cpp_decides_like_the_model(tmp_path: Path) -> None:
    reason = extension.why_not_native("cpu")
    if reason is not None:
        pytest.skip(reason)
    compiler = shutil.which("g++")
    if compiler is None or not (TORCH / "include/torch/csrc/inductor/aoti_package/model_package_loader.h").is_file():
        pytest.skip("needs g++ and the headers of libtorch")
    expected = rows(run(sys.executable, FOLDER / "export.py", tmp_path / "model.pt2"))
    include = [f"-I{TORCH / 'include'}", f"-I{TORCH / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-Wl,--no-as-needed"]
    libraries += ["-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    program = tmp_path / "decide"
    run(compiler, "-std=c++20", "-O1", *include, FOLDER / "decide.cpp", "-o", program, *libraries)
    from hiermt import _C

    found = rows(run(program, _C.LIBRARY, tmp_path / "model.pt2", 100, 25, 13))
    assert found.shape == (100, 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    # Another market and another history, with the same package.
    assert rows(run(program, _C.LIBRARY, tmp_path / "model.pt2", 7, 3, 13)).isfinite().all()
    refused = subprocess.run(
        [program, _C.LIBRARY, tmp_path / "model.pt2", "7", "x", "13"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert refused.stderr == "STEPS: expected a positive whole number, got x\n"
