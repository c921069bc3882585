"""The CPU kernels on many threads at once under ThreadSanitizer. The first build takes a minute: make tsan."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.soak import long

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "threads"
SOURCES = [
    *sorted((ROOT / "csrc/cpu").glob("*.cpp")),
    *(source for name in ("conv", "scan", "support") for source in sorted((ROOT / "csrc/cpu" / name).glob("*.cpp"))),
    Path(__file__).with_name("driver.cpp"),
]
FLAGS = ["-std=c++17", "-O1", "-g1", "-fsanitize=thread", "-ffp-contract=off", "-Wno-psabi", "-DHIERMT_ISA=baseline"]

pytestmark = [
    pytest.mark.hostile("workers", "determinism"),
    pytest.mark.skipif(os.environ.get("HIERMT_TSAN") != "1", reason="compiles for a minute: make tsan"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def driver() -> Path:
    """The program, compiled anew where a source or header changed."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    FOLDER.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in ROOT.glob("csrc/**/*.h"))

    def compiled(source: Path) -> Path:
        target = FOLDER / f"{source.name}.o"
        if not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
            command = [compiler, *FLAGS, "-I", str(ROOT / "csrc"), "-c", str(source), "-o", str(target)]
            subprocess.run(command, check=True)
        return target

    with open(FOLDER / ".lock", "w") as lock, ThreadPoolExecutor(2) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        objects = [str(one) for one in pool.map(compiled, SOURCES)]
        program = FOLDER / "driver"
        subprocess.run([compiler, "-fsanitize=thread", *objects, "-o", str(program), "-pthread"], check=True)
    return program


def run(driver: Path, *words: str) -> subprocess.CompletedProcess[str]:
    options = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    # Sanitized programs of older compilers do not start where the kernel randomises many bits of their addresses.
    fixed = [shutil.which("setarch") or "", "-R"] if shutil.which("setarch") else []
    return subprocess.run([*fixed, str(driver), *words], env=options, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("threads", "rounds"), [(4, 5), long(8, 500)])
def test_no_race_and_the_bits_of_one_thread(driver: Path, threads: int, rounds: int) -> None:
    done = run(driver, str(threads), str(rounds))
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    assert "0 results differ" in done.stdout


def test_a_race_is_found(driver: Path) -> None:
    done = run(driver, "4", "2", "race")
    assert done.returncode != 0 and "WARNING: ThreadSanitizer: data race" in done.stderr
