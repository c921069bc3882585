"""The class :class:`hiermt.Graph`: edges that are validated and sorted once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hiermt._arguments import check_integer
from hiermt._tracing import recorded, refuse_tracing, without_values
from hiermt.graph.checks import check_edges, check_range, is_differentiated
from hiermt.graph.csr import CSR, by_degree, template
from hiermt.graph.norm import gatv2_weight, gcn_norm, gcn_weight
from hiermt.graph.writes import Writes
from hiermt.native import dispatch
from hiermt.reference import GCN_RULE

_INT32_LIMIT = 2**31 - 1


class Graph:
    r"""Edges and weights of a graph, validated and prepared once.

    Pass it to a model in place of ``edge_index`` to prepare the edges once. A raw ``edge_index`` works too: its graph
    is cached as long as the tensor lives and is not changed. A graph that consists of equal copies of a smaller one,
    such as a PyG ``Batch`` of one static graph, is recognised and stored once.

    Tensors that were changed in place are prepared again, except inside a compiled function. PyTorch counts writes in a
    tensor's version. It keeps none for a tensor made under ``torch.inference_mode``, whose values are compared at each
    call. Writes that PyTorch does not see are not noticed: those through ``.data``, through a NumPy array or another
    library that shares the memory, and from another process. Make a new ``Graph`` after such a write. Copies, pickled
    ones included, are prepared separately.

    Args:
        edge_index (Tensor): sources in row 0, targets in row 1.
        edge_weight (Tensor, optional): one weight per edge; may require grad. (default: ``None``)
        num_nodes (int): number of nodes. (default: one more than the largest index)
        backend (str): implementation that sorts: ``"auto"``, ``"native"`` or ``"reference"``. (default: ``"auto"``)

    Shapes:
        - **edge_index:** ``[2, E]``, int32 or int64
        - **edge_weight:** ``[E]`` or ``[E, 1]``, floating point

    Raises:
        TypeError: `edge_index` is not an integer tensor or `edge_weight` not a floating point one.
        ValueError: a shape does not fit, the two tensors live on different devices, `num_nodes` is not an integer
            >= 0, or `backend` is unknown.
        IndexError: an index lies outside ``[0, num_nodes)``.
    """

    def __init__(
        self,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        num_nodes: int | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        check_edges(edge_index, edge_weight)
        dispatch.check(backend)
        refuse_tracing(edge_index.size(1))
        traced = recorded() or without_values(edge_index)
        if num_nodes is not None:
            num_nodes = num_nodes if traced else check_integer("num_nodes", num_nodes, 0)
        else:
            num_nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
        if not traced:
            check_range(edge_index, num_nodes)
        # Sizes may be dynamic under tracing, and a guard would specialise them; the operators check them again.
        if not traced and num_nodes + edge_index.size(1) > _INT32_LIMIT:
            raise ValueError(
                f"edge_index: {edge_index.size(1)} edges and {num_nodes} nodes together exceed {_INT32_LIMIT}, "
                "the limit of 32-bit offsets; split the graph"
            )
        # An alias: a cached graph must not keep the caller's tensor object alive.
        self.edge_index = edge_index.detach()
        self.edge_weight = None if edge_weight is None else edge_weight.reshape(-1)
        self.num_nodes = num_nodes
        self._backend = backend
        self._traced = traced
        self._reset()

    def _reset(self) -> None:
        self._csr: dict[tuple[int, bool, torch.dtype, bool, float, bool], CSR] = {}
        self._writes = Writes() if self._traced else Writes(self.edge_index, self.edge_weight)
        self._versions = self._writes.counts()

    def __getstate__(self) -> dict[str, Any]:
        # A copy has tensors of its own, whose versions start again.
        return {name: value for name, value in vars(self).items() if name not in ("_csr", "_writes", "_versions")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    @property
    def num_edges(self) -> int:
        """Number of edges as given, before any self-loop rule."""
        return self.edge_index.size(1)

    @property
    def device(self) -> torch.device:
        """Device of the edges."""
        return self.edge_index.device

    @property
    def versions(self) -> tuple[int, ...]:
        """Counts the writes to its tensors as PyTorch sees them; reading it does not wait for a GPU."""
        return self._writes.versions()

    def to(self, device: torch.device | str) -> Graph:
        """The same graph on another device; itself if it is already there."""
        if same_device(self.device, torch.device(device)):
            return self
        if torch.is_inference_mode_enabled():
            # A training step may use the copies too: autograd cannot save inference tensors.
            with torch.inference_mode(False), torch.no_grad():
                return self.to(device)
        weight = None if self.edge_weight is None else self.edge_weight.to(device)
        return Graph(self.edge_index.to(device), weight, self.num_nodes, backend=self._backend)

    def is_of(self, edge_index: Tensor, edge_weight: Tensor | None, backend: str) -> bool:
        """Whether it has these edges and weights, value by value; on a GPU this syncs."""
        if backend != self._backend or (edge_weight is None) != (self.edge_weight is None):
            return False
        if edge_weight is not None and not _equal(self.edge_weight, edge_weight.reshape(-1)):
            return False
        return _equal(self.edge_index, edge_index)

    def edges(self, copies: int = 1) -> tuple[Tensor, Tensor | None]:
        """``edge_index`` and ``edge_weight`` of `copies` disjoint copies of the graph, as in a PyG ``Batch``."""
        if copies <= 1:
            return self.edge_index, self.edge_weight
        shift = torch.arange(copies, device=self.device, dtype=self.edge_index.dtype).mul_(self.num_nodes)
        edge_index = (self.edge_index.unsqueeze(1) + shift.view(1, -1, 1)).reshape(2, -1)
        return edge_index, None if self.edge_weight is None else self.edge_weight.repeat(copies)

    def csr(
        self,
        rule: int,
        weighted: bool,
        dtype: torch.dtype,
        *,
        whole: bool = False,
        loop_weight: float = 1.0,
        normalized: bool = True,
    ) -> CSR:
        """The CSR and its weights under the self-loop rule of a convolution, computed once per combination.

        Args:
            rule (int): ``reference.GATV2_RULE`` or ``reference.GCN_RULE``.
            weighted (bool): whether a GATv2 reads the weights; the weights of a GCN default to 1.
            dtype (torch.dtype): dtype of the weights returned.
            whole (bool): return every row, also of a graph of equal copies. The operators need that where x is a
                series ``[S, D, F]``; elsewhere they repeat the template over the nodes of x. (default: ``False``)
            loop_weight (float): weight of the loop that a GCN adds to a node without one. (default: ``1.0``)
            normalized (bool): the norms of a GCN, or its weights, which the operators norm step by step where nodes
                come and go. (default: ``True``)
        """
        key = (rule, weighted, dtype, whole, loop_weight, normalized)
        compiling = self._traced or recorded()
        if not compiling and self._versions != (versions := self._writes.counts()):
            # The weights may change at every training step, which must not sync: check new indices only.
            if self._versions[0] != versions[0]:
                check_range(self.edge_index, self.num_nodes)
            self._csr, self._versions = {}, versions
        # Bound once: another thread may see the next write and start a new dictionary.
        known = self._csr
        if key in known:
            return known[key]
        if compiling:
            return self._prepare(rule, weighted, dtype, loop_weight, normalized, traced=True)
        if torch.is_inference_mode_enabled():
            # A training step may use the cached CSR too: autograd cannot save inference tensors.
            with torch.inference_mode(False), torch.no_grad():
                return self.csr(rule, weighted, dtype, whole=whole, loop_weight=loop_weight, normalized=normalized)
        whole_key = (rule, weighted, dtype, True, loop_weight, normalized)
        csr = known.get(whole_key)
        csr = csr or self._prepare(rule, weighted, dtype, loop_weight, normalized)
        # Do not cache what belongs to the autograd graph of one call.
        trained = weighted and self.edge_weight is not None and is_differentiated(self.edge_weight)
        if trained:
            return csr
        kept = csr if whole else template(csr)
        if kept.rowptr.is_cuda:
            # The next call may come on another stream, which does not wait for this one.
            torch.cuda.current_stream(kept.rowptr.device).synchronize()
        known[key] = kept
        if kept is csr:
            known[whole_key] = csr
        return kept

    def __repr__(self) -> str:
        weights = "no weights" if self.edge_weight is None else "weights"
        return f"Graph(num_nodes={self.num_nodes}, num_edges={self.num_edges}, {weights}, device='{self.device}')"

    def _prepare(
        self,
        rule: int,
        weighted: bool,
        dtype: torch.dtype,
        loop_weight: float,
        normalized: bool,
        traced: bool = False,
    ) -> CSR:
        # Under tracing the number of entries is unknown: keep the padding.
        prepare = dispatch.operator("graph_prepare", dispatch.native(self._backend, self.device))
        rowptr, col, e_id, colptr, row, csr2csc, schedule = prepare(self.edge_index, self.num_nodes, rule)
        if not traced:
            used = int(rowptr[-1])
            col, e_id, row, csr2csc = col[:used], e_id[:used], row[:used], csr2csc[:used]
        if rowptr.is_cuda:
            # Blocks are for CPU kernels, and a CPU tensor must not be an input of a CUDA graph: torch.compile would
            # overwrite freed memory at the next call.
            schedule = by_degree(rowptr)
        edge_weight = self.edge_weight if weighted else None
        if rule == GCN_RULE:
            raw = gcn_weight(self.edge_index, rowptr, col, e_id, edge_weight, dtype, loop_weight)
            weight: Tensor | None = (gcn_norm(rowptr, col, raw) if normalized else raw).to(dtype)
        elif edge_weight is not None:
            weight = gatv2_weight(rowptr, e_id, edge_weight).to(dtype)
        else:
            weight = None
        return CSR(rowptr, col, colptr, row, csr2csc, schedule, e_id, weight)


def _equal(one: Tensor | None, other: Tensor) -> bool:
    assert one is not None
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    return torch.equal(one, other)


def same_device(here: torch.device, there: torch.device) -> bool:
    """Whether two devices are the same; ``cuda`` without an index is the current device.

    Args:
        here (torch.device): of a tensor, so with an index.
        there (torch.device): as a user names it.
    """
    if str(there) == "cuda":
        there = torch.device("cuda", torch.cuda.current_device())
    return here == there
