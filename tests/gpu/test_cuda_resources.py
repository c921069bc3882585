"""Every CUDA kernel compiles for every supported architecture, and the hot ones stay out of local memory."""

from __future__ import annotations

import pytest

from ptx import sources
from support.cuda_resources import (
    ARCHITECTURES,
    Kernel,
    build_logs,
    collect,
    nvcc,
    of_build,
    parse,
    selected_architectures,
    table,
)

REPORT = """
ptxas info    : Compiling entry function '_ZN6hiermt4cuda6kernelIfLi16EEEvi' for 'sm_90'
ptxas info    : Function properties for _ZN6hiermt4cuda6kernelIfLi16EEEvi
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 400 bytes smem, 372 bytes cmem[0]
"""


def test_the_report_is_read() -> None:
    (kernel,) = parse(REPORT)
    assert kernel.arch == 90 and kernel.registers == 96 and kernel.local == 24 and kernel.hot
    assert kernel.warps == 21 and kernel.shared == 400


def test_a_kernel_may_spill_as_much_as_is_listed_on_its_architecture_alone() -> None:
    listed = Kernel("gcn_stack_fwd_kernel<float, 64, 4>", 90, 128, stack=8, spill_stores=12, spill_loads=20, shared=0)
    assert listed.known_to_spill
    assert not listed._replace(spill_loads=21).known_to_spill
    assert not listed._replace(arch=120).known_to_spill
    assert not listed._replace(name="gatv2_stack_fwd_kernel<float, 16, 1>").known_to_spill


@pytest.mark.parametrize(
    ("listed", "expected"),
    [("", ARCHITECTURES), ("9.0", (90,)), ("8.0;9.0+PTX 10.0a", (80, 90, 100)), ("12.0", (120,)), ("8.6", ())],
)
def test_selected_architectures(listed: str, expected: tuple[int, ...]) -> None:
    assert selected_architectures({"TORCH_CUDA_ARCH_LIST": listed}) == expected


def test_nvcc_warns_of_nothing() -> None:
    logs = build_logs()
    if not logs:
        pytest.skip("no build of the present sources has CUDA kernels")
    said = [f"{name}: {line}" for name, text in logs.items() for line in text.splitlines() if "warning" in line]
    assert not said


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    """From the reports of the build, which is for one architecture in `make test`. `make ptx` compiles them here for
    all, which takes minutes."""
    if sources.wanted():
        return collect(selected_architectures())
    found = of_build()
    if not found:
        pytest.skip("no build of the present sources has CUDA kernels: FORCE_CUDA=1, or HIERMT_PTX=1 to compile them")
    return found


@pytest.mark.skipif(nvcc() is None, reason="needs nvcc")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_hot_kernels_stay_out_of_local_memory(arch: int, kernels: list[Kernel]) -> None:
    if arch not in selected_architectures():
        pytest.skip(f"TORCH_CUDA_ARCH_LIST leaves sm_{arch} out")
    if arch not in {kernel.arch for kernel in kernels}:
        pytest.skip(f"the build has no kernels for sm_{arch}")
    kernels = [kernel for kernel in kernels if kernel.arch == arch]
    assert len({kernel.name for kernel in kernels}) > 20
    bad = [kernel for kernel in kernels if kernel.hot and kernel.local and not kernel.known_to_spill]
    assert not bad, "\n" + table(bad)
    # A launch may ask for all that a block can have (launch.cuh).
    assert not [kernel.name for kernel in kernels if kernel.shared]
