"""What gives a published module another meaning under the same names, and what does not."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

published = pytest.importorskip("support.published", reason="the modules to take over need torch-geometric")


# Each gives the cell, the stack, or a part of it another meaning. `model` is a published two-headed model with GATv2.
def cells(model: Any) -> Any:
    return model.tgcn_backbone.cells


def patch(owner: Any, forward: Any) -> None:
    owner.forward = types.MethodType(forward, owner)


def stack_forward(activate: Any, last: Any = lambda x: x) -> Any:
    def forward(self: Any, x: Tensor, edge_index: Tensor, edge_weight: Any) -> Tensor:
        for conv in self.convs[:-1]:
            x = activate(conv(x, edge_index, edge_weight))
        return last(self.convs[-1](x, edge_index, edge_weight))  # type: ignore[no-any-return]

    return forward


def cell_forward(
    mix: Any = lambda u, h, c: u * h + (1 - u) * c,
    gate: Any = torch.sigmoid,
    reset: Any = lambda r, h: r * h,
    order: Any = lambda x, g, h: [x, g, h],
    out: Any = torch.tanh,
    g: Any = torch.sigmoid,
) -> Any:
    def forward(self: Any, x: Tensor, edge_index: Tensor, edge_weight: Any, h: Tensor) -> Tensor:
        convolved = g(self.gcn(x, edge_index, edge_weight))
        u = gate(self.lin_u(torch.cat(order(x, convolved, h), -1)))
        r = gate(self.lin_r(torch.cat(order(x, convolved, h), -1)))
        c = out(self.lin_c(torch.cat(order(x, convolved, reset(r, h)), -1)))
        return mix(u, h, c)  # type: ignore[no-any-return]

    return forward


def backbone_forward(
    steps: Any = lambda n: range(n), start: Any = torch.zeros, read: Any = lambda states: states[-1]
) -> Any:
    def forward(self: Any, x: Tensor, edge_index: Tensor, edge_weight: Any = None) -> Tensor:
        states = [start(x.shape[0], self.hidden_size) for _ in self.cells]
        for t in steps(x.shape[-1]):
            h = x[:, :, t]
            for i, cell in enumerate(self.cells):
                states[i] = h = cell(h, edge_index, edge_weight, states[i])
        return self.out(read(states))  # type: ignore[no-any-return]

    return forward


def truncated(length: int) -> Any:
    def forward(self: Any, x: Tensor, edge_index: Tensor, edge_weight: Any = None) -> Tensor:
        states = [x.new_zeros(x.shape[0], self.hidden_size) for _ in self.cells]
        for t in range(x.shape[-1]):
            h = x[:, :, t]
            states = [state.detach() if t and t % length == 0 else state for state in states]
            for i, cell in enumerate(self.cells):
                states[i] = h = cell(h, edge_index, edge_weight, states[i])
        return self.out(states[-1])  # type: ignore[no-any-return]

    return forward


def weights_changed(change: Any) -> Any:
    def forward(self: Any, x: Tensor, edge_index: Tensor, edge_weight: Any) -> Tensor:
        return stack_forward(F.leaky_relu)(self, x, edge_index, None if edge_weight is None else change(edge_weight))  # type: ignore[no-any-return]

    return lambda model: patch(cells(model)[0].gcn, forward)


class OwnMessage(published.GATv2Conv):  # type: ignore[misc, name-defined]
    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        return 1.01 * x_j * alpha.unsqueeze(-1)


def own_message(model: Any) -> None:
    cells(model)[1].gcn.convs[0] = OwnMessage(7, 7, edge_dim=1)


def all_cells(forward: Any) -> Any:
    return lambda model: [patch(cell, forward) for cell in cells(model)]


def all_stacks(forward: Any) -> Any:
    return lambda model: [patch(cell.gcn, forward) for cell in cells(model)]


def hook(where: Any, change: Any) -> Any:
    return lambda model: where(model).register_forward_hook(lambda module, args, result: change(result))


def calls_kept(model: Any) -> None:
    def forward(self: Any, x: Tensor, edge_index: Tensor, edge_weight: Any = None) -> Any:
        before = getattr(self, "before", 0.0)
        features = self.tgcn_backbone(x, edge_index, edge_weight) + before
        self.before = features.detach().mean()
        return self.signal_head(features), self.direction_head(features)

    patch(model, forward)


class Dropped(nn.Module):
    def __init__(self, part: nn.Module, p: float) -> None:
        super().__init__()
        self.weight, self.bias, self.p = part.weight, part.bias, p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.linear(x, self.weight, self.bias), self.p, self.training)


def dropped_head(p: float) -> Any:
    return lambda model: setattr(model, "signal_head", Dropped(model.signal_head, p))


def wrap_heads(change: Any) -> Any:
    def forward(self: Any, x: Tensor, edge_index: Tensor, edge_weight: Any = None) -> Any:
        return change(self, self.tgcn_backbone(x, edge_index, edge_weight))

    return lambda model: patch(model, forward)


HEADS = "signal_head", "direction_head"
MUTATIONS: dict[str, Any] = {
    "relu": all_stacks(stack_forward(F.relu)),
    "relu after each": all_stacks(stack_forward(F.relu, F.relu)),
    "no activation": all_stacks(stack_forward(lambda x: x)),
    "slope 0.02": all_stacks(stack_forward(lambda x: F.leaky_relu(x, 0.02))),
    "elu": all_stacks(stack_forward(F.elu)),
    "leaky_relu, then relu": all_stacks(stack_forward(F.leaky_relu, F.relu)),
    "relu in one cell of two": lambda model: patch(cells(model)[1].gcn, stack_forward(F.relu)),
    "after in one cell of two": lambda model: patch(cells(model)[1].gcn, stack_forward(F.leaky_relu, F.leaky_relu)),
    "dropout": all_stacks(stack_forward(nn.Dropout(0.5))),
    "residual": lambda model: patch(
        cells(model)[1].gcn, lambda self, x, e, w: x + stack_forward(F.leaky_relu)(self, x, e, w)
    ),
    "normalised": all_stacks(stack_forward(lambda x: F.layer_norm(F.leaky_relu(x), x.shape[-1:]))),
    "weights ignored": lambda model: patch(
        cells(model)[0].gcn, lambda self, x, e, w: stack_forward(F.leaky_relu)(self, x, e, None)
    ),
    "weights of one": lambda model: patch(
        cells(model)[0].gcn,
        lambda self, x, e, w: stack_forward(F.leaky_relu)(self, x, e, torch.ones(e.size(1)) if w is None else w),
    ),
    "edges reversed": lambda model: patch(
        cells(model)[0].gcn, lambda self, x, e, w: stack_forward(F.leaky_relu)(self, x, e.flip(0), w)
    ),
    "gate swapped": all_cells(cell_forward(lambda u, h, c: (1 - u) * h + u * c)),
    "gate swapped in one cell": lambda model: patch(cells(model)[0], cell_forward(lambda u, h, c: (1 - u) * h + u * c)),
    "order of inputs": all_cells(cell_forward(order=lambda x, g, h: [x, h, g])),
    "reset ignored": all_cells(cell_forward(reset=lambda r, h: h)),
    "reset the other way": all_cells(cell_forward(reset=lambda r, h: (1 - r) * h)),
    "hard sigmoid": all_cells(cell_forward(gate=F.hardsigmoid)),
    "relu candidate": all_cells(cell_forward(out=F.relu)),
    "no sigmoid of g": all_cells(cell_forward(g=lambda g: g)),
    "tanh of g": all_cells(cell_forward(g=torch.tanh)),
    "detached state": all_cells(cell_forward(lambda u, h, c: u * h.detach() + (1 - u) * c)),
    "detached g": all_cells(cell_forward(g=lambda g: torch.sigmoid(g).detach())),
    "half of the gradient": all_cells(cell_forward(lambda u, h, c: u * h + (1 - u) * (0.5 * c + 0.5 * c.detach()))),
    "last step missing": lambda model: patch(model.tgcn_backbone, backbone_forward(lambda n: range(n - 1))),
    "time reversed": lambda model: patch(model.tgcn_backbone, backbone_forward(lambda n: range(n)[::-1])),
    "at most 12 steps": lambda model: patch(model.tgcn_backbone, backbone_forward(lambda n: range(min(n, 12)))),
    "at most the last 25 steps": lambda model: patch(
        model.tgcn_backbone, backbone_forward(lambda n: range(max(n - 25, 0), n))
    ),
    "gradient of at most 20 steps": lambda model: patch(model.tgcn_backbone, truncated(20)),
    "weights of at most 1": weights_changed(lambda w: w.clamp(max=1)),
    "no negative weights": weights_changed(torch.relu),
    "absolute weights": weights_changed(torch.abs),
    "ones at the start": lambda model: patch(model.tgcn_backbone, backbone_forward(start=torch.ones)),
    "noise at the start": lambda model: patch(model.tgcn_backbone, backbone_forward(start=torch.randn)),
    "mean of the layers": lambda model: patch(
        model.tgcn_backbone, backbone_forward(read=lambda states: sum(states) / len(states))
    ),
    "own message": own_message,
    "hook on a head": hook(lambda model: model.signal_head, lambda y: y.softmax(-1)),
    "hook on a cell": hook(lambda model: cells(model)[0], lambda y: 1.1 * y),
    "hook that bounds": hook(lambda model: cells(model)[0].gcn.convs[0], lambda y: y.clamp(-8, 8)),
    "pre-hook": lambda model: model.register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:])),
    "backward hook": lambda model: model.signal_head.register_full_backward_hook(
        lambda module, into, out: (0.5 * into[0],)
    ),
    "dropout of a head": dropped_head(0.1),
    "rare dropout": dropped_head(1e-4),
    "softmax": wrap_heads(lambda self, f: (self.signal_head(f).softmax(-1), self.direction_head(f).softmax(-1))),
    "heads swapped": wrap_heads(lambda self, f: (self.direction_head(f), self.signal_head(f))),
    "one output": wrap_heads(lambda self, f: torch.cat([self.signal_head(f), self.direction_head(f)], -1)),
    "a dict": wrap_heads(lambda self, f: {name: getattr(self, name)(f) for name in HEADS}),
    "three outputs": wrap_heads(lambda self, f: (self.signal_head(f), self.direction_head(f), f)),
    "keeps the last call": calls_kept,
    "batch norm without names": lambda model: model.tgcn_backbone.out.append(
        nn.BatchNorm1d(7, affine=False, track_running_stats=False)
    ),
    "tanh behind the backbone": lambda model: model.tgcn_backbone.out.append(nn.Tanh()),
    "slope of the attention": lambda model: setattr(cells(model)[0].gcn.convs[0], "negative_slope", 0.21),
}


CORRECT: dict[str, Any] = {
    "another way to write it": all_cells(cell_forward(lambda u, h, c: c + u * (h - c))),
    "identity modules": lambda model: model.tgcn_backbone.out.append(nn.Identity()),
    "dropout of nothing": dropped_head(0.0),
    "a hook that looks": hook(lambda model: model.signal_head, lambda y: None),
    "an exponential": all_cells(cell_forward(gate=lambda z: 1 / (1 + torch.exp(-z)))),
    "activation after each": all_stacks(stack_forward(F.leaky_relu, F.leaky_relu)),
    "a list": wrap_heads(lambda self, f: [self.signal_head(f), self.direction_head(f)]),
    "[N, T, F]": lambda model: patch(
        model, lambda self, x, e, w=None: type(self).forward(self, x.transpose(1, 2), e, w)
    ),
    "no weights left out": lambda model: patch(
        cells(model)[0].gcn, lambda self, x, e, w: stack_forward(F.leaky_relu)(self, x, e, w.clone())
    ),
    "a double constant": all_cells(cell_forward(lambda u, h, c: u * h + (torch.tensor(1.0) - u) * c)),
}
