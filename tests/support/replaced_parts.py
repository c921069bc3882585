"""Linears of a user's, and the comparison of two models that were changed in the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import hiermt
from hiermt import Graph, functional
from hiermt.testing import assert_close, batched, pyg, stock_graph
from hiermt.windows import Windows

torch_geometric = pytest.importorskip("torch_geometric")

STOCKS, STEPS, CHANNELS, HIDDEN, COPIES = 9, 4, 3, 4, 3
VARIANTS: dict[str, dict[str, Any]] = {
    "gat": {},
    "gat-after": {"conv_layers": 1, "edge_dim": None, "conv_activation": "after"},
    "gcn": {"use_gat": False},
}
Change = Callable[[nn.Module], None]


def edges(variant: str) -> tuple[Tensor, Tensor | None]:
    """A graph with a loop, a duplicate and isolated nodes, and weights where the variant reads them."""
    edge_index, weight = stock_graph(STOCKS, 20, 2)
    edge_index = torch.cat([edge_index, torch.tensor([[1], [1]]), edge_index[:, :1]], dim=1)
    return edge_index, None if variant == "gat-after" else torch.cat([weight, weight[:2]]).double()


class Doubled(nn.Linear):
    """A linear that computes twice what its weight says."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Adapter(nn.Module):
    """A frozen linear with a low-rank update beside it, which shows the frozen weight as its own."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        outputs, inputs = base.weight.shape
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.t() @ self.up.t()


def put(model: nn.Module, path: str, new: Callable[[nn.Module], nn.Module]) -> None:
    """Puts ``new(old)`` in the place of the part at `path`."""
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, new(model.get_submodule(path)))


def doubled(old: nn.Module) -> nn.Module:
    outputs, inputs = old.weight.shape
    new = Doubled(inputs, outputs, bias=old.bias is not None)
    new.load_state_dict(old.state_dict())
    return new


def without_bias(old: nn.Module) -> nn.Module:
    outputs, inputs = old.weight.shape
    return nn.Linear(inputs, outputs, bias=False)


def with_bias(old: nn.Module) -> nn.Module:
    outputs, inputs = old.weight.shape
    return nn.Linear(inputs, outputs)


def wrapped(old: nn.Module) -> nn.Module:
    return nn.Sequential(old, nn.Tanh())


def patched(old: nn.Module) -> nn.Module:
    own = old.forward
    old.forward = lambda x: own(x) - 1  # type: ignore[method-assign]
    return old


def hooked(old: nn.Module) -> nn.Module:
    old.register_forward_hook(lambda module, inputs, output: output * 1.5)
    return old


def pre_hooked(old: nn.Module) -> nn.Module:
    old.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.5,))
    return old


def backward_hooked(old: nn.Module) -> nn.Module:
    # The edge weights are the input of a part, and need no gradient.
    old.register_full_backward_hook(lambda module, grad_in, _: None if grad_in[0] is None else (2 * grad_in[0],))
    return old


def pruned(old: nn.Module) -> nn.Module:
    prune.l1_unstructured(old, "weight", amount=0.5)
    return old


def weight_normed(old: nn.Module) -> nn.Module:
    torch.nn.utils.weight_norm(old, "weight")
    with torch.no_grad():
        old.weight_g.mul_(2)
    return old


LINEARS = {
    "gat": ["lin_u", "lin_r", "lin_c", "gcn.convs.0.lin_l", "gcn.convs.1.lin_r", "gcn.convs.0.lin_edge"],
    "gat-after": ["lin_r", "gcn.convs.0.lin_l", "gcn.convs.0.lin_r"],
    "gcn": ["lin_u", "gcn.convs.0.lin", "gcn.convs.1.lin"],
}
NEW = [doubled, Adapter, wrapped, patched, hooked, pre_hooked, backward_hooked, pruned, weight_normed]
PLACES = [
    (variant, f"tgcn_backbone.cells.{i % 2}.{part}")
    for variant, parts in LINEARS.items()
    for i, part in enumerate(parts)
] + [("gat", "tgcn_backbone.out.0"), ("gat", "signal_head"), ("gat", "direction_head")]


def pair(variant: str, change: Change, backend: str = "auto") -> tuple[nn.Module, nn.Module]:
    """The model and PyG's with the same weights, both changed in the same way."""
    torch.manual_seed(0)
    ours = hiermt.TGCN_HierarchicalMT(CHANNELS, HIDDEN, backend=backend, **VARIANTS[variant])
    theirs = pyg.like(ours)
    for model in (ours, theirs):
        torch.manual_seed(1)
        change(model)
    return ours.double(), theirs.double()


def compare(ours: nn.Module, theirs: nn.Module, variant: str) -> None:
    """Values and the gradient of every parameter and of x, for all the ways in which a model is called."""
    torch.manual_seed(2)
    series = torch.randn(STOCKS, STEPS + COPIES - 1, CHANNELS, dtype=torch.float64)
    x = torch.stack([series[:, i : i + STEPS] for i in range(COPIES)])
    edge_index, weight = edges(variant)
    union = batched(edge_index, torch.ones(edge_index.size(1)) if weight is None else weight, STOCKS, COPIES)
    graph = Graph(edge_index, weight, STOCKS)
    flat = x.flatten(0, 1).requires_grad_()
    torch.manual_seed(3)
    expected = theirs(flat, union[0], None if weight is None else union[1].double())
    seeds = [torch.randn_like(one) for one in expected]
    trained = [(name, one) for name, one in theirs.named_parameters() if one.requires_grad]
    expected_grads = torch.autograd.grad(expected, [flat, *(one for _, one in trained)], seeds, allow_unused=True)
    assert [name for name, one in ours.named_parameters() if one.requires_grad] == [name for name, _ in trained]
    calls = {
        "tensor": (flat, (union[0], None if weight is None else union[1].double())),
        "batch": (flat.unflatten(0, (COPIES, STOCKS)), (graph,)),
        "windows": (Windows(series.requires_grad_(), torch.arange(COPIES), STEPS), (graph,)),
    }
    for name, (given, on) in calls.items():
        torch.manual_seed(3)
        got = ours(given, *on)
        leaf = flat if name != "windows" else series
        got_grads = torch.autograd.grad(
            [one.flatten(0, -2) for one in got],
            [leaf, *(one for one in ours.parameters() if one.requires_grad)],
            seeds,
            allow_unused=True,
        )
        for one, truth in zip(got, expected, strict=True):
            assert_close(one.reshape(truth.shape), truth, message=name)
        for i, ((key, _), one, truth) in enumerate(
            zip([("x", None), *trained], got_grads, expected_grads, strict=True)
        ):
            if i == 0 and name == "windows":
                continue
            assert (one is None) == (truth is None), f"{name}: gradient of {key}"
            if one is not None and truth is not None:
                assert_close(one, truth, gradient=True, message=f"{name}: gradient of {key}")
        if expected[0].size(-1) == 2:
            torch.manual_seed(3)
            decided = ours.decide(given, *on, threshold=0.4)
            _, predictions, confidences = functional.decision_from_logits(
                expected[0].detach(), expected[1].detach(), 0.4, backend="reference"
            )
            assert torch.equal(decided[0].reshape(-1), predictions), name
            assert_close(decided[1].reshape(-1), confidences, message=name)
