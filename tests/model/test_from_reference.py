"""``from_reference`` takes the published modules and refuses what computes another thing under the same names."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hiermt
from hiermt import testing
from support.properties import given, settings, st
from support.published_changes import CORRECT, MUTATIONS, all_stacks, cell_forward, cells, patch, stack_forward

published = pytest.importorskip("support.published", reason="the modules to take over need torch-geometric")
EDGES = testing.stock_graph(20, 60)


def two_headed(stack: str = "gat", f: int = 5, h: int = 7, layers: int = 2) -> Any:
    return published.TGCN_HierarchicalMT(f, h, layers, stack)


def assert_same(ours: Any, theirs: Any, x: Tensor, weight: Tensor | None) -> None:
    found, wanted = ours(x, EDGES[0], weight), theirs(x, EDGES[0], weight)
    if isinstance(wanted, Tensor):
        found, wanted = (found,), (wanted,)
    for one, other in zip(found, wanted, strict=True):
        testing.assert_close(one, other.to(one.dtype))


@pytest.mark.parametrize("stack", published.STACKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_takes_the_published_modules(stack: str, dtype: torch.dtype) -> None:
    weight = published.weight_of(stack, EDGES[1].to(dtype))
    x = torch.randn(20, 5, 6, dtype=dtype)
    theirs = two_headed(stack).to(dtype)
    assert_same(hiermt.from_reference(theirs, verbose=False), theirs, x, weight)
    activations = (None, nn.Sigmoid(), nn.Softmax(dim=-1), nn.Sequential(nn.Tanh(), nn.Identity()))
    for activation in activations[: 4 if dtype == torch.float32 else 1]:  # which are read without a look at the dtype
        bare = published.TGCN(5, 3, 7, 2, activation, stack).to(dtype)
        ours = hiermt.from_reference(bare, verbose=False)
        assert isinstance(ours, hiermt.TGCN)
        assert_same(ours, bare, x, weight)


@pytest.mark.parametrize("stack", ["gat", "gcn"])
def test_takes_attention_over_time(stack: str, tmp_path: Any) -> None:
    theirs = published.A3TGCN(5, 3, 7, 2, nn.Sigmoid(), stack)
    x, weight = torch.randn(20, 5, 6), published.weight_of(stack, EDGES[1])
    ours = hiermt.from_reference(theirs, verbose=False)
    assert isinstance(ours, hiermt.A3TGCN)
    assert ours.attention[0].weight is theirs.attention[0].weight
    assert_same(ours, theirs, x, weight)
    torch.save({"model": theirs.state_dict()}, tmp_path / "checkpoint.pt")
    for source in (theirs.state_dict(), tmp_path / "checkpoint.pt"):
        again = hiermt.from_reference(source, verbose=False)
        assert isinstance(again, hiermt.A3TGCN)
        testing.assert_close(torch.sigmoid(again(x, EDGES[0], weight)), theirs(x, EDGES[0], weight))
    theirs.attention[1] = nn.Softmax(dim=-1)
    with pytest.raises(ValueError, match="cannot be mapped to a T-GCN: the results in evaluation mode differ"):
        hiermt.from_reference(theirs, verbose=False)


class FourHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tgcn_backbone = published.TGCN(5, 7, 7)
        self.signal_head, self.direction_head = nn.Linear(7, 2), nn.Linear(7, 2)
        self.regime_head, self.return_head = nn.Linear(7, 3), nn.Linear(7, 1)

    def forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        features = self.tgcn_backbone(*arguments)
        heads = (self.signal_head, self.direction_head, self.regime_head, self.return_head)
        return tuple(head(features) for head in heads)


def test_takes_any_heads() -> None:
    theirs, x = FourHeads(), torch.randn(20, 5, 6)
    for source in (theirs, theirs.state_dict()):
        ours = hiermt.from_reference(source, verbose=False)
        assert isinstance(ours, hiermt.MultiTaskTGCN)
        assert ours.heads == {"signal": 2, "direction": 2, "regime": 3, "return": 1}
        for one, other in zip(ours(x, *EDGES).values(), theirs(x, *EDGES), strict=True):
            testing.assert_close(one, other)
    again = hiermt.from_reference(ours, verbose=False)
    assert isinstance(again, hiermt.MultiTaskTGCN) and again.regime_head.weight is ours.regime_head.weight


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 1, 2), (5, 4, 1), (2, 3, 3), (9, 2, 2), (600, 3, 2)])
@pytest.mark.parametrize("stack", ["gat", "gcn"])
def test_takes_every_size(sizes: tuple[int, int, int], stack: str) -> None:
    theirs = two_headed(stack, *sizes)
    ours = hiermt.from_reference(theirs, verbose=False)
    assert_same(ours, theirs, torch.randn(20, sizes[0], 4), published.weight_of(stack, EDGES[1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_takes_half_precision_and_meta(dtype: torch.dtype) -> None:
    theirs = two_headed().to(dtype)
    ours = hiermt.from_reference(theirs, verbose=False)
    assert next(ours.parameters()).dtype == dtype
    assert hiermt.from_reference(two_headed().to("meta"), verbose=False).signal_head.weight.is_meta  # type: ignore[union-attr]


class Lightning(nn.Module):
    """A module around a model, as people train it."""

    def __init__(self, model: nn.Module, attribute: str = "model") -> None:
        super().__init__()
        self.add_module(attribute, model)
        self.attribute = attribute

    def forward(self, *arguments: Any) -> Any:
        return getattr(self, self.attribute)(*arguments)


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": torch.compile,
    "DataParallel": nn.DataParallel,
    "both": lambda module: nn.DataParallel(torch.compile(module)),
    "AveragedModel": lambda module: torch.optim.swa_utils.AveragedModel(module),
    "Lightning": Lightning,
    "net": lambda module: Lightning(Lightning(torch.compile(module), "net")),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_takes_wrapped_modules(wrapper: str) -> None:
    theirs = two_headed()
    wrapped = WRAPPED[wrapper](theirs)
    ours = hiermt.from_reference(wrapped, verbose=False)
    assert_same(ours, theirs, torch.randn(20, 5, 6), EDGES[1])
    if wrapper != "AveragedModel":  # which holds a copy
        assert ours.signal_head.weight is theirs.signal_head.weight  # type: ignore[union-attr]


def test_takes_a_module_of_distributed_training(tmp_path: Any) -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch is built without gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        theirs = two_headed()
        parallel = nn.parallel.DistributedDataParallel(theirs)
        assert_same(hiermt.from_reference(parallel, verbose=False), theirs, torch.randn(20, 5, 6), EDGES[1])
    finally:
        distributed.destroy_process_group()


@pytest.mark.hostile("foreign-module")
@pytest.mark.parametrize("name", MUTATIONS)
def test_refuses_what_computes_another_thing(name: str) -> None:
    theirs = two_headed()
    before = published.keys(theirs)
    MUTATIONS[name](theirs)
    assert sorted(published.keys(theirs)) == sorted(before)
    with pytest.raises(ValueError, match=r"(?s)cannot be mapped.*state_dict\(\)"):
        hiermt.from_reference(theirs, verbose=False)


@pytest.mark.parametrize("stack", ["gcn", "single"])
@pytest.mark.parametrize(
    "name", ["relu", "gate swapped", "dropout of a head", "hook on a cell", "reset ignored", "relu after each"]
)
def test_refuses_it_in_the_other_stacks(stack: str, name: str) -> None:
    theirs = two_headed(stack)
    if "relu" in name and stack == "single":
        change = all_stacks(lambda self, x, e, w: F.relu(self.convs[0](x, e)))
    else:
        change = MUTATIONS[name]
    change(theirs)
    with pytest.raises(ValueError, match="cannot be mapped"):
        hiermt.from_reference(theirs, verbose=False)


@pytest.mark.parametrize("option", ["improved", "normalize", "add_self_loops"])
def test_refuses_other_options_of_gcn(option: str) -> None:
    theirs = two_headed("gcn")
    conv = cells(theirs)[0].gcn.convs[0]
    setattr(conv, option, not getattr(conv, option))
    with pytest.raises(ValueError, match=f"(?s)differ by [0-9.e-]+ of.*{option}="):
        hiermt.from_reference(theirs, verbose=False)


@pytest.mark.hostile("foreign-module")
def test_the_refusal_tells_how_much_and_what_was_assumed() -> None:
    theirs = two_headed()
    MUTATIONS["gate swapped"](theirs)
    with pytest.raises(ValueError, match="cannot be mapped") as caught:
        hiermt.from_reference(theirs, verbose=False)
    for part in (r"differ by 0.", "h = u * h + (1 - u) * c", "leaky_relu(0.01)", "[N, F, T]", "state_dict()"):
        assert part in str(caught.value)
    assert hiermt.from_reference(theirs.state_dict(), verbose=False).config["conv_activation"] == "between"


@settings(max_examples=25, deadline=None)
@given(
    st.floats(-1.5, 1.5),
    st.sampled_from(["u", "h", "c", "slope", "gate", "x"]),
    st.sampled_from(["gat", "gcn"]),
    st.integers(0, 1),
)
def test_any_factor_that_is_not_one_is_refused(factor: float, where: str, stack: str, cell: int) -> None:
    theirs = two_headed(stack)
    if where == "slope":
        patch(cells(theirs)[cell].gcn, stack_forward(lambda x: F.leaky_relu(x, 0.01 * factor)))
    elif where == "gate":
        patch(cells(theirs)[cell], cell_forward(gate=lambda z: torch.sigmoid(factor * z)))
    elif where == "x":
        patch(cells(theirs)[cell], cell_forward(order=lambda x, g, h: [factor * x, g, h]))
    else:
        scale = {name: factor if name == where else 1.0 for name in "uhc"}
        mixed = lambda u, h, c: scale["u"] * u * scale["h"] * h + (1 - scale["u"] * u) * scale["c"] * c  # noqa: E731
        patch(cells(theirs)[cell], cell_forward(mixed))
    if abs(factor - 1) < 1e-9:
        hiermt.from_reference(theirs, verbose=False)
    elif abs(factor - 1) > 1e-3:
        with pytest.raises(ValueError, match="differ"):
            hiermt.from_reference(theirs, verbose=False)


@pytest.mark.parametrize("name", CORRECT)
def test_takes_what_computes_the_same(name: str) -> None:
    theirs = two_headed()
    CORRECT[name](theirs)
    layout = "NTF" if name == "[N, T, F]" else None
    ours = hiermt.from_reference(theirs, layout=layout, verbose=False)
    x = torch.randn(20, 6, 5) if layout else torch.randn(20, 5, 6)
    assert_same(ours, theirs, x, EDGES[1])


def test_infers_and_says_where_the_activation_stands(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = two_headed()
    CORRECT["activation after each"](theirs)
    assert hiermt.from_reference(theirs).config["conv_activation"] == "after"
    assert "inferred from it: conv_activation='after'" in capsys.readouterr().out
    with pytest.raises(ValueError, match="differ by"):
        hiermt.from_reference(theirs, conv_activation="between", verbose=False)


def test_a_model_of_ours_keeps_its_choices() -> None:
    for layout in ("NTF", "NFT"):
        theirs = hiermt.TGCN(5, 3, 7, conv_activation="after", layout=layout)
        ours = hiermt.from_reference(theirs, verbose=False)
        assert ours.config == theirs.config
        other = hiermt.from_reference(theirs, layout="NFT", verbose=False)
        assert other.config["layout"] == "NFT"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: patch(m, lambda self, data: data), "forward takes"),
        (lambda m: patch(m, lambda self, x, e, w, h: x), "forward takes"),
        (lambda m: patch(m, lambda self, x, e, w: 1 / 0), "could not be run.*ZeroDivisionError"),
        (lambda m: patch(m, lambda self, x, e, w: x.cuda()), "could not be run"),
    ],
)
def test_refuses_what_it_cannot_run(change: Any, message: str) -> None:
    theirs = two_headed()
    change(theirs)
    with pytest.raises(ValueError, match=message):
        hiermt.from_reference(theirs, verbose=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hook on a head", "signal_head has hooks"),
        ("backward hook", "signal_head has hooks"),
        ("gate swapped", "cells.0 has a patched forward"),
        ("slope of the attention", "negative_slope=0.21"),
        ("tanh behind the backbone", "ends in Tanh"),
    ],
)
def test_a_refusal_names_what_may_be_the_cause(name: str, message: str) -> None:
    theirs = two_headed()
    MUTATIONS[name](theirs)
    with pytest.raises(ValueError, match=message):
        hiermt.from_reference(theirs, verbose=False)


def test_refuses_what_keeps_a_graph_from_call_to_call() -> None:
    theirs = two_headed("gcn")
    for part in theirs.modules():
        if hasattr(part, "cached"):
            part.cached = True
    with pytest.raises(ValueError, match="cannot be mapped"):
        hiermt.from_reference(theirs, verbose=False)


def test_takes_a_forward_without_edge_weights() -> None:
    theirs = two_headed("single")
    patch(theirs, lambda self, x, e: type(self).forward(self, x, e, None))
    ours = hiermt.from_reference(theirs, verbose=False)
    for one, other in zip(ours(torch.ones(20, 5, 6), EDGES[0]), theirs(torch.ones(20, 5, 6), EDGES[0]), strict=True):
        testing.assert_close(one, other)


def test_leaves_everything_as_it_was() -> None:
    theirs = two_headed()
    theirs.tgcn_backbone.requires_grad_(False)
    theirs.signal_head.weight.grad = torch.ones_like(theirs.signal_head.weight)
    theirs.eval()
    theirs.signal_head.train()
    theirs.last = theirs(torch.randn(20, 5, 6), *EDGES)  # kept with its history
    before = copy.deepcopy(theirs.state_dict())
    states = torch.get_rng_state(), random.getstate()
    ours = hiermt.from_reference(theirs, verbose=False)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert all(torch.equal(value, before[key]) for key, value in theirs.state_dict().items())
    assert torch.equal(theirs.signal_head.weight.grad, torch.ones(2, 7))
    assert all(p.grad is None for name, p in theirs.named_parameters() if name != "signal_head.weight")
    assert not theirs.training and theirs.signal_head.training
    assert not ours.training and ours.signal_head.training  # type: ignore[union-attr]
    assert not any(p.requires_grad for p in ours.tgcn_backbone.parameters())  # type: ignore[union-attr]
    assert ours.signal_head.weight.requires_grad  # type: ignore[union-attr]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_works_inside_other_modes(context: Any) -> None:
    with context():
        theirs = two_headed()
        assert isinstance(hiermt.from_reference(theirs, verbose=False), hiermt.TGCN_HierarchicalMT)
        MUTATIONS["detached state"](theirs)
        with pytest.raises(ValueError, match="gradients"):
            hiermt.from_reference(theirs, verbose=False)


def test_values_that_are_no_numbers_do_not_hide_a_difference() -> None:
    for value in (0.0, float("nan"), 1e30):
        theirs = two_headed()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.fill_(value)
        hiermt.from_reference(theirs, verbose=False)
        MUTATIONS["relu"](theirs)
        with pytest.raises(ValueError, match="differ"):
            hiermt.from_reference(theirs, verbose=False)


def test_a_state_dict_says_what_it_does_not_tell(capsys: pytest.CaptureFixture[str]) -> None:
    for stack, part in (("gat", "negative_slope=0.2"), ("gcn", "improved=False")):
        hiermt.from_reference(two_headed(stack).state_dict())
        out = capsys.readouterr().out
        for text in ("conv_activation='between'", "h = u * h", part, "dropout", "output activation", "[N, F, T]"):
            assert text in out


def test_warns_where_the_order_of_x_was_not_told() -> None:
    square = torch.randn(20, 5, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hiermt.from_reference(two_headed(), verbose=False)(square, *EDGES)
        hiermt.from_reference(two_headed().state_dict(), layout="NFT", verbose=False)(square, *EDGES)
    with pytest.warns(UserWarning, match="layout="):
        hiermt.from_reference(two_headed().state_dict(), verbose=False)(square, *EDGES)
