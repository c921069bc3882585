"""``hiermt::graph_prepare``: edges sorted by target and by source."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from hiermt.ops.operator import register_fake, typed


def graph_prepare(edge_index: Tensor, num_nodes: int, rule: int) -> tuple[Tensor, ...]:
    """Sorts edges by target and by source; :func:`hiermt.reference.graph_prepare` says how.

    Beyond the twin, ``blocks`` cuts the nodes wherever no edge crosses and at least 64 nodes lie between two cuts.
    Edges on a GPU are sorted there into one block, and those outside are dropped: to look for them would wait for
    the GPU, and :class:`hiermt.Graph` has looked.

    Raises:
        IndexError: an edge on the CPU ends outside ``[0, num_nodes)``.
    """
    operator = torch.ops.hiermt.graph_prepare
    if torch.compiler.is_compiling():
        return operator(edge_index, num_nodes, rule)  # type: ignore[no-any-return]
    try:
        return operator(edge_index, num_nodes, rule)  # type: ignore[no-any-return]
    except RuntimeError as error:
        raise typed(error) from None


def _fake(edge_index: Tensor, num_nodes: int, rule: int) -> tuple[Tensor, ...]:
    entries = edge_index.size(1) + num_nodes

    def ints(count: int) -> Tensor:
        return edge_index.new_empty(count, dtype=torch.int32)

    cuts: int | torch.SymInt = 2
    # A FakeTensorMode without symbols raises; no other shape depends on this one.
    with suppress(DynamicOutputShapeException):
        cuts = torch.library.get_ctx().new_dynamic_size()
    return (
        ints(num_nodes + 1),
        ints(entries),
        edge_index.new_empty(entries, dtype=torch.int64),
        ints(num_nodes + 1),
        ints(entries),
        ints(entries),
        torch.empty(cuts, dtype=torch.int32, device="cpu"),
    )


register_fake("graph_prepare", _fake)
