"""Builds and runs ``tests/fuzz/host``: libFuzzer on the host entries and CPU kernels of every operator.

    PYTHONPATH=tests python -m fuzz.operators --seconds 30 --seed 7

Needs clang. The host entries are compiled against the stand-in for torch's stable ABI of ``tests/simt/shim``, so that
each tensor has memory of exactly its size. An input that fails is kept in ``tests/fuzz/corpus/operators``, every file
of which each run calls first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
CORPUS = Path(__file__).parent / "corpus" / "operators"
_SHIM = ROOT / "tests" / "simt" / "shim"
# What asks torch for its stream and its threads stays out.
_HOST = [
    path for path in sorted((ROOT / "csrc" / "host").glob("*.cpp")) if path.stem not in ("cuda_call", "thread_pool")
]
CHECKED = [*_HOST, _SHIM / "stable_abi.cpp", *sorted((Path(__file__).parent / "host").glob("*.cpp"))]
CHECKED += sorted((ROOT / "csrc" / "cpu" / "support").glob("*.cpp"))
# `make sanitize` looks at them for undefined behaviour, and their branches are no guide to those of the checks.
KERNELS = [path for folder in (".", "conv", "scan") for path in sorted((ROOT / "csrc" / "cpu" / folder).glob("*.cpp"))]
COMMON = [
    *("-std=c++17", "-O1", "-g1", "-fno-omit-frame-pointer", "-ffp-contract=off", "-Wno-psabi", "-fsanitize=address"),
    *("-Itests/simt/shim", "-Icsrc", "-DHIERMT_SIMT", '-DHIERMT_SHIM_DEVICE="CPU"'),
    *("-DHIERMT_HAS_BASELINE=1", "-DHIERMT_ISA=baseline"),
]
GUIDED = ["-fsanitize=fuzzer-no-link,undefined", "-fno-sanitize-recover=all"]
LINK = ["-fsanitize=fuzzer,address,undefined", "-ldl"]
# Memory that no operator needs here fails to be allocated, as on a machine that is full.
_ASAN = ("allocator_may_return_null=1", "max_allocation_size_mb=256", "detect_leaks=0", "detect_odr_violation=0")
ENVIRONMENT = {"ASAN_OPTIONS": ":".join(_ASAN)}


def compiler() -> str | None:
    """clang with libFuzzer, or ``None``."""
    clang = shutil.which("clang++")
    if clang is None:
        return None
    # A distribution may package the library apart.
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.cpp"
        source.write_text('extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }\n')
        command = [clang, "-fsanitize=fuzzer,address,undefined", str(source), "-o", f"{folder}/empty"]
        return clang if subprocess.run(command, capture_output=True, check=False).returncode == 0 else None


def build(clang: str, folder: Path = BUILD) -> Path:
    """Compiles what changed since the last call; returns the program."""
    folder.mkdir(parents=True, exist_ok=True)
    headers = [path for one in ("csrc", "tests/simt/shim", "tests/fuzz/host") for path in (ROOT / one).rglob("*.h")]
    newest = max(path.stat().st_mtime for path in [*headers, Path(__file__)])
    launcher = [ccache] if (ccache := shutil.which("ccache")) else []

    def compiled(source: Path) -> Path:
        target = folder / f"{source.relative_to(ROOT).as_posix().replace('/', '-')}.o"
        if target.exists() and target.stat().st_mtime > max(newest, source.stat().st_mtime):
            return target
        flags = [*COMMON, *(GUIDED if source in CHECKED else [])]
        command = [*launcher, clang, *flags, "-c", str(source.relative_to(ROOT)), "-o", str(target)]
        subprocess.run(command, check=True, cwd=ROOT)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*KERNELS, *CHECKED]))
    program = folder / "operators"
    subprocess.run([clang, *map(str, objects), *LINK, "-o", str(program)], check=True)
    return program


def run(program: Path, options: Sequence[str], folders: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    """Runs the program; the first folder gets what it finds."""
    command = [
        str(program),
        "-timeout=30",
        "-rss_limit_mb=3000",
        "-max_len=256",
        "-len_control=0",
        *options,
        *map(str, folders),
    ]
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    clang = compiler()
    if clang is None:
        print("operators: left out, there is no clang++ with libFuzzer")
        return 0
    program = build(clang)
    CORPUS.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={given.seconds}", f"-seed={given.seed or 1}", f"-artifact_prefix={CORPUS}/"]
    with tempfile.TemporaryDirectory() as found:
        done = run(program, [*options, "-print_final_stats=1"], [Path(found), CORPUS])
    lines = done.stderr.splitlines()
    if done.returncode:
        print("\n".join(lines[-80:]))
    print(*(line for line in lines[-12:] if line.startswith(("Done ", "stat::number_of_executed"))), sep="\n")
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
