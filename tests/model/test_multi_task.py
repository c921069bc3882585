"""Models with any number of heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hiermt
from hiermt import testing

EDGES = testing.stock_graph(20, 60, isolated=2)
HEADS = {"signal": 2, "direction": 2, "regime": 3, "return": 1}


def test_each_head_is_a_linear_on_the_backbone(backend: str) -> None:
    model = hiermt.MultiTaskTGCN(5, 7, heads=HEADS, backend=backend, layout="NTF")
    x = torch.randn(3, 20, 6, 5)
    logits, states = model(x, *EDGES, return_sequence=True, return_state=True)
    features, ends = model.tgcn_backbone(x, *EDGES, return_sequence=True, return_state=True)
    assert {name: value.size(-1) for name, value in logits.items()} == HEADS
    for name, value in logits.items():
        head = model.get_submodule(f"{name}_head")
        assert value.shape[:-1] == (3, 20, 6)
        testing.assert_close(value, features @ head.weight.t() + head.bias)  # type: ignore[operator]
    assert all(torch.equal(one, other) for one, other in zip(states, ends, strict=True))
    sum(value.square().sum() for value in logits.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_two_heads_are_the_two_headed_model(backend: str) -> None:
    fused = hiermt.TGCN_HierarchicalMT(5, 7, backend=backend, layout="NTF")
    model = hiermt.MultiTaskTGCN(5, 7, heads={"signal": 2, "direction": 2}, backend=backend, layout="NTF")
    model.load_state_dict(fused.state_dict(), strict=True)
    fused.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(20, 6, 5)
    for one, other in zip(model(x, *EDGES).values(), fused(x, *EDGES), strict=True):
        testing.assert_close(one, other)
    found, wanted = model.decide(x, *EDGES, threshold=0.4), fused.decide(x, *EDGES, threshold=0.4)
    assert torch.equal(found[0], wanted[0])
    for one, other in zip(found[1:], wanted[1:], strict=True):
        testing.assert_close(one, other)
    with pytest.raises(ValueError, match="decide: expected the heads 'signal' and 'direction'"):
        hiermt.MultiTaskTGCN(5, heads={"signal": 3, "direction": 2}).decide(x, *EDGES)


def test_saves_and_loads_its_heads(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    for model in (hiermt.MultiTaskTGCN(5, 7, heads=HEADS, dropout=0.25), hiermt.A3TGCN(5, 3, 7, use_gat=False)):
        model.save_pretrained(tmp_path)
        for again in (type(model).from_pretrained(tmp_path), hiermt.from_reference(tmp_path, verbose=False)):
            assert type(again) is type(model)
            assert again.config == model.config
            assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


BAD: dict[str, tuple[type[Exception], str, Any]] = {
    "list": (TypeError, "heads: expected a mapping", ["signal"]),
    "none": (ValueError, "heads: expected one or more", {}),
    "name": (ValueError, "heads: expected a name of letters", {"a.b": 2}),
    "key": (TypeError, "heads: expected a string as name, got 3", {3: 2}),
    "classes": (ValueError, r"heads\['a'\]: expected 1 or more, got 0", {"a": 0}),
    "bool": (TypeError, r"heads\['a'\]: expected an integer, got True", {"a": True}),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_other_heads(case: str) -> None:
    error, message, heads = BAD[case]
    with pytest.raises(error, match=message):
        hiermt.MultiTaskTGCN(5, heads=heads)
