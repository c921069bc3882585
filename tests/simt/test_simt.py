"""The harness: each of its detectors fires, and what a device cannot hold is refused before a kernel runs."""

from __future__ import annotations

import pytest
import torch

from simt.cases import needs_harness
from simt.harness import Simt, SimtFault, send

pytestmark = [needs_harness, pytest.mark.compiled]

FAULTS = {
    1: "simt: divergence",
    2: "simt: divergence",
    3: "simt: divergence",
    4: "simt: divergence",
    5: "heap-buffer-overflow",
    6: "heap-buffer-overflow",
    9: "signed integer overflow",
    10: "simt: shared memory",
    11: "simt: grid: .*1 x 65536 x 1 blocks",
    12: "simt: grid: .*1056 x 1 x 1 threads",
    13: "simt: launch bounds: .*128 threads a block, the kernel allows 96",
    14: "simt: grid: .*49153 bytes of shared memory",
    # What a kernel may have is one number for all host threads, so that one could lower it below another's launch.
    16: "simt: shared memory: .*49153 bytes allowed to a kernel",
}
# As nvcc compiles them. Shared memory is one piece, and a sum that overflows wraps.
COMPILED_FAULTS = {**FAULTS, 5: "simt: shared memory", 6: "simt: global memory"}
COMPILED_FAULTS.pop(9)


def run_fault(fault: int, order: int = 0) -> torch.Tensor:
    source = torch.arange(64, dtype=torch.float32)
    return send("fault", [fault, source], {"HIERMT_SIMT_ORDER": str(order)}).tensors[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_detector_fires(fault: int, kernels: str) -> None:
    expected = COMPILED_FAULTS.get(fault) if kernels == "ptx" else FAULTS[fault]
    if expected is None:
        pytest.skip("undefined in C++, defined in PTX")
    with pytest.raises(SimtFault, match=expected):
        run_fault(fault)


def test_a_kernel_without_fault_passes_in_every_order() -> None:
    source = torch.arange(64, dtype=torch.float32)
    expected = source.roll(-1)
    expected = expected + expected.reshape(-1, 2).flip(1).reshape(-1)
    for order in (0, 1, 2):
        assert torch.equal(run_fault(0, order), expected)


def test_a_block_within_the_bound_of_its_kernel_runs() -> None:
    assert run_fault(15).eq(1).all()


@pytest.mark.hostile("unwritten")
def test_uninitialised_shared_memory_shows() -> None:
    assert run_fault(7).isnan().any()


def test_a_race_depends_on_the_order() -> None:
    results = [run_fault(8, order).nan_to_num() for order in range(5)]
    assert not all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("hidden", [257, 0])
def test_a_width_that_no_kernel_takes_is_refused(hidden: int) -> None:
    x, g = torch.zeros(4, 1, 3), torch.zeros(4, 1, hidden)
    with Simt(), pytest.raises(RuntimeError, match=f"take 1 to 256 hidden channels, got {hidden}"):
        torch.ops.hiermt.gated_scan(x, g, None, [], None, None, steps=0, sequence=True, save=False, tf32=False)


@pytest.mark.hostile("large-index")
def test_more_rows_than_an_index_counts_are_refused() -> None:
    """A stack takes x of any strides, so that it needs no memory."""
    csr = [torch.zeros(size, dtype=torch.int32) for size in (2, 1, 2, 1, 1, 2)]
    x = torch.zeros(1).expand(2**20, 2**11, 3)
    params = [torch.zeros(16, 3), torch.zeros(16)]
    with Simt(), pytest.raises(RuntimeError, match="take up to 1073741824 rows"):
        torch.ops.hiermt.conv_stack(x, csr, torch.ones(1), params, None, conv_layers=1, activation=0, tf32=False)


@pytest.mark.hostile("large-index")
def test_more_rows_of_windows_than_an_index_counts_are_refused() -> None:
    starts, x = torch.zeros(2**20, dtype=torch.int64), torch.zeros(1).expand(2, 2**10, 3)
    with Simt(), pytest.raises(RuntimeError, match=r"take up to 1073741824 rows \(N \* T\), got 2097152 \* 1024"):
        torch.ops.hiermt.gated_scan(
            x, torch.zeros(2, 2**10, 8), None, [], starts, None, steps=2**10, sequence=True, save=False, tf32=False
        )


@pytest.mark.hostile("large-index")
def test_more_channels_than_a_grid_has_rows_are_refused() -> None:
    most = 16 * 65535
    x, g = torch.zeros(1).expand(4, 1, most + 1), torch.zeros(4, 1, 8)
    with Simt(), pytest.raises(RuntimeError, match=f"take up to {most} channels, got {most + 1}"):
        torch.ops.hiermt.gated_scan(x, g, None, [], None, None, steps=0, sequence=True, save=False, tf32=False)


@pytest.mark.hostile("edge-outside", "forged-call")
def test_edges_outside_the_graph_are_dropped_on_the_device() -> None:
    edge_index = torch.tensor([[0, 5, -1, 2**62], [1, 1, 0, 2]])
    expected = torch.ops.hiermt.graph_prepare(torch.tensor([[0], [1]]), 3, 0)
    with Simt():
        got = torch.ops.hiermt.graph_prepare(edge_index, 3, 0)
    for one, other in zip(got[:6], expected[:6], strict=True):
        assert torch.equal(one[:4], other[:4])
