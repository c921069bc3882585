"""Parts whose parameters say less than their forward: tensors and modules that make something of each read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import hiermt
from hiermt import Graph
from hiermt.testing import assert_close
from hiermt.windows import Windows
from support.replaced_parts import CHANNELS, COPIES, HIDDEN, STEPS, STOCKS, VARIANTS, Change, compare, edges, pair, put

BACKBONE = "tgcn_backbone."
PLACES = ["signal_head", BACKBONE + "out.0", BACKBONE + "cells.0.lin_r", BACKBONE + "cells.1.gcn.convs.0.lin_l"]


class Tripled(nn.Parameter):
    """A parameter that stands for three times its values wherever a linear reads it, as quantized tensors scale."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return 3 * result if func is F.linear else result


class Doubled(nn.Linear):
    """Shows twice its weight."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return 2 * value if name == "weight" else value


class Initialised(nn.Linear):
    """Differs in its first values alone."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)


class DropConnect(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, 0.3, self.training)


def linear_of(kind: type[nn.Linear]) -> Callable[[nn.Module], nn.Module]:
    def new(old: nn.Module) -> nn.Module:
        made = kind(old.weight.shape[1], old.weight.shape[0], bias=old.bias is not None)
        made.load_state_dict(old.state_dict())
        return made

    return new


def tripled(old: nn.Module) -> nn.Module:
    old.weight = Tripled(old.weight.detach().double())
    return old


def drop_connected(old: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(old, "weight", DropConnect())


def scripted(old: nn.Module) -> nn.Module:
    new = torch.jit.script(nn.Linear(old.weight.shape[1], old.weight.shape[0]))
    return new  # type: ignore[no-any-return]


NEW: dict[str, Callable[[nn.Module], nn.Module]] = {
    "tensor subclass": tripled,
    "attribute": linear_of(Doubled),
    "initialised": linear_of(Initialised),
    "drop-connect": drop_connected,
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "scripted": scripted,
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("new", NEW)
def test_a_part_is_what_reading_it_gives(new: str, place: str, backend: str) -> None:
    compare(*pair("gat", lambda model: put(model, place, NEW[new]), backend), "gat")


def test_a_spectral_norm_counts_the_steps() -> None:
    """In training it changes at each read, and a T-GCN reads its gates once a time step."""
    ours, theirs = pair("gat", lambda m: put(m, BACKBONE + "cells.1.lin_c", parametrizations.spectral_norm))
    x, (edge_index, weight) = torch.randn(STOCKS, STEPS, CHANNELS, dtype=torch.float64), edges("gat")
    for _ in range(2):
        for one, truth in zip(ours(x, edge_index, weight), theirs(x, edge_index, weight), strict=True):
            assert_close(one, truth)


class Around(nn.Module):
    """Passes the call on, and no attribute."""

    def __init__(self, inner: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, *args: Any) -> Any:
        return self.scale * self.inner(*args)


def renamed(model: nn.Module) -> None:
    model.tgcn_backbone.out = nn.Sequential(OrderedDict(last=model.tgcn_backbone.out[0]))


AROUND: dict[str, Change] = {
    "another name in out": renamed,
    "around the backbone": lambda model: put(model, "tgcn_backbone", Around),
    "scaling the backbone": lambda model: put(model, "tgcn_backbone", lambda old: Around(old, 1.5)),
}


@pytest.mark.parametrize("name", AROUND)
def test_modules_around_the_backbone(name: str, backend: str) -> None:
    compare(*pair("gat", AROUND[name], backend), "gat")


def hooked(model: nn.Module) -> None:
    model.tgcn_backbone.register_forward_hook(lambda module, args, result: 2 * result)


@pytest.mark.parametrize("channels", [CHANNELS, STEPS])
@pytest.mark.parametrize("layout", ["NTF", "NFT"])
@pytest.mark.parametrize("change", [hooked, AROUND["scaling the backbone"], lambda model: None])
def test_windows_have_the_layout_of_the_model(change: Change, layout: str, channels: int) -> None:
    """A backbone that is called gets x in the order it reads, also where both orders would fit."""
    torch.manual_seed(0)
    model = hiermt.TGCN_HierarchicalMT(channels, HIDDEN, layout=layout, **VARIANTS["gat"]).double().eval()
    change(model)
    series = torch.randn(STOCKS, STEPS + COPIES - 1, channels, dtype=torch.float64)
    edge_index, weight = edges("gat")
    graph = Graph(edge_index, weight, STOCKS)
    x = torch.stack([series[:, i : i + STEPS] for i in range(COPIES)])
    x = x if layout == "NTF" else x.transpose(-1, -2)
    expected = [torch.stack(column) for column in zip(*(model(one, edge_index, weight) for one in x), strict=True)]
    for one, truth in zip(model(Windows(series, torch.arange(COPIES), STEPS), graph), expected, strict=True):
        assert_close(one, truth)
    decided = hiermt.predict_rolling(model, series, graph, STEPS)
    live = hiermt.LivePredictor(model, graph, STEPS)
    assert live.extend(series[:, : STEPS - 1]) is None
    for i, truth in enumerate(model.decide(one, graph) for one in x):
        day = live.append(series[:, STEPS - 1 + i])
        assert day is not None
        assert torch.equal(decided.predictions[i], truth[0])
        assert torch.equal(day.predictions[0], truth[0])
        for several, alone, one in zip(decided[1:], day[1:], truth[1:], strict=True):
            assert_close(several[i], one)
            assert_close(alone[0], one)
