"""The operators in PyG and plain PyTorch, a time step and a row at a time: they share no line with the twins."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hiermt.testing import assert_close, batched
from support.calls import Call, cotangents, outputs_of, prepare
from support.present import pyg_conv
from support.problems import Problem, entries

ACTIVATIONS = (
    lambda y: y,
    lambda y: F.leaky_relu(y, 0.01),
    torch.sigmoid,
    lambda y: torch.sigmoid(F.leaky_relu(y, 0.01)),
)


def has(problem: Problem) -> bool:
    """Whether there is an oracle for the problem, one that holds something and is small."""
    sizes = [one.numel() for one in problem.arguments if isinstance(one, Tensor)]
    return problem.op in ORACLES and all(sizes) and not problem.large and not problem.label.startswith("empty")


def compare(problem: Problem) -> None:
    """Values and all gradients in float64, that of the edge weights before the rule of the self loops."""
    call = prepare(problem, torch.float64)
    graph: tuple[Tensor, Tensor | None] | None = None
    leaves = list(call.leaves)
    if problem.edges is not None:
        index, weight, nodes = problem.edges
        raw = weight.double().requires_grad_(problem.gradient)
        gat = len(problem.arguments[3]) > 2 * problem.options["conv_layers"]
        csr, prepared = entries((index, weight, nodes), gat, raw)
        given = problem.arguments[2] is not None
        leaves = [leaf for leaf in leaves if leaf is not call.arguments[2]] + ([raw] if given else [])
        arguments = (call.arguments[0], list(csr), prepared if given else None, *call.arguments[3:])
        call = Call(arguments, call.options, leaves)
        copies = call.arguments[0].size(0) // nodes
        graph = batched(index, raw if given else None, nodes, copies)
    found = outputs_of(problem.op, call, True)
    expected = ORACLES[problem.op](graph, *call.arguments, **call.options)
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one.is_floating_point():
            assert_close(one, other, message=f"result {i}")
        else:
            assert torch.equal(one, other)
    recorded = [i for i, one in enumerate(found) if one.requires_grad]
    if recorded:
        seeds = cotangents([found[i] for i in recorded])
        pairs = zip(
            *(
                torch.autograd.grad([side[i] for i in recorded], leaves, seeds, allow_unused=True)
                for side in (found, expected)
            ),
            leaves,
            strict=True,
        )
        for i, (gradient, truth, leaf) in enumerate(pairs):
            zeros = torch.zeros_like(leaf)
            got, want = (zeros if one is None else one for one in (gradient, truth))
            if problem.edges is not None and leaf is leaves[-1] and not gat:
                want = want * _counts(problem.edges[0])
            assert_close(got, want.reshape(got.shape), gradient=True, scaled=True, message=f"gradient {i}")


def _counts(edge_index: Tensor) -> Tensor:
    """Edges that a GCN reads: of several loops of a node, the last one. PyG hands its gradient to all of them."""
    last = {int(node): i for i, (node, other) in enumerate(edge_index.t().tolist()) if node == other}
    return torch.tensor([a != b or last[a] == i for i, (a, b) in enumerate(edge_index.t().tolist())])


def _conv_stack(
    graph: Any, x: Tensor, csr: Any, weight: Any, params: list[Tensor], conv_layers: int, activation: int
) -> list[Tensor]:
    count = len(params) // conv_layers

    def stack(part: Tensor) -> Tensor:
        for i in range(conv_layers):
            part = pyg_conv(part, graph, params[i * count : (i + 1) * count])
            part = ACTIVATIONS[activation if i == conv_layers - 1 else 1](part)
        return part

    return [torch.stack([stack(x[:, t]) for t in range(x.size(1))], dim=1)]


def _gated_scan(
    graph: Any,
    x: Tensor,
    g: Tensor | None,
    h0: Tensor | None,
    gates: list[Tensor],
    starts: Tensor | None = None,
    *,
    sequence: bool,
    steps: int = 0,
) -> list[Tensor]:
    """Equations 3 to 6 of arXiv 1811.05320; without g on x and h alone."""
    x = x if g is None else torch.cat([x, g], -1)
    if starts is not None:
        x = gathered(x, starts, steps)
    h = x.new_zeros(x.size(0), gates[0].size(0)) if h0 is None else h0
    states = []
    for t in range(x.size(1)):
        u = torch.sigmoid(F.linear(torch.cat([x[:, t], h], -1), *gates[:2]))
        r = torch.sigmoid(F.linear(torch.cat([x[:, t], h], -1), *gates[2:4]))
        c = torch.tanh(F.linear(torch.cat([x[:, t], r * h], -1), *gates[4:]))
        h = u * h + (1 - u) * c
        states.append(h)
    return [torch.stack(states, 1) if sequence else h]


def gathered(x: Tensor, starts: Tensor, steps: int) -> Tensor:
    return torch.cat([x[:, start : start + steps] for start in starts.tolist()])


def _tgcn_layer(
    graph: Any,
    x: Tensor,
    csr: Any,
    weight: Any,
    convs: list[Tensor],
    gates: list[Tensor],
    h0: Tensor | None,
    starts: Tensor | None,
    *,
    conv_layers: int,
    between: bool,
    sequence: bool,
    steps: int,
) -> list[Tensor]:
    (g,) = _conv_stack(graph, x, csr, weight, convs, conv_layers, 2 if between else 3)
    return _gated_scan(graph, x, g, h0, gates, starts, sequence=sequence, steps=steps)


def _decision_from_logits(graph: Any, signal: Tensor, direction: Tensor, threshold: float) -> list[Tensor]:
    """A row at a time, in Python floats."""

    def softmax(a: float, b: float) -> tuple[float, float]:
        p = 1 / (1 + math.exp(-abs(a - b)))
        return (p, 1 - p) if a > b else (1 - p, p)

    probabilities, predictions, confidences = [], [], []
    for first, second in zip(signal.tolist(), direction.tolist(), strict=True):
        (noise, yes), (down, up) = softmax(*first), softmax(*second)
        decided = yes > threshold
        probabilities.append([noise, yes, down, up])
        predictions.append(2 * (up > down) if decided else 1)
        confidences.append(max(down, up) if decided else max(noise, yes))
    return [signal.new_tensor(probabilities), torch.tensor(predictions), signal.new_tensor(confidences)]


def _decision(graph: Any, h: Tensor, *params: Any, threshold: float) -> list[Tensor]:
    features = F.linear(h, *params[:2])
    logits = [F.linear(features, *params[2:4]), F.linear(features, *params[4:6])]
    return [*logits, *_decision_from_logits(graph, *logits, threshold)]


def _tgcn_layer_decision(
    graph: Any,
    x: Tensor,
    csr: Any,
    weight: Any,
    convs: list[Tensor],
    gates: list[Tensor],
    heads: list[Tensor],
    h0: Tensor | None,
    starts: Tensor | None,
    *,
    threshold: float,
    **layer: Any,
) -> list[Tensor]:
    (h,) = _tgcn_layer(graph, x, csr, weight, convs, gates, h0, starts, **layer, sequence=False)
    return _decision(graph, h, *heads, threshold=threshold)


def _multitask_loss(
    graph: Any,
    signal: Tensor,
    direction: Tensor,
    targets: Tensor,
    directions: Tensor,
    mask: Tensor | None,
    weight: float,
    signal_weight: Tensor | None = None,
    direction_weight: Tensor | None = None,
    smoothing: float = 0.0,
    gamma: float = 0.0,
    row_mask: Tensor | None = None,
) -> list[Tensor]:
    """The document's loss, of the rows that count: the direction over those that are signals."""

    def loss(logits: Tensor, classes: Tensor, class_weight: Tensor | None) -> Tensor:
        if not len(classes):
            return logits.sum()
        each = F.cross_entropy(logits, classes, class_weight, reduction="none", label_smoothing=smoothing)
        sure = logits.softmax(-1).gather(1, classes[:, None])[:, 0]
        counted = torch.ones_like(each) if class_weight is None else class_weight[classes]
        return ((1 - sure) ** gamma * each).sum() / counted.sum()

    if row_mask is not None:
        signal, direction, targets, directions = (one[row_mask] for one in (signal, direction, targets, directions))
        mask = None if mask is None else mask[row_mask]
    rows = slice(None) if mask is None else mask
    parts = [loss(signal, targets, signal_weight), loss(direction[rows], directions[rows], direction_weight)]
    return [parts[0] + weight * parts[1], *parts]


ORACLES = {
    "conv_stack": _conv_stack,
    "gated_scan": _gated_scan,
    "tgcn_layer": _tgcn_layer,
    "tgcn_layer_decision": _tgcn_layer_decision,
    "decision": _decision,
    "decision_from_logits": _decision_from_logits,
    "multitask_loss": _multitask_loss,
}
