"""A graph, checked once and sorted once, in the form the operators read."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.weak import WeakIdKeyDictionary

from hiermt import reference
from hiermt._arguments import check_integer
from hiermt.graph.entries import Entries, gatv2_weight, gcn_norm, template
from hiermt.graph.writes import Writes
from hiermt.native import dispatch
from hiermt.native.tracing import recorded, refuse_tracing

_INT32_LIMIT = 2**31 - 1


class Graph:
    r"""Edges and weights of a graph, validated and prepared once.

    Pass it to a model in place of ``edge_index`` to pay for the preparation once; a raw ``edge_index`` works too
    and is remembered as long as the tensor lives and is not changed. A graph that consists of equal copies of a
    smaller one, as a PyG ``Batch`` of one static graph does, is recognised and stored once.

    Tensors that were changed in place are prepared anew, except inside a compiled function. PyTorch counts writes in a
    tensor's version; of a tensor made under ``torch.inference_mode``, for which it keeps none, the values are compared
    at each call. Writes that it does not see are not noticed: those through ``.data``, through a NumPy array or another
    library that shares the memory, and from another process. Make a new ``Graph`` after such a write. A copy, pickled
    ones included, prepares its own.

    Args:
        edge_index (Tensor): sources in row 0, targets in row 1.
        edge_weight (Tensor, optional): one weight per edge; may require grad. (default: ``None``)
        num_nodes (int): number of nodes, of Python or NumPy. (default: one more than the largest index)
        backend (str): ``"auto"``, ``"native"`` or ``"reference"``: who sorts. (default: ``"auto"``)

    Shapes:
        - **edge_index:** ``[2, E]``, int32 or int64
        - **edge_weight:** ``[E]`` or ``[E, 1]``, floating point

    Raises:
        TypeError: `edge_index` is not an integer tensor or `edge_weight` not a floating point one.
        ValueError: a shape does not fit, the two tensors live on different devices, `num_nodes` is not an integer of 0
            or more, or `backend` is none of the three.
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
        _check_edges(edge_index, edge_weight)
        dispatch.check(backend)
        refuse_tracing(edge_index.size(1))
        traced = recorded()
        if num_nodes is not None:
            num_nodes = num_nodes if traced else check_integer("num_nodes", num_nodes, 0)
        else:
            num_nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
        if not traced:
            _check_range(edge_index, num_nodes)
        # Traced sizes may be open, and a guard on them would close them; the operators look again.
        if not traced and num_nodes + edge_index.size(1) > _INT32_LIMIT:
            raise ValueError(
                f"edge_index: {edge_index.size(1)} edges and {num_nodes} nodes together pass {_INT32_LIMIT}, the "
                "most that 32-bit offsets can address; split the graph"
            )
        # An alias, so that a cached graph does not keep the caller's tensor object alive.
        self.edge_index = edge_index.detach()
        self.edge_weight = None if edge_weight is None else edge_weight.reshape(-1)
        self.num_nodes = num_nodes
        self._backend = backend
        self._traced = traced
        self._forget()

    def _forget(self) -> None:
        self._entries: dict[tuple[int, bool, torch.dtype, bool], Entries] = {}
        self._writes = Writes() if self._traced else Writes(self.edge_index, self.edge_weight)
        self._versions = self._writes.counts()

    def __getstate__(self) -> dict[str, Any]:
        # The tensors of a copy count from the start.
        return {name: value for name, value in vars(self).items() if name not in ("_entries", "_writes", "_versions")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    @property
    def num_edges(self) -> int:
        """Number of edges as given, before any self-loop rule."""
        return self.edge_index.size(1)

    @property
    def device(self) -> torch.device:
        """Where the edges live."""
        return self.edge_index.device

    def to(self, device: torch.device | str) -> Graph:
        """The same graph on another device; itself if it is already there."""
        if same_device(self.device, torch.device(device)):
            return self
        if torch.is_inference_mode_enabled():
            # The copies serve a training step too, which cannot save inference tensors, and their writes are counted.
            with torch.inference_mode(False), torch.no_grad():
                return self.to(device)
        weight = None if self.edge_weight is None else self.edge_weight.to(device)
        return Graph(self.edge_index.to(device), weight, self.num_nodes, backend=self._backend)

    def edges(self, copies: int = 1) -> tuple[Tensor, Tensor | None]:
        """``edge_index`` and ``edge_weight`` of so many disjoint copies of the graph, as a PyG ``Batch`` has them."""
        if copies <= 1:
            return self.edge_index, self.edge_weight
        shift = torch.arange(copies, device=self.device, dtype=self.edge_index.dtype).mul_(self.num_nodes)
        edge_index = (self.edge_index.unsqueeze(1) + shift.view(1, -1, 1)).reshape(2, -1)
        return edge_index, None if self.edge_weight is None else self.edge_weight.repeat(copies)

    def entries(self, rule: int, weighted: bool, dtype: torch.dtype, *, whole: bool = False) -> Entries:
        """CSR and weights under the self-loop rule of a convolution, computed once per combination.

        Args:
            rule (int): ``reference.GATV2_RULE`` or ``reference.GCN_RULE``.
            weighted (bool): whether a GATv2 reads the weights; a GCN without weights takes all of them as 1.
            dtype (torch.dtype): dtype of the weights returned.
            whole (bool): every row of the graph, also where it is made of equal copies. An operator that takes the
                rows of its CSR for the nodes of a series needs that; others repeat a template over the nodes of x.
                (default: ``False``)
        """
        key = (rule, weighted, dtype, whole)
        compiling = self._traced or recorded()
        if not compiling and self._versions != (versions := self._writes.counts()):
            # Weights may change with every step of a training, where nothing may wait for the device.
            if self._versions[0] != versions[0]:
                _check_range(self.edge_index, self.num_nodes)
            self._entries, self._versions = {}, versions
        # Of this count of writes: another thread may find the next one, and start a new dictionary.
        known = self._entries
        if key in known:
            return known[key]
        if compiling:
            return self._prepare(rule, weighted, dtype, traced=True)
        if torch.is_inference_mode_enabled():
            # What is kept here serves a training step too, which cannot save inference tensors.
            with torch.inference_mode(False), torch.no_grad():
                return self.entries(rule, weighted, dtype, whole=whole)
        entries = known.get((rule, weighted, dtype, True)) or self._prepare(rule, weighted, dtype)
        # A weight that requires grad belongs to one autograd graph only, and under no_grad to none.
        trained = weighted and self.edge_weight is not None and _differentiated(self.edge_weight)
        if trained:
            return entries
        kept = known[key] = entries if whole else template(entries)
        if kept is entries:
            known[rule, weighted, dtype, True] = entries
        return kept

    def __repr__(self) -> str:
        weights = "no weights" if self.edge_weight is None else "weights"
        return f"Graph(num_nodes={self.num_nodes}, num_edges={self.num_edges}, {weights}, device='{self.device}')"

    def _prepare(self, rule: int, weighted: bool, dtype: torch.dtype, traced: bool = False) -> Entries:
        # A compiler knows neither how many entries there will be nor what they hold: nothing is cut.
        prepare = dispatch.operator("graph_prepare", dispatch.native(self._backend, self.device))
        rowptr, col, edge, colptr, row, csr2csc, blocks = prepare(self.edge_index, self.num_nodes, rule)
        if not traced:
            used = int(rowptr[-1])
            col, edge, row, csr2csc = col[:used], edge[:used], row[:used], csr2csc[:used]
        if rowptr.is_cuda:
            # Nobody reads them there, and torch.compile cannot keep a CPU tensor among the inputs of a CUDA graph: it
            # would write the next call's into memory that is free.
            blocks = rowptr.new_empty(0)
        edge_weight = self.edge_weight if weighted else None
        if rule == reference.GCN_RULE:
            weight: Tensor | None = gcn_norm(rowptr, col, edge, edge_weight, dtype)
        elif edge_weight is not None:
            weight = gatv2_weight(rowptr, edge, edge_weight).to(dtype)
        else:
            weight = None
        return Entries(rowptr, col, colptr, row, csr2csc, blocks, edge, weight)


def same_device(here: torch.device, there: torch.device) -> bool:
    """Whether a tensor on `here` need not move; ``cuda`` without a number is the current one."""
    if str(there) == "cuda":
        there = torch.device("cuda", torch.cuda.current_device())
    return here == there


class _Cached(NamedTuple):
    """A graph, with what it was made of."""

    stamp: tuple[object, ...]
    weight: weakref.ref[Tensor]
    graph: Graph


_cache: WeakIdKeyDictionary = WeakIdKeyDictionary()


def as_graph(edge_index: Tensor | Graph, edge_weight: Tensor | None, num_nodes: int, backend: str = "auto") -> Graph:
    """The graph behind what a model was called with; a raw ``edge_index`` is looked up before it is prepared.

    The look-up goes by the identity of the living tensor objects and their version counters, so an edge set that
    was changed in place, given other memory, or freed and its memory reused, is prepared anew. Inference tensors, whose
    writes PyTorch does not count, are prepared at each call. Writes that PyTorch does not see, through ``.data`` or a
    NumPy array that shares the memory, are not noticed: pass a new tensor.

    Raises:
        ValueError: a :class:`Graph` came with separate weights, or has another number of nodes than `x`.
    """
    if isinstance(edge_index, Graph):
        if edge_weight is not None:
            raise ValueError(
                "edge_weight: a Graph holds its own weights; pass them to Graph(edge_index, edge_weight, num_nodes)"
            )
        if num_nodes != edge_index.num_nodes:
            raise ValueError(
                f"x has {num_nodes} nodes, the Graph has {edge_index.num_nodes}; to run many windows on one Graph "
                "pass x as [B, N, T, F]"
            )
        return edge_index
    if recorded() or not isinstance(edge_index, Tensor) or edge_index.is_inference():
        return Graph(edge_index, edge_weight, num_nodes, backend=backend)
    _check_strided("edge_index", edge_index)
    hit: _Cached | None = _cache.get(edge_index)  # type: ignore[no-untyped-call]
    if (
        hit is not None
        and (edge_weight is None or (hit.weight() is edge_weight and not edge_weight.requires_grad))
        and hit.stamp == _stamp(edge_index, edge_weight, num_nodes, backend)
    ):
        return hit.graph
    _check_edges(edge_index, edge_weight)
    if edge_weight is not None and (edge_weight.is_inference() or _differentiated(edge_weight)):
        return Graph(edge_index, edge_weight, num_nodes, backend=backend)
    stamp = _stamp(edge_index, edge_weight, num_nodes, backend)
    graph = Graph(edge_index, None if edge_weight is None else edge_weight.detach(), num_nodes, backend=backend)
    _cache[edge_index] = _Cached(stamp, weakref.ref(edge_index if edge_weight is None else edge_weight), graph)
    return graph


def _stamp(edge_index: Tensor, edge_weight: Tensor | None, num_nodes: int, backend: str) -> tuple[object, ...]:
    """Where the tensors lie, how often they were written to, and their shapes, which an assignment to ``.data`` and
    ``set_`` change without another object."""
    index = edge_index.data_ptr(), edge_index._version, edge_index.shape, edge_index.stride()
    if edge_weight is None:
        return index, num_nodes, backend
    weight = edge_weight.data_ptr(), edge_weight._version, edge_weight.shape, edge_weight.stride()
    return index, num_nodes, backend, weight


def _check_edges(edge_index: Tensor, edge_weight: Tensor | None) -> None:
    if not isinstance(edge_index, Tensor):
        raise TypeError(f"edge_index: expected a Tensor or a hiermt.Graph, got {type(edge_index).__name__}")
    _check_strided("edge_index", edge_index)
    if edge_index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"edge_index: expected int64 or int32, got {edge_index.dtype}; use edge_index.long()")
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(f"edge_index: expected shape [2, E], got {list(edge_index.shape)}")
    if edge_weight is None:
        return
    if not isinstance(edge_weight, Tensor):
        raise TypeError(f"edge_weight: expected a Tensor or None, got {type(edge_weight).__name__}")
    _check_strided("edge_weight", edge_weight)
    if not edge_weight.is_floating_point():
        raise TypeError(f"edge_weight: expected floating point, got {edge_weight.dtype}; use edge_weight.float()")
    edges = edge_index.size(1)
    if edge_weight.shape not in ((edges,), (edges, 1)):
        raise ValueError(f"edge_weight: expected {edges} weights, one per edge, got {list(edge_weight.shape)}")
    if edge_weight.device != edge_index.device:
        raise ValueError(f"edge_weight is on {edge_weight.device}, edge_index on {edge_index.device}; move one")


def _check_strided(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {tensor.layout}; use {name}.to_dense()")


def _check_range(edge_index: Tensor, num_nodes: int) -> None:
    if not edge_index.numel():
        return
    low, high = torch.stack(edge_index.aminmax()).tolist()
    if low < 0 or high >= num_nodes:
        raise IndexError(
            f"edge_index: {low if low < 0 else high} is outside [0, {num_nodes}), the nodes that there are"
        )


def _differentiated(weight: Tensor) -> bool:
    """Whether `weight` carries a gradient, a tangent or a batch, none of which may be detached, kept or compared."""
    if weight.requires_grad:
        return True
    if not dispatch.transformed():
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(weight):
        return True
    return forward_ad.unpack_dual(weight).tangent is not None  # type: ignore[no-untyped-call]
