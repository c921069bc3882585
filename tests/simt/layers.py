"""Whole layers for the SIMT harness, forward and backward, against the float64 twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hiermt.testing import assert_close
from simt.cases import Case, assert_gradient_norms, assert_gradients, conv_arguments, make
from simt.harness import run
from support.single_convolutions import reference


class LayerCase(NamedTuple):
    """One T-GCN layer; `problem` describes its first convolution. The fused backward has constant edges.

    `starts` are first days of windows of `window` steps, if x is the series they are of.
    """

    problem: Case
    gat: bool = True
    conv_layers: int = 2
    between: bool = True
    sequence: bool = True
    edge_grad: bool = True
    starts: tuple[int, ...] | None = None
    window: int = 0
    initial: bool = False

    @property
    def nodes(self) -> int:
        """What the scan runs over."""
        return (self.problem.copies if self.starts is None else len(self.starts)) * self.problem.nodes

    @property
    def steps(self) -> int:
        return self.problem.steps if self.starts is None else self.window

    def __str__(self) -> str:
        flags = f"{'gat' if self.gat else 'gcn'}{self.conv_layers}-{'between' if self.between else 'after'}"
        last = f"{'sequence' if self.sequence else 'last'}{'' if self.edge_grad else '-constant_edges'}"
        windows = "" if self.starts is None else f"-{len(self.starts)}x{self.window}"
        return f"{self.problem}-{flags}-{last}{windows}{'-initial' if self.initial else ''}"


class Layer(NamedTuple):
    """Inputs of a layer: `conv` holds every parameter of every convolution, lin_edge last (``None`` without)."""

    csr: list[Tensor]
    x: Tensor
    edge_weight: Tensor | None
    conv: list[list[Tensor | None]]
    gates: list[Tensor]
    initial: Tensor


def make_layer(case: LayerCase, dtype: torch.dtype) -> Layer:
    first = make(case.problem, dtype, case.gat)
    hidden, channels = case.problem.hidden, case.problem.channels
    conv: list[list[Tensor | None]] = []
    for k in range(case.conv_layers):
        problem = case.problem if k == 0 else case.problem._replace(channels=hidden, layout="dense")
        one = make(problem, dtype, case.gat, seed=k)
        conv.append([*one.params, one.lin_edge] if case.gat else list(one.params))
    generator = torch.Generator().manual_seed(99)
    columns = channels + 2 * hidden
    gates = [
        (torch.randn(hidden, columns, generator=generator) * columns**-0.5 if i % 2 == 0 else torch.zeros(hidden)).to(
            dtype
        )
        for i in range(6)
    ]
    initial = torch.randn(case.nodes, hidden, generator=generator).to(dtype)
    return Layer(first.csr, first.x, first.edge_weight, conv, gates, initial)


def layer_arguments(case: LayerCase, layer: Layer) -> tuple[list[int], list[Tensor | None]]:
    problem = make(case.problem, layer.x.dtype, case.gat)
    integers, inputs = conv_arguments(case.problem, problem, case.gat)
    # conv_arguments ends with one convolution, its kind and activation, and its parameters.
    integers[-3:] = [case.conv_layers, int(case.gat), 2 if case.between else 3]
    integers += [-1 if case.starts is None else len(case.starts), case.window]
    head = inputs[:7]
    state = layer.initial if case.initial else None
    return integers, [*head, *(p for conv in layer.conv for p in conv), state, *layer.gates, first_days(case)]


def first_days(case: LayerCase) -> Tensor | None:
    return None if case.starts is None else torch.tensor(case.starts, dtype=torch.int64)


def layer_forward(case: LayerCase, dtype: torch.dtype, spoil: Callable[[Layer], None]) -> tuple[Tensor, Tensor]:
    """Sequence of the kernels and of the float64 twin after `spoil` changed the inputs; GATv2 with weights only."""
    layer = make_layer(case, dtype)
    spoil(layer)
    problem = case.problem
    shape = (problem.copies * problem.nodes, problem.steps, problem.hidden)
    integers, inputs = layer_arguments(case, layer)
    inputs[5:7] = [layer.x, layer.edge_weight]
    h = run("tgcn_layer", dtype, integers, inputs, [(shape, dtype), None, None, None])[0]
    assert layer.edge_weight is not None
    conv = [p.double() for one in layer.conv for p in one if p is not None]
    expected = reference.tgcn_layer(
        layer.x.double(),
        layer.csr,
        layer.edge_weight.double(),
        conv,
        [p.double() for p in layer.gates],
        case.conv_layers,
        case.gat,
        True,
        case.between,
        True,
    )
    return h, expected


def layer_both(
    case: LayerCase,
    dtype: torch.dtype,
    environment: dict[str, str] | None = None,
    accuracy: torch.dtype | None = None,
) -> list[Tensor | None]:
    """Forward and backward, asserted against the twin as accurate as `accuracy` (`dtype`); returns all of both.

    An argument of a leaky_relu nearer to zero than 16 bits tell apart changes its slope. That is one channel of a
    gradient, which is 10 to 20 % of a small one, and the twin in 16 bits is off as far. Cases have none of these.
    """
    layer = make_layer(case, dtype)
    problem = case.problem
    total = problem.copies * problem.nodes
    sequence, state = ((case.nodes, case.steps, problem.hidden), dtype), ((case.nodes, problem.hidden), dtype)
    inner = ((total, problem.steps, problem.hidden), dtype)
    integers, inputs = layer_arguments(case, layer)
    h, h_last, _, g = run("tgcn_layer", dtype, integers, inputs, [sequence, state, None, inner], environment)
    (alone,) = run("tgcn_layer", dtype, integers, inputs, [None, state, None, None], environment)[1:2]
    assert torch.equal(alone, h_last)

    def leaf(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.double().detach().clone().requires_grad_()

    x = leaf(layer.x.reshape(total, problem.steps, problem.channels))
    edge_weight = leaf(layer.edge_weight) if case.edge_grad else None
    given_weight = layer.edge_weight.double() if edge_weight is None and layer.edge_weight is not None else edge_weight
    conv = [[leaf(p) for p in one] for one in layer.conv]
    gate_params = [leaf(p) for p in layer.gates]
    state = leaf(layer.initial) if case.initial else None
    edge = case.gat and given_weight is not None
    flat = [p for one in conv for p in (one if edge or not case.gat else one[:6])]
    flags = (case.conv_layers, case.gat, edge, case.between, True)
    windows = (first_days(case), case.window, state)
    expected = reference.tgcn_layer(x, layer.csr, given_weight, flat, gate_params, *flags, *windows)
    assert_close(h.double(), expected.detach(), dtype=accuracy or dtype)

    cotangent = torch.randn(sequence[0], generator=torch.Generator().manual_seed(5)).to(dtype)
    if case.sequence:
        grads_in: list[Tensor | None] = [cotangent, None]
        value, seed = expected, cotangent.double()
    else:
        grads_in = [None, cotangent[:, -1].contiguous()]
        value, seed = expected[:, -1], cotangent[:, -1].double()
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [x, *(p for one in conv for p in one), *gate_params, state, edge_weight]
    outputs = [
        None if p is None else (tuple(p.shape), dtype if i == 0 or p is state else compute)
        for i, p in enumerate(leaves)
    ]
    grads = run("tgcn_layer_backward", dtype, integers, [*inputs, h, None, *grads_in, g], outputs, environment)
    truth = iter(torch.autograd.grad(value, [p for p in leaves if p is not None], seed, allow_unused=True))
    pairs = []
    for i, (p, grad) in enumerate(zip(leaves, grads, strict=True)):
        if p is not None:
            one = next(truth)
            pairs.append((f"argument {i}", grad, torch.zeros_like(p) if one is None else one))
    assert_gradients(pairs, accuracy or dtype)
    if (accuracy or dtype) == torch.float32:
        assert_gradient_norms(pairs)
    return [h, h_last, g, *grads]
