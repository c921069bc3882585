"""The twin of ``hiermt::graph_prepare``."""

from __future__ import annotations

import torch
from torch import Tensor

GATV2_RULE, GCN_RULE = 0, 1


def graph_prepare(edge_index: Tensor, num_nodes: int, rule: int) -> tuple[Tensor, ...]:
    r"""Sorts edges by target and by source, after the self-loop rule of a convolution.

    Both rules drop the existing loops and append one loop as the last entry of each row. Under ``GATV2_RULE`` that loop
    is new; under ``GCN_RULE`` it is the last loop that the node had, if any (PyG's ``add_remaining_self_loops``).

    The shape of every output follows from the shapes of the inputs. Entries past ``rowptr[-1]``, one for each dropped
    loop, are padding.

    Args:
        edge_index (Tensor): sources in row 0, targets in row 1, each in ``[0, num_nodes)``.
        num_nodes (int): number of nodes ``S``.
        rule (int): ``GATV2_RULE`` or ``GCN_RULE``.

    Shapes:
        - **edge_index:** ``[2, E0]``, int32 or int64
        - **returns:** ``rowptr [S+1]``, ``col [E]``, ``e_id [E]`` (int64; the column of `edge_index` behind
          an entry, or -1), ``colptr [S+1]``, ``row [E]``, ``csr2csc [E]``, ``blocks [2]``, with
          ``E = E0 + S``; int32 unless noted
    """
    source, target = edge_index.long().unbind(0)
    node = torch.arange(num_nodes, dtype=torch.int64, device=edge_index.device)
    edge = torch.arange(source.numel(), dtype=torch.int64, device=edge_index.device)
    is_loop = source == target
    loop_edge = torch.full_like(node, -1)
    if rule == GCN_RULE:
        loop_edge = loop_edge.scatter_reduce(0, target, torch.where(is_loop, edge, -1), "amax")

    # Dropped loops sort behind every row.
    entry_row = torch.cat([target.masked_fill(is_loop, num_nodes), node])
    col = torch.cat([source, node])
    e_id = torch.cat([edge, loop_edge])
    entry_row, order = entry_row.sort(stable=True)
    col, e_id = col[order], e_id[order]
    padding = entry_row == num_nodes
    e_id = e_id.masked_fill(padding, -1)
    bounds = torch.arange(num_nodes + 1, dtype=torch.int64, device=entry_row.device)
    rowptr = torch.searchsorted(entry_row, bounds)

    entry_col, csr2csc = col.masked_fill(padding, num_nodes).sort(stable=True)
    colptr = torch.searchsorted(entry_col, bounds)
    row = entry_row[csr2csc]
    unused = entry_col == num_nodes
    blocks = torch.tensor([0, num_nodes], dtype=torch.int32, device="cpu")
    return (
        rowptr.int(),
        col.masked_fill(padding, 0).int(),
        e_id,
        colptr.int(),
        row.masked_fill(unused, 0).int(),
        csr2csc.masked_fill(unused, 0).int(),
        blocks,
    )
