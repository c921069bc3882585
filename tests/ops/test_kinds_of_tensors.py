"""Tensors of another kind than strided numbers: negated lazily, subclassed, mapped from a file, sparse, nested."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import hiermt
from hiermt import functional
from hiermt.testing import stock_graph

NODES, STEPS, CHANNELS = 12, 5, 3
pytestmark = pytest.mark.hostile("wrong-tensor")


def negated(tensor: Tensor) -> Tensor:
    """The same numbers as a view of memory that holds them with the other sign."""
    found = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert found.is_neg() and torch.equal(found, tensor)
    return found


class Named(Tensor):
    """A subclass that goes through every function."""


class Wrapped(Tensor):
    """A subclass without memory of its own."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, strides=inner.stride())

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def unwrapped(value: Any) -> Any:
            return value.inner if isinstance(value, cls) else value

        found = func(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs or {}))
        return tree_map(lambda value: cls(value) if isinstance(value, Tensor) else value, found)


def plain(tensor: Tensor) -> Tensor:
    return tensor.inner if isinstance(tensor, Wrapped) else tensor.as_subclass(Tensor)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "negated": negated,
    "subclass": lambda tensor: tensor.as_subclass(Named),
    "wrapper": Wrapped,
    "parameter": torch.nn.Parameter,
    "shared": lambda tensor: tensor.clone().share_memory_(),
}


def call(backend: str) -> tuple[hiermt.TGCN_HierarchicalMT, Tensor, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = hiermt.TGCN_HierarchicalMT(CHANNELS, 8, backend=backend)
    return model, torch.randn(NODES, STEPS, CHANNELS), stock_graph(NODES, 30)


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_dense_tensor_gives_the_same_numbers(kind: str, backend: str) -> None:
    model, x, (edge_index, weight) = call(backend)
    expected = model(x, edge_index, weight)
    odd = KINDS[kind]
    calls = [(odd(x), edge_index, weight), (x, edge_index, odd(weight))]
    calls += [(x, odd(edge_index), weight)] if kind in ("subclass", "wrapper", "shared") else []
    for arguments in calls:
        for found, truth in zip(model(*arguments), expected, strict=True):
            assert torch.equal(plain(found), truth)


def test_negated_parameters_and_cotangents(backend: str) -> None:
    model, x, edges = call(backend)
    expected = model(x, *edges)
    params = list(model.parameters())
    seeds = [torch.randn_like(one) for one in expected]
    truth = torch.autograd.grad(expected, params, seeds)
    found = torch.autograd.grad(model(x, *edges), params, [negated(one) for one in seeds])
    assert all(torch.equal(one, other) for one, other in zip(found, truth, strict=True))
    given = {name: negated(one.detach()) for name, one in model.named_parameters()}
    found = torch.func.functional_call(model, given, (x, *edges))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_numbers_mapped_from_a_file(tmp_path: Path, backend: str) -> None:
    model, x, edges = call(backend)
    (tmp_path / "x").write_bytes(x.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "x"), size=x.numel()).view(x.shape)
    for found, truth in zip(model(mapped, *edges), model(x, *edges), strict=True):
        assert torch.equal(found, truth)


def test_copies_of_a_graph_and_of_a_model(backend: str) -> None:
    model, x, edges = call(backend)
    graph = hiermt.Graph(*edges, NODES)
    expected = model(x, graph)
    saved = io.BytesIO()
    torch.save(graph, saved)
    saved.seek(0)
    graphs = [pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph), torch.load(saved, weights_only=False)]
    models = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.deepcopy(model).share_memory()]
    for one, other in zip(models, graphs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one(x, other), expected, strict=True))


def test_a_graph_prepared_in_inference_mode_is_trained_on(backend: str) -> None:
    model, x, edges = call(backend)
    with torch.inference_mode():
        graph = hiermt.Graph(*edges, NODES)
        model(x, graph)
    found, expected = ([one.sum() for one in model(x, given)] for given in (graph, hiermt.Graph(*edges, NODES)))
    params = list(model.parameters())
    pairs = zip(*(torch.autograd.grad(sum(one), params) for one in (found, expected)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


SPARSE: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": lambda tensor: tensor.to_sparse(),
    "mkldnn": lambda tensor: tensor.float().to_mkldnn(),
    "nested": lambda tensor: torch.nested.nested_tensor(list(tensor)),
    "ragged": lambda tensor: torch.nested.nested_tensor(list(tensor), layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("kind", SPARSE)
def test_a_tensor_that_is_not_dense_is_refused_by_name(kind: str, backend: str) -> None:
    model, x, edges = call(backend)
    odd, params = SPARSE[kind], [one.detach() for one in model.parameters()][-6:]
    graph = hiermt.Graph(*edges, NODES)
    labels, h = torch.randint(2, (2, NODES)), torch.randn(NODES, 8)
    logits = [one.detach() for one in model(x, *edges)]
    criterion = hiermt.MultiTaskLoss(backend=backend)
    calls: dict[str, Callable[[], Any]] = {
        "x": lambda: model(odd(x), *edges),
        "x_t": lambda: hiermt.TGCNCell(CHANNELS, 8, backend=backend)(odd(x[:, 0]), *edges, h),
        "h": lambda: functional.heads(odd(h), params, backend=backend),
        "signal_logits": lambda: criterion(odd(logits[0]), logits[1], *labels),
        "signal_targets": lambda: criterion(*logits, odd(labels[0, :, None]), labels[1]),
        "direction_targets": lambda: criterion(*logits, labels[0], odd(labels[1, :, None])),
        "x.series": lambda: model(hiermt.Windows(odd(x), torch.tensor([0]), 3), *edges),
        "edge_weight": lambda: model(x, edges[0], odd(edges[1][:, None])),
    }
    with pytest.raises(TypeError, match=r"^x: expected a dense tensor"):
        functional.gcn_conv(odd(x), graph, torch.randn(4, 3), torch.randn(4), backend=backend)
    for name, run in calls.items():
        with pytest.raises(TypeError, match=f"^{name}: expected a dense tensor"):
            run()


@pytest.mark.hostile("labels")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.bool])
def test_labels_of_any_integer_type(dtype: torch.dtype, backend: str) -> None:
    logits, labels = torch.randn(2, NODES, 2), torch.randint(2, (2, NODES))
    criterion = hiermt.MultiTaskLoss(backend=backend)
    found = criterion.terms(*logits, *labels.to(dtype), labels[0] == 1)
    assert torch.equal(found.total, criterion.terms(*logits, *labels, labels[0] == 1).total)
    if dtype != torch.bool:
        with pytest.raises(ValueError, match="signal_targets: expected 0 or 1"):
            criterion.terms(*logits, (labels[0] + 2).to(dtype), labels[1].to(dtype))
