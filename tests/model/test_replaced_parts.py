"""A part that its user replaced, wrapped, patched or hooked takes part as it does in PyG's model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hiermt
from hiermt.testing import pyg
from support.replaced_parts import (
    CHANNELS,
    HIDDEN,
    NEW,
    PLACES,
    STEPS,
    STOCKS,
    Change,
    compare,
    edges,
    pair,
    put,
    with_bias,
    without_bias,
)

torch_geometric = pytest.importorskip("torch_geometric")
from torch_geometric import nn as pyg_nn  # noqa: E402


@pytest.mark.parametrize("new", NEW, ids=lambda new: new.__name__)
@pytest.mark.parametrize(("variant", "path"), PLACES, ids=lambda value: value)
def test_a_linear_of_the_users(variant: str, path: str, new: Callable[[nn.Module], nn.Module]) -> None:
    ours, theirs = pair(variant, lambda model: put(model, path, new))
    compare(ours, theirs, variant)


@pytest.mark.parametrize("path", ["tgcn_backbone.cells.0.lin_u", "tgcn_backbone.out.0", "signal_head"])
def test_a_linear_without_bias(path: str, backend: str) -> None:
    compare(*pair("gat", lambda model: put(model, path, without_bias), backend), "gat")


def test_an_edge_term_with_bias(backend: str) -> None:
    compare(
        *pair("gat", lambda model: put(model, "tgcn_backbone.cells.0.gcn.convs.1.lin_edge", with_bias), backend), "gat"
    )


def append(path: str, *new: Callable[[], nn.Module]) -> Change:
    def change(model: nn.Module) -> None:
        parts: Any = model.get_submodule(path)
        if isinstance(parts[-1], nn.Identity):  # at the end of PyG's; what follows has the same name in both without it
            del parts[-1]
        parts.extend([one() for one in new])

    return change


def head_with_dropout(model: nn.Module) -> None:
    model.signal_head = nn.Sequential(nn.Dropout(0.5), nn.Linear(HIDDEN, 2))


def gate_with_dropout(model: nn.Module) -> None:
    for cell in model.tgcn_backbone.cells:
        cell.lin_c = nn.Sequential(nn.Dropout(0.5), cell.lin_c)


def head_with_norm(model: nn.Module) -> None:
    model.direction_head = nn.Sequential(nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, 2))


def three_classes(model: nn.Module) -> None:
    model.signal_head = nn.Linear(HIDDEN, 3)


def own(path: str, around: Callable[..., Any]) -> Change:
    """Patches the forward of one part, or of the model itself."""

    def change(model: nn.Module) -> None:
        part = model.get_submodule(path)
        before = part.forward
        part.forward = lambda *args: around(before, *args)

    return change


def subclassed(path: str) -> Change:
    """Gives a part a class of its own, with a forward of its own."""

    def change(model: nn.Module) -> None:
        part = model.get_submodule(path)
        kind = type(part)
        part.__class__ = type(
            f"My{kind.__name__}", (kind,), {"forward": lambda self, *args: 1 + kind.forward(self, *args)}
        )

    return change


def module_hook(path: str) -> Change:
    def change(model: nn.Module) -> None:
        model.get_submodule(path).register_forward_hook(lambda module, inputs, output: output * 0.5 + 0.1)

    return change


class ScaledMessage(pyg_nn.GATv2Conv):
    """PyG's convolution with a message of the user's."""

    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        return 0.5 * super().message(x_j, alpha)


def pyg_convolution(model: nn.Module) -> None:
    for cell, size in zip(model.tgcn_backbone.cells, (CHANNELS, HIDDEN), strict=True):
        cell.gcn.convs[0] = ScaledMessage(size, HIDDEN, edge_dim=1)


def two_heads_of_attention(model: nn.Module) -> None:
    model.tgcn_backbone.cells[1].gcn.convs[1] = pyg_nn.GATv2Conv(HIDDEN, HIDDEN, heads=2, concat=False, edge_dim=1)


def another_cell(model: nn.Module) -> None:
    model.tgcn_backbone.cells[0] = pyg.Cell(CHANNELS, HIDDEN, use_gat=False)


def another_stack(model: nn.Module) -> None:
    model.tgcn_backbone.cells[1].gcn = pyg.ConvStack(HIDDEN, HIDDEN, conv_layers=1)


class SkipStack(nn.Module):
    """A stack around another one."""

    def __init__(self, stack: nn.Module) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        assert isinstance(edge_index, Tensor)
        return self.stack(x, edge_index, edge_weight) + x.mean(-1, keepdim=True)


CHANGES: dict[str, Change] = {
    "appended to out": append("tgcn_backbone.out", nn.ReLU),
    "several appended to out": append(
        "tgcn_backbone.out", lambda: nn.Linear(HIDDEN, HIDDEN), lambda: nn.BatchNorm1d(HIDDEN)
    ),
    "head with norm": head_with_norm,
    "head of three classes": three_classes,
    "another cell": another_cell,
    "another stack": another_stack,
    "PyG's convolution": pyg_convolution,
    "two heads of attention": two_heads_of_attention,
    "stack around a stack": lambda model: put(model, "tgcn_backbone.cells.1.gcn", SkipStack),
    **{
        f"{how} {path or 'model'}": make(path)
        for path in (
            "tgcn_backbone",
            "tgcn_backbone.out",
            "tgcn_backbone.cells.1",
            "tgcn_backbone.cells.0.gcn",
            "tgcn_backbone.cells.1.gcn.convs.0",
        )
        for how, make in {
            "patched": lambda path: own(path, lambda before, *args: 2 * before(*args)),
            "subclassed": subclassed,
            "hooked": module_hook,
        }.items()
    },
    "patched model": own("", lambda before, *args: tuple(2 * one for one in before(*args))),
}


@pytest.mark.hostile("replaced-part")
@pytest.mark.parametrize("name", CHANGES)
def test_a_part_of_the_users(name: str, backend: str) -> None:
    compare(*pair("gat", CHANGES[name], backend), "gat")


@pytest.mark.parametrize(
    "name", ["appended to out", "hooked tgcn_backbone.cells.1", "subclassed tgcn_backbone.cells.0.gcn"]
)
@pytest.mark.parametrize("variant", ["gat-after", "gcn"])
def test_a_part_of_another_variant(variant: str, name: str, backend: str) -> None:
    compare(*pair(variant, CHANGES[name], backend), variant)


@pytest.mark.parametrize("change", [head_with_dropout, gate_with_dropout], ids=lambda change: change.__name__)
def test_random_parts_draw_as_in_pyg(change: Change, backend: str) -> None:
    ours, theirs = pair("gat", change, backend)
    compare(ours, theirs, "gat")
    compare(ours.eval(), theirs.eval(), "gat")


def test_a_linear_class_that_is_patched(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    ours, theirs = pair("gcn", lambda model: None, backend)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: 3 * nn.functional.linear(x, self.weight, self.bias))
    for cell in theirs.tgcn_backbone.cells:  # PyG's own linear is another class
        for conv in cell.gcn.convs:
            put(conv, "lin", lambda old: nn.Linear(old.in_channels, old.out_channels, bias=False).double())
    for cell, target in zip(ours.tgcn_backbone.cells, theirs.tgcn_backbone.cells, strict=True):
        target.load_state_dict(cell.state_dict())
    compare(ours, theirs, "gcn")


@pytest.mark.hostile("replaced-part")
def test_hooks_on_every_module(backend: str) -> None:
    ours, _ = pair("gat", lambda model: None, backend)
    seen: list[str] = []
    names = {module: name for name, module in ours.named_modules()}
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(names.get(module, "?")))
    try:
        ours(torch.randn(STOCKS, STEPS, CHANNELS, dtype=torch.float64), *edges("gat"))
    finally:
        handle.remove()
    called = {name for name, module in ours.named_modules() if not isinstance(module, nn.ModuleList)}
    assert set(seen) == called
    assert seen.count("tgcn_backbone.cells.1") == STEPS


def test_a_hook_that_is_removed_leaves_nothing(backend: str) -> None:
    ours, theirs = pair("gat", lambda model: None, backend)
    handles = [module.register_forward_hook(lambda *_: None) for module in ours.modules()]
    compare(ours, theirs, "gat")
    for handle in handles:
        handle.remove()
    compare(ours, theirs, "gat")


def test_a_model_with_a_forward_of_its_own_decides_by_it(backend: str) -> None:
    class Sure(hiermt.TGCN_HierarchicalMT):
        def forward(self, x: Any, edge_index: Any, edge_weight: Any = None) -> tuple[Tensor, Tensor]:
            signal, direction = super().forward(x, edge_index, edge_weight)
            return signal + torch.tensor([0.0, 50.0], dtype=signal.dtype), direction

    model = Sure(CHANNELS, HIDDEN, backend=backend).double()
    x = torch.randn(STOCKS, STEPS, CHANNELS, dtype=torch.float64)
    predictions, *_ = model.decide(x, *edges("gat"))
    assert not (predictions == 1).any()


@pytest.mark.hostile("replaced-part")
def test_adapters_learn(backend: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    ours = hiermt.TGCN_HierarchicalMT(CHANNELS, HIDDEN, backend=backend)
    theirs = pyg.like(ours)
    targets = ["lin_u", "lin_c", "signal_head", "out.0"]
    adapted = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        config = peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False)
        adapted.append(peft.get_peft_model(model, config))
    x, (edge_index, weight) = torch.randn(STOCKS, STEPS, CHANNELS), edges("gat")
    assert weight is not None
    losses = []
    for model in adapted:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        losses.append([])
        for _ in range(3):
            optimizer.zero_grad()
            loss = sum(one.square().mean() for one in model(x, edge_index, weight.float()))
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][2] < losses[0][0]
    plain = hiermt.TGCN_HierarchicalMT(CHANNELS, HIDDEN, backend=backend)
    merged = adapted[0].merge_and_unload()
    plain.load_state_dict(merged.state_dict())
    for one, truth in zip(merged(x, edge_index, weight.float()), plain(x, edge_index, weight.float()), strict=True):
        assert torch.equal(one, truth)
