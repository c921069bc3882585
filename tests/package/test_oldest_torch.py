"""The files that see torch compile against the headers of the oldest torch, which a build here would never meet.

Its wheel is fetched once, into ``build``, and only if slow tests are asked for::

    pytest -m slow tests/package/test_oldest_torch.py
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hiermt.native.extension import OLDEST_TORCH

ROOT = Path(__file__).parents[2]
OLDEST = ".".join(map(str, OLDEST_TORCH))
FOLDER = ROOT / "build" / f"torch-{OLDEST}-headers"
SOURCES = [ROOT / "csrc" / "schema.cpp", *sorted((ROOT / "csrc" / "host").glob("*.cpp"))]
FETCH_S = 300


def fetch(folder: Path) -> str | None:
    """Downloads the wheel and keeps its headers; says why it could not."""
    wheels = folder / "wheel"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir", f"torch=={OLDEST}.0"]
    try:
        subprocess.run([*command, "-d", str(wheels)], capture_output=True, text=True, check=True, timeout=FETCH_S)
        (wheel,) = wheels.glob("torch-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith("torch/include/torch/")]
            archive.extractall(folder / "part", names)
        (folder / "part" / "torch" / "include").replace(folder / "include")
    except (OSError, ValueError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
        return f"{error} {getattr(error, 'stderr', '') or ''}"[:300]
    finally:
        shutil.rmtree(wheels, ignore_errors=True)
        shutil.rmtree(folder / "part", ignore_errors=True)
    return None


@pytest.fixture
def headers(request: pytest.FixtureRequest) -> Path:
    include = FOLDER / "include"
    if not include.is_dir():
        if "slow" not in str(request.config.option.markexpr):
            pytest.skip(f"the headers of torch {OLDEST} are not here; pytest -m slow fetches them")
        if reason := fetch(FOLDER):
            pytest.skip(f"torch {OLDEST} cannot be had: {reason}")
    return include


def digest() -> str:
    """Of everything that the files include."""
    total = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix in (".cpp", ".h"):
            total.update(path.read_bytes())
    return total.hexdigest()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_host_files_compile_against_the_oldest_torch(headers: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    version = (headers / "torch" / "headeronly" / "version.h").read_text()
    assert re.search(r"TORCH_VERSION_MINOR (\d+)", version)[1] == str(OLDEST_TORCH[1])  # type: ignore[index]
    passed = FOLDER / "passed"
    if passed.is_file() and passed.read_text() == digest():
        return
    target = f"0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000ULL"
    assert f"TORCH_TARGET_VERSION={target}" in (ROOT / "CMakeLists.txt").read_text()
    flags = [
        "-std=c++17",
        "-fsyntax-only",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-DHIERMT_WITH_CUDA=1",
    ]
    flags += [f"-DTORCH_TARGET_VERSION={target}", f"-I{ROOT / 'csrc'}", "-isystem", str(headers)]

    def compile_one(source: Path) -> str:
        done = subprocess.run([compiler, *flags, str(source)], capture_output=True, text=True, check=False)
        return done.stderr if done.returncode else ""

    with ThreadPoolExecutor(2) as pool:
        errors = [error for error in pool.map(compile_one, SOURCES) if error]
    assert not errors, "\n".join(errors)[:3000]
    passed.write_text(digest())
