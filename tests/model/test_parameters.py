"""Whatever stands behind a parameter's name is what a forward reads."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import hiermt
from hiermt import testing

X = torch.linspace(-1, 1, 12 * 5 * 3).reshape(12, 5, 3)
EDGES = testing.stock_graph(12, 40, isolated=1)


def model(**options: object) -> hiermt.TGCN_HierarchicalMT:
    """A small model, the same every time."""
    torch.manual_seed(0)
    return hiermt.TGCN_HierarchicalMT(3, 4, **options)  # type: ignore[arg-type]


def outputs(of: nn.Module) -> Tensor:
    """Both logits side by side."""
    return torch.cat(of(X, *EDGES), dim=1)


@pytest.mark.parametrize(
    "name", ["cells.0.gcn.convs.0.att", "cells.1.gcn.convs.1.lin_edge.weight", "cells.1.lin_c.bias", "out.0.weight"]
)
def test_reads_a_replaced_parameter(name: str) -> None:
    changed, expected = model(), model()
    before = outputs(changed)
    owner, _, leaf = f"tgcn_backbone.{name}".rpartition(".")
    value = expected.get_parameter(f"{owner}.{leaf}").detach() * 2 + 1
    setattr(changed.get_submodule(owner), leaf, nn.Parameter(value))
    with torch.no_grad():
        expected.get_parameter(f"{owner}.{leaf}").copy_(value)
    assert torch.equal(outputs(changed), outputs(expected))
    assert not torch.equal(outputs(changed), before)


def test_reads_a_replaced_submodule() -> None:
    changed, expected = model(), model()
    cell = changed.tgcn_backbone.cells[0]
    fresh = nn.Linear(cell.lin_u.in_features, 4)
    cell.lin_u = fresh
    expected.load_state_dict(changed.state_dict())
    assert torch.equal(outputs(changed), outputs(expected))
    outputs(changed).sum().backward()
    assert fresh.weight.grad is not None and fresh.weight.grad.abs().sum() > 0


def test_a_layer_used_twice_counts_twice() -> None:
    tied = model()
    tied.tgcn_backbone.cells[1].gcn.convs[0] = tied.tgcn_backbone.cells[1].gcn.convs[1]
    expected = model()
    expected.load_state_dict(tied.state_dict())
    assert torch.equal(outputs(tied), outputs(expected))


def test_reads_a_parametrized_weight() -> None:
    changed, expected = model(), model()
    linear = changed.tgcn_backbone.cells[0].gcn.convs[0].lin_l
    parametrizations.weight_norm(linear)
    with torch.no_grad():
        linear.parametrizations.weight.original0.mul_(3)
        expected.tgcn_backbone.cells[0].gcn.convs[0].lin_l.weight.copy_(linear.weight)
    torch.testing.assert_close(outputs(changed), outputs(expected))
    outputs(changed).sum().backward()
    assert linear.parametrizations.weight.original0.grad is not None
    parametrize.remove_parametrizations(linear, "weight")
    torch.testing.assert_close(outputs(changed), outputs(expected))


def test_functional_call_reads_what_it_is_given() -> None:
    other = {name: value * 0.5 for name, value in model().state_dict().items()}
    expected = model()
    expected.load_state_dict(other)
    got = torch.func.functional_call(model(), other, (X, *EDGES))
    assert torch.equal(torch.cat(got, dim=1), outputs(expected))


def test_copies_read_their_own_parameters() -> None:
    original = model()
    before = outputs(original)
    for copied in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert torch.equal(outputs(copied), before)
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.mul_(2)
        assert not torch.equal(outputs(copied), before)
    assert torch.equal(outputs(original), before)


def test_follows_a_change_of_dtype() -> None:
    changed = model().double()
    signal, _ = changed(X.double(), EDGES[0], EDGES[1].double())
    assert signal.dtype == torch.float64
