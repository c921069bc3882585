"""What ``hiermt::gatv2_conv`` owes to torch as an operator: its rules, its compiler, its messages."""

from __future__ import annotations

import pytest
import torch

from hiermt.native import extension
from support.gatv2_cases import make

if (_reason := extension.why_not_native("cpu")) is not None:
    pytest.skip(_reason, allow_module_level=True)

from support.single_convolutions import ops


def test_forged_lists_of_a_graph_are_refused() -> None:
    case = make(2, 3, 2, 5)
    params, names = [param.detach() for param in case.params], ["rowptr", "col", "colptr", "row", "csr2csc"]
    for index, name in enumerate(names):
        for position, value in ((0, -1), (0, 1 << 30), (1, 1 << 20)):
            csr = [part.clone() for part in case.csr]
            csr[index][position] = value
            with torch.no_grad(), pytest.raises(RuntimeError, match=f"{name}: expected (offsets|values)"):
                ops.gatv2_conv(case.x, csr, case.edge_weight, params, case.lin_edge, 0)
    # Nor may a block be cut where an edge crosses.
    csr = [*case.csr[:5], torch.arange(case.csr[0].numel(), dtype=torch.int32)]
    with torch.no_grad(), pytest.raises(RuntimeError, match="col: expected values"):
        ops.gatv2_conv(case.x, csr, case.edge_weight, params, case.lin_edge, 0)


def test_arguments_are_checked_before_anything_is_read() -> None:
    case = make(2, 3, 2, 5)
    good = [case.x.detach(), case.csr, case.edge_weight, case.params, case.lin_edge, 0]

    def refuses(position: int, value: object, message: str) -> None:
        with torch.no_grad(), pytest.raises(RuntimeError, match=message):
            ops.gatv2_conv(*good[:position], value, *good[position + 1 :])

    refuses(0, torch.randn(40, 3), r"x: expected a shape \[N, T, F\], got \[40, 3\]")
    refuses(0, torch.randn(41, 3, 2), "x: expected a multiple of the graph's 20 nodes in dimension 0, got 41")
    refuses(0, torch.randn(40, 3, 3), r"lin_l.weight: expected a shape \[H, 3\], got \[5, 2\]")
    refuses(0, torch.randn(40, 3, 2).double(), "expected dtype Double, got Float")
    refuses(1, case.csr[:5], "csr: expected 6 tensors, got 5")
    refuses(1, [case.csr[0].long(), *case.csr[1:]], "rowptr: expected dtype Int, got Long")
    refuses(2, torch.randn(3), r"edge_weight: expected a shape \[\d+\], got \[3\]")
    refuses(3, case.params[:4], "conv_params: expected 1 times 2 .GCN., 6 .GATv2. or 7")
    refuses(5, 4, "activation: expected 0")
    with pytest.raises(RuntimeError, match="edge_weight: needs a GATv2 with an edge term"):
        ops.conv_stack(case.x, case.csr, case.edge_weight, case.params, conv_layers=1, activation=0)


@pytest.mark.parametrize("blocks", [[], [0], [0, 10**6], [0, 2], [1, 3], [0, 5, 3]])
def test_blocks_that_do_not_cover_the_nodes_are_refused(blocks: list[int]) -> None:
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
    rowptr, col, _, colptr, row, csr2csc, _ = torch.ops.hiermt.graph_prepare(edge_index, 3, 0)
    csr = [rowptr, col, colptr, row, csr2csc, torch.tensor(blocks, dtype=torch.int32)]
    params = [torch.randn(5, 4), torch.randn(5), torch.randn(5, 4), *torch.randn(3, 5)]
    with pytest.raises(RuntimeError, match="blocks"):
        ops.gatv2_conv(torch.randn(6, 2, 4), csr, None, params, None, 0)
