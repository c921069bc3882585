"""Loading the binary: with any file in its place, the import succeeds and says once what is wrong and what to do.

Each case runs in a separate process on a copy of the package.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

import hiermt
from hiermt.native import dispatch, extension, info
from support.extension_probe import BINARY, LIBRARY, PACKAGE, PROBE, ROOT, assert_fell_back, outcome, probe

needs_binary = pytest.mark.skipif(not BINARY.is_file(), reason="the extension is not built")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package without its binary; returns its directory."""
    built = shutil.ignore_patterns(LIBRARY, "_C*.so", "_build.json", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "hiermt", ignore=built)
    return tmp_path / "hiermt"


@pytest.mark.hostile("no-extension")
def test_missing_binary(copy: Path) -> None:
    assert_fell_back(outcome(copy), "is not built", "pip install --no-cache-dir")


@pytest.mark.hostile("no-extension")
@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF" + b"\0" * 64], ids=["empty", "text", "stub"])
def test_corrupt_binary(copy: Path, content: bytes) -> None:
    (copy / LIBRARY).write_bytes(content)
    assert_fell_back(outcome(copy), "cannot be loaded", "rebuild")


@needs_binary
@pytest.mark.parametrize("part", [0.001, 0.5, 0.999])
def test_truncated_binary(copy: Path, part: float) -> None:
    whole = BINARY.read_bytes()
    (copy / LIBRARY).write_bytes(whole[: int(len(whole) * part)])
    assert_fell_back(outcome(copy), "ends too early", "rebuild")


@pytest.mark.parametrize("name", [f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", "_C.abi3.so"])
def test_extension_module_of_an_earlier_hiermt(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"Python prefers this file to _C.py")
    assert_fell_back(outcome(copy), "of an earlier hiermt", name)


@needs_binary
def test_binary_that_misses_a_symbol_of_this_torch(copy: Path) -> None:
    # A name that no torch exports, of the same length, is what an older torch looks like to the loader.
    symbol = b"aoti_torch_get_dtype\0"
    content = BINARY.read_bytes()
    assert symbol in content
    (copy / LIBRARY).write_bytes(content.replace(symbol, b"aoti_torch_got_dtype\0"))
    assert_fell_back(outcome(copy), "undefined symbol", f"torch than {torch.__version__}")


@pytest.mark.hostile("no-extension")
@needs_binary
def test_binary_of_another_version(copy: Path) -> None:
    shutil.copy(BINARY, copy)
    (copy / "_version.py").write_text('__version__ = "9.9.9"\n')
    assert_fell_back(outcome(copy), f"belongs to hiermt {hiermt.__version__}", "this is hiermt 9.9.9")


@needs_binary
def test_binary_that_lacks_an_operator(copy: Path) -> None:
    shutil.copy(BINARY, copy)
    text = (copy / "native" / "extension.py").read_text()
    (copy / "native" / "extension.py").write_text(
        text.replace("OPERATORS = (", 'OPERATORS = ("operator_of_tomorrow", ')
    )
    assert_fell_back(outcome(copy), "older than the sources", "operator_of_tomorrow")


@pytest.mark.hostile("no-extension")
def test_old_torch(copy: Path) -> None:
    script = "import torch; torch.__version__ = '2.10.1+cpu'\n" + PROBE
    done = probe(copy, script)
    assert done.returncode == 0, done.stderr
    assert_fell_back(json.loads(done.stdout.splitlines()[-1]), "torch 2.10.1+cpu is older than 2.11", "upgrade torch")


def test_left_out_build_tells_why(copy: Path) -> None:
    (copy / "_build.json").write_text(json.dumps({"extension": "no C++ compiler was found", "cuda": None}))
    assert_fell_back(outcome(copy), "left out of the build", "no C++ compiler was found")


@pytest.mark.parametrize("report", ["", "[]", "{", '{"cuda": 3}'])
def test_damaged_report_is_ignored(copy: Path, report: str) -> None:
    (copy / "_build.json").write_text(report)
    assert_fell_back(outcome(copy), "is not built")


def test_reference_backend_misses_nothing(copy: Path) -> None:
    found = outcome(copy, HIERMT_BACKEND="reference")
    assert found["warnings"] == []
    assert "HIERMT_BACKEND=reference" in found["info"]


def test_native_backend_without_binary(copy: Path) -> None:
    done = probe(copy, HIERMT_BACKEND="native")
    assert done.returncode != 0
    assert "backend 'native' cannot run on cpu" in done.stderr
    assert "is not built" in done.stderr


def test_unknown_backend(copy: Path) -> None:
    done = probe(copy, HIERMT_BACKEND="gpu")
    assert done.returncode != 0
    assert "expected one of auto, native, reference, got 'gpu'" in done.stderr


@needs_binary
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_cpu_isa_is_obeyed(isa: str) -> None:
    from hiermt._C import build_info

    if isa not in build_info()["cpu_isas"]:
        pytest.skip(f"{isa} is not in this build")
    script = "import hiermt; b = hiermt.native.extension.native_status().build; print(b['cpu_isa'], b['cpu_isa_error'])"
    done = probe(PACKAGE, script, HIERMT_CPU_ISA=isa)
    assert done.returncode == 0, done.stderr
    if "expected one of" in done.stdout:
        pytest.skip(f"this machine has no {isa}")
    assert done.stdout.split() == [isa]


@needs_binary
def test_unknown_cpu_isa_warns(copy: Path) -> None:
    shutil.copy(BINARY, copy)
    found = outcome(copy, HIERMT_CPU_ISA="avx9000")
    assert found["reason"] is None
    assert len(found["warnings"]) == 1
    assert "avx9000" in found["warnings"][0]


@needs_binary
def test_build_info_matches_its_type_and_the_package() -> None:
    from hiermt import _C

    told = _C.build_info()
    assert told.keys() == _C.BuildInfo.__annotations__.keys()
    assert told["version"] == hiermt.__version__
    assert told["abi_target"] == "2.11"
    assert told["cpu_isa"] in told["cpu_isas"]
    assert "baseline" in told["cpu_isas"]
    assert bool(told["cuda"]) == bool(told["cuda_architectures"])


def test_required_operators_are_those_of_the_schema() -> None:
    schema = (ROOT / "csrc/schema.cpp").read_text()
    assert set(re.findall(r'm\.def\(\s*"(\w+)\(', schema)) == set(extension.OPERATORS)


def test_cuda_is_never_missing_in_silence() -> None:
    status = extension.native_status()
    if status.available and status.build["cuda"] is None:
        assert "without CUDA kernels" in str(extension.why_not_native("cuda"))
        assert "without CUDA kernels" in info.format(info.collect())
    assert "no native operators for mps" in str(extension.why_not_native("mps")) or not status.available


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (("80-real", "90-real", "100"), (9, 0), True),
        (("80-real", "90-real", "100"), (8, 9), True),
        (("80-real", "90-real", "100", "120"), (12, 0), True),
        (("80-real", "90-real", "100", "120"), (11, 0), True),
        (("80-real", "90-real", "100-real", "120"), (11, 0), False),
        (("80-real", "90-real", "100", "120"), (12, 1), True),
        (("80-real", "90-real", "100"), (7, 5), False),
        (("90-real",), (8, 0), False),
        (("90-real",), (10, 0), False),
        (("90a",), (9, 0), True),
        (("90a",), (10, 0), False),
        (("86-real",), (8, 0), False),
        (("80-virtual",), (9, 0), True),
    ],
)
def test_a_gpu_without_kernels_gets_the_twins(
    built: tuple[str, ...], capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = dataclasses.replace(extension.native_status(), build={"cuda_architectures": built})
    monkeypatch.setattr(extension, "_status", status)
    monkeypatch.setattr(extension, "why_not_native", lambda device_type: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(extension, "_reasons", {})
    monkeypatch.setattr(extension, "_why_trial_fails", lambda device: None)
    device = torch.device("cuda:0")
    assert dispatch.native("auto", device) is runs
    if not runs:
        with pytest.raises(RuntimeError, match="compute capability"):
            dispatch.native("native", device)


@pytest.fixture
def gpu_stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU that fits the kernels, and whose trial runs on the CPU; the devices that were tried."""
    tried: list[str] = []
    zeros = torch.zeros

    def on_cpu(*size: int, device: torch.device, **kwargs: Any) -> torch.Tensor:
        tried.append(str(device))
        return zeros(*size, **kwargs)

    build = {**extension.native_status().build, "cuda": "99.9", "cuda_architectures": ("90",)}
    monkeypatch.setattr(extension, "_status", dataclasses.replace(extension.native_status(), build=build))
    monkeypatch.setattr(extension, "why_not_native", lambda device_type: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch, "zeros", on_cpu)
    monkeypatch.setattr(extension, "_reasons", {})
    return tried


@pytest.mark.skipif(not extension.native_status().available, reason="needs the extension")
def test_a_gpu_is_tried_once_for_each_device(gpu_stand_in: list[str]) -> None:
    for index in (0, 1, 0, 1):
        assert dispatch.native("auto", torch.device("cuda", index))
    assert gpu_stand_in == ["cuda:0", "cuda:1"]


@pytest.mark.skipif(not extension.native_status().available, reason="needs the extension")
def test_the_current_gpu_is_asked_for_anew(gpu_stand_in: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for current in (1, 0, 1):
        monkeypatch.setattr(torch.cuda, "current_device", lambda current=current: current)
        assert dispatch.native("auto", torch.device("cuda"))
    assert gpu_stand_in == ["cuda:1", "cuda:0"]


@pytest.mark.skipif(not extension.native_status().available, reason="needs the extension")
def test_a_capture_holds_no_trial(gpu_stand_in: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert dispatch.native("auto", torch.device("cuda:0")) and gpu_stand_in == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert dispatch.native("auto", torch.device("cuda:0")) and gpu_stand_in == ["cuda:0"]


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [("13.0.88", "12.8", True), ("12.9", "13.0", False), ("12.9", "12.6", False), ("13.0", None, False)],
)
@pytest.mark.skipif(not extension.native_status().available, reason="needs the extension")
def test_a_toolkit_later_than_torch_is_told(
    ours: str, theirs: str | None, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = {**extension.native_status().build, "cuda": ours, "cuda_architectures": ("90",)}
    monkeypatch.setattr(extension, "_status", dataclasses.replace(extension.native_status(), build=build))
    monkeypatch.setattr(torch.version, "cuda", theirs)
    text = info.format(info.collect())
    assert ("built with CUDA 13.0.88, this torch is for CUDA 12.8" in text) is told
    assert ("set CUDA_HOME to a toolkit of CUDA 12.8 and rebuild" in text) is told


@pytest.mark.skipif(not extension.native_status().available, reason="needs the extension")
def test_a_driver_too_old_gets_the_twins(gpu_stand_in: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version\nmore")

    monkeypatch.setattr(torch.ops.hiermt, "decision_from_logits", fail)
    device = torch.device("cuda:0")
    assert not dispatch.native("auto", device)
    with pytest.raises(RuntimeError, match=r"driver version is insufficient .* CUDA 99\.9"):
        dispatch.native("native", device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "stand-in")
    assert "driver version is insufficient" in info._gpu(0)
    assert len(gpu_stand_in) == 1


def test_info_command() -> None:
    done = probe(
        PACKAGE, "import runpy, sys; sys.argv = ['hiermt', 'info']; runpy.run_module('hiermt', run_name='__main__')"
    )
    assert done.returncode == 0, done.stderr
    assert f"hiermt {hiermt.__version__}" in done.stdout
    assert f"torch    {torch.__version__}" in done.stdout


@needs_binary
def test_exported_symbols_are_few() -> None:
    """A static CUDA runtime or a kernel that is visible could be taken for the one of another library."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    listed = subprocess.run(["nm", "-D", "--defined-only", str(BINARY)], capture_output=True, text=True, check=True)
    strong = [line.split()[-1] for line in listed.stdout.splitlines() if line.split()[-2] == "T"]
    assert strong == ["hiermt_build_info", "hiermt_release_scratch"]


@needs_binary
def test_no_symbol_of_python_is_used() -> None:
    """One file for every Python, and for programs without one."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(BINARY)], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in listed.stdout.splitlines()]
    assert "torch_call_dispatcher" in names
    assert [name for name in names if re.match(r"_?Py[A-Z_]", name)] == []


@needs_binary
def test_only_the_stable_abi_of_torch_is_used() -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(BINARY)], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in listed.stdout.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    # C++ names of torch (namespaces at, c10, torch) change from version to version.
    assert [name for name in names if name.startswith(("_ZN2at", "_ZN3c10", "_ZNK3c10", "_ZN5torch"))] == []
    # And what only a CUDA build of torch has would break the import on a CPU-only one.
    assert {name for name in names if "cuda" in name.lower()} <= {"aoti_torch_device_type_cuda"}
