"""The caches of graphs that were prepared from raw tensors: by tensor object, and by value."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from hiermt._tracing import recorded, without_values
from hiermt.graph.checks import check_edges, is_differentiated, is_wrapped
from hiermt.graph.graph import Graph
from hiermt.native import dispatch


class _Cached(NamedTuple):
    """A graph, the stream it was prepared on, and the state of the tensors it was prepared from."""

    stamp: tuple[object, ...]
    stream: int | None
    weight: weakref.ref[Tensor]
    graph: Graph


class _Recent(NamedTuple):
    stream: int | None
    graph: Graph


_cache: WeakIdKeyDictionary = WeakIdKeyDictionary()
# The last graphs, newest first. A DataLoader of PyG makes a new edge_index for each batch, mostly with the numbers of
# an earlier one. Comparing them takes microseconds, preparing them milliseconds. Several, as batches have several
# sizes; with so many nodes and edges in all, they take about 50 MB.
_recent: tuple[_Recent, ...] = ()
MOST_GRAPHS, MOST_SIZE = 4, 2**20


def as_graph(
    edge_index: Tensor | Graph | None, edge_weight: Tensor | None, num_nodes: int, backend: str = "auto"
) -> Graph:
    """The graph of a model's arguments; one of a raw ``edge_index`` is prepared unless the cache has it.

    The key is the identity of the tensor objects and their version counters. An edge set that was changed in place,
    given other memory, or freed and its memory reused, counts as new. A new one is compared with copies of the last
    ones, and prepared unless it equals one of them. On a GPU each stream has graphs of its own: another one would read
    them before they are ready, or after the cache has dropped them. Inference tensors, whose writes PyTorch does not
    count, are new at each call. Writes that PyTorch does not see, through ``.data`` or a NumPy array that shares the
    memory, are not noticed: pass a new tensor.

    Args:
        edge_index (Tensor or Graph): edges ``[2, E]``, or what is prepared already.
        edge_weight (Tensor, optional): ``[E]``; ``None`` beside a graph.
        num_nodes (int): nodes of `x`.
        backend (str): implementation that prepares. (default: ``"auto"``)

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
    if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided:
        check_edges(edge_index, edge_weight)
    assert isinstance(edge_index, Tensor)
    if recorded() or without_values(edge_index):
        return Graph(edge_index, edge_weight, num_nodes, backend=backend)
    hit: _Cached | None = _cache.get(edge_index)  # type: ignore[no-untyped-call]
    if (
        hit is not None
        and (edge_weight is None or (hit.weight() is edge_weight and not edge_weight.requires_grad))
        and hit.stamp == _stamp(edge_index, edge_weight, num_nodes, backend)
        and _is_ordered(hit.stream, edge_index)
    ):
        return hit.graph
    check_edges(edge_index, edge_weight)
    if edge_weight is not None and is_differentiated(edge_weight):
        return Graph(edge_index, edge_weight, num_nodes, backend=backend)
    counted = not (edge_index.is_inference() or (edge_weight is not None and edge_weight.is_inference()))
    # An edge_index that was made inside a transform of torch.func has no address, and ends with it.
    counted = counted and not is_wrapped(edge_index)
    stamp = _stamp(edge_index, edge_weight, num_nodes, backend) if counted else ()
    graph = _known(edge_index, edge_weight, num_nodes, backend)
    if counted:
        kept = edge_index if edge_weight is None else edge_weight
        _cache[edge_index] = _Cached(stamp, _stream(edge_index), weakref.ref(kept), graph)
    return graph


def _known(edge_index: Tensor, edge_weight: Tensor | None, num_nodes: int, backend: str) -> Graph:
    """One of the last graphs, if it has these numbers; else a new one."""
    global _recent
    recent = _recent
    for stream, graph in recent:
        same_size = graph.num_nodes == num_nodes and _is_ordered(stream, edge_index)
        if same_size and graph.is_of(edge_index, edge_weight, backend):
            return graph
    if dispatch.transformed():
        # What is made inside a transform of torch.func belongs to it.
        return Graph(edge_index, edge_weight, num_nodes, backend=backend)
    # Of copies: later writes of the caller must not reach what other tensors are compared with.
    with torch.inference_mode(False), torch.no_grad():
        weight = None if edge_weight is None else edge_weight.detach().clone()
        graph = Graph(edge_index.clone(), weight, num_nodes, backend=backend)
    kept, size = [], 0
    for one in (_Recent(_stream(edge_index), graph), *recent[: MOST_GRAPHS - 1]):
        more = one.graph.num_nodes + one.graph.num_edges
        if size + more <= MOST_SIZE:
            kept.append(one)
            size += more
    _recent = tuple(kept)
    return graph


def _stamp(edge_index: Tensor, edge_weight: Tensor | None, num_nodes: int, backend: str) -> tuple[object, ...]:
    """Addresses, numbers of writes, shapes and strides.

    ``set_`` and an assignment to ``.data`` change them without a new tensor object.
    """
    index = edge_index.data_ptr(), edge_index._version, edge_index.shape, edge_index.stride()
    if edge_weight is None:
        return index, num_nodes, backend
    weight = edge_weight.data_ptr(), edge_weight._version, edge_weight.shape, edge_weight.stride()
    return index, num_nodes, backend, weight


def _stream(edge_index: Tensor) -> int | None:
    """The stream on which a graph of these edges is prepared; ``None`` on a CPU."""
    return torch.cuda.current_stream(edge_index.device).cuda_stream if edge_index.is_cuda else None


def _is_ordered(stream: int | None, edge_index: Tensor) -> bool:
    """Whether what was prepared on a stream may be read now.

    A capture has a stream of its own, and its caller has ordered it behind the warm-up.
    """
    return stream is None or stream == _stream(edge_index) or torch.cuda.is_current_stream_capturing()
